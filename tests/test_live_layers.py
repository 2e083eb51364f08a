"""What removed snapshots leave below a disk is merged while its guest runs, and the guest notices nothing of it."""

import os
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest
from support.machine import wait_for
from test_crash import start_again
from test_ebs_direct import upload
from test_layers import blocks, chain, depth, file, nothing_is_left
from test_snapshots import remove, snapshot
from test_volumes import attach, create, delete, detach, disk, home

# What the tests write and read of a disk, in MiB.
SIZE = 24


def qemu(daemon, instance: str) -> int:
    return int((daemon.state_dir / "run" / "vm" / instance / "pid").read_text())


def opened(daemon, pid: int) -> list[str]:
    """The files of volumes and snapshots that a process has open, as the kernel names them."""
    links = (os.readlink(entry) for entry in Path(f"/proc/{pid}/fd").iterdir())
    return sorted(link for link in links if link.startswith(str(daemon.state_dir / "volumes")))


def layers(daemon, pid: int, volume: str) -> int:
    """How many files a guest's QEMU has open for a volume, with those that are of none any more."""
    ids = chain(daemon, volume)
    return len([link for link in opened(daemon, pid) if Path(link).name.split(".")[0] in ids or link.endswith("(deleted)")])


def fill(guest, device: str, chance: random.Random) -> None:
    """Gives back some of the disk, writes random bytes to some MiB of it, some of them over what was there, and has all of that flushed."""
    places = chance.sample(range(SIZE), 4)
    writes = [f"dd if=/dev/urandom of={device} bs=64k count=16 seek={16 * place} conv=fsync,notrunc 2>/dev/null" for place in places]
    guest.run(" && ".join([f"busybox blkdiscard -o {chance.randrange(SIZE)}M -l 64k {device}", *writes]))


def total(guest, device: str) -> str:
    """The sum of what is on the disk, not of what the guest remembers."""
    return guest.run(f"sync; echo 3 >/proc/sys/vm/drop_caches; dd if={device} bs=1M count={SIZE} 2>/dev/null | md5sum").split()[0]


def wait_until_short(daemon, pid: int, volume: str, most: int) -> None:
    def short():
        files = opened(daemon, pid)
        return depth(daemon, volume) <= most and layers(daemon, pid, volume) <= most and not [f for f in files if f.endswith("(deleted)")]

    wait_for(short, 120, 0.2, "the chain of the guest that runs stays long")


@pytest.mark.timeout(600)
@pytest.mark.parametrize("encrypted", [False, True])
def test_the_chain_of_a_guest_that_runs_becomes_short(daemon, ec2, guest, encrypted):
    chance = random.Random(7)
    volume = create(ec2, **home(guest), Encrypted=encrypted)
    attach(ec2, volume, guest.id)
    device = wait_for(lambda: disk(guest, volume), message="the guest does not see the disk")
    pid, names, sums = qemu(daemon, guest.id), [], {}
    for _ in range(7):
        fill(guest, device, chance)
        names.append(snapshot(ec2, volume))
        sums[names[-1]] = total(guest, device)
    assert depth(daemon, volume) == layers(daemon, pid, volume) == 8
    fill(guest, device, chance)
    now, kept = total(guest, device), names.pop(3)
    remove(ec2, names)
    # At most two for each that is in use: the volume and the snapshot.
    wait_until_short(daemon, pid, volume, 4)
    wait_for(lambda: not [n for n in names if file(daemon, n).exists() and n not in chain(daemon, volume)], 60, 0.2, "a layer was left behind")
    assert qemu(daemon, guest.id) == pid
    assert total(guest, device) == now
    copy = create(ec2, **home(guest), SnapshotId=kept)
    attach(ec2, copy, guest.id, "/dev/sdg")
    other = wait_for(lambda: disk(guest, copy), message="the guest does not see the disk")
    assert total(guest, other) == sums[kept]
    # It goes on: more is written, snapshotted and merged over what was merged.
    for _ in range(2):
        fill(guest, device, chance)
        names.append(snapshot(ec2, volume))
    now = total(guest, device)
    detach(ec2, copy)
    delete(ec2, copy)
    remove(ec2, [kept, *names[-2:]])
    wait_until_short(daemon, pid, volume, 2)
    assert total(guest, device) == now
    # The graph that is built at the next attachment is that of the files.
    detach(ec2, volume)
    attach(ec2, volume, guest.id)
    device = wait_for(lambda: disk(guest, volume), message="the guest does not see the disk")
    assert total(guest, device) == now
    detach(ec2, volume)
    delete(ec2, volume)
    nothing_is_left(daemon, volume, copy, kept, *names)


def test_two_guests_over_the_same_layers(daemon, ec2, launch, guest):
    chance = random.Random(8)
    volume = create(ec2, **home(guest))
    attach(ec2, volume, guest.id)
    device, names = wait_for(lambda: disk(guest, volume), message="the guest does not see the disk"), []
    for _ in range(4):
        fill(guest, device, chance)
        names.append(snapshot(ec2, volume))
    before = total(guest, device)
    neighbour = launch(InstanceType="t3.nano")
    copy = create(ec2, **home(neighbour), SnapshotId=names[-1])
    attach(ec2, copy, neighbour.id)
    other = wait_for(lambda: disk(neighbour, copy), message="the guest does not see the disk")
    for one, its in ((guest, device), (neighbour, other)):
        fill(one, its, chance)
    sums = [total(guest, device), total(neighbour, other)]
    assert before not in sums
    remove(ec2, names)
    # What both stand on is one layer, and nobody's own.
    for one, its in ((guest, volume), (neighbour, copy)):
        wait_until_short(daemon, qemu(daemon, one.id), its, 2)
    assert chain(daemon, volume)[1] == chain(daemon, copy)[1] == names[-1]
    assert [total(guest, device), total(neighbour, other)] == sums
    for its in (volume, copy):
        detach(ec2, its)
        delete(ec2, its)
    nothing_is_left(daemon, volume, copy, *names)


def copying(daemon) -> int | None:
    """The process that merges layers, if there is one."""
    found = subprocess.run(["pgrep", "-f", f"^qemu-img commit .*{daemon.state_dir}/volumes/"], capture_output=True, text=True).stdout.split()
    return int(found[0]) if found else None


def test_merging_is_in_nobodys_way(daemon, ec2, launch, guest):
    ebs, written, names = daemon.client("ebs"), {}, []
    for number in range(3):
        part = blocks(*range(40 * number, 40 * number + 60))
        names.append(upload(ebs, part, **({"ParentSnapshotId": names[-1]} if names else {})))
        written |= part
    volume, other = create(ec2, **home(guest), SnapshotId=names[-1]), create(ec2, **home(guest))
    attach(ec2, volume, guest.id)
    device = wait_for(lambda: disk(guest, volume), message="the guest does not see the disk")
    before = total(guest, device)
    remove(ec2, names)
    merger = wait_for(lambda: copying(daemon), 60, 0.005, "nothing is merged")
    os.kill(merger, signal.SIGSTOP)
    try:
        # It has not ended before what is done now, and cannot.
        later = snapshot(ec2, volume)
        attach(ec2, other, guest.id, "/dev/sdg")
        ec2.modify_volume(VolumeId=volume, Size=2)
        neighbour = launch(InstanceType="t3.nano")
        detach(ec2, volume)
        attach(ec2, volume, neighbour.id)
        detach(ec2, other)
        assert copying(daemon) == merger
    finally:
        os.kill(merger, signal.SIGCONT)
    device = wait_for(lambda: disk(neighbour, volume), message="the guest does not see the disk")
    # The volume, the snapshot, and what is removed.
    wait_until_short(daemon, qemu(daemon, neighbour.id), volume, 3)
    assert total(neighbour, device) == before
    remove(ec2, [later])
    wait_until_short(daemon, qemu(daemon, neighbour.id), volume, 2)
    assert total(neighbour, device) == before
    detach(ec2, volume)
    for one in (volume, other):
        delete(ec2, one)
    nothing_is_left(daemon, volume, other, later, *names)


@pytest.mark.timeout(900)
def test_killed_while_layers_of_a_guest_are_merged(crashing, chance):
    daemon, launch = crashing
    ec2 = launch.ec2
    guest = launch(InstanceType="t3.nano")
    volume = create(ec2, **home(guest))
    attach(ec2, volume, guest.id)
    names, sums = [], {}

    def device() -> str:
        return wait_for(lambda: disk(guest, volume), message="the guest does not see the disk")

    for number in range(7):
        while len(names) < 3:
            fill(guest, device(), chance)
            names.append(snapshot(ec2, volume))
            sums[names[-1]] = total(guest, device())
        fill(guest, device(), chance)
        now = total(guest, device())
        for name in chance.sample(names, 2):
            ec2.delete_snapshot(SnapshotId=name)
            names.remove(name)
        # Layers are merged some two seconds later.
        time.sleep(1.9 + chance.random() * 1.2)
        victims = chance.choice(["daemon", "daemon", "guest", "both"]) if number else "both"
        print(f"round {number}: {victims} killed")
        pid = qemu(daemon, guest.id)
        if victims != "guest":
            daemon.kill()
        if victims != "daemon":
            os.kill(pid, signal.SIGKILL)
        if victims != "guest":
            start_again(daemon)
        if victims != "daemon":
            guest.hang_up()
            guest.wait_for_state("stopped")
            ec2.start_instances(InstanceIds=[guest.id])
            guest.wait_for_state("running")
            guest.wait_for_login()
        assert total(guest, device()) == now
    (last,) = names
    wait_until_short(daemon, qemu(daemon, guest.id), volume, 4)
    wait_for(lambda: len(list((daemon.state_dir / "volumes").glob("*.removed"))) <= 2, 60, 0.2, "layers were left behind")
    assert total(guest, device()) == now
    copy = create(ec2, **home(guest), SnapshotId=last)
    attach(ec2, copy, guest.id, "/dev/sdg")
    assert total(guest, wait_for(lambda: disk(guest, copy), message="the guest does not see the disk")) == sums[last]
    for one in (copy, volume):
        detach(ec2, one)
        delete(ec2, one)
    remove(ec2, [last])
    nothing_is_left(daemon, volume, copy, *sums)
    launch.end()
    daemon.settles(60)
