"""A man between two daemons that move a guest: he is shown every message and decides what becomes of it.

Daemons trust each other by the key in an invitation. He puts his own in, so that he can read along; nobody else could."""

import asyncio
import hashlib
import re
import ssl
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import ClassVar

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from cryptography.x509.oid import NameOID


class Cut(Exception):
    """What a hook raises to have all connections cut instead of a message forwarded."""


def fingerprint(certificate: bytes) -> str:
    key = x509.load_der_x509_certificate(certificate).public_key()
    return hashlib.sha256(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).hexdigest()


class Between:
    """Stands before the daemon of an invitation. `seen(step)` is called at each message:

    `offer`, `status`, `accept`, `abandon`      a request, before it is sent on
    `offer answered`, …                         its answer, before it is sent on
    `disks`, `memory`                           a connection of that kind, before its first line is sent on
    `disks flow`, `memory flows`                when a MiB has gone through
    `memory chunk`                              each piece of memory, before it is sent on
    `memory ends`                               the end of the memory, before it is sent on

    Memory goes through at `pace`, in bytes a second. What comes over a channel in `held` goes no further, and nobody is told;
    for `disks answered`, what comes back.
    """

    FLOWS: ClassVar[dict[str, str]] = {"disks": "disks flow", "memory": "memory flows"}

    def __init__(self, invitation: str, folder: Path, seen=lambda step: None, pace: float | None = None):
        host, port, self.token, self.theirs = re.fullmatch(r"haar://(.+):(\d+)/#([0-9a-f]+)\.([0-9a-f]+)\s*", invitation).groups()
        self.target, self.seen, self.pace = (host, int(port)), seen, pace
        self.steps: list[str] = []
        self.held: set[str] = set()
        self.open: set[asyncio.StreamWriter] = set()
        key = Ed25519PrivateKey.generate()
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "between")])
        now = datetime.now(UTC)
        builder = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number(), now - timedelta(1), now + timedelta(1))
        certificate = builder.sign(key, None)
        pem = folder / "between.pem"
        pem.touch(mode=0o600)
        pem.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()) + certificate.public_bytes(Encoding.PEM))
        self.ours = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.ours.load_cert_chain(pem)
        self.ours.set_alpn_protocols(["haar-ask", "haar-carry"])
        self.loop = asyncio.new_event_loop()
        # No memory is held back here.
        self.whole = asyncio.Event()
        self.whole.set()
        threading.Thread(target=self.loop.run_forever, daemon=True).start()
        self.server = self._do(asyncio.start_server(self._one, host, 0, ssl=self.ours))
        self.port = self.server.sockets[0].getsockname()[1]
        self.invitation = f"haar://{host}:{self.port}/#{self.token}.{fingerprint(certificate.public_bytes(Encoding.DER))}"

    def _do(self, work):
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(10)

    def end(self) -> None:
        async def end():
            self.server.close()
            self._cut()

        self._do(end())
        self.loop.call_soon_threadsafe(self.loop.stop)

    def _cut(self) -> None:
        for connection in self.open:
            if not connection.is_closing():
                connection.transport.abort()
        self.open.clear()
        self.whole.set()

    def _pass(self, step: str) -> None:
        # Nothing moves while this is seen.
        self.steps.append(step)
        self.seen(step)

    async def _one(self, reader: asyncio.StreamReader, ours: asyncio.StreamWriter) -> None:
        try:
            self.open.add(ours)
            spoken = ours.get_extra_info("ssl_object").selected_alpn_protocol()
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
            context.set_alpn_protocols([spoken])
            answers, theirs = await asyncio.open_connection(*self.target, ssl=context, server_hostname="haar")
            self.open.add(theirs)
            assert fingerprint(theirs.get_extra_info("ssl_object").getpeercert(binary_form=True)) == self.theirs
            if spoken == "haar-ask":
                await self._asked(reader, ours, answers, theirs)
            else:
                await self._carried(reader, ours, answers, theirs)
            for side in (ours, theirs):
                side.close()
        except (Cut, OSError, ssl.SSLError, EOFError):
            # What breaks off on one side breaks off on the other.
            self._cut()

    async def _asked(self, reader, ours, answers, theirs) -> None:
        request = await message(reader)
        what = request.split(b" ", 2)[1].decode().rsplit("/", 1)[1]
        if what == "accept":
            # What is asked here is about what is not held back here any more.
            await asyncio.wait_for(self.whole.wait(), 20)
        self._pass(what)
        theirs.write(request)
        answer = await message(answers)
        self._pass(f"{what} answered")
        ours.write(answer)

    async def _carried(self, reader, ours, answers, theirs) -> None:
        line = await reader.readuntil(b"\n")
        channel = line.split()[2].decode()
        if channel == "memory":
            self.whole.clear()
        self._pass(channel)
        theirs.write(line)
        there = asyncio.create_task(self._pump(reader, theirs, channel))
        back = asyncio.create_task(self._pump(answers, ours, f"{channel} answered"))
        if channel == "memory":
            await there
            theirs.close()
            await theirs.wait_closed()
            self.whole.set()
        done, others = await asyncio.wait((there, back), return_when=asyncio.FIRST_COMPLETED)
        for other in others:
            other.cancel()
        for one in done:
            one.result()

    async def _pump(self, source: asyncio.StreamReader, target: asyncio.StreamWriter, channel: str) -> None:
        count = 0
        while data := await source.read(1 << 18):
            before, count = count, count + len(data)
            if channel in self.FLOWS and before < 1 << 20 <= count:
                self._pass(self.FLOWS[channel])
            if channel == "memory":
                self.seen("memory chunk")
                if self.pace:
                    await asyncio.sleep(len(data) / self.pace)
            while channel in self.held:
                await asyncio.sleep(0.05)
            target.write(data)
            await target.drain()
        if channel in self.FLOWS:
            self._pass(f"{channel} ends")


async def message(reader: asyncio.StreamReader) -> bytes:
    """One message of HTTP with its body."""
    head = await reader.readuntil(b"\r\n\r\n")
    length = re.search(rb"(?i)content-length: (\d+)", head)
    return head + await reader.readexactly(int(length[1]) if length else 0)
