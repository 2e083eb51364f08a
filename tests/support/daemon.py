"""A haar daemon of the tests' own."""

import ipaddress
import json
import os
import random
import re
import shutil
import signal
import socket
import string
import subprocess
import tempfile
import threading
from pathlib import Path
from typing import ClassVar

import boto3
from botocore.config import Config

from .machine import Snapshot, processes, wait_for

BINARY = Path(os.environ["HAAR_BINARY"])
IMAGES = Path(os.environ["HAAR_IMAGES"])
CACHE = Path(os.environ.get("HAAR_CACHE", "/var/cache/haar"))

# What all clients are made by, so that the models of services are read once; making one is not for several threads at once.
SESSION = boto3.session.Session()
SESSION_LOCK = threading.Lock()

# Which of the test processes that run side by side this is (pytest-xdist).
WORKER = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
WORKERS = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def free_pool() -> ipaddress.IPv4Network:
    """A part of 198.19.0.0/16 that this machine has no route to. Test processes that run side by side have different ones to choose from."""
    used = subprocess.run(["ip", "route"], check=True, capture_output=True, text=True).stdout
    used = [ipaddress.ip_network(word) for word in re.findall(r"\b198\.1[89]\.[\d.]+(?:/\d+)?", used)]
    # Daemons that have not made a route yet have their part as well.
    used += [daemon.pool for daemon in Daemon.alive]
    parts = list(ipaddress.ip_network("198.19.0.0/16").subnets(new_prefix=26))[WORKER::WORKERS]
    return random.choice([part for part in parts if not any(part.overlaps(other) for other in used)])


def random_prefix() -> str:
    return "t" + "".join(random.choices(string.ascii_lowercase + string.digits, k=4))


class Daemon:
    """A daemon with a temporary state folder, a name prefix, a port and public addresses of its own."""

    # Those that are not destroyed yet.
    alive: ClassVar[list["Daemon"]] = []

    def __init__(self, *flags: str, images: Path | None = IMAGES, state_dir: Path | None = None, env: dict | None = None):
        CACHE.mkdir(parents=True, exist_ok=True)
        self.prefix = random_prefix()
        # Sockets live in the state folder, and their paths must be short.
        self.state_dir = state_dir or Path(tempfile.mkdtemp(prefix="t-", dir=CACHE))
        self.port = free_port()
        self.endpoint = f"http://127.0.0.1:{self.port}"
        self.region = "eu-central-1"
        self.pool = free_pool()
        self.flags = [
            *("--listen", f"127.0.0.1:{self.port}", "--region", self.region),
            *("--public-pool", str(self.pool), "--name", self.prefix),
            *flags,
        ]
        self.environment = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
        self.environment |= {"HAAR_STATE_DIR": str(self.state_dir), "HAAR_LOG": "debug", **(env or {})}
        self.clients = {}
        self.before = self.snapshot()
        if images is not None and not (self.state_dir / "images").exists():
            link_tree(images, self.state_dir / "images")
        self.alive.append(self)

    def haar(self, *arguments: str, check: bool = True, timeout: float = 120, **options) -> subprocess.CompletedProcess:
        """Runs a command of haar with this daemon's state folder."""
        options = {"capture_output": True, "text": True, "env": self.environment} | options
        done = subprocess.run([BINARY, *arguments], timeout=timeout, **options)
        if check and done.returncode:
            raise AssertionError(f"haar {' '.join(arguments)} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
        return done

    def command(self, *arguments: str) -> subprocess.Popen:
        """Begins a command of haar with this daemon's state folder."""
        return subprocess.Popen([BINARY, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=self.environment)

    def start(self) -> "Daemon":
        self.haar("up", *self.flags)
        self.baseline = self.snapshot()
        return self

    @property
    def description(self) -> dict:
        return json.loads((self.state_dir / "daemon.json").read_text())

    @property
    def pid(self) -> int:
        return self.description["process"]["pid"]

    @property
    def credentials(self) -> dict:
        return json.loads((self.state_dir / "credentials.json").read_text())

    def kill(self) -> None:
        """Ends the daemon as a crash does, and waits until it is gone."""
        pid = self.pid
        os.kill(pid, signal.SIGKILL)
        wait_for(lambda: not is_alive(pid), timeout=10, interval=0.005, message="the daemon survived SIGKILL")

    def stop(self) -> None:
        self.haar("down")

    def log(self) -> str:
        file = self.state_dir / "haar.log"
        return file.read_text(errors="replace") if file.exists() else ""

    def client(self, service: str, **options):
        """A boto3 client; options replace the right settings. For the same settings it is made once: that takes longer than any request."""
        keys = self.credentials
        settings = {
            "endpoint_url": self.endpoint,
            "region_name": self.region,
            "aws_access_key_id": keys["access_key_id"],
            "aws_secret_access_key": keys["secret_access_key"],
        } | options
        known = (service, frozenset(settings.items()))
        if known not in self.clients:
            config = {"config": Config(retries={"max_attempts": 0}, connect_timeout=5, read_timeout=60)}
            with SESSION_LOCK:
                self.clients[known] = SESSION.client(service, **(config | settings))
        return self.clients[known]

    @property
    def aws_environment(self) -> dict[str, str]:
        """The environment for other clients."""
        keys = self.credentials
        return self.environment | {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": keys["access_key_id"],
            "AWS_SECRET_ACCESS_KEY": keys["secret_access_key"],
            "AWS_REGION": self.region,
            "AWS_DEFAULT_REGION": self.region,
            "AWS_PAGER": "",
            "AWS_MAX_ATTEMPTS": "1",
            "AWS_CONFIG_FILE": "/dev/null",
            "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def snapshot(self) -> Snapshot:
        return Snapshot.of_daemon(self.prefix, self.state_dir)

    def added(self, baseline: Snapshot | None = None) -> dict[str, set[str]]:
        return self.snapshot().added_since(baseline or self.baseline)

    def settles(self, timeout: float = 30) -> None:
        """Fails unless the machine comes to look as it did right after the start."""
        try:
            wait_for(lambda: not self.added(), timeout, 0.2)
        except AssertionError:
            raise AssertionError(f"left behind: {self.added()}") from None

    def destroy(self) -> None:
        """Stops everything and removes the state folder; fails if anything is left on the machine."""
        try:
            down = self.haar("down", "--all", check=False)
            left = {}
            try:
                wait_for(lambda: not self.snapshot().added_since(self.before), 20, 0.2)
            except AssertionError:
                left = self.snapshot().added_since(self.before)
            self.remove_what_is_left(left)
            assert down.returncode == 0, f"haar down --all failed:\n{down.stdout}{down.stderr}"
            assert not left, f"haar down --all left behind: {left}\n{down.stdout}{down.stderr}"
        finally:
            if self in self.alive:
                self.alive.remove(self)
            shutil.rmtree(self.state_dir, ignore_errors=True)

    def remove_what_is_left(self, left: dict[str, set[str]]) -> None:
        """So that one failure does not become many."""
        for pid in processes(str(self.state_dir)):
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        # The host's interfaces go with the namespaces that they lead to.
        for name in left.get("namespaces", ()):
            subprocess.run(["ip", "netns", "delete", name], check=False)
        for name in left.get("tables", ()):
            subprocess.run(["nft", "delete", *name.split()], check=False)


def is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return False
    return state not in "ZX"


def link_tree(source: Path, target: Path) -> None:
    """A copy whose files are hard links where the file system allows it; images are never written to."""

    def link(from_: str, to: str) -> None:
        try:
            os.link(from_, to)
        except OSError:
            shutil.copy2(from_, to)

    shutil.copytree(source, target, copy_function=link)
