"""Status checks that check: a panicked kernel, a dead link, a machine that hangs; and that all is well again when it is."""

import datetime
import os
import signal
import time

import pytest
from support.machine import machines, wait_for


def status(guest) -> dict:
    [found] = guest.ec2.describe_instance_status(InstanceIds=[guest.id])["InstanceStatuses"]
    return found


def checks(guest) -> tuple[str, str]:
    found = status(guest)
    return found["InstanceStatus"]["Status"], found["SystemStatus"]["Status"]


def become(guest, *wanted: str, timeout: float = 90) -> dict:
    wait_for(lambda: checks(guest) == wanted, timeout, 0.3, f"the checks did not become {wanted}, but {checks(guest)}")
    return status(guest)


@pytest.fixture(scope="module")
def guest(launch):
    guest = launch(InstanceType="t3.nano")
    become(guest, "ok", "ok")
    return guest


def later(guest, script: str) -> None:
    """Has the guest do something when nobody is logged in any more."""
    guest.run(f"setsid sh -c 'sleep 1; {script}' >/dev/null 2>&1 </dev/null & sleep 0.2")
    guest.hang_up()


def qemu(guest) -> int:
    [pid] = machines(guest.id)
    return pid


def test_a_dead_link_is_noticed_and_its_recovery(guest):
    later(guest, "ip link set eth0 down; sleep 30; ip link set eth0 up; /usr/lib/haar/interface eth0")
    found = become(guest, "impaired", "ok")
    assert found["InstanceState"]["Name"] == "running"
    [detail] = found["InstanceStatus"]["Details"]
    assert detail["Status"] == "failed" and detail["Name"] == "reachability"
    assert datetime.datetime.now(datetime.UTC) - detail["ImpairedSince"] < datetime.timedelta(minutes=2)
    filters = [{"Name": "instance-status.status", "Values": ["impaired"]}, {"Name": "instance-status.reachability", "Values": ["failed"]}]
    found = guest.ec2.describe_instance_status(Filters=filters)["InstanceStatuses"]
    assert [each["InstanceId"] for each in found] == [guest.id]
    found = become(guest, "ok", "ok")
    assert found["InstanceStatus"]["Details"] == [{"Name": "reachability", "Status": "passed"}]


def test_a_machine_that_hangs_fails_the_system_check(guest):
    pid = qemu(guest)
    os.kill(pid, signal.SIGSTOP)
    try:
        found = become(guest, "impaired", "impaired")
        assert found["SystemStatus"]["Details"][0]["ImpairedSince"]
    finally:
        os.kill(pid, signal.SIGCONT)
    become(guest, "ok", "ok")
    guest.wait_for_login()


def test_a_panicked_kernel_is_impaired_until_it_is_rebooted(make_daemon, guest):
    before = guest.boot_id()
    later(guest, "echo c >/proc/sysrq-trigger")
    found = become(guest, "impaired", "ok")
    since = found["InstanceStatus"]["Details"][0]["ImpairedSince"]
    assert "Kernel panic" in guest.console()
    # It stays so, also for the next daemon, and since the same time.
    time.sleep(6)
    guest.daemon.kill()
    guest.daemon.start()
    found = become(guest, "impaired", "ok")
    assert found["InstanceStatus"]["Details"][0]["ImpairedSince"] == since
    guest.ec2.reboot_instances(InstanceIds=[guest.id])
    found = become(guest, "ok", "ok")
    assert "ImpairedSince" not in found["InstanceStatus"]["Details"][0]
    guest.wait_for_login()
    assert guest.boot_id() != before
