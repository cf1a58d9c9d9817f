//! An open device and its protection domain: what everything else is made on.
#![expect(unsafe_code, reason = "calls libibverbs")]

use std::mem::MaybeUninit;
use std::sync::Arc;

use rdma_mummy_sys as ffi;

use crate::error::{Error, Result};
use crate::library::DeviceList;
use crate::mtu::Mtu;

/// An open RDMA device (`ibv_open_device(3)`).
#[derive(Debug)]
pub struct Context {
    raw: *mut ffi::ibv_context,
    device: String,
}

// SAFETY: libibverbs' functions may be called from any thread and from several at once on one context
// (ibv_open_device's context has its own locks); the pointer itself never changes until `close`.
unsafe impl Send for Context {}
// SAFETY: as above.
unsafe impl Sync for Context {}

/// What a device allows, as far as this crate needs it (`ibv_query_device(3)`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limits {
    /// RDMA reads and atomics that a queue pair may have outstanding as the asking side.
    pub max_initiator_depth: u8,
    /// RDMA reads and atomics that a queue pair answers at once.
    pub max_responder_depth: u8,
    /// Entries of one completion queue.
    pub max_cq_entries: u32,
    /// Work requests of one queue.
    pub max_work_requests: u32,
    /// Receives of one shared receive queue; 0 where there is none.
    pub max_shared_receives: u32,
    /// Is it soft-RoCE, the kernel's own device?
    pub is_soft: bool,
}

/// A port now (`ibv_query_port(3)`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PortState {
    /// Is its state ACTIVE?
    pub active: bool,
    /// Is its link layer Ethernet, so that it speaks RoCE?
    pub ethernet: bool,
    /// The MTU in force, which follows the netdev's.
    pub active_mtu: Mtu,
}

/// The vendor that soft-RoCE gives.
const SOFT_ROCE: u32 = 0x00ff_ffff;

impl Context {
    /// Opens a device by its name under `/sys/class/infiniband`.
    ///
    /// # Errors
    /// [`Error::LibraryMissing`], [`Error::DeviceList`], [`Error::NoSuchDevice`] with the names there are,
    /// or [`Error::Call`].
    pub fn open(device: &str) -> Result<Arc<Self>> {
        let list = DeviceList::read()?;
        let Some((_, found)) = list.names().find(|(name, _)| name == device) else {
            let names: Vec<String> = list.names().map(|(name, _)| name).collect();
            let present = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
            return Err(Error::NoSuchDevice { device: device.to_owned(), present });
        };
        // SAFETY: `found` belongs to `list`, which lives until the end of this function.
        let raw = unsafe { ffi::ibv_open_device(found) };
        if raw.is_null() {
            return Err(Error::last("ibv_open_device", device));
        }
        Ok(Arc::new(Self { raw, device: device.to_owned() }))
    }

    /// The device's name.
    #[must_use]
    pub fn device(&self) -> &str {
        &self.device
    }

    pub(crate) fn raw(&self) -> *mut ffi::ibv_context {
        self.raw
    }

    /// What the device allows.
    ///
    /// # Errors
    /// [`Error::Call`].
    pub fn limits(&self) -> Result<Limits> {
        let mut attr = MaybeUninit::<ffi::ibv_device_attr>::zeroed();
        // SAFETY: the context is open; `attr` is a valid place for the struct during the call.
        let code = unsafe { ffi::ibv_query_device(self.raw, attr.as_mut_ptr()) };
        Error::check(code, "ibv_query_device", &self.device)?;
        // SAFETY: plain integers and byte arrays, for which all zeros is a value; the call filled it.
        let attr = unsafe { attr.assume_init() };
        let depth = |value: i32| u8::try_from(value.max(0)).unwrap_or(u8::MAX);
        Ok(Limits {
            max_initiator_depth: depth(attr.max_qp_init_rd_atom),
            max_responder_depth: depth(attr.max_qp_rd_atom),
            max_cq_entries: attr.max_cqe.max(0).unsigned_abs(),
            max_work_requests: attr.max_qp_wr.max(0).unsigned_abs(),
            max_shared_receives: attr.max_srq_wr.max(0).unsigned_abs(),
            is_soft: attr.vendor_id == SOFT_ROCE,
        })
    }

    /// State, link layer and MTU of a port (from 1) now.
    ///
    /// # Errors
    /// [`Error::Call`]; EINVAL for a port that the device does not have.
    pub fn port(&self, port: u8) -> Result<PortState> {
        let named = || format!("{}:{port}", self.device);
        let mut attr = MaybeUninit::<ffi::ibv_port_attr>::zeroed();
        // SAFETY: the context is open; `attr` is a valid place for the struct during the call, and older
        // providers that fill a shorter one leave the zeros.
        let code = unsafe { ffi::ibv_query_port(self.raw, port, attr.as_mut_ptr()) };
        Error::check(code, "ibv_query_port", &named())?;
        // SAFETY: plain integers, for which all zeros is a value; the call filled it.
        let attr = unsafe { attr.assume_init() };
        let unknown_mtu = || Error::NotAsAsked {
            device: named(),
            qp_number: 0,
            field: "an active_mtu of",
            asked: "1-5".to_owned(),
            reported: attr.active_mtu.to_string(),
        };
        Ok(PortState {
            active: attr.state == ffi::ibv_port_state::IBV_PORT_ACTIVE,
            ethernet: attr.link_layer == ffi::IBV_LINK_LAYER_ETHERNET,
            active_mtu: Mtu::from_verbs(attr.active_mtu).ok_or_else(unknown_mtu)?,
        })
    }

    /// Closes the device and reports how that went, which dropping cannot.
    ///
    /// # Errors
    /// [`Error::StillInUse`] while other handles hold it (they will close it), [`Error::Call`].
    pub fn close(self: Arc<Self>) -> Result<()> {
        sole_owner(self, "the context", Self::device)?.release()
    }

    fn release(&mut self) -> Result<()> {
        let raw = std::mem::replace(&mut self.raw, std::ptr::null_mut());
        if raw.is_null() {
            return Ok(());
        }
        // SAFETY: opened by ibv_open_device and closed once: `raw` is null from here on. Everything made on
        // it holds an Arc of this context, so nothing of it is left.
        let code = unsafe { ffi::ibv_close_device(raw) };
        Error::check(code, "ibv_close_device", &self.device)
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // Dropping cannot report: `close` is for callers who want to know.
        let _ = self.release();
    }
}

/// The handle itself, if nobody else holds it.
pub(crate) fn sole_owner<T>(handle: Arc<T>, what: &'static str, device: impl Fn(&T) -> &str) -> Result<T> {
    Arc::try_unwrap(handle).map_err(|handle| Error::StillInUse {
        handle: what,
        device: device(&handle).to_owned(),
        users: Arc::strong_count(&handle) - 1,
    })
}

/// A protection domain (`ibv_alloc_pd(3)`): memory and queue pairs work together within one only.
#[derive(Debug)]
pub struct ProtectionDomain {
    raw: *mut ffi::ibv_pd,
    context: Arc<Context>,
}

// SAFETY: as for Context: the pointer is only handed to libibverbs, which locks for itself.
unsafe impl Send for ProtectionDomain {}
// SAFETY: as above.
unsafe impl Sync for ProtectionDomain {}

impl ProtectionDomain {
    /// Makes one on an open device.
    ///
    /// # Errors
    /// [`Error::Call`].
    pub fn create(context: &Arc<Context>) -> Result<Arc<Self>> {
        // SAFETY: the context is open, and stays so: `self.context` holds it.
        let raw = unsafe { ffi::ibv_alloc_pd(context.raw()) };
        if raw.is_null() {
            return Err(Error::last("ibv_alloc_pd", context.device()));
        }
        Ok(Arc::new(Self { raw, context: Arc::clone(context) }))
    }

    /// The device it is on.
    #[must_use]
    pub fn context(&self) -> &Arc<Context> {
        &self.context
    }

    pub(crate) fn device(&self) -> &str {
        self.context.device()
    }

    pub(crate) fn raw(&self) -> *mut ffi::ibv_pd {
        self.raw
    }

    /// Frees it and reports how that went, which dropping cannot.
    ///
    /// # Errors
    /// [`Error::StillInUse`] while memory or queue pairs hold it, [`Error::Call`].
    pub fn close(self: Arc<Self>) -> Result<()> {
        sole_owner(self, "the protection domain", Self::device)?.release()
    }

    fn release(&mut self) -> Result<()> {
        let raw = std::mem::replace(&mut self.raw, std::ptr::null_mut());
        if raw.is_null() {
            return Ok(());
        }
        // SAFETY: made by ibv_alloc_pd and freed once: `raw` is null from here on. Memory and queue pairs of
        // this domain hold an Arc of it, so none is left.
        let code = unsafe { ffi::ibv_dealloc_pd(raw) };
        Error::check(code, "ibv_dealloc_pd", self.context.device())
    }
}

impl Drop for ProtectionDomain {
    fn drop(&mut self) {
        // Dropping cannot report: `close` is for callers who want to know.
        let _ = self.release();
    }
}
