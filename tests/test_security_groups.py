"""Security groups as records; that they hold for packets is tested with the network."""

import pytest
from botocore.exceptions import ClientError
from support.errors import code


@pytest.fixture
def group(sim):
    """A group, deleted afterwards."""
    made = sim.create_security_group(
        GroupName="web", Description="of a test", TagSpecifications=[{"ResourceType": "security-group", "Tags": [{"Key": "a", "Value": "b"}]}]
    )
    yield made["GroupId"]
    sim.delete_security_group(GroupId=made["GroupId"])


def tcp(port: int, *, to: int | None = None, cidr: str | None = "192.0.2.0/24", group: str | None = None, text: str | None = None) -> dict:
    permission = {"IpProtocol": "tcp", "FromPort": port, "ToPort": to or port}
    if group:
        permission["UserIdGroupPairs"] = [{"GroupId": group}]
    else:
        permission["IpRanges"] = [{"CidrIp": cidr} | ({"Description": text} if text else {})]
    return permission


def describe(sim, group: str) -> dict:
    return sim.describe_security_groups(GroupIds=[group])["SecurityGroups"][0]


def test_a_new_group_lets_nothing_in_and_everything_out(sim, group, simulated):
    found = describe(sim, group)
    assert found["IpPermissions"] == []
    assert found["IpPermissionsEgress"] == [{"IpProtocol": "-1", "IpRanges": [{"CidrIp": "0.0.0.0/0"}], "Ipv6Ranges": [], "PrefixListIds": [], "UserIdGroupPairs": []}]
    assert found["OwnerId"] == simulated.credentials["account_id"]
    assert found["Tags"] == [{"Key": "a", "Value": "b"}]
    [rule] = sim.describe_security_group_rules(Filters=[{"Name": "group-id", "Values": [group]}])["SecurityGroupRules"]
    assert rule["IsEgress"] and rule["IpProtocol"] == "-1" and rule["CidrIpv4"] == "0.0.0.0/0"
    assert rule["SecurityGroupRuleId"].startswith("sgr-")


def test_rules_are_added_shown_and_taken_back(sim, group):
    added = sim.authorize_security_group_ingress(GroupId=group, IpPermissions=[tcp(80, text="web"), tcp(443, group=group), {"IpProtocol": "icmp", "FromPort": 8, "ToPort": -1, "IpRanges": [{"CidrIp": "0.0.0.0/0"}]}])
    assert added["Return"] is True
    rules = {rule["SecurityGroupRuleId"]: rule for rule in added["SecurityGroupRules"]}
    assert len(rules) == 3
    described = sim.describe_security_group_rules(SecurityGroupRuleIds=list(rules))["SecurityGroupRules"]
    assert {rule["SecurityGroupRuleId"] for rule in described} == set(rules)
    web = next(rule for rule in described if rule.get("FromPort") == 80)
    assert web["Description"] == "web" and web["CidrIpv4"] == "192.0.2.0/24" and not web["IsEgress"]
    reference = next(rule for rule in described if rule.get("FromPort") == 443)
    assert reference["ReferencedGroupInfo"]["GroupId"] == group
    permissions = describe(sim, group)["IpPermissions"]
    assert {(p["IpProtocol"], p["FromPort"], p["ToPort"]) for p in permissions} == {("tcp", 80, 80), ("tcp", 443, 443), ("icmp", 8, -1)}
    sim.revoke_security_group_ingress(GroupId=group, SecurityGroupRuleIds=[web["SecurityGroupRuleId"]])
    sim.revoke_security_group_ingress(GroupId=group, IpPermissions=[tcp(443, group=group)])
    assert {p["IpProtocol"] for p in describe(sim, group)["IpPermissions"]} == {"icmp"}


def test_the_short_form_of_a_rule(sim, group):
    sim.authorize_security_group_ingress(GroupId=group, IpProtocol="tcp", FromPort=22, ToPort=22, CidrIp="198.51.100.7/32")
    [permission] = describe(sim, group)["IpPermissions"]
    assert permission["IpRanges"] == [{"CidrIp": "198.51.100.7/32"}]
    sim.revoke_security_group_ingress(GroupId=group, IpProtocol="tcp", FromPort=22, ToPort=22, CidrIp="198.51.100.7/32")
    assert describe(sim, group)["IpPermissions"] == []


def test_a_rule_is_added_once(sim, group):
    sim.authorize_security_group_ingress(GroupId=group, IpPermissions=[tcp(80)])
    with pytest.raises(ClientError) as error:
        sim.authorize_security_group_ingress(GroupId=group, IpPermissions=[tcp(81), tcp(80)])
    assert code(error) == "InvalidPermission.Duplicate"
    assert {p["FromPort"] for p in describe(sim, group)["IpPermissions"]} == {80}, "all or nothing"


def test_what_is_not_there_cannot_be_taken_back(sim, group):
    """In a default VPC that is no error; the answer says what was unknown (RevokeSecurityGroupIngress)."""
    answer = sim.revoke_security_group_ingress(GroupId=group, IpPermissions=[tcp(80)])
    [unknown] = answer["UnknownIpPermissions"]
    assert (unknown["FromPort"], unknown["ToPort"]) == (80, 80)


def test_egress(sim, group):
    everything = {"IpProtocol": "-1", "IpRanges": [{"CidrIp": "0.0.0.0/0"}]}
    sim.revoke_security_group_egress(GroupId=group, IpPermissions=[everything])
    sim.authorize_security_group_egress(GroupId=group, IpPermissions=[tcp(53, cidr="10.0.0.0/8")])
    [permission] = describe(sim, group)["IpPermissionsEgress"]
    assert (permission["FromPort"], permission["IpRanges"]) == (53, [{"CidrIp": "10.0.0.0/8"}])


@pytest.mark.parametrize(
    "permission, expected",
    [
        ({"IpProtocol": "tcp", "FromPort": 80, "ToPort": 79, "IpRanges": [{"CidrIp": "10.0.0.0/8"}]}, "InvalidParameterValue"),
        ({"IpProtocol": "tcp", "FromPort": 80, "ToPort": 70000, "IpRanges": [{"CidrIp": "10.0.0.0/8"}]}, "InvalidParameterValue"),
        ({"IpProtocol": "tcp", "IpRanges": [{"CidrIp": "10.0.0.0/8"}]}, "InvalidParameterValue"),
        ({"IpProtocol": "unicorn", "FromPort": 1, "ToPort": 1, "IpRanges": [{"CidrIp": "10.0.0.0/8"}]}, "InvalidParameterValue"),
        ({"IpProtocol": "tcp", "FromPort": 80, "ToPort": 80, "IpRanges": [{"CidrIp": "10.0.0.0/33"}]}, "InvalidParameterValue"),
        ({"IpProtocol": "tcp", "FromPort": 80, "ToPort": 80, "IpRanges": [{"CidrIp": "nonsense"}]}, "InvalidParameterValue"),
        ({"IpProtocol": "tcp", "FromPort": 80, "ToPort": 80, "UserIdGroupPairs": [{"GroupId": "sg-00000000000000000"}]}, "InvalidGroup.NotFound"),
        ({"IpProtocol": "tcp", "FromPort": 80, "ToPort": 80}, "MissingParameter"),
    ],
)
def test_rules_that_cannot_be_are_refused(sim, group, permission, expected):
    with pytest.raises(ClientError) as error:
        sim.authorize_security_group_ingress(GroupId=group, IpPermissions=[permission])
    assert code(error) == expected


def test_names_are_unique_within_a_vpc(sim, group):
    for name in ("web", "Web"):
        with pytest.raises(ClientError) as error:
            sim.create_security_group(GroupName=name, Description="again")
        assert code(error) == "InvalidGroup.Duplicate"
    for name in ("sg-mine", "default", "Default", "x" * 256):
        with pytest.raises(ClientError) as error:
            sim.create_security_group(GroupName=name, Description="x")
        assert code(error) == "InvalidParameterValue", name


def test_a_group_in_use_is_not_deleted(sim, group, sim_image):
    launched = sim.run_instances(ImageId=sim_image, InstanceType="t3.nano", MinCount=1, MaxCount=1, SecurityGroupIds=[group])
    instance = launched["Instances"][0]["InstanceId"]
    with pytest.raises(ClientError) as error:
        sim.delete_security_group(GroupId=group)
    assert code(error) == "DependencyViolation"
    sim.terminate_instances(InstanceIds=[instance])
    sim.get_waiter("instance_terminated").wait(InstanceIds=[instance], WaiterConfig={"Delay": 1, "MaxAttempts": 60})


def test_a_group_that_another_names_is_not_deleted(sim, group):
    other = sim.create_security_group(GroupName="other", Description="x")["GroupId"]
    sim.authorize_security_group_ingress(GroupId=other, IpPermissions=[tcp(80, group=group)])
    with pytest.raises(ClientError) as error:
        sim.delete_security_group(GroupId=group)
    assert code(error) == "DependencyViolation"
    sim.delete_security_group(GroupId=other)


def test_the_default_group_stays(sim):
    [default] = sim.describe_security_groups(GroupNames=["default"])["SecurityGroups"]
    with pytest.raises(ClientError) as error:
        sim.delete_security_group(GroupId=default["GroupId"])
    assert code(error) == "CannotDelete"
