//! A failure at every place where one can happen: in Slurm's functions, in the C library, in the node's files,
//! in the plugin itself.

use std::fs;

use anyhow::{Context as _, Result, ensure};
use roce_cluster::sysfs;
use roce_plugin_host::plugin::{Plugin, fail_io};
use roce_plugin_host::process::apart;
use roce_plugin_host::step::{Outcome, Step, play};

use crate::Test;
use crate::judge::{Ends, OnFailure, judge};
use crate::machine::{Machine, asking, faulty};

pub(crate) const TESTS: &[(&str, Test)] = &[
    ("every_call_of_slurms_functions_may_fail", spank_functions),
    ("every_call_of_the_c_library_may_fail", c_library),
    ("every_file_of_the_node_may_be_a_folder_or_gone", files),
    ("a_panic_in_any_hook_ends_the_task_with_one_line", panics),
    ("the_released_file_can_inject_nothing", released),
];

/// Plays the step with one fault after the other, under both policies. Gives how many tasks were not placed.
fn play_faults(
    machine: &Machine,
    step: &Step,
    count: fn(&Outcome) -> usize,
    inject: impl Fn(&mut Step, usize),
) -> Result<usize> {
    let mut unplaced = 0;
    for (policy, on_failure) in [("", OnFailure::Fail), ("on_failure = \"warn\"", OnFailure::Warn)] {
        machine.site(policy)?;
        let whole = apart(|| play(&machine.load()?, step))?;
        judge(&whole, on_failure)?;
        let places = count(&whole);
        ensure!(places > 10, "only {places} places for a fault were counted");
        for at in 0..places {
            let outcome = apart(|| {
                let plugin = machine.load()?;
                let mut step = step.clone();
                inject(&mut step, at);
                play(&plugin, &step)
            });
            // What the site says can't be known where the site file can't be read: then the task fails.
            let ends = outcome.and_then(|outcome| {
                judge(&outcome, on_failure).or_else(|error| match on_failure {
                    OnFailure::Warn if is_about_the_site(&outcome) => judge(&outcome, OnFailure::Fail),
                    _ => Err(error),
                })
            });
            unplaced += ends.with_context(|| format!("fault {at} of {places}, {on_failure:?}"))?.unplaced;
        }
    }
    Ok(unplaced)
}

/// Did every task fail for the site file's sake?
fn is_about_the_site(outcome: &Outcome) -> bool {
    outcome.tasks.iter().all(|task| task.own_lines().iter().all(|line| line.contains("site file")))
}

fn spank_functions(machine: &Machine) -> Result<()> {
    // As srun carries it. By an option alone, a step whose options can't even be registered asks for nothing.
    let mut step = asking();
    step.environment.push(c"SLURM_ROCE_TC=3".to_owned());
    let inject = |step: &mut Step, at| step.fail_at = Some(at);
    let unplaced = play_faults(machine, &step, |outcome| outcome.spank_calls, inject)?;
    ensure!(unplaced > 10, "only {unplaced} tasks noticed a fault");
    Ok(())
}

fn c_library(machine: &Machine) -> Result<()> {
    for error in [libc::EIO, libc::ENOENT, libc::ENOMEM] {
        let inject = |_: &mut Step, at| fail_io(Some(at), error);
        let unplaced = play_faults(machine, &asking(), |outcome| outcome.io_calls, inject)?;
        ensure!(unplaced > 10, "only {unplaced} tasks noticed a fault");
    }
    Ok(())
}

fn files(machine: &Machine) -> Result<()> {
    let mut all = Vec::new();
    sysfs::list(&machine.root().join("sys"), &mut all)?;
    ensure!(all.len() > 20, "{all:?}");
    let mut unplaced = 0;
    for path in all {
        let text = fs::read(&path)?;
        for is_folder in [true, false] {
            fs::remove_file(&path)?;
            if is_folder {
                fs::create_dir(&path)?;
            }
            let outcome = apart(|| play(&machine.load()?, &asking()))?;
            unplaced +=
                judge(&outcome, OnFailure::Fail).with_context(|| path.display().to_string())?.unplaced;
            if is_folder {
                fs::remove_dir(&path)?;
            }
            fs::write(&path, &text)?;
        }
    }
    ensure!(unplaced > 0, "no task missed a file");
    Ok(())
}

fn panics(machine: &Machine) -> Result<()> {
    let file = faulty()?;
    for hook in ["Init", "InitPostOpt", "UserInit", "TaskPostFork", "TaskInit"] {
        let arguments = machine.arguments(&[&format!("fault={hook}")])?;
        let mut step = asking();
        // A variable, for in the first hook no option is known yet.
        step.environment.push(c"SLURM_ROCE_TC=3".to_owned());
        let outcome = apart(|| play(&Plugin::load(&file, &arguments)?, &step))?;
        let ends = judge(&outcome, OnFailure::Fail).with_context(|| hook.to_owned())?;
        ensure!(ends == Ends { placed: 0, unplaced: 2 }, "{hook}: {outcome:#?}");
        let idle = Step { options: Vec::new(), ..asking() };
        let outcome = apart(|| play(&Plugin::load(&file, &arguments)?, &idle))?;
        let is_left_alone = outcome.tasks.iter().all(|task| task.runs() && task.stderr.is_empty());
        ensure!(is_left_alone, "{hook}: who did not ask is bothered: {outcome:#?}");
    }
    Ok(())
}

fn released(machine: &Machine) -> Result<()> {
    let bytes = fs::read(&machine.file)?;
    ensure!(!bytes.windows(6).any(|part| part == b"fault="), "{} knows fault=", machine.file.display());
    let arguments = machine.arguments(&["fault=UserInit"])?;
    let outcome = apart(|| play(&Plugin::load(&machine.file, &arguments)?, &asking()))?;
    judge(&outcome, OnFailure::Fail)?;
    let said = &outcome.tasks[0].stderr;
    ensure!(said.contains("unknown argument \"fault=UserInit\""), "{said}");
    Ok(())
}
