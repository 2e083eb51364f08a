"""Terraform, unmodified: what it made matches what it was told, after the first apply and after a change."""

import json
import os
import shutil
import subprocess

import pytest

CONFIGURATION = """
terraform {
  required_providers {
    aws = { source = "hashicorp/aws" }
  }
}
variable "type" {}
variable "tokens" {}
variable "stage" {}
provider "aws" {}
data "aws_caller_identity" "me" {}
data "aws_availability_zones" "all" { state = "available" }
data "aws_vpc" "default" { default = true }
data "aws_subnets" "all" {
  filter {
    name   = "vpc-id"
    values = [data.aws_vpc.default.id]
  }
}
data "aws_ami" "tiny" {
  most_recent = true
  owners      = ["self"]
  filter {
    name   = "name"
    values = ["tiny"]
  }
}
resource "aws_key_pair" "login" {
  key_name   = "terraform"
  public_key = file("key.pub")
}
resource "aws_security_group" "ssh" {
  name_prefix = "terraform-"
  vpc_id      = data.aws_vpc.default.id
  tags        = { stage = var.stage }
}
resource "aws_vpc_security_group_ingress_rule" "ssh" {
  security_group_id = aws_security_group.ssh.id
  ip_protocol       = "tcp"
  from_port         = 22
  to_port           = 22
  cidr_ipv4         = "0.0.0.0/0"
}
resource "aws_instance" "guest" {
  ami                    = data.aws_ami.tiny.id
  instance_type          = var.type
  key_name               = aws_key_pair.login.key_name
  vpc_security_group_ids = [aws_security_group.ssh.id]
  user_data              = "#!/bin/sh\\ntrue\\n"
  tags                   = { stage = var.stage }
  metadata_options { http_tokens = var.tokens }
  root_block_device { tags = { stage = var.stage } }
}
output "instance" { value = aws_instance.guest.id }
output "zones" { value = length(data.aws_availability_zones.all.names) }
"""


IDENTITIES = """
terraform {
  required_providers {
    aws = { source = "hashicorp/aws" }
  }
}
variable "stage" {}
provider "aws" {}
data "aws_caller_identity" "me" {}
data "aws_iam_policy_document" "trust" {
  statement {
    actions = ["sts:AssumeRole"]
    principals {
      type        = "Service"
      identifiers = ["ec2.amazonaws.com"]
    }
    principals {
      type        = "AWS"
      identifiers = [aws_iam_user.alice.arn]
    }
  }
}
resource "aws_iam_user" "alice" {
  name          = "terraform-alice"
  path          = "/${var.stage}/"
  force_destroy = true
  tags          = { stage = var.stage }
}
resource "aws_iam_access_key" "alice" { user = aws_iam_user.alice.name }
resource "aws_iam_group" "all" { name = "terraform-all" }
resource "aws_iam_user_group_membership" "alice" {
  user   = aws_iam_user.alice.name
  groups = [aws_iam_group.all.name]
}
resource "aws_iam_policy" "read" {
  name   = "terraform-read"
  policy = jsonencode({
    Version   = "2012-10-17"
    Statement = [{ Effect = "Allow", Action = ["ec2:Describe*", "ec2:${var.stage}*"], Resource = "*" }]
  })
}
resource "aws_iam_group_policy_attachment" "read" {
  group      = aws_iam_group.all.name
  policy_arn = aws_iam_policy.read.arn
}
resource "aws_iam_role" "app" {
  name               = "terraform-app"
  description        = "for ${var.stage}"
  assume_role_policy = data.aws_iam_policy_document.trust.json
  tags               = { stage = var.stage }
}
resource "aws_iam_role_policy" "own" {
  role   = aws_iam_role.app.name
  policy = jsonencode({ Version = "2012-10-17", Statement = [{ Effect = "Allow", Action = "sts:*", Resource = "*" }] })
}
resource "aws_iam_role_policy_attachment" "core" {
  role       = aws_iam_role.app.name
  policy_arn = "arn:aws:iam::aws:policy/AmazonSSMManagedInstanceCore"
}
resource "aws_iam_instance_profile" "app" {
  name = "terraform-app"
  role = aws_iam_role.app.name
}
resource "aws_iam_openid_connect_provider" "ci" {
  url             = "https://ci.example.com"
  client_id_list  = ["sts.amazonaws.com"]
  thumbprint_list = ["0123456789012345678901234567890123456789"]
}
output "role" { value = aws_iam_role.app.unique_id }
"""


@pytest.fixture
def terraform(daemon, tmp_path):
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", tmp_path / "key"], check=True)
    return terraform_in(daemon, tmp_path, CONFIGURATION)


def terraform_in(daemon, tmp_path, configuration: str):
    """A function that runs Terraform with a configuration."""
    program = shutil.which("terraform")
    if program is None:
        pytest.skip("there is no terraform command on this machine")
    (tmp_path / "main.tf").write_text(configuration)
    environment = os.environ | daemon.aws_environment | {"AWS_ENDPOINT_URL": daemon.endpoint, "CHECKPOINT_DISABLE": "1"}

    def run(command: str, *arguments: str, codes: tuple[int, ...] = (0,), **variables: str) -> str:
        given = {f"TF_VAR_{name}": value for name, value in variables.items()}
        done = subprocess.run(
            [program, command, "-no-color", *arguments],
            cwd=tmp_path,
            env=environment | given,
            capture_output=True,
            text=True,
            timeout=600,
        )
        assert done.returncode in codes, done.stdout + done.stderr
        return done.stdout

    try:
        run("init", "-input=false")
    except AssertionError as error:
        pytest.skip(f"Terraform's AWS provider is not on this machine and cannot be had: {error}")
    return run


def test_what_is_applied_is_what_is_there(terraform, ec2):
    first = {"type": "t3.nano", "tokens": "optional", "stage": "one"}
    second = {"type": "t3.micro", "tokens": "required", "stage": "two"}
    made = None
    try:
        for variables in (first, second):
            terraform("apply", "-input=false", "-auto-approve", **variables)
            # Exit code 0: nothing to change; 2 would be a difference.
            terraform("plan", "-input=false", "-detailed-exitcode", **variables)
            outputs = json.loads(terraform("output", "-json", **variables))
            instance = outputs["instance"]["value"]
            assert made in (None, instance), "the instance is changed and not replaced"
            made = instance
            found = ec2.describe_instances(InstanceIds=[instance])["Reservations"][0]["Instances"][0]
            assert found["State"]["Name"] == "running"
            assert found["InstanceType"] == variables["type"]
            assert found["MetadataOptions"]["HttpTokens"] == variables["tokens"]
            assert found["Tags"] == [{"Key": "stage", "Value": variables["stage"]}]
        assert outputs["zones"]["value"] == len(ec2.describe_availability_zones()["AvailabilityZones"])
    finally:
        terraform("destroy", "-input=false", "-auto-approve", **second)
    assert ec2.describe_instances(InstanceIds=[made])["Reservations"][0]["Instances"][0]["State"]["Name"] == "terminated"
    assert not ec2.describe_key_pairs(Filters=[{"Name": "key-name", "Values": ["terraform"]}])["KeyPairs"]


def test_identities_are_as_they_were_told_to_be(simulated, tmp_path):
    terraform = terraform_in(simulated, tmp_path, IDENTITIES)
    iam, roles = simulated.client("iam"), []
    try:
        for stage in ("one", "two"):
            terraform("apply", "-input=false", "-auto-approve", stage=stage)
            terraform("plan", "-input=false", "-detailed-exitcode", stage=stage)
            roles.append(json.loads(terraform("output", "-json", stage=stage))["role"]["value"])
            role = iam.get_role(RoleName="terraform-app")["Role"]
            assert (role["RoleId"], role["Description"]) == (roles[0], f"for {stage}")
            assert role["Tags"] == [{"Key": "stage", "Value": stage}]
            assert iam.get_user(UserName="terraform-alice")["User"]["Path"] == f"/{stage}/"
            versions = iam.list_policy_versions(PolicyArn=iam.list_policies(Scope="Local", OnlyAttached=True)["Policies"][0]["Arn"])
            assert versions["Versions"]
    finally:
        terraform("destroy", "-input=false", "-auto-approve", stage="two")
    assert not [role for role in iam.list_roles()["Roles"] if role["RoleName"].startswith("terraform")]
    assert not [user for user in iam.list_users()["Users"] if user["UserName"].startswith("terraform")]
