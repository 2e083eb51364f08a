"""Disks of instances: attaching, snapshots, input and output, space, and many launches at once; each against the raw tool in the same run."""

import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import boot

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from support.daemon import Daemon  # noqa: E402
from support.guest import Guest  # noqa: E402
from support.machine import wait_for  # noqa: E402

ROUNDS = 7
TOGETHER = 20
MIB = 1 << 20
# What is done to a disk: a label, the arguments of guestio, and how many bytes or operations that is.
TRANSFERS = [
    ("sequential writes, 1 MiB", "write seq 1048576 1024", 1024, "MiB/s"),
    ("sequential reads, 1 MiB", "read seq 1048576 1024", 1024, "MiB/s"),
    ("random writes, 4 KiB", "write rand 4096 4000", 4000, "/s"),
    ("random reads, 4 KiB", "read rand 4096 4000", 4000, "/s"),
]


def allocated(*files: Path) -> int:
    """The room that files take on the host, in bytes."""
    return sum(file.stat().st_blocks * 512 for file in files)


class Instance:
    """A `tiny` guest that logs in, with the program that reads and writes."""

    def __init__(self, daemon: Daemon, program: Path):
        self.daemon, self.ec2 = daemon, daemon.client("ec2")
        key = daemon.state_dir / "bench.pem"
        key.touch(mode=0o600)
        key.write_text(self.ec2.create_key_pair(KeyName="bench", KeyType="ed25519")["KeyMaterial"])
        group = self.ec2.describe_security_groups(GroupNames=["default"])["SecurityGroups"][0]["GroupId"]
        self.ec2.authorize_security_group_ingress(
            GroupId=group, IpProtocol="tcp", FromPort=22, ToPort=22, CidrIp="0.0.0.0/0"
        )
        self.image = self.ec2.describe_images(Filters=[{"Name": "name", "Values": ["tiny"]}])["Images"][0]["ImageId"]
        answer = self.ec2.run_instances(
            ImageId=self.image,
            InstanceType="t3.micro",
            KeyName="bench",
            MinCount=1,
            MaxCount=1,
            BlockDeviceMappings=[{"DeviceName": "/dev/xvda", "Ebs": {"DeleteOnTermination": False}}],
        )
        self.id = answer["Instances"][0]["InstanceId"]
        self.guest = Guest(daemon, self.id, key)
        self.guest.wait_for_state("running")
        self.guest.wait_for_login()
        with program.open("rb") as content:
            process = self.remote("cat >/root/guestio && chmod +x /root/guestio", stdin=content)
            assert process.wait() == 0

    @property
    def zone(self) -> str:
        return self.guest.describe()["Placement"]["AvailabilityZone"]

    @property
    def root(self) -> str:
        return self.guest.describe()["BlockDeviceMappings"][0]["Ebs"]["VolumeId"]

    def volume(self, **parameters) -> str:
        made = self.ec2.create_volume(AvailabilityZone=self.zone, **parameters)["VolumeId"]
        self.wait_for_volume(made, "available")
        return made

    def wait_for_volume(self, volume: str, state: str) -> None:
        wait_for(lambda: self.ec2.describe_volumes(VolumeIds=[volume])["Volumes"][0]["State"] == state, 60, 0.005)

    def snapshot(self, volume: str) -> tuple[str, float]:
        """Takes a snapshot; its id, and the seconds until it was complete."""
        begin = time.monotonic()
        made = self.ec2.create_snapshot(VolumeId=volume)["SnapshotId"]
        wait_for(lambda: self.ec2.describe_snapshots(SnapshotIds=[made])["Snapshots"][0]["State"] == "completed", 60, 0.002)
        return made, time.monotonic() - begin

    def attach(self, volume: str, command: str = "true") -> float:
        """Attaches a volume; the seconds until the guest has it and has run a command upon it."""
        watch = f"echo ready; until [ -b /dev/vdb ]; do usleep 1000; done; {command} >/dev/null 2>&1 && echo there"
        process = self.remote(watch)
        assert process.stdout.readline().strip() == "ready"
        begin = time.monotonic()
        self.ec2.attach_volume(VolumeId=volume, InstanceId=self.id, Device="/dev/sdf")
        assert process.stdout.readline().strip() == "there"
        took = time.monotonic() - begin
        process.wait()
        return took

    def remote(self, command: str, **options) -> subprocess.Popen:
        guest = self.guest
        ssh = ["ssh", "-i", str(guest.key), "-o", "LogLevel=ERROR"]
        ssh += ["-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null"]
        ssh += [f"root@{guest.public_ip}", command]
        return subprocess.Popen(ssh, stdout=subprocess.PIPE, text=True, **options)

    def detach(self, volume: str) -> None:
        self.ec2.detach_volume(VolumeId=volume)
        self.wait_for_volume(volume, "available")

    def file(self, volume: str) -> Path:
        return self.daemon.state_dir / "volumes" / f"{volume}.qcow2"


class Monitor:
    """QMP of a QEMU that was started by hand."""

    def __init__(self, path: Path):
        def connect():
            self.socket = socket.socket(socket.AF_UNIX)
            try:
                self.socket.connect(str(path))
            except OSError:
                return False
            return True

        wait_for(connect, 20, 0.01)
        self.lines = self.socket.makefile("r")
        self.lines.readline()
        self.execute("qmp_capabilities")

    def execute(self, command: str, **arguments) -> None:
        self.socket.sendall(json.dumps({"execute": command, "arguments": arguments}).encode() + b"\n")
        while True:
            answer = json.loads(self.lines.readline())
            if "error" in answer:
                raise RuntimeError(answer["error"])
            if "return" in answer:
                return


# What the guest of the QEMU that is started by hand does by itself, and says on its console.
SCRIPT = """#!/bin/sh
exec >/dev/console 2>&1
echo BENCH begin
{transfers}
for round in $(seq {rounds}); do
    until [ -b /dev/vdc ]; do usleep 1000; done
    echo BENCH there $round
    while [ -b /dev/vdc ]; do usleep 1000; done
    echo BENCH gone $round
done
"""


def said(console: Path, text: str, timeout: float = 180) -> str:
    """The rest of the console's line that begins with a text, once it is there; and the time is read at once."""

    def found():
        for line in console.read_text(errors="replace").splitlines(keepends=True) if console.exists() else []:
            if line.startswith(f"BENCH {text}") and line.endswith("\n"):
                return line.split()

    return wait_for(found, timeout, 0.001)[-1]


def raw(command: list[str], root: Path, disk: Path, folder: Path) -> tuple[list[float], float]:
    """The same guest on the same files under QEMU by hand, without haar's throttle and network: the seconds of each transfer, and the
    median of the seconds from the monitor's command to the guest's sight of a disk."""
    console, monitor, extra = folder / "console.log", folder / "qmp", folder / "extra.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", str(extra), "1G"], check=True)
    arguments = [command[0], "-nodefaults", "-no-user-config", "-display", "none"]
    for name in ("-machine", "-smp", "-m", "-cpu", "-accel", "-kernel", "-initrd", "-append"):
        arguments += [name, boot.option(command, name)]
    arguments += ["-vga", "none", *boot.others(command)]
    for file in (root, disk):
        arguments += ["-drive", f"file={file},if=virtio,format=qcow2,discard=unmap,aio=threads"]
    arguments += ["-serial", f"file:{console}", "-qmp", f"unix:{monitor},server=on,wait=off"]
    process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL)
    try:
        qmp = Monitor(monitor)
        transfers = [float(said(console, f"transfer{number}")) for number in range(len(TRANSFERS))]
        attached = []
        for number in range(1, ROUNDS + 1):
            begin = time.monotonic()
            qmp.execute("blockdev-add", **{"node-name": "x", "driver": "qcow2", "file": {"driver": "file", "filename": str(extra)}})
            qmp.execute("device_add", driver="virtio-blk-pci", drive="x", id="x", bus="hotplug")
            said(console, f"there {number}")
            attached.append(time.monotonic() - begin)
            qmp.execute("device_del", id="x")
            said(console, f"gone {number}")
            wait_for(lambda: removed(qmp), 20, 0.02)
        return transfers, statistics.median(attached)
    finally:
        process.kill()
        process.wait()


def removed(qmp: Monitor) -> bool:
    try:
        qmp.execute("blockdev-del", **{"node-name": "x"})
    except RuntimeError:
        return False
    return True


def copied(source: Path, target: Path) -> float:
    """Seconds to copy a disk as qemu-img does it, and to have the copy on the disk."""
    begin = time.monotonic()
    subprocess.run(["qemu-img", "convert", "-f", "qcow2", "-O", "qcow2", str(source), str(target)], check=True)
    subprocess.run(["sync", str(target)], check=True)
    took = time.monotonic() - begin
    target.unlink()
    return took


def together(daemon: Daemon, image: str, folder: Path) -> tuple[float, float, int]:
    """Seconds until the last of many guests that are launched at once is in its userspace, by haar and by hand; and the room that the
    disks of haar's take."""
    ec2 = daemon.client("ec2")
    begin = time.monotonic()
    answer = ec2.run_instances(ImageId=image, InstanceType="t3.nano", MinCount=TOGETHER, MaxCount=TOGETHER)
    instances = [instance["InstanceId"] for instance in answer["Instances"]]
    ours = max(boot.wait_for(daemon.state_dir / "console" / f"{name}.log", boot.READY, 300) for name in instances) - begin
    command = boot.command_of(instances[0])
    for name in instances:
        wait_for(lambda name=name: "haar-tiny: ready" in (daemon.state_dir / "console" / f"{name}.log").read_text(errors="replace"), 180)
    described = ec2.describe_instances(InstanceIds=instances)["Reservations"]
    mappings = [mapping for r in described for i in r["Instances"] for mapping in i["BlockDeviceMappings"]]
    room = allocated(*(daemon.state_dir / "volumes" / f"{mapping['Ebs']['VolumeId']}.qcow2" for mapping in mappings))
    ec2.terminate_instances(InstanceIds=instances, SkipOsShutdown=True)
    ec2.get_waiter("instance_terminated").wait(InstanceIds=instances, WaiterConfig={"Delay": 1})

    places = [folder / str(number) for number in range(TOGETHER)]
    for place in places:
        place.mkdir()
        boot.prepare(daemon.state_dir / "images" / image, place)
    processes, consoles = [], []
    begin = time.monotonic()
    try:
        for place in places:
            process, console = boot.start(command, place)
            processes.append(process)
            consoles.append(console)
        theirs = max(boot.wait_for(console, boot.READY, 300) for console in consoles) - begin
    finally:
        for process in processes:
            process.kill()
            process.wait()
    return ours, theirs, room


def section() -> list[str]:
    folder = Path(tempfile.mkdtemp(prefix="b-", dir=boot.CACHE))
    daemon = Daemon().start()
    try:
        return measure(daemon, folder)
    finally:
        daemon.destroy()
        shutil.rmtree(folder)


def measure(daemon: Daemon, folder: Path) -> list[str]:
    program = folder / "guestio"
    subprocess.run(["gcc", "-O2", "-static", "-o", str(program), str(ROOT / "bench" / "guestio.c")], check=True)
    instance = Instance(daemon, program)
    guest, image = instance.guest, instance.image

    empty = instance.volume(Size=1)
    attached = []
    for _ in range(ROUNDS):
        attached.append(instance.attach(empty))
        instance.detach(empty)

    # With so much that its own limits are out of the way.
    disk = instance.volume(Size=64, VolumeType="io2", Iops=64_000)
    instance.attach(disk)
    transfers = [float(guest.run(f"/root/guestio /dev/vdb {arguments}", timeout=300)) for _, arguments, *_ in TRANSFERS]
    first, first_took = instance.snapshot(disk)
    first_copied = copied(instance.file(first), folder / "copy.qcow2")
    guest.run("/root/guestio /dev/vdb write seq 1048576 16")
    second, second_took = instance.snapshot(disk)
    second_room = allocated(instance.file(second))
    instance.detach(disk)

    begin = time.monotonic()
    restored = instance.volume(SnapshotId=first)
    instance.attach(restored, "dd if=/dev/vdb bs=4096 count=1")
    first_byte = time.monotonic() - begin
    begin = time.monotonic()
    copy = copied(instance.file(first), folder / "copy.qcow2")
    instance.detach(restored)
    by_copy = copy + instance.attach(restored, "dd if=/dev/vdb bs=4096 count=1")
    instance.detach(restored)

    lines = "\n".join(
        f"echo BENCH transfer{number} $(/root/guestio /dev/vdb {arguments})" for number, (_, arguments, *_) in enumerate(TRANSFERS)
    )
    guest.ssh("cat >/root/script", input=SCRIPT.format(transfers=lines, rounds=ROUNDS))
    guest.run("chmod +x /root/script; echo '::once:/root/script' >>/etc/inittab; sync")
    command, root = boot.command_of(instance.id), instance.root
    guest.hang_up()
    instance.ec2.stop_instances(InstanceIds=[instance.id])
    guest.wait_for_state("stopped")
    by_hand, attached_by_hand = raw(command, instance.file(root), instance.file(disk), folder)

    ours, theirs, room = together(daemon, image, folder)
    one = allocated(daemon.state_dir / "images" / image / "root.qcow2")
    rows = [
        ("attached, until the guest sees it", statistics.median(attached), attached_by_hand, "device_add by hand"),
        ("snapshot of 1 GiB", first_took, first_copied, "qemu-img convert"),
        ("snapshot after 16 MiB more", second_took, first_copied, "qemu-img convert"),
        ("volume from a snapshot, until its first byte is read", first_byte, by_copy, "copied first"),
        (f"{TOGETHER} launches at once, until all are in userspace", ours, theirs, "QEMU by hand"),
    ]
    return [
        "## Disks",
        "",
        f"Guests are `tiny`. Attaching is the median of {ROUNDS}. The same QEMU by hand has the same files, without limits and network.",
        "",
        "|  | haar | raw | ratio | what is raw |",
        "|---|---:|---:|---:|---|",
        *(f"| {what} | {a * 1000:.0f} ms | {b * 1000:.0f} ms | {a / b:.2f} | {tool} |" for what, a, b, tool in rows),
        "",
        "| in the guest | haar | QEMU by hand | ratio |",
        "|---|---:|---:|---:|",
        *(
            f"| {label} | {amount / a:.0f} {unit} | {amount / b:.0f} {unit} | {b / a:.2f} |"
            for (label, _, amount, unit), a, b in zip(TRANSFERS, transfers, by_hand, strict=True)
        ),
        "",
        f"The second snapshot takes {second_room / MIB:.1f} MiB. The disks of {TOGETHER} instances, all booted, take {room / MIB:.1f} MiB beside"
        f" the {one / MIB:.1f} MiB of their image: {(room + one) / (TOGETHER * one):.2f} of as many copies.",
        "",
    ]


if __name__ == "__main__":
    os.environ.setdefault("HAAR_CACHE", "/var/cache/haar")
    print("\n".join(section()))
