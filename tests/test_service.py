"""The machine goes down and comes up: guests are shut down by ACPI, and come back; and the units that see to it."""

import shlex
import shutil
import subprocess
import threading
import time

import pytest
from conftest import launcher
from support.machine import processes, wait_for


def units(daemon, folder, *settings: str) -> dict[str, dict[str, str]]:
    """The units that are installed, by name, each with its settings."""
    daemon.haar("service", "install", "--unit-dir", str(folder), *settings)
    found = {}
    for file in folder.iterdir():
        lines = [line for line in file.read_text().splitlines() if "=" in line and not line.startswith("#")]
        found[file.name] = dict(line.split("=", 1) for line in lines)
    return found


def test_units_are_written_verified_and_removed(make_daemon, tmp_path):
    daemon = make_daemon(start=False)
    found = units(daemon, tmp_path, "--region", "eu-west-1", "--memory-reserve", "700")
    assert set(found) == {"haar.service", "haar-guests.service"}
    command = shlex.split(found["haar.service"]["ExecStart"])
    assert command[1:] == ["--state-dir", str(daemon.state_dir), "serve", "--region", "eu-west-1", "--memory-reserve", "700"]
    assert found["haar.service"]["KillMode"] == "process", "machines outlive the daemon"
    assert found["haar-guests.service"]["RefuseManualStop"] == "yes" and found["haar-guests.service"]["After"] == "haar.service"
    assert not {"Requires", "BindsTo", "PartOf"} & set(found["haar-guests.service"]), "guests do not go with the daemon"
    if analyze := shutil.which("systemd-analyze"):
        files = [str(tmp_path / name) for name in found]
        done = subprocess.run([analyze, "verify", "--man=no", *files], capture_output=True, text=True)
        assert done.returncode == 0 and not done.stderr.strip(), done.stderr
    daemon.haar("service", "uninstall", "--unit-dir", str(tmp_path))
    assert list(tmp_path.iterdir()) == []
    daemon.haar("service", "uninstall", "--unit-dir", str(tmp_path))
    failed = daemon.haar("service", "install", "--unit-dir", str(tmp_path), "--region", "nonsense", check=False)
    assert failed.returncode == 1 and "region" in failed.stderr and list(tmp_path.iterdir()) == []


@pytest.fixture
def machine(make_daemon, tmp_path):
    """A daemon with a guest, one that is stopped, and the commands of its units."""
    daemon = make_daemon()
    ec2 = daemon.client("ec2")
    launch = launcher(daemon)
    guest, stopped = launch.start(InstanceType="t3.nano"), launch.start(InstanceType="t3.nano")
    stopped.wait_for_state("running")
    ec2.stop_instances(InstanceIds=[stopped.id], SkipOsShutdown=True)
    guest.wait_for_login()
    stopped.wait_for_state("stopped")
    found = units(daemon, tmp_path)["haar-guests.service"]
    return daemon, guest, stopped, shlex.split(found["ExecStart"].removeprefix("-")), shlex.split(found["ExecStop"])


def execute(daemon, command: list[str]) -> str:
    return daemon.haar(*command[1:], timeout=180).stdout


def machines(daemon) -> list[str]:
    return [command for command in processes(str(daemon.state_dir)).values() if "qemu-system" in command.split()[0]]


def back(guest, before: str) -> None:
    """The guest runs again, anew, where it was."""
    guest.hang_up()
    guest.wait_for_state("running")
    guest.wait_for_login()
    assert guest.boot_id() != before
    assert guest.run("cat /root/kept") == "kept"


def restart(daemon) -> None:
    daemon.haar("up", *daemon.flags)


def test_guests_go_down_with_the_machine_and_come_back(machine):
    daemon, guest, stopped, come, go = machine
    # Not flushed: only a clean shutdown keeps it.
    guest.run("echo kept >/root/kept")
    addresses, boot = (guest.private_ip, guest.public_ip), guest.boot_id()
    assert "shut down" in execute(daemon, go)
    assert machines(daemon) == []
    assert "haar-tiny: shutting down" in guest.console() and "the disk is clean" in guest.console()
    # As systemd does next; then the machine is up again.
    daemon.stop()
    restart(daemon)
    execute(daemon, come)
    back(guest, boot)
    assert (guest.private_ip, guest.public_ip) == addresses
    assert stopped.state == "stopped", "what did not run does not run"

    # The daemon need not run when the machine goes down.
    boot = guest.boot_id()
    daemon.kill()
    execute(daemon, go)
    assert machines(daemon) == []
    restart(daemon)
    back(guest, boot)
    # Nor does everything have to end when it has begun.
    boot = guest.boot_id()
    execute(daemon, go)
    execute(daemon, come)
    back(guest, boot)
    # A stop by the API is one for good.
    guest.ec2.stop_instances(InstanceIds=[guest.id])
    guest.wait_for_state("stopped")
    execute(daemon, go)
    daemon.stop()
    restart(daemon)
    time.sleep(2)
    assert guest.state == "stopped" and machines(daemon) == []


@pytest.mark.parametrize("after", [0.05, 0.6, 1.5])
def test_a_daemon_killed_while_guests_go_down_forgets_none(machine, after):
    daemon, guest, stopped, _, go = machine
    guest.run("echo kept >/root/kept; sync")
    boot = guest.boot_id()
    thread = threading.Thread(target=lambda: daemon.haar(*go[1:], check=False, timeout=180))
    thread.start()
    time.sleep(after)
    daemon.kill()
    thread.join(180)
    restart(daemon)
    # Killed before it was asked, it runs on; after that, it comes back.
    guest.hang_up()

    def settled():
        done = guest.ssh("cat /root/kept", timeout=20) if guest.state == "running" else None
        return done is not None and done.returncode == 0

    wait_for(settled, 120, 1)
    time.sleep(4)
    guest.hang_up()
    guest.wait_for_state("running")
    guest.wait_for_login()
    assert boot and stopped.state == "stopped"
