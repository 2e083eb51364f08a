//! Answer bodies: chains of chunks that are never copied together.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Frame, SizeHint};

/// Fragments shorter than this are copied into the running chunk; sending them one by one would cost more.
const CHAIN_FROM: usize = 8 * 1024;
/// The room that a running chunk begins with.
const SHORT: usize = 1024;
/// A running chunk that has grown to this is closed; the next one has as much room at once and never has to be moved to grow.
const CHUNK: usize = 256 * 1024;

/// Bytes that are written once and sent as they lie.
#[derive(Debug, Default)]
pub struct Rope {
    chunks: VecDeque<Bytes>,
    tail: Vec<u8>,
}

impl Rope {
    /// An empty rope.
    pub fn new() -> Self {
        Self::default()
    }

    /// Appends bytes.
    pub fn push(&mut self, bytes: &[u8]) {
        self.push_all([bytes]);
    }

    /// Appends several short pieces.
    pub fn push_all<const N: usize>(&mut self, pieces: [&[u8]; N]) {
        let length = pieces.iter().map(|piece| piece.len()).sum::<usize>();
        if self.tail.len() + length > self.tail.capacity() {
            self.grow(length);
        }
        for piece in pieces {
            self.tail.extend_from_slice(piece);
        }
    }

    /// Appends a fragment, without copying it when it is long.
    pub fn chain(&mut self, fragment: &Bytes) {
        if fragment.len() < CHAIN_FROM {
            self.push(fragment);
        } else {
            self.close_tail();
            self.chunks.push_back(fragment.clone());
        }
    }

    /// How many bytes it holds.
    pub fn len(&self) -> usize {
        self.chunks.iter().map(Bytes::len).sum::<usize>() + self.tail.len()
    }

    /// Whether it holds no bytes.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// All of it in one piece.
    pub fn into_bytes(mut self) -> Bytes {
        if self.chunks.is_empty() {
            return self.tail.into();
        }
        self.close_tail();
        if self.chunks.len() == 1
            && let Some(only) = self.chunks.pop_front()
        {
            return only;
        }
        let mut whole = Vec::with_capacity(self.len());
        self.chunks.iter().for_each(|chunk| whole.extend_from_slice(chunk));
        whole.into()
    }

    fn grow(&mut self, more: usize) {
        if self.tail.len() + more > CHUNK && !self.tail.is_empty() {
            // What is long goes on as such.
            self.close_tail();
            self.tail.reserve(CHUNK.max(more));
        } else {
            self.tail.reserve(more.max(SHORT));
        }
    }

    fn close_tail(&mut self) {
        if !self.tail.is_empty() {
            self.chunks.push_back(std::mem::take(&mut self.tail).into());
        }
    }
}

impl From<Bytes> for Rope {
    fn from(bytes: Bytes) -> Self {
        Rope { chunks: VecDeque::from([bytes]), tail: Vec::new() }
    }
}

/// The body of an answer.
#[derive(Debug, Default)]
pub struct Body {
    chunks: VecDeque<Bytes>,
}

impl From<Rope> for Body {
    fn from(mut rope: Rope) -> Self {
        rope.close_tail();
        rope.chunks.retain(|chunk| !chunk.is_empty());
        Body { chunks: rope.chunks }
    }
}

impl<T: Into<Bytes>> From<T> for Body {
    fn from(bytes: T) -> Self {
        Rope::from(bytes.into()).into()
    }
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Poll::Ready(self.chunks.pop_front().map(|chunk| Ok(Frame::data(chunk))))
    }

    fn is_end_stream(&self) -> bool {
        self.chunks.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.chunks.iter().map(|chunk| chunk.len() as u64).sum())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_of_all_lengths_are_sent_in_their_order() {
        let mut rope = Rope::new();
        let mut expected = Vec::new();
        for length in [0, 1, 1000, CHAIN_FROM - 1, CHAIN_FROM, 3, CHUNK, 5, CHUNK + 1, 0, 70_000, 2] {
            let piece: Vec<u8> = (0..length).map(|place| (place % 251) as u8).collect();
            for _ in 0..5 {
                rope.push(&piece);
                rope.chain(&piece.clone().into());
                expected.extend(piece.repeat(2));
            }
        }
        assert_eq!(rope.len(), expected.len());
        assert_eq!(rope.into_bytes(), expected);
    }

    #[test]
    fn little_text_after_a_fragment_takes_little_memory() {
        let mut rope = Rope::new();
        rope.chain(&vec![b'x'; CHAIN_FROM].into());
        rope.push(b"</list>");
        assert!(rope.tail.capacity() <= SHORT);
    }
}
