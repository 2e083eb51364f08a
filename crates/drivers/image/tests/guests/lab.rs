//! A laboratory for guests: a network namespace with a bridge, DHCP, DNS and a metadata service, and QEMU started the way
//! that the program starts it. Nothing of it is left when it is dropped.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use haar_image::Image;
use nix::sched::{CloneFlags, setns};

/// Whether a program can be found.
pub fn installed(program: &str) -> bool {
    std::env::var_os("PATH")
        .is_some_and(|path| std::env::split_paths(&path).any(|dir| dir.join(program).exists()))
}

/// Why guests cannot be tested here, if they cannot.
pub fn obstacle() -> Option<String> {
    if !nix::unistd::geteuid().is_root() {
        return Some("guests need root, for a network namespace".into());
    }
    let programs =
        ["qemu-system-x86_64", "qemu-img", "ip", "ssh", "ssh-keygen", "sftp", "mke2fs", "dpkg-deb"];
    if let Some(missing) = programs.into_iter().find(|program| !installed(program)) {
        return Some(format!("{missing} is not installed"));
    }
    (!Path::new("/dev/net/tun").exists()).then(|| "there is no /dev/net/tun".into())
}

pub fn run(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {}\n{stderr}", output.status);
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn ip(arguments: &str) {
    run(Command::new("ip").args(arguments.split_whitespace()));
}

/// What the metadata service says, path below `/latest/` to content, and what it was asked.
#[derive(Default)]
pub struct Metadata {
    pub content: BTreeMap<String, Vec<u8>>,
    pub requests: Vec<String>,
    /// Answers that replace every other: a status.
    pub refuse: Option<u16>,
}

impl Metadata {
    /// The names below a path, as the service lists them.
    fn children(&self, path: &str) -> Vec<String> {
        let prefix = format!("{}/", path.trim_end_matches('/'));
        let below = self.content.keys().filter_map(|key| key.strip_prefix(&prefix));
        let mut names: Vec<String> = below
            .map(|rest| match rest.split_once('/') {
                // The service lists keys with their comment.
                Some((name, _)) if prefix == "meta-data/public-keys/" => format!("{name}=key"),
                Some((name, _)) => format!("{name}/"),
                None => rest.to_owned(),
            })
            .collect();
        names.dedup();
        names
    }
}

/// A network namespace with servers in it.
pub struct Lab {
    pub dir: tempfile::TempDir,
    pub name: String,
    pub metadata: Arc<Mutex<Metadata>>,
    /// MAC address to the address that DHCP leases.
    pub leases: Arc<Mutex<HashMap<[u8; 6], Ipv4Addr>>>,
    stop: Arc<AtomicBool>,
    servers: Vec<JoinHandle<()>>,
}

pub const TOKEN: &str = "a-token-of-the-service";
pub const HOST: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 1);

impl Lab {
    pub fn new() -> Lab {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("haar-image-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        ip(&format!("netns add {name}"));
        let mut lab = Lab {
            dir: tempfile::tempdir().unwrap(),
            name: name.clone(),
            metadata: Arc::default(),
            leases: Arc::default(),
            stop: Arc::default(),
            servers: Vec::new(),
        };
        ip(&format!("-n {name} link set lo up"));
        ip(&format!("-n {name} link add br0 type bridge forward_delay 0"));
        ip(&format!("-n {name} addr add {HOST}/24 dev br0"));
        ip(&format!("-n {name} addr add 169.254.169.254/32 dev br0"));
        ip(&format!("-n {name} link set br0 up"));
        let (leases, stop) = (lab.leases.clone(), lab.stop.clone());
        let (dhcp, dns, http) = lab.inside(|| {
            let dhcp = UdpSocket::bind(("0.0.0.0", 67)).unwrap();
            dhcp.set_broadcast(true).unwrap();
            nix::sys::socket::setsockopt(&dhcp, nix::sys::socket::sockopt::BindToDevice, &"br0".into())
                .unwrap();
            let dns = UdpSocket::bind((HOST, 53)).unwrap();
            (dhcp, dns, TcpListener::bind(("169.254.169.254", 80)).unwrap())
        });
        let stop_dns = lab.stop.clone();
        lab.servers.push(std::thread::spawn(move || serve_dns(&dns, &stop_dns)));
        lab.servers.push(std::thread::spawn(move || serve_dhcp(&dhcp, &leases, &stop)));
        let (metadata, stop) = (lab.metadata.clone(), lab.stop.clone());
        lab.servers.push(std::thread::spawn(move || serve_metadata(&http, &metadata, &stop)));
        let key = lab.key();
        run(Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-C", "test", "-f"]).arg(&key));
        lab
    }

    pub fn key(&self) -> PathBuf {
        self.dir.path().join("key")
    }

    pub fn public_key(&self) -> Vec<u8> {
        fs::read(self.key().with_extension("pub")).unwrap()
    }

    /// Runs a function on a thread inside the namespace: sockets that it opens stay there.
    fn inside<T: Send>(&self, function: impl FnOnce() -> T + Send) -> T {
        let namespace = File::open(Path::new("/run/netns").join(&self.name)).unwrap();
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                setns(&namespace, CloneFlags::CLONE_NEWNET).unwrap();
                function()
            });
            thread.join().unwrap()
        })
    }

    /// Sets what the metadata service and DHCP say about an instance that has the lab's key.
    pub fn describe(&self, instance_id: &str, addresses: &[Ipv4Addr], user_data: Option<&[u8]>) {
        for (index, address) in addresses.iter().enumerate() {
            self.leases.lock().unwrap().insert(mac(*address, index), *address);
        }
        let mut metadata = self.metadata.lock().unwrap();
        metadata.content.clear();
        let mut set = |path: &str, content: &[u8]| metadata.content.insert(path.into(), content.into());
        set("meta-data/instance-id", instance_id.as_bytes());
        set("meta-data/public-keys/0/openssh-key", &self.public_key());
        set("meta-data/local-hostname", b"guest.test.internal");
        set("meta-data/placement/availability-zone", b"eu-central-1a");
        let document = format!("{{\"instanceId\": \"{instance_id}\", \"region\": \"eu-central-1\"}}");
        set("dynamic/instance-identity/document", document.as_bytes());
        for (mac, address) in self.leases.lock().unwrap().iter() {
            let macs = format!(
                "meta-data/network/interfaces/macs/{}",
                mac.map(|byte| format!("{byte:02x}")).join(":")
            );
            set(&format!("{macs}/device-number"), mac[5].to_string().as_bytes());
            set(&format!("{macs}/local-ipv4s"), address.to_string().as_bytes());
            set(&format!("{macs}/subnet-ipv4-cidr-block"), b"10.99.0.0/24");
        }
        if let Some(user_data) = user_data {
            set("user-data", user_data);
        }
    }

    /// A new copy-on-write disk of an image, of `size` bytes.
    pub fn disk(&self, image: &Image, name: &str, size: u64) -> PathBuf {
        let path = self.dir.path().join(name);
        let mut command = Command::new("qemu-img");
        command.args(["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b"]);
        run(command.arg(image.root_disk()).arg(&path).arg(size.to_string()));
        path
    }

    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name, program]).stdin(Stdio::null());
        command
    }

    /// Runs a command in a guest by SSH; fails at once if the guest does not let the key in.
    pub fn ssh(&self, user: &str, address: Ipv4Addr, script: &str) -> Output {
        let mut command = self.command("ssh");
        for option in [
            "BatchMode=yes",
            "StrictHostKeyChecking=no",
            "UserKnownHostsFile=/dev/null",
            "LogLevel=ERROR",
            "ConnectTimeout=10",
            "IdentitiesOnly=yes",
        ] {
            command.args(["-o", option]);
        }
        command.arg("-i").arg(self.key()).arg(format!("{user}@{address}")).arg(script);
        command.output().unwrap()
    }

    /// Runs a command that must succeed.
    pub fn ssh_ok(&self, user: &str, address: Ipv4Addr, script: &str) -> String {
        let output = self.ssh(user, address, script);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{script}: {}\n{stderr}", output.status);
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }

    /// Waits until a guest answers on the SSH port and returns how long after the start of QEMU that was.
    pub fn wait_ssh(&self, guest: &mut Guest, address: Ipv4Addr, limit: Duration) -> Duration {
        loop {
            let connected = self.inside(|| {
                let address = (address, 22).into();
                let mut stream = std::net::TcpStream::connect_timeout(&address, Duration::from_secs(1))?;
                stream.set_read_timeout(Some(Duration::from_secs(5)))?;
                let mut banner = [0; 4];
                stream.read_exact(&mut banner)?;
                Ok::<_, std::io::Error>(banner == *b"SSH-")
            });
            if connected.is_ok_and(|banner| banner) {
                return guest.started.elapsed();
            }
            let status = guest.child.try_wait().unwrap();
            assert!(status.is_none(), "the guest ended before SSH:\n{}", guest.console());
            assert!(guest.started.elapsed() < limit, "no SSH on {address}:\n{}", guest.console());
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.inside(|| std::net::TcpStream::connect(("169.254.169.254", 80)).ok());
        for server in self.servers.drain(..) {
            let _ = server.join();
        }
        let _ = Command::new("ip").args(["netns", "del", &self.name]).status();
    }
}

/// The MAC address of a network interface of the lab, by the last byte of the address that it gets.
fn mac(address: Ipv4Addr, index: usize) -> [u8; 6] {
    [0x02, 0, 0, 0, address.octets()[3], index as u8]
}

/// How to start a guest.
pub struct Start<'a> {
    pub image: &'a Image,
    pub disk: &'a Path,
    pub vcpus: u32,
    /// MiB
    pub memory: u32,
    /// Empty: the firmware does not say it.
    pub instance_id: &'a str,
    pub addresses: &'a [Ipv4Addr],
    /// Another disk behind the root disk.
    pub second_disk: Option<&'a Path>,
    /// Whether a reboot of the guest ends QEMU.
    pub end_at_reboot: bool,
}

/// A running guest.
pub struct Guest {
    child: Child,
    pub started: Instant,
    console: PathBuf,
    qmp: PathBuf,
    free_port: String,
}

impl Guest {
    pub fn start(lab: &Lab, start: &Start) -> Guest {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let console = lab.dir.path().join(format!("console-{number}"));
        let qmp = lab.dir.path().join(format!("qmp-{number}"));
        let mut command = lab.command("qemu-system-x86_64");
        let mut arguments = |text: String| {
            command.args(text.split(' '));
        };
        arguments("-nodefaults -no-user-config -display none -machine q35,accel=tcg -cpu max".into());
        if start.end_at_reboot {
            arguments("-no-reboot".into());
        }
        arguments(format!("-smp {} -m {}", start.vcpus, start.memory));
        for port in 1..=4 + start.addresses.len() {
            arguments(format!("-device pcie-root-port,id=rp{port},chassis={port},bus=pcie.0"));
        }
        arguments(format!("-drive file={},if=none,id=root,format=qcow2", start.disk.display()));
        let boot = if start.image.kernel().is_some() { "" } else { ",bootindex=1" };
        arguments(format!("-device virtio-blk-pci,drive=root,bus=rp1,serial=vol00000000000000001{boot}"));
        if let Some(disk) = start.second_disk {
            arguments(format!("-drive file={},if=none,id=second,format=qcow2", disk.display()));
            let port = start.addresses.len() + 3;
            arguments(format!(
                "-device virtio-blk-pci,drive=second,bus=rp{port},serial=vol00000000000000002"
            ));
        }
        arguments("-device virtio-rng-pci,bus=rp2 -device pvpanic-pci".into());
        for (index, address) in start.addresses.iter().enumerate() {
            let tap = format!("t{number}.{index}");
            let mac = mac(*address, index);
            let mac = mac.map(|byte| format!("{byte:02x}")).join(":");
            ip(&format!("-n {} tuntap add dev {tap} mode tap", lab.name));
            ip(&format!("-n {} link set {tap} master br0 up", lab.name));
            arguments(format!("-netdev tap,id=n{index},ifname={tap},script=no,downscript=no"));
            arguments(format!("-device virtio-net-pci,netdev=n{index},mac={mac},bus=rp{}", index + 3));
        }
        arguments(format!(
            "-serial file:{} -qmp unix:{},server=on,wait=off",
            console.display(),
            qmp.display()
        ));
        // By this cloud-init knows the platform, thus how to ask for metadata.
        let uuid = format!("ec2{number:05x}-0000-4000-8000-000000000000");
        arguments(format!("-smbios type=1,manufacturer=Amazon,serial={uuid},uuid={uuid}"));
        if !start.instance_id.is_empty() {
            arguments(format!("-smbios type=2,asset={}", start.instance_id));
        }
        if let (Some(kernel), Some(initrd)) = (start.image.kernel(), start.image.initrd()) {
            command.arg("-kernel").arg(kernel).arg("-initrd").arg(initrd);
            command.arg("-append").arg(start.image.command_line().unwrap());
        }
        let free_port = format!("rp{}", start.addresses.len() + 4);
        let started = Instant::now();
        Guest { child: command.spawn().unwrap(), started, console, qmp, free_port }
    }

    pub fn console(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.console).unwrap_or_default()).into_owned()
    }

    /// Waits for a text on the console and returns how long after the start of QEMU it came.
    pub fn wait_console(&mut self, text: &str, limit: Duration) -> Duration {
        loop {
            if self.console().contains(text) {
                return self.started.elapsed();
            }
            let status = self.child.try_wait().unwrap();
            assert!(status.is_none(), "the guest ended before {text:?}:\n{}", self.console());
            assert!(self.started.elapsed() < limit, "no {text:?} on the console:\n{}", self.console());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Sends a QMP command that must succeed; the arguments are a JSON object.
    pub fn qmp(&self, execute: &str, arguments: &str) {
        let mut stream = UnixStream::connect(&self.qmp).unwrap();
        let mut lines = BufReader::new(stream.try_clone().unwrap()).lines().map(Result::unwrap);
        lines.next();
        for (execute, arguments) in [("qmp_capabilities", "{}"), (execute, arguments)] {
            writeln!(stream, "{{\"execute\": \"{execute}\", \"arguments\": {arguments}}}").unwrap();
            let answer = lines.find(|line| !line.starts_with("{\"timestamp\"")).unwrap();
            assert!(answer.starts_with("{\"return\""), "{execute}: {answer}");
        }
    }

    /// Plugs a network interface into the running guest.
    pub fn plug_interface(&self, lab: &Lab, address: Ipv4Addr, index: usize) {
        let tap = format!("h{index}");
        ip(&format!("-n {} tuntap add dev {tap} mode tap", lab.name));
        ip(&format!("-n {} link set {tap} master br0 up", lab.name));
        let arguments = "{'type': 'tap', 'id': 'TAP', 'ifname': 'TAP', 'script': 'no', 'downscript': 'no'}";
        self.qmp("netdev_add", &arguments.replace("TAP", &tap).replace('\'', "\""));
        let mac = mac(address, index).map(|byte| format!("{byte:02x}")).join(":");
        let arguments = "{'driver': 'virtio-net-pci', 'netdev': 'TAP', 'mac': 'MAC', 'bus': 'PORT'}";
        let arguments = arguments.replace("TAP", &tap).replace("MAC", &mac).replace("PORT", &self.free_port);
        self.qmp("device_add", &arguments.replace('\'', "\""));
    }

    /// Ends QEMU as a power failure ends a machine.
    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Waits for QEMU to end by itself and returns how long that took.
    pub fn wait_end(&mut self, limit: Duration) -> Duration {
        let begin = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                assert!(status.success(), "QEMU: {status}");
                return begin.elapsed();
            }
            assert!(begin.elapsed() < limit, "the guest does not end:\n{}", self.console());
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Answers DHCP requests of known MAC addresses (RFC 2131): enough for a client on the same link.
fn serve_dhcp(socket: &UdpSocket, leases: &Mutex<HashMap<[u8; 6], Ipv4Addr>>, stop: &AtomicBool) {
    socket.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    let mut packet = [0; 1500];
    while !stop.load(Ordering::Relaxed) {
        let Ok((length, _)) = socket.recv_from(&mut packet) else { continue };
        if length < 244 {
            continue;
        }
        let mac: [u8; 6] = packet[28..34].try_into().unwrap();
        let Some(&address) = leases.lock().unwrap().get(&mac) else { continue };
        let mut options = &packet[240..length];
        let mut kind = 0;
        while let [code, size, rest @ ..] = options
            && *code != 255
        {
            if *code == 53 {
                kind = rest[0];
            }
            options = rest.get(usize::from(*size)..).unwrap_or_default();
        }
        let answer = match kind {
            1 => 2,
            3 => 5,
            _ => continue,
        };
        let mut reply = vec![0; 240];
        reply[..4].copy_from_slice(&[2, 1, 6, 0]);
        reply[4..8].copy_from_slice(&packet[4..8]);
        reply[16..20].copy_from_slice(&address.octets());
        reply[20..24].copy_from_slice(&HOST.octets());
        reply[28..34].copy_from_slice(&mac);
        reply[236..240].copy_from_slice(&[99, 130, 83, 99]);
        let mut option = |code: u8, value: &[u8]| {
            reply.extend([code, value.len() as u8]);
            reply.extend(value);
        };
        option(53, &[answer]);
        option(54, &HOST.octets());
        option(51, &3600u32.to_be_bytes());
        option(1, &[255, 255, 255, 0]);
        option(3, &HOST.octets());
        option(6, &HOST.octets());
        option(15, b"test.internal");
        option(26, &1400u16.to_be_bytes());
        reply.push(255);
        let _ = socket.send_to(&reply, ("255.255.255.255", 68));
    }
}

/// Answers every question with "no such name" (RFC 1035).
fn serve_dns(socket: &UdpSocket, stop: &AtomicBool) {
    socket.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    let mut packet = [0; 512];
    while !stop.load(Ordering::Relaxed) {
        let Ok((length @ 12.., from)) = socket.recv_from(&mut packet) else { continue };
        packet[2..4].copy_from_slice(&[0x81, 0x83]);
        packet[6..12].fill(0);
        // The question ends with an empty label, a type and a class; what may follow is not repeated.
        let end =
            packet[12..length].iter().position(|&b| b == 0).map_or(length, |at| (12 + at + 5).min(length));
        let _ = socket.send_to(&packet[..end], from);
    }
}

/// Answers as version 2 of the metadata service does: nothing without a token.
fn serve_metadata(listener: &TcpListener, metadata: &Mutex<Metadata>, stop: &AtomicBool) {
    for stream in listener.incoming() {
        if stop.load(Ordering::Relaxed) {
            return;
        }
        let Ok(mut stream) = stream else { continue };
        let _ = stream.set_read_timeout(Some(Duration::from_secs(5)));
        let mut lines = BufReader::new(stream.try_clone().unwrap()).lines().map_while(Result::ok);
        let request = lines.next().unwrap_or_default();
        let headers: Vec<String> = lines.take_while(|line| !line.is_empty()).collect();
        let header = |name: &str| {
            headers.iter().find_map(|h| {
                let (key, value) = h.split_once(':')?;
                key.eq_ignore_ascii_case(name).then(|| value.trim().to_owned())
            })
        };
        let mut words = request.split(' ');
        let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        // Every version that clients know is the same here; the latest has no name of its own in the log.
        let path = path.trim_start_matches('/').split_once('/').map_or("", |(_version, path)| path);
        let mut metadata = metadata.lock().unwrap();
        metadata.requests.push(format!("{method} {path}"));
        let (status, body) = if let Some(status) = metadata.refuse {
            (status, Vec::new())
        } else if method == "PUT" && path == "api/token" {
            match header("x-aws-ec2-metadata-token-ttl-seconds") {
                Some(_) => (200, TOKEN.as_bytes().to_vec()),
                None => (400, Vec::new()),
            }
        } else if header("x-aws-ec2-metadata-token").as_deref() != Some(TOKEN) {
            (401, Vec::new())
        } else {
            match (metadata.content.get(path), metadata.children(path)) {
                (Some(body), _) => (200, body.clone()),
                (None, children) if !children.is_empty() => (200, children.join("\n").into_bytes()),
                (None, _) => (404, b"Not Found".to_vec()),
            }
        };
        let head =
            format!("HTTP/1.1 {status} X\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len());
        let _ = stream.write_all(&[head.as_bytes(), &body].concat());
    }
}
