//! The metadata service over real connections, by real clients: what the AWS SDK for Python and cloud-init make of it, and
//! what a bad client can do to the others.

mod common;

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use common::{Guests, instance};
use haar_guest::{CancellationToken, Instance, TokenKey, serve_imds};
use socket2::{Domain, Socket, Type};
use tokio::task::JoinHandle;

/// Two guests of one VPC, as the server knows them.
const GUEST: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 1);
const NEIGHBOUR: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);

struct Service {
    address: SocketAddr,
    guests: Arc<Guests>,
    shutdown: CancellationToken,
    server: JoinHandle<()>,
}

impl Service {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let guests = Guests::of(instance());
        let shutdown = CancellationToken::new();
        let serve = serve_imds(listener, guests.clone(), TokenKey::new([1; 32]), shutdown.clone());
        let server = tokio::spawn(async { serve.await.unwrap() });
        let service = Self { address, guests, shutdown, server };
        service.put(GUEST, instance());
        service.put(NEIGHBOUR, Instance { id: "i-0neighbour".into(), ..instance() });
        service
    }

    fn put(&self, ip: Ipv4Addr, instance: Instance) {
        self.guests.instances.lock().unwrap().insert(ip, instance.into());
    }

    fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    fn connect(&self, from: Ipv4Addr) -> TcpStream {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket.bind(&SocketAddr::new(IpAddr::V4(from), 0).into()).unwrap();
        socket.connect(&self.address.into()).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(15))).unwrap();
        socket.into()
    }

    /// All that comes back for `request` until the server closes.
    fn exchange(&self, from: Ipv4Addr, request: &[u8]) -> String {
        let mut stream = self.connect(from);
        // The server may close before it has read everything.
        let _ = stream.write_all(request);
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        String::from_utf8_lossy(&answer).into_owned()
    }

    fn get(&self, from: Ipv4Addr, path: &str) -> String {
        self.exchange(from, format!("GET {path} HTTP/1.1\r\nHost: 169.254.169.254\r\n\r\n").as_bytes())
    }

    async fn stop(self) {
        self.shutdown.cancel();
        tokio::time::timeout(Duration::from_secs(2), self.server)
            .await
            .expect("the server does not end")
            .unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_carry_the_services_headers_and_end_the_connection() {
    let service = Service::start();
    let answer = service.get(GUEST, "/latest/meta-data/instance-id");
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert_eq!(body, "i-0123456789abcdef0");
    let head = head.to_ascii_lowercase();
    for line in [
        "http/1.1 200 ok",
        "content-type: text/plain",
        "server: ec2ws",
        "accept-ranges: none",
        "content-length: 19",
        "connection: close",
    ] {
        assert!(head.lines().any(|l| l == line), "{line} in {head}");
    }
    assert!(head.contains("\r\ndate: "), "{head}");

    let head_only = service.exchange(GUEST, b"HEAD /latest/meta-data HTTP/1.1\r\nHost: x\r\n\r\n");
    assert!(head_only.starts_with("HTTP/1.1 200 OK") && head_only.ends_with("\r\n\r\n"), "{head_only}");
    let old = service.exchange(GUEST, b"GET /latest/meta-data/ami-id HTTP/1.0\r\n\r\n");
    assert!(old.starts_with("HTTP/1.0 200 OK") && old.ends_with("ami-0123456789abcdef0"), "{old}");
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_caller_is_known_by_its_address() {
    let service = Service::start();
    assert!(service.get(NEIGHBOUR, "/latest/meta-data/instance-id").ends_with("i-0neighbour"));
    let stranger = service.get([127, 0, 0, 3].into(), "/latest/meta-data/instance-id");
    assert!(stranger.starts_with("HTTP/1.1 503 "), "{stranger}");

    let put = b"PUT /latest/api/token HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\nX-aws-ec2-metadata-token-ttl-seconds: 60\r\n\r\n";
    let answer = service.exchange(GUEST, put);
    let token = answer.split_once("\r\n\r\n").unwrap().1;
    let get = format!(
        "GET /latest/meta-data/instance-id HTTP/1.1\r\nHost: x\r\nX-aws-ec2-metadata-token: {token}\r\n\r\n"
    );
    assert!(service.exchange(GUEST, get.as_bytes()).ends_with("i-0123456789abcdef0"));
    assert!(service.exchange(NEIGHBOUR, get.as_bytes()).starts_with("HTTP/1.1 401 "));
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_shows_at_the_next_request() {
    let service = Service::start();
    let mut changed = instance();
    changed.metadata_options.http_tokens_required = true;
    service.put(GUEST, changed.clone());
    assert!(service.get(GUEST, "/latest/meta-data").starts_with("HTTP/1.1 401 "));
    changed.metadata_options.http_endpoint = false;
    service.put(GUEST, changed);
    assert!(service.get(GUEST, "/latest/meta-data").starts_with("HTTP/1.1 403 "));
    service.put(GUEST, instance());
    assert!(service.get(GUEST, "/latest/meta-data").starts_with("HTTP/1.1 200 "));
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_client_harms_itself_alone() {
    let service = Service::start();
    for (request, status) in [
        (&b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n"[..], "400"),
        (b"GET\r\n\r\n", "400"),
        (&[&b"GET / HTTP/1.1\r\nX: "[..], &b"x".repeat(20_000)].concat(), "431"),
        (&[&b"GET / HTTP/1.1\r\n"[..], &b"a: b\r\n".repeat(200), b"\r\n"].concat(), "431"),
        (
            &[&b"PUT /latest/api/token HTTP/1.1\r\nContent-Length: 20000\r\n\r\n"[..], &b"x".repeat(20_000)]
                .concat(),
            "400",
        ),
    ] {
        let answer = service.exchange(GUEST, request);
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{status}: {answer}");
    }

    // One guest opens more connections than it may and says nothing on them.
    let silent: Vec<_> = (0..200).map(|_| service.connect(GUEST)).collect();
    std::thread::sleep(Duration::from_millis(200));
    assert_eq!(service.get(GUEST, "/latest/meta-data/ami-id"), "", "its own further connections are closed");
    let asked = Instant::now();
    assert!(service.get(NEIGHBOUR, "/latest/meta-data/instance-id").ends_with("i-0neighbour"));
    assert!(asked.elapsed() < Duration::from_secs(1), "{:?}", asked.elapsed());

    // They are closed after a while, all of them.
    let opened = Instant::now();
    for mut stream in silent {
        assert!(matches!(stream.read_to_end(&mut Vec::new()), Ok(0) | Err(_)));
    }
    assert!(opened.elapsed() < Duration::from_secs(10), "{:?}", opened.elapsed());
    assert!(service.get(GUEST, "/latest/meta-data/ami-id").ends_with("ami-0123456789abcdef0"));
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn shutdown_does_not_wait_for_guests() {
    let service = Service::start();
    let mut waiting = service.connect(GUEST);
    waiting.write_all(b"GET / HTTP/1.1\r\n").unwrap();
    let address = service.address;
    service.stop().await;
    assert!(matches!(waiting.read(&mut [0; 1]), Ok(0) | Err(_)));
    assert!(TcpStream::connect(address).is_err());
}

/// Runs a Python program, unless the interpreter lacks the module that it is about.
fn python(interpreter: &str, module: &str, program: &str, endpoint: &str) -> Option<String> {
    let has_module = Command::new(interpreter).args(["-c", &format!("import {module}")]).output();
    if !has_module.is_ok_and(|output| output.status.success()) {
        eprintln!("skipped: {interpreter} has no {module}");
        return None;
    }
    let output = Command::new(interpreter)
        .args(["-c", program])
        .env("AWS_EC2_METADATA_SERVICE_ENDPOINT", endpoint)
        .env_remove("AWS_EC2_METADATA_DISABLED")
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Some(String::from_utf8(output.stdout).unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_python_sdk_finds_its_region_and_no_role() {
    let service = Service::start();
    let mut strict = instance();
    strict.metadata_options.http_tokens_required = true;
    service.put(GUEST, strict);
    let program = "
import os
from botocore.session import Session
from botocore.utils import IMDSRegionProvider, InstanceMetadataFetcher
print(IMDSRegionProvider(Session()).provide())
endpoint = os.environ['AWS_EC2_METADATA_SERVICE_ENDPOINT']
print(InstanceMetadataFetcher(config={'ec2_metadata_service_endpoint': endpoint}).retrieve_iam_role_credentials())
";
    if let Some(output) = python("python3", "botocore", program, &service.url()) {
        assert_eq!(output, "us-east-1\n{}\n");
    }
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn cloud_init_reads_the_whole_tree() {
    let service = Service::start();
    let mut strict = instance();
    strict.metadata_options.http_tokens_required = true;
    strict.metadata_options.instance_tags = true;
    service.put(GUEST, strict);
    let program = "
import json, os, tempfile
from cloudinit import helpers
from cloudinit.sources.DataSourceEc2 import DataSourceEc2
with tempfile.TemporaryDirectory() as folder:
    paths = helpers.Paths({'cloud_dir': folder, 'run_dir': folder})
    endpoint = os.environ['AWS_EC2_METADATA_SERVICE_ENDPOINT']
    source = DataSourceEc2({'datasource': {'Ec2': {'metadata_urls': [endpoint], 'max_wait': 5, 'timeout': 2}}}, None, paths)
    source._cloud_name = 'aws'
    crawled = source.crawl_metadata()
crawled['user-data'] = crawled['user-data'].decode('latin-1')
print(json.dumps(crawled))
";
    if let Some(output) = python("/usr/bin/python3", "cloudinit", program, &service.url()) {
        let crawled: serde_json::Value = serde_json::from_str(output.lines().last().unwrap()).unwrap();
        let metadata = &crawled["meta-data"];
        let at = |pointer: &str| {
            metadata.pointer(pointer).cloned().unwrap_or_else(|| panic!("{pointer} in {crawled:#}"))
        };
        assert_eq!(at("/instance-id"), "i-0123456789abcdef0");
        assert_eq!(at("/local-hostname"), "ip-172-31-16-5.ec2.internal");
        assert_eq!(at("/placement/availability-zone"), "us-east-1a");
        assert_eq!(at("/block-device-mapping/ebs1"), "sdf");
        assert_eq!(at("/tags/instance/Name"), "my server");
        let mac = "/network/interfaces/macs/02:7a:00:10:20:3f";
        assert_eq!(at(&format!("{mac}/device-number")), "0");
        assert_eq!(at(&format!("{mac}/subnet-ipv4-cidr-block")), "172.31.16.0/20");
        assert_eq!(at(&format!("{mac}/ipv4-associations/198.18.0.5")), "172.31.16.5");
        let key = at("/public-keys").to_string();
        assert!(key.contains("ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ my key"), "{key}");
        assert_eq!(crawled["user-data"], "#!/bin/sh\necho \u{ff}\n");
        let document = crawled["dynamic"]["instance-identity"]["document"].to_string();
        assert!(document.contains("123456789012"), "{document}");
    }
    service.stop().await;
}
