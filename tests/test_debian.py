"""A full Debian 12 with systemd, cloud-init and OpenSSH."""

import json

import pytest
from conftest import image_id
from support.machine import wait_for

pytestmark = [pytest.mark.debian, pytest.mark.timeout(600)]

USER_DATA = """#cloud-config
hostname: from-cloud-config
write_files:
  - path: /etc/written-by-cloud-init
    content: "hello\\n"
runcmd:
  - [sh, -c, "echo ran by $(id -un) > /var/tmp/runcmd"]
users:
  - default
  - name: second
    sudo: ALL=(ALL) NOPASSWD:ALL
"""


@pytest.fixture(scope="module")
def debian(launch, ec2):
    guest = launch.start(ImageId=image_id(ec2, "debian-12"), InstanceType="t3.medium", UserData=USER_DATA, user="admin")
    guest.wait_for_state("running")
    guest.wait_for_login(400)
    guest.run("cloud-init status --wait >/dev/null; true", timeout=300)
    return guest


def test_cloud_init_used_the_ec2_datasource(debian):
    result = json.loads(debian.run("cat /run/cloud-init/result.json"))
    assert "DataSourceEc2" in result["v1"]["datasource"], result
    assert result["v1"]["errors"] == []
    assert debian.run("cloud-init query v1.instance_id") == debian.id
    assert debian.run("cloud-init query v1.region") == debian.daemon.region


def test_cloud_config_was_carried_out(debian):
    assert debian.run("hostname") == "from-cloud-config"
    assert debian.run("cat /etc/written-by-cloud-init") == "hello"
    assert debian.run("cat /var/tmp/runcmd") == "ran by root"
    assert debian.succeeds("id second")


def test_the_system_is_whole(debian):
    assert debian.run("systemctl is-system-running --wait", timeout=120) == "running"
    assert debian.run("sudo id -un") == "root"
    # Its image boots by either firmware, and UEFI is preferred.
    assert debian.describe()["BootMode"] == "uefi-preferred"
    assert debian.succeeds("test -d /sys/firmware/efi")
    assert "VERSION_ID=\"12\"" in debian.run("cat /etc/os-release")


def test_haar_ssh_knows_its_user_and_its_keys(debian, daemon):
    assert daemon.haar("ssh", debian.id, "--", "id", "-un").stdout.strip() == "admin"
    assert "ssh-ed25519" in (daemon.state_dir / "known_hosts.d" / debian.id).read_text()


def test_it_shuts_down_when_asked(debian):
    debian.ec2.stop_instances(InstanceIds=[debian.id])
    debian.hang_up()
    found = debian.wait_for_state("stopped", 120)
    assert found["StateReason"]["Code"] == "Client.UserInitiatedShutdown"
    wait_for(lambda: "Power down" in debian.console() or "Powering off" in debian.console(), 10)
