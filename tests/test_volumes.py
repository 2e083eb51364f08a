"""Volumes: disks that are made, attached to guests that run, taken from them, and removed."""

import os
import signal
import socket
import subprocess
import time
import uuid

import pytest
from botocore.exceptions import BotoCoreError, ClientError
from support.machine import machines, processes, wait_for
from test_crash import start_again


def refusal(call, **parameters) -> tuple[str, str]:
    with pytest.raises(ClientError) as refused:
        call(**parameters)
    error = refused.value.response["Error"]
    return error["Code"], error["Message"]


def zone(client) -> str:
    return client.describe_availability_zones()["AvailabilityZones"][0]["ZoneName"]


def describe(client, volume: str) -> dict:
    return client.describe_volumes(VolumeIds=[volume])["Volumes"][0]


def create(client, **parameters) -> str:
    """A volume that is available."""
    size = {} if "SnapshotId" in parameters else {"Size": 1}
    volume = client.create_volume(**({"AvailabilityZone": zone(client), "VolumeType": "gp3"} | size | parameters))["VolumeId"]
    client.get_waiter("volume_available").wait(VolumeIds=[volume], WaiterConfig={"Delay": 1, "MaxAttempts": 30})
    return volume


def is_gone(client, volume: str) -> bool:
    try:
        return describe(client, volume)["State"] == "deleted"
    except ClientError as error:
        assert error.response["Error"]["Code"] == "InvalidVolume.NotFound"
        return True


def delete(client, volume: str) -> None:
    client.delete_volume(VolumeId=volume)
    wait_for(lambda: is_gone(client, volume), message=f"{volume} was not removed")


def wait_for_attachment(client, volume: str) -> None:
    def attached():
        found = describe(client, volume)
        return found["State"] == "in-use" and [a["State"] for a in found["Attachments"]] == ["attached"]

    wait_for(attached, 60, message=f"{volume} was not attached")


def attach(client, volume: str, instance: str, device: str = "/dev/sdf") -> None:
    answer = client.attach_volume(VolumeId=volume, InstanceId=instance, Device=device)
    assert (answer["State"], answer["Device"], answer["InstanceId"]) == ("attaching", device, instance)
    wait_for_attachment(client, volume)


def detach(client, volume: str, **parameters) -> None:
    assert client.detach_volume(VolumeId=volume, **parameters)["State"] == "detaching"
    client.get_waiter("volume_available").wait(VolumeIds=[volume], WaiterConfig={"Delay": 1, "MaxAttempts": 60})
    assert describe(client, volume)["Attachments"] == []


def disk(guest, volume: str) -> str | None:
    """The device that the guest knows as a volume, found as udev's rules do: by its serial number."""
    serial = volume.replace("-", "")
    found = guest.run(f"grep -l {serial} /sys/block/vd*/serial || true").split()
    return f"/dev/{found[0].split('/')[3]}" if found else None


def seconds_to_read(guest, device: str, place: int, reads: int = 300) -> float:
    """How long reads take, one after the other, of what the guest has not read yet."""
    guest.run(f"echo 0 > /sys/block/{device.split('/')[2]}/queue/read_ahead_kb")
    begin = time.monotonic()
    guest.run(f"dd if={device} of=/dev/null bs=4k count={reads} skip={place * reads} 2>/dev/null")
    return time.monotonic() - begin


def quiet(guest) -> bool:
    """Whether the guest answers nothing."""
    try:
        with socket.create_connection((guest.public_ip, 22), timeout=2):
            return False
    except OSError:
        return True


def home(guest) -> dict:
    """Where a volume must be to be attached to the guest."""
    return {"AvailabilityZone": guest.describe()["Placement"]["AvailabilityZone"]}


# --- the API ------------------------------------------------------------------------------------------------------------


def test_what_is_asked_is_described(sim):
    made = sim.create_volume(
        AvailabilityZone=zone(sim),
        Size=20,
        VolumeType="gp3",
        Iops=4000,
        Throughput=200,
        TagSpecifications=[{"ResourceType": "volume", "Tags": [{"Key": "Name", "Value": "data"}]}],
    )
    assert (made["State"], made["Size"], made["Encrypted"], made.get("Attachments", [])) == ("creating", 20, False, [])
    sim.get_waiter("volume_available").wait(VolumeIds=[made["VolumeId"]], WaiterConfig={"Delay": 1})
    found = describe(sim, made["VolumeId"])
    assert (found["Iops"], found["Throughput"], found["VolumeType"]) == (4000, 200, "gp3")
    assert found["Tags"] == [{"Key": "Name", "Value": "data"}]
    delete(sim, made["VolumeId"])
    by_id = sim.describe_availability_zones()["AvailabilityZones"][1]
    volume = create(sim, AvailabilityZone=by_id["ZoneName"])
    assert describe(sim, volume)["AvailabilityZoneId"] == by_id["ZoneId"]
    delete(sim, volume)


def test_a_client_token_makes_one_volume(sim):
    token = str(uuid.uuid4())
    parameters = {"AvailabilityZone": zone(sim), "Size": 1, "ClientToken": token}
    first = sim.create_volume(**parameters)["VolumeId"]
    assert sim.create_volume(**parameters)["VolumeId"] == first
    code, _ = refusal(sim.create_volume, **(parameters | {"Size": 2}))
    assert code == "IdempotentParameterMismatch"
    assert refusal(sim.create_volume, AvailabilityZone=zone(sim), Size=1, DryRun=True)[0] == "DryRunOperation"


@pytest.mark.parametrize(
    "parameters, code, word",
    [
        ({"Size": 0}, "InvalidParameterValue", "0GiB"),
        ({"Size": -1}, "InvalidParameterValue", "size"),
        ({"Size": 1 << 20}, "InvalidParameterValue", "too large"),
        ({"Size": 8, "VolumeType": "io1"}, "InvalidParameterCombination", "iops"),
        ({"Size": 8, "VolumeType": "st1"}, "InvalidParameterValue", "st1"),
        ({"Size": 8, "VolumeType": "gp2", "Iops": 100}, "InvalidParameterCombination", "iops"),
        ({}, "MissingParameter", "size"),
        ({"Size": 1, "AvailabilityZone": "mars-north-1a"}, "InvalidZone.NotFound", "mars-north-1a"),
        ({"Size": 1, "MultiAttachEnabled": True}, "UnsupportedOperation", "MultiAttachEnabled"),
        ({"Size": 1, "SnapshotId": "snap-0123456789abcdef0"}, "InvalidSnapshot.NotFound", "snap-0123456789abcdef0"),
        ({"Size": 1, "OutpostArn": "arn:aws:outposts:eu-central-1:1:outpost/op-1"}, "UnsupportedOperation", "OutpostArn"),
    ],
)
def test_what_cannot_be_made_is_refused(sim, parameters, code, word):
    before = {volume["VolumeId"] for volume in sim.describe_volumes()["Volumes"]}
    found = refusal(sim.create_volume, **({"AvailabilityZone": zone(sim)} | parameters))
    assert found[0] == code and word in found[1], found
    assert {volume["VolumeId"] for volume in sim.describe_volumes()["Volumes"]} == before


def test_attachments_that_cannot_be_are_refused(sim, sim_image):
    launched = sim.run_instances(ImageId=sim_image, InstanceType="t3.micro", MinCount=1, MaxCount=1)["Instances"][0]
    instance, there = launched["InstanceId"], launched["Placement"]["AvailabilityZone"]
    sim.get_waiter("instance_running").wait(InstanceIds=[instance], WaiterConfig={"Delay": 1})
    volume, second = create(sim, AvailabilityZone=there), create(sim, AvailabilityZone=there)
    elsewhere = next(z["ZoneName"] for z in sim.describe_availability_zones()["AvailabilityZones"] if z["ZoneName"] != there)
    far = create(sim, AvailabilityZone=elsewhere)

    def attached(volume, device="/dev/sdf", instance=instance):
        return refusal(sim.attach_volume, VolumeId=volume, InstanceId=instance, Device=device)

    assert attached(volume, "/dev/nvme0")[0] == "InvalidParameterValue"
    assert attached(volume, launched["RootDeviceName"])[0] == "InvalidParameterValue"
    assert attached("vol-0123456789abcdef0")[0] == "InvalidVolume.NotFound"
    assert attached("volume")[0] == "InvalidVolumeID.Malformed"
    assert attached(volume, instance="i-0123456789abcdef0")[0] == "InvalidInstanceID.NotFound"
    assert attached(far)[0] == "InvalidVolume.ZoneMismatch"
    assert refusal(sim.detach_volume, VolumeId=volume)[0] == "IncorrectState"
    attach(sim, volume, instance)
    assert attached(volume, "/dev/sdg")[0] == "VolumeInUse"
    assert attached(second)[0] == "InvalidParameterValue"
    assert attached(second, "sdf")[0] == "InvalidParameterValue"
    assert refusal(sim.delete_volume, VolumeId=volume)[0] == "VolumeInUse"
    assert refusal(sim.detach_volume, VolumeId=volume, Device="/dev/sdg")[0] == "InvalidAttachment.NotFound"
    assert refusal(sim.detach_volume, VolumeId=volume, InstanceId="i-0123456789abcdef0")[0] == "InvalidAttachment.NotFound"
    found = sim.describe_instances(InstanceIds=[instance])["Reservations"][0]["Instances"][0]
    devices = {m["DeviceName"]: m["Ebs"]["VolumeId"] for m in found["BlockDeviceMappings"]}
    root = devices[launched["RootDeviceName"]]
    assert refusal(sim.detach_volume, VolumeId=root)[0] == "OperationNotPermitted"
    detach(sim, volume, InstanceId=instance, Device="/dev/sdf")

    # As many as the type takes.
    limit = sim.describe_instance_types(InstanceTypes=["t3.micro"])["InstanceTypes"][0]["EbsInfo"]["MaximumEbsAttachments"]
    code = None
    for number in range(limit):
        try:
            sim.attach_volume(VolumeId=create(sim, AvailabilityZone=there), InstanceId=instance, Device=f"/dev/xvdb{chr(97 + number % 26)}{number // 26 or ''}")
        except ClientError as error:
            code = error.response["Error"]["Code"]
            break
    assert code == "AttachmentLimitExceeded"
    # A volume that was attached later outlives the instance.
    sim.terminate_instances(InstanceIds=[instance])
    sim.get_waiter("instance_terminated").wait(InstanceIds=[instance], WaiterConfig={"Delay": 1})
    assert describe(sim, volume)["State"] == "available"


# --- guests -------------------------------------------------------------------------------------------------------------


def test_a_disk_comes_goes_and_keeps_what_was_written(daemon, ec2, launch):
    first, second = launch(), launch()
    volume = create(ec2, **home(first), Size=2)
    boot = first.boot_id()
    assert disk(first, volume) is None
    attach(ec2, volume, first.id)
    wait_for(lambda: disk(first, volume), message="the guest does not see the disk")
    device = disk(first, volume)
    assert first.run(f"cat /sys/block/{device.split('/')[2]}/size").strip() == str(2 << 21)
    mappings = {m["DeviceName"]: m["Ebs"]["VolumeId"] for m in first.describe()["BlockDeviceMappings"]}
    assert mappings["/dev/sdf"] == volume
    first.run(f"echo the tide is out | dd of={device} conv=fsync")

    detach(ec2, volume)
    assert disk(first, volume) is None
    assert [m["DeviceName"] for m in first.describe()["BlockDeviceMappings"]] == [first.describe()["RootDeviceName"]]
    assert first.boot_id() == boot

    # Another guest, another device, and attached while it is off.
    ec2.stop_instances(InstanceIds=[second.id], Force=True)
    second.wait_for_state("stopped")
    attach(ec2, volume, second.id, "/dev/sdh")
    ec2.start_instances(InstanceIds=[second.id])
    second.wait_for_state("running")
    second.wait_for_login()
    assert "the tide is out" in second.run(f"head -c 64 {disk(second, volume)}")
    ec2.stop_instances(InstanceIds=[second.id], Force=True)
    second.wait_for_state("stopped")
    detach(ec2, volume)
    file = daemon.state_dir / "volumes" / f"{volume}.qcow2"
    assert file.exists()
    delete(ec2, volume)
    assert not file.exists()


def test_a_guest_feels_the_limits_of_its_volumes(ec2, guest):
    where = home(guest)
    slow = create(ec2, **where, Size=4, VolumeType="io1", Iops=100)
    fast = create(ec2, **where, Size=4, VolumeType="gp3")
    took = {}
    for volume, device in [(slow, "/dev/sdm"), (fast, "/dev/sdn")]:
        attach(ec2, volume, guest.id, device)
        wait_for(lambda volume=volume: disk(guest, volume), message="the guest does not see the disk")
        took[volume] = min(seconds_to_read(guest, disk(guest, volume), place) for place in (0, 1))
    for volume in (slow, fast):
        detach(ec2, volume)
        delete(ec2, volume)
    # 100 and 3000 reads a second.
    assert took[slow] > 2 * took[fast], took


def test_a_volume_is_taken_from_a_guest_that_keeps_it(ec2, launch):
    keeper, other = launch(), launch()
    volume = create(ec2, **home(keeper), Encrypted=True)
    attach(ec2, volume, keeper.id)
    wait_for(lambda: disk(keeper, volume), message="the guest does not see the disk")
    device = disk(keeper, volume)
    keeper.run(f"echo kept | dd of={device} bs=512 conv=fsync 2>/dev/null")
    # A guest that hangs gives up nothing.
    keeper.run("echo 0 > /proc/sys/kernel/panic; (sleep 2; echo c > /proc/sysrq-trigger) >/dev/null 2>&1 </dev/null &")
    keeper.hang_up()
    wait_for(lambda: quiet(keeper), 60, message="the guest did not panic")
    assert ec2.detach_volume(VolumeId=volume)["State"] == "detaching"
    time.sleep(5)
    assert [a["State"] for a in describe(ec2, volume)["Attachments"]] == ["detaching"]
    detach(ec2, volume, Force=True)
    attach(ec2, volume, other.id)
    wait_for(lambda: disk(other, volume), message="the guest does not see the disk")
    assert other.run(f"head -n 1 {disk(other, volume)}") == "kept"
    detach(ec2, volume)
    delete(ec2, volume)
    # Nor does it shut down when it is asked to.
    ec2.stop_instances(InstanceIds=[keeper.id], Force=True)
    keeper.wait_for_state("stopped")


@pytest.mark.parametrize(
    "parameters, a_second, reads",
    [
        ({"VolumeType": "standard", "Size": 1}, 200, 300),
        ({"VolumeType": "io2", "Size": 4, "Iops": 100}, 100, 200),
        # A request is an operation of a MiB or less; 125 GiB burst at 30 and at 9 MiB/s.
        ({"VolumeType": "st1", "Size": 125}, 250 * 125 // 1024, 60),
        ({"VolumeType": "sc1", "Size": 125}, 80 * 125 // 1024, 20),
        ({"VolumeType": "gp2", "Size": 1}, 3000, 3000),
    ],
)
def test_every_type_is_held_to_its_limit(ec2, guest, parameters, a_second, reads):
    volume = create(ec2, **home(guest), **parameters)
    attach(ec2, volume, guest.id, "/dev/sdo")
    wait_for(lambda: disk(guest, volume), message="the guest does not see the disk")
    took = seconds_to_read(guest, disk(guest, volume), 1, reads)
    detach(ec2, volume)
    delete(ec2, volume)
    # The bucket holds a tenth of a second's operations when it is full.
    assert took >= 0.8 * reads / a_second, took


def test_what_goes_with_an_instance_can_be_chosen_later(sim, sim_image):
    launched = sim.run_instances(ImageId=sim_image, InstanceType="t3.micro", MinCount=1, MaxCount=1)["Instances"][0]
    instance, root = launched["InstanceId"], launched["RootDeviceName"]
    sim.get_waiter("instance_running").wait(InstanceIds=[instance], WaiterConfig={"Delay": 1})
    volume = create(sim, AvailabilityZone=launched["Placement"]["AvailabilityZone"])
    attach(sim, volume, instance)
    devices = {"/dev/sdf": True, root: False}
    mappings = [{"DeviceName": name, "Ebs": {"DeleteOnTermination": value}} for name, value in devices.items()]
    sim.modify_instance_attribute(InstanceId=instance, BlockDeviceMappings=mappings)
    found = sim.describe_instances(InstanceIds=[instance])["Reservations"][0]["Instances"][0]
    ids = {m["DeviceName"]: m["Ebs"]["VolumeId"] for m in found["BlockDeviceMappings"]}
    assert {m["DeviceName"]: m["Ebs"]["DeleteOnTermination"] for m in found["BlockDeviceMappings"]} == devices
    assert describe(sim, volume)["Attachments"][0]["DeleteOnTermination"] is True
    sim.terminate_instances(InstanceIds=[instance])
    sim.get_waiter("instance_terminated").wait(InstanceIds=[instance], WaiterConfig={"Delay": 1})
    assert is_gone(sim, volume) and describe(sim, ids[root])["State"] == "available"
    delete(sim, ids[root])


# --- crashes ------------------------------------------------------------------------------------------------------------


def insist(call, **parameters):
    """Tries until the daemon has acknowledged, as a client would."""
    deadline = time.monotonic() + 60
    while True:
        try:
            return call(**parameters)
        except (BotoCoreError, ClientError) as error:
            if isinstance(error, ClientError) or time.monotonic() > deadline:
                raise
            time.sleep(0.05)


@pytest.mark.timeout(600)
def test_killed_while_volumes_come_and_go(crashing, chance):
    daemon, launch = crashing
    ec2 = launch.ec2
    guest = launch(InstanceType="t3.nano")
    boot = guest.boot_id()
    where = home(guest)

    def kill_soon():
        time.sleep(chance.random() * 0.05)
        daemon.kill()
        start_again(daemon)

    for _ in range(4):
        volume = insist(ec2.create_volume, **where, Size=1, ClientToken=str(uuid.uuid4()))["VolumeId"]
        kill_soon()
        ec2.get_waiter("volume_available").wait(VolumeIds=[volume], WaiterConfig={"Delay": 1})
        ec2.attach_volume(VolumeId=volume, InstanceId=guest.id, Device="/dev/sdf")
        kill_soon()
        wait_for_attachment(ec2, volume)
        wait_for(lambda volume=volume: disk(guest, volume), message="the guest does not see the disk")
        ec2.detach_volume(VolumeId=volume)
        kill_soon()
        ec2.get_waiter("volume_available").wait(VolumeIds=[volume], WaiterConfig={"Delay": 1})
        assert disk(guest, volume) is None
        ec2.delete_volume(VolumeId=volume)
        kill_soon()
        wait_for(lambda volume=volume: is_gone(ec2, volume), message="the volume was not removed")
        assert not (daemon.state_dir / "volumes" / f"{volume}.qcow2").exists()
    assert guest.boot_id() == boot
    launch.end()


@pytest.mark.timeout(300)
def test_a_power_cut_loses_nothing_that_was_flushed(crashing):
    daemon, launch = crashing
    ec2 = launch.ec2
    guest = launch(InstanceType="t3.nano")
    volume = create(ec2, **home(guest))
    attach(ec2, volume, guest.id)
    wait_for(lambda: disk(guest, volume), message="the guest does not see the disk")
    text = str(uuid.uuid4())
    guest.run(f"echo {text} | dd of={disk(guest, volume)} bs=512 seek=4096 conv=fsync; echo {text} > /root/kept; sync")
    (machine,) = machines(guest.id)
    os.kill(machine, signal.SIGKILL)
    daemon.kill()
    guest.hang_up()
    start_again(daemon)
    guest.wait_for_state("stopped")
    ec2.start_instances(InstanceIds=[guest.id])
    guest.wait_for_state("running")
    guest.wait_for_login()
    assert text in guest.run("cat /root/kept")
    assert text in guest.run(f"dd if={disk(guest, volume)} bs=512 skip=4096 count=1 2>/dev/null | head -c 64")
    launch.end()
    delete(ec2, volume)


@pytest.mark.timeout(600)
def test_a_power_cut_at_any_moment_loses_nothing_that_was_flushed(crashing, chance):
    daemon, launch = crashing
    ec2 = launch.ec2
    guest = launch(InstanceType="t3.nano")
    volumes = [create(ec2, **home(guest)), create(ec2, **home(guest), Encrypted=True)]
    for letter, volume in zip("fg", volumes):
        attach(ec2, volume, guest.id, f"/dev/sd{letter}")
        wait_for(lambda volume=volume: disk(guest, volume), message="the guest does not see the disk")
    begin, taken = 0, []
    for number in range(3):
        devices = [disk(guest, volume) for volume in volumes]
        writes = " && ".join(f"echo $i | dd of={device} bs=512 conv=fsync,notrunc 2>/dev/null" for device in devices)
        counting = f"i={begin}; while :; do i=$((i+1)); {writes} && echo $i >> /root/said && sync && echo $i; done"
        said = daemon.state_dir / "said"
        with said.open("w") as out:
            address = guest.public_ip
            command = ["ssh", "-i", str(guest.key), "-o", "IdentitiesOnly=yes", "-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=no"]
            command += ["-o", "UserKnownHostsFile=/dev/null", "-o", "LogLevel=ERROR", f"root@{address}", counting]
            reader = subprocess.Popen(command, stdout=out, stderr=subprocess.DEVNULL)
        wait_for(lambda said=said: said.read_text().count("\n") > 3, message="the guest does not count")
        # While the disks get new layers, too.
        taken += [s["SnapshotId"] for s in ec2.create_snapshots(InstanceSpecification={"InstanceId": guest.id})["Snapshots"]]
        time.sleep(chance.random() * (2, 6, 10)[number])
        (machine,) = machines(guest.id)
        for victim in chance.sample([machine, daemon.pid], 2):
            os.kill(victim, signal.SIGKILL)
        reader.kill()
        reader.wait()
        guest.hang_up()
        heard = [int(line) for line in said.read_text().split("\n")[:-1]][-1]
        wait_for(lambda: not [pid for pid, line in processes(str(daemon.state_dir)).items() if " serve " in line], message="the daemon survived SIGKILL")
        start_again(daemon)
        guest.wait_for_state("stopped")
        ec2.start_instances(InstanceIds=[guest.id])
        guest.wait_for_state("running")
        guest.wait_for_login()
        found = [int(guest.run(f"head -n 1 {disk(guest, volume)} | tr -d '\\0'")) for volume in volumes]
        found.append(int(guest.run("tail -n 1 /root/said")))
        # What was heard was flushed; one more may have been written.
        assert all(heard <= value <= heard + 2 for value in found), (heard, found)
        begin = max(found)
    ec2.get_waiter("snapshot_completed").wait(SnapshotIds=taken, WaiterConfig={"Delay": 1})
    launch.end()
    for volume in volumes:
        delete(ec2, volume)
    for name in taken:
        ec2.delete_snapshot(SnapshotId=name)
