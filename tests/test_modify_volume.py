"""Volumes that are changed while they are in use: size, type, performance; damaged ones; and their attributes."""

import re
import time

import pytest
from botocore.exceptions import ClientError
from support.machine import wait_for
from test_crash import start_again
from test_snapshots import read, remove, snapshot, write
from test_volumes import attach, create, delete, describe, detach, disk, home, refusal, seconds_to_read


def modification(client, volume: str) -> dict:
    return client.describe_volumes_modifications(VolumeIds=[volume])["VolumesModifications"][0]


def wait_for_modification(client, volume: str) -> dict:
    seen = []

    def done():
        found = modification(client, volume)
        if found["ModificationState"] not in seen:
            seen.append(found["ModificationState"])
        return found if found["ModificationState"] in ("completed", "failed") else None

    found = wait_for(done, 60, 0.02, f"{volume} was not modified")
    assert found["ModificationState"] == "completed", found
    # However fast it goes, it never goes back.
    assert seen == sorted(seen, key=["modifying", "optimizing", "completed"].index)
    return found


def modify(client, volume: str, **parameters) -> dict:
    made = client.modify_volume(VolumeId=volume, **parameters)["VolumeModification"]
    assert (made["VolumeId"], made["ModificationState"], made["Progress"]) == (volume, "modifying", 0)
    return wait_for_modification(client, volume)


def sectors(guest, volume: str) -> int:
    return int(guest.run(f"cat /sys/block/{disk(guest, volume).split('/')[2]}/size"))


# --- the API ------------------------------------------------------------------------------------------------------------


def test_what_was_modified_is_described(sim):
    volume, other = create(sim, Size=2, VolumeType="gp2"), create(sim)
    done = modify(sim, volume, Size=10, VolumeType="gp3", Iops=4000, Throughput=300)
    assert (done["OriginalSize"], done["OriginalVolumeType"], done["OriginalIops"]) == (2, "gp2", 100)
    assert (done["TargetSize"], done["TargetVolumeType"], done["TargetIops"], done["TargetThroughput"]) == (10, "gp3", 4000, 300)
    assert done["Progress"] == 100 and done["EndTime"] >= done["StartTime"]
    found = describe(sim, volume)
    assert (found["Size"], found["VolumeType"], found["Iops"], found["Throughput"]) == (10, "gp3", 4000, 300)
    for name, value in [("volume-id", volume), ("target-size", "10"), ("original-volume-type", "gp2"), ("modification-state", "completed")]:
        answer = sim.describe_volumes_modifications(Filters=[{"Name": name, "Values": [value]}])
        found = [m["VolumeId"] for m in answer["VolumesModifications"]]
        assert volume in found and other not in found, name
    assert refusal(sim.describe_volumes_modifications, VolumeIds=[other])[0] == "InvalidVolumeModification.NotFound"
    assert refusal(sim.describe_volumes_modifications, VolumeIds=["vol-0123456789abcdef0"])[0] == "InvalidVolume.NotFound"
    assert refusal(sim.describe_volumes_modifications, Filters=[{"Name": "size", "Values": ["10"]}])[0] == "InvalidParameterValue"
    # What a type gives by itself comes with it, and what is not said stays.
    assert modify(sim, other, VolumeType="io1", Size=60)["TargetIops"] == 3000
    assert modify(sim, volume, Size=11)["TargetThroughput"] == 300
    delete(sim, other)
    delete(sim, volume)


@pytest.mark.parametrize(
    "parameters, code, word",
    [
        ({}, "MissingParameter", "size"),
        ({"Size": 3}, "InvalidParameterValue", "smaller"),
        ({"Size": -1}, "InvalidParameterValue", "size"),
        ({"Size": 1 << 20}, "InvalidParameterValue", "too large"),
        ({"Iops": 100}, "InvalidParameterValue", "iops"),
        ({"Iops": 100_000}, "InvalidParameterValue", "iops"),
        ({"Throughput": 1000}, "InvalidParameterValue", "ratio"),
        ({"VolumeType": "st1"}, "InvalidParameterValue", "st1"),
        ({"VolumeType": "gp2", "Iops": 3000}, "InvalidParameterCombination", "iops"),
        ({"VolumeType": "io2", "Throughput": 200}, "InvalidParameterCombination", "throughput"),
        ({"VolumeType": "gp9"}, "InvalidParameterValue", "gp9"),
        ({"MultiAttachEnabled": True}, "UnsupportedOperation", "MultiAttachEnabled"),
        ({"VolumeId": "vol-0123456789abcdef0", "Size": 8}, "InvalidVolume.NotFound", "vol-0123456789abcdef0"),
        ({"VolumeId": "volume", "Size": 8}, "InvalidVolumeID.Malformed", "volume"),
        ({"Size": 8, "DryRun": True}, "DryRunOperation", ""),
    ],
)
def test_what_cannot_be_modified_is_refused(sim, parameters, code, word):
    volume = create(sim, Size=4)
    before = describe(sim, volume)
    found = refusal(sim.modify_volume, **({"VolumeId": volume} | parameters))
    assert found[0] == code and word in found[1], found
    assert describe(sim, volume) == before
    assert refusal(sim.describe_volumes_modifications, VolumeIds=[volume])[0] == "InvalidVolumeModification.NotFound"
    delete(sim, volume)


def test_a_root_volume_does_not_become_a_slow_one(sim, sim_image):
    launched = sim.run_instances(ImageId=sim_image, InstanceType="t3.micro", MinCount=1, MaxCount=1)["Instances"][0]
    instance = launched["InstanceId"]
    sim.get_waiter("instance_running").wait(InstanceIds=[instance], WaiterConfig={"Delay": 1})
    found = sim.describe_instances(InstanceIds=[instance])["Reservations"][0]["Instances"][0]
    root = found["BlockDeviceMappings"][0]["Ebs"]["VolumeId"]
    assert refusal(sim.modify_volume, VolumeId=root, Size=200, VolumeType="sc1")[0] == "InvalidParameterValue"
    assert modify(sim, root, Size=20, VolumeType="gp3")["TargetVolumeType"] == "gp3"
    sim.terminate_instances(InstanceIds=[instance])


def test_attributes(sim):
    volume = create(sim)

    def auto():
        return sim.describe_volume_attribute(VolumeId=volume, Attribute="autoEnableIO")["AutoEnableIO"]["Value"]

    assert auto() is False
    sim.modify_volume_attribute(VolumeId=volume, AutoEnableIO={"Value": True})
    assert auto() is True
    codes = sim.describe_volume_attribute(VolumeId=volume, Attribute="productCodes")
    assert codes["ProductCodes"] == [] and "AutoEnableIO" not in codes
    assert refusal(sim.modify_volume_attribute, VolumeId=volume)[0] == "MissingParameter"
    assert refusal(sim.describe_volume_attribute, VolumeId="vol-0123456789abcdef0", Attribute="autoEnableIO")[0] == "InvalidVolume.NotFound"
    # Nothing is known of a disk that is not there.
    status = sim.describe_volume_status(VolumeIds=[volume])["VolumeStatuses"][0]
    assert status["VolumeStatus"]["Status"] == "insufficient-data"
    delete(sim, volume)


# --- guests -------------------------------------------------------------------------------------------------------------


def test_a_volume_grows_and_speeds_up_under_its_guest(ec2, guest):
    volume = create(ec2, **home(guest), Size=4, VolumeType="io1", Iops=100)
    attach(ec2, volume, guest.id)
    wait_for(lambda: disk(guest, volume), message="the guest does not see the disk")
    device, boot = disk(guest, volume), guest.boot_id()
    write(guest, device, 7, "before")

    slow = seconds_to_read(guest, device, 0)
    modify(ec2, volume, Size=6, VolumeType="gp3", Iops=3000, Throughput=250)
    wait_for(lambda: sectors(guest, volume) == 6 << 21, message="the guest does not see the new size")
    fast = min(seconds_to_read(guest, device, place) for place in (1, 2))
    # 100 and 3000 reads a second.
    assert slow > 2 * fast, (slow, fast)
    write(guest, device, (6 << 21) - 1, "the new end")
    # A snapshot of it has the new size, and what was written behind the old end.
    taken = snapshot(ec2, volume)
    assert ec2.describe_snapshots(SnapshotIds=[taken])["Snapshots"][0]["VolumeSize"] == 6
    # The limits hold in the layer that the volume goes on in, and change there.
    modify(ec2, volume, Size=7, VolumeType="io1", Iops=100)
    wait_for(lambda: sectors(guest, volume) == 7 << 21, message="the guest does not see the new size")
    assert seconds_to_read(guest, device, 3) > 2 * fast
    assert (read(guest, device, 7), read(guest, device, (6 << 21) - 1)) == ("before", "the new end")
    assert guest.boot_id() == boot
    detach(ec2, volume)
    # Without a guest, and seen by the next.
    modify(ec2, volume, Size=8)
    attach(ec2, volume, guest.id)
    wait_for(lambda: disk(guest, volume), message="the guest does not see the disk")
    assert sectors(guest, volume) == 8 << 21 and read(guest, disk(guest, volume), 7) == "before"
    detach(ec2, volume)
    copy = create(ec2, **home(guest), SnapshotId=taken)
    assert describe(ec2, copy)["Size"] == 6
    delete(ec2, copy)
    remove(ec2, [taken])
    delete(ec2, volume)


def test_the_root_volume_of_a_stopped_instance_grows(ec2, launch):
    guest = launch(InstanceType="t3.nano")
    root = guest.describe()["BlockDeviceMappings"][0]["Ebs"]["VolumeId"]
    size = describe(ec2, root)["Size"]
    guest.run("echo kept > /root/kept; sync")
    ec2.stop_instances(InstanceIds=[guest.id], Force=True)
    guest.wait_for_state("stopped")
    modify(ec2, root, Size=size + 3)
    ec2.start_instances(InstanceIds=[guest.id])
    guest.wait_for_state("running")
    guest.wait_for_login()
    assert sectors(guest, root) == (size + 3) << 21
    assert guest.run("cat /root/kept") == "kept"


def status(client, volume: str) -> tuple[str, str]:
    (found,) = client.describe_volume_status(VolumeIds=[volume])["VolumeStatuses"]
    details = {d["Name"]: d["Status"] for d in found["VolumeStatus"]["Details"]}
    return found["VolumeStatus"]["Status"], details["io-enabled"]


def damage(daemon, volume: str) -> None:
    """Marks a disk as QEMU does when it finds its structure damaged."""
    with open(daemon.state_dir / "volumes" / f"{volume}.qcow2", "r+b") as file:
        file.seek(72)
        features = int.from_bytes(file.read(8), "big")
        file.seek(72)
        file.write((features | 2).to_bytes(8, "big"))


def test_a_damaged_disk_is_impaired_until_it_is_repaired(daemon, ec2, guest):
    volume = create(ec2, **home(guest))
    attach(ec2, volume, guest.id)
    wait_for(lambda: disk(guest, volume), message="the guest does not see the disk")
    write(guest, disk(guest, volume), 3, "here")
    assert status(ec2, volume) == ("ok", "passed")
    detach(ec2, volume)
    damage(daemon, volume)
    assert status(ec2, volume) == ("impaired", "failed")
    impaired = ec2.describe_volume_status(Filters=[{"Name": "volume-status.status", "Values": ["impaired"]}])["VolumeStatuses"]
    assert [s["VolumeId"] for s in impaired] == [volume]
    assert [a["Code"] for a in impaired[0]["Actions"]] == ["enable-volume-io"]
    ec2.enable_volume_io(VolumeId=volume)
    wait_for(lambda: status(ec2, volume) == ("ok", "passed"), message="the disk was not repaired")
    # With autoEnableIO nobody needs to ask.
    damage(daemon, volume)
    ec2.modify_volume_attribute(VolumeId=volume, AutoEnableIO={"Value": True})
    attach(ec2, volume, guest.id)
    wait_for(lambda: disk(guest, volume), message="the guest does not see the disk")
    assert read(guest, disk(guest, volume), 3) == "here"
    assert status(ec2, volume) == ("ok", "passed")
    detach(ec2, volume)
    delete(ec2, volume)


# --- crashes ------------------------------------------------------------------------------------------------------------


@pytest.mark.timeout(600)
def test_killed_while_volumes_grow(crashing, chance):
    daemon, launch = crashing
    ec2 = launch.ec2
    guest = launch(InstanceType="t3.nano")
    boot = guest.boot_id()
    attached, free = create(ec2, **home(guest)), create(ec2, **home(guest))
    attach(ec2, attached, guest.id)
    wait_for(lambda: disk(guest, attached), message="the guest does not see the disk")
    for size in range(2, 6):
        write(guest, disk(guest, attached), size, f"line-{size}")
        taken = ec2.create_snapshot(VolumeId=attached)["SnapshotId"]
        for volume in (attached, free):
            ec2.modify_volume(VolumeId=volume, Size=size)
        time.sleep(chance.random() * 0.05)
        daemon.kill()
        start_again(daemon)
        for volume in (attached, free):
            wait_for_modification(ec2, volume)
            assert describe(ec2, volume)["Size"] == size
        wait_for(lambda size=size: sectors(guest, attached) == size << 21, message="the guest does not see the new size")
        ec2.get_waiter("snapshot_completed").wait(SnapshotIds=[taken], WaiterConfig={"Delay": 1})
        # What was asked for in one go is one state or the other.
        assert ec2.describe_snapshots(SnapshotIds=[taken])["Snapshots"][0]["VolumeSize"] in (size - 1, size)
        copy = create(ec2, **home(guest), SnapshotId=taken)
        delete(ec2, copy)
        remove(ec2, [taken])
    assert [read(guest, disk(guest, attached), size) for size in range(2, 6)] == [f"line-{size}" for size in range(2, 6)]
    assert guest.boot_id() == boot
    detach(ec2, attached)
    attach(ec2, free, guest.id)
    wait_for(lambda: disk(guest, free), message="the guest does not see the disk")
    assert sectors(guest, free) == 5 << 21
    detach(ec2, free)
    for volume in (attached, free):
        delete(ec2, volume)
    launch.end()


def test_one_modification_at_a_time(sim):
    """Asked for as fast as can be, so that some come while another runs; four of them are taken in a day."""
    volume, taken, codes = create(sim, Size=1), 0, set()
    for size in range(2, 40):
        try:
            sim.modify_volume(VolumeId=volume, Size=size)
            taken += 1
        except ClientError as error:
            codes.add(error.response["Error"]["Code"])
    assert codes <= {"IncorrectModificationState", "VolumeModificationRateExceeded"}
    while taken < 4:
        wait_for_modification(sim, volume)
        sim.modify_volume(VolumeId=volume, Size=40 + taken)
        taken += 1
    last = wait_for_modification(sim, volume)
    assert taken == 4 and describe(sim, volume)["Size"] == last["TargetSize"]
    code, message = refusal(sim.modify_volume, VolumeId=volume, Size=50)
    assert code == "VolumeModificationRateExceeded" and "maximum modification rate per volume" in message
    assert re.search(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d", message), "it says when the next is possible"
    assert modification(sim, volume) == last
    delete(sim, volume)
