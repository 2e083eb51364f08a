//! How far a long operation has come.

/// What a stage counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// Bytes moved.
    Bytes,
    /// Steps taken: packages, files.
    Steps,
    /// Hundredths of the whole stage.
    Percent,
}

/// Receives how far a long operation has come, for a progress bar to draw. An operation is a sequence of stages, each
/// announced by [`stage`](Progress::stage) and followed by any number of calls of [`advance`](Progress::advance), seldom
/// more than some tens a second. `()` is a receiver that ignores everything.
pub trait Progress {
    /// A stage begins. `name` is for a person to read (`download`, `packages`, `convert`); `total` is its length where
    /// that is known.
    fn stage(&mut self, name: &str, unit: Unit, total: Option<u64>);

    /// The running stage has reached `done`, counted from its beginning (a resumed transfer starts above zero). It may
    /// fall back to zero where a step has to be repeated from its start.
    fn advance(&mut self, done: u64);
}

impl Progress for () {
    fn stage(&mut self, _name: &str, _unit: Unit, _total: Option<u64>) {}
    fn advance(&mut self, _done: u64) {}
}
