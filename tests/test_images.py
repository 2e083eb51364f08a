"""`haar image`: what it does to the library, and that the API shows it."""

import hashlib
import http.server
import json
import random
import subprocess
import threading
from pathlib import Path

import pytest
from conftest import image_id
from support.daemon import CACHE, IMAGES


def images(client) -> dict[str, dict]:
    return {image["Name"]: image for image in client.describe_images()["Images"]}


@pytest.fixture
def daemon_of_images(make_daemon):
    return make_daemon("--compute", "simulated")


@pytest.fixture
def disk(tmp_path) -> Path:
    """A small qcow2 image with something in it, which firmware would boot from."""
    raw = tmp_path / "disk.raw"
    content = bytearray(random.randbytes(1 << 20))
    content[510:512] = b"\x55\xaa"
    raw.write_bytes(content)
    with raw.open("ab") as file:
        file.truncate(8 << 20)
    file = tmp_path / "disk.qcow2"
    subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", str(raw), str(file)], check=True)
    return file


def test_the_library_is_what_describe_images_shows(daemon_of_images):
    daemon = daemon_of_images
    listed = json.loads(daemon.haar("image", "list", "--json").stdout)
    shown = images(daemon.client("ec2"))
    assert {image["name"]: image["image_id"] for image in listed} == {name: i["ImageId"] for name, i in shown.items()}
    tiny = shown["tiny"]
    assert tiny["State"] == "available"
    assert tiny["Architecture"] == "x86_64"
    assert tiny["VirtualizationType"] == "hvm"
    assert tiny["RootDeviceType"] == "ebs"
    assert tiny["RootDeviceName"] in {mapping["DeviceName"] for mapping in tiny["BlockDeviceMappings"]}


@pytest.mark.parametrize("format", ["qcow2", "raw", "vmdk"])
def test_import_takes_what_qemu_img_writes_and_the_daemon_sees_it(daemon_of_images, disk, tmp_path, format):
    daemon = daemon_of_images
    file = tmp_path / f"mine.{format}"
    subprocess.run(["qemu-img", "convert", "-O", format, str(disk), str(file)], check=True)
    before = hashlib.sha256(file.read_bytes()).digest()
    daemon.haar("image", "import", str(file), "--name", "mine", "--user", "admin")
    assert hashlib.sha256(file.read_bytes()).digest() == before, "the file is left as it was"
    found = images(daemon.client("ec2"))["mine"]
    root = Path(daemon.state_dir, "images", found["ImageId"], "root.qcow2")
    compared = subprocess.run(["qemu-img", "compare", str(root), str(disk)], capture_output=True, text=True)
    assert compared.returncode == 0, compared.stdout + compared.stderr
    daemon.haar("image", "remove", "mine")
    assert "mine" not in images(daemon.client("ec2"))


def test_what_is_no_disk_image_is_refused(daemon_of_images, tmp_path):
    daemon = daemon_of_images
    cases = {
        "empty.raw": b"",
        "cut.qcow2": b"QFI\xfb\0\0\0\3" + bytes(60),
        "backed.qcow2": None,
    }
    backed = tmp_path / "backed.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-b", "/etc/shadow", "-F", "raw", str(backed), "8M"], check=True)
    for name, content in cases.items():
        file = tmp_path / name
        if content is not None:
            file.write_bytes(content)
        failed = daemon.haar("image", "import", str(file), "--name", "bad", check=False)
        assert failed.returncode == 1, f"{name}: {failed.stdout}"
        assert failed.stderr.strip()
    missing = daemon.haar("image", "import", str(tmp_path / "missing.qcow2"), check=False)
    assert missing.returncode == 1 and "missing.qcow2" in missing.stderr
    assert "bad" not in images(daemon.client("ec2"))


def test_a_name_is_given_once(daemon_of_images, disk):
    daemon = daemon_of_images
    failed = daemon.haar("image", "import", str(disk), "--name", "tiny", check=False)
    assert failed.returncode == 1
    assert "tiny" in failed.stderr


def test_an_image_in_use_is_not_removed(daemon_of_images):
    daemon = daemon_of_images
    ec2 = daemon.client("ec2")
    instance = ec2.run_instances(ImageId=image_id(ec2, "tiny"), InstanceType="t3.nano", MinCount=1, MaxCount=1)
    instance = instance["Instances"][0]["InstanceId"]
    refused = daemon.haar("image", "remove", "tiny", check=False)
    assert refused.returncode == 1
    assert instance in refused.stderr
    assert "tiny" in images(ec2)
    ec2.terminate_instances(InstanceIds=[instance])
    ec2.get_waiter("instance_terminated").wait(InstanceIds=[instance])
    daemon.haar("image", "remove", "tiny")
    assert "tiny" not in images(ec2)
    assert (IMAGES).exists(), "the library that the tests share is not touched"


def test_an_unknown_image_is_named(daemon_of_images):
    for name in ("nothing", "ami-00000000000000000"):
        failed = daemon_of_images.haar("image", "remove", name, check=False)
        assert failed.returncode == 1 and name in failed.stderr


class Publisher(http.server.ThreadingHTTPServer):
    """A local server that publishes an image with its checksums, and can break transfers."""

    def __init__(self, content: bytes):
        self.content = content
        self.checksum = hashlib.sha512(content).hexdigest()
        self.break_after: int | None = None
        self.ranges: list[str | None] = []
        super().__init__(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments):
        pass

    def do_GET(self):
        server = self.server
        if self.path == "/SHA512SUMS":
            body = f"{server.checksum}  disk.qcow2\n".encode()
            self.answer(200, body)
        elif self.path == "/disk.qcow2":
            asked = self.headers.get("Range")
            server.ranges.append(asked)
            start = int(asked.removeprefix("bytes=").split("-")[0]) if asked else 0
            self.answer(206 if asked else 200, server.content, start)
        else:
            self.answer(404, b"")

    do_HEAD = do_GET

    def answer(self, status: int, body: bytes, start: int = 0):
        part = body[start:]
        self.send_response(status)
        self.send_header("Content-Length", str(len(part)))
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("ETag", '"1"')
        if status == 206:
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        self.end_headers()
        if self.command == "HEAD":
            return
        limit = self.server.break_after
        if limit is not None and len(part) > limit:
            self.wfile.write(part[:limit])
            self.wfile.flush()
            self.close_connection = True
            self.connection.close()
        else:
            self.wfile.write(part)


@pytest.fixture
def publisher(disk):
    server = Publisher(disk.read_bytes())
    yield server
    server.shutdown()
    server.server_close()


def write_catalogue(daemon, url: str) -> None:
    """The user's own catalogue, which extends the built-in one."""
    (daemon.state_dir / "catalogue.toml").write_text(
        f"""
[local-test]
description = "An image of a local publisher"
url = "{url}/disk.qcow2"
checksum-url = "{url}/SHA512SUMS"
boot-mode = "legacy-bios"
default-user = "admin"
root-device-name = "/dev/xvda"
"""
    )


def test_the_catalogue_lists_what_can_be_pulled(daemon_of_images):
    write_catalogue(daemon_of_images, "http://127.0.0.1:9")
    entries = json.loads(daemon_of_images.haar("image", "catalogue", "--json").stdout)
    names = {entry["name"] for entry in entries}
    assert "local-test" in names, "the user's file adds to it"
    for family in ("debian-12", "ubuntu-24.04", "al2023", "alpine"):
        assert any(name.startswith(family) for name in names), family


def test_pull_fetches_checks_and_offers_an_image(daemon_of_images, publisher, disk):
    daemon = daemon_of_images
    write_catalogue(daemon, publisher.url)
    daemon.haar("image", "pull", "local-test")
    found = images(daemon.client("ec2"))["local-test"]
    root = Path(daemon.state_dir, "images", found["ImageId"], "root.qcow2")
    assert subprocess.run(["qemu-img", "compare", str(root), str(disk)], capture_output=True).returncode == 0


def test_a_wrong_checksum_is_refused(daemon_of_images, publisher):
    daemon = daemon_of_images
    write_catalogue(daemon, publisher.url)
    publisher.checksum = hashlib.sha512(b"something else").hexdigest()
    failed = daemon.haar("image", "pull", "local-test", check=False)
    assert failed.returncode == 1
    assert "checksum" in failed.stderr.lower()
    assert "local-test" not in images(daemon.client("ec2"))


def test_a_broken_transfer_goes_on_where_it_was(daemon_of_images, publisher):
    daemon = daemon_of_images
    write_catalogue(daemon, publisher.url)
    publisher.break_after = 300_000
    daemon.haar("image", "pull", "local-test")
    resumed = [asked for asked in publisher.ranges if asked]
    assert resumed and all(not asked.startswith("bytes=0-") for asked in resumed), publisher.ranges
    assert "local-test" in images(daemon.client("ec2"))


def test_a_publisher_that_is_away_is_named(daemon_of_images):
    write_catalogue(daemon_of_images, "http://127.0.0.1:9")
    failed = daemon_of_images.haar("image", "pull", "local-test", check=False)
    assert failed.returncode == 1
    assert "127.0.0.1:9" in failed.stderr


def test_build_makes_an_image_that_the_daemon_offers(daemon_of_images):
    daemon = daemon_of_images
    done = daemon.haar("image", "build", "tiny", "--name", "another", "--cache", str(CACHE), timeout=300)
    assert "ami-" in done.stdout
    assert "another" in images(daemon.client("ec2"))
