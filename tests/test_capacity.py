"""What there is for instances: processors as they were asked for, memory and vCPUs that are not given twice, placement groups."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from botocore.exceptions import ClientError
from conftest import image_id
from support.errors import refused
from support.machine import wait_for


def one(image: str, **parameters) -> dict:
    return {"ImageId": image, "InstanceType": "t3.nano", "MinCount": 1, "MaxCount": 1} | parameters


def terminate(ec2, *ids: str) -> None:
    if ids:
        ec2.terminate_instances(InstanceIds=list(ids))
        ec2.get_waiter("instance_terminated").wait(InstanceIds=list(ids), WaiterConfig={"Delay": 1, "MaxAttempts": 90})


def test_processors_are_those_asked_for_and_follow_the_type(launch):
    guest = launch(CpuOptions={"CoreCount": 1, "ThreadsPerCore": 1})
    assert guest.describe()["CpuOptions"] == {"CoreCount": 1, "ThreadsPerCore": 1}
    assert int(guest.run("grep -c ^processor /proc/cpuinfo")) == 1
    private = guest.private_ip
    guest.ec2.stop_instances(InstanceIds=[guest.id])
    guest.hang_up()
    assert "PublicIpAddress" not in guest.wait_for_state("stopped")
    guest.ec2.modify_instance_attribute(InstanceId=guest.id, InstanceType={"Value": "t3.small"})
    assert guest.describe()["CpuOptions"] == {"CoreCount": 1, "ThreadsPerCore": 2}, "those of the new type"
    guest.ec2.start_instances(InstanceIds=[guest.id])
    guest.wait_for_state("running")
    guest.wait_for_login()
    assert guest.private_ip == private and guest.public_ip
    assert int(guest.run("grep -c ^processor /proc/cpuinfo")) == 2
    total = int(guest.run("sed -n 's/^MemTotal: *\\([0-9]*\\) kB/\\1/p' /proc/meminfo")) / 1024
    assert 2048 * 0.85 < total <= 2048
    assert guest.run("cat /sys/class/dmi/id/product_name") == "t3.small"


def test_threads_share_a_core(launch):
    guest = launch(CpuOptions={"CoreCount": 1, "ThreadsPerCore": 2})
    assert guest.run("cat /sys/devices/system/cpu/cpu0/topology/thread_siblings_list") == "0-1"
    assert guest.run("cat /sys/devices/system/cpu/cpu1/topology/core_id") == guest.run("cat /sys/devices/system/cpu/cpu0/topology/core_id")
    terminate(guest.ec2, guest.id)


@pytest.mark.parametrize(
    "type_, cores, threads, expected",
    [
        ("t3.micro", 2, 1, "InvalidParameterValue"),
        ("t3.micro", 1, 3, "InvalidParameterValue"),
        ("t3.micro", 0, 1, "InvalidParameterValue"),
        ("m5.2xlarge", 3, 2, "InvalidParameterValue"),
        ("m5.2xlarge", 2, None, "InvalidParameterCombination"),
        ("t2.micro", 1, 1, "UnsupportedOperation"),
    ],
)
def test_processors_that_a_type_does_not_have_are_refused(sim, sim_image, type_, cores, threads, expected):
    options = {"CoreCount": cores} | ({"ThreadsPerCore": threads} if threads else {})
    refused(expected, sim.run_instances, **one(sim_image, InstanceType=type_, CpuOptions=options))


def test_valid_processors_are_told(sim, sim_image):
    [found] = sim.describe_instance_types(InstanceTypes=["m5.2xlarge"])["InstanceTypes"]
    assert found["VCpuInfo"]["ValidCores"] == [2, 4] and found["VCpuInfo"]["ValidThreadsPerCore"] == [1, 2]
    launched = sim.run_instances(**one(sim_image, InstanceType="m5.2xlarge", CpuOptions={"CoreCount": 2, "ThreadsPerCore": 1}))
    [instance] = launched["Instances"]
    assert instance["CpuOptions"] == {"CoreCount": 2, "ThreadsPerCore": 1}
    sim.terminate_instances(InstanceIds=[instance["InstanceId"]])


def test_options_that_ask_for_what_is_anyway(sim, sim_image):
    launched = sim.run_instances(
        **one(
            sim_image,
            MaintenanceOptions={"AutoRecovery": "disabled"},
            PrivateDnsNameOptions={"HostnameType": "ip-name", "EnableResourceNameDnsARecord": False},
            CapacityReservationSpecification={"CapacityReservationPreference": "none"},
            Placement={"AvailabilityZoneId": "euc1-az3", "Tenancy": "dedicated"},
        )
    )
    [instance] = launched["Instances"]
    assert instance["MaintenanceOptions"] == {"AutoRecovery": "disabled"}
    assert instance["PrivateDnsNameOptions"]["HostnameType"] == "ip-name"
    assert instance["CapacityReservationSpecification"] == {"CapacityReservationPreference": "none"}
    zones = sim.describe_availability_zones(ZoneIds=["euc1-az3"])["AvailabilityZones"]
    assert instance["Placement"]["AvailabilityZone"] == zones[0]["ZoneName"]
    assert instance["Placement"]["Tenancy"] == "dedicated"
    found = sim.describe_instances(Filters=[{"Name": "tenancy", "Values": ["dedicated"]}])["Reservations"]
    assert [i["InstanceId"] for r in found for i in r["Instances"]] == [instance["InstanceId"]]
    sim.terminate_instances(InstanceIds=[instance["InstanceId"]])


@pytest.mark.parametrize(
    "parameters, expected",
    [
        ({"Placement": {"Tenancy": "host"}}, "UnsupportedOperation"),
        ({"Placement": {"GroupName": "no-such-group"}}, "InvalidPlacementGroup.Unknown"),
        ({"Placement": {"PartitionNumber": 1}}, "MissingParameter"),
        ({"Placement": {"AvailabilityZone": "eu-central-1a", "AvailabilityZoneId": "euc1-az2"}}, "InvalidParameterCombination"),
        ({"MaintenanceOptions": {"AutoRecovery": "default"}}, "UnsupportedOperation"),
        ({"PrivateDnsNameOptions": {"HostnameType": "resource-name"}}, "UnsupportedOperation"),
        ({"CapacityReservationSpecification": {"CapacityReservationPreference": "capacity-reservations-only"}}, "ReservationCapacityExceeded"),
        (
            {"CapacityReservationSpecification": {"CapacityReservationTarget": {"CapacityReservationId": "cr-00000000000000000"}}},
            "InvalidCapacityReservationId.NotFound",
        ),
        ({"HibernationOptions": {"Configured": True}}, "UnsupportedHibernationConfiguration"),
        ({"InstanceMarketOptions": {"MarketType": "spot"}}, "UnsupportedOperation"),
    ],
)
def test_options_that_haar_does_not_carry_out(sim, sim_image, parameters, expected):
    refused(expected, sim.run_instances, **one(sim_image, **parameters))


def test_spot_requests_are_refused(sim, sim_image):
    specification = {"ImageId": sim_image, "InstanceType": "t3.nano"}
    refused("UnsupportedOperation", sim.request_spot_instances, InstanceCount=1, LaunchSpecification=specification)
    refused("UnsupportedOperation", sim.describe_spot_instance_requests)


def test_placement_groups_are_made_described_and_removed(sim, sim_image):
    tags = [{"ResourceType": "placement-group", "Tags": [{"Key": "of", "Value": "test"}]}]
    made = sim.create_placement_group(GroupName="racks", Strategy="partition", PartitionCount=3, TagSpecifications=tags)["PlacementGroup"]
    assert made["GroupId"].startswith("pg-") and made["PartitionCount"] == 3 and made["State"] == "available"
    assert made["GroupArn"].endswith(":placement-group/racks")
    refused("InvalidPlacementGroup.Duplicate", sim.create_placement_group, GroupName="racks", Strategy="cluster")
    refused("InvalidParameterValue", sim.create_placement_group, GroupName="x", Strategy="partition", PartitionCount=8)
    refused("InvalidParameterCombination", sim.create_placement_group, GroupName="x", Strategy="spread", PartitionCount=2)
    refused("MissingParameter", sim.create_placement_group, GroupName="x")
    refused("UnsupportedOperation", sim.create_placement_group, GroupName="x", Strategy="spread", SpreadLevel="host")
    assert sim.describe_placement_groups(GroupNames=["racks"])["PlacementGroups"] == [made]
    assert sim.describe_placement_groups(Filters=[{"Name": "tag:of", "Values": ["test"]}])["PlacementGroups"] == [made]
    assert sim.describe_placement_groups(Filters=[{"Name": "strategy", "Values": ["spread"]}])["PlacementGroups"] == []
    launched = sim.run_instances(**one(sim_image, MinCount=6, MaxCount=6, Placement={"GroupName": "racks"}))["Instances"]
    assert sorted(i["Placement"]["PartitionNumber"] for i in launched) == [1, 1, 2, 2, 3, 3], "spread evenly"
    assert {i["Placement"]["GroupId"] for i in launched} == {made["GroupId"]}
    [asked] = sim.run_instances(**one(sim_image, Placement={"GroupId": made["GroupId"], "PartitionNumber": 2}))["Instances"]
    assert asked["Placement"]["PartitionNumber"] == 2
    refused("InvalidParameterValue", sim.run_instances, **one(sim_image, Placement={"GroupName": "racks", "PartitionNumber": 4}))
    ids = [i["InstanceId"] for i in [*launched, asked]]
    found = sim.describe_instances(Filters=[{"Name": "placement-group-name", "Values": ["racks"]}])["Reservations"]
    assert {i["InstanceId"] for r in found for i in r["Instances"]} == set(ids)
    refused("InvalidPlacementGroup.InUse", sim.delete_placement_group, GroupName="racks")
    terminate(sim, *ids)
    sim.delete_placement_group(GroupName="racks")
    refused("InvalidPlacementGroup.Unknown", sim.delete_placement_group, GroupName="racks")
    refused("InvalidPlacementGroup.Unknown", sim.describe_placement_groups, GroupNames=["racks"])
    assert sim.describe_tags(Filters=[{"Name": "resource-id", "Values": [made["GroupId"]]}])["Tags"] == []


def test_a_cluster_is_in_one_zone(sim, sim_image):
    sim.create_placement_group(GroupName="near", Strategy="cluster")
    large = one(sim_image, InstanceType="m5.large")
    refused("InvalidParameterCombination", sim.run_instances, **one(sim_image, Placement={"GroupName": "near"}))
    [first] = sim.run_instances(**large, Placement={"GroupName": "near", "AvailabilityZone": "eu-central-1a"})["Instances"]
    [second] = sim.run_instances(**large, Placement={"GroupName": "near", "AvailabilityZone": "eu-central-1a"})["Instances"]
    elsewhere = {"GroupName": "near", "AvailabilityZone": "eu-central-1b"}
    refused("InvalidParameterCombination", sim.run_instances, **large, Placement=elsewhere)
    terminate(sim, first["InstanceId"], second["InstanceId"])
    sim.delete_placement_group(GroupName="near")


def test_one_host_is_one_place_of_a_spread_group_and_one_partition(ec2, tiny):
    ec2.create_placement_group(GroupName="apart", Strategy="spread")
    ec2.create_placement_group(GroupName="racks", Strategy="partition", PartitionCount=2)
    launched = []
    try:
        apart = one(tiny, Placement={"GroupName": "apart"})
        refused("InsufficientInstanceCapacity", ec2.run_instances, **(apart | {"MinCount": 2, "MaxCount": 2}))
        [first] = ec2.run_instances(**(apart | {"MaxCount": 2}))["Instances"]
        launched.append(first["InstanceId"])
        refused("InsufficientInstanceCapacity", ec2.run_instances, **apart)
        refused("InsufficientInstanceCapacity", ec2.run_instances, **apart, DryRun=True)
        racks = one(tiny, Placement={"GroupName": "racks", "PartitionNumber": 2})
        [second] = ec2.run_instances(**racks)["Instances"]
        launched.append(second["InstanceId"])
        refused("InsufficientInstanceCapacity", ec2.run_instances, **one(tiny, Placement={"GroupName": "racks", "PartitionNumber": 1}))
        [third] = ec2.run_instances(**one(tiny, Placement={"GroupName": "racks"}))["Instances"]
        launched.append(third["InstanceId"])
        assert third["Placement"]["PartitionNumber"] == 2
        # The place is free again with its holder's end.
        terminate(ec2, first["InstanceId"])
        [next_] = ec2.run_instances(**apart)["Instances"]
        launched.append(next_["InstanceId"])
    finally:
        terminate(ec2, *launched)
        ec2.delete_placement_group(GroupName="apart")
        ec2.delete_placement_group(GroupName="racks")


def test_a_stopped_instance_is_moved(sim, sim_image):
    sim.create_placement_group(GroupName="racks", Strategy="partition", PartitionCount=3)
    apart = sim.create_placement_group(GroupName="apart", Strategy="spread")["PlacementGroup"]
    sim.create_placement_group(GroupName="near", Strategy="cluster")
    [launched] = sim.run_instances(**one(sim_image))["Instances"]
    id_ = launched["InstanceId"]

    def placement() -> dict:
        found = sim.describe_instances(InstanceIds=[id_])["Reservations"][0]["Instances"][0]["Placement"]
        return {name: value for name, value in found.items() if not name.startswith("Availability") and value}

    def move(**parameters) -> dict:
        assert sim.modify_instance_placement(InstanceId=id_, **parameters)["Return"] is True
        return placement()

    sim.get_waiter("instance_running").wait(InstanceIds=[id_], WaiterConfig={"Delay": 1})
    refused("IncorrectInstanceState", sim.modify_instance_placement, InstanceId=id_, GroupName="racks")
    refused("IncorrectInstanceState", sim.modify_instance_placement, InstanceId=id_, Tenancy="dedicated")
    assert move(Affinity="default") == {"Tenancy": "default"}
    sim.stop_instances(InstanceIds=[id_])
    sim.get_waiter("instance_stopped").wait(InstanceIds=[id_], WaiterConfig={"Delay": 1})
    racks = sim.describe_placement_groups(GroupNames=["racks"])["PlacementGroups"][0]["GroupId"]
    assert move(GroupName="racks", PartitionNumber=3) == {"Tenancy": "default", "GroupName": "racks", "GroupId": racks, "PartitionNumber": 3}
    assert move(PartitionNumber=2)["PartitionNumber"] == 2
    assert move(Tenancy="dedicated") == {"Tenancy": "dedicated", "GroupName": "racks", "GroupId": racks, "PartitionNumber": 2}
    before = placement()
    for expected, parameters in [
        ("MissingParameter", {}),
        ("InvalidPlacementGroup.Unknown", {"GroupName": "nowhere"}),
        ("InvalidParameterValue", {"PartitionNumber": 4}),
        ("InvalidParameterCombination", {"GroupName": "apart"}),
        ("InvalidParameterCombination", {"GroupName": "near"}),
        ("InvalidParameterCombination", {"GroupName": "racks", "GroupId": racks}),
        ("UnsupportedOperation", {"Tenancy": "host"}),
        ("UnsupportedOperation", {"Affinity": "host"}),
        ("UnsupportedOperation", {"HostId": "h-0123456789abcdef0"}),
        ("InvalidInstanceID.NotFound", {"InstanceId": "i-0123456789abcdef0", "GroupName": "racks"}),
    ]:
        refused(expected, sim.modify_instance_placement, **({"InstanceId": id_} | parameters))
        assert placement() == before, parameters
    assert move(GroupId=apart["GroupId"], Tenancy="default") == {"Tenancy": "default", "GroupName": "apart", "GroupId": apart["GroupId"]}
    refused("InvalidPlacementGroup.InUse", sim.delete_placement_group, GroupName="apart")
    sim.delete_placement_group(GroupName="racks")
    sim.start_instances(InstanceIds=[id_])
    sim.get_waiter("instance_running").wait(InstanceIds=[id_], WaiterConfig={"Delay": 1})
    sim.stop_instances(InstanceIds=[id_])
    sim.get_waiter("instance_stopped").wait(InstanceIds=[id_], WaiterConfig={"Delay": 1})
    assert move(GroupName="") == {"Tenancy": "default"}
    sim.delete_placement_group(GroupName="apart")
    sim.delete_placement_group(GroupName="near")
    terminate(sim, id_)


def host_memory_mib() -> int:
    total = int(Path("/proc/meminfo").read_text().split()[1]) >> 10
    for limit in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        text = Path(limit).read_text().strip() if Path(limit).exists() else "max"
        if text.isdigit():
            total = min(total, int(text) >> 20)
    return total


def states(ec2) -> list[str]:
    return [i["State"]["Name"] for r in ec2.describe_instances()["Reservations"] for i in r["Instances"]]


def test_memory_is_not_promised_twice(make_daemon):
    """Room for two of the smallest, each with what its machine takes besides."""
    reserve = host_memory_mib() - 1500
    daemon = make_daemon("--memory-reserve", str(reserve))
    ec2 = daemon.client("ec2")
    tiny = image_id(ec2, "tiny")
    refused("InsufficientInstanceCapacity", ec2.run_instances, **one(tiny, InstanceType="t3.small"))
    refused("InsufficientInstanceCapacity", ec2.run_instances, **one(tiny, MinCount=3, MaxCount=3))
    assert states(ec2) == [], "all or none"

    def attempt(_) -> str:
        try:
            return daemon.client("ec2").run_instances(**one(tiny))["Instances"][0]["InstanceId"]
        except ClientError as error:
            assert error.response["Error"]["Code"] == "InsufficientInstanceCapacity"
            assert error.response["ResponseMetadata"]["HTTPStatusCode"] == 500
            return ""

    with ThreadPoolExecutor(8) as pool:
        launched = [instance for instance in pool.map(attempt, range(8)) if instance]
    assert len(launched) == 2, "requests at the same time share what there is"
    refused("InsufficientInstanceCapacity", ec2.run_instances, **one(tiny), DryRun=True)
    ec2.get_waiter("instance_running").wait(InstanceIds=launched, WaiterConfig={"Delay": 1, "MaxAttempts": 90})
    daemon.kill()
    daemon.start()
    refused("InsufficientInstanceCapacity", ec2.run_instances, **one(tiny))
    # A stopped instance takes nothing, and is not sure to be started again.
    ec2.stop_instances(InstanceIds=[launched[0]], SkipOsShutdown=True)
    ec2.get_waiter("instance_stopped").wait(InstanceIds=[launched[0]], WaiterConfig={"Delay": 1, "MaxAttempts": 90})
    refused("DryRunOperation", ec2.start_instances, InstanceIds=[launched[0]], DryRun=True)
    [third] = ec2.run_instances(**one(tiny, MaxCount=4))["Instances"]
    refused("InsufficientInstanceCapacity", ec2.start_instances, InstanceIds=[launched[0]])
    refused("InsufficientInstanceCapacity", ec2.start_instances, InstanceIds=[launched[0]], DryRun=True)
    terminate(ec2, third["InstanceId"])
    ec2.start_instances(InstanceIds=[launched[0]])
    wait_for(lambda: sorted(states(ec2)) == ["running", "running", "terminated"], 60)


def test_quotas_of_simulated_machines(make_daemon):
    daemon = make_daemon("--compute", "simulated", "--vcpu-quota", "5")
    ec2 = daemon.client("ec2")
    tiny = image_id(ec2, "tiny")
    refused("VcpuLimitExceeded", ec2.run_instances, **one(tiny, InstanceType="m5.2xlarge"))
    refused("VcpuLimitExceeded", ec2.run_instances, **one(tiny, MinCount=3, MaxCount=3), DryRun=True)
    launched = ec2.run_instances(**one(tiny, MaxCount=10))["Instances"]
    assert len(launched) == 2, "as many as may be"
    refused("VcpuLimitExceeded", ec2.run_instances, **one(tiny))
    # Each region has its own.
    elsewhere = daemon.client("ec2", region_name="us-east-1")
    elsewhere.run_instances(**one(tiny))
    # The memory of the host is none of theirs.
    ec2.terminate_instances(InstanceIds=[i["InstanceId"] for i in launched])
    wait_for(lambda: set(states(ec2)) == {"terminated"}, 20)
    assert ec2.run_instances(**one(tiny, InstanceType="r5.xlarge"))["Instances"]


def test_simulated_machines_are_many(sim, sim_image):
    """No quota and no memory limit them where none was set."""
    launched = sim.run_instances(**one(sim_image, InstanceType="r5.4xlarge", MinCount=20, MaxCount=20))["Instances"]
    sim.terminate_instances(InstanceIds=[i["InstanceId"] for i in launched])


def test_settings_that_cannot_be(make_daemon):
    daemon = make_daemon("--memory-overcommit", "0", start=False)
    assert daemon.haar("up", *daemon.flags, check=False).returncode != 0
