//! Ranks on nodes that are network namespaces of their own, joined by a bridge; and what happens when one of them is killed, stopped,
//! or cut off, at any moment: every other rank is told who and where, in time, and nothing is left behind.

mod common;

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::io::Read;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use common::{Places, Ranks, now, task};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use roce_bootstrap::{Bootstrap, Error, Options};

const SECOND: Duration = Duration::from_secs(1);
/// What the ranks are given. Nothing else is noticed later than this.
const JOIN: Duration = Duration::from_secs(4);
const STOPPED: Duration = Duration::from_secs(2);
const SILENCE: Duration = Duration::from_secs(3);
/// How long ranks do nothing but look, so that nobody waits for anybody.
const IDLE: Duration = Duration::from_secs(1);
/// A rank that says nothing for so long hangs.
const HANGS: Duration = Duration::from_secs(30);
const MOST_NODES: usize = 4;
/// Set where the namespaces are.
const INSIDE: &str = "TEST_FAULTS_INSIDE";

/// What the ranks do when the fault comes; in its time each does all that precedes it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Moment {
    Joining,
    Collectives,
    Idle,
    Leaving,
}

const MOMENTS: [Moment; 4] = [Moment::Joining, Moment::Collectives, Moment::Idle, Moment::Leaving];

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Fault {
    /// SIGKILL of a rank.
    Killed,
    /// SIGSTOP of a rank.
    Stopped,
    /// A node's link is down.
    LinkDown,
    /// The switch forwards nothing any more to and from a node, which sees its link up.
    Unplugged,
}

const FAULTS: [Fault; 4] = [Fault::Killed, Fault::Stopped, Fault::LinkDown, Fault::Unplugged];

impl Fault {
    fn is_cut(self) -> bool {
        matches!(self, Self::LinkDown | Self::Unplugged)
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Killed => "SIGKILL of a rank",
            Self::Stopped => "SIGSTOP of a rank",
            Self::LinkDown => "a node's link down",
            Self::Unplugged => "a node cut off, link up",
        })
    }
}

/// One rank, started by the tests.
#[test]
#[ignore = "the other tests start it"]
fn rank() {
    let Some(moment) = task() else { return };
    // All begin when the gate opens.
    std::io::stdin().read_to_end(&mut Vec::new()).unwrap();
    let options = Options { join: JOIN, stopped: STOPPED, silence: SILENCE, ..Options::default() };
    match live(&moment, &options) {
        Ok(()) => println!("\nleft {}", now().as_nanos()),
        Err(error) => println!("\nerror {} {error}", now().as_nanos()),
    }
}

fn live(moment: &str, options: &Options) -> Result<(), Error> {
    let mut ranks = Bootstrap::init(options)?;
    println!("\nmet");
    let idle = match moment {
        "Idle" => IDLE,
        "Leaving" => Duration::from_millis(30) * ranks.rank(),
        _ => Duration::ZERO,
    };
    let end = Instant::now() + idle;
    while Instant::now() < end {
        if let Some(event) = ranks.poll_event() {
            println!("\nerror {} {event:?}", now().as_nanos());
            std::process::exit(0);
        }
        thread::sleep(Duration::from_millis(2));
    }
    if moment == "Leaving" {
        return ranks.leave();
    }
    let mut number = 0u32;
    loop {
        let all = ranks.all_gather(&number.to_be_bytes())?;
        assert!(all.iter().all(|part| part == number.to_be_bytes()));
        let root = number % ranks.size();
        assert_eq!(ranks.broadcast(root, b"hello")?, b"hello");
        ranks.barrier()?;
        number += 1;
    }
}

/// A node: a network namespace, and the process that holds it.
struct Node {
    holder: Child,
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}

fn ip(words: &str) {
    let output =
        Command::new("ip").args(words.split(' ')).output().expect("ip, of the Debian package iproute2");
    assert!(output.status.success(), "ip {words}: {}", String::from_utf8_lossy(&output.stderr));
}

fn address(node: usize) -> String {
    format!("10.9.0.{}", node + 1)
}

impl Node {
    /// Node number `node`, plugged into the bridge.
    fn start(node: usize) -> Self {
        let mut holder = Command::new("unshare");
        holder.args(["--net", "sleep", "100000"]).stdin(Stdio::null());
        let holder = holder.spawn().expect("unshare, of the Debian package util-linux");
        let this = Self { holder };
        let namespace = |process: &str| fs::read_link(format!("/proc/{process}/ns/net")).ok();
        let start = Instant::now();
        while namespace(&this.id()).is_none_or(|theirs| Some(theirs) == namespace("self")) {
            assert!(start.elapsed() < HANGS);
            thread::sleep(Duration::from_millis(1));
        }
        let id = this.id();
        ip(&format!("link add v{node} type veth peer name eth0 netns {id}"));
        ip(&format!("link set v{node} master bridge up"));
        this.inside(&format!("addr add {}/24 dev eth0", address(node)));
        this.inside("link set eth0 up");
        this.inside("link set lo up");
        this
    }

    fn id(&self) -> String {
        self.holder.id().to_string()
    }

    fn inside(&self, words: &str) {
        let mut command = Command::new("nsenter");
        command.args(["--target", &self.id(), "--net", "ip"]).args(words.split(' '));
        assert!(command.status().unwrap().success(), "{words}");
    }

    /// What is left of ranks on it.
    fn leftovers(&self) -> Vec<String> {
        let read = |file: &str| fs::read_to_string(format!("/proc/{}/net/{file}", self.holder.id())).unwrap();
        let unix = read("unix").lines().filter(|line| line.contains("@roce-")).count();
        // State 01 is an established connection, 0A a listener (proc_net(5)).
        let state = |line: &&str| matches!(line.split_whitespace().nth(3), Some("01" | "0A"));
        let tcp: usize = ["tcp", "tcp6"].map(|file| read(file).lines().filter(state).count()).iter().sum();
        let mut left = Vec::new();
        if unix + tcp > 0 {
            left.push(format!("{unix} Unix sockets and {tcp} TCP sockets"));
        }
        left
    }
}

/// What is left on the whole machine: processes but for this one and the nodes' holders, and memory files. This process is in
/// a process namespace of its own, so that it sees nobody else's.
fn leftovers(nodes: &[Node]) -> Vec<String> {
    let mut left: Vec<String> = nodes.iter().flat_map(Node::leftovers).collect();
    let known: Vec<u32> = nodes.iter().map(|node| node.holder.id()).chain([std::process::id(), 1]).collect();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let Some(process) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        if !known.contains(&process) {
            let name = fs::read_to_string(entry.path().join("cmdline")).unwrap_or_default();
            left.push(format!("process {process} {}", name.replace('\0', " ")));
        }
        for file in fs::read_dir(entry.path().join("fd")).into_iter().flatten().flatten() {
            let target = fs::read_link(file.path()).unwrap_or_default();
            if target.to_string_lossy().contains("roce-table") {
                left.push(format!("a table in process {process}"));
            }
        }
    }
    left
}

struct Random(u64);

impl Random {
    fn below(&mut self, most: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(self.0 >> 33).unwrap() % most
    }
}

/// What the others noticed of one fault.
struct Noticed {
    /// Of the survivors, who were told of it, and when the last of them was.
    told: Option<Duration>,
    /// The fault came before the others could know of the one that it hit: they were told that it did not join.
    unknown: bool,
}

/// One run.
fn strike(nodes: &[Node], fault: Fault, moment: Moment, random: &mut Random) -> Noticed {
    let count = 3 + random.below(MOST_NODES - 2);
    let counts: Vec<u32> = (0..count).map(|_| 1 + u32::try_from(random.below(3)).unwrap()).collect();
    let size: u32 = counts.iter().sum();
    let victim = random.below(size as usize);
    let node_of = |rank: usize| {
        let ends = counts.iter().scan(0, |sum, count| {
            *sum += *count as usize;
            Some(*sum)
        });
        ends.into_iter().position(|end| rank < end).unwrap()
    };
    let node = node_of(victim);
    let enter = |node: usize| ["nsenter", "--target", &nodes[node].id(), "--net"].map(str::to_owned).to_vec();
    let places = Places { counts: &counts, name: &address, enter: &enter };
    let mut ranks = Ranks::start(&places, &format!("{moment:?}"));
    let what = format!("{fault}, {moment:?}, rank {victim} of {counts:?}");
    let ids: Vec<u32> = ranks.processes.iter().map(common::Process::id).collect();
    let (done, watched) = mpsc::channel::<()>();
    let watchdog = thread::spawn(move || {
        let hangs = watched.recv_timeout(HANGS) == Err(mpsc::RecvTimeoutError::Timeout);
        for id in ids.iter().filter(|_| hangs) {
            let _ = kill(Pid::from_raw(i32::try_from(*id).unwrap()), Signal::SIGKILL);
        }
        assert!(!hangs, "somebody hangs");
    });
    // So that all are loaded, and join at the same time.
    thread::sleep(Duration::from_millis(150));
    ranks.open();
    let delay = match moment {
        Moment::Joining => random.below(25),
        Moment::Collectives => random.below(100),
        Moment::Idle => random.below(300),
        Moment::Leaving => random.below(30 * size as usize),
    };
    if moment != Moment::Joining {
        for rank in 0..size as usize {
            ranks.line(rank, &["met"]);
        }
    }
    thread::sleep(Duration::from_millis(u64::try_from(delay).unwrap()));
    let start = now();
    match fault {
        Fault::Killed => ranks.signal(victim, Signal::SIGKILL),
        Fault::Stopped => ranks.signal(victim, Signal::SIGSTOP),
        Fault::LinkDown => ip(&format!("link set v{node} down")),
        Fault::Unplugged => ip(&format!("link set v{node} nomaster")),
    }
    // The kernel takes its time to unplug a node.
    let done_after = now() - start;
    let survivors = (0..size as usize).filter(|rank| fault.is_cut() || *rank != victim);
    let lines: Vec<(usize, String)> = survivors
        .map(|rank| (rank, ranks.processes[rank].next(&["error", "left"]).unwrap_or_default()))
        .collect();
    let what = format!("{what} (at {}, which took {done_after:?}): {lines:#?}", start.as_nanos());
    let start = if fault.is_cut() { start + done_after } else { start };
    let mut noticed = Noticed { told: None, unknown: false };
    for (rank, line) in &lines {
        let rank = *rank;
        assert!(!line.is_empty(), "{what}: rank {rank} ended without a word");
        let mut words = line.splitn(3, ' ').skip(1);
        let time = Duration::from_nanos(words.next().unwrap().parse().unwrap());
        let Some(text) = words.next() else {
            // It had left before, or needed nothing more from the one that was hit.
            assert_eq!(moment, Moment::Leaving, "{what}: rank {rank} left");
            continue;
        };
        let missing = text.contains("did not join");
        let there = if fault.is_cut() && node_of(rank) == node {
            // From there, it is the others that are gone.
            (0..count).any(|other| other != node && text.contains(&address(other)))
        } else {
            text.contains(&address(node))
        };
        let ranks_of_node = (0..size as usize).filter(|rank| node_of(*rank) == node);
        let named = |rank: usize| {
            text.contains(&format!("rank {rank} (")) || text.contains(&format!("rank: Some({rank})"))
        };
        // Before it has met its leader a rank is known by nobody, and before leaders have met each other a leader.
        let who = match moment {
            Moment::Joining => true,
            _ if fault.is_cut() => node_of(rank) == node || ranks_of_node.clone().any(named),
            _ => named(victim),
        };
        assert!(there && who, "{what}: rank {rank} was told: {text}");
        noticed.unknown |= missing;
        assert!(time + done_after > start, "{what}: rank {rank} was told before");
        let time = time.saturating_sub(start);
        noticed.told = noticed.told.max(Some(time));
        let limit = match fault {
            _ if missing => JOIN + 3 * SECOND,
            Fault::Stopped => SILENCE + SECOND + if moment == Moment::Idle { IDLE } else { Duration::ZERO },
            _ => 2 * SECOND,
        };
        assert!(time < limit, "{what}: rank {rank} was told after {time:?}: {text}");
    }
    done.send(()).unwrap();
    watchdog.join().unwrap();
    match fault {
        Fault::LinkDown => ip(&format!("link set v{node} up")),
        Fault::Unplugged => ip(&format!("link set v{node} master bridge")),
        Fault::Killed | Fault::Stopped => {}
    }
    // All but the victim end by themselves.
    for (rank, process) in ranks.processes.iter_mut().enumerate() {
        if fault.is_cut() || rank != victim {
            assert!(process.wait(), "{what}: rank {rank} did not end well");
        }
    }
    drop(ranks);
    let clean = Instant::now();
    loop {
        let left = leftovers(nodes);
        if left.is_empty() {
            break;
        }
        assert!(clean.elapsed() < 2 * SECOND, "{what}: left behind: {left:?}");
        thread::sleep(Duration::from_millis(10));
    }
    noticed
}

/// The runs, in the namespaces.
#[test]
#[ignore = "the other tests start it"]
fn inside() {
    let Ok(runs) = std::env::var(INSIDE) else { return };
    let (runs, seed) = runs.split_once(' ').unwrap();
    let (runs, seed): (usize, u64) = (runs.parse().unwrap(), seed.parse().unwrap());
    ip("link set lo up");
    ip("link add bridge type bridge");
    ip("link set bridge up");
    let nodes: Vec<Node> = (0..MOST_NODES).map(Node::start).collect();
    let mut random = Random(seed);
    let mut table: BTreeMap<(Fault, Moment, bool), Vec<Option<Duration>>> = BTreeMap::new();
    for run in 0..runs {
        // Each fault in turn, and each moment.
        let fault = FAULTS[run % FAULTS.len()];
        let moment = MOMENTS[(run / FAULTS.len() + run) % MOMENTS.len()];
        let noticed = strike(&nodes, fault, moment, &mut random);
        table.entry((fault, moment, noticed.unknown)).or_default().push(noticed.told);
    }
    println!(
        "{:<26}{:<34}{:>6}{:>14}{:>10}",
        "fault", "while the ranks are", "runs", "nobody hurt", "slowest"
    );
    for ((fault, moment, unknown), told) in &table {
        let moment = match moment {
            Moment::Joining if *unknown => "joining, before it was known",
            Moment::Joining => "joining",
            Moment::Collectives => "in collectives",
            Moment::Idle => "idle for a second",
            Moment::Leaving => "leaving",
        };
        let unhurt = told.iter().filter(|told| told.is_none()).count();
        let slowest = told.iter().max().copied().flatten();
        let slowest = slowest.map_or("-".to_owned(), |time| format!("{time:.2?}"));
        println!("{:<26}{moment:<34}{:>6}{unhurt:>14}{slowest:>10}", fault.to_string(), told.len());
    }
}

/// So many faults, in namespaces of their own, which end with them.
fn run(runs: usize, seed: u64) {
    let namespaces = ["--user", "--map-root-user", "--net", "--mount", "--pid", "--fork", "--mount-proc"];
    let unshare = || {
        let mut command = Command::new("unshare");
        command.args(namespaces).arg("--kill-child");
        command
    };
    let probe = unshare().arg("true").output();
    if !probe.as_ref().is_ok_and(|probe| probe.status.success()) {
        let reason = format!("no namespaces for this user: {probe:?}");
        let required = std::env::var("ROCE_REQUIRE").unwrap_or_default();
        assert!(required.is_empty(), "ROCE_REQUIRE={required}, but {reason}");
        println!("skipped: {reason}");
        return;
    }
    println!("{runs} faults, seed {seed}");
    let mut command = unshare();
    command.arg(std::env::current_exe().unwrap());
    command.args(["--exact", "inside", "--ignored", "--nocapture", "--test-threads=1"]);
    let status = command.env(INSIDE, format!("{runs} {seed}")).status().unwrap();
    assert!(status.success(), "{runs} faults, seed {seed}");
}

/// The short form of the soak below: each fault, at each kind of moment.
#[test]
fn whoever_is_killed_stopped_or_cut_off_is_named_to_all_others() {
    run(8, 7);
}

/// `cargo xtask soak ranks`
#[test]
#[ignore = "a soak"]
fn soak() {
    let number = |name: &str| std::env::var(name).ok().map(|number| number.parse::<u64>().unwrap());
    let runs = usize::try_from(number("SOAK_RUNS").unwrap_or(200)).unwrap();
    run(runs, number("SOAK_SEED").unwrap_or(u64::try_from(now().as_nanos() % 1_000_000).unwrap()));
}
