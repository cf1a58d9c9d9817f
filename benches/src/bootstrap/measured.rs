//! What was measured at one number of ranks, and what of it goes into the report.

use std::time::Duration;

use super::step::{Outcome, Step};
use super::{NODES, PEERS, PROMISED, Peer, WARM_UP};
use crate::report::Case;

/// Milliseconds of each round; the peers in their order.
pub(super) struct Measured {
    pub(super) ranks: usize,
    pub(super) ours: Vec<f64>,
    /// The most that any node needed in any of our steps.
    pub(super) rounds: u32,
    pub(super) connections: u32,
    pub(super) theirs: [Theirs; PEERS.len()],
}

/// One peer's.
#[derive(Default)]
pub(super) struct Theirs {
    /// Of the first rounds, as many as there was patience for.
    pub(super) times: Vec<f64>,
    /// After so many milliseconds a step that was not finished was ended: a lower bound.
    pub(super) more_than: Option<f64>,
    /// Why there are fewer rounds than of ours.
    pub(super) stopped: Option<String>,
    started: usize,
    spent: Duration,
}

impl Measured {
    pub(super) fn new(ranks: usize) -> Self {
        let theirs = std::array::from_fn(|_| Theirs::default());
        Self { ranks, ours: Vec::new(), rounds: 0, connections: 0, theirs }
    }

    /// Keeps one of our steps.
    pub(super) fn keep(&mut self, step: &Step, timed: bool) {
        self.ours.extend(timed.then_some(step.ms));
        self.rounds = self.rounds.max(step.rounds);
        self.connections = self.connections.max(step.connections);
    }

    pub(super) fn cases(&self) -> Vec<Case> {
        let ranks = self.ranks;
        // Counted, not measured, and so compared with what theory allows.
        let most = NODES.next_power_of_two().ilog2();
        let counted = |what: &str, unit, ours: u32, limit: u32| {
            let (ours, limit) = (vec![f64::from(ours)], vec![f64::from(limit)]);
            let (name, peer) =
                (format!("{what} of a node, {ranks} ranks"), format!("limit for {NODES} nodes"));
            Case::less_is_better(&name, &peer, unit, ours, limit, Some(1.0))
        };
        let counted = [
            counted("rounds", "rounds", self.rounds, most),
            counted("connections", "connections", self.connections, 2 * most),
        ];
        let measured = PEERS.iter().zip(&self.theirs).filter_map(|(peer, theirs)| self.case(peer, theirs));
        measured.chain(counted).collect()
    }

    fn case(&self, peer: &Peer, theirs: &Theirs) -> Option<Case> {
        let goal = if peer.must && self.ranks == PROMISED.0 { PROMISED.1 } else { 1.0 };
        let name = format!("everyone's 64 bytes, {} ranks", self.ranks);
        // Of ours those rounds that the peer ran too, so that the pairs are of one round; and all where the peer has but a
        // bound.
        let (ours, times) = match theirs.more_than.filter(|_| theirs.times.is_empty()) {
            Some(bound) => (self.ours.clone(), vec![bound]),
            None => (self.ours[..theirs.times.len().min(self.ours.len())].to_vec(), theirs.times.clone()),
        };
        if times.is_empty() {
            return None;
        }
        let case = Case::less_is_better(&name, peer.name, "ms", ours, times, Some(goal));
        Some(Case { note: theirs.note(), ..case })
    }
}

impl Theirs {
    /// Whether another of its steps shall be started.
    pub(super) fn goes_on(&mut self, patience: Option<Duration>) -> bool {
        if let Some(patience) = patience.filter(|patience| self.spent > *patience && self.started > WARM_UP)
            && self.stopped.is_none()
        {
            self.stopped = Some(format!("its steps took more than {} s by then", patience.as_secs()));
        }
        self.stopped.is_none()
    }

    /// Keeps one of its steps, which took so long with all that Slurm does before and after.
    pub(super) fn keep(&mut self, outcome: Outcome, timed: bool, took: Duration) {
        self.started += 1;
        self.spent += took;
        match outcome {
            Outcome::Done(step) => self.times.extend(timed.then_some(step.ms)),
            Outcome::Unfinished { more_than } => {
                self.more_than = Some(more_than);
                self.stopped = Some(format!("a step was not finished after {:.1} s", more_than / 1e3));
            }
        }
    }

    /// What a reader of the figures has to know.
    pub(super) fn note(&self) -> Option<String> {
        let stopped = self.stopped.as_ref()?;
        Some(match (self.times.len(), self.more_than) {
            (0, None) => format!("not measured: {stopped}"),
            (0, Some(_)) => format!("{stopped}: its figure is a lower bound"),
            (rounds, _) => format!("{rounds} rounds: {stopped}"),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn done(ms: f64) -> Outcome {
        Outcome::Done(Step { ms, rounds: 0, connections: 0 })
    }

    #[test]
    fn a_peer_without_end_gives_a_lower_bound_and_says_so() {
        let mut measured = Measured { ours: vec![10.0, 20.0, 30.0], ..Measured::new(256) };
        let theirs = &mut measured.theirs[0];
        theirs.keep(Outcome::Unfinished { more_than: 2_000.0 }, false, Duration::from_secs(3));
        assert!(!theirs.goes_on(None));
        let case = &measured.cases()[0];
        assert_eq!((case.ours.len(), &case.theirs), (3, &vec![2_000.0]));
        assert!((case.ratio - 100.0).abs() < 1e-9);
        assert_eq!(
            case.note.as_deref(),
            Some("a step was not finished after 2.0 s: its figure is a lower bound")
        );
    }

    #[test]
    fn pairs_are_of_the_rounds_that_both_ran() {
        let mut measured = Measured { ours: vec![1.0, 2.0, 100.0], ..Measured::new(64) };
        let theirs = &mut measured.theirs[0];
        theirs.keep(done(7.0), false, Duration::from_secs(1));
        theirs.keep(done(10.0), true, Duration::from_secs(1));
        assert!(theirs.goes_on(Some(Duration::from_secs(5))));
        theirs.keep(done(20.0), true, Duration::from_secs(4));
        assert!(!theirs.goes_on(Some(Duration::from_secs(5))));
        let case = &measured.cases()[0];
        assert_eq!((&case.ours, &case.theirs), (&vec![1.0, 2.0], &vec![10.0, 20.0]));
        assert!((case.ratio - 10.0).abs() < 1e-9);
        assert_eq!(case.note.as_deref(), Some("2 rounds: its steps took more than 5 s by then"));
    }
}
