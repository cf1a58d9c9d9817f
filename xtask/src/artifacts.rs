//! What the guests run: the plugin and the example, built for release.

use anyhow::{Context, Result};
use roce_lab::{
    Interrupt,
    process::{run_logged, tied},
};
use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
};

/// The plugin's path, for tests. Set by hand, it is taken instead of one built here.
pub(crate) const PLUGIN: &str = "ROCE_PLUGIN";
/// The example's path, as above.
pub(crate) const PAIR_EXCHANGE: &str = "ROCE_PAIR_EXCHANGE";

/// rocectl's path, for tests, as above.
pub(crate) const ROCECTL: &str = "ROCE_ROCECTL";

/// The path of a plugin that panics on demand, for tests, as above.
pub(crate) const FAULTY_PLUGIN: &str = "ROCE_PLUGIN_FAULTY";

/// The files, as absolute paths.
#[derive(Debug, Clone)]
pub(crate) struct Artifacts {
    pub plugin: PathBuf,
    pub pair_exchange: PathBuf,
}

/// The workspace's folder.
pub(crate) fn workspace() -> &'static Path {
    let own = Path::new(env!("CARGO_MANIFEST_DIR"));
    own.parent().unwrap_or(own)
}

/// The cargo that runs this.
pub(crate) fn cargo() -> Command {
    tied(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
}

/// Builds both, unless the environment names them.
pub(crate) fn build(log: &Path, interrupt: &Interrupt) -> Result<Artifacts> {
    let (plugin, pair_exchange) = (given(PLUGIN)?, given(PAIR_EXCHANGE)?);
    if let (Some(plugin), Some(pair_exchange)) = (&plugin, &pair_exchange) {
        return Ok(Artifacts { plugin: plugin.clone(), pair_exchange: pair_exchange.clone() });
    }
    let mut command = cargo();
    command.args([
        "build",
        "--release",
        "-p",
        "spank-roce",
        "-p",
        "roce-examples",
        "--lib",
        "--bin",
        "pair_exchange",
    ]);
    run_logged("cargo build --release of the plugin and the example", command, log, interrupt)?;
    Ok(Artifacts {
        plugin: plugin.map_or_else(|| built("libspank_roce.so"), Ok)?,
        pair_exchange: pair_exchange.map_or_else(|| built("pair_exchange"), Ok)?,
    })
}

/// Builds the plugin alone, unless the environment names it.
pub(crate) fn build_plugin(log: &Path, interrupt: &Interrupt) -> Result<PathBuf> {
    if let Some(given) = given(PLUGIN)? {
        return Ok(given);
    }
    let mut command = cargo();
    command.args(["build", "--release", "-p", "spank-roce"]);
    run_logged("cargo build --release of the plugin", command, log, interrupt)?;
    built("libspank_roce.so")
}

/// Builds rocectl. In a build of its own: in one with the plugin, cargo would give the plugin the XML and archives that
/// rocectl reads.
pub(crate) fn build_rocectl(log: &Path, interrupt: &Interrupt) -> Result<PathBuf> {
    if let Some(given) = given(ROCECTL)? {
        return Ok(given);
    }
    let mut command = cargo();
    command.args(["build", "--release", "-p", "rocectl"]);
    run_logged("cargo build --release of rocectl", command, log, interrupt)?;
    built("rocectl")
}

/// Builds the plugin with the feature that panics on demand, in a folder of its own, so that it is never mistaken for the
/// real one. Here and not in the test: that runs as root, where there may be no compiler and whose files nobody else can
/// replace.
pub(crate) fn build_faulty_plugin(log: &Path, interrupt: &Interrupt) -> Result<PathBuf> {
    if let Some(given) = given(FAULTY_PLUGIN)? {
        return Ok(given);
    }
    let target = target().join("fault-injection");
    let mut command = cargo();
    command.args(["build", "-p", "spank-roce", "--features", "fault-injection", "--target-dir"]).arg(&target);
    run_logged("cargo build of a plugin that panics on demand", command, log, interrupt)?;
    let path = target.join("debug/libspank_roce.so");
    path.canonicalize().with_context(|| format!("cargo built no {}", path.display()))
}

/// Where cargo builds.
pub(crate) fn target() -> PathBuf {
    env::var_os("CARGO_TARGET_DIR").map_or_else(|| workspace().join("target"), PathBuf::from)
}

/// What cargo built for release.
pub(crate) fn built(name: &str) -> Result<PathBuf> {
    let path = target().join("release").join(name);
    path.canonicalize().with_context(|| format!("cargo built no {}", path.display()))
}

/// The file that an environment variable names.
fn given(variable: &str) -> Result<Option<PathBuf>> {
    let Some(path) = env::var_os(variable).map(PathBuf::from) else { return Ok(None) };
    path.canonicalize().map(Some).with_context(|| format!("{variable}={}", path.display()))
}
