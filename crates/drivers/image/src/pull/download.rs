//! Fetching files by HTTP, so that nothing that has arrived is fetched again.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use ureq::Agent;
use ureq::config::ConfigBuilder;
use ureq::http::{Response, StatusCode, header};
use ureq::tls::{RootCerts, TlsConfig};
use ureq::typestate::AgentScope;
use ureq::unversioned::transport::DefaultConnector;

use crate::error::{Error, Result};
use crate::fetch::{Addresses, Reach};
use crate::progress::{Progress, Unit};

/// How long to wait for a connection, an answer, or the next bytes of one.
const PATIENCE: Duration = Duration::from_secs(30);

/// The longest pause between two attempts.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// The greatest file that is fetched, in bytes.
const SIZE_LIMIT: u64 = 64 << 30;

/// How many bytes of a file system that guests' disks share are left free.
const LEFT_FREE: u64 = 1 << 30;

/// How many bytes are fetched before the free space is looked at again.
const LOOK_EVERY: u64 = 64 << 20;

/// The greatest checksum file that is fetched, in bytes.
const TEXT_LIMIT: u64 = 4 << 20;

/// The greatest number of redirections that is followed.
const REDIRECTS: u32 = 10;

/// A client that believes the certificates that this machine believes and uses the proxy that the environment names.
pub(crate) struct Client {
    agent: Agent,
    /// Attempts in a row that may fail without a single new byte.
    attempts: u32,
    /// The pause after the first failure; it doubles with each further one.
    pause: Duration,
    /// The greatest file that is fetched, in bytes.
    limit: u64,
    /// How many bytes of the file system are left free.
    leave: u64,
    /// Once it is true, nothing more is fetched.
    cancelled: Arc<AtomicBool>,
}

/// Why an attempt failed.
enum Failure {
    /// Another attempt may do better.
    Passing(String),
    /// No attempt can do better.
    Final(Error),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Failure {
        Failure::Final(error)
    }
}

impl Client {
    pub fn new(attempts: u32, pause: Duration) -> Client {
        let agent = Self::config().build().into();
        let (attempts, cancelled) = (attempts.max(1), Arc::default());
        Client { agent, attempts, pause, limit: SIZE_LIMIT, leave: 0, cancelled }
    }

    /// A client that reaches no other addresses, and gives up once `cancelled` is true.
    pub fn within(reach: Reach, attempts: u32, pause: Duration, cancelled: Arc<AtomicBool>) -> Client {
        // A proxy would look names up itself, so that nobody could tell what is reached.
        let config = match reach {
            Reach::Public => Self::config().proxy(None),
            Reach::Anywhere => Self::config(),
        };
        let agent = Agent::with_parts(config.build(), DefaultConnector::default(), Addresses::new(reach));
        let (limit, leave) = (crate::import::SIZE_LIMIT, LEFT_FREE);
        Client { agent, attempts: attempts.max(1), pause, limit, leave, cancelled }
    }

    fn config() -> ConfigBuilder<AgentScope> {
        let tls = TlsConfig::builder().root_certs(RootCerts::PlatformVerifier).build();
        Agent::config_builder()
            .tls_config(tls)
            .http_status_as_error(false)
            .max_redirects(REDIRECTS)
            .timeout_connect(Some(PATIENCE))
            .timeout_recv_response(Some(PATIENCE))
            .timeout_per_read(Some(PATIENCE))
            .user_agent(concat!("haar/", env!("CARGO_PKG_VERSION")))
    }

    fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Relaxed)
    }

    /// Fetches a short text.
    pub fn text(&self, url: &str) -> Result<String> {
        self.persevere(url, |_| {
            let response = self.get(url, None)?;
            let mut body = Vec::new();
            let mut reader = response.into_body().into_reader().take(TEXT_LIMIT + 1);
            reader.read_to_end(&mut body).map_err(|e| Failure::Passing(e.to_string()))?;
            if body.len() as u64 > TEXT_LIMIT {
                let reason = "it is far too long for a list of checksums".into();
                return Err(Failure::Final(Error::Transfer { url: url.into(), reason }));
            }
            Ok(String::from_utf8_lossy(&body).into_owned())
        })
    }

    /// Fetches a file to `part`, going on where an earlier call ended. Its content is whole, but not checked: where the
    /// server's file has changed between two calls without the server saying so, it is a mixture. Returns whether it was
    /// fetched in one go.
    pub fn file(&self, url: &str, part: &Part, progress: &mut dyn Progress) -> Result<bool> {
        let mut fresh = true;
        let mut announced = None;
        self.persevere(url, |gained| {
            let mut file = part.open()?;
            let have = file.seek(SeekFrom::End(0)).map_err(Error::io("examine", &part.path))?;
            let validator = fs::read_to_string(part.validator()).ok();
            let response = self.get(url, (have > 0).then_some((have, validator.as_deref())))?;
            let (start, total) = match placed(&response, have) {
                Some(Placed::Whole { total }) => {
                    file.set_len(0).map_err(Error::io("empty", &part.path))?;
                    part.remember(&response)?;
                    (0, total)
                }
                Some(Placed::From { total }) => {
                    fresh = false;
                    (have, Some(total))
                }
                Some(Placed::Complete) => {
                    fresh = false;
                    return Ok(fresh);
                }
                None => {
                    part.remove();
                    return Err(Failure::Passing("the server cannot continue the transfer".into()));
                }
            };
            if total.is_some_and(|total| total > self.limit) {
                part.remove();
                let reason = format!("it is larger than {} GiB", self.limit >> 30);
                return Err(Failure::Final(Error::Transfer { url: url.into(), reason }));
            }
            part.check_space(total.unwrap_or_default().saturating_sub(start).saturating_add(self.leave))?;
            if announced != Some(total) {
                progress.stage("download", Unit::Bytes, total);
                announced = Some(total);
            }
            file.seek(SeekFrom::Start(start)).map_err(Error::io("seek", &part.path))?;
            progress.advance(start);
            let mut done = start;
            let mut body = response.into_body().into_reader();
            let mut buffer = vec![0; 256 << 10];
            let mut looked = start;
            let ended = loop {
                if self.is_cancelled() {
                    return Err(Failure::Final(Error::Cancelled));
                }
                // Others write to the same file system, and not every server says how much is to come.
                if self.leave > 0 && done - looked >= LOOK_EVERY {
                    part.check_space(self.leave)?;
                    looked = done;
                }
                match body.read(&mut buffer) {
                    Ok(0) => break None,
                    Ok(n) => {
                        if let Err(e) = file.write_all(&buffer[..n]) {
                            drop(file);
                            part.remove();
                            return Err(Failure::Final(Error::io("write", &part.path)(e)));
                        }
                        done += n as u64;
                        *gained = true;
                        progress.advance(done);
                        if done > self.limit {
                            break Some("it does not end".into());
                        }
                    }
                    Err(e) if e.kind() == ErrorKind::Interrupted => {}
                    Err(e) => break Some(e.to_string()),
                }
            };
            match (ended, total) {
                (None, Some(total)) if done != total => {
                    Err(Failure::Passing(format!("the transfer ended after {done} of {total} bytes")))
                }
                (None, _) => {
                    file.sync_all().map_err(Error::io("flush", &part.path))?;
                    Ok(fresh)
                }
                (Some(reason), _) => Err(Failure::Passing(reason)),
            }
        })
    }

    /// Calls until it succeeds, fails for good, or has failed too often in a row. The function says by its argument
    /// whether it has come further before it failed.
    fn persevere<T>(
        &self,
        url: &str,
        mut attempt: impl FnMut(&mut bool) -> std::result::Result<T, Failure>,
    ) -> Result<T> {
        let mut failed = 0;
        loop {
            if self.is_cancelled() {
                return Err(Error::Cancelled);
            }
            let mut gained = false;
            let reason = match attempt(&mut gained) {
                Ok(value) => return Ok(value),
                Err(Failure::Final(error)) => return Err(error),
                Err(Failure::Passing(reason)) => reason,
            };
            failed = if gained { 1 } else { failed + 1 };
            if failed >= self.attempts {
                return Err(Error::Transfer { url: url.into(), reason });
            }
            // Its query may have secrets.
            let url = url.split('?').next().unwrap_or(url);
            tracing::warn!(url, reason, "the transfer is tried again");
            let pause = self.pause.saturating_mul(1 << (failed - 1).min(16)).min(LONGEST_PAUSE);
            let begin = Instant::now();
            while begin.elapsed() < pause && !self.is_cancelled() {
                std::thread::sleep((pause - begin.elapsed().min(pause)).min(Duration::from_millis(100)));
            }
        }
    }

    /// Sends a request, for the rest of a file from some byte on if wanted.
    fn get(
        &self,
        url: &str,
        rest: Option<(u64, Option<&str>)>,
    ) -> std::result::Result<Response<ureq::Body>, Failure> {
        let mut request = self.agent.get(url).header(header::ACCEPT_ENCODING, "identity");
        if let Some((from, validator)) = rest {
            request = request.header(header::RANGE, format!("bytes={from}-"));
            if let Some(validator) = validator {
                request = request.header(header::IF_RANGE, validator);
            }
        }
        let response = request.call().map_err(|e| match e {
            ureq::Error::Tls(_) | ureq::Error::BadUri(_) | ureq::Error::TooManyRedirects => {
                Failure::Final(Error::Transfer { url: url.into(), reason: e.to_string() })
            }
            ureq::Error::Io(e) if e.kind() == ErrorKind::PermissionDenied => {
                Failure::Final(Error::Transfer { url: url.into(), reason: e.to_string() })
            }
            e => Failure::Passing(e.to_string()),
        })?;
        let status = response.status();
        if status.is_success() || (rest.is_some() && status == StatusCode::RANGE_NOT_SATISFIABLE) {
            return Ok(response);
        }
        let passing = [StatusCode::REQUEST_TIMEOUT, StatusCode::TOO_MANY_REQUESTS];
        if status.is_server_error() || passing.contains(&status) {
            return Err(Failure::Passing(format!("the server answers with status {status}")));
        }
        Err(Failure::Final(Error::HttpStatus { url: url.into(), status: status.as_u16() }))
    }
}

/// Which part of a file an answer carries (RFC 9110, sections 14 and 15.3.7).
#[derive(Debug, PartialEq, Eq)]
enum Placed {
    /// All of it; its length is known or not.
    Whole { total: Option<u64> },
    /// What was asked for, up to the end.
    From { total: u64 },
    /// Nothing: there is nothing behind what was asked for.
    Complete,
}

/// Interprets an answer to a request for what follows the first `have` bytes. None if that is not what it carries.
fn placed<B>(response: &Response<B>, have: u64) -> Option<Placed> {
    let value = |name| response.headers().get(name).and_then(|v| v.to_str().ok());
    let range = value(header::CONTENT_RANGE).and_then(|range| range.strip_prefix("bytes "));
    match response.status() {
        StatusCode::PARTIAL_CONTENT => {
            let (place, total) = range?.split_once('/')?;
            let (first, last) = place.split_once('-')?;
            let (first, last, total): (u64, u64, u64) =
                (first.parse().ok()?, last.parse().ok()?, total.parse().ok()?);
            (first == have && last.checked_add(1)? == total).then_some(Placed::From { total })
        }
        StatusCode::RANGE_NOT_SATISFIABLE => {
            let total: u64 = range?.strip_prefix("*/")?.parse().ok()?;
            (total == have).then_some(Placed::Complete)
        }
        _ => Some(Placed::Whole { total: value(header::CONTENT_LENGTH).and_then(|n| n.parse().ok()) }),
    }
}

/// A file that is being fetched, with what tells the server's version of it, in a folder that outlives the process. Nobody
/// else fetches to it meanwhile.
pub(crate) struct Part {
    pub path: PathBuf,
    _lock: File,
}

impl Part {
    /// Claims the part with this key; waits while another process has it.
    pub fn claim(dir: &Path, key: &str, progress: &mut dyn Progress) -> Result<Part> {
        fs::create_dir_all(dir).map_err(Error::io("create", dir))?;
        let lock = dir.join(format!("{key}.lock"));
        loop {
            let file = File::options().write(true).create(true).truncate(false).open(&lock);
            let file = file.map_err(Error::io("open", &lock))?;
            if file.try_lock().is_err() {
                progress.stage("waiting for another transfer", Unit::Steps, None);
                file.lock().map_err(Error::io("lock", &lock))?;
            }
            // Who had it before may have removed it, so that the next one locks another file of the same name.
            let same = |a: &fs::Metadata, b: &fs::Metadata| {
                use std::os::unix::fs::MetadataExt;
                a.ino() == b.ino()
            };
            if let (Ok(held), Ok(named)) = (file.metadata(), fs::metadata(&lock))
                && same(&held, &named)
            {
                return Ok(Part { path: dir.join(format!("{key}.part")), _lock: file });
            }
        }
    }

    fn open(&self) -> Result<File> {
        let file = File::options().read(true).write(true).create(true).truncate(false).open(&self.path);
        file.map_err(Error::io("open", &self.path))
    }

    fn validator(&self) -> PathBuf {
        self.path.with_extension("etag")
    }

    /// Keeps the strong entity tag of an answer, if it has one: only such a tag says that bytes are the same.
    fn remember<B>(&self, response: &Response<B>) -> Result<()> {
        let tag = response.headers().get(header::ETAG).and_then(|v| v.to_str().ok());
        let path = self.validator();
        match tag.filter(|tag| tag.starts_with('"')) {
            Some(tag) => fs::write(&path, tag).map_err(Error::io("write", &path)),
            None => remove(&path),
        }
    }

    /// Forgets what was fetched.
    pub fn remove(&self) {
        for path in [self.validator(), self.path.clone()] {
            if let Err(error) = remove(&path) {
                tracing::warn!(%error, "a fetched file stays behind");
            }
        }
    }

    /// Fails if the file system has no room for so many bytes more.
    fn check_space(&self, bytes: u64) -> Result<()> {
        let dir = self.path.parent().unwrap_or(&self.path);
        let stat = nix::sys::statvfs::statvfs(dir).map_err(|e| Error::io("examine", dir)(e.into()))?;
        if stat.blocks_available().saturating_mul(stat.fragment_size()) < bytes {
            self.remove();
            return Err(Error::NoSpace { path: dir.into() });
        }
        Ok(())
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        let _ = remove(&self.path.with_extension("lock"));
    }
}

fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(Error::io("remove", path)(e)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(status: u16, headers: &[(&str, &str)]) -> Response<()> {
        let mut response = Response::builder().status(status);
        for (name, value) in headers {
            response = response.header(*name, *value);
        }
        response.body(()).unwrap()
    }

    #[test]
    fn only_the_bytes_that_are_missing_are_appended() {
        let range = |text| placed(&answer(206, &[("content-range", text)]), 10);
        assert_eq!(range("bytes 10-99/100"), Some(Placed::From { total: 100 }));
        for other in
            ["bytes 0-99/100", "bytes 11-99/100", "bytes 10-98/100", "bytes 10-99/*", "items 10-99/100", ""]
        {
            assert_eq!(range(other), None, "{other}");
        }
        assert_eq!(range("bytes 10-18446744073709551615/100"), None);
        assert_eq!(placed(&answer(206, &[]), 10), None);
        assert_eq!(
            placed(&answer(200, &[("content-length", "7")]), 10),
            Some(Placed::Whole { total: Some(7) })
        );
        assert_eq!(placed(&answer(200, &[]), 10), Some(Placed::Whole { total: None }));
        let end = |text| placed(&answer(416, &[("content-range", text)]), 10);
        assert_eq!(end("bytes */10"), Some(Placed::Complete));
        assert_eq!(end("bytes */9"), None);
    }
}
