//! Strangers at the ports of leaders, while real ranks join again and again: nobody gets in, nothing grows, and joining takes no
//! longer than it should.

mod common;

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use common::{Places, Process, Ranks, loopback, now, task};
use roce_bootstrap::{Bootstrap, Identity, Options, Secret, testing};

/// Ranks on each of the four nodes.
const COUNTS: [u32; 4] = [2; 4];
const RANKS: usize = 8;
/// The last node's ranks come so much later; until then the others' ports are open to everyone.
const LATE: Duration = Duration::from_millis(40);
/// All may take these ports, which the kernel gives to no caller: then a leader's first candidate is nearly always free.
const PORTS: RangeInclusive<u16> = 22_000..=32_000;
/// What a caller can hear who proves nothing: one answer.
const ANSWER: usize = 68;

/// One rank: joins for each line that it reads, and says how that was.
#[test]
#[ignore = "the other tests start it"]
fn rank() {
    if task().is_none() {
        return;
    }
    let identity = Identity::discover().unwrap();
    let secret = Secret::take_from_environment().unwrap().unwrap();
    for line in std::io::stdin().lines() {
        let begin = Duration::from_nanos(line.unwrap().parse().unwrap());
        thread::sleep(begin.saturating_sub(now()));
        let start = now();
        let card = format!("card {}", identity.rank).into_bytes();
        let options = Options { ports: PORTS, card, ..Options::default() };
        let mut joined = Bootstrap::join(identity.clone(), Some(&secret), &options).unwrap();
        let end = now();
        assert!((0..8).all(|rank| joined.card_of(rank).unwrap() == format!("card {rank}").as_bytes()));
        // Only then is it known that neighbours were reached who are needed to nobody's join.
        joined.barrier().unwrap();
        let counters = joined.counters();
        assert_eq!((counters.rounds, counters.connections_made, counters.connections_accepted), (4, 2, 2));
        joined.leave().unwrap();
        let (descriptors, memory) = (count_descriptors("self"), private_memory());
        println!("\njoined {} {} {descriptors} {memory}", start.as_nanos(), end.as_nanos());
    }
}

fn count_descriptors(process: &str) -> usize {
    fs::read_dir(format!("/proc/{process}/fd")).map_or(0, Iterator::count)
}

/// In KiB.
fn private_memory() -> u64 {
    let rollup = fs::read_to_string("/proc/self/smaps_rollup").unwrap();
    let private = rollup.lines().filter(|line| line.starts_with("Private_"));
    private.map(|line| line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap()).sum()
}

/// What strangers do.
const KINDS: [&str; 9] = [
    "garbage",
    "silence",
    "one byte at a time",
    "a recorded call",
    "a recorded call, changed",
    "another secret",
    "another job, right secret",
    "a huge length",
    "gone at once",
];

/// What a stranger's process knows.
struct Knowledge {
    secret: Secret,
    /// Of each node, the ports that its leader tries.
    ports: Vec<Vec<u16>>,
    /// What callers said in an earlier join, and to which node.
    recorded: Vec<(usize, Vec<u8>)>,
}

/// Calls leaders until its input ends, in the times between `on` and `off`.
#[test]
#[ignore = "the other tests start it"]
fn stranger() {
    let Some(secret) = task() else { return };
    let secret = Secret::from_hex(secret.as_bytes()).unwrap();
    let ports = (0..4).map(|node| testing::candidate_ports(&secret, 0, node, &PORTS)).collect();
    let mut lines = std::io::stdin().lines().map(Result::unwrap);
    let mut recorded = Vec::new();
    for line in lines.by_ref().take_while(|line| line != "begin") {
        let (node, digits) = line.split_once(' ').unwrap();
        let byte = |place| u8::from_str_radix(&digits[place..place + 2], 16).unwrap();
        recorded.push((node.parse().unwrap(), (0..digits.len()).step_by(2).map(byte).collect()));
    }
    let knowledge = Knowledge { secret, ports, recorded };
    let (on, over) = (AtomicBool::new(false), AtomicBool::new(false));
    let counts: [AtomicUsize; KINDS.len()] = Default::default();
    let wrong = AtomicUsize::new(0);
    thread::scope(|scope| {
        for seed in 0..4 {
            let (knowledge, on, over, counts, wrong) = (&knowledge, &on, &over, &counts, &wrong);
            scope.spawn(move || {
                let mut random = Random(seed * 7919 + 1);
                let mut kept = Vec::new();
                while !over.load(Ordering::Relaxed) {
                    if !on.load(Ordering::Relaxed) {
                        kept.clear();
                        thread::sleep(Duration::from_millis(1));
                        continue;
                    }
                    let kind = random.below(KINDS.len());
                    let node = random.below(4);
                    match visit(knowledge, kind, node, &mut random, &mut kept) {
                        Visit::NobodyThere => thread::sleep(Duration::from_micros(200)),
                        Visit::TurnedAway => drop(counts[kind].fetch_add(1, Ordering::Relaxed)),
                        Visit::Admitted => drop(wrong.fetch_add(1, Ordering::Relaxed)),
                    }
                }
            });
        }
        for line in lines {
            on.store(line == "on", Ordering::Relaxed);
            let total: usize = counts.iter().map(|count| count.load(Ordering::Relaxed)).sum();
            println!("\ntotal {total} {}", wrong.load(Ordering::Relaxed));
        }
        over.store(true, Ordering::Relaxed);
    });
    let counts: Vec<String> = counts.iter().map(|count| count.load(Ordering::Relaxed).to_string()).collect();
    println!("\nkinds {}", counts.join(" "));
}

/// Calls a port so many times and keeps all connections.
#[test]
#[ignore = "the other tests start it"]
fn holder() {
    let Some(port) = task() else { return };
    let port: u16 = port.parse().unwrap();
    let mut kept = Vec::new();
    while kept.len() < 800 {
        match TcpStream::connect(("127.0.0.1", port)) {
            Ok(stream) => kept.push(stream),
            Err(_) => thread::sleep(Duration::from_millis(1)),
        }
    }
    println!("\nheld");
    std::io::stdin().read_to_end(&mut Vec::new()).unwrap();
}

enum Visit {
    NobodyThere,
    TurnedAway,
    Admitted,
}

fn visit(
    knowledge: &Knowledge,
    kind: usize,
    node: usize,
    random: &mut Random,
    kept: &mut Vec<TcpStream>,
) -> Visit {
    let (replayed, call) = match &knowledge.recorded[..] {
        [] => (&[][..], node),
        recorded => {
            let (node, bytes) = &recorded[random.below(recorded.len())];
            (&bytes[..], *node)
        }
    };
    let node = if matches!(kind, 3 | 4) { call } else { node };
    let Ok(mut stream) = TcpStream::connect(("127.0.0.1", knowledge.ports[node][0])) else {
        return Visit::NobodyThere;
    };
    // Leaders may hang up at any moment: that is what is being tested.
    match kind {
        0 => {
            let bytes: Vec<u8> = (0..random.below(3000)).map(|_| random.below(256) as u8).collect();
            let _ = stream.write_all(&bytes);
        }
        1 => keep(kept, stream),
        2 => {
            keep(kept, stream);
            let hello = hello_to(node, random);
            for slow in kept.iter_mut() {
                let _ = slow.write_all(&hello[..1]);
            }
        }
        3 => return hear_out(&mut stream, replayed, random),
        4 => {
            let mut changed = replayed.to_vec();
            if !changed.is_empty() {
                let place = random.below(changed.len());
                changed[place] ^= 1 << random.below(8);
            }
            return hear_out(&mut stream, &changed, random);
        }
        5 | 6 => {
            let (other, job) = (Secret::new([1; 32]), 7 * (kind as u32 - 5));
            let secret = if kind == 5 { &other } else { &knowledge.secret };
            let nonce = [random.below(256) as u8; 32];
            let (caller, round) = ((node as u32 + 3) % 4, 0);
            let _ = stream.write_all(&testing::hello(caller, round, caller * 2, nonce));
            let mut answer = [0; ANSWER];
            let _ = stream.set_read_timeout(Some(Duration::from_millis(500)));
            if stream.read_exact(&mut answer).is_ok() {
                let place = [caller, node as u32, round, caller * 2];
                let last = testing::last_words(secret, (job, 8, 4), place, nonce, &answer);
                return hear_out(&mut stream, &[&last[..], &[0; 60]].concat(), random);
            }
        }
        7 => {
            let bytes = [&hello_to(node, random)[..], &[7; 32], &[0xff; 4], &[0; 1000]].concat();
            let _ = stream.write_all(&bytes);
        }
        _ => {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
    Visit::TurnedAway
}

fn hello_to(node: usize, random: &mut Random) -> [u8; 52] {
    let caller = (node as u32 + 3) % 4;
    testing::hello(caller, 0, caller * 2, [random.below(256) as u8; 32])
}

fn keep(kept: &mut Vec<TcpStream>, stream: TcpStream) {
    if kept.len() >= 200 {
        kept.remove(0);
    }
    kept.push(stream);
}

/// Says something, and now and then waits for what comes: whoever hears more than one answer was let in.
fn hear_out(stream: &mut TcpStream, bytes: &[u8], random: &mut Random) -> Visit {
    let _ = stream.write_all(bytes);
    if random.below(20) != 0 {
        return Visit::TurnedAway;
    }
    let _ = stream.set_read_timeout(Some(Duration::from_secs(3)));
    let mut heard = Vec::new();
    match stream.read_to_end(&mut heard) {
        // It has to be turned away at once.
        Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => Visit::Admitted,
        _ if heard.len() > ANSWER => Visit::Admitted,
        _ => Visit::TurnedAway,
    }
}

struct Random(u64);

impl Random {
    fn below(&mut self, most: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % most
    }
}

/// A job of which the leaders' ports are known.
struct Job {
    ranks: Ranks,
    ports: Vec<Vec<u16>>,
}

/// What a join took and left.
struct Joined {
    time: Duration,
    descriptors: Vec<usize>,
    memory: Vec<u64>,
}

impl Job {
    fn start() -> Self {
        Self::start_by(&|_| Vec::new())
    }

    /// Each rank by way of this command.
    fn start_by(enter: &dyn Fn(usize) -> Vec<String>) -> Self {
        let ranks = Ranks::start(&Places { enter, ..loopback(&COUNTS) }, "join");
        let candidates = |node| testing::candidate_ports(&ranks.secret, 0, node, &PORTS);
        let ports = (0..4).map(candidates).collect();
        Self { ranks, ports }
    }

    /// Everyone joins, those of the last node late.
    fn join(&mut self) -> Joined {
        let begin = now() + Duration::from_millis(2);
        self.begin(0..6, begin);
        self.begin(6..RANKS, begin + LATE);
        self.joined()
    }

    fn begin(&mut self, ranks: std::ops::Range<usize>, time: Duration) {
        for process in &mut self.ranks.processes[ranks] {
            process.say(&time.as_nanos().to_string());
        }
    }

    /// From the last start to the last end.
    fn joined(&mut self) -> Joined {
        let (mut starts, mut ends) = (Vec::new(), Vec::new());
        let (mut descriptors, mut memory) = (Vec::new(), Vec::new());
        for rank in 0..RANKS {
            let line = self.ranks.line(rank, &["joined"]);
            let numbers: Vec<u64> = line.split(' ').map(|number| number.parse().unwrap()).collect();
            starts.push(numbers[0]);
            ends.push(numbers[1]);
            descriptors.push(numbers[2] as usize);
            memory.push(numbers[3]);
        }
        let time = ends.iter().max().unwrap() - starts.iter().max().unwrap();
        Joined { time: Duration::from_nanos(time), descriptors, memory }
    }

    /// Joins by way of somebody who listens in at the first port of a node, and gives what callers said to it.
    fn record(&mut self, node: usize) -> Vec<Vec<u8>> {
        let listener = TcpListener::bind(("127.0.0.1", self.ports[node][0])).unwrap();
        let second = self.ports[node][1];
        let over = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&over);
        let (said, recorded) = mpsc::channel();
        listener.set_nonblocking(true).unwrap();
        let between = thread::spawn(move || {
            while !seen.load(Ordering::Relaxed) {
                let Ok((mut caller, _)) = listener.accept() else {
                    thread::sleep(Duration::from_micros(200));
                    continue;
                };
                caller.set_nonblocking(false).unwrap();
                let Ok(mut leader) = TcpStream::connect(("127.0.0.1", second)) else { continue };
                let (mut back_from, mut back_to) = (leader.try_clone().unwrap(), caller.try_clone().unwrap());
                let said = said.clone();
                thread::spawn(move || {
                    let _ = std::io::copy(&mut back_from, &mut back_to);
                    let _ = back_to.shutdown(Shutdown::Both);
                });
                thread::spawn(move || {
                    let (mut all, mut buffer) = (Vec::new(), [0; 4096]);
                    while let Ok(count @ 1..) = caller.read(&mut buffer) {
                        all.extend_from_slice(&buffer[..count]);
                        if leader.write_all(&buffer[..count]).is_err() {
                            break;
                        }
                    }
                    let _ = leader.shutdown(Shutdown::Both);
                    let _ = said.send(all);
                });
            }
        });
        self.join();
        over.store(true, Ordering::Relaxed);
        between.join().unwrap();
        // Those that were not taken say nothing after their hello.
        recorded.iter().filter(|said: &Vec<u8>| said.len() > 100).collect()
    }
}

fn median(times: &[Duration]) -> Duration {
    let mut times = times.to_vec();
    times.sort();
    times[times.len() / 2]
}

fn spread(times: &[Duration]) -> String {
    let (least, most) = (times.iter().min().unwrap(), times.iter().max().unwrap());
    format!("median {:.1?}, {least:.1?} to {most:.1?}, {} joins", median(times), times.len())
}

/// So many connections of strangers; gives the times of undisturbed and of disturbed joins.
fn attack(wanted: usize) -> [Vec<Duration>; 2] {
    let mut job = Job::start();
    let mut recorded = Vec::new();
    for node in [0, 1] {
        recorded.extend(job.record(node).into_iter().map(|said| (node, said)));
    }
    assert!(recorded.len() >= 2, "{} calls were recorded", recorded.len());
    // Their work is done elsewhere, where strangers are: here they get what time is left.
    let nice: Vec<String> = ["nice", "-n", "19"].map(str::to_owned).to_vec();
    let mut stranger = Process::start("stranger", &job.ranks.secret.to_hex(), &nice, &[]);
    for (node, said) in &recorded {
        let digits: String = said.iter().map(|byte| format!("{byte:02x}")).collect();
        stranger.say(&format!("{node} {digits}"));
    }
    stranger.say("begin");
    let most_descriptors = Arc::new(AtomicU64::new(0));
    let watch = Watch::start(&job, &most_descriptors);
    let mut times = [Vec::new(), Vec::new()];
    let (mut early, mut late) = (None, None);
    let mut total = 0;
    let start = Instant::now();
    while total < wanted {
        assert!(start.elapsed() < Duration::from_secs(900), "only {total} connections");
        for (disturbed, word) in [(0, "off"), (1, "on")] {
            stranger.say(word);
            stranger.next(&["total"]).unwrap();
            for _ in 0..4 {
                let joined = job.join();
                times[disturbed].push(joined.time);
                // The first ones touch memory for the first time.
                if early.is_none() && times[1].len() >= 8 {
                    early = Some(joined);
                } else {
                    late = Some(joined);
                }
            }
        }
        stranger.say("off");
        let line = stranger.next(&["total"]).unwrap();
        let numbers: Vec<usize> = line.split(' ').skip(1).map(|number| number.parse().unwrap()).collect();
        total = numbers[0];
        assert_eq!(numbers[1], 0, "somebody was let in");
    }
    stranger.close();
    let kinds = stranger.next(&["kinds"]).unwrap();
    drop(watch);
    let most = most_descriptors.load(Ordering::Relaxed);
    println!("{total} connections of strangers in {:.0?}:", start.elapsed());
    for (kind, count) in KINDS.iter().zip(kinds.split(' ').skip(1)) {
        println!("  {count:>7} {kind}");
    }
    println!("  undisturbed: {}", spread(&times[0]));
    println!("  disturbed:   {}", spread(&times[1]));
    println!("  most descriptors of a rank at a time: {most}");
    assert!(most < 512 + 64, "{most} descriptors");
    if let (Some(early), Some(late)) = (early, late) {
        println!(
            "  descriptors of the ranks after a join: {:?}, then {:?}",
            early.descriptors, late.descriptors
        );
        println!("  private memory in KiB: {:?}, then {:?}", early.memory, late.memory);
        assert_eq!(early.descriptors, late.descriptors);
        for (early, late) in early.memory.iter().zip(&late.memory) {
            assert!(*late < early + 1024, "{early} KiB, then {late}");
        }
    }
    for process in &mut job.ranks.processes {
        assert!(process.wait(), "a rank failed");
    }
    times
}

/// Counts the ranks' descriptors from time to time.
struct Watch(Arc<AtomicBool>);

impl Watch {
    fn start(job: &Job, most: &Arc<AtomicU64>) -> Self {
        let over = Arc::new(AtomicBool::new(false));
        let (most, seen) = (Arc::clone(most), Arc::clone(&over));
        let processes: Vec<String> = job.ranks.processes.iter().map(|rank| rank.id().to_string()).collect();
        thread::spawn(move || {
            while !seen.load(Ordering::Relaxed) {
                for process in &processes {
                    most.fetch_max(count_descriptors(process) as u64, Ordering::Relaxed);
                }
                thread::sleep(Duration::from_millis(25));
            }
        });
        Self(over)
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// The short form of the soak below, without its claim about time.
#[test]
fn strangers_do_not_get_in_and_leave_nothing() {
    attack(1_000);
}

/// For each that comes when 512 have proven nothing, the oldest goes.
#[test]
fn a_leader_keeps_no_more_strangers_than_it_can_bear() {
    let mut job = Job::start();
    job.begin(0..6, now());
    let mut holder = Process::start("holder", &job.ports[0][0].to_string(), &[], &[]);
    holder.next(&["held"]).unwrap();
    thread::sleep(Duration::from_millis(50));
    let rank = |rank: &Process| count_descriptors(&rank.id().to_string());
    let most = job.ranks.processes[..2].iter().map(rank).max().unwrap();
    assert!((512..540).contains(&most), "{most} descriptors");
    job.begin(6..RANKS, now());
    let joined = job.joined();
    assert!(joined.descriptors.iter().all(|count| *count < 20), "{:?}", joined.descriptors);
}

/// Strangers take at most half of its descriptors, whatever its limit.
#[test]
fn a_leader_with_few_descriptors_keeps_some_for_ranks() {
    let few = ["sh", "-c", "ulimit -n 64; exec \"$0\" \"$@\""].map(str::to_owned).to_vec();
    let mut job = Job::start_by(&|_| few.clone());
    job.begin(0..6, now());
    let mut holder = Process::start("holder", &job.ports[0][0].to_string(), &[], &[]);
    holder.next(&["held"]).unwrap();
    job.begin(6..RANKS, now());
    job.joined();
}

/// `cargo xtask soak hostile`
#[test]
#[ignore = "a soak"]
fn soak() {
    let wanted = std::env::var("SOAK_CONNECTIONS").map_or(100_000, |count| count.parse().unwrap());
    let [undisturbed, disturbed] = attack(wanted);
    let ratio = median(&disturbed).as_secs_f64() / median(&undisturbed).as_secs_f64();
    println!("  a disturbed join takes {ratio:.2} times as long (median; at most 2 allowed)");
    assert!(ratio <= 2.0, "{ratio}");
}
