"""The commands of haar."""

import json
import re
import signal
import socket
import subprocess

import pytest
from support.daemon import BINARY, Daemon, is_alive
from support.machine import wait_for

SIMULATED = ("--compute", "simulated")


def test_up_twice_starts_one_daemon(make_daemon):
    daemon = make_daemon(*SIMULATED)
    pid = daemon.pid
    again = daemon.haar("up")
    assert f"already runs at {daemon.endpoint}" in again.stdout
    assert daemon.pid == pid and is_alive(pid)


def test_status_tells_running_from_stopped(make_daemon):
    daemon = make_daemon(*SIMULATED)
    status = json.loads(daemon.haar("status", "--json").stdout)
    assert status["running"] and status["answers"]
    assert status["endpoint"] == daemon.endpoint
    assert status["pid"] == daemon.pid
    assert daemon.endpoint in daemon.haar("status").stdout
    daemon.stop()
    stopped = daemon.haar("status", "--json", check=False)
    assert stopped.returncode == 3
    assert json.loads(stopped.stdout)["running"] is False


def test_a_killed_daemon_counts_as_stopped_and_starts_again(make_daemon):
    daemon = make_daemon(*SIMULATED)
    keys = daemon.credentials
    daemon.kill()
    assert daemon.haar("status", check=False).returncode == 3
    daemon.start()
    assert daemon.credentials == keys, "root keys are made once"
    assert daemon.client("sts").get_caller_identity()["Account"] == keys["account_id"]


def test_down_waits_until_the_daemon_is_gone_and_twice_is_fine(make_daemon):
    daemon = make_daemon(*SIMULATED)
    pid = daemon.pid
    daemon.haar("down")
    assert not is_alive(pid)
    assert "does not run" in daemon.haar("down").stdout


def test_serve_ends_on_sigterm_and_sigint(make_daemon):
    for number in (signal.SIGTERM, signal.SIGINT):
        daemon = make_daemon(*SIMULATED, start=False)
        with open(daemon.state_dir / "haar.log", "wb") as log:
            process = subprocess.Popen([BINARY, "serve", *daemon.flags], env=daemon.environment, stderr=log)
        try:
            wait_for(lambda: daemon.haar("status", check=False).returncode == 0, 20)
            process.send_signal(number)
            assert process.wait(20) == 0
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()


def test_a_second_daemon_of_one_state_folder_is_refused(make_daemon):
    daemon = make_daemon(*SIMULATED)
    second = daemon.haar("serve", "--listen", "127.0.0.1:0", check=False)
    assert second.returncode == 1
    assert "another haar daemon uses" in second.stderr


def test_a_port_in_use_is_named(make_daemon):
    daemon = make_daemon(*SIMULATED, start=False)
    with socket.create_server(("127.0.0.1", daemon.port)):
        failed = daemon.haar("up", *daemon.flags, check=False)
        assert failed.returncode == 1
        assert f"127.0.0.1:{daemon.port}" in failed.stderr
        assert "haar.log" in failed.stderr
        report = daemon.haar("doctor", "--json", check=False)
    # doctor looks at the configured port, which is the default one here.
    assert {check["name"] for check in json.loads(report.stdout)} >= {"endpoint"}


def test_the_configuration_file_is_read_and_its_faults_are_named(make_daemon):
    daemon = make_daemon(*SIMULATED, start=False)
    file = daemon.state_dir / "haar.toml"
    file.write_text('regoin = "eu-west-1"\n')
    failed = daemon.haar("up", check=False)
    assert failed.returncode == 1
    assert "haar.toml" in failed.stderr and "regoin" in failed.stderr
    file.write_text('region = "ap-south-1"\n')
    flags = [flag for flag in daemon.flags if flag not in ("--region", daemon.region)]
    daemon.haar("up", *flags)
    regions = daemon.client("ec2", region_name="ap-south-1").describe_availability_zones()["AvailabilityZones"]
    assert {zone["RegionName"] for zone in regions} == {"ap-south-1"}


@pytest.mark.parametrize(
    "flags, word",
    [
        (("--region", "Nowhere"), "region"),
        (("--public-pool", "127.0.0.0/8"), "public pool"),
        (("--public-pool", "10.0.0.0/31"), "public pool"),
        (("--name", "much-too-long"), "prefix"),
        (("--listen", "nowhere"), "listen"),
    ],
)
def test_settings_that_cannot_be_are_refused_at_once(make_daemon, flags, word):
    daemon = make_daemon(start=False)
    failed = daemon.haar("up", *flags, check=False)
    assert failed.returncode != 0
    assert word in failed.stderr


def test_files_with_secrets_are_private(make_daemon):
    daemon = make_daemon(*SIMULATED)
    for name in ("credentials.json", "daemon.json", "haar.log"):
        assert (daemon.state_dir / name).stat().st_mode & 0o077 == 0, name
    assert daemon.state_dir.stat().st_mode & 0o077 == 0
    assert daemon.credentials["secret_access_key"] not in daemon.log()


def shell(daemon: Daemon, script: str, **extra) -> subprocess.CompletedProcess:
    """Runs a script with `haar` on the path and nothing of AWS in the environment."""
    environment = daemon.environment | {"PATH": f"{BINARY.parent}:{daemon.environment['PATH']}"} | extra
    return subprocess.run(["bash", "-euc", script], env=environment, capture_output=True, text=True, timeout=120)


def test_env_points_a_shell_at_the_daemon(simulated):
    stale = {"AWS_SESSION_TOKEN": "stale", "AWS_PROFILE": "missing", "AWS_CONFIG_FILE": "/dev/null"}
    script = 'eval "$(haar env)"; aws sts get-caller-identity --output text --query Account'
    done = shell(simulated, script, **stale)
    assert done.stdout.strip() == simulated.credentials["account_id"], done.stderr


def test_env_makes_the_old_aws_of_debian_work(simulated):
    # Debian 12's aws reads no AWS_ENDPOINT_URL. It is the one in /usr/bin.
    path = f"{BINARY.parent}:/usr/bin:/bin"
    script = 'eval "$(haar env --shell sh)"; aws ec2 describe-regions --output text --query "Regions[].RegionName"'
    done = shell(simulated, script, PATH=path, AWS_CONFIG_FILE="/dev/null")
    assert simulated.region in done.stdout.split(), done.stderr


def test_env_before_the_first_start_says_what_to_do(make_daemon):
    daemon = make_daemon(start=False)
    failed = daemon.haar("env", check=False)
    assert failed.returncode == 1
    assert failed.stdout == "", "nothing for eval to run"
    assert "haar up" in failed.stderr


def test_haar_aws_runs_aws_against_the_daemon(simulated):
    done = simulated.haar("aws", "ec2", "describe-regions", "--output", "text", "--query", "Regions[].RegionName")
    assert simulated.region in done.stdout.split()
    failed = simulated.haar("aws", "ec2", "describe-instances", "--instance-ids", "i-00000000000000000", check=False)
    assert failed.returncode == 254 or failed.returncode == 255
    assert "InvalidInstanceID.NotFound" in failed.stderr


def test_doctor_knows_this_machine(simulated):
    report = simulated.haar("doctor", "--json", check=False)
    checks = {check["name"]: check for check in json.loads(report.stdout)}
    for name in ("privileges", "qemu", "accelerator", "nftables", "tap devices", "namespaces", "disk space", "endpoint", "images"):
        assert checks[name]["status"] in ("ok", "warn"), checks[name]
    assert checks["images"]["detail"]
    for check in checks.values():
        assert check["status"] == "ok" or check["fix"], f"{check} comes without a fix"
    failing = [check for check in checks.values() if check["status"] == "fail"]
    assert report.returncode == (1 if failing else 0)


def test_doctor_tells_which_accelerator_really_works(simulated):
    report = json.loads(simulated.haar("doctor", "--json", check=False).stdout)
    accelerator = next(check for check in report if check["name"] == "accelerator")
    if accelerator["status"] == "ok":
        assert "KVM" in accelerator["detail"]
    else:
        assert "TCG" in accelerator["detail"] and accelerator["fix"]


def test_doctor_misses_qemu_where_it_is_missing(make_daemon, tmp_path):
    # A path with nothing but what doctor itself needs.
    daemon = make_daemon(start=False, env={"PATH": str(tmp_path)})
    report = daemon.haar("doctor", "--json", check=False)
    assert report.returncode == 1
    checks = {check["name"]: check for check in json.loads(report.stdout)}
    assert checks["qemu"]["status"] == "fail" and "apt-get install" in checks["qemu"]["fix"]
    assert checks["nftables"]["status"] == "fail"


def test_completions_name_every_command(simulated):
    for name in ("bash", "zsh", "fish"):
        script = simulated.haar("completions", name).stdout
        for command in ("up", "down", "status", "doctor", "env", "ssh", "image", "serve"):
            assert re.search(rf"\b{command}\b", script), f"{name}: {command}"
    bash = simulated.haar("completions", "bash").stdout
    assert subprocess.run(["bash", "-n"], input=bash, text=True).returncode == 0


def test_every_command_has_a_manual_page(simulated, tmp_path):
    simulated.haar("man", str(tmp_path))
    pages = {page.name for page in tmp_path.iterdir()}
    assert {"haar.1", "haar-up.1", "haar-image-build.1", "haar-ssh.1"} <= pages
    assert all(".TH" in page.read_text() for page in tmp_path.iterdir())


def commands(daemon: Daemon, *path: str) -> list[tuple[str, ...]]:
    """All commands below `path`, found in the help texts."""
    text = daemon.haar(*path, "--help").stdout
    section = text.partition("Commands:\n")[2].partition("\n\n")[0]
    names = re.findall(r"^  (\w+)", section, re.MULTILINE)
    found = [path] if path else []
    for name in names:
        if name != "help":
            found += commands(daemon, *path, name)
    return found


def test_every_help_text_shows_examples(simulated):
    found = [path for path in commands(simulated) if path != ("aws",)]
    assert len(found) > 12
    for path in found:
        assert "Examples:" in simulated.haar(*path, "--help").stdout, path


def test_output_may_be_cut_short(simulated):
    done = shell(simulated, "set -o pipefail; haar completions bash | head -n 1; echo ${PIPESTATUS[0]}")
    assert "panicked" not in done.stderr


def test_it_answers_as_soon_as_it_says_that_it_is_up(make_daemon):
    daemon = make_daemon(*SIMULATED, start=False)
    daemon.haar("up", *daemon.flags)
    daemon.client("sts").get_caller_identity()
