//! `cargo xtask package`: the released files as a Debian package and an RPM.
//!
//! What goes where is said in spank-plugin/Cargo.toml; the scripts that run on installation and removal are in
//! packaging/.

use crate::{
    artifacts::{cargo, target, workspace},
    dist::{self, Zigbuild},
    packages,
    progress::Progress,
};
use anyhow::{Context, Result, ensure};
use roce_lab::{Interrupt, packages::Need, process::run_logged};
use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
};

/// The makers of the packages, by cargo's name for them.
const CARGO_DEB: Tool = Tool { name: "cargo-deb", version: "3.8.0" };
const CARGO_GENERATE_RPM: Tool = Tool { name: "cargo-generate-rpm", version: "0.21.1" };

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Distinguishes packages of one version: spank-roce 0.1.0-REVISION
    #[arg(long, default_value_t = 1)]
    revision: u32,
}

/// The packages' paths.
#[derive(Debug, Clone)]
pub(crate) struct Packages {
    pub deb: PathBuf,
    pub rpm: PathBuf,
}

pub(crate) fn run(arguments: &Arguments, interrupt: &Interrupt) -> Result<ExitCode> {
    let progress = Progress::new();
    packages::ensure(Need::Demo, &progress, interrupt)?;
    let tool = Zigbuild::ensure(&progress, interrupt)?;
    let packages = build(arguments.revision, &tool, &progress, interrupt)?;
    progress.line(format!("{}\n{}", packages.deb.display(), packages.rpm.display()));
    Ok(ExitCode::SUCCESS)
}

/// Makes both, of the released files.
pub(crate) fn build(
    revision: u32,
    tool: &Zigbuild,
    progress: &Progress,
    interrupt: &Interrupt,
) -> Result<Packages> {
    let arch = std::env::consts::ARCH;
    ensure!(arch == "x86_64", "the packages' paths are those of x86_64; this machine is {arch}");
    dist::plugin(tool, progress, interrupt)?;
    let rocectl = dist::rocectl(tool, progress, interrupt)?;
    let folder = dist::folder();
    let log = folder.join("package.log");
    let step = progress.step(format!("making the packages of revision {revision}"));
    manuals(&rocectl, &folder, &log, interrupt)?;
    let version = env!("CARGO_PKG_VERSION");
    let packages = Packages {
        deb: folder.join(format!("spank-roce_{version}-{revision}_amd64.deb")),
        rpm: folder.join(format!("spank-roce-{version}-{revision}.x86_64.rpm")),
    };
    let mut make = in_workspace(&CARGO_DEB.installed(&log, interrupt)?);
    // The files are stripped already.
    make.args(["--package", "spank-roce", "--no-build", "--no-strip", "--deb-revision"]);
    make.arg(revision.to_string()).arg("--output").arg(&packages.deb);
    run_logged("cargo deb", make, &log, interrupt)?;
    let mut make = in_workspace(&CARGO_GENERATE_RPM.installed(&log, interrupt)?);
    make.args(["generate-rpm", "--package", "spank-plugin", "--set-metadata"]);
    make.arg(format!("release = \"{revision}\"")).arg("--output").arg(&packages.rpm);
    run_logged("cargo generate-rpm", make, &log, interrupt)?;
    step.done("");
    Ok(packages)
}

/// rocectl writes its own man pages and completions.
fn manuals(rocectl: &Path, folder: &Path, log: &Path, interrupt: &Interrupt) -> Result<()> {
    let man = folder.join("man");
    let completions = folder.join("completions");
    for made in [&man, &completions] {
        // A page of a subcommand that is gone must not be packed.
        let _ = fs::remove_dir_all(made);
        fs::create_dir_all(made).with_context(|| made.display().to_string())?;
    }
    let mut write = roce_lab::process::tied(rocectl);
    write.arg("man").arg(&man);
    run_logged("rocectl man", write, log, interrupt)?;
    for shell in ["bash", "zsh", "fish"] {
        let script = Command::new(rocectl).args(["completions", shell]).output()?;
        let path = completions.join(format!("rocectl.{shell}"));
        fs::write(&path, script.stdout).with_context(|| path.display().to_string())?;
    }
    Ok(())
}

/// A cargo subcommand from crates.io, kept in target/tools.
struct Tool {
    name: &'static str,
    version: &'static str,
}

impl Tool {
    /// Its path; built first where this version isn't there.
    fn installed(&self, log: &Path, interrupt: &Interrupt) -> Result<PathBuf> {
        let root = target().join("tools");
        let path = root.join("bin").join(self.name);
        let mark = root.join(format!("{}.version", self.name));
        if path.exists() && fs::read_to_string(&mark).is_ok_and(|version| version == self.version) {
            return Ok(path);
        }
        let mut install = cargo();
        // Optimising them would take minutes, and they have a few megabytes to compress.
        install.args(["install", "--locked", "--debug", "--root"]);
        install.arg(&root).args(["--version", self.version, self.name]);
        run_logged(&format!("cargo install {}", self.name), install, log, interrupt)?;
        fs::write(&mark, self.version).with_context(|| mark.display().to_string())?;
        Ok(path)
    }
}

fn in_workspace(program: &Path) -> Command {
    let mut command = roce_lab::process::tied(program);
    command.current_dir(workspace());
    command
}
