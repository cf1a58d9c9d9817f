//! What was measured, and what of it goes into the report.

use std::collections::BTreeMap;

use super::player::{Player, Times};
use super::{Case, PROMISED, What};
use crate::report;

/// Nanoseconds of each round.
#[derive(Default)]
pub(super) struct Measured {
    times: BTreeMap<(Case, Player), Vec<f64>>,
    line: Vec<f64>,
}

impl Measured {
    pub(super) fn keep(&mut self, player: Player, times: Times) {
        for (case, ns) in times {
            self.times.entry((case, player)).or_default().push(ns);
        }
    }

    pub(super) fn keep_line(&mut self, ns: f64) {
        self.line.push(ns);
    }

    /// What a player had of a case, in the case's unit.
    pub(super) fn of(&self, case: Case, player: Player) -> Vec<f64> {
        let ns = self.times.get(&(case, player)).map(Vec::as_slice).unwrap_or_default();
        ns.iter().map(|ns| if case.what == What::Stream { rate(case.size, *ns) } else { *ns }).collect()
    }

    /// The bare cache line.
    pub(super) fn line(&self) -> &[f64] {
        &self.line
    }

    /// All that were played.
    pub(super) fn played(&self) -> Vec<Case> {
        let ours = self.times.keys().filter(|(_, player)| *player == Player::Ours);
        ours.map(|(case, _)| *case).collect()
    }

    pub(super) fn cases(&self) -> Vec<report::Case> {
        let mut cases = Vec::new();
        for case in self.played() {
            let (name, ours) = (name(case), self.of(case, Player::Ours));
            if case.what == What::Latency && case.size == 8 {
                let (line, peer) = (self.line.clone(), "a bare cache line");
                cases.push(report::Case::less_is_better(
                    &name,
                    peer,
                    "ns",
                    ours.clone(),
                    line,
                    Some(PROMISED),
                ));
            }
            for peer in [Player::OpenMpi, Player::Mpich] {
                let (ours, theirs, goal) = (ours.clone(), self.of(case, peer), Some(1.0));
                cases.push(match case.what {
                    What::Stream => {
                        report::Case::more_is_better(&name, peer.name(), "MB/s", ours, theirs, goal)
                    }
                    _ => report::Case::less_is_better(&name, peer.name(), "ns", ours, theirs, goal),
                });
            }
        }
        cases
    }
}

/// Megabytes (10^6 bytes) a second.
#[expect(clippy::cast_precision_loss, reason = "sizes of messages")]
fn rate(size: usize, ns: f64) -> f64 {
    size as f64 * 1e3 / ns
}

/// For people.
pub(super) fn name(case: Case) -> String {
    let Case { what, ranks, size, .. } = case;
    match what {
        What::Latency => format!("half round trip, {}", bytes(size)),
        What::Stream => format!("stream, {}", bytes(size)),
        What::AllReduce => format!("all_reduce, {}, {ranks} ranks", bytes(size)),
        What::Barrier => format!("barrier, {ranks} ranks"),
    }
}

/// `8 B`, `64 KiB`
pub(crate) fn bytes(size: usize) -> String {
    match size {
        0..1024 => format!("{size} B"),
        1024..1_048_576 => format!("{} KiB", size >> 10),
        _ => format!("{} MiB", size >> 20),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_better_when_less_and_rates_when_more() {
        let mut measured = Measured::default();
        let case = |what| Case { what, ranks: 2, size: 8, window: 1, times: 1 };
        for (player, ns) in [(Player::Ours, 100.0), (Player::OpenMpi, 200.0), (Player::Mpich, 50.0)] {
            measured.keep(player, vec![(case(What::Latency), ns), (case(What::Stream), ns)]);
        }
        measured.keep_line(60.0);
        let ratios: Vec<(String, f64)> =
            measured.cases().into_iter().map(|case| (case.peer, case.ratio)).collect();
        let expected = [
            ("a bare cache line", 0.6),
            ("Open MPI", 2.0),
            ("MPICH", 0.5),
            ("Open MPI", 2.0),
            ("MPICH", 0.5),
        ];
        assert_eq!(ratios.len(), expected.len());
        for ((peer, ratio), (name, wanted)) in ratios.iter().zip(expected) {
            assert!(peer == name && (ratio - wanted).abs() < 1e-9, "{peer} {ratio}");
        }
    }

    #[test]
    fn sizes_are_short() {
        assert_eq!([8, 2048, 4 << 20].map(bytes), ["8 B", "2 KiB", "4 MiB"]);
    }
}
