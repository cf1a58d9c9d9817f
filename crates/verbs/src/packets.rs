//! Packets over many connections of one port, with one queue for all completions and one for all receives.
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
/// The kind of a work request, in the highest bits of its number.
const RECEIVE: u64 = 0;
const SEND: u64 = 1;
const READ: u64 = 2;
const KIND: u32 = 62;
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
    completions: *mut ffi::ibv_cq,
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
        let number = self.slots().len();
        if number > self.made() || number >= connections as usize {
            return Ok(());
        }
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
        attributes.send_cq = self.completions;
        attributes.recv_cq = self.completions;
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
    fn post(&self, slots: &Slots, number: usize, place: u16) -> Result<()> {
        let mut element = self.element(slots, place, self.room.packet);
        let mut request = ffi::ibv_recv_wr {
            wr_id: RECEIVE << KIND | (number as u64) << REGION | u64::from(place),
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

    #[inline]
    fn element(&self, slots: &Slots, place: u16, length: usize) -> ffi::ibv_sge {
        let addr = self.start(slots, place).addr() as u64;
        // A packet has at most 4 GiB: looked at in `PacketQueue::create`.
        ffi::ibv_sge { addr, length: u32::try_from(length).unwrap_or_default(), lkey: slots.region.keys().0 }
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
        // SAFETY: made by ibv_create_cq and destroyed once.
        let _ = unsafe { ffi::ibv_destroy_cq(self.completions) };
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
    region: usize,
    place: u16,
    length: usize,
}

/// Stands for the user of a slot whose connection was taken down; a queue pair's number has 24 bits.
const KEPT: u32 = u32::MAX;

/// What a [`PacketQueue`] tells of a connection, by the number of its end here.
#[derive(Debug)]
pub enum Told<'a> {
    /// A packet came.
    Packet(&'a [u8]),
    /// A packet has arrived at the peer.
    Sent,
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
    /// All that has happened was taken.
    All,
    /// Something was not.
    Left,
}

/// Sends and receives on the connections of a port.
pub struct PacketQueue {
    packets: Arc<Packets>,
    /// Those that this side knows of.
    slots: Vec<Arc<Slots>>,
    /// Slots for sends that hold nothing, as region and place.
    free: Vec<(usize, u16)>,
    /// The connection that uses a slot for sends, by region and place.
    users: Vec<Vec<u32>>,
    /// Taken from the device, and not told yet.
    waiting: VecDeque<ffi::ibv_wc>,
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
        let posted = u64::from(connections) * u64::from(receives);
        let entries = u64::from(connections) * (u64::from(receives) + u64::from(sends) + u64::from(reads));
        let too_long = |_| Error::Length {
            what: "a completion queue",
            length: usize::try_from(entries).unwrap_or(usize::MAX),
            most: i32::MAX as usize,
        };
        let context = domain.context();
        let count = i32::try_from(entries).map_err(too_long)?;
        // SAFETY: the context is open and kept by `domain`; no cookie, no channel, vector 0.
        let completions = unsafe {
            ffi::ibv_create_cq(context.raw(), count, std::ptr::null_mut(), std::ptr::null_mut(), 0)
        };
        if completions.is_null() {
            return Err(Error::last("ibv_create_cq", context.device()));
        }
        // SAFETY: ibv_srq_init_attr is a pointer, for which null is a value, and integers.
        let mut attributes: ffi::ibv_srq_init_attr = unsafe { std::mem::zeroed() };
        attributes.attr.max_wr = u32::try_from(posted).unwrap_or(u32::MAX);
        attributes.attr.max_sge = 1;
        // SAFETY: the domain is kept by `self`; `attributes` lives during the call.
        let receives = unsafe { ffi::ibv_create_srq(domain.raw(), &raw mut attributes) };
        if receives.is_null() {
            let error = Error::last("ibv_create_srq", context.device());
            // SAFETY: made above, and used by nothing.
            let _ = unsafe { ffi::ibv_destroy_cq(completions) };
            return Err(error);
        }
        let domain = Arc::clone(domain);
        let packets = Arc::new(Packets {
            completions,
            receives,
            room,
            slots: Mutex::default(),
            made: AtomicUsize::new(0),
            domain,
        });
        let (slots, free, users, waiting) = (Vec::new(), Vec::new(), Vec::new(), VecDeque::new());
        Ok(Self { packets, slots, free, users, waiting })
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
        for number in self.slots.len()..slots.len() {
            self.free.extend((room.receives..room.receives + room.sends).map(|place| (number, place)));
            self.users.push(vec![0; usize::from(room.sends)]);
            self.slots.push(Arc::clone(&slots[number]));
        }
    }

    /// Sends a packet that is made of parts; `None` if there is no slot now. The caller sees to it that no connection has more sends
    /// and reads under way than its room.
    ///
    /// # Errors
    /// [`Error::Length`] for more than a packet; [`Error::Call`].
    #[inline]
    pub fn send(&mut self, pair: &PacketPair, parts: [&[u8]; 2]) -> Result<Option<PacketSlot>> {
        let length = parts[0].len() + parts[1].len();
        let most = self.packets.room.packet;
        if length > most {
            return Err(Error::Length { what: "a packet", length, most });
        }
        if self.free.is_empty() {
            self.learn();
        }
        let Some((region, place)) = self.free.pop() else { return Ok(None) };
        let slot = PacketSlot { region, place, length };
        let start = self.packets.start(&self.slots[region], place);
        // SAFETY: the slot has `most` bytes, and they fit; it is free, so no device reads it and nothing refers to its bytes, which are
        // memory of this queue and so not part of `parts`.
        unsafe {
            std::ptr::copy_nonoverlapping(parts[0].as_ptr(), start, parts[0].len());
            std::ptr::copy_nonoverlapping(parts[1].as_ptr(), start.add(parts[0].len()), parts[1].len());
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
        let element = self.packets.element(&self.slots[region], place, length);
        let id = SEND << KIND | (region as u64) << REGION | u64::from(place);
        self.post(pair, id, element, None)?;
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
        let element = ffi::ibv_sge { addr, length, lkey: memory.local_key() };
        self.post(pair, READ << KIND | u64::from(name), element, Some(from))
    }

    #[inline]
    fn post(
        &self,
        pair: &PacketPair,
        id: u64,
        mut element: ffi::ibv_sge,
        from: Option<(u64, u32)>,
    ) -> Result<()> {
        // SAFETY: ibv_send_wr is integers, pointers for which null is a value, and unions of those.
        let mut request: ffi::ibv_send_wr = unsafe { std::mem::zeroed() };
        request.wr_id = id;
        request.sg_list = &raw mut element;
        request.num_sge = 1;
        request.send_flags = ffi::ibv_send_flags::IBV_SEND_SIGNALED.0;
        request.opcode = ffi::ibv_wr_opcode::IBV_WR_SEND;
        if let Some((remote_addr, rkey)) = from {
            request.opcode = ffi::ibv_wr_opcode::IBV_WR_RDMA_READ;
            request.wr.rdma = ffi::rdma_t { remote_addr, rkey };
        }
        let mut bad = std::ptr::null_mut();
        // SAFETY: the queue pair exists as long as `pair`. Request and element live during the call, which copies them. A send's slot is
        // not touched until it completes, or the queue pair is destroyed (`close`). The memory of a read stays until its registration
        // ends; after that the device refuses to write there.
        let code = unsafe { ffi::ibv_post_send(pair.pair.raw(), &raw mut request, &raw mut bad) };
        if code == 0 { Ok(()) } else { Error::check(code, "ibv_post_send", &pair.pair.named()) }
    }

    #[inline]
    fn user(&mut self, number: usize, place: u16) -> &mut u32 {
        &mut self.users[number][usize::from(place - self.packets.room.receives)]
    }

    /// Tells what has happened, at most a batch. How much it was.
    ///
    /// # Errors
    /// [`Error::Call`]: nothing on this port works any more.
    #[inline]
    pub fn poll(&mut self, tell: &mut impl FnMut(u32, Told<'_>)) -> Result<usize> {
        if !self.waiting.is_empty() {
            let count = self.waiting.len().min(BATCH);
            for _ in 0..count {
                if let Some(entry) = self.waiting.pop_front() {
                    self.tell(&entry, &mut all(tell))?;
                }
            }
            return Ok(count);
        }
        let mut entries = [const { MaybeUninit::<ffi::ibv_wc>::uninit() }; BATCH];
        let count = self.take(&mut entries)?;
        for entry in &entries[..count] {
            // SAFETY: ibv_poll_cq filled so many.
            let entry = unsafe { entry.assume_init_ref() };
            self.tell(entry, &mut all(tell))?;
        }
        Ok(count)
    }

    /// The same for who waits for one thing alone: `tell` says whether it has taken what it is told. [`poll`](Self::poll) tells again
    /// what it has not, and then all that came later.
    ///
    /// # Errors
    /// As [`poll`](Self::poll).
    #[inline]
    pub fn poll_for(&mut self, tell: &mut impl FnMut(u32, Told<'_>) -> bool) -> Result<Polled> {
        while let Some(entry) = self.waiting.pop_front() {
            if !self.tell(&entry, tell)? {
                self.waiting.push_front(entry);
                return Ok(Polled::Left);
            }
        }
        let mut entries = [const { MaybeUninit::<ffi::ibv_wc>::uninit() }; BATCH];
        let count = self.take(&mut entries)?;
        for (place, entry) in entries[..count].iter().enumerate() {
            // SAFETY: ibv_poll_cq filled so many.
            if !self.tell(unsafe { entry.assume_init_ref() }, tell)? {
                // SAFETY: as above.
                let rest = entries[place..count].iter().map(|entry| unsafe { entry.assume_init_read() });
                self.waiting.extend(rest);
                return Ok(Polled::Left);
            }
        }
        Ok(if count == 0 { Polled::Nothing } else { Polled::All })
    }

    /// How many RDMA reads of a connection are over and will be told by `poll`, whatever became of them.
    ///
    /// # Errors
    /// As [`poll`](Self::poll).
    pub fn reads_waiting(&mut self, pair: u32) -> Result<usize> {
        self.set_aside()?;
        let is_one = |entry: &&ffi::ibv_wc| entry.qp_num == pair && entry.wr_id >> KIND == READ;
        Ok(self.waiting.iter().filter(is_one).count())
    }

    fn set_aside(&mut self) -> Result<()> {
        loop {
            let mut entries = [const { MaybeUninit::<ffi::ibv_wc>::uninit() }; BATCH];
            let count = self.take(&mut entries)?;
            // SAFETY: as in `poll`.
            self.waiting.extend(entries[..count].iter().map(|entry| unsafe { entry.assume_init_read() }));
            if count == 0 {
                return Ok(());
            }
        }
    }

    #[inline]
    fn take(&self, entries: &mut [MaybeUninit<ffi::ibv_wc>; BATCH]) -> Result<usize> {
        // SAFETY: the queue exists as long as `packets`; there is room for BATCH entries, which the call fills from the start.
        let count =
            unsafe { ffi::ibv_poll_cq(self.packets.completions, BATCH as i32, entries.as_mut_ptr().cast()) };
        usize::try_from(count).map_err(|_| {
            let source = std::io::Error::from_raw_os_error(count.saturating_abs());
            Error::call("ibv_poll_cq", self.packets.domain.device(), source)
        })
    }

    /// Whether what was told was taken; else its slot stays as it is.
    #[inline]
    fn tell(&mut self, entry: &ffi::ibv_wc, tell: &mut impl FnMut(u32, Told<'_>) -> bool) -> Result<bool> {
        let kind = entry.wr_id >> KIND;
        let (number, place) = slot(entry.wr_id);
        let is_good = entry.status == ffi::ibv_wc_status::IBV_WC_SUCCESS;
        if !is_good {
            if !tell(entry.qp_num, Told::Failed(self.failed(entry))) {
                return Ok(false);
            }
        } else if kind == READ {
            let name = u32::try_from(entry.wr_id & u64::from(u32::MAX)).unwrap_or_default();
            return Ok(tell(entry.qp_num, Told::Read(name)));
        } else if kind == SEND {
            if !tell(entry.qp_num, Told::Sent) {
                return Ok(false);
            }
        } else {
            if self.slots.len() <= number {
                self.learn();
            }
            let Some(slots) = self.slots.get(number) else { return Ok(true) };
            let length = (entry.byte_len as usize).min(self.packets.room.packet);
            // SAFETY: the slot has so many initialised bytes (its pages began as zeros). Its receive has completed, so the device writes
            // there no more until it is posted again, below, when the borrow has ended.
            let bytes = unsafe { std::slice::from_raw_parts(self.packets.start(slots, place), length) };
            if !tell(entry.qp_num, Told::Packet(bytes)) {
                return Ok(false);
            }
        }
        match kind {
            // What did not arrive may be sent again. One of a connection that was closed is free already.
            SEND if is_good && self.users.len() > number && *self.user(number, place) == entry.qp_num => {
                *self.user(number, place) = 0;
                self.free.push((number, place));
            }
            RECEIVE => {
                if self.slots.len() <= number {
                    self.learn();
                }
                if let Some(slots) = self.slots.get(number) {
                    self.packets.post(slots, number, place)?;
                }
            }
            _ => {}
        }
        Ok(true)
    }

    #[cold]
    fn failed(&self, entry: &ffi::ibv_wc) -> CompletionError {
        CompletionError {
            operation: match entry.wr_id >> KIND {
                READ => Operation::Read,
                SEND => Operation::Send,
                _ => Operation::Receive,
            },
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
        self.users.iter_mut().flatten().filter(|user| **user == number).for_each(|user| *user = KEPT);
        Ok(())
    }

    /// Tells all that has happened on a connection.
    fn tell_of(&mut self, number: u32, tell: &mut impl FnMut(u32, Told<'_>)) -> Result<()> {
        self.set_aside()?;
        for entry in std::mem::take(&mut self.waiting) {
            if entry.qp_num == number {
                self.tell(&entry, &mut all(tell))?;
            } else {
                self.waiting.push_back(entry);
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
        let receives = self.packets.room.receives;
        for (region, users) in self.users.iter_mut().enumerate() {
            for (place, user) in (receives..).zip(users) {
                if *user == number {
                    *user = 0;
                    self.free.push((region, place));
                }
            }
        }
        Ok(())
    }
}

/// Who takes all that is told.
fn all<'a>(tell: &'a mut impl FnMut(u32, Told<'_>)) -> impl FnMut(u32, Told<'_>) -> bool + 'a {
    move |number, told| {
        tell(number, told);
        true
    }
}

/// The slot of a work request: region and place.
#[inline]
fn slot(id: u64) -> (usize, u16) {
    let number = (id & !(3 << KIND)) >> REGION;
    (usize::try_from(number).unwrap_or(usize::MAX), (id & 0xffff) as u16)
}
