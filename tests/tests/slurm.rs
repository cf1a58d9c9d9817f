//! The plugin in real Slurm on this machine: see the crate `roce-cluster`.
//!
//! `ROCE_PLUGIN` names the plugin's file; without it the newer one of target/release and target/debug is
//! taken. A machine that can't run it skips every test with the reason; with `ROCE_REQUIRE=slurm` that is a
//! failure.

#[path = "slurm/brief.rs"]
mod brief;
#[path = "slurm/failures.rs"]
mod failures;
#[path = "slurm/faults.rs"]
mod faults;
#[path = "slurm/gpus.rs"]
mod gpus;
#[path = "slurm/heterogeneous.rs"]
mod heterogeneous;
#[path = "slurm/inheritance.rs"]
mod inheritance;
#[path = "slurm/node_wide.rs"]
mod node_wide;
#[path = "slurm/options.rs"]
mod options;
#[path = "slurm/packages.rs"]
mod packages;
#[path = "slurm/placement.rs"]
mod placement;
#[path = "slurm/ranks.rs"]
mod ranks;
#[path = "slurm/security.rs"]
mod security;
#[path = "slurm/soak.rs"]
mod soak;
#[path = "slurm/steps.rs"]
mod steps;
#[path = "slurm/trace.rs"]
mod trace;
#[path = "slurm/versions.rs"]
mod versions;

use std::process::ExitCode;
use std::sync::Arc;

use libtest_mimic::{Arguments, Completion, Failed, Trial};
// The tests name them as their own.
use roce_cluster::{cluster, prerequisites, run, sysfs};

use crate::cluster::Cluster;

/// What a test is given, and what it gives.
type Test = fn(&Cluster) -> anyhow::Result<()>;

/// A test's error where the Slurm that is tested can't do what the test is about, and no package would help.
#[derive(Debug)]
struct CannotBeHad(&'static str);

impl std::error::Error for CannotBeHad {}

impl std::fmt::Display for CannotBeHad {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.0)
    }
}

/// The verdict on one test.
fn verdict(result: anyhow::Result<()>) -> Result<Completion, Failed> {
    match result {
        Ok(()) => Ok(Completion::Completed),
        Err(error) => match error.downcast_ref::<CannotBeHad>() {
            Some(reason) => {
                println!("skipped: {reason}");
                Ok(Completion::ignored_with(reason.to_string()))
            }
            None => Err(format!("{error:#}").into()),
        },
    }
}

fn main() -> ExitCode {
    if std::env::args().nth(1).as_deref() == Some("be-a-rank") {
        return match ranks::rank() {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("{error:#}");
                ExitCode::FAILURE
            }
        };
    }
    let mut arguments = Arguments::from_args();
    // One cluster, whose plugstack.conf each test writes.
    arguments.test_threads = Some(1);
    let mut groups = vec![
        ("brief", brief::TESTS),
        ("options", options::TESTS),
        ("failures", failures::TESTS),
        ("placement", placement::TESTS),
        ("inheritance", inheritance::TESTS),
        ("faults", faults::TESTS),
        ("security", security::TESTS),
        ("node_wide", node_wide::TESTS),
        ("versions", versions::TESTS),
        ("steps", steps::TESTS),
        ("gpus", gpus::TESTS),
        ("heterogeneous", heterogeneous::TESTS),
        ("ranks", ranks::TESTS),
        ("soak", soak::tests()),
    ];
    // Only where there are packages, and a root to install them into.
    if packages::folder().is_some() {
        groups.push(("brief::packages", packages::TESTS));
    }
    let named = |(group, tests): (&str, &[(&str, Test)])| {
        tests.iter().map(|(name, test)| (format!("{group}::{name}"), *test)).collect::<Vec<_>>()
    };
    let tests: Vec<(String, Test)> = groups.into_iter().flat_map(named).collect();
    if arguments.list {
        return run(&arguments, &tests, None);
    }
    let plugin = match prerequisites::check() {
        Ok(plugin) => plugin,
        Err(missing) => return skip(&arguments, &tests, &missing.to_string()),
    };
    let cluster = Cluster::start(&plugin).and_then(|mut cluster| {
        cluster.start_second()?;
        Ok(cluster)
    });
    match cluster {
        Ok(cluster) => {
            // `cargo xtask test --all-slurm` reads this line.
            println!("slurmctld {}, glibc {}", cluster.slurm(), cluster.glibc());
            run(&arguments, &tests, Some(&Arc::new(cluster)))
        }
        Err(error) => {
            eprintln!("the cluster did not start: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Runs the tests, or without a cluster lists them as ignored.
fn run(arguments: &Arguments, tests: &[(String, Test)], cluster: Option<&Arc<Cluster>>) -> ExitCode {
    let trial = |(name, test): &(String, Test)| {
        let test = *test;
        let cluster = cluster.map(Arc::clone);
        let is_ignored = cluster.is_none() && !arguments.list;
        let body = move || match cluster {
            Some(cluster) => verdict(test(&cluster)),
            None => Ok(Completion::Completed),
        };
        Trial::ignorable_test(name, body).with_ignored_flag(is_ignored)
    };
    // Not `exit`: the cluster is stopped when it is dropped.
    libtest_mimic::run(arguments, tests.iter().map(trial).collect()).exit_code()
}

/// Says why nothing is tested, and whether that is acceptable.
fn skip(arguments: &Arguments, tests: &[(String, Test)], missing: &str) -> ExitCode {
    println!("skipped: {} tests with real Slurm: {missing}", tests.len());
    if prerequisites::is_required() {
        eprintln!("ROCE_REQUIRE has slurm: a skip is a failure");
        return ExitCode::FAILURE;
    }
    run(arguments, tests, None)
}
