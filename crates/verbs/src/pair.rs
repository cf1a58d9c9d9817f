//! A queue pair of any kind: made, changed, asked, destroyed. What may be posted to it is its owners' business.
#![expect(unsafe_code, reason = "calls libibverbs")]

use std::sync::Arc;

use rdma_mummy_sys as ffi;
use rdma_mummy_sys::ibv_qp_attr_mask as Mask;

use crate::connection::{self, Connection, Step};
use crate::context::ProtectionDomain;
use crate::error::{Error, Result};
use crate::readback::{self, Readback};
use crate::registration_cache::with_room;

/// A queue pair; its completion queues and its shared receive queue are kept by whoever keeps this.
#[derive(Debug)]
pub(crate) struct Pair {
    raw: *mut ffi::ibv_qp,
    number: u32,
    domain: Arc<ProtectionDomain>,
}

// SAFETY: libibverbs' functions on a queue pair may be called from any thread, several at once (posting
// locks the queue).
unsafe impl Send for Pair {}
// SAFETY: as above.
unsafe impl Sync for Pair {}

/// All-zero attributes: no queues, no room.
pub(crate) fn blank() -> ffi::ibv_qp_init_attr {
    // SAFETY: ibv_qp_init_attr is pointers, for which null is a value, and integers.
    unsafe { std::mem::zeroed() }
}

impl Pair {
    /// In state RESET. `attributes` name queues that exist, and that the caller keeps as long as this.
    pub(crate) fn create(domain: &Arc<ProtectionDomain>, attributes: ffi::ibv_qp_init_attr) -> Result<Self> {
        let raw = with_room(|| {
            let mut attributes = attributes;
            // SAFETY: the domain is kept by `self`, the queues by the caller; `attributes` lives during the call.
            let raw = unsafe { ffi::ibv_create_qp(domain.raw(), &raw mut attributes) };
            if raw.is_null() { Err(Error::last("ibv_create_qp", domain.device())) } else { Ok(raw) }
        })?;
        // SAFETY: `raw` is a valid queue pair, whose number does not change.
        let number = unsafe { (*raw).qp_num };
        Ok(Self { raw, number, domain: Arc::clone(domain) })
    }

    pub(crate) fn number(&self) -> u32 {
        self.number
    }

    pub(crate) fn domain(&self) -> &Arc<ProtectionDomain> {
        &self.domain
    }

    /// Null once it is destroyed.
    pub(crate) fn raw(&self) -> *mut ffi::ibv_qp {
        self.raw
    }

    /// `rxe0 (queue pair 17)`
    pub(crate) fn named(&self) -> String {
        format!("{} (queue pair {})", self.domain.device(), self.number)
    }

    /// What a call has returned, as an error that names this queue pair.
    #[inline]
    pub(crate) fn check(&self, code: i32, call: &'static str) -> Result<()> {
        if code == 0 { Ok(()) } else { self.failed(code, call) }
    }

    /// Of its own, for the name takes longer than the call.
    #[cold]
    fn failed(&self, code: i32, call: &'static str) -> Result<()> {
        Error::check(code, call, &self.named())
    }

    pub(crate) fn modify(&self, mut step: Step) -> Result<()> {
        // SAFETY: the queue pair exists until `destroy`; the attributes live during the call.
        let code = unsafe { ffi::ibv_modify_qp(self.raw, &raw mut step.attributes, bits(step.mask)) };
        self.check(code, step.call)
    }

    /// INIT to RTR to RTS.
    pub(crate) fn connect(&self, connection: &Connection) -> Result<()> {
        self.modify(connection.to_rtr())?;
        self.modify(connection.to_rts())
    }

    /// Reads back what the kernel made of it.
    pub(crate) fn read_back(&self, connection: &Connection) -> Result<Readback> {
        readback::check(connection, &self.query()?, self.domain.device(), self.number)
    }

    fn query(&self) -> Result<ffi::ibv_qp_attr> {
        let all = Mask::IBV_QP_STATE
            | Mask::IBV_QP_AV
            | Mask::IBV_QP_PATH_MTU
            | Mask::IBV_QP_DEST_QPN
            | Mask::IBV_QP_TIMEOUT
            | Mask::IBV_QP_RETRY_CNT
            | Mask::IBV_QP_RNR_RETRY
            | Mask::IBV_QP_MIN_RNR_TIMER
            | Mask::IBV_QP_MAX_QP_RD_ATOMIC
            | Mask::IBV_QP_MAX_DEST_RD_ATOMIC;
        let mut attributes = connection::blank();
        let mut initial = blank();
        // SAFETY: the queue pair exists until `destroy`; both structs live during the call.
        let code = unsafe { ffi::ibv_query_qp(self.raw, &raw mut attributes, bits(all), &raw mut initial) };
        self.check(code, "ibv_query_qp")?;
        Ok(attributes)
    }

    /// Ends it; the second time there is nothing to do.
    pub(crate) fn destroy(&mut self) -> Result<()> {
        let raw = std::mem::replace(&mut self.raw, std::ptr::null_mut());
        if raw.is_null() {
            return Ok(());
        }
        // SAFETY: made by ibv_create_qp and destroyed once: `raw` is null from here on.
        let code = unsafe { ffi::ibv_destroy_qp(raw) };
        Error::check(code, "ibv_destroy_qp", &self.named())
    }
}

impl Drop for Pair {
    fn drop(&mut self) {
        // Dropping cannot report: `close` of its owner is for callers who want to know.
        let _ = self.destroy();
    }
}

/// The mask as libibverbs takes it. Every bit in use is below 2^26.
fn bits(mask: Mask) -> i32 {
    i32::try_from(mask.0).unwrap_or_default()
}
