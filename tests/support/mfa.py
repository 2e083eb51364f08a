"""An authenticator app (RFC 6238)."""

import base64
import hmac
import struct
import time


def code(device: dict, steps: int = 0) -> str:
    """The code of a device that was made, now or so many steps of 30 seconds from now."""
    seed = base64.b32decode(device["Base32StringSeed"])
    digest = hmac.digest(seed, struct.pack(">q", int(time.time()) // 30 + steps), "sha1")
    (number,) = struct.unpack_from(">I", digest, digest[-1] & 15)
    return f"{(number & 0x7FFFFFFF) % 10**6:06}"


def enable(iam, user: str, device: dict) -> None:
    """Makes a device the second factor of a user. The code of the next step is the first that may be used."""
    codes = {"AuthenticationCode1": code(device, -1), "AuthenticationCode2": code(device)}
    iam.enable_mfa_device(UserName=user, SerialNumber=device["SerialNumber"], **codes)
