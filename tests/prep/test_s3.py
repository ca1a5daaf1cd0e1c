"""S3's settings and errors: against Swift, and against servers that give the answers that Swift does not."""

import json
import sys
import traceback
import types
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from helpers.answers import Answer, AnswerServer, Request, answering, play_imds, s3_error
from helpers.swift_server import SwiftServer
from hypothesis import given, settings
from hypothesis import strategies as st

from prep.errors import InputError
from prep.remote import Patience, Remote, RemoteError
from prep.s3 import find_own_region, find_region, find_settings, is_object_name, open_bucket, split_url
from prep.s3_errors import describe_error, find_code, hide_secrets
from prep.store import open_store

obstore: Any = pytest.importorskip("obstore", reason="needs obstore")

KEY, SECRET, TOKEN = "AKIAIOSFODNN7EXAMPLE", "wJalrXUtnFEMI/K7MDENG&bPxRfiCYEXAMPLEKEY", "FwoGZXIvYXdzEXAMPLETOKEN"
IMDS = "AWS_EC2_METADATA_SERVICE_ENDPOINT"
ROLE = "/latest/meta-data/iam/security-credentials/"
REGION = "/latest/meta-data/placement/region"

Serve = Callable[[Callable[[Request], Answer]], AnswerServer]


@pytest.fixture(autouse=True)
def _bare_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No test sees the user's own settings."""
    for name in (
        *("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE", "AWS_REGION"),
        *("AWS_DEFAULT_REGION", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT", "AWS_EC2_METADATA_DISABLED"),
        *("AWS_CA_BUNDLE", "SSL_CERT_FILE", "AWS_ALLOW_HTTP", "HTTP_PROXY", "http_proxy"),
    ):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("AWS_CONFIG_FILE", raising=False)
    monkeypatch.delenv("AWS_SHARED_CREDENTIALS_FILE", raising=False)
    find_own_region.cache_clear()


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Start servers that end with the test."""
    with ExitStack() as stack:
        yield lambda answer: stack.enter_context(answering(answer))


@pytest.fixture
def keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """Credentials in the environment."""
    for name, value in (
        ("AWS_ACCESS_KEY_ID", KEY),
        ("AWS_SECRET_ACCESS_KEY", SECRET),
        ("AWS_SESSION_TOKEN", TOKEN),
        ("AWS_REGION", "us-east-1"),
    ):
        monkeypatch.setenv(name, value)


def _set(monkeypatch: pytest.MonkeyPatch, values: dict[str, str]) -> None:
    for name, value in values.items():
        monkeypatch.setenv(name, value)


def _refusal(request: Callable[[], object]) -> str:
    """Return the line of the error that a request ends with."""
    with pytest.raises(InputError) as caught:
        request()
    line, whole = str(caught.value), "".join(traceback.format_exception(caught.value))
    assert line.isprintable()
    for secret in (KEY, SECRET, TOKEN, "StringToSign"):
        assert secret not in whole
    return line


# What is refused without a request.


@pytest.mark.parametrize(
    "url",
    ["s3://", "s3:///a", "s3://b", "http://bucket/a", "bucket/a", "s3://bucket/a//b", "s3://bucket/../a", "s3:/b/a"],
)
def test_a_url_that_names_no_prefix_is_refused(url: str) -> None:
    assert "expected a URL such as s3://BUCKET/PREFIX" in _refusal(lambda: split_url(url))


@settings(deadline=None)
@given(st.text())
def test_a_url_is_split_or_refused_in_one_line(text: str) -> None:
    for url in (text, f"s3://{text}", f"s3://bucket/{text}"):
        try:
            bucket, prefix = split_url(url)
        except InputError as error:
            assert str(error).isprintable()
        else:
            assert f"s3://{bucket}/{prefix}".rstrip("/") == url.rstrip("/").replace("bucket//", "bucket/")
            assert not prefix or is_object_name(prefix)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("AWS_ENDPOINT_URL", "nonsense", "AWS_ENDPOINT_URL must be a URL"),
        ("AWS_ENDPOINT_URL", "http://", "AWS_ENDPOINT_URL must be a URL"),
        ("AWS_ENDPOINT_URL_S3", "http://host:99999", "AWS_ENDPOINT_URL_S3 must be a URL"),
        ("AWS_ENDPOINT_URL", "http://exa mple", "AWS_ENDPOINT_URL must be a URL"),
        *((f"AWS_ENDPOINT{end}", "", f"AWS_ENDPOINT{end} is empty") for end in ("", "_URL", "_URL_S3")),
        ("AWS_REGION", "us-east-1\r", "AWS_REGION has a space"),
        ("AWS_ACCESS_KEY_ID", f"{KEY}\r", "AWS_ACCESS_KEY_ID has a space"),
        ("AWS_SESSION_TOKEN", f"{TOKEN}\n", "AWS_SESSION_TOKEN has a space"),
        ("AWS_ACCESS_KEY_ID", "", "AWS_ACCESS_KEY_ID is empty"),
        ("AWS_CA_BUNDLE", "/nowhere.pem", "AWS_CA_BUNDLE=/nowhere.pem cannot be used (No such file"),
        ("AWS_SKIP_SIGNATURE", "maybe", "check the variables that begin with AWS_"),
    ],
)
def test_a_variable_that_obstore_cannot_use_is_refused(
    name: str, value: str, words: str, keys: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    assert words in _refusal(lambda: open_bucket("s3://bucket"))


def test_a_missing_obstore_is_named(keys: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "obstore", None)
    assert "pip install -e '.[s3]'" in _refusal(find_settings)


# Endpoints.


def test_plain_http_is_used_only_where_the_endpoint_says_so(
    serve: Serve, keys: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = serve(lambda _: Answer(body=b"content"))
    monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
    assert Remote("s3://bucket", Patience(0)).read("name") == b"content"
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", server.url)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    assert Remote("s3://bucket", Patience(0)).read("name") == b"content"
    # Not with https://, although obstore's own variable allows it; this is not waited for.
    monkeypatch.setenv("AWS_ALLOW_HTTP", "true")
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", server.url.replace("http", "https"))
    assert "the endpoint has no TLS" in _refusal(lambda: Remote("s3://bucket").read("name"))
    found = find_settings()
    monkeypatch.delenv("AWS_ENDPOINT_URL_S3")
    store = obstore.store.S3Store("bucket", **{**found, "endpoint": server.url})
    with pytest.raises(obstore.exceptions.BaseError, match="BadScheme"):
        store.get("name")


# Credentials and regions.


def test_the_role_of_an_instance_is_used(
    server: SwiftServer, serve: Serve, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    environment = server.environment()
    credentials = {
        "AccessKeyId": environment.pop("AWS_ACCESS_KEY_ID"),
        "SecretAccessKey": environment.pop("AWS_SECRET_ACCESS_KEY"),
        "Token": "",
        "Code": "Success",
        "Type": "AWS-HMAC",
        "LastUpdated": "2026-11-26T00:00:00Z",
        "Expiration": "2036-11-26T00:00:00Z",
    }
    imds = serve(play_imds({ROLE: "trainer", f"{ROLE}trainer": json.dumps(credentials), REGION: "us-east-1"}))
    for name in ("AWS_EC2_METADATA_DISABLED", "AWS_DEFAULT_REGION"):
        del environment[name]
    _set(monkeypatch, {**environment, IMDS: imds.url})
    server.make_bucket("role")
    remote = Remote("s3://role/run", Patience(0))
    remote.child("a").put("name", b"content")
    assert remote.read("a/name") == b"content"
    assert [request.path for request in imds.requests].count(f"{ROLE}trainer") <= 2  # one for reading, one for writing


def test_the_region_is_that_of_the_instance(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    imds = serve(play_imds({REGION: "eu-north-1"}))
    monkeypatch.setenv(IMDS, imds.url)
    assert find_region() == find_region() == "eu-north-1"
    assert len(imds.requests) == 2  # a token and the region, once
    assert find_region("eu-west-2") == "eu-west-2"  # a profile's
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-west-2")
    assert find_region() == "us-west-2"
    monkeypatch.setenv("AWS_REGION", "us-east-2")
    assert find_region() == "us-east-2"
    monkeypatch.delenv("AWS_REGION")
    monkeypatch.delenv("AWS_DEFAULT_REGION")
    find_own_region.cache_clear()
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    assert find_region() == "us-east-1"
    assert len(imds.requests) == 2


def test_a_machine_without_any_credentials_is_told_what_to_do(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = lambda: Remote("s3://bucket", Patience()).read("name")  # noqa: E731
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    assert _refusal(asked).startswith("no AWS credentials were found: set AWS_ACCESS_KEY_ID")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "false")
    monkeypatch.setenv(IMDS, serve(play_imds({REGION: "us-east-1"})).url)  # an instance without a role
    assert "(no credentials): no AWS credentials were found: " in _refusal(asked)
    find_own_region.cache_clear()
    monkeypatch.setenv(IMDS, "http://127.0.0.1:9")  # no instance
    assert "(no credentials): no AWS credentials were found: " in _refusal(asked)


@pytest.fixture
def profile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The credentials are in a profile that the user has chosen."""
    (tmp_path / ".aws").mkdir()
    (tmp_path / ".aws" / "config").write_text("[profile work]\nsso_session = corporation\nregion = eu-west-3\n")
    monkeypatch.setenv("AWS_PROFILE", "work")


def test_a_profile_needs_boto3(profile: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "boto3", None)
    line = _refusal(find_settings)
    assert line.startswith("the credentials are in the profile work, which only boto3 can read: run `eval ")
    assert 'eval "$(aws configure export-credentials --format env)"' in line


def test_a_default_profile_needs_boto3_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "boto3", None)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    (tmp_path / ".aws").mkdir()
    (tmp_path / ".aws" / "config").write_text("[default]\nregion = eu-west-3\n")  # no credentials
    assert "no AWS credentials were found" in _refusal(find_settings)
    (tmp_path / ".aws" / "credentials").write_text(f"[default]\naws_access_key_id = {KEY}\n")
    assert "in the profile default, which only boto3 can read" in _refusal(find_settings)
    (tmp_path / ".aws" / "credentials").write_bytes(b"\xff[[\n")
    assert "no AWS credentials were found" in _refusal(find_settings)


class _Session:
    """boto3's, as far as obstore uses it."""

    error: Exception | None = None

    def __init__(self, profile_name: str | None = None) -> None:
        self.region_name = f"region-of-{profile_name}"

    def get_credentials(self) -> Any:
        if self.error is not None:
            raise self.error
        frozen = types.SimpleNamespace(access_key=KEY, secret_key=SECRET, token=TOKEN)
        return types.SimpleNamespace(get_frozen_credentials=lambda: frozen)


def test_a_profile_is_read_by_boto3(profile: None, serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("boto3", "boto3.session", "botocore", "botocore.credentials", "botocore.session"):
        module: Any = types.ModuleType(name)
        module.Session = _Session
        monkeypatch.setitem(sys.modules, name, module)
    for parent, child in (("boto3", "session"), ("botocore", "credentials"), ("botocore", "session")):
        monkeypatch.setattr(sys.modules[parent], child, sys.modules[f"{parent}.{child}"], raising=False)
    monkeypatch.setattr(sys.modules["botocore.credentials"], "Credentials", object, raising=False)
    monkeypatch.delitem(sys.modules, "obstore.auth.boto3", raising=False)

    # The request is signed with the profile's key, in its region.
    server = serve(lambda _: Answer(body=b"content"))
    monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
    assert Remote("s3://bucket", Patience(0)).read("name") == b"content"
    assert f"{KEY}/" in server.requests[0].headers["Authorization"]
    assert "/region-of-work/s3/" in server.requests[0].headers["Authorization"]
    assert server.requests[0].headers["x-amz-security-token"] == TOKEN

    # A profile that boto3 cannot use.
    monkeypatch.setattr(_Session, "error", ValueError("the session\nhas expired"))
    line = _refusal(find_settings)
    assert line.startswith("the profile work has no credentials that boto3 can use (the session has expired): `aws sts")


# Errors.


@pytest.fixture
def swift(server: SwiftServer, monkeypatch: pytest.MonkeyPatch) -> SwiftServer:
    """Swift, with a bucket of one object."""
    server.make_bucket("errors")
    server.open("errors").put("data/name", b"content")
    _set(monkeypatch, server.environment())
    return server


@pytest.mark.parametrize(
    ("changes", "bucket", "words"),
    [
        ({"AWS_SECRET_ACCESS_KEY": "sesame"}, "errors", "SignatureDoesNotMatch: .*: check AWS_SECRET_ACCESS_KEY"),
        ({"AWS_ACCESS_KEY_ID": "nobody"}, "errors", "check AWS_"),
        ({"AWS_DEFAULT_REGION": "eu-west-1"}, "errors", "in the region us-east-1: set AWS_REGION=us-east-1"),
        ({}, "nowhere", "NoSuchBucket: .*: check the bucket's name"),
    ],
    ids=["wrong secret", "wrong key", "wrong region", "no bucket"],
)
def test_what_swift_refuses_is_told_in_one_line(
    changes: dict[str, str], bucket: str, words: str, swift: SwiftServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    _set(monkeypatch, changes)
    remote = Remote(f"s3://{bucket}/data")
    for action, request in (
        ("read", lambda: remote.read("name")),
        ("read", lambda: remote.read_range("name", 0, 1, bytearray(1))),
        ("listed", remote.list),
        ("listed", remote.folders),
        ("written", lambda: remote.put("name", b"other")),
        ("written", lambda: remote.create("other", b"other")),
        ("written", lambda: remote.put("name", bytes(9_000_000))),  # in parts
        ("deleted", lambda: remote.delete("name")),
    ):
        with pytest.raises(RemoteError, match=rf"^s3://{bucket}/data.* cannot be {action} \(.*{words}"):
            request()
    assert swift.objects("errors") == {"data/name": b"content"}


def test_a_bucket_of_another_region_is_told(serve: Serve, keys: None, monkeypatch: pytest.MonkeyPatch) -> None:
    server = serve(lambda _: Answer(301, headers={"x-amz-bucket-region": "ap-south-1"}))
    monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
    remote = Remote("s3://bucket/data")
    for request in (lambda: remote.read("name"), remote.list):
        assert "the bucket is in the region ap-south-1: set AWS_REGION=ap-south-1" in _refusal(request)
    assert server.requests[-1].path == "/bucket"
    assert "Authorization" not in server.requests[-1].headers
    server = serve(lambda _: Answer(301, headers={"x-amz-bucket-region": "<a b>"}))
    monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
    assert "cannot be listed (301): check" in _refusal(Remote("s3://bucket/data").list)


@pytest.mark.parametrize(
    ("action", "permission"),
    [("read", "s3:GetObject"), ("list", "s3:ListBucket"), ("put", "s3:PutObject"), ("delete", "s3:DeleteObject")],
)
def test_a_policy_that_forbids_is_told(
    action: str, permission: str, serve: Serve, keys: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    message = f"User {KEY} is &quot;not&quot;\n allowed; {SECRET.replace('&', '&amp;')}; X-Amz-Security-Token={TOKEN}"
    server = serve(lambda _: s3_error(403, "AccessDenied", message))
    monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
    remote = Remote("s3://bucket/data")
    requests = {
        "read": lambda: remote.read("name"),
        "list": remote.list,
        "put": lambda: remote.put("name", b""),
        "delete": lambda: remote.delete("name"),
    }
    line = _refusal(requests[action])
    assert line.startswith("s3://bucket/data")
    assert 'AccessDenied: User *** is "not" allowed; ***; X-Amz-Security-Token=***' in line
    assert f"the policy must allow {permission} there" in line


def test_a_deletion_that_fails_within_a_success_is_told(
    serve: Serve, keys: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed = "<Error><Key>data/name</Key><Code>AccessDenied</Code><Message>no way</Message></Error>"
    server = serve(lambda _: Answer(body=f'<?xml version="1.0"?><DeleteResult>{failed}</DeleteResult>'.encode()))
    monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
    line = _refusal(lambda: Remote("s3://bucket/data").delete("name"))
    assert "(AccessDenied: no way): the policy must allow s3:DeleteObject there" in line


def test_a_method_that_a_server_lacks_is_not_waited_for(
    serve: Serve, keys: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = serve(lambda _: s3_error(501, "NotImplemented"))
    monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
    assert "(NotImplemented: a message)" in _refusal(lambda: Remote("s3://bucket/data").create("name", b""))


@settings(deadline=None)
@given(st.text(max_size=400), st.text(max_size=100), st.sampled_from(["read", "list", "write", "delete"]))
def test_an_error_is_one_line_whatever_the_server_says(body: str, code: str, action: str) -> None:
    for text in (
        f"Generic S3 error: {body}",
        f"x non-2xx status code: 403 Forbidden: <Error><Code>{code}</Code><Message>{body}</Message></Error>",
        f"DeleteObjects request failed for key {code}: {body} (code: AccessDenied)",
        f"Received redirect without LOCATION {body}",
        f"HTTP error: {body}",
    ):
        line = describe_error(RuntimeError(text), action, "s3://bucket/data")
        assert line.isprintable()
        assert len(line) < 1000
        assert line.startswith("s3://bucket/data cannot be ")
        found = find_code(text)
        assert found is None or found.isprintable()


@settings(deadline=None)
@given(before=st.text(), after=st.text())
def test_secrets_are_hidden_wherever_they_are(before: str, after: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        _set(patch, {"AWS_ACCESS_KEY_ID": "key-id", "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_SESSION_TOKEN": TOKEN})
        for secret in ("key-id", SECRET, TOKEN):
            hidden = hide_secrets(f"{before}{secret}{after}")
            assert secret not in hidden
            assert hidden.isprintable()


def test_a_signed_url_is_hidden(keys: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "https://127.0.0.1:9")
    store, _ = open_bucket("s3://bucket")
    url = obstore.sign(store, "GET", "name", timedelta(minutes=5))
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name)  # the URL may be of another process
    hidden = hide_secrets(f"GET {url} failed")
    refusals = [_refusal(lambda: open_store(url)), _refusal(lambda: Remote(url))]  # given as a dataset
    signature = url.partition("X-Amz-Signature=")[2].partition("&")[0]
    assert len(signature) == 64
    for secret in (KEY, TOKEN, signature):
        assert not any(secret in line for line in (hidden, *refusals))
    assert hidden.startswith("GET https://127.0.0.1:9/bucket/name?X-Amz-")
    assert hidden.endswith(" failed")
