//! Packets between ranks of one node, through memory that they share. Nothing here waits.
//!
//! Every rank has an [`inbox`] with a [`ring`] for each rank of the node. Its [`Card`], which the exchange carries, says where
//! the others find it; they map it when they first want to send. Long messages need not go through it where a rank may
//! read another's memory: [`single_copy`]. Where the sender has nothing else to do, part of them does: [`together`].

mod copy;
mod inbox;
mod ring;
mod single_copy;
mod together;

use std::fmt::Display;

use nix::errno::Errno;
use serde::{Deserialize, Serialize};

use self::inbox::{Inbox, Layout, Outgoing};
pub(crate) use self::ring::Short;
use self::ring::most;
use self::together::{Together, is_of_meeting};
use super::{Broken, Fetched, Header, Look, Payload, Place, Take, Transport};
use crate::memory_file;
use crate::messages::{Lent, LentMut};

/// Packets from one peer that one poll gives at most, so that nobody is starved.
const TURN: usize = 16;

/// The longest message that goes through a ring unasked, where the ring has room for twice as much.
const UNASKED: usize = 64 << 10;
/// Messages up to so many bytes go in pieces of so many.
const SHORT: usize = 16 << 10;
const PIECE: usize = 2 << 10;
/// Looks for the last pieces of a message, which its sender has taken to send at once.
const LAST_LOOKS: u32 = 1000;

/// How other ranks of the node find this one.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Card {
    inbox: memory_file::Card,
    /// What is at `address` in its memory: it proves that a process is that rank.
    token: [u8; 16],
    address: u64,
}

/// What a rank knows of a peer that it has connected to.
#[derive(Debug)]
struct Peer {
    outgoing: Outgoing,
    card: Card,
    /// Whether its memory may be read, and why not; once it was tried.
    readable: Option<Result<(), String>>,
}

/// The peers of one node.
#[derive(Debug)]
pub(crate) struct SharedMemory {
    /// The node's ranks, ascending.
    ranks: Vec<u32>,
    /// This one's place among them.
    place: usize,
    layout: Layout,
    /// For each of `ranks`.
    peers: Vec<Option<Peer>>,
    /// Who sent last, among the inbox's senders.
    last: usize,
    inbox: Inbox,
    together: Together,
    /// The others read it where it is.
    token: Box<[u8; 16]>,
}

impl SharedMemory {
    /// For a rank and all ranks of its node, itself among them; all of them must name the same.
    ///
    /// # Errors
    /// If the operating system gives no memory or no random bytes.
    pub(crate) fn new(rank: u32, mut ranks: Vec<u32>) -> Result<Self, String> {
        ranks.sort_unstable();
        ranks.dedup();
        let place = ranks.binary_search(&rank).map_err(|_| format!("rank {rank} is not on its own node"))?;
        let mut token = Box::new([0; 16]);
        getrandom::fill(token.as_mut_slice()).map_err(|error| format!("no random bytes: {error}"))?;
        let layout = Layout::new(ranks.len());
        let inbox =
            Inbox::new(layout).map_err(|error| format!("no memory to share with other ranks: {error}"))?;
        let peers = ranks.iter().map(|_| None).collect();
        let together = Together::new(most(layout.payload));
        Ok(Self { ranks, place, layout, peers, last: 0, inbox, together, token })
    }

    pub(crate) fn card(&self) -> Card {
        Card { inbox: self.inbox.card(), token: *self.token, address: self.token.as_ptr() as u64 }
    }

    /// The place of a rank among the node's.
    #[inline(always)]
    #[expect(clippy::inline_always, reason = "part of the way of a short message")]
    pub(crate) fn place_of(&self, rank: u32) -> Option<usize> {
        // Mostly a node's ranks are in a row.
        let guess = rank.wrapping_sub(self.ranks[0]) as usize;
        if self.ranks.get(guess) == Some(&rank) { Some(guess) } else { self.ranks.binary_search(&rank).ok() }
    }

    #[inline]
    fn peer(&mut self, rank: u32) -> Result<&mut Peer, Broken> {
        let place = self.place_of(rank);
        place
            .and_then(|place| self.peers[place].as_mut())
            .ok_or_else(|| Broken { peer: rank, why: "its inbox has not been opened".to_owned() })
    }

    /// Makes a peer one that packets can be sent to; does nothing if it's one already. Packets from it need nothing.
    ///
    /// # Errors
    /// Why there is no way to it through shared memory.
    pub(crate) fn connect(&mut self, peer: u32, card: &Card) -> Result<(), Broken> {
        let broken = |why| Broken { peer, why };
        let place = self.place_of(peer).ok_or_else(|| broken("it is on another node".to_owned()))?;
        if self.peers[place].is_none() {
            let outgoing = Outgoing::open(self.layout, &card.inbox, self.place)
                .map_err(|error| broken(format!("its inbox cannot be shared: {error}")))?;
            self.peers[place] = Some(Peer { outgoing, card: card.clone(), readable: None });
        }
        Ok(())
    }

    /// Whether the memory of a connected peer may be read, and else why not. Only the first call for a peer asks the system.
    ///
    /// # Errors
    /// The reason.
    pub(crate) fn readable(&mut self, peer: u32) -> Result<(), String> {
        let Peer { card, readable, .. } = self.peer(peer).map_err(|broken| broken.why)?;
        readable
            .get_or_insert_with(|| single_copy::permitted(card.inbox.pid, card.address, &card.token))
            .clone()
    }

    /// Begins a peer's next long message, and reads what its sender doesn't send meanwhile.
    fn read_next(&mut self, place: usize) -> Result<(), Broken> {
        let rank = self.ranks[place];
        let Some(begin) = self.together.begin(place, self.inbox.meeting(place)) else { return Ok(()) };
        // Without room for that the sender does not help.
        self.try_send(rank, &begin, &[])?;
        self.read_begun(place)
    }

    fn read_begun(&mut self, place: usize) -> Result<(), Broken> {
        let rank = self.ranks[place];
        let pid = self.peer(rank)?.card.inbox.pid;
        loop {
            let task = self.together.take_first(place, self.inbox.meeting(place));
            let Some((address, to)) = task.map_err(|nonsense| overwritten(rank, nonsense))? else { break };
            single_copy::read(pid, address, to)
                .map_err(|errno| unreadable(rank, (address, to.len()), errno))?;
            self.together.end(place);
            self.take_pieces(place, 1)?;
        }
        // A message of no bytes.
        self.together.end(place);
        if self.together.is_under_way(place) { self.take_pieces(place, LAST_LOOKS) } else { Ok(()) }
    }

    /// Takes what comes next from a peer, as long as it is of such messages and something is lacking. Looks so many times for each.
    fn take_pieces(&mut self, place: usize, looks: u32) -> Result<(), Broken> {
        let rank = self.ranks[place];
        let Self { inbox, together, .. } = self;
        let Some(reader) = inbox.reader_of(place) else { return Ok(()) };
        loop {
            let mut sense = Ok(());
            let mut take = |header: &Header, payload: Payload<'_>| {
                let is_ours = is_of_meeting(header);
                if is_ours {
                    sense = together.take(place, header, payload);
                }
                is_ours
            };
            let popped = reader.pop(looks, &mut take);
            sense.map_err(|nonsense| overwritten(rank, nonsense))?;
            match popped {
                Ok(Some(true)) if together.is_under_way(place) => {}
                Ok(_) => return Ok(()),
                Err(garbage) => return Err(self.shut(place, rank, garbage)),
            }
        }
    }

    /// Sends pieces of a message that a peer is reading. Whether there was any.
    fn help(&mut self) -> Result<bool, Broken> {
        let piece = most(self.layout.payload);
        let mut any = false;
        for _ in 0..TURN {
            let Some(place) = self.together.next_to_help() else { break };
            let rank = self.ranks[place];
            let way = self.inbox.other_way(place);
            let Some(peer) = &mut self.peers[place] else { return Ok(any) };
            let writer = peer.outgoing.writer();
            let has_room = writer.has_room(way, piece).map_err(|garbage| overwritten(rank, garbage))?;
            if !has_room {
                break;
            }
            let Some((header, bytes)) = self.together.take_last(writer.meeting()) else { continue };
            any |= writer.try_push(way, &header, bytes).map_err(|garbage| overwritten(rank, garbage))?;
        }
        Ok(any)
    }
}

/// Why a peer's memory could not be read.
fn unreadable(peer: u32, (address, length): (u64, usize), errno: Errno) -> Broken {
    let problem = match errno {
        Errno::ESRCH => "its process has ended",
        _ => errno.desc(),
    };
    Broken { peer, why: format!("reading {length} bytes of its memory at {address:#x}: {problem}") }
}

impl Transport for SharedMemory {
    fn most(&self, _: u32) -> usize {
        most(self.layout.payload)
    }

    /// Half of the ring: there is room for the next message while this one is taken. Also for who does not wait: it is copied in at once
    /// where there is room.
    fn unasked(&self, _: u32, _waits: bool) -> usize {
        (self.layout.payload as usize / 2).clamp(most(self.layout.payload), UNASKED)
    }

    /// So that the receiver copies a piece out while the sender copies the next one in; but a piece costs something too.
    #[inline]
    fn piece(&self, peer: u32, length: usize) -> usize {
        let most = most(self.layout.payload);
        if length <= PIECE || most <= PIECE {
            return most;
        }
        let peer = self.place_of(peer).and_then(|place| self.peers[place].as_ref());
        let is_far = peer.is_some_and(|peer| peer.outgoing.is_far());
        if is_far || length > SHORT { most } else { PIECE }
    }

    #[inline]
    fn try_send(&mut self, peer: u32, header: &Header, payload: &[u8]) -> Result<bool, Broken> {
        let way = self.place_of(peer).map(|place| self.inbox.other_way(place)).unwrap_or_default();
        let writer = self.peer(peer)?.outgoing.writer();
        writer.try_push(way, header, payload).map_err(|garbage| overwritten(peer, garbage))
    }

    #[inline(always)]
    #[expect(clippy::inline_always, reason = "part of the way of a short message")]
    fn send_short(&mut self, peer: u32, header: &Header, payload: &[u8]) -> bool {
        let Some(place) = self.place_of(peer) else { return false };
        let way = self.inbox.other_way(place);
        let peer = self.peers[place].as_mut();
        peer.is_some_and(|peer| peer.outgoing.writer().try_push(way, header, payload) == Ok(true))
    }

    #[inline]
    fn poll(&mut self, deliver: &mut impl FnMut(u32, &Header, Payload<'_>)) -> Result<bool, Broken> {
        if self.inbox.knocked() {
            self.inbox.admit();
        }
        let mut any = false;
        let count = self.inbox.senders();
        let first = self.last;
        for turn in 0..count {
            let index = if first + turn < count { first + turn } else { first + turn - count };
            let place = self.inbox.sender(index);
            let Some(reader) = self.inbox.reader_of(place) else { continue };
            let rank = self.ranks[place];
            for _ in 0..TURN {
                let mut sense = Ok(());
                let popped = reader.pop(1, &mut |header: &Header, payload: Payload<'_>| {
                    if is_of_meeting(header) {
                        sense = self.together.take(place, header, payload);
                    } else {
                        deliver(rank, header, payload);
                    }
                    true
                });
                sense.map_err(|nonsense| overwritten(rank, nonsense))?;
                match popped {
                    Ok(None) => break,
                    Ok(Some(_)) => {
                        any = true;
                        self.last = index;
                    }
                    Err(garbage) => return Err(self.shut(place, rank, garbage)),
                }
            }
        }
        while let Some(place) = self.together.next_to_begin() {
            self.read_next(place)?;
            any = true;
        }
        Ok(any || self.help()?)
    }

    fn offer(&mut self, peer: u32, operation: u32, memory: &Lent) -> Place {
        if let Some(place) = self.place_of(peer) {
            self.together.offer(place, operation, *memory);
        }
        Place::plain(memory.address())
    }

    fn withdraw(&mut self, operation: u32, _: bool) {
        self.together.withdraw(operation);
    }

    fn fetch(
        &mut self,
        peer: u32,
        (theirs, place): (u32, Place),
        memory: &mut LentMut,
        length: usize,
        operation: u32,
    ) -> Result<Fetched, Broken> {
        let (Some(at), true) = (self.place_of(peer), place.is_plain() && self.readable(peer).is_ok()) else {
            return Ok(Fetched::Impossible);
        };
        let memory = &mut memory.bytes()[..length];
        if !self.together.want(at, (theirs, place.address), (operation, memory)) {
            return Ok(Fetched::Impossible);
        }
        self.read_next(at)?;
        Ok(if self.together.has_finished(operation) { Fetched::Done } else { Fetched::Started })
    }

    fn take_fetched(&mut self) -> Option<u32> {
        self.together.take_finished()
    }

    fn abandon(&mut self, operation: u32) {
        self.together.abandon(operation);
    }

    fn forget(&mut self, peer: u32, _: &str) {
        if let Some(place) = self.place_of(peer) {
            self.together.forget(place);
        }
    }

    #[inline(always)]
    #[expect(clippy::inline_always, reason = "part of the way of a short message")]
    fn look_for(&mut self, peer: u32, looks: u32, take: &mut impl Take) -> Result<Look, Broken> {
        let Some(place) = self.place_of(peer) else { return Ok(Look::Poll) };
        let Some(reader) = self.inbox.reader_of(place) else { return Ok(Look::Poll) };
        match reader.pop(looks, &mut NotOfMeetings(take)) {
            Ok(None) => Ok(Look::Nothing),
            Ok(Some(true)) => Ok(Look::Taken),
            Ok(Some(false)) => Ok(Look::Poll),
            Err(garbage) => Err(self.shut(place, peer, garbage)),
        }
    }
}

/// Takes what it is asked to take, but what is not for the engine.
struct NotOfMeetings<'a, T>(&'a mut T);

impl<T: Take> Take for NotOfMeetings<'_, T> {
    #[inline(always)]
    #[expect(clippy::inline_always, reason = "part of the way of a short message")]
    fn take(&mut self, header: &Header, payload: Payload<'_>) -> bool {
        !is_of_meeting(header) && self.0.take(header, payload)
    }
}

/// The way of short messages that are waited for, by the peer's place among the node's ranks.
impl SharedMemory {
    /// Whether it was sent, which it is not where the peer isn't connected or the ring is full.
    #[inline(always)]
    #[expect(clippy::inline_always, reason = "part of the way of a short message")]
    pub(crate) fn send_now(&mut self, place: u32, header: &Header, payload: &[u8]) -> bool {
        let way = self.inbox.other_way(place as usize);
        match self.peers.get_mut(place as usize) {
            Some(Some(peer)) => peer.outgoing.writer().push_short(way, header, payload),
            _ => false,
        }
    }

    /// As [`Transport::look_for`]; but only a packet that is all in its slot is looked at.
    #[inline(always)]
    #[expect(clippy::inline_always, reason = "part of the way of a short message")]
    pub(crate) fn look_at(&mut self, place: u32, looks: u32, take: &mut impl Take) -> Short {
        match self.inbox.reader_of(place as usize) {
            Some(reader) => reader.pop_short(looks, take),
            None => Short::Nothing,
        }
    }

    /// The rank at a place.
    pub(crate) fn rank_at(&self, place: u32) -> u32 {
        self.ranks[place as usize]
    }
}

impl SharedMemory {
    /// The end of what a peer sends can't be found again, so nothing more is read from it.
    #[cold]
    fn shut(&mut self, place: usize, rank: u32, garbage: ring::Garbage) -> Broken {
        self.inbox.shut(place);
        self.last = 0;
        overwritten(rank, garbage)
    }
}

fn overwritten(peer: u32, garbage: impl Display) -> Broken {
    let why =
        format!("the memory shared with it holds what no rank wrote ({garbage}); something overwrote it");
    Broken { peer, why }
}

#[cfg(test)]
mod tests;
