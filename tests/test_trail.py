"""The audit trail: what was answered is in it, in CloudTrail's form, whatever became of the daemon."""

import base64
import json
import re
import subprocess
import threading
import time

import pytest
from botocore.exceptions import BotoCoreError, ClientError
from conftest import image_id
from support.daemon import BINARY
from support.machine import wait_for
from support.raw import call


def records(daemon, *options: str) -> list[dict]:
    return [json.loads(line) for line in daemon.haar("trail", "--json", *options).stdout.splitlines()]


def record(daemon, answer: dict) -> dict:
    """The record of an answer, which is there as soon as the answer is."""
    request = answer["ResponseMetadata"]["RequestId"]
    found = [one for one in records(daemon) if one["requestID"] == request]
    assert len(found) == 1, f"request {request} has one record: {found}"
    return found[0]


def test_a_write_is_recorded_with_parameters_and_answer(simulated, sim, sim_image):
    secret = "a secret of the user data"
    answer = sim.run_instances(
        ImageId=sim_image,
        InstanceType="t3.nano",
        MinCount=1,
        MaxCount=1,
        UserData=secret,
        TagSpecifications=[{"ResourceType": "instance", "Tags": [{"Key": "Name", "Value": "007"}]}],
    )
    instance = answer["Instances"][0]["InstanceId"]
    found = record(simulated, answer)
    account = simulated.credentials["account_id"]
    assert found["userIdentity"] == {
        "type": "Root",
        "principalId": account,
        "arn": f"arn:aws:iam::{account}:root",
        "accountId": account,
        "accessKeyId": simulated.credentials["access_key_id"],
    }
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", found["eventTime"])
    assert re.fullmatch(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", found["eventID"])
    expected = {
        "eventSource": "ec2.amazonaws.com",
        "eventName": "RunInstances",
        "awsRegion": simulated.region,
        "sourceIPAddress": "127.0.0.1",
        "readOnly": False,
        "eventType": "AwsApiCall",
        "managementEvent": True,
        "eventCategory": "Management",
        "recipientAccountId": account,
    }
    assert {name: found[name] for name in expected} == expected
    assert found["userAgent"].startswith("Boto3/")
    assert "errorCode" not in found
    parameters, elements = found["requestParameters"], found["responseElements"]
    assert parameters["imageId"] == sim_image
    assert parameters["maxCount"] == 1
    assert parameters["userData"] == "<sensitiveDataRemoved>"
    tags = {"resourceType": "instance", "tagSet": {"items": [{"key": "Name", "value": "007"}]}}
    assert parameters["tagSpecificationSet"] == {"items": [tags]}
    assert elements["requestId"] == found["requestID"]
    (made,) = elements["instancesSet"]["items"]
    assert made["instanceId"] == instance
    assert made["instanceState"] == {"code": 0, "name": "pending"}, "numbers are numbers"
    assert made["tagSet"] == {"items": [{"key": "Name", "value": "007"}]}, "texts stay texts"
    whole = json.dumps(found)
    assert secret not in whole and base64.b64encode(secret.encode()).decode() not in whole

    ended = sim.terminate_instances(InstanceIds=[instance])
    found = record(simulated, ended)
    assert found["requestParameters"] == {"instancesSet": {"items": [{"instanceId": instance}]}}
    assert {one["eventName"] for one in records(simulated, "--resource", instance)} >= {"RunInstances", "TerminateInstances"}


def test_private_keys_are_not_recorded(simulated, sim):
    answer = sim.create_key_pair(KeyName="trail", KeyType="ed25519")
    found = record(simulated, answer)
    assert found["responseElements"]["keyMaterial"] == "<sensitiveDataRemoved>"
    assert found["responseElements"]["keyFingerprint"] == answer["KeyFingerprint"]
    assert "PRIVATE KEY" not in (simulated.state_dir / "trail/trail.jsonl").read_text()
    sim.delete_key_pair(KeyName="trail")


def test_what_the_model_calls_sensitive_is_not_recorded(simulated, sim, sim_image):
    instance = sim.run_instances(ImageId=sim_image, InstanceType="t3.nano", MinCount=1, MaxCount=1)["Instances"][0]["InstanceId"]
    secret = base64.b64encode(b"a very secret script").decode()
    with pytest.raises(ClientError) as refused:
        sim.modify_instance_attribute(InstanceId=instance, Attribute="userData", Value=secret)
    found = record(simulated, refused.value.response)
    assert found["requestParameters"]["value"] == "<sensitiveDataRemoved>"
    with pytest.raises(ClientError) as refused:
        sim.import_snapshot(DiskContainer={"Format": "RAW", "Url": "http://user:password@127.0.0.1:1/disk.raw"}, DryRun=True)
    found = record(simulated, refused.value.response)
    assert found["requestParameters"]["diskContainer"]["url"] == "<sensitiveDataRemoved>"
    with pytest.raises(ClientError) as refused:
        sim.copy_snapshot(SourceRegion="us-west-2", SourceSnapshotId="snap-00000000000000000", PresignedUrl="https://signed.example/?X-Amz-Signature=1")
    assert record(simulated, refused.value.response)["requestParameters"]["presignedUrl"] == "<sensitiveDataRemoved>"
    text = (simulated.state_dir / "trail/trail.jsonl").read_text()
    assert secret not in text and "password@" not in text and "X-Amz-Signature" not in text
    sim.terminate_instances(InstanceIds=[instance])


def test_what_cannot_be_read_is_recorded_without_its_parameters(simulated):
    for parameters in ({"MaxResults": "many"}, {"Unicorn": "1"}):
        answer = call(simulated, "DescribeVpcs", parameters)
        assert answer.status == 400
        found = [one for one in records(simulated) if one["requestID"] == answer.headers["x-amzn-requestid"]]
        assert [(one["eventName"], one["errorCode"], one["requestParameters"]) for one in found] == [
            ("DescribeVpcs", f"Client.{answer.code}", None)
        ]


def test_long_parameters_are_left_out(simulated, sim):
    answer = sim.create_tags(Resources=[vpc_of(sim)], Tags=[{"Key": "trail", "Value": "x"}])
    assert record(simulated, answer)["requestParameters"] is not None
    values = [{"Name": "tag:trail", "Values": [f"{n:03}" + "v" * 252 for n in range(100)]} for _ in range(2)]
    answer = sim.describe_vpcs(Filters=values)
    assert record(simulated, answer)["requestParameters"] is not None
    with pytest.raises(ClientError) as refused:
        sim.describe_vpcs(Filters=values * 3)
    assert record(simulated, refused.value.response)["requestParameters"] is None
    sim.delete_tags(Resources=[vpc_of(sim)], Tags=[{"Key": "trail"}])


def vpc_of(sim) -> str:
    return sim.describe_vpcs()["Vpcs"][0]["VpcId"]


def test_reads_are_recorded_without_their_answers(simulated, sim):
    answer = sim.describe_key_pairs(Filters=[{"Name": "key-name", "Values": ["a", "b"]}])
    found = record(simulated, answer)
    assert found["readOnly"] is True
    assert found["responseElements"] is None
    values = {"items": [{"value": "a"}, {"value": "b"}]}
    assert found["requestParameters"] == {"filterSet": {"items": [{"name": "key-name", "valueSet": values}]}}
    answer = simulated.client("sts").get_caller_identity()
    found = record(simulated, answer)
    assert (found["eventSource"], found["requestParameters"]) == ("sts.amazonaws.com", None)


def test_refusals_are_recorded_with_their_codes(simulated, sim):
    with pytest.raises(ClientError) as refused:
        sim.delete_volume(VolumeId="vol-00000000000000000")
    found = record(simulated, refused.value.response)
    assert found["errorCode"] == "Client.InvalidVolume.NotFound"
    assert found["errorMessage"] == refused.value.response["Error"]["Message"]
    assert found["responseElements"] is None
    with pytest.raises(ClientError) as dry:
        sim.create_volume(AvailabilityZone=f"{simulated.region}a", Size=1, DryRun=True)
    found = record(simulated, dry.value.response)
    assert found["errorCode"] == "Client.DryRunOperation"
    assert found["requestParameters"]["dryRun"] is True
    assert found["requestID"] in {one["requestID"] for one in records(simulated, "--errors")}


def test_who_is_not_known_is_not_recorded(simulated):
    before = len(records(simulated))
    answer = call(simulated, "DescribeVpcs", secret="wrong")
    assert answer.code == "AuthFailure"
    assert len(records(simulated)) == before


def test_the_command_filters_and_counts(simulated, sim):
    sim.describe_vpcs()
    sim.describe_subnets()
    assert {one["eventName"] for one in records(simulated, "--event", "describevpcs")} == {"DescribeVpcs"}
    assert {one["eventSource"] for one in records(simulated, "--service", "ec2")} == {"ec2.amazonaws.com"}
    assert all(not one["readOnly"] for one in records(simulated, "--writes"))
    assert [one["eventName"] for one in records(simulated, "--last", "1")] == ["DescribeSubnets"]
    assert records(simulated, "--since", "1h") == records(simulated)
    assert records(simulated, "--since", "2100-01-01T00:00:00Z") == []
    roots = records(simulated, "--user", "root")
    assert roots and {one["userIdentity"]["type"] for one in roots} == {"Root"}
    assert records(simulated, "--user", "nobody") == []
    key = simulated.credentials["access_key_id"]
    assert {one["userIdentity"]["accessKeyId"] for one in records(simulated, "--access-key", key)} == {key}
    line = simulated.haar("trail", "--last", "1").stdout
    assert re.fullmatch(r"\S+Z  \d{12}  root  127\.0\.0\.1  ec2:DescribeSubnets  ok\n", line), line
    wrong = simulated.haar("trail", "--since", "yesterday", check=False)
    assert wrong.returncode == 1 and "yesterday" in wrong.stderr


def test_the_command_follows(simulated, sim):
    command = [BINARY, "trail", "--follow", "--json", "--event", "DescribeRegions"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=simulated.environment)
    lines: list[str] = []
    reader = threading.Thread(target=lambda: lines.extend(process.stdout))
    reader.start()
    try:
        answers = [sim.describe_regions(RegionNames=[simulated.region]) for _ in range(3)]
        wanted = {answer["ResponseMetadata"]["RequestId"] for answer in answers}
        wait_for(lambda: wanted <= {json.loads(line)["requestID"] for line in lines}, 20, message="the records were not printed")
    finally:
        process.kill()
        process.wait()
        reader.join()


def test_what_was_answered_before_a_kill_is_in_the_trail(make_daemon):
    daemon = make_daemon("--compute", "simulated")
    ec2 = daemon.client("ec2")
    answered: list[str] = []
    stop = threading.Event()

    def ask():
        own = daemon.client("ec2")
        number = 0
        while not stop.is_set():
            number += 1
            try:
                answer = own.create_tags(Resources=[vpc], Tags=[{"Key": f"k{number % 5}", "Value": str(number)}])
                answered.append(answer["ResponseMetadata"]["RequestId"])
            except (BotoCoreError, ClientError):
                time.sleep(0.01)

    vpc = ec2.describe_vpcs()["Vpcs"][0]["VpcId"]
    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(3):
            enough = len(answered) + 20
            wait_for(lambda enough=enough: len(answered) >= enough, 30, 0.01)
            daemon.kill()
            daemon.haar("up", *daemon.flags)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    found = records(daemon)
    ids = [one["requestID"] for one in found]
    assert set(answered) <= set(ids)
    assert len(ids) == len(set(ids)), "each once"
    daemon.baseline = daemon.snapshot()
    assert image_id(ec2, "tiny")
