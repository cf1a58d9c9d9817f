//! What was measured, and what of it goes into the report.

use std::collections::BTreeMap;

use super::{LONG, SIZES};
use crate::messages::bytes;
use crate::report::Case;

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Player {
    Ours,
    Perftest,
    OpenMpi,
    /// libfabric's connected endpoints, which match nothing.
    Endpoints,
    /// Its reliable datagrams, which match by tag.
    Datagrams,
    /// What nobody can do without.
    Bare,
}

/// Of each round.
#[derive(Default)]
pub(super) struct Measured {
    values: BTreeMap<(&'static str, usize, Player), Vec<f64>>,
    /// Instructions of a send and a receive: ours, and a bare loop's.
    counted: Option<(f64, f64)>,
}

/// What was promised: at most 1.03 times perftest's latency, 0.98 of its bandwidth, ahead of the others, 400 instructions, and 1.5
/// times the bare cost of a queue pair.
const LATENCY: f64 = 1.0 / 1.03;
const BANDWIDTH: f64 = 0.98;
const AHEAD: f64 = 1.0;
const INSTRUCTIONS: f64 = 400.0;
const FIRST: f64 = 1.0 / 1.5;

impl Measured {
    pub(super) fn keep(&mut self, name: &'static str, size: usize, player: Player, value: f64) {
        self.values.entry((name, size, player)).or_default().push(value);
    }

    pub(super) fn count(&mut self, ours: f64, bare: f64) {
        self.counted = Some((ours, bare));
    }

    pub(super) fn of(&self, name: &'static str, size: usize, player: Player) -> Vec<f64> {
        self.values.get(&(name, size, player)).cloned().unwrap_or_default()
    }

    pub(super) fn cases(&self) -> Vec<Case> {
        let mut cases = Vec::new();
        // What does more than its peer has no goal: it matches or copies.
        let latencies = [
            ("pair-send", "send", "queue pair's send, half round trip", "ib_send_lat", Some(LATENCY)),
            ("pair-write", "write", "queue pair's RDMA write, one way", "ib_write_lat", Some(LATENCY)),
            ("message", "send", "message, half round trip", "ib_send_lat", None),
            ("put", "write", "window's put, one way", "ib_write_lat", None),
        ];
        for (ours, theirs, what, peer, goal) in latencies {
            for size in SIZES {
                let case = format!("{what}, {}", bytes(size));
                let (ours, theirs) =
                    (self.of(ours, size, Player::Ours), self.of(theirs, size, Player::Perftest));
                cases.push(Case::less_is_better(&case, peer, "ns", ours, theirs, goal));
            }
        }
        let means = [
            ("mean", "message", Player::OpenMpi, "Open MPI (UCX)", Some(AHEAD)),
            ("mean", "message", Player::Datagrams, "fi_pingpong -e rdm", Some(AHEAD)),
            ("pair-mean", "queue pair's send", Player::Endpoints, "fi_pingpong -e msg", Some(AHEAD)),
            ("mean", "message", Player::Endpoints, "fi_pingpong -e msg", None),
        ];
        for (name, what, player, peer, goal) in means {
            for size in SIZES {
                let case = format!("{what}, half round trip, {}, mean", bytes(size));
                let (ours, theirs) = (self.of(name, size, Player::Ours), self.of("mean", size, player));
                cases.push(Case::less_is_better(&case, peer, "ns", ours, theirs, goal));
            }
        }
        let bandwidths = [
            ("pair-send-stream", "send-stream", "queue pair's sends", "ib_send_bw", Some(BANDWIDTH)),
            ("pair-write-stream", "write-stream", "queue pair's RDMA writes", "ib_write_bw", Some(BANDWIDTH)),
            ("stream", "send-stream", "stream of messages", "ib_send_bw", None),
        ];
        for (ours, theirs, what, peer, goal) in bandwidths {
            for size in LONG {
                let case = format!("{what}, {}", bytes(size));
                let (ours, theirs) =
                    (self.of(ours, size, Player::Ours), self.of(theirs, size, Player::Perftest));
                cases.push(Case::more_is_better(&case, peer, "MB/s", ours, theirs, goal));
            }
        }
        let (ours, theirs) = (self.of("first", 8, Player::Ours), self.of("first", 8, Player::Bare));
        let what = "first message to a peer, 8 B";
        let peer = "a bare queue pair of two ranks";
        cases.push(Case::less_is_better(what, peer, "ns", ours.clone(), theirs.clone(), Some(FIRST)));
        let end = self.of("end", 8, Player::Bare);
        cases.push(Case::less_is_better(what, "one end of it alone", "ns", ours, end, None));
        let (what, ours) = ("first message and its answer, 8 B", self.of("answered", 8, Player::Ours));
        cases.push(Case::less_is_better(what, peer, "ns", ours, theirs, None));
        cases.extend(self.instructions());
        cases
    }

    fn instructions(&self) -> Vec<Case> {
        let Some((ours, bare)) = self.counted else { return Vec::new() };
        let case = |what: &str, peer, ours, theirs, goal| {
            let what = format!("a send and a receive of 8 B, {what}");
            Case::less_is_better(&what, peer, "instructions", vec![ours], vec![theirs], goal)
        };
        let beyond = "beyond a bare loop of post_send and poll_cq";
        vec![
            case("without the provider's", "a bare loop", ours, bare, None),
            case(beyond, "the limit", ours - bare, INSTRUCTIONS, Some(1.0)),
        ]
    }
}

/// Megabytes (10^6 bytes) a second.
#[expect(clippy::cast_precision_loss, reason = "sizes of messages")]
pub(super) fn rate(size: usize, ns: f64) -> f64 {
    size as f64 * 1e3 / ns
}
