//! The form that every benchmark's result has.

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result};
use serde::Serialize;

/// The result of one benchmark.
#[derive(Serialize)]
pub(crate) struct Report {
    pub(crate) name: &'static str,
    pub(crate) cases: Vec<Case>,
}

/// One thing measured side by side with a peer, or against a limit.
#[derive(Serialize)]
pub(crate) struct Case {
    pub(crate) case: String,
    /// Who it is compared with.
    pub(crate) peer: String,
    pub(crate) unit: &'static str,
    pub(crate) ours: Vec<f64>,
    /// Measured in turns with ours; a single value is a limit.
    pub(crate) theirs: Vec<f64>,
    /// The median of the paired ratios; more is better for us.
    pub(crate) ratio: f64,
    /// What the ratio has to reach, where something was promised.
    pub(crate) goal: Option<f64>,
    /// What a reader of the figures has to know: that one is a bound, that there are fewer rounds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) note: Option<String>,
}

impl Case {
    /// Durations in microseconds, where less is better.
    pub(crate) fn times(case: &str, peer: &str, ours: Vec<f64>, theirs: Vec<f64>, goal: Option<f64>) -> Self {
        let paired = ours.iter().zip(theirs.iter().cycle()).map(|(ours, theirs)| theirs / ours);
        let ratio = median(&paired.collect::<Vec<_>>());
        Self {
            case: case.to_owned(),
            peer: peer.to_owned(),
            unit: "us",
            ours,
            theirs,
            ratio,
            goal,
            note: None,
        }
    }

    /// As [`Case::times`], in another unit.
    pub(crate) fn less_is_better(
        case: &str,
        peer: &str,
        unit: &'static str,
        ours: Vec<f64>,
        theirs: Vec<f64>,
        goal: Option<f64>,
    ) -> Self {
        Self { unit, ..Self::times(case, peer, ours, theirs, goal) }
    }

    /// Rates, where more is better.
    pub(crate) fn more_is_better(
        case: &str,
        peer: &str,
        unit: &'static str,
        ours: Vec<f64>,
        theirs: Vec<f64>,
        goal: Option<f64>,
    ) -> Self {
        let paired = ours.iter().zip(theirs.iter().cycle()).map(|(ours, theirs)| ours / theirs);
        let ratio = median(&paired.collect::<Vec<_>>());
        Self { unit, ratio, ..Self::times(case, peer, ours, theirs, goal) }
    }

    /// Was what was promised reached?
    pub(crate) fn holds(&self) -> bool {
        self.goal.is_none_or(|goal| self.ratio >= goal)
    }
}

impl Report {
    /// Prints the table and writes the JSON. The exit code is non-zero where a goal was missed.
    pub(crate) fn finish(&self, output: &Path) -> Result<ExitCode> {
        println!(
            "{:<52} {:<34} {:>26} {:>26} {:>8} {:>6}",
            "case", "peer", "ours median (min-max)", "theirs", "ratio", "goal"
        );
        for case in &self.cases {
            let goal = case.goal.map_or("-".to_owned(), |goal| format!("{goal:.2}"));
            let note = case.note.as_ref().map(|note| format!("  [{note}]"));
            println!(
                "{:<52} {:<34} {:>26} {:>26} {:>8.2} {:>6}{}{}",
                case.case,
                case.peer,
                format!("{} {}", show(&case.ours), case.unit),
                show(&case.theirs),
                case.ratio,
                goal,
                if case.holds() { "" } else { "  MISSED" },
                note.unwrap_or_default()
            );
        }
        let json = serde_json::to_string_pretty(self)?;
        std::fs::write(output, json + "\n").with_context(|| output.display().to_string())?;
        println!("{}", output.display());
        let all_hold = self.cases.iter().all(Case::holds);
        Ok(if all_hold { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}

/// The middle of the values; 0 without any.
pub(crate) fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(0.0)
}

/// The values that a quarter of them lies below, and a quarter above.
pub(crate) fn quartiles(values: &[f64]) -> (f64, f64) {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let at = |quarter: usize| sorted.get(sorted.len() * quarter / 4).copied().unwrap_or(0.0);
    (at(1), at(3))
}

/// `5.0 (4.1-7.0)`, or the value alone where there is one: a limit.
fn show(values: &[f64]) -> String {
    let (least, most) = spread(values);
    match values {
        [limit] => format!("{limit:.1}"),
        _ => format!("{:.1} ({least:.1}-{most:.1})", median(values)),
    }
}

/// The least and the greatest of the values.
pub(crate) fn spread(values: &[f64]) -> (f64, f64) {
    let least = values.iter().copied().fold(f64::INFINITY, f64::min);
    let most = values.iter().copied().fold(0.0, f64::max);
    (least, most)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ratio_is_the_median_of_pairs_and_more_is_better() {
        let case = Case::times("x", "y", vec![1.0, 2.0, 4.0], vec![2.0, 2.0, 2.0], Some(1.0));
        assert!((case.ratio - 1.0).abs() < 1e-9);
        assert!(case.holds());
        let rates = Case::more_is_better("x", "y", "MB/s", vec![2.0, 6.0], vec![1.0, 2.0], None);
        assert!((rates.ratio - 3.0).abs() < 1e-9);
        assert!(!Case::times("x", "limit", vec![6.0], vec![5.0], Some(1.0)).holds());
    }
}
