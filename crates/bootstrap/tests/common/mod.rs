//! Ranks as processes of their own, on several pretended nodes of this machine.
#![allow(dead_code, reason = "each test program uses its part of it")]

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::time::{ClockId, clock_gettime};
use nix::unistd::Pid;
use roce_bootstrap::Secret;

/// Only the tests' own children have it: what to do.
pub(crate) const TASK: &str = "TEST_RANK_TASK";

/// The clock that all processes of a machine share.
pub(crate) fn now() -> Duration {
    clock_gettime(ClockId::CLOCK_MONOTONIC).unwrap().into()
}

/// What a child of this test program was asked to do; `None` in a run of all tests, ignored ones too.
pub(crate) fn task() -> Option<String> {
    std::env::var(TASK).ok()
}

/// Where ranks run.
pub(crate) struct Places<'a> {
    /// How many on each node.
    pub(crate) counts: &'a [u32],
    /// The name of a node, from 0.
    pub(crate) name: &'a dyn Fn(usize) -> String,
    /// What runs a program there.
    pub(crate) enter: &'a dyn Fn(usize) -> Vec<String>,
}

/// Nodes that are addresses of this machine.
pub(crate) fn loopback(counts: &[u32]) -> Places<'_> {
    Places { counts, name: &|node| format!("127.0.0.{}", node + 1), enter: &|_| Vec::new() }
}

/// A child of this test program.
pub(crate) struct Process {
    child: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
}

impl Process {
    /// Starts this program as a test of the given name alone, by way of `enter`.
    pub(crate) fn start(test: &str, task: &str, enter: &[String], variables: &[(&str, String)]) -> Self {
        let this = std::env::current_exe().unwrap().to_str().unwrap().to_owned();
        let arguments = ["--exact", test, "--ignored", "--nocapture", "--test-threads=1"].map(str::to_owned);
        let words = [enter, &[this], &arguments].concat();
        let mut child = Command::new(&words[0])
            .args(&words[1..])
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .env(TASK, task)
            .envs(variables.iter().cloned())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("{words:?}: {error}"));
        let (input, output) = (child.stdin.take(), BufReader::new(child.stdout.take().unwrap()));
        Self { child, input, output }
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(i32::try_from(self.child.id()).unwrap()), signal).unwrap();
    }

    /// Says a line to it.
    pub(crate) fn say(&mut self, line: &str) {
        writeln!(self.input.as_mut().unwrap(), "{line}").unwrap();
    }

    /// Says that there are no more lines.
    pub(crate) fn close(&mut self) {
        self.input = None;
    }

    /// Its next line that begins with one of these words, which others may precede; `None` where it ended before.
    pub(crate) fn next(&mut self, words: &[&str]) -> Option<String> {
        loop {
            let mut line = String::new();
            if self.output.read_line(&mut line).unwrap() == 0 {
                return None;
            }
            if words.iter().any(|word| line.starts_with(word)) {
                return Some(line.trim().to_owned());
            }
        }
    }

    /// Whether it ended well.
    pub(crate) fn wait(&mut self) -> bool {
        self.close();
        self.child.wait().unwrap().success()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// All ranks of a job, as `rocectl run` would start them.
pub(crate) struct Ranks {
    pub(crate) secret: Secret,
    pub(crate) processes: Vec<Process>,
}

impl Ranks {
    /// Starts them; each runs the test `rank`.
    pub(crate) fn start(places: &Places, task: &str) -> Self {
        let secret = Secret::random().unwrap();
        let size: u32 = places.counts.iter().sum();
        let nodes: Vec<String> = (0..places.counts.len()).map(places.name).collect();
        let tasks: Vec<String> = places.counts.iter().map(u32::to_string).collect();
        let mut processes = Vec::new();
        for (node, count) in places.counts.iter().enumerate() {
            for local in 0..*count {
                let variables = [
                    ("SLURM_ROCE_SECRET", secret.to_hex().to_string()),
                    ("ROCE_RANK", processes.len().to_string()),
                    ("ROCE_SIZE", size.to_string()),
                    ("ROCE_LOCAL_RANK", local.to_string()),
                    ("ROCE_NODE_INDEX", node.to_string()),
                    ("ROCE_NODES", nodes.join(",")),
                    ("ROCE_TASKS_PER_NODE", tasks.join(",")),
                ];
                processes.push(Process::start("rank", task, &(places.enter)(node), &variables));
            }
        }
        Self { secret, processes }
    }

    /// Lets all begin at the same time, those that wait for the end of their input.
    pub(crate) fn open(&mut self) {
        self.processes.iter_mut().for_each(Process::close);
    }

    /// The rest of a rank's next line that begins with one of these words.
    pub(crate) fn line(&mut self, rank: usize, words: &[&str]) -> String {
        let line = self.processes[rank].next(words);
        let line = line.unwrap_or_else(|| panic!("rank {rank} ended before {words:?}"));
        words.iter().find_map(|word| line.strip_prefix(word)).unwrap_or_default().trim().to_owned()
    }

    pub(crate) fn signal(&self, rank: usize, signal: Signal) {
        self.processes[rank].signal(signal);
    }
}
