//! Further connections to a peer, over the other rails that both ranks have: they carry parts of long messages, and nothing else.
//!
//! Packets stay on the first one, and with them order, matching and credits. So a further one brings no places for packets, and may come and go
//! without anybody noticing but by the bandwidth: it is made when the first long message is read, by the same handshake, and made anew as the first one
//! is ([`super::mend`]). Where that is given up, the peer is not lost.

use std::fmt;

use roce_verbs::Held;

use super::Verbs;
use super::desk::Wish;
use super::link::{Link, State};
use super::transfers;
use crate::messages::Lent;
use crate::transport::Place;
use crate::transport::header::LANES;

/// Messages from this length on go over all rails: four parts, so each of two rails has two. Each rail costs a registration at both ends and a
/// question of its own, which shorter messages would not win back.
pub(super) const STRIPED: usize = 1024 * 1024;

/// A peer over one of the rails that both have: 0 is the first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct Peer {
    pub(super) rank: u32,
    pub(super) lane: u8,
}

impl Peer {
    /// Where packets go.
    pub(super) fn first(rank: u32) -> Self {
        Self { rank, lane: 0 }
    }
}

/// Some of the connections to a peer.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub(super) struct Lanes(u8);

// A bit for each.
const _: () = assert!(LANES <= u8::BITS as usize);

impl Lanes {
    /// And this one, one of [`LANES`].
    #[must_use]
    pub(super) fn with(self, lane: u8) -> Self {
        Self(self.0 | 1_u8.checked_shl(lane.into()).unwrap_or(0))
    }

    pub(super) fn iter(self) -> impl Iterator<Item = u8> {
        (0..u8::BITS as u8).filter(move |lane| self.0 >> lane & 1 == 1)
    }
}

impl Link {
    pub(super) fn lane(&self, lane: u8) -> Option<&Self> {
        match usize::from(lane) {
            0 => Some(self),
            further => self.further.get(further - 1),
        }
    }

    #[inline]
    pub(super) fn lane_mut(&mut self, lane: u8) -> Option<&mut Self> {
        match usize::from(lane) {
            0 => Some(self),
            further => self.further.get_mut(further - 1),
        }
    }

    /// All of them with their numbers, the first one first.
    pub(super) fn lanes(&self) -> impl Iterator<Item = (u8, &Self)> {
        (0..).zip(std::iter::once(self).chain(&self.further))
    }

    /// The one over a port here: there is one at most.
    #[inline]
    pub(super) fn lane_at(&self, port: usize) -> Option<u8> {
        if self.port == port { Some(0) } else { self.further_at(port) }
    }

    #[cold]
    fn further_at(&self, port: usize) -> Option<u8> {
        self.lanes().find(|(_, link)| link.port == port).map(|(lane, _)| lane)
    }
}

/// What a program is told of the way to a peer: `verbs (rxe0:1, long messages also rxe1:1)`, and why one is not used any more.
pub(super) struct Described<'a> {
    pub(super) link: &'a Link,
    /// By port.
    pub(super) names: &'a [String],
}

impl fmt::Display for Described<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = |link: &Link| self.names.get(link.port).map_or("", String::as_str);
        write!(f, "verbs ({}", name(self.link))?;
        let usable = self.link.further.iter().filter(|link| !matches!(link.state, State::Broken(_)));
        for (number, link) in usable.enumerate() {
            f.write_str(if number == 0 { ", long messages also " } else { " and " })?;
            f.write_str(name(link))?;
        }
        for link in &self.link.further {
            if let State::Broken(why) = &link.state {
                write!(f, "; no more over {}: {why}", name(link))?;
            }
        }
        f.write_str(")")
    }
}

impl Verbs {
    pub(super) fn lane(&self, peer: Peer) -> Option<&Link> {
        self.link(peer.rank)?.lane(peer.lane)
    }

    pub(super) fn lane_mut(&mut self, peer: Peer) -> Option<&mut Link> {
        self.links.get_mut(peer.rank as usize)?.as_mut()?.lane_mut(peer.lane)
    }

    /// Has the further connections to a rank made that were not asked for yet. Nobody waits for them.
    pub(super) fn open_further(&mut self, rank: u32) {
        let Some(Some(link)) = self.links.get_mut(rank as usize) else { return };
        for (lane, link) in (1..).zip(&mut link.further) {
            if matches!(link.state, State::None) {
                link.state = State::Opening;
                self.desk.wish(Wish::Open { peer: Peer { rank, lane }, early: Vec::new() });
            }
        }
    }

    /// Registers memory so that a peer can read it, on the port of each connection that it may come over. `None` where the system refuses on the
    /// first one's.
    pub(super) fn offer_memory(&self, rank: u32, memory: &Lent) -> Option<(Place, Vec<Held>)> {
        let link = self.link(rank)?;
        let length = memory.bytes().len();
        let register = |link: &Link| transfers::register_to_send(&self.registrations[link.port], memory).ok();
        let first = register(link)?;
        let mut place = Place::keyed(first.address(), first.remote_key());
        let mut all = vec![first];
        for (lane, link) in link.lanes().skip(1).filter(|(_, link)| length >= STRIPED && link.may_come_up()) {
            if let Some(held) = register(link) {
                place = place.with_key(lane, held.remote_key());
                all.push(held);
            }
        }
        Some((place, all))
    }

    /// A further connection comes to its end, for good: what it had begun goes over the others.
    pub(super) fn lose_lane(&mut self, peer: Peer, why: String) {
        let Some(link) = self.lane_mut(peer) else { return };
        let port = link.port;
        match std::mem::replace(&mut link.state, State::Broken(why.clone())) {
            State::Broken(first) => {
                link.state = State::Broken(first);
                return;
            }
            State::Up(pair) => {
                let number = pair.number();
                if let Err(error) = self.queues[port].close(pair) {
                    // Then the device may go on with what others are to do.
                    return self.lose(peer.rank, crate::error::chain(&error));
                }
                self.peers[port].remove(&number);
                self.desk.leave(port, number);
            }
            State::None | State::Opening => {}
        }
        self.desk.wish(Wish::End { peer, why });
        self.transfers.begin_anew(peer);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_has_what_was_put_in() {
        let lanes = Lanes::default().with(0).with(3).with(7).with(8);
        assert_eq!(lanes.iter().collect::<Vec<_>>(), [0, 3, 7]);
    }

    #[test]
    fn a_way_tells_of_the_rails_that_long_messages_use() {
        let mut link = Link::new(1, 0);
        let names = ["rxe0:1", "rxe1:1", "rxe2:1"].map(str::to_owned);
        let describe = |link: &Link| Described { link, names: &names }.to_string();
        assert_eq!(describe(&link), "verbs (rxe1:1)");
        link.further = vec![Link::new(0, 1), Link::new(2, 2)];
        assert_eq!(describe(&link), "verbs (rxe1:1, long messages also rxe0:1 and rxe2:1)");
        link.further[0].state = State::Broken("it is down".to_owned());
        let without = "verbs (rxe1:1, long messages also rxe2:1; no more over rxe0:1: it is down)";
        assert_eq!(describe(&link), without);
        assert_eq!([0, 1, 2].map(|port| link.lane_at(port)), [Some(1), Some(0), Some(2)]);
        assert_eq!(link.lane_at(3), None);
    }
}
