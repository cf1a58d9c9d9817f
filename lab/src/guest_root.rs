//! The guests' root: a Debian suite with Slurm, munge, rdma-core and perftest as one disk image, and the kernel beside it.
//!
//! It is made once per suite and recipe: a change of the recipe is a change of the file's name.

use crate::{
    Error, Interrupt, mirror,
    packages::{Distribution, authorise},
    process::{run_logged, tied, tied_as_root},
};
use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
    unistd::{Gid, Uid},
};
use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    time::Duration,
};

const PACKAGES: &str = "slurmd,slurmctld,slurm-client,munge,rdma-core,ibverbs-utils,perftest,linux-image-amd64,\
                        iproute2,kmod,mount,procps,busybox-static,cpio";
/// Open MPI over UCX, and a program to run on it.
const MPI_PACKAGES: &str = "openmpi-bin,netpipe-openmpi";
const INIT: &str = include_str!("../guest/init.sh");
const INITRD_INIT: &str = include_str!("../guest/initrd-init.sh");
const MAKE_INITRD: &str = include_str!("../guest/make-initrd.sh");
/// The ordinary user that jobs run as: uid and gid 1000, known on every guest.
const ADD_USER: &str = "echo 'user:x:1000:1000::/home/user:/bin/bash' >> \"$1/etc/passwd\" && \
                        echo 'user:x:1000:' >> \"$1/etc/group\" && \
                        install -d -o 1000 -g 1000 \"$1/home/user\"";
/// The image is sparse: this is room for logs, not space on the host.
const IMAGE_SIZE: &str = "2000M";

/// What is in a root beside Slurm.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Software {
    /// rdma-core and perftest.
    #[default]
    Rdma,
    /// Open MPI over UCX too, which takes twice as long to install.
    Mpi,
}

/// The Debian packages of a root, as mmdebstrap takes them.
fn packages(software: Software) -> String {
    match software {
        Software::Rdma => PACKAGES.to_owned(),
        Software::Mpi => format!("{PACKAGES},{MPI_PACKAGES}"),
    }
}

/// A disk image that guests boot from, with its kernel.
#[derive(Debug, Clone)]
pub struct GuestRoot {
    folder: PathBuf,
    suite: String,
    software: Software,
    cache: PathBuf,
}

impl GuestRoot {
    /// Finds the root of a Debian suite in `cache`, or makes it there, which takes half a minute and needs root (sudo).
    ///
    /// # Errors
    /// [`Error::NoMirror`]; [`Error::Program`] if a step fails, with its log; [`Error::Interrupted`].
    pub fn ensure(
        cache: &Path,
        suite: &str,
        software: Software,
        interrupt: &Interrupt,
    ) -> Result<Self, Error> {
        let root = Self::at(cache, suite, software)?;
        // Two runs at once must not make it twice; the second finds it made.
        let lock_path = cache.join("lock");
        let mut lock = File::create(&lock_path).map_err(Error::file("create", &lock_path))?;
        let _held = loop {
            match Flock::lock(lock, FlockArg::LockExclusiveNonblock) {
                Ok(held) => break held,
                Err((file, Errno::EWOULDBLOCK)) => lock = file,
                Err((_, error)) => return Err(Error::file("lock", &lock_path)(error.into())),
            }
            interrupt.sleep(Duration::from_millis(200))?;
        };
        if !root.exists() {
            root.make(interrupt)?;
        }
        Ok(root)
    }

    /// Where the root of a suite is, or will be.
    ///
    /// # Errors
    /// [`Error::File`] if the cache folder can't be made.
    pub fn at(cache: &Path, suite: &str, software: Software) -> Result<Self, Error> {
        fs::create_dir_all(cache).map_err(Error::file("create", cache))?;
        let cache = cache.canonicalize().map_err(Error::file("find", cache))?;
        let packages = packages(software);
        let recipe = [&packages, INIT, INITRD_INIT, MAKE_INITRD, ADD_USER, IMAGE_SIZE].join("\0");
        let folder = cache.join(format!("root.{suite}.{:016x}", fnv1a(recipe.as_bytes())));
        Ok(Self { folder, suite: suite.into(), software, cache })
    }

    /// Whether it has been made.
    #[must_use]
    pub fn exists(&self) -> bool {
        self.disk().exists()
    }

    /// The Debian suite, such as `trixie`.
    #[must_use]
    pub fn suite(&self) -> &str {
        &self.suite
    }

    /// The folder of everything that outlives a run.
    pub(crate) fn cache(&self) -> &Path {
        &self.cache
    }

    /// The ext4 image.
    pub(crate) fn disk(&self) -> PathBuf {
        self.folder.join("root.ext4")
    }

    /// The kernel.
    pub(crate) fn kernel(&self) -> PathBuf {
        self.folder.join("vmlinuz")
    }

    /// The initial root file system.
    pub(crate) fn initrd(&self) -> PathBuf {
        self.folder.join("initrd")
    }

    /// Makes the root in a folder of another name, which the last step renames: what an interrupted run leaves is never
    /// taken for a root, and the next run removes it.
    fn make(&self, interrupt: &Interrupt) -> Result<(), Error> {
        authorise()?;
        let partial = self.folder.with_extension("partial");
        let log = self.folder.with_extension("log");
        let tree = partial.join("tree");
        let remove = |path: &Path| {
            let mut command = tied_as_root("rm");
            command.args(["-rf", "--one-file-system"]).arg(path);
            run_logged("removing a temporary folder", command, &log, &Interrupt::default())
        };
        remove(&partial)?;
        fs::create_dir_all(&partial).map_err(Error::file("create", &partial))?;
        // The image is made as root and read as whoever runs the lab.
        let scripts =
            [("lab-init", INIT), ("lab-initrd-init", INITRD_INIT), ("lab-make-initrd", MAKE_INITRD)];
        for (name, text) in scripts {
            let path = partial.join(name);
            fs::write(&path, text).map_err(Error::file("write", &path))?;
        }
        let made = self.fill(&partial, &tree, &log, interrupt);
        if made.is_err() {
            // The reason is what `made` says; a folder that stays is removed by the next run.
            let _ = remove(&partial);
        }
        made?;
        remove(&tree)?;
        fs::rename(&partial, &self.folder).map_err(Error::file("rename", &partial))
    }

    fn fill(&self, partial: &Path, tree: &Path, log: &Path, interrupt: &Interrupt) -> Result<(), Error> {
        let codename = Distribution::of_this_machine().codename;
        let mirror = mirror::find(Path::new("/"), &codename)?;
        let at = |name: &str| partial.join(name);

        // INITRD=No keeps Debian's own initrd from being made: ours replaces it.
        let mut bootstrap = tied_as_root("env");
        bootstrap
            .args(["INITRD=No", "mmdebstrap", "--variant=apt"])
            // Older and testing suites have release files past their date.
            .arg("--aptopt=Acquire::Check-Valid-Until \"false\"")
            // A root that a power cut spoils is made again: no need to wait for the disk after every package.
            .arg("--dpkgopt=force-unsafe-io")
            .args(
                ["doc", "man", "locale", "info"]
                    .map(|kind| format!("--dpkgopt=path-exclude=/usr/share/{kind}/*")),
            )
            .arg(format!("--include={}", packages(self.software)))
            .arg(format!("--customize-hook={ADD_USER}"))
            .arg(format!("--customize-hook=install -m 755 {} \"$1/sbin/lab-init\"", quoted(&at("lab-init"))))
            .arg(format!("--customize-hook=cp {} \"$1/tmp/\"", quoted(&at("lab-initrd-init"))))
            .arg(format!("--customize-hook=cp {} \"$1/tmp/\"", quoted(&at("lab-make-initrd"))))
            .arg("--customize-hook=chroot \"$1\" sh /tmp/lab-make-initrd")
            .arg(&self.suite)
            .arg(tree)
            .arg(format!("deb {mirror} {} main", self.suite));
        run_logged("mmdebstrap (making the guests' root)", bootstrap, log, interrupt)?;

        let mut image = tied_as_root("mke2fs");
        // No journal: the image is only ever read, guests write into a throw-away layer.
        image
            .args(["-q", "-t", "ext4", "-O", "^has_journal", "-d"])
            .arg(tree)
            .arg(at("root.ext4"))
            .arg(IMAGE_SIZE);
        run_logged("mke2fs (making the guests' disk)", image, log, interrupt)?;

        let mut kernel = tied_as_root("sh");
        kernel
            .args([
                "-c",
                "cp \"$1\"/boot/vmlinuz-* \"$2/vmlinuz\" && cp \"$1/boot/lab-initrd\" \"$2/initrd\"",
                "sh",
            ])
            .arg(tree)
            .arg(partial);
        run_logged("copying the guests' kernel", kernel, log, interrupt)?;

        let mut own = tied_as_root("chown");
        own.arg(format!("{}:{}", Uid::current(), Gid::current()));
        own.args(["root.ext4", "vmlinuz", "initrd"].map(at));
        run_logged("handing the image over", own, log, interrupt)?;

        // The image must be whole on the disk before its name says so.
        let mut flush = tied("sync");
        flush.arg(at("root.ext4"));
        run_logged("flushing the image", flush, log, interrupt)
    }
}

/// A path for a shell.
fn quoted(path: &Path) -> String {
    format!("'{}'", path.display().to_string().replace('\'', r"'\''"))
}

/// FNV-1a: the standard library promises no hash that stays the same from release to release.
pub(crate) fn fnv1a(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_is_fnv_1a() {
        assert_eq!(fnv1a(b""), 0xcbf2_9ce4_8422_2325);
        assert_eq!(fnv1a(b"foobar"), 0x8594_4171_f739_67e8);
    }

    #[test]
    fn a_root_is_looked_for_under_its_suite_and_recipe() -> Result<(), Error> {
        let cache = tempfile::tempdir().map_err(Error::file("create", "a temporary folder"))?;
        let trixie = GuestRoot::at(cache.path(), "trixie", Software::Rdma)?;
        let bookworm = GuestRoot::at(cache.path(), "bookworm", Software::Rdma)?;
        assert!(!trixie.exists());
        assert_ne!(trixie.disk(), bookworm.disk());
        Ok(())
    }
}
