//! srun, sbatch and salloc, up to the point where something would be launched.

use std::ffi::CStr;

use anyhow::{Context as _, Result, ensure};
use roce_plugin_host::plugin::{fail_io, io_calls};
use roce_plugin_host::process::apart;
use roce_plugin_host::slurm::{Context, slurm};
use roce_plugin_host::submit::{Submission, play};

use crate::Test;
use crate::machine::Machine;

pub(crate) const TESTS: &[(&str, Test)] = &[
    ("srun_carries_the_settled_request_and_a_secret", settled),
    ("a_bad_value_ends_a_submission_with_one_line", bad_values),
    ("a_submission_survives_a_failure_at_every_call", faults),
];

type Options<'a> = &'a [(&'a str, Option<&'a CStr>)];

fn submit(machine: &Machine, context: Context, options: Options<'_>) -> Result<Submission> {
    let submission = apart(|| Ok(play(&machine.load()?, context, options)))?;
    judge(&submission).with_context(|| format!("{submission:#?}"))?;
    Ok(submission)
}

/// Only 0 and -1, and whoever fails says why in one line.
fn judge(submission: &Submission) -> Result<()> {
    ensure!(submission.codes.iter().all(|code| matches!(code, 0 | -1)), "neither 0 nor -1");
    let is_told = submission.errors.len() == 1 && submission.errors[0].starts_with("spank_roce: ");
    ensure!(!submission.failed() || is_told, "failed, but not with one line");
    Ok(())
}

const TC_3: Options<'_> = &[("roce-tc", Some(c"3"))];

fn settled(machine: &Machine) -> Result<()> {
    let submission = submit(machine, Context::Local, TC_3)?;
    let has = |start: &str| submission.variables.iter().any(|variable| variable.starts_with(start));
    ensure!(!submission.failed() && has("SLURM_ROCE_TC=3") && has("SLURM_ROCE_SECRET="), "{submission:#?}");
    for context in [Context::Allocator, Context::Local] {
        let submission = submit(machine, context, &[])?;
        ensure!(!submission.failed() && submission.variables.is_empty(), "{submission:#?}");
    }
    Ok(())
}

fn bad_values(machine: &Machine) -> Result<()> {
    let huge = std::ffi::CString::new("9".repeat(1 << 20))?;
    let rivals: Options<'_> = &[("roce-tc", Some(c"3")), ("roce-dscp", Some(c"26"))];
    let bad: [Options<'_>; 6] = [
        &[("roce-tc", Some(c"9"))],
        &[("roce-tc", None)],
        &[("roce-gid", Some(c"\xff\xfe"))],
        &[("roce-nics", Some(&huge))],
        &[("roce", Some(c"%n%n"))],
        rivals,
    ];
    for options in bad {
        for context in [Context::Local, Context::Allocator] {
            let submission = submit(machine, context, options)?;
            // Slurm hands sbatch's options over as if the script had them, so the last rival wins there.
            ensure!(submission.failed() || options.len() == 2, "{options:?}: {submission:#?}");
        }
    }
    Ok(())
}

fn faults(machine: &Machine) -> Result<()> {
    let count = || {
        let plugin = machine.load()?;
        fail_io(None, 0);
        let _ = play(&plugin, Context::Local, TC_3);
        Ok((slurm().calls, io_calls()))
    };
    let (spank, io) = apart(count)?;
    ensure!(spank > 5 && io > 3, "only {spank} and {io} calls were counted");
    for at in 0..io {
        let run = || {
            let plugin = machine.load()?;
            fail_io(Some(at), libc::EIO);
            Ok(play(&plugin, Context::Local, TC_3))
        };
        let submission = apart(run)?;
        judge(&submission).with_context(|| format!("call {at} of {io}: {submission:#?}"))?;
        let is_settled = submission.variables.iter().any(|variable| variable == "SLURM_ROCE_TC=3");
        ensure!(submission.failed() || is_settled, "call {at} of {io}: {submission:#?}");
    }
    Ok(())
}
