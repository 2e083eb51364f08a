"""What is on the machine: everything that haar could leave behind."""

import os
import re
import subprocess
import time
from collections.abc import Iterable
from pathlib import Path

# On a machine that others use at the same time, only what carries a daemon's prefix can be told to be its own.
SHARED = os.environ.get("HAAR_TEST_SHARED_MACHINE") == "1"


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
        found.update(os.path.relpath(os.path.join(folder, name), "/sys/fs/cgroup") for name in names)
    return found


def mounts() -> set[str]:
    return {line.split()[1] for line in Path("/proc/self/mounts").read_text().splitlines()}


def loops() -> set[str]:
    return {line.split(":")[0] for line in output("losetup", "-a").splitlines()}


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
    def take(cls, prefix: str, state_dir: Path, others: list[str]) -> "Snapshot":
        """`prefix` and `state_dir` are those of the daemon under test; `others` are those of the daemons beside it, whose things do not count."""

        host = links()

        def has_one_of(words: list[str]):
            # The host's end of a pair of interfaces is known by its other end, and routes by their interface.
            words = [*words, *(name for name, line in host.items() if any(word in line for word in words))]
            return lambda name: any(word in name for word in words)

        is_own, is_of_others = has_one_of([prefix]), has_one_of(others)

        def own(names: Iterable[str]) -> set[str]:
            return {name for name in names if (is_own(name) if SHARED else not is_of_others(name))}

        return cls(
            namespaces=own(network_namespaces()),
            links=own(host),
            tables=own(tables()),
            routes=own(routes()),
            cgroups=own(cgroups()),
            mounts={mount for mount in mounts() if str(state_dir) in mount} | own(mounts()),
            loops=set() if SHARED else loops(),
            processes={f"{pid}: {command}" for pid, command in processes(str(state_dir)).items()},
        )

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
