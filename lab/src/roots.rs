//! Folders that are made once, kept, and made again only when their recipe changes: guests' roots, suites' roots, tools.

use crate::{
    Error, Interrupt, mirror,
    packages::{Distribution, authorise},
    process::{run_logged, tied_as_root},
};
use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
};
use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

/// Waits for a lock file and holds it until the value is dropped: two runs at once must not make the same thing.
///
/// # Errors
/// [`Error::File`] if the file can't be made or locked; [`Error::Interrupted`].
pub fn lock(path: &Path, interrupt: &Interrupt) -> Result<Flock<File>, Error> {
    let mut file = File::create(path).map_err(Error::file("create", path))?;
    loop {
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(held) => return Ok(held),
            Err((unlocked, Errno::EWOULDBLOCK)) => file = unlocked,
            Err((_, error)) => return Err(Error::file("lock", path)(error.into())),
        }
        interrupt.sleep(Duration::from_millis(200))?;
    }
}

/// FNV-1a, for names of folders: the standard library promises no hash that stays the same from release to release.
#[must_use]
pub fn fnv1a(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

/// Where the folder of a recipe is in `cache`, or will be.
pub(crate) fn folder(cache: &Path, name: &str, recipe: &[&str]) -> Result<PathBuf, Error> {
    fs::create_dir_all(cache).map_err(Error::file("create", cache))?;
    let cache = cache.canonicalize().map_err(Error::file("find", cache))?;
    Ok(cache.join(format!("{name}.{:016x}", fnv1a(recipe.join("\0").as_bytes()))))
}

/// Makes `folder` unless it is there: `fill` is given a folder of another name, which is renamed when all of it is there,
/// and a file for its output. What an interrupted run leaves is never taken for the whole, and the next run removes it.
pub(crate) fn once(
    folder: &Path,
    interrupt: &Interrupt,
    fill: impl FnOnce(&Path, &Path) -> Result<(), Error>,
) -> Result<(), Error> {
    let _held = lock(&folder.with_extension("lock"), interrupt)?;
    if folder.exists() {
        return Ok(());
    }
    authorise()?;
    let partial = folder.with_extension("partial");
    let log = folder.with_extension("log");
    remove(&partial, &log)?;
    fs::create_dir_all(&partial).map_err(Error::file("create", &partial))?;
    let made = fill(&partial, &log);
    if made.is_err() {
        // The reason is what `made` says; a folder that stays is removed by the next run.
        let _ = remove(&partial, &log);
    }
    made?;
    fs::rename(&partial, folder).map_err(Error::file("rename", &partial))
}

/// Removes a folder in which files may be root's.
pub(crate) fn remove(folder: &Path, log: &Path) -> Result<(), Error> {
    let mut command = tied_as_root("rm");
    command.args(["-rf", "--one-file-system"]).arg(folder);
    run_logged("removing a temporary folder", command, log, &Interrupt::default())
}

/// mmdebstrap of a Debian suite with some packages.
pub(crate) struct Bootstrap {
    suite: String,
    packages: String,
    mirror: String,
    hooks: Vec<String>,
}

impl Bootstrap {
    /// From the mirror that this machine uses itself.
    pub(crate) fn new(suite: &str, packages: &str) -> Result<Self, Error> {
        let codename = Distribution::of_this_machine().codename;
        let mirror = mirror::find(Path::new("/"), &codename)?;
        Ok(Self { suite: suite.into(), packages: packages.into(), mirror, hooks: Vec::new() })
    }

    /// A shell command to run at the end with the root's folder as `$1`.
    pub(crate) fn hook(mut self, script: impl Into<String>) -> Self {
        self.hooks.push(script.into());
        self
    }

    /// The command that makes it as `target`: a folder, or an archive if its name ends in `.tar`.
    pub(crate) fn command(&self, target: &Path) -> Command {
        let mut command = tied_as_root("env");
        if let Some(folder) = target.parent() {
            // What a run that was killed leaves there goes with the folder.
            command.arg(format!("TMPDIR={}", folder.display()));
        }
        command
            // INITRD=No keeps Debian's own initrd from being made: who needs one makes another.
            .args(["INITRD=No", "mmdebstrap", "--variant=apt"])
            // Older and testing suites have release files past their date.
            .arg("--aptopt=Acquire::Check-Valid-Until \"false\"")
            // A root that a power cut spoils is made again: no need to wait for the disk after every package.
            .arg("--dpkgopt=force-unsafe-io")
            .args(
                ["doc", "man", "locale", "info"]
                    .map(|kind| format!("--dpkgopt=path-exclude=/usr/share/{kind}/*")),
            )
            .arg(format!("--include={}", self.packages))
            .args(self.hooks.iter().map(|hook| format!("--customize-hook={hook}")))
            .arg(&self.suite)
            .arg(target)
            .arg(format!("deb {} {} main", self.mirror, self.suite));
        command
    }
}

/// A path for a shell.
pub(crate) fn quoted(path: &Path) -> String {
    format!("'{}'", path.display().to_string().replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_is_fnv_1a() {
        assert_eq!(fnv1a(b""), 0xcbf2_9ce4_8422_2325);
        assert_eq!(fnv1a(b"foobar"), 0x8594_4171_f739_67e8);
    }
}
