//! Sends packets on the connections of a port, and tells what has come.
#![expect(unsafe_code, reason = "calls libibverbs, and reads and writes slots that a device uses in turn")]

mod one_sided;
mod ring;

use std::collections::VecDeque;
use std::fmt;
use std::mem::MaybeUninit;
use std::sync::Arc;

use rdma_mummy_sys as ffi;

use crate::completion::{CompletionError, Operation};
use crate::connection;
use crate::context::ProtectionDomain;
use crate::error::{Error, Result};
use crate::packets::{BATCH, Entries, PacketPair, PacketRoom, Packets, ReceiveSlot};

pub use self::one_sided::Movement;
use self::ring::Ring;

/// The kind of a work request to send, in the three highest bits of its number. Below are 29 of its ring's, and 32 of the slot's there.
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
/// A request tells its end.
const TELLS: u32 = ffi::ibv_send_flags::IBV_SEND_SIGNALED.0;
const RING: u32 = 32;
const RINGS: usize = (1 << (KIND - RING)) - 1;

/// What a connection that was taken down had under way, and its slots. The next one [goes on](PacketQueue::begin) with it.
#[derive(Debug)]
pub struct Kept {
    ring: u32,
}

/// What a [`PacketQueue`] tells of a connection, by the number of its end here.
#[derive(Debug)]
pub enum Told<'a> {
    /// A packet came.
    Packet(&'a [u8]),
    /// So many packets have arrived at the peer.
    Sent(usize),
    /// A put has arrived in the peer's memory.
    Put,
    /// Bytes that were got, in a slot, whose rest holds anything.
    Got(&'a [u8]),
    /// An RDMA read or write of memory is over; the number is the caller's.
    Moved(u32),
    /// The connection has failed. It tells so of each operation that was under way.
    Failed(CompletionError),
}

/// What [`PacketQueue::look`] has found.
#[expect(missing_debug_implementations, reason = "ibv_wc has none")]
pub enum Found<'a> {
    /// Nothing has happened.
    Nothing,
    /// A packet came, which must be taken or left.
    Packet(Came<'a>),
    /// Something else, of which `poll` tells.
    Other,
}

/// A packet that came.
#[expect(missing_debug_implementations, reason = "ibv_wc has none")]
#[must_use]
pub struct Came<'a> {
    packets: &'a Packets,
    received: &'a mut VecDeque<ffi::ibv_wc>,
    slot: &'a mut ReceiveSlot,
    entry: &'a ffi::ibv_wc,
}

impl Came<'_> {
    /// The number of the connection that it came over.
    #[inline]
    #[must_use]
    pub fn pair(&self) -> u32 {
        self.entry.qp_num
    }

    /// What came.
    #[inline]
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        packet(self.packets, self.slot, self.entry)
    }

    /// It is not needed any more.
    ///
    /// # Errors
    /// [`Error::Call`]: nothing on this port works any more.
    #[inline(always)]
    #[expect(clippy::inline_always, reason = "part of the way of a short message")]
    pub fn take(self) -> Result<()> {
        self.packets.post(self.slot)
    }

    /// [`PacketQueue::poll`] tells of it, and then of what came later.
    #[inline(always)]
    #[expect(clippy::inline_always, reason = "or all of it would go through memory where it is taken, too")]
    pub fn leave(self) {
        put_back(self.received, self.entry);
    }
}

/// Where [`PacketQueue::look`] puts what it finds.
#[derive(Debug)]
pub struct EntryPlace(MaybeUninit<ffi::ibv_wc>);

impl EntryPlace {
    /// Empty.
    #[inline]
    #[must_use]
    pub fn new() -> Self {
        Self(MaybeUninit::uninit())
    }
}

impl Default for EntryPlace {
    fn default() -> Self {
        Self::new()
    }
}

/// Sends and receives on the connections of a port.
pub struct PacketQueue {
    packets: Arc<Packets>,
    /// Connections whose slots this side knows.
    known: u32,
    /// Slots for receives, one connection's after the other's. `packets` keeps their memory, and that of those for sends.
    receives: Vec<ReceiveSlot>,
    /// Slots for sends, a connection's each.
    rings: Vec<Ring>,
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
            .field("known", &self.known)
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
        let (receives, rings) = (Vec::new(), Vec::new());
        let (sent, received) = (VecDeque::new(), VecDeque::new());
        Ok(Self { packets, known: 0, receives, rings, sent, received })
    }

    /// The part that makes connections, for any thread.
    #[must_use]
    pub fn packets(&self) -> &Arc<Packets> {
        &self.packets
    }

    /// Learns the slots of connections that were made since.
    #[cold]
    fn learn(&mut self) {
        let PacketRoom { receives, .. } = self.packets.room;
        let all = self.packets.slots();
        for slots in all.iter().skip(self.known as usize) {
            let new = (0..receives).map(|place| self.packets.receive_slot(slots, self.known, place));
            self.receives.extend(new);
            self.rings.push(Ring::new(&self.packets, slots, self.known));
            self.known += 1;
        }
    }

    /// Sends a packet that is made of two parts, on a connection that was [begun](Self::begin). Whether there was a slot for it. The caller sees to it that no connection has more
    /// under way than its room. That the packet has arrived is told if it `tells`; else with what is sent later, or
    /// when the device is [asked](Self::ask).
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
        tells: bool,
    ) -> Result<bool> {
        let length = HEAD + rest.len();
        let most = self.packets.room.packet;
        if length > most {
            return Err(Error::Length { what: "a packet", length, most });
        }
        let Some(ring) = self.rings.get_mut(pair.ring as usize) else { return Ok(false) };
        let Some(slot) = ring.next() else { return Ok(false) };
        // SAFETY: the slot has `most` bytes, and they fit; it is free, so no device reads it and nothing refers to its bytes, which are
        // memory of this queue and so not part of `head` or `rest`.
        unsafe {
            slot.start.cast::<[u8; HEAD]>().write_unaligned(*head);
            copy(rest, slot.start.add(HEAD));
        }
        // No packet has 4 GiB: looked at when the queues were made.
        slot.element.length = length as u32;
        slot.request.opcode = ffi::ibv_wr_opcode::IBV_WR_SEND;
        slot.request.wr_id = slot.name;
        slot.request.send_flags = if tells { TELLS } else { 0 };
        post_element(pair, &mut slot.request, &mut slot.element)?;
        ring.take();
        Ok(true)
    }

    /// Has the device tell when the packets have arrived that do not tell themselves, by an RDMA write of nothing. Whether there are any.
    ///
    /// # Errors
    /// [`Error::Call`].
    pub fn ask(&mut self, pair: &PacketPair) -> Result<bool> {
        let Some(ring) = self.rings.get_mut(pair.ring as usize) else { return Ok(false) };
        let Some(last) = ring.unheard() else { return Ok(false) };
        let mut request = request();
        request.wr_id = last.name;
        request.num_sge = 0;
        request.opcode = ffi::ibv_wr_opcode::IBV_WR_RDMA_WRITE;
        post(pair, &mut request)?;
        ring.asked();
        Ok(true)
    }

    /// Begins to use a connection, which has been made. It goes on with what one that was taken down had under way: its packets but the first
    /// ones, so many, which have arrived, and its puts go over this one, in their order.
    ///
    /// # Errors
    /// [`Error::Call`]; what was not posted is under way as if it were, until this one is taken down too.
    pub fn begin(&mut self, pair: &mut PacketPair, kept: Option<Kept>, arrived: usize) -> Result<()> {
        let Some(kept) = kept else {
            self.learn();
            return Ok(());
        };
        pair.ring = kept.ring;
        let Some(ring) = self.rings.get_mut(kept.ring as usize) else { return Ok(()) };
        for place in ring.go_on(arrived) {
            let Some(slot) = ring.slot(place) else { continue };
            post_element(pair, &mut slot.request, &mut slot.element)?;
        }
        Ok(())
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
                self.tell_received(&entry, tell)?;
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

    /// Looks for the next packet that came, for who waits for one thing alone; where there is none, a few times as long as `goes_on` says
    /// so. `place` is for it. What is no packet is left to [`poll`](Self::poll).
    ///
    /// # Errors
    /// As [`poll`](Self::poll).
    #[inline(always)]
    #[expect(clippy::inline_always, reason = "as for sends")]
    pub fn look<'a>(
        &'a mut self,
        goes_on: impl FnMut() -> bool,
        place: &'a mut EntryPlace,
    ) -> Result<Found<'a>> {
        let Self { packets, receives, received, .. } = self;
        let entry = match received.pop_front() {
            Some(entry) => place.0.write(entry),
            None => match packets.next_received(goes_on, &mut place.0)? {
                Some(entry) => entry,
                None => return Ok(Found::Nothing),
            },
        };
        if entry.status == ffi::ibv_wc_status::IBV_WC_SUCCESS
            && let Some(slot) = receives.get_mut(entry.wr_id as usize)
        {
            return Ok(Found::Packet(Came { packets, received, slot, entry }));
        }
        put_back(received, entry);
        Ok(Found::Other)
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
        for entry in entries {
            let (pair, kind, number) = (entry.qp_num, entry.wr_id >> KIND, entry.wr_id as u32);
            if entry.status != ffi::ibv_wc_status::IBV_WC_SUCCESS {
                let operation = match kind {
                    READ | GET | BEFORE => Operation::Read,
                    PUT | WRITE => Operation::Write,
                    _ => Operation::Send,
                };
                // What did not arrive may be sent again.
                tell(pair, Told::Failed(failed(&self.packets, entry, operation)));
                continue;
            }
            if matches!(kind, READ | WRITE) {
                tell(pair, Told::Moved(number));
                continue;
            }
            let ring = (entry.wr_id >> RING) as usize & RINGS;
            let Some(ring) = self.rings.get_mut(ring) else { continue };
            match kind {
                SEND => {
                    let before = ring.give_back(number);
                    tell(pair, Told::Sent(before as usize + 1));
                }
                // The one behind it tells.
                BEFORE => {}
                _ => {
                    // Packets that do not tell themselves are over too.
                    let before = ring.before(number);
                    if before > 0 {
                        tell(pair, Told::Sent(before as usize));
                    }
                    if kind == PUT {
                        tell(pair, Told::Put);
                    } else if let Some(slot) = ring.slot(number) {
                        // SAFETY: the slot has so many initialised bytes (its pages began as zeros). Its read is over, and it is given
                        // back after this borrow has ended, so no device writes there.
                        let bytes =
                            unsafe { std::slice::from_raw_parts(slot.start, self.packets.room.packet) };
                        tell(pair, Told::Got(bytes));
                    }
                    ring.give_back(number);
                }
            }
        }
    }

    fn tell_received(&mut self, entry: &ffi::ibv_wc, tell: &mut impl FnMut(u32, Told<'_>)) -> Result<()> {
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
                    None => return Ok(()),
                }
            }
        };
        let told = if entry.status == ffi::ibv_wc_status::IBV_WC_SUCCESS {
            Told::Packet(packet(&self.packets, slot, entry))
        } else {
            Told::Failed(failed(&self.packets, entry, Operation::Receive))
        };
        tell(entry.qp_num, told);
        self.packets.post(slot)
    }

    /// Ends a connection that failed, and tells all that has come over it: the peer may know that it has come. What has not arrived,
    /// as far as anyone can tell here, stays in its slots for the connection that [goes on](Self::begin) with it.
    ///
    /// # Errors
    /// [`Error::Call`].
    pub fn take_down(&mut self, mut pair: PacketPair, tell: &mut impl FnMut(u32, Told<'_>)) -> Result<Kept> {
        let (number, ring) = (pair.number(), pair.ring);
        let _ = pair.pair.modify(connection::to_error());
        // Before it is destroyed: some providers take its entries out of the queue then. Others (rxe) leave them there, also those of
        // packets that were just coming in.
        self.tell_of(number, tell)?;
        pair.pair.destroy()?;
        self.tell_of(number, tell)?;
        Ok(Kept { ring })
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
                self.tell_received(&entry, tell)?;
            } else {
                self.received.push_back(entry);
            }
        }
        Ok(())
    }

    /// Ends a connection: nothing more is told of it, and its device uses no memory of it any more.
    ///
    /// # Errors
    /// [`Error::Call`].
    pub fn close(&mut self, mut pair: PacketPair) -> Result<()> {
        let number = pair.number();
        let _ = pair.pair.modify(connection::to_error());
        let destroyed = pair.pair.destroy();
        // Some providers (rxe) leave its entries in the queue.
        self.tell_of(number, &mut |_, _| {})?;
        destroyed
    }
}

/// The number by which a request's end is told.
#[inline]
fn name(kind: u64, ring: u32, number: u32) -> u64 {
    kind << KIND | u64::from(ring) << RING | u64::from(number)
}

/// Copies to where there is room. Short ones are not worth a call.
///
/// # Safety
/// There is room for so many bytes, which are not among those copied.
#[inline(always)]
#[expect(clippy::inline_always, reason = "part of the way of a short message")]
unsafe fn copy(from: &[u8], to: *mut u8) {
    if let (8..=16, Some(first), Some(last)) = (from.len(), from.first_chunk::<8>(), from.last_chunk::<8>()) {
        // SAFETY: both are within the room that the caller vouches for.
        unsafe {
            to.cast::<[u8; 8]>().write_unaligned(*first);
            to.add(from.len() - 8).cast::<[u8; 8]>().write_unaligned(*last);
        }
        return;
    }
    // SAFETY: the caller's.
    unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), to, from.len()) };
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

/// Gives a request to the device, for a part of memory.
#[inline]
fn post_element(pair: &PacketPair, request: &mut ffi::ibv_send_wr, element: &mut ffi::ibv_sge) -> Result<()> {
    request.sg_list = element;
    post(pair, request)
}

/// Gives a request to the device; its part is one that lives where this is called.
#[inline]
fn post(pair: &PacketPair, request: &mut ffi::ibv_send_wr) -> Result<()> {
    let mut bad = std::ptr::null_mut();
    // SAFETY: the queue pair exists as long as `pair`. Request and part live during the call, which copies them. A send's slot is not
    // touched until it completes, or a later one of its queue pair, or that is destroyed (`close`). The memory of a read stays until its registration ends;
    // after that the device refuses to write there.
    let code = unsafe { ffi::ibv_post_send(pair.pair.raw(), request, &raw mut bad) };
    pair.pair.check(code, "ibv_post_send")
}

#[cold]
fn put_back(received: &mut VecDeque<ffi::ibv_wc>, entry: &ffi::ibv_wc) {
    received.push_front(*entry);
}

/// The packet that has come into a slot.
#[inline]
fn packet<'a>(packets: &Packets, slot: &'a ReceiveSlot, entry: &ffi::ibv_wc) -> &'a [u8] {
    let length = (entry.byte_len as usize).min(packets.room.packet);
    // SAFETY: the slot has so many initialised bytes (its pages began as zeros). Its receive has completed, so the device writes there no more
    // until it is posted again, which takes the slot, so after this borrow has ended.
    unsafe { std::slice::from_raw_parts(slot.start, length) }
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
