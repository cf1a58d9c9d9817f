//! A Debian suite with its own Slurm, to run things in on this machine: no guest, but a root of its own.
//!
//! It is made once per suite and recipe. Each use gets a copy of it in memory, in namespaces of its own, so that a test
//! may install, break and leave behind in it what it likes.

use crate::{
    Error, Interrupt,
    process::{run_logged, tied_as_root},
    roots::{self, Bootstrap},
};
use std::{
    ffi::{OsStr, OsString},
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

/// libpmix-dev brings what `srun --mpi=pmix` and its ranks load: libpmix.so.2, and libpmix.so for Slurm 22.05.
const PACKAGES: &str =
    "slurmd,slurmctld,slurm-client,munge,util-linux,procps,iproute2,strace,rpm,libpmix-dev";
/// What the tests run as. From 26.05 on Slurm holds a job of `sbatch --export=NONE` whose user can't log in.
const LET_NOBODY_LOG_IN: &str = "chroot \"$1\" usermod --shell /bin/bash nobody";
const ENTER: &str = include_str!("../suite/enter.sh");

/// A suite's root, made.
#[derive(Debug, Clone)]
pub struct Suite {
    name: String,
    folder: PathBuf,
}

impl Suite {
    /// Debian's suites whose Slurm the plugin is for: 20.11, 22.05, 24.11 and 26.05.
    pub const ALL: [&'static str; 4] = ["bullseye", "bookworm", "trixie", "forky"];

    /// Finds the root of a Debian suite in `cache`, or makes it there, which takes a quarter of a minute and needs root
    /// (sudo).
    ///
    /// # Errors
    /// [`Error::NoMirror`]; [`Error::Program`] if mmdebstrap fails, with its log; [`Error::Interrupted`].
    pub fn ensure(cache: &Path, name: &str, interrupt: &Interrupt) -> Result<Self, Error> {
        let folder = roots::folder(cache, &format!("suite.{name}"), &[PACKAGES, LET_NOBODY_LOG_IN])?;
        roots::once(&folder, interrupt, |partial, log| {
            // Where it is mounted, in a namespace that nobody else sees.
            let mount = partial.join("root");
            fs::create_dir(&mount).map_err(Error::file("create", &mount))?;
            let bootstrap = Bootstrap::new(name, PACKAGES)?.hook(LET_NOBODY_LOG_IN);
            let command = bootstrap.command(&partial.join("root.tar"));
            run_logged(&format!("mmdebstrap (making the root of {name})"), command, log, interrupt)
        })?;
        Ok(Self { name: name.into(), folder })
    }

    /// The suite's name, such as `trixie`.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// A command that runs `command` as root in a copy of the suite, with these files of the machine at these paths
    /// there, for at most `limit`: it is killed then, with exit code 124 or 137. Nothing of it outlives the command.
    #[must_use]
    pub fn command<'a>(
        &self,
        files: impl IntoIterator<Item = (&'a Path, &'a str)>,
        limit: Duration,
        command: impl IntoIterator<Item = impl AsRef<OsStr>>,
    ) -> Command {
        let mut enter = tied_as_root("unshare");
        enter
            .args(["--mount", "--pid", "--net", "--ipc", "--uts", "--fork", "--kill-child=KILL", "--"])
            .args(["sh", "-c", ENTER, "enter.sh"])
            .arg(&self.folder)
            .args([&self.name, &limit.as_secs().to_string()]);
        for (file, inside) in files {
            enter.arg(file).arg(inside);
        }
        // sudo hands no environment on, and what is run shall not depend on this machine's.
        let path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
        enter.args(["--", "env", "-i", path, "HOME=/root", "LC_ALL=C.UTF-8"]);
        enter.args(command.into_iter().map(|word| OsString::from(word.as_ref())));
        enter
    }
}
