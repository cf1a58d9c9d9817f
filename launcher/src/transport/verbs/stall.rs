//! Connections on which nothing goes on.
//!
//! A NIC gives up after about 9 s and says so. Soft-RoCE sends again for ever, and after its port was away has been seen to wait for an
//! answer that it never asks for again. So a connection of which nothing that is under way has been over for longer than that is taken down,
//! and another one goes on.

use std::fmt;
use std::time::{Duration, Instant};

use super::Verbs;
use super::lanes::Peer;
use super::link::{Link, State};
use super::mend::Failure;

/// How long nothing of what is under way may be over: more than a NIC needs to give up.
const PATIENCE: Duration = Duration::from_secs(12);
/// The same where other connections to the peer go on with what this one has begun.
const PATIENCE_BESIDE_OTHERS: Duration = Duration::from_secs(3);
/// How many polls that find nothing lie between two looks: each asks for the time.
const POLLS: u32 = 1 << 12;

/// When something was over last.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Seen {
    /// What was over by then, and when that was noticed.
    last: Option<(u64, Instant)>,
}

impl Seen {
    /// Looks how much is over now. Whether it has been no more for too long, while something was under way.
    fn is_stalled(&mut self, over: u64, is_under_way: bool, now: Instant, patience: Duration) -> bool {
        match self.last {
            _ if !is_under_way => self.last = None,
            Some((before, since)) if before == over => return now.duration_since(since) > patience,
            _ => self.last = Some((over, now)),
        }
        false
    }
}

impl Verbs {
    /// Nothing has come. Every now and then connections are looked at.
    #[inline]
    pub(super) fn rest(&mut self) {
        self.rests = self.rests.wrapping_add(1);
        if self.rests.is_multiple_of(POLLS) {
            self.ask();
            self.look_at_stalled(Instant::now());
        }
    }

    #[cold]
    fn look_at_stalled(&mut self, now: Instant) {
        let Self { links, transfers, failed, .. } = self;
        for (rank, link) in (0..).zip(links).filter_map(|(rank, link)| Some((rank, link.as_mut()?))) {
            for lane in 0..=link.further.len() as u8 {
                let Some(link) = link.lane_mut(lane) else { continue };
                let (peer, patience) = match lane {
                    0 => (Peer::first(rank), PATIENCE),
                    _ => (Peer { rank, lane }, PATIENCE_BESIDE_OTHERS),
                };
                let moving = transfers.under_way(peer) as u64;
                let is_under_way = matches!(link.state, State::Up(_)) && moving + link.under_way() > 0;
                let over = link.over() + transfers.over(peer);
                if link.seen.is_stalled(over, is_under_way, now, patience) {
                    link.seen = Seen::default();
                    let seconds = patience.as_secs();
                    let why = format!("for {seconds} s nothing was over of {}", under_way(link, moving));
                    failed.push_back((rank, Failure::of_connection(why).over(lane)));
                }
            }
        }
    }

    /// What is the matter with connections that are not idle, in words: `; rank 1: verbs (rxe0:1), connection 2: 3 packets and 1
    /// RDMA operation under way`.
    pub(crate) fn under_way(&self) -> String {
        let describe = |peer: Peer, link: &Link| {
            let moving = self.transfers.under_way(peer) as u64;
            let what: &dyn fmt::Display = match &link.state {
                State::None | State::Broken(_) => return None,
                State::Opening => &"being made",
                State::Up(_) if moving + link.under_way() == 0 => return None,
                State::Up(_) => &under_way(link, moving),
            };
            let (rank, name, number) = (peer.rank, &self.names[link.port], link.era + 1);
            Some(format!("; rank {rank}: verbs ({name}), connection {number}: {what}"))
        };
        let ranks = (0..).zip(&self.links).filter_map(|(rank, link)| Some((rank, link.as_deref()?)));
        let all =
            ranks.flat_map(|(rank, link)| link.lanes().map(move |(lane, link)| (Peer { rank, lane }, link)));
        all.filter_map(|(peer, link)| describe(peer, link)).collect()
    }
}

/// `3 packets and 1 RDMA operation under way`, with so many that are in no slots.
fn under_way(link: &Link, moving: u64) -> String {
    let number = |count: u64, what: &str| format!("{count} {what}{}", if count == 1 { "" } else { "s" });
    let moving = link.under_way() - link.packets() + moving;
    format!("{} and {} under way", number(link.packets(), "packet"), number(moving, "RDMA operation"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_goes_on_or_has_nothing_to_do_is_not_stalled() {
        let start = Instant::now();
        let after = |seconds| start + Duration::from_secs(seconds);
        let mut seen = Seen::default();
        let mut is_stalled = |over, is_under_way, now| seen.is_stalled(over, is_under_way, now, PATIENCE);
        assert!(!is_stalled(5, true, start));
        assert!(!is_stalled(6, true, after(10)));
        assert!(!is_stalled(6, true, after(20)));
        // It was idle in between.
        assert!(!is_stalled(6, false, after(21)));
        assert!(!is_stalled(6, true, after(30)));
        assert!(!is_stalled(6, true, after(41)));
        assert!(is_stalled(6, true, after(43)));
    }
}
