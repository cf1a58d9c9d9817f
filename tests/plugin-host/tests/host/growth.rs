//! Many steps in one process, and memcheck's word on a few.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::Test;
use crate::machine::Machine;

pub(crate) const TESTS: &[(&str, Test)] = &[
    ("a_thousand_steps_in_one_process_hold_no_more_than_one", steps),
    ("valgrind_finds_no_error_and_no_leak", valgrind),
];

/// The program of this crate, which loads nothing but the plugin.
fn host() -> PathBuf {
    PathBuf::from(env!("CARGO_BIN_EXE_roce-plugin-host"))
}

fn run(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("{}", command.get_program().display()))?;
    let said =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    ensure!(output.status.success(), "{}: {said}", output.status);
    Ok(said)
}

fn steps(machine: &Machine) -> Result<()> {
    run(Command::new(host()).args(["soak", "1000"]).env("ROCE_PLUGIN", &machine.file)).map(drop)
}

fn valgrind(machine: &Machine) -> Result<()> {
    let said = run(Command::new("valgrind")
        .args(["--error-exitcode=9", "--leak-check=full", "--errors-for-leak-kinds=definite"])
        .arg("--show-leak-kinds=definite")
        .arg(host())
        .args(["play", "12"])
        .env("ROCE_PLUGIN", &machine.file))?;
    // slurmstepd and each of its tasks.
    let verdicts = said.matches("ERROR SUMMARY: 0 errors").count();
    ensure!(verdicts > 10 && verdicts == said.matches("ERROR SUMMARY").count(), "{said}");
    Ok(())
}
