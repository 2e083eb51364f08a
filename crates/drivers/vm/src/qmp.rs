//! A client of the QEMU Machine Protocol (QEMU documentation, "QEMU Machine Protocol Specification").
//!
//! The `qapi` crate generates types for all of QEMU's schema (26 000 lines, 20 s of compilation); haar sends a dozen commands and must
//! accept events and states of QEMU versions newer than that schema, so it speaks the protocol itself.

use std::collections::HashMap;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncBufRead, AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::OwnedWriteHalf;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use crate::Error;

/// The longest message taken from QEMU, in bytes. Most answers are a few hundred; that of all block nodes has several KiB for each
/// layer of each disk.
const MAX_MESSAGE: u64 = 64 << 20;

/// How long QEMU may take for a command. Its main loop answers in microseconds; it stalls while storage does.
pub(crate) const COMMAND_TIMEOUT: Duration = Duration::from_secs(30);

/// Who waits for which answer; nothing once the connection has ended.
type Pending = Mutex<Option<HashMap<u64, oneshot::Sender<Result<Value, String>>>>>;

/// One connection to a QEMU process. Dropping it closes the connection; QEMU runs on and takes the next.
#[derive(Debug)]
pub(crate) struct Qmp {
    writer: tokio::sync::Mutex<OwnedWriteHalf>,
    pending: Arc<Pending>,
    next_id: AtomicU64,
    reader: JoinHandle<()>,
}

impl Drop for Qmp {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

impl Qmp {
    /// Waits for QEMU's greeting on a connected socket and enters command mode. `on_event` is called with every
    /// event's name and data, in order, from the task that reads; it must not block.
    pub(crate) async fn handshake(
        stream: UnixStream,
        on_event: impl FnMut(&str, &Value) + Send + 'static,
    ) -> Result<Qmp, Error> {
        let (read, writer) = stream.into_split();
        let mut read = BufReader::new(read);
        let greeting = message(&mut read).await.map_err(|e| match e.kind() {
            io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset => Error::Gone,
            _ => Error::io("cannot read QEMU's greeting")(e),
        })?;
        if greeting.get("QMP").is_none() {
            let source = io::Error::new(io::ErrorKind::InvalidData, "no QMP greeting");
            return Err(Error::io("cannot talk to QEMU")(source));
        }
        let pending = Arc::new(Mutex::new(Some(HashMap::new())));
        let reader = tokio::spawn(receive(read, pending.clone(), on_event));
        let qmp = Qmp { writer: writer.into(), pending, next_id: AtomicU64::new(0), reader };
        qmp.execute("qmp_capabilities", json!({})).await?;
        Ok(qmp)
    }

    /// Runs a command and gives what it returned.
    ///
    /// # Errors
    /// [`Error::Refused`] with QEMU's description, [`Error::Gone`] if the connection ended,
    /// [`Error::Timeout`] after [`COMMAND_TIMEOUT`].
    pub(crate) async fn execute(&self, command: &str, arguments: Value) -> Result<Value, Error> {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let (answer, answered) = oneshot::channel();
        lock(&self.pending).as_mut().ok_or(Error::Gone)?.insert(id, answer);
        let mut line = json!({ "execute": command, "arguments": arguments, "id": id }).to_string();
        line.push('\n');
        let round_trip = async {
            // Whole lines only: once begun, a line is written to its end, or the connection is lost anyway.
            self.writer.lock().await.write_all(line.as_bytes()).await.map_err(|_| Error::Gone)?;
            answered.await.map_err(|_| Error::Gone)
        };
        let result = tokio::time::timeout(COMMAND_TIMEOUT, round_trip).await;
        self.forget(id);
        match result {
            Ok(Ok(Ok(value))) => Ok(value),
            Ok(Ok(Err(desc))) => Err(Error::Refused { command: command.into(), desc }),
            Ok(Err(error)) => Err(error),
            Err(_) => Err(Error::Timeout { command: command.into(), timeout: COMMAND_TIMEOUT }),
        }
    }

    fn forget(&self, id: u64) {
        if let Some(pending) = lock(&self.pending).as_mut() {
            pending.remove(&id);
        }
    }
}

/// A lock that a panic elsewhere does not spoil: every critical section here leaves the data whole.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn receive(
    mut read: impl AsyncBufRead + Unpin,
    pending: Arc<Pending>,
    mut on_event: impl FnMut(&str, &Value),
) {
    loop {
        let mut message = match message(&mut read).await {
            Ok(message) => message,
            Err(error) => {
                if error.kind() == io::ErrorKind::InvalidData {
                    tracing::warn!(%error, "QEMU's monitor is not understood; it is left");
                }
                // Who waits for an answer learns that none will come.
                lock(&pending).take();
                return;
            }
        };
        if let Some(event) = message.get("event").and_then(Value::as_str) {
            on_event(event, &message["data"]);
            continue;
        }
        let id = message["id"].as_u64();
        let Some(answer) = id.and_then(|id| lock(&pending).as_mut()?.remove(&id)) else {
            continue;
        };
        let result = match message.get("error") {
            Some(error) => Err(error["desc"].as_str().unwrap_or("no description").to_owned()),
            None => Ok(message["return"].take()),
        };
        // Nobody may be waiting any more; then nobody needs it.
        let _ = answer.send(result);
    }
}

/// Reads one message: a line of JSON of at most [`MAX_MESSAGE`] bytes.
async fn message(read: &mut (impl AsyncBufRead + Unpin)) -> io::Result<Value> {
    let mut line = Vec::new();
    read.take(MAX_MESSAGE).read_until(b'\n', &mut line).await?;
    match line.last() {
        None => Err(io::ErrorKind::UnexpectedEof.into()),
        Some(b'\n') => {
            serde_json::from_slice(&line).map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))
        }
        Some(_) if line.len() as u64 == MAX_MESSAGE => {
            Err(io::Error::new(io::ErrorKind::InvalidData, "message too long"))
        }
        Some(_) => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::Lines;
    use tokio::net::unix::OwnedReadHalf;
    use tokio::sync::mpsc;

    const GREETING: &str = r#"{"QMP": {"version": {}, "capabilities": []}}"#;

    /// What stands for QEMU.
    struct Server {
        lines: Lines<BufReader<OwnedReadHalf>>,
        writer: OwnedWriteHalf,
    }

    impl Server {
        async fn say(&mut self, line: &str) {
            self.writer.write_all(format!("{line}\r\n").as_bytes()).await.unwrap();
        }

        /// The next command's name and number.
        async fn heard(&mut self) -> (String, u64) {
            let line = self.lines.next_line().await.unwrap().unwrap();
            let command: Value = serde_json::from_str(&line).unwrap();
            (command["execute"].as_str().unwrap().to_owned(), command["id"].as_u64().unwrap())
        }
    }

    /// A connection past its handshake, and the events that come.
    async fn connect() -> (Qmp, Server, mpsc::UnboundedReceiver<(String, Value)>) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let (read, writer) = theirs.into_split();
        let mut server = Server { lines: BufReader::new(read).lines(), writer };
        server.say(GREETING).await;
        let (seen, events) = mpsc::unbounded_channel();
        let handshake =
            Qmp::handshake(ours, move |name, data| seen.send((name.to_owned(), data.clone())).unwrap());
        let answer = async {
            let (command, id) = server.heard().await;
            assert_eq!(command, "qmp_capabilities");
            server.say(&format!(r#"{{"return": {{}}, "id": {id}}}"#)).await;
            server
        };
        let (qmp, server) = tokio::join!(handshake, answer);
        (qmp.unwrap(), server, events)
    }

    #[tokio::test]
    async fn answers_find_their_commands_among_events() {
        let (qmp, mut server, mut events) = connect().await;
        let serve = async {
            let (first, a) = server.heard().await;
            let (second, b) = server.heard().await;
            assert_eq!([first, second], ["one", "two"]);
            server.say(r#"{"event": "RESET", "data": {"guest": true}}"#).await;
            server
                .say(&format!(r#"{{"error": {{"class": "GenericError", "desc": "not now"}}, "id": {b}}}"#))
                .await;
            server.say(r#"{"return": "nobody asked", "id": 999}"#).await;
            server.say(&format!(r#"{{"return": 7, "id": {a}}}"#)).await;
        };
        let (one, two, ()) =
            tokio::join!(qmp.execute("one", json!({})), qmp.execute("two", json!({})), serve);
        assert_eq!(one.unwrap(), json!(7));
        let error = two.unwrap_err();
        assert!(
            matches!(&error, Error::Refused { command, desc } if command == "two" && desc == "not now"),
            "{error}"
        );
        assert_eq!(events.recv().await.unwrap(), ("RESET".to_owned(), json!({ "guest": true })));
    }

    #[tokio::test]
    async fn a_lost_connection_is_told_at_once() {
        let (qmp, server, _events) = connect().await;
        let (answer, ()) = tokio::join!(qmp.execute("quit", json!({})), async {
            tokio::time::sleep(Duration::from_millis(20)).await;
            drop(server);
        });
        assert!(matches!(answer, Err(Error::Gone)));
        assert!(matches!(qmp.execute("again", json!({})).await, Err(Error::Gone)));
    }

    #[tokio::test]
    async fn nonsense_ends_the_connection() {
        let endless = "x".repeat(MAX_MESSAGE as usize + 1);
        for nonsense in ["{", "[1, 2", endless.as_str()] {
            let (qmp, mut server, _events) = connect().await;
            let (answer, ()) = tokio::join!(qmp.execute("one", json!({})), async {
                // The reader may leave before the end.
                let _ = server.writer.write_all(format!("{nonsense}\n").as_bytes()).await;
            });
            assert!(matches!(answer, Err(Error::Gone)), "{}", &nonsense[..1]);
        }
        // What is merely not understood is passed over.
        let (qmp, mut server, _events) = connect().await;
        let serve = async {
            let (_, id) = server.heard().await;
            for odd in ["null", "[]", r#"{"event": 5}"#, r#"{"id": "x"}"#, r#"{"unheard": "of"}"#] {
                server.say(odd).await;
            }
            server.say(&format!(r#"{{"return": {{}}, "id": {id}}}"#)).await;
        };
        let (answer, ()) = tokio::join!(qmp.execute("one", json!({})), serve);
        assert_eq!(answer.unwrap(), json!({}));
    }

    #[tokio::test]
    async fn who_does_not_greet_is_not_qemu() {
        for (said, gone) in [("", true), ("{\"QMP\"", true), ("{}\n", false), ("hello\n", false)] {
            let (ours, mut theirs) = UnixStream::pair().unwrap();
            theirs.write_all(said.as_bytes()).await.unwrap();
            drop(theirs);
            let error = Qmp::handshake(ours, |_, _| {}).await.unwrap_err();
            assert_eq!(matches!(error, Error::Gone), gone, "{said:?}: {error}");
        }
    }
}
