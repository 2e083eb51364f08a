"""Guests that move between two daemons while they run: memory, disks, addresses and connections go on, and there is always one of them."""

import json
import os
import random
import signal
import socket
import subprocess
import threading
import time
import urllib.request

import pytest
from botocore.exceptions import ClientError
from conftest import Launcher, image_id, open_group, save_key
from support.daemon import Daemon
from support.guest import Guest
from support.machine import processes, wait_for
from test_crash import start_again
from test_volumes import attach, create, describe, detach, disk, home


class Pair:
    """Two daemons on this machine, with state folders, names and public addresses of their own."""

    def __init__(self):
        self.daemons = [Daemon().start() for _ in range(2)]
        here = self.daemons[0]
        self.key = save_key(here, "login")
        self.ec2 = [daemon.client("ec2") for daemon in self.daemons]
        self.launch = Launcher(here, image_id(self.ec2[0], "tiny"), self.key, open_group(self.ec2[0], "ssh"))

    def other(self, daemon: Daemon) -> Daemon:
        return next(other for other in self.daemons if other is not daemon)

    def move(self, guest: Guest, check: bool = True) -> subprocess.CompletedProcess:
        """Moves a guest to the other daemon by the command line."""
        return guest.daemon.haar("migrate", guest.id, "--to", str(self.other(guest.daemon).state_dir), "--json", check=check)

    def moved(self, guest: Guest) -> Guest:
        """The guest where it is after its move."""
        return Guest(self.other(guest.daemon), guest.id, guest.key)

    def owners(self, instance: str) -> list[Daemon]:
        return [daemon for daemon in self.daemons if state(daemon, instance) is not None]

    def machines(self, instance: str) -> list[int]:
        """QEMU's processes of an instance at either daemon."""
        return [pid for pid, line in processes(instance).items() if "qemu-system" in line.split()[0]]


def state(daemon: Daemon, instance: str) -> str | None:
    try:
        answer = daemon.client("ec2").describe_instances(InstanceIds=[instance])
    except ClientError as error:
        assert error.response["Error"]["Code"] == "InvalidInstanceID.NotFound"
        return None
    return answer["Reservations"][0]["Instances"][0]["State"]["Name"]


@pytest.fixture(scope="module")
def pair():
    pair = Pair()
    yield pair
    for daemon in pair.daemons:
        daemon.destroy()


class Speaker:
    """A server on this host that a guest has connected to: the guest only listens. No group lets what it says in but as part of that connection."""

    def __init__(self, guest: Guest):
        self.server = socket.create_server((guest.public_ip.rsplit(".", 1)[0] + ".1", 0))
        self.server.settimeout(30)
        host, port = self.server.getsockname()
        guest.run(f"(sleep 100000 | nc {host} {port} >/run/told) >/dev/null 2>&1 </dev/null & echo")
        self.connection, _ = self.server.accept()
        self.said = 0

    def is_heard(self, guest: Guest) -> None:
        self.said += 1
        self.connection.sendall(f"word {self.said}\n".encode())
        wait_for(lambda: f"word {self.said}" in guest.run("cat /run/told"), 15, message="the guest does not hear what it is told")

    def end(self) -> None:
        self.connection.close()
        self.server.close()


class Session:
    """One SSH connection whose other end answers every line, as long as it stands."""

    def __init__(self, guest: Guest):
        options = ("StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null", "LogLevel=ERROR", "BatchMode=yes", "ControlPath=none")
        arguments = [part for option in options for part in ("-o", option)]
        script = 'while read line; do echo "heard $line"; done'
        self.process = subprocess.Popen(
            ["ssh", "-i", str(guest.key), *arguments, f"root@{guest.public_ip}", script],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
        )

    def say(self, line: str, timeout: float = 30) -> str:
        answers = []

        def talk():
            self.process.stdin.write(f"{line}\n")
            self.process.stdin.flush()
            answers.append(self.process.stdout.readline().strip())

        thread = threading.Thread(target=talk, daemon=True)
        thread.start()
        thread.join(timeout)
        assert answers, f"no answer to {line!r} within {timeout} s"
        return answers[0]

    def end(self) -> None:
        self.process.kill()
        self.process.wait()


def count(guest: Guest, device: str) -> None:
    """Has the guest count in memory, and write every number to a disk."""
    script = f"i=0; while :; do i=$((i+1)); echo $i >/run/counted; echo $i | dd of={device} bs=512 conv=fsync,notrunc 2>/dev/null; sleep 0.05; done"
    guest.run(f"(sh -c '{script}') >/dev/null 2>&1 </dev/null & echo")


def counted(guest: Guest) -> int:
    return int(guest.run("cat /run/counted") or 0)


@pytest.mark.timeout(600)
def test_a_guest_moves_with_all_it_has(pair):
    here, there = pair.daemons
    ec2, theirs = pair.ec2
    guest = pair.launch(InstanceType="t3.nano", UserData="move me", TagSpecifications=[{"ResourceType": "instance", "Tags": [{"Key": "Name", "Value": "mover"}]}])
    volume = create(ec2, **home(guest))
    attach(ec2, volume, guest.id)
    wait_for(lambda: disk(guest, volume), message="the guest does not see the disk")
    device = disk(guest, volume)
    guest.run(f"dd if=/dev/urandom of={device} bs=1M seek=16 count=24 conv=fsync 2>/dev/null; dd if=/dev/urandom of=/root/file bs=1M count=8 2>/dev/null; sync")
    sums = f"dd if={device} bs=1M skip=16 count=24 2>/dev/null | md5sum; md5sum /root/file; echo 3 >/proc/sys/vm/drop_caches"
    before, described, boot, uptime = guest.run(sums), guest.describe(), guest.boot_id(), guest.uptime()
    count(guest, device)
    session, speaker = Session(guest), Speaker(guest)
    assert session.say("one") == "heard one"
    speaker.is_heard(guest)
    guest.hang_up()

    result = json.loads(pair.move(guest).stdout)
    print(f"downtime {result['downtime_ms']} ms, {result['bytes'] >> 20} MiB in {result['duration_ms']} ms")
    assert (result["phase"], result["instance_id"], result["message"]) == ("completed", guest.id, None)
    assert result["bytes"] > 24 << 20 and result["downtime_ms"] is not None
    # The connection stands.
    assert session.say("two") == "heard two"

    moved = pair.moved(guest)
    speaker.is_heard(moved)
    assert pair.owners(guest.id) == [there] and len(pair.machines(guest.id)) == 1
    now = moved.describe()
    same = ("PrivateIpAddress", "PublicIpAddress", "LaunchTime", "Tags", "InstanceType", "ImageId", "KeyName", "PrivateDnsName", "BlockDeviceMappings")
    assert {name: now[name] for name in same} == {name: described[name] for name in same}
    assert now["NetworkInterfaces"][0]["MacAddress"] == described["NetworkInterfaces"][0]["MacAddress"]
    assert now["SecurityGroups"][0]["GroupName"] == "ssh"
    assert describe(theirs, volume)["State"] == "in-use"
    with pytest.raises(ClientError):
        describe(ec2, volume)
    assert not list((here.state_dir / "volumes").glob("vol-*")) and not list((here.state_dir / "console").glob("*"))
    # So do memory and disks.
    assert moved.boot_id() == boot and moved.uptime() > uptime
    first = counted(moved)
    wait_for(lambda: counted(moved) > first, message="the guest does not count any more")
    assert moved.run(sums) == before
    # And what serves it is the other daemon.
    assert moved.http("/latest/meta-data/instance-id")[2] == guest.id
    assert moved.http("/latest/user-data")[2] == "move me"
    assert moved.succeeds(f"nslookup {now['PrivateDnsName']} 169.254.169.253")
    wait_for(lambda: checks(theirs, guest.id) == ("ok", "ok"), 90, message="the status checks do not pass")
    assert "Linux version" in moved.console() or "login" in moved.console() or moved.console()

    # Back, with all that was attached while it ran.
    moved.hang_up()
    result = json.loads(pair.move(moved).stdout)
    print(f"downtime {result['downtime_ms']} ms, {result['bytes'] >> 20} MiB in {result['duration_ms']} ms")
    assert session.say("three") == "heard three"
    speaker.is_heard(guest)
    assert pair.owners(guest.id) == [here] and len(pair.machines(guest.id)) == 1
    assert guest.boot_id() == boot and guest.run(sums) == before
    assert guest.describe()["PublicIpAddress"] == described["PublicIpAddress"]

    # There for good: what is there is an instance like every other.
    guest.hang_up()
    pair.move(guest)
    assert session.say("four") == "heard four"
    speaker.is_heard(moved)
    session.end()
    speaker.end()
    snapshot = theirs.create_snapshot(VolumeId=volume)["SnapshotId"]
    theirs.get_waiter("snapshot_completed").wait(SnapshotIds=[snapshot], WaiterConfig={"Delay": 1})
    detach(theirs, volume)
    assert disk(moved, volume) is None
    moved.run("echo kept >/root/kept; sync")
    moved.hang_up()
    theirs.stop_instances(InstanceIds=[guest.id])
    moved.wait_for_state("stopped")
    theirs.start_instances(InstanceIds=[guest.id])
    moved.wait_for_state("running")
    moved.wait_for_login()
    # Its public address is of the other pool from then on.
    assert moved.public_ip.rsplit(".", 1)[0] != described["PublicIpAddress"].rsplit(".", 1)[0]
    assert moved.run("cat /root/kept") == "kept" and moved.boot_id() != boot
    theirs.delete_snapshot(SnapshotId=snapshot)
    theirs.delete_volume(VolumeId=volume)
    moved.hang_up()
    theirs.terminate_instances(InstanceIds=[guest.id])
    moved.wait_for_state("terminated")
    pair.launch.launched.remove(guest.id)
    for daemon in pair.daemons:
        daemon.settles()


def checks(client, instance: str) -> tuple[str, str]:
    status = client.describe_instance_status(InstanceIds=[instance])["InstanceStatuses"][0]
    return status["InstanceStatus"]["Status"], status["SystemStatus"]["Status"]


def refusal(pair, daemon: Daemon, *arguments: str) -> str:
    done = daemon.haar("migrate", *arguments, check=False)
    assert done.returncode != 0, done
    return done.stderr


@pytest.mark.timeout(300)
def test_what_cannot_move_stays(pair):
    here, there = pair.daemons
    ec2, theirs = pair.ec2
    to = ("--to", str(there.state_dir))
    assert "there is no instance" in refusal(pair, here, "i-0123456789abcdef0", *to)
    guest = pair.launch.start(InstanceType="t3.nano")
    guest.wait_for_state("running")
    boot = guest.wait_for_login().boot_id()
    assert "neither a state folder nor an invitation" in refusal(pair, here, guest.id, "--to", "/nowhere")
    assert "cannot be read" in refusal(pair, here, guest.id, "--to", "http://127.0.0.1/")
    assert "is at that daemon already" in refusal(pair, here, guest.id, "--to", str(here.state_dir))
    invitation = there.haar("receive").stdout.strip()
    assert "the invitation is not one of this daemon" in refusal(pair, here, guest.id, "--to", invitation[:-4] + "0000")
    # A group of its name with other rules is there: neither is changed.
    group = theirs.create_security_group(GroupName="ssh", Description="another") if not groups(theirs, "ssh") else None
    if group:
        assert "'ssh' has other rules there" in refusal(pair, here, guest.id, *to)
        theirs.delete_security_group(GroupId=group["GroupId"])
    ec2.create_security_group(GroupName="late", Description="made by a test")
    # An image that is not there.
    image = there.state_dir / "images" / pair.launch.image
    image.rename(image.with_name("away"))
    try:
        assert pair.launch.image in refusal(pair, here, guest.id, *to)
    finally:
        image.with_name("away").rename(image)
    # What fails leaves nothing there, and the guest here as it was.
    assert pair.owners(guest.id) == [here] and guest.boot_id() == boot
    there.settles()
    guest.hang_up()
    ec2.stop_instances(InstanceIds=[guest.id])
    guest.wait_for_state("stopped")
    assert "is stopped: only a running instance can move" in refusal(pair, here, guest.id, *to)
    pair.launch.end()
    here.settles()


def sends_memory(daemon: Daemon) -> bool:
    """Whether a guest's memory is on its way from a daemon, or has been a moment ago."""
    token = {"x-haar-admin-token": daemon.description["admin_token"]}
    request = urllib.request.Request(f"{daemon.endpoint}/_haar/migrations/list", b"{}", token)
    with urllib.request.urlopen(request, timeout=10) as answer:
        found = json.load(answer)
    new = [m for m in found if m["to"] and m["id"] not in SEEN]
    under_way = [m for m in new if m["progress"]["memory_sent"] or m["phase"] != "copying"]
    SEEN.update(m["id"] for m in under_way)
    return bool(under_way)


SEEN: set[str] = set()


def groups(client, name: str) -> list:
    return client.describe_security_groups(Filters=[{"Name": "group-name", "Values": [name]}])["SecurityGroups"]


@pytest.mark.timeout(900)
def test_cut_off_anywhere_there_is_one_guest(pair):
    """Daemons and machines are killed while a guest moves."""
    here, there = pair.daemons
    guest = pair.launch(InstanceType="t3.nano")
    volume = create(pair.ec2[0], **home(guest))
    attach(pair.ec2[0], volume, guest.id)
    wait_for(lambda: disk(guest, volume), message="the guest does not see the disk")
    count(guest, disk(guest, volume))
    boot = guest.boot_id()
    seed = random.randrange(1 << 32)
    chance = random.Random(seed)
    print(f"seed {seed}")
    begin = time.monotonic()
    guest.hang_up()
    pair.move(guest)
    usual = time.monotonic() - begin
    for daemon in pair.daemons:
        sends_memory(daemon)
    guest = pair.moved(guest)
    victims = ["source", "target", "source", "target", "both", "receiving machine", "stalled", "source", "target", "both", "machine"]
    outcomes = []
    for round, victim in enumerate(victims):
        source, target = guest.daemon, pair.other(guest.daemon)
        number = counted(guest)
        guest.hang_up()
        command = threading.Thread(target=lambda: pair.move(guest, check=False))
        before = pair.machines(guest.id)
        command.start()
        if round < 2:
            time.sleep(usual * chance.random())
        else:
            # From when the memory is being sent until after the guest was handed over: there it matters.
            wait_for(lambda source=source: sends_memory(source), 60, 0.002, "no memory is sent")
            time.sleep(chance.random() * 0.6)
        if victim == "stalled":
            os.kill(target.pid, signal.SIGSTOP)
            time.sleep(3)
            os.kill(target.pid, signal.SIGCONT)
        if "machine" in victim:
            found = pair.machines(guest.id)
            doomed = [pid for pid in found if (pid in before) == (victim == "machine")]
            for pid in doomed:
                os.kill(pid, signal.SIGKILL)
        if victim in ("source", "both"):
            source.kill()
        if victim in ("target", "both"):
            target.kill()
        if victim in ("source", "both"):
            start_again(source)
        if victim in ("target", "both"):
            start_again(target)
        command.join(120)
        assert not command.is_alive()

        def settled():
            phases = [m["phase"] for d in pair.daemons for m in json.loads(d.haar("migrate", "--list", "--json").stdout)]
            return not {"copying", "handing-over", "handed-over", "receiving"} & set(phases)

        wait_for(settled, 60, message=f"the migration does not end; {victim}, seed {seed}")
        sends_memory(source)
        owners = pair.owners(guest.id)
        assert len(owners) == 1, f"{victim}: owned by {owners}; seed {seed}"
        outcomes.append((victim, "stayed" if owners == [source] else "moved"))
        guest = Guest(owners[0], guest.id, guest.key)
        wait_for(lambda: guest.state in ("running", "stopped"), 60)
        if guest.state == "stopped":
            # Its machine was killed, and nothing else may end it.
            assert "machine" in victim, f"{victim}: the guest was lost; seed {seed}"
            pair.launch.ec2 = guest.ec2
            guest.ec2.start_instances(InstanceIds=[guest.id])
            guest.wait_for_state("running")
            guest.wait_for_login()
            count(guest, disk(guest, volume))
            boot = guest.boot_id()
            number = 0
        wait_for(lambda: len(pair.machines(guest.id)) == 1, 30, message=f"{victim}: not one machine; seed {seed}")
        guest.wait_for_login()
        assert guest.boot_id() == boot, f"{victim}: the guest was restarted; seed {seed}"
        wait_for(lambda number=number: counted(guest) > number, message="the guest does not count any more")
        assert describe(guest.ec2, volume)["Attachments"][0]["InstanceId"] == guest.id
        elsewhere = pair.other(guest.daemon)
        ours = [mapping["Ebs"]["VolumeId"] for mapping in guest.describe()["BlockDeviceMappings"]]
        left = [elsewhere.state_dir / "volumes" / f"{volume}.qcow2" for volume in ours]
        wait_for(lambda left=left: not [file for file in left if file.exists()], 30, message="a disk was left behind")
        elsewhere.settles()
    print(outcomes)
    guest.hang_up()
    guest.ec2.terminate_instances(InstanceIds=[guest.id])
    guest.wait_for_state("terminated")
    guest.ec2.delete_volume(VolumeId=volume)
    for daemon in pair.daemons:
        daemon.settles(60)
