//! Memory of the program's own, registered where it is, for as long as an operation needs it.
#![expect(unsafe_code, reason = "registers memory that a device reads or writes")]

use std::sync::Arc;

use rdma_mummy_sys as ffi;

use crate::context::ProtectionDomain;
use crate::error::{Error, Result};
use crate::registration_cache::with_room;

/// Who does what with registered memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Access {
    /// Peers that have its key read it.
    PeersRead,
    /// This rank's own operations write it.
    OwnWrite,
    /// Peers that have its key read and write it.
    PeersReadWrite,
}

/// A registration of memory that belongs to someone else (`ibv_reg_mr(3)`).
///
/// When it has been dropped no device accesses the memory any more: what an operation that is still outstanding would read or write
/// there, the device refuses, and the operation fails.
#[derive(Debug)]
pub struct Registration {
    raw: *mut ffi::ibv_mr,
    address: u64,
    length: usize,
    domain: Arc<ProtectionDomain>,
}

// SAFETY: the pointer is only handed to libibverbs, which may use it from any thread; it never changes until `drop`.
unsafe impl Send for Registration {}

impl Registration {
    /// Registers memory.
    ///
    /// # Errors
    /// [`Error::Length`]; [`Error::Call`], which for ENOMEM names the memlock limit.
    ///
    /// # Safety
    /// Until this is dropped, the memory must stay mapped where it is. With [`Access::PeersRead`] nobody may write to it; with
    /// [`Access::OwnWrite`] it must be writable, and nobody else may read or write it. With [`Access::PeersReadWrite`] it must be writable,
    /// and whoever reads or writes it must do so by atomic accesses alone.
    pub unsafe fn new(
        domain: &Arc<ProtectionDomain>,
        start: *const u8,
        length: usize,
        access: Access,
    ) -> Result<Self> {
        let flags = match access {
            Access::PeersRead => ffi::ibv_access_flags::IBV_ACCESS_REMOTE_READ,
            Access::OwnWrite => ffi::ibv_access_flags::IBV_ACCESS_LOCAL_WRITE,
            Access::PeersReadWrite => {
                ffi::ibv_access_flags::IBV_ACCESS_LOCAL_WRITE
                    | ffi::ibv_access_flags::IBV_ACCESS_REMOTE_WRITE
                    | ffi::ibv_access_flags::IBV_ACCESS_REMOTE_READ
            }
        };
        if length == 0 {
            return Err(Error::Length { what: "registered memory", length, most: usize::MAX });
        }
        let flags = i32::try_from(flags.0).unwrap_or_default();
        let raw = with_room(|| {
            // SAFETY: the memory is mapped, and stays so until ibv_dereg_mr (the caller's promise); without a right to write, the device
            // only reads it. The domain is kept by `self`.
            let raw = unsafe { ffi::ibv_reg_mr(domain.raw(), start.cast_mut().cast(), length, flags) };
            if raw.is_null() { Err(Error::last("ibv_reg_mr", domain.device())) } else { Ok(raw) }
        })?;
        Ok(Self { raw, address: start.addr() as u64, length, domain: Arc::clone(domain) })
    }

    /// What peers name it by.
    #[must_use]
    pub fn remote_key(&self) -> u32 {
        // SAFETY: a registration is a valid ibv_mr until ibv_dereg_mr, which only `drop` calls; its keys do not change.
        unsafe { (*self.raw).rkey }
    }

    /// Where it is in this process.
    #[must_use]
    pub fn address(&self) -> u64 {
        self.address
    }

    pub(crate) fn local_key(&self) -> u32 {
        // SAFETY: as in `remote_key`.
        unsafe { (*self.raw).lkey }
    }

    pub(crate) fn length(&self) -> usize {
        self.length
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        // SAFETY: made by ibv_reg_mr and ended once.
        let code = unsafe { ffi::ibv_dereg_mr(self.raw) };
        if let Err(error) = Error::check(code, "ibv_dereg_mr", self.domain.device()) {
            // The memory is its owner's, who will use it for something else, while a device may still write there.
            eprintln!(
                "roce-verbs: {error}: a device may still use memory that it must not; this process ends"
            );
            std::process::abort();
        }
    }
}
