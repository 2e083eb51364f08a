"""The operations that haar implements, as the tables of its services have them, and requests of them, made from the models."""

import base64
import hashlib
import re
import tomllib
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path

from .identities import allow, policy, trust

SERVICES = Path(__file__).parent.parent.parent / "crates/services"
TABLES = {
    "ebs": SERVICES / "ebs/operations.toml",
    "ec2": SERVICES / "ec2/operations.toml",
    "iam": SERVICES / "iam/iam.toml",
    "ssm": SERVICES / "ssm/operations.toml",
    "sts": SERVICES / "iam/sts.toml",
}

BLOCK = bytes(512 << 10)

# Values of members, for those that must have some, and for optional ones that requests have to have nevertheless.
OPTIONAL = ("CpuCredits", "DeviceIndex", "DeviceName", "SecurityGroupRule", "TagKeys", "Tags")
VALUES = {
    "AccessKeyId": "AKIAIOSFODNN7EXAMPLE",
    "ActionNames": ["iam:GetUser"],
    "AuthenticationCode1": "123456",
    "AuthenticationCode2": "123456",
    "AssumeRolePolicyDocument": trust({"Service": "ec2.amazonaws.com"}),
    "BlockData": BLOCK,
    "BlockToken": "AAAA",
    "Checksum": base64.b64encode(hashlib.sha256(BLOCK).digest()).decode(),
    "CpuCredits": "unlimited",
    "DataLength": len(BLOCK),
    "FirstSnapshotId": "snap-0123456789abcdef0",
    "IamInstanceProfile": {"Name": "xxxx"},
    "LaunchTemplateData": {"InstanceType": "t3.nano"},
    "OpenIDConnectProviderArn": "arn:aws:iam::123456789012:oidc-provider/example.com",
    "PolicySourceArn": "arn:aws:iam::123456789012:user/x",
    "PublicKeyMaterial": b"ssh-ed25519 AAAA",
    "SecondSnapshotId": "snap-0123456789abcdef0",
    "SerialNumber": "arn:aws:iam::123456789012:mfa/x",
    "SnapshotId": "snap-0123456789abcdef0",
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


@cache
def table(service: str) -> dict:
    return tomllib.loads(TABLES[service].read_text())


def operations() -> list[tuple[str, str]]:
    """Each operation of the tables."""
    return [(service, operation) for service in TABLES for operation in table(service)["operations"]]


def named(service: str, operation: str) -> dict[str, list[str]]:
    """The paths of the members that name resources of each type, as the table has them."""
    found: dict[str, list[str]] = {}
    for entry in table(service)["authorization"][operation]:
        kinds, _, sources = entry.split(" if ")[0].partition(": ")
        kind = kinds.split()[-1]
        paths = [source.strip() for source in sources.split(",") if source.strip() not in ("*", "@default", "")]
        found[kind] = list(dict.fromkeys(found.get(kind, []) + paths))
    return {kind: paths for kind, paths in found.items() if paths}


def identifiers(service: str, operation: str, shape) -> list[str]:
    """The honoured members that look as if they named something."""
    honoured = table(service)["operations"][operation]
    names = {member.split(".")[0] for member in honoured} if isinstance(honoured, list) else set(shape.members)
    return [member for member in shape.members if member in names and re.search("(Id|Ids|Arn|Arns|Name|Names)$", member)]


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
        elif inner.type_name == "timestamp":
            request[member] = datetime.now(UTC) + timedelta(days=1)
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


def call(client, operation: str, request: dict):
    method = next(method for method, named in client.meta.method_to_api_mapping.items() if named == operation)
    return getattr(client, method)(**request)
