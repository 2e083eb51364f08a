"""What is on the machine: everything that haar could leave behind."""

import os
import re
import subprocess
import time
from pathlib import Path


def output(*command: str) -> str:
    """The standard output of a command that must succeed."""
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def network_namespaces() -> set[str]:
    return {line.split()[0] for line in output("ip", "netns", "list").splitlines() if line.strip()}


def links() -> dict[str, str]:
    """What `ip` says of each network interface of the host, the namespace of its other end among it."""
    lines = output("ip", "-o", "link").splitlines()
    return {line.split(": ")[1].split("@")[0]: line for line in lines}


def tables() -> set[str]:
    return {line.strip() for line in output("nft", "list", "tables").splitlines()}


def routes() -> set[str]:
    """Routes and rules of the host."""
    found = set()
    for line in output("ip", "route", "show", "table", "all").splitlines():
        # Routes of link-local addresses come and go with interfaces of others.
        if not line.startswith(("fe80", "multicast", "local", "broadcast")):
            found.add(line.strip())
    return found | {line.strip() for line in output("ip", "rule").splitlines()}


def cgroups() -> set[str]:
    """Control groups below /sys/fs/cgroup whose names do not come from the system."""
    found = set()
    for folder, names, _ in os.walk("/sys/fs/cgroup"):
        own = [name for name in names if not name.endswith((".slice", ".scope", ".service", ".mount", ".socket"))]
        found.update(os.path.relpath(os.path.join(folder, name), "/sys/fs/cgroup") for name in own)
    return found


def mounts() -> set[str]:
    return {line.split()[1] for line in Path("/proc/self/mounts").read_text().splitlines()}


def loops() -> set[str]:
    """Loop devices with their files."""
    return set(output("losetup", "-a").splitlines())


def processes(word: str) -> dict[int, str]:
    """Processes with this word in their command lines, but for this one and its parents."""
    own = set()
    pid = os.getpid()
    while pid > 1:
        own.add(pid)
        pid = int(re.search(r"PPid:\t(\d+)", Path(f"/proc/{pid}/status").read_text()).group(1))
    found = {}
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit() or int(folder.name) in own:
            continue
        try:
            command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if word in command:
            found[int(folder.name)] = command
    return found


def machines(instance_id: str) -> list[int]:
    """The QEMU processes of an instance."""
    return [pid for pid, command in processes(instance_id).items() if "qemu-system" in command.split()[0]]


class Snapshot(dict):
    """Names of what exists, by kind."""

    @classmethod
    def of_machine(cls, state_dirs: str) -> "Snapshot":
        """Everything there is; of processes, those with a path in their command lines that begins like `state_dirs`."""
        return cls(
            namespaces=network_namespaces(),
            links=set(links()),
            tables=tables(),
            routes=routes(),
            cgroups=cgroups(),
            mounts=mounts(),
            loops=loops(),
            processes={f"{pid}: {command}" for pid, command in processes(state_dirs).items()},
        )

    @classmethod
    def of_daemon(cls, prefix: str, state_dir: Path) -> "Snapshot":
        """What carries a daemon's name: its prefix, its state folder, or an interface of the host that leads to one of its namespaces."""
        names = [prefix, str(state_dir), *(name for name, line in links().items() if prefix in line)]
        everything = cls.of_machine(str(state_dir))
        return cls({kind: {thing for thing in things if any(name in thing for name in names)} for kind, things in everything.items()})

    def added_since(self, before: "Snapshot") -> dict[str, set[str]]:
        added = {kind: names - before[kind] for kind, names in self.items()}
        return {kind: names for kind, names in added.items() if names}

    def removed_since(self, before: "Snapshot") -> dict[str, set[str]]:
        return before.added_since(self)


def wait_for(condition, timeout: float = 30, interval: float = 0.1, message: str = "it did not happen"):
    """Calls `condition` until it returns something true, which is returned."""
    deadline = time.monotonic() + timeout
    while True:
        result = condition()
        if result:
            return result
        if time.monotonic() > deadline:
            raise AssertionError(f"{message} within {timeout} s; last: {result!r}")
        time.sleep(interval)
