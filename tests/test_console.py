"""The console of an instance: its display as a picture, its serial line in a terminal."""

import base64
import os
import pty
import select
import subprocess
import termios
import time

import pytest
from botocore.exceptions import ClientError
from support.daemon import BINARY
from support.errors import code
from support.machine import wait_for


@pytest.fixture(scope="module")
def guest(launch):
    return launch(InstanceType="t3.nano")


def picture(guest, **parameters) -> bytes:
    answer = guest.ec2.get_console_screenshot(InstanceId=guest.id, **parameters)
    assert answer["InstanceId"] == guest.id
    data = base64.b64decode(answer["ImageData"])
    assert data[:3] == b"\xff\xd8\xff" and data[-2:] == b"\xff\xd9", "a whole JPEG file"
    return data


def size(jpeg: bytes) -> tuple[int, int]:
    """Height and width, from the frame header."""
    at = 2
    while jpeg[at + 1] not in (0xC0, 0xC1, 0xC2):
        at += 2 + int.from_bytes(jpeg[at + 2 : at + 4])
    return int.from_bytes(jpeg[at + 5 : at + 7]), int.from_bytes(jpeg[at + 7 : at + 9])


def test_a_screenshot_shows_the_display(guest):
    guest.run("printf '\\033[2J\\033[H' >/dev/tty1")
    empty = picture(guest)
    height, width = size(empty)
    assert height >= 400 and width >= 640
    guest.run("for line in $(seq 20); do echo 'the quick brown fox jumps over the lazy dog'; done >/dev/tty1")
    written = wait_for(lambda: next((p for p in [picture(guest)] if len(p) > 2 * len(empty)), None), 20)
    assert size(written) == (height, width)


def test_a_screenshot_may_wake_the_display_up(guest):
    """By a key that has no other effect."""
    lit = picture(guest)
    assert size(picture(guest, WakeUp=True)) == size(lit)
    guest.run("true")


def test_screenshots_that_cannot_be(guest, sim, sim_image):
    with pytest.raises(ClientError) as error:
        guest.ec2.get_console_screenshot(InstanceId="i-00000000000000000")
    assert code(error) == "InvalidInstanceID.NotFound"
    with pytest.raises(ClientError) as error:
        guest.ec2.get_console_screenshot(InstanceId=guest.id, DryRun=True)
    assert code(error) == "DryRunOperation"
    [launched] = sim.run_instances(ImageId=sim_image, InstanceType="t3.nano", MinCount=1, MaxCount=1)["Instances"]
    id_ = launched["InstanceId"]
    sim.get_waiter("instance_running").wait(InstanceIds=[id_], WaiterConfig={"Delay": 1, "MaxAttempts": 20})
    with pytest.raises(ClientError) as error:
        sim.get_console_screenshot(InstanceId=id_)
    assert code(error) == "UnsupportedOperation"
    sim.terminate_instances(InstanceIds=[id_])
    sim.get_waiter("instance_terminated").wait(InstanceIds=[id_], WaiterConfig={"Delay": 1, "MaxAttempts": 20})
    with pytest.raises(ClientError) as error:
        sim.get_console_screenshot(InstanceId=id_)
    assert code(error) == "IncorrectInstanceState"


class Terminal:
    """`haar console` in a terminal of its own."""

    def __init__(self, daemon, instance: str):
        self.master, slave = pty.openpty()
        self.slave = os.dup(slave)
        self.before = termios.tcgetattr(self.slave)
        self.process = subprocess.Popen(
            [BINARY, "console", instance], stdin=slave, stdout=slave, stderr=slave, env=daemon.environment, start_new_session=True
        )
        os.close(slave)
        self.seen = ""

    def type(self, text: str) -> None:
        os.write(self.master, text.encode())

    def expect(self, text: str, timeout: float = 30) -> str:
        """Waits until a text is shown, and gives what was shown up to it."""
        deadline = time.monotonic() + timeout
        while text not in self.seen:
            ready, _, _ = select.select([self.master], [], [], 0.2)
            if ready:
                self.seen += os.read(self.master, 65536).decode(errors="replace")
            assert time.monotonic() < deadline, f"{text!r} was not shown, but {self.seen[-2000:]!r}"
        shown, _, self.seen = self.seen.partition(text)
        return shown

    def ends(self) -> int:
        return self.process.wait(20)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self.master)
        os.close(self.slave)


@pytest.fixture
def terminal(daemon, guest):
    opened = []

    def open_(instance: str = guest.id) -> Terminal:
        opened.append(Terminal(daemon, instance))
        return opened[-1]

    yield open_
    for each in opened:
        each.close()


def test_the_serial_console_in_a_terminal(daemon, guest, terminal):
    address = guest.public_ip
    guest.run("setsid cat /dev/ttyS0 >/root/typed 2>/dev/null </dev/null & sleep 0.2")

    def works(session: Terminal, word: str) -> None:
        """What is typed arrives in the guest, and what the guest prints is shown."""
        session.type(f"in-{word}\r")
        wait_for(lambda: f"in-{word}" in guest.ssh("cat /root/typed", address=address).stdout.splitlines(), 20)
        guest.ssh(f"echo out-{word} >/dev/ttyS0", address=address)
        session.expect(f"out-{word}")

    first = terminal()
    first.expect("detach with Ctrl-]")
    first.expect("haar-tiny: ready")  # What was printed before is shown again.
    assert termios.tcgetattr(first.slave)[3] & (termios.ICANON | termios.ECHO | termios.ISIG) == 0, "keys go to the guest"
    works(first, "one")

    second = terminal()
    shown = second.expect("attached to it")
    assert f"process {first.process.pid}" in shown
    assert second.ends() == 1

    # The daemon may come and go.
    daemon.kill()
    try:
        works(first, "two")
    finally:
        daemon.start()
    assert guest.state == "running"
    works(first, "three")

    first.type("\x1d")
    first.expect("detached")
    assert first.ends() == 0
    assert termios.tcgetattr(first.slave) == first.before, "the terminal is as it was"
    third = terminal()
    third.expect("out-three")
    works(third, "four")
    # A session that was killed holds nothing.
    third.process.kill()
    third.process.wait()
    fourth = terminal()
    fourth.expect("out-four")
    # Ctrl-C is the guest's, too, whose terminal shows it.
    fourth.type("\x03")
    fourth.expect("^C")
    assert fourth.process.poll() is None
    fourth.type("\x1d")
    assert fourth.ends() == 0


def test_consoles_that_are_not_there(daemon):
    failed = daemon.haar("console", "i-00000000000000000", check=False)
    assert failed.returncode == 1 and "does not run" in failed.stderr
    failed = daemon.haar("console", "nobody", check=False)
    assert failed.returncode == 1 and "nobody" in failed.stderr


def test_the_end_of_the_machine_ends_the_session(launch, terminal):
    guest = launch.start(InstanceType="t3.nano")
    guest.wait_for_state("running")
    session = terminal(guest.id)
    session.expect("detach with Ctrl-]")
    guest.ec2.terminate_instances(InstanceIds=[guest.id], SkipOsShutdown=True)
    session.expect("has ended", 60)
    assert session.ends() == 0
