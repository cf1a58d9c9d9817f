//! Arguments that nobody expects: null, huge, no text, too many, too often.

use std::ffi::{CString, c_char};
use std::ptr::null;

use anyhow::{Context as _, Result, ensure};
use roce_plugin_host::plugin::{Hook, Plugin, call_back};
use roce_plugin_host::process::apart;
use roce_plugin_host::slurm::{Context, slurm};
use roce_plugin_host::step::{Outcome, Step, play};

use crate::Test;
use crate::judge::{Ends, OnFailure, judge};
use crate::machine::{Machine, asking};

pub(crate) const TESTS: &[(&str, Test)] = &[
    ("null_arguments_and_null_handles_are_borne_by_every_hook", nulls),
    ("a_callback_with_any_number_and_no_text_is_borne", callbacks),
    ("an_option_given_twice_counts_once_and_the_last_wins", twice),
    ("huge_and_garbled_values_end_the_task_with_one_line", hostile_values),
    ("a_hundred_thousand_variables_are_borne", many_variables),
    ("a_huge_or_empty_step_ends_with_one_line_or_none", sizes),
];

fn nulls(machine: &Machine) -> Result<()> {
    for hook in Hook::ALL {
        apart(|| {
            let plugin = machine.load()?;
            slurm().reset(Context::Remote);
            let text = c"sysfs=/nowhere".as_ptr();
            let lists: [(i32, *const *const c_char); 5] = [
                (3, null()),
                (-1, null()),
                (i32::MAX, null()),
                (3, [null(), text, null()].as_ptr()),
                (0, [text].as_ptr()),
            ];
            for (argc, argv) in lists {
                for handle in [Plugin::handle(), std::ptr::null_mut(), std::ptr::dangling_mut()] {
                    for context in [Context::Remote, Context::Local] {
                        slurm().context = context;
                        let (code, _) = plugin.call_with(hook, handle, argc, argv);
                        ensure!(matches!(code, 0 | -1), "{hook:?}({argc}) returned {code}");
                    }
                }
            }
            Ok(())
        })?;
    }
    Ok(())
}

fn callbacks(machine: &Machine) -> Result<()> {
    for remote in [true, false] {
        apart(|| {
            let plugin = machine.load()?;
            slurm().reset(if remote { Context::Remote } else { Context::Local });
            plugin.call(Hook::Init);
            let option = slurm().options.first().cloned().context("no option is registered")?;
            let huge = CString::new("9".repeat(1 << 20))?;
            for val in [0, 1, 7, 8, 1_000, -1, i32::MIN, i32::MAX] {
                for value in [None, Some(c""), Some(c"3"), Some(huge.as_c_str()), Some(c"\xff\xfe")] {
                    let code = call_back(&option, val, value, remote).context("no callback")?;
                    // Numbers that can't be an option's are refused or ignored, and on a node never judged.
                    let is_allowed = code == 0 || (code == -1 && (!remote || val < 0));
                    ensure!(is_allowed, "callback({val}, {remote}) returned {code}");
                }
            }
            Ok(())
        })?;
    }
    Ok(())
}

fn twice(machine: &Machine) -> Result<()> {
    let options = ["5", "9", "3", "3"].map(|value| ("roce-tc", CString::new(value).unwrap_or_default()));
    let step = Step { options: options.to_vec(), ..asking() };
    let outcome = apart(|| play(&machine.load()?, &step))?;
    judge(&outcome, OnFailure::Fail)?;
    ensure!(outcome.tasks[0].value("ROCE_PRIORITY") == Some("3"), "{outcome:#?}");
    Ok(())
}

/// Plays a step that asks with bytes that srun never checked, by the option and by the variable.
fn ask_with(machine: &Machine, option: &'static str, variable: &str, value: &[u8]) -> Result<[Outcome; 2]> {
    let text = CString::new(value)?;
    let delivered = Step { options: vec![(option, text)], ..asking() };
    let mut carried = Step { options: Vec::new(), ..asking() };
    carried.environment.push(CString::new([variable.as_bytes(), b"=", value].concat())?);
    Ok([apart(|| play(&machine.load()?, &delivered))?, apart(|| play(&machine.load()?, &carried))?])
}

fn hostile_values(machine: &Machine) -> Result<()> {
    let huge = [b'9'; 1 << 20];
    let values: [&[u8]; 8] =
        [b"\xff\xfe\x80", &huge, b"%n%s%n", b"\x1b[2J\n\n", b"3\n4", b"-1", b"../../x", b"3,3"];
    for value in values {
        for outcome in ask_with(machine, "roce-tc", "SLURM_ROCE_TC", value)? {
            let ends = judge(&outcome, OnFailure::Fail)?;
            ensure!(ends == Ends { placed: 0, unplaced: 2 }, "{:?}", String::from_utf8_lossy(value));
            let said = &outcome.tasks[0].stderr;
            ensure!(!said.contains('\x1b') && said.lines().count() == 1, "{said:?}");
        }
    }
    Ok(())
}

fn many_variables(machine: &Machine) -> Result<()> {
    let mut step = Step { tasks: 1, ..asking() };
    step.environment.extend((0..100_000).filter_map(|n| CString::new(format!("VARIABLE_{n}=x")).ok()));
    // Not variables at all.
    step.environment.extend([
        c"".to_owned(),
        c"=".to_owned(),
        c"no-equals".to_owned(),
        c"\xff=\xff".to_owned(),
    ]);
    step.environment.push(CString::new(format!("LONG={}", "x".repeat(1 << 20)))?);
    let outcome = apart(|| play(&machine.load()?, &step))?;
    ensure!(judge(&outcome, OnFailure::Fail)?.placed == 1, "not placed");
    Ok(())
}

fn sizes(machine: &Machine) -> Result<()> {
    for (tasks, cpus_per_task) in [(0, 1), (1, 0), (1, u32::MAX), (200, 1)] {
        let step = Step { tasks, cpus_per_task, ..asking() };
        let outcome = apart(|| play(&machine.load()?, &step))?;
        judge(&outcome, OnFailure::Fail)?;
    }
    Ok(())
}
