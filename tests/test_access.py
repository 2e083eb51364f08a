"""Who may do what: policies decide over every request, by action, resource and condition, whatever the service."""

import json
import re

import pytest
from botocore.exceptions import ClientError
from support.identities import User, allow, deny, name, policy, refused, trust, with_credentials
from support.operations import call, complete, operations, table


@pytest.fixture(scope="module")
def account(simulated) -> str:
    return simulated.credentials["account_id"]


@pytest.fixture(scope="module")
def instances(sim, sim_image) -> list[str]:
    """Two instances, the first of team red."""
    answer = sim.run_instances(ImageId=sim_image, InstanceType="t3.nano", MinCount=2, MaxCount=2)
    ids = [instance["InstanceId"] for instance in answer["Instances"]]
    sim.create_tags(Resources=ids[:1], Tags=[{"Key": "team", "Value": "red"}])
    sim.get_waiter("instance_running").wait(InstanceIds=ids, WaiterConfig={"Delay": 1})
    yield ids
    sim.terminate_instances(InstanceIds=ids)


def unauthorized(call) -> str:
    error = refused(call, "UnauthorizedOperation")
    assert error["ResponseMetadata"]["HTTPStatusCode"] == 403
    return error["Error"]["Message"]


def test_a_user_may_what_its_policies_say_and_nothing_else(simulated, account):
    user = User(simulated, "plain")
    ec2 = user.client("ec2")
    message = unauthorized(ec2.describe_instances)
    why = "because no identity-based policy allows the ec2:DescribeInstances action"
    assert f"User: {user.arn} is not authorized to perform: ec2:DescribeInstances {why}" in message
    user.put(allow("ec2:Describe*"))
    ec2.describe_instances()
    message = unauthorized(lambda: ec2.create_key_pair(KeyName="x"))
    assert f"on resource: arn:aws:ec2:{simulated.region}:{account}:key-pair/x" in message
    user.put(allow("ec2:Describe*"), deny("ec2:DescribeInstances"))
    assert "with an explicit deny in an identity-based policy" in unauthorized(ec2.describe_instances)
    ec2.describe_volumes()
    user.client("sts").get_caller_identity()
    error = refused(user.client("iam").list_users, "AccessDenied")
    assert error["ResponseMetadata"]["HTTPStatusCode"] == 403
    assert error["Error"]["Message"].startswith(f"User: {user.arn} is not authorized to perform: iam:ListUsers")


def test_resources_are_told_by_their_arns(simulated, account, instances):
    first, second = instances
    arn = f"arn:aws:ec2:{simulated.region}:{account}:instance/{first}"
    ec2 = User(simulated, "one", allow(["ec2:GetConsoleOutput", "ec2:RebootInstances"], arn)).client("ec2")
    ec2.get_console_output(InstanceId=first)
    ec2.reboot_instances(InstanceIds=[first])
    assert second in unauthorized(lambda: ec2.get_console_output(InstanceId=second))
    unauthorized(lambda: ec2.reboot_instances(InstanceIds=[first, second]))
    # Who may not act upon something does not learn whether it exists.
    unauthorized(lambda: ec2.reboot_instances(InstanceIds=["i-00000000000000000"]))


def test_tags_of_resources_and_requests_decide(simulated, instances):
    red = {"StringEquals": {"aws:ResourceTag/team": "red"}}
    ec2 = User(simulated, "tags", allow("ec2:RebootInstances", Condition=red)).client("ec2")
    ec2.reboot_instances(InstanceIds=instances[:1])
    unauthorized(lambda: ec2.reboot_instances(InstanceIds=instances[1:]))
    given = {"StringEquals": {"aws:RequestTag/team": "blue"}, "ForAllValues:StringEquals": {"aws:TagKeys": ["team"]}}
    created = {"StringEquals": {"ec2:CreateAction": "CreateVolume"}}
    zone = f"{simulated.region}a"
    user = User(simulated, "volumes", allow("ec2:CreateVolume", Condition=given), allow("ec2:CreateTags", Condition=created))
    ec2 = user.client("ec2")

    def create(*tags: tuple[str, str]) -> str:
        tagged = [{"ResourceType": "volume", "Tags": [{"Key": key, "Value": value} for key, value in tags]}] if tags else []
        return ec2.create_volume(AvailabilityZone=zone, Size=1, TagSpecifications=tagged)["VolumeId"]

    volume = create(("team", "blue"))
    unauthorized(create)
    unauthorized(lambda: create(("team", "red")))
    unauthorized(lambda: create(("team", "blue"), ("other", "x")))
    unauthorized(lambda: ec2.create_tags(Resources=[volume], Tags=[{"Key": "team", "Value": "blue"}]))
    simulated.client("ec2").delete_volume(VolumeId=volume)


def test_conditions_on_the_request(simulated, sim_image):
    for condition, good in [
        ({"IpAddress": {"aws:SourceIp": "127.0.0.1/32"}}, True),
        ({"IpAddress": {"aws:SourceIp": "192.0.2.0/24"}}, False),
        ({"StringEquals": {"aws:RequestedRegion": simulated.region}}, True),
        ({"StringEquals": {"aws:RequestedRegion": "us-west-2"}}, False),
        ({"DateGreaterThan": {"aws:CurrentTime": "2020-01-01T00:00:00Z"}}, True),
        ({"DateLessThan": {"aws:CurrentTime": "2020-01-01T00:00:00Z"}}, False),
        ({"Bool": {"aws:SecureTransport": "true"}}, False),
        ({"StringLike": {"aws:UserAgent": "Boto3/*"}}, True),
        ({"StringLike": {"aws:username": "conditions-*"}}, True),
    ]:
        ec2 = User(simulated, "conditions", allow("ec2:DescribeVpcs", Condition=condition)).client("ec2")
        if good:
            ec2.describe_vpcs()
        else:
            unauthorized(ec2.describe_vpcs)
    types = {"StringEquals": {"ec2:InstanceType": ["t3.nano"]}}
    rest = [f"arn:aws:ec2:*:*:{kind}/*" for kind in ("network-interface", "security-group", "subnet", "volume")]
    rest.append(f"arn:aws:ec2:*::image/{sim_image}")
    launch = allow("ec2:RunInstances", "arn:aws:ec2:*:*:instance/*", Condition=types), allow("ec2:RunInstances", rest)
    ec2 = User(simulated, "launcher", *launch).client("ec2")
    request = {"ImageId": sim_image, "MinCount": 1, "MaxCount": 1}
    error = refused(lambda: ec2.run_instances(**request, InstanceType="t3.nano", DryRun=True), "DryRunOperation")
    assert error["ResponseMetadata"]["HTTPStatusCode"] == 412
    unauthorized(lambda: ec2.run_instances(**request, InstanceType="t3.micro", DryRun=True))
    unauthorized(lambda: ec2.run_instances(**request, InstanceType="t3.micro"))


def test_the_zone_decides_however_it_is_named(simulated, sim, sim_image):
    zones = {zone["ZoneName"]: zone["ZoneId"] for zone in sim.describe_availability_zones()["AvailabilityZones"]}
    good, bad = (simulated.region + letter for letter in "ab")
    condition = {"StringEquals": {"ec2:AvailabilityZone": good}}
    [subnet] = sim.describe_subnets(Filters=[{"Name": "availability-zone", "Values": [good]}])["Subnets"]
    rest = [f"arn:aws:ec2:*:*:{kind}/*" for kind in ("network-interface", "security-group", "volume")]
    statements = (
        allow("ec2:RunInstances", "arn:aws:ec2:*:*:instance/*", Condition=condition),
        allow("ec2:RunInstances", [*rest, subnet["SubnetArn"], f"arn:aws:ec2:*::image/{sim_image}"]),
        allow("ec2:CreateVolume", Condition=condition),
    )
    ec2 = User(simulated, "zoned", *statements).client("ec2")
    launch = {"ImageId": sim_image, "InstanceType": "t3.nano", "MinCount": 1, "MaxCount": 1, "DryRun": True}
    for placement in ({"AvailabilityZone": good}, {"AvailabilityZoneId": zones[good]}, {"AvailabilityZone": "", "AvailabilityZoneId": zones[good]}):
        refused(lambda placement=placement: ec2.run_instances(**launch, Placement=placement), "DryRunOperation")
    for placement in ({"AvailabilityZone": bad}, {"AvailabilityZoneId": zones[bad]}):
        unauthorized(lambda placement=placement: ec2.run_instances(**launch, Placement=placement))
    refused(lambda: ec2.create_volume(Size=1, AvailabilityZoneId=zones[good], DryRun=True), "DryRunOperation")
    unauthorized(lambda: ec2.create_volume(Size=1, AvailabilityZoneId=zones[bad], DryRun=True))


def test_every_volume_of_a_launch_decides(simulated, sim_image):
    small = {"NumericLessThanEquals": {"ec2:VolumeSize": "10"}, "Bool": {"ec2:Encrypted": "true"}}
    rest = [f"arn:aws:ec2:*:*:{kind}/*" for kind in ("instance", "network-interface", "security-group", "subnet")]
    rest.append(f"arn:aws:ec2:*::image/{sim_image}")
    launch = allow("ec2:RunInstances", "arn:aws:ec2:*:*:volume/*", Condition=small), allow("ec2:RunInstances", rest)
    ec2 = User(simulated, "sized", *launch).client("ec2")
    request = {"ImageId": sim_image, "InstanceType": "t3.nano", "MinCount": 1, "MaxCount": 1, "DryRun": True}

    def run(*devices: tuple[str, dict]):
        return ec2.run_instances(**request, BlockDeviceMappings=[{"DeviceName": name, "Ebs": ebs} for name, ebs in devices])

    root = ("/dev/xvda", {"Encrypted": True})
    refused(lambda: run(root), "DryRunOperation")
    refused(lambda: run(root, ("/dev/sdf", {"VolumeSize": 10, "Encrypted": True})), "DryRunOperation")
    for devices in [
        (),
        (("/dev/sdf", {"VolumeSize": 1, "Encrypted": True}),),
        (root, ("/dev/sdf", {"VolumeSize": 1})),
        (root, ("/dev/sdf", {"VolumeSize": 1, "Encrypted": True}), ("/dev/sdg", {"VolumeSize": 11, "Encrypted": True})),
    ]:
        unauthorized(lambda devices=devices: run(*devices))


def test_an_image_that_a_parameter_names_takes_leave_to_read_it(simulated):
    user = User(simulated, "resolver", allow("ec2:*"))
    launch = {"InstanceType": "t3.nano", "MinCount": 1, "MaxCount": 1}
    name = "/aws/service/debian/release/12/latest/amd64"
    message = unauthorized(lambda: user.client("ec2").run_instances(ImageId=f"resolve:ssm:{name}", **launch))
    assert "ssm:GetParameters" in message and f"parameter{name}" in message
    user.put(allow("ec2:*"), allow("ssm:GetParameters", f"arn:aws:ssm:*::parameter{name}"))
    # What is asked next is whether there is such a parameter here, which depends on the library.
    try:
        (launched,) = user.client("ec2").run_instances(ImageId=f"resolve:ssm:{name}:1", **launch)["Instances"]
        user.client("ec2").terminate_instances(InstanceIds=[launched["InstanceId"]])
    except ClientError as error:
        assert error.response["Error"]["Code"] == "InvalidParameterValue"


def test_boundaries_and_session_policies_only_limit(simulated, account):
    iam = simulated.client("iam")
    boundary = iam.create_policy(PolicyName=name("boundary"), PolicyDocument=policy(allow("ec2:DescribeVpcs")))["Policy"]["Arn"]
    user = User(simulated, "bounded", allow("ec2:*"), PermissionsBoundary=boundary)
    user.client("ec2").describe_vpcs()
    assert "no permissions boundary allows" in unauthorized(user.client("ec2").describe_subnets)

    caller = User(simulated, "caller", allow("sts:AssumeRole"))
    role = name("role")
    arn = iam.create_role(RoleName=role, AssumeRolePolicyDocument=trust({"AWS": caller.arn}))["Role"]["Arn"]
    iam.put_role_policy(RoleName=role, PolicyName="p", PolicyDocument=policy(allow("ec2:Describe*")))
    sts = caller.client("sts")
    whole = sts.assume_role(RoleArn=arn, RoleSessionName="session")["Credentials"]
    ec2 = with_credentials(simulated, whole, "ec2")
    ec2.describe_vpcs()
    message = unauthorized(lambda: ec2.create_key_pair(KeyName="x"))
    assert f"User: arn:aws:sts::{account}:assumed-role/{role}/session is not authorized" in message
    limited = sts.assume_role(RoleArn=arn, RoleSessionName="session", Policy=policy(allow("ec2:DescribeVpcs")))["Credentials"]
    ec2 = with_credentials(simulated, limited, "ec2")
    ec2.describe_vpcs()
    assert "no session policy allows" in unauthorized(ec2.describe_subnets)
    # What is taken away is gone at once.
    iam.put_role_policy(RoleName=role, PolicyName="p", PolicyDocument=policy(allow("iam:ListUsers")))
    unauthorized(with_credentials(simulated, whole, "ec2").describe_vpcs)


def test_authorization_messages_are_decoded_by_who_may(simulated, account):
    user = User(simulated, "decode", deny("ec2:DescribeVpcs"))
    message = unauthorized(lambda: user.client("ec2").delete_volume(VolumeId="vol-0123456789abcdef0"))
    encoded = message.rsplit("Encoded authorization failure message: ", 1)[1]
    sts = simulated.client("sts")
    decoded = json.loads(sts.decode_authorization_message(EncodedMessage=encoded)["DecodedMessage"])
    assert (decoded["allowed"], decoded["explicitDeny"]) == (False, False)
    context = decoded["context"]
    assert context["principal"] == {"id": user.id, "arn": user.arn}
    assert context["action"] == "ec2:DeleteVolume"
    assert context["resource"] == f"arn:aws:ec2:{simulated.region}:{account}:volume/vol-0123456789abcdef0"
    keys = {item["key"]: [value["value"] for value in item["values"]["items"]] for item in context["conditions"]["items"]}
    assert keys["ec2:VolumeID"] == ["vol-0123456789abcdef0"]
    assert keys["aws:SourceIp"] == ["127.0.0.1"]
    refused(lambda: user.client("sts").decode_authorization_message(EncodedMessage=encoded), "AccessDenied")
    for wrong in [encoded[:-2], "A" * 80, "no message"]:
        refused(lambda wrong=wrong: sts.decode_authorization_message(EncodedMessage=wrong), "InvalidAuthorizationMessageException")
    denied = unauthorized(user.client("ec2").describe_vpcs).rsplit("Encoded authorization failure message: ", 1)[1]
    decoded = json.loads(sts.decode_authorization_message(EncodedMessage=denied)["DecodedMessage"])
    assert decoded["explicitDeny"] is True
    assert len(decoded["matchedStatements"]["items"]) == 1


def test_refusals_of_users_are_in_the_trail(simulated):
    user = User(simulated, "noted")
    with pytest.raises(ClientError) as refusal:
        user.client("ec2").describe_vpcs()
    lines = simulated.haar("trail", "--json", "--user", user.name).stdout.splitlines()
    (found,) = [json.loads(line) for line in lines]
    assert found["requestID"] == refusal.value.response["ResponseMetadata"]["RequestId"]
    assert found["errorCode"] == "Client.UnauthorizedOperation"
    identity = found["userIdentity"]
    assert (identity["type"], identity["userName"], identity["principalId"]) == ("IAMUser", user.name, user.id)


# What every caller may do, and what a handler decides by the policy of a role.
FREE = {"GetCallerIdentity", "GetSessionToken", "AssumeRole", "AssumeRoleWithWebIdentity"}


@pytest.fixture(scope="module")
def nobody(simulated) -> User:
    """A user without permissions."""
    return User(simulated, "nobody")


@pytest.fixture(scope="module")
def barred(simulated) -> User:
    """A user who may do everything and is denied everything."""
    return User(simulated, "barred", allow("*"), deny("*"))


@pytest.mark.parametrize(("service", "operation"), operations(), ids=lambda value: value)
def test_every_operation_is_refused_to_whom_no_policy_allows_it(simulated, nobody, barred, service, operation):
    declared = table(service)["authorization"][operation]
    if not declared:
        assert operation in FREE
        return
    actions = {f"{service}:{operation}"} | {word for entry in declared for word in entry.split() if re.match("[a-z0-9]+:[A-Z]", word)}
    expected = {"ec2": ("UnauthorizedOperation", 403), "iam": ("AccessDenied", 403), "sts": ("AccessDenied", 403)}
    expected |= {"ebs": ("AccessDeniedException", 403), "ssm": ("AccessDeniedException", 400)}
    form = r"User: (\S+) is not authorized to perform: (\S+)(?: on resource: (\S+))? (.*)"
    for user, why in ((nobody, "because no identity-based policy allows the {} action"), (barred, "with an explicit deny in an identity-based policy")):
        client = user.client(service)
        request: dict = {}
        if shape := client.meta.service_model.operation_model(operation).input_shape:
            complete(shape, request)
        with pytest.raises(ClientError) as refusal:
            call(client, operation, request)
        answer = refusal.value.response
        assert (answer["Error"]["Code"], answer["ResponseMetadata"]["HTTPStatusCode"]) == expected[service], answer
        message, encoded = answer["Error"]["Message"], None
        if service == "ec2":
            before, message = message.split(". ", 1)
            assert before == "You are not authorized to perform this operation"
            message, encoded = message.split(". Encoded authorization failure message: ")
        arn, action, resource, reason = re.fullmatch(form, message).groups()
        assert arn == user.arn and action in actions
        assert reason == why.format(action)
        assert resource is None or resource == "*" or resource.startswith("arn:aws:")
        if encoded:
            decoded = json.loads(simulated.client("sts").decode_authorization_message(EncodedMessage=encoded)["DecodedMessage"])
            assert (decoded["allowed"], decoded["explicitDeny"]) == (False, user is barred)
            context = decoded["context"]
            assert (context["action"], context["principal"]["arn"]) == (action, user.arn)
            assert resource in (None, context["resource"])
