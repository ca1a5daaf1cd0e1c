"""moto's server on the loopback: AWS's answers for CloudFormation, Auto Scaling, IAM and S3, with policies enforced."""

import json
import os
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from helpers.commands import CHECKOUT, free_port
from helpers.tools import MOTO, tool_bin

REGION = "us-east-1"
SECONDS_TO_START = 60.0
# Prints the value of an expression as JSON; the expression may use `client(SERVICE)` and `arguments`.
RUN_BOTO3 = """
import boto3, json, sys
endpoint, arguments = sys.argv[2], json.loads(sys.argv[3])
client = lambda service: boto3.client(service, endpoint_url=endpoint)
print(json.dumps(eval(compile(sys.argv[1], "request", "eval")), default=str))
"""
# A new user with one policy: the keys.
MAKE_USER = """(
client("iam").create_user(UserName=arguments["name"]),
client("iam").put_user_policy(
    UserName=arguments["name"], PolicyName="only", PolicyDocument=json.dumps(arguments["policy"])),
client("iam").create_access_key(UserName=arguments["name"])["AccessKey"],
)[-1]"""


@dataclass(frozen=True)
class MotoServer:
    """A running server. Until a user is made all requests are allowed, with any keys."""

    endpoint: str

    def environment(self, keys: tuple[str, str] = ("root", "root")) -> dict[str, str]:
        """Return the settings that botocore, obstore and `aws` read; none of the user's own files is read."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": keys[0],
            "AWS_SECRET_ACCESS_KEY": keys[1],
            "AWS_DEFAULT_REGION": REGION,
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
            "AWS_EC2_METADATA_DISABLED": "true",
            "NO_PROXY": "127.0.0.1",
        }

    def ask(self, expression: str, **arguments: Any) -> Any:
        """Return the value of an expression (see RUN_BOTO3), such as `client("s3").list_buckets()`.

        Policies must not be enforced: it asks with keys that belong to no user.
        """
        command = [tool_bin(*MOTO) / "python", "-c", RUN_BOTO3, expression, self.endpoint, json.dumps(arguments)]
        process = subprocess.run(
            command, env={**os.environ, **self.environment()}, capture_output=True, text=True, timeout=120, check=False
        )
        assert process.returncode == 0, process.stderr
        return json.loads(process.stdout)

    def make_user(self, policy: dict[str, Any], name: str = "machine") -> tuple[str, str]:
        """Return key and secret of a new user who may do what a policy allows; enforce all policies from now on."""
        self.enforce_policies(False)
        keys = self.ask(MAKE_USER, name=name, policy=policy)
        self.enforce_policies(True)
        return keys["AccessKeyId"], keys["SecretAccessKey"]

    def enforce_policies(self, enforced: bool) -> None:
        """Allow each request only what its user's policies allow; or allow all requests everything."""
        count, headers = b"0" if enforced else b"inf", {"Content-Type": "text/plain"}
        request = urllib.request.Request(f"{self.endpoint}/moto-api/reset-auth", data=count, headers=headers)
        urllib.request.urlopen(request, timeout=60).close()


@contextmanager
def moto_server(folder: Path) -> Iterator[MotoServer]:
    """Start one, wait until it answers, and end it. Its log is in a folder."""
    port = free_port()
    python, launcher = tool_bin(*MOTO) / "python", CHECKOUT / "tests/helpers/moto_launcher.py"
    with (folder / "moto.log").open("wb") as log:
        process = subprocess.Popen([python, launcher, "--port", str(port)], stdout=log, stderr=log)
    try:
        _wait_for(f"http://127.0.0.1:{port}/moto-api/", process, folder / "moto.log")
        yield MotoServer(f"http://127.0.0.1:{port}")
    finally:
        process.kill()
        process.wait()


def load_policy(bucket: str, data: str, run: str) -> dict[str, Any]:
    """Return cloud/policy.json with its three placeholders filled in."""
    text = (CHECKOUT / "cloud" / "policy.json").read_text()
    for placeholder, value in (("BUCKET", bucket), ("DATA", data), ("RUN", run)):
        text = text.replace(placeholder, value)
    return json.loads(text)


def _wait_for(address: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + SECONDS_TO_START
    while True:
        try:
            urllib.request.urlopen(address, timeout=5).close()
            return
        except OSError:
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"moto did not start: {log.read_text()[-500:]}") from None
            time.sleep(0.05)
