"""What belongs to one account is invisible to another and of no use to it: every operation of every service is tried."""

import base64
import hashlib
import json
import re
import tomllib
from pathlib import Path

import pytest
from botocore.exceptions import ClientError
from support.identities import allow, name, policy, refused, trust, with_credentials

ROOT = Path(__file__).parent.parent
TABLES = {
    "ec2": ROOT / "crates/services/ec2/operations.toml",
    "iam": ROOT / "crates/services/iam/iam.toml",
}

# The zone of the volumes.
ZONE = "a"

# Codes that say that there is no such thing.
NOT_THERE = re.compile(r"NotFound|NoSuchEntity|InvalidSnapshot\.|Unknown$")

# What requests need besides the ids that they name, by operation or by member; of the caller's own where it is a resource.
RULE = {"IpProtocol": "tcp", "FromPort": 5, "ToPort": 5, "IpRanges": [{"CidrIp": "0.0.0.0/0"}]}
EXTRA = {
    "AssociateIamInstanceProfile": lambda own, _: {"IamInstanceProfile": {"Name": own.ids["instance-profile"]}},
    "AuthorizeSecurityGroupEgress": lambda *_: {"IpPermissions": [RULE]},
    "AuthorizeSecurityGroupIngress": lambda *_: {"IpPermissions": [RULE]},
    "CreateVolume": lambda own, _: {"AvailabilityZone": own.zone},
    "DetachVolume": lambda own, foreign: {"VolumeId": own.root} if foreign == "instance" else {},
    "ModifyInstanceAttribute": lambda _, foreign: {"DisableApiStop": {"Value": True}} if foreign == "instance" else {},
    "ModifyInstanceMetadataOptions": lambda *_: {"HttpTokens": "required"},
    "ModifySnapshotAttribute": lambda *_: {"CreateVolumePermission": {"Add": [{"Group": "all"}]}},
    "ModifyVolume": lambda *_: {"Size": 8},
    "ModifyVolumeAttribute": lambda *_: {"AutoEnableIO": {"Value": True}},
    "RegisterImage": lambda *_: {"RootDeviceName": "/dev/xvda", "Architecture": "x86_64"},
    "ReplaceIamInstanceProfileAssociation": lambda own, _: {"IamInstanceProfile": {"Name": own.ids["instance-profile"]}},
    "ResetImageAttribute": lambda *_: {"Attribute": "launchPermission"},
    "ResetSnapshotAttribute": lambda *_: {"Attribute": "createVolumePermission"},
    "RevokeSecurityGroupEgress": lambda _, foreign: {"IpPermissions": [RULE]} if foreign == "security-group" else {},
    "RevokeSecurityGroupIngress": lambda own, foreign: (
        {"IpPermissions": [RULE]} if foreign == "security-group" else {"GroupId": own.ids["security-group"]}
    ),
    "RunInstances": lambda own, _: {"ImageId": own.image, "InstanceType": "t3.nano"},
    "UpdateSecurityGroupRuleDescriptionsEgress": lambda *_: {"IpPermissions": [RULE]},
    "UpdateSecurityGroupRuleDescriptionsIngress": lambda *_: {"IpPermissions": [RULE]},
}
# Values of members, and the optional ones that requests have to have nevertheless.
OPTIONAL = ("CpuCredits", "DeviceIndex", "DeviceName", "SecurityGroupRule", "TagKeys", "Tags")
VALUES = {
    "AccessKeyId": "AKIAIOSFODNN7EXAMPLE",
    "ActionNames": ["iam:GetUser"],
    "AssumeRolePolicyDocument": trust({"Service": "ec2.amazonaws.com"}),
    "CpuCredits": "unlimited",
    "Device": "/dev/sdx",
    "DeviceIndex": 0,
    "DeviceName": "/dev/xvda",
    "PermissionsBoundary": "arn:aws:iam::aws:policy/ReadOnlyAccess",
    "PolicyArn": "arn:aws:iam::aws:policy/ReadOnlyAccess",
    "PolicyDocument": policy(allow("*")),
    "SecurityGroupRule": {"IpProtocol": "tcp", "FromPort": 5, "ToPort": 5, "CidrIpv4": "0.0.0.0/0"},
    "SourceRegion": "eu-central-1",
    "TagKeys": ["owner"],
    "Tags": [{"Key": "stolen", "Value": "yes"}],
    "ThumbprintList": ["0" * 40],
    "VersionId": "v1",
}


def permissions(table: dict, operation: str) -> list[str]:
    return table["authorization"][operation]


def operations() -> list[tuple[str, str]]:
    """Each operation of the tables."""
    found = []
    for service, path in TABLES.items():
        if path.exists():
            found += [(service, operation) for operation in tomllib.loads(path.read_text())["operations"]]
    return found


class Owner:
    """An account with a resource of every type, and the ids by which requests name them."""

    def __init__(self, daemon, **keys):
        self.daemon, self.keys, self.clients = daemon, keys, {}
        self.zone = daemon.region + ZONE
        ec2, iam = self.client("ec2"), self.client("iam")
        self.image = ec2.describe_images(Filters=[{"Name": "name", "Values": ["tiny"]}])["Images"][0]["ImageId"]
        group = ec2.create_security_group(GroupName=name("mine"), Description="mine")["GroupId"]
        rule = {"IpProtocol": "tcp", "FromPort": 1, "ToPort": 1, "CidrIp": "0.0.0.0/0"}
        rules = ec2.authorize_security_group_ingress(GroupId=group, **rule)["SecurityGroupRules"]
        key = name("mine")
        ec2.create_key_pair(KeyName=key, KeyType="ed25519")
        user = name("mine")
        made_user = iam.create_user(UserName=user)["User"]
        iam.create_group(GroupName=user)
        role = iam.create_role(RoleName=user, AssumeRolePolicyDocument=trust({"Service": "ec2.amazonaws.com"}))["Role"]
        profile = iam.create_instance_profile(InstanceProfileName=user)["InstanceProfile"]
        iam.add_role_to_instance_profile(InstanceProfileName=user, RoleName=user)
        owned = iam.create_policy(PolicyName=user, PolicyDocument=policy(allow("*")))["Policy"]
        settings = {"InstanceType": "t3.nano", "MinCount": 1, "MaxCount": 1, "KeyName": key, "SecurityGroupIds": [group]}
        settings |= {"ImageId": self.image, "IamInstanceProfile": {"Name": user}}
        (instance,) = ec2.run_instances(**settings)["Instances"]
        volume = ec2.create_volume(AvailabilityZone=self.zone, Size=1)["VolumeId"]
        ec2.get_waiter("instance_running").wait(InstanceIds=[instance["InstanceId"]], WaiterConfig={"Delay": 1})
        ec2.get_waiter("volume_available").wait(VolumeIds=[volume], WaiterConfig={"Delay": 1})
        snapshot = ec2.create_snapshot(VolumeId=volume)["SnapshotId"]
        (associated,) = ec2.describe_iam_instance_profile_associations()["IamInstanceProfileAssociations"]
        self.ids = {
            "instance": instance["InstanceId"],
            "volume": volume,
            "snapshot": snapshot,
            "security-group": group,
            "security-group-rule": rules[0]["SecurityGroupRuleId"],
            "key-pair": key,
            "vpc": instance["VpcId"],
            "subnet": instance["SubnetId"],
            "network-interface": instance["NetworkInterfaces"][0]["NetworkInterfaceId"],
            "user": user,
            "group": user,
            "role": user,
            "instance-profile": user,
            "policy": owned["Arn"],
        }
        self.association = associated["AssociationId"]
        attached = ec2.describe_volumes(Filters=[{"Name": "attachment.instance-id", "Values": [instance["InstanceId"]]}])
        self.root = attached["Volumes"][0]["VolumeId"]
        self.arns = [made_user["Arn"], role["Arn"], profile["Arn"], owned["Arn"]]

    def client(self, service: str):
        if service not in self.clients:
            self.clients[service] = self.daemon.client(service, **self.keys)
        return self.clients[service]

    def id(self, service: str, kind: str, member: str) -> str | None:
        """What a member of a request says for the account's own resource of a type."""
        if kind == "any":
            return self.ids["volume"] if service == "ec2" else self.arns[0]
        return self.association if member == "AssociationId" else self.ids.get(kind)

    def secrets(self) -> list[str]:
        """What must not be seen by others. Default names, which everyone has, are none."""
        return [*(set(self.ids.values())), self.association, *self.arns]

    def state(self) -> dict:
        """All that is, as the account sees it."""
        ec2, iam = self.client("ec2"), self.client("iam")
        answers = [
            ec2.describe_instances(),
            ec2.describe_volumes(),
            ec2.describe_snapshots(OwnerIds=["self"]),
            ec2.describe_security_group_rules(),
            ec2.describe_key_pairs(),
            ec2.describe_network_interfaces(),
            ec2.describe_tags(),
            ec2.describe_iam_instance_profile_associations(),
            iam.get_account_authorization_details(Filter=["User", "Role", "Group", "LocalManagedPolicy"]),
        ]
        for answer in answers:
            answer.pop("ResponseMetadata")
        return json.loads(json.dumps(answers, default=str))


@pytest.fixture(scope="module")
def mine(simulated) -> Owner:
    made = Owner(simulated)
    yield made
    made.client("ec2").terminate_instances(InstanceIds=[made.ids["instance"]])


@pytest.fixture(scope="module")
def theirs(simulated) -> Owner:
    """Another account."""
    called = name("other")
    made = json.loads(simulated.haar("account", "create", "--name", called, "--json").stdout)
    exports = simulated.haar("env", "--account", called, "--shell", "sh").stdout
    secret = re.search(r"AWS_SECRET_ACCESS_KEY='?([^'\s;]+)", exports).group(1)
    owner = Owner(simulated, aws_access_key_id=made["access_key_id"], aws_secret_access_key=secret)
    owner.account = made["account_id"]
    yield owner
    owner.client("ec2").terminate_instances(InstanceIds=[owner.ids["instance"]])


def put(shape, request: dict, path: list[str], value: str) -> None:
    """Sets the member at a path, through lists."""
    member, rest = path[0], path[1:]
    inner = shape.members[member]
    if inner.type_name == "list":
        element = inner.member
        if element.type_name == "structure":
            (part,) = request.setdefault(member, [{}])
            put(element, part, rest, value)
        else:
            request[member] = [value]
    elif inner.type_name == "structure":
        put(inner, request.setdefault(member, {}), rest, value)
    else:
        request[member] = value


def complete(shape, request: dict) -> None:
    """Fills in what a request must have and does not have yet."""
    for member, inner in shape.members.items():
        if member in request and inner.type_name == "structure":
            complete(inner, request[member])
        if member in request and inner.type_name == "list" and inner.member.type_name == "structure":
            for part in request[member]:
                complete(inner.member, part)
        if member in request or member not in shape.required_members and member not in OPTIONAL:
            continue
        if member in VALUES:
            request[member] = VALUES[member]
        elif inner.type_name == "string":
            request[member] = (getattr(inner, "enum", None) or ["x" * max(4, inner.metadata.get("min", 1))])[0]
        elif inner.type_name in ("integer", "long"):
            request[member] = 1
        elif inner.type_name == "boolean":
            request[member] = True
        elif inner.type_name == "structure":
            request[member] = {}
            complete(inner, request[member])
        elif inner.type_name == "list" and inner.member.type_name == "structure":
            request[member] = [{}]
            complete(inner.member, request[member][0])
        elif inner.type_name == "list":
            request[member] = ["xxxx"]


# An operation that makes something of a name takes nothing of another account by it.
MAKES = {"key-pair": ("Create", "Import"), "user": ("Create",), "group": ("Create",), "role": ("Create",), "instance-profile": ("Create",)}


def requests(mine: Owner, theirs: Owner, service: str, operation: str) -> list[dict]:
    """For every type of resource that an operation names, a request of `theirs` that names one of `mine`, and else its own."""
    model = theirs.client(service).meta.service_model.operation_model(operation)
    table = tomllib.loads(TABLES[service].read_text())
    named: dict[str, list[str]] = {}
    for entry in permissions(table, operation):
        kind, _, sources = entry.split(" if ")[0].partition(": ")
        paths = [source.strip() for source in sources.split(",") if source.strip() not in ("*", "@default", "")]
        if " " in kind or not paths or mine.id(service, kind, paths[0]) is None:
            continue
        is_id = [path for path in paths if path.endswith(("Id", "Ids", "Groups")) and kind != "key-pair"]
        named[kind] = (is_id or paths)[0].split(".")
    found = []
    for foreign in named:
        if operation.startswith(MAKES.get(foreign, ("-",))) and operation != "CreateAccessKey":
            continue
        request: dict = {}
        required = model.input_shape.required_members
        for kind, path in named.items():
            # A resource of its own is named only where one must be.
            if kind == foreign or path[0] in required:
                owner = mine if kind == foreign else theirs
                put(model.input_shape, request, path, owner.id(service, kind, path[-1]))
        request |= EXTRA.get(operation, lambda *_: {})(theirs, foreign)
        complete(model.input_shape, request)
        found.append(request)
    return found


def call(client, operation: str, request: dict):
    method = next(method for method, named in client.meta.method_to_api_mapping.items() if named == operation)
    return getattr(client, method)(**request)


# To delete what there is not is no error, and credits are refused instance by instance in the answer.
FORGIVING = {"DeleteKeyPair", "ModifyInstanceCreditSpecification"}


@pytest.mark.parametrize(("service", "operation"), operations(), ids=lambda value: value)
def test_an_operation_upon_what_another_account_has(mine, theirs, service, operation):
    client = theirs.client(service)
    shape = client.meta.service_model.operation_model(operation).input_shape
    for request in requests(mine, theirs, service, operation):
        try:
            answer = call(client, operation, request)
        except ClientError as error:
            code, message = error.response["Error"]["Code"], error.response["Error"]["Message"]
            assert NOT_THERE.search(code) or code in ("AccessDenied", "AuthFailure", "InvalidInput"), (request, code, message)
        else:
            assert operation in FORGIVING, f"{operation} of {request} was answered: {answer}"
    if shape is None or not shape.required_members and re.match("Describe|List|Get", operation):
        try:
            answer = call(client, operation, {})
        except ClientError as error:
            # A root has no user of its own; some operations need a choice of members.
            codes = ("ValidationError", "NoSuchEntity", "MissingParameter", "InvalidParameterCombination")
            assert error.response["Error"]["Code"] in codes
            return
        text = json.dumps(answer, default=str)
        assert not [secret for secret in mine.secrets() if f'"{secret}"' in text]


def test_nothing_of_the_account_has_changed(mine, theirs):
    """Runs everything again, and compares what the account has before and after."""
    before = mine.state()
    for service, operation in operations():
        for request in requests(mine, theirs, service, operation):
            try:
                call(theirs.client(service), operation, request)
            except ClientError:
                pass
    assert mine.state() == before


def test_permissions_do_not_reach_into_another_account(simulated, mine, theirs):
    """A user of the other account with all permissions is as far away as its root."""
    iam = theirs.client("iam")
    user = name("theirs")
    iam.create_user(UserName=user)
    iam.put_user_policy(UserName=user, PolicyName="p", PolicyDocument=policy(allow("*")))
    key = iam.create_access_key(UserName=user)["AccessKey"]
    keys = {"aws_access_key_id": key["AccessKeyId"], "aws_secret_access_key": key["SecretAccessKey"]}
    ec2, sts = simulated.client("ec2", **keys), simulated.client("sts", **keys)
    refused(lambda: ec2.terminate_instances(InstanceIds=[mine.ids["instance"]]), "InvalidInstanceID.NotFound")
    refused(lambda: ec2.create_tags(Resources=[mine.ids["volume"]], Tags=[{"Key": "a", "Value": "b"}]), "InvalidVolume.NotFound")
    assert sts.get_caller_identity()["Account"] == theirs.account
    refused(lambda: sts.assume_role(RoleArn=mine.arns[1], RoleSessionName="session"), "AccessDenied")
    refused(
        lambda: ec2.associate_iam_instance_profile(InstanceId=theirs.ids["instance"], IamInstanceProfile={"Arn": mine.arns[2]}),
        "InvalidParameterValue",
    )


def test_a_role_that_trusts_another_account_is_assumed_from_there(simulated, mine, theirs):
    iam = mine.client("iam")
    role = name("shared")
    trusted = trust({"AWS": f"arn:aws:iam::{theirs.account}:root"})
    arn = iam.create_role(RoleName=role, AssumeRolePolicyDocument=trusted)["Role"]["Arn"]
    iam.put_role_policy(RoleName=role, PolicyName="p", PolicyDocument=policy(allow("ec2:DescribeInstances")))
    user = name("theirs")
    theirs.client("iam").create_user(UserName=user)
    key = theirs.client("iam").create_access_key(UserName=user)["AccessKey"]
    keys = {"aws_access_key_id": key["AccessKeyId"], "aws_secret_access_key": key["SecretAccessKey"]}
    sts = simulated.client("sts", **keys)
    refused(lambda: sts.assume_role(RoleArn=arn, RoleSessionName="session"), "AccessDenied")
    document = policy(allow("sts:AssumeRole", arn))
    theirs.client("iam").put_user_policy(UserName=user, PolicyName="p", PolicyDocument=document)
    credentials = sts.assume_role(RoleArn=arn, RoleSessionName="session")["Credentials"]
    ec2 = with_credentials(simulated, credentials, "ec2")
    found = ec2.describe_instances(InstanceIds=[mine.ids["instance"]])
    assert found["Reservations"][0]["OwnerId"] == simulated.credentials["account_id"]
    refused(lambda: ec2.terminate_instances(InstanceIds=[mine.ids["instance"]]), "UnauthorizedOperation")


def test_blocks_of_snapshots_are_their_account_s(mine, theirs):
    ours, ebs = mine.client("ebs"), theirs.client("ebs")
    snapshot = mine.ids["snapshot"]
    pending = ours.start_snapshot(VolumeSize=1)["SnapshotId"]
    before = mine.state()
    data = bytes(512 << 10)
    digest = base64.b64encode(hashlib.sha256(data).digest()).decode()
    block = {"BlockIndex": 0, "DataLength": len(data), "Checksum": digest, "ChecksumAlgorithm": "SHA256", "BlockData": data}
    for call in (
        lambda: ebs.list_snapshot_blocks(SnapshotId=snapshot),
        lambda: ebs.list_changed_blocks(SecondSnapshotId=snapshot),
        lambda: ebs.list_changed_blocks(FirstSnapshotId=snapshot, SecondSnapshotId=theirs.ids["snapshot"]),
        lambda: ebs.get_snapshot_block(SnapshotId=snapshot, BlockIndex=0, BlockToken="AAAA"),
        lambda: ebs.start_snapshot(VolumeSize=10, ParentSnapshotId=snapshot),
        lambda: ebs.put_snapshot_block(SnapshotId=pending, **block),
        lambda: ebs.complete_snapshot(SnapshotId=pending, ChangedBlocksCount=0),
    ):
        refused(call, "ResourceNotFoundException", "ValidationException", "AccessDeniedException")
    assert mine.state() == before
    mine.client("ec2").delete_snapshot(SnapshotId=pending)


def test_the_same_names_are_free_in_every_account(mine, theirs):
    ec2, iam = theirs.client("ec2"), theirs.client("iam")
    ec2.create_key_pair(KeyName=mine.ids["key-pair"], KeyType="ed25519")
    iam.create_user(UserName=mine.ids["user"])
    iam.create_role(RoleName=mine.ids["role"], AssumeRolePolicyDocument=trust({"Service": "ec2.amazonaws.com"}))


def test_the_trail_tells_the_accounts_apart(simulated, theirs):
    request = theirs.client("ec2").describe_vpcs()["ResponseMetadata"]["RequestId"]
    lines = simulated.haar("trail", "--json", "--account", theirs.account).stdout.splitlines()
    found = [json.loads(line) for line in lines]
    assert {one["recipientAccountId"] for one in found} == {theirs.account}
    assert request in {one["requestID"] for one in found}
