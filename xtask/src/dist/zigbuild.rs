//! cargo-zigbuild: cargo with a linker that has every glibc's symbol lists, so that what is built here runs there.
//!
//! It and its linker (zig) are wheels of PyPI, which pip puts into a virtual environment of python's below `target/tools`,
//! once for each change of `xtask/zigbuild.txt`.

use crate::{artifacts::target, packages, progress::Progress};
use anyhow::{Context, Result, bail};
use roce_lab::{
    Interrupt,
    packages::Need,
    process::{run_logged, tied},
    roots,
};
use std::{
    env,
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

/// The oldest glibc that what is released runs with: that of RHEL 8. Debian 11 has 2.31.
pub(crate) const GLIBC: (u32, u32) = (2, 28);

const REQUIREMENTS: &str = include_str!("../../zigbuild.txt");

/// The tool, installed.
#[derive(Debug, Clone)]
pub(crate) struct Zigbuild {
    folder: PathBuf,
}

impl Zigbuild {
    /// Finds the tool, or installs it.
    pub(crate) fn ensure(progress: &Progress, interrupt: &Interrupt) -> Result<Self> {
        let tools = target().join("tools");
        let folder = tools.join(format!("zigbuild.{:016x}", roots::fnv1a(REQUIREMENTS.as_bytes())));
        let tool = Self { folder };
        fs::create_dir_all(&tools).with_context(|| tools.display().to_string())?;
        let _held = roots::lock(&tools.join("lock"), interrupt)?;
        if !tool.finished().exists() {
            let python = python(progress, interrupt)?;
            let step = progress.step("installing, once, cargo-zigbuild and zig from PyPI");
            tool.install(python, &tools.join("zigbuild.log"), interrupt)?;
            step.done("");
        }
        Ok(tool)
    }

    fn install(&self, python: &str, log: &Path, interrupt: &Interrupt) -> Result<()> {
        let path = self.folder.display();
        if self.folder.exists() {
            fs::remove_dir_all(&self.folder)
                .with_context(|| format!("removing {path}, which is not whole"))?;
        }
        // A virtual environment can't be renamed: its scripts hold its path. So the last step says that it is whole.
        let mut environment = tied(python);
        environment.args(["-m", "venv"]).arg(&self.folder);
        run_logged("python3 -m venv", environment, log, interrupt)?;
        let requirements = self.folder.join("requirements.txt");
        fs::write(&requirements, REQUIREMENTS)
            .with_context(|| format!("writing {}", requirements.display()))?;
        let mut pip = tied(self.folder.join("bin/python"));
        pip.args(["-m", "pip", "install", "--no-input", "--only-binary=:all:", "--require-hashes", "-r"])
            .arg(&requirements);
        run_logged("pip install of cargo-zigbuild and zig", pip, log, interrupt)?;
        fs::write(self.finished(), "").with_context(|| format!("writing into {path}"))
    }

    /// Is there once everything else is.
    fn finished(&self) -> PathBuf {
        self.folder.join("finished")
    }

    /// `cargo COMMAND` for the released files' target. Its output is below the folder `output` of [`triple`].
    pub(crate) fn cargo(&self, command: &str) -> Command {
        let (major, minor) = GLIBC;
        let bin = self.folder.join("bin");
        let mut cargo = tied(bin.join("cargo-zigbuild"));
        cargo.args([command, "--target", &format!("{}.{major}.{minor}", triple())]);
        // It finds zig as a module of the first python3.
        let path = env::var_os("PATH").unwrap_or_default();
        let folders = [bin].into_iter().chain(env::split_paths(&path));
        cargo.env("PATH", env::join_paths(folders).unwrap_or(path));
        // Where the build ran is nobody's business, and the same sources give the same file in every folder.
        let home = env::var_os("CARGO_HOME").map(PathBuf::from);
        let home = home.or_else(|| env::home_dir().map(|home| home.join(".cargo")));
        let mut flags = OsString::from("--remap-path-prefix=");
        flags.push(crate::artifacts::workspace());
        flags.push("=.");
        if let Some(home) = home {
            flags.push("\u{1f}--remap-path-prefix=");
            flags.push(home.join("registry/src"));
            flags.push("=registry");
        }
        cargo.env_remove("RUSTFLAGS").env("CARGO_ENCODED_RUSTFLAGS", flags);
        cargo
    }
}

/// The target as rustc names it: this machine's architecture.
pub(crate) fn triple() -> String {
    format!("{}-unknown-linux-gnu", env::consts::ARCH)
}

/// A python that can make virtual environments: whichever comes first in the path, or else Debian's, for which it takes a
/// package.
fn python(progress: &Progress, interrupt: &Interrupt) -> Result<&'static str> {
    let works = |python: &&str| {
        let mut probe = Command::new(python);
        probe.args(["-c", "import venv, ensurepip"]).stdin(Stdio::null()).stderr(Stdio::null());
        probe.status().is_ok_and(|status| status.success())
    };
    let candidates = ["python3", "/usr/bin/python3"];
    if let Some(python) = candidates.into_iter().find(works) {
        return Ok(python);
    }
    packages::ensure(Need::Dist, progress, interrupt)?;
    match candidates.into_iter().find(works) {
        Some(python) => Ok(python),
        None => bail!("no python3 that can make virtual environments (`python3 -m venv`); install one"),
    }
}
