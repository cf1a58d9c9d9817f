//! What slurmstepd does at the border to the kernel, from its own start to each task's: strace, attached to slurmd.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::cluster::{Cluster, program_path};

/// What is watched: programs, files and processes.
const CALLS: &str = "trace=execve,execveat,open,openat,openat2,creat,clone,clone3,fork,vfork,mkdir,mkdirat,rename,\
    renameat,renameat2,link,linkat,symlink,symlinkat,mknod,mknodat,memfd_create,unlink,unlinkat,rmdir,bind,connect";

/// What slurmstepd and its children did before they became tasks.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Deeds {
    /// The programs that were started, slurmstepd's own and the tasks' among them.
    pub(crate) programs: Vec<String>,
    /// Every path that was opened or tried; numbers, such as process and job ids, as `#`.
    pub(crate) opened: BTreeSet<String>,
    /// Everything that was made, removed or renamed, with the call.
    pub(crate) changed: BTreeSet<String>,
    /// Threads that slurmstepd started before its first child.
    pub(crate) threads_before_the_fork: usize,
    pub(crate) children: usize,
}

/// Runs `step` and tells what the one slurmstepd meanwhile did.
pub(crate) fn trace(cluster: &Cluster, step: impl FnOnce() -> Result<()>) -> Result<Deeds> {
    let file = cluster.path("strace.out");
    let mut strace = Tracer::attach(cluster, &file)?;
    let result = step();
    // slurmstepd ends after srun does.
    let ended = cluster.expect_idle();
    strace.detach()?;
    result.and(ended)?;
    let text = fs::read_to_string(&file)?;
    Deeds::of(&text).with_context(|| format!("{} is not understood", file.display()))
}

struct Tracer(Child);

impl Tracer {
    fn attach(cluster: &Cluster, file: &Path) -> Result<Self> {
        let slurmd = cluster.slurmd()?.to_string();
        let messages = cluster.path("strace.err");
        let child = Command::new("strace")
            .args(["-f", "-y", "-s", "4096", "-e", CALLS, "-p", &slurmd, "-o"])
            .arg(file)
            .env("PATH", program_path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(fs::File::create(&messages)?)
            .spawn()
            .context("strace can't be started (apt-get install strace)")?;
        let mut tracer = Self(child);
        let start = Instant::now();
        while !fs::read_to_string(&messages)?.contains(" attached") {
            let ended = tracer.0.try_wait()?;
            let waited = start.elapsed() < Duration::from_secs(20);
            ensure!(ended.is_none() && waited, "strace: {}", fs::read_to_string(&messages)?);
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(tracer)
    }

    fn detach(&mut self) -> Result<()> {
        // Asked so, it lets go of slurmd and ends.
        kill(Pid::from_raw(self.0.id().cast_signed()), Signal::SIGINT)?;
        self.0.wait()?;
        Ok(())
    }
}

impl Drop for Tracer {
    fn drop(&mut self) {
        // Only if a test failed in between; else it has ended.
        if matches!(self.0.try_wait(), Ok(None)) {
            let _ = self.detach();
        }
    }
}

impl Deeds {
    /// From strace's lines: `PID call(arguments) = result`. Unfinished calls have all arguments that matter here.
    fn of(text: &str) -> Result<Self> {
        let mut deeds = Self::default();
        // slurmstepd, its threads and its children, with whether it is a child.
        let mut processes: BTreeMap<&str, bool> = BTreeMap::new();
        let mut stepds = 0;
        for line in text.lines() {
            let (pid, rest) = line.split_once(' ').context(line.to_owned())?;
            let rest = rest.trim_start();
            let (call, arguments) = match rest.split_once('(') {
                Some(parts) if !rest.starts_with(['<', '-', '+', '?']) => parts,
                // The end of a call whose beginning is above: a clone's child is told here.
                _ => {
                    if let (true, Some(child)) = (rest.starts_with("<... clone"), child_of(rest)) {
                        let is_child = processes.get(pid).copied();
                        if let Some(is_child) = is_child {
                            processes.entry(child).or_insert(is_child || !rest.contains("CLONE_THREAD"));
                        }
                    }
                    continue;
                }
            };
            if call.starts_with("execve") {
                let path = quoted(arguments).unwrap_or_default();
                if path.ends_with("/slurmstepd") {
                    stepds += 1;
                    processes.insert(pid, false);
                } else if processes.remove(pid).is_none() {
                    continue;
                }
                // What becomes the task is the user's from here on.
                deeds.programs.push(path);
                continue;
            }
            let Some(is_child) = processes.get(pid).copied() else { continue };
            match call {
                "clone" | "clone3" | "fork" | "vfork" => {
                    let is_thread = arguments.contains("CLONE_THREAD");
                    if !is_thread && !is_child {
                        deeds.children += 1;
                    }
                    if is_thread && deeds.children == 0 {
                        deeds.threads_before_the_fork += 1;
                    }
                    if let Some(child) = child_of(rest) {
                        processes.insert(child, is_child || !is_thread);
                    }
                }
                "open" | "openat" | "openat2" => {
                    let path = path_of(call, arguments);
                    if arguments.contains("O_CREAT") {
                        deeds.changed.insert(format!("create {path}"));
                    }
                    deeds.opened.insert(path);
                }
                "bind" | "connect" => {
                    deeds.changed.insert(format!("{call} {}", quoted(arguments).unwrap_or_default()));
                }
                _ => {
                    deeds.changed.insert(format!("{call} {}", path_of(call, arguments)));
                }
            }
        }
        ensure!(stepds == 1, "{stepds} slurmstepds were started");
        Ok(deeds)
    }
}

/// The process that a finished clone has made.
fn child_of(line: &str) -> Option<&str> {
    let (_, result) = line.rsplit_once(" = ")?;
    let result = result.split(' ').next()?;
    result.parse::<u32>().ok().map(|_| result)
}

/// The first text in quotes, with numbers made equal.
fn quoted(arguments: &str) -> Option<String> {
    let (_, rest) = arguments.split_once('"')?;
    let (text, _) = rest.split_once('"')?;
    Some(equal(text))
}

/// The first path of a call, absolute where strace tells what it is relative to.
fn path_of(call: &str, arguments: &str) -> String {
    let text = quoted(arguments).unwrap_or_default();
    let folder =
        arguments.split_once('<').and_then(|(_, rest)| rest.split_once('>')).map(|(path, _)| equal(path));
    match folder {
        Some(folder) if call.ends_with("at") || call == "openat2" => {
            PathBuf::from(folder).join(text).display().to_string()
        }
        _ => text,
    }
}

/// Each run of digits as one `#`: ids differ from step to step.
fn equal(text: &str) -> String {
    let mut equal = String::new();
    for character in text.chars() {
        match (character.is_ascii_digit(), equal.ends_with('#')) {
            (true, true) => {}
            (true, false) => equal.push('#'),
            (false, _) => equal.push(character),
        }
    }
    equal
}
