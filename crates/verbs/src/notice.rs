//! What the kernel tells without being asked, through file descriptors that can be waited for: completions, and what happens to
//! devices and their ports. Nothing here waits.
#![expect(unsafe_code, reason = "calls libibverbs")]

use std::mem::MaybeUninit;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use rdma_mummy_sys as ffi;

use crate::context::Context;
use crate::error::{Error, Result};

/// Where a completion queue tells that it has something (`ibv_create_comp_channel(3)`).
#[derive(Debug)]
pub(crate) struct Channel {
    raw: *mut ffi::ibv_comp_channel,
    _context: Arc<Context>,
}

// SAFETY: the pointer is only handed to libibverbs, which may use it from any thread; it never changes until `drop`.
unsafe impl Send for Channel {}
// SAFETY: as above.
unsafe impl Sync for Channel {}

impl Channel {
    pub(crate) fn create(context: &Arc<Context>) -> Result<Self> {
        // SAFETY: the context is open and kept by `self`.
        let raw = unsafe { ffi::ibv_create_comp_channel(context.raw()) };
        if raw.is_null() {
            return Err(Error::last("ibv_create_comp_channel", context.device()));
        }
        let channel = Self { raw, _context: Arc::clone(context) };
        never_wait(channel.descriptor(), "setting O_NONBLOCK on a completion channel", context.device())?;
        Ok(channel)
    }

    pub(crate) fn raw(&self) -> *mut ffi::ibv_comp_channel {
        self.raw
    }

    pub(crate) fn descriptor(&self) -> BorrowedFd<'_> {
        // SAFETY: the channel and its descriptor exist until `drop`, and the borrow ends before.
        unsafe { BorrowedFd::borrow_raw((*self.raw).fd) }
    }

    /// Takes what was told so far.
    pub(crate) fn clear(&self) {
        let (mut queue, mut cookie) = (std::ptr::null_mut(), std::ptr::null_mut());
        // SAFETY: the channel exists until `drop`; its descriptor doesn't block. What it gives is a queue of this channel, which its
        // owner keeps as long as the channel.
        while unsafe { ffi::ibv_get_cq_event(self.raw, &raw mut queue, &raw mut cookie) } == 0 {
            // SAFETY: as above; each event is acknowledged once.
            unsafe { ffi::ibv_ack_cq_events(queue, 1) };
        }
    }
}

impl Drop for Channel {
    fn drop(&mut self) {
        // SAFETY: made by ibv_create_comp_channel and destroyed once; its completion queue is gone before.
        let _ = unsafe { ffi::ibv_destroy_comp_channel(self.raw) };
    }
}

/// What happened to a device (`ibv_get_async_event(3)`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Event {
    /// A port's state, its GIDs or its addresses changed: look at it.
    Port(u8),
    /// A queue pair failed, and which way.
    QueuePair(u32, &'static str),
    /// The device failed: nothing on it works any more.
    DeviceFailed,
    /// What needs no answer, by its number.
    Other(u32),
}

impl Context {
    /// Readable when [`next_event`](Self::next_event) has something.
    ///
    /// # Errors
    /// [`Error::Call`].
    pub fn events(&self) -> Result<BorrowedFd<'_>> {
        never_wait(self.descriptor(), "setting O_NONBLOCK on a device's events", self.device())?;
        Ok(self.descriptor())
    }

    /// The same once [`events`](Self::events) has been called.
    #[must_use]
    pub fn descriptor(&self) -> BorrowedFd<'_> {
        // SAFETY: the context is open, and so is its descriptor, until it is closed; the borrow ends before.
        unsafe { BorrowedFd::borrow_raw((*self.raw()).async_fd) }
    }

    /// The next thing that happened to the device, if there is one now and [`events`](Self::events) was called before.
    #[must_use]
    pub fn next_event(&self) -> Option<Event> {
        let mut event = MaybeUninit::<ffi::ibv_async_event>::zeroed();
        // SAFETY: the context is open; `event` is a valid place for the struct during the call.
        if unsafe { ffi::ibv_get_async_event(self.raw(), event.as_mut_ptr()) } != 0 {
            return None;
        }
        let place = event.as_mut_ptr();
        // SAFETY: filled by the call. The type is read as the number that it is in C: the enum's list may be shorter than the kernel's.
        let kind = unsafe { (&raw const (*place).event_type).cast::<u32>().read() };
        let (number, port) = match kind {
            // SAFETY: these kinds fill this member of the union (ibv_get_async_event(3)), and a queue pair that is told of exists until
            // the event is acknowledged: ibv_destroy_qp waits for that.
            1..=3 | 7 => (unsafe { (*(*place).element.qp).qp_num }, 0),
            // SAFETY: these kinds fill this member.
            9..=13 | 17 | 18 => (0, unsafe { (*place).element.port_num }),
            _ => (0, 0),
        };
        // SAFETY: got above, and acknowledged once.
        unsafe { ffi::ibv_ack_async_event(place) };
        Some(match kind {
            1 => Event::QueuePair(number, "fatal error"),
            2 => Event::QueuePair(number, "invalid request"),
            3 => Event::QueuePair(number, "access violation"),
            7 => Event::QueuePair(number, "path migration failed"),
            8 => Event::DeviceFailed,
            9..=13 | 17 | 18 => u8::try_from(port).map_or(Event::Other(kind), Event::Port),
            _ => Event::Other(kind),
        })
    }
}

/// Has calls on a descriptor return at once.
fn never_wait(descriptor: BorrowedFd<'_>, what: &'static str, device: &str) -> Result<()> {
    let failed = |errno: nix::Error| Error::call(what, device, errno.into());
    let flags = fcntl(descriptor, FcntlArg::F_GETFL).map_err(failed)?;
    fcntl(descriptor, FcntlArg::F_SETFL(OFlag::from_bits_retain(flags) | OFlag::O_NONBLOCK))
        .map_err(failed)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use rdma_mummy_sys::ibv_event_type as kinds;

    /// The numbers that `next_event` knows, as verbs.h has them.
    #[test]
    fn the_kinds_of_events_are_those_of_verbs_h() {
        let known = [
            kinds::IBV_EVENT_CQ_ERR as u32,
            kinds::IBV_EVENT_QP_FATAL as u32,
            kinds::IBV_EVENT_QP_REQ_ERR as u32,
            kinds::IBV_EVENT_QP_ACCESS_ERR as u32,
            kinds::IBV_EVENT_COMM_EST as u32,
            kinds::IBV_EVENT_SQ_DRAINED as u32,
            kinds::IBV_EVENT_PATH_MIG as u32,
            kinds::IBV_EVENT_PATH_MIG_ERR as u32,
            kinds::IBV_EVENT_DEVICE_FATAL as u32,
            kinds::IBV_EVENT_PORT_ACTIVE as u32,
            kinds::IBV_EVENT_PORT_ERR as u32,
            kinds::IBV_EVENT_LID_CHANGE as u32,
            kinds::IBV_EVENT_PKEY_CHANGE as u32,
            kinds::IBV_EVENT_SM_CHANGE as u32,
            kinds::IBV_EVENT_SRQ_ERR as u32,
            kinds::IBV_EVENT_SRQ_LIMIT_REACHED as u32,
            kinds::IBV_EVENT_QP_LAST_WQE_REACHED as u32,
            kinds::IBV_EVENT_CLIENT_REREGISTER as u32,
            kinds::IBV_EVENT_GID_CHANGE as u32,
        ];
        assert_eq!(known, std::array::from_fn(|number| number as u32));
    }
}
