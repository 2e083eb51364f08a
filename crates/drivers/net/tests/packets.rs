//! What a VPC does to packets, seen from guests that are network namespaces of their own behind the driver's taps.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use haar_net::{
    Config, Driver, GroupSpec, InterfaceSpec, Peer, Ports, Protocol, Rule, Transit, VpcSpec, interface_name,
};
use nix::sched::{CloneFlags, setns};

static NEXT: AtomicU32 = AtomicU32::new(1);

/// A driver with a name and a pool of its own; everything goes with it.
struct Bed {
    driver: Driver,
    name: String,
    vpc: VpcSpec,
    namespaces: Vec<String>,
}

fn sh(command: &str) -> bool {
    Command::new("sh").args(["-c", command]).status().expect("sh starts").success()
}

fn id(prefix: &str, n: u32) -> String {
    format!("{prefix}-0{:08x}{n:08x}", std::process::id())
}

fn root() -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        println!("skipped: network namespaces need root");
    }
    root
}

fn any(peer: Peer) -> Rule {
    Rule { protocol: Protocol::All, peer }
}

fn everywhere() -> Peer {
    Peer::Cidr("0.0.0.0/0".parse().unwrap())
}

fn tcp(port: u16, peer: Peer) -> Rule {
    Rule { protocol: Protocol::Tcp(Ports { first: port, last: port }), peer }
}

impl Bed {
    fn new() -> Self {
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("t{}-{n}", std::process::id());
        let pool = format!("198.19.{}.0/24", (std::process::id() + n) % 250);
        let driver = Driver::new(Config { name: name.clone(), public_pool: pool.parse().unwrap() }).unwrap();
        let vpc = VpcSpec {
            id: id("vpc", n),
            cidr: "172.31.0.0/16".parse().unwrap(),
            subnets: vec!["172.31.0.0/20".parse().unwrap()],
            internet_gateway: true,
            interfaces: Vec::new(),
            groups: vec![GroupSpec { id: id("sg", n), ingress: Vec::new(), egress: vec![any(everywhere())] }],
        };
        Self { driver, name, vpc, namespaces: Vec::new() }
    }

    fn group(&self) -> String {
        self.vpc.groups[0].id.clone()
    }

    fn public(&self, n: u32) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(self.driver.host_address()) + 10 + n)
    }

    async fn sync(&self) {
        self.driver.sync(self.vpc.clone()).await.unwrap();
    }

    /// Adds an interface, and a guest with its address behind it; gives back the guest's namespace.
    async fn guest(&mut self, n: u32, public: bool) -> String {
        let interface = InterfaceSpec {
            id: id("eni", NEXT.fetch_add(1, Ordering::Relaxed)),
            mac: [6, 0, 0, 0, 0, u8::try_from(n).unwrap()],
            private_ip: address(n),
            public_ip: public.then(|| self.public(n)),
            foreign_host: None,
            transit: Transit::None,
            groups: vec![self.group()],
            source_dest_check: true,
            bandwidth_mbps: None,
        };
        self.vpc.interfaces.push(interface.clone());
        self.sync().await;
        let guest = format!("{}-guest{n}", self.name);
        assert!(sh(&format!("ip netns add {guest} && ip -n {guest} link set lo up")));
        let outside =
            within(self.driver.namespace(&self.vpc.id), move || open_tap(&interface_name(&interface.id)));
        let inside = within(path(&guest), || open_tap("eth0"));
        let mac = interface.mac.map(|b| format!("{b:02x}")).join(":");
        assert!(sh(&format!(
            "ip -n {guest} link set eth0 address {mac} up && ip -n {guest} address add {}/20 dev eth0 && \
             ip -n {guest} route add default via 172.31.0.1",
            address(n)
        )));
        pump(outside.try_clone().unwrap(), inside.try_clone().unwrap());
        pump(inside, outside);
        self.namespaces.push(guest.clone());
        guest
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        for namespace in &self.namespaces {
            sh(&format!("ip netns delete {namespace}"));
        }
        let driver = self.driver.clone();
        thread::spawn(move || {
            tokio::runtime::Runtime::new().unwrap().block_on(driver.remove_all()).unwrap();
        })
        .join()
        .unwrap();
    }
}

fn address(n: u32) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(Ipv4Addr::new(172, 31, 0, 10)) + n)
}

fn path(namespace: &str) -> PathBuf {
    PathBuf::from("/run/netns").join(namespace)
}

fn within<R: Send + 'static>(path: PathBuf, body: impl FnOnce() -> R + Send + 'static) -> R {
    thread::spawn(move || {
        setns(File::open(path).unwrap(), CloneFlags::CLONE_NEWNET).unwrap();
        body()
    })
    .join()
    .unwrap()
}

/// Opens a tap, as a hypervisor does; it is made when it does not exist.
fn open_tap(name: &str) -> File {
    const TUNSETIFF: libc::c_ulong = 0x4004_54ca;
    let file = File::options().read(true).write(true).open("/dev/net/tun").unwrap();
    let mut request = [0u8; 40];
    request[..name.len()].copy_from_slice(name.as_bytes());
    let flags = i16::try_from(libc::IFF_TAP | libc::IFF_NO_PI).unwrap();
    request[16..18].copy_from_slice(&flags.to_ne_bytes());
    // SAFETY: the request is an ifreq of the kernel's size, name and flags filled in.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), TUNSETIFF, request.as_mut_ptr()) };
    assert_eq!(result, 0, "{name}: {}", std::io::Error::last_os_error());
    file
}

/// Carries frames from one tap to another until one of them goes away.
fn pump(mut from: File, mut to: File) {
    thread::spawn(move || {
        let mut frame = [0u8; 2048];
        while let Ok(length) = from.read(&mut frame) {
            if length == 0 || to.write_all(&frame[..length]).is_err() {
                break;
            }
        }
    });
}

/// Serves one connection after another on a port in a namespace, answering with the caller's address.
fn serve(namespace: &str, port: u16) {
    let listener = within(path(namespace), move || TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).unwrap());
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            thread::spawn(move || {
                let peer = stream.peer_addr().unwrap().ip().to_string();
                let _ = stream.write_all(format!("{peer}\n").as_bytes());
                // Echo, for connections that are to stay open.
                let mut buffer = [0; 64];
                while let Ok(length @ 1..) = stream.read(&mut buffer) {
                    let _ = stream.write_all(&buffer[..length]);
                }
            });
        }
    });
}

/// How long a connection may take that is to come about: a first packet may get lost while a link comes up on a busy host.
const PATIENCE: Duration = Duration::from_secs(20);

/// How long is waited for a connection that is not to come about.
const SHORT: Duration = Duration::from_millis(700);

fn connect(address: Ipv4Addr, port: u16, patience: Duration) -> Option<TcpStream> {
    let stream = TcpStream::connect_timeout(&(address, port).into(), patience).ok()?;
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    Some(stream)
}

/// Who the server says is calling.
fn greeting(stream: &mut TcpStream) -> Option<String> {
    let mut line = Vec::new();
    let mut byte = [0];
    while stream.read(&mut byte).ok()? == 1 && byte[0] != b'\n' {
        line.push(byte[0]);
    }
    Some(String::from_utf8(line).unwrap())
}

/// Who a server says is calling from a namespace; none if it cannot be reached.
fn call(namespace: &str, address: Ipv4Addr, port: u16) -> Option<String> {
    within(path(namespace), move || greeting(&mut connect(address, port, PATIENCE)?))
}

/// Whether a server cannot be reached from a namespace.
fn is_cut_off(namespace: &str, address: Ipv4Addr, port: u16) -> bool {
    within(path(namespace), move || connect(address, port, SHORT).is_none())
}

#[tokio::test(flavor = "multi_thread")]
async fn security_groups_decide_both_ways_and_keep_state() {
    if !root() {
        return;
    }
    let mut bed = Bed::new();
    let (a, b) = (bed.guest(1, false).await, bed.guest(2, false).await);
    serve(&b, 80);
    serve(&b, 81);

    assert!(is_cut_off(&a, address(2), 80), "nothing comes in by default");

    bed.vpc.groups[0].ingress = vec![tcp(80, everywhere())];
    bed.sync().await;
    assert_eq!(call(&a, address(2), 80), Some(address(1).to_string()));
    assert!(is_cut_off(&a, address(2), 81), "another port");

    bed.vpc.groups[0].ingress = vec![tcp(81, Peer::Cidr("10.0.0.0/8".parse().unwrap()))];
    bed.sync().await;
    assert!(is_cut_off(&a, address(2), 81), "another source");

    // The rule that let a connection begin goes away: the connection stays, new ones do not begin.
    bed.vpc.groups[0].ingress = vec![tcp(80, everywhere())];
    bed.sync().await;
    let mut open = within(path(&a), || connect(address(2), 80, PATIENCE)).unwrap();
    assert!(greeting(&mut open).is_some());
    bed.vpc.groups[0].ingress.clear();
    bed.sync().await;
    open.write_all(b"still there?").unwrap();
    let mut answer = [0; 12];
    open.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"still there?");
    assert!(is_cut_off(&a, address(2), 80));

    // Egress: the receiver would take it, the sender may not send it.
    bed.vpc.groups[0].ingress = vec![any(everywhere())];
    bed.vpc.groups[0].egress = vec![tcp(81, everywhere())];
    bed.sync().await;
    assert!(is_cut_off(&a, address(2), 80));
    assert_eq!(call(&a, address(2), 81), Some(address(1).to_string()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rule_can_name_a_group() {
    if !root() {
        return;
    }
    let mut bed = Bed::new();
    let (a, b) = (bed.guest(1, false).await, bed.guest(2, false).await);
    serve(&b, 80);
    let other = id("sg", 0xffff);
    bed.vpc.groups.push(GroupSpec { id: other.clone(), ingress: vec![], egress: vec![any(everywhere())] });
    let own = bed.group();
    bed.vpc.groups[0].ingress = vec![tcp(80, Peer::Group(other.clone()))];
    bed.sync().await;
    assert!(is_cut_off(&a, address(2), 80), "the caller is not in the group");
    bed.vpc.interfaces[0].groups = vec![other];
    bed.sync().await;
    assert_eq!(call(&a, address(2), 80), Some(address(1).to_string()));
    bed.vpc.groups[0].ingress = vec![tcp(80, Peer::Group(own))];
    bed.sync().await;
    assert!(is_cut_off(&a, address(2), 80), "the caller has left the group that the rule names now");
}

#[tokio::test(flavor = "multi_thread")]
async fn public_addresses_reach_in_and_out() {
    if !root() {
        return;
    }
    let mut bed = Bed::new();
    let (a, b) = (bed.guest(1, true).await, bed.guest(2, true).await);
    let inner = bed.guest(3, false).await;
    serve(&a, 80);
    bed.vpc.groups[0].ingress = vec![tcp(80, everywhere())];
    bed.sync().await;
    let (public, host) = (bed.public(1), bed.driver.host_address());
    let from_host =
        tokio::task::spawn_blocking(move || greeting(&mut connect(public, 80, PATIENCE)?)).await.unwrap();
    assert_eq!(from_host, Some(host.to_string()), "the host reaches the public address");
    assert_eq!(
        call(&b, public, 80),
        Some(bed.public(2).to_string()),
        "from public address to public address"
    );
    assert_eq!(call(&inner, address(1), 80), Some(address(3).to_string()), "privately without one");
    assert!(is_cut_off(&inner, public, 80), "without a public address nothing leaves");

    // Beyond the host: a network of its own, which knows nothing of the pool.
    let internet = format!("{}-internet", bed.name);
    let n = NEXT.fetch_add(1, Ordering::Relaxed) % 200;
    let link = format!("ti{}", std::process::id() % 100_000);
    assert!(sh(&format!(
        "ip netns add {internet} && ip link add {link} type veth peer name eth0 netns {internet} && \
         ip address add 203.0.113.{n}/31 dev {link} && ip link set {link} up && ip -n {internet} link set lo up && \
         ip -n {internet} address add 203.0.113.{}/31 dev eth0 && ip -n {internet} link set eth0 up",
        n ^ 1
    )));
    bed.namespaces.push(internet.clone());
    serve(&internet, 80);
    let beyond = Ipv4Addr::new(203, 0, 113, u8::try_from(n ^ 1).unwrap());
    assert_eq!(call(&a, beyond, 80), Some(format!("203.0.113.{n}")), "masqueraded as the host");
    assert!(is_cut_off(&inner, beyond, 80));

    // An address that is taken away stops working at once.
    bed.vpc.interfaces[0].public_ip = None;
    bed.sync().await;
    assert!(is_cut_off(&a, beyond, 80));
    assert!(!sh(&format!("ip route show dev {} | grep -q '{public}'", haar_net::uplink_name(&bed.vpc.id))));
}

#[tokio::test(flavor = "multi_thread")]
async fn spoofed_sources_are_dropped_unless_the_check_is_off() {
    if !root() {
        return;
    }
    let mut bed = Bed::new();
    let (a, b) = (bed.guest(1, false).await, bed.guest(2, false).await);
    bed.vpc.groups[0].ingress = vec![any(everywhere())];
    bed.sync().await;
    let ping = |from: &str| {
        sh(&format!("ip netns exec {a} ping -c 1 -W 1 -I {from} {} >/dev/null 2>&1", address(2)))
    };
    assert!(ping(&address(1).to_string()));
    // The receiver counts what arrives, whether or not the answer finds its way.
    let seen = |want: bool| {
        let counter = format!("ip netns exec {b} nft list table ip count | grep -c 'packets 0 '");
        assert!(sh(&format!(
            "ip netns exec {b} nft 'table ip count\ndelete table ip count\ntable ip count {{\nchain c {{\n\
             type filter hook input priority 0;\nip saddr 172.31.0.99 counter\n}}\n}}'"
        )));
        ping("172.31.0.99");
        let zero = sh(&format!("{counter} >/dev/null"));
        assert_eq!(!zero, want);
    };
    assert!(sh(&format!("ip -n {a} address add 172.31.0.99/32 dev eth0")));
    seen(false);
    bed.vpc.interfaces[0].source_dest_check = false;
    bed.sync().await;
    seen(true);
    bed.vpc.interfaces[0].source_dest_check = true;
    bed.sync().await;
    assert!(sh(&format!(
        "ip -n {a} link set eth0 down && ip -n {a} link set eth0 address 06:00:00:00:00:77 up && ip -n {a} route replace default via 172.31.0.1"
    )));
    assert!(!ping(&address(1).to_string()), "another MAC address");
}

#[tokio::test(flavor = "multi_thread")]
async fn services_of_the_link_are_reached_whatever_the_groups_say() {
    if !root() {
        return;
    }
    let mut bed = Bed::new();
    let a = bed.guest(1, false).await;
    bed.vpc.groups[0].egress.clear();
    bed.sync().await;
    let imds = Ipv4Addr::new(169, 254, 169, 254);
    for port in [80, 81] {
        let listener =
            bed.driver.bind_tcp(&bed.vpc.id, std::net::SocketAddrV4::new(imds, port)).await.unwrap();
        thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                let peer = stream.peer_addr().unwrap().ip();
                let _ = stream.write_all(format!("{peer}\n").as_bytes());
            }
        });
    }
    assert_eq!(call(&a, imds, 80), Some(address(1).to_string()));
    assert!(is_cut_off(&a, imds, 81), "only the service's port");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_answers_for_its_address_while_it_lives() {
    if !root() {
        return;
    }
    let mut bed = Bed::new();
    let a = bed.guest(1, false).await;
    let eni = bed.vpc.interfaces[0].id.clone();
    let answers = || bed.driver.answers_arp(&bed.vpc.id, &eni, address(1));
    assert!(answers().await.unwrap());
    assert!(sh(&format!("ip -n {a} link set eth0 down")));
    assert!(!answers().await.unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_says_of_its_own_address_alone_that_it_has_it() {
    if !root() {
        return;
    }
    let mut bed = Bed::new();
    let a = bed.guest(1, false).await;
    assert!(sh(&format!("ip -n {a} address add {}/20 dev eth0", address(9))));
    // The question for the gateway says who asks.
    let ask = |from: Ipv4Addr| {
        assert!(sh(&format!("ip -n {a} neighbour flush dev eth0")));
        within(path(&a), move || {
            let socket = UdpSocket::bind((from, 0)).unwrap();
            socket.send_to(b"x", (Ipv4Addr::new(172, 31, 0, 1), 9)).unwrap();
        });
        thread::sleep(Duration::from_millis(300));
    };
    let namespace = bed.driver.namespace(&bed.vpc.id);
    let neighbours = || {
        let namespace = namespace.clone();
        let shown = within(namespace, || Command::new("ip").args(["neighbour", "show"]).output().unwrap());
        String::from_utf8(shown.stdout).unwrap()
    };
    ask(address(9));
    assert!(!neighbours().contains(&address(9).to_string()), "{}", neighbours());
    bed.vpc.interfaces[0].source_dest_check = false;
    bed.sync().await;
    ask(address(9));
    assert!(neighbours().contains(&address(9).to_string()), "{}", neighbours());
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_end_with_the_interface() {
    if !root() {
        return;
    }
    let mut bed = Bed::new();
    let (a, b) = (bed.guest(1, false).await, bed.guest(2, false).await);
    let open = |guest: &str, n: u32| {
        within(path(guest), move || {
            let socket = UdpSocket::bind((address(n), 6000)).unwrap();
            socket.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
            socket
        })
    };
    let arrives = |from: &UdpSocket, to: &UdpSocket| {
        from.send_to(b"x", to.local_addr().unwrap()).unwrap();
        to.recv(&mut [0; 8]).is_ok()
    };
    bed.vpc.groups[0].ingress = vec![any(everywhere())];
    bed.sync().await;
    let (here, there) = (open(&a, 1), open(&b, 2));
    assert!(arrives(&here, &there) && arrives(&there, &here));
    bed.vpc.groups[0].ingress.clear();
    bed.sync().await;
    assert!(arrives(&here, &there), "a connection outlives its rule");
    drop(there);
    bed.vpc.interfaces.pop();
    bed.sync().await;
    assert!(sh(&format!("ip netns delete {b}")));
    let b = bed.guest(2, false).await;
    let there = open(&b, 2);
    assert!(!arrives(&here, &there), "who has the address now never had the connection");
    bed.vpc.groups[0].ingress = vec![any(everywhere())];
    bed.sync().await;
    assert!(arrives(&here, &there));
}

#[tokio::test(flavor = "multi_thread")]
async fn bandwidth_is_limited() {
    if !root() {
        return;
    }
    let mut bed = Bed::new();
    let (a, b) = (bed.guest(1, false).await, bed.guest(2, false).await);
    bed.vpc.groups[0].ingress = vec![any(everywhere())];
    bed.sync().await;
    let listener = within(path(&b), || TcpListener::bind((Ipv4Addr::UNSPECIFIED, 90)).unwrap());
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let mut buffer = vec![0; 1 << 16];
            let mut left = 4 << 20;
            while left > 0 {
                match stream.read(&mut buffer) {
                    Ok(length @ 1..) => left -= length,
                    _ => return,
                }
            }
            let _ = stream.write_all(b"done\n");
        }
    });
    let send = || {
        within(path(&a), || {
            let started = Instant::now();
            let mut stream = connect(address(2), 90, PATIENCE).unwrap();
            stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
            stream.write_all(&vec![0; 4 << 20]).unwrap();
            assert_eq!(greeting(&mut stream).as_deref(), Some("done"));
            started.elapsed()
        })
    };
    let free = send();
    bed.vpc.interfaces[1].bandwidth_mbps = Some(16);
    bed.sync().await;
    let limited = send();
    // 32 Mbit at 16 Mbit/s take about two seconds.
    assert!(limited > free * 2 && limited > Duration::from_secs(1), "{free:?} and {limited:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_driver_takes_over_and_nothing_is_left_in_the_end() {
    if !root() {
        return;
    }
    let mut bed = Bed::new();
    let (a, b) = (bed.guest(1, true).await, bed.guest(2, true).await);
    serve(&b, 80);
    bed.vpc.groups[0].ingress = vec![tcp(80, everywhere())];
    bed.sync().await;
    let mut open = within(path(&a), || connect(address(2), 80, PATIENCE)).unwrap();
    greeting(&mut open).unwrap();

    // The daemon is gone; another one is told the same, less one interface that nobody wants any more.
    let public_pool =
        format!("{}/24", Ipv4Addr::from(u32::from(bed.driver.host_address()) - 1)).parse().unwrap();
    bed.driver = Driver::new(Config { name: bed.name.clone(), public_pool }).unwrap();
    bed.sync().await;
    open.write_all(b"x").unwrap();
    open.read_exact(&mut [0]).unwrap();
    assert_eq!(bed.driver.list().await.unwrap(), [bed.vpc.id.clone()]);
    let gone = bed.vpc.interfaces.remove(1);
    bed.driver = Driver::new(Config { name: bed.name.clone(), public_pool }).unwrap();
    bed.sync().await;
    let indexes =
        bed.driver.interface_indexes(&bed.vpc.id, vec![gone.id.clone(), bed.vpc.interfaces[0].id.clone()]);
    assert_eq!(indexes.await.unwrap().keys().collect::<Vec<_>>(), [&bed.vpc.interfaces[0].id]);

    let (name, uplink) = (bed.name.clone(), haar_net::uplink_name(&bed.vpc.id));
    drop(bed);
    assert!(!sh(&format!("ip netns list | grep -q {name}")));
    assert!(!sh(&format!("ip link show {uplink} >/dev/null 2>&1")));
    assert!(!sh(&format!("nft list tables | grep -q {name}")));
}

#[tokio::test]
async fn bad_specifications_change_nothing() {
    if !root() {
        return;
    }
    let mut bed = Bed::new();
    bed.vpc.groups[0].id = "sg-0; flush ruleset".to_owned();
    let error = bed.driver.sync(bed.vpc.clone()).await.unwrap_err();
    assert!(error.to_string().contains("sg-0; flush ruleset"), "{error}");
    assert!(bed.driver.list().await.unwrap().is_empty());
}
