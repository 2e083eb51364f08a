"""Accounts: several on one installation, and IAM when the daemon is killed."""

import json
import threading

import pytest
from botocore.exceptions import BotoCoreError, ClientError
from support.identities import User, allow, name, policy, refused, trust, with_credentials
from support.machine import wait_for


def account_client(daemon, account: dict, service: str):
    keys = json.loads((daemon.state_dir / "accounts" / f"{account['account_id']}.json").read_text())
    assert keys["access_key_id"] == account["access_key_id"]
    return daemon.client(
        service, aws_access_key_id=keys["access_key_id"], aws_secret_access_key=keys["secret_access_key"]
    )


def make_account(daemon, *arguments: str) -> dict:
    return json.loads(daemon.haar("account", "create", "--json", *arguments).stdout)


@pytest.fixture(scope="module")
def second(simulated) -> dict:
    return make_account(simulated, "--name", "second")


def test_an_account_has_a_root_of_its_own(simulated, second):
    who = account_client(simulated, second, "sts").get_caller_identity()
    account = second["account_id"]
    assert account != simulated.credentials["account_id"] and len(account) == 12
    assert (who["Account"], who["Arn"]) == (account, f"arn:aws:iam::{account}:root")
    listed = json.loads(simulated.haar("account", "list", "--json").stdout)
    assert [one["name"] for one in listed][:1] == [None] and second in listed
    assert "secret" not in json.dumps(listed)
    file = simulated.state_dir / "accounts" / f"{account}.json"
    assert file.stat().st_mode & 0o777 == 0o600
    for one in ("second", account):
        script = simulated.haar("env", "--shell", "sh", "--account", one).stdout
        assert second["access_key_id"] in script
    assert simulated.credentials["access_key_id"] in simulated.haar("env", "--shell", "sh").stdout
    assert simulated.haar("env", "--account", "nobody", check=False).returncode != 0
    assert simulated.haar("account", "create", "--name", "second", check=False).returncode != 0
    assert simulated.haar("account", "create", "--name", "123456789012", check=False).returncode != 0


def test_identities_of_one_account_are_not_the_others(simulated, second):
    first_iam, second_iam = simulated.client("iam"), account_client(simulated, second, "iam")
    user, role, policy_name = name("user"), name("role"), name("policy")
    first_iam.create_user(UserName=user)
    key = first_iam.create_access_key(UserName=user)["AccessKey"]["AccessKeyId"]
    first_iam.create_role(RoleName=role, AssumeRolePolicyDocument=trust({"Service": "ec2.amazonaws.com"}))
    arn = first_iam.create_policy(PolicyName=policy_name, PolicyDocument=policy(allow("ec2:*")))["Policy"]["Arn"]
    alias = name("alias")
    first_iam.create_account_alias(AccountAlias=alias)
    for call in (
        lambda: second_iam.get_user(UserName=user),
        lambda: second_iam.delete_user(UserName=user),
        lambda: second_iam.get_role(RoleName=role),
        lambda: second_iam.get_policy(PolicyArn=arn),
        lambda: second_iam.create_policy_version(PolicyArn=arn, PolicyDocument=policy(allow("*"))),
        lambda: second_iam.delete_policy(PolicyArn=arn),
        lambda: second_iam.get_access_key_last_used(AccessKeyId=key),
        lambda: second_iam.delete_access_key(AccessKeyId=key),
        lambda: second_iam.delete_account_alias(AccountAlias=alias),
    ):
        refused(call, "NoSuchEntity")
    refused(lambda: second_iam.create_account_alias(AccountAlias=alias), "EntityAlreadyExists")
    second_iam.create_user(UserName=user)
    refused(lambda: second_iam.attach_user_policy(UserName=user, PolicyArn=arn), "NoSuchEntity")
    refused(lambda: second_iam.put_user_permissions_boundary(UserName=user, PermissionsBoundary=arn), "NoSuchEntity")
    assert [one["UserName"] for one in second_iam.list_users()["Users"]] == [user]
    assert second_iam.list_policies(Scope="Local")["Policies"] == []
    first_iam.delete_account_alias(AccountAlias=alias)


def test_a_role_is_assumed_across_accounts_where_both_sides_allow(simulated, second):
    iam = account_client(simulated, second, "iam")
    caller = User(simulated)
    role = iam.create_role(RoleName=name("role"), AssumeRolePolicyDocument=trust({"AWS": caller.arn}))["Role"]
    assume = lambda: caller.client("sts").assume_role(RoleArn=role["Arn"], RoleSessionName="across")
    refused(assume, "AccessDenied")
    caller.put(allow("sts:AssumeRole", role["Arn"]))
    who = with_credentials(simulated, assume()["Credentials"], "sts").get_caller_identity()
    assert who["Account"] == second["account_id"]
    iam.update_assume_role_policy(RoleName=role["RoleName"], PolicyDocument=trust({"AWS": second["account_id"]}))
    refused(assume, "AccessDenied")


def test_an_account_made_while_the_daemon_is_away_is_there_when_it_is_back(make_daemon):
    daemon = make_daemon("--compute", "simulated")
    daemon.stop()
    account = make_account(daemon)
    daemon.haar("up", *daemon.flags)
    assert account_client(daemon, account, "sts").get_caller_identity()["Account"] == account["account_id"]


def test_a_root_key_that_was_given_up_stays_so(make_daemon):
    daemon = make_daemon("--compute", "simulated")
    account = make_account(daemon)
    iam = account_client(daemon, account, "iam")
    other = iam.create_access_key()["AccessKey"]
    iam.delete_access_key(AccessKeyId=account["access_key_id"])
    daemon.kill()
    daemon.haar("up", *daemon.flags)
    refused(account_client(daemon, account, "sts").get_caller_identity, "InvalidClientTokenId")
    sts = daemon.client("sts", aws_access_key_id=other["AccessKeyId"], aws_secret_access_key=other["SecretAccessKey"])
    assert sts.get_caller_identity()["Arn"].endswith(":root")


@pytest.mark.parametrize("round", range(3))
def test_a_kill_amid_changes_loses_nothing_and_leaves_nothing_half_done(make_daemon, round):
    """Four clients make users with key, group and policy and take every second one apart, until the daemon is killed."""
    daemon = make_daemon("--compute", "simulated")
    root = daemon.client("iam")
    root.create_group(GroupName="all")
    managed = root.create_policy(PolicyName="managed", PolicyDocument=policy(allow("ec2:*")))["Policy"]["Arn"]
    # What was acknowledged: of each user, the steps; the step that was asked for last may or may not have been done.
    log: dict[str, list] = {}

    def work(worker: int) -> None:
        iam = daemon.client("iam")
        try:
            for number in range(10_000):
                user = f"u-{worker}-{number}"
                log[user] = []

                def step(done, call, user=user):
                    log[user].append((f"try {done}", None))
                    log[user][-1] = (done, call())

                step("made", lambda user=user: iam.create_user(UserName=user)["User"]["UserId"])
                step("key", lambda user=user: iam.create_access_key(UserName=user)["AccessKey"])
                step("group", lambda user=user: iam.add_user_to_group(UserName=user, GroupName="all"))
                step("policy", lambda user=user: iam.attach_user_policy(UserName=user, PolicyArn=managed))
                if number % 2:
                    step("renamed", lambda user=user: iam.update_user(UserName=user, NewUserName=f"new-{user}"))
        except (ClientError, BotoCoreError):
            return

    workers = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for worker in workers:
        worker.start()
    wait_for(lambda: sum(len(steps) > 3 for steps in log.values()) > 8 * (round + 1), 60, 0.01)
    daemon.kill()
    for worker in workers:
        worker.join()
    daemon.haar("up", *daemon.flags)

    users = {user["UserName"]: user for page in root.get_paginator("list_users").paginate() for user in page["Users"]}
    members = {user["UserName"] for page in root.get_paginator("get_group").paginate(GroupName="all") for user in page["Users"]}
    attached = {
        user["UserName"] for page in root.get_paginator("list_entities_for_policy").paginate(PolicyArn=managed) for user in page["PolicyUsers"]
    }
    checked = 0
    for user, steps in log.items():
        done, tried = dict(steps), {step.removeprefix("try ") for step, _ in steps}
        names = [known for known in (user, f"new-{user}") if known in users]
        # Never under both names, nor under none once it was made.
        assert len(names) <= 1, names
        if "renamed" in done:
            assert names == [f"new-{user}"]
        if "made" in done:
            [known] = names
            checked += 1
            assert users[known]["UserId"] == done["made"]
            keys = [key["AccessKeyId"] for key in root.list_access_keys(UserName=known)["AccessKeyMetadata"]]
            if "key" in done:
                assert keys == [done["key"]["AccessKeyId"]]
                sts = daemon.client(
                    "sts", aws_access_key_id=keys[0], aws_secret_access_key=done["key"]["SecretAccessKey"]
                )
                assert sts.get_caller_identity()["Arn"].endswith(f":user/{known}")
            elif "key" not in tried:
                assert keys == []
            for step, have in (("group", members), ("policy", attached)):
                if step in done:
                    assert known in have
                elif step not in tried:
                    assert known not in have
    assert checked > 8
