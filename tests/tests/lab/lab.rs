//! The cluster that the controls share, booted by the first that asks for it.

use crate::faults;
use libtest_mimic::Failed;
use roce_lab::{Cluster, Error, GuestRoot, Interrupt, Options, Output, Software, packages, scenario};
use std::{
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

/// Enough for any command here, by emulation on two busy cores.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(90);

/// What every control is given.
pub(crate) struct Lab {
    interrupt: Interrupt,
    /// `Err`: it didn't boot, and why.
    cluster: Mutex<Option<Result<Arc<Cluster>, String>>>,
}

impl Lab {
    pub(crate) fn new() -> Result<Self, Error> {
        Ok(Self { interrupt: Interrupt::on_signals()?, cluster: Mutex::default() })
    }

    pub(crate) fn interrupt(&self) -> &Interrupt {
        &self.interrupt
    }

    /// Why no guest can run on this machine.
    pub(crate) fn cannot_run(&self) -> Option<String> {
        let missing = packages::missing(packages::Need::Demo);
        let names: Vec<_> = missing.iter().map(|package| package.name).collect();
        (!names.is_empty()).then(|| format!("Debian packages are missing: {}", names.join(" ")))
    }

    pub(crate) fn root(&self) -> Result<GuestRoot, Failed> {
        Ok(GuestRoot::ensure(&roce_tests::target().join("lab"), "trixie", Software::Mpi, &self.interrupt)?)
    }

    /// The cluster, with the plugin required by plugstack.conf and no site file.
    pub(crate) fn cluster(&self) -> Result<Arc<Cluster>, Failed> {
        let mut cluster = self.lock();
        let cluster = cluster.get_or_insert_with(|| self.boot().map(Arc::new).map_err(|error| text(&error)));
        Ok(cluster.as_ref().map(Arc::clone).map_err(|error| format!("no cluster: {error}"))?)
    }

    /// Halts the guests in order. Without a cluster there is nothing to do.
    pub(crate) fn end(&self) -> Result<(), Error> {
        match self.lock().take() {
            Some(Ok(cluster)) => Arc::into_inner(cluster).map_or(Ok(()), Cluster::shut_down),
            _ => Ok(()),
        }
    }

    fn boot(&self) -> Result<Cluster, Failed> {
        let defaults = Options::new(results("cluster"));
        let options = Options {
            lifetime: defaults.lifetime + faults::soak_time(),
            plugin: Some(roce_tests::artifact("ROCE_PLUGIN", "libspank_roce.so")?),
            programs: vec![
                roce_tests::artifact("ROCE_PAIR_EXCHANGE", "pair_exchange")?,
                roce_tests::artifact("ROCE_WHO", "who")?,
                roce_tests::artifact("ROCE_ROCECTL", "rocectl")?,
                roce_tests::artifact("ROCE_HEAT", "heat")?,
                roce_tests::artifact("ROCE_CONJUGATE_GRADIENT", "conjugate_gradient")?,
                roce_tests::artifact("ROCE_NBODY", "nbody")?,
                roce_tests::artifact("ROCE_SORT", "sort")?,
                roce_tests::artifact("ROCE_PARAMETER_SERVER", "parameter_server")?,
                roce_tests::artifact("ROCE_MESSAGES", "messages")?,
                roce_tests::artifact("ROCE_COLLECTIVES", "collectives")?,
                roce_tests::artifact("ROCE_WINDOWS", "windows")?,
                roce_tests::artifact("ROCE_FAULTS", "faults")?,
                roce_tests::artifact("ROCE_SOFT_ROCE", "soft_roce")?,
            ],
            ..defaults
        };
        Ok(Cluster::boot(&self.root()?, options, &self.interrupt)?)
    }

    fn lock(&self) -> MutexGuard<'_, Option<Result<Arc<Cluster>, String>>> {
        self.cluster.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a soak is told.
pub(crate) fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().and_then(|text| text.parse().ok())
}

/// Where a cluster of this name leaves its captures and logs.
pub(crate) fn results(name: &str) -> PathBuf {
    roce_tests::target().join("lab-tests").join(name)
}

/// Runs a script as the ordinary user of `vm1`, which must succeed.
pub(crate) fn must_run(cluster: &Cluster, script: &str) -> Result<Output, Failed> {
    let output = cluster.run("vm1", script, TIMEOUT)?;
    if output.success() { Ok(output) } else { Err(told(script, &output)) }
}

/// Runs a step with the lines of plugstack.conf taken away on every node, and puts them back whatever comes of it.
pub(crate) fn without_plugin<T>(
    cluster: &Cluster,
    step: impl FnOnce() -> Result<T, Failed>,
) -> Result<T, Failed> {
    let on_all = |script: &str| -> Result<(), Failed> {
        for node in cluster.nodes() {
            let output = cluster.run_as_root(node, script, TIMEOUT)?;
            if !output.success() {
                return Err(told(script, &output));
            }
        }
        Ok(())
    };
    on_all(": > /etc/slurm/plugstack.conf")?;
    let result = step();
    on_all("cp /lab/conf/plugstack.conf /etc/slurm/plugstack.conf")?;
    result
}

/// Fails unless every node is idle, which after a step it is in a moment.
pub(crate) fn all_idle(cluster: &Cluster) -> Result<(), Failed> {
    let script = "for _ in $(seq 50); do\n\
                  [ \"$(sinfo -h -N -o %T | sort -u)\" = idle ] && exit 0\n\
                  sleep 0.2\n\
                  done\n\
                  sinfo -N -o '%N %T %E'; exit 1";
    must_run(cluster, script).map(drop)
}

/// Runs the example and fails with every check that doesn't hold.
pub(crate) fn must_hold(
    result: &scenario::StepResult,
    expected: &scenario::Expectation,
) -> Result<(), Failed> {
    let checks = scenario::judge(result, expected);
    let bad: Vec<_> = checks.iter().filter(|check| !check.ok).collect();
    if bad.is_empty() {
        return Ok(());
    }
    let list: String =
        bad.iter().map(|check| format!("\n  not so: {} ({})", check.what, check.seen)).collect();
    Err(format!(
        "{list}\n{}\n{}",
        result.table(),
        told(&result.command, &result.output).message().unwrap_or_default()
    )
    .into())
}

/// A failure that shows what a command did.
pub(crate) fn told(script: &str, output: &Output) -> Failed {
    format!("{script}\nreturned {}\nstdout: {}\nstderr: {}", output.status, output.stdout, output.stderr)
        .into()
}

/// A failure unless `ok`.
pub(crate) fn ensure(ok: bool, message: impl FnOnce() -> String) -> Result<(), Failed> {
    if ok { Ok(()) } else { Err(message().into()) }
}

fn text(failed: &Failed) -> String {
    failed.message().unwrap_or("no reason given").to_owned()
}
