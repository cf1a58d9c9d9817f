//! A rank's view of one peer.

use roce_verbs::{Connection, Kept, PacketPair};

use super::Rail;
use super::credits::Credits;
use super::gets::Gets;
use super::head::Head;
use super::stall::Seen;
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
    /// Over the other rails that both have, for parts of long messages.
    pub(super) further: Vec<Link>,
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
    /// Of them, those that the peer's device has, as far as is known.
    pub(super) arrived: u64,
    /// The first packet, if it has gone [before the connection](super::early) and its send is not over.
    pub(super) early: Option<Vec<u8>>,
    /// Puts sent.
    pub(super) put: u64,
    pub(super) puts_arrived: u64,
    pub(super) gets: Gets,
    /// What the connection before had under way, until there is another one.
    pub(super) kept: Option<Kept>,
    /// What its connection was made with, until that is read back.
    pub(super) unchecked: Option<Box<Connection>>,
    /// Of those sent, the last that was more than places given back.
    pub(super) last: u64,
    /// How many of them the peer's device was last asked to have.
    pub(super) asked: u64,
    /// When something of it was over last.
    pub(super) seen: Seen,
    /// Connections that failed since one carried something, and what all had carried then.
    fruitless: u32,
    carried: u64,
}

impl Link {
    pub(super) fn new(port: usize, their_port: usize) -> Self {
        Self {
            further: Vec::new(),
            port,
            their_port,
            state: State::None,
            credits: Credits::new(),
            era: 0,
            received: 0,
            sent: 0,
            arrived: 0,
            early: None,
            put: 0,
            puts_arrived: 0,
            gets: Gets::default(),
            kept: None,
            unchecked: None,
            last: 0,
            asked: 0,
            seen: Seen::default(),
            fruitless: 0,
            carried: 0,
        }
    }

    /// The peer over these rails, if there are any; packets go over the first.
    pub(super) fn of_rails(rails: &[Rail]) -> Option<Self> {
        let link = |rail: &Rail| Self::new(rail.port, rail.their_port);
        let (first, further) = rails.split_first()?;
        Some(Self { further: further.iter().map(link).collect(), ..link(first) })
    }

    /// Is it up, or may it be before long?
    pub(super) fn may_come_up(&self) -> bool {
        !matches!(self.state, State::Broken(_))
    }

    /// Packets that the peer's device may not have.
    pub(super) fn packets(&self) -> u64 {
        self.sent - self.arrived
    }

    /// Puts that the peer's device may not have.
    pub(super) fn puts(&self) -> u64 {
        self.put - self.puts_arrived
    }

    /// How much is under way in slots.
    pub(super) fn under_way(&self) -> u64 {
        self.packets() + self.puts() + self.gets.under_way() as u64
    }

    /// How much of that was over so far.
    pub(super) fn over(&self) -> u64 {
        self.arrived + self.puts_arrived + self.gets.over()
    }

    /// Is there something on its way that the peer may wait for?
    pub(super) fn is_sending(&self) -> bool {
        self.arrived < self.last || self.puts() > 0
    }

    /// Another connection takes the place of one that failed, unless they fail again and again with nothing carried. `moved` is how many
    /// [transfers](super::transfers) were over, `was_busy` whether any was under way. Who had nothing on its way can't tell: its peer may
    /// have put to its memory, or got from there.
    pub(super) fn begin_anew(&mut self, moved: u64, was_busy: bool) -> bool {
        let carried = self.received + self.over() + moved;
        let was_busy = was_busy || self.under_way() > 0;
        if carried > self.carried || !was_busy {
            self.fruitless = 0;
        }
        let fruitless = self.fruitless + u32::from(was_busy);
        (self.carried, self.fruitless, self.era, self.asked) = (carried, fruitless, self.era + 1, 0);
        self.fruitless <= FRUITLESS && self.era <= MOST.into()
    }

    /// The first connection stands, and the peer has received so many packets before it.
    pub(super) fn count_early(&mut self, received: u64) {
        if self.early.is_some() && received == 1 {
            (self.sent, self.arrived, self.last) = (1, 1, 1);
            self.credits.spend();
        } else {
            self.early = None;
        }
    }

    /// The peer has received so many packets: how many of those under way are to be sent no more.
    ///
    /// # Errors
    /// If that can't be.
    pub(super) fn arrived_by(&self, received: u64) -> Result<usize, &'static str> {
        let more = received.checked_sub(self.arrived).filter(|more| *more <= self.packets());
        more.and_then(|more| usize::try_from(more).ok())
            .ok_or("it counts other packets than were sent to it; see the kernel's log, and do all ranks run the same build?")
    }

    /// Takes a packet apart; `None` for one that only gives places back.
    ///
    /// # Errors
    /// If no rank of this build sends that.
    #[inline]
    pub(super) fn hear<'a>(&mut self, bytes: &'a [u8]) -> Result<Option<(Header, &'a [u8])>, &'static str> {
        let (head, payload) = Head::split(bytes).ok_or(NONSENSE)?;
        self.count(&head)?;
        Ok(head.header.map(|header| (header, payload)))
    }

    /// Is that packet the one after the last?
    #[inline]
    pub(super) fn is_next(&self, head: &Head) -> bool {
        head.number == self.received as u32
    }

    /// A packet has come, and its place is empty again.
    ///
    /// # Errors
    /// As [`hear`](Self::hear).
    #[inline]
    fn count(&mut self, head: &Head) -> Result<(), &'static str> {
        if !self.is_next(head) {
            return Err("a packet of it is missing, or came twice; see the kernel's log");
        }
        if self.count_next(head) { Ok(()) } else { Err(NONSENSE) }
    }

    /// The same for one that is known to be the next. Whether it makes sense.
    #[inline]
    pub(super) fn count_next(&mut self, head: &Head) -> bool {
        self.received += 1;
        self.credits.earn(head.given) && (head.header.is_none() || self.credits.empty())
    }
}

#[cfg(test)]
mod tests {
    use super::super::head::Packed;
    use super::*;

    fn packet(number: u32, given: u16, is_only_that: bool) -> Vec<u8> {
        let header = Header::eager(0, 0, 7);
        let head = Packed::new(number, given, (!is_only_that).then_some(&header), 7);
        [head.bytes(), b"payload"].concat()
    }

    #[test]
    fn a_packet_is_taken_apart_and_counted() {
        let mut link = Link::new(0, 0);
        assert_eq!(link.hear(&packet(0, 0, false)).unwrap().unwrap().1, b"payload");
        assert_eq!(link.hear(&packet(1, 0, true)).unwrap(), None);
        assert_eq!((link.credits.due(), link.received), (1, 2));
    }

    #[test]
    fn what_no_rank_sends_is_an_error() {
        assert!(Link::new(0, 0).hear(&packet(0, 0, false)[..12]).is_err());
        assert!(Link::new(0, 0).hear(&packet(0, 1, false)).is_err());
    }

    #[test]
    fn a_packet_that_is_missing_or_comes_twice_is_an_error() {
        let mut link = Link::new(0, 0);
        assert!(link.hear(&packet(1, 0, false)).is_err());
        link.hear(&packet(0, 0, false)).unwrap();
        assert!(link.hear(&packet(0, 0, false)).is_err());
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
        link.put = 1;
        assert!((0..FRUITLESS).all(|_| link.begin_anew(0, false)));
        assert!(!link.begin_anew(0, false));
    }

    #[test]
    fn what_went_before_the_connection_counts_as_sent_if_it_was_received() {
        let early = |received| {
            let mut link = Link { early: Some(packet(0, 0, false)), ..Link::new(0, 0) };
            link.count_early(received);
            (link.sent, link.is_sending(), link.arrived_by(received), link.early.is_some())
        };
        assert_eq!(early(1), (1, false, Ok(0), true));
        assert_eq!(early(0), (0, false, Ok(0), false));
        assert!(early(2).2.is_err());
        let mut none = Link::new(0, 0);
        none.count_early(1);
        assert!(none.arrived_by(1).is_err());
    }

    #[test]
    fn a_peer_can_have_received_what_was_sent_only() {
        let mut link = Link::new(0, 0);
        (link.sent, link.arrived) = (9, 7);
        assert_eq!((link.arrived_by(7), link.arrived_by(9)), (Ok(0), Ok(2)));
        assert!(link.arrived_by(10).is_err() && link.arrived_by(6).is_err());
    }
}
