//! Ranks as processes, on several pretended nodes of this machine: what only a process can do, as to die or to be stopped, and
//! how long meeting takes.

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::time::{ClockId, clock_gettime};
use nix::unistd::Pid;
use roce_bootstrap::{Bootstrap, Options, Secret};

/// Only this test's own children have it: what to do.
const TASK: &str = "TEST_RANK_TASK";
static JOB: AtomicU32 = AtomicU32::new(0);

/// One rank, started by the other tests.
#[test]
#[ignore = "the other tests start it"]
fn rank() {
    let Ok(task) = std::env::var(TASK) else { return };
    // All begin when the gate opens, so that nobody's start counts.
    std::io::stdin().read_to_end(&mut Vec::new()).unwrap();
    let second = Duration::from_secs(1);
    let card = vec![7; 64];
    let options = Options { stopped: 2 * second, silence: 3 * second, card, ..Options::default() };
    let start = now();
    let mut ranks = Bootstrap::init(&options).unwrap();
    let met = now();
    assert!((0..ranks.size()).all(|rank| ranks.card_of(rank).unwrap().len() == 64));
    match task.as_str() {
        "meet" => {
            ranks.barrier().unwrap();
            let barrier = now();
            let counters = ranks.counters();
            println!("\nmet {} {} {} {:?}", start.as_nanos(), met.as_nanos(), barrier.as_nanos(), counters);
        }
        "chat" => {
            println!("\nmet");
            for _ in 0..10 {
                ranks.all_gather(&vec![1; 1 << 20]).unwrap();
                std::thread::sleep(Duration::from_millis(50));
            }
            ranks.leave().unwrap();
            println!("\ndone");
        }
        "wait" => {
            println!("\nmet");
            if ranks.rank().is_multiple_of(2) {
                println!("\nerror {}", ranks.barrier().unwrap_err());
            } else {
                loop {
                    if let Some(event) = ranks.poll_event() {
                        println!("\nevent {event:?}");
                        return;
                    }
                    std::thread::sleep(Duration::from_millis(5));
                }
            }
        }
        other => panic!("{other}"),
    }
}

fn now() -> Duration {
    clock_gettime(ClockId::CLOCK_MONOTONIC).unwrap().into()
}

struct Ranks {
    children: Vec<Child>,
    gates: Vec<ChildStdin>,
    outputs: Vec<BufReader<std::process::ChildStdout>>,
}

impl Drop for Ranks {
    fn drop(&mut self) {
        for child in &mut self.children {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Ranks {
    fn start(counts: &[u32], task: &str) -> Self {
        let secret = Secret::random().unwrap().to_hex();
        let size: u32 = counts.iter().sum();
        let nodes: Vec<String> = (1..=counts.len()).map(|node| format!("127.0.0.{node}")).collect();
        let tasks: Vec<String> = counts.iter().map(u32::to_string).collect();
        let mut ranks = Self { children: Vec::new(), gates: Vec::new(), outputs: Vec::new() };
        let _ = JOB.fetch_add(1, Ordering::Relaxed);
        for (node, count) in counts.iter().enumerate() {
            for local in 0..*count {
                let rank = ranks.children.len();
                let mut child = Command::new(std::env::current_exe().unwrap())
                    .args(["--exact", "rank", "--ignored", "--nocapture", "--test-threads=1"])
                    .env_clear()
                    .env(TASK, task)
                    .env("SLURM_ROCE_SECRET", &*secret)
                    .env("ROCE_RANK", rank.to_string())
                    .env("ROCE_SIZE", size.to_string())
                    .env("ROCE_LOCAL_RANK", local.to_string())
                    .env("ROCE_NODE_INDEX", node.to_string())
                    .env("ROCE_NODES", nodes.join(","))
                    .env("ROCE_TASKS_PER_NODE", tasks.join(","))
                    .stdin(Stdio::piped())
                    .stdout(Stdio::piped())
                    .spawn()
                    .unwrap();
                ranks.gates.push(child.stdin.take().unwrap());
                ranks.outputs.push(BufReader::new(child.stdout.take().unwrap()));
                ranks.children.push(child);
            }
        }
        ranks
    }

    fn open(&mut self) {
        self.gates.clear();
    }

    /// The next line of a rank that begins with one of these words, without it.
    fn line(&mut self, rank: usize, words: &[&str]) -> String {
        loop {
            let mut line = String::new();
            assert_ne!(
                self.outputs[rank].read_line(&mut line).unwrap(),
                0,
                "rank {rank} ended before {words:?}"
            );
            if let Some(rest) = words.iter().find_map(|word| line.strip_prefix(word)) {
                return rest.trim().to_owned();
            }
        }
    }
}

/// Ends or stops one rank, and gives what the others said, and after how long the last of them.
fn strike(victim: usize, signal: Signal) -> (Vec<String>, Duration) {
    let mut ranks = Ranks::start(&[2, 3, 2], "wait");
    ranks.open();
    for rank in 0..7 {
        ranks.line(rank, &["met"]);
    }
    std::thread::sleep(Duration::from_millis(50));
    let start = Instant::now();
    kill(Pid::from_raw(i32::try_from(ranks.children[victim].id()).unwrap()), signal).unwrap();
    let told = (0..7).filter(|rank| *rank != victim).map(|rank| ranks.line(rank, &["error", "event"]));
    (told.collect(), start.elapsed())
}

#[test]
fn the_death_of_any_rank_is_told_to_all() {
    for victim in 0..7 {
        let (told, time) = strike(victim, Signal::SIGKILL);
        let node = [1, 1, 2, 2, 2, 3, 3][victim];
        for told in told {
            let error = format!("rank {victim} (127.0.0.{node}) is lost:");
            let event = format!("Lost {{ rank: Some({victim}), node: \"127.0.0.{node}\"");
            assert!(told.starts_with(&error) || told.starts_with(&event), "{told}");
        }
        assert!(time < Duration::from_secs(2), "{victim}: {time:?}");
    }
}

/// Only those who are waited for: whoever computes may be stopped. Here even ranks wait in a barrier for the odd ones.
#[test]
fn a_stopped_rank_that_others_wait_for_is_named() {
    // Rank 3 is no leader, or it is: then its neighbours no longer hear from it.
    let mut ranks = Ranks::start(&[2, 2], "wait");
    ranks.open();
    for rank in 0..4 {
        ranks.line(rank, &["met"]);
    }
    kill(Pid::from_raw(i32::try_from(ranks.children[3].id()).unwrap()), Signal::SIGSTOP).unwrap();
    for rank in [0, 1, 2] {
        // An odd rank does not wait, so it can only hear of it from its leader.
        let told = ranks.line(rank, &["error", "event"]);
        assert!(told.contains("127.0.0.2") && (told.contains("stopped") || told.contains("heard")), "{told}");
    }
}

/// Stops some of four ranks on as many nodes for a while; then all go on as if nothing had been.
fn pause(stopped: &[usize], time: Duration) {
    let mut ranks = Ranks::start(&[1, 1, 2], "chat");
    ranks.open();
    for rank in 0..4 {
        ranks.line(rank, &["met"]);
    }
    let signal = |signal| {
        for rank in stopped {
            kill(Pid::from_raw(i32::try_from(ranks.children[*rank].id()).unwrap()), signal).unwrap();
        }
    };
    signal(Signal::SIGSTOP);
    std::thread::sleep(time);
    signal(Signal::SIGCONT);
    for rank in 0..4 {
        ranks.line(rank, &["done"]);
    }
}

/// As Slurm does with `scontrol suspend`, for longer than one rank alone may be stopped.
#[test]
fn a_job_that_is_suspended_as_a_whole_goes_on() {
    pause(&[0, 1, 2, 3], Duration::from_secs(5));
}

/// Its kernel's buffers are full for longer than a kernel may be silent.
#[test]
fn a_leader_that_does_not_read_for_a_while_is_not_lost() {
    pause(&[1], Duration::from_millis(1900));
}

/// From the last start of `init` to its last end, over 8 pretended nodes of 32 ranks.
#[test]
#[ignore = "a measurement"]
fn how_long_meeting_takes() {
    for counts in [vec![32; 8], vec![64; 8], vec![4; 8], vec![32; 1]] {
        for _ in 0..5 {
            let mut ranks = Ranks::start(&counts, "meet");
            std::thread::sleep(Duration::from_millis(1500));
            ranks.open();
            let lines: Vec<String> =
                (0..ranks.children.len()).map(|rank| ranks.line(rank, &["met"])).collect();
            let number =
                |line: &String, place: usize| line.split(' ').nth(place).unwrap().parse::<u64>().unwrap();
            let [started, met, barrier] =
                [0, 1, 2].map(|place| lines.iter().map(|line| number(line, place)).max().unwrap());
            let first = lines.iter().map(|line| number(line, 0)).min().unwrap();
            let ms = |from: u64, to: u64| Duration::from_nanos(to.saturating_sub(from));
            println!(
                "{} ranks on {} nodes: met {:?} after the last start (starts within {:?}), barrier {:?}",
                lines.len(),
                counts.len(),
                ms(started, met),
                ms(first, started),
                ms(met, barrier)
            );
        }
    }
}
