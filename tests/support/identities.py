"""Users, roles and policies of tests."""

import json
import uuid

from botocore.config import Config
from botocore.exceptions import ClientError

# For requests that the SDK itself would refuse.
UNCHECKED = Config(parameter_validation=False, retries={"max_attempts": 0})

ALLOW_ALL = {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "*", "Resource": "*"}]}


def name(prefix: str) -> str:
    """A name that no other test has."""
    return f"{prefix}-{uuid.uuid4().hex[:10]}"


def policy(*statements: dict) -> str:
    return json.dumps({"Version": "2012-10-17", "Statement": list(statements)})


def allow(action: str | list, resource: str | list = "*", **more) -> dict:
    return {"Effect": "Allow", "Action": action, "Resource": resource, **more}


def deny(action: str | list, resource: str | list = "*", **more) -> dict:
    return {"Effect": "Deny", "Action": action, "Resource": resource, **more}


def trust(principal: dict, action: str | list = "sts:AssumeRole", **more) -> str:
    return policy({"Effect": "Allow", "Principal": principal, "Action": action, **more})


def refused(call, *codes: str) -> dict:
    """Calls, and returns the error, which must have one of these codes."""
    try:
        answer = call()
    except ClientError as error:
        assert error.response["Error"]["Code"] in codes, error.response
        return error.response
    raise AssertionError(f"it was not refused: {answer}")


class User:
    """An IAM user with an access key."""

    def __init__(self, daemon, prefix: str = "user", *statements: dict, **settings):
        self.daemon, self.iam, self.name = daemon, daemon.client("iam"), name(prefix)
        made = self.iam.create_user(UserName=self.name, **settings)["User"]
        self.arn, self.id = made["Arn"], made["UserId"]
        if statements:
            self.put(*statements)
        self.key = self.iam.create_access_key(UserName=self.name)["AccessKey"]

    def put(self, *statements: dict) -> None:
        self.iam.put_user_policy(UserName=self.name, PolicyName="own", PolicyDocument=policy(*statements))

    def client(self, service: str, **options):
        key = {"aws_access_key_id": self.key["AccessKeyId"], "aws_secret_access_key": self.key["SecretAccessKey"]}
        return self.daemon.client(service, **(key | options))


def with_credentials(daemon, credentials: dict, service: str):
    """A client with temporary credentials."""
    return daemon.client(
        service,
        aws_access_key_id=credentials["AccessKeyId"],
        aws_secret_access_key=credentials["SecretAccessKey"],
        aws_session_token=credentials["SessionToken"],
    )
