//! Memory that a program lends to an operation until it is over.
#![expect(
    unsafe_code,
    reason = "an operation outlives the call that starts it, and so the borrow of its memory"
)]

/// Memory to read from.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Lent {
    start: *const u8,
    length: usize,
}

/// Memory to write to.
#[derive(Debug)]
pub(crate) struct LentMut {
    start: *mut u8,
    length: usize,
}

impl Lent {
    /// # Safety
    /// The memory must stay where it is, and nobody may write to it, until the engine has forgotten the operation that this
    /// goes to.
    pub(crate) unsafe fn new(bytes: &[u8]) -> Self {
        Self { start: bytes.as_ptr(), length: bytes.len() }
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        // SAFETY: a live slice when it was lent; who lent it keeps it (see `new`).
        unsafe { std::slice::from_raw_parts(self.start, self.length) }
    }

    /// Where it is in this process.
    pub(crate) fn address(&self) -> u64 {
        self.start.addr() as u64
    }
}

impl LentMut {
    /// # Safety
    /// The memory must stay where it is, and nobody else may use it, until the engine has forgotten the operation that this
    /// goes to.
    pub(crate) unsafe fn new(bytes: &mut [u8]) -> Self {
        Self { start: bytes.as_mut_ptr(), length: bytes.len() }
    }

    pub(crate) fn bytes(&mut self) -> &mut [u8] {
        // SAFETY: a live slice when it was lent; who lent it keeps it and leaves it alone (see `new`), and this borrow is the
        // only one made of it at a time.
        unsafe { std::slice::from_raw_parts_mut(self.start, self.length) }
    }
}
