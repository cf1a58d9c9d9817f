//! Where operations report their end, and who owns their buffers until then.
#![expect(unsafe_code, reason = "calls libibverbs")]

use std::collections::VecDeque;
use std::fmt;
use std::mem::MaybeUninit;
use std::os::fd::BorrowedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rdma_mummy_sys as ffi;

use crate::completion::{Completion, CompletionError, Operation, WorkId};
use crate::context::{Context, sole_owner};
use crate::datagram::Address;
use crate::error::{Error, Result};
use crate::memory::Buffer;
use crate::notice::Channel;

/// Polls that burn the CPU before the first yield: a peer that answers at once is seen at once.
const SPINS: u32 = 2000;
/// After this long without a completion, sleep between polls: whoever waits longer than this does not
/// notice [`NAP`].
const BUSY: Duration = Duration::from_millis(20);
const NAP: Duration = Duration::from_micros(100);
/// Completions taken from the device at once.
const BATCH: usize = 16;

/// A completion queue (`ibv_create_cq(3)`) of any number of queue pairs.
///
/// It holds the buffer of every operation that was posted and not reaped. It never overflows: posting is
/// refused while all its entries belong to such operations.
pub struct CompletionQueue {
    raw: *mut ffi::ibv_cq,
    context: Arc<Context>,
    state: Mutex<State>,
    /// Gone after the queue: it is destroyed when this is dropped.
    channel: Option<Channel>,
}

// SAFETY: the pointer is only handed to libibverbs, which locks for itself; the rest is behind a Mutex.
unsafe impl Send for CompletionQueue {}
// SAFETY: as above.
unsafe impl Sync for CompletionQueue {}

struct State {
    slots: Vec<Slot>,
    free: Vec<usize>,
    /// Taken from the device and not yet from us.
    ready: VecDeque<Completion>,
}

struct Slot {
    /// Counts the slot's uses, so that an id names one operation only.
    generation: u32,
    work: Option<Work>,
}

/// An operation that the device may still be carrying out.
struct Work {
    buffer: Buffer,
    length: usize,
    operation: Operation,
    qp_number: u32,
    /// Where a datagram goes: rxe looks the address up when it sends, and a queue pair whose address is gone fails.
    _address: Option<Arc<Address>>,
}

impl CompletionQueue {
    /// Makes one with room for `entries` outstanding operations (at least 1).
    ///
    /// # Errors
    /// [`Error::Length`], or [`Error::Call`], which for ENOMEM names the memlock limit.
    pub fn create(context: &Arc<Context>, entries: usize) -> Result<Arc<Self>> {
        Self::make(context, entries, None)
    }

    /// The same with a descriptor that can be waited for: see [`arm`](Self::arm).
    ///
    /// # Errors
    /// As [`create`](Self::create).
    pub fn create_with_descriptor(context: &Arc<Context>, entries: usize) -> Result<Arc<Self>> {
        let channel = Channel::create(context)?;
        Self::make(context, entries, Some(channel))
    }

    fn make(context: &Arc<Context>, entries: usize, channel: Option<Channel>) -> Result<Arc<Self>> {
        let wrong = Error::Length { what: "a completion queue", length: entries, most: i32::MAX as usize };
        let (true, Ok(count)) = (entries > 0, i32::try_from(entries)) else { return Err(wrong) };
        let told = channel.as_ref().map_or(std::ptr::null_mut(), Channel::raw);
        // SAFETY: the context is open and kept by `self.context`, the channel by `self.channel`; no cookie, vector 0.
        let raw = unsafe { ffi::ibv_create_cq(context.raw(), count, std::ptr::null_mut(), told, 0) };
        if raw.is_null() {
            return Err(Error::last("ibv_create_cq", context.device()));
        }
        let slots = (0..entries).map(|_| Slot { generation: 0, work: None }).collect();
        let state = State { slots, free: (0..entries).rev().collect(), ready: VecDeque::new() };
        Ok(Arc::new(Self { raw, context: Arc::clone(context), state: Mutex::new(state), channel }))
    }

    /// Readable when something has finished since [`arm`](Self::arm); `None` for a queue made without.
    #[must_use]
    pub fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        self.channel.as_ref().map(Channel::descriptor)
    }

    /// Has the descriptor become readable with the next completion. What had finished before is not told: [`poll`](Self::poll)
    /// after this call, until there is nothing, and wait then.
    ///
    /// # Errors
    /// [`Error::Call`].
    pub fn arm(&self) -> Result<()> {
        if let Some(channel) = &self.channel {
            channel.clear();
            // SAFETY: the queue exists until `release`.
            let code = unsafe { ffi::ibv_req_notify_cq(self.raw, 0) };
            Error::check(code, "ibv_req_notify_cq", self.device())?;
        }
        Ok(())
    }

    pub(crate) fn raw(&self) -> *mut ffi::ibv_cq {
        self.raw
    }

    pub(crate) fn device(&self) -> &str {
        self.context.device()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // No code of ours panics while it holds the lock, and the state is consistent between statements.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes over the buffer of an operation, then posts it with `post`. Gives the buffer back where that
    /// fails.
    pub(crate) fn submit(
        &self,
        buffer: Buffer,
        length: usize,
        operation: Operation,
        qp_number: u32,
        address: Option<Arc<Address>>,
        post: impl FnOnce(WorkId) -> Result<()>,
    ) -> Result<WorkId, (Buffer, Box<Error>)> {
        let id = {
            let mut state = self.state();
            let Some(index) = state.free.pop() else {
                let error = Error::QueueFull { device: self.device().to_owned(), entries: state.slots.len() };
                return Err((buffer, Box::new(error)));
            };
            let slot = &mut state.slots[index];
            slot.generation = slot.generation.wrapping_add(1);
            slot.work = Some(Work { buffer, length, operation, qp_number, _address: address });
            WorkId(u64::from(slot.generation) << 32 | index as u64)
        };
        // Not under the lock: another thread may reap meanwhile. The completion finds its slot filled.
        match post(id) {
            Ok(()) => Ok(id),
            Err(error) => match self.state().take(id) {
                Some(work) => Err((work.buffer, Box::new(error))),
                None => unreachable!("an operation that was never posted cannot have completed"),
            },
        }
    }

    /// The next finished operation, if there is one now.
    ///
    /// # Errors
    /// [`Error::Call`]. An operation that failed is not an error here: see [`Completion::result`].
    pub fn poll(&self) -> Result<Option<Completion>> {
        let mut state = self.state();
        if state.ready.is_empty() {
            self.gather(&mut state)?;
        }
        Ok(state.ready.pop_front())
    }

    /// The next finished operation, if there is one before others would get the CPU: polls without a pause, and without a look
    /// at the clock, some ten microseconds long.
    ///
    /// # Errors
    /// As [`poll`](Self::poll).
    pub fn wait_a_moment(&self) -> Result<Option<Completion>> {
        // No pause: what is looked at is not another core's.
        for _ in 0..SPINS {
            if let Some(completion) = self.poll()? {
                return Ok(Some(completion));
            }
        }
        Ok(None)
    }

    /// The next finished operation, waiting for it until `deadline`. Polls: first without a pause, then
    /// yielding, after 20 ms with naps of 100 us.
    ///
    /// # Errors
    /// [`Error::Timeout`], [`Error::Call`].
    pub fn wait(&self, deadline: Instant) -> Result<Completion> {
        if let Some(completion) = self.wait_a_moment()? {
            return Ok(completion);
        }
        let start = Instant::now();
        loop {
            if let Some(completion) = self.poll()? {
                return Ok(completion);
            }
            let now = Instant::now();
            if now >= deadline {
                return Err(Error::Timeout { device: self.device().to_owned(), waited: now - start });
            }
            if now - start < BUSY { thread::yield_now() } else { thread::sleep(NAP) }
        }
    }

    /// Moves what the device has finished, up to one batch, into `ready`; returns how many it was.
    fn gather(&self, state: &mut State) -> Result<usize> {
        let mut entries = [const { MaybeUninit::<ffi::ibv_wc>::uninit() }; BATCH];
        // SAFETY: the queue exists until `release`; `entries` has room for BATCH entries.
        let count = unsafe { ffi::ibv_poll_cq(self.raw, BATCH as i32, entries.as_mut_ptr().cast()) };
        let Ok(count) = usize::try_from(count) else {
            return Err(Error::call(
                "ibv_poll_cq",
                self.device(),
                std::io::Error::from_raw_os_error(count.abs()),
            ));
        };
        for entry in &entries[..count] {
            // SAFETY: ibv_poll_cq filled so many.
            let entry = unsafe { entry.assume_init_ref() };
            let id = WorkId(entry.wr_id);
            // A slot that is empty belonged to a queue pair that is gone: `forget` released its buffer.
            let Some(work) = state.take(id) else { continue };
            let result = if entry.status == ffi::ibv_wc_status::IBV_WC_SUCCESS {
                // byte_len is only defined for receives (ibv_poll_cq(3)).
                Ok(if work.operation == Operation::Receive { entry.byte_len as usize } else { work.length })
            } else {
                Err(CompletionError {
                    operation: work.operation,
                    device: self.device().to_owned(),
                    status: entry.status,
                    vendor_code: entry.vendor_err,
                })
            };
            let Work { buffer, operation, qp_number, .. } = work;
            state.ready.push_back(Completion { id, operation, qp_number, buffer, result });
        }
        Ok(count)
    }

    /// Releases the buffers of a queue pair that was destroyed, which no one will ask for.
    ///
    /// Some providers (rxe) leave the entries of a destroyed queue pair in the queue: they are taken out first,
    /// so that the slots freed here are free in the device's queue too.
    pub(crate) fn forget(&self, qp_number: u32) -> Result<()> {
        let mut state = self.state();
        while self.gather(&mut state)? > 0 {}
        state.ready.retain(|completion| completion.qp_number != qp_number);
        for index in 0..state.slots.len() {
            if state.slots[index].work.as_ref().is_some_and(|work| work.qp_number == qp_number) {
                state.slots[index].work = None;
                state.free.push(index);
            }
        }
        Ok(())
    }

    /// Destroys it and reports how that went, which dropping cannot.
    ///
    /// # Errors
    /// [`Error::StillInUse`] while queue pairs hold it, [`Error::Call`].
    pub fn close(self: Arc<Self>) -> Result<()> {
        sole_owner(self, "the completion queue", Self::device)?.release()
    }

    fn release(&mut self) -> Result<()> {
        let raw = std::mem::replace(&mut self.raw, std::ptr::null_mut());
        if raw.is_null() {
            return Ok(());
        }
        // SAFETY: made by ibv_create_cq and destroyed once: `raw` is null from here on. Queue pairs hold an Arc
        // of this queue, so none is left.
        let code = unsafe { ffi::ibv_destroy_cq(raw) };
        Error::check(code, "ibv_destroy_cq", self.context.device())
    }

    /// Keeps the buffers of a queue pair that could not be destroyed away from everyone, for ever: the device
    /// may still write them.
    pub(crate) fn leak(&self, qp_number: u32) {
        for slot in &mut self.state().slots {
            if slot.work.as_ref().is_some_and(|work| work.qp_number == qp_number) {
                std::mem::forget(slot.work.take());
            }
        }
    }
}

impl State {
    /// Empties the slot of an operation. `None` if the id is not that of the slot's present operation.
    fn take(&mut self, id: WorkId) -> Option<Work> {
        let index = usize::try_from(id.0 & u64::from(u32::MAX)).ok()?;
        let slot = self.slots.get_mut(index).filter(|slot| u64::from(slot.generation) == id.0 >> 32)?;
        let work = slot.work.take()?;
        self.free.push(index);
        Some(work)
    }
}

impl fmt::Debug for CompletionQueue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.state();
        f.debug_struct("CompletionQueue")
            .field("device", &self.device())
            .field("entries", &state.slots.len())
            .field("outstanding", &(state.slots.len() - state.free.len()))
            .finish_non_exhaustive()
    }
}

impl Drop for CompletionQueue {
    fn drop(&mut self) {
        // Dropping cannot report: `close` is for callers who want to know.
        let _ = self.release();
    }
}
