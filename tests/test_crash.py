"""The daemon killed between any two lines: it restarts and converges, guests do not notice, nothing leaks."""

import subprocess
import time
import uuid
from concurrent.futures import ThreadPoolExecutor

import pytest
from botocore.exceptions import BotoCoreError, ClientError
from support.machine import machines, wait_for

ROUNDS = 16

# Seconds for which a client tries to have a request acknowledged: a guest that does not shut down is turned off after 120.
PATIENCE = 150


def start_again(daemon) -> None:
    """Starts the daemon; what counts as left behind is what was not there at its first start, but for its own process."""
    baseline = daemon.baseline
    daemon.start()
    baseline["processes"] = {process for process in daemon.baseline["processes"] if " serve " in process}
    daemon.baseline = baseline


def restart(daemon) -> None:
    daemon.kill()
    start_again(daemon)


def states(ec2, ids: list[str]) -> dict[str, str]:
    answer = ec2.describe_instances(InstanceIds=ids)
    return {i["InstanceId"]: i["State"]["Name"] for r in answer["Reservations"] for i in r["Instances"]}


@pytest.mark.timeout(900)
def test_killed_at_random_points_many_times(crashing, chance):
    daemon, launch = crashing
    ec2 = launch.ec2
    survivor = launch(InstanceType="t3.nano")
    boot, uptime, begin = survivor.boot_id(), survivor.uptime(), time.monotonic()

    # What was acknowledged must come true: instance to final state.
    promised: dict[str, str] = {}
    for _ in range(ROUNDS):
        running = [i for i, state in promised.items() if state == "running"]
        stopped = [i for i, state in promised.items() if state == "stopped"]
        choices = ["launch"] if len(running) + len(stopped) < 3 else []
        choices += ["stop", "terminate"] if running else []
        choices += ["start", "terminate"] if stopped else []
        action = chance.choice(choices)
        token = str(uuid.uuid4())

        def act():
            """Keeps trying, as a client would, until the daemon has acknowledged."""
            target = chance.choice(running + stopped) if action != "launch" else None
            if action == "stop":
                target = chance.choice(running)
            if action == "start":
                target = chance.choice(stopped)
            deadline = time.monotonic() + PATIENCE
            while time.monotonic() < deadline:
                try:
                    if action == "launch":
                        answer = ec2.run_instances(ImageId=launch.image, InstanceType="t3.nano", KeyName="login", MinCount=1, MaxCount=1, ClientToken=token)
                        promised[answer["Instances"][0]["InstanceId"]] = "running"
                    elif action == "stop":
                        ec2.stop_instances(InstanceIds=[target])
                        promised[target] = "stopped"
                    elif action == "start":
                        ec2.start_instances(InstanceIds=[target])
                        promised[target] = "running"
                    else:
                        ec2.terminate_instances(InstanceIds=[target])
                        promised[target] = "terminated"
                    return
                except ClientError as error:
                    # Not yet stopped, or not yet running.
                    assert error.response["Error"]["Code"] == "IncorrectInstanceState", error
                    time.sleep(0.2)
                except (BotoCoreError, ConnectionError):
                    time.sleep(0.05)
            raise AssertionError(f"{action} was not acknowledged")

        with ThreadPoolExecutor(1) as client:
            acknowledged = client.submit(act)
            # From before the request has arrived until long after it was answered.
            time.sleep(chance.choice([0, 0.002, 0.01, 0.05, 0.2, 0.5, 1, 2]) * chance.random())
            restart(daemon)
            acknowledged.result()

    assert survivor.boot_id() == boot, "the guest was restarted"
    assert survivor.uptime() >= uptime + (time.monotonic() - begin) * 0.5

    def converged():
        found = states(ec2, list(promised))
        return found if found == promised else None

    wait_for(converged, 120, 0.5, f"promised {promised}")
    launched = [i for r in ec2.describe_instances()["Reservations"] for i in r["Instances"]]
    assert {i["InstanceId"] for i in launched} == {*promised, survivor.id}, "a launch happened twice or was forgotten"
    launch.launched = [survivor.id, *promised]
    launch.end()
    daemon.settles(60)


def test_guests_and_their_network_live_without_the_daemon(crashing):
    daemon, launch = crashing
    guest = launch(InstanceType="t3.nano")
    boot, address = guest.boot_id(), guest.public_ip
    daemon.kill()
    guest.hang_up()
    done = guest.ssh("cat /proc/sys/kernel/random/boot_id", address=address)
    assert done.stdout.strip() == boot, done.stderr
    daemon.start()
    assert guest.boot_id() == boot
    assert guest.state == "running"
    # It is the same instance for everything else, too.
    launch.ec2.stop_instances(InstanceIds=[guest.id])
    guest.hang_up()
    guest.wait_for_state("stopped")


def test_a_stop_of_the_daemon_leaves_guests_alone(crashing):
    daemon, launch = crashing
    guest = launch(InstanceType="t3.nano")
    boot = guest.boot_id()
    daemon.stop()
    start_again(daemon)
    assert guest.boot_id() == boot
    launch.end()
    daemon.settles()


def test_what_happens_while_the_daemon_is_away_is_noticed(crashing):
    daemon, launch = crashing
    quits, killed = launch(InstanceType="t3.nano"), launch(InstanceType="t3.nano")
    address = quits.public_ip
    (killed_pid,) = machines(killed.id)
    daemon.kill()
    quits.ssh("poweroff", address=address)
    subprocess.run(["kill", "-KILL", str(killed_pid)], check=True)
    time.sleep(4)
    daemon.start()
    assert quits.wait_for_state("stopped")["StateReason"]["Code"] == "Client.InstanceInitiatedShutdown"
    found = killed.wait_for_state("stopped")
    assert found["StateReason"]["Code"].startswith("Server.")


def test_down_all_shuts_everything_down(crashing):
    daemon, launch = crashing
    launch(InstanceType="t3.nano")
    daemon.haar("down", "--all")
    wait_for(lambda: not daemon.snapshot().added_since(daemon.before), 20, 0.2, "haar down --all left something")


def test_down_all_works_after_a_crash(crashing):
    daemon, launch = crashing
    launch(InstanceType="t3.nano")
    daemon.kill()
    daemon.haar("down", "--all")
    wait_for(lambda: not daemon.snapshot().added_since(daemon.before), 20, 0.2, "haar down --all left something")


def test_records_of_another_boot_of_the_host_are_not_believed(crashing):
    """After a power failure of the host nothing runs, whatever the records say: instances are stopped, not lost."""
    daemon, launch = crashing
    ec2 = launch.ec2
    guest = launch(InstanceType="t3.nano")
    guest.run("echo kept >/root/kept; sync")
    # A power failure as far as a test can have one: daemon, guest and network are gone at once.
    daemon.kill()
    (machine,) = machines(guest.id)
    subprocess.run(["kill", "-KILL", str(machine)], check=True)
    guest.hang_up()
    left = daemon.snapshot().added_since(daemon.before)
    daemon.remove_what_is_left(left)
    daemon.start()
    wait_for(lambda: guest.state in ("stopped", "running"), 60)
    if guest.state == "stopped":
        ec2.start_instances(InstanceIds=[guest.id])
        guest.wait_for_state("running")
    guest.wait_for_login()
    assert guest.run("cat /root/kept") == "kept"
