"""An OpenID Connect issuer on this machine, with keys that openssl makes."""

import base64
import json
import subprocess
import tempfile
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import rsa


def b64(data: bytes | dict) -> str:
    if isinstance(data, dict):
        data = json.dumps(data).encode()
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def number(value: int, size: int | None = None) -> str:
    return b64(value.to_bytes(size or (value.bit_length() + 7) // 8, "big"))


class RsaKey:
    """RS256."""

    algorithm = "RS256"

    def __init__(self, key_id: str):
        self.key_id, (self.public, self.private) = key_id, rsa.newkeys(2048)

    def jwk(self) -> dict:
        return {"kty": "RSA", "kid": self.key_id, "use": "sig", "alg": "RS256", "n": number(self.public.n), "e": number(self.public.e)}

    def sign(self, message: bytes) -> bytes:
        return rsa.sign(message, self.private, "SHA-256")


class EcKey:
    """ES256."""

    algorithm = "ES256"

    def __init__(self, key_id: str):
        self.key_id, self.folder = key_id, tempfile.TemporaryDirectory()
        self.file = Path(self.folder.name) / "key.pem"
        self.openssl("ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", str(self.file))
        # The point ends SubjectPublicKeyInfo, uncompressed.
        self.point = self.openssl("ec", "-in", str(self.file), "-pubout", "-outform", "DER")[-64:]

    def openssl(self, *arguments: str, message: bytes | None = None) -> bytes:
        return subprocess.run(["openssl", *arguments], input=message, check=True, capture_output=True).stdout

    def jwk(self) -> dict:
        return {"kty": "EC", "crv": "P-256", "kid": self.key_id, "x": b64(self.point[:32]), "y": b64(self.point[32:])}

    def sign(self, message: bytes) -> bytes:
        der = self.openssl("dgst", "-sha256", "-sign", str(self.file), message=message)
        # SEQUENCE of two INTEGERs.
        numbers, rest = [], der[2:]
        for _ in range(2):
            length = rest[1]
            numbers.append(int.from_bytes(rest[2 : 2 + length], "big"))
            rest = rest[2 + length :]
        return b"".join(value.to_bytes(32, "big") for value in numbers)


class Issuer:
    """Serves its configuration and keys."""

    def __init__(self):
        self.keys = []
        self.asked = 0
        issuer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                documents = {
                    "/id/1/.well-known/openid-configuration": {"issuer": issuer.url, "jwks_uri": issuer.url + "/keys"},
                    "/id/1/keys": {"keys": [key.jwk() for key in issuer.keys]},
                }
                issuer.asked += self.path.endswith("/keys")
                document = documents.get(self.path)
                self.send_response(200 if document else 404)
                self.end_headers()
                self.wfile.write(json.dumps(document).encode())

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.host = f"127.0.0.1:{self.server.server_port}/id/1"
        self.url = f"http://{self.host}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def stop(self):
        self.server.shutdown()
        self.server.server_close()

    def token(self, key, header: dict | None = None, **claims) -> str:
        now = int(time.time())
        claims = {"iss": self.url, "aud": "sts.amazonaws.com", "sub": "system:serviceaccount:default:app", "iat": now, "exp": now + 600} | claims
        claims = {name: value for name, value in claims.items() if value is not None}
        head = {"alg": key.algorithm, "kid": key.key_id, "typ": "JWT"} | (header or {})
        signed = f"{b64(head)}.{b64(claims)}"
        return f"{signed}.{b64(key.sign(signed.encode()))}"
