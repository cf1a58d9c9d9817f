//! What the plugin costs a step: in a real Slurm of this machine, the same step without the plugin, with it
//! and no option, and with it and a traffic class, in turns.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use roce_cluster::{Cluster, prerequisites, run::program, sysfs};

use crate::report::{Case, Report, median, quartiles};
use crate::{hooks, machine, memory, stepd};

/// What a step may cost more.
const LIMIT_US: f64 = 1_000.0;
const LIMIT_SHARE: f64 = 0.03;

/// Steps of each kind before anything is timed.
const WARM_UP: usize = 5;

/// A step whose time is taken.
const STEPS: [(&str, &[&str]); 2] =
    [("srun -n1", &["-n1", "true"]), ("srun -n64 --overcommit", &["-n64", "--overcommit", "true"])];

/// What differs between the steps of one round.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Without,
    NoOption,
    Class,
}

impl Kind {
    const ALL: [Self; 3] = [Self::Without, Self::NoOption, Self::Class];

    fn name(self) -> &'static str {
        match self {
            Self::Without => "without the plugin",
            Self::NoOption => "plugin, no option",
            Self::Class => "plugin, --roce-tc=3",
        }
    }
}

/// Measures, with that many steps of each kind; `host` is the program that plays Slurm.
pub(crate) fn run(rounds: usize, host: &Path) -> Result<Report> {
    ensure!(rounds > 0, "--rounds=0: at least one round is needed");
    let plugin = prerequisites::check()?;
    println!("plugin {}", plugin.display());
    println!("{}", machine::describe());
    let mut cluster = Cluster::start(&plugin)?;
    let tree = sysfs::two_nics(&cluster, "two-nics")?;
    println!("{}", program("slurmd").args(["-V"]).run(&cluster)?.stdout.trim());
    let mut cases = steps(&cluster, &tree, rounds)?;
    cases.extend(hooks::run(host, &plugin, rounds * 50)?);
    cases.extend(memory::run(&mut cluster, &tree)?);
    Ok(Report { name: "plugin", cases })
}

/// The times of the steps, kind by kind, and what each kind costs.
fn steps(cluster: &Cluster, tree: &str, rounds: usize) -> Result<Vec<Case>> {
    let allocation = Allocation::new(cluster)?;
    let mut cases = Vec::new();
    for (name, arguments) in STEPS {
        let mut times: [Vec<f64>; 3] = Default::default();
        for round in 0..rounds + WARM_UP {
            // Another order in each round, so that none always profits from what went before.
            for at in ORDERS[round % ORDERS.len()] {
                let time = allocation.step(tree, Kind::ALL[at], arguments)?;
                if round >= WARM_UP {
                    times[at].push(time);
                }
            }
        }
        let [without, no_option, class] = times;
        for (kind, with) in [(Kind::NoOption, no_option), (Kind::Class, class)] {
            cases.extend(compare(&format!("{name}: {}", kind.name()), &without, &with));
        }
    }
    allocation.end()?;
    Ok(cases)
}

/// Every order of three.
const ORDERS: [[usize; 3]; 6] = [[0, 1, 2], [1, 2, 0], [2, 0, 1], [0, 2, 1], [2, 1, 0], [1, 0, 2]];

/// The two limits as cases, whose ratios reach 1 exactly where the median of the paired differences keeps
/// them; and the difference itself, for people.
fn compare(case: &str, without: &[f64], with: &[f64]) -> [Case; 2] {
    let differences: Vec<f64> = with.iter().zip(without).map(|(with, without)| with - without).collect();
    let shares: Vec<f64> =
        with.iter().zip(without).map(|(with, without)| (with / without - 1.0) * 100.0).collect();
    let (low, high) = quartiles(&differences);
    let (without_low, without_high) = quartiles(without);
    println!(
        "{case}: {:+.0} us (quartiles {low:+.0} to {high:+.0}), {:+.2} %; without: {:.0} us ({without_low:.0} to \
         {without_high:.0}), {} steps each",
        median(&differences),
        median(&shares),
        median(without),
        with.len()
    );
    let allowed = |allow: &dyn Fn(f64) -> f64| without.iter().map(|time| allow(*time)).collect();
    let absolute = allowed(&|time| time + LIMIT_US);
    let relative = allowed(&|time| time * (1.0 + LIMIT_SHARE));
    [
        Case::times(case, "the same step without it, plus 1 ms", with.to_vec(), absolute, Some(1.0)),
        Case::times(case, "the same step without it, plus 3 %", with.to_vec(), relative, Some(1.0)),
    ]
}

/// A job in which the steps run, so that none waits for the end of another one's job.
struct Allocation<'a> {
    cluster: &'a Cluster,
    job: String,
}

impl<'a> Allocation<'a> {
    fn new(cluster: &'a Cluster) -> Result<Self> {
        let ran = program("salloc").args(["--no-shell", "-n2"]).run(cluster)?;
        let job = ran.stderr.split("Granted job allocation ").nth(1).and_then(|rest| rest.lines().next());
        Ok(Self { cluster, job: job.with_context(|| format!("no allocation: {ran}"))?.trim().to_owned() })
    }

    /// Gives the node back.
    fn end(self) -> Result<()> {
        program("scancel").args([self.job.as_str()]).run(self.cluster)?;
        self.cluster.expect_idle()
    }

    /// Microseconds from the start of srun to its end.
    fn step(&self, tree: &str, kind: Kind, arguments: &[&str]) -> Result<f64> {
        let cluster = self.cluster;
        match kind {
            Kind::Without => cluster.without_plugin()?,
            Kind::NoOption | Kind::Class => cluster.with_plugin(tree)?,
        }
        let mut srun = Command::new("srun");
        srun.env_clear()
            .env("PATH", "/usr/bin:/bin")
            .env("SLURM_CONF", cluster.path("client.conf"))
            .current_dir(cluster.path("work"))
            .args(["--jobid", &self.job, "--overlap"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        if kind == Kind::Class {
            srun.arg("--roce-tc=3");
        }
        srun.args(arguments);
        let start = Instant::now();
        let output = srun.spawn().context("srun")?.wait_with_output()?;
        let time = start.elapsed();
        let said = String::from_utf8_lossy(&output.stderr);
        // The hint about a limit that this machine's slurmd may not raise is no failure.
        ensure!(output.status.success(), "{}: srun {arguments:?}: {}: {said}", kind.name(), output.status);
        // slurmstepd lives a little longer than srun; it must not run beside the next step.
        stepd::wait_for_none(cluster)?;
        Ok(time.as_secs_f64() * 1e6)
    }
}
