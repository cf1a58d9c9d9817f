//! A guest with one soft-RoCE device, in which ours and its peers play.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use roce_lab::{Cluster, Error, GuestFault, GuestRoot, Interrupt, Options, Software};

/// Functions for all that is run there.
const SCRIPT: &str = include_str!("guest.sh");
/// What Open MPI's ranks run.
const PEER: &str = include_str!("../messages/peer.c");
/// More than anything there may take by itself.
const TIMEOUT: Duration = Duration::from_secs(200);
const NODE: &str = "vm1";
/// How often it is booted until it does not panic.
const BOOTS: u32 = 4;

pub(super) struct Guest {
    cluster: Cluster,
}

impl Guest {
    /// Boots it, with the programs; what it leaves goes below the folder, and its root below `cache`.
    pub(super) fn boot(cache: &Path, results: &Path, interrupt: &Interrupt) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let root = GuestRoot::ensure(cache, "trixie", Software::Bench, interrupt)?;
        let options = Options {
            nodes: 1,
            rails: 1,
            numa_nodes: 1,
            cpus_per_numa_node: 2,
            memory_mib: 2048,
            // The clock's watchdog would take a busy host for a wrong clock, and patch the running kernel for another.
            kernel_arguments: "tsc=reliable".to_owned(),
            programs: vec![ours()?, open_mpi(folder.path())?],
            lifetime: Duration::from_secs(3 * 3600),
            ..Options::new(results)
        };
        // An emulated processor sometimes runs into an instruction that another one is patching, and the kernel panics: as it boots,
        // since nothing is patched later.
        let is_panic = |error: &Error| matches!(error, Error::Guest { fault: GuestFault::Panicked(_), .. });
        let mut booted = Cluster::boot(&root, options.clone(), interrupt);
        for _ in 1..BOOTS {
            if !booted.as_ref().is_err_and(is_panic) {
                break;
            }
            booted = Cluster::boot(&root, options.clone(), interrupt);
        }
        Ok(Self { cluster: booted? })
    }

    /// What runs it: an emulated machine is another than one of the host's processors.
    pub(super) fn describe(&self) -> Result<String> {
        let versions = self.run(
            "echo \"Linux $(uname -r)\"; dpkg-query -W -f '${Package} ${Version}\\n' perftest openmpi-bin libucx0 libfabric1",
        )?;
        let versions: Vec<&str> = versions.lines().collect();
        Ok(format!("a guest by {}, 2 CPUs; {}", self.cluster.accelerator(), versions.join(", ")))
    }

    /// What a command of `guest.sh` prints.
    pub(super) fn run(&self, command: &str) -> Result<String> {
        let output = self.cluster.run_as_root(NODE, &format!("{SCRIPT}\n{command}\n"), TIMEOUT)?;
        ensure!(output.success(), "{command}: {}\n{}{}", output.status, output.stdout, output.stderr);
        Ok(output.stdout)
    }

    pub(super) fn shut_down(self) -> Result<()> {
        Ok(self.cluster.shut_down()?)
    }
}

/// The program of our ranks, which lies beside this one.
fn ours() -> Result<PathBuf> {
    let path = std::env::current_exe()?.with_file_name("roce-bench-verbs-rank");
    ensure!(path.exists(), "{} is missing: cargo build --release -p roce-benches", path.display());
    Ok(path)
}

/// That of Open MPI's, which the guest's Open MPI runs too: its library has kept its name and interface.
fn open_mpi(folder: &Path) -> Result<PathBuf> {
    let (source, program) = (folder.join("peer.c"), folder.join("openmpi"));
    std::fs::write(&source, PEER)?;
    let mut compiler = Command::new("mpicc.openmpi");
    let status = compiler.arg("-O3").arg("-o").arg(&program).arg(&source).status();
    let status = status.context("mpicc.openmpi (libopenmpi-dev)")?;
    ensure!(status.success(), "mpicc.openmpi: {status}");
    Ok(program)
}
