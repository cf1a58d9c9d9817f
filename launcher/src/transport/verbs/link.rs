//! A rank's view of one peer.

use std::collections::VecDeque;

use roce_verbs::{Connection, PacketPair, PacketSlot};

use super::credits::Credits;
use super::gets::Gets;
use super::puts::Put;
use super::stall::Seen;
use super::{HEAD, Head};
use crate::transport::Header;

/// Connections that may fail one after the other with nothing carried.
const FRUITLESS: u32 = 3;
/// Connections that may take the place of the first.
pub(super) const MOST: u16 = 16;
pub(super) const NONSENSE: &str = "it sent something that makes no sense; do all ranks run the same build?";

#[derive(Debug)]
pub(super) enum State {
    /// Nothing was ever sent, and nothing has come.
    None,
    /// A connection is being made, the first or another one.
    Opening,
    Up(PacketPair),
    Broken(String),
}

/// A peer, over one connection or several, one after the other: packets are numbered through, and none comes twice or never.
#[derive(Debug)]
pub(super) struct Link {
    /// The port here, and the peer's among its own.
    pub(super) port: usize,
    pub(super) their_port: usize,
    pub(super) state: State,
    pub(super) credits: Credits,
    /// The connection's number, from 0.
    pub(super) era: u32,
    /// Packets that have come.
    pub(super) received: u64,
    /// Packets sent.
    pub(super) sent: u64,
    /// The last of them that the peer's device may not have, in their order.
    pub(super) under_way: VecDeque<PacketSlot>,
    /// Puts that the peer's device may not have, in their order, and how many it has.
    pub(super) puts: VecDeque<Put>,
    pub(super) puts_arrived: u64,
    pub(super) gets: Gets,
    /// What its connection was made with, until that is read back.
    pub(super) unchecked: Option<Box<Connection>>,
    /// Of those sent, the last that was more than places given back.
    pub(super) last: u64,
    /// When something of it was over last.
    pub(super) seen: Seen,
    /// Connections that failed since one carried something, and what all had carried then.
    fruitless: u32,
    carried: u64,
}

impl Link {
    pub(super) fn new(port: usize, their_port: usize) -> Self {
        Self {
            port,
            their_port,
            state: State::None,
            credits: Credits::new(),
            era: 0,
            received: 0,
            sent: 0,
            under_way: VecDeque::new(),
            puts: VecDeque::new(),
            puts_arrived: 0,
            gets: Gets::default(),
            unchecked: None,
            last: 0,
            seen: Seen::default(),
            fruitless: 0,
            carried: 0,
        }
    }

    /// Packets that the peer's device has.
    pub(super) fn arrived(&self) -> u64 {
        self.sent - self.under_way.len() as u64
    }

    /// The peer's device has so many more of those under way.
    pub(super) fn have_arrived(&mut self, count: usize) {
        self.under_way.drain(..count.min(self.under_way.len()));
    }

    /// So many more of the puts are in the peer's memory.
    pub(super) fn puts_have_arrived(&mut self, count: usize) {
        self.puts.drain(..count.min(self.puts.len()));
        self.puts_arrived += count as u64;
    }

    /// Is there something on its way that the peer may wait for?
    pub(super) fn is_sending(&self) -> bool {
        self.arrived() < self.last || !self.puts.is_empty()
    }

    /// Another connection takes the place of one that failed, unless they fail again and again with nothing carried. `moved` is how many
    /// [transfers](super::transfers) were over, `was_busy` whether any was under way. Who had nothing on its way can't tell: its peer may
    /// have put to its memory, or got from there.
    pub(super) fn begin_anew(&mut self, moved: u64, was_busy: bool) -> bool {
        let carried = self.received + self.arrived() + self.puts_arrived + self.gets.over() + moved;
        let was_busy = was_busy || self.under_way.len() + self.puts.len() + self.gets.under_way() > 0;
        if carried > self.carried || !was_busy {
            self.fruitless = 0;
        }
        let fruitless = self.fruitless + u32::from(was_busy);
        (self.carried, self.fruitless, self.era) = (carried, fruitless, self.era + 1);
        self.fruitless <= FRUITLESS && self.era <= MOST.into()
    }

    /// The peer has received so many packets: how many of those under way are to be sent no more.
    ///
    /// # Errors
    /// If that can't be.
    pub(super) fn arrived_by(&self, received: u64) -> Result<usize, &'static str> {
        let more = received.checked_sub(self.arrived()).and_then(|more| usize::try_from(more).ok());
        more.filter(|more| *more <= self.under_way.len())
            .ok_or("it counts other packets than were sent to it; see the kernel's log, and do all ranks run the same build?")
    }

    /// Takes a packet apart; `None` for one that only gives places back.
    ///
    /// # Errors
    /// If no rank of this build sends that.
    #[inline]
    pub(super) fn hear<'a>(&mut self, bytes: &'a [u8]) -> Result<Option<(Header, &'a [u8])>, &'static str> {
        let (head, payload) = Self::split(bytes).ok_or(NONSENSE)?;
        Ok(if self.count(&head)? { Some((head.header, payload)) } else { None })
    }

    /// What begins a packet, and the rest.
    #[inline]
    pub(super) fn split(bytes: &[u8]) -> Option<(Head, &[u8])> {
        let (head, payload) = bytes.split_at_checked(HEAD)?;
        Some((bytemuck::pod_read_unaligned(head), payload))
    }

    /// Is that packet the one after the last?
    #[inline]
    pub(super) fn is_next(&self, head: &Head) -> bool {
        head.number == self.received as u32
    }

    /// A packet has come, and its place is empty again. Whether it is more than places given back.
    ///
    /// # Errors
    /// As [`hear`](Self::hear).
    #[inline]
    pub(super) fn count(&mut self, head: &Head) -> Result<bool, &'static str> {
        if !self.is_next(head) {
            return Err("a packet of it is missing, or came twice; see the kernel's log");
        }
        if !self.count_next(head) {
            return Err(NONSENSE);
        }
        Ok(head.is_only_that == 0)
    }

    /// The same for one that is known to be the next. Whether it makes sense.
    #[inline]
    pub(super) fn count_next(&mut self, head: &Head) -> bool {
        self.received += 1;
        self.credits.earn(head.given) && (head.is_only_that != 0 || self.credits.empty())
    }
}

#[cfg(test)]
mod tests {
    use bytemuck::Zeroable;

    use super::*;

    fn packet(number: u32, given: u16, is_only_that: u16) -> Vec<u8> {
        let head = Head { given, is_only_that, number, header: Header::zeroed() };
        [bytemuck::bytes_of(&head), b"payload"].concat()
    }

    #[test]
    fn a_packet_is_taken_apart_and_counted() {
        let mut link = Link::new(0, 0);
        assert_eq!(link.hear(&packet(0, 0, 0)).unwrap().unwrap().1, b"payload");
        assert_eq!(link.hear(&packet(1, 0, 1)).unwrap(), None);
        assert_eq!((link.credits.give(), link.received), (1, 2));
    }

    #[test]
    fn what_no_rank_sends_is_an_error() {
        assert!(Link::new(0, 0).hear(&packet(0, 0, 0)[..20]).is_err());
        assert!(Link::new(0, 0).hear(&packet(0, 1, 0)).is_err());
    }

    #[test]
    fn a_packet_that_is_missing_or_comes_twice_is_an_error() {
        let mut link = Link::new(0, 0);
        assert!(link.hear(&packet(1, 0, 0)).is_err());
        link.hear(&packet(0, 0, 0)).unwrap();
        assert!(link.hear(&packet(0, 0, 0)).is_err());
    }

    #[test]
    fn connections_that_carry_nothing_come_to_an_end_and_others_go_on() {
        let mut link = Link::new(0, 0);
        assert!((0..FRUITLESS).all(|_| link.begin_anew(0, true)));
        assert!(!link.begin_anew(0, true));
        let mut link = Link::new(0, 0);
        let again = (0..=MOST).filter(|_| {
            link.received += 1;
            link.begin_anew(0, true)
        });
        assert_eq!(again.count(), MOST as usize);
        // Transfers count too.
        let mut link = Link::new(0, 0);
        assert!((1..=2 * FRUITLESS).all(|moved| link.begin_anew(moved.into(), true)));
    }

    #[test]
    fn who_only_has_memory_that_others_use_does_not_count_its_connections_as_fruitless() {
        let mut link = Link::new(0, 0);
        assert!((0..2 * FRUITLESS).all(|_| link.begin_anew(0, false)));
        link.puts.push_back(Put { slot: PacketSlot::default(), to: (0, 0) });
        assert!((0..FRUITLESS).all(|_| link.begin_anew(0, false)));
        assert!(!link.begin_anew(0, false));
    }

    #[test]
    fn a_peer_can_have_received_what_was_sent_only() {
        let mut link = Link::new(0, 0);
        link.sent = 7;
        assert_eq!(link.arrived_by(7), Ok(0));
        assert!(link.arrived_by(8).is_err() && link.arrived_by(6).is_err());
    }
}
