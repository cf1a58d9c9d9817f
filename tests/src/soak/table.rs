//! How the steps ended, fault by fault.

use std::collections::BTreeMap;
use std::fmt;

use super::fault::Fault;

/// How a step ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum End {
    /// All tasks ran, placed.
    Well,
    /// It failed, and the plugin says why.
    OwnLine,
    /// It failed, and Slurm says why.
    SlurmsLine,
    /// Against a rule.
    Broken,
}

#[derive(Debug, Default)]
pub(crate) struct Table(BTreeMap<(usize, End), usize>);

impl Table {
    pub(crate) fn count(&mut self, fault: Fault, end: End) {
        *self.0.entry((fault as usize, end)).or_default() += 1;
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{:<44} {:>6} {:>8} {:>14} {:>14} {:>8}",
            "fault", "steps", "ended", "failed, the", "failed, Slurm", "against"
        )?;
        writeln!(
            f,
            "{:<44} {:>6} {:>8} {:>14} {:>14} {:>8}",
            "", "", "well", "plugin says why", "says why", "a rule"
        )?;
        let of = |fault: Fault, end: End| self.0.get(&(fault as usize, end)).copied().unwrap_or(0);
        let mut total = [0; 5];
        for fault in Fault::ALL {
            let ends = [End::Well, End::OwnLine, End::SlurmsLine, End::Broken].map(|end| of(fault, end));
            let row = [ends.iter().sum(), ends[0], ends[1], ends[2], ends[3]];
            total.iter_mut().zip(row).for_each(|(total, count)| *total += count);
            line(f, fault.name(), row)?;
        }
        line(f, "all", total)
    }
}

fn line(f: &mut fmt::Formatter<'_>, name: &str, row: [usize; 5]) -> fmt::Result {
    writeln!(f, "{name:<44} {:>6} {:>8} {:>14} {:>14} {:>8}", row[0], row[1], row[2], row[3], row[4])
}
