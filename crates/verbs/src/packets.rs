//! Connections of one port that carry packets, with one queue for all receives: [`PacketQueue`](crate::PacketQueue) sends and receives.
//!
//! Sends and receives complete in queues of their own: who waits for a packet need not hear of each one that it has sent.
//!
//! A packet is copied into a registered slot and sent from there, and shown to its receiver in the slot that it came into. Memory grows
//! with the connections: each brings its own slots. Who sends more packets than the other side has slots for waits in the network, so
//! connections must agree on how many may be on their way.
#![expect(unsafe_code, reason = "calls libibverbs, and tells where slots are that a device uses")]

use std::collections::VecDeque;
use std::mem::MaybeUninit;
use std::sync::atomic::{AtomicU16, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rdma_mummy_sys as ffi;

use crate::connection::{self, Connection};
use crate::context::ProtectionDomain;
use crate::error::{Error, Result};
use crate::memory::Region;
use crate::pair::{self, Pair};
use crate::readback::Readback;

/// Completions taken from the device at once.
pub(crate) const BATCH: usize = 16;

/// The ring of a connection that sends nothing from slots: more than there can be.
const NO_RING: u32 = u32::MAX >> 3;

/// Looks for a completion in one go.
const LOOKS: u32 = 16;

/// How much room the connections of a port have.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PacketRoom {
    /// The most bytes of a packet.
    pub packet: usize,
    /// Slots for receives that each connection brings.
    pub receives: u16,
    /// More of them that each connection may bring, one for each that takes its place: where a device keeps the receive of a packet that was
    /// coming in when its connection failed (rxe).
    pub receives_again: u16,
    /// Slots for sends that each connection brings, for its packets, puts and gets. A power of two.
    pub sends: u16,
    /// The most sends, puts, reads and writes that a connection may have under way together.
    pub depth: u16,
    /// RDMA reads, and writes of memory that is not in a slot, that each connection may have under way.
    pub transfers: u16,
    /// The most connections.
    pub connections: u32,
}

impl PacketRoom {
    /// Receives that a connection may have in the queue at most.
    #[must_use]
    pub fn all_receives(&self) -> u16 {
        self.receives.saturating_add(self.receives_again)
    }

    /// How many ends of sends, puts, reads and writes a connection may have told before anybody looks: what was got into a slot has two, and to
    /// [ask](crate::PacketQueue::ask) has one.
    #[must_use]
    pub fn ends(&self) -> u16 {
        self.sends.saturating_mul(2).saturating_add(self.transfers).saturating_add(1)
    }
}

/// Slots of one connection's making: receives first, then sends.
#[derive(Debug)]
pub(crate) struct Slots {
    pub(crate) region: Region,
    /// Those for receives that the device was given for the first time.
    posted: AtomicU16,
}

/// One of them, as its device is told of it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Slot {
    pub(crate) start: *mut u8,
    pub(crate) key: u32,
}

impl Slot {
    /// So many of its bytes.
    #[inline]
    pub(crate) fn element(self, length: u32) -> ffi::ibv_sge {
        ffi::ibv_sge { addr: self.start.addr() as u64, length, lkey: self.key }
    }
}

/// A slot for receives, with the request that gives it to the device.
pub(crate) struct ReceiveSlot {
    pub(crate) start: *mut u8,
    element: ffi::ibv_sge,
    request: ffi::ibv_recv_wr,
}

impl ReceiveSlot {
    /// For packets of at most so many bytes, which are told with this number.
    fn new(slot: Slot, length: u32, number: u64) -> Self {
        // The request says where the part is when it is posted.
        let (next, sg_list) = (std::ptr::null_mut(), std::ptr::null_mut());
        let request = ffi::ibv_recv_wr { wr_id: number, next, sg_list, num_sge: 1 };
        Self { start: slot.start, element: slot.element(length), request }
    }
}

/// The queues that connections share, for whoever makes connections; [`PacketQueue`](crate::PacketQueue) is for who sends and receives.
#[derive(Debug)]
pub struct Packets {
    // Slots are freed last: `drop` destroys the queues before.
    /// Where sends and reads complete.
    pub(crate) sent: *mut ffi::ibv_cq,
    /// Where receives do.
    pub(crate) received: *mut ffi::ibv_cq,
    receives: *mut ffi::ibv_srq,
    pub(crate) room: PacketRoom,
    /// As many as connections were made, or one more: the next one's.
    slots: Mutex<Vec<Arc<Slots>>>,
    /// Connections that were made.
    made: AtomicUsize,
    /// Slots for receives that came with connections made again, one each.
    again: Mutex<Vec<Arc<Region>>>,
    pub(crate) domain: Arc<ProtectionDomain>,
}

// SAFETY: the pointers are only handed to libibverbs, which locks for itself; they never change until `drop`.
unsafe impl Send for Packets {}
// SAFETY: as above.
unsafe impl Sync for Packets {}

impl Packets {
    /// The queues; memory comes with connections.
    pub(crate) fn create(domain: &Arc<ProtectionDomain>, room: PacketRoom) -> Result<Arc<Self>> {
        let PacketRoom { packet, sends, connections, .. } = room;
        if !sends.is_power_of_two() {
            let (length, most) = (sends.into(), sends.checked_next_power_of_two().unwrap_or(1).into());
            return Err(Error::Length { what: "slots for sends", length, most });
        }
        if packet == 0 || packet > 1 << 30 {
            return Err(Error::Length { what: "a packet", length: packet, most: 1 << 30 });
        }
        let count = |each: u16| i32::try_from(u64::from(connections) * u64::from(each));
        let (Ok(most_sent), Ok(most_received)) = (count(room.ends()), count(room.all_receives())) else {
            let (length, most) = (connections as usize, i32::MAX as usize);
            return Err(Error::Length { what: "a completion queue", length, most });
        };
        let sent = completions(domain, most_sent)?;
        let shared = completions(domain, most_received).and_then(|received| {
            Ok((received, shared_receives(domain, most_received).inspect_err(|_| discard(received))?))
        });
        let (received, receives) = shared.inspect_err(|_| discard(sent))?;
        let (slots, made, domain) = (Mutex::default(), AtomicUsize::new(0), Arc::clone(domain));
        let again = Mutex::default();
        Ok(Arc::new(Self { sent, received, receives, room, slots, made, again, domain }))
    }

    pub(crate) fn slots(&self) -> MutexGuard<'_, Vec<Arc<Slots>>> {
        // No code of ours panics while it holds the lock.
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn again(&self) -> MutexGuard<'_, Vec<Arc<Region>>> {
        // As above.
        self.again.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes a connection's end on a port (from 1), with its slots, in state INIT.
    ///
    /// # Errors
    /// [`Error::Call`], which for ENOMEM names the memlock limit; [`Error::Length`] where there are as many connections as the
    /// queues have room for.
    pub fn pair(self: &Arc<Self>, port: u8) -> Result<PacketPair> {
        let most = self.room.connections as usize;
        let mut pair = self.end(port)?;
        if self.made() >= most {
            return Err(Error::Length { what: "a list of connections", length: self.made() + 1, most });
        }
        self.prepare()?;
        // Fewer than 2^29: their receives fit into an i32.
        pair.ring = self.made() as u32;
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
        let number = match u32::try_from(self.made()) {
            Ok(number) if number < connections => number,
            _ => return Ok(()),
        };
        let known = self.slots().get(number as usize).map(Arc::clone);
        let slots = match known {
            Some(slots) => slots,
            None => {
                let bytes = (usize::from(receives) + usize::from(sends)) * packet;
                let own = ffi::ibv_access_flags::IBV_ACCESS_LOCAL_WRITE;
                let region = Region::register(&self.domain, bytes, own)?;
                let slots = Arc::new(Slots { region, posted: AtomicU16::new(0) });
                // Known before anything can come into them.
                self.slots().push(Arc::clone(&slots));
                slots
            }
        };
        for place in slots.posted.load(Ordering::Relaxed)..receives {
            self.post(&mut self.receive_slot(&slots, number, place))?;
            slots.posted.store(place + 1, Ordering::Relaxed);
        }
        Ok(())
    }

    /// The same with those that the connection has whose place it takes, which was taken down. Where the device may have kept one of them,
    /// there is another one for it.
    ///
    /// # Errors
    /// [`Error::Call`].
    pub fn pair_again(self: &Arc<Self>, port: u8) -> Result<PacketPair> {
        let pair = self.end(port)?;
        let most = self.room.connections as usize * usize::from(self.room.receives_again);
        let mut again = self.again();
        if again.len() < most {
            let own = ffi::ibv_access_flags::IBV_ACCESS_LOCAL_WRITE;
            // Where no more memory may be locked, those that are left have to do.
            if let Ok(region) = Region::register(&self.domain, self.room.packet, own).map(Arc::new) {
                // Known before anything can come into it.
                again.push(Arc::clone(&region));
                self.post(&mut self.receive_slot_again(&region, again.len() - 1))?;
            }
        }
        drop(again);
        Ok(pair)
    }

    /// The same with no places for receives: for a connection that carries no packets, but memory that is not in slots.
    ///
    /// # Errors
    /// [`Error::Call`].
    pub fn end(self: &Arc<Self>, port: u8) -> Result<PacketPair> {
        let mut attributes = pair::blank();
        attributes.qp_type = ffi::ibv_qp_type::IBV_QPT_RC;
        attributes.send_cq = self.sent;
        attributes.recv_cq = self.received;
        attributes.srq = self.receives;
        attributes.cap.max_send_wr = u32::from(self.room.depth);
        attributes.cap.max_send_sge = 1;
        // The queues are kept by the `PacketPair`.
        let pair = Pair::create(&self.domain, attributes)?;
        pair.modify(connection::to_init(port))?;
        Ok(PacketPair { pair, ring: NO_RING, _packets: Arc::clone(self) })
    }

    /// How many connections were made; those that are closed count too, their slots stay.
    #[must_use]
    pub fn made(&self) -> usize {
        self.made.load(Ordering::Relaxed)
    }

    /// Gives a slot that holds nothing any more to the device.
    #[inline(always)]
    #[expect(clippy::inline_always, reason = "part of the way of a short message")]
    pub(crate) fn post(&self, slot: &mut ReceiveSlot) -> Result<()> {
        let mut bad = std::ptr::null_mut();
        slot.request.sg_list = &raw mut slot.element;
        // SAFETY: the queue exists until `drop`, and its slots as long. Request and element live during the call, which copies them. The
        // slot is new, or its last receive has completed and what came was given, so nothing else refers to its bytes.
        let code = unsafe { ffi::ibv_post_srq_recv(self.receives, &raw mut slot.request, &raw mut bad) };
        if code == 0 { Ok(()) } else { Error::check(code, "ibv_post_srq_recv", self.domain.device()) }
    }

    /// Looks for a completion of a receive, and where there is none a few times as long as `goes_on` says so; `place` is for what was found.
    #[inline(always)]
    #[expect(clippy::inline_always, reason = "part of the way of a short message")]
    pub(crate) fn next_received<'a>(
        &self,
        goes_on: impl FnMut() -> bool,
        place: &'a mut MaybeUninit<ffi::ibv_wc>,
    ) -> Result<Option<&'a mut ffi::ibv_wc>> {
        let mut found = self.look_once(place);
        if found == 0 {
            found = self.look_again(goes_on, place);
        }
        match found {
            0 => Ok(None),
            // SAFETY: ibv_poll_cq filled it.
            1 => Ok(Some(unsafe { place.assume_init_mut() })),
            code => Err(self.poll_failed(code)),
        }
    }

    /// Of its own: what who calls needs later stays where it is meanwhile. A pause between looks would be for who waits for another core's cache
    /// line: here the device writes.
    #[inline(never)]
    fn look_again(&self, mut goes_on: impl FnMut() -> bool, place: &mut MaybeUninit<ffi::ibv_wc>) -> i32 {
        while goes_on() {
            for _ in 0..LOOKS {
                match self.look_once(place) {
                    0 => {}
                    found => return found,
                }
            }
        }
        0
    }

    /// How many completions there are, at most one, or a negative error.
    #[inline(always)]
    #[expect(clippy::inline_always, reason = "part of the way of a short message")]
    fn look_once(&self, place: &mut MaybeUninit<ffi::ibv_wc>) -> i32 {
        // SAFETY: the queue exists until `drop`; there is room for one entry.
        unsafe { ffi::ibv_poll_cq(self.received, 1, place.as_mut_ptr()) }
    }

    #[cold]
    pub(crate) fn poll_failed(&self, code: i32) -> Error {
        let source = std::io::Error::from_raw_os_error(code.saturating_abs());
        Error::call("ibv_poll_cq", self.domain.device(), source)
    }

    /// Moves completions to the end of those that were taken. How many there were.
    pub(crate) fn take_to(
        &self,
        queue: *mut ffi::ibv_cq,
        taken: &mut VecDeque<ffi::ibv_wc>,
    ) -> Result<usize> {
        let mut entries = Entries::new();
        let more = entries.take(self, queue)?;
        taken.extend(more);
        Ok(more.len())
    }

    /// The slot for receives at a place of a connection's.
    pub(crate) fn receive_slot(&self, slots: &Slots, connection: u32, place: u16) -> ReceiveSlot {
        let number = u64::from(connection) * u64::from(self.room.receives) + u64::from(place);
        // A packet has at most 4 GiB: looked at in `create`.
        ReceiveSlot::new(self.slot(slots, place), self.room.packet as u32, number)
    }

    /// The slot that came with a connection made again.
    fn receive_slot_again(&self, region: &Region, place: usize) -> ReceiveSlot {
        // After those of all connections that may be.
        let number = u64::from(self.room.connections) * u64::from(self.room.receives) + place as u64;
        let slot = Slot { start: region.start().as_ptr(), key: region.keys().0 };
        ReceiveSlot::new(slot, self.room.packet as u32, number)
    }

    /// The same by what completions tell; `None` for one of a connection's first slots.
    #[cold]
    pub(crate) fn find_again(&self, number: usize) -> Option<ReceiveSlot> {
        let place = number.checked_sub(self.room.connections as usize * usize::from(self.room.receives))?;
        let region = self.again().get(place).map(Arc::clone)?;
        Some(self.receive_slot_again(&region, place))
    }

    /// The slot at a place below receives + sends.
    pub(crate) fn slot(&self, slots: &Slots, place: u16) -> Slot {
        debug_assert!(place < self.room.receives + self.room.sends);
        // SAFETY: a region has (receives + sends) x packet bytes.
        let start = unsafe { slots.region.start().as_ptr().add(usize::from(place) * self.room.packet) };
        Slot { start, key: slots.region.keys().0 }
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
    pub(crate) pair: Pair,
    /// Whose slots it sends from: those of the first connection whose place it takes.
    pub(crate) ring: u32,
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

/// Completions taken from the device.
pub(crate) struct Entries([MaybeUninit<ffi::ibv_wc>; BATCH]);

impl Entries {
    #[inline]
    pub(crate) fn new() -> Self {
        Self([const { MaybeUninit::uninit() }; BATCH])
    }

    /// Takes those that there are.
    #[inline]
    pub(crate) fn take(&mut self, packets: &Packets, queue: *mut ffi::ibv_cq) -> Result<&[ffi::ibv_wc]> {
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
