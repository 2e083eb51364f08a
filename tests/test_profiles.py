"""Instance profiles: guests get credentials of their role from the metadata service, and call the API from inside with them."""

import base64
import datetime
import json
import re

import pytest
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from support.identities import User, allow, name, policy, refused, trust, with_credentials
from support.machine import wait_for

EC2 = {"Service": "ec2.amazonaws.com"}
IAM = "/latest/meta-data/iam"


class Profile:
    """An instance profile with a role of the same name."""

    def __init__(self, daemon, *statements: dict, principal: dict = EC2):
        self.iam, self.name = daemon.client("iam"), name("profile")
        role = self.iam.create_role(RoleName=self.name, AssumeRolePolicyDocument=trust(principal))["Role"]
        self.role_arn, self.role_id = role["Arn"], role["RoleId"]
        self.iam.put_role_policy(RoleName=self.name, PolicyName="own", PolicyDocument=policy(*statements))
        made = self.iam.create_instance_profile(InstanceProfileName=self.name)["InstanceProfile"]
        self.arn, self.id = made["Arn"], made["InstanceProfileId"]
        self.iam.add_role_to_instance_profile(InstanceProfileName=self.name, RoleName=self.name)

    @property
    def shown(self) -> dict:
        return {"Arn": self.arn, "Id": self.id}


@pytest.fixture(scope="module")
def profile(daemon) -> Profile:
    return Profile(daemon, allow(["ec2:DescribeInstances", "ec2:CreateTags"]))


@pytest.fixture(scope="module")
def guest(launch, profile):
    return launch(IamInstanceProfile={"Name": profile.name})


def get(guest, path: str, **options) -> str | None:
    """What the metadata service says; none for what there is not."""
    status, _, body = guest.http(path, **options)
    assert status in (200, 404), (status, body)
    return body if status == 200 else None


def role_credentials(guest, role: str) -> dict:
    found = json.loads(get(guest, f"{IAM}/security-credentials/{role}"))
    assert found["Code"] == "Success", found
    return found


def client(daemon, found: dict, service: str):
    keys = {"AccessKeyId": found["AccessKeyId"], "SecretAccessKey": found["SecretAccessKey"], "SessionToken": found["Token"]}
    return with_credentials(daemon, keys, service)


def association(ec2, guest) -> dict:
    filters = [{"Name": "instance-id", "Values": [guest.id]}]
    (found,) = ec2.describe_iam_instance_profile_associations(Filters=filters)["IamInstanceProfileAssociations"]
    return found


def test_an_instance_shows_its_profile(ec2, guest, profile):
    assert guest.describe()["IamInstanceProfile"] == profile.shown
    found = association(ec2, guest)
    assert (found["InstanceId"], found["State"]) == (guest.id, "associated")
    assert found["IamInstanceProfile"] == profile.shown
    by_arn = ec2.describe_instances(Filters=[{"Name": "iam-instance-profile.arn", "Values": [profile.arn]}])
    assert [i["InstanceId"] for r in by_arn["Reservations"] for i in r["Instances"]] == [guest.id]


def test_metadata_has_the_role_and_its_credentials(daemon, guest, profile):
    info = json.loads(get(guest, f"{IAM}/info"))
    assert (info["Code"], info["InstanceProfileArn"], info["InstanceProfileId"]) == ("Success", profile.arn, profile.id)
    assert get(guest, f"{IAM}/security-credentials/") == profile.name
    found = role_credentials(guest, profile.name)
    assert found["Type"] == "AWS-HMAC" and found["AccessKeyId"].startswith("ASIA")
    expires = datetime.datetime.fromisoformat(found["Expiration"])
    assert expires > datetime.datetime.now(datetime.UTC) + datetime.timedelta(hours=1)
    assert role_credentials(guest, profile.name) == found, "they stay until they have to be renewed"
    assert get(guest, f"{IAM}/security-credentials/other") is None
    identity = client(daemon, found, "sts").get_caller_identity()
    assert identity["Arn"].endswith(f":assumed-role/{profile.name}/{guest.id}")
    assert identity["UserId"] == f"{profile.role_id}:{guest.id}"
    ec2 = client(daemon, found, "ec2")
    ec2.describe_instances()
    refused(ec2.describe_volumes, "UnauthorizedOperation")


def test_tokens_are_asked_for_as_for_all_metadata(ec2, guest, profile):
    ec2.modify_instance_metadata_options(InstanceId=guest.id, HttpTokens="required")
    try:
        wait_for(lambda: guest.http(f"{IAM}/info")[0] == 401, 20, 0.3)
        status, _, token = guest.http("/latest/api/token", "PUT", {"X-aws-ec2-metadata-token-ttl-seconds": "60"})
        assert status == 200
        assert profile.arn in get(guest, f"{IAM}/info", headers={"X-aws-ec2-metadata-token": token.strip()})
    finally:
        ec2.modify_instance_metadata_options(InstanceId=guest.id, HttpTokens="optional")
        wait_for(lambda: guest.http(f"{IAM}/info")[0] == 200, 20, 0.3)


def test_the_api_answers_inside_the_guest(daemon, guest, profile):
    found = role_credentials(guest, profile.name)
    credentials = Credentials(found["AccessKeyId"], found["SecretAccessKey"], found["Token"])
    body = "Action=GetCallerIdentity&Version=2011-06-15"
    headers = {"Content-Type": "application/x-www-form-urlencoded"}
    request = AWSRequest("POST", "http://169.254.169.254:4566/", headers=headers, data=body)
    SigV4Auth(credentials, "sts", daemon.region).add_auth(request)
    head = [f"POST / HTTP/1.1\r\nHost: 169.254.169.254:4566\r\nConnection: close\r\nContent-Length: {len(body)}"]
    head += [f"{key}: {value}" for key, value in request.headers.items() if key.lower() != "content-length"]
    sent = base64.b64encode(("\r\n".join(head) + "\r\n\r\n" + body).encode()).decode()
    script = f"p=$(mktemp -u); mkfifo $p; exec 3<>$p; rm $p; echo {sent} | base64 -d >&3; timeout 10 nc 169.254.169.254 4566 <&3"
    answer = guest.ssh(script, timeout=60).stdout
    assert answer.startswith("HTTP/1.1 200"), answer
    assert f"assumed-role/{profile.name}/{guest.id}" in answer
    request = re.search(r"<RequestId>(.*?)</RequestId>", answer).group(1)
    lines = daemon.haar("trail", "--json", "--user", guest.id).stdout.splitlines()
    (recorded,) = [one for one in map(json.loads, lines) if one["requestID"] == request]
    assert recorded["sourceIPAddress"] == guest.private_ip
    assert recorded["userIdentity"]["type"] == "AssumedRole"
    assert recorded["userIdentity"]["sessionContext"]["sessionIssuer"]["arn"] == profile.role_arn


def test_profiles_are_replaced_taken_away_and_given_while_the_guest_runs(daemon, ec2, guest, profile):
    other = Profile(daemon, allow("ec2:DescribeVolumes"))
    before = role_credentials(guest, profile.name)
    old = association(ec2, guest)["AssociationId"]
    wanted = {"Arn": other.arn}
    new = ec2.replace_iam_instance_profile_association(AssociationId=old, IamInstanceProfile=wanted)["IamInstanceProfileAssociation"]
    assert new["AssociationId"] != old and new["IamInstanceProfile"] == other.shown
    assert get(guest, f"{IAM}/security-credentials/") == other.name
    client(daemon, role_credentials(guest, other.name), "ec2").describe_volumes()
    client(daemon, before, "ec2").describe_instances()  # what was given out lives until it expires
    refused(lambda: ec2.associate_iam_instance_profile(InstanceId=guest.id, IamInstanceProfile=wanted), "IncorrectState")
    refused(lambda: ec2.disassociate_iam_instance_profile(AssociationId=old), "InvalidAssociationID.NotFound")
    gone = ec2.disassociate_iam_instance_profile(AssociationId=new["AssociationId"])["IamInstanceProfileAssociation"]
    assert gone["State"] == "disassociating"
    assert get(guest, f"{IAM}/info") is None
    assert "IamInstanceProfile" not in guest.describe()
    # A role that EC2 may not assume gives nothing.
    foreign = Profile(daemon, allow("ec2:*"), principal={"Service": "lambda.amazonaws.com"})
    made = ec2.associate_iam_instance_profile(InstanceId=guest.id, IamInstanceProfile={"Name": foreign.name})
    found = json.loads(get(guest, f"{IAM}/security-credentials/{foreign.name}"))
    assert found["Code"] == "AssumeRoleUnauthorizedAccess" and "AccessKeyId" not in found
    ec2.disassociate_iam_instance_profile(AssociationId=made["IamInstanceProfileAssociation"]["AssociationId"])
    # A role that is gone takes its credentials with it, and one that is made again is another.
    ec2.associate_iam_instance_profile(InstanceId=guest.id, IamInstanceProfile={"Name": other.name})
    kept = role_credentials(guest, other.name)
    iam = other.iam
    iam.remove_role_from_instance_profile(InstanceProfileName=other.name, RoleName=other.name)
    assert get(guest, f"{IAM}/security-credentials/") is None
    iam.delete_role_policy(RoleName=other.name, PolicyName="own")
    iam.delete_role(RoleName=other.name)
    refused(client(daemon, kept, "ec2").describe_volumes, "AuthFailure")
    ec2.disassociate_iam_instance_profile(AssociationId=association(ec2, guest)["AssociationId"])
    ec2.associate_iam_instance_profile(InstanceId=guest.id, IamInstanceProfile={"Name": profile.name})
    assert get(guest, f"{IAM}/security-credentials/") == profile.name


def test_a_killed_daemon_gives_credentials_again(daemon, ec2, guest, profile):
    before = role_credentials(guest, profile.name)
    baseline = daemon.baseline
    daemon.kill()
    daemon.start()
    baseline["processes"] = {process for process in daemon.baseline["processes"] if " serve " in process}
    daemon.baseline = baseline
    client(daemon, before, "ec2").describe_instances()

    def again():
        answer = guest.http(f"{IAM}/security-credentials/{profile.name}")
        return answer and answer[0] == 200 and json.loads(answer[2])

    found = wait_for(again, 30, 0.5, "no credentials after the restart")
    client(daemon, found, "ec2").describe_instances()
    assert association(ec2, guest)["IamInstanceProfile"] == profile.shown


def test_passing_a_role_is_asked_for(simulated, sim, sim_image):
    profile = Profile(simulated, allow("ec2:*"))
    passing = {"StringEquals": {"iam:PassedToService": "ec2.amazonaws.com"}}
    request = {"ImageId": sim_image, "InstanceType": "t3.nano", "MinCount": 1, "MaxCount": 1, "DryRun": True}
    user = User(simulated, "launcher", allow("ec2:*"))
    ec2 = user.client("ec2")
    refused(lambda: ec2.run_instances(**request), "DryRunOperation")
    for wanted in ({"Name": profile.name}, {"Arn": profile.arn}):
        error = refused(lambda wanted=wanted: ec2.run_instances(**request, IamInstanceProfile=wanted), "UnauthorizedOperation")
        assert f"iam:PassRole on resource: {profile.role_arn}" in error["Error"]["Message"]
    user.put(allow("ec2:*"), allow("iam:PassRole", profile.role_arn, Condition=passing))
    refused(lambda: ec2.run_instances(**request, IamInstanceProfile={"Name": profile.name}), "DryRunOperation")
    user.put(allow("ec2:*"), allow("iam:PassRole", "arn:aws:iam::*:role/other"))
    (instance,) = sim.run_instances(ImageId=sim_image, InstanceType="t3.nano", MinCount=1, MaxCount=1)["Instances"]
    instance = instance["InstanceId"]
    refused(lambda: ec2.associate_iam_instance_profile(InstanceId=instance, IamInstanceProfile={"Name": profile.name}), "UnauthorizedOperation")
    made = sim.associate_iam_instance_profile(InstanceId=instance, IamInstanceProfile={"Name": profile.name})
    made = made["IamInstanceProfileAssociation"]["AssociationId"]
    refused(lambda: ec2.replace_iam_instance_profile_association(AssociationId=made, IamInstanceProfile={"Name": profile.name}), "UnauthorizedOperation")
    sim.terminate_instances(InstanceIds=[instance])


def test_a_template_gives_its_profile(simulated, sim, sim_image):
    profile, other = (Profile(simulated, allow("ec2:*")) for _ in range(2))
    template = name("template")
    data = {"ImageId": sim_image, "InstanceType": "t3.nano", "IamInstanceProfile": {"Name": profile.name}}
    sim.create_launch_template(LaunchTemplateName=template, LaunchTemplateData=data)
    (version,) = sim.describe_launch_template_versions(LaunchTemplateName=template, Versions=["1"])["LaunchTemplateVersions"]
    assert version["LaunchTemplateData"]["IamInstanceProfile"] == {"Name": profile.name}
    by_template = {"LaunchTemplate": {"LaunchTemplateName": template}, "MinCount": 1, "MaxCount": 1}
    # The role is passed by who launches, whoever made the template; what the request says wins.
    user = User(simulated, "launcher", allow("ec2:*"))
    ec2 = user.client("ec2")
    for wanted, asked in (({}, profile), ({"IamInstanceProfile": {"Arn": other.arn}}, other)):
        error = refused(lambda wanted=wanted: ec2.run_instances(**by_template, **wanted), "UnauthorizedOperation")
        assert f"iam:PassRole on resource: {asked.role_arn}" in error["Error"]["Message"]
    user.put(allow("ec2:*"), allow("iam:PassRole", profile.role_arn))
    (launched,) = ec2.run_instances(**by_template)["Instances"]
    assert launched["IamInstanceProfile"] == profile.shown
    (second,) = sim.run_instances(**by_template, IamInstanceProfile={"Arn": other.arn})["Instances"]
    assert second["IamInstanceProfile"] == other.shown
    again = sim.get_launch_template_data(InstanceId=launched["InstanceId"])["LaunchTemplateData"]
    assert again["IamInstanceProfile"] == {"Arn": profile.arn}
    # A new version keeps what it does not say.
    sim.create_launch_template_version(LaunchTemplateName=template, SourceVersion="1", LaunchTemplateData={"InstanceType": "t3.micro"})
    (third,) = sim.run_instances(**(by_template | {"LaunchTemplate": {"LaunchTemplateName": template, "Version": "2"}}))["Instances"]
    assert (third["InstanceType"], third["IamInstanceProfile"]) == ("t3.micro", profile.shown)
    sim.create_launch_template_version(LaunchTemplateName=template, SourceVersion="1", LaunchTemplateData={"IamInstanceProfile": {"Name": "nobody"}})
    wrong = by_template | {"LaunchTemplate": {"LaunchTemplateName": template, "Version": "3"}}
    refused(lambda: sim.run_instances(**wrong), "InvalidParameterValue")
    sim.terminate_instances(InstanceIds=[i["InstanceId"] for i in (launched, second, third)])
    sim.delete_launch_template(LaunchTemplateName=template)


def test_wrong_profiles_are_refused(simulated, sim, sim_image):
    request = {"ImageId": sim_image, "InstanceType": "t3.nano", "MinCount": 1, "MaxCount": 1}
    iam = simulated.client("iam")
    empty = name("empty")
    arn = iam.create_instance_profile(InstanceProfileName=empty)["InstanceProfile"]["Arn"]
    for wanted, code, text in [
        ({"Name": "no-such-profile"}, "InvalidParameterValue", "iamInstanceProfile.name"),
        ({"Arn": f"{arn}x"}, "InvalidParameterValue", "iamInstanceProfile.arn"),
        ({"Name": arn}, "InvalidParameterValue", "iamInstanceProfile.name"),
        ({"Arn": empty}, "InvalidParameterValue", "iamInstanceProfile.arn"),
        ({"Name": empty, "Arn": arn}, "InvalidParameterCombination", "iamInstanceProfile"),
        ({"Name": empty}, "InvalidParameterValue", "no associated IAM Roles"),
    ]:
        error = refused(lambda wanted=wanted: sim.run_instances(**request, IamInstanceProfile=wanted), code)
        assert text in error["Error"]["Message"]
    refused(
        lambda: sim.associate_iam_instance_profile(InstanceId="i-00000000000000000", IamInstanceProfile={"Name": empty}),
        "InvalidInstanceID.NotFound",
    )
    refused(lambda: sim.disassociate_iam_instance_profile(AssociationId="iip-assoc-0"), "InvalidAssociationID.NotFound")
    refused(lambda: sim.describe_iam_instance_profile_associations(AssociationIds=["iip-assoc-0"]), "InvalidAssociationID.NotFound")
