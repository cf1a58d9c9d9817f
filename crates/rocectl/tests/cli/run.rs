//! `rocectl run`: ranks that find each other, and that all end.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use roce_bootstrap::{Bootstrap, Options};
use tempfile::TempDir;

use crate::common::{stderr, stdout};

pub(crate) fn run(words: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_rocectl"));
    command.arg("run").args(words).env_clear().env("PATH", "/usr/bin:/bin");
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

pub(crate) fn ran(words: &[&str]) -> Output {
    run(words).output().unwrap()
}

pub(crate) fn sorted(output: &Output) -> Vec<String> {
    let mut lines: Vec<String> = stdout(output).lines().map(str::to_owned).collect();
    lines.sort_unstable();
    lines
}

/// Ranks that each leave their process id in a folder, and one more of a process of theirs.
struct Sleepers {
    folder: TempDir,
    rocectl: Child,
}

impl Sleepers {
    fn start(ranks: &str) -> Self {
        let folder = TempDir::new().unwrap();
        let script = format!(
            "sleep 600 & echo $! > {0}/$ROCE_RANK.child; echo $$ > {0}/$ROCE_RANK; wait",
            folder.path().display()
        );
        let rocectl = run(&["-n", ranks, "sh", "-c", &script]).spawn().unwrap();
        let wanted = 2 * ranks.parse::<usize>().unwrap();
        let sleepers = Self { folder, rocectl };
        until("the ranks have started", || sleepers.pids().len() == wanted);
        sleepers
    }

    fn pids(&self) -> Vec<i32> {
        let files = fs::read_dir(self.folder.path()).unwrap();
        files.filter_map(|file| fs::read_to_string(file.unwrap().path()).ok()?.trim().parse().ok()).collect()
    }

    fn pid(&self, name: &str) -> Pid {
        Pid::from_raw(fs::read_to_string(self.folder.path().join(name)).unwrap().trim().parse().unwrap())
    }
}

pub(crate) fn until(what: &str, done: impl Fn() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < Duration::from_secs(10), "{what}: not within 10 s");
        thread::sleep(Duration::from_millis(5));
    }
}

/// Zombies whose parent is gone wait for init, which a container may not have; they run no more.
pub(crate) fn is_running(pid: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(") ").next().is_some_and(|rest| !rest.is_empty() && !rest.starts_with(['Z', 'X']))
}

/// One of the ranks of the next test, and of those with hosts.
#[test]
#[ignore = "other tests run it under rocectl"]
fn member() {
    if std::env::var_os("ROCE_RANK").is_none() {
        return;
    }
    let mut ranks = Bootstrap::init(&Options::default()).unwrap();
    let all = ranks.all_gather(&ranks.identity().rank.to_be_bytes()).unwrap();
    let all: Vec<u32> = all.iter().map(|rank| u32::from_be_bytes(rank.try_into().unwrap())).collect();
    let rank = ranks.identity().rank;
    println!("\nrank {rank} met {all:?} on {}", ranks.node_of(rank));
    ranks.barrier().unwrap();
}

#[test]
fn ranks_meet_and_trust_each_other() {
    let this = std::env::current_exe().unwrap();
    let this = this.to_str().unwrap();
    let output = ran(&["-n", "4", this, "--exact", "run::member", "--ignored", "--nocapture"]);
    assert!(output.status.success(), "{output:?}");
    let host = fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
    for rank in 0..4 {
        let line = format!("rank {rank} met [0, 1, 2, 3] on {}", host.trim());
        assert!(sorted(&output).contains(&line), "{output:?}");
    }
}

#[test]
fn every_rank_is_told_its_place_and_lines_are_labelled_and_whole() {
    let script = "echo $ROCE_RANK/$ROCE_SIZE $ROCE_LOCAL_RANK/$ROCE_LOCAL_SIZE; printf 'no end'";
    let output = ran(&["-n", "2", "--label", "sh", "-c", script]);
    assert!(output.status.success(), "{output:?}");
    assert_eq!(sorted(&output), ["0: 0/2 0/2", "0: no end", "1: 1/2 1/2", "1: no end"]);

    let lines =
        ran(&["-n", "8", "sh", "-c", "for i in $(seq 500); do printf $ROCE_RANK; echo $ROCE_RANK; done"]);
    let lines = stdout(&lines);
    assert_eq!(lines.lines().count(), 4000);
    assert!(lines.lines().all(|line| line.len() == 2 && line[..1] == line[1..]), "mixed");
}

#[test]
fn a_secret_is_fresh_and_in_the_environment_alone() {
    let seen = |output: Output| {
        let lines = sorted(&output);
        assert_eq!(lines.len(), 2, "{output:?}");
        assert!(lines[0] == lines[1] && lines[0].len() == 64, "{lines:?}");
        lines[0].clone()
    };
    // No command line of the run has it: that of a rank, or of rocectl, its parent.
    let script = "echo $SLURM_ROCE_SECRET; ! grep -q $SLURM_ROCE_SECRET /proc/$$/cmdline /proc/$PPID/cmdline";
    let [first, second] = [(); 2].map(|()| seen(ran(&["-n", "2", "sh", "-c", script])));
    assert_ne!(first, second);
}

#[test]
fn what_another_launcher_said_of_rocectl_is_not_said_of_its_ranks() {
    let mut inside = run(&["-n", "1", "env"]);
    inside.envs([("SLURM_PROCID", "3"), ("PMI_RANK", "3"), ("SLURM_STEP_ID", "0"), ("SLURM_JOB_ID", "7")]);
    let output = inside.output().unwrap();
    let set = stdout(&output);
    assert!(
        !set.contains("SLURM_PROCID") && !set.contains("PMI_RANK") && !set.contains("SLURM_STEP_ID"),
        "{set}"
    );
    assert!(set.contains("SLURM_JOB_ID=7"), "{set}");
}

#[test]
fn the_first_failure_decides_and_ends_the_others() {
    let start = Instant::now();
    let output =
        ran(&["-n", "3", "sh", "-c", "[ $ROCE_RANK = 1 ] && exit 7; trap '' TERM; sleep 600 & wait; wait"]);
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
    assert_eq!(output.status.code(), Some(7));
    assert_eq!(stderr(&output), "rocectl: rank 1 failed with exit code 7; ending the others\n");
}

#[test]
fn a_killed_rank_ends_the_others_within_a_second() {
    let sleepers = Sleepers::start("4");
    let pids = sleepers.pids();
    let start = Instant::now();
    kill(sleepers.pid("2"), Signal::SIGKILL).unwrap();
    let output = sleepers.rocectl.wait_with_output().unwrap();
    assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
    assert_eq!(output.status.code(), Some(137));
    assert_eq!(stderr(&output), "rocectl: rank 2 was killed by SIGKILL; ending the others\n");
    until("every process has ended", || !pids.iter().any(|&pid| is_running(pid)));
}

#[test]
fn interrupting_ends_every_rank() {
    for (signal, code) in [(Signal::SIGINT, 130), (Signal::SIGTERM, 143), (Signal::SIGHUP, 129)] {
        let sleepers = Sleepers::start("2");
        let pids = sleepers.pids();
        kill(Pid::from_raw(i32::try_from(sleepers.rocectl.id()).unwrap()), signal).unwrap();
        let output = sleepers.rocectl.wait_with_output().unwrap();
        assert_eq!((output.status.code(), stderr(&output).as_str()), (Some(code), ""), "{signal}");
        until("every process has ended", || !pids.iter().any(|&pid| is_running(pid)));
    }
}

#[test]
fn killing_rocectl_ends_the_ranks() {
    let mut sleepers = Sleepers::start("2");
    sleepers.rocectl.kill().unwrap();
    sleepers.rocectl.wait().unwrap();
    let ranks = [sleepers.pid("0"), sleepers.pid("1")];
    until("the ranks have ended", || !ranks.iter().any(|rank| is_running(rank.as_raw())));
    // What a rank started is its own to end: nobody is left to do it for them.
    for child in ["0.child", "1.child"] {
        kill(sleepers.pid(child), Signal::SIGKILL).unwrap();
    }
}

#[test]
fn what_a_rank_leaves_behind_ends_with_it() {
    let output = ran(&["-n", "1", "sh", "-c", "sleep 600 & echo $!"]);
    let pid: i32 = stdout(&output).trim().parse().unwrap();
    until("the rank's child has ended", || !is_running(pid));
}

#[test]
fn whoever_leaves_its_group_does_not_hold_up_the_end() {
    let start = Instant::now();
    let output = ran(&["-n", "1", "sh", "-c", "setsid sleep 600 & echo $!; sleep 0.2"]);
    assert!(output.status.success() && start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
    kill(Pid::from_raw(stdout(&output).trim().parse().unwrap()), Signal::SIGKILL).unwrap();
}

#[test]
fn a_command_that_is_not_there_is_named() {
    let output = ran(&["-n", "2", "nonesuch"]);
    assert_eq!(output.status.code(), Some(127));
    assert_eq!(stderr(&output), "rocectl: can't run nonesuch: No such file or directory (os error 2)\n");
    assert!(Path::new("/usr").is_dir());
    let output = ran(&["-n", "2", "/usr"]);
    assert_eq!(output.status.code(), Some(126), "{output:?}");
    assert_eq!(ran(&["-n", "0", "true"]).status.code(), Some(2));
}
