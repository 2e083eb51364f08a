//! The servers as a guest meets them: in a network namespace with the guest behind a link of its own, asked by the
//! programs that guests have. These tests need root, `ip`, `nft`, `udhcpc`, `dig` and `curl`, and say so when they skip.

mod common;

use std::collections::HashMap;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use common::{Guests, PRIVATE_IP, instance, interface};
use haar_guest::{
    CancellationToken, DnsServer, Forwarder, TokenKey, Zone, serve_dhcp, serve_dns, serve_imds,
};
use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::rdata::{A, TXT};
use hickory_proto::rr::{RData, Record, RecordType};
use nix::sched::{CloneFlags, setns};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinHandle;

const GATEWAY: Ipv4Addr = Ipv4Addr::new(172, 31, 16, 1);
const DNS: Ipv4Addr = Ipv4Addr::new(172, 31, 0, 2);
const LINK_LOCAL_DNS: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 253);
const IMDS: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);

/// Whether the tests can run here; says why when they cannot.
fn can_run() -> bool {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("skipped: network namespaces need root");
        return false;
    }
    for tool in ["ip", "nft", "udhcpc", "dig", "curl"] {
        let found = std::env::var_os("PATH")
            .is_some_and(|path| std::env::split_paths(&path).any(|folder| folder.join(tool).exists()));
        if !found {
            eprintln!("skipped: there is no {tool}");
            return false;
        }
    }
    true
}

fn run(program: &str, args: &[&str]) -> Output {
    Command::new(program).args(args).output().unwrap_or_else(|error| panic!("{program}: {error}"))
}

fn must(program: &str, args: &[&str]) -> String {
    let output = run(program, args);
    assert!(output.status.success(), "{program} {args:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// A network namespace, removed with the value.
struct Namespace(String);

impl Namespace {
    fn new(what: &str) -> Self {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("haar-guest-{}-{count}-{what}", std::process::id());
        must("ip", &["netns", "add", &name]);
        let namespace = Self(name);
        namespace.ip("link set lo up");
        namespace
    }

    fn ip(&self, command: &str) {
        let args: Vec<_> = ["-n", &self.0].into_iter().chain(command.split_whitespace()).collect();
        must("ip", &args);
    }

    fn run(&self, command: &[&str]) -> Output {
        run("ip", &[&["netns", "exec", &self.0], command].concat())
    }

    fn must(&self, command: &[&str]) -> String {
        must("ip", &[&["netns", "exec", &self.0], command].concat())
    }

    /// What `make` makes on a thread inside the namespace.
    fn inside<T: Send + 'static>(&self, make: impl FnOnce() -> std::io::Result<T> + Send + 'static) -> T {
        let namespace = fs::File::open(Path::new("/run/netns").join(&self.0)).unwrap();
        let thread = std::thread::spawn(move || {
            setns(namespace, CloneFlags::CLONE_NEWNET)?;
            make()
        });
        thread.join().unwrap().unwrap()
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        run("ip", &["netns", "del", &self.0]);
    }
}

/// A VPC with its three servers and one guest.
struct Vpc {
    namespace: Namespace,
    guest: Namespace,
    guests: Arc<Guests>,
    shutdown: CancellationToken,
    servers: Vec<JoinHandle<()>>,
    files: tempfile::TempDir,
}

impl Vpc {
    fn new(resolvers: &[SocketAddr]) -> Self {
        let (namespace, guest) = (Namespace::new("vpc"), Namespace::new("vm"));
        for address in [GATEWAY, DNS, LINK_LOCAL_DNS, IMDS] {
            namespace.ip(&format!("address add {address}/32 dev lo"));
        }
        let mac = interface().mac;
        namespace.ip(&format!("link add tap0 type veth peer name eth0 address {mac} netns {}", guest.0));
        namespace.ip("link set tap0 up");
        namespace.ip(&format!("route add {PRIVATE_IP}/32 dev tap0"));
        namespace.ip(&format!("neighbour add {PRIVATE_IP} lladdr {mac} dev tap0 nud permanent"));

        let guests = Guests::of(instance());
        let ifindex = namespace.must(&["cat", "/sys/class/net/tap0/ifindex"]).trim().parse().unwrap();
        guests.links.lock().unwrap().insert(ifindex, interface().into());

        let mut vpc = Self {
            namespace,
            guest,
            guests,
            shutdown: CancellationToken::new(),
            servers: Vec::new(),
            files: tempfile::tempdir().unwrap(),
        };
        vpc.serve(resolvers);
        vpc
    }

    fn serve(&mut self, resolvers: &[SocketAddr]) {
        let dhcp = self.namespace.inside(|| UdpSocket::bind("0.0.0.0:67"));
        let imds = self.namespace.inside(|| TcpListener::bind((IMDS, 80)));
        let dns = DnsServer {
            udp: [DNS, LINK_LOCAL_DNS]
                .map(|ip| self.namespace.inside(move || UdpSocket::bind((ip, 53))))
                .into(),
            tcp: [DNS, LINK_LOCAL_DNS]
                .map(|ip| self.namespace.inside(move || TcpListener::bind((ip, 53))))
                .into(),
            zone: Zone { region: interface().region, vpc_cidr: interface().vpc_cidr },
            forwarder: Arc::new(Forwarder::fixed(resolvers)),
        };
        let shutdown = || self.shutdown.clone();
        let dhcp = serve_dhcp(dhcp, self.guests.clone(), shutdown());
        let dns = serve_dns(dns, self.guests.clone(), shutdown());
        let imds = serve_imds(imds, self.guests.clone(), TokenKey::new([1; 32]), shutdown());
        self.servers = vec![
            tokio::spawn(async { dhcp.await.unwrap() }),
            tokio::spawn(async { dns.await.unwrap() }),
            tokio::spawn(async { imds.await.unwrap() }),
        ];
    }

    /// Ends the servers, which must end at once.
    async fn stop(self) {
        self.shutdown.cancel();
        for server in self.servers {
            tokio::time::timeout(Duration::from_secs(2), server)
                .await
                .expect("a server does not end")
                .unwrap();
        }
    }

    /// Gives the guest its address without asking for it.
    fn configure_guest(&self) {
        self.guest.ip(&format!("address add {PRIVATE_IP}/20 dev eth0"));
        self.guest.ip("link set eth0 up");
        self.guest.ip(&format!("route add default via {GATEWAY}"));
    }

    /// The file in which `udhcpc` leaves what it learned at an event.
    fn event(&self, event: &str) -> PathBuf {
        self.files.path().join(event)
    }

    /// Starts `udhcpc` on the guest's interface with a script that configures it and writes down each event.
    fn udhcpc(&self, options: &[&str]) -> Client {
        let script = self.files.path().join("script");
        let text = format!(
            "#!/bin/sh
case $1 in
deconfig) ip link set $interface up ;;
bound) ip address add $ip/$mask dev $interface && ip route add default via $router ;;
esac
env > {0}/$1.tmp && mv {0}/$1.tmp {0}/$1
",
            self.files.path().display()
        );
        fs::write(&script, text).unwrap();
        fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
        let child = Command::new("ip")
            .args(["netns", "exec", &self.guest.0, "udhcpc", "-f", "-i", "eth0", "-t", "3", "-T", "1", "-s"])
            .arg(script)
            .args(options)
            .stderr(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        Client(child)
    }

    /// Waits for an event of `udhcpc` and tells what it learned.
    fn learned(&self, event: &str) -> HashMap<String, String> {
        let deadline = Instant::now() + Duration::from_secs(5);
        loop {
            if let Ok(text) = fs::read_to_string(self.event(event)) {
                return text
                    .lines()
                    .filter_map(|line| line.split_once('='))
                    .map(|(k, v)| (k.into(), v.into()))
                    .collect();
            }
            assert!(Instant::now() < deadline, "no {event}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn dig(&self, args: &[&str]) -> Vec<String> {
        let output = self.guest.must(&[&["dig", "+short", "+tries=1", "+time=4"], args].concat());
        output.lines().map(str::to_owned).collect()
    }
}

/// A running client, ended with the value.
struct Client(Child);

impl Drop for Client {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_configures_itself_by_dhcp() {
    if !can_run() {
        return;
    }
    for options in [&["-q", "-n", "-O", "mtu"][..], &["-q", "-n", "-O", "mtu", "-B"]] {
        let vpc = Vpc::new(&[]);
        let mut client = vpc.udhcpc(options);
        let learned = vpc.learned("bound");
        assert!(client.0.wait().unwrap().success());
        for (name, expected) in [
            ("ip", "172.31.16.5"),
            ("mask", "20"),
            ("broadcast", "172.31.31.255"),
            ("router", "172.31.16.1"),
            ("dns", "172.31.0.2"),
            ("hostname", "ip-172-31-16-5"),
            ("domain", "ec2.internal"),
            ("mtu", "9001"),
            ("lease", "3600"),
            ("serverid", "172.31.16.1"),
        ] {
            assert_eq!(learned.get(name).map(String::as_str), Some(expected), "{name} of {learned:?}");
        }
        // What it learned works.
        let id = vpc.guest.must(&["curl", "-sf", "http://169.254.169.254/latest/meta-data/instance-id"]);
        assert_eq!(id, instance().id);
        vpc.stop().await;
    }
}

/// The client that Debian's own initramfs, cloud-init's EC2 datasource and many distributions use.
#[tokio::test(flavor = "multi_thread")]
async fn dhclient_takes_the_lease() {
    if !can_run() {
        return;
    }
    if run("sh", &["-c", "command -v dhclient"]).stdout.is_empty() {
        eprintln!("skipped: there is no dhclient");
        return;
    }
    let vpc = Vpc::new(&[]);
    let file = |name: &str| vpc.files.path().join(name).to_str().unwrap().to_owned();
    fs::write(file("script"), "#!/bin/sh\n[ $reason != PREINIT ] || ip link set $interface up\n").unwrap();
    fs::set_permissions(file("script"), fs::Permissions::from_mode(0o755)).unwrap();
    fs::write(file("conf"), "request subnet-mask, routers, domain-name, host-name, interface-mtu;\n")
        .unwrap();
    let (conf, leases, pid, script) = (file("conf"), file("leases"), file("pid"), file("script"));
    let arguments = ["-1", "-d", "-cf", &conf, "-lf", &leases, "-pf", &pid, "-sf", &script, "eth0"];
    let client = Command::new("ip")
        .args(["netns", "exec", &vpc.guest.0, "dhclient"])
        .args(arguments)
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let client = Client(client);
    let deadline = Instant::now() + Duration::from_secs(10);
    let lease = loop {
        let lease = fs::read_to_string(file("leases")).unwrap_or_default();
        if lease.ends_with("}\n") {
            break lease;
        }
        assert!(Instant::now() < deadline, "no lease");
        std::thread::sleep(Duration::from_millis(20));
    };
    for line in [
        "fixed-address 172.31.16.5;",
        "option subnet-mask 255.255.240.0;",
        "option routers 172.31.16.1;",
        "option domain-name \"ec2.internal\";",
        "option host-name \"ip-172-31-16-5\";",
        "option interface-mtu 9001;",
        "option dhcp-server-identifier 172.31.16.1;",
    ] {
        assert!(lease.contains(line), "{line} in {lease}");
    }
    drop(client);
    vpc.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lease_is_renewed_by_unicast() {
    if !can_run() {
        return;
    }
    let vpc = Vpc::new(&[]);
    let client = vpc.udhcpc(&[]);
    vpc.learned("bound");
    // `ip netns exec` has become the client.
    kill(Pid::from_raw(client.0.id().try_into().unwrap()), Signal::SIGUSR1).unwrap();
    let learned = vpc.learned("renew");
    assert_eq!(learned["ip"], PRIVATE_IP.to_string());
    drop(client);
    vpc.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn another_hardware_address_gets_no_lease() {
    if !can_run() {
        return;
    }
    let vpc = Vpc::new(&[]);
    vpc.guest.ip("link set eth0 address 02:00:00:00:00:99");
    let mut client = vpc.udhcpc(&["-q", "-n"]);
    assert!(!client.0.wait().unwrap().success());
    assert!(!vpc.event("bound").exists());
    vpc.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn names_resolve_at_both_addresses_by_udp_and_tcp() {
    if !can_run() {
        return;
    }
    let vpc = Vpc::new(&[]);
    vpc.configure_guest();
    for server in [DNS, LINK_LOCAL_DNS].map(|ip| format!("@{ip}")) {
        for transport in ["+notcp", "+tcp"] {
            let dig = |args: &[&str]| vpc.dig(&[&[server.as_str(), transport], args].concat());
            assert_eq!(dig(&["ip-172-31-16-5.ec2.internal"]), ["172.31.16.5"]);
            assert_eq!(dig(&["ec2-198-18-0-5.compute-1.amazonaws.com"]), ["172.31.16.5"]);
            assert_eq!(dig(&["-x", "172.31.16.5"]), ["ip-172-31-16-5.ec2.internal."]);
            assert_eq!(dig(&["ip-172-31-16-9.ec2.internal"]), [""; 0]);
        }
    }
    // Several queries on one connection.
    let two = vpc.dig(&[
        "@172.31.0.2",
        "+tcp",
        "+keepopen",
        "ip-172-31-16-5.ec2.internal",
        "instance-data.ec2.internal",
    ]);
    assert_eq!(two, ["172.31.16.5", "169.254.169.254"]);
    // Without a resolver of the host, the rest cannot be known.
    let output = vpc.guest.must(&["dig", "@172.31.0.2", "example.com"]);
    assert!(output.contains("status: SERVFAIL"), "{output}");
    vpc.stop().await;
}

/// A resolver of the host that knows every name, and for TXT an answer that is too long for UDP.
async fn host_resolver() -> SocketAddr {
    fn answer(query: &[u8]) -> Message {
        let mut answer = Message::from_vec(query).unwrap().into_response();
        let (name, kind) = (answer.queries[0].name.clone(), answer.queries[0].query_type());
        if kind == RecordType::TXT {
            for n in 0..20 {
                let text = TXT::new(vec![format!("{n} {}", "x".repeat(200))]);
                answer.add_answer(Record::from_rdata(name.clone(), 60, RData::TXT(text)));
            }
        } else {
            answer.add_answer(Record::from_rdata(name, 60, RData::A(A([192, 0, 2, 1].into()))));
        }
        answer.metadata.response_code = ResponseCode::NoError;
        answer
    }

    let udp = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let address = udp.local_addr().unwrap();
    let tcp = tokio::net::TcpListener::bind(address).await.unwrap();
    tokio::spawn(async move {
        let mut buffer = [0; 512];
        loop {
            let (length, from) = udp.recv_from(&mut buffer).await.unwrap();
            let whole = answer(&buffer[..length]);
            let whole = if whole.answers.len() > 1 { whole.truncate() } else { whole };
            udp.send_to(&whole.to_vec().unwrap(), from).await.unwrap();
        }
    });
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = tcp.accept().await.unwrap();
            let mut query = vec![0; stream.read_u16().await.unwrap().into()];
            stream.read_exact(&mut query).await.unwrap();
            let answer = answer(&query).to_vec().unwrap();
            stream.write_u16(answer.len().try_into().unwrap()).await.unwrap();
            stream.write_all(&answer).await.unwrap();
        }
    });
    address
}

#[tokio::test(flavor = "multi_thread")]
async fn other_names_are_asked_of_the_host() {
    if !can_run() {
        return;
    }
    let vpc = Vpc::new(&[host_resolver().await]);
    vpc.configure_guest();
    assert_eq!(vpc.dig(&["@172.31.0.2", "example.com"]), ["192.0.2.1"]);
    assert_eq!(vpc.dig(&["@172.31.0.2", "+tcp", "example.com"]), ["192.0.2.1"]);
    // Too long for UDP: the client is told so and comes again by TCP.
    assert_eq!(vpc.dig(&["@172.31.0.2", "example.com", "TXT"]).len(), 20);
    vpc.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_goes_no_farther_than_its_hop_limit() {
    if !can_run() {
        return;
    }
    let vpc = Vpc::new(&[]);
    vpc.configure_guest();
    // A container on the guest, which routes and masquerades for it.
    let container = Namespace::new("ct");
    vpc.guest.ip(&format!("link add br0 type veth peer name eth0 netns {}", container.0));
    vpc.guest.ip("address add 192.168.7.1/24 dev br0");
    vpc.guest.ip("link set br0 up");
    vpc.guest.must(&["sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward"]);
    vpc.guest.must(&[
        "nft",
        "add table ip t; add chain ip t post { type nat hook postrouting priority srcnat; }; \
         add rule ip t post oifname eth0 masquerade",
    ]);
    container.ip("address add 192.168.7.2/24 dev eth0");
    container.ip("link set eth0 up");
    container.ip("route add default via 192.168.7.1");

    let put = |from: &Namespace| {
        let ttl = "X-aws-ec2-metadata-token-ttl-seconds: 60";
        from.run(&[
            "curl",
            "-sf",
            "-m",
            "2",
            "-X",
            "PUT",
            "-H",
            ttl,
            "http://169.254.169.254/latest/api/token",
        ])
    };
    let set_hop_limit = |hop_limit| {
        let mut instance = instance();
        instance.metadata_options.hop_limit = hop_limit;
        vpc.guests.put(instance);
    };

    assert_eq!(put(&vpc.guest).stdout.len(), 56, "the guest itself is one hop away");
    assert_eq!(
        container.must(&["curl", "-sf", "http://169.254.169.254/latest/meta-data/instance-id"]),
        instance().id
    );
    let timed_out = put(&container);
    assert_eq!(timed_out.status.code(), Some(28), "{timed_out:?}");

    set_hop_limit(2);
    let token = put(&container);
    assert_eq!(token.stdout.len(), 56, "{token:?}");
    let token = format!("X-aws-ec2-metadata-token: {}", String::from_utf8(token.stdout).unwrap());
    let id =
        container.must(&["curl", "-sf", "-H", &token, "http://169.254.169.254/latest/meta-data/instance-id"]);
    assert_eq!(id, instance().id);

    set_hop_limit(1);
    assert_eq!(put(&container).status.code(), Some(28));
    vpc.stop().await;
}
