"""cloud/spot.cfn.yaml as moto's server makes it: one machine, what it may do and how it starts; then none."""

import ast
import base64
import configparser
import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from helpers.commands import CHECKOUT
from helpers.imds import metadata_service
from helpers.moto_server import REGION, MotoServer, load_policy
from helpers.tools import MOTO, SHELLCHECK, tool_bin

NAME, RUN = "first", "runs/first"
# moto knows Amazon Linux's images alone, so the stack takes one of them in place of the Deep Learning AMI's.
WANTED = "/aws/service/deeplearning/ami/x86_64/base-oss-nvidia-driver-gpu-ubuntu-24.04/latest/ami-id"
IMAGE = "/aws/service/ami-amazon-linux-latest/al2023-ami-kernel-default-x86_64"
MAKE_STACK = """(
client("cloudformation").create_stack(
    StackName=arguments["name"], TemplateBody=arguments["template"], Capabilities=["CAPABILITY_IAM"],
    Parameters=[{"ParameterKey": key, "ParameterValue": value if key != "Subnets" else ",".join(
        subnet["SubnetId"] for subnet in client("ec2").describe_subnets()["Subnets"])}
        for key, value in arguments["parameters"].items()]),
client("cloudformation").describe_stack_resources(StackName=arguments["name"])["StackResources"])[-1]"""
FIND = """{
"group": client("autoscaling").describe_auto_scaling_groups(AutoScalingGroupNames=["first"])["AutoScalingGroups"][0],
"policies": [client("iam").get_role_policy(RoleName=role["RoleName"], PolicyName=name)["PolicyDocument"]
    for role in client("iam").list_roles()["Roles"]
    for name in client("iam").list_role_policies(RoleName=role["RoleName"])["PolicyNames"]],
"template": client("ec2").describe_launch_template_versions(LaunchTemplateId=arguments["template"],
    Versions=["$Latest"])["LaunchTemplateVersions"][0]["LaunchTemplateData"],
"logs": client("logs").describe_log_groups()["logGroups"]}"""
COUNT = """(lambda group: [group["DesiredCapacity"], len(group["Instances"]), group["MinSize"], group["MaxSize"]])(
client("autoscaling").describe_auto_scaling_groups(AutoScalingGroupNames=["first"])["AutoScalingGroups"][0])"""
# Pretends to be `aws` and others; the archive in S3 holds a file.
PRETENDED = """#!/bin/sh
echo "${0##*/} $*" >> "$CALLS"
case "$1 $2" in "s3 cp") cd "${CALLS%/*}" && touch archived && tar -cz archived ;; esac
"""


@pytest.fixture(scope="module")
def resources(moto: MotoServer, repository: str) -> dict[str, str]:
    """A new stack: the name of each of its resources."""
    template = (CHECKOUT / "cloud/spot.cfn.yaml").read_text()
    assert f"    Type: AWS::SSM::Parameter::Value<AWS::EC2::Image::Id>\n    Default: {WANTED}\n" in template
    template = template.replace(WANTED, IMAGE)
    parameters = {"Bucket": "ours", "Subnets": "", "Code": repository, "Arguments": "demo --epochs 3"}
    made = moto.ask(MAKE_STACK, name=NAME, template=template, parameters=parameters)
    # moto also lists a resource that was not made, the endpoint; it has no name.
    return {each["LogicalResourceId"]: each["PhysicalResourceId"] for each in made if "LogicalResourceId" in each}


@pytest.fixture(scope="module")
def found(moto: MotoServer, resources: dict[str, str]) -> dict[str, Any]:
    """What AWS would answer about the stack."""
    return moto.ask(FIND, template=resources["Template"])


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A git repository with cloud/ in it."""
    folder = tmp_path_factory.mktemp("repository")
    shutil.copytree(CHECKOUT / "cloud", folder / "cloud")
    identity = ["-c", "user.name=a", "-c", "user.email=a@example.com"]
    for words in (["init", "--quiet"], ["add", "."], [*identity, "commit", "--quiet", "--message", "cloud"]):
        subprocess.run(["git", *words], cwd=folder, check=True, capture_output=True)
    return f"file://{folder}"


def test_the_stack_has_one_machine_on_several_types(found: dict[str, Any]) -> None:
    group = found["group"]
    assert (group["MinSize"], group["MaxSize"], group["DesiredCapacity"], len(group["Instances"])) == (0, 1, 1, 1)
    policy = group["MixedInstancesPolicy"]
    assert len({each["InstanceType"] for each in policy["LaunchTemplate"]["Overrides"]}) == 6
    assert policy["InstancesDistribution"]["SpotAllocationStrategy"] == "price-capacity-optimized"
    assert policy["InstancesDistribution"]["OnDemandPercentageAboveBaseCapacity"] == 0
    assert len(group["AvailabilityZones"]) > 1
    assert found["template"]["MetadataOptions"] == {"HttpTokens": "required", "HttpPutResponseHopLimit": 2}
    (logs,) = found["logs"]
    assert (logs["logGroupName"], logs["retentionInDays"]) == (f"/penstock/{NAME}", 30)


def test_the_role_may_do_what_the_policy_says_and_end_its_own_group(found: dict[str, Any]) -> None:
    policies = [ast.literal_eval(policy) for policy in found["policies"]]  # moto has them as Python's text
    allowed = [statement for policy in policies for statement in policy["Statement"]]
    storage = load_policy("ours", "imagenet", RUN)["Statement"]
    assert [each for each in allowed if "s3" in str(each["Action"])] == storage
    group, logs = (each for each in allowed if each not in storage)
    assert group["Action"] == "autoscaling:UpdateAutoScalingGroup"
    assert group["Resource"].endswith(f":autoScalingGroup:*:autoScalingGroupName/{NAME}")
    assert logs["Action"] == ["logs:CreateLogStream", "logs:PutLogEvents"]
    assert f"log-group:/penstock/{NAME}" in logs["Resource"]


def test_the_machine_fetches_the_code_and_trains_as_a_service(
    found: dict[str, Any], tmp_path: Path, repository: str
) -> None:
    script = tmp_path / "start.sh"
    script.write_bytes(base64.b64decode(found["template"]["UserData"]))
    checked = subprocess.run([tool_bin(SHELLCHECK) / "shellcheck", script], capture_output=True, text=True, check=False)
    assert checked.stdout == ""
    service = start_machine(script, tmp_path)
    assert (tmp_path / "opt/penstock/cloud/run.sh").exists(), "the code"
    # What systemd starts, and with what environment.
    assert service["Service"]["ExecStart"] == "/opt/penstock/cloud/run.sh demo --epochs 3"
    assert service["Service"]["KillMode"] == "mixed", "run.sh alone gets SIGTERM, and passes it on"
    lines = (tmp_path / "opt/penstock-service/environment").read_text().splitlines()
    assert dict(line.split("=", 1) for line in lines) == {
        "HOME": "/root",
        "AWS_REGION": REGION,
        "PENSTOCK_DATA": "s3://ours/imagenet",
        "PENSTOCK_MIRROR": f"s3://ours/{RUN}",
        "PENSTOCK_WHEN_FINISHED": f"/opt/penstock/cloud/finish.sh {NAME}",
    }
    logs = json.loads((tmp_path / "opt/penstock-service/logs.json").read_text())
    files = logs["logs"]["logs_collected"]["files"]["collect_list"]
    assert {each["log_group_name"] for each in files} == {f"/penstock/{NAME}"}
    assert service["Service"]["StandardOutput"] == f"append:{files[0]['file_path']}"
    calls = (tmp_path / "calls").read_text()
    assert calls.splitlines()[-1] == "systemctl enable --now /opt/penstock-service/penstock.service"
    assert "update-auto-scaling-group" not in calls


def test_the_code_may_be_an_archive_in_the_bucket(found: dict[str, Any], tmp_path: Path, repository: str) -> None:
    text = base64.b64decode(found["template"]["UserData"]).decode()
    script = tmp_path / "start.sh"
    script.write_text(text.replace(repository, archive := "s3://ours/imagenet/code.tar.gz"))
    start_machine(script, tmp_path)
    assert (tmp_path / "opt/penstock/archived").exists()
    assert f"aws s3 cp {archive} -" in (tmp_path / "calls").read_text()


def test_a_machine_that_cannot_fetch_the_code_ends_its_group(
    found: dict[str, Any], tmp_path: Path, repository: str
) -> None:
    script = tmp_path / "start.sh"
    text = base64.b64decode(found["template"]["UserData"]).decode()
    script.write_text(text.replace(repository, "file:///nowhere"))
    with pytest.raises(subprocess.CalledProcessError):
        start_machine(script, tmp_path)
    calls = (tmp_path / "calls").read_text().splitlines()
    assert calls[-1] == (
        f"aws autoscaling update-auto-scaling-group --auto-scaling-group-name {NAME} --min-size 0 --desired-capacity 0"
    )


def start_machine(script: Path, folder: Path) -> configparser.ConfigParser:
    """Run a machine's user data with an /opt of its own, which is copied to a folder; the service that it makes."""
    if os.getuid() != 0 or shutil.which("unshare") is None:
        pytest.skip("needs root and unshare, for a mount that no other process sees")
    (folder / "bin").mkdir()
    for name in ("systemctl", "aws", "curl"):
        (folder / "bin" / name).write_text(PRETENDED)
        (folder / "bin" / name).chmod(0o755)
    (folder / "opt").mkdir()
    subprocess.run(
        ["unshare", "--mount", "sh", "-c", f"mount --bind {folder}/opt /opt && bash {script}"],
        env={"PATH": f"{folder / 'bin'}:{os.environ['PATH']}", "CALLS": str(folder / "calls")},
        check=True,
        capture_output=True,
        timeout=60,
    )
    service = configparser.ConfigParser(interpolation=None)
    service.optionxform = str  # pyright: ignore[reportAttributeAccessIssue]
    service.read(folder / "opt/penstock-service/penstock.service")
    return service


def test_the_finish_script_sets_the_group_to_0(moto: MotoServer, resources: dict[str, str]) -> None:
    assert resources["Group"] == NAME
    assert moto.ask(COUNT) == [1, 1, 0, 1]
    environment = {**os.environ, **moto.environment()}
    environment["PATH"] = f"{tool_bin(*MOTO)}:{environment['PATH']}"
    del environment["AWS_DEFAULT_REGION"]  # the region comes from the machine
    with metadata_service(REGION) as instance:
        environment["AWS_EC2_METADATA_SERVICE_ENDPOINT"] = instance.url
        command = [CHECKOUT / "cloud/finish.sh", NAME]
        finished = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert finished.returncode == 0, finished.stderr
    assert moto.ask(COUNT) == [0, 0, 0, 1]
