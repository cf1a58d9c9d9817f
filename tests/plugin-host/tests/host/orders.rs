//! Hooks in Slurm's order, and in any other.

use std::ffi::CString;
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd};

use anyhow::{Result, ensure};
use fastrand::Rng;
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::unistd::dup2_stderr;
use roce_plugin_host::plugin::{Hook, Plugin, use_option};
use roce_plugin_host::process::{Held, apart};
use roce_plugin_host::slurm::{Context, slurm};
use roce_plugin_host::step::{Step, play, set_task};

use crate::Test;
use crate::judge::{Ends, OnFailure, judge};
use crate::machine::{Machine, asking};

pub(crate) const TESTS: &[(&str, Test)] = &[
    ("a_step_in_slurms_order_is_placed_task_by_task", in_order),
    ("a_step_that_asks_for_nothing_is_left_alone", not_asked),
    ("scripts_and_shells_of_a_job_are_left_alone", special),
    ("a_step_leaves_nothing_behind_in_slurmstepd", nothing_left),
    ("hooks_in_any_order_neither_crash_nor_fail_where_a_node_would_drain", any_order),
];

fn in_order(machine: &Machine) -> Result<()> {
    let outcome = apart(|| play(&machine.load()?, &asking()))?;
    ensure!(judge(&outcome, OnFailure::Fail)? == Ends { placed: 2, unplaced: 0 }, "{outcome:#?}");
    for (task, (device, cpu)) in outcome.tasks.iter().zip([("mlx5_0:1", "0"), ("mlx5_1:1", "1")]) {
        ensure!(task.value("ROCE_DEVICES") == Some(device), "{task:#?}");
        ensure!(task.value("ROCE_DSCP") == Some("26"), "{task:#?}");
        ensure!(task.cpus.1 == cpu, "{task:#?}");
    }
    // Not bound by Slurm: each goes to the CPUs of its NIC.
    let wide = Step { binding: Vec::new(), ..asking() };
    let outcome = apart(|| play(&machine.load()?, &wide))?;
    judge(&outcome, OnFailure::Fail)?;
    let mut cpus: Vec<&str> = outcome.tasks.iter().map(|task| task.cpus.1.as_str()).collect();
    cpus.sort_unstable();
    ensure!(cpus == ["0", "1"], "{outcome:#?}");
    Ok(())
}

fn not_asked(machine: &Machine) -> Result<()> {
    for options in [vec![], vec![("roce", c"off".to_owned())]] {
        untouched(machine, &Step { options, ..asking() })?;
    }
    Ok(())
}

fn special(machine: &Machine) -> Result<()> {
    // Batch script, extern step, interactive shell.
    for id in [0xffff_fffb, 0xffff_fffc, 0xffff_fffa] {
        untouched(machine, &Step { id, ..asking() })?;
    }
    Ok(())
}

fn untouched(machine: &Machine, step: &Step) -> Result<()> {
    let outcome = apart(|| play(&machine.load()?, step))?;
    for task in &outcome.tasks {
        let is_untouched = task.runs() && task.changes.is_empty() && task.cpus.0 == task.cpus.1;
        ensure!(is_untouched && task.stderr.is_empty(), "{step:?}: {outcome:#?}");
    }
    Ok(())
}

/// Mappings that slurmstepd may hold when it ends: the table of tasks, and the orders of many.
const SHARED: usize = 2;

fn nothing_left(machine: &Machine) -> Result<()> {
    for tasks in [1, 64] {
        let step = Step { tasks, ..asking() };
        apart(|| {
            let plugin = machine.load()?;
            play(&plugin, &step)?;
            let before = Held::now()?;
            for _ in 0..3 {
                play(&plugin, &step)?;
            }
            let after = Held::now()?;
            ensure!(after.shared <= SHARED, "more than the table of tasks and their orders: {after:?}");
            after.same_as(&before)
        })?;
    }
    Ok(())
}

/// How many sequences, and of how many calls.
const SEQUENCES: u64 = 400;
const CALLS: usize = 30;

fn any_order(machine: &Machine) -> Result<()> {
    let first = match std::env::var("ROCE_SEED") {
        Ok(seed) => seed.parse()?,
        Err(_) => 0,
    };
    for seed in first..first + SEQUENCES {
        let run = || sequence(&machine.load()?, &mut Rng::with_seed(seed));
        apart(run).map_err(|error| error.context(format!("ROCE_SEED={seed}")))?;
    }
    Ok(())
}

const CONTEXTS: [Context; 5] =
    [Context::Remote, Context::Local, Context::Allocator, Context::Slurmd, Context::JobScript];
const OPTIONS: [&str; 4] = ["roce", "roce-tc", "roce-nics", "roce-gid"];
const VALUES: [&str; 8] = ["3", "on", "9", "", "all", "mlx5_7", "verbose", "10.0.0.0/8"];

/// One sequence of calls in one process, all without forks: worse than what Slurm could do.
fn sequence(plugin: &Plugin, rng: &mut Rng) -> Result<()> {
    let stderr = File::from(memfd_create(c"stderr", MFdFlags::empty())?);
    dup2_stderr(stderr.as_fd())?;
    let before = Held::now()?;
    // Mostly one program per process, as in life.
    slurm().reset(if rng.u8(..) < 200 { Context::Remote } else { CONTEXTS[rng.usize(..CONTEXTS.len())] });
    let (mut said, mut failed_tasks) = (Vec::new(), 0);
    for _ in 0..CALLS {
        match rng.u8(..16) {
            0 => slurm().context = CONTEXTS[rng.usize(..CONTEXTS.len())],
            1 => {
                let items = &mut slurm().items;
                items.step_id = rng.bool().then_some(0);
                items.local_tasks = [None, Some(0), Some(2), Some(64)][rng.usize(..4)];
                items.cpus_per_task = [None, Some(0), Some(1), Some(u32::MAX)][rng.usize(..4)];
            }
            2 => set_task(rng.u32(..3), Some(std::process::id().cast_signed())),
            3 => {
                let items = &mut slurm().items;
                items.task_id = [None, Some(-1), Some(i32::MAX)][rng.usize(..3)];
                items.task_pid = [None, Some(-1), Some(0), Some(i32::MAX)][rng.usize(..4)];
            }
            4 | 5 => {
                let value = CString::new(VALUES[rng.usize(..VALUES.len())])?;
                let name = OPTIONS[rng.usize(..OPTIONS.len())];
                let remote = slurm().context == Context::Remote;
                let code = use_option(name, Some(&value), remote);
                said.push(format!("--{name}={value:?} {code:?}"));
                ensure!(matches!(code, None | Some(0 | -1)), "{said:#?}");
                ensure!(!remote || code != Some(-1), "an option failed on a node: {said:#?}");
            }
            6 => slurm().environment.push(c"SLURM_ROCE_TC=3".to_owned()),
            _ => {
                let hook = Hook::ALL[rng.usize(..Hook::ALL.len())];
                let context = slurm().context;
                let (code, _) = plugin.call(hook);
                said.push(format!("{hook:?} in {context:?}: {code}"));
                let may_fail =
                    hook.may_fail_on_a_node() || matches!(context, Context::Local | Context::Allocator);
                ensure!(code == 0 || (code == -1 && may_fail), "{said:#?}");
                failed_tasks += usize::from(hook.may_fail_on_a_node() && code == -1);
            }
        }
    }
    let after = Held::now()?;
    // Through the path, for the descriptor stands at the end.
    let lines = std::fs::read_to_string(format!("/proc/self/fd/{}", stderr.as_raw_fd()))?;
    ensure!(lines.lines().count() == failed_tasks, "{failed_tasks} tasks failed: {lines}{said:#?}");
    let held = (after.descriptors, after.threads, after.shared <= before.shared + SHARED);
    ensure!(held == (before.descriptors, before.threads, true), "{before:?} {after:?} {said:#?}");
    Ok(())
}
