"""What an account begins with: regions, zones, types, the default network."""

import ipaddress
import re
from pathlib import Path

import botocore.loaders
import pytest
from botocore import xform_name
from botocore.exceptions import ClientError
from support.errors import code


def test_the_region_and_its_zones(sim, simulated):
    regions = sim.describe_regions()["Regions"]
    mine = next(region for region in regions if region["RegionName"] == simulated.region)
    assert mine["OptInStatus"] == "opt-in-not-required"
    zones = sim.describe_availability_zones()["AvailabilityZones"]
    assert zones and all(zone["RegionName"] == simulated.region and zone["State"] == "available" for zone in zones)
    assert zones[0]["ZoneName"] == f"{simulated.region}a"
    assert zones[0]["ZoneId"].startswith("euc1-az")
    with pytest.raises(ClientError) as error:
        sim.describe_availability_zones(ZoneNames=["mars-north-1a"])
    assert code(error) == "InvalidParameterValue"


def test_account_attributes(sim):
    found = {a["AttributeName"]: [v["AttributeValue"] for v in a["AttributeValues"]] for a in sim.describe_account_attributes()["AccountAttributes"]}
    assert found["supported-platforms"] == ["VPC"]
    vpc = sim.describe_vpcs(Filters=[{"Name": "is-default", "Values": ["true"]}])["Vpcs"][0]
    assert found["default-vpc"] == [vpc["VpcId"]]
    only = sim.describe_account_attributes(AttributeNames=["default-vpc"])["AccountAttributes"]
    assert [a["AttributeName"] for a in only] == ["default-vpc"]


def test_instance_types_have_what_their_names_promise(sim):
    types = {}
    for page in sim.get_paginator("describe_instance_types").paginate(PaginationConfig={"PageSize": 10}):
        types |= {t["InstanceType"]: t for t in page["InstanceTypes"]}
    assert len(types) >= 10
    # From AWS's own tables: vCPUs and MiB.
    for name, (vcpus, memory) in {"t3.nano": (2, 512), "t3.micro": (2, 1024), "t3.small": (2, 2048), "t3.medium": (2, 4096), "m5.large": (2, 8192)}.items():
        assert types[name]["VCpuInfo"]["DefaultVCpus"] == vcpus, name
        assert types[name]["MemoryInfo"]["SizeInMiB"] == memory, name
        assert types[name]["CurrentGeneration"] is True
        assert types[name]["NetworkInfo"]["NetworkPerformance"]
        assert "x86_64" in types[name]["ProcessorInfo"]["SupportedArchitectures"]
    filtered = sim.describe_instance_types(Filters=[{"Name": "instance-type", "Values": ["t3.*"]}])["InstanceTypes"]
    assert {t["InstanceType"] for t in filtered} == {name for name in types if name.startswith("t3.")}
    with pytest.raises(ClientError) as error:
        sim.describe_instance_types(InstanceTypes=["t3.unicorn"])
    assert code(error) == "InvalidInstanceType"


def test_the_default_network_hangs_together(sim):
    [vpc] = sim.describe_vpcs(Filters=[{"Name": "is-default", "Values": ["true"]}])["Vpcs"]
    assert vpc["CidrBlock"] == "172.31.0.0/16" and vpc["State"] == "available"
    mine = [{"Name": "vpc-id", "Values": [vpc["VpcId"]]}]
    subnets = sim.describe_subnets(Filters=mine)["Subnets"]
    zones = {zone["ZoneName"] for zone in sim.describe_availability_zones()["AvailabilityZones"]}
    assert {subnet["AvailabilityZone"] for subnet in subnets} == zones
    for subnet in subnets:
        network = ipaddress.ip_network(subnet["CidrBlock"])
        assert network.prefixlen == 20 and network.subnet_of(ipaddress.ip_network(vpc["CidrBlock"]))
        assert subnet["DefaultForAz"] and subnet["MapPublicIpOnLaunch"]
        # Five addresses of each subnet are AWS's own.
        assert subnet["AvailableIpAddressCount"] <= network.num_addresses - 5
    [gateway] = sim.describe_internet_gateways(Filters=[{"Name": "attachment.vpc-id", "Values": [vpc["VpcId"]]}])["InternetGateways"]
    assert gateway["Attachments"] == [{"State": "available", "VpcId": vpc["VpcId"]}]
    [table] = sim.describe_route_tables(Filters=mine)["RouteTables"]
    assert any(association.get("Main") for association in table["Associations"])
    routes = {route["DestinationCidrBlock"]: route["GatewayId"] for route in table["Routes"]}
    assert routes == {vpc["CidrBlock"]: "local", "0.0.0.0/0": gateway["InternetGatewayId"]}
    [group] = sim.describe_security_groups(Filters=[*mine, {"Name": "group-name", "Values": ["default"]}])["SecurityGroups"]
    [ingress] = group["IpPermissions"]
    assert ingress["IpProtocol"] == "-1"
    assert [pair["GroupId"] for pair in ingress["UserIdGroupPairs"]] == [group["GroupId"]]
    [egress] = group["IpPermissionsEgress"]
    assert egress["IpProtocol"] == "-1" and egress["IpRanges"] == [{"CidrIp": "0.0.0.0/0"}]


@pytest.mark.parametrize(
    "operation, parameter, value, expected",
    [
        ("describe_instances", "InstanceIds", "i-00000000000000000", "InvalidInstanceID.NotFound"),
        ("describe_instances", "InstanceIds", "nonsense", "InvalidInstanceID.Malformed"),
        ("describe_images", "ImageIds", "ami-00000000000000000", "InvalidAMIID.NotFound"),
        ("describe_images", "ImageIds", "nonsense", "InvalidAMIID.Malformed"),
        ("describe_volumes", "VolumeIds", "vol-00000000000000000", "InvalidVolume.NotFound"),
        ("describe_vpcs", "VpcIds", "vpc-00000000000000000", "InvalidVpcID.NotFound"),
        ("describe_subnets", "SubnetIds", "subnet-00000000000000000", "InvalidSubnetID.NotFound"),
        ("describe_route_tables", "RouteTableIds", "rtb-00000000000000000", "InvalidRouteTableID.NotFound"),
        ("describe_internet_gateways", "InternetGatewayIds", "igw-00000000000000000", "InvalidInternetGatewayID.NotFound"),
        ("describe_network_interfaces", "NetworkInterfaceIds", "eni-00000000000000000", "InvalidNetworkInterfaceID.NotFound"),
        ("describe_security_groups", "GroupIds", "sg-00000000000000000", "InvalidGroup.NotFound"),
        ("describe_security_groups", "GroupNames", "no-such-group", "InvalidGroup.NotFound"),
        ("describe_key_pairs", "KeyNames", "no-such-key", "InvalidKeyPair.NotFound"),
        ("describe_regions", "RegionNames", "mars-north-1", "InvalidParameterValue"),
    ],
)
def test_what_is_not_there_is_named_by_the_right_error(sim, operation, parameter, value, expected):
    with pytest.raises(ClientError) as error:
        getattr(sim, operation)(**{parameter: [value]})
    assert code(error) == expected
    assert value in error.value.response["Error"]["Message"]


def test_images_filter_by_owner(sim, simulated):
    everything = {image["Name"] for image in sim.describe_images()["Images"]}
    assert "tiny" in everything
    mine = sim.describe_images(Owners=["self"])["Images"]
    assert all(image["OwnerId"] == simulated.credentials["account_id"] for image in mine)
    assert sim.describe_images(Owners=["123123123123"])["Images"] == []
    by_architecture = sim.describe_images(Filters=[{"Name": "architecture", "Values": ["x86_64"]}, {"Name": "name", "Values": ["ti*"]}])
    assert [image["Name"] for image in by_architecture["Images"]] == ["tiny"]


COVERAGE = Path(__file__).parent.parent / "docs" / "coverage.md"
MODEL = botocore.loaders.Loader().load_service_model("ec2", "service-2")


def filtered_operations() -> list[str]:
    """The implemented operations of EC2 that take filters."""
    ec2 = COVERAGE.read_text().partition("## EC2")[2].partition("\n## ")[0]
    shapes = {name: MODEL["operations"][name].get("input", {}).get("shape") for name in re.findall(r"^\| (Describe\w+) \|", ec2, re.M)}
    return [name for name, shape in shapes.items() if shape and "Filters" in MODEL["shapes"][shape]["members"]]


def documented_filters(operation: str) -> set[str]:
    """What the API reference lists, as the documentation in botocore's model of the service has it."""
    shape = MODEL["shapes"][MODEL["operations"][operation]["input"]["shape"]]
    text, count = shape["members"]["Filters"].get("documentation", ""), 1
    while count:
        # A list within the list is of a filter's values.
        text, count = re.subn(r"(?s)(<ul>(?:(?!</?ul>).)*)<ul>(?:(?!</?ul>).)*</ul>", r"\1", text)
    listed = re.findall(r"<li>\s*<p>\s*<code>([^<]+)</code>(\s*-|:)", text)
    # As `tag:<key>`, which has a meaning for every key.
    return {"tag:Name" if name == "tag" else name for name, _ in listed}


@pytest.mark.parametrize("operation", filtered_operations())
def test_every_documented_filter_is_known(sim, operation):
    required = {"DescribeLaunchTemplateVersions": {"Versions": ["$Latest"]}}
    for name in sorted(documented_filters(operation)):
        filters = [{"Name": name, "Values": ["nothing has this"]}]
        getattr(sim, xform_name(operation))(Filters=filters, **required.get(operation, {}))


def test_filters_of_instances_look_at_their_interfaces(sim, sim_image):
    launched = sim.run_instances(ImageId=sim_image, InstanceType="t3.nano", MinCount=1, MaxCount=1)["Instances"][0]
    sim.get_waiter("instance_running").wait(InstanceIds=[launched["InstanceId"]], WaiterConfig={"Delay": 1})
    instance = sim.describe_instances(InstanceIds=[launched["InstanceId"]])["Reservations"][0]["Instances"][0]
    interface = instance["NetworkInterfaces"][0]
    attachment, association = interface["Attachment"], interface["Association"]
    device = instance["BlockDeviceMappings"][0]["Ebs"]
    by_name = {
        "block-device-mapping.attach-time": f"{device['AttachTime']:%Y-%m-%dT%H:%M}*",
        "metadata-options.state": "applied",
        "network-interface.addresses.primary": "true",
        "network-interface.association.ip-owner-id": association["IpOwnerId"],
        "network-interface.association.public-dns-name": association["PublicDnsName"],
        "network-interface.attachment.attachment-id": attachment["AttachmentId"],
        "network-interface.attachment.delete-on-termination": "true",
        "network-interface.attachment.device-index": "0",
        "network-interface.attachment.instance-id": instance["InstanceId"],
        "network-interface.attachment.status": "attached",
        "network-interface.group-name": "default",
        "network-interface.private-dns-name": interface["PrivateDnsName"],
        "network-interface.private-ip-address": interface["PrivateIpAddress"],
        "network-interface.requester-managed": "false",
        "network-interface.status": "in-use",
    }
    mine = {"Name": "instance-id", "Values": [instance["InstanceId"]]}
    for name, value in by_name.items():
        found = sim.describe_instances(Filters=[mine, {"Name": name, "Values": [value]}])["Reservations"]
        assert len(found) == 1, name
        others = sim.describe_instances(Filters=[mine, {"Name": name, "Values": [f"not {value}"]}])["Reservations"]
        assert others == [], name
    sim.terminate_instances(InstanceIds=[instance["InstanceId"]])
    sim.get_waiter("instance_terminated").wait(InstanceIds=[instance["InstanceId"]], WaiterConfig={"Delay": 1})
    gone = sim.describe_instances(Filters=[mine, {"Name": "network-interface.status", "Values": ["*"]}])["Reservations"]
    assert gone == []
