"""Requests that no SDK would send."""

import datetime
import http.client
from unittest import mock
from urllib.parse import urlencode
from xml.etree import ElementTree

import botocore.auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

from .daemon import Daemon

FORM = "application/x-www-form-urlencoded; charset=utf-8"


class Answer:
    def __init__(self, response: http.client.HTTPResponse):
        self.status = response.status
        self.headers = {name.lower(): value for name, value in response.getheaders()}
        self.body = response.read()

    def text(self, tag: str) -> str | None:
        """The text of the first element with this name, whatever its namespace."""
        for element in ElementTree.fromstring(self.body).iter():
            if element.tag.rpartition("}")[2] == tag:
                return element.text
        return None

    @property
    def code(self) -> str | None:
        return self.text("Code")

    def __repr__(self) -> str:
        return f"{self.status} {self.body[:600]!r}"


def signed(
    daemon: Daemon,
    body: bytes | str,
    service: str = "ec2",
    *,
    headers: dict | None = None,
    access_key: str | None = None,
    secret: str | None = None,
    region: str | None = None,
    at: datetime.datetime | None = None,
) -> dict[str, str]:
    """The headers of a POST to / with a signature; what is given replaces what would be right."""
    keys = daemon.credentials
    credentials = Credentials(access_key or keys["access_key_id"], secret or keys["secret_access_key"])
    request = AWSRequest("POST", f"{daemon.endpoint}/", headers={"Content-Type": FORM} | (headers or {}), data=body)
    at = at or datetime.datetime.now(datetime.UTC)
    with mock.patch.object(botocore.auth, "get_current_datetime", lambda *_, **__: at.replace(tzinfo=None)):
        botocore.auth.SigV4Auth(credentials, service, region or daemon.region).add_auth(request)
    return dict(request.headers.items())


def send(daemon: Daemon, body: bytes | str = b"", headers: dict | None = None, method: str = "POST", path: str = "/") -> Answer:
    connection = http.client.HTTPConnection("127.0.0.1", daemon.port, timeout=60)
    try:
        connection.request(method, path, body.encode() if isinstance(body, str) else body, headers or {})
        return Answer(connection.getresponse())
    finally:
        connection.close()


def call(daemon: Daemon, action: str, parameters: dict | list | None = None, service: str = "ec2", version: str | None = None, **options) -> Answer:
    """A signed request of the query protocols."""
    items = list(parameters.items()) if isinstance(parameters, dict) else list(parameters or [])
    version = version or {"ec2": "2016-11-15", "sts": "2011-06-15"}[service]
    body = urlencode([("Action", action), ("Version", version), *items])
    return send(daemon, body, signed(daemon, body, service, **options))
