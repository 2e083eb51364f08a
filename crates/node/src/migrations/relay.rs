//! The way of disks and memory: QEMU speaks to Unix sockets, daemons carry the bytes from one to the other over TLS.
//!
//! A connection begins with a line that says what it is for: the migration, the secret of its invitation, and the channel.

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use haar_records::ec2::Receiver;
use subtle::ConstantTimeEq;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinHandle;

use super::channel::{Speech, connect};
use super::lock;
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
pub(super) struct Gate(Mutex<HashMap<String, Entrance>>);

/// Where the connections of one migration go.
#[derive(Clone)]
struct Entrance {
    token: String,
    sockets: HashMap<&'static str, PathBuf>,
}

impl Gate {
    /// Lets the connections of a migration through to these sockets.
    pub(super) fn open(&self, id: &str, token: &str, sockets: [(&'static str, PathBuf); 2]) {
        lock(&self.0).insert(id.to_owned(), Entrance { token: token.to_owned(), sockets: sockets.into() });
    }

    /// Lets no more connections of a migration through.
    pub(super) fn close(&self, id: &str) {
        lock(&self.0).remove(id);
    }

    /// The socket that a connection's first line leads to.
    ///
    /// # Errors
    /// `PermissionDenied` if it leads nowhere; what broke it off.
    pub(super) async fn entrance(&self, stream: &mut (impl AsyncRead + Unpin)) -> io::Result<PathBuf> {
        let refused = || io::Error::from(io::ErrorKind::PermissionDenied);
        let line = tokio::time::timeout(PATIENCE, first_line(stream)).await??;
        let mut words = line.split(' ');
        let (Some(id), Some(token), Some(channel), None) =
            (words.next(), words.next(), words.next(), words.next())
        else {
            return Err(refused());
        };
        let entrance = lock(&self.0).get(id).cloned();
        let entrance = entrance.filter(|e| e.token.as_bytes().ct_eq(token.as_bytes()).into());
        let socket = entrance.as_ref().and_then(|entrance| entrance.sockets.get(channel));
        socket.cloned().ok_or_else(refused)
    }
}

/// Lets a connection through to a machine's socket, until it has ended.
///
/// # Errors
/// What broke it off.
pub(super) async fn let_through(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    socket: &Path,
) -> io::Result<()> {
    carry(stream, UnixStream::connect(socket).await?, &AtomicU64::new(0)).await
}

/// Reads a line, and nothing beyond it.
async fn first_line(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<String> {
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
    trouble: Arc<Mutex<Option<String>>>,
    task: JoinHandle<()>,
}

impl Way {
    /// Makes the socket; it leads to another daemon, by a first line.
    ///
    /// # Errors
    /// What the system said.
    pub(super) fn open(path: &Path, to: Receiver, line: String) -> Result<Self, Error> {
        let failed = || Error::io(format!("listen at {}", path.display()));
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed()(error)),
            _ => {}
        }
        let listener = UnixListener::bind(path).map_err(failed())?;
        let sent = Arc::new(AtomicU64::new(0));
        let trouble = Arc::<Mutex<Option<String>>>::default();
        let (count, ended) = (sent.clone(), trouble.clone());
        let task = tokio::spawn(async move {
            let mut carried = tokio::task::JoinSet::new();
            while let Ok((machine, _)) = listener.accept().await {
                let (to, line, count, ended) = (to.clone(), line.clone(), count.clone(), ended.clone());
                carried.spawn(async move {
                    if let Err(error) = go(machine, &to, &line, &count).await {
                        lock(&ended).get_or_insert(error.to_string());
                    }
                });
            }
        });
        Ok(Self { path: path.to_owned(), sent, trouble, task })
    }

    /// Why a connection to the other daemon ended before the machine's did, if one has.
    pub(super) fn trouble(&self) -> Option<String> {
        lock(&self.trouble).clone()
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

async fn go(machine: UnixStream, to: &Receiver, line: &str, sent: &AtomicU64) -> io::Result<()> {
    let mut stream = connect(&to.address, &to.fingerprint, Speech::Carry).await?;
    stream.write_all(line.as_bytes()).await?;
    carry(stream, machine, sent).await
}

/// Carries bytes both ways until both have ended; counts those that the machine sends.
async fn carry(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    machine: UnixStream,
    sent: &AtomicU64,
) -> io::Result<()> {
    let (mut from_stream, mut to_stream) = tokio::io::split(stream);
    let (mut from_machine, mut to_machine) = machine.into_split();
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
        // What TLS holds back for a fuller record is waited for at the other end.
        to.flush().await?;
        count.fetch_add(length as u64, Ordering::Relaxed);
    }
}
