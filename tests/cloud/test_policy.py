"""cloud/policy.json, enforced by moto's server: the data can be read, the run kept, and nothing else be done."""

import json
import subprocess
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest
from helpers.commands import CHECKOUT
from helpers.moto_server import REGION, MotoServer, load_policy

if TYPE_CHECKING:
    from obstore.store import S3Store

BUCKET, DATA, RUN = "ours", "imagenet", "runs/first"
FILL = """[
client("s3").create_bucket(Bucket="ours"), client("s3").create_bucket(Bucket="theirs"),
*[client("s3").put_object(Bucket=bucket, Key=key, Body=b"0123456789")
  for bucket, key in (("ours", "imagenet/train/manifest.json"), ("ours", "imagenet-old/secret"),
                      ("ours", "runs/second/recipe.json"), ("theirs", "imagenet/train/manifest.json"))]]"""


@pytest.fixture(scope="module")
def open_store(moto: MotoServer) -> "Callable[[str], S3Store]":
    """Return a function that opens a bucket as a machine does that has the policy."""
    store = pytest.importorskip("obstore.store", reason="needs obstore, which is not installed")
    moto.ask(FILL)
    key, secret = moto.make_user(load_policy(BUCKET, DATA, RUN))

    def open_bucket(bucket: str) -> "S3Store":
        return store.S3Store(
            bucket,
            endpoint=moto.endpoint,
            access_key_id=key,
            secret_access_key=secret,
            region=REGION,
            client_options={"allow_http": True},
            retry_config={"max_retries": 0},
        )

    return open_bucket


def list_keys(store: "S3Store", prefix: str | None) -> list[str]:
    return [str(entry["path"]) for entry in store.list(prefix).collect()]


def test_the_data_can_be_listed_and_read(open_store: "Callable[[str], S3Store]") -> None:
    store, name = open_store(BUCKET), f"{DATA}/train/manifest.json"
    assert list_keys(store, DATA) == list_keys(store, f"{DATA}/train") == [name]
    assert bytes(store.get(name).bytes()) == b"0123456789"
    assert bytes(store.get_range(name, start=2, end=4)) == b"23"
    assert store.head(name)["size"] == 10


def test_the_run_can_be_kept(open_store: "Callable[[str], S3Store]") -> None:
    store = open_store(BUCKET)
    for name in ("claims/000001.json", "checkpoints/step_1/model.safetensors"):
        store.put(f"{RUN}/{name}", b"first", mode="create")
    large = bytes(11 << 20)
    store.put(f"{RUN}/checkpoints/step_1/optimizer.pt", large, use_multipart=True, chunk_size=5 << 20)
    assert bytes(store.get(f"{RUN}/checkpoints/step_1/optimizer.pt").bytes()) == large
    assert len(list_keys(store, f"{RUN}/checkpoints")) == 2
    store.delete(f"{RUN}/claims/000001.json")
    store.delete(list_keys(store, RUN))
    assert list_keys(store, RUN) == []


REFUSED: "dict[str, tuple[str, Callable[[S3Store], Any]]]" = {
    "get of other data": (BUCKET, lambda store: store.get("imagenet-old/secret")),
    "get of another run": (BUCKET, lambda store: store.get("runs/second/recipe.json")),
    "get from another bucket": ("theirs", lambda store: store.get(f"{DATA}/train/manifest.json")),
    "get of what does not exist": (BUCKET, lambda store: store.get(f"{RUN}/recipe.json")),
    "put into the data": (BUCKET, lambda store: store.put(f"{DATA}/train/manifest.json", b"")),
    "delete of data": (BUCKET, lambda store: store.delete(f"{DATA}/train/manifest.json")),
    "delete of several objects": (BUCKET, lambda store: store.delete([f"{RUN}/a", f"{DATA}/train/manifest.json"])),
    "put into another run": (BUCKET, lambda store: store.put("runs/second/claims/1.json", b"", mode="create")),
    "list of another run": (BUCKET, lambda store: list_keys(store, "runs/second")),
    "list of other data": (BUCKET, lambda store: list_keys(store, "imagenet-old")),
    "list of the whole bucket": (BUCKET, lambda store: list_keys(store, None)),
    "list of another bucket": ("theirs", lambda store: list_keys(store, DATA)),
}


@pytest.mark.parametrize("request_name", REFUSED)
def test_nothing_else_can_be_done(open_store: "Callable[[str], S3Store]", request_name: str) -> None:
    bucket, send = REFUSED[request_name]
    with pytest.raises(Exception, match=r"AccessDenied|Access Denied"):
        send(open_store(bucket))


def test_the_documented_command_fills_in_the_names() -> None:
    readme = (CHECKOUT / "cloud" / "README.md").read_text()
    (command,) = [line.strip() for line in readme.splitlines() if line.strip().startswith("sed ")]
    filled = subprocess.run(
        command.removesuffix("> policy.json"), shell=True, cwd=CHECKOUT, capture_output=True, text=True, check=True
    )
    policy = json.loads(filled.stdout)
    assert policy == load_policy("my-bucket", "imagenet", "runs/first")
    resources = [each["Resource"].removeprefix("arn:aws:s3:::") for each in policy["Statement"]]
    assert resources == ["my-bucket", "my-bucket/imagenet/*", "my-bucket/runs/first/*"]
