"""What belongs to one account is invisible to another and of no use to it: every operation of every service is tried."""

import base64
import hashlib
import json
import re

import pytest
from botocore.exceptions import ClientError
from support.identities import allow, name, policy, refused, trust, with_credentials
from support.mfa import enable
from support.operations import call, complete, identifiers, named, operations, put

# The zone of the volumes.
ZONE = "a"

# What answers that name what the account does not have, by service and type of resource.
NOT_THERE = {
    ("ebs", "snapshot"): ["ResourceNotFoundException"],
    ("ec2", "association"): ["NoSuchAssociation", "InvalidAssociationID.NotFound"],
    ("ec2", "dhcp-options"): ["InvalidDhcpOptionID.NotFound", "InvalidDhcpOptionsID.NotFound"],
    ("ec2", "image"): ["InvalidAMIID.NotFound"],
    ("ec2", "import-image-task"): ["InvalidConversionTaskId"],
    ("ec2", "import-snapshot-task"): ["InvalidConversionTaskId"],
    ("ec2", "instance"): ["InvalidInstanceID.NotFound"],
    ("ec2", "internet-gateway"): ["InvalidInternetGatewayID.NotFound"],
    ("ec2", "key-pair"): ["InvalidKeyPair.NotFound"],
    ("ec2", "launch-template"): ["InvalidLaunchTemplateId.NotFound", "InvalidLaunchTemplateName.NotFoundException"],
    ("ec2", "network-interface"): ["InvalidNetworkInterfaceID.NotFound"],
    ("ec2", "passed-role"): ["InvalidParameterValue"],
    ("ec2", "placement-group"): ["InvalidPlacementGroup.Unknown", "InvalidPlacementGroupId.NotFound"],
    ("ec2", "route-table"): ["InvalidRouteTableID.NotFound"],
    ("ec2", "security-group"): ["InvalidGroup.NotFound"],
    ("ec2", "security-group-rule"): ["InvalidSecurityGroupRuleId.NotFound"],
    ("ec2", "snapshot"): ["InvalidSnapshot.NotFound"],
    ("ec2", "subnet"): ["InvalidSubnetID.NotFound"],
    ("ec2", "volume"): ["InvalidVolume.NotFound"],
    ("ec2", "vpc"): ["InvalidVpcID.NotFound"],
    ("ec2", "source-group"): ["InvalidGroup.NotFound"],
    ("iam", "policy-source"): ["InvalidInput"],
    ("sts", "access-key"): [],
    ("sts", "mfa"): ["AccessDenied"],
    ("sts", "role"): ["AccessDenied"],
} | {("iam", kind): ["NoSuchEntity"] for kind in ("access-key", "group", "instance-profile", "mfa", "oidc-provider", "policy", "role", "user")}

# Where another answer is right: a volume is not attached to an instance that it cannot be attached to.
OTHERWISE = {("DetachVolume", "instance"): ["InvalidAttachment.NotFound"]}

# Types of what belongs to nobody, or is about to be made.
NOBODYS = {"federated-user", "oidc-provider-url", "parameter", "policy-name", "service-linked-role", "tagged"}

# What members name that no permission is asked for, by member, or by operation and member.
MEMBERS = {
    "AccessKeyId": "access-key",
    "AssociationIds": "instance",
    "DhcpOptionsIds": "dhcp-options",
    "GroupIds": "security-group",
    "GroupNames": "security-group",
    "ImageIds": "image",
    "InstanceIds": "instance",
    "InternetGatewayIds": "internet-gateway",
    "KeyNames": "key-pair",
    "KeyPairIds": "key-pair",
    "LaunchTemplateId": "launch-template",
    "LaunchTemplateIds": "launch-template",
    "LaunchTemplateName": "launch-template",
    "LaunchTemplateNames": "launch-template",
    "NetworkInterfaceIds": "network-interface",
    "ParentSnapshotId": "snapshot",
    "PolicyArn": "policy",
    "RoleArn": "role",
    "RoleName": "role",
    "RouteTableIds": "route-table",
    "SecurityGroupRuleIds": "security-group-rule",
    "SerialNumber": "mfa",
    "SnapshotIds": "snapshot",
    "SourceSecurityGroupName": "source-group",
    "SubnetIds": "subnet",
    "UserName": "user",
    "VolumeIds": "volume",
    "VpcIds": "vpc",
    ("DescribeImportImageTasks", "ImportTaskIds"): "import-image-task",
    ("DescribeImportSnapshotTasks", "ImportTaskIds"): "import-snapshot-task",
    ("DescribePlacementGroups", "GroupIds"): "placement-group",
    ("DescribePlacementGroups", "GroupNames"): "placement-group",
}
NO_RESOURCES = {
    *("ActionNames", "AttributeNames", "AvailabilityZoneId", "AWSServiceName", "CallerArn", "CertificateId", "ClientID", "ExternalId"),
    *("GroupName", "KmsKeyId", "KmsKeyArn", "Name", "NewGroupName", "NewUserName", "OwnerIds", "PolicyArns", "PolicyName", "ProviderId"),
    *("RegionNames", "ResourceArns", "RestorableByUserIds", "RoleSessionName", "RootDeviceName", "UserIds", "VersionId", "ZoneIds"),
    *("SourceSecurityGroupOwnerId", "ZoneNames"),
    # Who has not signed shows a token of an issuer instead.
    ("AssumeRoleWithWebIdentity", "RoleArn"),
    # The new template's.
    ("CreateLaunchTemplate", "LaunchTemplateName"),
    # Tasks end with the request that begins them.
    ("GetServiceLinkedRoleDeletionStatus", "DeletionTaskId"),
    # The group "all".
    ("ModifySnapshotAttribute", "GroupNames"),
}

# What requests need besides the ids that they name; of the caller's own where it is a resource.
RULE = {"IpProtocol": "tcp", "FromPort": 5, "ToPort": 5, "IpRanges": [{"CidrIp": "0.0.0.0/0"}]}
EXTRA = {
    "AssumeRole": lambda _, foreign: {"TokenCode": "123456"} if foreign == "mfa" else {},
    "GetSessionToken": lambda *_: {"TokenCode": "123456"},
    "AssociateIamInstanceProfile": lambda own, foreign: (
        {"IamInstanceProfile": {"Name": own.ids["instance-profile"]}} if foreign == "instance" else {}
    ),
    "AuthorizeSecurityGroupEgress": lambda *_: {"IpPermissions": [RULE]},
    "AuthorizeSecurityGroupIngress": lambda own, foreign: (
        {"GroupId": own.ids["security-group"]} if foreign == "source-group" else {"IpPermissions": [RULE]}
    ),
    "CreateVolume": lambda own, _: {"AvailabilityZone": own.zone},
    "DetachVolume": lambda own, foreign: {"VolumeId": own.root} if foreign == "instance" else {},
    "ModifyInstanceAttribute": lambda _, foreign: {"DisableApiStop": {"Value": True}} if foreign == "instance" else {},
    "ModifyInstanceMetadataOptions": lambda *_: {"HttpTokens": "required"},
    "ModifyInstancePlacement": lambda *_: {"Tenancy": "default"},
    "ModifyLaunchTemplate": lambda *_: {"DefaultVersion": "1"},
    "ModifySnapshotAttribute": lambda *_: {"CreateVolumePermission": {"Add": [{"Group": "all"}]}},
    "ModifyImageAttribute": lambda *_: {"LaunchPermission": {"Add": [{"Group": "all"}]}},
    "ModifyVolume": lambda *_: {"Size": 8},
    "ModifyVolumeAttribute": lambda *_: {"AutoEnableIO": {"Value": True}},
    "RegisterImage": lambda *_: {"RootDeviceName": "/dev/xvda", "Architecture": "x86_64"},
    "ReplaceIamInstanceProfileAssociation": lambda own, foreign: (
        {"IamInstanceProfile": {"Name": own.ids["instance-profile"]}} if foreign == "instance" else {"AssociationId": own.association}
    ),
    "DeleteLaunchTemplateVersions": lambda *_: {"Versions": ["1"]},
    "CreateLaunchTemplateVersion": lambda *_: {"LaunchTemplateData": {"InstanceType": "t3.micro"}},
    "ResetImageAttribute": lambda *_: {"Attribute": "launchPermission"},
    "ResetSnapshotAttribute": lambda *_: {"Attribute": "createVolumePermission"},
    "RevokeSecurityGroupEgress": lambda _, foreign: {"IpPermissions": [RULE]} if foreign == "security-group" else {},
    "RevokeSecurityGroupIngress": lambda own, foreign: (
        {"IpPermissions": [RULE]} if foreign == "security-group" else {"GroupId": own.ids["security-group"]}
    ),
    "RunInstances": lambda own, foreign: {"InstanceType": "t3.nano"} | ({} if foreign == "image" else {"ImageId": own.public}),
    "StartSnapshot": lambda *_: {"VolumeSize": 10},
    "UpdateSecurityGroupRuleDescriptionsEgress": lambda *_: {"IpPermissions": [RULE]},
    "UpdateSecurityGroupRuleDescriptionsIngress": lambda *_: {"IpPermissions": [RULE]},
}


class Owner:
    """An account with a resource of every type, and the ids by which requests name them."""

    def __init__(self, daemon, **keys):
        self.daemon, self.keys, self.clients = daemon, keys, {}
        self.zone = daemon.region + ZONE
        ec2, iam = self.client("ec2"), self.client("iam")
        self.public = ec2.describe_images(Filters=[{"Name": "name", "Values": ["tiny"]}])["Images"][0]["ImageId"]
        mine = name("mine")
        group = ec2.create_security_group(GroupName=mine, Description="mine")["GroupId"]
        rule = {"IpProtocol": "tcp", "FromPort": 1, "ToPort": 1, "CidrIp": "0.0.0.0/0"}
        rules = ec2.authorize_security_group_ingress(GroupId=group, **rule)["SecurityGroupRules"]
        pair = ec2.create_key_pair(KeyName=mine, KeyType="ed25519")["KeyPairId"]
        template = ec2.create_launch_template(LaunchTemplateName=mine, LaunchTemplateData={"InstanceType": "t3.nano"})
        placement = ec2.create_placement_group(GroupName=mine, Strategy="cluster")["PlacementGroup"]
        made_user = iam.create_user(UserName=mine)["User"]
        key = iam.create_access_key(UserName=mine)["AccessKey"]["AccessKeyId"]
        iam.create_group(GroupName=mine)
        device = iam.create_virtual_mfa_device(VirtualMFADeviceName=mine)["VirtualMFADevice"]
        enable(iam, mine, device)
        role = iam.create_role(RoleName=mine, AssumeRolePolicyDocument=trust({"Service": "ec2.amazonaws.com"}))["Role"]
        profile = iam.create_instance_profile(InstanceProfileName=mine)["InstanceProfile"]
        iam.add_role_to_instance_profile(InstanceProfileName=mine, RoleName=mine)
        owned = iam.create_policy(PolicyName=mine, PolicyDocument=policy(allow("*")))["Policy"]
        provider = iam.create_open_id_connect_provider(Url=f"https://{mine}.example.com", ThumbprintList=["0" * 40])
        settings = {"InstanceType": "t3.nano", "MinCount": 1, "MaxCount": 1, "KeyName": mine, "SecurityGroupIds": [group]}
        settings |= {"ImageId": self.public, "IamInstanceProfile": {"Name": mine}}
        (instance,) = ec2.run_instances(**settings)["Instances"]
        volume = ec2.create_volume(AvailabilityZone=self.zone, Size=1)["VolumeId"]
        ec2.get_waiter("instance_running").wait(InstanceIds=[instance["InstanceId"]], WaiterConfig={"Delay": 1})
        ec2.get_waiter("volume_available").wait(VolumeIds=[volume], WaiterConfig={"Delay": 1})
        snapshot = ec2.create_snapshot(VolumeId=volume)["SnapshotId"]
        image = ec2.create_image(InstanceId=instance["InstanceId"], Name=mine, NoReboot=True)["ImageId"]
        ec2.get_waiter("snapshot_completed").wait(SnapshotIds=[snapshot], WaiterConfig={"Delay": 1})
        ec2.get_waiter("image_available").wait(ImageIds=[image], WaiterConfig={"Delay": 1})
        (associated,) = ec2.describe_iam_instance_profile_associations()["IamInstanceProfileAssociations"]
        self.association = associated["AssociationId"]
        self.ids = {
            "access-key": key,
            "dhcp-options": ec2.describe_vpcs()["Vpcs"][0]["DhcpOptionsId"],
            "group": mine,
            "image": image,
            "import-image-task": ec2.import_image(DiskContainers=[{"Url": "file:///x"}])["ImportTaskId"],
            "import-snapshot-task": ec2.import_snapshot(DiskContainer={"Url": "file:///x"})["ImportTaskId"],
            "instance": instance["InstanceId"],
            "instance-profile": mine,
            "internet-gateway": ec2.describe_internet_gateways()["InternetGateways"][0]["InternetGatewayId"],
            "key-pair": mine,
            "launch-template": template["LaunchTemplate"]["LaunchTemplateId"],
            "mfa": device["SerialNumber"],
            "network-interface": instance["NetworkInterfaces"][0]["NetworkInterfaceId"],
            "oidc-provider": provider["OpenIDConnectProviderArn"],
            "passed-role": profile["Arn"],
            "placement-group": placement["GroupId"],
            "policy": owned["Arn"],
            "policy-source": made_user["Arn"],
            "role": mine,
            "route-table": ec2.describe_route_tables()["RouteTables"][0]["RouteTableId"],
            "security-group": group,
            "security-group-rule": rules[0]["SecurityGroupRuleId"],
            "snapshot": snapshot,
            "source-group": mine,
            "subnet": instance["SubnetId"],
            "user": mine,
            "volume": volume,
            "vpc": instance["VpcId"],
        }
        # Where a member does not hold what the others of its type hold.
        self.members = {
            ("instance", "AssociationId"): self.association,
            ("instance", "AssociationIds"): self.association,
            ("key-pair", "KeyPairId"): pair,
            ("key-pair", "KeyPairIds"): pair,
            ("launch-template", "LaunchTemplateName"): mine,
            ("launch-template", "LaunchTemplateNames"): mine,
            ("passed-role", "Name"): mine,
            ("placement-group", "GroupName"): mine,
            ("placement-group", "GroupNames"): mine,
            ("role", "RoleArn"): role["Arn"],
            ("security-group", "GroupName"): mine,
            ("security-group", "GroupNames"): mine,
            ("security-group", "SecurityGroups"): mine,
        }
        attached = ec2.describe_volumes(Filters=[{"Name": "attachment.instance-id", "Values": [instance["InstanceId"]]}])
        self.root = attached["Volumes"][0]["VolumeId"]
        self.arns = [made_user["Arn"], role["Arn"], profile["Arn"], owned["Arn"]]

    def client(self, service: str):
        return self.clients.get(service) or self.daemon.client(service, **self.keys)

    def id(self, kind: str, member: str) -> str:
        """What a member of a request says for the account's own resource of a type."""
        return self.members.get((kind, member)) or self.ids[kind]

    def secrets(self) -> set[str]:
        """What must not be seen by others."""
        return {*self.ids.values(), *self.members.values(), self.association, self.root, *self.arns}

    def state(self) -> dict:
        """All that is, as the account sees it."""
        ec2, iam = self.client("ec2"), self.client("iam")
        answers = [
            ec2.describe_instances(),
            ec2.describe_volumes(),
            ec2.describe_snapshots(OwnerIds=["self"]),
            ec2.describe_images(Owners=["self"]),
            ec2.describe_launch_templates(),
            ec2.describe_launch_template_versions(LaunchTemplateId=self.ids["launch-template"]),
            ec2.describe_placement_groups(),
            ec2.describe_security_group_rules(),
            ec2.describe_key_pairs(),
            ec2.describe_network_interfaces(),
            ec2.describe_tags(),
            ec2.describe_iam_instance_profile_associations(),
            iam.get_account_authorization_details(Filter=["User", "Role", "Group", "LocalManagedPolicy"]),
            iam.list_virtual_mfa_devices(),
            iam.get_open_id_connect_provider(OpenIDConnectProviderArn=self.ids["oidc-provider"]),
            iam.list_access_keys(UserName=self.ids["user"]),
        ]
        for answer in answers:
            answer.pop("ResponseMetadata")
        return json.loads(json.dumps(answers, default=str))


@pytest.fixture(scope="module")
def mine(simulated) -> Owner:
    made = Owner(simulated)
    made.before = made.state()
    yield made
    made.client("ec2").terminate_instances(InstanceIds=[made.ids["instance"]])
    # Other modules list the templates of this account.
    made.client("ec2").delete_launch_template(LaunchTemplateId=made.ids["launch-template"])


@pytest.fixture(scope="module")
def theirs(simulated) -> Owner:
    """Another account."""
    called = name("other")
    made = json.loads(simulated.haar("account", "create", "--name", called, "--json").stdout)
    exports = simulated.haar("env", "--account", called, "--shell", "sh").stdout
    secret = re.search(r"AWS_SECRET_ACCESS_KEY='?([^'\s;]+)", exports).group(1)
    owner = Owner(simulated, aws_access_key_id=made["access_key_id"], aws_secret_access_key=secret)
    owner.account = made["account_id"]
    # Roots may not assume roles: a user with all permissions asks STS.
    user = name("theirs")
    iam = owner.client("iam")
    iam.create_user(UserName=user)
    iam.put_user_policy(UserName=user, PolicyName="p", PolicyDocument=policy(allow("*")))
    key = iam.create_access_key(UserName=user)["AccessKey"]
    keys = {"aws_access_key_id": key["AccessKeyId"], "aws_secret_access_key": key["SecretAccessKey"]}
    owner.clients["sts"] = simulated.client("sts", **keys)
    yield owner
    owner.client("ec2").terminate_instances(InstanceIds=[owner.ids["instance"]])


# An operation that makes something of a name takes nothing of another account by it.
MAKES = {kind: ("Create", "Import") for kind in ("key-pair", "user", "group", "role", "instance-profile", "mfa", "placement-group")}
NAMES_ONLY = {"CreateAccessKey"}


def kinds_of(service: str, operation: str, shape) -> dict[str, list[str]]:
    """The members by which an operation names what an account has, by type. A type or a member that is not known here fails: what a
    new operation names has to be among what the two accounts have."""
    found: dict[str, list[str]] = {}
    for kind, paths in named(service, operation).items():
        if kind in NOBODYS:
            continue
        for path in paths:
            of_path = kind
            if kind == "any" and service == "iam":
                of_path = "oidc-provider" if path.startswith("OpenIDConnectProvider") else "policy-source"
            if kind == "any" and path == "ImportTaskId":
                of_path = "import-snapshot-task"
            found.setdefault("volume" if of_path == "any" else of_path, []).append(path)
    tops = {path.split(".")[0] for paths in named(service, operation).values() for path in paths}
    for member in identifiers(service, operation, shape):
        if member in tops or NO_RESOURCES & {member, (operation, member)}:
            continue
        kind = MEMBERS.get((operation, member)) or MEMBERS.get(member)
        assert kind, f"what does {member} of {operation} name?"
        found.setdefault(kind, []).append(member)
    return {kind: list(dict.fromkeys(paths)) for kind, paths in found.items()}


def requests(mine: Owner, theirs: Owner, service: str, operation: str) -> list[tuple[str, dict]]:
    """For every member by which an operation names a resource, a request of `theirs` that names one of `mine` by it, and else its own."""
    shape = theirs.client(service).meta.service_model.operation_model(operation).input_shape
    if shape is None:
        return []
    kinds = kinds_of(service, operation, shape)
    found = []
    for foreign, paths in kinds.items():
        if operation.startswith(MAKES.get(foreign, ("-",))) and operation not in NAMES_ONLY:
            continue
        for path in paths:
            request: dict = {}
            for kind, others in kinds.items():
                # A resource of its own is named only where one must be.
                for other in others:
                    top = other.split(".")[0]
                    if top != path.split(".")[0] and top in shape.required_members:
                        put(shape, request, other.split("."), theirs.id(kind, other.split(".")[-1]))
            request |= EXTRA.get(operation, lambda *_: {})(theirs, foreign)
            put(shape, request, path.split("."), mine.id(foreign, path.split(".")[-1]))
            complete(shape, request)
            found.append((foreign, request))
    return found


# To delete what there is not is no error; credits are refused instance by instance in the answer; of whom a key is, everyone may ask.
FORGIVING = {"DeleteKeyPair", "GetAccessKeyInfo", "ModifyInstanceCreditSpecification"}


# The operations that were tried.
TRIED: set[tuple[str, str]] = set()


@pytest.mark.parametrize(("service", "operation"), operations(), ids=lambda value: value)
def test_an_operation_upon_what_another_account_has(mine, theirs, service, operation):
    client = theirs.client(service)
    shape = client.meta.service_model.operation_model(operation).input_shape
    TRIED.add((service, operation))
    for kind, request in requests(mine, theirs, service, operation):
        answering = "association" if {"AssociationId", "AssociationIds"} & set(request) and kind == "instance" else kind
        codes = OTHERWISE.get((operation, kind)) or NOT_THERE[service, answering]
        said = json.dumps(request, default=str)
        try:
            answer = call(client, operation, request)
        except ClientError as error:
            code, message = error.response["Error"]["Code"], error.response["Error"]["Message"]
            assert code in codes, (request, code, message)
        else:
            assert operation in FORGIVING, f"{operation} of {request} was answered: {answer}"
            message = json.dumps(answer, default=str)
        # Nothing is told but what was said.
        assert not [secret for secret in mine.secrets() if secret in message and secret not in said], message
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
    """Compares what the account has with what it had before the first operation, after every one was tried."""
    for service, operation in set(operations()) - TRIED:
        for _, request in requests(mine, theirs, service, operation):
            try:
                call(theirs.client(service), operation, request)
            except ClientError:
                pass
    assert mine.state() == mine.before


def test_messages_about_refusals_are_for_the_account_alone(simulated, mine, theirs):
    iam, user = mine.client("iam"), name("refused")
    iam.create_user(UserName=user)
    key = iam.create_access_key(UserName=user)["AccessKey"]
    keys = {"aws_access_key_id": key["AccessKeyId"], "aws_secret_access_key": key["SecretAccessKey"]}
    error = refused(simulated.client("ec2", **keys).describe_vpcs, "UnauthorizedOperation")
    encoded = error["Error"]["Message"].rsplit(" ", 1)[1]
    assert user in mine.client("sts").decode_authorization_message(EncodedMessage=encoded)["DecodedMessage"]
    decode = lambda: theirs.client("sts").decode_authorization_message(EncodedMessage=encoded)
    refused(decode, "InvalidAuthorizationMessageException")


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
    pairs = {"IpProtocol": "-1", "UserIdGroupPairs": [{"GroupId": mine.ids["security-group"]}]}
    own = theirs.ids["security-group"]
    refused(lambda: ec2.authorize_security_group_ingress(GroupId=own, IpPermissions=[pairs]), "InvalidGroup.NotFound")
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
