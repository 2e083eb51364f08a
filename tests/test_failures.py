"""What goes wrong on the machine: a state reason says so, and the rest keeps working."""

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest
from botocore.exceptions import ClientError
from conftest import image_id, launcher
from support.daemon import CACHE, IMAGES
from support.errors import code
from support.machine import machines, wait_for


def failed(guest) -> dict:
    """Waits until a launch has failed, and returns the instance."""
    found = guest.wait_for_state("terminated", 60)
    assert found["StateReason"]["Code"].startswith("Server."), found["StateReason"]
    return found


def path_without(tmp_path: Path, *missing: str) -> str:
    """A folder with everything that the path has, but for these programs."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for directory in ("/usr/sbin", "/usr/bin"):
        for program in Path(directory).iterdir():
            link = folder / program.name
            if program.name not in missing and not link.is_symlink():
                link.symlink_to(program)
    return str(folder)


def test_qemu_is_missing(make_daemon, tmp_path):
    daemon = make_daemon(env={"PATH": path_without(tmp_path, "qemu-system-x86_64")})
    launch = launcher(daemon)
    found = failed(launch.start(InstanceType="t3.nano"))
    assert "qemu-system-x86_64" in found["StateReason"]["Message"]
    # The rest of the API is not concerned.
    assert launch.ec2.describe_images()["Images"]
    daemon.settles()


def test_qemu_dies(make_daemon):
    daemon = make_daemon()
    launch = launcher(daemon)
    victim, other = launch(InstanceType="t3.nano"), launch(InstanceType="t3.nano")
    victim.run("echo kept >/root/kept; sync")
    boot = other.boot_id()
    [pid] = machines(victim.id)
    os.kill(pid, 9)
    victim.hang_up()
    found = victim.wait_for_state("stopped", 30)
    assert found["StateReason"]["Code"].startswith("Server.")
    assert found["StateReason"]["Message"]
    assert other.boot_id() == boot
    launch.ec2.start_instances(InstanceIds=[victim.id])
    victim.wait_for_state("running")
    victim.wait_for_login()
    assert victim.run("cat /root/kept") == "kept"
    launch.end()
    daemon.settles()


def test_an_image_breaks_after_the_start(make_daemon):
    daemon = make_daemon()
    launch = launcher(daemon)
    root = daemon.state_dir / "images" / launch.image / "root.qcow2"
    whole = root.read_bytes()
    # A new file: the tests' library shares the old one.
    root.unlink()
    root.write_bytes(b"\0" * 65536)
    found = failed(launch.start(InstanceType="t3.nano"))
    assert launch.image in found["StateReason"]["Message"] or "image" in found["StateReason"]["Message"].lower()
    root.unlink()
    root.write_bytes(whole)
    launch.start(InstanceType="t3.nano").wait_for_state("running")
    launch.end()
    daemon.settles()


def test_an_image_that_is_broken_at_the_start_is_not_offered(make_daemon):
    daemon = make_daemon(start=False)
    broken = next(iter((daemon.state_dir / "images").glob("ami-*")))
    manifest = broken / "manifest.json"
    manifest.unlink()
    manifest.write_text("{")
    daemon.start()
    ec2 = daemon.client("ec2")
    assert broken.name not in {image["ImageId"] for image in ec2.describe_images()["Images"]}
    with pytest.raises(ClientError) as error:
        ec2.run_instances(ImageId=broken.name, InstanceType="t3.nano", MinCount=1, MaxCount=1)
    assert code(error) == "InvalidAMIID.NotFound"


def test_the_machines_of_another_daemon_of_the_same_name_stay(make_daemon):
    first, second = make_daemon(), make_daemon(start=False)
    launch = launcher(first)
    guest = launch(InstanceType="t3.nano")
    boot = guest.boot_id()
    flags = [first.prefix if flag == second.prefix else flag for flag in second.flags]
    for _ in range(2):
        refused = second.haar("up", *flags, check=False)
        assert refused.returncode != 0
        assert guest.id in refused.stderr + second.log() and "--name" in refused.stderr + second.log()
        # Also while the first one is away.
        first.stop()
    assert machines(guest.id)
    first.start()
    assert guest.boot_id() == boot
    launch.end()
    first.settles()


@pytest.fixture
def small_disk():
    """A file system of its own for a state folder: large enough for the image, and not much more."""
    folder = Path(tempfile.mkdtemp(prefix="t-", dir=CACHE))
    size = sum(file.stat().st_blocks * 512 for file in IMAGES.rglob("*") if file.is_file()) + (96 << 20)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size},mode=0700", "haar-test", str(folder)], check=True)
    yield folder
    subprocess.run(["umount", str(folder)], check=True)
    folder.rmdir()


def fill(folder: Path, leave: int = 0) -> Path:
    """Fills the file system with one file."""
    file = folder / "ballast"
    free = shutil.disk_usage(folder).free - leave
    with file.open("wb") as ballast:
        try:
            while free > 0:
                free -= ballast.write(b"\0" * min(1 << 20, free))
                ballast.flush()
        except OSError:
            pass
    return file


def test_a_full_disk(small_disk, make_daemon):
    daemon = make_daemon(state_dir=small_disk)
    launch = launcher(daemon)
    ballast = fill(small_disk)
    # Whatever the answer: it is one of AWS's errors, or an instance that says why it failed.
    try:
        guest = launch.start(InstanceType="t3.nano")
    except ClientError as error:
        assert error.response["Error"]["Code"] == "InternalError", error
    else:
        found = guest.wait_for_state("terminated", 60)
        assert "space" in found["StateReason"]["Message"].lower()
    assert launch.ec2.describe_images()["Images"], "reading goes on"
    ballast.unlink()
    guest = launch.start(InstanceType="t3.nano")
    guest.wait_for_state("running")
    guest.wait_for_login()
    launch.end()
    daemon.settles()
    daemon.haar("down", "--all")


def test_a_disk_that_fills_up_under_a_guest(small_disk, make_daemon):
    """The guest is paused and told of, not broken; when there is space again it goes on."""
    daemon = make_daemon(state_dir=small_disk)
    launch = launcher(daemon)
    guest = launch(InstanceType="t3.nano")
    other_boot = guest.boot_id()
    ballast = fill(small_disk, leave=4 << 20)
    guest.run("setsid dd if=/dev/urandom of=/root/large bs=1M count=48 conv=fsync >/dev/null 2>&1 &")

    def impaired():
        statuses = launch.ec2.describe_instance_status(InstanceIds=[guest.id])["InstanceStatuses"]
        return statuses and "impaired" in (statuses[0]["SystemStatus"]["Status"], statuses[0]["InstanceStatus"]["Status"])

    wait_for(impaired, 180, 0.5, "the instance was not reported impaired")
    ballast.unlink()
    guest.hang_up()
    guest.wait_for_login(60)
    assert guest.boot_id() == other_boot
    launch.end()
    daemon.haar("down", "--all")


def test_the_pool_of_public_addresses_runs_out(make_daemon):
    small = make_daemon("--compute", "simulated", "--public-pool", "198.19.255.252/30")
    ec2 = small.client("ec2")
    image = image_id(ec2, "tiny")
    with pytest.raises(ClientError) as error:
        for _ in range(5):
            ec2.run_instances(ImageId=image, InstanceType="t3.nano", MinCount=1, MaxCount=1)
    assert code(error) == "InsufficientAddressCapacity"
    found = [i for r in ec2.describe_instances()["Reservations"] for i in r["Instances"]]
    addresses = [i["PublicIpAddress"] for i in found if "PublicIpAddress" in i]
    assert len(addresses) == len(set(addresses))


def test_a_subnet_without_free_addresses_refuses(make_daemon):
    daemon = make_daemon("--compute", "simulated")
    ec2 = daemon.client("ec2")
    image = image_id(ec2, "tiny")
    [subnet] = ec2.describe_subnets(Filters=[{"Name": "availability-zone", "Values": [f"{daemon.region}a"]}])["Subnets"]
    network = {"DeviceIndex": 0, "SubnetId": subnet["SubnetId"], "AssociatePublicIpAddress": False}
    settings = {"ImageId": image, "InstanceType": "t3.nano", "NetworkInterfaces": [network]}
    free = subnet["AvailableIpAddressCount"]
    # As many at once as one request may ask for.
    while free >= 1000:
        ec2.run_instances(MinCount=1000, MaxCount=1000, **settings)
        [subnet] = ec2.describe_subnets(SubnetIds=[subnet["SubnetId"]])["Subnets"]
        assert subnet["AvailableIpAddressCount"] == free - 1000
        free = subnet["AvailableIpAddressCount"]
    with pytest.raises(ClientError) as error:
        ec2.run_instances(MinCount=free + 1, MaxCount=free + 1, **settings)
    assert code(error) == "InsufficientFreeAddressesInSubnet"


def test_damaged_records_are_named_and_not_overwritten(make_daemon):
    daemon = make_daemon("--compute", "simulated")
    daemon.stop()
    [database] = [file for file in daemon.state_dir.iterdir() if file.suffix in (".db", ".sqlite", ".sqlite3")]
    for side in ("-wal", "-shm"):
        Path(f"{database}{side}").unlink(missing_ok=True)
    content = database.read_bytes()
    database.write_bytes(b"this is no database" + bytes(4096))
    damaged = database.read_bytes()
    refused = daemon.haar("up", *daemon.flags, check=False)
    assert refused.returncode == 1
    assert database.name in refused.stderr
    assert database.read_bytes() == damaged
    database.write_bytes(content)
    daemon.haar("up", *daemon.flags)
