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


@pytest.fixture
def terraform(daemon, tmp_path):
    program = shutil.which("terraform")
    if program is None:
        pytest.skip("there is no terraform command on this machine")
    (tmp_path / "main.tf").write_text(CONFIGURATION)
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", tmp_path / "key"], check=True)
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
