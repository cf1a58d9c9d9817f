//! What the tests with real Slurm say: one line about the cluster, then libtest's JSON, a line per event.

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::{collections::BTreeMap, fmt};

/// How many tests ended how.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub passed: u32,
    pub failed: u32,
    pub skipped: u32,
}

/// The tests in one suite.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Outcome {
    /// As the running slurmctld told: `22.05.8`.
    pub slurm: String,
    /// `2.36`.
    pub glibc: String,
    /// By group: what stands before `::` in a test's name.
    pub groups: BTreeMap<String, Counts>,
    /// Name and reason.
    pub failures: Vec<(String, String)>,
}

impl Outcome {
    /// Reads a test program's output.
    pub(crate) fn parse(text: &str) -> Result<Self> {
        let cluster = text.lines().find_map(|line| line.strip_prefix("slurmctld "));
        let (slurm, glibc) =
            cluster.and_then(|cluster| cluster.split_once(", glibc ")).context("no cluster was started")?;
        let mut outcome = Self { slurm: slurm.into(), glibc: glibc.into(), ..Self::default() };
        let mut is_finished = false;
        for line in text.lines().filter(|line| line.starts_with('{')) {
            // A daemon's line may start so too.
            let Ok(event) = serde_json::from_str::<Value>(line) else { continue };
            match event["type"].as_str() {
                Some("test") => outcome.add(&event),
                Some("suite") => is_finished = event["event"] != "started",
                _ => {}
            }
        }
        ensure!(is_finished, "the tests ended in the middle");
        ensure!(!outcome.groups.is_empty(), "no test was run");
        Ok(outcome)
    }

    fn add(&mut self, event: &Value) {
        let name = event["name"].as_str().unwrap_or_default();
        let group = name.split_once("::").map_or(name, |(group, _)| group);
        let counts = self.groups.entry(group.to_owned()).or_default();
        match event["event"].as_str() {
            Some("ok") => counts.passed += 1,
            Some("ignored") => counts.skipped += 1,
            Some("failed") => {
                counts.failed += 1;
                let reason = event["stdout"].as_str().unwrap_or_default();
                self.failures.push((name.to_owned(), reason.to_owned()));
            }
            _ => {}
        }
    }

    /// Over all groups.
    pub(crate) fn total(&self) -> Counts {
        self.groups.values().fold(Counts::default(), |sum, counts| Counts {
            passed: sum.passed + counts.passed,
            failed: sum.failed + counts.failed,
            skipped: sum.skipped + counts.skipped,
        })
    }

    /// Did each pass or have a reason not to run?
    pub(crate) fn is_ok(&self) -> bool {
        self.total().failed == 0
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Counts { passed, failed, skipped } = self.total();
        write!(
            f,
            "Slurm {}, glibc {}: {passed} passed, {failed} failed, {skipped} skipped",
            self.slurm, self.glibc
        )
    }
}

/// For a cell of a table.
impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { passed, failed, skipped } = self;
        if *self == Self::default() {
            return f.write_str("-");
        }
        write!(f, "{passed}")?;
        if *failed > 0 {
            write!(f, ", **{failed} failed**")?;
        }
        if *skipped > 0 {
            write!(f, ", {skipped} skipped")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OUTPUT: &str = r#"slurmctld 22.05.8, glibc 2.36
{ "type": "suite", "event": "started", "test_count": 3 }
{ "type": "test", "event": "started", "name": "a::one" }
{ "type": "test", "name": "a::one", "event": "ok" }
{ "type": "test", "name": "a::two", "event": "failed", "stdout": "Error: \"no\"\n" }
{ "type": "test", "name": "b::three", "event": "ignored" }
"#;
    const END: &str = r#"{ "type": "suite", "event": "failed", "passed": 1 }"#;

    #[test]
    fn tests_are_counted_by_group() -> Result<()> {
        let outcome = Outcome::parse(&format!("{OUTPUT}{END}"))?;
        assert_eq!(outcome.to_string(), "Slurm 22.05.8, glibc 2.36: 1 passed, 1 failed, 1 skipped");
        assert_eq!(outcome.groups["a"], Counts { passed: 1, failed: 1, skipped: 0 });
        assert_eq!(outcome.failures, [("a::two".to_owned(), "Error: \"no\"\n".to_owned())]);
        assert!(!outcome.is_ok());
        Ok(())
    }

    #[test]
    fn a_run_that_broke_off_or_ran_nothing_is_an_error() {
        for (output, reason) in [
            (OUTPUT.to_owned(), "the tests ended in the middle"),
            (format!("slurmctld 1, glibc 2\n{END}"), "no test was run"),
            ("the cluster did not start".to_owned(), "no cluster was started"),
        ] {
            assert_eq!(Outcome::parse(&output).unwrap_err().to_string(), reason);
        }
    }
}
