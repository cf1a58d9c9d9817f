//! Plays slurmstepd: the hooks of a step in Slurm's order, each task in a forked process.

use std::collections::HashSet;
use std::ffi::CString;
use std::fs::File;
use std::io::{Read, Seek, Write};
use std::os::fd::AsFd;

use anyhow::{Context as _, Result, ensure};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::unistd::{Gid, Uid, dup2_stderr, geteuid, pipe, setegid, seteuid, setgid, setuid};
use roce_types::CpuSet;
use serde::{Deserialize, Serialize};

use crate::plugin::{Hook, Plugin, io_calls, use_option};
use crate::process::Child;
use crate::slurm::{Context, slurm};

/// A step, as it reaches a node.
#[derive(Debug, Clone)]
pub struct Step {
    /// Its number; `0xfffffffb` is a batch script.
    pub id: u32,
    /// Tasks on this node.
    pub tasks: u32,
    /// CPUs that each was promised.
    pub cpus_per_task: u32,
    /// The CPUs that Slurm binds each task to, by its local number modulo the length; none: it doesn't.
    pub binding: Vec<CpuSet>,
    /// Options that srun delivers, by name.
    pub options: Vec<(&'static str, CString)>,
    /// The step's environment.
    pub environment: Vec<CString>,
    /// The user, if this process may become one.
    pub user: Option<u32>,
    /// Which call of Slurm's functions fails, counted from 0.
    pub fail_at: Option<usize>,
}

impl Default for Step {
    fn default() -> Self {
        Self {
            id: 0,
            tasks: 1,
            cpus_per_task: 1,
            binding: Vec::new(),
            options: Vec::new(),
            environment: vec![c"PATH=/usr/bin:/bin".to_owned(), c"SLURMD_NODENAME=n1".to_owned()],
            user: geteuid().is_root().then_some(65_534),
            fail_at: None,
        }
    }
}

/// What a hook returned, and how long it took.
pub type Called = (Hook, i32, u64);

/// How a step went.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Outcome {
    /// The calls in slurmstepd.
    pub calls: Vec<Called>,
    /// Its tasks.
    pub tasks: Vec<Task>,
    /// What was logged in slurmstepd.
    pub log: Vec<String>,
    /// Calls of Slurm's functions that could have failed, in slurmstepd and the longest-lived task.
    pub spank_calls: usize,
    /// Calls of the C library within the hooks, as above.
    pub io_calls: usize,
}

/// How a task went.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Task {
    /// The calls in the task.
    pub calls: Vec<Called>,
    /// Variables that are new or changed, as `NAME=value`, and those removed as `NAME`.
    pub changes: Vec<String>,
    /// The CPUs it may run on before its last hook, and after.
    pub cpus: (String, String),
    /// What was logged in the task.
    pub log: Vec<String>,
    /// Its standard error.
    pub stderr: String,
    spank_calls: usize,
    io_calls: usize,
}

impl Task {
    /// The plugin's own lines, without the hint that this machine may not raise a limit.
    #[must_use]
    pub fn own_lines(&self) -> Vec<&str> {
        let own = self.stderr.lines().filter(|line| line.starts_with("spank_roce: "));
        own.filter(|line| !line.ends_with(roce_cluster::run::HINT)).collect()
    }

    /// Was it placed on a NIC?
    #[must_use]
    pub fn is_placed(&self) -> bool {
        self.value("ROCE_DEVICES").is_some()
    }

    /// A variable's new value.
    #[must_use]
    pub fn value(&self, name: &str) -> Option<&str> {
        self.changes.iter().find_map(|change| change.strip_prefix(name)?.strip_prefix('='))
    }

    /// What its last hook returned; nothing if it wasn't called.
    #[must_use]
    pub fn verdict(&self) -> Option<i32> {
        self.calls.last().filter(|(hook, ..)| *hook == Hook::TaskInit).map(|(_, code, _)| *code)
    }

    /// The program would have been started.
    #[must_use]
    pub fn runs(&self) -> bool {
        self.verdict() == Some(0)
    }
}

/// Tells Slurm's side of a new slurmstepd, and what it knows before any hook.
fn begin(step: &Step) {
    let mut slurm = slurm();
    slurm.reset(Context::Remote);
    slurm.items.step_id = Some(step.id);
    slurm.items.local_tasks = Some(step.tasks);
    slurm.items.cpus_per_task = Some(step.cpus_per_task);
    slurm.environment.clone_from(&step.environment);
    slurm.fail_at = step.fail_at;
}

/// The hooks before the fork.
fn prepare(plugin: &Plugin, step: &Step, calls: &mut Vec<Called>) -> Result<()> {
    calls.push(call(plugin, Hook::Init));
    for (name, value) in &step.options {
        // Whatever it returns, Slurm only logs it here.
        let _ = use_option(name, Some(value), true);
    }
    calls.push(call(plugin, Hook::InitPostOpt));
    let before = geteuid();
    if let Some(user) = step.user {
        setegid(Gid::from_raw(user))?;
        seteuid(Uid::from_raw(user))?;
    }
    calls.push(call(plugin, Hook::UserInit));
    if step.user.is_some() {
        seteuid(before)?;
        setegid(Gid::from_raw(0))?;
    }
    Ok(())
}

fn call(plugin: &Plugin, hook: Hook) -> Called {
    let (code, time) = plugin.call(hook);
    (hook, code, u64::try_from(time.as_nanos()).unwrap_or(u64::MAX))
}

/// Plays a step from its begin to its end.
///
/// # Errors
/// If a task crashes, or this machine refuses what Slurm does.
pub fn play(plugin: &Plugin, step: &Step) -> Result<Outcome> {
    begin(step);
    let mut calls = Vec::new();
    prepare(plugin, step, &mut calls)?;
    let mut forked = Vec::new();
    for local in 0..step.tasks {
        forked.push(Forked::start(plugin, step, local)?);
    }
    for (local, task) in (0..).zip(&forked) {
        set_task(local, Some(task.child.pid()));
        calls.push(call(plugin, Hook::TaskPostFork));
    }
    let tasks = forked.into_iter().map(Forked::end).collect::<Result<Vec<_>>>()?;
    for local in 0..step.tasks {
        set_task(local, None);
        calls.push(call(plugin, Hook::TaskExit));
    }
    calls.push(call(plugin, Hook::Exit));
    let slurm = slurm();
    let most = |of: fn(&Task) -> usize| tasks.iter().map(of).max().unwrap_or(0);
    Ok(Outcome {
        calls,
        log: slurm.lines.iter().map(|line| line.text.clone()).collect(),
        spank_calls: most(|task| task.spank_calls).max(slurm.calls),
        io_calls: most(|task| task.io_calls).max(io_calls()),
        tasks,
    })
}

/// Makes this the task that the next hook is about.
pub fn set_task(local: u32, pid: Option<i32>) {
    let items = &mut slurm().items;
    items.task_id = i32::try_from(local).ok();
    items.global_id = Some(local);
    items.task_pid = pid.or(Some(-1));
}

/// A task that waits to be released.
struct Forked {
    child: Child,
    /// A byte lets the task go.
    release: File,
    stderr: File,
}

impl Forked {
    fn start(plugin: &Plugin, step: &Step, local: u32) -> Result<Self> {
        let stderr = File::from(memfd_create(c"stderr", MFdFlags::MFD_CLOEXEC)?);
        let (wait, release) = pipe()?;
        let (mut wait, release) = (File::from(wait), File::from(release));
        let child = Child::start(|| {
            run_task(plugin, step, local, &stderr, &mut wait).map_err(|error| format!("{error:#}"))
        })?;
        Ok(Self { child, release, stderr })
    }

    fn end(mut self) -> Result<Task> {
        // Any byte will do; a task that has failed already reads none.
        let _ = self.release.write_all(b"x");
        let task: Result<Task, String> = self.child.wait()?;
        let mut task = task.map_err(anyhow::Error::msg)?;
        self.stderr.rewind()?;
        let mut bytes = Vec::new();
        self.stderr.read_to_end(&mut bytes)?;
        task.stderr = String::from_utf8_lossy(&bytes).into_owned();
        Ok(task)
    }
}

/// In the forked process.
fn run_task(plugin: &Plugin, step: &Step, local: u32, stderr: &File, wait: &mut File) -> Result<Task> {
    dup2_stderr(stderr.as_fd())?;
    slurm().lines.clear();
    set_task(local, None);
    let mut calls = vec![call(plugin, Hook::TaskInitPrivileged)];
    let is_ended = calls[0].1 < 0;
    let mut byte = [0];
    if !is_ended {
        wait.read_exact(&mut byte).context("nobody lets the task go")?;
    }
    if let Some(user) = step.user {
        setgid(Gid::from_raw(user))?;
        setuid(Uid::from_raw(user))?;
    }
    if let Some(cpus) = step.binding.get(local as usize % step.binding.len().max(1)) {
        roce_bind::set_affinity(cpus)?;
    }
    let before = slurm().environment_text();
    let cpus_before = roce_bind::affinity(0)?.to_string();
    if !is_ended {
        calls.push(call(plugin, Hook::TaskInit));
    }
    let slurm = slurm();
    let after = slurm.environment_text();
    let changes = changes(&before, &after);
    ensure!(changes.len() < 1_000, "the plugin changed {} variables", changes.len());
    Ok(Task {
        calls,
        changes,
        cpus: (cpus_before, roce_bind::affinity(0)?.to_string()),
        log: slurm.lines.iter().map(|line| line.text.clone()).collect(),
        stderr: String::new(),
        spank_calls: slurm.calls,
        io_calls: io_calls(),
    })
}

/// What was added or changed, and the names of what was removed.
fn changes(before: &[String], after: &[String]) -> Vec<String> {
    fn name(entry: &str) -> &str {
        entry.split('=').next().unwrap_or_default()
    }
    let (old, kept): (HashSet<&String>, HashSet<&str>) =
        (before.iter().collect(), after.iter().map(|entry| name(entry)).collect());
    let new = after.iter().filter(|entry| !old.contains(entry)).cloned();
    let removed = before.iter().map(|entry| name(entry)).filter(|name| !kept.contains(name));
    new.chain(removed.map(str::to_owned)).collect()
}
