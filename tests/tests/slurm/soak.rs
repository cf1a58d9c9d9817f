//! The short form of `cargo xtask soak steps`, as a program of its own with a cluster of its own.

use std::path::Path;
use std::process::Command;

use anyhow::{Result, ensure};

use crate::Test;
use crate::cluster::{Cluster, program_path};
use crate::prerequisites;

const TESTS: &[(&str, Test)] =
    &[("forty_steps_with_random_faults_leave_a_whole_node_and_say_why_they_failed", soak)];

/// None where only this program was brought to, as into the root of another Debian suite.
pub(crate) fn tests() -> &'static [(&'static str, Test)] {
    if Path::new(PROGRAM).exists() { TESTS } else { &[] }
}

const PROGRAM: &str = env!("CARGO_BIN_EXE_soak-steps");

fn soak(_: &Cluster) -> Result<()> {
    let output = Command::new(PROGRAM)
        .args(["40", "4"])
        .env("ROCE_PLUGIN", prerequisites::plugin()?)
        .env("PATH", program_path())
        .output()?;
    let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
    ensure!(output.status.success(), "{}{}", text(&output.stdout), text(&output.stderr));
    Ok(())
}
