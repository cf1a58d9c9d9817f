//! A reliable connected queue pair: made, brought up, checked, and given work.
#![expect(unsafe_code, reason = "calls libibverbs")]

use std::sync::Arc;

use rdma_mummy_sys as ffi;

use crate::completion::{Operation, WorkId};
use crate::completion_queue::CompletionQueue;
use crate::connection::{self, Connection};
use crate::context::ProtectionDomain;
use crate::error::{Error, Result};
use crate::memory::{Buffer, RemoteWindow};
use crate::pair::{self, Pair};
use crate::readback::Readback;

/// How many operations may be outstanding on each queue of a pair.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Depth {
    /// Sends, RDMA writes and RDMA reads together.
    pub send: u32,
    /// Receives.
    pub receive: u32,
}

impl Default for Depth {
    /// 64 of each.
    fn default() -> Self {
        Self { send: 64, receive: 64 }
    }
}

/// An operation that was not posted, and its buffer.
#[derive(Debug, thiserror::Error)]
#[error("{operation} could not be posted")]
pub struct Rejected {
    /// What was to be posted.
    pub operation: Operation,
    /// Why.
    #[source]
    pub error: Box<Error>,
    /// The buffer, free for another attempt.
    pub buffer: Buffer,
}

impl From<Rejected> for Error {
    fn from(rejected: Rejected) -> Self {
        *rejected.error
    }
}

/// A reliable connected queue pair (`ibv_create_qp(3)`, IBV_QPT_RC). Both of its queues report to one
/// completion queue.
///
/// Dropping it gives up what is outstanding: those buffers are freed, and no completion tells of them.
#[derive(Debug)]
pub struct QueuePair {
    pair: Pair,
    completions: Arc<CompletionQueue>,
}

impl QueuePair {
    /// Makes one, in state RESET.
    ///
    /// # Errors
    /// [`Error::Call`], which for ENOMEM names the memlock limit.
    pub fn create(
        domain: &Arc<ProtectionDomain>,
        completions: &Arc<CompletionQueue>,
        depth: Depth,
    ) -> Result<Self> {
        let mut attributes = pair::blank();
        attributes.qp_type = ffi::ibv_qp_type::IBV_QPT_RC;
        attributes.send_cq = completions.raw();
        attributes.recv_cq = completions.raw();
        attributes.cap.max_send_wr = depth.send;
        attributes.cap.max_recv_wr = depth.receive;
        attributes.cap.max_send_sge = 1;
        attributes.cap.max_recv_sge = 1;
        // Every operation completes, because its buffer comes back with the completion.
        attributes.sq_sig_all = 1;
        // The completion queue is kept by `self`.
        let pair = Pair::create(domain, attributes)?;
        Ok(Self { pair, completions: Arc::clone(completions) })
    }

    /// Its number, which the peer needs (24 bits).
    #[must_use]
    pub fn number(&self) -> u32 {
        self.pair.number()
    }

    /// The protection domain that its memory must belong to.
    #[must_use]
    pub fn domain(&self) -> &Arc<ProtectionDomain> {
        self.pair.domain()
    }

    /// Where its operations report.
    #[must_use]
    pub fn completions(&self) -> &Arc<CompletionQueue> {
        &self.completions
    }

    /// RESET to INIT on a port (from 1). From here on receives may be posted.
    ///
    /// # Errors
    /// [`Error::Call`].
    pub fn initialize(&self, port: u8) -> Result<()> {
        self.pair.modify(connection::to_init(port))
    }

    /// INIT to RTR to RTS, then reads back what the kernel made of it. The peer may send as soon as this end
    /// is connected, but this end must not send before the peer is.
    ///
    /// # Errors
    /// [`Error::Call`], with a hint for a peer that this port cannot reach; [`Error::NotAsAsked`].
    pub fn connect(&self, connection: &Connection) -> Result<Readback> {
        self.pair.connect(connection)?;
        self.pair.read_back(connection)
    }

    /// Posts a receive: one incoming send lands in the buffer, which must be long enough for it.
    ///
    /// # Errors
    /// [`Rejected`] with [`Error::QueueFull`], [`Error::OtherDomain`] or [`Error::Call`].
    pub fn post_receive(&self, buffer: Buffer) -> Result<WorkId, Rejected> {
        let length = buffer.len();
        self.post(buffer, length, Operation::Receive, |element, id| {
            let mut request =
                ffi::ibv_recv_wr { wr_id: id.0, next: std::ptr::null_mut(), sg_list: element, num_sge: 1 };
            let mut bad = std::ptr::null_mut();
            // SAFETY: the queue pair exists until `release`. Request and element live during the call, which
            // copies them; the memory that the element names is held by the completion queue until the
            // operation completes or the queue pair is destroyed.
            unsafe { ffi::ibv_post_recv(self.pair.raw(), &raw mut request, &raw mut bad) }
        })
    }

    /// Posts a send of the buffer's first `length` bytes. It completes when the peer's device has
    /// acknowledged them, for which the peer must have posted a receive.
    ///
    /// # Errors
    /// As [`post_receive`](Self::post_receive), and [`Error::OutOfRange`].
    #[inline]
    pub fn post_send(&self, buffer: Buffer, length: usize) -> Result<WorkId, Rejected> {
        self.post_request(buffer, length, Operation::Send, None)
    }

    /// Posts an RDMA write of the buffer's first `length` bytes to `offset` of a peer's window. It completes when the
    /// peer's device has acknowledged them; the peer's program is not told.
    ///
    /// # Errors
    /// As [`post_receive`](Self::post_receive), and [`Error::OutOfRange`].
    #[inline]
    pub fn post_write(
        &self,
        buffer: Buffer,
        length: usize,
        window: RemoteWindow,
        offset: u64,
    ) -> Result<WorkId, Rejected> {
        self.post_request(buffer, length, Operation::Write, Some((window, offset)))
    }

    /// Posts an RDMA read of `length` bytes from `offset` of a peer's window into the start of the buffer.
    ///
    /// # Errors
    /// As [`post_receive`](Self::post_receive), and [`Error::OutOfRange`].
    #[inline]
    pub fn post_read(
        &self,
        buffer: Buffer,
        length: usize,
        window: RemoteWindow,
        offset: u64,
    ) -> Result<WorkId, Rejected> {
        self.post_request(buffer, length, Operation::Read, Some((window, offset)))
    }

    fn post_request(
        &self,
        buffer: Buffer,
        length: usize,
        operation: Operation,
        target: Option<(RemoteWindow, u64)>,
    ) -> Result<WorkId, Rejected> {
        let remote = match target.map(|(window, offset)| window.locate(offset, length)).transpose() {
            Ok(remote) => remote,
            Err(error) => return Err(rejected(operation, error, buffer)),
        };
        self.post(buffer, length, operation, |element, id| {
            // SAFETY: ibv_send_wr is integers, pointers for which null is a value, and unions of those.
            let mut request: ffi::ibv_send_wr = unsafe { std::mem::zeroed() };
            request.wr_id = id.0;
            request.sg_list = element;
            request.num_sge = 1;
            request.send_flags = ffi::ibv_send_flags::IBV_SEND_SIGNALED.0;
            request.opcode = match operation {
                Operation::Write => ffi::ibv_wr_opcode::IBV_WR_RDMA_WRITE,
                Operation::Read => ffi::ibv_wr_opcode::IBV_WR_RDMA_READ,
                Operation::Send | Operation::Receive => ffi::ibv_wr_opcode::IBV_WR_SEND,
            };
            if let Some((remote_addr, rkey)) = remote {
                request.wr.rdma = ffi::rdma_t { remote_addr, rkey };
            }
            let mut bad = std::ptr::null_mut();
            // SAFETY: as in `post_receive`.
            unsafe { ffi::ibv_post_send(self.pair.raw(), &raw mut request, &raw mut bad) }
        })
    }

    #[inline]
    fn post(
        &self,
        buffer: Buffer,
        length: usize,
        operation: Operation,
        call: impl FnOnce(*mut ffi::ibv_sge, WorkId) -> i32,
    ) -> Result<WorkId, Rejected> {
        let element = if Arc::ptr_eq(buffer.domain(), self.domain()) {
            buffer.element(length)
        } else {
            Err(self.other_domain(&buffer))
        };
        let mut element = match element {
            Ok(element) => element,
            Err(error) => return Err(rejected(operation, error, buffer)),
        };
        let name = if operation == Operation::Receive { "ibv_post_recv" } else { "ibv_post_send" };
        self.completions
            .submit(buffer, length, operation, self.number(), None, |id| {
                self.pair.check(call(&raw mut element, id), name)
            })
            .map_err(|(buffer, error)| Rejected { operation, error, buffer })
    }

    #[cold]
    fn other_domain(&self, buffer: &Buffer) -> Error {
        let (buffer, queue_pair) = (buffer.domain().device().to_owned(), self.domain().device().to_owned());
        Error::OtherDomain { buffer, queue_pair }
    }

    /// Destroys it and reports how that went, which dropping cannot.
    ///
    /// # Errors
    /// [`Error::Call`]; the buffers of what was outstanding are then leaked.
    pub fn close(mut self) -> Result<()> {
        self.release()
    }

    fn release(&mut self) -> Result<()> {
        if self.pair.raw().is_null() {
            return Ok(());
        }
        if let Err(error) = self.pair.destroy() {
            self.completions.leak(self.number());
            return Err(error);
        }
        // The device has let go of the buffers of what was outstanding.
        self.completions.forget(self.number())
    }
}

#[cold]
fn rejected(operation: Operation, error: Error, buffer: Buffer) -> Rejected {
    Rejected { operation, error: Box::new(error), buffer }
}

impl Drop for QueuePair {
    fn drop(&mut self) {
        // Dropping cannot report: `close` is for callers who want to know.
        let _ = self.release();
    }
}
