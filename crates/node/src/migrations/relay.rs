//! The way of disks and memory: QEMU speaks to Unix sockets, daemons carry the bytes from one to the other over TCP.
//!
//! A connection begins with a line that says what it is for: the migration, what the daemons know each other by, and the channel.

use std::collections::HashMap;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use subtle::ConstantTimeEq;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::OnceCell;
use tokio::task::JoinHandle;

use crate::Error;

/// The longest first line.
const LINE: usize = 256;

/// How long a connection may take to say what it is for.
const PATIENCE: Duration = Duration::from_secs(10);

/// Bytes that are carried at once.
const CHUNK: usize = 1 << 18;

/// The channels, and the names of their sockets in a machine's folder.
pub(super) const DISKS: &str = "disks";
pub(super) const MEMORY: &str = "memory";

/// Lets connections of other daemons through to machines that receive.
#[derive(Default)]
pub(super) struct Gate {
    port: OnceCell<u16>,
    open: Arc<Mutex<HashMap<String, Entrance>>>,
}

/// Where the connections of one migration go.
#[derive(Clone)]
struct Entrance {
    token: String,
    sockets: HashMap<&'static str, PathBuf>,
}

impl Gate {
    /// Lets the connections of a migration through to these sockets, and gives the port that they come to.
    ///
    /// # Errors
    /// What the system said.
    pub(super) async fn open(
        &self,
        listen: IpAddr,
        id: &str,
        token: &str,
        sockets: [(&'static str, PathBuf); 2],
    ) -> Result<u16, Error> {
        let entrance = Entrance { token: token.to_owned(), sockets: sockets.into() };
        let listener = async {
            let listener = TcpListener::bind((listen, 0)).await?;
            let port = listener.local_addr()?.port();
            tokio::spawn(serve(listener, self.open.clone()));
            Ok(port)
        };
        let port = self.port.get_or_try_init(|| listener).await;
        let port = port.map_err(Error::io(format!("listen on {listen}")))?;
        self.open.lock().unwrap_or_else(PoisonError::into_inner).insert(id.to_owned(), entrance);
        Ok(*port)
    }

    /// Lets no more connections of a migration through.
    pub(super) fn close(&self, id: &str) {
        self.open.lock().unwrap_or_else(PoisonError::into_inner).remove(id);
    }
}

async fn serve(listener: TcpListener, open: Arc<Mutex<HashMap<String, Entrance>>>) {
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        let open = open.clone();
        tokio::spawn(async move {
            if let Err(error) = let_through(stream, &open).await {
                tracing::debug!(%error, "a connection of another daemon ended");
            }
        });
    }
}

async fn let_through(mut stream: TcpStream, open: &Mutex<HashMap<String, Entrance>>) -> io::Result<()> {
    let refused = || io::Error::from(io::ErrorKind::PermissionDenied);
    let line = tokio::time::timeout(PATIENCE, first_line(&mut stream)).await??;
    let mut words = line.split(' ');
    let (Some(id), Some(token), Some(channel), None) =
        (words.next(), words.next(), words.next(), words.next())
    else {
        return Err(refused());
    };
    let entrance = open.lock().unwrap_or_else(PoisonError::into_inner).get(id).cloned();
    let entrance = entrance.filter(|e| e.token.as_bytes().ct_eq(token.as_bytes()).into());
    let socket = entrance.as_ref().and_then(|entrance| entrance.sockets.get(channel)).ok_or_else(refused)?;
    let machine = UnixStream::connect(socket).await?;
    let _ = stream.set_nodelay(true);
    carry(stream, machine, &AtomicU64::new(0)).await
}

/// Reads a line, and nothing beyond it.
async fn first_line(stream: &mut TcpStream) -> io::Result<String> {
    let mut line = Vec::new();
    loop {
        match stream.read_u8().await? {
            b'\n' => return String::from_utf8(line).map_err(|_| io::ErrorKind::InvalidData.into()),
            _ if line.len() >= LINE => return Err(io::ErrorKind::InvalidData.into()),
            byte => line.push(byte),
        }
    }
}

/// A socket that leads to a channel of another daemon, as long as it lives.
pub(super) struct Way {
    path: PathBuf,
    sent: Arc<AtomicU64>,
    task: JoinHandle<()>,
}

impl Way {
    /// Makes the socket; it leads to a port of a host, by a first line.
    ///
    /// # Errors
    /// What the system said.
    pub(super) fn open(path: &Path, to: (String, u16), line: String) -> Result<Self, Error> {
        let failed = || Error::io(format!("listen at {}", path.display()));
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed()(error)),
            _ => {}
        }
        let listener = UnixListener::bind(path).map_err(failed())?;
        let sent = Arc::new(AtomicU64::new(0));
        let count = sent.clone();
        let task = tokio::spawn(async move {
            let mut carried = tokio::task::JoinSet::new();
            while let Ok((machine, _)) = listener.accept().await {
                let (to, line, count) = (to.clone(), line.clone(), count.clone());
                carried.spawn(async move {
                    if let Err(error) = go(machine, &to, &line, &count).await {
                        tracing::debug!(%error, "the way to another daemon ended");
                    }
                });
            }
        });
        Ok(Self { path: path.to_owned(), sent, task })
    }

    /// How many bytes went this way.
    pub(super) fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }
}

impl Drop for Way {
    fn drop(&mut self) {
        self.task.abort();
        let _ = std::fs::remove_file(&self.path);
    }
}

async fn go(
    machine: UnixStream,
    (host, port): &(String, u16),
    line: &str,
    sent: &AtomicU64,
) -> io::Result<()> {
    let mut stream = TcpStream::connect((host.as_str(), *port)).await?;
    let _ = stream.set_nodelay(true);
    stream.write_all(line.as_bytes()).await?;
    carry(stream, machine, sent).await
}

/// Carries bytes both ways until both have ended; counts those that the machine sends.
async fn carry(stream: TcpStream, machine: UnixStream, sent: &AtomicU64) -> io::Result<()> {
    let ((mut from_stream, mut to_stream), (mut from_machine, mut to_machine)) =
        (stream.into_split(), machine.into_split());
    let received = AtomicU64::new(0);
    let there = pump(&mut from_machine, &mut to_stream, sent);
    let back = pump(&mut from_stream, &mut to_machine, &received);
    tokio::try_join!(there, back).map(drop)
}

async fn pump(
    from: &mut (impl AsyncRead + Unpin),
    to: &mut (impl AsyncWrite + Unpin),
    count: &AtomicU64,
) -> io::Result<()> {
    let mut chunk = vec![0; CHUNK];
    loop {
        let length = from.read(&mut chunk).await?;
        if length == 0 {
            return to.shutdown().await;
        }
        to.write_all(&chunk[..length]).await?;
        count.fetch_add(length as u64, Ordering::Relaxed);
    }
}
