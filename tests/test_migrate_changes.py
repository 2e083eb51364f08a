"""What is asked of an instance while it moves, and what changes meanwhile at the daemon that it moves to."""

import json
import threading

import pytest
from botocore.exceptions import ClientError
from conftest import Launcher
from support.between import Between
from support.machine import wait_for
from test_migrate import make_profile, pair, state  # noqa: F401
from test_volumes import create, describe, disk, home


@pytest.fixture(scope="module")
def guest(pair):
    """A guest at the first daemon, where it stays or comes back to."""
    guest = pair.launch(InstanceType="t3.nano")
    yield guest
    guest.hang_up()
    pair.launch.end()
    for daemon in pair.daemons:
        daemon.settles(60)


class Held:
    """A migration that is held at a message until it is let go on."""

    def __init__(self, pair, guest, folder, step: str):
        self.step, self.reached, self.go = step, threading.Event(), threading.Event()
        guest.hang_up()
        self.between = Between(pair.other(guest.daemon).haar("receive").stdout, folder, self._seen)
        self.command = guest.daemon.command("migrate", guest.id, "--to", self.between.invitation, "--json")

    def _seen(self, message: str) -> None:
        if message == self.step and not self.reached.is_set():
            self.reached.set()
            # The other daemon would take the silence for an end.
            assert self.go.wait(15)

    def __enter__(self):
        if not self.reached.wait(60):
            self.__exit__()
            raise AssertionError(self.between.steps)
        return self

    def end(self) -> tuple[int, str]:
        """Lets it go on; gives how it ended, and what was said."""
        self.go.set()
        output, errors = self.command.communicate(timeout=60)
        return self.command.returncode, output + errors

    def __exit__(self, *_) -> None:
        self.go.set()
        self.command.kill()
        self.command.wait()
        self.between.end()


def code(call, **parameters) -> str:
    with pytest.raises(ClientError) as error:
        call(**parameters)
    return error.value.response["Error"]["Code"]


def is_only_at(pair, daemon, guest) -> None:
    other = pair.other(daemon)
    wait_for(lambda: pair.owners(guest.id) == [daemon] and len(pair.machines(guest.id)) == 1, 30, message="not one guest")
    other.settles()


def root(guest) -> str:
    return guest.describe()["BlockDeviceMappings"][0]["Ebs"]["VolumeId"]


def is_rebooted(guest, boot: str, _) -> None:
    def booted_anew() -> bool:
        # The login may be cut off by the reboot.
        asked = guest.ssh("cat /proc/sys/kernel/random/boot_id")
        return asked.returncode == 0 and asked.stdout.strip() != boot

    wait_for(booted_anew, 90, message="the guest was not rebooted")


def is_stopped(guest, *_) -> None:
    guest.wait_for_state("stopped")
    guest.ec2.start_instances(InstanceIds=[guest.id])
    guest.wait_for_state("running")


def has_snapshot(guest, _, answer) -> None:
    snapshot = answer["SnapshotId"]
    guest.ec2.get_waiter("snapshot_completed").wait(SnapshotIds=[snapshot], WaiterConfig={"Delay": 1})
    guest.ec2.delete_snapshot(SnapshotId=snapshot)


def has_volume(guest, _, answer) -> None:
    volume = answer["VolumeId"]
    wait_for(lambda: describe(guest.ec2, volume)["Attachments"][0]["State"] == "attached")
    wait_for(lambda: disk(guest.wait_for_login(), volume), message="the guest does not see the disk")


def is_modified(guest, *_) -> None:
    asked = {"InstanceId": guest.id, "Attribute": "instanceInitiatedShutdownBehavior"}
    assert guest.ec2.describe_instance_attribute(**asked)["InstanceInitiatedShutdownBehavior"]["Value"] == "terminate"


# What is asked while the guest is being copied, why it stays then, and what is true of it afterwards.
CHANGES = {
    "RebootInstances": (lambda guest, _: guest.ec2.reboot_instances(InstanceIds=[guest.id]), "is being rebooted", is_rebooted),
    "CreateSnapshot": (lambda guest, _: guest.ec2.create_snapshot(VolumeId=root(guest)), "a snapshot of vol-", has_snapshot),
    "AttachVolume": (
        lambda guest, volume: guest.ec2.attach_volume(InstanceId=guest.id, VolumeId=volume, Device="/dev/sdf"),
        "is being attached or detached",
        has_volume,
    ),
    "ModifyInstanceAttribute": (
        lambda guest, _: guest.ec2.modify_instance_attribute(InstanceId=guest.id, InstanceInitiatedShutdownBehavior={"Value": "terminate"}),
        "was changed meanwhile",
        is_modified,
    ),
    "StopInstances": (lambda guest, _: guest.ec2.stop_instances(InstanceIds=[guest.id]), "is stopping: only a running instance can move", is_stopped),
}


@pytest.fixture(scope="module")
def volume(guest):
    volume = create(guest.ec2, **home(guest))
    yield volume
    if describe(guest.ec2, volume)["Attachments"]:
        guest.ec2.detach_volume(VolumeId=volume)
        wait_for(lambda: describe(guest.ec2, volume)["State"] == "available")
    guest.ec2.delete_volume(VolumeId=volume)


@pytest.mark.timeout(240)
@pytest.mark.parametrize("operation", CHANGES)
def test_a_change_goes_before_a_move(pair, guest, volume, tmp_path, operation):
    """What is asked of an instance that is being copied happens to it, where it is."""
    ask, why, check = CHANGES[operation]
    boot = guest.wait_for_login().boot_id()
    with Held(pair, guest, tmp_path, "memory flows") as held:
        answer = ask(guest, volume)
        # It is seen while nothing moves on.
        status, said = held.end()
    assert status != 0 and f"{guest.id} stays here: " in said and why in said, said
    check(guest, boot, answer)
    guest.wait_for_login().hang_up()
    is_only_at(pair, guest.daemon, guest)


@pytest.mark.timeout(240)
def test_what_is_handed_over_is_not_found(pair, guest, volume, tmp_path):
    """From when it stands still until the other daemon has it, nothing can be asked of an instance; then it is the other daemon's to ask."""
    ec2, target = guest.ec2, pair.other(guest.daemon)
    boot, disk_of_root = guest.wait_for_login().boot_id(), root(guest)
    spare = create(ec2, **home(guest))
    with Held(pair, guest, tmp_path, "accept") as held:
        one = {"InstanceIds": [guest.id]}
        codes = {
            code(ec2.describe_instances, **one),
            code(ec2.terminate_instances, **one),
            code(ec2.stop_instances, **one),
            code(ec2.reboot_instances, **one),
            code(ec2.attach_volume, InstanceId=guest.id, VolumeId=spare, Device="/dev/sdg"),
            code(ec2.modify_instance_attribute, InstanceId=guest.id, DisableApiTermination={"Value": True}),
        }
        assert codes == {"InvalidInstanceID.NotFound"}
        assert code(ec2.create_snapshot, VolumeId=disk_of_root) == "InvalidVolume.NotFound"
        # Neither is there anything to ask of the other daemon yet.
        assert state(target, guest.id) is None
        status, said = held.end()
    assert status == 0, said
    ec2.delete_volume(VolumeId=spare)
    is_only_at(pair, target, guest)
    moved = pair.moved(guest)
    assert moved.wait_for_login().boot_id() == boot
    moved.hang_up()
    pair.move(moved)
    assert guest.wait_for_login().boot_id() == boot
    guest.hang_up()
    is_only_at(pair, guest.daemon, guest)


@pytest.mark.timeout(240)
def test_an_instance_is_terminated_while_it_moves(pair, tmp_path):
    guest = pair.launch(InstanceType="t3.nano")
    with Held(pair, guest, tmp_path, "memory flows") as held:
        guest.ec2.terminate_instances(InstanceIds=[guest.id])
        status, said = held.end()
    assert status != 0 and "is shutting-down: only a running instance can move" in said, said
    guest.wait_for_state("terminated")
    pair.launch.launched.remove(guest.id)
    wait_for(lambda: not pair.machines(guest.id) and not pair.owners(guest.id), 30)
    pair.other(guest.daemon).settles()


@pytest.mark.timeout(400)
def test_what_was_promised_is_kept_or_the_guest_stays(pair, tmp_path):
    """The daemon that receives keeps the place of a guest that is on its way, and looks again at all that it needs before it takes it over."""
    here, there = pair.daemons
    ec2, theirs = pair.ec2
    launch = Launcher(here, pair.launch.image, pair.launch.key, pair.launch.group)
    for daemon, client in zip(pair.daemons, pair.ec2):
        make_profile(daemon, "mover", "mover")
        client.create_placement_group(GroupName="alone", Strategy="spread")
    guest = launch(InstanceType="t3.nano", IamInstanceProfile={"Name": "mover"}, Placement={"GroupName": "alone"})
    boot, iam = guest.boot_id(), there.client("iam")
    role = {"InstanceProfileName": "mover", "RoleName": "mover"}
    subnet = theirs.describe_subnets(Filters=[{"Name": "availability-zone", "Values": [guest.describe()["Placement"]["AvailabilityZone"]]}])["Subnets"][0]["SubnetId"]
    other = {"ImageId": launch.image, "InstanceType": "t3.nano", "MinCount": 1, "MaxCount": 1}

    def stays(change, mend, why: str) -> None:
        with Held(pair, guest, tmp_path, "accept") as held:
            change()
            status, said = held.end()
        assert status != 0 and f"{guest.id} stays here: " in said and why in said, said
        mend()
        assert guest.wait_for_login().boot_id() == boot and guest.state == "running"
        guest.hang_up()
        there.settles()

    # Its place in the group and its address are taken.
    with Held(pair, guest, tmp_path, "memory flows") as held:
        assert code(theirs.run_instances, **other, Placement={"GroupName": "alone"}) == "InsufficientInstanceCapacity"
        assert code(theirs.run_instances, **other, SubnetId=subnet, PrivateIpAddress=guest.private_ip) == "InvalidIPAddress.InUse"
        held.command.terminate()
        here.haar("migrate", "--cancel", next(m["id"] for m in json.loads(here.haar("migrate", "--list", "--json").stdout) if m["phase"] == "copying"), check=False)
        held.end()
    there.settles()
    stays(lambda: iam.remove_role_from_instance_profile(**role), lambda: iam.add_role_to_instance_profile(**role), "'mover' has no role there")
    stays(
        lambda: theirs.delete_placement_group(GroupName="alone"),
        lambda: theirs.create_placement_group(GroupName="alone", Strategy="spread"),
        "no placement group 'alone' there",
    )
    guest.hang_up()
    assert json.loads(pair.move(guest).stdout)["phase"] == "completed"
    moved = pair.moved(guest)
    assert moved.wait_for_login().boot_id() == boot
    moved.hang_up()
    theirs.terminate_instances(InstanceIds=[guest.id])
    moved.wait_for_state("terminated")
