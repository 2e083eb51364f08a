"""Imports of disks and machines by VM Import/Export's operations, with boto3: what comes of them, and what is refused."""

import hashlib
import io
import json
import os
import struct
import subprocess
import tarfile
from pathlib import Path

import pytest
from support.files import FileServer
from support.identities import User, allow
from support.machine import processes, wait_for
from test_accounts import account_client, make_account
from test_crash import restart, start_again
from test_ebs_direct import BLOCK, contents
from test_encryption import holds
from test_snapshots import find, remove
from test_volumes import refusal

# What the disks hold: it is not the same anywhere, and shows where it is.
CONTENT = b"".join(hashlib.sha256(str(n).encode()).digest() for n in range(3 * BLOCK // 32)) + b"the last sector".ljust(512, b".")
# In the boot sector: prints a line to the serial port and halts.
SAYS = b"booted from imported bytes"
BOOT_CODE = bytes.fromhex("31c08ed8be217cac84c0741288c4bafd03eca82074fb88e0baf803eeebe9f4ebfd") + b"\r\n" + SAYS + b"\r\n\0"


def bootable(size: int = 4 << 20) -> bytes:
    return (BOOT_CODE.ljust(510, b"\0") + b"\x55\xaa").ljust(size, b"\0")


def convert(raw: Path, target: Path, kind: str, options: str = "") -> Path:
    command = ["qemu-img", "convert", "-f", "raw", "-O", kind, *(["-o", options] if options else []), str(raw), str(target)]
    subprocess.run(command, check=True)
    return target


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A web server, and the folder that it serves."""
    server = FileServer(tmp_path_factory.mktemp("files"))
    (server.folder / "data.raw").write_bytes(CONTENT)
    (server.folder / "boot.raw").write_bytes(bootable())
    yield server
    server.close()


@pytest.fixture(scope="session")
def ebs(daemon):
    return daemon.client("ebs")


@pytest.fixture
def emptied(daemon, ec2):
    """Nothing of an import is left after the test, but for the snapshots that it removes itself."""
    before = {file.name for file in (daemon.state_dir / "volumes").iterdir()}
    yield

    def clean():
        left = {file.name for file in (daemon.state_dir / "volumes").iterdir()} - before - {".empty"}
        return not left and not pieces(daemon)

    wait_for(clean, 20, 0.1, "an import has left something behind")


def pieces(daemon) -> list[Path]:
    """What is kept of imports that are not over."""
    folder = daemon.state_dir / "imports"
    return sorted(folder.rglob("*")) if folder.exists() else []


def task(client, name: str) -> dict:
    if name.startswith("import-snap-"):
        found = client.describe_import_snapshot_tasks(ImportTaskIds=[name])["ImportSnapshotTasks"][0]
        return found["SnapshotTaskDetail"] | {key: value for key, value in found.items() if key != "SnapshotTaskDetail"}
    return client.describe_import_image_tasks(ImportTaskIds=[name])["ImportImageTasks"][0]


def over(client, name: str, timeout: float = 120) -> dict:
    wait_for(lambda: task(client, name)["Status"] in ("completed", "deleted"), timeout, 0.1, f"{name} does not end")
    return task(client, name)


def completed(client, name: str, timeout: float = 120) -> dict:
    found = over(client, name, timeout)
    assert found["Status"] == "completed", found
    return found


def failed(client, name: str) -> str:
    found = over(client, name)
    assert found["Status"] == "deleted" and "SnapshotId" not in found and "ImageId" not in found, found
    return found["StatusMessage"]


def import_snapshot(client, url: str, kind: str | None = None, **parameters) -> str:
    container = {"Url": url} | ({"Format": kind} if kind else {})
    begun = client.import_snapshot(DiskContainer=container, **parameters)
    assert begun["SnapshotTaskDetail"]["Status"] == "active"
    return begun["ImportTaskId"]


def import_image(client, *containers: dict, **parameters) -> str:
    begun = client.import_image(DiskContainers=list(containers), **parameters)
    assert (begun["Status"], begun["StatusMessage"]) == ("active", "pending")
    return begun["ImportTaskId"]


def upload(daemon, file: Path, *options: str) -> str:
    url = daemon.haar("upload", str(file), *options).stdout.strip()
    assert url.startswith(f"file://{daemon.state_dir}/uploads/"), url
    return url


def unload(daemon, *names: str) -> None:
    for name in names:
        daemon.haar("upload", "--remove", name)


def data(ebs, snapshot: str, size: int = len(CONTENT)) -> bytes:
    """The beginning of a snapshot, as GetSnapshotBlock gives it; blocks that are not there are zeros."""
    found = contents(ebs, snapshot)
    return b"".join(found.get(index, bytes(BLOCK)) for index in range(-(-size // BLOCK)))[:size]


def discard(client, image: str) -> None:
    snapshots = [m["Ebs"]["SnapshotId"] for m in client.describe_images(ImageIds=[image])["Images"][0]["BlockDeviceMappings"]]
    client.deregister_image(ImageId=image)
    remove(client, snapshots)


# --- requests -----------------------------------------------------------------------------------------------------------


def test_requests_that_cannot_be_are_refused(sim):
    url = "http://127.0.0.1:1/x"
    fine = {"Url": url, "Format": "RAW"}
    for code, containers, parameters in [
        ("MissingParameter", [], {}),
        ("MissingParameter", [{"Format": "RAW"}], {}),
        ("InvalidParameter", [{"UserBucket": {"S3Bucket": "b", "S3Key": "k"}}], {}),
        ("InvalidParameter", [{"Url": "s3://bucket/key"}], {}),
        ("InvalidParameterCombination", [fine | {"UserBucket": {"S3Bucket": "b", "S3Key": "k"}}], {}),
        ("InvalidParameterValue", [fine | {"Format": "QCOW2"}], {}),
        ("InvalidParameterValue", [{"Url": "ftp://x/y"}], {}),
        ("InvalidParameterValue", [{"Url": "/etc/passwd"}], {}),
        ("InvalidParameterValue", [{"Url": "file://host/etc/passwd"}], {}),
        ("InvalidParameterValue", [fine | {"DeviceName": "sda"}], {}),
        ("InvalidParameterValue", [fine | {"DeviceName": "/dev/sda1"}] * 2, {}),
        ("InvalidParameterValue", [fine] * 22, {}),
        ("InvalidParameterValue", [fine], {"Description": "x" * 256}),
        ("UnsupportedOperation", [fine | {"SnapshotId": "snap-00000000000000001"}], {}),
        ("UnsupportedOperation", [fine], {"Architecture": "i386"}),
        ("InvalidParameterValue", [fine], {"Architecture": "vax"}),
        ("UnsupportedOperation", [fine], {"Platform": "Windows"}),
        ("InvalidParameterValue", [fine], {"Platform": "Plan 9"}),
        ("UnsupportedOperation", [fine], {"LicenseType": "AWS"}),
        ("InvalidParameterValue", [fine], {"Hypervisor": "kvm"}),
        ("UnsupportedOperation", [fine], {"UsageOperation": "RunInstances:0002"}),
        ("InvalidParameterValue", [fine], {"UsageOperation": "Run"}),
        ("InvalidParameterValue", [fine], {"BootMode": "uefi-preferred"}),
        ("UnsupportedOperation", [fine], {"RoleName": "vmimport"}),
        ("UnsupportedOperation", [fine], {"ClientData": {"Comment": "x"}}),
        ("InvalidParameterDependency", [fine], {"KmsKeyId": "alias/aws/ebs"}),
        ("InvalidParameterValue", [fine], {"Encrypted": True, "KmsKeyId": "alias/mine"}),
        ("InvalidParameterValue", [fine], {"TagSpecifications": [{"ResourceType": "image", "Tags": [{"Key": "a", "Value": "b"}]}]}),
        ("DryRunOperation", [fine], {"DryRun": True}),
    ]:
        assert refusal(sim.import_image, DiskContainers=containers, **parameters)[0] == code, (containers, parameters)
    assert refusal(sim.import_snapshot)[0] == "MissingParameter"
    assert refusal(sim.import_snapshot, DiskContainer={"Url": url, "Format": "OVA"})[0] == "InvalidParameterValue"
    assert refusal(sim.import_snapshot, DiskContainer={"Url": "s3://b/k"})[0] == "InvalidParameter"
    code, message = refusal(sim.import_snapshot, DiskContainer={"Url": "gopher://user:secret@host/"})
    assert code == "InvalidParameterValue" and "url" in message and "secret" not in message
    for name in ("import-ami-00000000000000001", "import-snap-00000000000000001"):
        assert refusal(sim.cancel_import_task, ImportTaskId=name)[0] == "InvalidConversionTaskId"
    assert refusal(sim.cancel_import_task, ImportTaskId="import-x")[0] == "InvalidConversionTaskId.Malformed"
    assert refusal(sim.cancel_import_task)[0] == "MissingParameter"
    wrong = {"ImportTaskIds": ["import-snap-00000000000000001"]}
    assert refusal(sim.describe_import_image_tasks, **wrong)[0] == "InvalidConversionTaskId.Malformed"
    assert refusal(sim.describe_import_snapshot_tasks, **wrong)[0] == "InvalidConversionTaskId"


def test_tasks_have_tags_filters_and_pages(sim):
    tags = [{"Key": "Name", "Value": "mine"}]
    given = {"TagSpecifications": [{"ResourceType": "import-snapshot-task", "Tags": tags}], "Description": "a disk"}
    container = {"Url": "http://127.0.0.1:1/x", "Description": "of a machine", "Format": "raw"}

    def ids(*filters):
        pages = sim.get_paginator("describe_import_snapshot_tasks").paginate(Filters=list(filters), PaginationConfig={"PageSize": 5})
        return {found["ImportTaskId"] for page in pages for found in page["ImportSnapshotTasks"]}

    before = ids()
    begun = sim.import_snapshot(DiskContainer=container, ClientToken="one", **given)
    name = begun["ImportTaskId"]
    assert name.startswith("import-snap-") and (begun["Tags"], begun["Description"]) == (tags, "a disk")
    assert sim.import_snapshot(DiskContainer=container, ClientToken="one", **given)["ImportTaskId"] == name
    assert refusal(sim.import_snapshot, DiskContainer=container, ClientToken="one")[0] == "IdempotentParameterMismatch"
    # Where nothing real is made, nothing is pretended to have been imported.
    assert failed(sim, name).startswith("ServerError: No disks are made")
    found = task(sim, name)
    assert (found["Tags"], found["Format"], found["Url"]) == (tags, "RAW", container["Url"])
    image = import_image(sim, container, TagSpecifications=[{"ResourceType": "import-image-task", "Tags": tags}], Platform="Linux")
    failed(sim, image)
    sim.create_tags(Resources=[name, image], Tags=[{"Key": "imported", "Value": "red"}])
    listed = sim.describe_tags(Filters=[{"Name": "key", "Values": ["imported"]}])["Tags"]
    assert {(tag["ResourceId"], tag["ResourceType"]) for tag in listed} == {(name, "import-snapshot-task"), (image, "import-image-task")}
    others = [import_snapshot(sim, container["Url"]) for _ in range(6)]
    for other in others:
        failed(sim, other)

    assert ids() == before | {name, *others}
    assert ids({"Name": "tag:imported", "Values": ["red"]}) == {name}
    assert ids({"Name": "task-state", "Values": ["deleted"]}) == before | {name, *others}
    assert ids({"Name": "task-state", "Values": ["active", "completed"]}) == set()
    only = sim.describe_import_image_tasks(Filters=[{"Name": "tag:Name", "Values": ["mine"]}])["ImportImageTasks"]
    assert [one["ImportTaskId"] for one in only] == [image] and only[0]["Platform"] == "Linux"
    assert refusal(sim.describe_import_image_tasks, Filters=[{"Name": "x", "Values": ["y"]}])[0] == "InvalidParameterValue"
    # What is over cannot be cancelled.
    assert refusal(sim.cancel_import_task, ImportTaskId=name)[0] == "IncorrectState"


# --- disks --------------------------------------------------------------------------------------------------------------


def test_disks_of_every_format_are_read_back(daemon, ec2, ebs, files, emptied):
    raw = files.folder / "data.raw"
    made = {"RAW": [raw], "VHD": [], "VHDX": [], "VMDK": []}
    for kind, name, driver, options in [
        ("VHD", "fixed.vhd", "vpc", "subformat=fixed,force_size=on"),
        ("VHD", "dynamic.vhd", "vpc", "subformat=dynamic,force_size=on"),
        ("VHDX", "disk.vhdx", "vhdx", ""),
        ("VMDK", "sparse.vmdk", "vmdk", ""),
        ("VMDK", "stream.vmdk", "vmdk", "subformat=streamOptimized"),
    ]:
        made[kind].append(convert(raw, files.folder / name, driver, options))
    begun = {}
    for kind, all_of_them in made.items():
        for file in all_of_them:
            # The format is found by the content where it is not said.
            begun[import_snapshot(ec2, files.url(file.name), kind, Description="said")] = (kind, file)
    begun[import_snapshot(ec2, upload(daemon, made["VMDK"][0], "--name", "up.vmdk"))] = ("VMDK", made["VMDK"][0])
    begun[import_snapshot(ec2, f"file://{made['VHD'][0]}")] = ("VHD", made["VHD"][0])
    snapshots = []
    for name, (kind, file) in begun.items():
        found = completed(ec2, name)
        assert (found["Format"], found["Encrypted"]) == (kind, False)
        assert found["DiskImageSize"] == pytest.approx(file.stat().st_size / (1 << 30))
        assert "Progress" not in found and "StatusMessage" not in found
        snapshot = find(ec2, found["SnapshotId"])
        expected = ("completed", 1, "100%", False, f"Created by AWS-VMImport service for {name}")
        assert (snapshot["State"], snapshot["VolumeSize"], snapshot["Progress"], snapshot["Encrypted"], snapshot["Description"]) == expected
        assert data(ebs, found["SnapshotId"]) == CONTENT, (kind, file.name)
        snapshots.append(found["SnapshotId"])
    # The upload is as it was, and stays.
    listed = json.loads(daemon.haar("upload", "--list", "--json").stdout)
    assert [(one["name"], one["size"]) for one in listed] == [("up.vmdk", made["VMDK"][0].stat().st_size)]
    unload(daemon, "up.vmdk")
    remove(ec2, snapshots)


def test_an_encrypted_import_is_sealed(daemon, ec2, ebs, files, emptied):
    text = "a secret that nobody may find"
    content = (text + "\n").encode() * 4096
    (files.folder / "secret.raw").write_bytes(content)
    name = import_snapshot(ec2, files.url("secret.raw"), "RAW", Encrypted=True)
    begun = task(ec2, name)
    assert begun["Encrypted"] and begun["KmsKeyId"].startswith("arn:aws:kms:")
    plain = completed(ec2, import_snapshot(ec2, files.url("secret.raw"), "RAW"))["SnapshotId"]
    sealed = completed(ec2, name)["SnapshotId"]
    assert find(ec2, sealed)["Encrypted"] and find(ec2, sealed)["KmsKeyId"] == begun["KmsKeyId"]
    assert data(ebs, sealed, len(content)) == content
    assert holds(daemon, text, plain) and not holds(daemon, text, sealed)
    remove(ec2, [plain, sealed])


# --- machines -----------------------------------------------------------------------------------------------------------


def test_an_imported_image_boots(daemon, ec2, launch, files, emptied):
    stream = convert(files.folder / "boot.raw", files.folder / "boot.vmdk", "vmdk", "subformat=streamOptimized")
    url = upload(daemon, stream)
    container = {"Url": url, "Format": "VMDK", "Description": "the only disk"}
    asked = {"Description": "a machine", "Architecture": "x86_64", "Platform": "Linux", "LicenseType": "BYOL"}
    name = import_image(ec2, container, **asked)
    assert name.startswith("import-ami-")
    found = completed(ec2, name)
    assert {key: found[key] for key in asked} == asked
    [detail] = found["SnapshotDetails"]
    assert (detail["DeviceName"], detail["Format"], detail["Status"], detail["Url"]) == ("/dev/sda1", "VMDK", "completed", url)
    [image] = ec2.describe_images(ImageIds=[found["ImageId"]])["Images"]
    assert (image["Name"], image["Description"], image["State"], image["BootMode"]) == (name, "a machine", "available", "legacy-bios")
    assert image["RootDeviceName"] == "/dev/sda1"
    assert image["BlockDeviceMappings"][0]["Ebs"]["SnapshotId"] == detail["SnapshotId"]
    guest = launch.start(ImageId=found["ImageId"], InstanceType="t3.nano")
    wait_for(lambda: SAYS.decode() in guest.console(), 60, 0.2, "the machine has not booted")
    # It knows nothing of ACPI.
    ec2.stop_instances(InstanceIds=[guest.id], Force=True)
    guest.wait_for_state("stopped")
    ec2.terminate_instances(InstanceIds=[guest.id])
    guest.wait_for_state("terminated")
    discard(ec2, found["ImageId"])
    unload(daemon, stream.name)


def ovf(*names: str) -> str:
    files = "".join(f'<File ovf:id="f{n}" ovf:href="{name}"/>' for n, name in enumerate(names))
    disks = "".join(f'<Disk ovf:diskId="d{n}" ovf:fileRef="f{n}" ovf:capacity="1"/>' for n in range(len(names)))
    items = "".join(
        f"<Item><rasd:AddressOnParent>{n}</rasd:AddressOnParent><rasd:HostResource>ovf:/disk/d{n}</rasd:HostResource>"
        f"<rasd:ResourceType>17</rasd:ResourceType></Item>"
        for n in range(len(names))
    )
    return (
        '<?xml version="1.0"?><Envelope xmlns="http://schemas.dmtf.org/ovf/envelope/1" xmlns:ovf="http://schemas.dmtf.org/ovf/envelope/1"'
        ' xmlns:rasd="http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_ResourceAllocationSettingData">'
        f"<References>{files}</References><DiskSection><Info/>{disks}</DiskSection>"
        f"<VirtualSystem ovf:id='vm'><VirtualHardwareSection>{items}</VirtualHardwareSection></VirtualSystem></Envelope>"
    )


def ova(target: Path, *disks: Path, manifest: str = "SHA256", description: str | None = None) -> Path:
    members = {"vm.ovf": (description or ovf(*(disk.name for disk in disks))).encode()}
    members |= {disk.name: disk.read_bytes() for disk in disks}
    if manifest:
        lines = [f"{manifest}({name})= {hashlib.new(manifest, content).hexdigest()}\n" for name, content in members.items()]
        members["vm.mf"] = "".join(lines).encode()
    with tarfile.open(target, "w", format=tarfile.USTAR_FORMAT) as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return target


def test_an_ova_becomes_an_image_with_all_its_disks(daemon, ec2, ebs, files, emptied):
    second = convert(files.folder / "data.raw", files.folder / "second.vmdk", "vmdk", "subformat=streamOptimized")
    first = convert(files.folder / "boot.raw", files.folder / "first.vmdk", "vmdk", "subformat=streamOptimized")
    archive = ova(files.folder / "machine.ova", first, second)
    found = completed(ec2, import_image(ec2, {"Url": files.url("machine.ova"), "Format": "OVA"}, Encrypted=True))
    details = found["SnapshotDetails"]
    assert [(d["DeviceName"], d["Format"]) for d in details] == [("/dev/sda1", "VMDK"), ("/dev/sdb", "VMDK")]
    [image] = ec2.describe_images(ImageIds=[found["ImageId"]])["Images"]
    assert [m["DeviceName"] for m in image["BlockDeviceMappings"]] == ["/dev/sda1", "/dev/sdb"]
    assert all(m["Ebs"]["Encrypted"] for m in image["BlockDeviceMappings"])
    assert data(ebs, details[0]["SnapshotId"], 4 << 20) == bootable()
    assert data(ebs, details[1]["SnapshotId"]) == CONTENT
    discard(ec2, found["ImageId"])
    # An archive's checksums count.
    spoilt = bytearray(archive.read_bytes())
    at = spoilt.index(second.read_bytes()) + second.stat().st_size // 2
    spoilt[at] ^= 0xFF
    (files.folder / "spoilt.ova").write_bytes(spoilt)
    message = failed(ec2, import_image(ec2, {"Url": files.url("spoilt.ova")}))
    assert message.startswith("ClientError: Disk validation failed [") and "second.vmdk" in message and "checksum" in message


@pytest.mark.debian
@pytest.mark.timeout(600)
def test_an_exported_debian_comes_back(daemon, ec2, launch, tmp_path, emptied):
    disk = tmp_path / "debian.vmdk"
    daemon.haar("image", "export", "debian-12", str(disk), "--format", "vmdk")
    found = completed(ec2, import_image(ec2, {"Url": upload(daemon, disk), "Format": "VMDK"}), 300)
    unload(daemon, disk.name)
    image = found["ImageId"]
    assert ec2.describe_images(ImageIds=[image])["Images"][0]["BootMode"] == "uefi-preferred"
    guest = launch.start(ImageId=image, InstanceType="t3.medium", user="admin")
    guest.wait_for_state("running")
    guest.wait_for_login(400)
    assert guest.run("sudo id -un") == "root"
    guest.hang_up()
    ec2.terminate_instances(InstanceIds=[guest.id])
    guest.wait_for_state("terminated")
    discard(ec2, image)


# --- what is not a disk ---------------------------------------------------------------------------------------------------


def hinted(folder: Path, secret: Path) -> Path:
    """A VMDK file whose descriptor seems harmless, while QEMU finds the name of another file at the place where it looks."""
    file = convert(folder / "data.raw", folder / "hinted.vmdk", "vmdk")
    content = bytearray(file.read_bytes())
    clean = bytes(content[512 : 512 + 1024])
    hint = clean.split(b"\0")[0].replace(b"parentCID=ffffffff", b"parentCID=12345678") + f'parentFileNameHint="{secret}"\n'.encode()
    content[512 : 512 + 20 * 512] = hint.ljust(20 * 512, b"\0")
    content += clean.ljust(20 * 512, b"\0")
    struct.pack_into("<Q", content, 28, (len(content) - 20 * 512) // 512)
    file.write_bytes(content)
    return file


def test_files_that_are_no_disks_or_reach_out(daemon, ec2, files, emptied):
    folder = files.folder
    raw, secret = folder / "data.raw", folder / "secret-disk.raw"
    secret.write_bytes(b"what nobody may read".ljust(1 << 20, b"!"))
    bad: dict[str, tuple[str, str]] = {}

    def file(name: str, content: bytes, kind: str, complaint: str) -> None:
        (folder / name).write_bytes(content)
        bad[name] = (kind, complaint)

    for name, arguments in [
        ("backed.qcow2", ["-f", "qcow2", "-b", str(secret), "-F", "raw"]),
        ("data-file.qcow2", ["-f", "qcow2", "-o", f"data_file={folder}/data-file,data_file_raw=on", "-q"]),
    ]:
        subprocess.run(["qemu-img", "create", "-q", *arguments, str(folder / name), "1M"], check=True)
        bad[name] = ("", "qcow2")
    file("as-vmdk", (folder / "backed.qcow2").read_bytes(), "VMDK", "not a VMDK file")
    sparse = convert(raw, folder / "whole.vmdk", "vmdk").read_bytes()
    stream = convert(raw, folder / "whole-stream.vmdk", "vmdk", "subformat=streamOptimized").read_bytes()
    file("cut.vmdk", sparse[: len(sparse) // 2], "VMDK", "Disk validation failed")
    file("cut-stream.vmdk", stream[: len(stream) // 2], "VMDK", "Disk validation failed")
    file("head.vmdk", sparse[:300], "VMDK", "Disk validation failed")
    flat = f'# Disk DescriptorFile\nversion=1\nCID=1\nparentCID=ffffffff\ncreateType="monolithicFlat"\nRW 2048 FLAT "{secret}" 0\n'
    file("flat.vmdk", flat.encode(), "VMDK", "stand alone")
    file("flat-found.vmdk", flat.encode(), "", "stand alone")
    # A header without a size of its own sends QEMU to the list of other files behind it.
    listed = bytearray(sparse[:512]) + flat.encode().ljust(20 * 512, b"\0")
    struct.pack_into("<Q", listed, 12, 0)
    file("listed.vmdk", bytes(listed), "VMDK", "stand alone")
    file("based.vmdk", sparse.replace(b"parentCID=ffffffff", b"parentCID=12345678"), "VMDK", "based on another")
    bad[hinted(folder, secret).name] = ("VMDK", "VMDK descriptor is out of place")
    vhd = convert(raw, folder / "whole.vhd", "vpc", "subformat=dynamic,force_size=on").read_bytes()
    file("cut.vhd", vhd[:-700], "VHD", "cut off")
    differencing = bytearray(vhd)
    differencing[63] = differencing[len(vhd) - 512 + 63] = 4
    file("differencing.vhd", bytes(differencing), "VHD", "stand alone")
    vhdx = convert(raw, folder / "whole.vhdx", "vhdx").read_bytes()
    file("cut.vhdx", vhdx[: len(vhdx) // 2], "VHDX", "Disk validation failed")
    file("noise.vhdx", b"vhdxfile" + os.urandom(1 << 20), "VHDX", "Disk validation failed")
    file("packed.gz", b"\x1f\x8b" + os.urandom(1000), "", "gzip")
    file("empty.raw", b"", "RAW", "empty")
    begun = {import_snapshot(ec2, files.url(name), kind or None): name for name, (kind, _) in bad.items()}
    begun[import_snapshot(ec2, files.url("missing.raw"))] = "404"
    begun[import_snapshot(ec2, "http://127.0.0.1:1/x.raw")] = "unreachable"
    bad |= {"404": ("", "Reason 404"), "unreachable": ("", "cannot be fetched")}
    for name, what in begun.items():
        message = failed(ec2, name)
        assert message.startswith("ClientError: ") and bad[what][1] in message, (what, message)
        assert str(daemon.state_dir) not in message and "json:" not in message, message
    assert not ec2.describe_snapshots(OwnerIds=["self"])["Snapshots"]


def test_machines_that_are_none(daemon, ec2, files, emptied):
    folder = files.folder
    disk = convert(folder / "data.raw", folder / "plain.vmdk", "vmdk", "subformat=streamOptimized")
    ova(folder / "plain.ova", disk)
    whole = (folder / "plain.ova").read_bytes()
    (folder / "cut.ova").write_bytes(whole[: len(whole) // 2])
    doctype = '<!DOCTYPE x [<!ENTITY e SYSTEM "file:///etc/passwd">]>' + ovf("plain.vmdk").replace('<?xml version="1.0"?>', "")
    ova(folder / "entity.ova", disk, description=doctype)
    ova(folder / "other.ova", disk, description=ovf("../../etc/passwd"))
    (folder / "raw-disk.vmdk").write_bytes(bootable())
    ova(folder / "raw.ova", folder / "raw-disk.vmdk", manifest="")
    for name, complaint, parameters in [
        ("data.raw", "No bootable partition found", {}),
        ("plain.ova", "No bootable partition found", {}),
        ("cut.ova", "cut off", {}),
        ("entity.ova", "OVF file parsing error", {}),
        ("other.ova", "has no file ../../etc/passwd", {}),
        ("raw.ova", "not a VMDK file", {}),
        ("boot.raw", "no EFI system partition", {"BootMode": "uefi"}),
    ]:
        message = failed(ec2, import_image(ec2, {"Url": files.url(name)}, **parameters))
        assert message.startswith("ClientError: ") and complaint in message, (name, message)


# --- who may import what --------------------------------------------------------------------------------------------------


def test_no_account_reaches_what_is_not_its_own(make_daemon, tmp_path):
    shared, private = tmp_path / "shared", tmp_path / "private"
    for folder in (shared, private):
        folder.mkdir()
        (folder / "disk.raw").write_bytes(CONTENT)
    (shared / "link.raw").symlink_to(private / "disk.raw")
    daemon = make_daemon("--import-folders", str(shared), images=None)
    server = FileServer(private)
    owner = daemon.client("ec2")
    other = make_account(daemon, "--name", "other")
    theirs = account_client(daemon, other, "ec2")
    user = User(daemon, "importer", allow("ec2:*")).client("ec2")
    own, foreign = upload(daemon, private / "disk.raw", "--name", "own.raw"), upload(daemon, private / "disk.raw", "--account", "other")
    denied = ["file:///etc/shadow", "file:///etc/missing", f"file://{private}/disk.raw", f"file://{shared}/link.raw"]
    denied += [f"file://{shared}/../private/disk.raw", f"file://{daemon.state_dir}/credentials.json", f"file://{daemon.state_dir}/sealing.key"]
    messages = set()
    for client, url in [*((client, url) for client in (theirs, user) for url in denied), (theirs, own), (user, foreign), (owner, foreign)]:
        message = failed(client, import_snapshot(client, url, "RAW"))
        assert "We do not have access to the given resource" in message or "cannot be fetched" in message, (url, message)
        if url in denied[:4]:
            messages.add(message)
    # Nobody learns by it whether a file is there.
    assert len(messages) == 1
    for client in (theirs, user):
        for url in (server.url("disk.raw"), f"http://localhost:{daemon.port}/_haar/health", "http://169.254.169.254/latest/"):
            message = failed(client, import_snapshot(client, url, "RAW"))
            assert "may not be reached" in message, (url, message)
    assert server.asked == []
    for url in (denied[5], denied[6], "http://169.254.169.254/latest/meta-data/"):
        failed(owner, import_snapshot(owner, url, "RAW"))
    for client, url in [(theirs, foreign), (user, own), (theirs, f"file://{shared}/disk.raw"), (owner, f"file://{private}/disk.raw"), (owner, server.url("disk.raw"))]:
        remove(client, [completed(client, import_snapshot(client, url, "RAW"))["SnapshotId"]])
    # Tasks are their account's alone.
    name = import_snapshot(owner, own, "RAW")
    assert refusal(theirs.cancel_import_task, ImportTaskId=name)[0] == "InvalidConversionTaskId"
    assert refusal(User(daemon, "nobody", allow("ec2:Describe*")).client("ec2").import_snapshot, DiskContainer={"Url": own})[0] == "UnauthorizedOperation"
    remove(owner, [completed(owner, name)["SnapshotId"]])
    server.close()
    # Uploads are named, listed and removed by their account, and no other takes their place.
    again = daemon.haar("upload", str(private / "disk.raw"), "--name", "own.raw", check=False)
    assert again.returncode == 1 and "already" in again.stderr
    assert daemon.haar("upload", str(private / "disk.raw"), "--name", "../x", check=False).returncode == 1
    assert daemon.haar("upload", str(private), check=False).returncode == 1
    assert daemon.haar("upload", "--list").stdout.split()[-1] == own
    assert (daemon.state_dir / "uploads").stat().st_mode & 0o077 == 0
    unload(daemon, "own.raw")
    assert daemon.haar("upload", "--list").stdout == ""


# --- cancelling, and crashes ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def large(files) -> Path:
    """A file that takes a while to convert."""
    file = files.folder / "large.raw"
    file.write_bytes(os.urandom(1 << 20) * 150)
    return file


def converting(daemon) -> list[int]:
    return [pid for pid, command in processes(str(daemon.state_dir)).items() if "qemu-img" in command and " convert " in command]


def test_tasks_are_cancelled_in_every_state(daemon, ec2, files, large, emptied):
    files.pace = 0.05
    names = [import_snapshot(ec2, files.url("large.raw"), "RAW") for _ in range(4)]
    wait_for(lambda: sum(task(ec2, name)["StatusMessage"] == "downloading/converting" for name in names) == 2, 20, message="nothing is fetched")
    waiting = [name for name in names if task(ec2, name)["StatusMessage"] == "pending"]
    assert len(waiting) == 2
    # Those that wait for their turn first.
    for name in waiting + [name for name in names if name not in waiting]:
        said = ec2.cancel_import_task(ImportTaskId=name, CancelReason="no longer needed")
        assert (said["ImportTaskId"], said["PreviousState"], said["State"]) == (name, "active", "deleting")
        assert failed(ec2, name) == "no longer needed"
        assert refusal(ec2.cancel_import_task, ImportTaskId=name)[0] == "IncorrectState"
    assert not pieces(daemon)
    files.pace = 0
    name = import_snapshot(ec2, f"file://{large}", "RAW", Encrypted=True)
    wait_for(lambda: converting(daemon), 60, 0.01, "nothing is converted")
    ec2.cancel_import_task(ImportTaskId=name)
    assert failed(ec2, name) == "User canceled"
    wait_for(lambda: not converting(daemon), 5, 0.05, "it is converted all the same")


def test_killed_while_fetching_and_converting(make_daemon, files, large):
    daemon = make_daemon(images=None)
    ec2, ebs = daemon.client("ec2"), daemon.client("ebs")
    expected = large.read_bytes()
    files.pace = 0.01
    files.asked.clear()
    name = import_snapshot(ec2, files.url("large.raw"), "RAW", Encrypted=True, ClientToken="once")
    part = daemon.state_dir / "imports" / name / "0.part"
    wait_for(lambda: part.exists() and part.stat().st_size > 2 << 20, 30, 0.02, "nothing is fetched")
    daemon.kill()
    files.pace = 0
    start_again(daemon)
    # It goes on where it was, and is killed again while it converts.
    wait_for(lambda: converting(daemon), 60, 0.01, "nothing is converted")
    starts = [start for asked, start in files.asked if asked == "large.raw"]
    assert starts[0] == 0 and len(starts) == 2 and starts[1] > 1 << 20, starts
    daemon.kill()
    # What converted ends with the daemon.
    wait_for(lambda: not converting(daemon), 5, 0.02, "a conversion outlives the daemon")
    start_again(daemon)
    assert import_snapshot(ec2, files.url("large.raw"), "RAW", Encrypted=True, ClientToken="once") == name
    snapshot = completed(ec2, name)["SnapshotId"]
    assert len(files.asked) == 2, "it was fetched again"
    assert data(ebs, snapshot, 8 << 20) == expected[: 8 << 20]
    wait_for(lambda: not pieces(daemon), 10, 0.05, "files of the import stay behind")
    assert [file.name for file in (daemon.state_dir / "volumes").glob("*[!y]") if file.is_file()] == [f"{snapshot}.qcow2"]
    # A task that is being deleted when the daemon is killed is deleted by the next one.
    other = import_image(ec2, {"Url": files.url("large.raw")})
    wait_for(lambda: task(ec2, other)["StatusMessage"] != "pending", 20, 0.01, "it does not begin")
    ec2.cancel_import_task(ImportTaskId=other)
    restart(daemon)
    failed(ec2, other)
    assert not pieces(daemon)
    # So is what nobody knows.
    daemon.stop()
    stray = daemon.state_dir / "imports" / "import-snap-00000000000000001"
    stray.mkdir()
    (stray / "0.disk").write_bytes(b"x")
    start_again(daemon)
    assert not pieces(daemon)
    remove(ec2, [snapshot])
    daemon.settles()
