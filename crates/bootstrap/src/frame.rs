//! Authenticated frames: `length (4 bytes) | payload | HMAC (32 bytes)`, the HMAC over sequence number and
//! payload under a key of one direction. So a frame that is changed, repeated, left out, or sent back to its
//! sender is not authentic.

use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

use crate::secret::authenticate;

/// Bytes before the payload.
pub(crate) const HEADER: usize = 4;
/// Bytes after it.
pub(crate) const TAG: usize = 32;

/// One direction of one connection: its key and the number of the next frame.
pub(crate) struct Direction {
    key: Zeroizing<[u8; 32]>,
    next: u64,
}

impl Direction {
    pub(crate) fn new(key: [u8; 32]) -> Self {
        Self { key: Zeroizing::new(key), next: 0 }
    }

    fn tag(&self, payload: &[u8]) -> [u8; TAG] {
        authenticate(&self.key, &[b"frame", &self.next.to_be_bytes(), payload])
    }

    /// The next frame to send. `None` for a payload whose length does not fit the header.
    pub(crate) fn seal(&mut self, payload: &[u8]) -> Option<Vec<u8>> {
        let length = u32::try_from(payload.len()).ok()?;
        let mut frame = Vec::with_capacity(HEADER + payload.len() + TAG);
        frame.extend_from_slice(&length.to_be_bytes());
        frame.extend_from_slice(payload);
        frame.extend_from_slice(&self.tag(payload));
        self.next += 1;
        Some(frame)
    }

    /// Is this the next frame's payload? The length needs no check of its own: it decides what the payload is.
    pub(crate) fn open(&mut self, payload: &[u8], tag: &[u8; TAG]) -> bool {
        let authentic = bool::from(self.tag(payload).ct_eq(tag));
        if authentic {
            self.next += 1;
        }
        authentic
    }
}

/// The payload's length, if it is at most `most`: checked before anything is allocated.
pub(crate) fn payload_length(header: [u8; HEADER], most: usize) -> Result<usize, usize> {
    let length = u32::from_be_bytes(header) as usize;
    if length <= most { Ok(length) } else { Err(length) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn split(frame: &[u8]) -> (&[u8], &[u8; TAG]) {
        let (payload, tag) = frame[HEADER..].split_last_chunk().unwrap();
        (payload, tag)
    }

    #[test]
    fn frames_open_in_the_order_they_were_sealed_and_only_once() {
        let (mut sender, mut receiver) = (Direction::new([1; 32]), Direction::new([1; 32]));
        let first = sender.seal(b"one").unwrap();
        let second = sender.seal(b"two").unwrap();
        let (payload, tag) = split(&second);
        assert!(!receiver.open(payload, tag), "a frame was left out");
        let (payload, tag) = split(&first);
        assert!(receiver.open(payload, tag));
        assert!(!receiver.open(payload, tag), "a frame was repeated");
        let (payload, tag) = split(&second);
        assert!(receiver.open(payload, tag));
    }

    #[test]
    fn a_frame_sent_back_to_its_sender_is_not_authentic() {
        let (mut to_peer, mut from_peer) = (Direction::new([1; 32]), Direction::new([2; 32]));
        let frame = to_peer.seal(b"hello").unwrap();
        let (payload, tag) = split(&frame);
        assert!(!from_peer.open(payload, tag));
    }

    #[test]
    fn a_huge_length_is_refused_before_anything_is_allocated() {
        assert_eq!(payload_length([0xff; 4], 1 << 20), Err(u32::MAX as usize));
        assert_eq!(payload_length([0, 0, 1, 0], 256), Ok(256));
    }

    proptest! {
        #[test]
        fn one_flipped_bit_anywhere_is_noticed(payload in proptest::collection::vec(any::<u8>(), 0..64), bit in any::<usize>()) {
            let mut frame = Direction::new([3; 32]).seal(&payload).unwrap();
            let bit = bit % ((frame.len() - HEADER) * 8);
            frame[HEADER + bit / 8] ^= 1 << (bit % 8);
            let (payload, tag) = split(&frame);
            prop_assert!(!Direction::new([3; 32]).open(payload, tag));
        }
    }
}
