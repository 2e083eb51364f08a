"""Images that accounts make: of instances that run and that are stopped, what is launched from them, and what they cost."""

import json
import os
import random
import signal
import subprocess
import time
from datetime import datetime, timedelta, timezone

import pytest
from conftest import Launcher, image_id, open_group
from support.daemon import BINARY
from support.machine import machines, wait_for
from test_accounts import account_client, make_account
from test_crash import start_again
from test_images import Publisher, write_catalogue
from test_snapshots import find, read, remove, snapshot, write
from test_volumes import attach, create, delete, detach, disk, home, refusal


def described(client, image: str, **parameters) -> dict:
    return client.describe_images(ImageIds=[image], **parameters)["Images"][0]


def snapshots_of(client, image: str) -> list[str]:
    devices = described(client, image)["BlockDeviceMappings"]
    return [device["Ebs"]["SnapshotId"] for device in devices if device["Ebs"].get("SnapshotId")]


def wait_for_image(client, image: str, timeout: float = 180) -> dict:
    def available():
        found = described(client, image)
        assert found["State"] in ("pending", "available"), found
        return found if found["State"] == "available" else None

    return wait_for(available, timeout, 0.2, f"{image} did not become available")


def deregister(client, *images: str) -> None:
    for image in images:
        client.deregister_image(ImageId=image, DeleteAssociatedSnapshots=True)


def used(daemon, name: str) -> int:
    """The bytes that a volume or a snapshot takes on the host."""
    return os.stat(daemon.state_dir / "volumes" / f"{name}.qcow2").st_blocks * 512


# --- the API ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def source(sim, sim_image):
    """An instance that is running, as far as it is one."""
    answer = sim.run_instances(ImageId=sim_image, InstanceType="t3.nano", MinCount=1, MaxCount=1)
    instance = answer["Instances"][0]["InstanceId"]
    sim.get_waiter("instance_running").wait(InstanceIds=[instance], WaiterConfig={"Delay": 1})
    yield instance
    sim.terminate_instances(InstanceIds=[instance])


def test_an_image_of_an_instance_is_described(sim, source, simulated):
    tags = [{"Key": "Name", "Value": "golden"}]
    specifications = [{"ResourceType": kind, "Tags": tags} for kind in ("image", "snapshot")]
    image = sim.create_image(InstanceId=source, Name="web 1", Description="what it is", TagSpecifications=specifications)["ImageId"]
    assert sim.describe_images(ImageIds=[image])["Images"][0]["State"] in ("pending", "available")
    found = wait_for_image(sim, image)
    account = simulated.credentials["account_id"]
    assert (found["Name"], found["Description"], found["OwnerId"]) == ("web 1", "what it is", account)
    assert (found["Public"], found["Tags"], found["SourceInstanceId"]) == (False, tags, source)
    assert found["ImageLocation"] == f"{account}/web 1"
    (device,) = found["BlockDeviceMappings"]
    assert device["DeviceName"] == found["RootDeviceName"]
    taken = find(sim, device["Ebs"]["SnapshotId"])
    assert taken["Description"] == f"Created by CreateImage({source}) for {image}"
    assert (taken["Tags"], taken["State"]) == (tags, "completed")
    for name, value in [
        ("name", "web*"),
        ("is-public", "false"),
        ("owner-id", account),
        ("source-instance-id", source),
        ("block-device-mapping.snapshot-id", taken["SnapshotId"]),
        ("tag:Name", "golden"),
        ("description", "what*"),
    ]:
        answer = sim.describe_images(Filters=[{"Name": name, "Values": [value]}])["Images"]
        assert image in [i["ImageId"] for i in answer], name
    assert [i["ImageId"] for i in sim.describe_images(Owners=["self"], ExecutableUsers=["all"])["Images"]].count(image) == 0

    # A name is given once; the snapshot stays as long as the image.
    assert refusal(sim.create_image, InstanceId=source, Name="web 1") == (
        "InvalidAMIName.Duplicate",
        f"AMI name web 1 is already in use by AMI {image}",
    )
    code, message = refusal(sim.delete_snapshot, SnapshotId=taken["SnapshotId"])
    assert code == "InvalidSnapshot.InUse" and image in message
    answer = sim.deregister_image(ImageId=image)
    assert answer["Return"] and not answer.get("DeleteSnapshotResults")
    assert refusal(sim.describe_images, ImageIds=[image])[0] == "InvalidAMIID.NotFound"
    assert refusal(sim.deregister_image, ImageId=image)[0] == "InvalidAMIID.NotFound"
    assert refusal(sim.run_instances, ImageId=image, InstanceType="t3.nano", MinCount=1, MaxCount=1)[0] == "InvalidAMIID.NotFound"
    remove(sim, [taken["SnapshotId"]])


def test_an_image_has_the_devices_that_are_asked_for(sim, source):
    volume = create(sim, Size=8, VolumeType="gp3", Iops=4000)
    attach(sim, volume, source, "/dev/sdf")
    other = create(sim, Size=2)
    attach(sim, other, source, "/dev/sdg")
    image = sim.create_image(
        InstanceId=source,
        Name="devices",
        NoReboot=True,
        BlockDeviceMappings=[
            {"DeviceName": "/dev/sdf", "Ebs": {"DeleteOnTermination": True}},
            {"DeviceName": "/dev/sdg", "NoDevice": ""},
            {"DeviceName": "/dev/sdh", "Ebs": {"VolumeSize": 7}},
        ],
    )["ImageId"]
    found = {d["DeviceName"]: d["Ebs"] for d in wait_for_image(sim, image)["BlockDeviceMappings"]}
    root = described(sim, image)["RootDeviceName"]
    assert sorted(found) == sorted([root, "/dev/sdf", "/dev/sdh"])
    assert [found["/dev/sdf"][k] for k in ("VolumeSize", "VolumeType", "Iops", "DeleteOnTermination")] == [8, "gp3", 4000, True]
    assert found["/dev/sdh"]["VolumeSize"] == 7 and "SnapshotId" not in found["/dev/sdh"]
    assert find(sim, found["/dev/sdf"]["SnapshotId"])["VolumeId"] == volume

    # A launch may have them otherwise.
    answer = sim.run_instances(
        ImageId=image,
        InstanceType="t3.nano",
        MinCount=1,
        MaxCount=1,
        BlockDeviceMappings=[
            {"DeviceName": "/dev/sdf", "Ebs": {"VolumeSize": 9, "DeleteOnTermination": False}},
            {"DeviceName": "/dev/sdh", "NoDevice": ""},
            {"DeviceName": "/dev/sdi", "Ebs": {"SnapshotId": found["/dev/sdf"]["SnapshotId"]}},
        ],
    )
    launched = answer["Instances"][0]["InstanceId"]
    volumes = sim.describe_volumes(Filters=[{"Name": "attachment.instance-id", "Values": [launched]}])["Volumes"]
    volumes = {v["Attachments"][0]["Device"]: v for v in volumes}
    assert sorted(volumes) == sorted([root, "/dev/sdf", "/dev/sdi"])
    assert volumes[root]["SnapshotId"] == found[root]["SnapshotId"]
    kept = volumes["/dev/sdf"]
    assert (kept["Size"], kept["VolumeType"], kept["Iops"]) == (9, "gp3", 4000)
    assert not kept["Attachments"][0]["DeleteOnTermination"]
    assert (volumes["/dev/sdi"]["Size"], volumes["/dev/sdi"]["SnapshotId"]) == (8, found["/dev/sdf"]["SnapshotId"])
    for mapping in [
        {"DeviceName": "/dev/sdf", "Ebs": {"VolumeSize": 2}},
        {"DeviceName": root, "Ebs": {"SnapshotId": found["/dev/sdf"]["SnapshotId"]}},
        {"DeviceName": root, "NoDevice": ""},
        {"DeviceName": "/dev/sdj", "Ebs": {"SnapshotId": found["/dev/sdf"]["SnapshotId"], "VolumeSize": 1}},
    ]:
        parameters = {"ImageId": image, "InstanceType": "t3.nano", "MinCount": 1, "MaxCount": 1}
        assert refusal(sim.run_instances, **parameters, BlockDeviceMappings=[mapping])[0] == "InvalidBlockDeviceMapping", mapping
    results = sim.deregister_image(ImageId=image, DeleteAssociatedSnapshots=True)["DeleteSnapshotResults"]
    assert {r["ReturnCode"] for r in results} == {"success"} and len(results) == 2
    sim.terminate_instances(InstanceIds=[launched])
    sim.get_waiter("instance_terminated").wait(InstanceIds=[launched], WaiterConfig={"Delay": 1})
    delete(sim, kept["VolumeId"])
    for name in (volume, other):
        detach(sim, name)
        delete(sim, name)


@pytest.mark.parametrize(
    "parameters, code",
    [
        ({"Name": "a!b"}, "InvalidAMIName.Malformed"),
        ({"InstanceId": "i-0123456789abcdef0"}, "InvalidInstanceID.NotFound"),
        ({"InstanceId": "instance"}, "InvalidInstanceID.Malformed"),
        ({"SnapshotLocation": "regional"}, "UnsupportedOperation"),
        ({"BlockDeviceMappings": [{"DeviceName": "/dev/xvda", "NoDevice": ""}]}, "InvalidBlockDeviceMapping"),
        ({"BlockDeviceMappings": [{"DeviceName": "/dev/xvda", "Ebs": {"VolumeSize": 99}}]}, "InvalidBlockDeviceMapping"),
        ({"BlockDeviceMappings": [{"DeviceName": "/dev/sdf", "Ebs": {"VolumeType": "gp2"}}]}, "MissingParameter"),
        ({"BlockDeviceMappings": [{"DeviceName": "/dev/sdf", "Ebs": {"SnapshotId": "snap-0123456789abcdef0"}}]}, "InvalidSnapshot.NotFound"),
        ({"BlockDeviceMappings": [{"DeviceName": "/dev/vdf", "Ebs": {"VolumeSize": 1}}]}, "InvalidBlockDeviceMapping"),
        ({"TagSpecifications": [{"ResourceType": "volume", "Tags": [{"Key": "a", "Value": "b"}]}]}, "InvalidParameterValue"),
        ({"DryRun": True}, "DryRunOperation"),
    ],
)
def test_images_that_cannot_be_made_are_refused(sim, source, parameters, code):
    before = (sim.describe_images(), sim.describe_snapshots()["Snapshots"])
    assert refusal(sim.create_image, **({"InstanceId": source, "Name": "refused"} | parameters))[0] == code
    assert (sim.describe_images()["Images"], sim.describe_snapshots()["Snapshots"]) == (before[0]["Images"], before[1])


def test_attributes_of_an_image(sim, source, simulated):
    image = sim.create_image(InstanceId=source, Name="attributes", NoReboot=True)["ImageId"]
    wait_for_image(sim, image)

    def attribute(name: str):
        return sim.describe_image_attribute(ImageId=image, Attribute=name)

    sim.modify_image_attribute(ImageId=image, Description={"Value": "new"})
    assert attribute("description")["Description"]["Value"] == "new"
    sim.modify_image_attribute(ImageId=image, Attribute="description", Value="newer")
    assert described(sim, image)["Description"] == "newer"
    add = [{"UserId": "111122223333"}, {"UserId": "444455556666"}]
    sim.modify_image_attribute(ImageId=image, LaunchPermission={"Add": add})
    assert attribute("launchPermission")["LaunchPermissions"] == add
    assert [i["ImageId"] for i in sim.describe_images(ExecutableUsers=["111122223333"])["Images"]] == [image]
    sim.modify_image_attribute(ImageId=image, Attribute="launchPermission", OperationType="remove", UserIds=["111122223333"])
    assert attribute("launchPermission")["LaunchPermissions"] == add[1:]
    sim.modify_image_attribute(ImageId=image, LaunchPermission={"Add": [{"Group": "all"}], "Remove": add[1:]})
    assert attribute("launchPermission")["LaunchPermissions"] == [{"Group": "all"}]
    assert described(sim, image)["Public"]
    assert image in [i["ImageId"] for i in sim.describe_images(ExecutableUsers=["all"])["Images"]]
    sim.reset_image_attribute(ImageId=image, Attribute="launchPermission")
    assert attribute("launchPermission")["LaunchPermissions"] == [] and not described(sim, image)["Public"]
    assert attribute("blockDeviceMapping")["BlockDeviceMappings"] == described(sim, image)["BlockDeviceMappings"]
    for parameters, code in [
        ({}, "InvalidParameterCombination"),
        ({"Description": {"Value": "x"}, "LaunchPermission": {"Add": add}}, "InvalidParameterCombination"),
        ({"Description": {"Value": "x" * 256}}, "InvalidParameterValue"),
        ({"LaunchPermission": {"Add": [{"UserId": "me"}]}}, "InvalidAMIAttributeItemValue"),
        ({"Attribute": "launchPermission", "UserIds": ["111122223333"]}, "MissingParameter"),
        ({"Attribute": "kernel", "Value": "aki-1"}, "UnsupportedOperation"),
        ({"Attribute": "colour", "Value": "red"}, "InvalidParameterValue"),
        ({"ProductCodes": ["abc"]}, "UnsupportedOperation"),
    ]:
        assert refusal(sim.modify_image_attribute, ImageId=image, **parameters)[0] == code, parameters
    # What an image asks of the metadata service, its instances have, and their image has been launched.
    sim.modify_image_attribute(ImageId=image, ImdsSupport={"Value": "v2.0"})
    assert described(sim, image)["ImdsSupport"] == "v2.0"
    launched = sim.run_instances(ImageId=image, InstanceType="t3.nano", MinCount=1, MaxCount=1)["Instances"][0]
    options = launched["MetadataOptions"]
    assert (options["HttpTokens"], options["HttpPutResponseHopLimit"]) == ("required", 2)
    assert attribute("lastLaunchedTime")["LastLaunchedTime"]["Value"] >= described(sim, image)["CreationDate"]
    sim.terminate_instances(InstanceIds=[launched["InstanceId"]])
    deregister(sim, image)


def test_images_of_the_library_are_the_host_s(sim, sim_image):
    assert refusal(sim.deregister_image, ImageId=sim_image)[0] == "OperationNotPermitted"
    assert refusal(sim.modify_image_attribute, ImageId=sim_image, Description={"Value": "mine"})[0] == "OperationNotPermitted"
    answer = sim.describe_image_attribute(ImageId=sim_image, Attribute="launchPermission")
    assert answer["LaunchPermissions"] == [{"Group": "all"}]


def test_the_command_line_knows_images_of_accounts(sim, source, simulated):
    image = sim.create_image(InstanceId=source, Name="listed", NoReboot=True)["ImageId"]
    wait_for_image(sim, image)
    listed = {i["image_id"]: i for i in json.loads(simulated.haar("image", "list", "--json").stdout)}
    assert (listed[image]["name"], listed[image]["default_user"]) == ("listed", "root")
    assert image in simulated.haar("image", "list").stdout
    for name in (image, "listed"):
        refused = simulated.haar("image", "remove", name, check=False)
        assert refused.returncode == 1 and "deregister" in refused.stderr
    sim.terminate_instances(InstanceIds=[source])
    sim.get_waiter("instance_terminated").wait(InstanceIds=[source], WaiterConfig={"Delay": 1})
    deregister(sim, image)


def root_snapshot(client, instance: str, name: str) -> str:
    """A snapshot of an instance's root volume."""
    found = client.describe_instances(InstanceIds=[instance])["Reservations"][0]["Instances"][0]
    volume = found["BlockDeviceMappings"][0]["Ebs"]["VolumeId"]
    return snapshot(client, volume, Description=name)


def test_images_are_registered_of_snapshots(sim, source):
    taken = root_snapshot(sim, source, "root")
    device = {"DeviceName": "/dev/xvda", "Ebs": {"SnapshotId": taken, "VolumeSize": 8, "VolumeType": "gp3", "Iops": 3500}}
    extra = {"DeviceName": "/dev/sdf", "Ebs": {"VolumeSize": 2}}
    image = sim.register_image(
        Name="registered",
        Description="by hand",
        Architecture="x86_64",
        VirtualizationType="hvm",
        RootDeviceName="/dev/xvda",
        BootMode="uefi-preferred",
        ImdsSupport="v2.0",
        BlockDeviceMappings=[extra, device],
        TagSpecifications=[{"ResourceType": "image", "Tags": [{"Key": "a", "Value": "b"}]}],
    )["ImageId"]
    found = described(sim, image)
    assert (found["State"], found["BootMode"], found["ImdsSupport"]) == ("available", "uefi-preferred", "v2.0")
    assert (found["RootDeviceName"], found["Description"], found["Tags"]) == ("/dev/xvda", "by hand", [{"Key": "a", "Value": "b"}])
    devices = {d["DeviceName"]: d["Ebs"] for d in found["BlockDeviceMappings"]}
    assert (devices["/dev/xvda"]["SnapshotId"], devices["/dev/xvda"]["Iops"]) == (taken, 3500)
    launched = sim.run_instances(ImageId=image, InstanceType="t3.nano", MinCount=1, MaxCount=1)["Instances"][0]
    assert launched["RootDeviceName"] == "/dev/xvda"
    volumes = sim.describe_volumes(Filters=[{"Name": "attachment.instance-id", "Values": [launched["InstanceId"]]}])["Volumes"]
    assert sorted((v["Size"], v["SnapshotId"]) for v in volumes) == [(2, ""), (8, taken)]
    sim.terminate_instances(InstanceIds=[launched["InstanceId"]])
    right = {"Name": "refused", "RootDeviceName": "/dev/xvda", "BlockDeviceMappings": [device]}
    for parameters, code in [
        ({"Name": "registered"}, "InvalidAMIName.Duplicate"),
        ({"RootDeviceName": "/dev/sda1"}, "InvalidBlockDeviceMapping"),
        ({"BlockDeviceMappings": []}, "MissingParameter"),
        ({"BlockDeviceMappings": [{"DeviceName": "/dev/xvda", "Ebs": {"SnapshotId": "snap-0123456789abcdef0"}}]}, "InvalidSnapshot.NotFound"),
        ({"Architecture": "arm64"}, "UnsupportedOperation"),
        ({"VirtualizationType": "paravirtual"}, "UnsupportedOperation"),
        ({"EnaSupport": True}, "UnsupportedOperation"),
        ({"KernelId": "aki-12345678"}, "UnsupportedOperation"),
        ({"UefiData": "eA=="}, "UnsupportedOperation"),
        ({"BootMode": "coreboot"}, "InvalidParameterValue"),
    ]:
        assert refusal(sim.register_image, **(right | parameters))[0] == code, parameters
    deregister(sim, image)


def test_images_are_copied_to_other_regions(sim, source, simulated):
    image = sim.create_image(InstanceId=source, Name="original", Description="the first", NoReboot=True)["ImageId"]
    wait_for_image(sim, image)
    sim.create_tags(Resources=[image], Tags=[{"Key": "Name", "Value": "golden"}])
    away = simulated.client("ec2", region_name="us-east-1")
    assert refusal(away.describe_images, ImageIds=[image])[0] == "InvalidAMIID.NotFound"
    asked = {"SourceImageId": image, "SourceRegion": simulated.region, "Name": "copy", "CopyImageTags": True, "ClientToken": "once"}
    copy = away.copy_image(**asked)["ImageId"]
    assert away.copy_image(**asked)["ImageId"] == copy
    found = wait_for_image(away, copy)
    assert (found["SourceImageId"], found["SourceImageRegion"], found["Description"]) == (image, simulated.region, "the first")
    assert found["Tags"] == [{"Key": "Name", "Value": "golden"}]
    (taken,) = snapshots_of(away, copy)
    assert find(away, taken)["Description"].startswith(f"Copied for DestinationAmi {copy} from SourceAmi {image}")
    launched = away.run_instances(ImageId=copy, InstanceType="t3.nano", MinCount=1, MaxCount=1)["Instances"][0]["InstanceId"]
    deregister(sim, image)
    away.get_waiter("instance_running").wait(InstanceIds=[launched], WaiterConfig={"Delay": 1})
    away.terminate_instances(InstanceIds=[launched])
    for parameters, code in [
        ({"SourceImageId": "ami-0123456789abcdef0"}, "InvalidAMIID.NotFound"),
        ({"SourceRegion": "mars-north-1"}, "InvalidParameterValue"),
        ({"Name": "copy"}, "InvalidAMIName.Duplicate"),
        ({"KmsKeyId": "alias/mine"}, "InvalidParameterDependency"),
    ]:
        parameters = {"SourceImageId": copy, "SourceRegion": "us-east-1", "Name": "other"} | parameters
        assert refusal(away.copy_image, **parameters)[0] == code, parameters
    deregister(away, copy)


def test_images_are_disabled_deprecated_and_protected(sim, source):
    image = sim.create_image(InstanceId=source, Name="kept", NoReboot=True)["ImageId"]
    wait_for_image(sim, image)
    launch = {"ImageId": image, "InstanceType": "t3.nano", "MinCount": 1, "MaxCount": 1}
    sim.modify_image_attribute(ImageId=image, LaunchPermission={"Add": [{"Group": "all"}]})
    assert sim.disable_image(ImageId=image)["Return"]
    assert sim.describe_images(Owners=["self"], Filters=[{"Name": "name", "Values": ["kept"]}])["Images"] == []
    assert described(sim, image, IncludeDisabled=True)["State"] == "disabled"
    assert not described(sim, image, IncludeDisabled=True)["Public"]
    assert refusal(sim.run_instances, **launch)[0] == "InvalidAMIID.Unavailable"
    assert sim.enable_image(ImageId=image)["Return"]
    assert described(sim, image)["State"] == "available"

    soon = datetime.now(timezone.utc).replace(second=40, microsecond=0) + timedelta(hours=1)
    sim.enable_image_deprecation(ImageId=image, DeprecateAt=soon)
    rounded = (soon + timedelta(seconds=20)).strftime("%Y-%m-%dT%H:%M:%S.000Z")
    assert described(sim, image)["DeprecationTime"] == rounded
    for wrong in (soon - timedelta(days=1), soon + timedelta(days=4000)):
        assert refusal(sim.enable_image_deprecation, ImageId=image, DeprecateAt=wrong)[0] == "InvalidParameterValue"
    sim.disable_image_deprecation(ImageId=image)
    assert "DeprecationTime" not in described(sim, image)

    assert sim.enable_image_deregistration_protection(ImageId=image)["Return"] == "enabled-without-cooldown"
    assert refusal(sim.deregister_image, ImageId=image)[0] == "OperationNotPermitted"
    assert described(sim, image)["DeregistrationProtection"] == "enabled-without-cooldown"
    assert sim.disable_image_deregistration_protection(ImageId=image)["Return"] == "disabled"
    deregister(sim, image)
    assert refusal(sim.disable_image, ImageId=image)[0] == "InvalidAMIID.NotFound"

    cooling = sim.create_image(InstanceId=source, Name="cooling", NoReboot=True)["ImageId"]
    wait_for_image(sim, cooling)
    sim.enable_image_deregistration_protection(ImageId=cooling, WithCooldown=True)
    assert sim.disable_image_deregistration_protection(ImageId=cooling)["Return"] == "enabled-with-cooldown"
    assert refusal(sim.deregister_image, ImageId=cooling)[0] == "OperationNotPermitted"


@pytest.fixture
def publisher(tmp_path):
    """A publisher of a small disk image that firmware would boot from."""
    content = bytearray(random.randbytes(1 << 20))
    content[510:512] = b"\x55\xaa"
    (tmp_path / "disk.raw").write_bytes(content)
    file = tmp_path / "disk.qcow2"
    subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", str(tmp_path / "disk.raw"), str(file)], check=True)
    server = Publisher(file.read_bytes())
    yield server
    server.shutdown()
    server.server_close()


def test_images_are_found_by_public_parameters(make_daemon, publisher):
    # Its library is empty: the tests' own has a debian-12.
    daemon = make_daemon("--compute", "simulated", images=None)
    ec2, ssm = daemon.client("ec2"), daemon.client("ssm")
    name = "/aws/service/debian/release/12/latest/amd64"
    assert refusal(ssm.get_parameter, Name=name)[0] == "ParameterNotFound"
    # What the catalogue calls debian-12, here of a local publisher.
    write_catalogue(daemon, publisher.url)
    catalogue = daemon.state_dir / "catalogue.toml"
    catalogue.write_text(catalogue.read_text().replace("local-test", "debian-12"))
    daemon.haar("image", "pull", "debian-12", "--name", "older")
    daemon.haar("image", "pull", "debian-12", "--name", "newer")
    older, newer = image_id(ec2, "older"), image_id(ec2, "newer")
    found = ssm.get_parameter(Name=name)["Parameter"]
    assert (found["Value"], found["Type"], found["Version"]) == (newer, "String", 2)
    assert found["ARN"] == f"arn:aws:ssm:{daemon.region}::parameter{name}"
    assert ssm.get_parameter(Name=found["ARN"])["Parameter"]["Value"] == newer
    first = ssm.get_parameter(Name=f"{name}:1")["Parameter"]
    assert (first["Value"], first["Selector"]) == (older, ":1")
    absent = "/aws/service/ami-amazon-linux-latest/al2023-ami-kernel-default-x86_64"
    for wrong, code in [(absent, "ParameterNotFound"), ("mine", "ParameterNotFound"), (f"{name}:3", "ParameterVersionNotFound")]:
        assert refusal(ssm.get_parameter, Name=wrong)[0] == code, wrong
    answer = ssm.get_parameters(Names=[name, absent])
    assert ([p["Name"] for p in answer["Parameters"]], answer["InvalidParameters"]) == ([name], [absent])
    path = "/aws/service/debian/release"
    assert ssm.get_parameters_by_path(Path=path)["Parameters"] == []
    pages = ssm.get_paginator("get_parameters_by_path").paginate(Path=path, Recursive=True, PaginationConfig={"PageSize": 1})
    listed = [p["Name"] for page in pages for p in page["Parameters"]]
    assert listed == [name, "/aws/service/debian/release/bookworm/latest/amd64"]
    assert refusal(ssm.get_parameters_by_path, Path="aws")[0] == "ValidationException"
    assert refusal(ssm.get_parameters_by_path, Path="/", NextToken="x")[0] == "InvalidNextToken"
    code, message = refusal(ssm.put_parameter, Name="mine", Value="x", Type="String")
    assert "PutParameter" in message or "support" in message, (code, message)

    launch = {"InstanceType": "t3.micro", "MinCount": 1, "MaxCount": 1}
    launched = [ec2.run_instances(ImageId=f"resolve:ssm:{n}", **launch)["Instances"][0] for n in (name, f"{name}:1")]
    assert [instance["ImageId"] for instance in launched] == [newer, older]
    for wrong in (absent, f"{name}:3"):
        code, message = refusal(ec2.run_instances, ImageId=f"resolve:ssm:{wrong}", **launch)
        assert code == "InvalidParameterValue" and wrong in message


# --- guests -------------------------------------------------------------------------------------------------------------


@pytest.mark.timeout(600)
def test_what_was_changed_is_launched_ten_times_and_kept_once(daemon, ec2, launch):
    guest = launch()
    # Busybox keeps nothing from the page cache: what was not flushed is in the image because the guest is shut down for it.
    guest.run("dd if=/dev/urandom of=/root/payload bs=1M count=12 2>/dev/null; md5sum </root/payload >/root/sum")
    payload = guest.run("cat /root/sum")
    boot = guest.boot_id()
    image = ec2.create_image(InstanceId=guest.id, Name="changed")["ImageId"]
    assert guest.state == "running"
    wait_for_image(ec2, image)
    guest.hang_up()
    guest.wait_for_login()
    assert guest.boot_id() != boot and guest.run("md5sum </root/payload") == payload
    (taken,) = snapshots_of(ec2, image)

    many = ec2.run_instances(
        ImageId=image, InstanceType="t3.nano", KeyName="login", SecurityGroupIds=[launch.group], MinCount=10, MaxCount=10
    )["Instances"]
    guests = [type(guest)(daemon, i["InstanceId"], launch.key, "root") for i in many]
    launch.launched += [one.id for one in guests]
    for one in guests:
        one.wait_for_state("running", 180)
    for one in guests:
        one.wait_for_login(240)
        assert one.run("md5sum </root/payload") == payload, one.id
    assert {one.describe()["ImageId"] for one in guests} == {image}
    roots = [one.describe()["BlockDeviceMappings"][0]["Ebs"]["VolumeId"] for one in guests]
    once, copies = used(daemon, taken), [used(daemon, root) for root in roots]
    print(f"the snapshot takes {once >> 10} KiB, the ten volumes {[c >> 10 for c in copies]} KiB")
    # The volumes hold what each guest has written since, which is less than the change.
    assert once > 12 << 20
    assert max(copies) < 4 << 20
    # Each is its own.
    guests[0].run("echo one >/root/mine; sync")
    assert not guests[1].succeeds("test -e /root/mine")
    assert daemon.haar("ssh", guests[2].id, "--", "id", "-un").stdout.strip() == "root"
    # The image goes, and what was launched from it runs on, also after a stop.
    deregister(ec2, image)
    ec2.terminate_instances(InstanceIds=[one.id for one in [guest, *guests[1:]]], SkipOsShutdown=True)
    ec2.stop_instances(InstanceIds=[guests[0].id])
    guests[0].hang_up()
    guests[0].wait_for_state("stopped", 180)
    ec2.start_instances(InstanceIds=[guests[0].id])
    guests[0].wait_for_state("running")
    guests[0].wait_for_login()
    assert guests[0].run("cat /root/mine; md5sum </root/payload").split("\n") == ["one", payload]
    ec2.terminate_instances(InstanceIds=[guests[0].id])
    wait_for(lambda: not (daemon.state_dir / "volumes" / f"{taken}.qcow2").exists(), 60, message="the snapshot was left behind")


def test_an_image_without_reboot_has_all_that_was_flushed_of_every_volume(daemon, ec2, launch):
    guest = launch()
    volume = create(ec2, **home(guest))
    attach(ec2, volume, guest.id)
    wait_for(lambda: disk(guest, volume), message="the guest does not see the disk")
    write(guest, disk(guest, volume), 0, "data")
    guest.run("echo changed >/root/changed; sync")
    boot = guest.boot_id()
    image = ec2.create_image(InstanceId=guest.id, Name="at once", NoReboot=True)["ImageId"]
    wait_for_image(ec2, image)
    assert guest.boot_id() == boot
    again = launch(ImageId=image)
    second = [d["Ebs"]["VolumeId"] for d in again.describe()["BlockDeviceMappings"] if d["DeviceName"] == "/dev/sdf"]
    assert again.run("cat /root/changed") == "changed"
    assert read(again, disk(again, second[0]), 0) == "data"
    # An image of an instance of an image, which is stopped, is taken without a start.
    ec2.stop_instances(InstanceIds=[again.id])
    again.hang_up()
    again.wait_for_state("stopped")
    grandchild = ec2.create_image(InstanceId=again.id, Name="of an image")["ImageId"]
    wait_for_image(ec2, grandchild)
    assert again.state == "stopped"
    third = launch(ImageId=grandchild)
    assert third.run("cat /root/changed") == "changed"
    # What is exported stands alone and has the change: it is imported again, as another image.
    folder = daemon.state_dir / "exported"
    folder.mkdir()
    for kind in ("qcow2", "raw", "vmdk"):
        file = folder / f"disk.{kind}"
        daemon.haar("image", "export", grandchild, str(file), "--format", kind)
        about = json.loads(subprocess.run(["qemu-img", "info", "--output=json", str(file)], check=True, capture_output=True).stdout)
        assert (about["format"], about.get("backing-filename")) == (kind, None)
        taken = daemon.state_dir / "volumes" / f"{snapshots_of(ec2, grandchild)[0]}.qcow2"
        compared = subprocess.run(["qemu-img", "compare", "-U", str(taken), str(file)], capture_output=True, text=True)
        assert compared.returncode == 0, compared.stdout + compared.stderr
        refused = daemon.haar("image", "export", "of an image", str(file), check=False)
        assert refused.returncode == 1 and "exists" in refused.stderr
    # One that is cut off leaves nothing that would pass for a disk, and nothing in the way of the next.
    cut = folder / "cut.raw"
    begun = subprocess.Popen([BINARY, "image", "export", grandchild, str(cut), "--format", "raw"], env=daemon.environment)
    begun.kill()
    begun.wait()
    assert not cut.exists()
    daemon.haar("image", "export", grandchild, str(cut), "--format", "raw")
    assert sorted(f.name for f in folder.iterdir()) == ["cut.raw", "disk.qcow2", "disk.raw", "disk.vmdk"]
    missing = daemon.haar("image", "export", "ami-00000000000000000", str(folder / "x"), check=False)
    assert missing.returncode == 1 and "ami-00000000000000000" in missing.stderr
    deregister(ec2, image, grandchild)
    for one in (again, third):
        ec2.terminate_instances(InstanceIds=[one.id])
        one.wait_for_state("terminated")
    for found in ec2.describe_volumes(Filters=[{"Name": "status", "Values": ["available"]}])["Volumes"]:
        delete(ec2, found["VolumeId"])
    detach(ec2, volume)
    delete(ec2, volume)


def test_copies_and_registered_images_boot_and_take_no_room(daemon, ec2, launch):
    of_library = ec2.copy_image(SourceImageId=launch.image, SourceRegion=daemon.region, Name="tiny of my own")["ImageId"]
    wait_for_image(ec2, of_library)
    guest = launch(ImageId=of_library)
    guest.run("echo changed >/root/changed; sync")
    image = ec2.create_image(InstanceId=guest.id, Name="to be copied", NoReboot=True)["ImageId"]
    wait_for_image(ec2, image)
    copy = ec2.copy_image(SourceImageId=image, SourceRegion=daemon.region, Name="copied")["ImageId"]
    wait_for_image(ec2, copy)
    (original,), (copied,) = snapshots_of(ec2, image), snapshots_of(ec2, copy)
    files = [os.stat(daemon.state_dir / "volumes" / f"{name}.qcow2") for name in (original, copied)]
    assert files[0].st_ino == files[1].st_ino, "the copy is the same file"
    deregister(ec2, image)
    root = described(ec2, copy)["RootDeviceName"]
    mapping = [{"DeviceName": root, "Ebs": {"SnapshotId": copied}}]
    registered = ec2.register_image(Name="registered", RootDeviceName=root, BlockDeviceMappings=mapping)["ImageId"]
    guests = [launch(ImageId=one) for one in (copy, registered)]
    assert [one.run("cat /root/changed") for one in guests] == ["changed", "changed"]
    # What two images stand on goes with the second.
    kept = ec2.deregister_image(ImageId=copy, DeleteAssociatedSnapshots=True)["DeleteSnapshotResults"]
    gone = ec2.deregister_image(ImageId=registered, DeleteAssociatedSnapshots=True)["DeleteSnapshotResults"]
    assert [r["ReturnCode"] for r in kept + gone] == ["skipped", "success"]
    deregister(ec2, of_library)
    ec2.terminate_instances(InstanceIds=[one.id for one in [guest, *guests]], SkipOsShutdown=True)


class Neighbour(Launcher):
    """Launches instances as another account, with a key pair and a security group of its own."""

    def __init__(self, daemon, folder):
        account = make_account(daemon)
        self.account_id, client = account["account_id"], account_client(daemon, account, "ec2")
        key = folder / "neighbour.pem"
        key.touch(mode=0o600)
        key.write_text(client.create_key_pair(KeyName="login", KeyType="ed25519")["KeyMaterial"])
        super().__init__(daemon, "", key, open_group(client, "ssh"))
        self.ec2 = client


def test_a_shared_image_is_launched_by_another_account_until_it_is_not_shared(daemon, ec2, launch, tmp_path):
    guest = launch(InstanceType="t3.nano")
    guest.run("echo changed >/root/changed; sync")
    image = ec2.create_image(InstanceId=guest.id, Name="to be shared", NoReboot=True)["ImageId"]
    wait_for_image(ec2, image)
    (taken,) = snapshots_of(ec2, image)
    neighbour = Neighbour(daemon, tmp_path)
    theirs, ask = neighbour.ec2, {"ImageId": image, "InstanceType": "t3.nano", "MinCount": 1, "MaxCount": 1}
    assert refusal(theirs.run_instances, **ask)[0] == "InvalidAMIID.NotFound"
    assert refusal(theirs.describe_images, ImageIds=[image])[0] == "InvalidAMIID.NotFound"
    permission = [{"UserId": neighbour.account_id}]
    ec2.modify_image_attribute(ImageId=image, LaunchPermission={"Add": permission})
    shared = theirs.describe_images(ExecutableUsers=["self"])["Images"]
    assert [(i["ImageId"], i["OwnerId"], i["Public"]) for i in shared] == [(image, daemon.credentials["account_id"], False)]
    found = neighbour(ImageId=image, InstanceType="t3.nano")
    assert found.run("cat /root/changed") == "changed"
    # What the image stands on is not shared with it, and the image is not theirs to change.
    assert refusal(theirs.copy_image, SourceImageId=image, SourceRegion=daemon.region, Name="taken")[0] == "InvalidRequest"
    assert refusal(theirs.create_volume, AvailabilityZone=f"{daemon.region}a", SnapshotId=taken)[0] == "InvalidSnapshot.NotFound"
    assert refusal(theirs.modify_image_attribute, ImageId=image, LaunchPermission={"Add": permission})[0] == "AuthFailure"
    assert refusal(theirs.deregister_image, ImageId=image)[0] == "AuthFailure"

    boot = found.boot_id()
    ec2.modify_image_attribute(ImageId=image, LaunchPermission={"Remove": permission})
    assert refusal(theirs.run_instances, **ask)[0] == "InvalidAMIID.NotFound"
    assert refusal(theirs.describe_images, ImageIds=[image])[0] == "InvalidAMIID.NotFound"
    # What runs is untouched, and goes on when the image is gone, also after a stop.
    assert found.boot_id() == boot
    deregister(ec2, image)
    theirs.stop_instances(InstanceIds=[found.id], SkipOsShutdown=True)
    found.hang_up()
    found.wait_for_state("stopped")
    theirs.start_instances(InstanceIds=[found.id])
    found.wait_for_state("running")
    found.wait_for_login()
    assert found.run("cat /root/changed") == "changed"
    neighbour.end()
    ec2.terminate_instances(InstanceIds=[guest.id], SkipOsShutdown=True)
    wait_for(lambda: not (daemon.state_dir / "volumes" / f"{taken}.qcow2").exists(), 60, message="the snapshot was left behind")


# --- crashes ------------------------------------------------------------------------------------------------------------


@pytest.mark.timeout(600)
def test_killed_while_images_are_made(crashing, chance):
    daemon, launch = crashing
    ec2 = launch.ec2
    guest = launch(InstanceType="t3.nano")
    images = []
    for number in range(3):
        guest.run(f"echo line-{number} >>/root/lines")
        images.append(ec2.create_image(InstanceId=guest.id, Name=f"image-{number}")["ImageId"])
        # From the request to the guest's shutdown, to its snapshot, to its boot.
        time.sleep(chance.random() * 2.5)
        daemon.kill()
        guest.hang_up()
        if number == 1:
            # The machine is lost, too: what its guest had not yet flushed is lost with it.
            for machine in machines(guest.id):
                os.kill(machine, signal.SIGKILL)
        start_again(daemon)
        wait_for_image(ec2, images[-1])
        assert len(snapshots_of(ec2, images[-1])) == 1
        if number == 1:
            wait_for(lambda: guest.state in ("running", "stopped"), 60)
            wait_for(lambda: guest.state == "stopped" or guest.succeeds("true"), 60)
            if guest.state == "stopped":
                ec2.start_instances(InstanceIds=[guest.id])
                guest.wait_for_state("running")
        guest.wait_for_login()
        wait_for(lambda: is_at_rest(guest), 150, 1, "the guest did not come to rest")
    lines = guest.run("cat /root/lines").split()
    # What was not flushed when the machine was lost may be lost with it.
    assert lines in (["line-0", "line-1", "line-2"], ["line-0", "line-2"]), lines
    again = launch(ImageId=images[2], InstanceType="t3.nano")
    assert again.run("cat /root/lines").split() == lines
    launch.end()
    deregister(ec2, *images)
    assert ec2.describe_snapshots(OwnerIds=["self"])["Snapshots"] == []
    wait_for(lambda: not [f for f in (daemon.state_dir / "volumes").iterdir() if f.is_file()], message="a layer was left behind")


def is_at_rest(guest) -> bool:
    """Whether the guest has been up for some seconds: no reboot is under way."""
    try:
        first = guest.uptime()
        time.sleep(3)
        return guest.uptime() > first
    except AssertionError:
        guest.hang_up()
        return False
