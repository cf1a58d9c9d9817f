//! The whole path in the lab: one cluster of two guests, and named controls on it, each of which must come out in its own
//! way. `cargo test -p roce-tests --test lab -- NAME` runs those whose names contain NAME.

mod classes;
mod demo;
mod faults;
mod lab;
mod messages;
mod mpi;
mod no_rdma;
mod node_wide;
mod peers;
mod ranks;
mod refused;
mod untouched;
mod verbs;
mod watchdog;

use lab::Lab;
use libtest_mimic::{Arguments, Completion, Failed, Trial};
use std::{
    io::{Write, stderr},
    process::ExitCode,
    sync::Arc,
};

/// A test with its name.
#[derive(Clone, Copy)]
struct Control {
    name: &'static str,
    run: fn(&Lab) -> Result<(), Failed>,
}

fn main() -> ExitCode {
    if let Some(folder) = watchdog::folder_of_the_child() {
        return watchdog::child(&folder);
    }
    let mut arguments = Arguments::from_args();
    // They share one cluster, and two cores.
    arguments.test_threads = Some(1);
    let lab = match Lab::new() {
        Ok(lab) => Arc::new(lab),
        Err(error) => {
            eprintln!("error: {error}");
            return ExitCode::FAILURE;
        }
    };
    let trials = controls().into_iter().map(|control| trial(control, &lab)).collect();
    let conclusion = libtest_mimic::run(&arguments, trials);
    let ended = lab.end();
    if let Err(error) = &ended {
        // A panic of the standard error is of no interest any more.
        let _ = writeln!(stderr(), "error: the cluster's end: {error}");
    }
    if ended.is_ok() { conclusion.exit_code() } else { ExitCode::FAILURE }
}

fn controls() -> Vec<Control> {
    [
        watchdog::CONTROLS,
        demo::CONTROLS,
        classes::CONTROLS,
        peers::CONTROLS,
        mpi::CONTROLS,
        ranks::CONTROLS,
        verbs::CONTROLS,
        messages::CONTROLS,
        faults::CONTROLS,
        refused::CONTROLS,
        untouched::CONTROLS,
        node_wide::CONTROLS,
    ]
    .into_iter()
    .chain([no_rdma::CONTROLS])
    .flatten()
    .copied()
    .chain(messages::soak())
    .chain(faults::soak())
    .chain(faults::further())
    .collect()
}

fn trial(control: Control, lab: &Arc<Lab>) -> Trial {
    let lab = Arc::clone(lab);
    Trial::ignorable_test(control.name, move || {
        lab.interrupt().check()?;
        if let Some(reason) = lab.cannot_run() {
            return roce_tests::skipped("lab", &reason);
        }
        (control.run)(&lab)?;
        Ok(Completion::Completed)
    })
}
