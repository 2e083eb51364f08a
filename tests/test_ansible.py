"""Ansible, unmodified: a playbook makes an instance, logs in to it, changes nothing when it runs again, and takes everything back."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

PLAYBOOK = """
- hosts: localhost
  gather_facts: false
  connection: local
  tasks:
    - amazon.aws.ec2_ami_info: {filters: {name: tiny}}
      register: image
    - amazon.aws.ec2_security_group:
        name: ansible
        description: made by a playbook
        rules: [{proto: tcp, ports: [22], cidr_ip: 0.0.0.0/0}]
      when: state == 'running'
    - amazon.aws.ec2_instance:
        name: ansible
        key_name: login
        instance_type: t3.micro
        image_id: "{{ image.images[0].image_id }}"
        security_group: ansible
        network_interfaces: [{assign_public_ip: true}]
        tags: {stage: test}
        wait: true
        state: "{{ state }}"
      register: made
    - amazon.aws.ec2_security_group: {name: ansible, state: absent}
      when: state == 'absent'
    - add_host: {name: guest, ansible_host: "{{ made.instances[0].public_ip_address }}", ansible_user: root}
      when: state == 'running'
    # A host that cannot be reached yet is not tried again by Ansible itself.
    - command: >-
        ssh -i {{ lookup('env', 'ANSIBLE_PRIVATE_KEY_FILE') }} -o BatchMode=yes -o ConnectTimeout=5 -o StrictHostKeyChecking=no
        -o UserKnownHostsFile=/dev/null root@{{ made.instances[0].public_ip_address }} true
      register: login
      retries: 120
      delay: 1
      until: login.rc == 0
      changed_when: false
      when: state == 'running'
- hosts: guest
  gather_facts: false
  tasks:
    - raw: cat /proc/sys/kernel/hostname
"""


@pytest.fixture
def play(daemon, key, tmp_path):
    """A function that runs the playbook and gives how many of its tasks on this machine changed something, and what it printed."""
    (tmp_path / "playbook.yml").write_text(PLAYBOOK)
    environment = os.environ | daemon.aws_environment
    environment |= {
        "ANSIBLE_HOME": str(tmp_path / "home"),
        "ANSIBLE_HOST_KEY_CHECKING": "False",
        "ANSIBLE_PRIVATE_KEY_FILE": str(key),
        "ANSIBLE_STDOUT_CALLBACK": "ansible.posix.json",
        "ANSIBLE_SSH_ARGS": "-o ControlMaster=no -o UserKnownHostsFile=/dev/null",
        "ANSIBLE_PYTHON_INTERPRETER": sys.executable,
    }

    def run(state: str) -> tuple[int, dict]:
        program = Path(sys.executable).with_name("ansible-playbook")
        command = [program, "-i", "localhost,", "-e", f"state={state}", "playbook.yml"]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=280)
        assert done.returncode == 0, done.stdout + done.stderr
        told = json.loads(done.stdout)
        return told["stats"]["localhost"]["changed"], told

    return run


def test_a_playbook(play, ec2):
    changed, told = play("running")
    # The group, the instance, and the host that is added to the play.
    assert changed == 3, told["stats"]
    mine = [{"Name": "tag:Name", "Values": ["ansible"]}, {"Name": "instance-state-name", "Values": ["running"]}]
    [instance] = [i for r in ec2.describe_instances(Filters=mine)["Reservations"] for i in r["Instances"]]
    hostname = told["plays"][1]["tasks"][0]["hosts"]["guest"]["stdout"].strip()
    assert hostname == instance["PrivateDnsName"].split(".")[0]
    changed, told = play("running")
    assert changed == 1, told["stats"]
    play("absent")
    assert not ec2.describe_instances(Filters=mine)["Reservations"]
    assert not ec2.describe_security_groups(Filters=[{"Name": "group-name", "Values": ["ansible"]}])["SecurityGroups"]
