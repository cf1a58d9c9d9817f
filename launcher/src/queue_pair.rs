//! A connected queue pair to one peer: messages and one-sided access, each with a deadline.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use roce_types::Gid;
use roce_verbs::{
    Buffer, Completion, CompletionError, Connection, Mtu, QueuePair as VerbsPair, Readback, Rejected,
    RemoteWindow, Window, WorkId,
};

use crate::assignment::Nic;
use crate::endpoint::Endpoint;
use crate::error::{Error, Result};

/// How long the rest of what a failed queue pair had outstanding is waited for, to find the first failure among it.
const AFTERMATH: Duration = Duration::from_millis(200);

/// Who is at the two ends, in words for errors.
pub(crate) struct Ends {
    pub(crate) peer: u32,
    pub(crate) peer_node: String,
    /// `rank 0 (vm1 rxe0:1 rail 0 GID ::ffff:10.0.0.1)`
    pub(crate) from: String,
    pub(crate) to: String,
}

/// A finished operation.
#[derive(Debug)]
pub struct Done {
    /// How many bytes it moved, from the start of the buffer.
    pub bytes: usize,
    /// Its buffer, free again.
    pub buffer: Buffer,
}

/// A reliable connected queue pair to one peer, from [`Job::connect`](crate::Job::connect).
///
/// Operations own their buffer: posting takes it, [`wait`](Self::wait) gives it back. An operation whose deadline
/// passed stays outstanding; it can be waited for again. After a failed operation the queue pair is of no use any more.
pub struct QueuePair {
    ends: Ends,
    endpoint: Arc<Endpoint>,
    connection: Connection,
    readback: Readback,
    /// Finished and not waited for yet.
    finished: VecDeque<Completion>,
    /// The first failure: those after it are only its consequences.
    failure: Option<CompletionError>,
    pair: VerbsPair,
}

impl QueuePair {
    pub(crate) fn new(
        pair: VerbsPair,
        ends: Ends,
        endpoint: Arc<Endpoint>,
        connection: Connection,
        readback: Readback,
    ) -> Self {
        Self { ends, endpoint, connection, readback, finished: VecDeque::new(), failure: None, pair }
    }

    /// The peer's rank.
    #[must_use]
    pub fn peer(&self) -> u32 {
        self.ends.peer
    }

    /// The name of the peer's node.
    #[must_use]
    pub fn peer_node(&self) -> &str {
        &self.ends.peer_node
    }

    /// This end's NIC port.
    #[must_use]
    pub fn nic(&self) -> &Nic {
        &self.endpoint.nic
    }

    /// The peer's address.
    #[must_use]
    pub fn peer_gid(&self) -> Gid {
        self.connection.remote_gid
    }

    /// Payload bytes per packet: the smaller of both ports'.
    #[must_use]
    pub fn path_mtu(&self) -> Mtu {
        self.connection.path_mtu
    }

    /// What the kernel confirmed of the connection's attributes, and what it does not report.
    #[must_use]
    pub fn readback(&self) -> &Readback {
        &self.readback
    }

    /// Memory for messages on this queue pair, 1 byte to 4 GiB - 1, all zero.
    ///
    /// # Errors
    /// [`Error::Transfer`], which names the memlock limit where that is the cause.
    pub fn buffer(&self, bytes: usize) -> Result<Buffer> {
        Buffer::register(self.pair.domain(), bytes)
            .map_err(|source| self.failed("registering a buffer", source))
    }

    /// Memory that the peer may read and write once it has [`Window::remote`], 1 byte to 4 GiB - 1, all zero.
    ///
    /// # Errors
    /// As [`buffer`](Self::buffer).
    pub fn window(&self, bytes: usize) -> Result<Window> {
        Window::register(self.pair.domain(), bytes)
            .map_err(|source| self.failed("registering a window", source))
    }

    /// Posts a receive for one message of the peer. Messages arrive in the order in which the peer sent them, into
    /// receives in the order in which they were posted.
    ///
    /// # Errors
    /// [`Error::Transfer`].
    #[inline]
    pub fn post_receive(&self, buffer: Buffer) -> Result<WorkId> {
        self.pair.post_receive(buffer).map_err(|rejected| self.rejected("receive", rejected))
    }

    /// Posts a send of the buffer's first `bytes`. It finishes when the peer's NIC has them, for which the peer
    /// must have posted a receive.
    ///
    /// # Errors
    /// [`Error::Transfer`].
    #[inline]
    pub fn post_send(&self, buffer: Buffer, bytes: usize) -> Result<WorkId> {
        self.pair.post_send(buffer, bytes).map_err(|rejected| self.rejected("send", rejected))
    }

    /// Posts an RDMA write of the buffer's first `bytes` to `offset` of the peer's window.
    ///
    /// # Errors
    /// [`Error::Transfer`].
    #[inline]
    pub fn post_write(
        &self,
        buffer: Buffer,
        bytes: usize,
        window: RemoteWindow,
        offset: u64,
    ) -> Result<WorkId> {
        let posted = self.pair.post_write(buffer, bytes, window, offset);
        posted.map_err(|rejected| self.rejected("RDMA write", rejected))
    }

    /// Posts an RDMA read of `bytes` from `offset` of the peer's window.
    ///
    /// # Errors
    /// [`Error::Transfer`].
    #[inline]
    pub fn post_read(
        &self,
        buffer: Buffer,
        bytes: usize,
        window: RemoteWindow,
        offset: u64,
    ) -> Result<WorkId> {
        let posted = self.pair.post_read(buffer, bytes, window, offset);
        posted.map_err(|rejected| self.rejected("RDMA read", rejected))
    }

    /// Waits until an operation has finished, at most `patience`.
    ///
    /// A NIC knows after about 9 s (8 attempts of 1.1 s) that the peer does not answer; a shorter `patience` ends with a
    /// timeout instead of that answer. Soft-RoCE tries for ever, so there it is always a timeout.
    ///
    /// # Errors
    /// [`Error::Transfer`] with the operation's own failure, the first failure of this queue pair where this one is
    /// its consequence, or a timeout; [`Error::PortLost`] where the port failed under it.
    pub fn wait(&mut self, id: WorkId, patience: Duration) -> Result<Done> {
        let next = if self.finished.is_empty() { self.pair.completions().wait_a_moment() } else { Ok(None) };
        match next {
            // Mostly what comes next is what is waited for.
            Ok(Some(Completion { id: next, result: Ok(bytes), buffer, .. })) if next == id => {
                Ok(Done { bytes, buffer })
            }
            next => self.wait_on(id, patience, next),
        }
    }

    /// Waits until an operation has finished that did not finish next.
    fn wait_on(
        &mut self,
        id: WorkId,
        patience: Duration,
        mut next: roce_verbs::Result<Option<Completion>>,
    ) -> Result<Done> {
        let mut deadline = None;
        loop {
            match next {
                Ok(None) => {}
                Ok(Some(completion)) => self.keep(completion),
                // What failed elsewhere on this queue pair is why nothing comes.
                Err(error) => {
                    let source = self.failure.clone().map_or(error, roce_verbs::Error::from);
                    return Err(self.failed("waiting for an operation", source));
                }
            }
            let place = self.finished.iter().position(|completion| completion.id == id);
            if let Some(completion) = place.and_then(|place| self.finished.remove(place)) {
                return self.finish(completion);
            }
            let completions = self.pair.completions();
            next = match completions.wait_a_moment() {
                // No look at the clock before it is needed.
                Ok(None) => {
                    completions.wait(*deadline.get_or_insert_with(|| Instant::now() + patience)).map(Some)
                }
                next => next,
            };
        }
    }

    /// Sends the buffer's first `bytes` and waits until the peer's NIC has them.
    ///
    /// # Errors
    /// [`Error::Transfer`].
    pub fn send(&mut self, buffer: Buffer, bytes: usize, patience: Duration) -> Result<Buffer> {
        let id = self.post_send(buffer, bytes)?;
        self.wait(id, patience).map(|done| done.buffer)
    }

    /// Writes the buffer's first `bytes` to `offset` of the peer's window, and waits until the peer's NIC has them.
    ///
    /// # Errors
    /// [`Error::Transfer`].
    pub fn write(
        &mut self,
        buffer: Buffer,
        bytes: usize,
        window: RemoteWindow,
        offset: u64,
        patience: Duration,
    ) -> Result<Buffer> {
        let id = self.post_write(buffer, bytes, window, offset)?;
        self.wait(id, patience).map(|done| done.buffer)
    }

    /// Reads `bytes` from `offset` of the peer's window into the start of the buffer.
    ///
    /// # Errors
    /// [`Error::Transfer`].
    pub fn read(
        &mut self,
        buffer: Buffer,
        bytes: usize,
        window: RemoteWindow,
        offset: u64,
        patience: Duration,
    ) -> Result<Buffer> {
        let id = self.post_read(buffer, bytes, window, offset)?;
        self.wait(id, patience).map(|done| done.buffer)
    }

    /// Destroys the queue pair and reports how that went, which dropping cannot. What is outstanding is given up.
    ///
    /// # Errors
    /// [`Error::Transfer`].
    pub fn close(self) -> Result<()> {
        let Self { ends, pair, .. } = self;
        pair.close().map_err(|source| failed(&ends, "closing the queue pair", source))
    }

    fn keep(&mut self, completion: Completion) {
        if let Err(error) = &completion.result
            && !error.is_flush()
        {
            self.failure.get_or_insert_with(|| (**error).clone());
        }
        self.finished.push_back(completion);
    }

    fn finish(&mut self, completion: Completion) -> Result<Done> {
        let error = match completion.result {
            Ok(bytes) => return Ok(Done { bytes, buffer: completion.buffer }),
            Err(error) => error,
        };
        if !error.is_flush() {
            return Err(self.failed("a transfer", (*error).into()));
        }
        // A consequence: the cause may come right behind it.
        let until = Instant::now() + AFTERMATH;
        while self.failure.is_none() {
            match self.pair.completions().wait(until) {
                Ok(completion) => self.keep(completion),
                Err(roce_verbs::Error::Timeout { .. }) => break,
                Err(error) => return Err(self.failed("a transfer", error)),
            }
        }
        if let Some(first) = self.failure.clone() {
            return Err(self.failed("a transfer", first.into()));
        }
        // No operation failed by itself, so the port did, or its GID went away.
        match self.endpoint.now() {
            Err(source) => {
                let (from, to) = (self.ends.from.clone(), self.ends.to.clone());
                Err(Error::PortLost { from, to, source: Box::new(source) })
            }
            Ok(_) => Err(self.failed("a transfer", (*error).into())),
        }
    }

    #[cold]
    fn rejected(&self, operation: &'static str, rejected: Rejected) -> Error {
        self.failed(operation, rejected.into())
    }

    #[cold]
    fn failed(&self, operation: &'static str, source: roce_verbs::Error) -> Error {
        failed(&self.ends, operation, source)
    }
}

fn failed(ends: &Ends, operation: &'static str, source: roce_verbs::Error) -> Error {
    Error::Transfer { operation, from: ends.from.clone(), to: ends.to.clone(), source: Box::new(source) }
}
