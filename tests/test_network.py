"""The network, proved by packets: what may pass passes, and nothing else does."""

import random
import re
import subprocess
import sys
import time

import pytest
from botocore.exceptions import ClientError
from conftest import open_group
from support.machine import output, wait_for

SERVER = """
import http.server, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = self.client_address[0].encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *arguments):
        pass
http.server.ThreadingHTTPServer(("0.0.0.0", 8000), Handler).serve_forever()
"""


@pytest.fixture(scope="module")
def server_group(ec2) -> str:
    return open_group(ec2, "servers")


@pytest.fixture(scope="module")
def client_group(ec2) -> str:
    return open_group(ec2, "clients")


@pytest.fixture(scope="module")
def server(launch, server_group):
    """A guest that answers on port 8080 with the address it was asked from."""
    guest = launch(SecurityGroupIds=[server_group])
    done = guest.ssh("cat >/root/answer && chmod +x /root/answer", input="#!/bin/sh\necho hello from $(hostname)\n")
    assert done.returncode == 0
    guest.run("setsid nc -ll -p 8080 -e /root/answer >/dev/null 2>&1 & sleep 0.2")
    return guest


@pytest.fixture(scope="module")
def client(launch, client_group):
    return launch(SecurityGroupIds=[client_group])


@pytest.fixture(scope="module")
def internet(launch):
    """A network beyond the host, which knows only the host: a namespace with a web server. Its address."""
    name = f"inet{random.randrange(10000)}"
    for command in (
        f"ip netns add {name}",
        f"ip link add {name} type veth peer name {name}p netns {name}",
        f"ip addr add 203.0.113.1/24 dev {name}",
        f"ip link set {name} up",
        f"ip -n {name} addr add 203.0.113.2/24 dev {name}p",
        f"ip -n {name} link set {name}p up",
        f"ip -n {name} link set lo up",
    ):
        output(*command.split())
    process = subprocess.Popen(["ip", "netns", "exec", name, sys.executable, "-c", SERVER])
    try:
        wait_for(lambda: subprocess.run(["curl", "-s", "-m", "2", "http://203.0.113.2:8000/"], capture_output=True).returncode == 0, 15)
        yield "203.0.113.2"
    finally:
        process.kill()
        process.wait()
        subprocess.run(["ip", "link", "delete", name], check=False)
        subprocess.run(["ip", "netns", "delete", name], check=False)


def port(number: int, protocol: str = "tcp", cidr: str | None = None, group: str | None = None) -> dict:
    permission = {"IpProtocol": protocol, "FromPort": number, "ToPort": number}
    if protocol == "icmp":
        permission |= {"FromPort": -1, "ToPort": -1}
    return permission | ({"UserIdGroupPairs": [{"GroupId": group}]} if group else {"IpRanges": [{"CidrIp": cidr or "0.0.0.0/0"}]})


class allowed:
    """Within it, a group lets something in."""

    def __init__(self, ec2, group: str, *permissions: dict):
        self.ec2, self.group, self.permissions = ec2, group, list(permissions)

    def __enter__(self):
        self.ec2.authorize_security_group_ingress(GroupId=self.group, IpPermissions=self.permissions)

    def __exit__(self, *_):
        self.ec2.revoke_security_group_ingress(GroupId=self.group, IpPermissions=self.permissions)


def reaches(address: str, number: int = 8080) -> bool:
    """Whether the host gets an answer."""
    command = ["socat", "-T2", "-", f"TCP:{address}:{number},connect-timeout=2"]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    return "hello from" in done.stdout


def guest_reaches(guest, address: str, number: int = 8080) -> bool:
    return "hello from" in guest.ssh(f"timeout 4 nc -w 2 {address} {number} </dev/null").stdout


def pings(address: str) -> bool:
    return subprocess.run(["ping", "-c", "1", "-W", "2", address], capture_output=True).returncode == 0


def guest_pings(guest, address: str, options: str = "") -> bool:
    return guest.succeeds(f"ping -c 2 -W 2 {options} {address}")


def test_addresses_come_by_dhcp(client):
    assert f"inet {client.private_ip}/20" in client.run("ip -4 addr show eth0")
    assert re.search(r"^default via 172\.31\.\d+\.1 dev eth0", client.run("ip route"), re.MULTILINE)
    assert client.run("hostname") == "ip-" + client.private_ip.replace(".", "-")
    assert client.run("cat /sys/class/net/eth0/mtu") in ("1500", "9001")


def test_names_resolve(client, server):
    assert "nameserver 172.31.0.2" in client.run("cat /etc/resolv.conf")
    found = server.describe()
    name = found["PrivateDnsName"]
    assert name == f"ip-{server.private_ip.replace('.', '-')}.{server.daemon.region}.compute.internal"
    assert server.private_ip in client.run(f"nslookup {name}")
    # The public name is the private address inside the VPC.
    assert server.private_ip in client.run(f"nslookup {found['PublicDnsName']}")
    assert name in client.run(f"nslookup {server.private_ip}")
    assert not client.succeeds(f"nslookup no-such-host.{server.daemon.region}.compute.internal")


def test_ports_open_and_close_on_a_running_instance_at_once(ec2, server, server_group):
    address = server.public_ip
    assert not reaches(address)
    with allowed(ec2, server_group, port(8080)):
        wait_for(lambda: reaches(address), 5, 0.05)
    wait_for(lambda: not reaches(address), 5, 0.05)


def test_ping_is_a_rule_of_its_own(ec2, server, server_group):
    address = server.public_ip
    assert not pings(address)
    with allowed(ec2, server_group, port(-1, "icmp")):
        wait_for(lambda: pings(address), 10)
        assert not reaches(address), "only ICMP was let in"
    wait_for(lambda: not pings(address), 10)


def test_a_rule_s_range_counts(ec2, server, server_group):
    address = server.public_ip
    with allowed(ec2, server_group, port(8080, cidr="203.0.113.0/24")):
        time.sleep(0.5)
        assert not reaches(address)


def test_a_connection_outlives_its_rule(ec2, server, server_group):
    """Groups are stateful: what is established goes on when the rule is gone, as AWS documents it."""
    server.run("setsid nc -l -p 8081 -e /bin/cat >/dev/null 2>&1 & sleep 0.2")
    rule = allowed(ec2, server_group, port(8081))
    rule.__enter__()
    process = None
    try:
        time.sleep(0.3)
        process = subprocess.Popen(["socat", "-", f"TCP:{server.public_ip}:8081"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        process.stdin.write(b"one\n")
        process.stdin.flush()
        assert process.stdout.readline() == b"one\n"
        rule.__exit__()
        rule = None
        process.stdin.write(b"two\n")
        process.stdin.flush()
        assert process.stdout.readline() == b"two\n"
    finally:
        if rule:
            rule.__exit__()
        if process:
            process.kill()
            process.wait()


def test_members_of_a_group_are_let_in_and_nobody_else(ec2, server, client, server_group, client_group, ssh_group):
    assert not guest_reaches(client, server.private_ip)
    with allowed(ec2, server_group, port(8080, group=client_group)):
        wait_for(lambda: guest_reaches(client, server.private_ip), 10)
        assert not reaches(server.public_ip), "the host is no member"
        # Membership counts at once, too.
        ec2.modify_instance_attribute(InstanceId=client.id, Groups=[ssh_group])
        try:
            wait_for(lambda: not guest_reaches(client, server.private_ip), 10)
        finally:
            ec2.modify_instance_attribute(InstanceId=client.id, Groups=[client_group])
        wait_for(lambda: guest_reaches(client, server.private_ip), 10)
    wait_for(lambda: not guest_reaches(client, server.private_ip), 10)


def test_egress_is_enforced_and_answers_pass(ec2, client, client_group, internet):
    everything = {"IpProtocol": "-1", "IpRanges": [{"CidrIp": "0.0.0.0/0"}]}

    def answered() -> bool:
        return client.http("/", host=internet, port=8000, timeout=3) is not None

    assert answered()
    ec2.revoke_security_group_egress(GroupId=client_group, IpPermissions=[everything])
    try:
        wait_for(lambda: not answered(), 15)
        # A new login from outside: the answers are part of what was let in.
        client.hang_up()
        assert client.run("echo still here") == "still here"
        # Metadata and names are not the groups' matter.
        assert client.http("/latest/meta-data/instance-id")[2].strip() == client.id
        ec2.authorize_security_group_egress(GroupId=client_group, IpPermissions=[port(8000, cidr=f"{internet}/32")])
        wait_for(answered, 15)
        ec2.revoke_security_group_egress(GroupId=client_group, IpPermissions=[port(8000, cidr=f"{internet}/32")])
    finally:
        ec2.authorize_security_group_egress(GroupId=client_group, IpPermissions=[everything])


def test_guests_reach_what_the_host_reaches_and_are_not_seen(client, internet):
    """The network beyond the host has no route back to instances: it answers because it is asked from the host's address."""
    assert client.http("/", host=internet, port=8000)[2].strip() == "203.0.113.1"


def test_guests_reach_each_other_by_public_addresses(ec2, server, client, server_group):
    with allowed(ec2, server_group, port(8080)):
        wait_for(lambda: guest_reaches(client, server.public_ip), 10)


def echoes(guest) -> int:
    """How many echo requests the guest has got."""
    names, values = guest.run("grep ^Icmp: /proc/net/snmp").splitlines()[:2]
    return int(values.split()[names.split().index("InEchos")])


@pytest.mark.parametrize("source", ["10.66.66.66", "172.31.255.77", "198.51.100.9"])
def test_spoofed_sources_are_dropped(ec2, server, client, server_group, source):
    with allowed(ec2, server_group, port(-1, "icmp")):
        wait_for(lambda: guest_pings(client, server.private_ip), 10)
        before = echoes(server)
        client.run(f"ip addr add {source}/32 dev eth0")
        try:
            client.ssh(f"ping -c 3 -W 1 -I {source} {server.private_ip}")
        finally:
            client.run(f"ip addr del {source}/32 dev eth0")
        assert echoes(server) == before, "a packet with a false source arrived"
        assert guest_pings(client, server.private_ip)
        assert echoes(server) > before


def test_a_neighbour_s_address_cannot_be_taken(ec2, server, client, server_group):
    """A guest that takes another's address gets none of its packets, and the other keeps them."""
    with allowed(ec2, server_group, port(8080)):
        wait_for(lambda: reaches(server.public_ip), 10)
        client.run(f"ip addr add {server.private_ip}/32 dev eth0; arping -U -c 3 -w 4 -I eth0 {server.private_ip} || true")
        try:
            assert reaches(server.public_ip)
        finally:
            client.run(f"ip addr del {server.private_ip}/32 dev eth0")


def test_the_host_is_not_open_to_guests(client, daemon):
    """The API listens on the host's loopback, and no address that a guest can reach leads there."""
    for address in ("127.0.0.1", "172.31.0.1", "169.254.169.254"):
        assert client.http("/_haar/health", host=address, port=daemon.port, timeout=2) is None, address


def test_a_chosen_private_address_is_given(launch, ec2, client):
    subnet = client.describe()["SubnetId"]
    [described] = ec2.describe_subnets(SubnetIds=[subnet])["Subnets"]
    wanted = described["CidrBlock"].rsplit(".", 1)[0] + ".200"
    guest = launch.start(InstanceType="t3.nano", SubnetId=subnet, PrivateIpAddress=wanted)
    assert guest.private_ip == wanted
    with pytest.raises(ClientError) as error:
        launch.start(InstanceType="t3.nano", SubnetId=subnet, PrivateIpAddress=wanted)
    assert error.value.response["Error"]["Code"] == "InvalidIPAddress.InUse"
    guest.ec2.terminate_instances(InstanceIds=[guest.id])
    guest.wait_for_state("terminated")


def test_an_instance_without_a_public_address_is_not_reached(launch, ssh_group, ec2, client):
    subnet = client.describe()["SubnetId"]
    guest = launch.start(
        InstanceType="t3.nano",
        NetworkInterfaces=[{"DeviceIndex": 0, "SubnetId": subnet, "Groups": [ssh_group], "AssociatePublicIpAddress": False}],
    )
    found = guest.wait_for_state("running")
    assert "PublicIpAddress" not in found
    # A neighbour reaches it, as its group says.
    wait_for(lambda: client.succeeds(f"timeout 3 nc -w 2 {found['PrivateIpAddress']} 22 </dev/null | grep -q SSH"), 60, 0.5)
    guest.ec2.terminate_instances(InstanceIds=[guest.id])
    guest.wait_for_state("terminated")
