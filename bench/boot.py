"""From RunInstances to the guest's userspace, against the same QEMU command started raw."""

import json
import os
import shutil
import socket
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

from botocore.session import Session

CACHE = Path(os.environ.get("HAAR_CACHE", "/var/cache/haar"))
LAUNCHES = 7
READY = b"Run /init as init process"


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def wait_for(path: Path, text: bytes, timeout: float = 60) -> float:
    """The time at which a file has the text."""
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        if path.exists() and text in path.read_bytes():
            return time.monotonic()
        time.sleep(0.002)
    raise TimeoutError(f"{text!r} did not appear in {path}")


class Haar:
    """A daemon with a state folder of its own."""

    def __init__(self):
        self.binary = os.environ["HAAR_BINARY"]
        self.state = Path(tempfile.mkdtemp(prefix="b-", dir=CACHE))
        shutil.copytree(os.environ["HAAR_IMAGES"], self.state / "images")
        self.run("up", "--listen", f"127.0.0.1:{free_port()}", "--name", "bench", "--public-pool", "198.19.254.0/24")
        keys = json.loads((self.state / "credentials.json").read_text())
        endpoint = json.loads((self.state / "daemon.json").read_text())["config"]["listen"]
        self.ec2 = Session().create_client(
            "ec2",
            region_name="us-east-1",
            endpoint_url=f"http://{endpoint}",
            aws_access_key_id=keys["access_key_id"],
            aws_secret_access_key=keys["secret_access_key"],
        )
        found = self.ec2.describe_images(Filters=[{"Name": "name", "Values": ["tiny"]}])["Images"]
        self.image = found[0]["ImageId"]

    def run(self, *arguments: str) -> None:
        subprocess.run([self.binary, "--state-dir", str(self.state), *arguments], check=True, capture_output=True)

    def launch(self) -> tuple[float, list[str]]:
        """Seconds from the request to the guest's userspace, and QEMU's command line."""
        begin = time.monotonic()
        answer = self.ec2.run_instances(ImageId=self.image, InstanceType="t3.nano", MinCount=1, MaxCount=1)
        instance = answer["Instances"][0]["InstanceId"]
        took = wait_for(self.state / "console" / f"{instance}.log", READY) - begin
        command = command_of(instance)
        self.ec2.terminate_instances(InstanceIds=[instance], SkipOsShutdown=True)
        self.ec2.get_waiter("instance_terminated").wait(InstanceIds=[instance], WaiterConfig={"Delay": 1})
        return took, command

    def end(self) -> None:
        self.run("down", "--all")
        shutil.rmtree(self.state)


def command_of(instance: str) -> list[str]:
    """The command line of the instance's QEMU process."""
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                command = (folder / "cmdline").read_bytes().split(b"\0")[:-1]
            except OSError:
                continue
            if command and b"qemu-system" in command[0] and any(instance.encode() in part for part in command):
                return [part.decode() for part in command]
    raise LookupError(f"no process runs {instance}")


def option(command: list[str], name: str) -> str:
    return command[command.index(name) + 1]


def others(command: list[str]) -> list[str]:
    """Those devices of a command line that are neither disks nor interfaces, as options."""
    devices = [json.loads(part) for part in command if part.startswith("{") and '"driver"' in part]
    kept = [device for device in devices if device["driver"] in ("VGA", "pvpanic", "pvpanic-pci", "pcie-root-port", "pcie-pci-bridge")]
    return [part for device in kept for part in ("-device", json.dumps(device))]


def prepare(image: Path, folder: Path) -> None:
    """Makes the disk of a QEMU that is started by hand: an overlay of an image's."""
    (folder / "console.log").unlink(missing_ok=True)
    disk = folder / "disk.qcow2"
    disk.unlink(missing_ok=True)
    subprocess.run(
        ["qemu-img", "create", "-q", "-f", "qcow2", "-b", str(image / "root.qcow2"), "-F", "qcow2", str(disk)], check=True
    )


def start(command: list[str], folder: Path) -> tuple[subprocess.Popen, Path]:
    """Starts the same QEMU by hand: the same machine, kernel, memory and devices, its disk made ahead, its network without a peer. Gives
    the process and the console's file."""
    disk, console = folder / "disk.qcow2", folder / "console.log"
    arguments = [command[0], "-nodefaults", "-no-user-config", "-display", "none"]
    arguments += ["-machine", option(command, "-machine"), "-smp", option(command, "-smp"), "-m", option(command, "-m")]
    arguments += ["-cpu", option(command, "-cpu")] if "-cpu" in command else []
    arguments += ["-accel", option(command, "-accel")] if "-accel" in command else []
    arguments += ["-kernel", option(command, "-kernel"), "-initrd", option(command, "-initrd"), "-append", option(command, "-append")]
    # First those that have a place of their own.
    arguments += ["-vga", "none", *others(command)]
    arguments += ["-drive", f"file={disk},if=virtio,format=qcow2,discard=unmap", "-nic", "socket,listen=127.0.0.1:0,model=virtio-net-pci"]
    arguments += ["-device", "virtio-rng-pci", "-serial", f"file:{console}", "-monitor", "none"]
    return subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL), console


def raw(command: list[str], image: Path, folder: Path) -> float:
    """Seconds from the start of QEMU by hand to the guest's userspace."""
    prepare(image, folder)
    begin = time.monotonic()
    process, console = start(command, folder)
    try:
        return wait_for(console, READY) - begin
    finally:
        process.kill()
        process.wait()


def section() -> list[str]:
    haar = Haar()
    folder = Path(tempfile.mkdtemp(prefix="b-", dir=CACHE))
    try:
        haar.launch()  # what is done once in a daemon's life is done
        ours, theirs = [], []
        for _ in range(LAUNCHES):
            took, command = haar.launch()
            ours.append(took)
            theirs.append(raw(command, haar.state / "images" / haar.image, folder))
        mine, other = statistics.median(ours), statistics.median(theirs)
    finally:
        haar.end()
        shutil.rmtree(folder)
    return [
        "## Launches",
        "",
        f"From RunInstances to the guest's userspace (`tiny`, t3.nano), and from the start of the same QEMU by hand; medians of {LAUNCHES}, taken in turns.",
        "",
        "| haar | QEMU by hand | ratio | added |",
        "|---:|---:|---:|---:|",
        f"| {mine * 1000:.0f} ms | {other * 1000:.0f} ms | {mine / other:.2f} | {(mine - other) * 1000:.0f} ms |",
        "",
    ]
