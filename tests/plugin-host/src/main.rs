//! `roce-plugin-host`: many steps in one process, for `cargo xtask soak host`, valgrind and the benchmark.
//!
//! `ROCE_PLUGIN` names the plugin's file.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail, ensure};
use roce_cluster::sysfs;
use roce_plugin_host::plugin::Plugin;
use roce_plugin_host::process::Held;
use roce_plugin_host::step::{Outcome, Step, play};

const USAGE: &str = "usage: roce-plugin-host soak|time|play STEPS, with the plugin's path in ROCE_PLUGIN";

fn main() -> Result<ExitCode> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [command, steps] = &arguments[..] else { bail!(USAGE) };
    let steps = steps.parse().with_context(|| format!("{steps} is no number of steps; {USAGE}"))?;
    match command.as_str() {
        "soak" => {
            without_cache()?;
            soak(steps)?;
        }
        "time" => time(steps)?,
        "play" => play_many(steps)?,
        _ => bail!(USAGE),
    }
    Ok(ExitCode::SUCCESS)
}

/// glibc counts as used what it keeps for the next call of the same size, and keeps more and more for a while. Goes on
/// in a program for which it doesn't.
fn without_cache() -> Result<()> {
    const NAME: &str = "GLIBC_TUNABLES";
    const VALUE: &str = "glibc.malloc.tcache_count=0";
    if std::env::var_os(NAME).is_some_and(|value| value == VALUE) {
        return Ok(());
    }
    let own = std::env::current_exe()?;
    let error = Command::new(&own).args(std::env::args_os().skip(1)).env(NAME, VALUE).exec();
    Err(error).with_context(|| own.display().to_string())
}

/// A made-up machine and the plugin that reads it.
fn setup() -> Result<(tempfile::TempDir, Plugin)> {
    let file = std::env::var_os("ROCE_PLUGIN").map(PathBuf::from).context(USAGE)?;
    let root = tempfile::tempdir()?;
    // The step's user reads it.
    std::fs::set_permissions(root.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    sysfs::write_two_nics(root.path())?;
    let plugin = Plugin::load(&file, &[argument(root.path())?])?;
    Ok((root, plugin))
}

fn argument(root: &Path) -> Result<CString> {
    Ok(CString::new(format!("sysfs={}", root.display()))?)
}

fn step() -> Step {
    Step { options: vec![("roce-tc", c"3".to_owned())], ..Step::default() }
}

fn expect_placed(outcome: &Outcome) -> Result<()> {
    let is_placed = outcome.tasks.iter().all(|task| task.runs() && task.is_placed());
    ensure!(is_placed, "a task was not placed: {outcome:#?}");
    Ok(())
}

/// Plays steps, one after the other in this process, and holds what it holds at the end against what it held
/// after the first ones.
fn soak(steps: usize) -> Result<()> {
    let (_root, plugin) = setup()?;
    let run = |count: usize| (0..count).try_for_each(|_| expect_placed(&play(&plugin, &step())?));
    // Caches fill, and glibc keeps what it freed.
    run((steps / 10).clamp(1, 200))?;
    let before = Held::now()?;
    run(steps)?;
    let after = Held::now()?;
    println!("{steps} steps in one process\nbefore {before:?}\nafter  {after:?}");
    after.same_as(&before)?;
    ensure!(after.heap <= before.heap + HEAP_SLACK, "the heap has grown");
    ensure!(after.resident_kib <= before.resident_kib + RESIDENT_SLACK_KIB, "the resident memory has grown");
    Ok(())
}

/// What the host's own vectors may hold more at one moment than at another. A leak of the smallest block (32 bytes) in
/// each of 1,000 steps is thirty times as much.
const HEAP_SLACK: usize = 1024;
/// Free blocks between used ones; what is lost for good shows in the heap or among the mappings.
const RESIDENT_SLACK_KIB: usize = 512;

/// Plays steps, each with and without a fault, for valgrind to watch.
fn play_many(steps: usize) -> Result<()> {
    let (_root, plugin) = setup()?;
    for at in 0..steps {
        expect_placed(&play(&plugin, &step())?)?;
        // Every fifth call of Slurm's functions, until there are no more.
        play(&plugin, &Step { fail_at: Some(at * 5), ..step() })?;
    }
    Ok(())
}

/// Prints, as JSON, the nanoseconds that each hook took in each step: with and without options.
fn time(steps: usize) -> Result<()> {
    let (_root, plugin) = setup()?;
    let mut times: BTreeMap<String, Vec<u64>> = BTreeMap::new();
    for (options, step) in [("no option", Step::default()), ("--roce-tc=3", step())] {
        for _ in 0..steps {
            let outcome = play(&plugin, &step)?;
            for (hook, code, time) in outcome.calls.iter().chain(&outcome.tasks[0].calls) {
                ensure!(*code == 0, "{hook:?} returned {code}");
                if plugin.has(*hook) {
                    times.entry(format!("{hook:?}, {options}")).or_default().push(*time);
                }
            }
        }
    }
    println!("{}", serde_json::to_string(&times)?);
    Ok(())
}
