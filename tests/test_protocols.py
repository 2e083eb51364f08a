"""Every protocol, by its real client: small services of `tests/echo` answer boto3 what it asked, over ec2, query, json 1.0 and 1.1, and rest-json."""

import datetime
import http.client
import io
import json
import math
import os
import re
import subprocess
from pathlib import Path
from unittest import mock
from xml.etree import ElementTree

import boto3
import botocore.auth
import botocore.session
import pytest
from botocore.awsrequest import AWSRequest
from botocore.config import Config
from botocore.credentials import Credentials
from botocore.exceptions import ClientError

ROOT = Path(__file__).parent.parent
MODELS = ROOT / "tests/echo/models"
KEY, SECRET, REGION = "AKIAIOSFODNN7EXAMPLE", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY", "us-east-1"
TEMPORARY, EXPIRED, TOKEN = "ASIAIOSFODNN7EXAMPLE", "ASIAEXPIREDN7EXAMPLE", "IQoJb3JpZ2luX2VjEXAMPLE/+=="
UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")

EC2, QUERY, JSON10, JSON11, REST = SERVICES = ("echo-ec2", "echo-query", "echo-json10", "echo-json11", "echo-rest")
XML, JSON = (EC2, QUERY), (JSON10, JSON11, REST)


@pytest.fixture(scope="module")
def port():
    """The port of the services."""
    subprocess.run(["cargo", "build", "--locked", "--quiet", "--package", "haar-echo"], cwd=ROOT, check=True)
    binary = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "debug/haar-echo"
    with subprocess.Popen([binary], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        yield int(server.stdout.readline())
        server.stdin.close()
        assert server.wait(timeout=30) == 0


@pytest.fixture(scope="module")
def client(port):
    """A function that makes a boto3 client, which leaves it to the service to check what is asked."""
    made = {}

    def make(service: str, key: str = KEY, secret: str = SECRET, token: str | None = None, validate: bool = False, **options):
        settings = (service, key, secret, token, validate, *options.items())
        if settings not in made:
            session = botocore.session.Session()
            session.get_component("data_loader").search_paths.append(str(MODELS))
            made[settings] = boto3.session.Session(botocore_session=session).client(
                service,
                endpoint_url=f"http://127.0.0.1:{port}",
                aws_access_key_id=key,
                aws_secret_access_key=secret,
                aws_session_token=token,
                config=Config(retries={"total_max_attempts": 1}, parameter_validation=validate),
                **({"region_name": REGION} | options),
            )
        return made[settings]

    return make


def plain(answer: dict) -> dict:
    """An answer without its metadata, which must be right."""
    metadata = answer.pop("ResponseMetadata")
    assert metadata["HTTPStatusCode"] == 200
    assert UUID.fullmatch(metadata["RequestId"])
    assert metadata["HTTPHeaders"]["x-amzn-requestid"] == metadata["RequestId"]
    return answer


def refused(call, **parameters) -> dict:
    """The error of a call that must fail: code, message, status."""
    with pytest.raises(ClientError) as error:
        call(**parameters)
    response = error.value.response
    metadata = response["ResponseMetadata"]
    assert UUID.fullmatch(metadata["RequestId"]), response
    assert metadata["HTTPHeaders"]["x-amzn-requestid"] == metadata["RequestId"]
    return response["Error"] | {"Status": metadata["HTTPStatusCode"]} | {k: v for k, v in response.items() if k not in ("Error", "ResponseMetadata")}


# --- round trips ----------------------------------------------------------------------------------------------------------

TEXTS = ["", " ", "plain", "  leading and trailing  ", "ä & <b> \"q\" 'a' ]]> 漢字 \U0001f600 a+b=c%20;/?:@", "tab\tline\nreturn\rend", "0", "null", "<!-- -->", "\\ \\n \\u0041", "\x7f\x85\u2028", "x" * 5000]
WHEN = datetime.datetime(2026, 2, 28, 23, 59, 58, tzinfo=datetime.UTC)
EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)

COMMON = [
    *({"Text": text} for text in TEXTS),
    *({"Number": number} for number in (0, 1, -1, 2**31 - 1, -(2**31))),
    *({"Big": number} for number in (0, 2**53 + 1, 2**63 - 1, -(2**63))),
    *({"Ratio": number} for number in (0.0, 0.1, -1.5, 1e300, 5e-324, 123456789.123)),
    {"Single": 0.25},
    {"Flag": True},
    {"Flag": False},
    *({"Bytes": data} for data in (b"", b"\0", b"\xff\xfe<&>", bytes(range(256)), b"x" * 10_000)),
    *({name: when} for name in ("When", "WhenIso", "WhenEpoch", "WhenHttp") for when in (WHEN, EPOCH, WHEN.replace(year=1969), WHEN.replace(year=2999))),
    {"Times": [WHEN, EPOCH]},
    *({"Colour": colour} for colour in ("RED", "dark-blue", "1st")),
    {"Colours": ["1st", "RED", "RED"]},
    {"Texts": TEXTS},
    {"Texts": [str(number) for number in range(120)]},
    {"Inner": {"Text": "one", "Numbers": [3, 1, 2], "Inner": {"Inner": {"Text": "four", "Numbers": [0]}}}},
    {"Inners": [{"Text": "a"}, {"Numbers": [1, 2]}, {"Inner": {"Text": "b"}}]},
    {"Renamed": "by the model"},
    {"Text": "all", "Number": 7, "Flag": True, "When": WHEN, "Colour": "RED", "Texts": ["a"], "Inners": [{"Text": "x"}], "Renamed": "y"},
]
MAPS = [{"Map": {"a": "b", "": "empty key", "k.1&=": "ä\n"}}, {"InnerMap": {"one": {"Text": "1", "Numbers": [1]}, "two": {"Inner": {"Text": "2"}}}}]
OF_EC2 = [{"Queried": "by another name than answered"}, {"Filters": [{"Text": "a"}, {"Numbers": [1]}]}]
OF_QUERY = [
    {"Named": ["a", "b"]},
    {"Flat": ["a", "", "b"]},
    {"PlainFlat": [{"Text": "a"}, {"Numbers": [1, 2]}]},
    {"NamedMap": {"a": "b", "c": ""}},
    {"FlatMap": {"a": {"Text": "b"}, "c": {"Numbers": [1]}}},
]
OF_JSON = [
    {"Nested": [["a", "b"], [], [""]]},
    {"ListMap": {"a": ["b"], "c": []}},
    {"Texts": []},
    {"Map": {}},
    {"Inner": {}},
    {"Inners": [{}, {}]},
    *({"Choice": choice} for choice in ({"Text": ""}, {"Number": 0}, {"Inner": {"Text": "x"}})),
    *({"Free": document} for document in ({}, {"a": [1, 2.5, "x", None, True, {"b": {}}]}, [1, []], "text", 5, False)),
]
CASES = [
    *((service, case) for service in SERVICES for case in COMMON),
    *((service, case) for service in SERVICES if service != EC2 for case in MAPS),
    *((EC2, case) for case in OF_EC2),
    *((QUERY, case) for case in OF_QUERY),
    *((service, case) for service in JSON for case in OF_JSON),
]


def without_empty_lists(value):
    """The `ec2` and `query` protocols say nothing of lists and maps that are empty: answers have them all."""
    if isinstance(value, dict):
        members = {key: without_empty_lists(inner) for key, inner in value.items()}
        return {key: inner for key, inner in members.items() if inner not in ([], {})}
    if isinstance(value, list):
        return [without_empty_lists(inner) for inner in value]
    return value


@pytest.mark.parametrize("service, case", CASES, ids=lambda value: value if isinstance(value, str) else ",".join(value))
def test_every_value_comes_back_as_it_was(client, service, case):
    answer = plain(client(service).echo(**case))
    assert without_empty_lists(answer) == without_empty_lists(case)
    if service in JSON:
        assert contains(answer, case), answer


def contains(answer, case) -> bool:
    """Whether an answer has all that a case has; it may have empty lists and maps besides."""
    if isinstance(case, dict):
        return isinstance(answer, dict) and all(name in answer and contains(answer[name], value) for name, value in case.items())
    if isinstance(case, list):
        return isinstance(answer, list) and len(answer) == len(case) and all(map(contains, answer, case))
    return answer == case and type(answer) is type(case)


@pytest.mark.parametrize("service", SERVICES)
def test_numbers_that_are_none_come_back(client, service):
    for number in (math.inf, -math.inf):
        assert float(plain(client(service).echo(Ratio=number))["Ratio"]) == number
    assert math.isnan(float(plain(client(service).echo(Ratio=math.nan))["Ratio"]))


@pytest.mark.parametrize("service", SERVICES)
def test_operations_without_input_and_output(client, service):
    answer = client(service).nothing()
    assert answer["ResponseMetadata"]["HTTPStatusCode"] == (204 if service == REST else 200)
    assert UUID.fullmatch(answer["ResponseMetadata"]["RequestId"])


@pytest.mark.parametrize("service", SERVICES)
def test_idempotency_tokens_reach_the_handler(client, service):
    once = client(service).once
    assert plain(once(ClientToken="mine", Value="x")) == {"Token": "mine", "Value": "x"}
    # boto3 makes one up where none is given.
    first, second = once()["Token"], once()["Token"]
    assert UUID.fullmatch(first) and UUID.fullmatch(second) and first != second


# --- what stands in path, query string, headers and body ------------------------------------------------------------------


@pytest.fixture(scope="module")
def rest(client):
    return client(REST)


@pytest.mark.parametrize("label", ["a", "ä b", "%2F", "a/b", "..", "?#&=+", "漢字"])
def test_labels_of_the_path(rest, label):
    answer = rest.places(Label=label, Rest="x/" + label)
    assert answer["Label"] == label and answer["Rest"] == "x/" + label


def test_members_in_every_place(rest):
    asked = {
        "Label": "l",
        "Rest": "a/b/c",
        "Text": "ä+ &=%",
        "Number": -5,
        "Flag": False,
        "When": WHEN,
        "Texts": ["one", "", "two words"],
        "Parameters": {"free": ["1", "2"], "other key": ["x"]},
        "HeaderText": "head er",
        "HeaderNumber": 2**40,
        "HeaderFlag": True,
        "HeaderWhen": WHEN,
        "HeaderTexts": ["a", "b c", 'with, comma and "quotes"'],
        "Meta": {"one": "1", "two-more": "2"},
        "Body": {"Text": "body", "Numbers": [1, 2]},
    }
    answer = rest.places(**asked)
    metadata = answer.pop("ResponseMetadata")
    assert (metadata["HTTPStatusCode"], answer.pop("Status")) == (203, 203)
    assert metadata["HTTPHeaders"]["x-when"] == "Sat, 28 Feb 2026 23:59:58 GMT"
    assert metadata["HTTPHeaders"]["x-iso"] == "2026-02-28T23:59:58Z"
    assert answer.pop("HeaderIso") == WHEN
    # botocore reads a list in a header as one string.
    assert metadata["HTTPHeaders"]["x-texts"] == 'a, b c, "with, comma and \\"quotes\\""'
    del answer["HeaderTexts"], asked["HeaderTexts"]
    answer["Meta"] = {name.lower(): value for name, value in answer["Meta"].items()}
    assert answer == asked


def test_absent_members_are_absent(rest):
    answer = rest.places(Label="l", Rest="r")
    for name in ("Text", "Number", "Flag", "When", "Body", "HeaderText", "HeaderNumber", "HeaderFlag", "HeaderWhen"):
        assert name not in answer
    assert answer["Texts"] == [] and answer["Parameters"] == {} and not answer.get("Meta")


@pytest.mark.parametrize("data", [b"", b"\0\xff" * 1000, b"{}", b"x" * (4 << 20)], ids=len)
def test_streams_are_taken_and_given_as_they_are(rest, data):
    answer = rest.stream(Data=io.BytesIO(data), Type="image/png", Status=201)
    assert answer["Data"].read() == data
    assert answer["Size"] == len(data) and answer["Status"] == 201
    assert answer["Type"] == "image/png"
    assert rest.stream(Data=b"x")["ResponseMetadata"]["HTTPStatusCode"] == 202


def test_payloads_that_are_one_member(rest):
    answer = rest.wrapped(Name="n", Inner={"Text": "x", "Numbers": [1]})
    assert (answer["Name"], answer["Inner"]) == ("n", {"Text": "x", "Numbers": [1]})
    assert rest.plain_text(Text="ä\n<>")["Text"] == "ä\n<>"


def test_dry_runs_are_of_ec2(client, rest):
    error = refused(client(EC2).once, DryRun=True)
    assert (error["Code"], error["Status"]) == ("DryRunOperation", 412)
    assert plain(client(EC2).once(ClientToken="t", DryRun=False)) == {"Token": "t"}
    # What other services call so is theirs.
    answer = rest.wrapped(Name="n", DryRun=True, Inner={"Text": "x"})
    assert answer["DryRun"] is True and answer["Inner"]["Text"] == "x"


def test_operations_are_told_by_the_query_string_too(rest):
    assert rest.list_all()["Value"] == "all"
    assert rest.list_some()["Value"] == "some"


# --- errors ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("service", SERVICES)
def test_errors_of_handlers(client, service):
    fail = client(service).fail
    message = "no <thing> & \"none\" ä"
    error = refused(fail, Kind="ThingNotFound", Message=message)
    code = {EC2: "ThingNotFound", QUERY: "ThingNotFound"}.get(service, "ThingNotFoundException")
    assert (error["Code"], error["Message"], error["Status"]) == (code, message, 400 if service == EC2 else 404)
    if service == QUERY:
        assert error["Type"] == "Sender"
    if service in JSON:
        assert error["Resource"] == "thing/1"
    error = refused(fail, Kind="Broken", Message="x")
    assert (error["Code"], error["Status"]) == ("Broken" if service in XML else "BrokenException", 500)
    if service == QUERY:
        assert error["Type"] == "Receiver"
    error = refused(fail, Kind="Odd.Code")
    assert (error["Code"], error["Status"]) == ("Odd.Code", 400)
    error = refused(fail, Kind="InternalError")
    assert (error["Code"], error["Status"]) == ({EC2: "InternalError", QUERY: "InternalFailure"}.get(service, "InternalServerError"), 500)


@pytest.mark.parametrize("service", SERVICES)
def test_a_handler_that_panics_is_answered(client, service):
    error = refused(client(service).fail, Kind="Panic")
    assert (error["Code"], error["Status"]) == ({EC2: "InternalError", QUERY: "InternalFailure"}.get(service, "InternalServerError"), 500)
    assert plain(client(service).echo(Text="still here"))["Text"] == "still here"


@pytest.mark.parametrize("service", [QUERY, *JSON])
def test_errors_of_the_model_are_exceptions_of_boto3(client, service):
    with pytest.raises(client(service).exceptions.ThingNotFoundException):
        client(service).fail(Kind="ThingNotFound")


def validation(service: str) -> str:
    return {EC2: "InvalidParameterValue", QUERY: "ValidationError"}.get(service, "ValidationException")


GOOD = {"Name": "abcd"}
VIOLATIONS = {
    "short": ({"Name": "ab"}, "greater than or equal to 3"),
    "long": ({"Name": "abcdefghi"}, "less than or equal to 8"),
    "pattern": ({"Name": "ABCD"}, "[a-z]+"),
    "pattern of all": ({"Name": "abc\n"}, "[a-z]+"),
    "low": (GOOD | {"Count": 0}, "greater than or equal to 1"),
    "high": (GOOD | {"Count": 11}, "less than or equal to 10"),
    "long low": (GOOD | {"Size": -1}, "greater than or equal to 0"),
    "long high": (GOOD | {"Size": 2**40 + 1}, "less than or equal to 1099511627776"),
    "fraction low": (GOOD | {"Fraction": -0.1}, "greater than or equal to 0"),
    "fraction high": (GOOD | {"Fraction": 1.0001}, "less than or equal to 1"),
    "fraction none": (GOOD | {"Fraction": math.nan}, "equal to"),
    "fraction infinite": (GOOD | {"Fraction": math.inf}, "less than or equal to 1"),
    "no bytes": (GOOD | {"Data": b""}, "greater than or equal to 1"),
    "many bytes": (GOOD | {"Data": b"12345"}, "less than or equal to 4"),
    "enum": (GOOD | {"Colour": "red"}, "RED"),
    "many items": (GOOD | {"Items": [{"Id": "1"}, {"Id": "2"}, {"Id": "3"}]}, "less than or equal to 2"),
    "nested": (GOOD | {"Items": [{"Id": "1"}, {"Id": "2", "Count": 11}]}, "less than or equal to 10"),
}


@pytest.mark.parametrize("service", SERVICES)
@pytest.mark.parametrize("violation", VIOLATIONS)
def test_constraints_are_enforced(client, service, violation):
    parameters, words = VIOLATIONS[violation]
    error = refused(client(service).check, **parameters)
    assert (error["Code"], error["Status"]) == (validation(service), 400)
    assert words in error["Message"]
    if service != EC2:
        assert error["Message"].startswith("1 validation error detected: Value ")


@pytest.mark.parametrize("service", [QUERY, *JSON])
def test_constraints_of_maps_are_enforced(client, service):
    for labels in ({"abc": "1", "abd": "2", "abe": "3"}, {"AB": "1"}):
        assert refused(client(service).check, Name="abcd", Labels=labels)["Code"] == validation(service)
    assert plain(client(service).check(Name="abcd", Labels={"abc": "1", "abd": "2"})) == GOOD


@pytest.mark.parametrize("service", JSON)
def test_empty_lists_break_their_bounds(client, service):
    assert refused(client(service).check, Name="abcd", Items=[])["Code"] == validation(service)


@pytest.mark.parametrize("service", JSON)
def test_of_a_union_there_is_exactly_one_member(client, service):
    for choice in ({}, {"Text": "a", "Number": 1}):
        error = refused(client(service).echo, Choice=choice)
        assert (error["Code"], error["Status"]) == (validation(service), 400)


@pytest.mark.parametrize("service", SERVICES)
def test_values_at_their_bounds_are_accepted(client, service):
    for parameters in (
        {"Name": "abc", "Count": 1, "Size": 0, "Fraction": 0.0, "Data": b"1", "Items": [{"Id": ""}], "Colour": "1st"},
        {"Name": "abcdefgh", "Count": 10, "Size": 2**40, "Fraction": 1.0, "Data": b"1234", "Items": [{"Id": "1"}, {"Id": "2"}]},
    ):
        assert plain(client(service).check(**parameters)) == {"Name": parameters["Name"]}


@pytest.mark.parametrize("service", SERVICES)
def test_a_handler_gets_what_the_authorizer_took_the_request_for(client, service):
    assert plain(client(service).check(Name="alias", Count=2)) == {"Name": "meant"}


@pytest.mark.parametrize("service", SERVICES)
def test_required_members_are_required(client, service):
    code = "MissingParameter" if service == EC2 else validation(service)
    for parameters, name in (({}, "ame"), (GOOD | {"Items": [{"Count": 1}]}, "d")):
        error = refused(client(service).check, **parameters)
        assert (error["Code"], error["Status"]) == (code, 400)
        assert re.search(rf"{name}\b", error["Message"])


@pytest.mark.parametrize("service", SERVICES)
@pytest.mark.parametrize(
    "parameters",
    [{"Number": "many"}, {"Number": 2**31}, {"Number": "1.5"}, {"Big": 2**63}, {"Flag": "perhaps"}, {"Ratio": "much"}, {"Ratio": "inf"}, {"When": "yesterday"}],
    ids=str,
)
def test_values_of_another_type_are_refused(service, port, parameters):
    """boto3 does not send these: what it would send instead is written by hand."""
    (name, value), = parameters.items()
    if service in XML:
        version = {EC2: "2026-01-01", QUERY: "2026-01-02"}[service]
        answer = send(port, service, f"Action=Echo&Version={version}&{name}={value}")
        code = "InvalidParameterValue"
    else:
        answer = send(port, service, json.dumps(parameters), "Echo")
        code = "SerializationException"
    assert (answer.status, answer.code) == (400, code), answer.body


@pytest.mark.parametrize("service", SERVICES)
def test_what_is_not_offered_says_so(client, service):
    code = "UnsupportedOperation" if service in XML else "UnsupportedOperationException"
    error = refused(client(service).unoffered)
    assert (error["Code"], error["Status"]) == (code, 400) and "Unoffered" in error["Message"]
    error = refused(client(service).once, Never="x")
    assert (error["Code"], error["Status"]) == (code, 400) and "ever" in error["Message"]
    assert client(service).once(Always=True)["Token"]
    assert refused(client(service).once, Always=False)["Code"] == code


# --- requests by hand -------------------------------------------------------------------------------------------------------


class Answer:
    def __init__(self, response: http.client.HTTPResponse):
        self.status, self.body = response.status, response.read()
        self.headers = {name.lower(): value for name, value in response.getheaders()}

    @property
    def code(self) -> str:
        if self.body.startswith(b"<"):
            return next(e.text for e in ElementTree.fromstring(self.body).iter() if e.tag.rpartition("}")[2] == "Code")
        return json.loads(self.body)["__type"]


TYPES = {EC2: "application/x-www-form-urlencoded", QUERY: "application/x-www-form-urlencoded", JSON10: "application/x-amz-json-1.0", JSON11: "application/x-amz-json-1.1", REST: "application/json"}
TARGETS = {JSON10: "EchoJson10_20260101", JSON11: "EchoJson11"}


def sign(request: AWSRequest, service: str, key: str = KEY, secret: str = SECRET, token: str | None = None, region: str = REGION, offset=datetime.timedelta()) -> None:
    at = datetime.datetime.now(datetime.UTC) + offset
    with mock.patch.object(botocore.auth, "get_current_datetime", lambda *_, **__: at.replace(tzinfo=None)):
        botocore.auth.SigV4Auth(Credentials(key, secret, token), service, region).add_auth(request)


def send(port: int, service: str, body: str | bytes, operation: str = "Nothing", *, headers: dict | None = None, change=None, signed=True, **options) -> Answer:
    """A request for a service, signed as the options say, then changed."""
    path = f"/{operation.lower()}" if service == REST else "/"
    headers = {"Content-Type": TYPES[service]} | ({"X-Amz-Target": f"{TARGETS[service]}.{operation}"} if service in TARGETS else {}) | (headers or {})
    request = AWSRequest("POST", f"http://127.0.0.1:{port}{path}", headers=headers, data=body)
    if signed:
        sign(request, service, **options)
    headers = dict(request.headers.items())
    if change:
        change(headers)
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request("POST", path, body, headers)
        return Answer(connection.getresponse())
    finally:
        connection.close()


def minimal(service: str) -> tuple[str, str]:
    """Body and operation of the least request."""
    if service == EC2:
        return "Action=Echo&Version=2026-01-01", "Echo"
    return ("Action=Echo&Version=2026-01-02" if service == QUERY else "{}"), "Echo"


def later(**difference):
    return {"offset": datetime.timedelta(**difference)}


def drop(*names):
    return {"change": lambda headers: [headers.pop(name) for name in names]}


def replace(old: str, new: str):
    return {"change": lambda headers: headers.update(Authorization=re.sub(old, new, headers["Authorization"]))}


# How each protocol answers (status, code): ec2, query, json, rest-json. "Common Errors" of the API references.
UNKNOWN_KEY = ((401, "AuthFailure"), (403, "InvalidClientTokenId"), (400, "UnrecognizedClientException"), (403, "UnrecognizedClientException"))
MISMATCH = ((401, "AuthFailure"), (403, "SignatureDoesNotMatch"), (400, "InvalidSignatureException"), (403, "InvalidSignatureException"))
TIME = ((400, "RequestExpired"), *MISMATCH[1:])
MISSING = ((403, "MissingAuthenticationToken"), (403, "MissingAuthenticationToken"), (400, "MissingAuthenticationTokenException"), (403, "MissingAuthenticationTokenException"))
INCOMPLETE = ((400, "IncompleteSignature"), (400, "IncompleteSignature"), (400, "IncompleteSignatureException"), (403, "IncompleteSignatureException"))
EXPIRED_TOKEN = ((400, "RequestExpired"), (403, "ExpiredToken"), (400, "ExpiredTokenException"), (403, "ExpiredTokenException"))
REJECTIONS = {
    "an unknown key": ({"key": "AKIAI44QH8DHBEXAMPLE"}, UNKNOWN_KEY),
    "another secret": ({"secret": "wrong"}, MISMATCH),
    "another region": ({"region": "mars-north-1"}, MISMATCH),
    "a changed signature": (replace(r"Signature=\w", "Signature=x"), MISMATCH),
    "no signature bytes": (replace(r"Signature=\w+", "Signature=00"), MISMATCH),
    "another scope's day": (replace(r"/\d{8}/", "/20150830/"), MISMATCH),
    "a clock behind": (later(minutes=-16), TIME),
    "a clock ahead": (later(minutes=16), TIME),
    "no signature": ({"signed": False}, MISSING),
    "no credential": (replace("Credential=[^,]+, ", ""), INCOMPLETE),
    "no signed headers": (replace("SignedHeaders=[^,]+, ", ""), INCOMPLETE),
    "no signature value": (replace(", Signature=.*", ""), INCOMPLETE),
    "no date": (drop("X-Amz-Date"), INCOMPLETE),
    "half a credential": (replace("/aws4_request", ""), INCOMPLETE),
    "another algorithm": (replace("AWS4-HMAC-SHA256", "AWS4-ECDSA-P256-SHA256"), INCOMPLETE),
    "host not signed": (replace("SignedHeaders=.*?,", "SignedHeaders=x-amz-date,"), INCOMPLETE),
    "an unsigned header": ({"change": lambda headers: headers.update({"X-Amz-Other": "x"})}, MISMATCH),
    "no session token": ({"key": TEMPORARY}, UNKNOWN_KEY),
    "another session token": ({"key": TEMPORARY, "token": "other"}, UNKNOWN_KEY),
    "a session token too many": ({"token": TOKEN}, UNKNOWN_KEY),
    "an expired session token": ({"key": EXPIRED, "token": TOKEN}, EXPIRED_TOKEN),
}


@pytest.mark.parametrize("service", SERVICES)
@pytest.mark.parametrize("case", REJECTIONS)
def test_signatures_that_are_refused(port, service, case):
    options, expected = REJECTIONS[case]
    body, operation = minimal(service)
    answer = send(port, service, body, operation, **options)
    place = {EC2: 0, QUERY: 1, REST: 3}.get(service, 2)
    assert (answer.status, answer.code) == expected[place], answer.body
    check_form(service, answer)


def check_form(service: str, answer: Answer) -> None:
    """Every answer is of its protocol's type and form, and has a request id."""
    request_id = answer.headers["x-amzn-requestid"]
    assert UUID.fullmatch(request_id)
    if service in XML:
        assert answer.headers["content-type"] == "text/xml;charset=UTF-8"
        root = ElementTree.fromstring(answer.body)
        tag = "RequestID" if service == EC2 else "RequestId"
        assert root.tag.rpartition("}")[2] == ("Response" if service == EC2 else "ErrorResponse")
        if service == QUERY:
            assert root.tag.startswith("{http://echo.example/query/2026-01-02/}")
        assert [e.text for e in root.iter() if e.tag.rpartition("}")[2] == tag] == [request_id]
    else:
        assert answer.headers["content-type"] == TYPES[service]
        assert answer.headers["x-amzn-errortype"] == answer.code
        assert json.loads(answer.body)["message"]


@pytest.mark.parametrize("service", SERVICES)
def test_temporary_credentials_are_accepted(client, service):
    assert plain(client(service, key=TEMPORARY, token=TOKEN).echo(Text="x"))["Text"] == "x"


@pytest.mark.parametrize("service", SERVICES)
def test_a_least_request_is_accepted(port, service):
    body, operation = minimal(service)
    answer = send(port, service, body, operation)
    assert answer.status == 200, answer.body
    assert answer.headers["content-type"] == ("text/xml;charset=UTF-8" if service in XML else TYPES[service])


@pytest.mark.parametrize("service", SERVICES)
def test_operations_that_do_not_exist(port, service):
    body, _ = minimal(service)
    answer = send(port, service, body.replace("Echo", "Unicorn"), "Unicorn")
    expected = (400, "InvalidAction") if service in XML else (404 if service == REST else 400, "UnknownOperationException")
    assert (answer.status, answer.code) == expected
    check_form(service, answer)


@pytest.mark.parametrize("target", ["", "Echo", ".Echo", "Other.Echo", "EchoJson11", "EchoJson11.", "EchoJson11.Echo.Echo", "EchoJson11.echo", "EchoJson11Echo"])
def test_targets_that_do_not_exist(port, target):
    answer = send(port, JSON11, "{}", headers={"X-Amz-Target": target})
    assert (answer.status, answer.code) == (400, "UnknownOperationException")


@pytest.mark.parametrize("service", XML)
@pytest.mark.parametrize(
    "parameters, code",
    [
        ("Unicorn=1", "UnknownParameter"),
        ("Text.1=a", "UnknownParameter"),
        ("Inner=x", "UnknownParameter"),
        ("Inner.Unicorn=x", "UnknownParameter"),
        ("X-Amz-Unicorn=1", "UnknownParameter"),
        ("Text=a&Text=b", "MalformedQueryString"),
        ("Action=Check", "MalformedQueryString"),
        ("Version=2026-01-01", "MalformedQueryString"),
        ("Text=%FF", "MalformedQueryString"),
        ("Text" + ".a" * 40 + "=1", "MalformedQueryString"),
        ("Bytes=%21", "InvalidParameterValue"),
    ],
)
def test_parameters_that_are_refused(port, service, parameters, code):
    body, operation = minimal(service)
    answer = send(port, service, f"{body}&{parameters}", operation)
    assert (answer.status, answer.code) == (400, code)
    check_form(service, answer)


@pytest.mark.parametrize("service, parameters", [(EC2, "AnotherName=1"), (EC2, "Another=ok"), (QUERY, "other=ok"), (QUERY, "Renamed=no")])
def test_only_the_names_of_the_wire_are_known(port, service, parameters):
    body, operation = minimal(service)
    answer = send(port, service, f"{body}&{parameters}", operation)
    assert answer.status == (200 if parameters.endswith("ok") else 400)


@pytest.mark.parametrize("service, list_", [(EC2, "Texts"), (QUERY, "Texts.member")])
@pytest.mark.parametrize("index, status", [("1", 200), ("7", 200), ("999999999", 200), ("4294967295", 200), ("4294967296", 400), ("01", 400), ("-1", 400), ("", 400), ("x", 400)])
def test_indices(port, service, list_, index, status):
    body, operation = minimal(service)
    assert send(port, service, f"{body}&{list_}.{index}=a", operation).status == status


@pytest.mark.parametrize("service", XML)
def test_the_version_is_checked(port, service):
    for version in ("2099-01-01", "yesterday", ""):
        answer = send(port, service, f"Action=Echo&Version={version}")
        assert (answer.status, answer.code) == (400, "NoSuchVersion")


@pytest.mark.parametrize("service", JSON)
@pytest.mark.parametrize("body", ["{", "[]", "1", '"x"', "{}}", '{"Text": 1}', '{"Texts": "a"}', '{"Texts": [null]}', '{"Inner": []}', '{"Bytes": "%"}', '{"Text": "\\ud800"}', b'{"Text": "\xff"}', "<xml/>", "[" * 5000, '{"Inner":' * 5000, '{"Free":' + "[" * 5000, '{"Unicorn":' + "[" * 5000])
def test_bodies_that_cannot_be_read(port, service, body):
    answer = send(port, service, body, "Echo")
    assert (answer.status, answer.code) == (400, "SerializationException")
    check_form(service, answer)


@pytest.mark.parametrize("service", JSON)
def test_a_small_body_cannot_stand_for_a_large_request(port, service):
    """Three bytes stand for a structure; a body's length alone does not bound the memory that it takes."""
    for body in ('{"Inners":[' + "{}," * 2_000_000 + "{}]}", '{"Free":[' + "0," * 3_000_000 + "0]}"):
        answer = send(port, service, body, "Echo")
        assert (answer.status, answer.code) == (400, "SerializationException")


@pytest.mark.parametrize("service", JSON)
def test_members_that_nobody_knows_are_skipped_and_null_is_absent(port, service):
    answer = send(port, service, '{"Unicorn": {"a": [1]}, "Text": "x", "Number": null, "Inner": null}', "Echo")
    assert answer.status == 200
    body = json.loads(answer.body)
    assert body["Text"] == "x" and "Number" not in body and "Inner" not in body


@pytest.mark.parametrize("service", SERVICES)
def test_bodies_beyond_the_limit_are_refused(port, service):
    """Before they are sent, where the client waits to be asked for them; it is the form of the protocol, too."""
    body, operation = minimal(service)
    request = AWSRequest("POST", f"http://127.0.0.1:{port}/", headers={"Content-Type": TYPES[service]}, data=body)
    sign(request, service)
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.putrequest("POST", "/")
        for name, value in (dict(request.headers.items()) | {"Content-Length": str(9 << 20), "Expect": "100-continue"}).items():
            connection.putheader(name, value)
        connection.endheaders()
        answer = Answer(connection.getresponse())
    finally:
        connection.close()
    assert (answer.status, answer.code) == (413, "RequestEntityTooLarge")
    check_form(service, answer)


@pytest.mark.parametrize("service", SERVICES)
def test_bodies_in_chunks(port, service):
    """They are put together, up to the limit."""
    body, operation = minimal(service)
    path = "/echo" if service == REST else "/"
    headers = {"Content-Type": TYPES[service]} | ({"X-Amz-Target": f"{TARGETS[service]}.Echo"} if service in TARGETS else {})

    def post(pieces) -> Answer:
        request = AWSRequest("POST", f"http://127.0.0.1:{port}{path}", headers=headers, data=body)
        sign(request, service)
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        connection.request("POST", path, pieces, dict(request.headers.items()) | {"Transfer-Encoding": "chunked"}, encode_chunked=True)
        return Answer(connection.getresponse())

    answer = post(bytes([byte]) for byte in body.encode())
    assert answer.status == 200, answer.body
    try:
        answer = post(b"x" * 65536 for _ in range(4096))
        assert (answer.status, answer.code) == (413, "RequestEntityTooLarge")
    except ConnectionError:
        pass  # cut off while we were still sending


@pytest.mark.parametrize("service", SERVICES)
@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "PATCH", "UNICORN"])
def test_methods(port, service, method):
    body, _ = minimal(service)
    path = {REST: "/echo"}.get(service, f"/?{body}" if service in XML else "/")
    request = AWSRequest(method, f"http://127.0.0.1:{port}{path}", headers={"X-Amz-Target": f"{TARGETS[service]}.Echo"} if service in TARGETS else {})
    sign(request, service)
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request(method, path, headers=dict(request.headers.items()))
    answer = Answer(connection.getresponse())
    if method == "GET" and service in XML:
        assert answer.status == 200, answer.body
    else:
        expected = (404, "UnknownOperationException") if service == REST else (405, "MethodNotAllowed")
        assert (answer.status, answer.code) == expected
        check_form(service, answer)


@pytest.mark.parametrize("service", [QUERY, EC2])
def test_presigned_requests(port, client, service):
    url = client(service).generate_presigned_url("echo", Params={"Text": "ä +"}, ExpiresIn=60, HttpMethod="GET")
    path = url.partition(f":{port}")[2]

    def get(path: str) -> Answer:
        connection = http.client.HTTPConnection("127.0.0.1", port)
        connection.request("GET", path)
        return Answer(connection.getresponse())

    answer = get(path)
    assert answer.status == 200 and "ä +".encode() in answer.body
    # Which protocol the service speaks decides over the code; the form is the one of its version.
    mismatch = MISMATCH[0 if service == EC2 else 1]
    answer = get(path.replace("Text=", "Text=x"))
    assert (answer.status, answer.code) == mismatch
    answer = get(re.sub("&X-Amz-Signature=.*", "", path))
    assert (answer.status, answer.code) == INCOMPLETE[0]
    check_form(service, answer)


def test_both_json_versions_answer_in_their_own(port):
    for service in (JSON10, JSON11):
        assert send(port, service, "{}", "Echo").headers["content-type"] == TYPES[service]
        assert send(port, service, "{}", "Unicorn").headers["content-type"] == TYPES[service]


def test_a_service_that_does_not_exist(port):
    request = AWSRequest("POST", f"http://127.0.0.1:{port}/", headers={"Content-Type": TYPES[JSON11]}, data="{}")
    sign(request, "unicorns")
    connection = http.client.HTTPConnection("127.0.0.1", port)
    connection.request("POST", "/", "{}", dict(request.headers.items()))
    answer = Answer(connection.getresponse())
    assert (answer.status, answer.code) == (400, "UnsupportedOperationException")
