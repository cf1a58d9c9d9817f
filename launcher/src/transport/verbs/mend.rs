//! What becomes of a connection that fails.
//!
//! Packets that were sent stay in their slots until the peer's device has them, and are numbered. So when a port was down for a moment, has got
//! its GID anew, or a peer did not answer for too long, both sides take their ends down, take what has come, and say in the handshake for
//! the next connection how many packets that were. What is missing is sent again, and RDMA reads and writes that are not over begin again:
//! nobody above notices.
//!
//! What a peer has done wrong, or the device does not allow, would only happen again: the peer is lost. Where a [further](super::lanes) connection
//! has come to its end, the others go on.

use roce_verbs::{CompletionError, Connection, Error, PacketPair};

use super::Verbs;
use super::desk::Wish;
use super::lanes::Peer;
use super::link::State;
use crate::error::chain;
use crate::transport::{Header, Payload};

/// Why a connection does not go on.
#[derive(Debug)]
pub(super) struct Failure {
    why: String,
    /// May another connection do better?
    may_pass: bool,
    /// Over which of the pair's rails.
    lane: u8,
}

impl Failure {
    pub(super) fn of_connection(why: String) -> Self {
        Self { why, may_pass: true, lane: 0 }
    }

    pub(super) fn of_peer(why: &str) -> Self {
        Self { why: why.to_owned(), may_pass: false, lane: 0 }
    }

    /// Of another connection than the first.
    pub(super) fn over(self, lane: u8) -> Self {
        Self { lane, ..self }
    }
}

impl From<CompletionError> for Failure {
    fn from(error: CompletionError) -> Self {
        Self { why: error.to_string(), may_pass: error.is_of_the_connection(), lane: 0 }
    }
}

impl Verbs {
    /// Takes a connection that failed down and has the next one made, or loses it with the peer, if it is the first.
    pub(super) fn mend(
        &mut self,
        rank: u32,
        failure: &Failure,
        deliver: &mut impl FnMut(u32, &Header, Payload<'_>),
    ) {
        let peer = Peer { rank, lane: failure.lane };
        // A further one may fail again and again in a moment with nothing carried: the others do its work, so it is tried on.
        let moves = peer.lane == 0 && self.transfers.under_way(peer) > 0;
        let moved = self.transfers.over(peer);
        let Some(link) = self.lane_mut(peer) else { return };
        // The first failure is the cause of those after it.
        let is_over = match link.state {
            State::Broken(_) => true,
            State::Up(_) => false,
            State::None | State::Opening => failure.may_pass,
        };
        if is_over {
            return;
        }
        if !failure.may_pass || !link.begin_anew(moved, moves) {
            let why = self.cause(peer, failure);
            return self.lose_over(peer, why);
        }
        let State::Up(pair) = std::mem::replace(&mut link.state, State::Opening) else { return };
        let (port, number) = (link.port, pair.number());
        let kept = match self.poll_port(port, Some(pair), deliver) {
            Ok((_, kept)) => kept,
            Err(error) => return self.lose(rank, format!("{}; before: {}", chain(&error), failure.why)),
        };
        self.peers[port].remove(&number);
        self.desk.leave(port, number);
        self.transfers.begin_anew(peer);
        let Some(link) = self.lane_mut(peer) else { return };
        link.gets.begin_anew();
        link.kept = kept;
        let received = link.received;
        self.desk.wish(Wish::Again { peer, received });
    }

    /// The peer has taken its end down.
    pub(super) fn asked_again(&mut self, peer: Peer, era: u32) {
        let Some(link) = self.lane(peer) else { return };
        if matches!(link.state, State::Up(_)) && link.era < era {
            let why = "it ended the connection to make another".to_owned();
            self.failed.push_back((peer.rank, Failure::of_connection(why).over(peer.lane)));
        }
    }

    /// A connection stands, the first or the next. The peer has received so many packets over those before.
    pub(super) fn go_on(&mut self, peer: Peer, mut pair: PacketPair, received: u64, asked: Box<Connection>) {
        let Peer { rank, lane } = peer;
        let link = self.links.get_mut(rank as usize).and_then(Option::as_mut);
        let Some(link) = link.and_then(|link| link.lane_mut(lane)) else { return };
        let queue = &mut self.queues[link.port];
        self.peers[link.port].insert(pair.number(), rank);
        if link.era == 0 && lane == 0 {
            link.count_early(received);
        }
        let arrived = link.arrived_by(received);
        // One that is broken by now has its pair closed.
        if matches!(link.state, State::Broken(_)) {
            if link.era == 0 && lane == 0 {
                self.closed += 1;
            }
            let _ = queue.close(pair);
            return;
        }
        let arrived = match arrived {
            Ok(arrived) => arrived,
            Err(why) => {
                link.state = State::Up(pair);
                return self.failed.push_back((rank, Failure::of_peer(why).over(lane)));
            }
        };
        link.arrived += arrived as u64;
        // In the order in which they were sent first, so who hears of a put by a packet finds it.
        if let Err(error) = queue.begin(&mut pair, link.kept.take(), arrived) {
            self.failed.push_back((rank, Failure::of_connection(chain(&error)).over(lane)));
        }
        link.state = State::Up(pair);
        link.unchecked = Some(asked);
        self.unchecked.push(peer);
        if lane == 0 {
            self.connecting = None;
            self.pump_gets(rank);
        }
    }

    /// Looks at what the kernel made of new connections.
    pub(super) fn read_back(&mut self) {
        for peer in std::mem::take(&mut self.unchecked) {
            let Some(link) = self.lane_mut(peer) else { continue };
            let (State::Up(pair), Some(asked)) = (&link.state, link.unchecked.take()) else { continue };
            let Err(error) = pair.read_back(&asked) else { continue };
            let why = chain(&error);
            // One that has failed meanwhile has another state.
            let may_pass = matches!(error, Error::NotAsAsked { field: "state", .. });
            self.failed.push_back((peer.rank, Failure { why, may_pass, lane: peer.lane }));
        }
    }

    /// Why a connection failed: if its port is not as it should be, that, else what the device says.
    fn cause(&self, peer: Peer, failure: &Failure) -> String {
        let Some(link) = self.lane(peer) else { return String::new() };
        let endpoint = &self.endpoints[link.port];
        match endpoint.now() {
            Err(error) => chain(&error),
            Ok(_) => format!("over {}: {}", endpoint.nic.port, failure.why),
        }
    }
}
