//! Tests that cross crates: the plugin in real Slurm, the whole path in the lab.
//!
//! Here is what the tiers share: where the built programs are, and what becomes of a test that can't run.

pub mod soak;

use libtest_mimic::{Completion, Failed};
use std::{
    env,
    path::{Path, PathBuf},
};

/// What a test that can't run on this machine returns: a skip with its reason, or a failure if `ROCE_REQUIRE` (a list
/// such as `slurm,lab`) names the tier.
///
/// # Errors
/// The failure.
pub fn skipped(tier: &str, reason: &str) -> Result<Completion, Failed> {
    let required = env::var("ROCE_REQUIRE").unwrap_or_default();
    if required.split(',').any(|name| name.trim() == tier) {
        return Err(format!("ROCE_REQUIRE={required}, but this can't run: {reason}").into());
    }
    Ok(Completion::ignored_with(reason))
}

/// A program that was built for release: the path in the environment variable, which `cargo xtask test` sets, or the file
/// of this name where cargo builds it.
///
/// # Errors
/// A text that says how to build it.
pub fn artifact(variable: &str, name: &str) -> Result<PathBuf, String> {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let target = env::var_os("CARGO_TARGET_DIR").map_or_else(|| workspace.join("target"), PathBuf::from);
    let path = env::var_os(variable).map_or_else(|| target.join("release").join(name), PathBuf::from);
    path.canonicalize().map_err(|error| {
        format!("{}: {error}; run `cargo xtask test`, or build it and set {variable}", path.display())
    })
}

/// `target/` of the workspace, for what a test leaves behind.
#[must_use]
pub fn target() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../target")
}
