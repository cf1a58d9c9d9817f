//! docs/support-matrix.md: what was tested where, and which file.

use super::{Outcome, Run};
use crate::artifacts::workspace;
use anyhow::{Context, Result, bail};
use roce_lab::Suite;
use sha2::{Digest, Sha256};
use std::{
    collections::BTreeSet,
    fmt::Write as _,
    fs,
    path::Path,
    process::{Command, Stdio},
};

const FILE: &str = "docs/support-matrix.md";

/// Writes the table and gives its path, if every suite was tested to its end.
pub(crate) fn write(runs: &[Run], plugin: &Path) -> Result<Option<&'static str>> {
    let outcomes: Vec<(&str, &Outcome)> =
        runs.iter().filter_map(|run| Some((run.suite.as_str(), run.outcome.as_ref().ok()?))).collect();
    if outcomes.len() != Suite::ALL.len() {
        return Ok(None);
    }
    let file = fs::read(plugin).with_context(|| plugin.display().to_string())?;
    let tested = Tested {
        date: said("date", &["-u", "+%Y-%m-%d"])?,
        commit: commit()?,
        sha256: Sha256::digest(&file).iter().fold(String::new(), |mut text, byte| {
            // Writing into a string can't fail.
            let _ = write!(text, "{byte:02x}");
            text
        }),
        size: file.len(),
    };
    fs::write(workspace().join(FILE), tested.page(&outcomes)).with_context(|| FILE.to_owned())?;
    Ok(Some(FILE))
}

/// What was tested, and when.
struct Tested {
    date: String,
    commit: String,
    sha256: String,
    size: usize,
}

impl Tested {
    fn page(&self, outcomes: &[(&str, &Outcome)]) -> String {
        let Self { date, commit, sha256, size } = self;
        let groups: BTreeSet<&String> =
            outcomes.iter().flat_map(|(_, outcome)| outcome.groups.keys()).collect();
        let column = |cells: Vec<String>| format!("| {} |\n", cells.join(" | "));
        let mut page = format!(
            "# Which Slurm the plugin was tested with\n\n\
             Written by `cargo xtask test --all-slurm`, which runs every test of `tests/tests/slurm.rs` with one \
             `spank_roce.so` in the\nSlurm that each Debian suite packages: a real slurmctld, slurmd, srun, sbatch and \
             salloc. A cell counts the tests of a\ngroup that passed; what failed or was skipped is said beside it.\n\n\
             - {date}, commit {commit}\n\
             - `spank_roce.so`: {size} bytes, sha256 `{sha256}`\n\n"
        );
        let head = ["suite", "Slurm", "glibc"].map(str::to_owned).into_iter();
        page +=
            &column(head.chain(groups.iter().map(ToString::to_string)).chain(["all".to_owned()]).collect());
        page += &column(vec!["---".to_owned(); groups.len() + 4]);
        for (suite, outcome) in outcomes {
            let start = [(*suite).to_owned(), outcome.slurm.clone(), outcome.glibc.clone()].into_iter();
            let cells = groups.iter().map(|group| outcome.groups.get(*group).copied().unwrap_or_default());
            page += &column(
                start.chain(cells.chain([outcome.total()]).map(|counts| counts.to_string())).collect(),
            );
        }
        page
    }
}

/// The commit that was built, and whether files differed from it.
fn commit() -> Result<String> {
    let commit = said("git", &["rev-parse", "--short=12", "HEAD"])?;
    let changed =
        said("git", &["status", "--porcelain", "--untracked-files=no", "--", ".", &format!(":!{FILE}")])?;
    Ok(if changed.is_empty() { commit } else { format!("{commit} with changes") })
}

/// What a short command prints.
fn said(program: &str, arguments: &[&str]) -> Result<String> {
    let output = Command::new(program).args(arguments).stdin(Stdio::null()).output();
    let output = output.with_context(|| program.to_owned())?;
    if !output.status.success() {
        bail!("{program} {}: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::super::outcome::Counts;
    use super::*;

    #[test]
    fn a_group_that_a_suite_lacks_and_a_failure_are_seen() {
        let counts = |passed, failed, skipped| Counts { passed, failed, skipped };
        let outcome = |slurm: &str, groups: &[(&str, Counts)]| Outcome {
            slurm: slurm.into(),
            glibc: "2.31".into(),
            groups: groups.iter().map(|(name, counts)| ((*name).to_owned(), *counts)).collect(),
            failures: Vec::new(),
        };
        let old = outcome("20.11.4", &[("a", counts(2, 1, 0))]);
        let new = outcome("26.05.5", &[("a", counts(3, 0, 0)), ("b", counts(0, 0, 1))]);
        let tested = Tested { date: "2026-01-01".into(), commit: "abc".into(), sha256: "00".into(), size: 7 };
        let page = tested.page(&[("old", &old), ("new", &new)]);
        let table: Vec<&str> = page.lines().filter(|line| line.starts_with('|')).collect();
        assert_eq!(
            table,
            [
                "| suite | Slurm | glibc | a | b | all |",
                "| --- | --- | --- | --- | --- | --- |",
                "| old | 20.11.4 | 2.31 | 2, **1 failed** | - | 2, **1 failed** |",
                "| new | 26.05.5 | 2.31 | 3 | 0, 1 skipped | 3, 1 skipped |",
            ]
        );
    }
}
