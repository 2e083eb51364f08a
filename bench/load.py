"""A light HTTP client: requests are signed ahead, answers are read and not parsed, so that the server is what is measured."""

import os
import re
import socket
import statistics
import subprocess
import threading
import time
from dataclasses import dataclass, field
from urllib.parse import urlencode

from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

FORM = "application/x-www-form-urlencoded; charset=utf-8"


@dataclass
class Endpoint:
    port: int
    access_key: str = "AKIAIOSFODNN7EXAMPLE"
    secret_key: str = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY"
    region: str = "us-east-1"

    def request(self, action: str, **parameters) -> bytes:
        """The bytes of a signed request of the EC2 API. In parameter names, `__` stands for a dot."""
        items = [(name.replace("__", "."), str(value)) for name, value in parameters.items()]
        body = urlencode([("Action", action), ("Version", "2016-11-15"), *items]).encode()
        host = f"127.0.0.1:{self.port}"
        request = AWSRequest("POST", f"http://{host}/", headers={"Content-Type": FORM}, data=body)
        SigV4Auth(Credentials(self.access_key, self.secret_key), "ec2", self.region).add_auth(request)
        head = ["POST / HTTP/1.1", f"Host: {host}", f"Content-Length: {len(body)}"]
        head += [f"{name}: {value}" for name, value in request.headers.items()]
        return "\r\n".join(head).encode() + b"\r\n\r\n" + body


class Connection:
    """One connection, kept open as long as the server does."""

    def __init__(self, port: int):
        self.port, self.socket, self.buffer = port, None, bytearray()

    def send(self, request: bytes) -> bytes:
        """The body of the answer, which must be a success."""
        return bytes(self.exchange(request))

    def exchange(self, request: bytes) -> memoryview:
        """The body of the answer, which must be a success, until the next one. It lies in memory that is kept: to have fresh
        memory for an answer of many megabytes takes longer than to receive it."""
        if self.socket is None:
            self.socket = socket.create_connection(("127.0.0.1", self.port), timeout=600)
            self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.sendall(request)
        filled = 0
        while (end := self.buffer.find(b"\r\n\r\n", 0, filled)) < 0:
            filled += self.receive(filled)
        head, body = self.buffer[:end].decode("latin-1").lower(), end + 4
        length = re.search(r"\r\ncontent-length: *(\d+)", head)
        if length:
            done = body + int(length[1])
            while filled < done:
                filled += self.receive(filled, done)
        elif "\r\ntransfer-encoding: chunked" in head:
            body, done = 0, self.read_chunks(self.buffer[body:filled])
        else:
            while read := self.receive(filled, may_end=True):
                filled += read
            done = filled
        if "\r\nconnection: close" in head or head.startswith("http/1.0") or not (length or "chunked" in head):
            self.close()
        answer = memoryview(self.buffer)[body:done]
        if not head.startswith(("http/1.1 200", "http/1.0 200")):
            raise RuntimeError(f"{head.splitlines()[0]}: {bytes(answer[:500])!r}")
        return answer

    def receive(self, filled: int, wanted: int = 0, may_end: bool = False) -> int:
        """Appends what there is to the buffer, which is made larger where it is full or smaller than `wanted`."""
        room = max(wanted, filled + (1 << 18))
        if len(self.buffer) < room:
            # A view of the answer before may be alive still: not the same object.
            larger = bytearray(room + room // 8)
            larger[:filled] = memoryview(self.buffer)[:filled]
            self.buffer = larger
        read = self.socket.recv_into(memoryview(self.buffer)[filled:])
        if not read and not may_end:
            raise ConnectionError("cut off")
        return read

    def read_chunks(self, begun: bytearray) -> int:
        """Puts a chunked body at the start of the buffer; its length."""
        rest, whole = bytearray(begun), bytearray()
        while True:
            while (end := rest.find(b"\r\n")) < 0:
                rest += self.socket.recv(1 << 20)
            size = int(rest[:end].split(b";")[0], 16)
            while len(rest) < end + 2 + size + 2:
                rest += self.socket.recv(1 << 20)
            whole += rest[end + 2 : end + 2 + size]
            rest = rest[end + 2 + size + 2 :]
            if size == 0:
                self.buffer = whole
                return len(whole)

    def close(self) -> None:
        if self.socket:
            self.socket.close()
            self.socket = None


def latency(port: int, request: bytes, *, seconds: float = 3, check=None) -> float:
    """The median time of one call, in seconds: calls one after the other on one connection, the first not counted unless it
    took so long that warming up cannot matter."""
    connection = Connection(port)
    start = time.perf_counter()
    body = connection.exchange(request)
    first = time.perf_counter() - start
    if check:
        check(bytes(body))
    if first > 5:
        connection.close()
        return first
    times: list[float] = []
    begin = time.perf_counter()
    while time.perf_counter() - begin < seconds or len(times) < 3:
        start = time.perf_counter()
        connection.exchange(request)
        times.append(time.perf_counter() - start)
    connection.close()
    return statistics.median(times)


def throughput(port: int, requests: list[bytes], connections: int) -> float:
    """Calls a second over several connections."""
    queues = [requests[number::connections] for number in range(connections)]
    errors: list[Exception] = []

    def run(queue: list[bytes]) -> None:
        connection = Connection(port)
        try:
            for request in queue:
                connection.send(request)
        except Exception as error:  # noqa: BLE001 - reported below
            errors.append(error)
        finally:
            connection.close()

    threads = [threading.Thread(target=run, args=(queue,)) for queue in queues]
    begin = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return len(requests) / (time.perf_counter() - begin)


def process_tree(pid: int) -> list[int]:
    found = [pid]
    for task in os.listdir(f"/proc/{pid}/task"):
        try:
            with open(f"/proc/{pid}/task/{task}/children") as children:
                for child in children.read().split():
                    found += process_tree(int(child))
        except FileNotFoundError:
            pass  # a thread that has ended meanwhile
    return found


def memory(pid: int) -> int:
    """Resident memory of a process and those below it, in bytes."""
    total = 0
    for each in process_tree(pid):
        with open(f"/proc/{each}/status") as status:
            total += next(int(line.split()[1]) for line in status if line.startswith("VmRSS")) << 10
    return total


@dataclass
class Server:
    """A server under measurement."""

    name: str
    version: str
    command: list[str]
    endpoint: Endpoint
    environment: dict[str, str] = field(default_factory=dict)
    process: subprocess.Popen | None = None

    def start(self) -> float:
        """Starts it; returns the time until the first answer to a call of the EC2 API, in seconds."""
        request = self.endpoint.request("DescribeRegions")
        begin = time.perf_counter()
        self.process = subprocess.Popen(
            self.command,
            env=os.environ | self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        while True:
            connection = Connection(self.endpoint.port)
            try:
                connection.send(request)
                return time.perf_counter() - begin
            except OSError:
                if self.process.poll() is not None:
                    raise RuntimeError(f"{self.name} ended with {self.process.returncode}") from None
                if time.perf_counter() - begin > 60:
                    raise RuntimeError(f"{self.name} does not answer") from None
                time.sleep(0.001)
            finally:
                connection.close()

    def stop(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
