//! How long each hook takes, called by a program that plays Slurm.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

use crate::report::Case;

/// What a step may cost more, in nanoseconds: no single hook may take all of it.
const LIMIT_NS: f64 = 1_000_000.0;

/// Has `host` play that many steps, with and without an option.
pub(crate) fn run(host: &Path, plugin: &Path, steps: usize) -> Result<Vec<Case>> {
    let output = Command::new(host)
        .args(["time", &steps.to_string()])
        .env("ROCE_PLUGIN", plugin)
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| host.display().to_string())?;
    ensure!(output.status.success(), "{}: {}", host.display(), output.status);
    let times: BTreeMap<String, Vec<f64>> = serde_json::from_slice(&output.stdout)?;
    let case = |(hook, times)| {
        let name = format!("hook {hook}");
        Case::less_is_better(&name, "1 ms", "ns", times, vec![LIMIT_NS], Some(1.0))
    };
    Ok(times.into_iter().map(case).collect())
}
