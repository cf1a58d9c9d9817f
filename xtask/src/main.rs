//! The developers' commands.
//!
//! | command | does |
//! | --- | --- |
//! | `cargo xtask demo` | shows the whole path on a cluster of guests: from an option of srun to a DSCP on a wire |
//! | `cargo xtask test` | runs every test |
//! | `cargo xtask dist` | builds the files that are released, for glibc 2.28 and newer |
//! | `cargo xtask package` | makes the Debian package and the RPM of them |
//! | `cargo xtask bench NAME` | measures against a peer or a limit |
//! | `cargo xtask simulate NAME` | shows what no machine here is large enough for |
//! | `cargo xtask soak NAME` | runs what takes too long for every test run |
//!
//! All install the Debian packages that are missing, build what they need, keep what they made under `target/`, can be
//! repeated, and leave no process behind.

mod artifacts;
mod bench;
mod demo;
mod dist;
mod package;
mod packages;
mod progress;
mod simulate;
mod soak;
mod suites;
mod test;

use clap::{Parser, Subcommand};
use roce_lab::Interrupt;
use std::process::ExitCode;

#[derive(Parser)]
#[command(
    name = "cargo xtask",
    bin_name = "cargo xtask",
    about = "The developers' commands",
    arg_required_else_help = true
)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Boot two guests, run `srun --roce-tc=3` there, and read the packets off their wires
    Demo(demo::Arguments),
    /// Build the files that are released: spank_roce.so for every Slurm from 20.11 to 26.05, and rocectl
    Dist,
    /// Make the Debian package and the RPM of the released files
    Package(package::Arguments),
    /// Measure against a peer or a limit: plan, plugin, bootstrap
    Bench(bench::Arguments),
    /// Simulate what no machine here is large enough for: bootstrap
    Simulate(simulate::Arguments),
    /// Run what takes too long for every test run: fuzz, host, steps, hostile, ranks, messages, verbs,
    /// faults, miri
    Soak(soak::Arguments),
    /// Run every test: format, lints, units, the plugin in a pretend and in a real Slurm, the whole path in guests
    Test(test::Arguments),
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let result = Interrupt::on_signals().map_err(anyhow::Error::from).and_then(|interrupt| {
        // Builds and logs are named relative to the workspace, wherever the command was typed.
        std::env::set_current_dir(artifacts::workspace())?;
        match arguments.command {
            Command::Demo(arguments) => demo::run(&arguments, &interrupt),
            Command::Bench(arguments) => bench::run(&arguments, &interrupt),
            Command::Dist => dist::run(&interrupt),
            Command::Package(arguments) => package::run(&arguments, &interrupt),
            Command::Simulate(arguments) => simulate::run(&arguments, &interrupt),
            Command::Soak(arguments) => soak::run(&arguments, &interrupt),
            Command::Test(arguments) => test::run(&arguments, &interrupt),
        }
    });
    match result {
        Ok(code) => code,
        Err(error) if matches!(error.downcast_ref(), Some(roce_lab::Error::Interrupted)) => {
            eprintln!("interrupted; everything that was started has been stopped");
            ExitCode::from(130)
        }
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
