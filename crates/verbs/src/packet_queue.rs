//! Sends packets on the connections of a port, and tells what has come.
#![expect(unsafe_code, reason = "calls libibverbs, and reads and writes slots that a device uses in turn")]

mod one_sided;

use std::collections::VecDeque;
use std::fmt;
use std::mem::MaybeUninit;
use std::sync::Arc;

use rdma_mummy_sys as ffi;

use crate::completion::{CompletionError, Operation};
use crate::connection;
use crate::context::ProtectionDomain;
use crate::error::{Error, Result};
use crate::packets::{BATCH, Entries, PacketPair, PacketRoom, Packets, ReceiveSlot, Slot};

pub use self::one_sided::Movement;

/// The kind of a work request to send, in the three highest bits of its number.
const SEND: u64 = 0;
/// An RDMA read.
const READ: u64 = 1;
/// An RDMA write from a slot.
const PUT: u64 = 2;
/// An RDMA write from elsewhere.
const WRITE: u64 = 3;
/// An RDMA read to a slot.
const GET: u64 = 4;
/// The same, and a small one that proves it follows.
const BEFORE: u64 = 5;
const KIND: u32 = 61;

/// Where a packet is that was sent, or bytes are that were put or got, until that is over.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct PacketSlot {
    number: u32,
    length: u32,
}

/// A slot for sends.
#[derive(Debug)]
struct SendSlot {
    slot: Slot,
    /// The connection that uses it, 0 for none.
    user: u32,
}

/// Stands for the user of a slot whose connection was taken down; a queue pair's number has 24 bits.
const KEPT: u32 = u32::MAX;

/// What a [`PacketQueue`] tells of a connection, by the number of its end here.
#[derive(Debug)]
pub enum Told<'a> {
    /// A packet came.
    Packet(&'a [u8]),
    /// So many packets have arrived at the peer.
    Sent(usize),
    /// So many puts have arrived in the peer's memory.
    Put(usize),
    /// Bytes that were got, in a slot, whose rest holds anything.
    Got(&'a [u8]),
    /// An RDMA read or write of memory is over; the number is the caller's.
    Moved(u32),
    /// The connection has failed. It tells so of each operation that was under way.
    Failed(CompletionError),
}

/// What [`PacketQueue::poll_for`] has found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Polled {
    /// Nothing has happened.
    Nothing,
    /// Something has, and was taken.
    Taken,
    /// It was not.
    Left,
}

/// Sends and receives on the connections of a port.
pub struct PacketQueue {
    packets: Arc<Packets>,
    /// Connections whose slots this side knows.
    known: u32,
    /// Slots for receives, one connection's after the other's. `packets` keeps their memory, and that of those for sends.
    receives: Vec<ReceiveSlot>,
    /// Slots for sends, in the same order.
    sends: Vec<SendSlot>,
    /// Those that hold nothing.
    free: Vec<u32>,
    /// A send, but for what it sends.
    send: ffi::ibv_send_wr,
    /// A put, but for what it writes, and where.
    put: ffi::ibv_send_wr,
    /// Sends and reads that are over, taken from the device and not told yet.
    sent: VecDeque<ffi::ibv_wc>,
    /// The same of receives.
    received: VecDeque<ffi::ibv_wc>,
}

impl fmt::Debug for PacketQueue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PacketQueue")
            .field("device", &self.packets.domain.device())
            .field("room", &self.packets.room)
            .field("free", &self.free.len())
            .finish_non_exhaustive()
    }
}

impl PacketQueue {
    /// Makes the queues. Slots come with connections.
    ///
    /// # Errors
    /// [`Error::Length`], or [`Error::Call`], which for ENOMEM names the memlock limit.
    pub fn create(domain: &Arc<ProtectionDomain>, room: PacketRoom) -> Result<Self> {
        let packets = Packets::create(domain, room)?;
        let (receives, sends, free) = (Vec::new(), Vec::new(), Vec::new());
        let (send, mut put) = (request(), request());
        put.opcode = ffi::ibv_wr_opcode::IBV_WR_RDMA_WRITE;
        let (sent, received) = (VecDeque::new(), VecDeque::new());
        Ok(Self { packets, known: 0, receives, sends, free, send, put, sent, received })
    }

    /// The part that makes connections, for any thread.
    #[must_use]
    pub fn packets(&self) -> &Arc<Packets> {
        &self.packets
    }

    /// Learns the slots of connections that were made since.
    #[cold]
    fn learn(&mut self) {
        let PacketRoom { receives, sends, .. } = self.packets.room;
        let all = self.packets.slots();
        for slots in all.iter().skip(self.known as usize) {
            let new = (0..receives).map(|place| self.packets.receive_slot(slots, self.known, place));
            self.receives.extend(new);
            let new = (receives..receives + sends).map(|place| self.packets.slot(slots, place));
            for (number, slot) in (self.known * u32::from(sends)..).zip(new) {
                self.sends.push(SendSlot { slot, user: 0 });
                self.free.push(number);
            }
            self.known += 1;
        }
    }

    /// A slot for sends that holds nothing, of a connection that was made since.
    #[cold]
    fn free_of_new(&mut self) -> Option<u32> {
        // To learn takes a lock.
        if (self.known as usize) < self.packets.made() {
            self.learn();
        }
        self.free.pop()
    }

    /// Sends a packet that is made of two parts; `None` if there is no slot now. The caller sees to it that no connection has more
    /// sends and reads under way than its room.
    ///
    /// # Errors
    /// [`Error::Length`] for more than a packet; [`Error::Call`].
    #[inline(always)]
    #[expect(
        clippy::inline_always,
        reason = "each call and each result in memory lengthens the way of a short message"
    )]
    pub fn send<const HEAD: usize>(
        &mut self,
        pair: &PacketPair,
        head: &[u8; HEAD],
        rest: &[u8],
    ) -> Result<Option<PacketSlot>> {
        let length = HEAD + rest.len();
        let most = self.packets.room.packet;
        if length > most {
            return Err(Error::Length { what: "a packet", length, most });
        }
        let number = match self.free.pop() {
            Some(number) => number,
            None => match self.free_of_new() {
                Some(number) => number,
                None => return Ok(None),
            },
        };
        let Some(SendSlot { slot, user }) = self.sends.get_mut(number as usize) else { return Ok(None) };
        let slot = *slot;
        // SAFETY: the slot has `most` bytes, and they fit; it is free, so no device reads it and nothing refers to its bytes, which are
        // memory of this queue and so not part of `head` or `rest`.
        unsafe {
            slot.start.cast::<[u8; HEAD]>().write_unaligned(*head);
            std::ptr::copy_nonoverlapping(rest.as_ptr(), slot.start.add(HEAD), rest.len());
        }
        // No packet has 4 GiB: looked at when the queues were made.
        let length = length as u32;
        match post_packet(pair, &mut self.send, number, slot.element(length)) {
            Ok(()) => {
                *user = pair.number();
                Ok(Some(PacketSlot { number, length }))
            }
            Err(error) => {
                self.free.push(number);
                Err(error)
            }
        }
    }

    /// Sends a packet once more, which was sent on a connection that was taken down.
    ///
    /// # Errors
    /// [`Error::Call`]; the slot stays as it was.
    pub fn send_again(&mut self, pair: &PacketPair, slot: PacketSlot) -> Result<()> {
        let PacketSlot { number, length } = slot;
        let Some(SendSlot { slot, user }) = self.sends.get_mut(number as usize) else { return Ok(()) };
        if *user == KEPT {
            post_packet(pair, &mut self.send, number, slot.element(length))?;
            *user = pair.number();
        }
        Ok(())
    }

    /// A packet that was sent on a connection that was taken down is not needed any more.
    pub fn discard(&mut self, slot: PacketSlot) {
        self.free_from(slot.number, KEPT);
    }

    /// A slot holds nothing any more, if it is still this user's.
    #[inline]
    fn free_from(&mut self, number: u32, user: u32) {
        if let Some(slot) = self.sends.get_mut(number as usize)
            && slot.user == user
        {
            slot.user = 0;
            self.free.push(number);
        }
    }

    /// A slot for sends that holds nothing, with its number.
    #[inline]
    fn take_free(&mut self) -> Option<(u32, Slot)> {
        let number = match self.free.pop() {
            Some(number) => number,
            None => self.free_of_new()?,
        };
        self.sends.get(number as usize).map(|send| (number, send.slot))
    }

    /// Tells what has happened, at most a batch of what was sent and one of what came. How much it was.
    ///
    /// # Errors
    /// [`Error::Call`]: nothing on this port works any more.
    pub fn poll(&mut self, tell: &mut impl FnMut(u32, Told<'_>)) -> Result<usize> {
        let sent = self.poll_sent(tell)?;
        if self.received.is_empty() {
            self.packets.take_to(self.packets.received, &mut self.received)?;
        }
        let received = self.received.len().min(BATCH);
        for _ in 0..received {
            if let Some(entry) = self.received.pop_front() {
                self.tell_received(&entry, all(tell))?;
            }
        }
        Ok(sent + received)
    }

    /// The same for what was sent alone. Slots of what has arrived are free then.
    ///
    /// # Errors
    /// As [`poll`](Self::poll).
    pub fn poll_sent(&mut self, tell: &mut impl FnMut(u32, Told<'_>)) -> Result<usize> {
        if !self.sent.is_empty() {
            let entries: Vec<_> = self.sent.drain(..self.sent.len().min(BATCH)).collect();
            self.tell_sent(&entries, tell);
            return Ok(entries.len());
        }
        let mut entries = Entries::new();
        let entries = entries.take(&self.packets, self.packets.sent)?;
        self.tell_sent(entries, tell);
        Ok(entries.len())
    }

    /// Looks for the next that came, for who waits for one thing alone, a few times as long as `goes_on` says so. `tell` says
    /// whether it has taken what it is told. What it has not, [`poll`](Self::poll) tells again, and then what came later.
    ///
    /// # Errors
    /// As [`poll`](Self::poll).
    #[inline]
    pub fn poll_for(
        &mut self,
        goes_on: impl FnMut() -> bool,
        tell: impl FnOnce(u32, Told<'_>) -> bool,
    ) -> Result<Polled> {
        let mut place = MaybeUninit::uninit();
        let entry = match self.received.pop_front() {
            Some(entry) => place.write(entry),
            None => match self.packets.next_received(goes_on, &mut place)? {
                Some(entry) => entry,
                None => return Ok(Polled::Nothing),
            },
        };
        if self.tell_received(entry, tell)? {
            return Ok(Polled::Taken);
        }
        self.received.push_front(*entry);
        Ok(Polled::Left)
    }

    /// How many movements of memory of a connection are over and will be told by `poll`, whatever became of them.
    ///
    /// # Errors
    /// As [`poll`](Self::poll).
    pub fn movements_waiting(&mut self, pair: u32) -> Result<usize> {
        while self.packets.take_to(self.packets.sent, &mut self.sent)? > 0 {}
        let is_one =
            |entry: &&ffi::ibv_wc| entry.qp_num == pair && matches!(entry.wr_id >> KIND, READ | WRITE);
        Ok(self.sent.iter().filter(is_one).count())
    }

    fn tell_sent(&mut self, entries: &[ffi::ibv_wc], tell: &mut impl FnMut(u32, Told<'_>)) {
        let is_good = |entry: &ffi::ibv_wc| entry.status == ffi::ibv_wc_status::IBV_WC_SUCCESS;
        let kind = |entry: &ffi::ibv_wc| entry.wr_id >> KIND;
        // Packets of one connection that have arrived are told together, and puts.
        let alike = |a: &ffi::ibv_wc, b: &ffi::ibv_wc| {
            let together = matches!(kind(a), SEND | PUT);
            a.qp_num == b.qp_num && kind(a) == kind(b) && is_good(a) && is_good(b) && together
        };
        for run in entries.chunk_by(alike) {
            let Some(first) = run.first() else { continue };
            if !is_good(first) {
                let operation = match kind(first) {
                    READ | GET | BEFORE => Operation::Read,
                    PUT | WRITE => Operation::Write,
                    _ => Operation::Send,
                };
                // What did not arrive may be sent again.
                tell(first.qp_num, Told::Failed(failed(&self.packets, first, operation)));
            } else if kind(first) == BEFORE {
                // The one behind it tells.
            } else if matches!(kind(first), READ | WRITE) {
                let name = u32::try_from(first.wr_id & u64::from(u32::MAX)).unwrap_or_default();
                tell(first.qp_num, Told::Moved(name));
            } else {
                tell(
                    first.qp_num,
                    match kind(first) {
                        PUT => Told::Put(run.len()),
                        GET => Told::Got(self.got(first)),
                        _ => Told::Sent(run.len()),
                    },
                );
                for entry in run {
                    // One of a connection that was closed is free already.
                    self.free_from(entry.wr_id as u32, entry.qp_num);
                }
            }
        }
    }

    /// Whether what was told was taken; else its slot stays as it is.
    #[inline]
    fn tell_received(
        &mut self,
        entry: &ffi::ibv_wc,
        tell: impl FnOnce(u32, Told<'_>) -> bool,
    ) -> Result<bool> {
        let number = entry.wr_id as usize;
        if self.receives.len() <= number {
            self.learn();
        }
        let mut again;
        let slot = match self.receives.get_mut(number) {
            Some(slot) => slot,
            None => {
                again = self.packets.find_again(number);
                match &mut again {
                    Some(slot) => slot,
                    None => return Ok(true),
                }
            }
        };
        let told = if entry.status == ffi::ibv_wc_status::IBV_WC_SUCCESS {
            let length = (entry.byte_len as usize).min(self.packets.room.packet);
            // SAFETY: the slot has so many initialised bytes (its pages began as zeros). Its receive has completed, so the device writes
            // there no more until it is posted again, below, when the borrow has ended.
            let bytes = unsafe { std::slice::from_raw_parts(slot.start, length) };
            Told::Packet(bytes)
        } else {
            Told::Failed(failed(&self.packets, entry, Operation::Receive))
        };
        let was_taken = tell(entry.qp_num, told);
        if was_taken {
            self.packets.post(slot)?;
        }
        Ok(was_taken)
    }

    /// Ends a connection that failed, and tells all that has come over it: the peer may know that it has come. Packets that have not arrived,
    /// as far as anyone can tell here, stay in their slots for [`send_again`](Self::send_again) or [`discard`](Self::discard).
    ///
    /// # Errors
    /// [`Error::Call`]; slots that it used for sends are then lost.
    pub fn take_down(&mut self, mut pair: PacketPair, tell: &mut impl FnMut(u32, Told<'_>)) -> Result<()> {
        let number = pair.number();
        let _ = pair.pair.modify(connection::to_error());
        // Before it is destroyed: some providers take its entries out of the queue then. Others (rxe) leave them there, also those of
        // packets that were just coming in.
        self.tell_of(number, tell)?;
        pair.pair.destroy()?;
        self.tell_of(number, tell)?;
        self.sends.iter_mut().filter(|slot| slot.user == number).for_each(|slot| slot.user = KEPT);
        Ok(())
    }

    /// Tells all that has happened on a connection.
    fn tell_of(&mut self, number: u32, tell: &mut impl FnMut(u32, Told<'_>)) -> Result<()> {
        while self.packets.take_to(self.packets.sent, &mut self.sent)? > 0 {}
        while self.packets.take_to(self.packets.received, &mut self.received)? > 0 {}
        for entry in std::mem::take(&mut self.sent) {
            if entry.qp_num == number {
                self.tell_sent(&[entry], tell);
            } else {
                self.sent.push_back(entry);
            }
        }
        for entry in std::mem::take(&mut self.received) {
            if entry.qp_num == number {
                self.tell_received(&entry, all(tell))?;
            } else {
                self.received.push_back(entry);
            }
        }
        Ok(())
    }

    /// Ends a connection: nothing more is told of it, and its device uses no memory of it any more.
    ///
    /// # Errors
    /// [`Error::Call`]; slots that it used for sends are then lost.
    pub fn close(&mut self, mut pair: PacketPair) -> Result<()> {
        let number = pair.number();
        let _ = pair.pair.modify(connection::to_error());
        let destroyed = pair.pair.destroy();
        // Some providers (rxe) leave its entries in the queue.
        self.tell_of(number, &mut |_, _| {})?;
        destroyed?;
        for (place, slot) in (0..).zip(&mut self.sends).filter(|(_, slot)| slot.user == number) {
            slot.user = 0;
            self.free.push(place);
        }
        Ok(())
    }
}

/// A send of one part that completes, but for what it sends.
fn request() -> ffi::ibv_send_wr {
    // SAFETY: ibv_send_wr is integers, pointers for which null is a value, and unions of those.
    let mut request: ffi::ibv_send_wr = unsafe { std::mem::zeroed() };
    request.num_sge = 1;
    request.send_flags = ffi::ibv_send_flags::IBV_SEND_SIGNALED.0;
    request.opcode = ffi::ibv_wr_opcode::IBV_WR_SEND;
    request
}

/// Sends what is in a slot.
#[inline]
fn post_packet(
    pair: &PacketPair,
    send: &mut ffi::ibv_send_wr,
    number: u32,
    mut element: ffi::ibv_sge,
) -> Result<()> {
    send.wr_id = SEND << KIND | u64::from(number);
    send.sg_list = &raw mut element;
    post(pair, send)
}

/// Gives a request to the device; its part is one that lives where this is called.
#[inline]
fn post(pair: &PacketPair, request: &mut ffi::ibv_send_wr) -> Result<()> {
    let mut bad = std::ptr::null_mut();
    // SAFETY: the queue pair exists as long as `pair`. Request and part live during the call, which copies them. A send's slot is not
    // touched until it completes, or the queue pair is destroyed (`close`). The memory of a read stays until its registration ends;
    // after that the device refuses to write there.
    let code = unsafe { ffi::ibv_post_send(pair.pair.raw(), request, &raw mut bad) };
    pair.pair.check(code, "ibv_post_send")
}

#[cold]
fn failed(packets: &Packets, entry: &ffi::ibv_wc, operation: Operation) -> CompletionError {
    CompletionError {
        operation,
        device: packets.domain.device().to_owned(),
        status: entry.status,
        vendor_code: entry.vendor_err,
    }
}

/// Who takes all that is told.
fn all<'a>(tell: &'a mut impl FnMut(u32, Told<'_>)) -> impl FnOnce(u32, Told<'_>) -> bool + 'a {
    move |number, told| {
        tell(number, told);
        true
    }
}
