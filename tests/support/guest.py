"""Instances as seen from outside and from inside."""

import base64
import hashlib
import subprocess
import time
from pathlib import Path

from .daemon import Daemon
from .machine import wait_for


class Guest:
    """An instance that lets us log in."""

    def __init__(self, daemon: Daemon, instance_id: str, key: Path, user: str = "root"):
        self.daemon, self.id, self.key, self.user = daemon, instance_id, key, user
        self.ec2 = daemon.client("ec2")

    def describe(self) -> dict:
        answer = self.ec2.describe_instances(InstanceIds=[self.id])
        return answer["Reservations"][0]["Instances"][0]

    @property
    def state(self) -> str:
        return self.describe()["State"]["Name"]

    @property
    def public_ip(self) -> str:
        return self.describe()["PublicIpAddress"]

    @property
    def private_ip(self) -> str:
        return self.describe()["PrivateIpAddress"]

    def ssh(self, *command: str, timeout: float = 60, address: str | None = None, options: tuple[str, ...] = (), input: str | None = None):
        """Runs a command by SSH; connections of one guest are shared."""
        address = address or self.public_ip
        # A control socket's path must be short, and ssh appends to it.
        name = hashlib.sha256(f"{self.id}{address}".encode()).hexdigest()[:8]
        return subprocess.run(
            [
                *("ssh", "-i", str(self.key), "-o", "IdentitiesOnly=yes", "-o", "BatchMode=yes"),
                *("-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-o", "LogLevel=ERROR"),
                *("-o", "ConnectTimeout=10", "-o", "ServerAliveInterval=5", "-o", "ServerAliveCountMax=3"),
                *("-o", "ControlMaster=auto", "-o", f"ControlPath={self.daemon.state_dir}/c-{name}", "-o", "ControlPersist=60"),
                *options,
                f"{self.user}@{address}",
                *command,
            ],
            capture_output=True,
            text=True,
            timeout=timeout,
            input=input,
        )

    def run(self, command: str, timeout: float = 60) -> str:
        """The standard output of a shell command in the guest, which must succeed."""
        done = self.ssh(command, timeout=timeout)
        if done.returncode:
            raise AssertionError(f"{command!r} in {self.id} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
        return done.stdout.strip()

    def succeeds(self, command: str, timeout: float = 60) -> bool:
        return self.ssh(command, timeout=timeout).returncode == 0

    def wait_for_login(self, timeout: float = 120) -> "Guest":
        """Waits until a command can be run by SSH."""
        deadline = time.monotonic() + timeout
        while True:
            try:
                done = self.ssh("true", timeout=30)
                if done.returncode == 0:
                    return self
                error = done.stderr
            except subprocess.TimeoutExpired as expired:
                error = str(expired)
            if time.monotonic() > deadline:
                console = self.console()
                raise AssertionError(f"no login to {self.id} within {timeout} s: {error}\nits console:\n{console[-4000:]}")
            time.sleep(0.3)

    def hang_up(self) -> None:
        """Ends the shared connection, as a guest that went away left it."""
        for socket in self.daemon.state_dir.glob("c-*"):
            subprocess.run(["ssh", "-o", f"ControlPath={socket}", "-O", "exit", "x"], capture_output=True, check=False)
            socket.unlink(missing_ok=True)

    def wait_for_state(self, state: str, timeout: float = 90) -> dict:
        def reached():
            found = self.describe()
            return found if found["State"]["Name"] == state else None

        return wait_for(reached, timeout, 0.2, f"{self.id} did not become {state}")

    def console(self) -> str:
        # boto3 decodes the base64 of the answer itself.
        return self.ec2.get_console_output(InstanceId=self.id, Latest=True).get("Output", "")

    def boot_id(self) -> str:
        return self.run("cat /proc/sys/kernel/random/boot_id")

    def uptime(self) -> float:
        return float(self.run("cut -d' ' -f1 /proc/uptime"))

    def http(self, path: str, method: str = "GET", headers: dict[str, str] | None = None, host: str = "169.254.169.254", port: int = 80, timeout: int = 5):
        """An HTTP request from inside the guest, by nothing but nc. Returns status, headers and body; None without an answer."""
        lines = [f"{method} {path} HTTP/1.1", f"Host: {host}", "Connection: close"]
        if method in ("PUT", "POST"):
            lines.append("Content-Length: 0")
        lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
        request = base64.b64encode("".join(f"{line}\r\n" for line in [*lines, ""]).encode()).decode()
        # The request comes from a pipe that stays open, so that nc does not close its side before the answer has come.
        script = f"""p=$(mktemp -u); mkfifo $p; exec 3<>$p; rm $p
echo {request} | base64 -d >&3
timeout {timeout} nc {host} {port} <&3 2>/dev/null"""
        done = self.ssh(script, timeout=timeout + 30)
        return parse_http(done.stdout)


def parse_http(text: str):
    head, separator, body = text.replace("\r\n", "\n").partition("\n\n")
    lines = head.splitlines()
    if not separator or not lines or not lines[0].startswith("HTTP/"):
        return None
    status = int(lines[0].split()[1])
    headers = {}
    for line in lines[1:]:
        name, _, value = line.partition(":")
        headers[name.strip().lower()] = value.strip()
    return status, headers, body
