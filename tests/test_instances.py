"""The life of an instance: what is asked for is what the guest is, and every change is real."""

import base64
import re
import subprocess

import pytest
from botocore.exceptions import ClientError
from support.errors import code
from support.machine import machines, processes, wait_for


USER_DATA = """#!/bin/sh
echo "user data of $(hostname)" >/root/user-data-ran
echo "printed by the user data"
"""


@pytest.fixture(scope="module")
def guest(launch):
    """An instance with user data, a larger root volume and one more volume."""
    return launch(
        UserData=USER_DATA,
        BlockDeviceMappings=[
            {"DeviceName": "/dev/xvda", "Ebs": {"VolumeSize": 3, "DeleteOnTermination": True}},
            {"DeviceName": "/dev/sdf", "Ebs": {"VolumeSize": 2, "VolumeType": "gp3", "DeleteOnTermination": True}},
        ],
        TagSpecifications=[
            {"ResourceType": "instance", "Tags": [{"Key": "Name", "Value": "first"}]},
            {"ResourceType": "volume", "Tags": [{"Key": "of", "Value": "first"}]},
        ],
    )


def test_a_launch_answers_before_the_machine_is_there(ec2, tiny):
    launched = ec2.run_instances(ImageId=tiny, InstanceType="t3.nano", MinCount=1, MaxCount=1)["Instances"][0]
    assert launched["State"] == {"Code": 0, "Name": "pending"}
    # Nor does its end have to wait for it.
    ended = ec2.terminate_instances(InstanceIds=[launched["InstanceId"]])["TerminatingInstances"][0]
    assert ended["CurrentState"]["Name"] == "shutting-down"
    ec2.get_waiter("instance_terminated").wait(InstanceIds=[launched["InstanceId"]], WaiterConfig={"Delay": 1, "MaxAttempts": 60})


def test_the_description_is_consistent(guest, ec2, tiny, ssh_group, daemon):
    found = guest.describe()
    assert found["ImageId"] == tiny
    assert found["InstanceType"] == "t3.micro"
    assert found["KeyName"] == "login"
    assert found["State"] == {"Code": 16, "Name": "running"}
    assert found["SecurityGroups"] == [{"GroupId": ssh_group, "GroupName": "ssh"}]
    assert found["Placement"]["AvailabilityZone"].startswith(daemon.region)
    assert found["RootDeviceName"] == "/dev/xvda"
    assert found["Hypervisor"] == "xen" or found["Hypervisor"] == "nitro"
    [interface] = found["NetworkInterfaces"]
    assert interface["PrivateIpAddress"] == found["PrivateIpAddress"]
    assert interface["Association"]["PublicIp"] == found["PublicIpAddress"]
    [described] = ec2.describe_network_interfaces(NetworkInterfaceIds=[interface["NetworkInterfaceId"]])["NetworkInterfaces"]
    assert described["Attachment"]["InstanceId"] == guest.id
    assert described["MacAddress"] == guest.run("cat /sys/class/net/eth0/address")
    volumes = ec2.describe_volumes(Filters=[{"Name": "attachment.instance-id", "Values": [guest.id]}])["Volumes"]
    assert {volume["Size"] for volume in volumes} == {2, 3}
    assert all(volume["State"] == "in-use" and {"Key": "of", "Value": "first"} in volume["Tags"] for volume in volumes)
    assert {m["Ebs"]["VolumeId"] for m in found["BlockDeviceMappings"]} == {volume["VolumeId"] for volume in volumes}


def test_the_guest_has_the_type_s_processors_and_memory(guest):
    assert int(guest.run("grep -c ^processor /proc/cpuinfo")) == 2
    total = int(guest.run("sed -n 's/^MemTotal: *\\([0-9]*\\) kB/\\1/p' /proc/meminfo")) / 1024
    assert 1024 * 0.85 < total <= 1024


def test_the_guest_has_its_disks(guest):
    assert int(guest.run("cat /sys/class/block/vda/size")) * 512 == 3 << 30
    assert int(guest.run("cat /sys/class/block/vdb/size")) * 512 == 2 << 30
    size = int(guest.run("df -m / | awk 'NR == 2 { print $2 }'"))
    assert size > 2500, "the root file system grew with its volume"
    guest.run("echo written > /dev/vdb && sync")
    assert guest.run("head -n 1 /dev/vdb") == "written"


def test_user_data_ran_once(guest):
    wait_for(lambda: guest.succeeds("test -e /root/user-data-ran"), 30)
    assert guest.run("cat /root/user-data-ran").startswith("user data of ip-")
    shown = guest.ec2.describe_instance_attribute(InstanceId=guest.id, Attribute="userData")
    assert base64.b64decode(shown["UserData"]["Value"]).decode() == USER_DATA


def test_the_console_log_is_kept(guest):
    console = wait_for(lambda: guest.console() if "haar-tiny: ready" in guest.console() else None, 60)
    assert "Linux version" in console
    assert "printed by the user data" in console


def test_only_the_right_key_logs_in(guest, tmp_path):
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(tmp_path / "other")], check=True)
    options = ("-i", str(tmp_path / "other"), "-o", "ControlPath=none", "-o", "IdentitiesOnly=yes", "-o", "BatchMode=yes")
    done = subprocess.run(
        ["ssh", *options, "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", f"root@{guest.public_ip}", "true"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 255 and "Permission denied" in done.stderr


def test_haar_ssh_logs_in_by_identifier_and_by_name(guest, daemon):
    assert daemon.haar("ssh", guest.id, "--", "echo", "two words").stdout == "two words\n"
    assert daemon.haar("ssh", "first", "--", "exit 7", check=False).returncode == 7
    # The host's keys were read from the console and checked.
    known = (daemon.state_dir / "known_hosts.d" / guest.id).read_text()
    assert known.startswith(f"{guest.id} ssh-ed25519 ")


def test_haar_ssh_refuses_a_host_with_other_keys(guest, daemon, launch):
    other = launch.start(InstanceType="t3.nano", KeyName="login")
    try:
        other.wait_for_state("running")
        other.wait_for_login()
        # The first guest's console, but the other's address: as if someone had taken it over.
        command = ["ssh", "-o", f"HostKeyAlias={guest.id}", "-o", "StrictHostKeyChecking=yes"]
        command += ["-o", f"UserKnownHostsFile={daemon.state_dir}/known_hosts.d/{guest.id}", "-o", "BatchMode=yes"]
        daemon.haar("ssh", guest.id, "--", "true")
        done = subprocess.run([*command, "-i", str(guest.key), f"root@{other.public_ip}", "true"], capture_output=True, text=True, timeout=60)
        assert done.returncode == 255
        assert "HOST IDENTIFICATION HAS CHANGED" in done.stderr or "Host key verification failed" in done.stderr
    finally:
        other.ec2.terminate_instances(InstanceIds=[other.id])
        other.wait_for_state("terminated")


def test_haar_ssh_says_why_it_cannot(daemon):
    failed = daemon.haar("ssh", "i-00000000000000000", check=False)
    assert failed.returncode == 1 and "InvalidInstanceID.NotFound" in failed.stderr
    failed = daemon.haar("ssh", "nobody", check=False)
    assert failed.returncode == 1 and "nobody" in failed.stderr


def test_status_checks_pass(guest, ec2):
    ec2.get_waiter("instance_status_ok").wait(InstanceIds=[guest.id], WaiterConfig={"Delay": 2, "MaxAttempts": 45})
    [status] = ec2.describe_instance_status(InstanceIds=[guest.id])["InstanceStatuses"]
    assert status["InstanceState"]["Name"] == "running"
    assert status["SystemStatus"]["Status"] == "ok"
    assert status["SystemStatus"]["Details"] == [{"Name": "reachability", "Status": "passed"}]


def test_a_reboot_keeps_the_disk_and_is_real(guest):
    guest.run("echo kept > /root/kept; sync")
    before, address = guest.boot_id(), guest.public_ip
    guest.ec2.reboot_instances(InstanceIds=[guest.id])
    guest.hang_up()

    def rebooted():
        try:
            done = guest.ssh("cat /proc/sys/kernel/random/boot_id", timeout=20)
        except subprocess.TimeoutExpired:
            return False
        if done.returncode:
            guest.hang_up()
        return done.returncode == 0 and done.stdout.strip() != before

    wait_for(rebooted, 120, 0.5, "the guest did not reboot")
    assert guest.run("cat /root/kept") == "kept"
    assert guest.state == "running"
    assert guest.public_ip == address
    assert guest.run("grep -c . /root/user-data-ran") == "1", "user data runs once in an instance's life"


def test_stop_and_start_keep_the_disk(guest, daemon):
    guest.run("echo kept > /root/kept; sync")
    before = guest.boot_id()
    private = guest.private_ip
    answer = guest.ec2.stop_instances(InstanceIds=[guest.id])["StoppingInstances"][0]
    assert answer["PreviousState"]["Name"] == "running" and answer["CurrentState"]["Name"] == "stopping"
    guest.hang_up()
    stopped = guest.wait_for_state("stopped")
    assert stopped["StateReason"]["Code"] == "Client.UserInitiatedShutdown"
    assert re.fullmatch(r"User initiated \(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d GMT\)", stopped["StateTransitionReason"])
    assert "PublicIpAddress" not in stopped
    assert not machines(guest.id)
    console = guest.console()
    assert "haar-tiny: shutting down" in console and "the disk is clean" in console, "ACPI asked before force"

    # What can only be changed while stopped.
    guest.ec2.modify_instance_attribute(InstanceId=guest.id, InstanceType={"Value": "t3.small"})
    answer = guest.ec2.start_instances(InstanceIds=[guest.id])["StartingInstances"][0]
    assert answer["PreviousState"]["Name"] == "stopped" and answer["CurrentState"]["Name"] == "pending"
    started = guest.wait_for_state("running")
    assert started["PrivateIpAddress"] == private
    assert started["PublicIpAddress"]
    guest.wait_for_login()
    assert guest.run("cat /root/kept") == "kept"
    assert guest.boot_id() != before
    total = int(guest.run("sed -n 's/^MemTotal: *\\([0-9]*\\) kB/\\1/p' /proc/meminfo")) / 1024
    assert 2048 * 0.85 < total <= 2048


def test_a_forced_stop_does_not_ask(launch):
    guest = launch(InstanceType="t3.nano")
    # A guest that would not shut down: its init is stopped.
    guest.run("killall acpid; sync")
    guest.ec2.stop_instances(InstanceIds=[guest.id], Force=True)
    guest.hang_up()
    # A guest that is asked and does not answer is given much longer.
    guest.wait_for_state("stopped", 30)
    guest.ec2.terminate_instances(InstanceIds=[guest.id])
    guest.wait_for_state("terminated")


@pytest.mark.parametrize("behaviour, state", [("stop", "stopped"), ("terminate", "terminated")])
def test_a_shutdown_from_inside(launch, behaviour, state):
    guest = launch(InstanceType="t3.nano", InstanceInitiatedShutdownBehavior=behaviour)
    guest.ssh("poweroff")
    guest.hang_up()
    found = guest.wait_for_state(state, 60)
    assert found["StateReason"]["Code"] == "Client.InstanceInitiatedShutdown"
    if state == "stopped":
        guest.ec2.terminate_instances(InstanceIds=[guest.id])
        guest.wait_for_state("terminated")


def test_termination_leaves_nothing(launch, daemon, ec2):
    guest = launch.start(
        InstanceType="t3.nano",
        BlockDeviceMappings=[{"DeviceName": "/dev/sdf", "Ebs": {"VolumeSize": 1, "DeleteOnTermination": False}}],
    )
    guest.wait_for_state("running")
    volumes = {m["DeviceName"]: m["Ebs"]["VolumeId"] for m in guest.describe()["BlockDeviceMappings"]}
    answer = ec2.terminate_instances(InstanceIds=[guest.id])["TerminatingInstances"][0]
    assert answer["CurrentState"]["Name"] in ("shutting-down", "terminated")
    found = guest.wait_for_state("terminated")
    assert found["State"]["Code"] == 48
    assert found["StateReason"]["Code"] == "Client.UserInitiatedShutdown"
    assert not processes(guest.id)
    with pytest.raises(ClientError) as error:
        ec2.describe_volumes(VolumeIds=[volumes["/dev/xvda"]])
    assert code(error) == "InvalidVolume.NotFound"
    [kept] = ec2.describe_volumes(VolumeIds=[volumes["/dev/sdf"]])["Volumes"]
    assert kept["State"] == "available" and kept["Attachments"] == []
    assert list(daemon.state_dir.rglob(f"*{volumes['/dev/sdf']}*"))
    assert not list(daemon.state_dir.rglob(f"*{volumes['/dev/xvda']}*"))
    # Idempotent, as AWS documents it.
    again = ec2.terminate_instances(InstanceIds=[guest.id])["TerminatingInstances"][0]
    assert again["CurrentState"]["Name"] == "terminated"


def test_protection_from_termination_and_stop(launch, ec2):
    guest = launch.start(InstanceType="t3.nano", DisableApiTermination=True)
    with pytest.raises(ClientError) as error:
        ec2.terminate_instances(InstanceIds=[guest.id])
    assert code(error) == "OperationNotPermitted"
    shown = ec2.describe_instance_attribute(InstanceId=guest.id, Attribute="disableApiTermination")
    assert shown["DisableApiTermination"]["Value"] is True
    ec2.modify_instance_attribute(InstanceId=guest.id, DisableApiTermination={"Value": False})
    ec2.modify_instance_attribute(InstanceId=guest.id, DisableApiStop={"Value": True})
    guest.wait_for_state("running")
    with pytest.raises(ClientError) as error:
        ec2.stop_instances(InstanceIds=[guest.id])
    assert code(error) == "OperationNotPermitted"
    # What may not be stopped may not be terminated either.
    with pytest.raises(ClientError, match="disableApiStop") as error:
        ec2.terminate_instances(InstanceIds=[guest.id])
    assert code(error) == "OperationNotPermitted"
    ec2.modify_instance_attribute(InstanceId=guest.id, DisableApiStop={"Value": False})
    ec2.terminate_instances(InstanceIds=[guest.id])
    guest.wait_for_state("terminated")
    for operation in (ec2.start_instances, ec2.stop_instances):
        with pytest.raises(ClientError) as error:
            operation(InstanceIds=[guest.id])
        assert code(error) == "IncorrectInstanceState"


def test_what_needs_a_stopped_instance_is_refused_on_a_running_one(guest):
    for change in ({"InstanceType": {"Value": "t3.nano"}}, {"UserData": {"Value": b"x"}}):
        with pytest.raises(ClientError) as error:
            guest.ec2.modify_instance_attribute(InstanceId=guest.id, **change)
        assert code(error) == "IncorrectInstanceState"


def test_types_have_what_is_asked_of_them(sim, sim_image):
    request = {"ImageId": sim_image, "MinCount": 1, "MaxCount": 1}
    with pytest.raises(ClientError, match="EbsOptimized") as error:
        sim.run_instances(**request, InstanceType="t2.micro", EbsOptimized=True)
    assert code(error) == "Unsupported"
    # Volumes and the interface count together: 27 of a t3 ("Amazon EBS volume limits for Amazon EC2 instances").
    devices = [{"DeviceName": f"/dev/sd{a}{b}", "Ebs": {"VolumeSize": 1}} for a in "bc" for b in "abcdefghijklm"]
    with pytest.raises(ClientError) as error:
        sim.run_instances(**request, InstanceType="t3.micro", BlockDeviceMappings=devices, DryRun=True)
    assert code(error) == "AttachmentLimitExceeded"
    with pytest.raises(ClientError) as error:
        sim.run_instances(**request, InstanceType="t3.micro", BlockDeviceMappings=devices[:-1], DryRun=True)
    assert code(error) == "DryRunOperation"
    instance = sim.run_instances(**request, InstanceType="t3.micro", EbsOptimized=True)["Instances"][0]["InstanceId"]
    sim.get_waiter("instance_running").wait(InstanceIds=[instance], WaiterConfig={"Delay": 1})
    [status] = sim.describe_instance_status(InstanceIds=[instance])["InstanceStatuses"]
    [zone] = sim.describe_availability_zones(ZoneNames=[status["AvailabilityZone"]])["AvailabilityZones"]
    assert status["AvailabilityZoneId"] == zone["ZoneId"]
    sim.stop_instances(InstanceIds=[instance])
    sim.get_waiter("instance_stopped").wait(InstanceIds=[instance], WaiterConfig={"Delay": 1})
    with pytest.raises(ClientError) as error:
        sim.modify_instance_attribute(InstanceId=instance, InstanceType={"Value": "z9.huge"})
    assert code(error) == "InvalidInstanceAttributeValue"
    sim.modify_instance_attribute(InstanceId=instance, InstanceType={"Value": "t2.micro"})
    with pytest.raises(ClientError) as error:
        sim.start_instances(InstanceIds=[instance])
    assert code(error) == "Unsupported"
    with pytest.raises(ClientError) as error:
        sim.describe_network_interfaces(NetworkInterfaceIds=["eni-00000000000000000"], MaxResults=5)
    assert code(error) == "InvalidParameterCombination"
    sim.terminate_instances(InstanceIds=[instance])


def test_several_at_once_and_all_or_nothing(sim, sim_image):
    """Counts and batches concern only the records."""
    launched = sim.run_instances(ImageId=sim_image, InstanceType="t3.nano", MinCount=2, MaxCount=3)
    ids = [instance["InstanceId"] for instance in launched["Instances"]]
    assert len(ids) == 3
    assert [instance["AmiLaunchIndex"] for instance in launched["Instances"]] == [0, 1, 2]
    with pytest.raises(ClientError) as error:
        sim.terminate_instances(InstanceIds=[*ids, "i-00000000000000000"])
    assert code(error) == "InvalidInstanceID.NotFound"
    states = {i["State"]["Name"] for r in sim.describe_instances(InstanceIds=ids)["Reservations"] for i in r["Instances"]}
    assert states <= {"pending", "running"}, "nothing was terminated"
    sim.terminate_instances(InstanceIds=ids)


@pytest.mark.parametrize(
    "parameters, expected",
    [
        ({"KeyName": "no-such-key"}, "InvalidKeyPair.NotFound"),
        ({"SecurityGroupIds": ["sg-00000000000000000"]}, "InvalidGroup.NotFound"),
        ({"SubnetId": "subnet-00000000000000000"}, "InvalidSubnetID.NotFound"),
        ({"Placement": {"AvailabilityZone": "mars-north-1a"}}, "InvalidParameterValue"),
        ({"UserData": "x" * 16385}, "InvalidParameterValue"),
        ({"BlockDeviceMappings": [{"DeviceName": "/dev/sdf", "Ebs": {"VolumeSize": 0}}]}, "InvalidParameterValue"),
        ({"BlockDeviceMappings": [{"DeviceName": "/dev/sdf", "Ebs": {"VolumeSize": 1}}] * 2}, "InvalidBlockDeviceMapping"),
        ({"BlockDeviceMappings": [{"DeviceName": "nonsense", "Ebs": {"VolumeSize": 1}}]}, "InvalidBlockDeviceMapping"),
        ({"MetadataOptions": {"HttpPutResponseHopLimit": 65}}, "InvalidParameterValue"),
        ({"PrivateIpAddress": "10.99.99.99"}, "InvalidParameterValue"),
        ({"InstanceType": "z9.huge"}, "InvalidParameterValue"),
    ],
)
def test_launches_that_cannot_be_are_refused(sim, sim_image, parameters, expected):
    settings = {"ImageId": sim_image, "InstanceType": "t3.nano", "MinCount": 1, "MaxCount": 1}
    with pytest.raises(ClientError) as error:
        sim.run_instances(**(settings | parameters))
    assert code(error) == expected


def test_parameters_that_haar_does_not_carry_out_are_refused(sim, sim_image):
    """Nothing is accepted and then ignored."""
    for parameters in (
        {"EnclaveOptions": {"Enabled": True}},
        {"InstanceMarketOptions": {"MarketType": "spot"}},
        {"ElasticGpuSpecification": [{"Type": "eg1.medium"}]},
        {"CreditSpecification": {"CpuCredits": "standard"}},
    ):
        settings = {"ImageId": sim_image, "InstanceType": "t3.nano", "MinCount": 1, "MaxCount": 1}
        with pytest.raises(ClientError) as error:
            sim.run_instances(**(settings | parameters))
        assert code(error) == "UnsupportedOperation"
        assert next(iter(parameters)) in error.value.response["Error"]["Message"]


def test_instances_with_cpu_credits_have_unlimited_ones(sim, sim_image):
    def launch(type_: str, **parameters) -> str:
        settings = {"ImageId": sim_image, "InstanceType": type_, "MinCount": 1, "MaxCount": 1}
        return sim.run_instances(**(settings | parameters))["Instances"][0]["InstanceId"]

    def described(**parameters) -> dict[str, str]:
        found = sim.describe_instance_credit_specifications(**parameters)["InstanceCreditSpecifications"]
        return {each["InstanceId"]: each["CpuCredits"] for each in found}

    burstable, fixed = launch("t3.nano", CreditSpecification={"CpuCredits": "unlimited"}), launch("m5.large")
    assert described(InstanceIds=[burstable]) == {burstable: "unlimited"}
    assert described(Filters=[{"Name": "instance-id", "Values": [burstable, fixed]}]) == {burstable: "unlimited"}
    with pytest.raises(ClientError) as error:
        described(InstanceIds=[burstable, fixed])
    assert code(error) == "InstanceCreditSpecification.NotSupported"
    with pytest.raises(ClientError) as error:
        launch("m5.large", CreditSpecification={"CpuCredits": "unlimited"})
    assert code(error) == "InvalidParameterCombination"
    changes = [{"InstanceId": each, "CpuCredits": "unlimited"} for each in (burstable, fixed, "i-00000000000000000")]
    answer = sim.modify_instance_credit_specification(InstanceCreditSpecifications=changes)
    assert answer["SuccessfulInstanceCreditSpecifications"] == [{"InstanceId": burstable}]
    refused = {each["InstanceId"]: each["Error"]["Code"] for each in answer["UnsuccessfulInstanceCreditSpecifications"]}
    assert refused == {fixed: "InstanceCreditSpecification.NotSupported", "i-00000000000000000": "InvalidInstanceID.NotFound"}
    for credits, expected in (("standard", "UnsupportedOperation"), ("lots", "InvalidParameterValue")):
        with pytest.raises(ClientError) as error:
            sim.modify_instance_credit_specification(InstanceCreditSpecifications=[{"InstanceId": burstable, "CpuCredits": credits}])
        assert code(error) == expected
    sim.terminate_instances(InstanceIds=[burstable, fixed])
