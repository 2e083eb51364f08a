"""Launch templates: what a template says, its instances are; versions, merging, and what is told of them."""

import base64

import pytest
from conftest import image_id
from support.errors import refused
from support.guest import Guest
from support.machine import wait_for


def tags(described: list[dict]) -> dict[str, str]:
    return {tag["Key"]: tag["Value"] for tag in described}


USER_DATA = base64.b64encode(b"#!/bin/sh\necho from the template >/root/template\n").decode()


def test_an_instance_is_what_its_template_says(launch, ec2, tiny, ssh_group):
    """In the guest, by a real launch."""
    data = {
        "ImageId": tiny,
        "InstanceType": "t3.nano",
        "KeyName": "login",
        "UserData": USER_DATA,
        "BlockDeviceMappings": [
            {"DeviceName": "/dev/xvda", "Ebs": {"VolumeSize": 2}},
            {"DeviceName": "/dev/sdf", "Ebs": {"VolumeSize": 1, "VolumeType": "gp3", "DeleteOnTermination": True}},
        ],
        "NetworkInterfaces": [{"DeviceIndex": 0, "Groups": [ssh_group], "AssociatePublicIpAddress": True}],
        "MetadataOptions": {"HttpTokens": "required", "InstanceMetadataTags": "enabled"},
        "CpuOptions": {"CoreCount": 1, "ThreadsPerCore": 1},
        "TagSpecifications": [
            {"ResourceType": "instance", "Tags": [{"Key": "Name", "Value": "templated"}, {"Key": "team", "Value": "a"}]},
            {"ResourceType": "volume", "Tags": [{"Key": "of", "Value": "template"}]},
        ],
    }
    template = ec2.create_launch_template(LaunchTemplateName="whole", LaunchTemplateData=data)["LaunchTemplate"]
    try:
        answer = ec2.run_instances(
            LaunchTemplate={"LaunchTemplateName": "whole"},
            InstanceType="t3.micro",
            BlockDeviceMappings=[{"DeviceName": "/dev/xvda", "Ebs": {"VolumeSize": 3}}],
            TagSpecifications=[{"ResourceType": "instance", "Tags": [{"Key": "team", "Value": "b"}]}],
            MinCount=1,
            MaxCount=1,
        )
        instance = answer["Instances"][0]
        launched = launch_of(launch, instance["InstanceId"])
        assert tags(instance["Tags"]) == {
            "Name": "templated",
            "team": "b",
            "aws:ec2launchtemplate:id": template["LaunchTemplateId"],
            "aws:ec2launchtemplate:version": "1",
        }
        launched.wait_for_state("running")
        launched.wait_for_login()
        assert int(launched.run("grep -c ^processor /proc/cpuinfo")) == 1
        total = int(launched.run("sed -n 's/^MemTotal: *\\([0-9]*\\) kB/\\1/p' /proc/meminfo")) / 1024
        assert 1024 * 0.85 < total <= 1024, "the request's type wins"
        assert int(launched.run("cat /sys/class/block/vda/size")) * 512 == 3 << 30, "the request's mapping of the same device wins"
        assert int(launched.run("cat /sys/class/block/vdb/size")) * 512 == 1 << 30, "the template's other mapping stays"
        wait_for(lambda: launched.succeeds("test -e /root/template"), 30)
        status, _, _ = launched.http("/latest/meta-data/instance-id")
        assert status == 401, "only IMDSv2 answers"
        volumes = ec2.describe_volumes(Filters=[{"Name": "attachment.instance-id", "Values": [launched.id]}])["Volumes"]
        assert all(tags(volume["Tags"]) == {"of": "template"} for volume in volumes)
        # A template made from the instance makes another like it.
        again = ec2.get_launch_template_data(InstanceId=launched.id)["LaunchTemplateData"]
        assert again["InstanceType"] == "t3.micro" and again["UserData"] == USER_DATA
        assert tags(again["TagSpecifications"][0]["Tags"]) == {"Name": "templated", "team": "b"}
        ec2.create_launch_template(LaunchTemplateName="again", LaunchTemplateData=again)
        copy = ec2.run_instances(LaunchTemplate={"LaunchTemplateName": "again"}, MinCount=1, MaxCount=1)["Instances"][0]
        launch_of(launch, copy["InstanceId"])
        same = ("ImageId", "InstanceType", "KeyName", "CpuOptions", "SubnetId", "SecurityGroups", "EbsOptimized")
        original = launched.describe()
        assert {name: copy[name] for name in same} == {name: original[name] for name in same}
        ec2.delete_launch_template(LaunchTemplateName="again")
    finally:
        ec2.delete_launch_template(LaunchTemplateId=template["LaunchTemplateId"])


def launch_of(launch, instance: str):
    """An instance that was launched by other means, to be ended with the module's."""

    launch.launched.append(instance)
    return Guest(launch.daemon, instance, launch.key)


@pytest.fixture
def template(sim, sim_image):
    made = sim.create_launch_template(
        LaunchTemplateName="base",
        VersionDescription="first",
        LaunchTemplateData={"ImageId": sim_image, "InstanceType": "t3.nano", "UserData": USER_DATA, "EbsOptimized": True},
        TagSpecifications=[{"ResourceType": "launch-template", "Tags": [{"Key": "of", "Value": "test"}]}],
    )["LaunchTemplate"]
    yield made
    sim.delete_launch_template(LaunchTemplateId=made["LaunchTemplateId"])


def numbers(answer: dict) -> list[int]:
    return [version["VersionNumber"] for version in answer["LaunchTemplateVersions"]]


def test_versions_are_made_from_others_chosen_and_removed(sim, template):
    id_ = template["LaunchTemplateId"]
    assert id_.startswith("lt-") and template["DefaultVersionNumber"] == template["LatestVersionNumber"] == 1
    assert template["CreatedBy"].endswith(":root") and template["Tags"] == [{"Key": "of", "Value": "test"}]
    second = sim.create_launch_template_version(
        LaunchTemplateId=id_, SourceVersion="1", LaunchTemplateData={"InstanceType": "t3.small"}, VersionDescription="second"
    )["LaunchTemplateVersion"]
    assert second["VersionNumber"] == 2 and second["DefaultVersion"] is False and second["VersionDescription"] == "second"
    data = second["LaunchTemplateData"]
    assert (data["InstanceType"], data["UserData"], data["EbsOptimized"]) == ("t3.small", USER_DATA, True)
    third = sim.create_launch_template_version(LaunchTemplateName="base", LaunchTemplateData={"InstanceType": "t3.large"})
    assert "UserData" not in third["LaunchTemplateVersion"]["LaunchTemplateData"], "without a source, nothing is taken over"

    def described(**parameters) -> list[int]:
        return numbers(sim.describe_launch_template_versions(LaunchTemplateId=id_, **parameters))

    assert described() == [3, 2, 1]
    assert described(Versions=["$Latest", "$Default"]) == [3, 1]
    assert described(MinVersion="2") == [3, 2] and described(MaxVersion="2") == [2, 1]
    assert described(Filters=[{"Name": "instance-type", "Values": ["t3.small"]}]) == [2]
    assert described(Filters=[{"Name": "is-default-version", "Values": ["true"]}]) == [1]
    everywhere = sim.describe_launch_template_versions(Versions=["$Default"])
    assert numbers(everywhere) == [1]
    first = sim.describe_launch_template_versions(LaunchTemplateId=id_, MaxResults=2)
    assert numbers(first) == [3, 2]
    rest = sim.describe_launch_template_versions(LaunchTemplateId=id_, MaxResults=2, NextToken=first["NextToken"])
    assert numbers(rest) == [1] and "NextToken" not in rest

    def launched(**template) -> str:
        [instance] = sim.run_instances(LaunchTemplate={"LaunchTemplateId": id_, **template}, ImageId=image_id(sim, "tiny"), MinCount=1, MaxCount=1)["Instances"]
        sim.terminate_instances(InstanceIds=[instance["InstanceId"]])
        return instance["InstanceType"] + "/" + tags(instance["Tags"])["aws:ec2launchtemplate:version"]

    assert [launched(), launched(Version="2"), launched(Version="$Latest")] == ["t3.nano/1", "t3.small/2", "t3.large/3"]
    changed = sim.modify_launch_template(LaunchTemplateId=id_, DefaultVersion="2")["LaunchTemplate"]
    assert changed["DefaultVersionNumber"] == 2 and launched(Version="$Default") == "t3.small/2"

    answer = sim.delete_launch_template_versions(LaunchTemplateId=id_, Versions=["1", "2", "3", "9"])
    assert [each["VersionNumber"] for each in answer["SuccessfullyDeletedLaunchTemplateVersions"]] == [1, 3]
    kept = {each["VersionNumber"]: each["ResponseError"]["Code"] for each in answer["UnsuccessfullyDeletedLaunchTemplateVersions"]}
    assert kept == {2: "unexpectedError", 9: "launchTemplateVersionDoesNotExist"}
    assert described() == [2] and launched(Version="$Latest") == "t3.small/2"
    fourth = sim.create_launch_template_version(LaunchTemplateId=id_, SourceVersion="$Latest", LaunchTemplateData={"KeyName": "k"})
    assert fourth["LaunchTemplateVersion"]["VersionNumber"] == 4, "no number is given twice"


def test_templates_are_described(sim, sim_image, template):
    other = sim.create_launch_template(LaunchTemplateName="other", LaunchTemplateData={"ImageId": sim_image})["LaunchTemplate"]

    def described(**parameters) -> set[str]:
        return {each["LaunchTemplateName"] for each in sim.describe_launch_templates(**parameters)["LaunchTemplates"]}

    assert described() == {"base", "other"}
    assert described(LaunchTemplateNames=["other"]) == {"other"}
    assert described(LaunchTemplateIds=[template["LaunchTemplateId"]]) == {"base"}
    assert described(Filters=[{"Name": "launch-template-name", "Values": ["b*"]}]) == {"base"}
    assert described(Filters=[{"Name": "tag:of", "Values": ["test"]}]) == {"base"}
    pages = sim.get_paginator("describe_launch_templates").paginate(PaginationConfig={"PageSize": 1})
    assert [len(page["LaunchTemplates"]) for page in pages] == [1, 1]
    sim.create_tags(Resources=[other["LaunchTemplateId"]], Tags=[{"Key": "of", "Value": "other"}])
    assert described(Filters=[{"Name": "tag:of", "Values": ["other"]}]) == {"other"}
    sim.delete_launch_template(LaunchTemplateName="other")
    assert described() == {"base"}


def test_a_request_with_a_token_makes_one_template(sim, sim_image):
    request = {"LaunchTemplateName": "once", "ClientToken": "once", "LaunchTemplateData": {"ImageId": sim_image}}
    first, second = sim.create_launch_template(**request), sim.create_launch_template(**request)
    assert first["LaunchTemplate"] == second["LaunchTemplate"]
    version = {"LaunchTemplateName": "once", "ClientToken": "again", "LaunchTemplateData": {"KeyName": "k"}}
    for _ in range(2):
        assert sim.create_launch_template_version(**version)["LaunchTemplateVersion"]["VersionNumber"] == 2
    sim.delete_launch_template(LaunchTemplateName="once")


def test_what_cannot_be_is_refused(sim, sim_image, template):
    id_ = template["LaunchTemplateId"]
    data = {"ImageId": sim_image}
    refused("InvalidLaunchTemplateName.AlreadyExistsException", sim.create_launch_template, LaunchTemplateName="base", LaunchTemplateData=data)
    refused("DryRunOperation", sim.create_launch_template, LaunchTemplateName="dry", LaunchTemplateData=data, DryRun=True)
    refused("MissingParameter", sim.create_launch_template, LaunchTemplateName="empty", LaunchTemplateData={})
    refused("InvalidParameterValue", sim.create_launch_template, LaunchTemplateName="data", LaunchTemplateData={"UserData": "%%%"})
    refused("UnsupportedOperation", sim.create_launch_template, LaunchTemplateName="ram", LaunchTemplateData={"RamDiskId": "ari-1"})
    refused("InvalidLaunchTemplateName.NotFoundException", sim.delete_launch_template, LaunchTemplateName="dry")
    refused("InvalidLaunchTemplateId.NotFound", sim.describe_launch_templates, LaunchTemplateIds=["lt-00000000000000000"])
    refused("InvalidLaunchTemplateId.Malformed", sim.describe_launch_templates, LaunchTemplateIds=["nonsense"])
    refused("InvalidLaunchTemplateId.VersionNotFound", sim.describe_launch_template_versions, LaunchTemplateId=id_, Versions=["7"])
    refused("InvalidLaunchTemplateId.VersionNotFound", sim.modify_launch_template, LaunchTemplateId=id_, DefaultVersion="7")
    refused("MissingParameter", sim.describe_launch_template_versions, Versions=["1"])
    refused("InvalidParameterCombination", sim.delete_launch_template, LaunchTemplateId=id_, LaunchTemplateName="base")
    refused("MissingParameter", sim.delete_launch_template)

    def launch(**template):
        return lambda **parameters: sim.run_instances(LaunchTemplate=template, MinCount=1, MaxCount=1, **parameters)

    refused("InvalidLaunchTemplateName.NotFoundException", launch(LaunchTemplateName="nobody"))
    refused("InvalidLaunchTemplateId.VersionNotFound", launch(LaunchTemplateId=id_, Version="8"))
    refused("InvalidParameterValue", launch(LaunchTemplateId=id_, Version="latest"))
    refused("InvalidParameterValue", launch(LaunchTemplateId=id_), InstanceType="z9.huge")
    # A template may say what only the launch finds out.
    sim.create_launch_template_version(LaunchTemplateId=id_, LaunchTemplateData={"InstanceType": "t3.nano", "KeyName": "no-such-key"})
    refused("MissingParameter", launch(LaunchTemplateId=id_, Version="$Latest"))
    refused("InvalidKeyPair.NotFound", launch(LaunchTemplateId=id_, Version="$Latest"), ImageId=sim_image)
    refused("InvalidInstanceID.NotFound", sim.get_launch_template_data, InstanceId="i-00000000000000000")


def test_templates_survive_a_crash(make_daemon):
    daemon = make_daemon("--compute", "simulated")
    ec2 = daemon.client("ec2")
    data = {"ImageId": image_id(ec2, "tiny"), "InstanceType": "t3.nano"}
    made = ec2.create_launch_template(LaunchTemplateName="kept", LaunchTemplateData=data)["LaunchTemplate"]
    ec2.create_launch_template_version(LaunchTemplateName="kept", SourceVersion="1", LaunchTemplateData={"InstanceType": "t3.small"})
    daemon.kill()
    daemon.start()
    ec2 = daemon.client("ec2")
    launched = ec2.run_instances(LaunchTemplate={"LaunchTemplateId": made["LaunchTemplateId"], "Version": "2"}, MinCount=1, MaxCount=1)
    assert launched["Instances"][0]["InstanceType"] == "t3.small"
