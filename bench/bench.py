#!/usr/bin/env python3
"""Measures haar, moto's server and MiniStack in one run, and haar's launches against QEMU started by hand.

Run by `./dev bench`, which installs what it takes. Prints the tables and writes them to docs/performance.md.
"""

import argparse
import importlib
import importlib.metadata
import json
import os
import platform
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from load import Endpoint, Server, latency, memory, throughput

ROOT = Path(__file__).resolve().parent.parent
CACHE = Path(os.environ.get("HAAR_CACHE", "/var/cache/haar"))
SIZES = [10, 1_000, 10_000]
# How many instances a populating call asks for; and how many of them the filtered question finds.
BATCH, NEEDLES = 100, 10


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def haar(binary: Path, images: Path) -> Server:
    """haar with the simulated backend and a state folder of its own, whose keys are known before it starts."""
    state = Path(tempfile.mkdtemp(prefix="b-", dir=CACHE))
    endpoint = Endpoint(free_port())
    keys = {
        "account_id": "123456789012",
        "access_key_id": endpoint.access_key,
        "secret_access_key": endpoint.secret_key,
    }
    (state / "credentials.json").write_text(json.dumps(keys))
    shutil.copytree(images, state / "images", copy_function=link)
    command = [str(binary), "serve", "--state-dir", str(state), "--listen", f"127.0.0.1:{endpoint.port}"]
    command += ["--compute", "simulated", "--name", "bench"]
    version = subprocess.run([binary, "--version"], capture_output=True, text=True, check=True).stdout.split()[1]
    return Server("haar", version, command, endpoint, {"HAAR_LOG": "info"})


def link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def ministack() -> Server:
    endpoint = Endpoint(free_port())
    environment = {"GATEWAY_PORT": str(endpoint.port), "BIND_HOST": "127.0.0.1", "LOG_LEVEL": "WARNING"}
    command = [str(Path(sys.executable).with_name("ministack"))]
    return Server("MiniStack", importlib.metadata.version("ministack"), command, endpoint, environment)


def moto() -> Server:
    endpoint = Endpoint(free_port())
    command = [str(Path(sys.executable).with_name("moto_server")), "-H", "127.0.0.1", "-p", str(endpoint.port)]
    return Server("moto", importlib.metadata.version("moto"), command, endpoint)


class Bench:
    def __init__(self, make, sizes: list[int], calls: int):
        """`make` makes a server that has never run."""
        self.make, self.sizes, self.calls = make, sizes, calls
        self.results: dict[str, float] = {}

    def run(self) -> None:
        self.start_up()
        self.commits()
        self.describe()
        self.volumes()

    def server(self) -> Server:
        server = self.make()
        self.name, self.version = server.name, server.version
        return server

    def tell(self, what: str, value: float) -> None:
        self.results[what] = value
        print(f"  {self.name:10} {what:44} {show(what, value)}", flush=True)

    def start_up(self) -> None:
        times, sizes = [], []
        for number in range(5):
            server = self.server()
            times.append(server.start())
            if number == 0:
                time.sleep(2)
                sizes.append(memory(server.process.pid))
            server.stop()
            self.clean(server)
        self.tell("start to first answer", statistics.median(times))
        self.tell("idle memory", sizes[0])

    def clean(self, server: Server) -> None:
        if "--state-dir" in server.command:
            shutil.rmtree(server.command[server.command.index("--state-dir") + 1])

    def launch_request(self, endpoint: Endpoint, image: str, count: int, label: str) -> bytes:
        return endpoint.request(
            "RunInstances",
            ImageId=image,
            InstanceType="t3.nano",
            MinCount=count,
            MaxCount=count,
            TagSpecification__1__ResourceType="instance",
            TagSpecification__1__Tag__1__Key="label",
            TagSpecification__1__Tag__1__Value=label,
        )

    def image(self, endpoint: Endpoint) -> str:
        """An image that the server knows."""
        from load import Connection

        parameters = {} if self.name == "haar" else {"MaxResults": 5}
        body = Connection(endpoint.port).send(endpoint.request("DescribeImages", **parameters)).decode()
        return "ami-" + body.partition("<imageId>ami-")[2].partition("<")[0]

    def commits(self) -> None:
        for connections in (1, 8):
            server = self.server()
            server.start()
            image = self.image(server.endpoint)
            requests = [self.launch_request(server.endpoint, image, 1, "one")] * self.calls
            rate = throughput(server.endpoint.port, requests, connections)
            self.tell(f"RunInstances, {connections} client{'s' * (connections > 1)}", rate)
            server.stop()
            self.clean(server)

    def describe(self) -> None:
        from load import Connection

        server = self.server()
        server.start()
        endpoint = server.endpoint
        image = self.image(endpoint)
        connection = Connection(endpoint.port)
        connection.send(self.launch_request(endpoint, image, NEEDLES, "needle"))
        count = NEEDLES
        everything = endpoint.request("DescribeInstances")
        filtered = endpoint.request("DescribeInstances", Filter__1__Name="tag:label", Filter__1__Value__1="needle")
        for size in self.sizes:
            while count < size:
                batch = min(BATCH, size - count)
                connection.send(self.launch_request(endpoint, image, batch, "hay"))
                count += batch
            time.sleep(3 if self.name == "haar" else 0)  # until all have become running
            self.tell(f"DescribeInstances, {size} records", self.ask(endpoint, everything, size))
            self.tell(f"filtered to {NEEDLES} of {size} records", self.ask(endpoint, filtered, NEEDLES))
        self.tell(f"memory with {self.sizes[-1]} records", memory(server.process.pid))
        connection.close()
        server.stop()
        self.clean(server)

    def volumes(self) -> None:
        """Instances with a volume besides their root's."""
        from load import Connection

        server = self.server()
        server.start()
        endpoint, count = server.endpoint, self.sizes[-1]
        connection = Connection(endpoint.port)
        launch = endpoint.request(
            "RunInstances",
            ImageId=self.image(endpoint),
            InstanceType="t3.nano",
            MinCount=BATCH,
            MaxCount=BATCH,
            BlockDeviceMapping__1__DeviceName="/dev/sdf",
            BlockDeviceMapping__1__Ebs__VolumeSize=1,
        )
        begin = time.monotonic()
        for _ in range(count // BATCH):
            connection.send(launch)
        self.tell(f"RunInstances, {count} at {BATCH} a call, 2 volumes each", count / (time.monotonic() - begin))
        time.sleep(3 if self.name == "haar" else 0)  # until all have become running
        attached = endpoint.request("DescribeVolumes", Filter__1__Name="attachment.status", Filter__1__Value__1="attached")
        found = connection.send(attached).count(b"<volumeId>vol-")
        # Each volume is named once more by its attachment. moto gives images that have no root volume none.
        if self.name == "haar" and found != 4 * count:
            raise RuntimeError(f"{self.name} answered {found // 2} of {2 * count} volumes")
        self.tell(f"DescribeVolumes, those of {count} instances", latency(endpoint.port, attached))
        self.tell(f"memory with {count} instances and their volumes", memory(server.process.pid))
        connection.close()
        server.stop()
        self.clean(server)

    def ask(self, endpoint: Endpoint, request: bytes, expected: int) -> float:
        def check(body: bytes) -> None:
            found = body.count(b"<instanceId>i-")
            # moto answers with a few less than it accepted.
            if found != expected and (self.name == "haar" or found < 0.95 * expected):
                raise RuntimeError(f"{self.name} answered {found} of {expected} instances")
            self.results[f"bytes of {expected} records"] = len(body)

        # The signature is made ahead, and is good for a quarter of an hour.
        return latency(endpoint.port, request, check=check)


def least(folder: Path, size: int) -> float:
    """What a call with an answer of this many bytes takes at least, in seconds: its server has the answer ready."""
    program = folder / "canned"
    if not program.exists():
        subprocess.run(["gcc", "-O2", "-o", str(program), str(ROOT / "bench/canned.c")], check=True)
    process = subprocess.Popen([program, str(size)], stdout=subprocess.PIPE, text=True)
    try:
        port = int(process.stdout.readline())
        return latency(port, Endpoint(port).request("DescribeInstances"))
    finally:
        process.kill()
        process.wait()


def show(what: str, value: float) -> str:
    if "memory" in what:
        return f"{value / (1 << 20):.1f} MiB"
    if what.startswith("RunInstances"):
        return f"{value:.0f} /s"
    if value < 0.001:
        return f"{value * 1e6:.0f} µs"
    if value < 1:
        return f"{value * 1e3:.2f} ms" if value < 0.01 else f"{value * 1e3:.0f} ms"
    return f"{value:.2f} s"


def table(benches: list[Bench]) -> list[str]:
    """One line a measurement, and how haar compares to the best of the others."""
    first, others = benches[0], benches[1:]
    head = ["", *(f"{bench.name} {bench.version}" for bench in benches), "haar to the better one"]
    lines = ["| " + " | ".join(head) + " |", "|---" + "|---:" * (len(head) - 1) + "|"]
    for what in first.results:
        if what.startswith("bytes"):
            continue
        values = [bench.results.get(what) for bench in benches]
        cells = [show(what, value) if value is not None else "–" for value in values]
        rivals = [bench.results[what] for bench in others if what in bench.results]
        ratio = "–"
        if rivals:
            more_is_better = what.startswith("RunInstances")
            times = values[0] / max(rivals) if more_is_better else min(rivals) / values[0]
            word = ("faster", "slower") if "memory" not in what else ("smaller", "larger")
            ratio = f"{times:.1f} × {word[0]}" if times >= 1 else f"{1 / times:.1f} × {word[1]}"
        lines.append("| " + " | ".join([what, *cells, ratio]) + " |")
    return lines


def machine() -> str:
    model = next(line.split(": ")[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name"))
    memory_size = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / (1 << 30)
    return f"{os.cpu_count()} × {model}, {memory_size:.0f} GiB, Linux {platform.release().split('-')[0]}, Python {platform.python_version()}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=["api", "boot", "disks"], help="measure only the API, launches or disks")
    parser.add_argument("--no-haar", action="store_true", help="measure only the other emulators")
    parser.add_argument("--sizes", type=lambda text: [int(size) for size in text.split(",")], default=SIZES)
    parser.add_argument("--calls", type=int, default=400, help="how many RunInstances calls to time")
    parser.add_argument("--output", type=Path, default=ROOT / "docs/performance.md")
    arguments = parser.parse_args()

    sections: list[str] = []
    if arguments.only in (None, "api"):
        makers = [ministack, moto]
        if not arguments.no_haar:
            binary, images = Path(os.environ["HAAR_BINARY"]), Path(os.environ["HAAR_IMAGES"])
            makers.insert(0, lambda: haar(binary, images))
        benches = [Bench(make, arguments.sizes, arguments.calls) for make in makers]
        for bench in benches:
            bench.run()
        sections += api_section(benches)
    for name in ("boot", "disks"):
        if arguments.only in (None, name) and not arguments.no_haar:
            sections += importlib.import_module(name).section()
    text = "\n".join(sections)
    print("\n" + text)
    complete = not arguments.only and not arguments.no_haar and arguments.sizes == SIZES
    if complete:
        arguments.output.write_text(document(text))
        print(f"\nwritten to {arguments.output}")


def api_section(benches: list[Bench]) -> list[str]:
    bytes_ = {bench.name: bench.results.get(f"bytes of {bench.sizes[-1]} records", 0) / 1e6 for bench in benches}
    sizes = ", ".join(f"{name} {size:.1f} MB" for name, size in bytes_.items())
    return [
        "## The API",
        "",
        *table(benches),
        "",
        f"The answer with {benches[0].sizes[-1]} records has: {sizes}.",
        "",
        *floor(benches[0]),
    ]


def floor(bench: Bench) -> list[str]:
    """How DescribeInstances compares to a server that sends as many bytes without any work."""
    lines = []
    with tempfile.TemporaryDirectory() as folder:
        for size in bench.sizes:
            ours, length = bench.results[f"DescribeInstances, {size} records"], int(bench.results[f"bytes of {size} records"])
            ready = least(Path(folder), length)
            lines.append(f"| {size} | {length} | {show('', ours)} | {show('', ready)} | {ours / ready:.1f} |")
    return [
        "A server that has its answer ready sends as many bytes to the same client in one piece, doing nothing else: what client and loopback take.",
        "",
        f"| records | bytes of {bench.name}'s answer | {bench.name} | ready answer | ratio |",
        "|---:|---:|---:|---:|---:|",
        *lines,
        "",
    ]


def document(text: str) -> str:
    return f"""# Performance

Measured by `./dev bench` on {time.strftime("%Y-%m-%d")}: {machine()}.

The client sends requests that were signed ahead over a kept-open connection and reads the answers without parsing them, so
that the server is what is measured; it and the servers share the cores. Latencies are medians of calls one after the other.
haar verifies every signature and has its records on disk before it answers; the others do neither. haar runs with
`--compute simulated` here, so that launches start no machines. Memory is resident memory.

{text}
"""


if __name__ == "__main__":
    main()
