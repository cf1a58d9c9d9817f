//! Who needs the class: a slurmstepd, told from any other process that may have its number later.

use std::path::Path;

use serde::{Deserialize, Serialize};

/// A process, and the step that it runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Owner {
    /// Its number.
    pub pid: u32,
    /// When it started, in clock ticks since boot (`/proc/PID/stat`, field 22).
    pub(crate) started: u64,
    /// The step, such as `17.0`.
    pub step: String,
}

impl Owner {
    /// The calling process; `None` if /proc doesn't tell when it started.
    #[must_use]
    pub fn this_process(step: String) -> Option<Self> {
        let pid = std::process::id();
        Some(Self { pid, started: started(pid)?, step })
    }

    /// Is it still there? One that can't be looked at is taken for gone: root can look at every one.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        started(self.pid) == Some(self.started)
    }
}

/// When a process started; nothing if it has ended, though nobody has waited for it yet.
fn started(pid: u32) -> Option<u64> {
    let stat = std::fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("stat")).ok()?;
    // The name is in brackets and may hold anything; behind it come field 3, the state, and the others.
    let mut fields = stat[stat.rfind(')')? + 1..].split_ascii_whitespace();
    let state = fields.next()?;
    (!matches!(state, "Z" | "X")).then(|| fields.nth(18)?.parse().ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_told_from_a_later_one_of_the_same_number() {
        let own = Owner::this_process("1.0".to_owned()).unwrap();
        assert!(own.is_alive());
        assert!(!Owner { started: own.started - 1, ..own }.is_alive());
    }

    #[test]
    fn one_that_has_ended_is_gone_before_anybody_waits_for_it() {
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let start = std::time::Instant::now();
        while started(child.id()).is_some() {
            assert!(start.elapsed().as_secs() < 10);
            std::thread::yield_now();
        }
        child.wait().unwrap();
        assert_eq!(started(child.id()), None);
    }
}
