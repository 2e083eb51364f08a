"""IAM: users, groups, roles, instance profiles, policies, keys, by boto3 and the aws CLI."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from support.identities import ALLOW_ALL, User, allow, deny, name, policy, refused, trust

EC2 = {"Service": "ec2.amazonaws.com"}


@pytest.fixture(scope="module")
def iam(simulated):
    return simulated.client("iam")


@pytest.fixture(scope="module")
def account(simulated) -> str:
    return simulated.credentials["account_id"]


def names(pages, key: str, member: str) -> list[str]:
    return [item[member] for page in pages for item in page[key]]


# --- users and groups ---------------------------------------------------------------------------------------------------


def test_a_user_lives_and_dies(iam, account):
    user = name("Alice")
    made = iam.create_user(UserName=user, Path="/staff/", Tags=[{"Key": "Team", "Value": "red"}])["User"]
    assert made["Arn"] == f"arn:aws:iam::{account}:user/staff/{user}"
    assert made["UserId"].startswith("AIDA") and len(made["UserId"]) == 21
    found = iam.get_user(UserName=user)["User"]
    assert {k: found[k] for k in made} == made
    refused(lambda: iam.create_user(UserName=user.upper()), "EntityAlreadyExists")
    iam.tag_user(UserName=user, Tags=[{"Key": "team", "Value": "blue"}, {"Key": "stage", "Value": ""}])
    assert {tag["Key"]: tag["Value"] for tag in iam.list_user_tags(UserName=user)["Tags"]} == {"team": "blue", "stage": ""}
    iam.untag_user(UserName=user, TagKeys=["STAGE"])
    renamed = name("bob")
    iam.update_user(UserName=user, NewUserName=renamed, NewPath="/other/")
    refused(lambda: iam.get_user(UserName=user), "NoSuchEntity")
    found = iam.get_user(UserName=renamed)["User"]
    assert (found["UserId"], found["Arn"]) == (made["UserId"], f"arn:aws:iam::{account}:user/other/{renamed}")
    assert found["Tags"] == [{"Key": "team", "Value": "blue"}]
    iam.delete_user(UserName=renamed)
    error = refused(lambda: iam.delete_user(UserName=renamed), "NoSuchEntity")
    assert error["ResponseMetadata"]["HTTPStatusCode"] == 404
    assert error["Error"]["Message"] == f"The user with name {renamed} cannot be found."


def test_a_user_that_has_anything_is_not_deleted(iam):
    user, group = name("user"), name("group")
    iam.create_user(UserName=user)
    iam.create_group(GroupName=group)
    steps = [
        (lambda: iam.create_access_key(UserName=user)["AccessKey"]["AccessKeyId"], lambda key: iam.delete_access_key(UserName=user, AccessKeyId=key)),
        (lambda: iam.add_user_to_group(UserName=user, GroupName=group), lambda _: iam.remove_user_from_group(UserName=user, GroupName=group)),
        (
            lambda: iam.put_user_policy(UserName=user, PolicyName="p", PolicyDocument=json.dumps(ALLOW_ALL)),
            lambda _: iam.delete_user_policy(UserName=user, PolicyName="p"),
        ),
        (
            lambda: iam.attach_user_policy(UserName=user, PolicyArn="arn:aws:iam::aws:policy/AdministratorAccess"),
            lambda _: iam.detach_user_policy(UserName=user, PolicyArn="arn:aws:iam::aws:policy/AdministratorAccess"),
        ),
    ]
    for give, take in steps:
        given = give()
        error = refused(lambda: iam.delete_user(UserName=user), "DeleteConflict")
        assert error["ResponseMetadata"]["HTTPStatusCode"] == 409
        take(given)
    iam.add_user_to_group(UserName=user, GroupName=group)
    refused(lambda: iam.delete_group(GroupName=group), "DeleteConflict")
    iam.remove_user_from_group(UserName=user, GroupName=group)
    iam.delete_user(UserName=user)
    iam.delete_group(GroupName=group)


def test_groups_have_members(iam):
    users, group = sorted(name("member") for _ in range(3)), name("Group")
    iam.create_group(GroupName=group)
    for user in users:
        iam.create_user(UserName=user)
        iam.add_user_to_group(UserName=user, GroupName=group)
    assert [user["UserName"] for user in iam.get_group(GroupName=group)["Users"]] == users
    first = iam.get_group(GroupName=group, MaxItems=2)
    assert first["IsTruncated"] and len(first["Users"]) == 2
    rest = iam.get_group(GroupName=group, MaxItems=2, Marker=first["Marker"])
    assert not rest["IsTruncated"] and [user["UserName"] for user in rest["Users"]] == users[2:]
    renamed = name("other")
    iam.update_group(GroupName=group, NewGroupName=renamed)
    assert [g["GroupName"] for g in iam.list_groups_for_user(UserName=users[0])["Groups"]] == [renamed]
    for _ in range(9):
        more = name("more")
        iam.create_group(GroupName=more)
        iam.add_user_to_group(UserName=users[0], GroupName=more)
    last = name("last")
    iam.create_group(GroupName=last)
    refused(lambda: iam.add_user_to_group(UserName=users[0], GroupName=last), "LimitExceeded")


def test_lists_have_pages_and_paths(iam):
    path = f"/{name('path')}/"
    users = sorted(name("u") for _ in range(5))
    for user in users:
        iam.create_user(UserName=user, Path=path)
    pages = list(iam.get_paginator("list_users").paginate(PathPrefix=path, PaginationConfig={"PageSize": 2}))
    assert [len(page["Users"]) for page in pages] == [2, 2, 1]
    assert names(pages, "Users", "UserName") == users
    marker = iam.list_users(PathPrefix=path, MaxItems=2)["Marker"]
    for other in ({"PathPrefix": "/"}, {"PathPrefix": path, "Marker": marker.swapcase()}):
        refused(lambda other=other: iam.list_users(**({"MaxItems": 2, "Marker": marker} | other)), "ValidationError")
    refused(lambda: iam.list_roles(Marker=marker), "ValidationError")
    # MaxItems of 0 and paths without slashes break constraints.
    refused(lambda: iam.list_users(MaxItems=1001), "ValidationError")
    for bad in ("staff", "/staff", "staff/", "//"):
        refused(lambda bad=bad: iam.create_user(UserName=name("u"), Path=bad), "ValidationError")


# --- access keys --------------------------------------------------------------------------------------------------------


def test_an_access_key_signs_while_it_is_active(simulated, iam, account):
    user = User(simulated)
    sts = user.client("sts")
    who = sts.get_caller_identity()
    assert (who["Account"], who["Arn"], who["UserId"]) == (account, user.arn, user.id)
    key = user.key["AccessKeyId"]
    assert key.startswith("AKIA") and len(key) == 20 and len(user.key["SecretAccessKey"]) == 40
    iam.update_access_key(UserName=user.name, AccessKeyId=key, Status="Inactive")
    refused(sts.get_caller_identity, "InvalidClientTokenId")
    assert [k["Status"] for k in iam.list_access_keys(UserName=user.name)["AccessKeyMetadata"]] == ["Inactive"]
    iam.update_access_key(UserName=user.name, AccessKeyId=key, Status="Active")
    # Another name is the same user.
    renamed = name("renamed")
    iam.update_user(UserName=user.name, NewUserName=renamed)
    assert sts.get_caller_identity()["Arn"].endswith(f":user/{renamed}")
    second = iam.create_access_key(UserName=renamed)["AccessKey"]["AccessKeyId"]
    error = refused(lambda: iam.create_access_key(UserName=renamed), "LimitExceeded")
    assert "AccessKeysPerUser: 2" in error["Error"]["Message"]
    assert {k["AccessKeyId"] for k in iam.list_access_keys(UserName=renamed)["AccessKeyMetadata"]} == {key, second}
    refused(lambda: iam.delete_access_key(UserName=renamed, AccessKeyId="AKIAIOSFODNN7EXAMPLE"), "NoSuchEntity")
    other = User(simulated)
    refused(lambda: iam.delete_access_key(UserName=other.name, AccessKeyId=key), "NoSuchEntity")
    iam.delete_access_key(UserName=renamed, AccessKeyId=key)
    refused(sts.get_caller_identity, "InvalidClientTokenId")


def test_keys_know_when_they_were_last_used(simulated, iam):
    user = User(simulated)
    key = user.key["AccessKeyId"]
    used = iam.get_access_key_last_used(AccessKeyId=key)
    assert used["UserName"] == user.name
    assert used["AccessKeyLastUsed"] == {"ServiceName": "N/A", "Region": "N/A"}
    user.client("sts").get_caller_identity()
    used = iam.get_access_key_last_used(AccessKeyId=key)["AccessKeyLastUsed"]
    assert (used["ServiceName"], used["Region"]) == ("sts", simulated.region)
    refused(lambda: iam.get_access_key_last_used(AccessKeyId="AKIAIOSFODNN7EXAMPLE"), "NoSuchEntity")


def test_secrets_are_not_in_the_records(simulated):
    user = User(simulated)
    secrets = [user.key["SecretAccessKey"], simulated.credentials["secret_access_key"]]
    for file in simulated.state_dir.glob("state.db*"):
        content = file.read_bytes()
        for secret in secrets:
            assert secret.encode() not in content
            assert secret.encode().hex().encode() not in content
    sealing = simulated.state_dir / "sealing.key"
    assert sealing.stat().st_mode & 0o777 == 0o600


# --- roles and instance profiles ----------------------------------------------------------------------------------------


def test_a_role_lives_and_dies(iam, account):
    role = name("Role")
    document = trust(EC2)
    made = iam.create_role(
        RoleName=role, Path="/app/", AssumeRolePolicyDocument=document, Description="what it is", MaxSessionDuration=7200,
        Tags=[{"Key": "a", "Value": "1"}],
    )["Role"]
    assert made["Arn"] == f"arn:aws:iam::{account}:role/app/{role}" and made["RoleId"].startswith("AROA")
    assert made["AssumeRolePolicyDocument"] == json.loads(document)
    found = iam.get_role(RoleName=role)["Role"]
    assert (found["Description"], found["MaxSessionDuration"], found["Tags"]) == ("what it is", 7200, [{"Key": "a", "Value": "1"}])
    iam.update_role(RoleName=role, Description="another", MaxSessionDuration=3600)
    iam.update_assume_role_policy(RoleName=role, PolicyDocument=trust({"Service": "lambda.amazonaws.com"}))
    found = iam.get_role(RoleName=role)["Role"]
    assert (found["Description"], found["MaxSessionDuration"]) == ("another", 3600)
    assert found["AssumeRolePolicyDocument"]["Statement"][0]["Principal"] == {"Service": "lambda.amazonaws.com"}
    assert role in names(iam.get_paginator("list_roles").paginate(PathPrefix="/app/"), "Roles", "RoleName")
    refused(lambda: iam.create_role(RoleName=role, AssumeRolePolicyDocument=document), "EntityAlreadyExists")
    refused(lambda: iam.update_role(RoleName=role, MaxSessionDuration=43201), "ValidationError")
    iam.delete_role(RoleName=role)
    refused(lambda: iam.get_role(RoleName=role), "NoSuchEntity")


@pytest.mark.parametrize(
    "document",
    [
        "{}",
        "not json",
        policy(allow("sts:AssumeRole")),
        policy({"Effect": "Allow", "Principal": EC2, "Action": "ec2:RunInstances"}),
        trust({"AWS": "arn:aws:iam::123456789012:nobody/x"}),
    ],
)
def test_trust_policies_are_checked(iam, document):
    refused(lambda: iam.create_role(RoleName=name("r"), AssumeRolePolicyDocument=document), "MalformedPolicyDocument")


def test_trust_names_who_is_there_and_not_who_comes_later(simulated, iam, account):
    gone = f"arn:aws:iam::{account}:user/{name('nobody')}"
    refused(lambda: iam.create_role(RoleName=name("r"), AssumeRolePolicyDocument=trust({"AWS": gone})), "MalformedPolicyDocument")
    user, role = User(simulated), name("role")
    iam.create_role(RoleName=role, AssumeRolePolicyDocument=trust({"AWS": user.arn}))
    trusted = lambda: iam.get_role(RoleName=role)["Role"]["AssumeRolePolicyDocument"]["Statement"][0]["Principal"]["AWS"]
    assert trusted() == user.arn
    iam.delete_access_key(UserName=user.name, AccessKeyId=user.key["AccessKeyId"])
    iam.delete_user(UserName=user.name)
    assert trusted() == user.id
    iam.create_user(UserName=user.name)
    assert trusted() == user.id


def test_an_instance_profile_holds_one_role(iam, account):
    role, other, profile = name("role"), name("role"), name("Profile")
    for one in (role, other):
        iam.create_role(RoleName=one, AssumeRolePolicyDocument=trust(EC2))
    made = iam.create_instance_profile(InstanceProfileName=profile, Tags=[{"Key": "k", "Value": "v"}])["InstanceProfile"]
    assert made["Arn"] == f"arn:aws:iam::{account}:instance-profile/{profile}" and made["Roles"] == []
    iam.add_role_to_instance_profile(InstanceProfileName=profile, RoleName=role)
    refused(lambda: iam.add_role_to_instance_profile(InstanceProfileName=profile, RoleName=other), "LimitExceeded")
    found = iam.get_instance_profile(InstanceProfileName=profile)["InstanceProfile"]
    assert [r["RoleName"] for r in found["Roles"]] == [role] and found["Tags"] == [{"Key": "k", "Value": "v"}]
    of_role = iam.list_instance_profiles_for_role(RoleName=role)["InstanceProfiles"]
    assert [p["InstanceProfileName"] for p in of_role] == [profile]
    refused(lambda: iam.delete_role(RoleName=role), "DeleteConflict")
    refused(lambda: iam.delete_instance_profile(InstanceProfileName=profile), "DeleteConflict")
    refused(lambda: iam.remove_role_from_instance_profile(InstanceProfileName=profile, RoleName=other), "NoSuchEntity")
    iam.remove_role_from_instance_profile(InstanceProfileName=profile, RoleName=role)
    iam.delete_instance_profile(InstanceProfileName=profile)
    iam.delete_role(RoleName=role)
    refused(lambda: iam.get_instance_profile(InstanceProfileName=profile), "NoSuchEntity")


def test_service_linked_roles_belong_to_their_service(iam, account):
    made = iam.create_service_linked_role(AWSServiceName="ecs.amazonaws.com")["Role"]
    assert made["Arn"] == f"arn:aws:iam::{account}:role/aws-service-role/ecs.amazonaws.com/AWSServiceRoleForECS"
    role = made["RoleName"]
    refused(lambda: iam.create_service_linked_role(AWSServiceName="ecs.amazonaws.com"), "InvalidInput")
    refused(lambda: iam.create_service_linked_role(AWSServiceName="unknown.amazonaws.com"), "InvalidInput")
    for change in (
        lambda: iam.delete_role(RoleName=role),
        lambda: iam.update_assume_role_policy(RoleName=role, PolicyDocument=trust(EC2)),
        lambda: iam.put_role_policy(RoleName=role, PolicyName="p", PolicyDocument=json.dumps(ALLOW_ALL)),
        lambda: iam.attach_role_policy(RoleName=role, PolicyArn="arn:aws:iam::aws:policy/AdministratorAccess"),
    ):
        refused(change, "UnmodifiableEntity")
    task = iam.delete_service_linked_role(RoleName=role)["DeletionTaskId"]
    assert iam.get_service_linked_role_deletion_status(DeletionTaskId=task)["Status"] == "SUCCEEDED"
    refused(lambda: iam.get_role(RoleName=role), "NoSuchEntity")


# --- policies -----------------------------------------------------------------------------------------------------------


def test_a_managed_policy_has_five_versions(iam, account):
    policy_name = name("Policy")
    documents = [policy(allow(f"ec2:Describe{i}*")) for i in range(6)]
    made = iam.create_policy(PolicyName=policy_name, PolicyDocument=documents[0], Description="d")["Policy"]
    arn = made["Arn"]
    assert arn == f"arn:aws:iam::{account}:policy/{policy_name}" and made["DefaultVersionId"] == "v1"
    for document in documents[1:5]:
        iam.create_policy_version(PolicyArn=arn, PolicyDocument=document)
    error = refused(lambda: iam.create_policy_version(PolicyArn=arn, PolicyDocument=documents[5]), "LimitExceeded")
    assert error["ResponseMetadata"]["HTTPStatusCode"] == 409
    versions = iam.list_policy_versions(PolicyArn=arn)["Versions"]
    assert [v["VersionId"] for v in versions] == ["v5", "v4", "v3", "v2", "v1"]
    assert [v["VersionId"] for v in versions if v["IsDefaultVersion"]] == ["v1"]
    refused(lambda: iam.delete_policy_version(PolicyArn=arn, VersionId="v1"), "DeleteConflict")
    iam.set_default_policy_version(PolicyArn=arn, VersionId="v3")
    assert iam.get_policy(PolicyArn=arn)["Policy"]["DefaultVersionId"] == "v3"
    iam.delete_policy_version(PolicyArn=arn, VersionId="v1")
    # Numbers are not given twice.
    new = iam.create_policy_version(PolicyArn=arn, PolicyDocument=documents[5], SetAsDefault=True)["PolicyVersion"]
    assert (new["VersionId"], new["IsDefaultVersion"]) == ("v6", True)
    document = iam.get_policy_version(PolicyArn=arn, VersionId="v6")["PolicyVersion"]["Document"]
    assert document == json.loads(documents[5])
    refused(lambda: iam.get_policy_version(PolicyArn=arn, VersionId="v1"), "NoSuchEntity")
    refused(lambda: iam.delete_policy(PolicyArn=arn), "DeleteConflict")
    for version in ("v2", "v3", "v4", "v5"):
        iam.delete_policy_version(PolicyArn=arn, VersionId=version)
    refused(lambda: iam.create_policy(PolicyName=policy_name.upper(), PolicyDocument=documents[0]), "EntityAlreadyExists")
    iam.delete_policy(PolicyArn=arn)
    refused(lambda: iam.get_policy(PolicyArn=arn), "NoSuchEntity")


def test_policies_in_use_stay(iam):
    role, user, group = name("role"), name("user"), name("group")
    iam.create_role(RoleName=role, AssumeRolePolicyDocument=trust(EC2))
    iam.create_user(UserName=user)
    iam.create_group(GroupName=group)
    arn = iam.create_policy(PolicyName=name("p"), PolicyDocument=json.dumps(ALLOW_ALL))["Policy"]["Arn"]
    iam.attach_role_policy(RoleName=role, PolicyArn=arn)
    iam.attach_role_policy(RoleName=role, PolicyArn=arn)
    iam.attach_user_policy(UserName=user, PolicyArn=arn)
    iam.attach_group_policy(GroupName=group, PolicyArn=arn)
    iam.put_user_permissions_boundary(UserName=user, PermissionsBoundary=arn)
    found = iam.get_policy(PolicyArn=arn)["Policy"]
    assert (found["AttachmentCount"], found["PermissionsBoundaryUsageCount"]) == (3, 1)
    entities = iam.list_entities_for_policy(PolicyArn=arn)
    assert [e["RoleName"] for e in entities["PolicyRoles"]] == [role]
    assert [e["UserName"] for e in entities["PolicyUsers"]] == [user]
    assert [e["GroupName"] for e in entities["PolicyGroups"]] == [group]
    only = iam.list_entities_for_policy(PolicyArn=arn, PolicyUsageFilter="PermissionsBoundary")
    assert (only["PolicyRoles"], [e["UserName"] for e in only["PolicyUsers"]]) == ([], [user])
    assert [p["PolicyArn"] for p in iam.list_attached_role_policies(RoleName=role)["AttachedPolicies"]] == [arn]
    iam.detach_role_policy(RoleName=role, PolicyArn=arn)
    refused(lambda: iam.detach_role_policy(RoleName=role, PolicyArn=arn), "NoSuchEntity")
    iam.detach_user_policy(UserName=user, PolicyArn=arn)
    iam.detach_group_policy(GroupName=group, PolicyArn=arn)
    refused(lambda: iam.delete_policy(PolicyArn=arn), "DeleteConflict")
    iam.delete_user_permissions_boundary(UserName=user)
    refused(lambda: iam.delete_user_permissions_boundary(UserName=user), "NoSuchEntity")
    iam.delete_policy(PolicyArn=arn)
    refused(lambda: iam.attach_user_policy(UserName=user, PolicyArn=arn), "NoSuchEntity")


def test_policies_are_checked_and_limited(iam):
    user = name("user")
    iam.create_user(UserName=user)
    put = lambda document: iam.put_user_policy(UserName=user, PolicyName="p", PolicyDocument=document)
    for document in ("{}", policy({"Effect": "Allow", "Action": "*"}), policy(allow("noprefix")), policy(allow("s3:*", Principal="*"))):
        refused(lambda document=document: put(document), "MalformedPolicyDocument")
        refused(lambda document=document: iam.create_policy(PolicyName=name("p"), PolicyDocument=document), "MalformedPolicyDocument")
    old = json.dumps({"Version": "2008-10-17", "Statement": [allow("s3:*")]})
    put(old)
    refused(lambda: iam.create_policy(PolicyName=name("p"), PolicyDocument=old), "MalformedPolicyDocument")
    # Sizes do not count white space.
    fits = policy(allow("s3:" + "a" * 1900))
    put(fits + " " * 4000)
    refused(lambda: iam.put_user_policy(UserName=user, PolicyName="q", PolicyDocument=fits), "LimitExceeded")
    refused(lambda: iam.create_policy(PolicyName=name("p"), PolicyDocument=policy(allow("s3:" + "a" * 6100))), "LimitExceeded")
    assert iam.get_user_policy(UserName=user, PolicyName="p")["PolicyDocument"] == json.loads(fits)
    assert iam.list_user_policies(UserName=user)["PolicyNames"] == ["p"]
    iam.delete_user_policy(UserName=user, PolicyName="p")
    refused(lambda: iam.get_user_policy(UserName=user, PolicyName="p"), "NoSuchEntity")
    managed = [p["Arn"] for p in iam.list_policies(Scope="AWS", MaxItems=11)["Policies"]]
    for arn in managed[:10]:
        iam.attach_user_policy(UserName=user, PolicyArn=arn)
    error = refused(lambda: iam.attach_user_policy(UserName=user, PolicyArn=managed[10]), "LimitExceeded")
    assert error["Error"]["Message"] == "Cannot exceed quota for PoliciesPerUser: 10"


@pytest.mark.parametrize(
    "arn",
    [
        "service-role/AWSLambdaBasicExecutionRole",
        "service-role/AmazonECSTaskExecutionRolePolicy",
        "service-role/AmazonEC2ContainerServiceforEC2Role",
        "AmazonEKSClusterPolicy",
        "AmazonEKSWorkerNodePolicy",
        "AmazonEKS_CNI_Policy",
        "AmazonEC2ContainerRegistryReadOnly",
        "AmazonEC2ContainerRegistryPowerUser",
        "AmazonEC2ContainerRegistryPullOnly",
        "AmazonSSMManagedInstanceCore",
        "AdministratorAccess",
        "PowerUserAccess",
        "ReadOnlyAccess",
        "AmazonEC2FullAccess",
        "AmazonEC2ReadOnlyAccess",
        "IAMFullAccess",
        "IAMReadOnlyAccess",
    ],
)
def test_the_policies_of_aws_that_guides_attach_exist(iam, arn):
    arn = f"arn:aws:iam::aws:policy/{arn}"
    found = iam.get_policy(PolicyArn=arn)["Policy"]
    assert (found["Arn"], found["IsAttachable"]) == (arn, True)
    document = iam.get_policy_version(PolicyArn=arn, VersionId=found["DefaultVersionId"])["PolicyVersion"]["Document"]
    assert document["Statement"]
    refused(lambda: iam.delete_policy(PolicyArn=arn), "AccessDenied")


# --- simulations --------------------------------------------------------------------------------------------------------


def decisions(answer) -> dict:
    return {(r["EvalActionName"], r["EvalResourceName"]): r["EvalDecision"] for r in answer["EvaluationResults"]}


def test_a_principals_policies_are_simulated(iam, account):
    user, group = name("user"), name("group")
    arn = iam.create_user(UserName=user)["User"]["Arn"]
    iam.create_group(GroupName=group)
    iam.add_user_to_group(UserName=user, GroupName=group)
    iam.put_group_policy(GroupName=group, PolicyName="read", PolicyDocument=policy(allow(["ec2:Describe*", "ec2:StopInstances"])))
    iam.put_user_policy(UserName=user, PolicyName="no", PolicyDocument=policy(deny("ec2:DescribeRegions")))
    actions = ["ec2:DescribeInstances", "ec2:DescribeRegions", "ec2:RunInstances"]
    answer = iam.simulate_principal_policy(PolicySourceArn=arn, ActionNames=actions)
    assert list(decisions(answer).values()) == ["allowed", "explicitDeny", "implicitDeny"]
    allowed = answer["EvaluationResults"][0]["MatchedStatements"]
    assert [s["SourcePolicyId"] for s in allowed] == ["read"] and allowed[0]["StartPosition"]["Line"] == 1
    boundary = iam.create_policy(PolicyName=name("b"), PolicyDocument=policy(allow("ec2:Describe*")))["Policy"]["Arn"]
    iam.put_user_permissions_boundary(UserName=user, PermissionsBoundary=boundary)
    answer = iam.simulate_principal_policy(PolicySourceArn=arn, ActionNames=["ec2:StopInstances", "ec2:DescribeInstances"])
    assert list(decisions(answer).values()) == ["implicitDeny", "allowed"]
    assert answer["EvaluationResults"][0]["PermissionsBoundaryDecisionDetail"] == {"AllowedByPermissionsBoundary": False}
    pages = iam.get_paginator("simulate_principal_policy").paginate(
        PolicySourceArn=arn, ActionNames=actions, PaginationConfig={"PageSize": 2}
    )
    assert [len(page["EvaluationResults"]) for page in pages] == [2, 1]
    refused(lambda: iam.simulate_principal_policy(PolicySourceArn=arn + "x", ActionNames=actions), "NoSuchEntity")


def test_custom_policies_are_simulated(iam):
    document = policy(
        allow("ec2:StartInstances", "arn:aws:ec2:*:*:instance/*", Condition={"StringEquals": {"aws:ResourceTag/Team": "${aws:PrincipalTag/Team}"}})
    )
    arns = ["arn:aws:ec2:eu-central-1:123456789012:instance/i-1", "arn:aws:ec2:eu-central-1:123456789012:volume/vol-1"]
    simulate = lambda **more: iam.simulate_custom_policy(
        PolicyInputList=[document], ActionNames=["ec2:StartInstances"], ResourceArns=arns, **more
    )
    answer = simulate()
    assert set(decisions(answer).values()) == {"implicitDeny"}
    assert set(answer["EvaluationResults"][0]["MissingContextValues"]) == {"aws:ResourceTag/Team", "aws:PrincipalTag/Team"}
    entry = lambda key, value: {"ContextKeyName": key, "ContextKeyValues": [value], "ContextKeyType": "string"}
    answer = simulate(ContextEntries=[entry("aws:ResourceTag/Team", "red"), entry("aws:PrincipalTag/Team", "red")])
    assert list(decisions(answer).values()) == ["allowed", "implicitDeny"]
    keys = iam.get_context_keys_for_custom_policy(PolicyInputList=[document])["ContextKeyNames"]
    assert set(keys) == {"aws:ResourceTag/Team", "aws:PrincipalTag/Team"}
    refused(lambda: iam.simulate_custom_policy(PolicyInputList=["{}"], ActionNames=["ec2:StartInstances"]), "InvalidInput")


# --- the account --------------------------------------------------------------------------------------------------------


def test_an_account_has_one_alias(iam):
    first, second = name("alias"), name("alias")
    iam.create_account_alias(AccountAlias=first)
    iam.create_account_alias(AccountAlias=second)
    assert iam.list_account_aliases()["AccountAliases"] == [second]
    refused(lambda: iam.delete_account_alias(AccountAlias=first), "NoSuchEntity")
    refused(lambda: iam.create_account_alias(AccountAlias="Not_Good"), "ValidationError")
    iam.delete_account_alias(AccountAlias=second)
    assert iam.list_account_aliases()["AccountAliases"] == []


def test_the_summary_and_the_details_count_alike(iam):
    role, profile = name("role"), name("profile")
    iam.create_role(RoleName=role, AssumeRolePolicyDocument=trust(EC2))
    iam.put_role_policy(RoleName=role, PolicyName="p", PolicyDocument=json.dumps(ALLOW_ALL))
    iam.attach_role_policy(RoleName=role, PolicyArn="arn:aws:iam::aws:policy/ReadOnlyAccess")
    iam.create_instance_profile(InstanceProfileName=profile)
    iam.add_role_to_instance_profile(InstanceProfileName=profile, RoleName=role)
    summary = iam.get_account_summary()["SummaryMap"]
    pages = list(iam.get_paginator("get_account_authorization_details").paginate(PaginationConfig={"PageSize": 7}))
    for key, counted in (("UserDetailList", "Users"), ("GroupDetailList", "Groups"), ("RoleDetailList", "Roles")):
        assert sum(len(page[key]) for page in pages) == summary[counted]
    [detail] = [d for page in pages for d in page["RoleDetailList"] if d["RoleName"] == role]
    assert detail["AssumeRolePolicyDocument"]["Statement"][0]["Principal"] == EC2
    assert [p["PolicyDocument"] for p in detail["RolePolicyList"]] == [ALLOW_ALL]
    assert [p["InstanceProfileName"] for p in detail["InstanceProfileList"]] == [profile]
    policies = [p["PolicyName"] for page in pages for p in page["Policies"]]
    assert "ReadOnlyAccess" in policies
    only = iam.get_account_authorization_details(Filter=["Role"])
    assert only["RoleDetailList"] and not only["UserDetailList"] and not only["Policies"]


def test_who_is_meant_without_a_name(simulated, iam, account):
    assert iam.get_user()["User"]["Arn"] == f"arn:aws:iam::{account}:root"
    keys = [key["AccessKeyId"] for key in iam.list_access_keys()["AccessKeyMetadata"]]
    assert keys == [simulated.credentials["access_key_id"]]


def test_a_user_does_to_itself_what_its_policy_says(simulated, iam):
    user, other = User(simulated, "self", Path="/staff/"), User(simulated, "other")
    own = user.client("iam")
    for call in (own.get_user, own.list_access_keys, lambda: own.create_access_key(UserName=other.name)):
        refused(call, "AccessDenied")
    user.put(allow(["iam:GetUser", "iam:*AccessKey*"], "arn:aws:iam::*:user/staff/${aws:username}"))
    assert own.get_user()["User"]["Arn"] == user.arn
    assert [key["AccessKeyId"] for key in own.list_access_keys()["AccessKeyMetadata"]] == [user.key["AccessKeyId"]]
    second = own.create_access_key()["AccessKey"]
    assert second["UserName"] == user.name
    own.delete_access_key(AccessKeyId=second["AccessKeyId"])
    for call in (lambda: own.get_user(UserName=other.name), lambda: own.create_access_key(UserName=other.name)):
        error = refused(call, "AccessDenied")
        assert other.arn in error["Error"]["Message"]
    refused(lambda: own.get_user(UserName=name("nobody")), "AccessDenied")
    # A boundary limits what a policy gives.
    boundary = iam.create_policy(PolicyName=name("b"), PolicyDocument=policy(allow("iam:GetUser")))["Policy"]["Arn"]
    iam.put_user_permissions_boundary(UserName=user.name, PermissionsBoundary=boundary)
    assert own.get_user()["User"]["PermissionsBoundary"]["PermissionsBoundaryArn"] == boundary
    error = refused(own.list_access_keys, "AccessDenied")
    assert "permissions boundary" in error["Error"]["Message"]


def test_what_is_not_here_says_so(iam):
    refused(lambda: iam.create_login_profile(UserName="u", Password="p"), "UnsupportedOperation")
    refused(lambda: iam.create_saml_provider(Name="s", SAMLMetadataDocument="x" * 1000), "UnsupportedOperation")
    refused(lambda: iam.generate_service_last_accessed_details(Arn="arn:aws:iam::123456789012:user/u"), "UnsupportedOperation")
    refused(lambda: iam.update_account_password_policy(MinimumPasswordLength=8), "UnsupportedOperation")


def test_the_aws_cli_makes_a_role(simulated):
    role = name("cli")
    aws = lambda *args: subprocess.run(
        [str(Path(sys.executable).parent / "aws"), "iam", *args], check=True, capture_output=True, text=True, env=simulated.aws_environment
    )
    made = json.loads(aws("create-role", "--role-name", role, "--assume-role-policy-document", trust(EC2)).stdout)["Role"]
    assert made["AssumeRolePolicyDocument"]["Statement"][0]["Principal"] == EC2
    aws("attach-role-policy", "--role-name", role, "--policy-arn", "arn:aws:iam::aws:policy/AmazonSSMManagedInstanceCore")
    listed = json.loads(aws("list-attached-role-policies", "--role-name", role).stdout)["AttachedPolicies"]
    assert [p["PolicyName"] for p in listed] == ["AmazonSSMManagedInstanceCore"]
    aws("detach-role-policy", "--role-name", role, "--policy-arn", "arn:aws:iam::aws:policy/AmazonSSMManagedInstanceCore")
    aws("delete-role", "--role-name", role)
