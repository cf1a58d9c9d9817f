//! The payload of a packet, where it has come to.
#![expect(unsafe_code, reason = "memory that other processes may write")]

use std::marker::PhantomData;
use std::ptr;

/// Bytes of a packet. They may be in memory that another process can still write, against the rules: so there is no slice of
/// them, only copies.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Payload<'a> {
    /// The second part follows the first: a ring's end may be between them.
    parts: [(*const u8, usize); 2],
    memory: PhantomData<&'a [u8]>,
}

impl<'a> From<&'a [u8]> for Payload<'a> {
    fn from(bytes: &'a [u8]) -> Self {
        Self { parts: [(bytes.as_ptr(), bytes.len()), (bytes.as_ptr(), 0)], memory: PhantomData }
    }
}

impl Payload<'_> {
    /// Of two parts: where each begins, and its length.
    ///
    /// # Safety
    /// Both must stay readable as long as the payload is used.
    #[inline]
    pub(crate) unsafe fn new(first: (*const u8, usize), second: (*const u8, usize)) -> Self {
        Self { parts: [first, second], memory: PhantomData }
    }

    /// How many bytes.
    #[inline]
    pub(crate) fn len(&self) -> usize {
        self.parts[0].1 + self.parts[1].1
    }

    /// Copies all of them.
    ///
    /// # Panics
    /// If `to` has another length.
    #[inline]
    pub(crate) fn copy_to(&self, to: &mut [u8]) {
        assert!(to.len() == self.len(), "{} bytes to copy to {}", self.len(), to.len());
        // SAFETY: there is room for both parts, by the assertion, and they can be read, by the promise given to `new` or as
        // they are a slice. `to` is nobody else's. Any bytes are valid.
        unsafe { self.copy_all(to.as_mut_ptr()) }
    }

    /// Copies all of them behind what is in a vector.
    pub(crate) fn append_to(&self, to: &mut Vec<u8>) {
        to.reserve(self.len());
        let length = to.len();
        // SAFETY: there is room for both parts behind the vector's bytes; the rest as in `copy_to`. The new length is of bytes
        // that have been written.
        unsafe {
            self.copy_all(to.as_mut_ptr().add(length));
            to.set_len(length + self.len());
        }
    }

    /// A copy.
    pub(crate) fn to_vec(self) -> Vec<u8> {
        let mut bytes = Vec::new();
        self.append_to(&mut bytes);
        bytes
    }

    /// # Safety
    /// There must be room for all at `to`, which no other reference leads to.
    #[inline]
    unsafe fn copy_all(&self, to: *mut u8) {
        let [(first, length), (second, rest)] = self.parts;
        // SAFETY: by the caller's promise, and that given to `new`.
        unsafe {
            copy(first, to, length);
            copy(second, to.add(length), rest);
        }
    }
}

/// Whole cache lines, and fewer bytes than those from which on C libraries copy with `rep movsb`: on some processors that takes
/// several times as long where both addresses have nearly the same place in their pages, as large buffers often do.
const BLOCK: usize = 1984;

/// Copies, as `ptr::copy_nonoverlapping`, at a speed that does not depend on the addresses.
///
/// # Safety
/// As that.
#[inline]
pub(crate) unsafe fn copy(from: *const u8, to: *mut u8, length: usize) {
    let mut done = 0;
    while done < length {
        let block = BLOCK.min(length - done);
        // SAFETY: both are within what the caller promises.
        unsafe { ptr::copy_nonoverlapping(from.add(done), to.add(done), block) };
        done += block;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_parts_come_in_their_order() {
        let bytes = [1, 2, 3, 4, 5, 6];
        // SAFETY: both are within the array.
        let payload = unsafe { Payload::new((bytes.as_ptr().add(3), 3), (bytes.as_ptr(), 2)) };
        assert_eq!(payload.len(), 5);
        let mut to = [0; 5];
        payload.copy_to(&mut to);
        assert_eq!(to, [4, 5, 6, 1, 2]);
        let mut all = vec![9];
        payload.append_to(&mut all);
        assert_eq!(all, [9, 4, 5, 6, 1, 2]);
        assert_eq!(Payload::from(&bytes[1..]).to_vec(), [2, 3, 4, 5, 6]);
    }
}
