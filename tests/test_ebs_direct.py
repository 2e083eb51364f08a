"""The EBS direct APIs: blocks of snapshots, read, compared and uploaded by boto3."""

import base64
import hashlib
import os

import pytest
from support.machine import processes, wait_for
from test_crash import start_again
from test_encryption import holds
from test_snapshots import find, remove, snapshot, write
from test_volumes import attach, create, delete, detach, disk, home, refusal

BLOCK = 512 << 10


def checksum(data: bytes) -> str:
    return base64.b64encode(hashlib.sha256(data).digest()).decode()


def linear(blocks: dict[int, bytes]) -> str:
    return checksum(b"".join(hashlib.sha256(blocks[index]).digest() for index in sorted(blocks)))


@pytest.fixture(scope="session")
def ebs(daemon):
    return daemon.client("ebs")


def put(ebs, name: str, index: int, data: bytes, **parameters) -> dict:
    settings = {"DataLength": len(data), "Checksum": checksum(data), "ChecksumAlgorithm": "SHA256"} | parameters
    return ebs.put_snapshot_block(SnapshotId=name, BlockIndex=index, BlockData=data, **settings)


def upload(ebs, blocks: dict[int, bytes], **parameters) -> str:
    name = ebs.start_snapshot(**({"VolumeSize": 1} | parameters))["SnapshotId"]
    for index, data in blocks.items():
        assert put(ebs, name, index, data)["Checksum"] == checksum(data)
    done = ebs.complete_snapshot(
        SnapshotId=name,
        ChangedBlocksCount=len(blocks),
        Checksum=linear(blocks),
        ChecksumAlgorithm="SHA256",
        ChecksumAggregationMethod="LINEAR",
    )
    assert done["Status"] == "completed"
    return name


def listed(ebs, name: str) -> dict[int, str]:
    answer = ebs.list_snapshot_blocks(SnapshotId=name)
    assert answer["BlockSize"] == BLOCK
    return {block["BlockIndex"]: block["BlockToken"] for block in answer["Blocks"]}


def contents(ebs, name: str) -> dict[int, bytes]:
    found = {}
    for index, token in listed(ebs, name).items():
        answer = ebs.get_snapshot_block(SnapshotId=name, BlockIndex=index, BlockToken=token)
        data = answer["BlockData"].read()
        assert (answer["DataLength"], answer["Checksum"]) == (BLOCK, checksum(data))
        found[index] = data
    return found


def test_what_is_uploaded_is_read_and_compared(daemon, ec2, ebs):
    first_blocks = {index: os.urandom(BLOCK) for index in (0, 5, 2047)}
    tags = [{"Key": "Name", "Value": "uploaded"}]
    first = upload(ebs, first_blocks, Description="from outside", Tags=tags)
    found = find(ec2, first)
    assert (found["State"], found["VolumeSize"], found["Description"], found["Tags"]) == ("completed", 1, "from outside", tags)
    assert contents(ebs, first) == first_blocks
    changes = {5: os.urandom(BLOCK), 9: os.urandom(BLOCK)}
    second = upload(ebs, changes, ParentSnapshotId=first, VolumeSize=2)
    assert contents(ebs, second) == first_blocks | changes
    answer = ebs.list_changed_blocks(FirstSnapshotId=first, SecondSnapshotId=second)
    changed = {block["BlockIndex"]: block for block in answer["ChangedBlocks"]}
    assert sorted(changed) == [5, 9] and answer["VolumeSize"] == 2
    assert "FirstBlockToken" in changed[5] and "FirstBlockToken" not in changed[9]
    for name, kind in ((first, "FirstBlockToken"), (second, "SecondBlockToken")):
        data = ebs.get_snapshot_block(SnapshotId=name, BlockIndex=5, BlockToken=changed[5][kind])["BlockData"].read()
        assert data == (first_blocks if name == first else changes)[5]
    assert len(ebs.list_changed_blocks(SecondSnapshotId=second)["ChangedBlocks"]) == 4
    # Nothing was copied: the second holds what differs.
    size = {name: os.stat(daemon.state_dir / "volumes" / f"{name}.qcow2").st_blocks * 512 for name in (first, second)}
    assert size[second] < size[first]
    other = upload(ebs, {0: os.urandom(BLOCK)})
    code, _ = refusal(ebs.list_changed_blocks, FirstSnapshotId=other, SecondSnapshotId=second)
    assert code == "ValidationException"
    assert refusal(ebs.list_changed_blocks, FirstSnapshotId=second, SecondSnapshotId=first)[0] == "ValidationException"
    remove(ec2, [first, second, other])


def test_an_upload_is_checked(ec2, ebs):
    token = "once"
    name = ebs.start_snapshot(VolumeSize=1, ClientToken=token)["SnapshotId"]
    assert ebs.start_snapshot(VolumeSize=1, ClientToken=token)["SnapshotId"] == name
    assert refusal(ebs.start_snapshot, VolumeSize=2, ClientToken=token)[0] == "ConflictException"
    data = os.urandom(BLOCK)
    put(ebs, name, 3, data)
    # The latest one counts, once.
    put(ebs, name, 3, data)
    for index, block, parameters in [
        (4, data, {"Checksum": checksum(b"other")}),
        (4, data[:-1], {}),
        (4, data, {"DataLength": 1}),
        (2048, data, {}),
    ]:
        with pytest.raises(ebs.exceptions.ValidationException):
            put(ebs, name, index, block, **parameters)
    assert refusal(ebs.list_snapshot_blocks, SnapshotId=name)[0] == "ValidationException"
    complete = {"SnapshotId": name, "ChangedBlocksCount": 1}
    wrong = {"Checksum": checksum(b"other"), "ChecksumAlgorithm": "SHA256", "ChecksumAggregationMethod": "LINEAR"}
    for parameters in (complete | {"ChangedBlocksCount": 2}, complete | wrong, complete | {"Checksum": checksum(data)}):
        assert refusal(ebs.complete_snapshot, **parameters)[0] == "ValidationException", parameters
    assert find(ec2, name)["State"] == "pending"
    assert ebs.complete_snapshot(**complete)["Status"] == "completed"
    assert refusal(ebs.complete_snapshot, **complete)[0] == "ValidationException"
    with pytest.raises(ebs.exceptions.ValidationException):
        put(ebs, name, 4, data)
    assert contents(ebs, name) == {3: data}

    block = listed(ebs, name)[3]
    get = {"SnapshotId": name, "BlockIndex": 3, "BlockToken": block}
    for parameters, code in [
        ({"BlockToken": "AAAA"}, "ValidationException"),
        ({"BlockIndex": 4}, "ValidationException"),
        ({"SnapshotId": "snap-0123456789abcdef0"}, "ResourceNotFoundException"),
    ]:
        assert refusal(ebs.get_snapshot_block, **(get | parameters))[0] == code, parameters
    for call, parameters, code in [
        (ebs.list_snapshot_blocks, {"SnapshotId": "snap-0123456789abcdef0"}, "ResourceNotFoundException"),
        (ebs.list_snapshot_blocks, {"SnapshotId": name, "NextToken": "AAAA"}, "ValidationException"),
        (ebs.start_snapshot, {"VolumeSize": 1 << 20}, "ValidationException"),
        (ebs.start_snapshot, {"VolumeSize": 1, "ParentSnapshotId": "snap-0123456789abcdef0"}, "ResourceNotFoundException"),
        (ebs.start_snapshot, {"VolumeSize": 1, "ParentSnapshotId": name, "Encrypted": True}, "ValidationException"),
        (ebs.start_snapshot, {"VolumeSize": 1, "Tags": [{"Key": "aws:x", "Value": ""}]}, "ValidationException"),
        (
            ebs.start_snapshot,
            {"VolumeSize": 1, "Encrypted": True, "KmsKeyArn": "arn:aws:kms:eu-central-1:123456789012:key/none"},
            "ValidationException",
        ),
    ]:
        assert refusal(call, **parameters)[0] == code, parameters
    # One that is given up leaves nothing.
    name_of_none = ebs.start_snapshot(VolumeSize=1)["SnapshotId"]
    put(ebs, name_of_none, 0, data)
    remove(ec2, [name, name_of_none])


def test_long_lists_come_in_pages(ec2, ebs):
    blocks = {2 * number: bytes([number + 1]) * BLOCK for number in range(120)}
    name = upload(ebs, blocks)
    first = ebs.list_snapshot_blocks(SnapshotId=name, MaxResults=100)
    second = ebs.list_snapshot_blocks(SnapshotId=name, MaxResults=100, NextToken=first["NextToken"])
    indices = [block["BlockIndex"] for block in first["Blocks"] + second["Blocks"]]
    assert indices == sorted(blocks) and len(first["Blocks"]) == 100 and "NextToken" not in second
    rest = ebs.list_snapshot_blocks(SnapshotId=name, StartingBlockIndex=231)["Blocks"]
    assert [block["BlockIndex"] for block in rest] == [232, 234, 236, 238]
    remove(ec2, [name])


def test_a_guest_reads_what_was_uploaded_and_writes_what_is_listed(daemon, ec2, ebs, guest):
    text = b"uploaded in secret " * 64
    data = (text * (BLOCK // len(text) + 1))[:BLOCK]
    name = upload(ebs, {2: data}, Encrypted=True)
    assert find(ec2, name)["Encrypted"] and not holds(daemon, text[:64].decode())
    volume = create(ec2, **home(guest), SnapshotId=name)
    attach(ec2, volume, guest.id)
    wait_for(lambda: disk(guest, volume), message="the guest does not see the disk")
    device = disk(guest, volume)
    assert guest.run(f"dd if={device} bs=512k skip=2 count=1 2>/dev/null | md5sum").split()[0] == hashlib.md5(data).hexdigest()
    write(guest, device, 4 * 1024 + 1, "from the guest")
    taken = snapshot(ec2, volume)
    changed = ebs.list_changed_blocks(FirstSnapshotId=name, SecondSnapshotId=taken)["ChangedBlocks"]
    assert [block["BlockIndex"] for block in changed] == [4]
    found = contents(ebs, taken)
    assert sorted(found) == [2, 4] and found[2] == data
    assert found[4][512:].startswith(b"from the guest\n")
    detach(ec2, volume)
    delete(ec2, volume)
    remove(ec2, [name, taken])


@pytest.mark.timeout(300)
def test_killed_while_blocks_come(make_daemon):
    daemon = make_daemon("--compute", "qemu")
    ec2, ebs = daemon.client("ec2"), daemon.client("ebs")
    blocks = {index: os.urandom(BLOCK) for index in range(6)}
    name = ebs.start_snapshot(VolumeSize=1)["SnapshotId"]
    for index, data in blocks.items():
        put(ebs, name, index, data)
        if index % 2:
            daemon.kill()
            start_again(daemon)
    done = ebs.complete_snapshot(
        SnapshotId=name,
        ChangedBlocksCount=6,
        Checksum=linear(blocks),
        ChecksumAlgorithm="SHA256",
        ChecksumAggregationMethod="LINEAR",
    )
    assert done["Status"] == "completed"
    daemon.kill()
    start_again(daemon)
    assert contents(ebs, name) == blocks
    # Nobody serves blocks that nobody reads.
    wait_for(lambda: not [line for line in processes(str(daemon.state_dir)).values() if "qemu-nbd" in line], 30, message="a server was left behind")
    remove(ec2, [name])
    wait_for(lambda: not [f for f in (daemon.state_dir / "volumes").iterdir() if f.is_file()], message="a file was left behind")
