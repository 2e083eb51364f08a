"""Key pairs: made, imported, shown, deleted; the keys are real."""

import base64
import hashlib
import subprocess

import pytest
from botocore.exceptions import ClientError
from support.errors import code


@pytest.fixture
def pair(sim):
    """A function that makes a key pair, deleted afterwards."""
    names = []

    def make(name: str, **parameters) -> dict:
        names.append(name)
        return sim.create_key_pair(KeyName=name, **parameters)

    yield make
    for name in names:
        sim.delete_key_pair(KeyName=name)


def write(path, text: str):
    path.touch(mode=0o600)
    path.write_text(text if text.endswith("\n") else text + "\n")
    return path


@pytest.mark.parametrize("type", ["rsa", "ed25519"])
def test_a_pem_is_a_key_that_openssh_reads(pair, tmp_path, sim, type):
    made = pair(f"pem-{type}", KeyType=type)
    assert made["KeyPairId"].startswith("key-")
    file = write(tmp_path / "key.pem", made["KeyMaterial"])
    public = subprocess.run(["ssh-keygen", "-y", "-f", str(file)], capture_output=True, text=True, check=True).stdout
    assert public.startswith("ssh-rsa " if type == "rsa" else "ssh-ed25519 ")
    shown = sim.describe_key_pairs(KeyNames=[f"pem-{type}"], IncludePublicKey=True)["KeyPairs"][0]
    assert shown["KeyType"] == type
    assert shown["PublicKey"].split()[:2] == public.split()[:2]
    assert shown["KeyFingerprint"] == made["KeyFingerprint"]
    if type == "ed25519":
        # The SHA-256 digest of the public key, as OpenSSH prints it.
        digest = hashlib.sha256(base64.b64decode(public.split()[1])).digest()
        assert made["KeyFingerprint"].rstrip("=") == base64.b64encode(digest).decode().rstrip("=")
    else:
        # The SHA-1 digest of the private key in DER-encoded PKCS#8.
        der = subprocess.run(
            ["openssl", "pkcs8", "-in", str(file), "-nocrypt", "-topk8", "-outform", "DER"], capture_output=True, check=True
        ).stdout
        assert made["KeyFingerprint"] == ":".join(f"{byte:02x}" for byte in hashlib.sha1(der).digest())


@pytest.mark.parametrize("type", ["rsa", "ed25519"])
def test_a_ppk_is_a_key_that_putty_reads(pair, tmp_path, sim, type):
    made = pair(f"ppk-{type}", KeyType=type, KeyFormat="ppk")
    file = write(tmp_path / "key.ppk", made["KeyMaterial"])
    public = subprocess.run(["puttygen", str(file), "-L"], capture_output=True, text=True, check=True).stdout
    shown = sim.describe_key_pairs(KeyNames=[f"ppk-{type}"], IncludePublicKey=True)["KeyPairs"][0]
    assert shown["PublicKey"].split()[:2] == public.split()[:2]


def test_rsa_is_the_default(pair):
    assert "RSA PRIVATE KEY" in pair("default")["KeyMaterial"]


@pytest.mark.parametrize("type", ["rsa", "ed25519"])
def test_an_imported_key_is_shown_with_its_fingerprint(sim, tmp_path, type):
    file = tmp_path / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", type, "-N", "", "-C", "me@here", "-f", str(file)], check=True)
    public = (tmp_path / "key.pub").read_text()
    imported = sim.import_key_pair(
        KeyName=f"imported-{type}",
        PublicKeyMaterial=public.encode(),
        TagSpecifications=[{"ResourceType": "key-pair", "Tags": [{"Key": "from", "Value": "test"}]}],
    )
    try:
        assert imported["Tags"] == [{"Key": "from", "Value": "test"}]
        if type == "rsa":
            # The MD5 digest of the public key in DER.
            pem = subprocess.run(["ssh-keygen", "-e", "-m", "PKCS8", "-f", str(file)], capture_output=True, check=True).stdout
            der = base64.b64decode(b"".join(pem.splitlines()[1:-1]))
            assert imported["KeyFingerprint"] == ":".join(f"{byte:02x}" for byte in hashlib.md5(der).digest())
        shown = sim.describe_key_pairs(Filters=[{"Name": "tag:from", "Values": ["test"]}], IncludePublicKey=True)["KeyPairs"]
        assert [pair["KeyName"] for pair in shown] == [f"imported-{type}"]
        assert shown[0]["PublicKey"].split()[1] == public.split()[1]
    finally:
        sim.delete_key_pair(KeyName=f"imported-{type}")


@pytest.mark.parametrize("material", [b"", b"nonsense", b"ssh-rsa AAAA", b"ssh-dss AAAAB3NzaC1kc3M= x", b"\xff\xfe"])
def test_what_is_no_public_key_is_refused(sim, material):
    with pytest.raises(ClientError) as error:
        sim.import_key_pair(KeyName="bad", PublicKeyMaterial=material)
    assert code(error) == "InvalidKey.Format"


def test_names_are_unique_and_deleting_is_idempotent(pair, sim):
    pair("once")
    with pytest.raises(ClientError) as error:
        sim.create_key_pair(KeyName="once")
    assert code(error) == "InvalidKeyPair.Duplicate"
    assert sim.delete_key_pair(KeyName="once")["Return"] is True
    assert sim.delete_key_pair(KeyName="once")["ResponseMetadata"]["HTTPStatusCode"] == 200
    with pytest.raises(ClientError) as error:
        sim.describe_key_pairs(KeyNames=["once"])
    assert code(error) == "InvalidKeyPair.NotFound"


def test_a_pair_can_be_deleted_by_its_identifier(sim):
    made = sim.create_key_pair(KeyName="by-id")
    sim.delete_key_pair(KeyPairId=made["KeyPairId"])
    names = [pair["KeyName"] for pair in sim.describe_key_pairs()["KeyPairs"]]
    assert "by-id" not in names


def test_private_keys_are_not_kept(pair, simulated):
    body = "".join(pair("secret", KeyType="ed25519")["KeyMaterial"].splitlines()[1:-1])
    for file in simulated.state_dir.rglob("*"):
        if file.is_file() and "images" not in file.parts:
            assert body[-60:-10].encode() not in file.read_bytes(), file
