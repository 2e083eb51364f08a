"""STS: temporary credentials, what they may be asked for, and when they end."""

import datetime
import time

import pytest
from botocore import UNSIGNED
from botocore.config import Config
from botocore.exceptions import ClientError
from support.identities import UNCHECKED, User, allow, deny, name, policy, refused, trust, with_credentials
from support.issuer import EcKey, Issuer, RsaKey
from support.machine import wait_for
from support.raw import call


@pytest.fixture(scope="module")
def iam(simulated):
    return simulated.client("iam")


@pytest.fixture(scope="module")
def account(simulated) -> str:
    return simulated.credentials["account_id"]


@pytest.fixture(scope="module")
def user(simulated) -> User:
    """May assume every role."""
    return User(simulated, "caller", allow(["sts:AssumeRole", "sts:TagSession", "sts:SetSourceIdentity", "sts:GetFederationToken"]))


def make_role(iam, document: str, *statements: dict, **settings) -> dict:
    role = iam.create_role(RoleName=name("role"), AssumeRolePolicyDocument=document, **settings)["Role"]
    if statements:
        iam.put_role_policy(RoleName=role["RoleName"], PolicyName="own", PolicyDocument=policy(*statements))
    return role


def assume(user: User, role: dict, **more) -> dict:
    return user.client("sts").assume_role(**({"RoleArn": role["Arn"], "RoleSessionName": "session"} | more))


# --- AssumeRole ---------------------------------------------------------------------------------------------------------


def test_a_role_is_assumed_by_whom_it_trusts(simulated, iam, account, user):
    role = make_role(iam, trust({"AWS": user.arn}), Path="/app/")
    answer = assume(user, role)
    assert answer["AssumedRoleUser"]["Arn"] == f"arn:aws:sts::{account}:assumed-role/{role['RoleName']}/session"
    assert answer["AssumedRoleUser"]["AssumedRoleId"] == f"{role['RoleId']}:session"
    assert "PackedPolicySize" not in answer
    credentials = answer["Credentials"]
    assert credentials["AccessKeyId"].startswith("ASIA")
    left = credentials["Expiration"] - datetime.datetime.now(datetime.UTC)
    assert datetime.timedelta(minutes=58) < left <= datetime.timedelta(hours=1)
    who = with_credentials(simulated, credentials, "sts").get_caller_identity()
    assert (who["Arn"], who["UserId"]) == (answer["AssumedRoleUser"]["Arn"], answer["AssumedRoleUser"]["AssumedRoleId"])
    used = iam.get_role(RoleName=role["RoleName"])["Role"]["RoleLastUsed"]
    assert used["Region"] == simulated.region

    stranger = User(simulated, "stranger", allow("sts:AssumeRole"))
    error = refused(lambda: assume(stranger, role), "AccessDenied")
    assert error["ResponseMetadata"]["HTTPStatusCode"] == 403
    assert f"User: {stranger.arn} is not authorized to perform: sts:AssumeRole" in error["Error"]["Message"]
    missing = role | {"Arn": role["Arn"] + "x"}
    refused(lambda: assume(user, missing), "AccessDenied")
    root = simulated.client("sts")
    refused(lambda: root.assume_role(RoleArn=role["Arn"], RoleSessionName="session"), "AccessDenied")


def test_trusting_the_account_needs_a_permission_of_the_caller(simulated, iam, account):
    role = make_role(iam, trust({"AWS": account}))
    caller = User(simulated)
    refused(lambda: assume(caller, role), "AccessDenied")
    caller.put(allow("sts:AssumeRole", role["Arn"]))
    assume(caller, role)
    caller.put(allow("sts:AssumeRole", role["Arn"]), deny("sts:*"))
    error = refused(lambda: assume(caller, role), "AccessDenied")
    assert "explicit deny" in error["Error"]["Message"]


def test_conditions_of_the_trust_policy_count(simulated, iam, user):
    condition = {"StringEquals": {"sts:ExternalId": "secret-42"}, "StringLike": {"sts:RoleSessionName": "ci-*"}}
    role = make_role(iam, trust({"AWS": user.arn}, Condition=condition))
    good = {"ExternalId": "secret-42", "RoleSessionName": "ci-1"}
    assume(user, role, **good)
    for bad in ({"ExternalId": "secret-43"}, {"RoleSessionName": "other"}):
        refused(lambda bad=bad: assume(user, role, **(good | bad)), "AccessDenied")
    refused(lambda: assume(user, role, RoleSessionName="ci-1"), "AccessDenied")


def test_sessions_are_as_long_as_the_role_allows(iam, user):
    role = make_role(iam, trust({"AWS": user.arn}), MaxSessionDuration=7200)
    until = assume(user, role, DurationSeconds=7200)["Credentials"]["Expiration"]
    assert until > datetime.datetime.now(datetime.UTC) + datetime.timedelta(minutes=118)
    error = refused(lambda: assume(user, role, DurationSeconds=7201), "ValidationError")
    assert "MaxSessionDuration" in error["Error"]["Message"]
    sts = user.client("sts", config=UNCHECKED)
    for bad in ({"DurationSeconds": 899}, {"RoleSessionName": "with space"}, {"RoleSessionName": "x"}, {"RoleArn": "not an arn at all, sorry"}):
        parameters = {"RoleArn": role["Arn"], "RoleSessionName": "session"} | bad
        refused(lambda parameters=parameters: sts.assume_role(**parameters), "ValidationError")


def test_chained_sessions_last_an_hour_at_most(simulated, iam, user, account):
    first = make_role(iam, trust({"AWS": user.arn}), allow("sts:*"))
    second = make_role(iam, trust({"AWS": first["Arn"]}), MaxSessionDuration=43200)
    sts = with_credentials(simulated, assume(user, first)["Credentials"], "sts")
    answer = sts.assume_role(RoleArn=second["Arn"], RoleSessionName="chained", DurationSeconds=3600)
    assert answer["AssumedRoleUser"]["Arn"].endswith(f":assumed-role/{second['RoleName']}/chained")
    refused(lambda: sts.assume_role(RoleArn=second["Arn"], RoleSessionName="chained", DurationSeconds=3601), "ValidationError")
    refused(lambda: sts.get_session_token(), "AccessDenied")


def test_tags_and_source_identity_pass_along_the_chain(simulated, iam, user):
    tagged = trust({"AWS": user.arn}, ["sts:AssumeRole", "sts:TagSession", "sts:SetSourceIdentity"])
    first = make_role(iam, tagged, allow("sts:*"))
    condition = {"StringEquals": {"aws:PrincipalTag/Project": "haar", "aws:SourceIdentity": "alice"}}
    second = make_role(iam, trust({"AWS": first["Arn"]}, ["sts:AssumeRole", "sts:SetSourceIdentity"], Condition=condition))
    tags = [{"Key": "Project", "Value": "haar"}, {"Key": "Stage", "Value": "test"}]
    answer = assume(user, first, Tags=tags, TransitiveTagKeys=["Project"], SourceIdentity="alice")
    assert answer["SourceIdentity"] == "alice" and 0 < answer["PackedPolicySize"] < 100
    sts = with_credentials(simulated, answer["Credentials"], "sts")
    chain = lambda **more: sts.assume_role(RoleArn=second["Arn"], RoleSessionName="chained", **more)
    assert chain()["SourceIdentity"] == "alice"
    refused(lambda: chain(SourceIdentity="mallory"), "AccessDenied")
    refused(lambda: chain(Tags=[{"Key": "PROJECT", "Value": "other"}]), "InvalidParameterValue")
    # Without the tag, or with another source identity, the condition does not hold.
    for change in ({"Tags": tags[1:], "TransitiveTagKeys": []}, {"SourceIdentity": "bob"}):
        settings = {"Tags": tags, "TransitiveTagKeys": ["Project"], "SourceIdentity": "alice"} | change
        other = with_credentials(simulated, assume(user, first, **settings)["Credentials"], "sts")
        refused(lambda other=other: other.assume_role(RoleArn=second["Arn"], RoleSessionName="chained"), "AccessDenied")
    # A role that does not allow tags gets none.
    plain = make_role(iam, trust({"AWS": user.arn}))
    error = refused(lambda: assume(user, plain, Tags=tags), "AccessDenied")
    assert "sts:TagSession" in error["Error"]["Message"]
    refused(lambda: assume(user, first, Tags=tags + [{"Key": "project", "Value": ""}]), "InvalidParameterValue")
    refused(lambda: assume(user, first, Tags=tags, TransitiveTagKeys=["Other"]), "InvalidParameterValue")


def test_session_policies_limit_and_are_limited(simulated, iam, user):
    role = make_role(iam, trust({"AWS": user.arn}), allow("sts:*"))
    target = make_role(iam, trust({"AWS": role["Arn"]}))
    use = lambda answer: with_credentials(simulated, answer["Credentials"], "sts").assume_role(RoleArn=target["Arn"], RoleSessionName="second")
    use(assume(user, role))
    use(assume(user, role, Policy=policy(allow("sts:AssumeRole"))))
    use(assume(user, role, PolicyArns=[{"arn": "arn:aws:iam::aws:policy/AdministratorAccess"}]))
    refused(lambda: use(assume(user, role, Policy=policy(allow("ec2:*")))), "AccessDenied")
    refused(lambda: use(assume(user, role, PolicyArns=[{"arn": "arn:aws:iam::aws:policy/AmazonEC2FullAccess"}])), "AccessDenied")
    refused(lambda: assume(user, role, Policy="{}"), "MalformedPolicyDocument")
    refused(lambda: assume(user, role, Policy=policy(allow("s3:" + "x" * 2000))), "ValidationError")
    refused(lambda: assume(user, role, PolicyArns=[{"arn": "arn:aws:iam::aws:policy/NotThere"}]), "InvalidParameterValue")
    many = [{"arn": f"arn:aws:iam::aws:policy/AmazonEC2FullAccess{i}"} for i in range(11)]
    refused(lambda: assume(user, role, PolicyArns=many), "ValidationError")


def test_sessions_end_with_their_role(simulated, iam, user):
    role = make_role(iam, trust({"AWS": user.arn}))
    sts = with_credentials(simulated, assume(user, role)["Credentials"], "sts")
    sts.get_caller_identity()
    iam.delete_role(RoleName=role["RoleName"])
    refused(sts.get_caller_identity, "InvalidClientTokenId")
    iam.create_role(RoleName=role["RoleName"], AssumeRolePolicyDocument=trust({"AWS": user.arn}))
    refused(sts.get_caller_identity, "InvalidClientTokenId")


def test_tokens_belong_to_their_keys(simulated, iam, user):
    role = make_role(iam, trust({"AWS": user.arn}))
    first, second = (assume(user, role)["Credentials"] for _ in range(2))
    mixed = [
        first | {"SessionToken": second["SessionToken"]},
        first | {"SessionToken": first["SessionToken"][:-4] + "AAAA"},
        first | {"SessionToken": "x"},
        first | {"SessionToken": None},
        first | {"AccessKeyId": user.key["AccessKeyId"], "SecretAccessKey": user.key["SecretAccessKey"]},
    ]
    for credentials in mixed:
        refused(with_credentials(simulated, credentials, "sts").get_caller_identity, "InvalidClientTokenId")
    wrong = first | {"SecretAccessKey": second["SecretAccessKey"]}
    refused(with_credentials(simulated, wrong, "sts").get_caller_identity, "SignatureDoesNotMatch")
    ec2 = with_credentials(simulated, mixed[0], "ec2")
    refused(ec2.describe_regions, "AuthFailure")


def test_credentials_outlive_the_daemon(make_daemon):
    daemon = make_daemon("--compute", "simulated")
    user = User(daemon, "caller", allow("sts:AssumeRole"))
    role = make_role(daemon.client("iam"), trust({"AWS": user.arn}))
    credentials = assume(user, role, DurationSeconds=900)["Credentials"]
    daemon.kill()
    daemon.haar("up", *daemon.flags)
    sts = with_credentials(daemon, credentials, "sts")
    assert sts.get_caller_identity()["Arn"].endswith("/session")
    left = credentials["Expiration"] - datetime.datetime.now(datetime.UTC)
    assert datetime.timedelta(minutes=10) < left <= datetime.timedelta(minutes=15)


# --- GetSessionToken, GetFederationToken, GetAccessKeyInfo ---------------------------------------------------------------


def test_session_tokens_are_the_user_without_iam(simulated, iam, user):
    answer = user.client("sts").get_session_token(DurationSeconds=900)["Credentials"]
    sts = with_credentials(simulated, answer, "sts")
    assert sts.get_caller_identity()["Arn"] == user.arn
    refused(sts.get_session_token, "AccessDenied")
    role = make_role(iam, trust({"AWS": user.arn}))
    sts.assume_role(RoleArn=role["Arn"], RoleSessionName="second")
    # Of the root, an hour at most, and no IAM.
    root = simulated.client("sts").get_session_token(DurationSeconds=129600)["Credentials"]
    assert root["Expiration"] < datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=3601)
    refused(with_credentials(simulated, root, "iam").list_users, "InvalidClientTokenId")
    assert with_credentials(simulated, root, "ec2").describe_regions()["Regions"]
    # A key that is not active any more leaves its sessions alone, a user that is gone does not.
    iam.update_access_key(UserName=user.name, AccessKeyId=user.key["AccessKeyId"], Status="Inactive")
    assert sts.get_caller_identity()["Arn"] == user.arn
    iam.update_access_key(UserName=user.name, AccessKeyId=user.key["AccessKeyId"], Status="Active")
    other = User(simulated)
    session = with_credentials(simulated, other.client("sts").get_session_token()["Credentials"], "sts")
    iam.delete_access_key(UserName=other.name, AccessKeyId=other.key["AccessKeyId"])
    iam.delete_user(UserName=other.name)
    refused(session.get_caller_identity, "InvalidClientTokenId")


def test_federated_users_have_a_name(simulated, account):
    answer = simulated.client("sts").get_federation_token(Name="guest", Policy=policy(allow("ec2:Describe*")))
    assert answer["FederatedUser"] == {"FederatedUserId": f"{account}:guest", "Arn": f"arn:aws:sts::{account}:federated-user/guest"}
    sts = with_credentials(simulated, answer["Credentials"], "sts")
    assert sts.get_caller_identity()["Arn"] == answer["FederatedUser"]["Arn"]
    refused(lambda: sts.get_federation_token(Name="again"), "AccessDenied")
    refused(lambda: sts.assume_role(RoleArn=f"arn:aws:iam::{account}:role/any", RoleSessionName="s1"), "AccessDenied")
    refused(with_credentials(simulated, answer["Credentials"], "iam").list_users, "InvalidClientTokenId", "AccessDenied")
    refused(lambda: simulated.client("sts").get_federation_token(Name="guest", Policy="[]"), "MalformedPolicyDocument")


def test_keys_tell_their_account(simulated, iam, account, user):
    sts = simulated.client("sts")
    role = make_role(iam, trust({"AWS": user.arn}))
    temporary = assume(user, role)["Credentials"]["AccessKeyId"]
    for key in (user.key["AccessKeyId"], temporary, simulated.credentials["access_key_id"]):
        assert sts.get_access_key_info(AccessKeyId=key)["Account"] == account
    refused(lambda: sts.get_access_key_info(AccessKeyId="AKIAIOSFODNN7EXAMPLE"), "ValidationError")


def test_what_is_not_here_says_so(simulated, account):
    sts = simulated.client("sts")
    refused(lambda: sts.get_session_token(SerialNumber="GAHT12345678", TokenCode="123456"), "AccessDenied")
    parameters = {
        "RoleArn": f"arn:aws:iam::{account}:role/r",
        "PrincipalArn": f"arn:aws:iam::{account}:saml-provider/p",
        "SAMLAssertion": "abcd",
    }
    answer = call(simulated, "AssumeRoleWithSAML", parameters, service="sts")
    assert (answer.status, answer.code) == (400, "UnsupportedOperation")
    answer = call(simulated, "AssumeRoot", {"TargetPrincipal": account}, service="sts")
    assert (answer.status, answer.code) == (400, "UnsupportedOperation")


# --- AssumeRoleWithWebIdentity ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def issuer():
    issuer = Issuer()
    issuer.rsa, issuer.ec = RsaKey("r1"), EcKey("e1")
    issuer.keys = [issuer.rsa, issuer.ec]
    yield issuer
    issuer.stop()


@pytest.fixture(scope="module")
def provider(iam, issuer, account) -> str:
    made = iam.create_open_id_connect_provider(Url=issuer.url, ClientIDList=["sts.amazonaws.com"], ThumbprintList=["a" * 40])
    assert made["OpenIDConnectProviderArn"] == f"arn:aws:iam::{account}:oidc-provider/{issuer.host}"
    return made["OpenIDConnectProviderArn"]


@pytest.fixture(scope="module")
def web_role(iam, issuer, provider) -> dict:
    condition = {"StringEquals": {f"{issuer.host}:sub": "system:serviceaccount:default:app", f"{issuer.host}:aud": "sts.amazonaws.com"}}
    actions = ["sts:AssumeRoleWithWebIdentity", "sts:TagSession"]
    return make_role(iam, trust({"Federated": provider}, actions, Condition=condition))


@pytest.fixture(scope="module")
def web(simulated, web_role):
    """Calls AssumeRoleWithWebIdentity without a signature."""
    sts = simulated.client("sts", config=Config(signature_version=UNSIGNED, retries={"max_attempts": 0}))
    return lambda token, **more: sts.assume_role_with_web_identity(
        **({"RoleArn": web_role["Arn"], "RoleSessionName": "pod", "WebIdentityToken": token} | more)
    )


def test_a_token_of_a_known_issuer_becomes_a_role(simulated, web, web_role, issuer, provider):
    for key in (issuer.rsa, issuer.ec):
        answer = web(issuer.token(key))
        assert answer["Provider"] == provider and answer["Audience"] == "sts.amazonaws.com"
        assert answer["SubjectFromWebIdentityToken"] == "system:serviceaccount:default:app"
        who = with_credentials(simulated, answer["Credentials"], "sts").get_caller_identity()
        assert who["Arn"].endswith(f":assumed-role/{web_role['RoleName']}/pod")
    # The keys were asked for once.
    assert issuer.asked == 1


def test_sdks_find_the_token_in_a_file(simulated, web_role, issuer, tmp_path, monkeypatch):
    import boto3

    file = tmp_path / "token"
    file.write_text(issuer.token(issuer.rsa))
    for variable in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/dev/null")
    monkeypatch.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", str(file))
    monkeypatch.setenv("AWS_ROLE_ARN", web_role["Arn"])
    monkeypatch.setenv("AWS_ENDPOINT_URL", simulated.endpoint)
    session = boto3.session.Session(region_name=simulated.region)
    assert web_role["RoleName"] in session.client("sts").get_caller_identity()["Arn"]


def test_bad_tokens_are_refused(web, issuer):
    now, good = int(time.time()), issuer.token(issuer.rsa)
    foreign = RsaKey("r1")
    head, claims, signature = good.split(".")
    for token in (
        issuer.token(foreign),
        issuer.token(issuer.rsa, aud="other"),
        issuer.token(issuer.rsa, aud=None),
        issuer.token(issuer.rsa, sub=None),
        issuer.token(issuer.rsa, exp=None),
        issuer.token(issuer.rsa, iss="https://elsewhere.example.com"),
        issuer.token(issuer.rsa, nbf=now + 3600),
        issuer.token(issuer.rsa, header={"alg": "none"}),
        issuer.token(issuer.rsa, header={"alg": "HS256"}),
        f"{head}.{claims[:-2]}AA.{signature}",
        "not.a.token",
        "nonsense",
    ):
        error = refused(lambda token=token: web(token), "InvalidIdentityToken")
        assert error["ResponseMetadata"]["HTTPStatusCode"] == 400
    refused(lambda: web(issuer.token(issuer.rsa, exp=now - 1)), "ExpiredTokenException")
    refused(lambda: web(issuer.token(issuer.rsa, sub="system:serviceaccount:default:other")), "AccessDenied")
    refused(lambda: web(good, DurationSeconds=3601), "ValidationError")
    refused(lambda: web(good, RoleArn="arn:aws:iam::123456789012:role/elsewhere"), "InvalidIdentityToken")


def test_tokens_may_carry_tags(web, issuer, iam):
    claim = {"https://aws.amazon.com/tags": {"principal_tags": {"Project": ["haar"]}, "transitive_tag_keys": ["Project"]}}
    assert web(issuer.token(issuer.rsa, **claim))["PackedPolicySize"] > 0
    bad = {"https://aws.amazon.com/tags": {"principal_tags": {"Project": ["a", "b"]}}}
    refused(lambda: web(issuer.token(issuer.rsa, **bad)), "InvalidIdentityToken")


def test_keys_of_an_issuer_may_change(web, issuer):
    new, foreign = RsaKey("r2"), issuer.token(RsaKey("r3"))
    web(issuer.token(issuer.rsa))
    issuer.keys = [*issuer.keys, new]
    # What was learnt lately is believed for some seconds, so that tokens that nobody signed do not make the daemon ask again and again.
    asked = issuer.asked
    for _ in range(5):
        refused(lambda: web(foreign), "InvalidIdentityToken")
    assert issuer.asked < asked + 5

    def accepted() -> bool:
        try:
            return bool(web(issuer.token(new)))
        except ClientError:
            return False

    wait_for(accepted, 30, 0.5, "the new key of the issuer is not found")


def test_an_issuer_that_does_not_answer_is_said_to(simulated, iam, web):
    gone = Issuer()
    made = iam.create_open_id_connect_provider(Url=gone.url, ClientIDList=["sts.amazonaws.com"])["OpenIDConnectProviderArn"]
    role = make_role(iam, trust({"Federated": made}, "sts:AssumeRoleWithWebIdentity"))
    key = RsaKey("k")
    gone.keys = [key]
    token = gone.token(key)
    gone.stop()
    refused(lambda: web(token, RoleArn=role["Arn"]), "IDPCommunicationError")


def test_only_operations_without_signature_need_none(simulated):
    unsigned = lambda service: simulated.client(service, config=Config(signature_version=UNSIGNED, retries={"max_attempts": 0}))
    refused(unsigned("sts").get_caller_identity, "MissingAuthenticationToken")
    refused(unsigned("iam").list_users, "MissingAuthenticationToken")
    refused(lambda: unsigned("sts").assume_role_with_saml(RoleArn="arn:aws:iam::123456789012:role/r", PrincipalArn="arn:aws:iam::123456789012:saml-provider/p", SAMLAssertion="abcd"), "MissingAuthenticationToken", "UnsupportedOperation")


def test_providers_live_and_die(iam, account):
    url = f"https://{name('issuer')}.example.com/path"
    arn = iam.create_open_id_connect_provider(Url=url, ClientIDList=["a"], Tags=[{"Key": "k", "Value": "v"}])["OpenIDConnectProviderArn"]
    refused(lambda: iam.create_open_id_connect_provider(Url=url), "EntityAlreadyExists")
    iam.add_client_id_to_open_id_connect_provider(OpenIDConnectProviderArn=arn, ClientID="b")
    iam.remove_client_id_from_open_id_connect_provider(OpenIDConnectProviderArn=arn, ClientID="a")
    iam.update_open_id_connect_provider_thumbprint(OpenIDConnectProviderArn=arn, ThumbprintList=["b" * 40])
    iam.tag_open_id_connect_provider(OpenIDConnectProviderArn=arn, Tags=[{"Key": "l", "Value": "w"}])
    found = iam.get_open_id_connect_provider(OpenIDConnectProviderArn=arn)
    assert (found["Url"], found["ClientIDList"], found["ThumbprintList"]) == (url.removeprefix("https://"), ["b"], ["b" * 40])
    assert len(iam.list_open_id_connect_provider_tags(OpenIDConnectProviderArn=arn)["Tags"]) == 2
    assert {"Arn": arn} in iam.list_open_id_connect_providers()["OpenIDConnectProviderList"]
    iam.delete_open_id_connect_provider(OpenIDConnectProviderArn=arn)
    refused(lambda: iam.get_open_id_connect_provider(OpenIDConnectProviderArn=arn), "NoSuchEntity")
    for bad in ("http://example.com", "ftp://example.com", "https://", "https://a?b"):
        refused(lambda bad=bad: iam.create_open_id_connect_provider(Url=bad), "ValidationError")
    refused(lambda: iam.create_open_id_connect_provider(Url="https://x.example.com", ThumbprintList=["z" * 40]), "InvalidInput")
