//! Unreliable datagrams: small messages to anyone, before there is a connection.
#![expect(unsafe_code, reason = "calls libibverbs")]

use std::sync::Arc;

use rdma_mummy_sys as ffi;

use crate::completion::{Operation, WorkId};
use crate::completion_queue::CompletionQueue;
use crate::connection::{self, Path};
use crate::context::ProtectionDomain;
use crate::error::{Error, Result};
use crate::memory::Buffer;
use crate::pair::{self, Pair};
use crate::queue_pair::{Depth, Rejected};

/// A received datagram begins after so many bytes: the place of a global routing header, which is filled or not.
pub const DATAGRAM_OFFSET: usize = 40;

/// Where datagrams can be sent to (`ibv_create_ah(3)`). It lives until all that were posted with it have left.
#[derive(Debug)]
pub struct Address {
    raw: *mut ffi::ibv_ah,
    _domain: Arc<ProtectionDomain>,
}

// SAFETY: the pointer is only handed to libibverbs, which may use it from any thread; it never changes until `drop`.
unsafe impl Send for Address {}
// SAFETY: as above.
unsafe impl Sync for Address {}

impl Address {
    /// Makes one; the kernel resolves the peer's address now.
    ///
    /// # Errors
    /// [`Error::Call`], with a hint for a peer that this port cannot reach.
    pub fn create(domain: &Arc<ProtectionDomain>, path: Path) -> Result<Arc<Self>> {
        let mut attributes = path.attributes();
        // SAFETY: the domain is kept by `self`; `attributes` lives during the call.
        let raw = unsafe { ffi::ibv_create_ah(domain.raw(), &raw mut attributes) };
        if raw.is_null() {
            return Err(Error::last("ibv_create_ah", domain.device()));
        }
        Ok(Arc::new(Self { raw, _domain: Arc::clone(domain) }))
    }
}

impl Drop for Address {
    fn drop(&mut self) {
        // SAFETY: made by ibv_create_ah and destroyed once; every request that names it has completed, or its queue pair is gone.
        let _ = unsafe { ffi::ibv_destroy_ah(self.raw) };
    }
}

/// An unreliable datagram queue pair (IBV_QPT_UD), ready to send and to receive.
///
/// A receive's buffer needs [`DATAGRAM_OFFSET`] bytes more than the datagram. What it gets may come from anyone on the fabric who knows
/// number and key: it must be proven by what is in it.
#[derive(Debug)]
pub struct Datagrams {
    pair: Pair,
    sent: Arc<CompletionQueue>,
    received: Arc<CompletionQueue>,
    port: u8,
    key: u32,
}

impl Datagrams {
    /// Makes one on a port (from 1), with a queue for what was sent and one for what came. Only datagrams that carry `key` reach it; keys
    /// from 2^31 are the kernel's.
    ///
    /// # Errors
    /// [`Error::Call`], which for ENOMEM names the memlock limit.
    pub fn create(
        domain: &Arc<ProtectionDomain>,
        [sent, received]: [&Arc<CompletionQueue>; 2],
        depth: Depth,
        port: u8,
        key: u32,
    ) -> Result<Self> {
        let mut attributes = pair::blank();
        attributes.qp_type = ffi::ibv_qp_type::IBV_QPT_UD;
        attributes.send_cq = sent.raw();
        attributes.recv_cq = received.raw();
        attributes.cap.max_send_wr = depth.send;
        attributes.cap.max_recv_wr = depth.receive;
        attributes.cap.max_send_sge = 1;
        attributes.cap.max_recv_sge = 1;
        attributes.sq_sig_all = 1;
        // The completion queues are kept by `self`.
        let pair = Pair::create(domain, attributes)?;
        let (sent, received) = (Arc::clone(sent), Arc::clone(received));
        let datagrams = Self { pair, sent, received, port, key };
        datagrams.start()?;
        Ok(datagrams)
    }

    fn start(&self) -> Result<()> {
        self.pair.modify(connection::datagram_to_init(self.port, self.key))?;
        connection::datagram_to_ready().into_iter().try_for_each(|step| self.pair.modify(step))
    }

    /// Begins anew after a failure, with the same number and key. What was posted is forgotten, and its buffers are gone.
    ///
    /// # Errors
    /// [`Error::Call`].
    pub fn restart(&self) -> Result<()> {
        self.pair.modify(connection::to_reset())?;
        self.queues().try_for_each(|queue| queue.forget(self.pair.number()))?;
        self.start()
    }

    fn queues(&self) -> impl Iterator<Item = &Arc<CompletionQueue>> {
        [&self.sent, &self.received].into_iter()
    }

    /// Its number, which senders need (24 bits).
    #[must_use]
    pub fn number(&self) -> u32 {
        self.pair.number()
    }

    /// What datagrams must carry to reach it.
    #[must_use]
    pub fn key(&self) -> u32 {
        self.key
    }

    /// Posts a receive for one datagram.
    ///
    /// # Errors
    /// [`Rejected`] with [`Error::QueueFull`] or [`Error::Call`].
    pub fn post_receive(&self, buffer: Buffer) -> Result<WorkId, Rejected> {
        let length = buffer.len();
        self.post(buffer, length, Operation::Receive, None, |element, id| {
            let mut request =
                ffi::ibv_recv_wr { wr_id: id.0, next: std::ptr::null_mut(), sg_list: element, num_sge: 1 };
            let mut bad = std::ptr::null_mut();
            // SAFETY: the queue pair exists until `drop`. Request and element live during the call, which copies them; the
            // memory that the element names is held by the completion queue until the operation completes or the queue pair is
            // destroyed.
            unsafe { ffi::ibv_post_recv(self.pair.raw(), &raw mut request, &raw mut bad) }
        })
    }

    /// Posts the buffer's first `length` bytes as a datagram to a queue pair with its key. It completes when it has left.
    ///
    /// # Errors
    /// As [`post_receive`](Self::post_receive), and [`Error::OutOfRange`].
    pub fn post_send(
        &self,
        buffer: Buffer,
        length: usize,
        address: &Arc<Address>,
        number: u32,
        key: u32,
    ) -> Result<WorkId, Rejected> {
        self.post(buffer, length, Operation::Send, Some(Arc::clone(address)), |element, id| {
            // SAFETY: ibv_send_wr is integers, pointers for which null is a value, and unions of those.
            let mut request: ffi::ibv_send_wr = unsafe { std::mem::zeroed() };
            request.wr_id = id.0;
            request.sg_list = element;
            request.num_sge = 1;
            request.send_flags = ffi::ibv_send_flags::IBV_SEND_SIGNALED.0;
            request.opcode = ffi::ibv_wr_opcode::IBV_WR_SEND;
            request.wr.ud = ffi::ud_t { ah: address.raw, remote_qpn: number, remote_qkey: key };
            let mut bad = std::ptr::null_mut();
            // SAFETY: as in `post_receive`; the queue for what was sent keeps the address as long as the buffer.
            unsafe { ffi::ibv_post_send(self.pair.raw(), &raw mut request, &raw mut bad) }
        })
    }

    fn post(
        &self,
        buffer: Buffer,
        length: usize,
        operation: Operation,
        address: Option<Arc<Address>>,
        call: impl FnOnce(*mut ffi::ibv_sge, WorkId) -> i32,
    ) -> Result<WorkId, Rejected> {
        let mut element = match buffer.element(length) {
            Ok(element) => element,
            Err(error) => return Err(Rejected { operation, error: Box::new(error), buffer }),
        };
        let (name, queue) = match operation {
            Operation::Receive => ("ibv_post_recv", &self.received),
            _ => ("ibv_post_send", &self.sent),
        };
        queue
            .submit(buffer, length, operation, self.pair.number(), address, |id| {
                self.pair.check(call(&raw mut element, id), name)
            })
            .map_err(|(buffer, error)| Rejected { operation, error, buffer })
    }
}

impl Drop for Datagrams {
    fn drop(&mut self) {
        // As a queue pair's: where it can't be destroyed, its buffers are leaked.
        match self.pair.destroy() {
            Ok(()) => self.queues().for_each(|queue| _ = queue.forget(self.pair.number())),
            Err(_) => self.queues().for_each(|queue| queue.leak(self.pair.number())),
        }
    }
}
