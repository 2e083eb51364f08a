"""The wire: signatures, errors, constraints, pagination, filters, idempotency. Most requests here no SDK would send."""

import datetime
import re
import socket
import threading
import time
import urllib.parse
import uuid
from unittest import mock

import botocore.auth
import pytest
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from botocore.exceptions import ClientError
from support.errors import code
from support.raw import FORM, call, send, signed

UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


# --- authentication -----------------------------------------------------------------------------------------------------


def test_a_right_signature_is_accepted(simulated):
    answer = call(simulated, "DescribeRegions")
    assert answer.status == 200
    assert UUID.fullmatch(answer.text("requestId"))
    assert answer.headers["x-amzn-requestid"] == answer.text("requestId")
    assert "xml" in answer.headers["content-type"]


def test_an_unknown_key_is_refused(simulated):
    answer = call(simulated, "DescribeRegions", access_key="AKIAIOSFODNN7EXAMPLE")
    assert (answer.status, answer.code) == (401, "AuthFailure")
    answer = call(simulated, "GetCallerIdentity", service="sts", access_key="AKIAIOSFODNN7EXAMPLE")
    assert (answer.status, answer.code) == (403, "InvalidClientTokenId")


def test_a_wrong_secret_is_refused(simulated):
    answer = call(simulated, "DescribeRegions", secret="wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY")
    assert (answer.status, answer.code) == (401, "AuthFailure")
    answer = call(simulated, "GetCallerIdentity", service="sts", secret="wrong")
    assert (answer.status, answer.code) == (403, "SignatureDoesNotMatch")


def test_a_changed_body_is_refused(simulated):
    body = "Action=DescribeRegions&Version=2016-11-15"
    answer = send(simulated, body.replace("Regions", "Volumes"), signed(simulated, body))
    assert (answer.status, answer.code) == (401, "AuthFailure")


def test_a_changed_header_is_refused(simulated):
    body = "Action=GetCallerIdentity&Version=2011-06-15"
    headers = signed(simulated, body, "sts", headers={"X-Amz-Meta": "one"})
    assert send(simulated, body, headers).status == 200
    answer = send(simulated, body, headers | {"X-Amz-Meta": "two"})
    assert (answer.status, answer.code) == (403, "SignatureDoesNotMatch")


@pytest.mark.parametrize("minutes", [-16, 16])
def test_a_clock_that_is_off_is_refused(simulated, minutes):
    at = datetime.datetime.now(datetime.UTC) + datetime.timedelta(minutes=minutes)
    answer = call(simulated, "DescribeRegions", at=at)
    assert (answer.status, answer.code) == (400, "RequestExpired")
    answer = call(simulated, "GetCallerIdentity", service="sts", at=at)
    assert (answer.status, answer.code) == (403, "SignatureDoesNotMatch")


@pytest.mark.parametrize("minutes", [-14, 14])
def test_a_clock_that_is_a_little_off_is_accepted(simulated, minutes):
    at = datetime.datetime.now(datetime.UTC) + datetime.timedelta(minutes=minutes)
    assert call(simulated, "DescribeRegions", at=at).status == 200


def test_a_request_without_a_signature_is_refused(simulated):
    """In the form of the service that the version tells, for there is no signature to tell it."""
    answer = send(simulated, "Action=GetCallerIdentity&Version=2011-06-15", {"Content-Type": FORM})
    assert (answer.status, answer.code) == (403, "MissingAuthenticationToken")
    assert UUID.fullmatch(answer.text("RequestId")) and b"<ErrorResponse " in answer.body
    answer = send(simulated, "Action=DescribeRegions&Version=2016-11-15", {"Content-Type": FORM})
    assert (answer.status, answer.code) == (403, "MissingAuthenticationToken")
    assert UUID.fullmatch(answer.text("RequestID")) and b"<Response><Errors>" in answer.body


def test_an_unsigned_header_of_amazon_is_refused(simulated):
    body = "Action=DescribeRegions&Version=2016-11-15"
    answer = send(simulated, body, signed(simulated, body) | {"X-Amz-Added": "on the way"})
    assert (answer.status, answer.code) == (401, "AuthFailure")


@pytest.mark.parametrize(
    "authorization",
    [
        "AWS4-HMAC-SHA256",
        "AWS4-HMAC-SHA256 Credential=, SignedHeaders=, Signature=",
        "AWS4-HMAC-SHA256 Credential=AKIA/20260101/us-east-1/ec2/aws4_request",
        "AWS4-HMAC-SHA256 Credential=a/b/c/d/e/f/g, SignedHeaders=host, Signature=00",
        "Basic dXNlcjpwYXNz",
        "AWS4-HMAC-SHA256 " + "A" * 7000,
    ],
)
def test_a_malformed_authorization_is_refused(simulated, authorization):
    body = "Action=DescribeRegions&Version=2016-11-15"
    answer = send(simulated, body, signed(simulated, body) | {"Authorization": authorization})
    assert (answer.status, answer.code) == (400, "IncompleteSignature"), answer


def test_a_signature_for_another_region_or_service_is_refused(simulated):
    answer = call(simulated, "GetCallerIdentity", service="sts", region="us-gov-west-1")
    assert (answer.status, answer.code) == (403, "SignatureDoesNotMatch")
    # Signed for STS, but an operation of EC2.
    body = "Action=DescribeRegions&Version=2016-11-15"
    answer = send(simulated, body, signed(simulated, body, "sts"))
    assert (answer.status, answer.code) == (400, "NoSuchVersion")


def presigned(daemon, expires: int, at: datetime.datetime | None = None) -> str:
    keys = daemon.credentials
    credentials = Credentials(keys["access_key_id"], keys["secret_access_key"])
    url = f"{daemon.endpoint}/?Action=GetCallerIdentity&Version=2011-06-15"
    request = AWSRequest("GET", url)
    auth = botocore.auth.SigV4QueryAuth(credentials, "sts", daemon.region, expires=expires)
    at = at or datetime.datetime.now(datetime.UTC)
    with mock.patch.object(botocore.auth, "get_current_datetime", lambda *_, **__: at.replace(tzinfo=None)):
        auth.add_auth(request)
    parts = urllib.parse.urlsplit(request.url)
    return f"{parts.path}?{parts.query}"


def test_a_presigned_url_works_until_it_expires(simulated):
    answer = send(simulated, method="GET", path=presigned(simulated, 60))
    assert answer.status == 200, answer
    assert answer.text("Account") == simulated.credentials["account_id"]
    past = datetime.datetime.now(datetime.UTC) - datetime.timedelta(minutes=5)
    assert send(simulated, method="GET", path=presigned(simulated, 600, past)).status == 200
    expired = send(simulated, method="GET", path=presigned(simulated, 60, past))
    assert (expired.status, expired.code) == (403, "SignatureDoesNotMatch")
    changed = presigned(simulated, 60).replace("GetCallerIdentity", "GetSessionToken")
    assert send(simulated, method="GET", path=changed).status == 403


def test_boto3_presigns_too(simulated):
    url = simulated.client("sts").generate_presigned_url("get_caller_identity", ExpiresIn=60)
    parts = urllib.parse.urlsplit(url)
    # boto3 presigns for the method that the operation is sent with.
    answer = send(simulated, method="POST", path=f"{parts.path}?{parts.query}", headers={"Content-Length": "0"})
    assert answer.status == 200, answer


# --- operations and parameters -------------------------------------------------------------------------------------------


def test_an_unknown_action_is_refused(simulated):
    answer = call(simulated, "DescribeUnicorns")
    assert (answer.status, answer.code) == (400, "InvalidAction")
    answer = call(simulated, "GetUnicorn", service="sts")
    assert (answer.status, answer.code) == (400, "InvalidAction")


def test_an_operation_of_aws_that_is_not_here_says_so(simulated):
    answer = call(simulated, "CreateTransitGateway")
    assert (answer.status, answer.code) == (400, "UnsupportedOperation")


def test_a_request_without_an_action_is_refused(simulated):
    body = "Version=2016-11-15"
    answer = send(simulated, body, signed(simulated, body))
    assert (answer.status, answer.code) == (400, "MissingAction")


def test_an_unknown_parameter_is_refused(simulated):
    answer = call(simulated, "DescribeRegions", {"Unicorn": "1"})
    assert (answer.status, answer.code) == (400, "UnknownParameter")


@pytest.mark.parametrize(
    "parameters, expected",
    [
        ({"InstanceType": "t3.nano", "MinCount": "1", "MaxCount": "1"}, {"MissingParameter"}),
        ({"ImageId": "ami-1", "MaxCount": "1"}, {"MissingParameter"}),
        ({"ImageId": "ami-1", "MinCount": "one", "MaxCount": "1"}, {"InvalidParameterValue", "InvalidInteger"}),
        ({"ImageId": "ami-1", "MinCount": "99999999999", "MaxCount": "1"}, {"InvalidParameterValue", "InvalidInteger"}),
        ({"ImageId": "ami-1", "MinCount": "0", "MaxCount": "1"}, {"InvalidParameterValue"}),
        ({"ImageId": "ami-00000000000000000", "MinCount": "2", "MaxCount": "1"}, {"InvalidParameterValue", "InvalidParameterCombination"}),
        ({"ImageId": "ami-1", "MinCount": "1", "MaxCount": "1", "InstanceType": "t3.nano"}, {"InvalidAMIID.Malformed"}),
        ({"ImageId": "ami-00000000000000000", "MinCount": "1", "MaxCount": "1", "InstanceType": "t3.nano"}, {"InvalidAMIID.NotFound"}),
        ({"ImageId": "ami-00000000000000000", "MinCount": "1", "MaxCount": "1", "InstanceType": "t3.unicorn"}, {"InvalidParameterValue"}),
        ({"ImageId": "ami-00000000000000000", "MinCount": "1", "MaxCount": "1", "DryRun": "maybe"}, {"InvalidParameterValue"}),
    ],
)
def test_constraints_of_the_model_are_enforced(simulated, parameters, expected):
    answer = call(simulated, "RunInstances", parameters)
    assert answer.status == 400, answer
    assert answer.code in expected, answer


def test_bodies_of_any_shape_are_answered(simulated):
    """Nothing here may crash the daemon, hang, or be taken for success."""
    bodies = [
        b"",
        b"&&&&====",
        b"Action",
        b"Action=DescribeInstances&Version=2016-11-15&" + b"%" * 50,
        b"Action=DescribeInstances&Version=2016-11-15&InstanceId.0=i-1",
        b"Action=DescribeInstances&Version=2016-11-15&InstanceId.99999999999999999999=i-1",
        b"Action=DescribeInstances&Version=2016-11-15&InstanceId.2147483647=i-1",
        b"Action=DescribeInstances&Version=2016-11-15&InstanceId.-1=i-1",
        b"Action=DescribeInstances&Version=2016-11-15&InstanceId.1.1.1.1=i-1",
        b"Action=DescribeInstances&Version=2016-11-15&Filter.1.Value.1=x",
        b"Action=DescribeInstances&Version=2016-11-15" + b".1" * 20000 + b"=x",
        b"Action=DescribeInstances&Version=2016-11-15&InstanceId.1=%ff%fe",
        b"Action=DescribeInstances&Version=2016-11-15&InstanceId.1=" + b"\xff\x00\x80",
        b"Action=DescribeInstances&Action=RunInstances&Version=2016-11-15&NoSuch=1",
        b"{\"Action\": \"DescribeInstances\"}",
        b"<xml/>",
    ]
    for body in bodies:
        answer = send(simulated, body, signed(simulated, body))
        assert 400 <= answer.status < 500, (body[:80], answer)
        assert answer.code, (body[:80], answer)
    assert call(simulated, "DescribeRegions").status == 200


def test_a_body_without_end_is_cut_off(simulated):
    """What is announced or sent beyond the limit is refused, and not kept in memory."""
    body = b"Action=DescribeInstances&Version=2016-11-15&X=" + b"x" * (64 << 20)
    headers = {"Content-Type": FORM, "Authorization": "AWS4-HMAC-SHA256 Credential=a/20260101/r/ec2/aws4_request, SignedHeaders=host, Signature=0"}
    before = rss(simulated.pid)
    try:
        answer = send(simulated, body, headers)
        assert 400 <= answer.status < 500, answer
    except (ConnectionError, BrokenPipeError):
        pass  # cut off while we were still sending
    assert rss(simulated.pid) - before < 48 << 20
    assert call(simulated, "DescribeRegions").status == 200


def rss(pid: int) -> int:
    """Resident memory in bytes."""
    with open(f"/proc/{pid}/status") as status:
        return next(int(line.split()[1]) << 10 for line in status if line.startswith("VmRSS"))


def test_many_parameters_cost_no_more_than_their_size(simulated):
    ids = [(f"InstanceId.{n}", f"i-{n:017x}") for n in range(1, 2001)]
    answer = call(simulated, "DescribeInstances", ids)
    assert answer.status == 400, answer


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"GET\r\n\r\n",
        b"\0" * 1000,
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999999999999\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\n",
        b"POST / HTTP/1.1\r\n" + b"X: y\r\n" * 20000 + b"\r\n",
    ],
)
def test_what_is_not_http_is_dropped(simulated, request_bytes):
    with socket.create_connection(("127.0.0.1", simulated.port), timeout=30) as connection:
        try:
            connection.sendall(request_bytes)
            connection.shutdown(socket.SHUT_WR)
            while connection.recv(65536):
                pass
        except OSError:
            pass  # closed, perhaps before we were done
    assert call(simulated, "DescribeRegions").status == 200


def test_slow_senders_do_not_keep_others_waiting(simulated):
    """Half-sent requests on many connections, and an ordinary one among them."""
    connections = [socket.create_connection(("127.0.0.1", simulated.port)) for _ in range(200)]
    try:
        for connection in connections:
            connection.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Le")
        assert call(simulated, "DescribeRegions").status == 200
    finally:
        for connection in connections:
            connection.close()


def test_errors_carry_a_request_id(simulated):
    answer = call(simulated, "DescribeUnicorns")
    assert UUID.fullmatch(answer.text("RequestID") or answer.text("RequestId"))
    answer = call(simulated, "GetUnicorn", service="sts")
    assert UUID.fullmatch(answer.text("RequestId"))


# --- what every operation has ---------------------------------------------------------------------------------------------


def test_dry_runs_change_nothing(sim, sim_image):
    count = len(list(all_instances(sim)))
    with pytest.raises(ClientError) as error:
        sim.run_instances(ImageId=sim_image, InstanceType="t3.nano", MinCount=1, MaxCount=1, DryRun=True)
    assert code(error) == "DryRunOperation"
    assert error.value.response["ResponseMetadata"]["HTTPStatusCode"] == 412
    assert len(list(all_instances(sim))) == count
    with pytest.raises(ClientError) as error:
        sim.create_key_pair(KeyName="dry", DryRun=True)
    assert code(error) == "DryRunOperation"
    assert "dry" not in {pair["KeyName"] for pair in sim.describe_key_pairs()["KeyPairs"]}
    with pytest.raises(ClientError) as error:
        sim.describe_instances(DryRun=True)
    assert code(error) == "DryRunOperation"


def all_instances(client, **parameters):
    for page in client.get_paginator("describe_instances").paginate(**parameters):
        for reservation in page["Reservations"]:
            yield from reservation["Instances"]


@pytest.fixture(scope="module")
def fleet(sim, sim_image):
    """Twelve instances in three calls, told apart by tags."""
    ids = []
    for number in range(3):
        answer = sim.run_instances(
            ImageId=sim_image,
            InstanceType="t3.nano" if number else "t3.small",
            MinCount=4,
            MaxCount=4,
            TagSpecifications=[
                {
                    "ResourceType": "instance",
                    "Tags": [{"Key": "fleet", "Value": "wire"}, {"Key": "Name", "Value": f"web-{number}"}, {"Key": "odd*key", "Value": "a*b?c\\d"}],
                }
            ],
        )
        ids += [instance["InstanceId"] for instance in answer["Instances"]]
    sim.get_waiter("instance_running").wait(InstanceIds=ids)
    yield ids
    sim.terminate_instances(InstanceIds=ids)
    sim.get_waiter("instance_terminated").wait(InstanceIds=ids)


MINE = {"Name": "tag:fleet", "Values": ["wire"]}


def test_pages_together_are_the_whole(sim, fleet):
    seen, token, pages = [], None, 0
    while True:
        parameters = {"MaxResults": 5, "Filters": [MINE]} | ({"NextToken": token} if token else {})
        page = sim.describe_instances(**parameters)
        found = [i["InstanceId"] for r in page["Reservations"] for i in r["Instances"]]
        assert len(found) <= 5
        seen += found
        pages += 1
        token = page.get("NextToken")
        if not token:
            break
    assert sorted(seen) == sorted(fleet) and len(set(seen)) == len(seen)
    assert pages == 3


def test_a_page_token_of_nobody_is_refused(sim):
    for token in ("nonsense", "A" * 400, "é", "0"):
        with pytest.raises(ClientError) as error:
            sim.describe_instances(MaxResults=5, NextToken=token)
        assert code(error) in ("InvalidNextToken", "InvalidParameterValue", "InvalidPaginationToken"), token


@pytest.mark.parametrize("number", [0, 4, 1001, -1])
def test_page_sizes_beyond_the_limits_are_refused(sim, number):
    with pytest.raises(ClientError) as error:
        sim.describe_instances(MaxResults=number)
    assert code(error) == "InvalidParameterValue"


def test_page_size_and_identifiers_exclude_each_other(sim, fleet):
    with pytest.raises(ClientError) as error:
        sim.describe_instances(InstanceIds=fleet[:1], MaxResults=5)
    assert code(error) == "InvalidParameterCombination"


@pytest.mark.parametrize(
    "filters, count",
    [
        ([], 12),
        ([{"Name": "tag:Name", "Values": ["web-0"]}], 4),
        ([{"Name": "tag:Name", "Values": ["web-0", "web-1"]}], 8),
        ([{"Name": "tag:Name", "Values": ["web-?"]}], 12),
        ([{"Name": "tag:Name", "Values": ["w*-2"]}], 4),
        ([{"Name": "tag:Name", "Values": ["WEB-0"]}], 0),
        ([{"Name": "tag:Name", "Values": ["web"]}], 0),
        ([{"Name": "tag:odd*key", "Values": ["a\\*b\\?c\\\\d"]}], 12),
        ([{"Name": "tag:odd*key", "Values": ["a\\*b\\?c"]}], 0),
        ([{"Name": "tag-key", "Values": ["Name"]}], 12),
        ([{"Name": "instance-type", "Values": ["t3.small"]}], 4),
        ([{"Name": "instance-type", "Values": ["t3.small"]}, {"Name": "tag:Name", "Values": ["web-1"]}], 0),
        ([{"Name": "instance-state-name", "Values": ["running"]}], 12),
        ([{"Name": "instance-state-code", "Values": ["16"]}], 12),
        ([{"Name": "instance-state-name", "Values": ["stopped"]}], 0),
    ],
)
def test_filters(sim, fleet, filters, count):
    assert len(list(all_instances(sim, Filters=[MINE, *filters]))) == count


def test_an_unknown_filter_is_refused(sim):
    with pytest.raises(ClientError) as error:
        sim.describe_instances(Filters=[{"Name": "colour", "Values": ["red"]}])
    assert code(error) == "InvalidParameterValue"


@pytest.mark.parametrize("pattern", ["*" * 200 + "x", "*a" * 100 + "b", "?" * 5000])
def test_filters_cannot_be_made_slow(sim, fleet, pattern):
    begin = time.monotonic()
    try:
        list(all_instances(sim, Filters=[MINE, {"Name": "tag:Name", "Values": [pattern]}]))
    except ClientError as refused:
        assert refused.response["Error"]["Code"] in ("InvalidParameterValue", "FilterLimitExceeded")
    assert time.monotonic() - begin < 5


def test_a_token_launches_once(sim, sim_image):
    token = str(uuid.uuid4())
    parameters = {"ImageId": sim_image, "InstanceType": "t3.nano", "MinCount": 1, "MaxCount": 1, "ClientToken": token}
    first = sim.run_instances(**parameters)
    second = sim.run_instances(**parameters)
    ids = [instance["InstanceId"] for instance in first["Instances"]]
    try:
        assert [instance["InstanceId"] for instance in second["Instances"]] == ids
        assert second["ReservationId"] == first["ReservationId"]
        with pytest.raises(ClientError) as error:
            sim.run_instances(**(parameters | {"InstanceType": "t3.small"}))
        assert code(error) == "IdempotentParameterMismatch"
    finally:
        sim.terminate_instances(InstanceIds=ids)


def test_a_token_used_at_once_by_many_launches_once(simulated, sim, sim_image):
    token = str(uuid.uuid4())
    results, errors = set(), []

    def run():
        try:
            answer = simulated.client("ec2").run_instances(ImageId=sim_image, InstanceType="t3.nano", MinCount=1, MaxCount=1, ClientToken=token)
            results.add(answer["Instances"][0]["InstanceId"])
        except ClientError as error:
            errors.append(error)

    threads = [threading.Thread(target=run) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert len(results) == 1
    sim.terminate_instances(InstanceIds=list(results))


def test_tags_at_creation_and_afterwards(sim, fleet):
    instance = fleet[0]
    sim.create_tags(Resources=[instance], Tags=[{"Key": "stage", "Value": "one"}, {"Key": "empty", "Value": ""}])
    sim.create_tags(Resources=[instance], Tags=[{"Key": "stage", "Value": "two"}])
    found = {
        tag["Key"]: tag["Value"]
        for tag in sim.describe_tags(Filters=[{"Name": "resource-id", "Values": [instance]}])["Tags"]
    }
    assert found["stage"] == "two" and found["empty"] == "" and found["fleet"] == "wire"
    # With a value, only a tag that has it is deleted.
    sim.delete_tags(Resources=[instance], Tags=[{"Key": "stage", "Value": "one"}, {"Key": "empty"}])
    described = next(all_instances(sim, InstanceIds=[instance]))
    keys = {tag["Key"] for tag in described["Tags"]}
    assert "stage" in keys and "empty" not in keys
    sim.delete_tags(Resources=[instance], Tags=[{"Key": "stage"}])


@pytest.mark.parametrize(
    "tags, expected",
    [
        ([{"Key": "aws:mine", "Value": "x"}], "InvalidParameterValue"),
        ([{"Key": "k" * 129, "Value": "x"}], "InvalidParameterValue"),
        ([{"Key": "k", "Value": "x" * 257}], "InvalidParameterValue"),
        ([{"Key": f"k{n}", "Value": "x"} for n in range(51)], "TagLimitExceeded"),
    ],
)
def test_tags_beyond_the_limits_are_refused(sim, fleet, tags, expected):
    with pytest.raises(ClientError) as error:
        sim.create_tags(Resources=[fleet[0]], Tags=tags)
    assert code(error) == expected


def test_tags_of_nothing_are_refused(sim):
    with pytest.raises(ClientError) as error:
        sim.create_tags(Resources=["i-00000000000000000"], Tags=[{"Key": "a", "Value": "b"}])
    assert code(error) == "InvalidInstanceID.NotFound"
    with pytest.raises(ClientError) as error:
        sim.create_tags(Resources=["nonsense"], Tags=[{"Key": "a", "Value": "b"}])
    assert code(error) == "InvalidID"


def test_text_of_every_script_comes_back_as_it_was(sim, fleet):
    value = "ä & <b> \"q\" 'a' ]]> 漢字 \U0001f600 a+b=c%20"
    sim.create_tags(Resources=[fleet[1]], Tags=[{"Key": "text", "Value": value}])
    tags = {tag["Key"]: tag["Value"] for tag in next(all_instances(sim, InstanceIds=[fleet[1]]))["Tags"]}
    assert tags["text"] == value
    found = list(all_instances(sim, Filters=[{"Name": "tag:text", "Values": [value]}]))
    assert [instance["InstanceId"] for instance in found] == [fleet[1]]
