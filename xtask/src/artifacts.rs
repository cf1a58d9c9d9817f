//! What tests and guests run, and where it is.

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
/// The same of the example who.
pub(crate) const WHO: &str = "ROCE_WHO";

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

/// Builds the examples that the environment does not name.
pub(crate) fn build_examples(log: &Path, interrupt: &Interrupt) -> Result<[(&'static str, PathBuf); 2]> {
    let (pair_exchange, who) = (given(PAIR_EXCHANGE)?, given(WHO)?);
    if pair_exchange.is_none() || who.is_none() {
        let mut command = cargo();
        command.args(["build", "--release", "-p", "roce-examples", "--bin", "pair_exchange", "--bin", "who"]);
        run_logged("cargo build --release of the examples", command, log, interrupt)?;
    }
    Ok([
        (PAIR_EXCHANGE, pair_exchange.map_or_else(|| built("pair_exchange"), Ok)?),
        (WHO, who.map_or_else(|| built("who"), Ok)?),
    ])
}

/// Where cargo builds, as an absolute path.
pub(crate) fn target() -> PathBuf {
    env::var_os("CARGO_TARGET_DIR")
        .map_or_else(|| workspace().join("target"), |target| workspace().join(target))
}

/// What cargo built for release.
pub(crate) fn built(name: &str) -> Result<PathBuf> {
    let path = target().join("release").join(name);
    path.canonicalize().with_context(|| format!("cargo built no {}", path.display()))
}

/// The file that an environment variable names.
pub(crate) fn given(variable: &str) -> Result<Option<PathBuf>> {
    let Some(path) = env::var_os(variable).map(PathBuf::from) else { return Ok(None) };
    path.canonicalize().map(Some).with_context(|| format!("{variable}={}", path.display()))
}
