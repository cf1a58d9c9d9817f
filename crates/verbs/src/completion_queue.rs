//! Where operations report their end, and who owns their buffers until then.
#![expect(unsafe_code, reason = "calls libibverbs")]

use std::collections::VecDeque;
use std::fmt;
use std::mem::MaybeUninit;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicBool, Ordering};
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

/// A completion queue (`ibv_create_cq(3)`) of any number of queue pairs.
///
/// It holds the buffer of every operation that was posted and not reaped. It never overflows: posting is
/// refused while all its entries belong to such operations.
pub struct CompletionQueue {
    raw: *mut ffi::ibv_cq,
    context: Arc<Context>,
    state: Mutex<State>,
    /// May something be in [`State::aside`]? While this is set and the lock is free, something is.
    any_aside: AtomicBool,
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
    /// Taken from the device to get at others that were behind them, and not yet from us.
    aside: VecDeque<Completion>,
}

/// Room for an operation that the device may still be carrying out.
struct Slot {
    /// There is an operation as long as there is its buffer.
    buffer: Option<Buffer>,
    length: usize,
    /// Where a datagram goes: rxe looks the address up when it sends, and a queue pair whose address is gone fails.
    address: Option<Arc<Address>>,
    qp_number: u32,
    /// Counts the slot's uses, so that an id names one operation only.
    generation: u32,
    operation: Operation,
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
        let slots = (0..entries).map(|_| Slot::EMPTY).collect();
        let state = State { slots, free: (0..entries).rev().collect(), aside: VecDeque::new() };
        let (context, state, any_aside) = (Arc::clone(context), Mutex::new(state), AtomicBool::new(false));
        Ok(Arc::new(Self { raw, context, state, any_aside, channel }))
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

    #[inline]
    fn state(&self) -> MutexGuard<'_, State> {
        // No code of ours panics while it holds the lock, and the state is consistent between statements.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes over the buffer of an operation, then posts it with `post`. Gives the buffer back where that
    /// fails.
    #[inline]
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
                return Err((buffer, self.full(state.slots.len())));
            };
            let slot = &mut state.slots[index];
            let generation = slot.generation.wrapping_add(1);
            *slot = Slot { buffer: Some(buffer), length, address, qp_number, generation, operation };
            WorkId(u64::from(generation) << 32 | index as u64)
        };
        // Not under the lock: another thread may reap meanwhile. The completion finds its slot filled.
        match post(id) {
            Ok(()) => Ok(id),
            Err(error) => Err((self.take_back(id), Box::new(error))),
        }
    }

    #[cold]
    fn take_back(&self, id: WorkId) -> Buffer {
        let mut state = self.state();
        match state.take(id) {
            Some((buffer, _)) => buffer,
            None => unreachable!("an operation that was never posted cannot have completed"),
        }
    }

    #[cold]
    fn full(&self, entries: usize) -> Box<Error> {
        Box::new(Error::QueueFull { device: self.device().to_owned(), entries })
    }

    /// The next finished operation, if there is one now.
    ///
    /// # Errors
    /// [`Error::Call`]. An operation that failed is not an error here: see [`Completion::result`].
    #[inline]
    pub fn poll(&self) -> Result<Option<Completion>> {
        let mut entry = MaybeUninit::uninit();
        loop {
            // SAFETY: the queue exists until `release`; there is room for one entry.
            let count = unsafe { ffi::ibv_poll_cq(self.raw, 1, entry.as_mut_ptr()) };
            // Most looks find nothing, and take no lock. What is aside counts: it may be what would have been found here.
            if count == 0 && !self.any_aside.load(Ordering::Acquire) {
                return Ok(None);
            }
            if let Some(completion) = self.found(count, &entry)? {
                return Ok(Some(completion));
            }
        }
    }

    /// What `ibv_poll_cq` has found, or what is aside.
    fn found(&self, count: i32, entry: &MaybeUninit<ffi::ibv_wc>) -> Result<Option<Completion>> {
        let mut state = self.state();
        let completion = match count {
            0 => None,
            // SAFETY: ibv_poll_cq has filled it.
            1.. => self.completion(&mut state, unsafe { entry.assume_init_ref() }),
            code => return Err(self.poll_failed(code)),
        };
        // With the lock, this says what is so.
        if self.any_aside.load(Ordering::Relaxed) {
            return Ok(self.next_aside(&mut state, completion));
        }
        Ok(completion)
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

    #[cold]
    fn poll_failed(&self, code: i32) -> Error {
        Error::call("ibv_poll_cq", self.device(), std::io::Error::from_raw_os_error(code.saturating_abs()))
    }

    /// What an entry tells of, with its buffer. `None` for an operation of a queue pair that is gone: `forget` released its buffer.
    #[inline]
    fn completion(&self, state: &mut State, entry: &ffi::ibv_wc) -> Option<Completion> {
        let id = WorkId(entry.wr_id);
        let (buffer, slot) = state.take(id)?;
        let (operation, qp_number) = (slot.operation, slot.qp_number);
        let result = if entry.status == ffi::ibv_wc_status::IBV_WC_SUCCESS {
            // byte_len is only defined for receives (ibv_poll_cq(3)).
            Ok(if operation == Operation::Receive { entry.byte_len as usize } else { slot.length })
        } else {
            Err(self.failure(operation, entry))
        };
        Some(Completion { id, operation, qp_number, buffer, result })
    }

    #[cold]
    fn failure(&self, operation: Operation, entry: &ffi::ibv_wc) -> Box<CompletionError> {
        let (status, vendor_code) = (entry.status, entry.vendor_err);
        Box::new(CompletionError { operation, device: self.device().to_owned(), status, vendor_code })
    }

    /// The next of those aside, behind which the newest goes.
    #[cold]
    fn next_aside(&self, state: &mut State, newest: Option<Completion>) -> Option<Completion> {
        state.aside.extend(newest);
        let completion = state.aside.pop_front();
        self.any_aside.store(!state.aside.is_empty(), Ordering::Relaxed);
        completion
    }

    /// Releases the buffers of a queue pair that was destroyed, which no one will ask for.
    ///
    /// Some providers (rxe) leave the entries of a destroyed queue pair in the queue: they are taken out first,
    /// so that the slots freed here are free in the device's queue too.
    pub(crate) fn forget(&self, qp_number: u32) -> Result<()> {
        let mut state = self.state();
        // Before the first is taken: who finds the device's queue empty because of that looks here.
        self.any_aside.store(true, Ordering::Release);
        let emptied = self.put_aside(&mut state);
        state.aside.retain(|completion| completion.qp_number != qp_number);
        self.any_aside.store(!state.aside.is_empty(), Ordering::Release);
        emptied?;
        for index in 0..state.slots.len() {
            if state.slots[index].is_of(qp_number) {
                state.slots[index] = Slot { generation: state.slots[index].generation, ..Slot::EMPTY };
                state.free.push(index);
            }
        }
        Ok(())
    }

    /// Takes all that the device has.
    fn put_aside(&self, state: &mut State) -> Result<()> {
        let mut entry = MaybeUninit::uninit();
        loop {
            // SAFETY: as in `poll`.
            match unsafe { ffi::ibv_poll_cq(self.raw, 1, entry.as_mut_ptr()) } {
                0 => return Ok(()),
                1.. => {
                    // SAFETY: ibv_poll_cq has filled it.
                    let completion = self.completion(state, unsafe { entry.assume_init_ref() });
                    state.aside.extend(completion);
                }
                code => return Err(self.poll_failed(code)),
            }
        }
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
            if slot.is_of(qp_number) {
                std::mem::forget((slot.buffer.take(), slot.address.take()));
            }
        }
    }
}

impl Slot {
    const EMPTY: Self = Self {
        buffer: None,
        length: 0,
        address: None,
        qp_number: 0,
        generation: 0,
        operation: Operation::Send,
    };

    fn is_of(&self, qp_number: u32) -> bool {
        self.buffer.is_some() && self.qp_number == qp_number
    }
}

impl State {
    /// Empties the slot of an operation. `None` if the id is not that of the slot's present operation.
    #[inline]
    fn take(&mut self, id: WorkId) -> Option<(Buffer, &Slot)> {
        let index = usize::try_from(id.0 & u64::from(u32::MAX)).ok()?;
        let slot = self.slots.get_mut(index).filter(|slot| u64::from(slot.generation) == id.0 >> 32)?;
        let buffer = slot.buffer.take()?;
        slot.address = None;
        self.free.push(index);
        Some((buffer, slot))
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
