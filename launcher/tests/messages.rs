//! Messages between real processes, over every transport there is here, against a model.

mod common;
#[path = "messages/memory.rs"]
mod memory;

use std::time::{Duration, Instant};

use roce_launcher::{Any, Communicator, Error, Job, Sum, wait_all, wait_any};

/// What a rank does; the others start it.
#[test]
#[ignore = "the other tests start it"]
fn rank() {
    let task = common::task();
    let mut job = Job::init().unwrap();
    // A rank of the soak may have to wait until a busy machine has played many others.
    let is_soak = std::env::var_os("ROCE_TEST_CASES").is_some();
    job.set_timeout(Some(Duration::from_secs(if is_soak { 300 } else { 40 })));
    let world = job.world();
    match task.as_str() {
        "pairs" => pairs(&world),
        "cases" => cases(&world),
        "groups" => groups(&world),
        "mistakes" => mistakes(&world),
        "connections" => connections(&mut job),
        "striped" => striped(&job),
        "memory" => memory::changed(&world),
        "kept" => memory::kept(&job),
        "crowded" => memory::crowded(&world),
        "death" => return death(&job),
        other => panic!("no task {other}"),
    }
    job.finalize().unwrap();
}

/// The same numbers on every rank, other ones for each case.
struct Random(u64);

impl Random {
    fn next(&mut self, below: usize) -> usize {
        // SplitMix64.
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut number = self.0;
        number = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        usize::try_from((number ^ (number >> 31)) % below as u64).unwrap()
    }
}

fn filled(source: u32, number: usize, length: usize) -> Vec<u8> {
    (0..length).map(|place| (source as usize * 101 + number * 13 + place * 7) as u8).collect()
}

/// Every rank with every other at once: long and short, in both directions.
fn pairs(world: &Communicator) {
    for length in common::up_to_most([0, 1, 32, 33, 4096, 100_000, 3_000_000]) {
        let (rank, size) = (world.rank(), world.size());
        let mine = filled(rank, 0, length);
        let mut theirs = vec![vec![0_u8; length]; size as usize];
        world
            .scope(|scope| {
                for (peer, room) in (0..).zip(&mut theirs) {
                    scope.receive(peer, 1, room)?;
                }
                (0..size).try_for_each(|peer| scope.send(peer, 1, &mine))
            })
            .unwrap();
        assert!((0..).zip(&theirs).all(|(peer, got)| *got == filled(peer, 0, length)), "{length}");
    }
}

/// Messages of random lengths and tags between random ranks of random groups, received in random order and ways, with and
/// without wildcards; and now and then something that all do together.
fn cases(world: &Communicator) {
    let number =
        |name: &str, default: u64| std::env::var(name).map_or(default, |number| number.parse().unwrap());
    let (cases, seed) = (number("ROCE_TEST_CASES", 60), number("ROCE_TEST_SEED", 0));
    for case in 0..cases {
        let number = seed.wrapping_mul(1_000_003).wrapping_add(case);
        let mut random = Random(number);
        let label = format!("case {case} of seed {seed}");
        // All ranks take part in making a group; who is in one plays the case there.
        let group = match random.next(4) {
            0 => world.duplicate().map(Some),
            1 => {
                let (parts, turn) = (1 + random.next(2) as u32, random.next(7) as u32);
                let rank = world.rank();
                world.split((rank != turn).then_some(rank % parts), (rank + turn) % world.size())
            }
            _ => Ok(Some(world.clone())),
        };
        if let Some(group) = group.unwrap() {
            exchange(&group, &mut random, &label);
            // Anew: ranks receive different messages, and have drawn different numbers for that.
            together(&group, &mut Random(!number), &label);
            group.barrier().unwrap();
            assert_eq!(group.try_probe::<u8>(Any, Any).unwrap(), None, "{label}");
            // Nobody sends the next case's before all have looked.
            group.barrier().unwrap();
        }
    }
}

/// Random messages in a group.
fn exchange(world: &Communicator, random: &mut Random, label: &str) {
    let (rank, size) = (world.rank(), world.size() as usize);
    let tags = 1 + random.next(3);
    let messages: Vec<(u32, u32, u32, usize)> = (0..random.next(40))
        .map(|_| {
            let (from, to, tag) =
                (random.next(size) as u32, random.next(size) as u32, random.next(tags) as u32);
            let most = [1, 33, 9000, 70_000, 200_000][random.next(5)];
            (from, to, tag, random.next(most))
        })
        .collect();
    // Which messages a wildcard takes is not fixed, but each of them must come whole, once, and in its source's order.
    let by_tag = random.next(2) == 0;
    let mut sends = Vec::new();
    for (number, &(from, to, tag, length)) in messages.iter().enumerate() {
        if from == rank {
            sends.push(world.start_send(to, tag, filled(from, number, length)).unwrap());
        }
    }
    let mut expected: Vec<usize> = (0..messages.len()).filter(|number| messages[*number].1 == rank).collect();
    while !expected.is_empty() {
        let one = messages[expected[random.next(expected.len())]];
        let (data, status) = match random.next(5) {
            0 => world.receive_vec::<u8>(one.0, one.2).unwrap(),
            1 if by_tag => world.receive_vec::<u8>(Any, one.2).unwrap(),
            2 => {
                let done = world.start_receive(one.0, one.2, vec![0_u8; 200_000]).unwrap().wait().unwrap();
                (done.data, done.status.unwrap())
            }
            3 => {
                let mut room = vec![0_u8; 200_000];
                let status = world.receive(one.0, one.2, &mut room).unwrap();
                room.truncate(status.length);
                (room, status)
            }
            _ => world.receive_vec::<u8>(Any, Any).unwrap(),
        };
        let is_it =
            |number: &&usize| (messages[**number].0, messages[**number].2) == (status.source, status.tag);
        let number = *expected.iter().find(is_it).expect("a message that was sent");
        let (from, _, _, length) = messages[number];
        assert!(data == filled(from, number, length), "{label}, message {number}: {} bytes", data.len());
        expected.retain(|other| *other != number);
    }
    wait_all(sends).unwrap();
}

/// A random collective of a group, of random length.
fn together(world: &Communicator, random: &mut Random, label: &str) {
    let (rank, size) = (world.rank(), world.size());
    let root = random.next(size as usize) as u32;
    let most = [1, 20, 3000, 20_000][random.next(4)];
    let length = random.next(most);
    let value = |rank: u32, place: usize| u64::from(rank) * 1000 + place as u64;
    let of = |rank: u32| (0..length).map(|place| value(rank, place)).collect::<Vec<u64>>();
    let sum = (0..length).map(|place| (0..size).map(|rank| value(rank, place)).sum()).collect::<Vec<u64>>();
    let all: Vec<u64> = (0..size).flat_map(of).collect();
    match random.next(8) {
        0 => {
            let mut data = of(rank);
            world.all_reduce(&mut data, Sum).unwrap();
            assert!(data == sum, "{label}: all_reduce of {length}");
        }
        1 => {
            let mut data = if rank == root { of(root) } else { vec![0; length] };
            world.broadcast(root, &mut data).unwrap();
            assert!(data == of(root), "{label}: broadcast of {length} from {root}");
        }
        2 => {
            let got = world.reduce(root, &of(rank), Sum).unwrap();
            assert!(got == (rank == root).then_some(sum), "{label}: reduce of {length} to {root}");
        }
        3 => {
            let got = world.gather(root, &of(rank)).unwrap();
            assert!(got == (rank == root).then_some(all), "{label}: gather of {length} to {root}");
        }
        4 => assert!(world.all_gather(&of(rank)).unwrap() == all, "{label}: all_gather of {length}"),
        5 => {
            let mut part = vec![0; length];
            world.scatter(root, if rank == root { &all } else { &[] }, &mut part).unwrap();
            assert!(part == of(rank), "{label}: scatter of {length} from {root}");
        }
        6 => {
            // To each rank what says who it is from.
            let data: Vec<u64> = (0..size).flat_map(|_| of(rank)).collect();
            assert!(world.all_to_all(&data).unwrap() == all, "{label}: all_to_all of {length}");
        }
        _ => {}
    }
}

/// Groups of groups, whose messages and collectives don't meet.
fn groups(world: &Communicator) {
    let (rank, size) = (world.rank(), world.size());
    let backwards = world.split(Some(0), size - rank).unwrap().unwrap();
    assert_eq!(backwards.rank(), size - 1 - rank);
    assert_eq!(backwards.rank_in_job(0), Some(size - 1));
    let parity = backwards.split((rank != 0).then_some(rank % 2), 0).unwrap();
    assert_eq!(parity.is_some(), rank != 0);
    if let Some(parity) = &parity {
        let mut sum = [rank];
        parity.all_reduce(&mut sum, Sum).unwrap();
        assert_eq!(sum[0], (1..size).filter(|other| other % 2 == rank % 2).sum::<u32>());
    }
    let other = world.duplicate().unwrap();
    world.send(rank, 1, b"world").unwrap();
    other.send(rank, 1, b"other").unwrap();
    assert_eq!(other.receive_vec::<u8>(Any, Any).unwrap().0, b"other");
    assert_eq!(world.receive_vec::<u8>(Any, Any).unwrap().0, b"world");
    // Requests of different groups at once.
    let mut requests = vec![
        world.start_receive(Any, 5, vec![0_u32]).unwrap(),
        backwards.start_receive(Any, 5, vec![0_u32]).unwrap(),
    ];
    backwards.send((backwards.rank() + 1) % size, 5, &[backwards.rank()]).unwrap();
    assert_eq!(wait_any(&mut requests).unwrap(), Some(1));
    let got = requests.remove(1).wait().unwrap();
    let left = (backwards.rank() + size - 1) % size;
    assert_eq!((got.data, got.status.unwrap().source), (vec![left], left));
    drop(requests); // given up: its message stays for others
    world.barrier().unwrap();
    world.send((rank + 1) % size, 5, &[7_u32]).unwrap();
    assert_eq!(world.receive_vec::<u32>(Any, 5).unwrap().0, [7]);
}

/// Wrong use is an error with names, and what follows still works.
fn mistakes(world: &Communicator) {
    let (rank, size) = (world.rank(), world.size());
    let error = world.send(size, 0, &[0_u8]).unwrap_err();
    assert_eq!(
        error.to_string(),
        format!("send names rank {size}, and the communicator has ranks 0 to {}", size - 1)
    );
    let (right, left) = ((rank + 1) % size, (rank + size - 1) % size);
    for length in [10, 100_000] {
        let send = world.start_send(right, 3, vec![0_u8; length]).unwrap();
        let error = world.receive(left, 3, &mut [0_u8; 4]).unwrap_err();
        let Error::TooLong { source_rank, tag: 3, length: sent, room: 4, .. } = error else {
            panic!("{error}")
        };
        assert_eq!((source_rank, sent), (left, length));
        send.wait().unwrap();
        world.send(right, 3, &[0_u8; 5]).unwrap();
        let error = world.receive(left, 3, &mut [0_u16; 4]).unwrap_err();
        assert!(error.to_string().contains("no whole number of elements of 2 bytes"), "{error}");
    }
}

/// Rank 1 ends in the middle; everyone else hears of it, whatever they wait for.
fn death(job: &Job) {
    let world = job.world();
    world.barrier().unwrap();
    if world.rank() == 1 {
        // When all have left the barrier.
        std::thread::sleep(Duration::from_millis(300));
        std::process::exit(0);
    }
    let waited = match world.rank() {
        0 => world.receive(1, 0, &mut [0_u8]).map(|_| ()),
        2 => world.send(1, 0, &vec![0_u8; 1 << 20]),
        _ => world.barrier(),
    };
    let error = waited.unwrap_err().to_string();
    assert!(error.contains(&format!("rank 1 ({}", job.node_of(1))), "{error}");
}

/// Over verbs there is a queue pair for each rank that was spoken to, and none before; elsewhere there is none at all.
fn connections(job: &mut Job) {
    let world = job.world();
    let (rank, size) = (world.rank(), world.size());
    assert_eq!(job.queue_pairs(), 0, "after the start");
    let ways = job.describe();
    let by_verbs: Vec<u32> = ways
        .split("; ")
        .filter(|group| group.contains(": verbs ("))
        .flat_map(|group| {
            let list = group.split_once(": ").unwrap().0.split_once(' ').unwrap().1;
            list.parse::<roce_launcher::CpuSet>().unwrap().iter().map(|rank| rank as u32).collect::<Vec<_>>()
        })
        .collect();
    // On another node, if there are two with as many ranks.
    let partner = size - 1 - rank;
    job.barrier().unwrap();
    let (mut theirs, mine) = ([0_u32], [rank]);
    world.send_receive(partner, 0, &mine, partner, 0, &mut theirs).unwrap();
    assert_eq!(theirs, [partner]);
    assert_eq!(job.queue_pairs(), usize::from(by_verbs.contains(&partner)), "{ways}");
    job.barrier().unwrap();
    job.connect_all().unwrap();
    assert_eq!(job.queue_pairs(), by_verbs.len(), "{ways}");
    if let Ok(expected) = std::env::var("ROCE_TEST_QUEUE_PAIRS") {
        assert_eq!(job.queue_pairs().to_string(), expected, "{ways}");
    }
    job.barrier().unwrap();
}

#[test]
fn every_rank_with_every_other() {
    for nodes in [&[2][..], &[5], &[1, 1], &[2, 3]] {
        common::run(nodes, "pairs");
    }
}

#[test]
fn random_messages_as_the_model_says() {
    for nodes in [&[2][..], &[4], &[1, 1], &[2, 1, 1]] {
        common::run(nodes, "cases");
    }
}

/// `cargo xtask soak messages`: as many as `SOAK_CASES` says, on 2 to 8 ranks of one node or several, in turns.
#[test]
#[ignore = "it takes too long for every run"]
fn soak() {
    let number = |name: &str| std::env::var(name).ok().map(|number| number.parse::<u64>().unwrap());
    let cases = number("SOAK_CASES").unwrap_or(100_000);
    let seed = number("SOAK_SEED").unwrap_or_else(|| u64::from(std::process::id()));
    println!("{cases} cases, SOAK_SEED={seed}");
    // One rank on a node of its own talks over TCP, those of one node over shared memory, unless ROCE_TRANSPORTS says otherwise.
    let layouts: [&[u32]; 10] =
        [&[2], &[3], &[4], &[8], &[1, 1], &[2, 1], &[2, 2], &[1, 1, 1, 1], &[3, 4], &[2, 2, 2, 2]];
    let mut left = cases;
    for (turn, layout) in (0..).zip(layouts.iter().cycle()) {
        let here = left.min(500);
        let seed = seed.wrapping_add(turn);
        let (cases_here, seed_here) = (here.to_string(), seed.to_string());
        let variables = [("ROCE_TEST_CASES", cases_here.as_str()), ("ROCE_TEST_SEED", seed_here.as_str())];
        common::run_for(layout, "cases", &variables, Duration::from_secs(900));
        left -= here;
        println!("{} of {cases}: {here} on nodes of {layout:?}, seed {seed}", cases - left);
        if left == 0 {
            break;
        }
    }
}

#[test]
fn groups_talk_apart() {
    common::run(&[5], "groups");
    common::run(&[2, 3], "groups");
}

#[test]
fn mistakes_are_errors_with_names() {
    common::run(&[3], "mistakes");
    common::run(&[1, 2], "mistakes");
}

#[test]
fn without_nics_there_are_no_queue_pairs() {
    common::run(&[2, 1], "connections");
}

/// Messages of up to 1 MiB have one queue pair; longer ones get as many as `ROCE_TEST_QUEUE_PAIRS` says, before long, and all of them are right.
fn striped(job: &Job) {
    const LONG: usize = 1024 * 1024;
    let world = job.world();
    let (rank, partner) = (world.rank(), (world.rank() + world.size() / 2) % world.size());
    let swap = |number: usize, length: usize| {
        let (mine, mut theirs) = (filled(rank, number, length), vec![0; length]);
        world.barrier().unwrap();
        let start = Instant::now();
        world.send_receive(partner, 0, &mine, partner, 0, &mut theirs).unwrap();
        let took = start.elapsed();
        assert!(theirs == filled(partner, number, length), "message {number} of {length} bytes");
        took
    };
    assert_eq!(job.queue_pairs(), 0, "after the start");
    for (number, length) in [8, 3000, 100_000, LONG - 1].into_iter().enumerate() {
        swap(number, length);
    }
    let Ok(expected) = std::env::var("ROCE_TEST_QUEUE_PAIRS") else { return };
    assert_eq!(job.queue_pairs(), 1, "after short messages");
    // The other one is made meanwhile, and each side hears of it by itself.
    let start = Instant::now();
    let mut number = 4;
    loop {
        swap(number, LONG + number * 100_001);
        number += 1;
        let are_all = u64::from(job.queue_pairs().to_string() == expected);
        let mut ranks = [are_all];
        world.all_reduce(&mut ranks, roce_launcher::Sum).unwrap();
        if ranks[0] == u64::from(world.size()) && number >= 12 {
            break;
        }
        let (pairs, took) = (job.queue_pairs(), start.elapsed());
        assert!(took < Duration::from_secs(30), "{pairs} queue pairs after {took:?}: {}", job.describe());
    }
    let took: Duration = (number..number + 4).map(|number| swap(number, 3 * LONG + number)).sum();
    let took = took.as_millis();
    println!("rank {rank}: {number} messages, the last 4 took {took} ms; {}", job.describe());
}

#[test]
fn messages_from_1_mib_on_are_right() {
    common::run(&[1, 1], "striped");
}

#[test]
fn memory_that_is_mapped_anew_between_messages_is_what_is_there_now() {
    common::run(&[2], "memory");
    common::run(&[1, 1], "memory");
    common::run_with(&[1, 1], "kept", &[("ROCE_TEST_REGISTRATIONS", "0")]);
}

#[test]
fn a_rank_that_ends_is_told_to_all() {
    common::run(&[4], "death");
    common::run(&[2, 2], "death");
}
