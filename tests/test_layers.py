"""What removed snapshots leave is merged: room is given back, chains stay short, and every disk reads as before."""

import json
import os
import random
import subprocess
import time
from pathlib import Path

import pytest
from support.machine import wait_for
from test_crash import start_again
from test_ebs_direct import BLOCK, contents, upload
from test_snapshots import remove, snapshot, wait_for_snapshots
from test_volumes import create, delete


@pytest.fixture(scope="module")
def ebs(daemon):
    return daemon.client("ebs")


def file(daemon, name: str) -> Path:
    return daemon.state_dir / "volumes" / f"{name}.qcow2"


def chain(daemon, name: str) -> list[str]:
    """The files of a volume or snapshot, the topmost first."""
    command = ["qemu-img", "info", "-U", "--output=json", "--backing-chain", str(file(daemon, name))]
    layers = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    return [Path(layer["filename"]).stem for layer in layers]


def depth(daemon, name: str) -> int:
    """How many layers a volume or snapshot has, by their headers alone."""
    layers, path = 0, str(file(daemon, name))
    while path:
        with open(path, "rb") as layer:
            header = layer.read(20)
            offset, length = int.from_bytes(header[8:16], "big"), int.from_bytes(header[16:20], "big")
            layer.seek(offset)
            path = layer.read(length).decode() if offset else ""
        layers += 1
    return layers


def taken(daemon) -> int:
    """The bytes that volumes and snapshots take, each file once whatever names it has."""
    found = {(s.st_dev, s.st_ino): s.st_blocks * 512 for s in (f.stat() for f in (daemon.state_dir / "volumes").rglob("*.qcow2"))}
    return sum(found.values())


def nothing_is_left(daemon, *names: str) -> None:
    folder = daemon.state_dir / "volumes"
    wait_for(lambda: not [f for f in folder.iterdir() if f.name.startswith(names)], 30, 0.2, "a layer was left behind")


def blocks(*indexes: int) -> dict[int, bytes]:
    return {index: os.urandom(BLOCK) for index in indexes}


def test_a_snapshot_in_the_middle_gives_back_what_only_it_needed(daemon, ec2, ebs):
    parts = [blocks(*range(16), 20), blocks(*range(16), 21), blocks(*range(16), 22)]
    names: list[str] = []
    for part in parts:
        names.append(upload(ebs, part, **({"ParentSnapshotId": names[-1]} if names else {})))
    first, middle, last = names
    expected = {first: parts[0], last: parts[0] | parts[1] | parts[2]}
    before, changed = taken(daemon), ebs.list_changed_blocks(FirstSnapshotId=first, SecondSnapshotId=last)
    assert chain(daemon, last) == [last, middle, first]
    remove(ec2, [middle])
    # Its 8 MiB that the last one hides are given back; the block that only it has written is kept for the last.
    wait_for(lambda: before - taken(daemon) > 15 * BLOCK, 60, 0.2, "no room was given back")
    wait_for(lambda: not file(daemon, middle).exists(), 30, 0.2, "the layer was left behind")
    assert chain(daemon, last) == [last, first]
    assert {name: contents(ebs, name) for name in (first, last)} == expected
    again = ebs.list_changed_blocks(FirstSnapshotId=first, SecondSnapshotId=last)
    assert [b["BlockIndex"] for b in again["ChangedBlocks"]] == [b["BlockIndex"] for b in changed["ChangedBlocks"]]
    remove(ec2, [first])
    # What its copy needs stays; what a volume stands on, too.
    copy = ec2.copy_snapshot(SourceRegion=daemon.region, SourceSnapshotId=last)["SnapshotId"]
    wait_for_snapshots(ec2, [copy])
    wait_for(lambda: depth(daemon, last) == depth(daemon, copy) == 1, 60, 0.2, "the first was not merged")
    remove(ec2, [last])
    assert contents(ebs, copy) == expected[last]
    remove(ec2, [copy])
    nothing_is_left(daemon, first, middle, last, copy)


@pytest.mark.parametrize(("encrypted", "count"), [(False, 24), (True, 8)])
def test_a_long_chain_becomes_short(daemon, ec2, ebs, encrypted, count):
    written, names = {}, []
    for number in range(count):
        part = blocks(number % 7, 100 + number)
        names.append(upload(ebs, part, **({"ParentSnapshotId": names[-1]} if names else {"Encrypted": encrypted})))
        written |= part
    volume = create(ec2, AvailabilityZone=f"{daemon.region}a", SnapshotId=names[-1])
    assert depth(daemon, volume) == count + 1
    kept = names.pop(count // 2)
    halfway = contents(ebs, kept)
    order = random.sample(names, len(names))
    for name in order:
        ec2.delete_snapshot(SnapshotId=name)
    # The snapshot that stays, and what the volume has besides.
    wait_for(lambda: depth(daemon, volume) <= 3, 60, 0.2, "the chain stays long")
    assert contents(ebs, kept) == halfway
    again = snapshot(ec2, volume)
    assert contents(ebs, again) == written
    remove(ec2, [kept, again])
    wait_for(lambda: depth(daemon, volume) == 1, 60, 0.2, "the chain stays long")
    last = snapshot(ec2, volume)
    assert contents(ebs, last) == written
    delete(ec2, volume)
    remove(ec2, [last])
    nothing_is_left(daemon, volume, last, again, kept, *names)


@pytest.mark.timeout(600)
def test_killed_while_layers_are_merged(make_daemon, chance):
    daemon = make_daemon()
    ec2, ebs = daemon.client("ec2"), daemon.client("ebs")
    written, names, expected = {}, [], {}
    for number in range(9):
        part = blocks(*(chance.randrange(64) for _ in range(24)))
        names.append(upload(ebs, part, **({"ParentSnapshotId": names[-1]} if names else {})))
        written |= part
        expected[names[-1]] = dict(written)
    volume = create(ec2, AvailabilityZone=f"{daemon.region}a", SnapshotId=names[-1])
    while len(names) > 1:
        for name in chance.sample(names[:-1], min(2, len(names) - 1)):
            ec2.delete_snapshot(SnapshotId=name)
            names.remove(name)
        # Layers are merged some two seconds later.
        time.sleep(1.9 + chance.random() * 0.8)
        daemon.kill()
        start_again(daemon)
        one = chance.choice(names)
        assert contents(ebs, one) == expected[one]
    (last,) = names
    wait_for(lambda: depth(daemon, volume) <= 2, 60, 0.2, "the chain stays long")
    wait_for(lambda: not list((daemon.state_dir / "volumes").glob("*.removed")), 60, 0.2, "layers were left behind")
    assert contents(ebs, last) == written
    again = snapshot(ec2, volume)
    assert contents(ebs, again) == written
    delete(ec2, volume)
    remove(ec2, [last, again])
    wait_for(lambda: not [f for f in (daemon.state_dir / "volumes").rglob("*") if f.is_file()], message="a layer was left behind")
