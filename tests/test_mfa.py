"""Second factors: virtual MFA devices, what asks for them, and the credential report that tells of them."""

import csv
import io
import json
import struct

import pytest
from support.identities import User, allow, name, policy, refused, trust, with_credentials
from support.mfa import code, enable

PRESENT = {"Bool": {"aws:MultiFactorAuthPresent": "true"}, "NumericLessThan": {"aws:MultiFactorAuthAge": "3600"}}


@pytest.fixture(scope="module")
def iam(simulated):
    return simulated.client("iam")


def new_device(iam, **settings) -> dict:
    return iam.create_virtual_mfa_device(VirtualMFADeviceName=name("app"), **settings)["VirtualMFADevice"]


def with_device(iam, user: User) -> dict:
    device = new_device(iam)
    enable(iam, user.name, device)
    return device


def shown(device: dict, steps: int = 1) -> dict:
    return {"SerialNumber": device["SerialNumber"], "TokenCode": code(device, steps)}


def test_a_second_factor_opens_what_asks_for_it(simulated, iam):
    user = User(simulated, "mfa", allow("ec2:DescribeVpcs", Condition=PRESENT), allow("iam:GetUser"))
    device, sts = with_device(iam, user), user.client("sts")
    refused(user.client("ec2").describe_vpcs, "UnauthorizedOperation")
    plain = sts.get_session_token()["Credentials"]
    refused(with_credentials(simulated, plain, "ec2").describe_vpcs, "UnauthorizedOperation")
    wrong = {"SerialNumber": device["SerialNumber"], "TokenCode": "000000" if code(device, 1) != "000000" else "111111"}
    error = refused(lambda: sts.get_session_token(**wrong), "AccessDenied")
    assert error["Error"]["Message"].startswith("MultiFactorAuthentication failed with invalid MFA one time pass code")
    right = shown(device)
    credentials = sts.get_session_token(**right)["Credentials"]
    with_credentials(simulated, credentials, "ec2").describe_vpcs()
    # IAM takes sessions with a second factor.
    assert with_credentials(simulated, credentials, "iam").get_user()["User"]["UserName"] == user.name
    refused(lambda: sts.get_session_token(**right), "AccessDenied")
    refused(lambda: sts.get_session_token(SerialNumber=device["SerialNumber"]), "ValidationError")
    refused(lambda: simulated.client("sts").get_session_token(**right), "AccessDenied")
    lines = simulated.haar("trail", "--json", "--event", "GetSessionToken", "--user", user.name).stdout
    assert f'"{right["TokenCode"]}"' not in lines
    uses = [json.loads(line) for line in simulated.haar("trail", "--json", "--event", "DescribeVpcs", "--user", user.name).stdout.splitlines()]
    attributes = [use["userIdentity"]["sessionContext"]["attributes"]["mfaAuthenticated"] for use in uses if "sessionContext" in use["userIdentity"]]
    assert attributes == ["false", "true"]


def test_a_role_may_ask_its_caller_for_a_second_factor(simulated, iam):
    user = User(simulated, "mfa", allow("sts:AssumeRole"))
    device, sts, role = with_device(iam, user), user.client("sts"), name("guarded")
    trusted = trust({"AWS": user.arn}, Condition=PRESENT)
    arn = iam.create_role(RoleName=role, AssumeRolePolicyDocument=trusted)["Role"]["Arn"]
    iam.put_role_policy(RoleName=role, PolicyName="p", PolicyDocument=policy(allow("ec2:DescribeVpcs", Condition=PRESENT)))
    assume = lambda **factor: sts.assume_role(RoleArn=arn, RoleSessionName="session", **factor)["Credentials"]
    refused(assume, "AccessDenied")
    session = assume(**shown(device))
    # The role's session itself has none.
    refused(with_credentials(simulated, session, "ec2").describe_vpcs, "UnauthorizedOperation")
    chained = with_credentials(simulated, session, "sts")
    refused(lambda: chained.assume_role(RoleArn=arn, RoleSessionName="session", **shown(device, 2)), "AccessDenied")
    # A session that was opened with a second factor shows it wherever it goes.
    opened = sts.get_session_token(**shown(with_device(iam, user)))["Credentials"]
    with_credentials(simulated, opened, "sts").assume_role(RoleArn=arn, RoleSessionName="session")


def test_a_device_is_its_user_s_alone(simulated, iam):
    one, other = User(simulated, "one"), User(simulated, "other")
    device = with_device(iam, one)
    error = refused(lambda: other.client("sts").get_session_token(**shown(device)), "AccessDenied")
    assert "associated with this user" in error["Error"]["Message"]
    missing = {"SerialNumber": device["SerialNumber"] + "x", "TokenCode": code(device, 1)}
    refused(lambda: one.client("sts").get_session_token(**missing), "AccessDenied")
    serial = device["SerialNumber"]
    refused(lambda: iam.deactivate_mfa_device(UserName=other.name, SerialNumber=serial), "NoSuchEntity")
    refused(lambda: iam.get_mfa_device(UserName=other.name, SerialNumber=serial), "NoSuchEntity")
    codes = {"AuthenticationCode1": code(device), "AuthenticationCode2": code(device, 1)}
    refused(lambda: iam.enable_mfa_device(UserName=other.name, SerialNumber=serial, **codes), "EntityAlreadyExists")
    assert one.client("sts").get_session_token(**shown(device))


def test_guessing_is_slowed_down(simulated, iam):
    user = User(simulated, "guessed")
    device, sts = with_device(iam, user), user.client("sts")
    near = {code(device, steps) for steps in range(-3, 6)}
    wrong = next(number for number in ("000000", "111111", "222222") if number not in near)
    for _ in range(5):
        refused(lambda: sts.get_session_token(SerialNumber=device["SerialNumber"], TokenCode=wrong), "AccessDenied")
    refused(lambda: sts.get_session_token(**shown(device)), "AccessDenied")


def test_a_device_lives_and_dies(simulated, iam):
    account, user = simulated.credentials["account_id"], User(simulated, "lives", allow("iam:*"))
    before = iam.get_account_summary()["SummaryMap"]
    called = name("app")
    made = iam.create_virtual_mfa_device(VirtualMFADeviceName=called, Path="/apps/", Tags=[{"Key": "team", "Value": "red"}])["VirtualMFADevice"]
    serial = made["SerialNumber"]
    assert serial == f"arn:aws:iam::{account}:mfa/apps/{called}"
    assert len(made["Base32StringSeed"]) == 64
    png = made["QRCodePNG"]
    assert png.startswith(b"\x89PNG\r\n\x1a\n") and struct.unpack_from(">II", png, 16)[0] > 100
    refused(lambda: iam.create_virtual_mfa_device(VirtualMFADeviceName=called.upper()), "EntityAlreadyExists")
    listed = lambda **status: {one["SerialNumber"]: one for page in iam.get_paginator("list_virtual_mfa_devices").paginate(**status) for one in page["VirtualMFADevices"]}
    assert "User" not in listed(AssignmentStatus="Unassigned")[serial] and serial not in listed(AssignmentStatus="Assigned")
    bad = {"AuthenticationCode1": code(made), "AuthenticationCode2": code(made)}
    error = refused(lambda: iam.enable_mfa_device(UserName=user.name, SerialNumber=serial, **bad), "InvalidAuthenticationCode")
    assert error["ResponseMetadata"]["HTTPStatusCode"] == 403
    refused(lambda: iam.enable_mfa_device(UserName=name("no"), SerialNumber=serial, **bad), "NoSuchEntity")
    refused(lambda: iam.enable_mfa_device(UserName=user.name, SerialNumber=serial + "x", **bad), "NoSuchEntity")
    enable(iam, user.name, made)
    (found,) = user.client("iam").list_mfa_devices()["MFADevices"]
    assert (found["UserName"], found["SerialNumber"]) == (user.name, serial)
    assigned = listed(AssignmentStatus="Assigned")[serial]
    assert assigned["User"]["Arn"] == user.arn and "Base32StringSeed" not in assigned
    assert iam.get_mfa_device(SerialNumber=serial)["UserName"] == user.name
    summary = iam.get_account_summary()["SummaryMap"]
    assert (summary["MFADevices"], summary["MFADevicesInUse"]) == (before["MFADevices"] + 1, before["MFADevicesInUse"] + 1)
    iam.tag_mfa_device(SerialNumber=serial, Tags=[{"Key": "Team", "Value": "blue"}, {"Key": "a", "Value": "b"}])
    iam.untag_mfa_device(SerialNumber=serial, TagKeys=["A"])
    assert iam.list_mfa_device_tags(SerialNumber=serial)["Tags"] == [{"Key": "Team", "Value": "blue"}]
    # The codes that enabled it are spent, so that a clock is learned from later ones only.
    used = {"AuthenticationCode1": code(made, -1), "AuthenticationCode2": code(made)}
    refused(lambda: iam.resync_mfa_device(UserName=user.name, SerialNumber=serial, **used), "InvalidAuthenticationCode")
    later = {"AuthenticationCode1": code(made, 5), "AuthenticationCode2": code(made, 6)}
    iam.resync_mfa_device(UserName=user.name, SerialNumber=serial, **later)
    user.client("sts").get_session_token(**shown(made, 7))
    refused(lambda: iam.delete_virtual_mfa_device(SerialNumber=serial), "DeleteConflict")
    iam.delete_access_key(UserName=user.name, AccessKeyId=user.key["AccessKeyId"])
    iam.delete_user_policy(UserName=user.name, PolicyName="own")
    refused(lambda: iam.delete_user(UserName=user.name), "DeleteConflict")
    iam.deactivate_mfa_device(UserName=user.name, SerialNumber=serial)
    iam.delete_user(UserName=user.name)
    iam.delete_virtual_mfa_device(SerialNumber=serial)
    refused(lambda: iam.delete_virtual_mfa_device(SerialNumber=serial), "NoSuchEntity")


def test_devices_and_spent_codes_outlive_the_daemon_and_seeds_are_sealed(make_daemon):
    daemon = make_daemon("--compute", "simulated")
    iam, user = daemon.client("iam"), User(daemon, "survivor")
    first, second = with_device(iam, user), with_device(iam, user)
    spent = shown(first)
    user.client("sts").get_session_token(**spent)
    daemon.kill()
    seeds = [device["Base32StringSeed"] for device in (first, second)]
    for file in daemon.state_dir.rglob("*"):
        if file.is_file() and (file.name.startswith("state.db") or file.suffix in (".jsonl", ".log")):
            assert not [seed for seed in seeds if seed in file.read_bytes()], file
    daemon.start()
    refused(lambda: user.client("sts").get_session_token(**spent), "AccessDenied")
    user.client("sts").get_session_token(**shown(second))
    assert len(daemon.client("iam").list_mfa_devices(UserName=user.name)["MFADevices"]) == 2


def test_the_credential_report_tells_of_keys_and_devices(make_daemon):
    daemon = make_daemon("--compute", "simulated")
    iam = daemon.client("iam")
    error = refused(iam.get_credential_report, "ReportNotPresent")
    assert error["ResponseMetadata"]["HTTPStatusCode"] == 410
    plain, guarded = User(daemon, "plain"), User(daemon, "guarded")
    with_device(iam, guarded)
    spare = iam.create_access_key(UserName=plain.name)["AccessKey"]["AccessKeyId"]
    iam.update_access_key(UserName=plain.name, AccessKeyId=spare, Status="Inactive")
    guarded.client("sts").get_caller_identity()
    assert iam.generate_credential_report()["State"] == "STARTED"
    assert iam.generate_credential_report()["State"] == "COMPLETE"
    answer = iam.get_credential_report()
    assert answer["ReportFormat"] == "text/csv"
    rows = {row["user"]: row for row in csv.DictReader(io.StringIO(answer["Content"].decode()))}
    assert set(rows) == {"<root_account>", plain.name, guarded.name}
    assert rows["<root_account>"]["arn"] == f"arn:aws:iam::{daemon.credentials['account_id']}:root"
    assert rows["<root_account>"]["access_key_1_last_used_service"] == "iam"
    columns = ("mfa_active", "access_key_1_active", "access_key_1_last_used_service", "access_key_2_active", "password_enabled")
    assert [rows[plain.name][column] for column in columns] == ["false", "true", "N/A", "false", "false"]
    assert rows[plain.name]["access_key_2_last_rotated"] != "N/A"
    assert [rows[guarded.name][column] for column in columns] == ["true", "true", "sts", "false", "false"]
    assert rows[guarded.name]["access_key_1_last_used_region"] == daemon.region
    # It is the same for hours, whatever changes, and outlives the daemon.
    User(daemon, "late")
    daemon.kill()
    daemon.start()
    assert daemon.client("iam").get_credential_report()["Content"] == answer["Content"]


def test_renaming_takes_leave_for_the_old_name_and_the_new(simulated, iam):
    account, bob, robert = simulated.credentials["account_id"], name("bob"), name("robert")
    iam.create_user(UserName=bob)
    arn = lambda path: f"arn:aws:iam::{account}:user/{path}"
    hand = User(simulated, "renames", allow("iam:UpdateUser", arn(bob)))
    error = refused(lambda: hand.client("iam").update_user(UserName=bob, NewUserName=robert), "AccessDenied")
    assert arn(robert) in error["Error"]["Message"]
    refused(lambda: hand.client("iam").update_user(UserName=bob, NewPath="/team/"), "AccessDenied")
    hand.put(allow("iam:UpdateUser", [arn(bob), arn(f"team/{robert}")]))
    refused(lambda: hand.client("iam").update_user(UserName=bob, NewUserName=robert), "AccessDenied")
    hand.client("iam").update_user(UserName=bob, NewUserName=robert, NewPath="/team/")
    assert iam.get_user(UserName=robert)["User"]["Arn"] == arn(f"team/{robert}")
