"""Unmodified clients: the aws command line in both versions, boto3's waiters, the AWS SDK for JavaScript."""

import base64
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import boto3
import pytest

# Version 1 comes from PyPI into the tests' own environment, version 2 from Debian.
AWS = {"1": Path(sys.executable).with_name("aws"), "2": Path("/usr/bin/aws")}


@pytest.fixture(params=list(AWS))
def aws(request, simulated):
    """Runs the aws command of one version and returns what it printed, as JSON."""
    program = AWS[request.param]
    version = subprocess.run([program, "--version"], capture_output=True, text=True, check=True)
    assert f"aws-cli/{request.param}." in version.stdout + version.stderr

    def run(*arguments: str, check: bool = True):
        command = [program, "--endpoint-url", simulated.endpoint, "--output", "json", *arguments]
        done = subprocess.run(command, env=simulated.aws_environment, capture_output=True, text=True, timeout=120)
        if not check:
            return done
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout) if done.stdout.strip() else None

    run.version = request.param
    return run


def test_aws_knows_who_it_is(aws, simulated):
    identity = aws("sts", "get-caller-identity")
    account = simulated.credentials["account_id"]
    assert identity == {"UserId": account, "Account": account, "Arn": f"arn:aws:iam::{account}:root"}


def test_aws_launches_waits_describes_and_terminates(aws, sim_image):
    tags = f"ResourceType=instance,Tags=[{{Key=client,Value=aws{aws.version}}}]"
    launched = aws(
        *("ec2", "run-instances", "--image-id", sim_image, "--instance-type", "t3.nano", "--count", "3"),
        *("--tag-specifications", tags, "--user-data", "#!/bin/sh\necho hello"),
    )
    ids = [instance["InstanceId"] for instance in launched["Instances"]]
    assert len(ids) == 3
    aws("ec2", "wait", "instance-running", "--instance-ids", *ids)
    described = aws("ec2", "describe-instances", "--filters", f"Name=tag:client,Values=aws{aws.version}", "Name=instance-state-name,Values=running")
    assert sorted(i["InstanceId"] for r in described["Reservations"] for i in r["Instances"]) == sorted(ids)
    # The command line pages by itself when told to.
    paged = aws("ec2", "describe-instances", "--page-size", "5", "--max-items", "2", "--filters", f"Name=tag:client,Values=aws{aws.version}")
    assert sum(len(r["Instances"]) for r in paged["Reservations"]) <= 3
    aws("ec2", "terminate-instances", "--instance-ids", *ids)
    aws("ec2", "wait", "instance-terminated", "--instance-ids", *ids)


def test_aws_shows_errors_as_it_does_with_aws(aws):
    failed = aws("ec2", "describe-instances", "--instance-ids", "i-00000000000000000", check=False)
    assert failed.returncode in (254, 255)
    assert "(InvalidInstanceID.NotFound)" in failed.stderr
    failed = aws("ec2", "run-instances", "--image-id", "ami-00000000000000000", "--instance-type", "t3.nano", "--dry-run", check=False)
    assert "(InvalidAMIID.NotFound)" in failed.stderr or "(DryRunOperation)" in failed.stderr


def test_aws_reads_user_data_and_keys_from_files(aws, tmp_path, sim_image):
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(tmp_path / "key")], check=True)
    script = tmp_path / "user-data"
    script.write_bytes(b"#!/bin/sh\necho \xc3\xa4\n")
    name = f"aws{aws.version}"
    aws("ec2", "import-key-pair", "--key-name", name, "--public-key-material", f"fileb://{tmp_path}/key.pub")
    launched = aws(
        *("ec2", "run-instances", "--image-id", sim_image, "--instance-type", "t3.nano", "--key-name", name),
        *("--user-data", f"file://{script}"),
    )
    instance = launched["Instances"][0]["InstanceId"]
    shown = aws("ec2", "describe-instance-attribute", "--instance-id", instance, "--attribute", "userData")
    assert base64.b64decode(shown["UserData"]["Value"]) == script.read_bytes()
    aws("ec2", "terminate-instances", "--instance-ids", instance)
    aws("ec2", "delete-key-pair", "--key-name", name)


def test_the_javascript_sdk(simulated, sim_image):
    node = shutil.which("node")
    assert node, "./dev test puts node on the path"
    environment = simulated.aws_environment | {"NODE_PATH": os.environ["NODE_PATH"]}
    script = Path(__file__).with_name("javascript") / "client.cjs"
    done = subprocess.run([node, script, sim_image], env=environment, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    assert seen["account"] == simulated.credentials["account_id"]
    assert simulated.region in seen["regions"]
    assert len(seen["launched"]) == 7 and seen["launchTimeIsDate"]
    assert sorted(seen["paged"]) == sorted(seen["launched"])
    assert seen["error"]["name"] == "InvalidInstanceID.NotFound"
    assert seen["error"]["status"] == 400
    assert seen["error"]["requestId"]


def test_waiters_of_boto3(sim, sim_image):
    launched = sim.run_instances(ImageId=sim_image, InstanceType="t3.nano", MinCount=2, MaxCount=2)
    ids = [instance["InstanceId"] for instance in launched["Instances"]]
    quick = {"Delay": 1, "MaxAttempts": 60}
    for waiter in ("instance_exists", "instance_running", "instance_status_ok", "system_status_ok"):
        sim.get_waiter(waiter).wait(InstanceIds=ids, WaiterConfig=quick)
    sim.stop_instances(InstanceIds=ids)
    sim.get_waiter("instance_stopped").wait(InstanceIds=ids, WaiterConfig=quick)
    sim.terminate_instances(InstanceIds=ids)
    sim.get_waiter("instance_terminated").wait(InstanceIds=ids, WaiterConfig=quick)
    sim.create_key_pair(KeyName="waited")
    sim.get_waiter("key_pair_exists").wait(KeyNames=["waited"], WaiterConfig=quick)
    sim.delete_key_pair(KeyName="waited")
    group = sim.create_security_group(GroupName="waited", Description="x")["GroupId"]
    sim.get_waiter("security_group_exists").wait(GroupIds=[group], WaiterConfig=quick)
    sim.delete_security_group(GroupId=group)


def test_the_resource_interface_of_boto3(simulated, sim_image):
    keys = simulated.credentials
    resource = boto3.resource(
        "ec2",
        endpoint_url=simulated.endpoint,
        region_name=simulated.region,
        aws_access_key_id=keys["access_key_id"],
        aws_secret_access_key=keys["secret_access_key"],
    )
    [instance] = resource.create_instances(ImageId=sim_image, InstanceType="t3.nano", MinCount=1, MaxCount=1)
    instance.wait_until_running()
    instance.reload()
    assert instance.image.name == "tiny"
    assert instance.vpc.is_default
    assert [volume.size for volume in instance.volumes.all()] == [1] or list(instance.volumes.all())
    assert instance.subnet.map_public_ip_on_launch
    instance.create_tags(Tags=[{"Key": "Name", "Value": "resource"}])
    instance.terminate()
    instance.wait_until_terminated()


def test_simulated_machines_say_that_they_are(simulated, sim, sim_image):
    launched = sim.run_instances(ImageId=sim_image, InstanceType="t3.nano", MinCount=1, MaxCount=1)
    instance = launched["Instances"][0]["InstanceId"]
    sim.get_waiter("instance_running").wait(InstanceIds=[instance], WaiterConfig={"Delay": 1, "MaxAttempts": 30})
    described = sim.describe_instances(InstanceIds=[instance])["Reservations"][0]["Instances"][0]
    assert "simulated" in described["StateReason"]["Message"].lower()
    sim.terminate_instances(InstanceIds=[instance])
