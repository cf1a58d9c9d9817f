//! The guests' root: a Debian suite with Slurm, munge, rdma-core and perftest as one disk image, and the kernel beside it.
//!
//! It is made once per suite and recipe: a change of the recipe is a change of the file's name.

use crate::{
    Error, Interrupt,
    process::{run_logged, tied, tied_as_root},
    roots::{self, Bootstrap, quoted},
};
use nix::unistd::{Gid, Uid};
use std::{
    fs,
    path::{Path, PathBuf},
};

const PACKAGES: &str = "slurmd,slurmctld,slurm-client,munge,rdma-core,ibverbs-utils,perftest,linux-image-amd64,\
                        iproute2,kmod,mount,procps,busybox-static,cpio";
/// Open MPI over UCX, and a program to run on it.
const MPI_PACKAGES: &str = "openmpi-bin,netpipe-openmpi";
/// Beside Open MPI: libfabric's ping-pong, and callgrind.
const BENCH_PACKAGES: &str = "libfabric-bin,valgrind";
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
    /// What messages are measured beside: libfabric's programs, and valgrind, too.
    Bench,
}

/// The Debian packages of a root, as mmdebstrap takes them.
fn packages(software: Software) -> String {
    match software {
        Software::Rdma => PACKAGES.to_owned(),
        Software::Mpi => format!("{PACKAGES},{MPI_PACKAGES}"),
        Software::Bench => format!("{PACKAGES},{MPI_PACKAGES},{BENCH_PACKAGES}"),
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
        roots::once(&root.folder, interrupt, |partial, log| root.fill(partial, log, interrupt))?;
        Ok(root)
    }

    /// Where the root of a suite is, or will be.
    ///
    /// # Errors
    /// [`Error::File`] if the cache folder can't be made.
    pub fn at(cache: &Path, suite: &str, software: Software) -> Result<Self, Error> {
        let packages = packages(software);
        let recipe = [packages.as_str(), INIT, INITRD_INIT, MAKE_INITRD, ADD_USER, IMAGE_SIZE];
        let folder = roots::folder(cache, &format!("root.{suite}"), &recipe)?;
        let cache = folder.parent().unwrap_or(cache).to_path_buf();
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

    fn fill(&self, partial: &Path, log: &Path, interrupt: &Interrupt) -> Result<(), Error> {
        let at = |name: &str| partial.join(name);
        let tree = at("tree");
        // The image is made as root and read as whoever runs the lab.
        let scripts =
            [("lab-init", INIT), ("lab-initrd-init", INITRD_INIT), ("lab-make-initrd", MAKE_INITRD)];
        for (name, text) in scripts {
            fs::write(at(name), text).map_err(Error::file("write", at(name)))?;
        }

        let bootstrap = Bootstrap::new(&self.suite, &packages(self.software))?
            .hook(ADD_USER)
            .hook(format!("install -m 755 {} \"$1/sbin/lab-init\"", quoted(&at("lab-init"))))
            .hook(format!("cp {} \"$1/tmp/\"", quoted(&at("lab-initrd-init"))))
            .hook(format!("cp {} \"$1/tmp/\"", quoted(&at("lab-make-initrd"))))
            .hook("chroot \"$1\" sh /tmp/lab-make-initrd");
        run_logged("mmdebstrap (making the guests' root)", bootstrap.command(&tree), log, interrupt)?;

        let mut image = tied_as_root("mke2fs");
        // No journal: the image is only ever read, guests write into a throw-away layer.
        image
            .args(["-q", "-t", "ext4", "-O", "^has_journal", "-d"])
            .arg(&tree)
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
            .arg(&tree)
            .arg(partial);
        run_logged("copying the guests' kernel", kernel, log, interrupt)?;

        let mut own = tied_as_root("chown");
        own.arg(format!("{}:{}", Uid::current(), Gid::current()));
        own.args(["root.ext4", "vmlinuz", "initrd"].map(at));
        run_logged("handing the image over", own, log, interrupt)?;

        // The image must be whole on the disk before its name says so.
        let mut flush = tied("sync");
        flush.arg(at("root.ext4"));
        run_logged("flushing the image", flush, log, interrupt)?;
        roots::remove(&tree, log)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
