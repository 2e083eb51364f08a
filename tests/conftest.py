"""Fixtures: daemons, clients, guests. Everything that a test starts, its fixture ends, and what is left on the machine fails it."""

import os
import random
from pathlib import Path

import pytest
from support.daemon import CACHE, Daemon
from support.guest import Guest
from support.machine import Snapshot, wait_for

BEFORE = pytest.StashKey[Snapshot]()


def whole_machine() -> Snapshot:
    return Snapshot.of_machine(str(CACHE / "t-"))


def pytest_sessionstart(session):
    """The one process that waits for those which test looks at the machine, unless others work there at the same time."""
    if "PYTEST_XDIST_WORKER" not in os.environ and os.environ.get("HAAR_TEST_SHARED_MACHINE") != "1":
        session.config.stash[BEFORE] = whole_machine()


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session):
    """Daemons are asked for what has their names when they end; here for whatever else is left on the machine."""
    before = session.config.stash.get(BEFORE, None)
    if before is None:
        return
    try:
        wait_for(lambda: not whole_machine().added_since(before), 20, 0.5)
    except AssertionError:
        left = whole_machine().added_since(before)
        session.config.get_terminal_writer().line(f"\nThe tests left on this machine: {left}", red=True)
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.fixture(scope="session")
def daemon():
    """The daemon with real machines that most tests share."""
    daemon = Daemon().start()
    yield daemon
    daemon.destroy()


@pytest.fixture(scope="session")
def simulated():
    """A daemon for what concerns only the API: its instances change state and do nothing else."""
    daemon = Daemon("--compute", "simulated").start()
    yield daemon
    daemon.destroy()


@pytest.fixture
def make_daemon():
    """A function that starts a daemon for one test."""
    made = []

    def make(*flags: str, start: bool = True, **options) -> Daemon:
        daemon = Daemon(*flags, **options)
        made.append(daemon)
        return daemon.start() if start else daemon

    yield make
    for daemon in made:
        daemon.destroy()


@pytest.fixture(scope="session")
def ec2(daemon):
    return daemon.client("ec2")


@pytest.fixture(scope="session")
def sim(simulated):
    """An EC2 client of the daemon that simulates machines."""
    return simulated.client("ec2")


def image_id(client, name: str) -> str:
    images = client.describe_images(Filters=[{"Name": "name", "Values": [name]}])["Images"]
    assert len(images) == 1, f"one image is named {name}: {images}"
    return images[0]["ImageId"]


@pytest.fixture(scope="session")
def tiny(ec2) -> str:
    """The image of most guests."""
    return image_id(ec2, "tiny")


@pytest.fixture(scope="session")
def sim_image(sim) -> str:
    return image_id(sim, "tiny")


def save_key(daemon: Daemon, name: str) -> Path:
    """Makes a key pair and keeps its private key where `haar ssh` finds it."""
    keys = daemon.state_dir / "keys"
    keys.mkdir(exist_ok=True)
    file = keys / f"{name}.pem"
    material = daemon.client("ec2").create_key_pair(KeyName=name, KeyType="ed25519")["KeyMaterial"]
    file.touch(mode=0o600)
    file.write_text(material)
    return file


@pytest.fixture(scope="session")
def key(daemon) -> Path:
    return save_key(daemon, "login")


def open_group(client, name: str, *permissions: dict) -> str:
    """A security group that lets SSH in, and what else is asked for."""
    group = client.create_security_group(GroupName=name, Description="made by a test")["GroupId"]
    ssh = {"IpProtocol": "tcp", "FromPort": 22, "ToPort": 22, "IpRanges": [{"CidrIp": "0.0.0.0/0"}]}
    client.authorize_security_group_ingress(GroupId=group, IpPermissions=[ssh, *permissions])
    return group


@pytest.fixture(scope="session")
def ssh_group(ec2) -> str:
    return open_group(ec2, "ssh")


class Launcher:
    """Launches instances and ends them."""

    def __init__(self, daemon: Daemon, image: str, key: Path, group: str):
        self.daemon, self.image, self.key, self.group = daemon, image, key, group
        self.ec2 = daemon.client("ec2")
        self.launched: list[str] = []

    def start(self, **parameters) -> Guest:
        """Asks for an instance, and returns before it runs."""
        user = parameters.pop("user", "root")
        settings = {
            "ImageId": self.image,
            "InstanceType": "t3.micro",
            "KeyName": "login",
            "MinCount": 1,
            "MaxCount": 1,
        }
        if "NetworkInterfaces" not in parameters:
            settings["SecurityGroupIds"] = [self.group]
        answer = self.ec2.run_instances(**(settings | parameters))
        instance = answer["Instances"][0]["InstanceId"]
        self.launched.append(instance)
        guest = Guest(self.daemon, instance, self.key, user)
        guest.ec2 = self.ec2
        return guest

    def __call__(self, **parameters) -> Guest:
        """Launches an instance and waits until one can log in."""
        guest = self.start(**parameters)
        guest.wait_for_state("running")
        return guest.wait_for_login()

    def end(self) -> None:
        if self.launched:
            alive = [{"Name": "instance-state-name", "Values": ["pending", "running", "stopping", "stopped"]}]
            found = self.ec2.describe_instances(InstanceIds=self.launched, Filters=alive)["Reservations"]
            for instance in (i for r in found for i in r["Instances"]):
                self.ec2.modify_instance_attribute(InstanceId=instance["InstanceId"], DisableApiTermination={"Value": False})
            self.ec2.terminate_instances(InstanceIds=self.launched)

            def terminated():
                answer = self.ec2.describe_instances(InstanceIds=self.launched)
                instances = [i for r in answer["Reservations"] for i in r["Instances"]]
                return all(i["State"]["Name"] == "terminated" for i in instances)

            wait_for(terminated, 90, 0.2, "the instances were not terminated")
        for socket in self.daemon.state_dir.glob("c-*"):
            socket.unlink(missing_ok=True)


def launcher(daemon: Daemon) -> Launcher:
    """Launches guests of a daemon that has neither key pairs nor groups yet."""
    ec2 = daemon.client("ec2")
    return Launcher(daemon, image_id(ec2, "tiny"), save_key(daemon, "login"), open_group(ec2, "ssh"))


@pytest.fixture
def crashing(make_daemon) -> tuple[Daemon, Launcher]:
    """A daemon to kill, and what launches its guests."""
    daemon = make_daemon()
    return daemon, launcher(daemon)


@pytest.fixture
def chance() -> random.Random:
    """What a test leaves to chance; its seed is in the report of a failure."""
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    return random.Random(seed)


@pytest.fixture(scope="module")
def launch(daemon, tiny, key, ssh_group):
    """A function that launches an instance and waits for a login. All end with the module, and must leave nothing behind."""
    launcher = Launcher(daemon, tiny, key, ssh_group)
    yield launcher
    launcher.end()
    daemon.settles()


@pytest.fixture(scope="module")
def guest(launch) -> Guest:
    """One running instance for the tests of a module that do not change it."""
    return launch()


def pytest_collection_modifyitems(items):
    """What concerns only the API first, which is quick. Then guests: files that take long before others, so that those which run side by side
    end together."""
    order = [
        *("cli", "wire", "protocols", "clients", "describe", "iam", "sts", "mfa", "accounts", "isolation", "access", "key_pairs", "security_groups", "trail"),
        *("images", "instances", "debian", "migrate", "migrate_trouble", "amis", "live_layers", "crash", "import", "service", "volumes", "failures", "encryption"),
        *("migrate_changes", "layers", "capacity", "status", "snapshots", "modify_volume", "ansible", "terraform", "network", "metadata", "ebs_direct"),
        *("launch_templates", "profiles", "console"),
    ]
    rank = {f"test_{name}": position for position, name in enumerate(order)}
    items.sort(key=lambda item: rank.get(item.module.__name__, len(rank)))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """The ends of the daemons' logs belong to a failure's report."""
    report = yield
    if report.failed:
        for daemon in Daemon.alive:
            report.sections.append((f"log of the daemon {daemon.prefix}", daemon.log()[-6000:]))
    return report
