//! `rocectl exec`: pin this process, then become the command.

use std::ffi::OsString;
use std::io;
use std::os::unix::process::CommandExt as _;
use std::process::Command;

use anyhow::Context as _;
use roce_bind::MemoryMode;
use roce_plan::{Memlock, MemoryPolicy, OnFailure, Plan, TaskPlan};

use crate::cli::ExecArgs;
use crate::step::Step;
use crate::{complain, in_full};

/// The command could not be started.
#[derive(Debug)]
pub(crate) struct NotStarted {
    pub(crate) command: OsString,
    pub(crate) source: io::Error,
}

impl std::fmt::Display for NotStarted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "can't run {}: {}", self.command.display(), self.source)
    }
}

impl std::error::Error for NotStarted {}

/// Returns only if that fails.
pub(crate) fn run(arguments: &ExecArgs) -> anyhow::Result<()> {
    let (program, rest) = arguments.command.split_first().context("no command was given")?;
    let mut command = Command::new(program);
    command.args(rest);
    let step = Step::of("exec", &arguments.rank, &arguments.node, &arguments.site, &arguments.roce)?;
    if let Some(planned) = &step.planned {
        let verbose = arguments.verbose || planned.request.verbose;
        let applied = match &planned.plan {
            Ok(plan) => apply(&step, plan, verbose).map(|()| Some(plan)),
            Err(error) => Err(anyhow::anyhow!(in_full(error))),
        };
        match applied {
            Ok(Some(plan)) => {
                for (name, value) in step.changes(plan) {
                    match value {
                        Some(value) => command.env(name, value),
                        None => command.env_remove(name),
                    };
                }
            }
            Ok(None) => {}
            Err(error) if step.site.policy.on_failure == OnFailure::Warn => {
                complain(
                    "warning: ",
                    &format!("{}; running {} untouched", in_full(&error), program.display()),
                );
            }
            Err(error) => return Err(error),
        }
    }
    let source = command.exec();
    Err(NotStarted { command: program.clone(), source }.into())
}

/// Binds this process to its row.
fn apply(step: &Step, plan: &Plan, verbose: bool) -> anyhow::Result<()> {
    let local_rank = step.rank.local;
    let task = plan.task(local_rank).with_context(|| format!("the plan has no task {local_rank}"))?;
    // Memory first: it is the one that can fail on a machine where everything else is right.
    let memory = bind_memory(task, verbose)?;
    let bound = roce_bind::set_affinity(&task.cpus);
    if bound.is_err() && memory == Memory::Set {
        // It was the default one before, and going back to that can't be refused.
        let _ = roce_bind::set_memory_policy(MemoryMode::Default, &[]);
    }
    bound.with_context(|| format!("can't bind to CPUs {}", task.cpus))?;
    raise_memlock(step);
    if verbose {
        let row = plan.describe(local_rank).unwrap_or_default();
        let kept = if memory == Memory::Chosen { " (kept: a policy was set before)" } else { "" };
        complain("", &format!("task {local_rank} of {}: {row}{kept}", step.rank.size));
    }
    if local_rank == 0 {
        for warning in plan.class.iter().flat_map(|class| &class.warnings) {
            complain("warning: ", warning);
        }
    }
    Ok(())
}

/// What became of the memory policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Memory {
    /// There was nothing to do, or a mere preference was refused.
    Untouched,
    /// Somebody has chosen one before.
    Chosen,
    /// It is the plan's.
    Set,
}

/// Sets the memory policy, unless somebody has chosen one already. What is only a preference may
/// fail: containers often forbid it.
fn bind_memory(task: &TaskPlan, verbose: bool) -> anyhow::Result<Memory> {
    let (mode, nodes) = match &task.memory {
        MemoryPolicy::Keep => return Ok(Memory::Untouched),
        MemoryPolicy::Prefer(node) => (MemoryMode::Preferred, vec![*node]),
        MemoryPolicy::Bind(nodes) => (MemoryMode::Bind, nodes.clone()),
    };
    let set = || {
        if !roce_bind::has_default_memory_policy()? {
            return Ok(Memory::Chosen);
        }
        roce_bind::set_memory_policy(mode, &nodes).map(|()| Memory::Set)
    };
    match set() {
        Ok(memory) => Ok(memory),
        Err(error) if mode == MemoryMode::Bind => {
            let error: io::Error = error;
            let what = format!("can't bind memory ({}); --roce-bind=none leaves memory alone", task.memory);
            Err(error).context(what)
        }
        Err(error) => {
            if verbose {
                complain("warning: ", &format!("the memory policy stays as it was: {error}"));
            }
            Ok(Memory::Untouched)
        }
    }
}

/// RDMA buffers are locked memory. A limit that is too low shows much later and as something else
/// (`create_cq: out of memory`), so it is said here, once per node.
fn raise_memlock(step: &Step) {
    let wanted = match step.site.limits.memlock {
        Memlock::Keep => return,
        Memlock::Unlimited => None,
        Memlock::Bytes(bytes) => Some(bytes),
    };
    let said = match roce_bind::raise_memlock(wanted) {
        Ok(None) => return,
        Ok(Some(bytes)) => format!("locked memory is limited to {} KiB", bytes / 1024),
        Err(error) => format!("the locked-memory limit stays as it was: {error}"),
    };
    if step.rank.local == 0 {
        complain(
            "warning: ",
            &format!("{said}; RDMA needs more: raise memlock in /etc/security/limits.conf"),
        );
    }
}
