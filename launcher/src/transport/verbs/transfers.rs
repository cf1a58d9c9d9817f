//! Memory that goes from one rank's to another's without a copy, in [`parts`](super::parts) that a device takes at once: long messages, which this
//! rank reads from their senders' memory, over all [rails](super::lanes) that both have, and long puts to a window and gets from there, over the first.
//!
//! Soft-RoCE may say that a read is over that is not, when an answer is not the one that it expects, and has the queue pair fail right after
//! that (`rxe_completer`, where it warns of it). So there a read counts once a small one behind it is over too.
#![expect(unsafe_code, reason = "registers memory that programs have lent to operations")]

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use roce_verbs::{Access, Held, Movement, RegistrationCache};

use super::Verbs;
use super::lanes::{Lanes, Peer, STRIPED};
use super::link::{Link, State};
use super::mend::Failure;
use super::parts::{Part, Parts, Plan};
use crate::error::chain;
use crate::messages::{Lent, LentMut};
use crate::transport::{Broken, Fetched, Place};

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
    rank: u32,
    movement: Movement,
    /// The peer's memory.
    address: u64,
    /// The connections that it may go over.
    ways: Vec<Way>,
}

/// What one of them needs.
#[derive(Debug)]
struct Way {
    lane: u8,
    /// Of the memory here.
    registration: Held,
    /// Of the peer's memory.
    key: u32,
}

impl Transfer {
    /// Over a rank's first connection.
    pub(super) fn new(rank: u32, movement: Movement, registration: Held, there: (u64, u32)) -> Self {
        let (address, key) = there;
        Self { rank, movement, address, ways: vec![Way { lane: 0, registration, key }] }
    }
}

#[derive(Debug, Default)]
pub(super) struct Transfers {
    /// By operation.
    all: BTreeMap<u32, Transfer>,
    parts: Parts,
    /// Those that are over and not told yet, with their ranks.
    finished: VecDeque<(u32, u32)>,
}

impl Transfers {
    /// With so many bytes; `needs_proof` says that a small one has to follow.
    pub(super) fn add(&mut self, operation: u32, transfer: Transfer, length: usize, needs_proof: bool) {
        let lanes = transfer.ways.iter().fold(Lanes::default(), |lanes, way| lanes.with(way.lane));
        self.parts.add(operation, Plan { rank: transfer.rank, length, lanes, needs_proof });
        self.all.insert(operation, transfer);
    }

    /// The eldest part of a connection is over.
    pub(super) fn arrived(&mut self, peer: Peer) {
        for operation in self.parts.arrived(peer) {
            // The devices are done with the memory before the operation is told to be over.
            if let Some(transfer) = self.all.remove(&operation) {
                transfer.ways.into_iter().for_each(|way| way.registration.give_back());
            }
            self.finished.push_back((operation, peer.rank));
        }
    }

    /// How many parts are under way on a connection.
    pub(super) fn under_way(&self, peer: Peer) -> usize {
        self.parts.under_way(peer)
    }

    /// How many were over so far.
    pub(super) fn over(&self, peer: Peer) -> u64 {
        self.parts.over(peer)
    }

    /// Is there none?
    #[inline]
    pub(super) fn is_empty(&self) -> bool {
        self.parts.is_empty() && self.finished.is_empty()
    }

    pub(super) fn take_finished(&mut self) -> Option<u32> {
        self.finished.pop_front().map(|(operation, _)| operation)
    }

    /// Ends an operation's registrations. Parts of it that have come and were not told yet are nobody's.
    fn remove(&mut self, operation: u32) {
        self.finished.retain(|(other, _)| *other != operation);
        self.parts.remove(operation);
        self.all.remove(&operation);
    }

    /// A connection was taken down: what is not over begins again, over another or the next one.
    pub(super) fn begin_anew(&mut self, peer: Peer) {
        self.parts.begin_anew(peer);
    }

    /// Ends all of a rank's, whose connections are closed.
    pub(super) fn forget(&mut self, rank: u32) {
        self.finished.retain(|(_, other)| *other != rank);
        for operation in self.parts.forget(rank) {
            self.all.remove(&operation);
        }
    }
}

impl Verbs {
    /// Begins to read a peer's memory, as [`fetch`](crate::transport::Transport::fetch) says.
    pub(super) fn start_read(
        &mut self,
        peer: u32,
        place: Place,
        memory: &mut LentMut,
        length: usize,
        operation: u32,
    ) -> Result<Fetched, Broken> {
        let Some(key) = place.key(0) else { return Ok(Fetched::Impossible) };
        if !self.open(peer)? {
            // Its offer came over the connection, whose news are on their way. The message comes in pieces.
            return Ok(Fetched::Impossible);
        }
        let Some(link) = self.link(peer) else { return Ok(Fetched::Impossible) };
        let mut register = |link: &Link| register_to_receive(&self.registrations[link.port], memory, length);
        let Ok(registration) = register(link) else { return Ok(Fetched::Impossible) };
        let mut transfer = Transfer::new(peer, Movement::Read, registration, (place.address, key));
        let further = link.lanes().skip(1).filter(|(_, link)| length >= STRIPED && link.may_come_up());
        for (lane, link) in further {
            // Where no more memory may be locked, the others do it all.
            if let Some(key) = place.key(lane)
                && let Ok(registration) = register(link)
            {
                transfer.ways.push(Way { lane, registration, key });
            }
        }
        let is_soft =
            |way: &Way| link.lane(way.lane).is_some_and(|link| self.endpoints[link.port].limits.is_soft);
        let (needs_proof, is_striped) = (transfer.ways.iter().any(is_soft), transfer.ways.len() > 1);
        self.transfers.add(operation, transfer, length, needs_proof);
        if is_striped {
            self.open_further(peer);
        }
        self.pump_transfers();
        Ok(Fetched::Started)
    }

    /// Starts parts that there is room for.
    pub(super) fn pump_transfers(&mut self) {
        let Self { links, transfers: Transfers { all, parts, .. }, queues, failed, .. } = self;
        let lane = |peer: Peer| links.get(peer.rank as usize)?.as_ref()?.lane(peer.lane);
        let is_up = |peer: Peer| lane(peer).is_some_and(|link| matches!(link.state, State::Up(_)));
        while let Some(part) = parts.next(is_up) {
            let Part { operation, peer, begin, length } = part;
            let Some(Link { port, state: State::Up(pair), .. }) = lane(peer) else { return };
            let Some(transfer) = all.get(&operation) else { return };
            let Some(way) = transfer.ways.iter().find(|way| way.lane == peer.lane) else { return };
            let Some((registration, offset)) = way.registration.place() else { return };
            let there = (transfer.address.wrapping_add(begin as u64), way.key);
            // One that proves others is a byte that comes twice.
            let length = u32::try_from(length.max(1)).unwrap_or(0);
            let (movement, here) = (transfer.movement, (registration, offset + begin));
            if let Err(error) = queues[*port].move_memory(pair, 0, movement, here, there, length) {
                let what = if movement == Movement::Read { "reading" } else { "writing" };
                let why = format!("{what} {length} bytes of its memory: {}", chain(&error));
                return failed.push_back((peer.rank, Failure::of_connection(why).over(peer.lane)));
            }
            parts.started(part);
        }
    }

    /// Gives a transfer up: when this returns, no device touches the memory any more.
    pub(super) fn end_transfer(&mut self, operation: u32) {
        let end = Instant::now() + GIVEN_UP;
        for (peer, count) in self.transfers.parts.give_up(operation) {
            while let Some(Link { port, state: State::Up(pair), .. }) = self.lane(peer) {
                let (port, number) = (*port, pair.number());
                match self.queues[port].movements_waiting(number) {
                    Ok(waiting) if waiting >= count => break,
                    Ok(_) if Instant::now() < end => std::hint::spin_loop(),
                    _ => {
                        // Closing the connection ends it for certain.
                        let why = "a message from it, or a put to it, was given up, and what the NIC did of it did not end";
                        match peer.lane {
                            0 => self.lose(peer.rank, why.to_owned()),
                            _ => self.lose_lane(peer, why.to_owned()),
                        }
                    }
                }
            }
        }
        self.transfers.remove(operation);
    }
}
