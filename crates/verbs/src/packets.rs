//! Packets over many connections of one port, with one queue for all receives.
//!
//! Sends and receives complete in queues of their own: who waits for a packet need not hear of each one that it has sent.
//!
//! A packet is copied into a registered slot and sent from there, and shown to its receiver in the slot that it came into. Memory grows
//! with the connections: each brings its own slots. Who sends more packets than the other side has slots for waits in the network, so
//! connections must agree on how many may be on their way.
#![expect(unsafe_code, reason = "calls libibverbs, and reads and writes slots that a device uses in turn")]

use std::collections::VecDeque;
use std::fmt;
use std::mem::MaybeUninit;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rdma_mummy_sys as ffi;

use crate::completion::{CompletionError, Operation};
use crate::connection::{self, Connection};
use crate::context::ProtectionDomain;
use crate::error::{Error, Result};
use crate::memory::{Region, check_range};
use crate::pair::{self, Pair};
use crate::readback::Readback;
use crate::registration::Registration;

/// Completions taken from the device at once.
const BATCH: usize = 16;
/// The kind of a work request to send, in the highest bit of its number.
const SEND: u64 = 0;
const READ: u64 = 1;
const KIND: u32 = 63;
/// A slot's number: which region, and which place there.
const REGION: u32 = 16;

/// How much room the connections of a port have.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PacketRoom {
    /// The most bytes of a packet.
    pub packet: usize,
    /// Slots for receives that each connection brings.
    pub receives: u16,
    /// Slots for sends that each connection brings, for all to use.
    pub sends: u16,
    /// The most sends and reads that a connection may have under way together.
    pub depth: u16,
    /// RDMA reads that each connection may have under way.
    pub reads: u16,
    /// The most connections.
    pub connections: u32,
}

/// Slots of one connection's making: receives first, then sends.
#[derive(Debug)]
struct Slots {
    region: Region,
}

/// The queues that connections share, for whoever makes connections; [`PacketQueue`] is for who sends and receives.
#[derive(Debug)]
pub struct Packets {
    // Slots are freed last: `drop` destroys the queues before.
    /// Where sends and reads complete.
    sent: *mut ffi::ibv_cq,
    /// Where receives do.
    received: *mut ffi::ibv_cq,
    receives: *mut ffi::ibv_srq,
    room: PacketRoom,
    /// As many as connections were made, or one more: the next one's.
    slots: Mutex<Vec<Arc<Slots>>>,
    /// Connections that were made.
    made: AtomicUsize,
    domain: Arc<ProtectionDomain>,
}

// SAFETY: the pointers are only handed to libibverbs, which locks for itself; they never change until `drop`.
unsafe impl Send for Packets {}
// SAFETY: as above.
unsafe impl Sync for Packets {}

impl Packets {
    fn slots(&self) -> MutexGuard<'_, Vec<Arc<Slots>>> {
        // No code of ours panics while it holds the lock.
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes a connection's end on a port (from 1), with its slots, in state INIT.
    ///
    /// # Errors
    /// [`Error::Call`], which for ENOMEM names the memlock limit; [`Error::Length`] where there are as many connections as the
    /// queues have room for.
    pub fn pair(self: &Arc<Self>, port: u8) -> Result<PacketPair> {
        let most = self.room.connections as usize;
        let pair = self.pair_again(port)?;
        if self.made() >= most {
            return Err(Error::Length { what: "a list of connections", length: self.made() + 1, most });
        }
        self.prepare()?;
        self.made.fetch_add(1, Ordering::Relaxed);
        Ok(pair)
    }

    /// Makes the slots of the next connection, if they are not there: to register memory is half of what a connection takes. By one
    /// thread at a time, as [`pair`](Self::pair).
    ///
    /// # Errors
    /// As [`pair`](Self::pair), which tries again.
    pub fn prepare(&self) -> Result<()> {
        let PacketRoom { packet, receives, sends, connections, .. } = self.room;
        let made = self.slots().len();
        let number = match u32::try_from(made) {
            Ok(number) if made <= self.made() && number < connections => number,
            _ => return Ok(()),
        };
        let bytes = (usize::from(receives) + usize::from(sends)) * packet;
        let region = Region::register(&self.domain, bytes, ffi::ibv_access_flags::IBV_ACCESS_LOCAL_WRITE)?;
        let region = Arc::new(Slots { region });
        // Known before anything can come into them.
        self.slots().push(Arc::clone(&region));
        (0..receives).try_for_each(|place| self.post(&region, number, place))
    }

    /// The same without slots, for a connection that takes the place of one that was taken down.
    ///
    /// # Errors
    /// [`Error::Call`].
    pub fn pair_again(self: &Arc<Self>, port: u8) -> Result<PacketPair> {
        let mut attributes = pair::blank();
        attributes.qp_type = ffi::ibv_qp_type::IBV_QPT_RC;
        attributes.send_cq = self.sent;
        attributes.recv_cq = self.received;
        attributes.srq = self.receives;
        attributes.cap.max_send_wr = u32::from(self.room.depth);
        attributes.cap.max_send_sge = 1;
        attributes.sq_sig_all = 1;
        // The queues are kept by the `PacketPair`.
        let pair = Pair::create(&self.domain, attributes)?;
        pair.modify(connection::to_init(port))?;
        Ok(PacketPair { pair, _packets: Arc::clone(self) })
    }

    /// How many connections were made; those that are closed count too, their slots stay.
    #[must_use]
    pub fn made(&self) -> usize {
        self.made.load(Ordering::Relaxed)
    }

    /// Gives a slot that holds nothing any more to the device.
    #[inline]
    fn post(&self, slots: &Slots, number: u32, place: u16) -> Result<()> {
        // A packet has at most 4 GiB: looked at in `PacketQueue::create`.
        let mut element = self.element(slots, place, self.room.packet as u32);
        let mut request = ffi::ibv_recv_wr {
            wr_id: u64::from(number) << REGION | u64::from(place),
            next: std::ptr::null_mut(),
            sg_list: &raw mut element,
            num_sge: 1,
        };
        let mut bad = std::ptr::null_mut();
        // SAFETY: the queue exists until `drop`, and its slots as long. Request and element live during the call, which copies them. The
        // slot is new, or its last receive has completed and what came was given, so nothing else refers to its bytes.
        let code = unsafe { ffi::ibv_post_srq_recv(self.receives, &raw mut request, &raw mut bad) };
        if code == 0 { Ok(()) } else { Error::check(code, "ibv_post_srq_recv", self.domain.device()) }
    }

    /// Takes one completion of a receive.
    #[inline]
    fn next_received(&self) -> Result<Option<ffi::ibv_wc>> {
        let mut entry = MaybeUninit::uninit();
        // SAFETY: the queue exists until `drop`; there is room for one entry.
        match unsafe { ffi::ibv_poll_cq(self.received, 1, entry.as_mut_ptr()) } {
            0 => Ok(None),
            // SAFETY: ibv_poll_cq filled it.
            1 => Ok(Some(unsafe { entry.assume_init() })),
            code => Err(self.poll_failed(code)),
        }
    }

    #[cold]
    fn poll_failed(&self, code: i32) -> Error {
        let source = std::io::Error::from_raw_os_error(code.saturating_abs());
        Error::call("ibv_poll_cq", self.domain.device(), source)
    }

    /// Moves completions to the end of those that were taken. How many there were.
    fn take_to(&self, queue: *mut ffi::ibv_cq, taken: &mut VecDeque<ffi::ibv_wc>) -> Result<usize> {
        let mut entries = Entries::new();
        let more = entries.take(self, queue)?;
        taken.extend(more);
        Ok(more.len())
    }

    #[inline]
    fn element(&self, slots: &Slots, place: u16, length: u32) -> ffi::ibv_sge {
        ffi::ibv_sge { addr: self.start(slots, place).addr() as u64, length, lkey: slots.region.keys().0 }
    }

    #[inline]
    fn start(&self, slots: &Slots, place: u16) -> *mut u8 {
        debug_assert!(place < self.room.receives + self.room.sends);
        // SAFETY: a region has (receives + sends) x packet bytes, and `place` is below receives + sends everywhere.
        unsafe { slots.region.start().as_ptr().add(usize::from(place) * self.room.packet) }
    }
}

impl Drop for Packets {
    fn drop(&mut self) {
        // Connections hold an Arc of this, so none is left. Dropping cannot report.
        // SAFETY: made by ibv_create_srq and destroyed once.
        let _ = unsafe { ffi::ibv_destroy_srq(self.receives) };
        for queue in [self.sent, self.received] {
            // SAFETY: made by ibv_create_cq and destroyed once.
            let _ = unsafe { ffi::ibv_destroy_cq(queue) };
        }
    }
}

/// One end of a connection.
#[derive(Debug)]
pub struct PacketPair {
    // Destroyed before its queues, which this keeps.
    pair: Pair,
    _packets: Arc<Packets>,
}

impl PacketPair {
    /// Its number, which the peer needs (24 bits).
    #[must_use]
    pub fn number(&self) -> u32 {
        self.pair.number()
    }

    /// INIT to RTR to RTS. The peer may send as soon as this end is connected, but this end must not send before the peer is.
    ///
    /// # Errors
    /// [`Error::Call`], with a hint for a peer that this port cannot reach.
    pub fn connect(&self, connection: &Connection) -> Result<()> {
        self.pair.connect(connection)
    }

    /// Reads back what the kernel made of that; packets may be on their way by then.
    ///
    /// # Errors
    /// [`Error::Call`]; [`Error::NotAsAsked`].
    pub fn read_back(&self, connection: &Connection) -> Result<Readback> {
        self.pair.read_back(connection)
    }
}

/// Where a packet is that was sent, until it has arrived.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PacketSlot {
    region: u32,
    place: u16,
    length: u32,
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
    /// So many bytes of an RDMA read have come; the number is the caller's.
    Read(u32),
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
    /// Those that this side knows of.
    slots: Vec<Arc<Slots>>,
    /// Slots for sends that hold nothing, as region and place.
    free: Vec<(u32, u16)>,
    /// The connections that use slots for sends, one region's after the other's.
    users: Vec<u32>,
    /// A send, but for what it sends.
    send: ffi::ibv_send_wr,
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
        let PacketRoom { packet, receives, sends, reads, connections, .. } = room;
        if packet == 0 || packet > 1 << 30 {
            return Err(Error::Length { what: "a packet", length: packet, most: 1 << 30 });
        }
        let count = |each: u16| i32::try_from(u64::from(connections) * u64::from(each));
        let (Ok(most_sent), Ok(most_received)) = (count(sends.saturating_add(reads)), count(receives)) else {
            let (length, most) = (connections as usize, i32::MAX as usize);
            return Err(Error::Length { what: "a completion queue", length, most });
        };
        let sent = completions(domain, most_sent)?;
        let shared = completions(domain, most_received).and_then(|received| {
            Ok((received, shared_receives(domain, most_received).inspect_err(|_| discard(received))?))
        });
        let (received, receives) = shared.inspect_err(|_| discard(sent))?;
        let domain = Arc::clone(domain);
        let (slots, made) = (Mutex::default(), AtomicUsize::new(0));
        let packets = Arc::new(Packets { sent, received, receives, room, slots, made, domain });
        let (slots, free, users, send) = (Vec::new(), Vec::new(), Vec::new(), request());
        Ok(Self { packets, slots, free, users, send, sent: VecDeque::new(), received: VecDeque::new() })
    }

    /// The part that makes connections, for any thread.
    #[must_use]
    pub fn packets(&self) -> &Arc<Packets> {
        &self.packets
    }

    /// Learns of connections that were made.
    #[cold]
    fn learn(&mut self) {
        let room = self.packets.room;
        let slots = self.packets.slots();
        for (number, slots) in (0..).zip(slots.iter()).skip(self.slots.len()) {
            self.free.extend((room.receives..room.receives + room.sends).map(|place| (number, place)));
            self.users.extend((0..room.sends).map(|_| 0));
            self.slots.push(Arc::clone(slots));
        }
    }

    /// Sends a packet that is made of two parts; `None` if there is no slot now. The caller sees to it that no connection has more
    /// sends and reads under way than its room.
    ///
    /// # Errors
    /// [`Error::Length`] for more than a packet; [`Error::Call`].
    #[inline]
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
        if self.free.is_empty() {
            self.learn();
        }
        let Some((region, place)) = self.free.pop() else { return Ok(None) };
        // No packet has 4 GiB: looked at in `create`.
        let slot = PacketSlot { region, place, length: length as u32 };
        let start = self.packets.start(&self.slots[region as usize], place);
        // SAFETY: the slot has `most` bytes, and they fit; it is free, so no device reads it and nothing refers to its bytes, which are
        // memory of this queue and so not part of `head` or `rest`.
        unsafe {
            start.cast::<[u8; HEAD]>().write_unaligned(*head);
            std::ptr::copy_nonoverlapping(rest.as_ptr(), start.add(HEAD), rest.len());
        }
        match self.post_slot(pair, slot) {
            Ok(()) => Ok(Some(slot)),
            Err(error) => {
                self.free.push((region, place));
                Err(error)
            }
        }
    }

    #[inline]
    fn post_slot(&mut self, pair: &PacketPair, slot: PacketSlot) -> Result<()> {
        let PacketSlot { region, place, length } = slot;
        let mut element = self.packets.element(&self.slots[region as usize], place, length);
        self.send.wr_id = SEND << KIND | u64::from(region) << REGION | u64::from(place);
        self.send.sg_list = &raw mut element;
        post(pair, &mut self.send)?;
        *self.user(region, place) = pair.number();
        Ok(())
    }

    /// Sends a packet once more, which was sent on a connection that was taken down.
    ///
    /// # Errors
    /// [`Error::Call`]; the slot stays as it was.
    pub fn send_again(&mut self, pair: &PacketPair, slot: PacketSlot) -> Result<()> {
        if *self.user(slot.region, slot.place) != KEPT {
            return Ok(());
        }
        self.post_slot(pair, slot)
    }

    /// A packet that was sent on a connection that was taken down is not needed any more.
    pub fn discard(&mut self, slot: PacketSlot) {
        let user = self.user(slot.region, slot.place);
        if *user == KEPT {
            *user = 0;
            self.free.push((slot.region, slot.place));
        }
    }

    /// Reads `length` bytes of a peer's memory to `offset` of memory here. The end is told with `name`.
    ///
    /// # Errors
    /// [`Error::OutOfRange`], [`Error::Call`].
    pub fn read(
        &mut self,
        pair: &PacketPair,
        name: u32,
        into: (&Registration, usize),
        from: (u64, u32),
        length: u32,
    ) -> Result<()> {
        let (memory, offset) = into;
        check_range(offset as u64, u64::from(length), memory.length() as u64, "the memory")?;
        let addr = memory.address() + offset as u64;
        let mut element = ffi::ibv_sge { addr, length, lkey: memory.local_key() };
        let mut read = request();
        read.wr_id = READ << KIND | u64::from(name);
        read.sg_list = &raw mut element;
        read.opcode = ffi::ibv_wr_opcode::IBV_WR_RDMA_READ;
        read.wr.rdma = ffi::rdma_t { remote_addr: from.0, rkey: from.1 };
        post(pair, &mut read)
    }

    #[inline]
    fn user(&mut self, region: u32, place: u16) -> &mut u32 {
        let PacketRoom { receives, sends, .. } = self.packets.room;
        &mut self.users[region as usize * usize::from(sends) + usize::from(place - receives)]
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

    /// Tells the next that came, for who waits for one thing alone: `tell` says whether it has taken what it is told. What it has not,
    /// [`poll`](Self::poll) tells again, and then what came later.
    ///
    /// # Errors
    /// As [`poll`](Self::poll).
    #[inline]
    pub fn poll_for(&mut self, tell: impl FnOnce(u32, Told<'_>) -> bool) -> Result<Polled> {
        let entry = match self.received.pop_front() {
            Some(entry) => entry,
            None => match self.packets.next_received()? {
                Some(entry) => entry,
                None => return Ok(Polled::Nothing),
            },
        };
        if self.tell_received(&entry, tell)? {
            return Ok(Polled::Taken);
        }
        self.received.push_front(entry);
        Ok(Polled::Left)
    }

    /// How many RDMA reads of a connection are over and will be told by `poll`, whatever became of them.
    ///
    /// # Errors
    /// As [`poll`](Self::poll).
    pub fn reads_waiting(&mut self, pair: u32) -> Result<usize> {
        while self.packets.take_to(self.packets.sent, &mut self.sent)? > 0 {}
        let is_one = |entry: &&ffi::ibv_wc| entry.qp_num == pair && entry.wr_id >> KIND == READ;
        Ok(self.sent.iter().filter(is_one).count())
    }

    fn tell_sent(&mut self, entries: &[ffi::ibv_wc], tell: &mut impl FnMut(u32, Told<'_>)) {
        let is_good = |entry: &ffi::ibv_wc| entry.status == ffi::ibv_wc_status::IBV_WC_SUCCESS;
        let is_read = |entry: &ffi::ibv_wc| entry.wr_id >> KIND == READ;
        // Packets of one connection that have arrived are told together.
        let alike = |a: &ffi::ibv_wc, b: &ffi::ibv_wc| {
            a.qp_num == b.qp_num && [a, b].iter().all(|entry| is_good(entry) && !is_read(entry))
        };
        for run in entries.chunk_by(alike) {
            let Some(first) = run.first() else { continue };
            if !is_good(first) {
                let operation = if is_read(first) { Operation::Read } else { Operation::Send };
                // What did not arrive may be sent again.
                tell(first.qp_num, Told::Failed(self.failed(first, operation)));
            } else if is_read(first) {
                let name = u32::try_from(first.wr_id & u64::from(u32::MAX)).unwrap_or_default();
                tell(first.qp_num, Told::Read(name));
            } else {
                tell(first.qp_num, Told::Sent(run.len()));
                for entry in run {
                    let (region, place) = slot(entry.wr_id);
                    let user = self.user(region, place);
                    // One of a connection that was closed is free already.
                    if *user == entry.qp_num {
                        *user = 0;
                        self.free.push((region, place));
                    }
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
        let (number, place) = slot(entry.wr_id);
        if self.slots.len() <= number as usize {
            self.learn();
        }
        let Some(slots) = self.slots.get(number as usize) else { return Ok(true) };
        let told = if entry.status == ffi::ibv_wc_status::IBV_WC_SUCCESS {
            let length = (entry.byte_len as usize).min(self.packets.room.packet);
            // SAFETY: the slot has so many initialised bytes (its pages began as zeros). Its receive has completed, so the device writes
            // there no more until it is posted again, below, when the borrow has ended.
            let bytes = unsafe { std::slice::from_raw_parts(self.packets.start(slots, place), length) };
            Told::Packet(bytes)
        } else {
            Told::Failed(self.failed(entry, Operation::Receive))
        };
        let was_taken = tell(entry.qp_num, told);
        if was_taken {
            self.packets.post(slots, number, place)?;
        }
        Ok(was_taken)
    }

    #[cold]
    fn failed(&self, entry: &ffi::ibv_wc, operation: Operation) -> CompletionError {
        CompletionError {
            operation,
            device: self.packets.domain.device().to_owned(),
            status: entry.status,
            vendor_code: entry.vendor_err,
        }
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
        self.users.iter_mut().filter(|user| **user == number).for_each(|user| *user = KEPT);
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
        let PacketRoom { receives, sends, .. } = self.packets.room;
        let slots = (0..).flat_map(|region| (receives..receives + sends).map(move |place| (region, place)));
        for (slot, user) in slots.zip(&mut self.users).filter(|(_, user)| **user == number) {
            *user = 0;
            self.free.push(slot);
        }
        Ok(())
    }
}

/// Completions taken from the device.
struct Entries([MaybeUninit<ffi::ibv_wc>; BATCH]);

impl Entries {
    #[inline]
    fn new() -> Self {
        Self([const { MaybeUninit::uninit() }; BATCH])
    }

    /// Takes those that there are.
    #[inline]
    fn take(&mut self, packets: &Packets, queue: *mut ffi::ibv_cq) -> Result<&[ffi::ibv_wc]> {
        // SAFETY: `queue` is one of the two of `packets`, which exist as long as that; there is room for BATCH entries, which the call fills
        // from the start.
        let count = unsafe { ffi::ibv_poll_cq(queue, BATCH as i32, self.0.as_mut_ptr().cast()) };
        match usize::try_from(count) {
            // SAFETY: ibv_poll_cq filled so many, and never more than it was given room for.
            Ok(count) => Ok(unsafe { std::slice::from_raw_parts(self.0.as_ptr().cast(), count) }),
            Err(_) => Err(packets.poll_failed(count)),
        }
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

/// A completion queue with so many entries.
fn completions(domain: &ProtectionDomain, entries: i32) -> Result<*mut ffi::ibv_cq> {
    let context = domain.context();
    let none = std::ptr::null_mut();
    // SAFETY: the context is open and kept by `domain`; no cookie, no channel, vector 0.
    let queue = unsafe { ffi::ibv_create_cq(context.raw(), entries, none, none.cast(), 0) };
    if queue.is_null() { Err(Error::last("ibv_create_cq", context.device())) } else { Ok(queue) }
}

/// A queue for so many receives of all connections.
fn shared_receives(domain: &ProtectionDomain, most: i32) -> Result<*mut ffi::ibv_srq> {
    // SAFETY: ibv_srq_init_attr is a pointer, for which null is a value, and integers.
    let mut attributes: ffi::ibv_srq_init_attr = unsafe { std::mem::zeroed() };
    attributes.attr.max_wr = most.unsigned_abs();
    attributes.attr.max_sge = 1;
    // SAFETY: the domain is kept by the caller; `attributes` lives during the call.
    let queue = unsafe { ffi::ibv_create_srq(domain.raw(), &raw mut attributes) };
    if queue.is_null() { Err(Error::last("ibv_create_srq", domain.device())) } else { Ok(queue) }
}

/// Destroys a completion queue that nothing uses.
fn discard(queue: *mut ffi::ibv_cq) {
    // SAFETY: its maker's, who does not use it any more.
    let _ = unsafe { ffi::ibv_destroy_cq(queue) };
}

/// Who takes all that is told.
fn all<'a>(tell: &'a mut impl FnMut(u32, Told<'_>)) -> impl FnOnce(u32, Told<'_>) -> bool + 'a {
    move |number, told| {
        tell(number, told);
        true
    }
}

/// The slot of a work request: region and place.
#[inline]
fn slot(id: u64) -> (u32, u16) {
    ((id >> REGION) as u32, id as u16)
}
