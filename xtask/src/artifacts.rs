//! What tests and guests run, and where it is.

use anyhow::{Context, Result, bail};
use roce_lab::{
    Interrupt, Process,
    process::{run_logged, tied},
};
use serde_json::Value;
use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

/// The plugin's path, for tests. Set by hand, it is taken instead of one built here.
pub(crate) const PLUGIN: &str = "ROCE_PLUGIN";
/// The example's path, as above.
pub(crate) const PAIR_EXCHANGE: &str = "ROCE_PAIR_EXCHANGE";
/// The same of the example who.
pub(crate) const WHO: &str = "ROCE_WHO";
/// The same of the example heat.
pub(crate) const HEAT: &str = "ROCE_HEAT";
/// The same of all examples that guests run, and their names.
const EXAMPLES: [(&str, &str); 7] = [
    (PAIR_EXCHANGE, "pair_exchange"),
    (WHO, "who"),
    (HEAT, "heat"),
    ("ROCE_CONJUGATE_GRADIENT", "conjugate_gradient"),
    ("ROCE_NBODY", "nbody"),
    ("ROCE_SORT", "sort"),
    ("ROCE_PARAMETER_SERVER", "parameter_server"),
];
/// The same of tests that guests run too, with their packages and names.
const TESTS: [(&str, &str, &str); 5] = [
    ("ROCE_MESSAGES", "roce-launcher", "messages"),
    ("ROCE_COLLECTIVES", "roce-launcher", "collectives"),
    ("ROCE_WINDOWS", "roce-launcher", "windows"),
    ("ROCE_FAULTS", "roce-launcher", "faults"),
    ("ROCE_SOFT_ROCE", "roce-verbs", "soft_roce"),
];

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

/// Builds the programs for guests that the environment does not name: examples, and tests.
pub(crate) fn build_examples(log: &Path, interrupt: &Interrupt) -> Result<Vec<(&'static str, PathBuf)>> {
    let mut programs = Vec::new();
    for (variable, name) in EXAMPLES {
        let path = match given(variable)? {
            Some(path) => path,
            None => {
                let mut command = cargo();
                command.args(["build", "--release", "-p", "roce-examples", "--bin", name]);
                run_logged("cargo build --release of the examples", command, log, interrupt)?;
                built(name)?
            }
        };
        programs.push((variable, path));
    }
    for (variable, package, name) in TESTS {
        let build = || build_test(package, name, log, interrupt);
        programs.push((variable, given(variable)?.map_or_else(build, Ok)?));
    }
    Ok(programs)
}

/// Cargo gives tests names that change; this one is copied to one that does not.
fn build_test(package: &str, name: &str, log: &Path, interrupt: &Interrupt) -> Result<PathBuf> {
    let list = target().join("guest-test.json");
    let mut command = cargo();
    command.args(["test", "--no-run", "--release", "-p", package, "--test", name]);
    command.arg("--message-format=json-render-diagnostics");
    let create = |path: &Path| fs::File::create(path).with_context(|| path.display().to_string());
    command.stdout(create(&list)?).stderr(create(log)?);
    if !Process::spawn(command)?.wait(interrupt)?.success() {
        bail!("cargo test --no-run of {package}'s {name} failed; see {}", log.display());
    }
    let text = fs::read_to_string(&list)?;
    let executable = text.lines().find_map(|line| {
        let message: Value = serde_json::from_str(line).ok()?;
        let is_it = message["target"]["name"] == name && message["target"]["kind"][0] == "test";
        message["executable"].as_str().filter(|_| is_it).map(PathBuf::from)
    });
    let executable = executable.with_context(|| format!("{} names no test program", list.display()))?;
    let path = target().join("release").join(name);
    fs::copy(&executable, &path).with_context(|| executable.display().to_string())?;
    Ok(path)
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
