//! What has come over a connection and was not taken yet.

use crate::frame::{HEADER, payload_length};

/// What was kept of a long message is given back when less than this is needed.
const KEEP: usize = 64 * 1024;

/// Bytes in the order of their coming.
#[derive(Default, Debug)]
pub(crate) struct Inbox(Vec<u8>);

impl Inbox {
    pub(crate) fn add(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// The next so many bytes, if they are here.
    pub(crate) fn take<const COUNT: usize>(&mut self) -> Option<[u8; COUNT]> {
        let bytes = *self.0.first_chunk()?;
        self.0.drain(..COUNT);
        Some(bytes)
    }

    /// The next frame's payload and the `tail` bytes behind it, if they are here; its length if that is over `most`.
    pub(crate) fn frame(&mut self, most: usize, tail: usize) -> Result<Option<Vec<u8>>, usize> {
        let Some(&header) = self.0.first_chunk::<HEADER>() else { return Ok(None) };
        let end = HEADER + payload_length(header, most)? + tail;
        if self.0.len() < end {
            return Ok(None);
        }
        let frame = self.0[HEADER..end].to_vec();
        self.0.drain(..end);
        if self.0.is_empty() && self.0.capacity() > KEEP {
            self.0 = Vec::new();
        }
        Ok(Some(frame))
    }
}
