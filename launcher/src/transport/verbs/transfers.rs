//! Memory that goes from one rank's to another's without a copy, in parts that a device takes at once: long messages, which this rank
//! reads from their senders' memory, and long puts, which it writes to a window.
//!
//! Soft-RoCE may say that a read is over that is not, when an answer is not the one that it expects, and has the queue pair fail right after
//! that (`rxe_completer`, where it warns of it). So there a read counts once a small one behind it is over too.
#![expect(unsafe_code, reason = "registers memory that programs have lent to operations")]

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use roce_verbs::{Access, Held, Movement, Registration, RegistrationCache};

use super::link::State;
use super::mend::Failure;
use super::{TRANSFERS, Verbs};
use crate::error::chain;
use crate::messages::{Lent, LentMut};
use crate::transport::{Broken, Fetched, Place};

/// The most bytes of one RDMA read or write: below every device's limit, and long enough for its overhead not to count.
const PART: usize = 256 * 1024;
/// How long one that was given up may take to end by itself. One from a rank that died never does with soft-RoCE, and who waits for it has an
/// error to tell.
const GIVEN_UP: Duration = Duration::from_millis(500);

/// Memory that a peer may read, or that this rank's own writes read, until this is dropped or they are done with it.
///
/// # Errors
/// If the system refuses.
pub(super) fn register_to_send(registrations: &RegistrationCache, memory: &Lent) -> roce_verbs::Result<Held> {
    let bytes = memory.bytes();
    // SAFETY: who lent it keeps it and does not write to it until the engine has forgotten the operation (`Lent::new`), and the engine
    // withdraws an offer, and abandons a write, before that.
    unsafe { registrations.register(bytes.as_ptr(), bytes.len(), Access::PeersRead) }
}

/// Memory that this rank's own reads write to.
///
/// # Errors
/// If the system refuses.
pub(super) fn register_to_receive(
    registrations: &RegistrationCache,
    memory: &mut LentMut,
    length: usize,
) -> roce_verbs::Result<Held> {
    let bytes = &mut memory.bytes()[..length];
    // SAFETY: who lent it keeps it and leaves it alone until the engine has forgotten the operation (`LentMut::new`); the engine does not
    // touch it until the read is over or abandoned, and does not forget the operation before.
    unsafe { registrations.register(bytes.as_mut_ptr(), length, Access::OwnWrite) }
}

/// One of an operation.
#[derive(Debug)]
pub(super) struct Transfer {
    pub(super) peer: u32,
    pub(super) movement: Movement,
    /// Of the memory here.
    pub(super) registration: Held,
    /// The peer's memory, with its key.
    pub(super) there: (u64, u32),
    pub(super) length: usize,
    /// Does a small one have to follow?
    pub(super) needs_proof: bool,
    /// Bytes that parts were started for.
    begun: usize,
    /// Bytes that have come.
    come: usize,
}

/// The next part.
pub(super) struct Part<'a> {
    pub(super) movement: Movement,
    pub(super) here: (&'a Registration, usize),
    pub(super) there: (u64, u32),
    pub(super) length: u32,
}

impl Transfer {
    pub(super) fn new(
        peer: u32,
        movement: Movement,
        registration: Held,
        there: (u64, u32),
        length: usize,
    ) -> Self {
        Self { peer, movement, registration, there, length, needs_proof: false, begun: 0, come: 0 }
    }
}

#[derive(Debug, Default)]
pub(super) struct Transfers {
    /// By operation.
    all: BTreeMap<u32, Transfer>,
    /// Those that parts have to be begun of, first come first.
    unbegun: VecDeque<u32>,
    /// Parts under way by peer, in their order, which is the order in which they end: the operation, `None` if it was given up, and
    /// bytes; 0 for the small one that proves those before it.
    under_way: BTreeMap<u32, VecDeque<(Option<u32>, usize)>>,
    /// How many parts were over, by peer.
    over: BTreeMap<u32, u64>,
    /// Those that are over and not told yet, with their peers.
    finished: VecDeque<(u32, u32)>,
}

impl Transfers {
    pub(super) fn add(&mut self, operation: u32, transfer: Transfer) {
        self.all.insert(operation, transfer);
        self.unbegun.push_back(operation);
    }

    /// The next part of a peer that has a connection, if there is one that may be begun.
    pub(super) fn next(&mut self, is_up: impl Fn(u32) -> bool) -> Option<(u32, Part<'_>)> {
        let place = self.unbegun.iter().position(|operation| {
            let Some(peer) = self.all.get(operation).map(|transfer| transfer.peer) else { return false };
            self.under_way(peer) < usize::from(TRANSFERS) && is_up(peer)
        })?;
        self.unbegun.swap(0, place);
        let transfer = self.all.get(self.unbegun.front()?)?;
        let (begin, length) = match transfer.length - transfer.begun {
            0 => (0, 1),
            left => (transfer.begun, left.min(PART)),
        };
        let there = (transfer.there.0.wrapping_add(begin as u64), transfer.there.1);
        let (registration, offset) = transfer.registration.place()?;
        let here = (registration, offset + begin);
        let (movement, length) = (transfer.movement, u32::try_from(length).unwrap_or(0));
        Some((transfer.peer, Part { movement, here, there, length }))
    }

    /// The part that `next` gave is under way.
    pub(super) fn started(&mut self) {
        let Some(operation) = self.unbegun.front().copied() else { return };
        let Some(transfer) = self.all.get_mut(&operation) else { return };
        let length = (transfer.length - transfer.begun).min(PART);
        transfer.begun += length;
        self.under_way.entry(transfer.peer).or_default().push_back((Some(operation), length));
        if transfer.begun == transfer.length && (length == 0 || !transfer.needs_proof) {
            self.unbegun.pop_front();
        }
    }

    /// The eldest part of a peer has come.
    pub(super) fn arrived(&mut self, peer: u32) {
        let Some((operation, length)) = self.under_way.get_mut(&peer).and_then(VecDeque::pop_front) else {
            return;
        };
        *self.over.entry(peer).or_default() += 1;
        let Some(operation) = operation else { return };
        let Some(transfer) = self.all.get_mut(&operation) else { return };
        transfer.come += length;
        if transfer.come == transfer.length && (length == 0 || !transfer.needs_proof) {
            // The device is done with the memory before the operation is told to be over.
            if let Some(transfer) = self.all.remove(&operation) {
                transfer.registration.give_back();
            }
            self.finished.push_back((operation, peer));
        }
    }

    /// How many parts of a peer's are under way.
    pub(super) fn under_way(&self, peer: u32) -> usize {
        self.under_way.get(&peer).map_or(0, VecDeque::len)
    }

    /// How many were over so far.
    pub(super) fn over(&self, peer: u32) -> u64 {
        self.over.get(&peer).copied().unwrap_or(0)
    }

    /// Is there none?
    #[inline]
    pub(super) fn is_empty(&self) -> bool {
        self.all.is_empty() && self.finished.is_empty()
    }

    pub(super) fn take_finished(&mut self) -> Option<u32> {
        self.finished.pop_front().map(|(operation, _)| operation)
    }

    /// Begins no more parts of an operation. Its peer, and how many of that peer's parts have to end until none of its own is under way;
    /// `None` if none is.
    pub(super) fn give_up(&mut self, operation: u32) -> Option<(u32, usize)> {
        self.unbegun.retain(|other| *other != operation);
        let peer = self.all.get(&operation)?.peer;
        let last = self.under_way.get(&peer)?.iter().rposition(|(other, _)| *other == Some(operation))?;
        Some((peer, last + 1))
    }

    /// Ends an operation's registration. Parts of it that have come and were not told yet are nobody's.
    pub(super) fn remove(&mut self, operation: u32) {
        self.finished.retain(|(other, _)| *other != operation);
        let Some(transfer) = self.all.remove(&operation) else { return };
        for part in self.under_way.get_mut(&transfer.peer).into_iter().flatten() {
            if part.0 == Some(operation) {
                part.0 = None;
            }
        }
    }

    /// The connection to a peer was taken down: what is not over begins again with the next one.
    pub(super) fn begin_anew(&mut self, peer: u32) {
        self.under_way.remove(&peer);
        let Self { all, unbegun, .. } = self;
        for (operation, transfer) in all.iter_mut().filter(|(_, transfer)| transfer.peer == peer) {
            if !unbegun.contains(operation) {
                unbegun.push_back(*operation);
            }
            (transfer.begun, transfer.come) = (0, 0);
        }
    }

    /// Ends all of a peer's, whose connection is closed.
    pub(super) fn forget(&mut self, peer: u32) {
        self.under_way.remove(&peer);
        self.finished.retain(|(_, other)| *other != peer);
        let Self { all, unbegun, .. } = self;
        all.retain(|operation, transfer| {
            if transfer.peer == peer {
                unbegun.retain(|other| other != operation);
            }
            transfer.peer != peer
        });
    }
}

impl Verbs {
    /// Begins to read a message from its sender's memory, as [`fetch`](crate::transport::Transport::fetch) says.
    pub(super) fn start_read(
        &mut self,
        peer: u32,
        place: Place,
        memory: &mut LentMut,
        length: usize,
        operation: u32,
    ) -> Result<Fetched, Broken> {
        let Some(key) = place.key() else { return Ok(Fetched::Impossible) };
        if !self.open(peer)? {
            // Its offer came over the connection, whose news are on their way. The message comes in pieces.
            return Ok(Fetched::Impossible);
        }
        let Some(link) = self.link(peer) else { return Ok(Fetched::Impossible) };
        let registrations = &self.registrations[link.port];
        let Ok(registration) = register_to_receive(registrations, memory, length) else {
            return Ok(Fetched::Impossible);
        };
        let there = (place.address, key);
        let mut transfer = Transfer::new(peer, Movement::Read, registration, there, length);
        transfer.needs_proof = self.endpoints[link.port].limits.is_soft;
        self.transfers.add(operation, transfer);
        self.pump_transfers();
        Ok(Fetched::Started)
    }

    /// Starts parts that there is room for.
    pub(super) fn pump_transfers(&mut self) {
        let Self { links, transfers, queues, failed, .. } = self;
        let is_up = |peer: u32| {
            let link = links.get(peer as usize).and_then(Option::as_ref);
            link.is_some_and(|link| matches!(link.state, State::Up(_)))
        };
        while let Some((peer, part)) = transfers.next(is_up) {
            let Some(Some(link)) = links.get(peer as usize) else { return };
            let State::Up(pair) = &link.state else { return };
            let queue = &mut queues[link.port];
            let Part { movement, here, there, length } = part;
            if let Err(error) = queue.move_memory(pair, 0, movement, here, there, length) {
                let what = if movement == Movement::Read { "reading" } else { "writing" };
                let why = format!("{what} {length} bytes of its memory: {}", chain(&error));
                return failed.push_back((peer, Failure::of_connection(why)));
            }
            transfers.started();
        }
    }

    /// Gives a transfer up: when this returns, the device does not touch the memory any more.
    pub(super) fn end_transfer(&mut self, operation: u32) {
        let end = Instant::now() + GIVEN_UP;
        while let Some((peer, count)) = self.transfers.give_up(operation) {
            let Some(link) = self.link(peer) else { break };
            let State::Up(pair) = &link.state else { break };
            let (port, number) = (link.port, pair.number());
            match self.queues[port].movements_waiting(number) {
                Ok(waiting) if waiting >= count => break,
                Ok(_) if Instant::now() < end => std::hint::spin_loop(),
                _ => {
                    // Closing the connection ends it for certain.
                    let why = "a message from it, or a put to it, was given up, and what the NIC did of it did not end";
                    self.lose(peer, why.to_owned());
                    break;
                }
            }
        }
        self.transfers.remove(operation);
    }
}
