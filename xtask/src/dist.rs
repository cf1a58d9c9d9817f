//! `cargo xtask dist`: the files that are released, built for glibc 2.28 and every newer one, in `target/dist`.
//!
//! Tests run these very files. Each is looked into before it gets its name there: see [`check`].

mod check;
mod stubs;
mod zigbuild;

pub(crate) use zigbuild::Zigbuild;

use crate::{
    artifacts::{self, target, workspace},
    progress::Progress,
};
use anyhow::{Context, Result, ensure};
use roce_lab::{Interrupt, process::run_logged};
use std::{
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
};

/// Builds everything that is released.
pub(crate) fn run(interrupt: &Interrupt) -> Result<ExitCode> {
    let progress = Progress::new();
    let tool = Zigbuild::ensure(&progress, interrupt)?;
    for file in [plugin(&tool, &progress, interrupt)?, rocectl(&tool, &progress, interrupt)?] {
        println!("{}", file.strip_prefix(workspace()).unwrap_or(&file).display());
    }
    Ok(ExitCode::SUCCESS)
}

/// The plugin as it is released, or the one that the environment names.
pub(crate) fn plugin_or_given(
    tool: &Zigbuild,
    progress: &Progress,
    interrupt: &Interrupt,
) -> Result<PathBuf> {
    artifacts::given(artifacts::PLUGIN)?.map_or_else(|| plugin(tool, progress, interrupt), Ok)
}

/// rocectl that the tests run: the one that the environment names, or as it is released.
pub(crate) fn rocectl_or_given(
    tool: &Zigbuild,
    progress: &Progress,
    interrupt: &Interrupt,
) -> Result<PathBuf> {
    artifacts::given(artifacts::ROCECTL)?.map_or_else(|| rocectl(tool, progress, interrupt), Ok)
}

/// The plugin as it is released. In a build of its own: in one with rocectl, cargo would give it the XML and archives that
/// rocectl reads.
pub(crate) fn plugin(tool: &Zigbuild, progress: &Progress, interrupt: &Interrupt) -> Result<PathBuf> {
    let step = progress.step("building spank_roce.so for glibc 2.28");
    let built = without_stubs(&build(tool, "spank-roce", "libspank_roce.so", interrupt)?)?;
    check::plugin(&built)?;
    let file = place(&built, &folder(), "spank_roce.so")?;
    step.done(&size(&file)?);
    Ok(file)
}

/// The plugin without what it doesn't really need, beside what cargo built.
fn without_stubs(built: &Path) -> Result<PathBuf> {
    let path = built.with_file_name("spank_roce.so");
    let write = || {
        let mut bytes = fs::read(built)?;
        stubs::drop_stubs(&mut bytes)?;
        anyhow::Ok(fs::write(&path, bytes)?)
    };
    write().with_context(|| format!("making {} of {}", path.display(), built.display()))?;
    Ok(path)
}

/// rocectl as it is released.
pub(crate) fn rocectl(tool: &Zigbuild, progress: &Progress, interrupt: &Interrupt) -> Result<PathBuf> {
    let step = progress.step("building rocectl for glibc 2.28");
    let built = build(tool, "rocectl", "rocectl", interrupt)?;
    check::program(&built)?;
    let file = place(&built, &folder(), "rocectl")?;
    step.done(&size(&file)?);
    Ok(file)
}

/// Builds a package alone and gives where cargo puts `name`.
fn build(tool: &Zigbuild, package: &str, name: &str, interrupt: &Interrupt) -> Result<PathBuf> {
    // A folder of its own: cargo would put a profile `dist` into the very target/dist that holds what is released.
    let target = target().join("zigbuild");
    let mut command = tool.cargo("zigbuild");
    command.args(["--profile", "dist", "-p", package, "--target-dir"]).arg(&target);
    run_logged(&format!("cargo zigbuild of {package}"), command, &log()?, interrupt)?;
    Ok(target.join(zigbuild::triple()).join("dist").join(name))
}

/// The plugin with the feature that panics on demand, for tests, in a folder of its own, so that it is never mistaken for
/// the real one. Built here and not in the test: that runs as root, where there may be no compiler and whose files nobody
/// else can replace.
pub(crate) fn faulty_plugin(tool: &Zigbuild, progress: &Progress, interrupt: &Interrupt) -> Result<PathBuf> {
    if let Some(given) = artifacts::given(artifacts::FAULTY_PLUGIN)? {
        return Ok(given);
    }
    let step = progress.step("building a plugin that panics on demand");
    let mut command = tool.cargo("zigbuild");
    command.args(["-p", "spank-roce", "--features", "fault-injection"]);
    run_logged("cargo zigbuild of a plugin that panics on demand", command, &log()?, interrupt)?;
    let built = target().join(zigbuild::triple()).join("debug/libspank_roce.so");
    let bytes = fs::read(&built).with_context(|| built.display().to_string())?;
    ensure!(
        check::breaks_on_demand(&bytes),
        "{} panics on demand, and nothing would keep it from being released: the check in xtask/src/dist/check.rs is blind",
        built.display()
    );
    let file = place(&built, &target().join("fault-injection"), "spank_roce.so")?;
    step.done("");
    Ok(file)
}

/// Where the released files are.
pub(crate) fn folder() -> PathBuf {
    target().join("dist")
}

/// Copies a file to its name in `folder`, by rename: a test that runs keeps the old one.
fn place(built: &Path, folder: &Path, name: &str) -> Result<PathBuf> {
    let (file, new) = (folder.join(name), folder.join(format!(".{name}.new")));
    let copy = || {
        fs::create_dir_all(folder)?;
        fs::copy(built, &new)?;
        fs::rename(&new, &file)
    };
    copy().with_context(|| format!("writing {}", file.display()))?;
    Ok(file)
}

fn size(file: &Path) -> Result<String> {
    let bytes = fs::metadata(file).with_context(|| file.display().to_string())?.len();
    Ok(format!("{:.2} MiB", bytes as f64 / f64::from(1 << 20)))
}

fn log() -> Result<PathBuf> {
    let target = target();
    fs::create_dir_all(&target).with_context(|| target.display().to_string())?;
    Ok(target.join("dist.log"))
}
