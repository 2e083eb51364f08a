//! An HTTP server that can misbehave.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

/// A file that is served.
#[derive(Clone)]
pub struct Served {
    pub content: Vec<u8>,
    pub etag: Option<String>,
    /// Whether parts of it can be asked for.
    pub ranges: bool,
    /// Whether its length is said.
    pub length: bool,
    /// After so many bytes of each answer the connection breaks; each break uses one up.
    pub cuts: Vec<usize>,
    /// Answers that come instead, first of all: a status each.
    pub failures: Vec<u16>,
    /// Where it has moved to.
    pub moved: Option<String>,
}

impl Served {
    pub fn new(content: &[u8]) -> Served {
        let content = content.to_vec();
        let (cuts, failures) = (Vec::new(), Vec::new());
        Served { content, etag: None, ranges: true, length: true, cuts, failures, moved: None }
    }
}

/// A request that came: its path and its range.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    pub path: String,
    pub range: Option<String>,
    pub if_range: Option<String>,
}

#[derive(Default)]
struct State {
    files: HashMap<String, Served>,
    requests: Vec<Request>,
}

pub struct Server {
    address: SocketAddr,
    state: Arc<Mutex<State>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    pub fn start() -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (state, stop) = (Arc::<Mutex<State>>::default(), Arc::<AtomicBool>::default());
        let (shared, stopped) = (state.clone(), stop.clone());
        let thread = std::thread::spawn(move || {
            for stream in listener.incoming() {
                if stopped.load(Ordering::Relaxed) {
                    return;
                }
                if let Ok(stream) = stream {
                    let shared = shared.clone();
                    std::thread::spawn(move || {
                        let _ = answer(&stream, &shared);
                    });
                }
            }
        });
        Server { address, state, stop, thread: Some(thread) }
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    pub fn serve(&self, path: &str, file: Served) {
        self.state.lock().unwrap().files.insert(path.into(), file);
    }

    /// The requests for a path so far.
    pub fn requests(&self, path: &str) -> Vec<Request> {
        self.state.lock().unwrap().requests.iter().filter(|r| r.path == path).cloned().collect()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let _ = TcpStream::connect(self.address);
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

fn answer(mut stream: &TcpStream, state: &Mutex<State>) -> std::io::Result<()> {
    let mut lines = BufReader::new(stream).lines();
    let request = lines.next().unwrap_or(Ok(String::new()))?;
    let mut headers = HashMap::new();
    for line in lines {
        let line = line?;
        let Some((name, value)) = line.split_once(':') else { break };
        headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
    }
    let path = request.split(' ').nth(1).unwrap_or_default().to_owned();
    let mut state = state.lock().unwrap();
    let (range, if_range) = (headers.remove("range"), headers.remove("if-range"));
    state.requests.push(Request { path: path.clone(), range: range.clone(), if_range: if_range.clone() });
    let Some(file) = state.files.get_mut(&path) else {
        return stream.write_all(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
    };
    if !file.failures.is_empty() {
        let status = file.failures.remove(0);
        let head = format!("HTTP/1.1 {status} X\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
        return stream.write_all(head.as_bytes());
    }
    if let Some(to) = &file.moved {
        let head =
            format!("HTTP/1.1 302 X\r\nLocation: {to}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
        return stream.write_all(head.as_bytes());
    }
    let cut = if file.cuts.is_empty() { None } else { Some(file.cuts.remove(0)) };
    let file = file.clone();
    drop(state);

    let total = file.content.len();
    let unchanged = if_range.is_none() || if_range == file.etag;
    let from = range.and_then(|r| r.strip_prefix("bytes=")?.strip_suffix('-')?.parse::<usize>().ok());
    let (status, from) = match from {
        Some(from) if file.ranges && unchanged && from < total => (206, from),
        Some(_) if file.ranges && unchanged => (416, total),
        _ => (200, 0),
    };
    let mut head = format!("HTTP/1.1 {status} X\r\nConnection: close\r\n");
    match status {
        206 => head += &format!("Content-Range: bytes {from}-{}/{total}\r\n", total - 1),
        416 => head += &format!("Content-Range: bytes */{total}\r\n"),
        _ => {}
    }
    if file.length {
        head += &format!("Content-Length: {}\r\n", total - from);
    }
    if let Some(etag) = &file.etag {
        head += &format!("ETag: {etag}\r\n");
    }
    stream.write_all(head.as_bytes())?;
    stream.write_all(b"\r\n")?;
    let body = &file.content[from..];
    stream.write_all(&body[..cut.unwrap_or(body.len()).min(body.len())])
}
