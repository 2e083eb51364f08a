"""Migrations that do not end as they should: daemons that are stopped, fall silent, are taken for gone or flooded. There is one guest, and nothing is left."""

import contextlib
import json
import os
import resource
import signal
import socket
import sqlite3
import ssl
import subprocess
import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from support.between import Between, Cut
from support.machine import wait_for
from test_crash import start_again
from test_migrate import LOAD, Traveller, counted, in_background, migrations, pair, state, traveller  # noqa: F401


def disks(daemon) -> list[Path]:
    """Files of volumes at a daemon."""
    return list((daemon.state_dir / "volumes").glob("vol-*"))


DOWNS = [(side, step, everything) for side in ("source", "target") for step in ("memory flows", "accept", "accept answered") for everything in (False, True)]


@pytest.mark.timeout(180)
@pytest.mark.parametrize("side, step, everything", DOWNS)
def test_a_daemon_is_stopped(traveller, tmp_path, side, step, everything):
    """`haar down` at either side, also with all that it runs. Nothing of a guest stays at a daemon that has not got it, even while it is down."""
    source, target = traveller.source, traveller.target
    stopped = source if side == "source" else target
    reached = threading.Event()

    def seen(message: str) -> None:
        if message == step and not reached.is_set():
            stopped.haar("down", *(["--all"] if everything else []))
            reached.set()
            raise Cut

    between = traveller.between(tmp_path, seen)
    command = traveller.command(between)
    try:
        assert reached.wait(60), between.steps
        if side == "target" and step != "accept answered":
            assert traveller.machine(target) == [] and disks(target) == []
        if everything:
            wait_for(lambda: not stopped.snapshot().added_since(stopped.before), 10, message="haar down --all left something")
        start_again(stopped)
        # Who is stopped when all is there and nobody was asked, asks when it is back.
        moves = step == "accept answered" or (step == "accept" and side == "source")
        holder = target if moves else source
        traveller.is_at(holder, lost=everything and holder is stopped)
        command.communicate(timeout=30)
    finally:
        command.kill()
        between.end()


class Wall(Between):
    """Lets everything through but the answers that would tell the sending daemon that the guest was taken over."""

    def __init__(self, traveller: Traveller, folder):
        self.stands = True
        traveller.guest.hang_up()
        super().__init__(traveller.target.haar("receive").stdout, folder, self._stop)

    def _stop(self, step: str) -> None:
        if self.stands and step in ("accept answered", "abandon", "settled"):
            raise Cut


def doubt(source) -> dict:
    """The migration of which nobody says how it ended."""
    return wait_for(lambda: [m for m in migrations(source) if m["phase"] == "handing-over" and m["message"]], 60)[0]


def told(daemon, migration: str) -> str:
    return next(m["message"] or "" for m in migrations(daemon) if m["id"] == migration)


@pytest.mark.timeout(400)
def test_taken_back_from_a_daemon_that_has_it(traveller, tmp_path):
    """Then there are two. As soon as the daemons hear each other, the one here is shut down, and it is told why; what it wrote is there."""
    source, target, guest = traveller.source, traveller.target, traveller.guest
    wall = Wall(traveller, tmp_path)
    command = traveller.command(wall)
    try:
        migration = doubt(source)["id"]
        assert state(target, guest.id) == "running"
        done = source.haar("migrate", "--take-back", migration)
        assert f"127.0.0.1:{wall.port} could not be asked" in done.stderr
        _, errors = command.communicate(timeout=30)
        assert command.returncode != 0 and "without a word of the daemon at" in errors, errors
        assert state(source, guest.id) == state(target, guest.id) == "running" and len(traveller.pair.machines(guest.id)) == 2
        guest.wait_for_login().run("echo here >/root/fork; sync")
        guest.hang_up()
        # Before it is known how many there are, there shall not be more.
        again = source.haar("migrate", guest.id, "--to", str(target.state_dir), check=False)
        assert again.returncode != 0 and f"may be at 127.0.0.1:{wall.port} as well" in again.stderr, again
        source.kill()
        start_again(source)
        assert state(source, guest.id) == "running"

        wall.stands = False
        said = wait_for(lambda: "the one there is the guest" in told(source, migration) and told(source, migration), 30)
        assert f"127.0.0.1:{wall.port} had it" in said and "volumes keep what it wrote" in said
        described = guest.wait_for_state("stopped")
        assert described["StateReason"] == {"Code": "Server.InternalError", "Message": f"Server.InternalError: {said}"}
        assert "PublicIpAddress" not in described
        assert len(traveller.machine(target)) == 1 and traveller.machine(source) == []
        # The one there goes on, and is reached again where it was.
        there = traveller.pair.moved(guest)
        number = counted(there.wait_for_login())
        assert there.boot_id() == traveller.boot and not there.succeeds("[ -e /root/fork ]")
        wait_for(lambda: counted(there) > number, message="the guest does not count any more")
        there.hang_up()
        # Whoever wants what the other one wrote can still have it.
        guest.ec2.start_instances(InstanceIds=[guest.id])
        guest.wait_for_state("running")
        assert guest.wait_for_login().run("cat /root/fork") == "here"
        assert guest.public_ip != there.public_ip
        guest.hang_up()
        guest.ec2.terminate_instances(InstanceIds=[guest.id])
        guest.wait_for_state("terminated")
        guest.ec2.delete_volume(VolumeId=traveller.volume)
        traveller.is_at(target)
    finally:
        command.kill()
        wall.end()


@pytest.mark.timeout(300)
def test_taken_back_from_a_daemon_where_it_was_terminated(pair, tmp_path):
    """Then the one here is the only one."""
    source, target = pair.daemons
    guest = pair.launch(InstanceType="t3.nano")
    traveller = Traveller(pair, guest, None)
    wall = Wall(traveller, tmp_path)
    command = traveller.command(wall)
    try:
        migration = doubt(source)["id"]
        source.haar("migrate", "--take-back", migration)
        target.client("ec2").terminate_instances(InstanceIds=[guest.id])
        pair.moved(guest).wait_for_state("terminated")
        wall.stands = False
        wait_for(lambda: "it was terminated there" in told(source, migration), 30)
        assert state(source, guest.id) == "running" and guest.wait_for_login().boot_id() == traveller.boot
        assert len(pair.machines(guest.id)) == 1
        # It can go there again.
        guest.hang_up()
        pair.move(guest)
        assert pair.moved(guest).wait_for_login().boot_id() == traveller.boot
        pair.moved(guest).hang_up()
    finally:
        command.kill()
        wall.end()
        traveller.guest = pair.moved(guest) if state(target, guest.id) == "running" else guest
        traveller.end()


@pytest.mark.timeout(240)
def test_a_guest_is_remembered_until_the_other_daemon_has_heard(traveller, tmp_path):
    """However long that takes: a daemon that does not know of the guest any more would be taken for one that has not got it."""
    source, target = traveller.source, traveller.target
    killed, known = threading.Event(), {m["id"] for m in migrations(target)}

    def seen(message: str) -> None:
        if message == "accept answered" and not killed.is_set():
            source.kill()
            target.kill()
            killed.set()
            raise Cut

    between = traveller.between(tmp_path, seen)
    command = traveller.command(between)
    try:
        assert killed.wait(60), between.steps
        age_migrations(target, timedelta(days=2))
        start_again(target)
        # It looks at what it knows as soon as it is up, and forgets what may be forgotten.
        for _ in range(10):
            assert [m["phase"] for m in migrations(target) if m["id"] not in known] == ["received"]
            time.sleep(0.2)
        start_again(source)
        traveller.is_at(target)
    finally:
        command.kill()
        between.end()


def age_migrations(daemon, age: timedelta) -> None:
    """Has all migrations of a daemon that does not run have ended so long ago."""
    ended = int((datetime.now(UTC) - age).timestamp() * 1e9)
    with contextlib.closing(sqlite3.connect(daemon.state_dir / "state.db")) as database, database:
        rows = database.execute("SELECT key, value FROM record WHERE key LIKE '%ec2.migration%'").fetchall()
        assert rows
        for key, value in rows:
            record = json.loads(value)
            if record["ended"]:
                record["ended"] = ended
                database.execute("UPDATE record SET value = ? WHERE key = ?", (json.dumps(record).encode(), key))


@pytest.mark.timeout(180)
@pytest.mark.parametrize("hindered", [False, True])
def test_what_was_made_for_a_guest_that_stays_goes(traveller, tmp_path, hindered):
    """Nobody tells the receiving daemon that the guest stays. What it has made goes all the same, also where that fails at first."""
    source, target = traveller.source, traveller.target
    lost, looked = threading.Event(), threading.Event()

    def seen(message: str) -> None:
        if message == "disks":
            lost.set()
            looked.wait(15)
        if lost.is_set() and message in ("disks", "status", "abandon"):
            raise Cut

    between = traveller.between(tmp_path, seen)
    command = traveller.command(between)
    held: list[Path] = []
    try:
        assert lost.wait(60), between.steps
        assert len(traveller.machine(target)) == 1 and disks(target)
        assert [m for m in migrations(target) if m["phase"] == "receiving"]
        if hindered:
            # A file that something is mounted on cannot be removed.
            held = disks(target)[:1]
            subprocess.run(["mount", "--bind", "/dev/null", held[0]], check=True)
        looked.set()
        _, errors = command.communicate(timeout=60)
        assert command.returncode != 0 and f"{traveller.guest.id} stays here: " in errors, errors
        if hindered:
            wait_for(lambda: [m for m in migrations(target) if m["phase"] == "giving-up"], 40)
            # Its name is not free yet, and what comes under it would be taken for what has to go.
            again = source.haar("migrate", traveller.guest.id, "--to", str(target.state_dir), check=False)
            assert again.returncode != 0 and "is moving there already" in again.stderr, again
            target.kill()
            start_again(target)
            assert [m for m in migrations(target) if m["phase"] == "giving-up"]
            subprocess.run(["umount", held.pop()], check=True)
        traveller.is_at(source)
        assert not [m for m in migrations(target) if m["phase"] in ("receiving", "giving-up")]
    finally:
        for file in held:
            subprocess.run(["umount", file], check=False)
        command.kill()
        between.end()


@pytest.mark.timeout(240)
@pytest.mark.parametrize("trouble", ["the daemon is silent", "disks are held", "memory is held", "the way is slow"])
def test_a_migration_that_does_not_come_forward_ends(traveller, tmp_path, trouble):
    source, target, guest = traveller.source, traveller.target, traveller.guest
    reached = threading.Event()

    def seen(message: str) -> None:
        if message == "memory flows" and not reached.is_set():
            if trouble == "the daemon is silent":
                os.kill(target.pid, signal.SIGSTOP)
            if trouble == "memory is held":
                between.held.add("memory")
            reached.set()
        if (message, trouble) == ("disks", "disks are held"):
            between.held.add("disks")
            reached.set()

    slow = trouble == "the way is slow"
    if slow:
        guest.run("rm -f /run/stop")
        in_background(guest, LOAD)
        wait_for(lambda: guest.succeeds("[ -s /run/load ]"))
    between = traveller.between(tmp_path, seen, 1 << 20 if slow else None)
    command = source.command("migrate", guest.id, "--to", between.invitation, *(["--timeout", "20"] if slow else []))
    try:
        assert reached.wait(60), between.steps
        _, errors = command.communicate(timeout=120)
        why = {
            "the daemon is silent": "no answer within 10 s",
            "disks are held": "",
            "memory is held": "Unable to write to socket",
            "the way is slow": "it had not moved after 20 s, as the way is too slow for what the guest writes",
        }
        assert command.returncode != 0 and f"{guest.id} stays here: " in errors and why[trouble] in errors, errors
        if trouble == "the daemon is silent":
            os.kill(target.pid, signal.SIGCONT)
        if slow:
            guest.run("touch /run/stop")
        traveller.is_at(source)
    finally:
        os.kill(target.pid, signal.SIGCONT)
        command.kill()
        between.end()


class Flood:
    """Connections that come as fast as this process can make them, and say less and less of what a daemon would: nothing, the first bytes of
    TLS, all of TLS and then nothing."""

    HALF = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"

    def __init__(self, port: int, connections: int):
        self.port, self.left, self.open, self.failed = port, connections, [], 0
        self.stop = threading.Event()
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self.context.check_hostname, self.context.verify_mode = False, ssl.CERT_NONE
        self.context.set_alpn_protocols(["haar-ask", "haar-carry"])
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        while self.left and not self.stop.is_set():
            self.left -= 1
            try:
                connection = socket.create_connection(("127.0.0.1", self.port), timeout=5)
                if self.left % 4 == 1:
                    connection.sendall(self.HALF)
                if self.left % 40 == 0:
                    connection = self.context.wrap_socket(connection)
                self.open.append(connection)
            except OSError:
                # It was shown out before it was all said.
                self.failed += 1

    def end(self) -> None:
        self.stop.set()
        self.thread.join()
        for connection in self.open:
            connection.close()


def descriptors(daemon) -> int:
    return len(list(Path(f"/proc/{daemon.pid}/fd").iterdir()))


@pytest.mark.timeout(240)
def test_strangers_neither_stop_a_migration_nor_take_all_descriptors(traveller):
    """Anybody can connect before an invitation is shown."""
    source, target, guest = traveller.source, traveller.target, traveller.guest
    few = 1024
    subprocess.run(["prlimit", "--pid", str(target.pid), f"--nofile={few}:{few}"], check=True)
    before, limits = descriptors(target), resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limits[1], limits[1]))
    guest.hang_up()
    flood = Flood(target.port, 10_000)
    most, ended = 0, threading.Event()

    def look() -> None:
        nonlocal most
        while not ended.is_set():
            most = max(most, descriptors(target))
            time.sleep(0.02)

    watch = threading.Thread(target=look)
    watch.start()
    try:
        wait_for(lambda: len(flood.open) > 1000, 30)
        done = traveller.pair.move(guest)
        assert json.loads(done.stdout)["phase"] == "completed"
        # Those that speak HTTP are served as well.
        assert state(target, guest.id) == "running"
        wait_for(lambda: not flood.left, 120, message="not all connections were made")
        print(f"{len(flood.open)} connections, {flood.failed} more were shown out at once; at most {most} descriptors")
        assert most < few - 100
    finally:
        ended.set()
        watch.join()
        flood.end()
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    traveller.is_at(target)
    wait_for(lambda: descriptors(target) < before + 50, 60, message="connections are not closed")
