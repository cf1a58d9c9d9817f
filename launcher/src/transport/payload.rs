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
    #[inline(always)]
    #[expect(clippy::inline_always, reason = "part of the way of a short message")]
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
    #[inline(always)]
    #[expect(clippy::inline_always, reason = "part of the way of a short message")]
    unsafe fn copy_all(&self, to: *mut u8) {
        let [(first, length), (second, rest)] = self.parts;
        // SAFETY: by the caller's promise, and that given to `new`.
        unsafe {
            copy(first, to, length);
            if rest > 0 {
                copy_many(second, to.add(length), rest);
            }
        }
    }
}

/// So many bytes are copied in a few words, without a call.
const FEW: usize = 32;
/// From so many on it matters how they are copied.
const MANY: usize = 128;

/// Copies, as `ptr::copy_nonoverlapping`, at a speed that does not depend on the addresses.
///
/// # Safety
/// As that.
#[inline(always)]
#[expect(clippy::inline_always, reason = "part of the way of a short message")]
pub(crate) unsafe fn copy(from: *const u8, to: *mut u8, length: usize) {
    // SAFETY: by the caller's promise.
    unsafe {
        if length <= FEW {
            copy_few(from, to, length);
        } else if length < MANY {
            ptr::copy_nonoverlapping(from, to, length);
        } else {
            copy_many(from, to, length);
        }
    }
}

/// Copies at most [`FEW`] bytes: two words that overlap where they must.
///
/// # Safety
/// As `ptr::copy_nonoverlapping`.
#[inline(always)]
unsafe fn copy_few(from: *const u8, to: *mut u8, length: usize) {
    /// The first bytes, and the last.
    ///
    /// # Safety
    /// As its caller, for at least one word and at most two.
    #[inline]
    unsafe fn ends<W>(from: *const u8, to: *mut u8, length: usize) {
        let last = length - size_of::<W>();
        // SAFETY: both words are within so many bytes.
        unsafe {
            let (head, tail) =
                (from.cast::<W>().read_unaligned(), from.add(last).cast::<W>().read_unaligned());
            to.cast::<W>().write_unaligned(head);
            to.add(last).cast::<W>().write_unaligned(tail);
        }
    }
    // SAFETY: by the caller's promise; each has at least one word and at most two.
    unsafe {
        match length {
            8..=16 => ends::<u64>(from, to, length),
            17.. => ends::<u128>(from, to, length),
            4.. => ends::<u32>(from, to, length),
            2.. => ends::<u16>(from, to, length),
            1 => to.write(from.read()),
            0 => {}
        }
    }
}

/// Copies more.
///
/// # Safety
/// As `ptr::copy_nonoverlapping`.
#[inline(never)]
unsafe fn copy_many(from: *const u8, to: *mut u8, length: usize) {
    // SAFETY: by the caller's promise; the processor was asked.
    unsafe {
        #[cfg(all(target_arch = "x86_64", not(miri)))]
        if std::arch::is_x86_feature_detected!("avx") {
            return copy_straight(from, to, length);
        }
        copy_blocks(from, to, length);
    }
}

/// Copies from the first byte to the last in their order, as the processor expects that fetches lines ahead. C libraries begin with both
/// ends of what they copy, or leave it to `rep movsb`: of lines that another core has written that takes up to 1.8 times as long.
///
/// # Safety
/// As `ptr::copy_nonoverlapping`.
#[cfg(all(target_arch = "x86_64", not(miri)))]
#[target_feature(enable = "avx")]
unsafe fn copy_straight(from: *const u8, to: *mut u8, length: usize) {
    use std::arch::x86_64::{__m256i, _mm256_loadu_si256, _mm256_storeu_si256};
    /// Two lines.
    const TURN: usize = 4 * size_of::<__m256i>();
    let whole = length / TURN * TURN;
    // SAFETY: all is within both memories, by the caller's promise.
    unsafe {
        for at in (0..whole).step_by(TURN) {
            // One by one: an array of them is not sure to stay in registers, and copying takes twice as long where it does not.
            let (from, to) = (from.add(at).cast::<__m256i>(), to.add(at).cast::<__m256i>());
            let first = _mm256_loadu_si256(from);
            let second = _mm256_loadu_si256(from.add(1));
            let third = _mm256_loadu_si256(from.add(2));
            let fourth = _mm256_loadu_si256(from.add(3));
            _mm256_storeu_si256(to, first);
            _mm256_storeu_si256(to.add(1), second);
            _mm256_storeu_si256(to.add(2), third);
            _mm256_storeu_si256(to.add(3), fourth);
        }
        if length > whole {
            ptr::copy_nonoverlapping(from.add(whole), to.add(whole), length - whole);
        }
    }
}

/// Whole cache lines, and fewer bytes than those from which on C libraries copy with `rep movsb`: on some processors that takes
/// several times as long where both addresses have nearly the same place in their pages, as large buffers often do.
const BLOCK: usize = 1984;

/// Copies with the C library, at a speed that does not depend on the addresses.
///
/// # Safety
/// As `ptr::copy_nonoverlapping`.
unsafe fn copy_blocks(from: *const u8, to: *mut u8, length: usize) {
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

    #[test]
    fn every_way_copies_all_and_nothing_else() {
        type Copy = unsafe fn(*const u8, *mut u8, usize);
        let from: Vec<u8> = (0..9000_u32).map(|place| (place * 7 + place / 256) as u8).collect();
        let lengths = if cfg!(miri) { 0..70 } else { 0..600 };
        for length in lengths.chain([1984, 1985, 2048, 4096, 8191, 8192]) {
            for copy in [copy as Copy, copy_many, copy_blocks] {
                let mut to = vec![0xA5; length + 16];
                // SAFETY: both are within their vectors.
                unsafe { copy(from.as_ptr().add(3), to.as_mut_ptr().add(5), length) };
                assert!(to[5..5 + length] == from[3..3 + length], "{length}");
                assert!(to[..5].iter().chain(&to[5 + length..]).all(|byte| *byte == 0xA5), "{length}");
            }
        }
    }
}
