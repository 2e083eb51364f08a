"""A full Debian 12 with systemd, cloud-init and OpenSSH."""

import base64
import io
import json
import tarfile
import time
from pathlib import Path

import boto3
import pytest
from conftest import image_id
from support.identities import allow
from support.machine import wait_for
from test_profiles import Profile

pytestmark = [pytest.mark.debian, pytest.mark.timeout(600)]

USER_DATA = """#cloud-config
hostname: from-cloud-config
write_files:
  - path: /etc/written-by-cloud-init
    content: "hello\\n"
runcmd:
  - [sh, -c, "echo ran by $(id -un) > /var/tmp/runcmd"]
users:
  - default
  - name: second
    sudo: ALL=(ALL) NOPASSWD:ALL
"""


@pytest.fixture(scope="module")
def debian(launch, ec2):
    guest = launch.start(ImageId=image_id(ec2, "debian-12"), InstanceType="t3.medium", UserData=USER_DATA, user="admin")
    guest.wait_for_state("running")
    guest.wait_for_login(400)
    guest.run("cloud-init status --wait >/dev/null; true", timeout=300)
    return guest


def test_cloud_init_used_the_ec2_datasource(debian):
    result = json.loads(debian.run("cat /run/cloud-init/result.json"))
    assert "DataSourceEc2" in result["v1"]["datasource"], result
    assert result["v1"]["errors"] == []
    assert debian.run("cloud-init query v1.instance_id") == debian.id
    assert debian.run("cloud-init query v1.region") == debian.daemon.region


def test_cloud_config_was_carried_out(debian):
    assert debian.run("hostname") == "from-cloud-config"
    assert debian.run("cat /etc/written-by-cloud-init") == "hello"
    assert debian.run("cat /var/tmp/runcmd") == "ran by root"
    assert debian.succeeds("id second")


def test_the_system_is_whole(debian):
    assert debian.run("systemctl is-system-running --wait", timeout=120) == "running"
    assert debian.run("sudo id -un") == "root"
    # Its image boots by either firmware, and UEFI is preferred.
    assert debian.describe()["BootMode"] == "uefi-preferred"
    assert debian.succeeds("test -d /sys/firmware/efi")
    assert "VERSION_ID=\"12\"" in debian.run("cat /etc/os-release")


def test_haar_ssh_knows_its_user_and_its_keys(debian, daemon):
    assert daemon.haar("ssh", debian.id, "--", "id", "-un").stdout.strip() == "admin"
    assert "ssh-ed25519" in (daemon.state_dir / "known_hosts.d" / debian.id).read_text()


def packed_boto3() -> bytes:
    """boto3 as the tests have it, which is Python alone, with the models of EC2 and STS."""
    site = Path(boto3.__file__).parent.parent
    packed = io.BytesIO()

    def wanted(entry: tarfile.TarInfo) -> tarfile.TarInfo | None:
        parts = Path(entry.name).parts
        service = parts[2] if parts[:2] == ("botocore", "data") and len(parts) > 2 else "ec2"
        is_wanted = service in ("ec2", "sts") or service.endswith(".json")
        return entry if is_wanted and "__pycache__" not in parts and parts[:2] != ("boto3", "data") else None

    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        for name in ("boto3", "botocore", "jmespath", "dateutil", "s3transfer", "six.py", "urllib3"):
            tar.add(site / name, name, filter=wanted)
    return packed.getvalue()


SCRIPT = """
import boto3, json
sts, ec2 = boto3.client("sts"), boto3.client("ec2")
try:
    ec2.describe_volumes()
    refused = None
except Exception as error:
    refused = error.response["Error"]["Code"]
found = [i["InstanceId"] for r in ec2.describe_instances()["Reservations"] for i in r["Instances"]]
method = boto3.Session().get_credentials().method
print(json.dumps({"arn": sts.get_caller_identity()["Arn"], "found": found, "refused": refused, "method": method}))
"""


def test_boto3_in_the_guest_has_the_role_of_the_instance(debian, daemon, ec2):
    profile = Profile(daemon, allow("ec2:DescribeInstances"))
    ec2.associate_iam_instance_profile(InstanceId=debian.id, IamInstanceProfile={"Name": profile.name})
    unpack = "mkdir -p /var/tmp/site && base64 -d | tar -xz -C /var/tmp/site"
    done = debian.ssh(unpack, input=base64.b64encode(packed_boto3()).decode(), timeout=120)
    assert done.returncode == 0, done.stderr
    # Only the endpoint and the region are said: the credentials come from the metadata service.
    environment = f"AWS_ENDPOINT_URL=http://169.254.169.254:4566 AWS_DEFAULT_REGION={daemon.region} PYTHONPATH=/var/tmp/site"
    done = debian.ssh(f"{environment} python3 -", input=SCRIPT, timeout=240)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["arn"].endswith(f":assumed-role/{profile.name}/{debian.id}")
    assert debian.id in said["found"]
    assert (said["refused"], said["method"]) == ("UnauthorizedOperation", "iam-role")


# Prints the instance's id and the checksum of the payload to the serial console, as soon as the disks are there.
UNIT = """[Unit]
Description=Tells that the change is here
DefaultDependencies=no
RequiresMountsFor=/srv
After=systemd-remount-fs.service
[Service]
Type=oneshot
ExecStart=/bin/sh -c 'echo "CHANGE $(cat /sys/class/dmi/id/board_asset_tag) $(md5sum </srv/payload | cut -c -32)" >/dev/ttyS0'
[Install]
WantedBy=sysinit.target
"""

# Two Debian guests boot at a time on a machine of two processors; what counts are the ten.
AT_ONCE = 2


@pytest.fixture(scope="module")
def change(debian) -> str:
    """Changes the guest before it is shut down: 48 MiB that do not compress, and a unit that tells their checksum at boot, which it gives."""
    done = debian.ssh("sudo tee /etc/systemd/system/change.service >/dev/null && sudo systemctl enable -q change.service", input=UNIT)
    assert done.returncode == 0, done.stderr
    return debian.run("sudo dd if=/dev/urandom of=/srv/payload bs=1M count=48 2>/dev/null; md5sum </srv/payload | cut -c -32", timeout=120)


def test_it_shuts_down_when_asked(debian, change):
    debian.ec2.stop_instances(InstanceIds=[debian.id])
    debian.hang_up()
    found = debian.wait_for_state("stopped", 120)
    assert found["StateReason"]["Code"] == "Client.UserInitiatedShutdown"
    wait_for(lambda: "Power down" in debian.console() or "Powering off" in debian.console(), 10)


def taken(folder: Path) -> int:
    """The bytes that the files of a folder take on the disk, each file once whatever names it has."""
    found = {(s.st_dev, s.st_ino): s.st_blocks * 512 for s in (f.lstat() for f in folder.rglob("*"))}
    return sum(found.values())


@pytest.mark.timeout(900)
def test_ten_of_its_image_have_its_change_and_cost_one_copy_of_it(debian, daemon, ec2, launch, change):
    if debian.state != "stopped":
        ec2.stop_instances(InstanceIds=[debian.id])
        debian.hang_up()
        debian.wait_for_state("stopped", 120)
    volumes = daemon.state_dir / "volumes"
    before = taken(volumes)
    image = ec2.create_image(InstanceId=debian.id, Name="debian changed")["ImageId"]
    ec2.get_waiter("image_available").wait(ImageIds=[image], WaiterConfig={"Delay": 1})
    assert taken(volumes) - before < 1 << 20, "the image is no second copy"
    pending, seen = [], []

    def told(guest) -> bool:
        return f"CHANGE {guest.id} {change}" in guest.console()

    begun = time.monotonic()
    while len(seen) < 10:
        while len(pending) < AT_ONCE and len(pending) + len(seen) < 10:
            # One processor each: the second one would be the same processor of this machine.
            one_processor = {"CoreCount": 1, "ThreadsPerCore": 1}
            pending.append(launch.start(ImageId=image, InstanceType="t3.micro", CpuOptions=one_processor, user="admin"))
        wait_for(lambda: any(told(guest) for guest in pending), 300, 0.5, "no guest told of the change")
        for guest in [guest for guest in pending if told(guest)]:
            # Their disks stay, to be counted.
            ec2.stop_instances(InstanceIds=[guest.id], SkipOsShutdown=True)
            pending.remove(guest)
            seen.append(guest)
    for guest in seen:
        guest.wait_for_state("stopped")
    roots = [guest.describe()["BlockDeviceMappings"][0]["Ebs"]["VolumeId"] for guest in seen]
    own = [(volumes / f"{root}.qcow2").stat().st_blocks * 512 for root in roots]
    added = taken(volumes) - before
    print(f"ten guests in {time.monotonic() - begun:.0f} s; the volumes took {before >> 20} MiB before and {added >> 20} MiB more,")
    print(f"the ten volumes {[size >> 20 for size in own]} MiB each")
    assert len(set(roots)) == 10 and before > 48 << 20
    # What each has written until it was seen is its own, and less than one copy of the change in all.
    assert max(own) < 12 << 20 and added < 48 << 20
    ec2.terminate_instances(InstanceIds=[guest.id for guest in seen])
    ec2.deregister_image(ImageId=image, DeleteAssociatedSnapshots=True)
