"""Encryption at rest: what guests write is in no file, and comes back after everything that can happen to a volume."""

import json
import os
import re
import signal
import subprocess
import time
import uuid
from pathlib import Path

import pytest
from support.machine import machines, processes, wait_for
from test_amis import deregister, snapshots_of, wait_for_image
from test_crash import start_again
from test_modify_volume import modify, sectors
from test_snapshots import find, read, remove, snapshot, wait_for_snapshots, write
from test_volumes import attach, create, delete, describe, detach, disk, home, refusal, zone

ALIAS = "alias/aws/ebs"


def holds(daemon, text: str, *names: str) -> bool:
    """Whether a text is in the files of volumes and snapshots; in all files when none are named."""
    folder = daemon.state_dir / "volumes"
    files = [folder / f"{name}.qcow2" for name in names] or [f for f in folder.rglob("*") if f.is_file()]

    def has(file: Path) -> bool:
        try:
            return text.encode() in file.read_bytes()
        except FileNotFoundError:
            # Removed since the folder was listed; what is named has to be there.
            if names:
                raise
            return False

    return any(map(has, files))


def mark(guest, device: str, text: str) -> None:
    """Writes a text where it fills whole blocks."""
    guest.run(f"yes {text} | head -c 65536 | dd of={device} bs=64k seek=16 conv=fsync,notrunc 2>/dev/null")


def marked(guest, device: str) -> str:
    return guest.run(f"dd if={device} bs=64k skip=16 count=1 2>/dev/null | head -n 1").strip()


# --- the API ------------------------------------------------------------------------------------------------------------


def test_what_is_encrypted_is_described(simulated, sim):
    assert sim.get_ebs_default_kms_key_id()["KmsKeyId"] == ALIAS
    plain, volume = create(sim), create(sim, Encrypted=True)
    found = describe(sim, volume)
    key = found["KmsKeyId"]
    assert found["Encrypted"] and re.fullmatch(r"arn:aws:kms:eu-central-1:\d{12}:key/[0-9a-f-]{36}", key)
    assert not describe(sim, plain)["Encrypted"] and "KmsKeyId" not in describe(sim, plain)
    for named in (ALIAS, key, key.split("/")[1], key.rsplit(":", 1)[0] + ":" + ALIAS):
        other = create(sim, Encrypted=True, KmsKeyId=named)
        assert describe(sim, other)["KmsKeyId"] == key
        delete(sim, other)
    listed = [v["VolumeId"] for v in sim.describe_volumes(Filters=[{"Name": "encrypted", "Values": ["true"]}])["Volumes"]]
    assert volume in listed and plain not in listed

    name, open_one = snapshot(sim, volume), snapshot(sim, plain)
    assert (find(sim, name)["Encrypted"], find(sim, name)["KmsKeyId"]) == (True, key)
    assert not find(sim, open_one)["Encrypted"]
    listed = [s["SnapshotId"] for s in sim.describe_snapshots(Filters=[{"Name": "encrypted", "Values": ["true"]}])["Snapshots"]]
    assert name in listed and open_one not in listed
    assert describe(sim, create(sim, SnapshotId=name))["KmsKeyId"] == key
    assert describe(sim, create(sim, SnapshotId=open_one, Encrypted=True))["Encrypted"]

    def copied(client, source, **parameters):
        made = client.copy_snapshot(SourceRegion="eu-central-1", SourceSnapshotId=source, **parameters)["SnapshotId"]
        wait_for_snapshots(client, [made])
        return find(client, made)

    assert copied(sim, name)["KmsKeyId"] == key
    assert copied(sim, open_one, Encrypted=True)["KmsKeyId"] == key
    assert not copied(sim, open_one)["Encrypted"]
    west = simulated.client("ec2", region_name="us-west-2")
    there = copied(west, name)["KmsKeyId"]
    assert there.startswith("arn:aws:kms:us-west-2:") and there != key
    assert describe(west, create(west, Encrypted=True))["KmsKeyId"] == there
    # With the account's default key nobody else could open it.
    share = {"SnapshotId": name, "OperationType": "add", "UserIds": ["111111111111"]}
    assert refusal(sim.modify_snapshot_attribute, **share)[0] == "OperationNotPermitted"


def test_encryption_by_default(simulated, sim_image):
    ec2 = simulated.client("ec2", region_name="eu-west-3")
    assert ec2.get_ebs_encryption_by_default()["EbsEncryptionByDefault"] is False
    before = snapshot(ec2, create(ec2))
    assert ec2.enable_ebs_encryption_by_default()["EbsEncryptionByDefault"] is True
    assert ec2.get_ebs_encryption_by_default()["EbsEncryptionByDefault"] is True
    for parameters in ({}, {"Encrypted": False}, {"SnapshotId": before}):
        assert describe(ec2, create(ec2, **parameters))["Encrypted"], parameters
    assert ec2.disable_ebs_encryption_by_default()["EbsEncryptionByDefault"] is False
    assert not describe(ec2, create(ec2))["Encrypted"]


def test_there_is_one_default_key(sim):
    key = describe(sim, create(sim, Encrypted=True))["KmsKeyId"]
    for named in (ALIAS, key, key.split("/")[1]):
        assert sim.modify_ebs_default_kms_key_id(KmsKeyId=named)["KmsKeyId"] == key
    code, message = refusal(sim.modify_ebs_default_kms_key_id, KmsKeyId="alias/mine")
    assert code == "InvalidParameterValue" and "alias/mine" in message
    assert refusal(sim.modify_ebs_default_kms_key_id, KmsKeyId=ALIAS, DryRun=True)[0] == "DryRunOperation"
    assert sim.get_ebs_default_kms_key_id()["KmsKeyId"] == ALIAS
    assert sim.reset_ebs_default_kms_key_id()["KmsKeyId"] == key
    assert describe(sim, create(sim, Encrypted=True))["KmsKeyId"] == key


@pytest.mark.parametrize(
    "parameters, code, word",
    [
        ({"KmsKeyId": ALIAS}, "InvalidParameterDependency", "KmsKeyId"),
        ({"KmsKeyId": ALIAS, "Encrypted": False}, "InvalidParameterDependency", "KmsKeyId"),
        ({"KmsKeyId": "alias/mine", "Encrypted": True}, "InvalidParameterValue", "alias/mine"),
        ({"KmsKeyId": str(uuid.uuid4()), "Encrypted": True}, "InvalidParameterValue", "kmsKeyId"),
        ({"KmsKeyId": f"arn:aws:kms:us-west-2:123456789012:{ALIAS}", "Encrypted": True}, "InvalidParameterValue", "kmsKeyId"),
    ],
)
def test_keys_that_there_are_not(sim, sim_image, parameters, code, word):
    found = refusal(sim.create_volume, AvailabilityZone=zone(sim), Size=1, **parameters)
    assert found[0] == code and word in found[1], found
    mapping = [{"DeviceName": "/dev/sdf", "Ebs": {"VolumeSize": 1, **parameters}}]
    found = refusal(sim.run_instances, ImageId=sim_image, MinCount=1, MaxCount=1, InstanceType="t3.micro", BlockDeviceMappings=mapping)
    assert found[0] == code, found


def test_encryption_is_not_taken_away(sim):
    name = snapshot(sim, create(sim, Encrypted=True))
    assert refusal(sim.create_volume, AvailabilityZone=zone(sim), SnapshotId=name, Encrypted=False)[0] == "InvalidParameterValue"
    copy = {"SourceRegion": "eu-central-1", "SourceSnapshotId": name, "Encrypted": False}
    assert refusal(sim.copy_snapshot, **copy)[0] == "InvalidParameterValue"
    remove(sim, [name])


# --- guests -------------------------------------------------------------------------------------------------------------


def test_what_a_guest_writes_is_in_no_file(daemon, ec2, guest):
    texts = {name: f"{name}-{uuid.uuid4()}" for name in ("plain", "secret")}
    volumes = {"plain": create(ec2, **home(guest)), "secret": create(ec2, **home(guest), Encrypted=True)}
    for (name, volume), device in zip(volumes.items(), ("/dev/sdf", "/dev/sdg")):
        attach(ec2, volume, guest.id, device)
        wait_for(lambda volume=volume: disk(guest, volume), message="the guest does not see the disk")
        mark(guest, disk(guest, volume), texts[name])
    # The search finds what is written in plain, and nothing of the other.
    assert holds(daemon, texts["plain"]) and not holds(daemon, texts["secret"])

    # A snapshot under the guest, a volume that grows, and a volume from the snapshot.
    taken = snapshot(ec2, volumes["secret"])
    write(guest, disk(guest, volumes["secret"]), 1, "after the snapshot")
    modify(ec2, volumes["secret"], Size=2)
    wait_for(lambda: sectors(guest, volumes["secret"]) == 2 << 21, message="the guest does not see the new size")
    second = snapshot(ec2, volumes["secret"])
    assert marked(guest, disk(guest, volumes["secret"])) == texts["secret"]
    open_one = snapshot(ec2, volumes["plain"])
    copy = ec2.copy_snapshot(SourceRegion=daemon.region, SourceSnapshotId=open_one, Encrypted=True)["SnapshotId"]
    wait_for_snapshots(ec2, [copy])
    detach(ec2, volumes["secret"])
    modify(ec2, volumes["secret"], Size=3)
    made = [create(ec2, **home(guest), SnapshotId=name) for name in (taken, second, copy)]
    made.append(create(ec2, **home(guest), SnapshotId=open_one, Encrypted=True))
    made.append(volumes["secret"])
    expected = [texts["secret"], texts["secret"], texts["plain"], texts["plain"], texts["secret"]]
    for volume, text in zip(made, expected):
        attach(ec2, volume, guest.id, "/dev/sdh")
        wait_for(lambda volume=volume: disk(guest, volume), message="the guest does not see the disk")
        assert marked(guest, disk(guest, volume)) == text
        assert describe(ec2, volume)["Encrypted"]
        if volume == made[1]:
            assert read(guest, disk(guest, volume), 1) == "after the snapshot"
        detach(ec2, volume)
    assert not holds(daemon, texts["secret"])
    # What was made from plain data holds it encrypted, and stands on nothing that does not.
    detach(ec2, volumes["plain"])
    assert not holds(daemon, texts["plain"], copy, made[2], made[3])
    remove(ec2, [open_one, taken, second, copy])
    for volume in (volumes["plain"], *made):
        delete(ec2, volume)
    wait_for(lambda: not holds(daemon, texts["plain"]), message="plain data stayed")


def format_of(daemon, name: str) -> dict:
    """What QEMU says of a volume's or snapshot's own layer."""
    file = daemon.state_dir / "volumes" / f"{name}.qcow2"
    return json.loads(subprocess.run(["qemu-img", "info", "-U", "--output=json", str(file)], check=True, capture_output=True).stdout)


def test_an_encrypted_copy_of_an_image_boots_and_holds_nothing_in_plain(daemon, ec2, launch):
    guest = launch(InstanceType="t3.nano")
    text, secret = f"text-{uuid.uuid4()}", f"secret-{uuid.uuid4()}"
    guest.run(f"yes {text} | head -c 65536 >/root/kept; sync")
    plain = ec2.create_image(InstanceId=guest.id, Name="in plain", NoReboot=True)["ImageId"]
    wait_for_image(ec2, plain)
    copied = {"SourceRegion": daemon.region, "Name": "encrypted"}
    first = ec2.copy_image(SourceImageId=plain, Encrypted=True, **copied)["ImageId"]
    wait_for_image(ec2, first)
    # What is encrypted stays so without being asked for.
    second = ec2.copy_image(SourceImageId=first, **(copied | {"Name": "copied again"}))["ImageId"]
    wait_for_image(ec2, second)
    refused = refusal(ec2.copy_image, SourceImageId=first, Encrypted=False, **(copied | {"Name": "opened"}))
    assert refused[0] == "InvalidParameterValue", refused
    names = [snapshots_of(ec2, image)[0] for image in (plain, first, second)]
    keys = [find(ec2, name).get("KmsKeyId") for name in names]
    assert keys[0] is None and keys[1] == keys[2] == find(ec2, names[1])["KmsKeyId"]
    for name in names[1:]:
        layer = format_of(daemon, name)
        assert layer["encrypted"] and layer["format-specific"]["data"]["encrypt"]["format"] == "luks"
        assert layer.get("backing-filename") is None, "it stands on nothing in plain"
    # The search finds it where it is.
    assert holds(daemon, text, names[0]) and not holds(daemon, text, *names[1:])
    again = launch(ImageId=second, InstanceType="t3.nano")
    root = again.describe()["BlockDeviceMappings"][0]["Ebs"]["VolumeId"]
    assert again.run("head -n 1 /root/kept") == text
    again.run(f"yes {secret} | head -c 65536 >/root/secret; sync")
    assert describe(ec2, root)["Encrypted"] and format_of(daemon, root)["encrypted"]
    assert not holds(daemon, secret)
    # Nobody else could open it.
    share = [{"UserId": "111111111111"}]
    assert refusal(ec2.modify_image_attribute, ImageId=second, LaunchPermission={"Add": share})[0] == "OperationNotPermitted"
    assert refusal(ec2.modify_image_attribute, ImageId=second, LaunchPermission={"Add": [{"Group": "all"}]})[0] == "OperationNotPermitted"
    assert refusal(ec2.modify_snapshot_attribute, SnapshotId=names[2], OperationType="add", GroupNames=["all"])[0] == "OperationNotPermitted"
    ec2.terminate_instances(InstanceIds=[guest.id, again.id], SkipOsShutdown=True)
    deregister(ec2, plain, first, second)
    wait_for(lambda: not holds(daemon, text), message="plain data stayed")


def opens(volume_file, key: str) -> bool:
    """Whether a text is the key of an encrypted volume."""
    image = f"driver=qcow2,encrypt.key-secret=key,file.filename={volume_file}"
    command = ["qemu-io", "-r", "--object", f"secret,id=key,data={key}", "--image-opts", image, "-U", "-c", "read 0 512"]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


@pytest.mark.timeout(600)
def test_an_encrypted_instance_survives_crashes_and_tells_no_key(crashing):
    daemon, launch = crashing
    ec2 = launch.ec2
    root_device = ec2.describe_images(Filters=[{"Name": "name", "Values": ["tiny"]}])["Images"][0]["RootDeviceName"]
    mappings = [
        {"DeviceName": root_device, "Ebs": {"Encrypted": True}},
        {"DeviceName": "/dev/sdf", "Ebs": {"VolumeSize": 1, "Encrypted": True, "KmsKeyId": ALIAS, "VolumeType": "gp3"}},
    ]
    guest = launch(InstanceType="t3.nano", BlockDeviceMappings=mappings)
    found = {m["DeviceName"]: m["Ebs"]["VolumeId"] for m in guest.describe()["BlockDeviceMappings"]}
    root, data = found[root_device], found["/dev/sdf"]
    assert all(describe(ec2, volume)["Encrypted"] for volume in (root, data))
    text = f"text-{uuid.uuid4()}"
    guest.run(f"yes {text} | head -c 65536 > /root/kept; sync")
    mark(guest, disk(guest, data), text)
    boot = guest.boot_id()
    taken = []
    for number in range(3):
        write(guest, disk(guest, data), number, f"line-{number}")
        taken += [s["SnapshotId"] for s in ec2.create_snapshots(InstanceSpecification={"InstanceId": guest.id})["Snapshots"]]
        # Somewhere between the layers' making and the machine's turning to them.
        time.sleep((0.05, 1.0, 3.0)[number])
        daemon.kill()
        if number == 2:
            (machine,) = machines(guest.id)
            os.kill(machine, signal.SIGKILL)
            guest.hang_up()
        start_again(daemon)
    guest.wait_for_state("stopped")
    wait_for_snapshots(ec2, taken)
    assert len(taken) == 6 and all(find(ec2, name)["Encrypted"] for name in taken)
    ec2.start_instances(InstanceIds=[guest.id])
    guest.wait_for_state("running")
    guest.wait_for_login()
    assert guest.boot_id() != boot
    assert guest.run("head -n 1 /root/kept") == text and marked(guest, disk(guest, data)) == text
    assert [read(guest, disk(guest, data), number) for number in range(3)] == [f"line-{number}" for number in range(3)]
    assert not holds(daemon, text)

    # An image of it is encrypted, and so is what is launched from it.
    image = ec2.create_image(InstanceId=guest.id, Name="encrypted", NoReboot=True)["ImageId"]
    found = wait_for_image(ec2, image)
    assert [m["Ebs"]["Encrypted"] for m in found["BlockDeviceMappings"]] == [True, True]
    share = {"ImageId": image, "LaunchPermission": {"Add": [{"UserId": "111111111111"}]}}
    assert refusal(ec2.modify_image_attribute, **share)[0] == "OperationNotPermitted"
    again = launch(InstanceType="t3.nano", ImageId=image)
    assert again.run("head -n 1 /root/kept") == text
    copies = {m["DeviceName"]: m["Ebs"]["VolumeId"] for m in again.describe()["BlockDeviceMappings"]}
    assert all(describe(ec2, volume)["Encrypted"] for volume in copies.values())
    assert marked(again, disk(again, copies["/dev/sdf"])) == text and not holds(daemon, text)
    ec2.deregister_image(ImageId=image)
    taken += [m["Ebs"]["SnapshotId"] for m in found["BlockDeviceMappings"]]

    # Whatever looks like a key, in records, logs, specifications and command lines, opens nothing.
    lines = [line for line in processes(guest.id).values() if "qemu" in line]
    assert any("secret" in line for line in lines)
    files = [f for f in daemon.state_dir.rglob("*") if f.is_file() and f.stat().st_size < 64 << 20]
    files = [f for f in files if "volumes" not in f.parts and "images" not in f.parts]
    said = b"\0".join([*(f.read_bytes() for f in files), *(line.encode() for line in lines)])
    likely = set(re.findall(rb"(?<![A-Za-z0-9+/])[A-Za-z0-9+/]{43}=", said)) | {line.strip() for line in said.splitlines() if len(line) == 64}
    file = daemon.state_dir / "volumes" / f"{data}.qcow2"
    assert not [text for text in likely if opens(file, text.decode())]
    assert (daemon.state_dir / "sealing.key").stat().st_mode & 0o077 == 0
    launch.end()
    remove(ec2, taken)
    wait_for(lambda: not [f for f in (daemon.state_dir / "volumes").iterdir() if f.is_file()], message="a layer was left behind")
