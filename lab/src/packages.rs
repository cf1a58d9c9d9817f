//! Which Debian packages the lab and the tests need, which of them this machine lacks, and how they get installed.

use crate::{
    Error, Interrupt,
    process::{run_logged, tied_as_root},
};
use nix::unistd::Uid;
use std::{
    collections::{HashMap, HashSet},
    fs,
    path::Path,
    process::{Command, Stdio},
};

/// What a package is needed for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    /// `cargo xtask demo`, and therefore the tests too.
    Demo,
    /// `cargo xtask dist`, and therefore the tests too. Where Rust can build, it is all that is missing.
    Dist,
    /// `cargo xtask test` alone.
    Test,
    /// `cargo xtask bench` alone.
    Bench,
}

impl Need {
    /// Whether this needs what `other` needs. What the demo needs builds everything but what is released.
    fn covers(self, other: Self) -> bool {
        match self {
            Self::Dist => other == Self::Dist,
            Self::Test => matches!(other, Self::Test | Self::Demo | Self::Dist),
            Self::Demo | Self::Bench => other == self || other == Self::Demo,
        }
    }
}

/// One Debian package.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Package {
    /// Its name in Debian 12 and 13.
    pub name: &'static str,
    /// Who needs it.
    pub need: Need,
    /// What for, as a user should read it.
    pub why: &'static str,
}

/// Every package that anything here needs.
pub const PACKAGES: &[Package] = &[
    demo("gcc", "links Rust programs"),
    demo("libc6-dev", "links Rust programs"),
    demo("cmake", "builds the loader of libibverbs that rdma-mummy-sys brings"),
    demo("make", "builds the loader of libibverbs that rdma-mummy-sys brings"),
    demo("libclang-dev", "bindgen reads C headers with it"),
    demo("qemu-system-x86", "runs the guests of the lab"),
    demo("mmdebstrap", "makes the guests' root from Debian packages"),
    demo("e2fsprogs", "makes the guests' disk image (mke2fs)"),
    test("libslurm-dev", "slurm/spank.h, which our SPANK declarations are held against"),
    test("munge", "authentication of the Slurm that the tests run on this machine"),
    test("slurmctld", "the controller of the Slurm that the tests run on this machine"),
    test("slurmd", "the nodes of the Slurm that the tests run on this machine"),
    test("slurm-client", "srun, sbatch and sinfo, for the tests on this machine"),
    test("strace", "what slurmstepd asks of the kernel, for the tests of what it must never do"),
    test("rdma-core", "libibverbs and its providers, which the launcher loads at run time"),
    test("mpich", "mpiexec.hydra, a launcher that speaks PMI-1 and PMI-2 to ranks"),
    test(
        "openmpi-bin",
        "mpirun, a launcher that speaks PMIx to ranks; it and its libpmix are peers of a benchmark",
    ),
    test("libpmix-dev", "libpmix.so, by which name Slurm 22.05 loads PMIx for srun --mpi=pmix"),
    test("openssh-client", "ssh, by which rocectl run --hosts and mpirun reach other hosts"),
    test("openssh-server", "the hosts of the tests of rocectl run --hosts: an sshd of their own on loopback"),
    test("iproute2", "joins the network namespaces that pretend to be nodes"),
    test("valgrind", "memcheck, for the plugin in a pretend Slurm"),
    Package {
        name: "python3-venv",
        need: Need::Dist,
        why: "holds cargo-zigbuild and zig, which link the released files for an old glibc",
    },
    Package { name: "hwloc-nox", need: Need::Bench, why: "lstopo-no-graphics, the peer of a benchmark" },
    Package {
        name: "libopenmpi-dev",
        need: Need::Bench,
        why: "mpicc.openmpi, which builds a peer of a benchmark",
    },
    Package {
        name: "libmpich-dev",
        need: Need::Bench,
        why: "mpicc.mpich, which builds a peer of a benchmark",
    },
    Package {
        name: "libpmi2-0-dev",
        need: Need::Bench,
        why: "Slurm's libpmi2, the peer of the bootstrap's benchmark; its library alone has other names in Debian 12 and 13",
    },
];

const fn demo(name: &'static str, why: &'static str) -> Package {
    Package { name, need: Need::Demo, why }
}

const fn test(name: &'static str, why: &'static str) -> Package {
    Package { name, need: Need::Test, why }
}

/// A distribution, as os-release(5) tells it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Distribution {
    /// For people: `Debian GNU/Linux 12 (bookworm)`.
    pub name: String,
    /// Whether this is Debian 12 or 13, where the packages above are known to exist.
    pub supported: bool,
    /// The suite: `bookworm`. Empty where os-release names none.
    pub codename: String,
}

impl Distribution {
    /// The distribution of this machine.
    #[must_use]
    pub fn of_this_machine() -> Self {
        // Without the file it is no Debian, which is all that matters.
        Self::parse(&fs::read_to_string("/etc/os-release").unwrap_or_default())
    }

    fn parse(os_release: &str) -> Self {
        let fields: HashMap<&str, &str> = os_release
            .lines()
            .filter_map(|line| line.split_once('='))
            .map(|(key, value)| (key.trim(), value.trim().trim_matches('"')))
            .collect();
        let field = |key| fields.get(key).copied().unwrap_or_default();
        let name = field("PRETTY_NAME");
        Self {
            name: if name.is_empty() { "an unknown system".into() } else { name.into() },
            supported: field("ID") == "debian" && matches!(field("VERSION_ID"), "12" | "13"),
            codename: field("VERSION_CODENAME").into(),
        }
    }
}

/// The packages that `need` asks for and dpkg doesn't know as installed, in the table's order.
#[must_use]
pub fn missing(need: Need) -> Vec<Package> {
    let wanted = PACKAGES.iter().filter(|package| need.covers(package.need));
    let output = Command::new("dpkg-query")
        .args(["-W", "-f", "${db:Status-Status} ${Package}\n"])
        .args(PACKAGES.iter().map(|package| package.name))
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output();
    // dpkg-query fails when it doesn't know a name, and still prints the others. Without dpkg all is missing.
    let text = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
    let installed = installed(&text);
    wanted.filter(|package| !installed.contains(package.name)).copied().collect()
}

fn installed(dpkg_query: &str) -> HashSet<&str> {
    dpkg_query.lines().filter_map(|line| line.strip_prefix("installed ")).collect()
}

/// Installs packages with apt-get. Its output goes to `log`.
///
/// # Errors
/// [`Error::Program`] with the log's end; [`Error::Interrupted`].
pub fn install(packages: &[Package], log: &Path, interrupt: &Interrupt) -> Result<(), Error> {
    authorise()?;
    let mut update = apt_get();
    update.arg("update");
    run_logged("apt-get update", update, log, interrupt)?;
    let mut install = apt_get();
    install
        .args(["install", "--yes", "--no-install-recommends"])
        .args(packages.iter().map(|package| package.name));
    run_logged("apt-get install", install, log, interrupt)
}

/// Makes sure that commands can be run as root from here on: as an ordinary user, sudo may ask for the password now,
/// at the terminal, and not in the middle of a step whose output goes to a file.
///
/// # Errors
/// [`Error::Start`] without sudo, or if it refuses.
pub fn authorise() -> Result<(), Error> {
    if Uid::effective().is_root() {
        return Ok(());
    }
    let status = Command::new("sudo").arg("-v").status();
    let refused = |source| Error::Start { program: "sudo (this step needs root)".into(), source };
    match status {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(refused(std::io::Error::other(format!("sudo -v: {status}")))),
        Err(source) => Err(refused(source)),
    }
}

/// Waits for another package manager's lock instead of failing, and never asks anything.
fn apt_get() -> Command {
    let mut command = tied_as_root("env");
    command.args(["DEBIAN_FRONTEND=noninteractive", "apt-get", "-o", "DPkg::Lock::Timeout=120"]);
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debian_12_and_13_are_supported_and_nothing_else() {
        let os = |id: &str, version: &str| {
            Distribution::parse(&format!(
                "PRETTY_NAME=\"X {version}\"\nID={id}\nVERSION_ID=\"{version}\"\nVERSION_CODENAME=c\n"
            ))
        };
        assert_eq!(
            os("debian", "12"),
            Distribution { name: "X 12".into(), supported: true, codename: "c".into() }
        );
        assert!(os("debian", "13").supported);
        assert!(!os("debian", "11").supported);
        assert!(!os("ubuntu", "12").supported);
        assert!(!Distribution::parse("").supported);
    }

    #[test]
    fn a_removed_package_whose_settings_remain_is_not_installed() {
        let installed = installed("installed gcc\nconfig-files munge\nnot-installed slurmd\n");
        assert!(installed.contains("gcc"));
        assert_eq!(installed.len(), 1);
    }

    #[test]
    fn every_package_is_listed_once_with_a_reason() {
        let names: HashSet<_> = PACKAGES.iter().map(|package| package.name).collect();
        assert_eq!(names.len(), PACKAGES.len());
        assert!(PACKAGES.iter().all(|package| !package.why.is_empty()));
    }
}
