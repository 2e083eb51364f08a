use std::fmt;
use std::io;

use serde::Serialize;
use sha2::{Digest, Sha256};

/// A SHA-256 over the parameters of a request, to tell whether two requests ask for the same.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Fingerprint([u8; 32]);

impl Fingerprint {
    /// Of everything that serde sees in `parameters`.
    ///
    /// # Panics
    /// When the parameters have no JSON form (a map whose keys are no strings), which is a mistake in the program.
    #[must_use]
    pub fn of(parameters: &impl Serialize) -> Self {
        struct Sink(Sha256);

        impl io::Write for Sink {
            fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
                self.0.update(bytes);
                Ok(bytes.len())
            }

            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }

        let mut sink = Sink(Sha256::new());
        serde_json::to_writer(&mut sink, parameters).expect("request parameters have a JSON form");
        Self(sink.0.finalize().into())
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
