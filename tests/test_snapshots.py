"""Snapshots: what a volume was at one point in time, taken while its guest writes."""

import os
import signal
import time

import pytest
from support.machine import machines, wait_for
from test_crash import start_again
from test_volumes import attach, create, delete, describe, detach, disk, home, is_gone, refusal, zone


def find(client, snapshot: str) -> dict:
    return client.describe_snapshots(SnapshotIds=[snapshot])["Snapshots"][0]


def wait_for_snapshots(client, snapshots: list[str]) -> None:
    def completed():
        found = client.describe_snapshots(SnapshotIds=snapshots)["Snapshots"]
        assert not [s["StateMessage"] for s in found if s["State"] == "error"]
        return {s["State"] for s in found} == {"completed"}

    wait_for(completed, 60, message="the snapshots were not taken")


def snapshot(client, volume: str, **parameters) -> str:
    made = client.create_snapshot(VolumeId=volume, **parameters)
    assert (made["State"], made["VolumeId"], made["Progress"]) == ("pending", volume, "0%")
    wait_for_snapshots(client, [made["SnapshotId"]])
    return made["SnapshotId"]


def remove(client, snapshots: list[str]) -> None:
    for name in snapshots:
        client.delete_snapshot(SnapshotId=name)
    assert client.describe_snapshots(Filters=[{"Name": "snapshot-id", "Values": snapshots}])["Snapshots"] == []


def write(guest, device: str, sector: int, text: str) -> None:
    guest.run(f"echo {text} | dd of={device} bs=512 seek={sector} conv=fsync,notrunc 2>/dev/null")


def read(guest, device: str, sector: int) -> str:
    return guest.run(f"dd if={device} bs=512 skip={sector} count=1 2>/dev/null | tr -d '\\0'").strip()


# --- the API ------------------------------------------------------------------------------------------------------------


def test_what_is_asked_is_described(sim):
    volume = create(sim, Size=3)
    tags = [{"ResourceType": "snapshot", "Tags": [{"Key": "Name", "Value": "before"}]}]
    name = snapshot(sim, volume, Description="before the tide", TagSpecifications=tags)
    found = find(sim, name)
    assert (found["State"], found["Progress"], found["VolumeSize"], found["Encrypted"]) == ("completed", "100%", 3, False)
    assert (found["Description"], found["Tags"]) == ("before the tide", tags[0]["Tags"])
    assert found["CompletionTime"] >= found["StartTime"]
    for filters in [("volume-id", volume), ("status", "completed"), ("description", "before*"), ("tag:Name", "before")]:
        answer = sim.describe_snapshots(Filters=[{"Name": filters[0], "Values": [filters[1]]}], OwnerIds=["self"])
        assert name in [s["SnapshotId"] for s in answer["Snapshots"]], filters
    assert sim.describe_snapshots(OwnerIds=["amazon"])["Snapshots"] == []
    assert sim.describe_snapshots(RestorableByUserIds=["all"])["Snapshots"] == []

    grown = sim.create_volume(AvailabilityZone=zone(sim), SnapshotId=name, Size=5)
    assert (grown["SnapshotId"], grown["Size"]) == (name, 5)
    same = create(sim, SnapshotId=name)
    assert describe(sim, same)["SnapshotId"] == name
    assert refusal(sim.create_volume, AvailabilityZone=zone(sim), SnapshotId=name, Size=2)[0] == "InvalidParameterValue"
    # The volume goes, and the snapshot stays.
    delete(sim, volume)
    assert find(sim, name)["VolumeId"] == volume
    remove(sim, [name])
    assert refusal(sim.describe_snapshots, SnapshotIds=[name])[0] == "InvalidSnapshot.NotFound"
    assert refusal(sim.delete_snapshot, SnapshotId=name)[0] == "InvalidSnapshot.NotFound"


@pytest.mark.parametrize(
    "parameters, code",
    [
        ({"VolumeId": "vol-0123456789abcdef0"}, "InvalidVolume.NotFound"),
        ({"VolumeId": "volume"}, "InvalidVolumeID.Malformed"),
        ({"VolumeId": "vol-0123456789abcdef0", "Description": "x" * 256}, "InvalidParameterValue"),
        ({"VolumeId": "vol-0123456789abcdef0", "OutpostArn": "arn:aws:outposts:eu-central-1:1:outpost/op-1"}, "UnsupportedOperation"),
    ],
)
def test_what_cannot_be_taken_is_refused(sim, parameters, code):
    assert refusal(sim.create_snapshot, **parameters)[0] == code


def test_copies(simulated, sim):
    volume = create(sim, Size=3)
    name = snapshot(sim, volume, Description="first")
    tags = [{"ResourceType": "snapshot", "Tags": [{"Key": "Name", "Value": "copy"}]}]
    made = sim.copy_snapshot(SourceRegion="eu-central-1", SourceSnapshotId=name, Description="second", TagSpecifications=tags)
    assert made["Tags"] == tags[0]["Tags"]
    wait_for_snapshots(sim, [made["SnapshotId"]])
    found = find(sim, made["SnapshotId"])
    assert (found["VolumeSize"], found["VolumeId"], found["Description"]) == (3, "vol-ffffffff", "second")
    # Into another region; the client adds a presigned URL, which must be for this copy.
    west = simulated.client("ec2", region_name="us-west-2")
    there = west.copy_snapshot(SourceRegion="eu-central-1", SourceSnapshotId=name)["SnapshotId"]
    wait_for_snapshots(west, [there])
    assert refusal(sim.describe_snapshots, SnapshotIds=[there])[0] == "InvalidSnapshot.NotFound"
    assert describe(west, create(west, SnapshotId=there))["Size"] == 3
    wrong = {"SourceRegion": "eu-central-1", "SourceSnapshotId": name}
    url = f"https://ec2.eu-central-1.amazonaws.com/?Action=CopySnapshot&SourceRegion=eu-central-1&SourceSnapshotId={volume}"
    for parameters, code in [
        ({"SourceSnapshotId": "snap-0123456789abcdef0"}, "InvalidSnapshot.NotFound"),
        ({"SourceSnapshotId": there}, "InvalidSnapshot.NotFound"),
        ({"SourceSnapshotId": "snap"}, "InvalidSnapshotID.Malformed"),
        ({"SourceRegion": "mars-north-1"}, "InvalidParameterValue"),
        ({"PresignedUrl": url}, "InvalidParameterValue"),
        ({"PresignedUrl": "nonsense"}, "InvalidParameterValue"),
        ({"DestinationOutpostArn": "arn:aws:outposts:eu-central-1:1:outpost/op-1"}, "UnsupportedOperation"),
    ]:
        assert refusal(sim.copy_snapshot, **(wrong | parameters))[0] == code, parameters
    remove(sim, [name, made["SnapshotId"]])


def test_sharing(sim):
    name = snapshot(sim, create(sim))

    def permissions():
        return sim.describe_snapshot_attribute(SnapshotId=name, Attribute="createVolumePermission")["CreateVolumePermissions"]

    assert permissions() == []
    sim.modify_snapshot_attribute(SnapshotId=name, Attribute="createVolumePermission", OperationType="add", UserIds=["222222222222"])
    add = [{"UserId": "111111111111"}, {"Group": "all"}]
    sim.modify_snapshot_attribute(SnapshotId=name, CreateVolumePermission={"Add": add, "Remove": [{"UserId": "222222222222"}]})
    assert permissions() == [{"Group": "all"}, {"UserId": "111111111111"}]
    for users, there in [(["all"], True), (["self"], True), (["111111111111"], True), (["333333333333"], True)]:
        listed = [s["SnapshotId"] for s in sim.describe_snapshots(RestorableByUserIds=users)["Snapshots"]]
        assert (name in listed) is there
    sim.modify_snapshot_attribute(SnapshotId=name, OperationType="remove", GroupNames=["all"])
    assert [s["SnapshotId"] for s in sim.describe_snapshots(RestorableByUserIds=["111111111111"])["Snapshots"]] == [name]
    assert sim.describe_snapshots(RestorableByUserIds=["333333333333"])["Snapshots"] == []
    sim.reset_snapshot_attribute(SnapshotId=name, Attribute="createVolumePermission")
    assert permissions() == []
    assert sim.describe_snapshot_attribute(SnapshotId=name, Attribute="productCodes")["ProductCodes"] == []
    for parameters, code in [
        ({}, "MissingParameter"),
        ({"OperationType": "add"}, "MissingParameter"),
        ({"UserIds": ["111111111111"]}, "MissingParameter"),
        ({"OperationType": "add", "UserIds": ["me"]}, "InvalidUserID.Malformed"),
        ({"OperationType": "add", "GroupNames": ["some"]}, "InvalidParameterValue"),
        ({"Attribute": "productCodes", "OperationType": "add", "UserIds": ["111111111111"]}, "InvalidParameterValue"),
        ({"OperationType": "add", "CreateVolumePermission": {"Add": add}}, "InvalidParameterCombination"),
        ({"SnapshotId": "snap-0123456789abcdef0", "OperationType": "add", "UserIds": ["111111111111"]}, "InvalidSnapshot.NotFound"),
    ]:
        assert refusal(sim.modify_snapshot_attribute, **({"SnapshotId": name} | parameters))[0] == code, parameters
    assert permissions() == []
    remove(sim, [name])


def test_ids_that_name_nothing(sim):
    assert refusal(sim.describe_snapshots, SnapshotIds=["snap"])[0] == "InvalidSnapshotID.Malformed"
    assert refusal(sim.create_volume, AvailabilityZone=zone(sim), SnapshotId="snap-0123456789abcdef0")[0] == "InvalidSnapshot.NotFound"
    assert refusal(sim.create_snapshots, InstanceSpecification={"InstanceId": "i-0123456789abcdef0"})[0] == "InvalidInstanceID.NotFound"


# --- guests -------------------------------------------------------------------------------------------------------------


def test_a_snapshot_is_what_was(daemon, ec2, guest):
    volumes = daemon.state_dir / "volumes"
    volume = create(ec2, **home(guest), Size=2)
    attach(ec2, volume, guest.id)
    wait_for(lambda: disk(guest, volume), message="the guest does not see the disk")
    device = disk(guest, volume)
    guest.run(f"dd if=/dev/urandom of={device} bs=1M seek=1 count=32 conv=fsync 2>/dev/null")
    write(guest, device, 0, "one")
    first = snapshot(ec2, volume)
    write(guest, device, 0, "two")
    second = snapshot(ec2, volume)
    write(guest, device, 0, "three")
    assert read(guest, device, 0) == "three"
    # The second holds what differs from the first; taking either copied nothing.
    used = {name: os.stat(volumes / f"{name}.qcow2").st_blocks * 512 for name in (first, second)}
    assert used[first] > 32 << 20 > 8 * used[second], used

    # A copy takes no room, and outlives what it is a copy of.
    copied = ec2.copy_snapshot(SourceRegion="eu-central-1", SourceSnapshotId=second)["SnapshotId"]
    wait_for_snapshots(ec2, [copied])
    assert os.path.samefile(volumes / f"{copied}.qcow2", volumes / f"{second}.qcow2")
    remove(ec2, [second])
    second = copied

    copies = {text: create(ec2, **home(guest), SnapshotId=name) for text, name in [("one", first), ("two", second)]}
    for letter, (text, copy) in zip("gh", copies.items()):
        attach(ec2, copy, guest.id, f"/dev/sd{letter}")
        wait_for(lambda copy=copy: disk(guest, copy), message="the guest does not see the copy")
        assert read(guest, disk(guest, copy), 0) == text
    sums = [guest.run(f"dd if={disk(guest, v)} bs=1M skip=1 count=32 2>/dev/null | md5sum") for v in (volume, *copies.values())]
    assert len(set(sums)) == 1, sums
    # Neither the origin's end nor the snapshots' takes anything from the copies.
    detach(ec2, volume)
    delete(ec2, volume)
    remove(ec2, [first, second])
    write(guest, disk(guest, copies["one"]), 1, "mine")
    assert [read(guest, disk(guest, copies["one"]), sector) for sector in (0, 1)] == ["one", "mine"]
    assert read(guest, disk(guest, copies["two"]), 1) == ""
    for copy in copies.values():
        detach(ec2, copy)
        delete(ec2, copy)
    ours = [volume, first, second, *copies.values()]
    wait_for(lambda: not [f for f in volumes.iterdir() if f.name.startswith(tuple(ours))], message="a layer was left behind")


def test_an_instance_s_volumes_are_taken_at_one_point_in_time(ec2, guest):
    root = guest.describe()["BlockDeviceMappings"][0]["Ebs"]["VolumeId"]
    pair = [create(ec2, **home(guest)) for _ in range(2)]
    for letter, volume in zip("jk", pair):
        attach(ec2, volume, guest.id, f"/dev/sd{letter}")
        wait_for(lambda volume=volume: disk(guest, volume), message="the guest does not see the disk")
    one, two = (disk(guest, volume) for volume in pair)
    counting = (
        f"i=0; while [ -e /tmp/count ]; do i=$((i+1)); for d in {one} {two}; do "
        "echo $i | dd of=$d bs=512 conv=fsync,notrunc 2>/dev/null; done; done"
    )
    guest.run(f"touch /tmp/count; (sh -c '{counting}') >/dev/null 2>&1 </dev/null &")
    wait_for(lambda: read(guest, two, 0), message="the guest does not count")
    taken = ec2.create_snapshots(
        InstanceSpecification={"InstanceId": guest.id, "ExcludeBootVolume": True},
        Description="both",
        TagSpecifications=[{"ResourceType": "snapshot", "Tags": [{"Key": "set", "Value": "1"}]}],
    )["Snapshots"]
    assert sorted(s["VolumeId"] for s in taken) == sorted(pair)
    names = {s["VolumeId"]: s["SnapshotId"] for s in taken}
    wait_for_snapshots(ec2, list(names.values()))
    guest.run("rm /tmp/count; sleep 1")
    counted = []
    for letter, volume in zip("lm", pair):
        copy = create(ec2, **home(guest), SnapshotId=names[volume])
        attach(ec2, copy, guest.id, f"/dev/sd{letter}")
        wait_for(lambda copy=copy: disk(guest, copy), message="the guest does not see the copy")
        counted.append(int(read(guest, disk(guest, copy), 0) or 0))
        detach(ec2, copy)
        delete(ec2, copy)
    # The guest writes to one and then to the other: the first is at most one ahead.
    assert counted[0] - counted[1] in (0, 1) and counted[1] > 0, counted
    everything = ec2.create_snapshots(InstanceSpecification={"InstanceId": guest.id, "ExcludeDataVolumeIds": [pair[0]]})["Snapshots"]
    assert sorted(s["VolumeId"] for s in everything) == sorted([root, pair[1]])
    wrong = {"InstanceId": guest.id, "ExcludeDataVolumeIds": [root]}
    assert refusal(ec2.create_snapshots, InstanceSpecification=wrong)[0] == "InvalidParameterValue"
    wait_for_snapshots(ec2, [s["SnapshotId"] for s in everything])
    remove(ec2, [*names.values(), *(s["SnapshotId"] for s in everything)])
    for volume in pair:
        detach(ec2, volume)
        delete(ec2, volume)


# --- crashes ------------------------------------------------------------------------------------------------------------


def with_volume(launch) -> tuple:
    """A guest, and a volume that it sees."""
    guest = launch(InstanceType="t3.nano")
    volume = create(launch.ec2, **home(guest))
    attach(launch.ec2, volume, guest.id)
    wait_for(lambda: disk(guest, volume), message="the guest does not see the disk")
    return guest, volume


@pytest.mark.timeout(600)
def test_a_disk_of_many_layers_is_known_by_its_file(crashing, chance):
    """QEMU names a disk by all that is below it, and cuts the name off where it is long."""
    daemon, launch = crashing
    ec2 = launch.ec2
    guest, volume = with_volume(launch)
    boot = guest.boot_id()
    taken = []
    for number in range(40):
        name = ec2.create_snapshot(VolumeId=volume)["SnapshotId"]
        if number >= 36:
            write(guest, disk(guest, volume), number, f"line-{number}")
            time.sleep(chance.random() * 0.04)
            daemon.kill()
            start_again(daemon)
        wait_for_snapshots(ec2, [name])
        taken.append(name)
    assert guest.boot_id() == boot
    remove(ec2, taken)
    wait_for(
        lambda: len([f for f in (daemon.state_dir / "volumes").iterdir() if f.is_file()]) <= 4,
        timeout=120,
        message="layers that nothing needs stay",
    )
    assert [read(guest, disk(guest, volume), number) for number in range(36, 40)] == [f"line-{number}" for number in range(36, 40)]
    assert guest.boot_id() == boot
    detach(ec2, volume)
    delete(ec2, volume)
    launch.end()


@pytest.mark.timeout(600)
def test_killed_while_snapshots_are_taken(crashing, chance):
    daemon, launch = crashing
    ec2 = launch.ec2
    guest, volume = with_volume(launch)
    boot = guest.boot_id()
    taken = []
    for number in range(8):
        write(guest, disk(guest, volume), number, f"line-{number}")
        name = ec2.create_snapshot(VolumeId=volume)["SnapshotId"]
        time.sleep(chance.random() * 0.04)
        daemon.kill()
        if number == 5:
            # The machine is lost with it, at whatever point the snapshot is.
            (machine,) = machines(guest.id)
            os.kill(machine, signal.SIGKILL)
            guest.hang_up()
        start_again(daemon)
        if number == 5:
            guest.wait_for_state("stopped")
            ec2.start_instances(InstanceIds=[guest.id])
            guest.wait_for_state("running")
            guest.wait_for_login()
            boot = guest.boot_id()
        wait_for_snapshots(ec2, [name])
        taken.append(name)
    assert guest.boot_id() == boot
    lines = [read(guest, disk(guest, volume), number) for number in range(8)]
    assert lines == [f"line-{number}" for number in range(8)]
    for number in (0, 3, 5, 7):
        copy = create(ec2, **home(guest), SnapshotId=taken[number])
        attach(ec2, copy, guest.id, "/dev/sdg")
        wait_for(lambda copy=copy: disk(guest, copy), message="the guest does not see the copy")
        found = [read(guest, disk(guest, copy), sector) for sector in range(8)]
        assert found == lines[: number + 1] + [""] * (7 - number), number
        detach(ec2, copy)
        delete(ec2, copy)
    detach(ec2, volume)
    delete(ec2, volume)
    for name in taken:
        ec2.delete_snapshot(SnapshotId=name)
    # What outlives the instance keeps its image.
    root = snapshot(ec2, guest.describe()["BlockDeviceMappings"][0]["Ebs"]["VolumeId"])
    launch.end()
    refused = daemon.haar("image", "remove", "tiny", check=False)
    assert refused.returncode != 0 and root in refused.stderr, refused
    remove(ec2, [root])
    wait_for(lambda: not [f for f in (daemon.state_dir / "volumes").iterdir() if f.is_file()], message="a layer was left behind")
    assert is_gone(ec2, volume)
