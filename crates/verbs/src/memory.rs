//! Registered memory, of two kinds: what only this process's operations touch, and what peers may touch at
//! any moment. See "Soundness" in the crate's documentation.
#![expect(unsafe_code, reason = "allocates, registers and copies memory that a device writes")]

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::ptr::NonNull;
use std::sync::Arc;

use nix::unistd::{SysconfVar, sysconf};
use rdma_mummy_sys as ffi;

use crate::context::ProtectionDomain;
use crate::error::{Error, Result};
use crate::registration_cache::with_room;

/// The longest registration: what one work request can name.
const MAX_LENGTH: usize = u32::MAX as usize;

/// Zeroed pages of their own, registered (`ibv_reg_mr(3)`).
#[derive(Debug)]
pub(crate) struct Region {
    start: NonNull<u8>,
    layout: Layout,
    length: usize,
    registration: *mut ffi::ibv_mr,
    domain: Arc<ProtectionDomain>,
}

// SAFETY: a Region owns its pages and its registration; neither is tied to a thread.
unsafe impl Send for Region {}
// SAFETY: `&Region` gives out addresses and keys only; Buffer and Window say below who may access bytes.
unsafe impl Sync for Region {}

impl Region {
    pub(crate) fn register(
        domain: &Arc<ProtectionDomain>,
        length: usize,
        access: ffi::ibv_access_flags,
    ) -> Result<Self> {
        let wrong_length = || Error::Length { what: "registered memory", length, most: MAX_LENGTH };
        if length == 0 || length > MAX_LENGTH {
            return Err(wrong_length());
        }
        // Whole pages, so that a fork's page copies (MADV_DONTFORK of ibv_fork_init) concern nothing else.
        let page = match sysconf(SysconfVar::PAGE_SIZE) {
            Ok(Some(bytes)) => usize::try_from(bytes).unwrap_or(4096),
            _ => 4096,
        };
        let layout =
            Layout::from_size_align(length.next_multiple_of(page), page).map_err(|_| wrong_length())?;
        // SAFETY: the layout's size is at least one page.
        let start = unsafe { alloc_zeroed(layout) };
        let Some(start) = NonNull::new(start) else {
            let source = std::io::Error::from_raw_os_error(libc::ENOMEM);
            return Err(Error::call("allocating registered memory", domain.device(), source));
        };
        let flags = i32::try_from(access.0).unwrap_or_default();
        let registration = with_room(|| {
            // SAFETY: `start` has `length` writable bytes, which are freed only after ibv_dereg_mr; the domain
            // is kept by `self.domain`.
            let raw = unsafe { ffi::ibv_reg_mr(domain.raw(), start.as_ptr().cast(), length, flags) };
            if raw.is_null() { Err(Error::last("ibv_reg_mr", domain.device())) } else { Ok(raw) }
        });
        let registration = registration.inspect_err(|_| {
            // SAFETY: allocated above with this layout; the device never learned of it.
            unsafe { dealloc(start.as_ptr(), layout) };
        })?;
        Ok(Self { start, layout, length, registration, domain: Arc::clone(domain) })
    }

    /// The first of its bytes.
    pub(crate) fn start(&self) -> NonNull<u8> {
        self.start
    }

    /// The local and the remote key.
    pub(crate) fn keys(&self) -> (u32, u32) {
        // SAFETY: a registration is a valid ibv_mr until ibv_dereg_mr, which only `release` calls; its keys
        // do not change.
        unsafe { ((*self.registration).lkey, (*self.registration).rkey) }
    }

    fn check_range(&self, offset: usize, length: usize, what: &'static str) -> Result<()> {
        check_range(offset as u64, length as u64, self.length as u64, what)
    }

    fn release(&mut self) -> Result<()> {
        let registration = std::mem::replace(&mut self.registration, std::ptr::null_mut());
        if registration.is_null() {
            return Ok(());
        }
        // SAFETY: made by ibv_reg_mr and ended once: `registration` is null from here on.
        let code = unsafe { ffi::ibv_dereg_mr(registration) };
        // Where this fails, the device may still write the pages: they are leaked, not freed.
        Error::check(code, "ibv_dereg_mr", self.domain.device())?;
        // SAFETY: allocated with this layout; the device has forgotten it, and nothing else points to it.
        unsafe { dealloc(self.start.as_ptr(), self.layout) };
        Ok(())
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        // Dropping cannot report: `close` is for callers who want to know.
        let _ = self.release();
    }
}

pub(crate) fn check_range(offset: u64, length: u64, whole: u64, what: &'static str) -> Result<()> {
    match offset.checked_add(length) {
        Some(end) if end <= whole => Ok(()),
        end => Err(Error::OutOfRange { start: offset, end: end.unwrap_or(u64::MAX), what, length: whole }),
    }
}

/// Registered memory for the local side of an operation: what is sent, or where received bytes land.
///
/// Peers cannot reach it. While the program holds it, no operation uses it, so it is plain memory; posting
/// an operation takes it away until its completion brings it back.
#[derive(Debug)]
pub struct Buffer {
    // A word, since posting and completing move it.
    region: Box<Region>,
}

impl Buffer {
    /// Registers `length` zero bytes, 1 to 4 GiB - 1.
    ///
    /// # Errors
    /// [`Error::Length`]; [`Error::Call`], which for ENOMEM names the memlock limit.
    pub fn register(domain: &Arc<ProtectionDomain>, length: usize) -> Result<Self> {
        let region = Region::register(domain, length, ffi::ibv_access_flags::IBV_ACCESS_LOCAL_WRITE)?;
        Ok(Self { region: Box::new(region) })
    }

    /// Its bytes.
    #[must_use]
    pub fn as_slice(&self) -> &[u8] {
        // SAFETY: `start` has `length` initialised bytes. No device access is possible while `self` is held
        // (registered without remote access; an operation owns its buffer), so no one writes them; Rust's
        // borrow of `self` rules out writers in this process.
        unsafe { std::slice::from_raw_parts(self.region.start.as_ptr(), self.region.length) }
    }

    /// Its bytes, to be changed.
    #[must_use]
    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        // SAFETY: as in `as_slice`, with the exclusive borrow of `self`.
        unsafe { std::slice::from_raw_parts_mut(self.region.start.as_ptr(), self.region.length) }
    }

    /// How many bytes.
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "a buffer has at least one byte")]
    pub fn len(&self) -> usize {
        self.region.length
    }

    /// Ends the registration and reports how that went, which dropping cannot.
    ///
    /// # Errors
    /// [`Error::Call`]; the memory is then leaked.
    pub fn close(mut self) -> Result<()> {
        self.region.release()
    }

    pub(crate) fn domain(&self) -> &Arc<ProtectionDomain> {
        &self.region.domain
    }

    /// The scatter/gather element for bytes `0..length`.
    pub(crate) fn element(&self, length: usize) -> Result<ffi::ibv_sge> {
        self.region.check_range(0, length, "the buffer")?;
        let most = MAX_LENGTH;
        let length =
            u32::try_from(length).map_err(|_| Error::Length { what: "an operation", length, most })?;
        Ok(ffi::ibv_sge { addr: self.region.start.as_ptr() as u64, length, lkey: self.region.keys().0 })
    }
}

/// Registered memory that peers may read and write at any moment (RDMA write and read).
///
/// Its bytes are therefore copied in and out and never borrowed. What a copy sees while a peer writes is
/// some mixture of old and new bytes: let the peer say by a message when it is done.
#[derive(Debug)]
pub struct Window {
    region: Region,
}

impl Window {
    /// Registers `length` zero bytes, 1 to 4 GiB - 1, for remote access.
    ///
    /// # Errors
    /// [`Error::Length`]; [`Error::Call`], which for ENOMEM names the memlock limit.
    pub fn register(domain: &Arc<ProtectionDomain>, length: usize) -> Result<Self> {
        let access = ffi::ibv_access_flags::IBV_ACCESS_LOCAL_WRITE
            | ffi::ibv_access_flags::IBV_ACCESS_REMOTE_WRITE
            | ffi::ibv_access_flags::IBV_ACCESS_REMOTE_READ;
        Ok(Self { region: Region::register(domain, length, access)? })
    }

    /// What a peer needs to reach it. It stays valid until the window is dropped; after that the peer's
    /// operations fail with a remote access error.
    #[must_use]
    pub fn remote(&self) -> RemoteWindow {
        RemoteWindow {
            address: self.region.start.as_ptr() as u64,
            length: self.region.length as u64,
            key: self.region.keys().1,
        }
    }

    /// How many bytes.
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "a window has at least one byte")]
    pub fn len(&self) -> usize {
        self.region.length
    }

    /// Copies bytes out, from `offset`.
    ///
    /// # Errors
    /// [`Error::OutOfRange`].
    pub fn read(&self, offset: usize, bytes: &mut [u8]) -> Result<()> {
        self.region.check_range(offset, bytes.len(), "the window")?;
        for (i, byte) in bytes.iter_mut().enumerate() {
            // SAFETY: `offset + i` is inside the region. The device may write at the same time, which is no
            // access of this program's: a volatile read takes whatever byte is there. Threads of this
            // process write through `&mut self` only.
            *byte = unsafe { self.region.start.as_ptr().add(offset + i).read_volatile() };
        }
        Ok(())
    }

    /// Copies bytes in, to `offset`.
    ///
    /// # Errors
    /// [`Error::OutOfRange`].
    pub fn write(&mut self, offset: usize, bytes: &[u8]) -> Result<()> {
        self.region.check_range(offset, bytes.len(), "the window")?;
        for (i, &byte) in bytes.iter().enumerate() {
            // SAFETY: as in `read`; `&mut self` keeps other threads of this process away.
            unsafe { self.region.start.as_ptr().add(offset + i).write_volatile(byte) };
        }
        Ok(())
    }

    /// Ends the registration and reports how that went, which dropping cannot.
    ///
    /// # Errors
    /// [`Error::Call`]; the memory is then leaked.
    pub fn close(mut self) -> Result<()> {
        self.region.release()
    }
}

/// A peer's window: where it is and the key that opens it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RemoteWindow {
    address: u64,
    length: u64,
    key: u32,
}

impl RemoteWindow {
    /// Length of the form that travels.
    pub const BYTES: usize = 20;

    /// How many bytes the peer opened.
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "a window has at least one byte")]
    pub fn len(&self) -> u64 {
        self.length
    }

    /// The form that travels to a peer: address, length, key, each little-endian.
    #[must_use]
    pub fn to_bytes(self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        bytes[..8].copy_from_slice(&self.address.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.length.to_le_bytes());
        bytes[16..].copy_from_slice(&self.key.to_le_bytes());
        bytes
    }

    /// Reads what [`to_bytes`](Self::to_bytes) wrote. Any bytes are accepted: a wrong key or address can only
    /// make the peer's device refuse an operation.
    #[must_use]
    pub fn from_bytes(bytes: [u8; Self::BYTES]) -> Self {
        let [a0, a1, a2, a3, a4, a5, a6, a7, l0, l1, l2, l3, l4, l5, l6, l7, k0, k1, k2, k3] = bytes;
        Self {
            address: u64::from_le_bytes([a0, a1, a2, a3, a4, a5, a6, a7]),
            length: u64::from_le_bytes([l0, l1, l2, l3, l4, l5, l6, l7]),
            key: u32::from_le_bytes([k0, k1, k2, k3]),
        }
    }

    /// The address of bytes `offset..offset + length` at the peer, and the key.
    pub(crate) fn locate(self, offset: u64, length: usize) -> Result<(u64, u32)> {
        check_range(offset, length as u64, self.length, "the peer's window")?;
        Ok((self.address.wrapping_add(offset), self.key))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_remote_window_survives_the_journey() {
        let window = RemoteWindow { address: 0x7f00_1234_5678_9abc, length: 1 << 20, key: 0xdead_beef };
        assert_eq!(RemoteWindow::from_bytes(window.to_bytes()), window);
    }

    #[test]
    fn operations_outside_the_peers_window_are_refused_here() {
        let window = RemoteWindow { address: 0x1000, length: 16, key: 1 };
        assert_eq!(window.locate(8, 8).unwrap(), (0x1008, 1));
        for (offset, length) in [(9, 8), (17, 0), (u64::MAX, 2)] {
            assert!(
                matches!(window.locate(offset, length), Err(Error::OutOfRange { .. })),
                "{offset} {length}"
            );
        }
    }
}
