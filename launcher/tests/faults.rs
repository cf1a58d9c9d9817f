//! Ranks that die in the middle of everything there is, that don't receive for long, and that send on while the lab takes their rails away.

mod common;

use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, raise};
use roce_launcher::{Any, Communicator, Error, Job, Sum, Window, wait_all};

/// In which operation a rank dies.
const OPERATION: &str = "ROCE_TEST_OPERATION";
const OPERATIONS: [&str; 21] = [
    "send",
    "receive",
    "long send",
    "long receive",
    "barrier",
    "broadcast",
    "broadcast by who dies",
    "reduce",
    "reduce to who dies",
    "all_reduce",
    "long all_reduce",
    "gather",
    "all_gather",
    "scatter by who dies",
    "reduce_scatter",
    "all_to_all",
    "put",
    "get",
    "fetch_add",
    "fence",
    "split",
];
/// When.
const LIFE: Duration = Duration::from_millis(100);
/// In this time all others have heard of it.
const NOTICE: Duration = Duration::from_secs(2);
/// A message that its receiver reads from the sender's memory.
const LONG: usize = 100_000;
/// So many gets of a number each in a round of `flow`.
const SHORT_GETS: usize = 60;
/// So many puts of a number each in a round of `flow`, and all with the long one behind them.
const SHORT_PUTS: usize = 200;
const PUTS: usize = SHORT_PUTS + LONG / 8;

/// What a rank does; the others start it.
#[test]
#[ignore = "the other tests start it"]
fn rank() {
    let task = common::task();
    if task == "deaths" {
        return deaths();
    }
    let job = Job::init().unwrap();
    job.set_timeout(Some(Duration::from_secs(40)));
    match task.as_str() {
        "death" => return death(&job),
        "starved" => starved(&job.world()),
        "flow" => flow(&job),
        "long flow" => long_flow(&job),
        other => panic!("no task {other}"),
    }
    job.finalize().unwrap();
}

/// Starts a rank of another job for each operation, in which the last rank dies.
fn deaths() {
    let number = |name: &str| std::env::var(name).unwrap().parse::<u32>().unwrap();
    let dies = number("SLURM_PROCID") + 1 == number("SLURM_NTASKS");
    let step = number("SLURM_STEP_ID");
    let mut wrong = String::new();
    for (turn, operation) in (1..).zip(OPERATIONS) {
        let begin = Instant::now();
        let output = Command::new(std::env::current_exe().unwrap())
            .args(["rank", "--exact", "--ignored", "--nocapture", "--test-threads=1"])
            .env("ROCE_TEST_TASK", "death")
            .env(OPERATION, operation)
            .env("SLURM_STEP_ID", (step + 1000 * turn).to_string())
            .output()
            .unwrap();
        println!("{operation}: {:.1?}", begin.elapsed());
        let is_right = if dies {
            output.status.signal() == Some(Signal::SIGKILL as i32)
        } else {
            output.status.success()
        };
        if !is_right {
            let text = [output.stdout, output.stderr].concat();
            wrong += &format!("{operation}: {}\n{}\n", output.status, String::from_utf8_lossy(&text));
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
}

/// The last rank dies in the middle of an operation that all repeat without end. The others get an error that names it.
fn death(job: &Job) {
    let world = job.world();
    let operation = std::env::var(OPERATION).unwrap();
    let victim = world.size() - 1;
    let window = world.window::<u64>(1000).unwrap();
    world.barrier().unwrap();
    let begin = Instant::now();
    if world.rank() == victim {
        std::thread::spawn(|| {
            std::thread::sleep(LIFE);
            raise(Signal::SIGKILL).unwrap();
        });
    }
    let error = loop {
        if let Err(error) = operate(&world, &window, &operation, victim) {
            break error.to_string();
        }
    };
    let (took, name) = (begin.elapsed(), format!("rank {victim} ({}", job.node_of(victim)));
    assert!(error.contains(&name), "{operation}: {error}");
    assert!(took < LIFE + NOTICE, "{operation}: {error} after {took:?}");
    if world.size() > 2 {
        // Others are to hear of that rank's death, and not of this one's end.
        std::thread::sleep(Duration::from_millis(400));
    }
}

fn operate(world: &Communicator, window: &Window<u64>, operation: &str, victim: u32) -> Result<(), Error> {
    let (rank, size) = (world.rank(), world.size());
    let dies = rank == victim;
    let others = 0..victim;
    let mut few = [u64::from(rank); 10];
    let mut many = vec![u64::from(rank); LONG / 8];
    match operation {
        "send" | "receive" if dies => std::thread::sleep(LIFE),
        "send" => world.send(victim, 1, &few)?,
        "receive" => _ = world.receive(victim, 1, &mut few)?,
        "long send" if dies => _ = world.receive(Any, 1, &mut many)?,
        "long send" => world.send(victim, 1, &many)?,
        "long receive" if dies => {
            let sends = others.map(|other| world.start_send(other, 1, many.clone()));
            _ = wait_all(sends.collect::<Result<Vec<_>, _>>()?)?;
        }
        "long receive" => _ = world.receive(victim, 1, &mut many)?,
        "barrier" => world.barrier()?,
        "broadcast" => world.broadcast(0, &mut few)?,
        "broadcast by who dies" => world.broadcast(victim, &mut few)?,
        "reduce" => _ = world.reduce(0, &few, Sum)?,
        "reduce to who dies" => _ = world.reduce(victim, &few, Sum)?,
        "all_reduce" => world.all_reduce(&mut few, Sum)?,
        "long all_reduce" => world.all_reduce(&mut many, Sum)?,
        "gather" => _ = world.gather(0, &few)?,
        "all_gather" => _ = world.all_gather(&few)?,
        "scatter by who dies" => {
            let all = vec![1; if dies { few.len() * size as usize } else { 0 }];
            world.scatter(victim, &all, &mut few)?;
        }
        "reduce_scatter" => _ = world.reduce_scatter(&vec![1; 10 * size as usize], Sum)?,
        "all_to_all" => _ = world.all_to_all(&vec![1; 10 * size as usize])?,
        "put" => {
            window.put(victim, 0, &many[..1000])?;
            window.flush(victim)?;
        }
        "get" => window.get(victim, 0, &mut many[..1000])?,
        "fetch_add" => _ = window.fetch_add(victim, 0, 1)?,
        "fence" => window.fence()?,
        "split" => _ = world.split(Some(rank % 2), 0)?,
        other => panic!("no operation {other}"),
    }
    Ok(())
}

/// Rank 0 receives nothing for long, while all others send as much as they can, short and long. All of it comes, once and in order.
fn starved(world: &Communicator) {
    const MESSAGES: u64 = 300;
    let (rank, size) = (world.rank(), world.size());
    let short: Vec<usize> = common::up_to_most([1, 30, 300, 2000]).collect();
    let length = |number: u64| match number as usize {
        number if number.is_multiple_of(100) => LONG / 8,
        number => short[number % short.len()],
    };
    let filled = |rank: u32, number: u64| vec![u64::from(rank) << 32 | number; length(number)];
    world.barrier().unwrap();
    if rank > 0 {
        let sends = (0..MESSAGES).map(|number| world.start_send(0, 1, filled(rank, number)).unwrap());
        wait_all(sends.collect()).unwrap();
    } else {
        std::thread::sleep(Duration::from_millis(1500));
        let mut next = vec![0; size as usize];
        for _ in 0..MESSAGES * u64::from(size - 1) {
            let (data, status) = world.receive_vec::<u64>(Any, 1).unwrap();
            let number = &mut next[status.source as usize];
            assert!(data == filled(status.source, *number), "message {number} of rank {}", status.source);
            *number += 1;
        }
    }
    world.barrier().unwrap();
}

/// Everything at once, each byte looked at, until the file `enough` is there. The file `flows` is written whenever all went well
/// once more.
fn flow(job: &Job) {
    let folder = std::env::var("ROCE_TEST_FOLDER").unwrap_or_default();
    let (flows, enough) = (Path::new(&folder).join("flows"), Path::new(&folder).join("enough"));
    let world = job.world();
    let (rank, size) = (world.rank(), world.size());
    let partner = (rank + size / 2) % size;
    let window = world.window::<u64>(1).unwrap();
    // Of this round and the one before, which its owner may still look at.
    let area = world.window::<u64>(2 * PUTS).unwrap();
    let mut put = vec![0; PUTS];
    let mut longest = Duration::ZERO;
    for round in 0_u64.. {
        let start = Instant::now();
        let result = (|| {
            let said = |rank: u32, number: u64| u64::from(rank) << 48 | round << 8 | number;
            let sends = (0..20).map(|number| world.start_send(partner, 1, vec![said(rank, number); 500]));
            let sends = sends.collect::<Result<Vec<_>, _>>()?;
            for number in 0..20 {
                let (data, _) = world.receive_vec::<u64>(partner, 1)?;
                assert!(data == [said(partner, number); 500], "round {round}, message {number}");
            }
            wait_all(sends)?;
            let (mine, mut theirs) = (vec![said(rank, 99); LONG / 8], vec![0; LONG / 8]);
            world.send_receive(partner, 2, &mine, partner, 2, &mut theirs)?;
            let wrong = |got: &u64| *got != said(partner, 99);
            if let Some(first) = theirs.iter().position(wrong) {
                let count = theirs.iter().filter(|got| wrong(got)).count();
                panic!(
                    "round {round}: {count} of {} are wrong, from {first} on: {:x}",
                    theirs.len(),
                    theirs[first]
                );
            }
            let half = if round % 2 == 0 { 0 } else { PUTS };
            for number in 0..SHORT_PUTS {
                area.put(partner, half + number, &[said(rank, number as u64)])?;
            }
            area.put(partner, half + SHORT_PUTS, &mine)?;
            area.flush(partner)?;
            // Back again: short ones and a long one.
            for (number, got) in put.iter_mut().enumerate().take(SHORT_GETS) {
                area.get(partner, half + number, std::slice::from_mut(got))?;
            }
            area.get(partner, half + SHORT_GETS, &mut put[SHORT_GETS..])?;
            let as_put = |rank: u32| (0..SHORT_PUTS as u64).map(move |number| said(rank, number));
            assert!(put[..SHORT_PUTS].iter().copied().eq(as_put(rank)), "round {round}: short gets");
            assert!(put[SHORT_PUTS..] == mine, "round {round}: a long get");
            window.fetch_add(partner, 0, 1)?;
            let mut is_over = [u64::from(rank == 0 && enough.exists())];
            world.all_reduce(&mut is_over, Sum)?;
            area.read(half, &mut put)?;
            assert!(put[..SHORT_PUTS].iter().copied().eq(as_put(partner)), "round {round}: short puts");
            assert!(!put[SHORT_PUTS..].iter().any(wrong), "round {round}: a long put");
            Ok::<bool, Error>(is_over[0] > 0)
        })();
        longest = longest.max(start.elapsed());
        match result {
            // While somebody removes it, that may fail; the next round does it then.
            Ok(false) if round >= 2 && rank == 0 => _ = std::fs::write(&flows, ""),
            Ok(false) => {}
            Ok(true) => {
                world.barrier().unwrap();
                let mut added = [0];
                window.read(0, &mut added).unwrap();
                assert_eq!(added, [round + 1]);
                println!("rank {rank}: {round} rounds, the longest {longest:.1?}");
                area.close().unwrap();
                return window.close().unwrap();
            }
            Err(error) => {
                eprintln!("rank {rank} after {longest:.1?}: {error}");
                // The others are to find out by themselves.
                std::thread::sleep(Duration::from_secs(3));
                panic!("round {round}");
            }
        }
    }
}

/// Messages that go over all rails, each byte looked at, until the file `enough` is there. The file `flows` is written as in [`flow`].
fn long_flow(job: &Job) {
    // 5 MB are most of a round's time on the wire.
    const WORDS: usize = 600_003;
    let folder = std::env::var("ROCE_TEST_FOLDER").unwrap_or_default();
    let (flows, enough) = (Path::new(&folder).join("flows"), Path::new(&folder).join("enough"));
    let world = job.world();
    let (rank, size) = (world.rank(), world.size());
    let partner = (rank + size / 2) % size;
    let (mut mine, mut theirs) = (vec![0_u64; WORDS], vec![0_u64; WORDS]);
    let (mut longest, mut most_pairs) = (Duration::ZERO, 0);
    for round in 0_u64.. {
        let start = Instant::now();
        // Other words than in the round before, and each another one.
        let said = |rank: u32, place: usize| u64::from(rank) << 56 | round << 32 | place as u64;
        mine.iter_mut().enumerate().for_each(|(place, word)| *word = said(rank, place));
        let result = (|| {
            world.send_receive(partner, 2, &mine, partner, 2, &mut theirs)?;
            let wrong = |(place, word): &(usize, &u64)| **word != said(partner, *place);
            if let Some((first, word)) = theirs.iter().enumerate().find(wrong) {
                let count = theirs.iter().enumerate().filter(wrong).count();
                panic!("round {round}: {count} of {WORDS} are wrong, from {first} on: {word:x}");
            }
            let mut is_over = [u64::from(rank == 0 && enough.exists())];
            world.all_reduce(&mut is_over, Sum)?;
            Ok::<bool, Error>(is_over[0] > 0)
        })();
        longest = longest.max(start.elapsed());
        most_pairs = most_pairs.max(job.queue_pairs());
        match result {
            Ok(false) if round >= 2 && rank == 0 => _ = std::fs::write(&flows, ""),
            Ok(false) => {}
            Ok(true) => {
                let (pairs, ways) = (job.queue_pairs(), job.describe());
                println!(
                    "rank {rank}: {round} rounds, the longest {longest:.1?}; queue pairs: {most_pairs} at most, {pairs} at the end; {ways}"
                );
                return;
            }
            Err(error) => {
                eprintln!("rank {rank} after {longest:.1?}: {error}");
                std::thread::sleep(Duration::from_secs(1));
                panic!("round {round}");
            }
        }
    }
}

#[test]
fn a_rank_that_dies_in_the_middle_of_anything_is_told_to_all() {
    common::run(&[2, 2], "deaths");
}

#[test]
fn nothing_is_lost_where_a_rank_receives_nothing_for_long() {
    common::run(&[3], "starved");
    common::run(&[1, 2], "starved");
}
