"""Guests that move between two daemons while they run: memory, disks, addresses and connections go on, and there is always one of them."""

import ipaddress
import json
import os
import signal
import socket
import subprocess
import threading
import time
import urllib.request

import pytest
from botocore.exceptions import ClientError
from conftest import Launcher, launcher
from support.between import Between, Cut
from support.daemon import Daemon, is_alive
from support.guest import Guest
from support.identities import trust
from support.machine import processes, wait_for
from test_crash import start_again
from test_encryption import holds
from test_volumes import attach, create, describe, detach, disk, home


class Pair:
    """Two daemons on this machine, with state folders, names and public addresses of their own."""

    def __init__(self):
        self.daemons = [Daemon().start() for _ in range(2)]
        self.ec2 = [daemon.client("ec2") for daemon in self.daemons]
        self.launch = launcher(self.daemons[0])

    def other(self, daemon: Daemon) -> Daemon:
        return next(other for other in self.daemons if other is not daemon)

    def move(self, guest: Guest, check: bool = True) -> subprocess.CompletedProcess:
        """Moves a guest to the other daemon by the command line."""
        return guest.daemon.haar("migrate", guest.id, "--to", str(self.other(guest.daemon).state_dir), "--json", check=check)

    def moved(self, guest: Guest) -> Guest:
        """The guest where it is after its move."""
        return Guest(self.other(guest.daemon), guest.id, guest.key)

    def owners(self, instance: str) -> list[Daemon]:
        return [daemon for daemon in self.daemons if state(daemon, instance) not in (None, "terminated")]

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
        self.server = socket.create_server((str(guest.daemon.pool[1]), 0))
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
    assert ipaddress.ip_address(moved.public_ip) in there.pool and ipaddress.ip_address(described["PublicIpAddress"]) in here.pool
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
    scheme, secrets = invitation.split("#")
    token, key = secrets.split(".")
    assert "the invitation is not one of this daemon" in refusal(pair, here, guest.id, "--to", f"{scheme}#{token[::-1]}.{key}")
    # A daemon that is another one than the invitation's is told nothing: not even the secret, which still serves.
    assert "another daemon answers there" in refusal(pair, here, guest.id, "--to", f"{scheme}#{token}.{key[::-1]}")
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


def groups(client, name: str) -> list:
    return client.describe_security_groups(Filters=[{"Name": "group-name", "Values": [name]}])["SecurityGroups"]


def migrations(daemon: Daemon) -> list[dict]:
    return json.loads(daemon.haar("migrate", "--list", "--json").stdout)


def phase(daemon: Daemon) -> str | None:
    """How far the migration from a daemon is that has not ended, asked without a process of its own."""
    token = {"x-haar-admin-token": daemon.description["admin_token"]}
    request = urllib.request.Request(f"{daemon.endpoint}/_haar/migrations/list", b"{}", token)
    with urllib.request.urlopen(request, timeout=10) as answer:
        phases = [m["phase"] for m in json.load(answer) if m["to"]]
    return next((phase for phase in phases if phase not in ("completed", "failed")), None)


class Traveller:
    """A guest that is moved again and again, and what must be true of it after each time."""

    SUM = "md5sum </root/file"

    def __init__(self, pair: Pair, guest: Guest, volume: str | None):
        self.pair, self.guest, self.volume = pair, guest, volume
        self.daemons = pair.daemons
        guest.run("dd if=/dev/urandom of=/root/file bs=1M count=4 2>/dev/null; sync")
        self.sum = guest.run(self.SUM)
        self.begin()

    def begin(self) -> None:
        """Notes what goes on from here."""
        count(self.guest, disk(self.guest, self.volume) if self.volume else "/dev/null")
        self.boot, self.number, self.uptime = self.guest.boot_id(), 0, 0.0

    @property
    def source(self) -> Daemon:
        return self.guest.daemon

    @property
    def target(self) -> Daemon:
        return self.pair.other(self.source)

    def machine(self, daemon: Daemon) -> list[int]:
        found = processes(self.guest.id).items()
        return [pid for pid, line in found if "qemu-system" in line.split()[0] and str(daemon.state_dir) in line]

    def kill_machine(self, daemon: Daemon) -> None:
        pids = self.machine(daemon)
        assert pids, "there is no machine to be killed"
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        wait_for(lambda: not any(is_alive(pid) for pid in pids), 10, 0.002)

    def between(self, folder, seen, pace: float | None = None) -> Between:
        self.guest.hang_up()
        return Between(self.target.haar("receive").stdout, folder, seen, pace)

    def command(self, between: Between) -> subprocess.Popen:
        """`haar migrate`, as it runs."""
        return self.source.command("migrate", self.guest.id, "--to", between.invitation)

    def wait_until_settled(self) -> None:
        unsettled = {"copying", "handing-over", "handed-over", "receiving", "giving-up"}

        def settled():
            return not unsettled & {m["phase"] for daemon in self.pair.daemons for m in migrations(daemon)}

        wait_for(settled, 60, message="the migration does not end")

    def is_at(self, daemon: Daemon, lost: bool = False) -> None:
        """The one guest is there, goes on as if nothing had been, and nothing of it is at the other daemon; or its machine was lost, and it is
        told why it does not run."""
        self.wait_until_settled()
        owners = self.pair.owners(self.guest.id)
        # What comes next begins where it is, even if that is wrong.
        self.guest = guest = Guest(owners[0], self.guest.id, self.guest.key)
        assert owners == [daemon]
        if lost:
            told = guest.wait_for_state("stopped")
            assert told["StateReason"]["Code"] == "Server.InternalError" and "lost" in told["StateReason"]["Message"], told
            assert self.pair.machines(guest.id) == []
            guest.ec2.start_instances(InstanceIds=[guest.id])
            guest.wait_for_state("running")
            guest.wait_for_login()
            assert guest.run(self.SUM) == self.sum
            self.begin()
        assert guest.state == "running"
        wait_for(lambda: len(self.machine(daemon)) == 1 and len(self.pair.machines(guest.id)) == 1, 10, message="not one machine")
        # The counter's file is empty while it is written.
        look = f"cat /proc/sys/kernel/random/boot_id; until grep . /run/counted; do :; done; cut -d' ' -f1 /proc/uptime; {self.SUM}; dd if={{}} bs=512 count=1 2>/dev/null | head -n 1"
        device = disk(guest.wait_for_login(), self.volume)
        boot, number, uptime, sum, written = guest.run(look.format(device)).splitlines()
        assert boot == self.boot and sum == self.sum and float(uptime) > self.uptime
        assert int(number) > self.number and abs(int(written) - int(number)) < 20
        self.number, self.uptime = int(number), float(uptime)
        ours = [mapping["Ebs"]["VolumeId"] for mapping in guest.describe()["BlockDeviceMappings"]]
        elsewhere = self.pair.other(daemon)
        for volume in ours:
            assert describe(guest.ec2, volume)["Attachments"][0]["InstanceId"] == guest.id
        theirs = elsewhere.client("ec2")
        assert not theirs.describe_volumes(Filters=[{"Name": "volume-id", "Values": ours}])["Volumes"]
        assert not theirs.describe_network_interfaces()["NetworkInterfaces"]
        left = [elsewhere.state_dir / "volumes" / f"{volume}.qcow2" for volume in ours]
        wait_for(lambda: not [file for file in left if file.exists()], 30, message="a disk was left behind")
        elsewhere.settles()

    def end(self) -> None:
        ec2, guest, launched = self.guest.ec2, self.guest, self.pair.launch.launched
        guest.hang_up()
        ec2.terminate_instances(InstanceIds=[guest.id])
        guest.wait_for_state("terminated")
        if self.volume:
            ec2.delete_volume(VolumeId=self.volume)
        if guest.id in launched:
            launched.remove(guest.id)


@pytest.fixture(scope="module")
def traveller(pair):
    guest = pair.launch(InstanceType="t3.nano")
    volume = create(guest.ec2, **home(guest))
    attach(guest.ec2, volume, guest.id)
    wait_for(lambda: disk(guest, volume), message="the guest does not see the disk")
    traveller = Traveller(pair, guest, volume)
    yield traveller
    traveller.end()
    for daemon in pair.daemons:
        daemon.settles(60)


# Where a migration is broken off: at which message (it is never delivered), and whose the guest is then. Each round begins with a migration that
# gets this far, so that each also proves that the one before has left nothing that hinders.
STAYS, MOVES = "stays", "moves"
FAULTS = ("cut", "source", "target", "both", "source machine", "target machine")
ROUNDS = [
    *(("offer", fault, STAYS) for fault in ("cut", "target")),
    *(("offer answered", fault, STAYS) for fault in ("both", "target machine")),
    # A connection that is broken off before it is made is made again.
    ("disks", "cut", MOVES),
    *(("memory flows", fault, STAYS) for fault in ("cut", "source", "source machine", "target machine")),
    *(("last part", fault, STAYS) for fault in FAULTS),
    *(("accept", fault, MOVES if fault in ("cut", "source", "source machine") else STAYS) for fault in FAULTS if fault != "both"),
    *(("accept answered", fault, MOVES) for fault in FAULTS),
]


@pytest.mark.timeout(180)
@pytest.mark.parametrize("step, fault, outcome", ROUNDS)
def test_cut_off_anywhere_there_is_one_guest(traveller, tmp_path, step, fault, outcome):
    source, target = traveller.source, traveller.target
    reached, stands_still = threading.Event(), threading.Event()

    def watch() -> None:
        while phase(source) != "handing-over":
            time.sleep(0.02)
        stands_still.set()

    def seen(message: str) -> None:
        # The memory goes slowly then, so that some of it is on its way when the guest stands still.
        last_part = step == "last part" and message == "memory chunk" and stands_still.is_set()
        if reached.is_set() or not (last_part or message == step):
            return
        if fault in ("source", "both"):
            source.kill()
        if fault in ("target", "both"):
            target.kill()
        if fault.endswith("machine"):
            traveller.kill_machine(source if fault == "source machine" else target)
        reached.set()
        raise Cut

    between = traveller.between(tmp_path, seen, 24 << 20 if step == "last part" else None)
    command = traveller.command(between)
    if step == "last part":
        threading.Thread(target=watch, daemon=True).start()
    try:
        assert reached.wait(60), between.steps
        if fault in ("source", "both"):
            start_again(source)
        if fault in ("target", "both"):
            start_again(target)
        moves = outcome == MOVES
        # A machine that is killed after it had the guest is lost with it; its daemon tells.
        holds = "target machine" if step == "accept answered" else "source machine"
        traveller.is_at(target if moves else source, lost=fault == holds and (step == "accept answered" or not moves))
        output, errors = command.communicate(timeout=30)
        if fault in ("source", "both"):
            # Its daemon went away under it.
            assert command.returncode != 0
        else:
            assert (command.returncode == 0) == moves, (output, errors)
            assert f"{traveller.guest.id} stays here: " in errors if not moves else f"is at 127.0.0.1:{between.port}" in output
    finally:
        command.kill()
        between.end()


def interrupt(command: subprocess.Popen) -> None:
    command.send_signal(signal.SIGINT)
    # It looks five times a second; until then nothing moves on.
    time.sleep(1.5)


@pytest.mark.timeout(180)
@pytest.mark.parametrize("step", ["offer", "memory flows", "accept"])
def test_a_migration_is_interrupted(traveller, tmp_path, step):
    """Who interrupts `haar migrate` keeps the guest here; once it is being handed over, that is said, and it goes."""
    source, target = traveller.source, traveller.target
    commands: list[subprocess.Popen] = []

    def seen(message: str) -> None:
        if message == step and not between.steps.count(step) > 1:
            wait_for(lambda: commands, 5, 0.01)
            interrupt(commands[0])

    between = traveller.between(tmp_path, seen)
    try:
        command = traveller.command(between)
        commands.append(command)
        output, errors = command.communicate(timeout=60)
        if step == "accept":
            assert command.returncode == 0 and "is handing-over: only a guest that is being copied" in errors, errors
            traveller.is_at(target)
        else:
            assert command.returncode != 0 and "stays here: it was cancelled" in errors, errors
            traveller.is_at(source)
    finally:
        between.end()


class Silence:
    """Packets to and from a port of this host are lost without a word; the rules pass for a daemon's."""

    def __init__(self, port: int, daemon: Daemon):
        self.table = f"inet {daemon.prefix}_silence"
        rules = f"tcp dport {port} drop; tcp sport {port} drop;"
        self.text = f"table {self.table} {{ chain lost {{ type filter hook input priority 0; {rules} }}; }}"

    def begin(self) -> None:
        subprocess.run(["nft", "-f", "-"], input=self.text, text=True, check=True)

    def end(self) -> None:
        subprocess.run(["nft", "delete", "table", *self.table.split()], capture_output=True, check=False)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("step, moves", [("memory flows", False), ("accept answered", True)])
def test_silence_between_living_daemons(traveller, tmp_path, step, moves):
    """The network loses everything, and nobody is told: each side finds out by itself, and they agree when they hear each other again."""
    source, target = traveller.source, traveller.target
    silences: list[Silence] = []

    def seen(message: str) -> None:
        if message == step and not silences:
            silence = Silence(between.port, source)
            silence.begin()
            silences.append(silence)

    between = traveller.between(tmp_path, seen)
    command = traveller.command(between)
    try:
        wait_for(lambda: silences, 60)
        if moves:
            # It runs there; here that is not known, and said.
            wait_for(lambda: state(target, traveller.guest.id) == "running", 10)
            trouble = wait_for(lambda: [m["message"] for m in migrations(source) if m["phase"] == "handing-over" and m["message"]], 90)
            assert "no answer from the daemon at" in trouble[0]
            assert len(traveller.machine(target)) == 1 and state(source, traveller.guest.id) is None
            told = command.stderr.readline()
            assert "haar migrate --take-back mig-" in told, told
            silences[0].end()
            errors = command.stderr.read()
            assert command.wait(60) == 0, errors
            traveller.is_at(target)
        else:
            output, errors = command.communicate(timeout=60)
            assert command.returncode != 0 and f"{traveller.guest.id} stays here: " in errors, errors
            # Still unheard, the other one has given up as well.
            traveller.is_at(source)
    finally:
        command.kill()
        for silence in silences:
            silence.end()
        between.end()


@pytest.mark.timeout(300)
def test_taken_back_from_a_daemon_that_is_gone(traveller, tmp_path):
    """Between the question and the answer the other daemon dies. Only the owner can know that it does not come back."""
    source, target, guest = traveller.source, traveller.target, traveller.guest
    asked = threading.Event()

    def seen(message: str) -> None:
        if message == "accept" and not asked.is_set():
            target.kill()
            asked.set()
            raise Cut

    between = traveller.between(tmp_path, seen)
    command = traveller.command(between)
    try:
        assert asked.wait(60)
        doubt = wait_for(lambda: [m for m in migrations(source) if m["phase"] == "handing-over" and m["message"]], 30)[0]
        assert "no answer" in doubt["message"]
        assert state(source, guest.id) is None
        assert "only a guest that is being copied" in source.haar("migrate", "--cancel", doubt["id"], check=False).stderr
        # The command looks from time to time, and must have seen the doubt before it is over.
        told = command.stderr.readline()
        assert f"haar migrate --take-back {doubt['id']}" in told, told
        source.haar("migrate", "--take-back", doubt["id"])
        errors = command.stderr.read()
        assert command.wait(30) != 0
        assert "without a word of the daemon at" in errors
        assert "only a guest that is being handed over" in source.haar("migrate", "--take-back", doubt["id"], check=False).stderr
        start_again(target)
        traveller.is_at(source)
        # It came back after all, and has said that it has not got the guest.
        wait_for(lambda: [m["message"] for m in migrations(source) if m["id"] == doubt["id"]] == ["it was taken back by hand"], 30)
    finally:
        command.kill()
        between.end()


@pytest.mark.timeout(300)
def test_not_taken_back_from_a_daemon_that_has_it(traveller, tmp_path):
    source, target = traveller.source, traveller.target
    deaf = threading.Event()
    deaf.set()

    def seen(message: str) -> None:
        if message == "accept answered" and deaf.is_set():
            raise Cut

    between = traveller.between(tmp_path, seen)
    command = traveller.command(between)
    try:
        doubt = wait_for(lambda: [m for m in migrations(source) if m["phase"] == "handing-over" and m["message"]], 60)[0]
        refused = source.haar("migrate", "--take-back", doubt["id"], check=False)
        assert refused.returncode != 0 and f"runs at 127.0.0.1:{between.port}" in refused.stderr, refused
        deaf.clear()
        output, errors = command.communicate(timeout=60)
        assert command.returncode == 0, errors
        traveller.is_at(target)
    finally:
        command.kill()
        between.end()


# Writes blocks to two disks, each flushed before it is noted, until it is told to stop.
WRITER = """i=0
while [ ! -e /run/stop ]; do
  i=$((i+1)); slot=$((i * 7 % 64))
  yes "block $i" | head -c 65536 >/run/block
  for disk in $DISKS; do dd if=/run/block of=$disk bs=65536 seek=$slot conv=fsync,notrunc 2>/dev/null || echo $disk $i >>/run/failed; done
  echo "$slot $(md5sum </run/block | cut -d' ' -f1)" >>/run/written
done
echo >/run/stopped
"""

# What the disks should have, and what they have.
CHECK = """echo 3 >/proc/sys/vm/drop_caches
awk '{ last[$1] = $2 } END { for (slot in last) print slot, last[slot] }' /run/written | while read slot sum; do
  for disk in $DISKS; do
    found=$(dd if=$disk bs=65536 skip=$slot count=1 2>/dev/null | md5sum | cut -d' ' -f1)
    [ $found = $sum ] && echo good || echo bad $disk $slot
  done
done | sort | uniq -c
"""

# Fills the same memory again and again.
LOAD = """dd if=/dev/urandom of=/run/random bs=1M count=16 2>/dev/null
while [ ! -e /run/stop ]; do dd if=/run/random of=/run/load bs=1M conv=notrunc 2>/dev/null; done
"""


def in_background(guest: Guest, script: str, **variables: str) -> None:
    text = "".join(f"{name}='{value}'\n" for name, value in variables.items()) + script
    guest.ssh("cat >/run/script.$$; (sh /run/script.$$) >/dev/null 2>&1 </dev/null & echo", input=text)


class Traffic:
    """Numbers that go to a guest and come back, over one connection and without a pause."""

    def __init__(self, guest: Guest):
        options = ("StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null", "LogLevel=ERROR", "BatchMode=yes", "ControlPath=none")
        arguments = [part for option in options for part in ("-o", option)]
        command = ["ssh", "-i", str(guest.key), *arguments, f"root@{guest.public_ip}", "cat"]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.sent = self.heard = 0
        self.wrong: list[str] = []
        self.stop = False
        for work in (self._say, self._hear):
            threading.Thread(target=work, daemon=True).start()

    def _say(self) -> None:
        while not self.stop:
            self.process.stdin.write(f"{self.sent:080}\n")
            self.process.stdin.flush()
            self.sent += 1
            time.sleep(0.002)

    def _hear(self) -> None:
        for line in self.process.stdout:
            if int(line) != self.heard:
                self.wrong.append(line)
            self.heard += 1

    def end(self) -> None:
        """All that was said has come back, in its order."""
        self.stop = True
        try:
            wait_for(lambda: self.heard >= self.sent - 1, 30, message=f"{self.sent} lines sent, {self.heard} heard")
            assert not self.wrong and self.process.poll() is None
        finally:
            self.process.kill()
            self.process.wait()


def make_profile(daemon: Daemon, profile: str, role: str) -> str:
    iam = daemon.client("iam")
    iam.create_role(RoleName=role, AssumeRolePolicyDocument=trust({"Service": "ec2.amazonaws.com"}))
    arn = iam.create_instance_profile(InstanceProfileName=profile)["InstanceProfile"]["Arn"]
    iam.add_role_to_instance_profile(InstanceProfileName=profile, RoleName=role)
    return arn


@pytest.mark.timeout(600)
def test_a_busy_guest_with_secrets_moves(pair, tmp_path):
    """Encrypted volumes, an instance profile and a placement group move, or it is said why not; under load, and over a slow way."""
    here, there = pair.daemons
    ec2, theirs = pair.ec2
    launch = Launcher(here, pair.launch.image, pair.launch.key, pair.launch.group)
    make_profile(here, "traveller", "clerk")
    ec2.create_placement_group(GroupName="apart", Strategy="spread")
    (image,) = ec2.describe_images(ImageIds=[launch.image])["Images"]
    secret = {"DeviceName": image["RootDeviceName"], "Ebs": {"Encrypted": True}}
    guest = launch(InstanceType="t3.nano", IamInstanceProfile={"Name": "traveller"}, Placement={"GroupName": "apart"}, BlockDeviceMappings=[secret])
    volumes = [create(ec2, **home(guest), Encrypted=encrypted) for encrypted in (True, False)]
    for volume, device in zip(volumes, ("/dev/sdf", "/dev/sdg")):
        attach(ec2, volume, guest.id, device)
        wait_for(lambda volume=volume: disk(guest, volume), message="the guest does not see the disk")
    root = guest.describe()["BlockDeviceMappings"][0]["Ebs"]["VolumeId"]
    text = "nobody else may read this"
    guest.run(f"yes '{text}' | head -c 131072 >/root/secret; yes '{text}' | head -c 131072 | dd of={disk(guest, volumes[0])} bs=64k seek=100 2>/dev/null; sync")
    keys = {volume: describe(ec2, volume)["KmsKeyId"] for volume in (root, volumes[0])}

    to = ("--to", str(there.state_dir))
    guest.hang_up()
    assert "no placement group 'apart' there" in refusal(pair, here, guest.id, *to)
    theirs.create_placement_group(GroupName="apart", Strategy="cluster")
    assert "'apart' has another strategy there" in refusal(pair, here, guest.id, *to)
    theirs.delete_placement_group(GroupName="apart")
    theirs.create_placement_group(GroupName="apart", Strategy="spread")
    assert "no instance profile 'traveller' there" in refusal(pair, here, guest.id, *to)
    arn = make_profile(there, "traveller", "porter")

    disks = " ".join(disk(guest, volume) for volume in volumes)
    in_background(guest, WRITER, DISKS=disks)
    in_background(guest, LOAD)
    boot, traffic = guest.boot_id(), Traffic(guest)
    wait_for(lambda: traffic.heard > 10 and guest.succeeds("[ -s /run/written -a -s /run/load ]"))
    guest.hang_up()
    between = Between(there.haar("receive").stdout, tmp_path, pace=16 << 20)
    command = here.command("migrate", guest.id, "--to", between.invitation, "--json")
    progress = []
    while command.poll() is None:
        progress += [m["progress"] for m in migrations(here) if m["phase"] == "copying"]
        time.sleep(0.2)
    output, errors = command.communicate()
    assert command.returncode == 0, errors
    result = json.loads(output)
    rounds, throttled = (max(p[name] for p in progress) for name in ("memory_rounds", "throttled_percent"))
    print(f"downtime {result['downtime_ms']} ms, {result['bytes'] >> 20} MiB in {result['duration_ms']} ms, {rounds} rounds, slowed {throttled} %")
    # It wrote faster than the way allows, and was slowed until it did not.
    assert rounds > 2 and throttled > 0

    moved = pair.moved(guest)
    assert moved.boot_id() == boot and pair.owners(guest.id) == [there]
    written = int(moved.run("wc -l </run/written"))
    wait_for(lambda: int(moved.run("wc -l </run/written")) > written, message="the guest does not write any more")
    traffic.end()
    assert traffic.heard > 100
    moved.run("touch /run/stop")
    wait_for(lambda: moved.succeeds("[ -e /run/stopped ]"), 60)
    assert not moved.succeeds("[ -e /run/failed ]")
    sums = moved.run(f"DISKS='{disks}'\n{CHECK}").split()
    assert sums[1:] == ["good"] and int(sums[0]) >= 2, sums
    # A key of its own, that of the other daemon's account.
    for volume, key in keys.items():
        found = describe(theirs, volume)
        assert found["Encrypted"] and found["KmsKeyId"] != key and found["KmsKeyId"].split(":")[4] != key.split(":")[4]
    assert not describe(theirs, volumes[1])["Encrypted"]
    assert not holds(there, text, root, volumes[0])
    now = moved.describe()
    assert now["IamInstanceProfile"]["Arn"] == arn and now["Placement"]["GroupName"] == "apart"
    assert moved.http("/latest/meta-data/iam/security-credentials/")[2].strip() == "porter"
    # The place in the group is taken.
    with pytest.raises(ClientError) as full:
        theirs.run_instances(ImageId=launch.image, InstanceType="t3.nano", MinCount=1, MaxCount=1, Placement={"GroupName": "apart"})
    assert full.value.response["Error"]["Code"] == "InsufficientInstanceCapacity"
    # The keys are there when the machine is made anew.
    moved.hang_up()
    theirs.stop_instances(InstanceIds=[guest.id])
    moved.wait_for_state("stopped")
    theirs.start_instances(InstanceIds=[guest.id])
    moved.wait_for_state("running")
    device = disk(moved.wait_for_login(), volumes[0])
    assert moved.run("head -n 1 /root/secret") == text and moved.run(f"dd if={device} bs=64k skip=100 count=1 2>/dev/null | head -n 1") == text
    moved.hang_up()
    between.end()
    theirs.terminate_instances(InstanceIds=[guest.id])
    moved.wait_for_state("terminated")
    for volume in volumes:
        theirs.delete_volume(VolumeId=volume)
