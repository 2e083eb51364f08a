"""The metadata service, asked from inside guests."""

import json
import re
import subprocess

import pytest
from botocore.exceptions import ClientError
from support.machine import network_namespaces, wait_for


@pytest.fixture(scope="module")
def guest(launch):
    """A guest with the defaults, and its tags in the metadata."""
    return launch(
        UserData="#!/bin/sh\ntrue\n",
        MetadataOptions={"InstanceMetadataTags": "enabled"},
        TagSpecifications=[{"ResourceType": "instance", "Tags": [{"Key": "stage", "Value": "one two"}]}],
    )


@pytest.fixture(scope="module")
def strict(launch):
    """A guest whose metadata wants a token."""
    return launch(MetadataOptions={"HttpTokens": "required", "HttpPutResponseHopLimit": 2})


def get(guest, path: str, **headers) -> str:
    answer = guest.http(f"/latest/{path}", headers={name.replace("_", "-"): value for name, value in headers.items()})
    assert answer and answer[0] == 200, f"{path}: {answer}"
    return answer[2]


def token(guest, ttl: str = "60") -> str:
    status, headers, body = guest.http("/latest/api/token", "PUT", {"X-aws-ec2-metadata-token-ttl-seconds": ttl})
    assert status == 200, body
    assert headers["x-aws-ec2-metadata-token-ttl-seconds"] == ttl
    return body.strip()


def test_the_tree_says_what_the_api_says(guest, tiny, ssh_group, daemon):
    found = guest.describe()
    interface = found["NetworkInterfaces"][0]
    expected = {
        "instance-id": guest.id,
        "ami-id": tiny,
        "ami-launch-index": "0",
        "instance-type": "t3.micro",
        "local-ipv4": found["PrivateIpAddress"],
        "public-ipv4": found["PublicIpAddress"],
        "local-hostname": found["PrivateDnsName"],
        "hostname": found["PrivateDnsName"],
        "mac": interface["MacAddress"],
        "placement/availability-zone": found["Placement"]["AvailabilityZone"],
        "placement/region": daemon.region,
        "security-groups": "ssh",
        "public-keys/": "0=login",
        f"network/interfaces/macs/{interface['MacAddress']}/subnet-id": found["SubnetId"],
        f"network/interfaces/macs/{interface['MacAddress']}/vpc-id": found["VpcId"],
        f"network/interfaces/macs/{interface['MacAddress']}/security-group-ids": ssh_group,
        f"network/interfaces/macs/{interface['MacAddress']}/vpc-ipv4-cidr-block": "172.31.0.0/16",
        "services/domain": "amazonaws.com",
        "tags/instance/stage": "one two",
    }
    for path, value in expected.items():
        assert get(guest, f"meta-data/{path}").strip() == value, path
    listing = get(guest, "meta-data/").split()
    assert {"ami-id", "hostname", "instance-id", "network/", "placement/", "public-keys/", "security-groups"} <= set(listing)


def test_the_identity_document(guest, tiny, daemon):
    document = json.loads(get(guest, "dynamic/instance-identity/document"))
    assert document["instanceId"] == guest.id
    assert document["imageId"] == tiny
    assert document["accountId"] == daemon.credentials["account_id"]
    assert document["region"] == daemon.region
    assert document["privateIp"] == guest.private_ip


def test_user_data_is_given_as_it_was(guest):
    assert get(guest, "user-data") == "#!/bin/sh\ntrue\n"


def test_what_is_not_there_is_not_found(guest):
    for path in ("/latest/meta-data/unicorn", "/unicorn", "/latest/meta-data/tags/instance/unicorn"):
        assert guest.http(path)[0] == 404, path


def test_tokens_of_version_2(guest):
    good = token(guest)
    assert get(guest, "meta-data/instance-id", X_aws_ec2_metadata_token=good).strip() == guest.id
    assert guest.http("/latest/meta-data/", headers={"X-aws-ec2-metadata-token": "bad"})[0] == 401
    assert guest.http("/latest/meta-data/", headers={"X-aws-ec2-metadata-token": good[:-2] + "AA"})[0] == 401
    for lifetime in ("0", "21601", "-1", "x", ""):
        assert guest.http("/latest/api/token", "PUT", {"X-aws-ec2-metadata-token-ttl-seconds": lifetime})[0] == 400, lifetime
    assert guest.http("/latest/api/token", "PUT")[0] == 400
    # A proxy that forwards the request would add this header.
    forwarded = {"X-aws-ec2-metadata-token-ttl-seconds": "60", "X-Forwarded-For": "192.0.2.1"}
    assert guest.http("/latest/api/token", "PUT", forwarded)[0] == 403


def test_tokens_run_out(guest):
    short = token(guest, "1")
    wait_for(lambda: guest.http("/latest/meta-data/", headers={"X-aws-ec2-metadata-token": short})[0] == 401, 15, 0.5)


def test_where_tokens_are_required_nothing_comes_without(strict):
    assert strict.http("/latest/meta-data/instance-id")[0] == 401
    assert strict.http("/latest/user-data")[0] == 401
    assert get(strict, "meta-data/instance-id", X_aws_ec2_metadata_token=token(strict)).strip() == strict.id


def test_a_token_is_of_one_instance(guest, strict):
    assert strict.http("/latest/meta-data/", headers={"X-aws-ec2-metadata-token": token(guest)})[0] == 401


def namespace(daemon) -> str:
    [name] = [name for name in network_namespaces() if daemon.prefix in name]
    return name


@pytest.mark.parametrize("which, limit", [("guest", 1), ("strict", 2)])
def test_the_hop_limit_is_that_of_the_packets(request, daemon, which, limit):
    """Answers to a PUT for a token leave with the hop limit as their time to live, so that they go no further."""
    guest = request.getfixturevalue(which)
    expression = f"tcp and src 169.254.169.254 and src port 80 and dst {guest.private_ip} and tcp[tcpflags] & tcp-push != 0"
    capture = subprocess.Popen(
        ["ip", "netns", "exec", namespace(daemon), "tcpdump", "-i", "any", "-n", "-v", "-l", "-c", "1", expression],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        wait_for(lambda: "listening" in capture.stderr.readline(), 10)
        token(guest)
        text, _ = capture.communicate(timeout=20)
    finally:
        capture.kill()
        capture.wait()
    times = {int(found) for found in re.findall(r"ttl (\d+)", text)}
    assert times == {limit}, text


def test_a_disabled_service_refuses(launch):
    """Without metadata the guest finds neither its key nor its user data, and says on its console that it was refused."""
    guest = launch.start(MetadataOptions={"HttpEndpoint": "disabled"}, UserData="#!/bin/sh\necho user data ran\n")
    console = wait_for(lambda: guest.console() if "haar-tiny: ready" in guest.console() else None, 120, 1)
    assert "the metadata service refuses (status 403)" in console
    assert "user data ran" not in console


def test_guests_see_only_themselves(guest, strict):
    """Another instance's address as the source gets no answer about it."""
    other = strict.private_ip
    gateway = guest.run("ip route show default").split()[2]
    assert guest.http("/latest/meta-data/instance-id")[2].strip() == guest.id
    guest.run(f"ip addr add {other}/32 dev eth0; ip route add 169.254.169.254/32 via {gateway} src {other}")
    try:
        done = guest.ssh("printf 'GET / HTTP/1.0\\r\\n\\r\\n' | timeout 5 nc -w 3 169.254.169.254 80")
        assert done.stdout == "", "the service answered a source that is not the guest's"
    finally:
        guest.run(f"ip route del 169.254.169.254/32; ip addr del {other}/32 dev eth0")
    assert guest.http("/latest/meta-data/instance-id")[2].strip() == guest.id


def test_options_of_a_running_guest_are_changed_and_effective_at_once(launch, ec2):
    guest = launch()
    assert guest.http("/latest/meta-data/instance-id")[0] == 200
    answer = ec2.modify_instance_metadata_options(InstanceId=guest.id, HttpTokens="required", InstanceMetadataTags="enabled")
    assert answer["InstanceId"] == guest.id
    options = answer["InstanceMetadataOptions"]
    assert (options["HttpTokens"], options["InstanceMetadataTags"], options["HttpEndpoint"]) == ("required", "enabled", "enabled")
    assert guest.describe()["MetadataOptions"] == options
    assert guest.http("/latest/meta-data/instance-id")[0] == 401
    with_token = {"X-aws-ec2-metadata-token": token(guest)}
    assert guest.http("/latest/meta-data/instance-id", headers=with_token)[2].strip() == guest.id
    ec2.create_tags(Resources=[guest.id], Tags=[{"Key": "stage", "Value": "late"}])
    assert guest.http("/latest/meta-data/tags/instance/stage", headers=with_token)[2].strip() == "late"
    # What is not named stays as it is.
    ec2.modify_instance_metadata_options(InstanceId=guest.id, HttpEndpoint="disabled")
    assert guest.http("/latest/meta-data/instance-id", headers=with_token)[0] == 403
    answer = ec2.modify_instance_metadata_options(InstanceId=guest.id, HttpEndpoint="enabled")
    assert answer["InstanceMetadataOptions"]["HttpTokens"] == "required"
    assert guest.http("/latest/meta-data/instance-id", headers=with_token)[0] == 200


@pytest.mark.parametrize("name", ["two words", "a/b", "_index", "."])
def test_tags_that_the_metadata_cannot_show_are_refused(sim, sim_image, name):
    tags = [{"Key": name, "Value": "x"}]
    launch = {"ImageId": sim_image, "InstanceType": "t3.nano", "MinCount": 1, "MaxCount": 1}
    specification = {"TagSpecifications": [{"ResourceType": "instance", "Tags": tags}]}
    shown = {"MetadataOptions": {"InstanceMetadataTags": "enabled"}}

    def refused(call, **parameters):
        with pytest.raises(ClientError) as error:
            call(**parameters)
        assert error.value.response["Error"]["Code"] == "InvalidParameterValue"
        assert f"'{name}' is not a valid tag key" in error.value.response["Error"]["Message"]

    refused(sim.run_instances, **launch, **specification, **shown)
    # Where the metadata does not show them, any key goes, until it does.
    plain = sim.run_instances(**launch, **specification)["Instances"][0]["InstanceId"]
    refused(sim.modify_instance_metadata_options, InstanceId=plain, InstanceMetadataTags="enabled")
    showing = sim.run_instances(**launch, **shown)["Instances"][0]["InstanceId"]
    refused(sim.create_tags, Resources=[plain, showing], Tags=tags)
    sim.create_tags(Resources=[showing], Tags=[{"Key": "a-b+c=d.e_f,g:h@i", "Value": "any value / at all"}])
    sim.terminate_instances(InstanceIds=[plain, showing])
