//! The plugin's file in a pretend Slurm: every hook in Slurm's order and in others, with arguments that nobody
//! expects and a failure at every place where one can happen.
//!
//! `ROCE_PLUGIN` and `ROCE_PLUGIN_FAULTY` name the files; `cargo xtask test --only host` builds them.

mod arguments;
mod faults;
mod growth;
mod judge;
mod machine;
mod orders;
mod submissions;

use std::process::ExitCode;

use anyhow::Result;
use libtest_mimic::{Arguments, Trial};

use crate::machine::Machine;

/// What a test is given, and what it gives.
type Test = fn(&Machine) -> Result<()>;

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    // They fork, and a copy of a process with threads is not whole.
    arguments.test_threads = Some(1);
    let tests: Vec<(&str, Test)> =
        [orders::TESTS, arguments::TESTS, faults::TESTS, submissions::TESTS, growth::TESTS].concat();
    let trials = tests.into_iter().map(|(name, test)| {
        Trial::test(name, move || {
            Machine::new().and_then(|machine| test(&machine)).map_err(|error| format!("{error:#}").into())
        })
    });
    libtest_mimic::run(&arguments, trials.collect()).exit_code()
}
