//! Messages between real processes, over every transport there is here, against a model.

mod common;

use std::time::Duration;

use roce_launcher::{Any, Communicator, Error, Job, Max, Min, Sum, wait_all, wait_any};

/// What a rank does; the others start it.
#[test]
#[ignore = "the other tests start it"]
fn rank() {
    let task = common::task();
    let mut job = Job::init().unwrap();
    job.set_timeout(Some(Duration::from_secs(40)));
    let world = job.world();
    match task.as_str() {
        "pairs" => pairs(&world),
        "cases" => cases(&world),
        "collectives" => collectives(&world),
        "groups" => groups(&world),
        "mistakes" => mistakes(&world),
        "connections" => connections(&mut job),
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

/// The lengths that a slow network can carry in the time of a test.
fn up_to_most<const COUNT: usize>(lengths: [usize; COUNT]) -> impl Iterator<Item = usize> {
    let most = std::env::var("ROCE_TEST_MOST").map_or(usize::MAX, |most| most.parse().unwrap());
    lengths.into_iter().filter(move |length| *length <= most)
}

/// Every rank with every other at once: long and short, in both directions.
fn pairs(world: &Communicator) {
    for length in up_to_most([0, 1, 32, 33, 4096, 100_000, 3_000_000]) {
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

/// Messages of random lengths and tags between random ranks, received in random order with and without wildcards.
fn cases(world: &Communicator) {
    let cases: usize = std::env::var("ROCE_TEST_CASES").map_or(60, |count| count.parse().unwrap());
    let (rank, size) = (world.rank(), world.size() as usize);
    for case in 0..cases {
        let mut random = Random(case as u64);
        let tags = 1 + random.next(3);
        let messages: Vec<(u32, u32, u32, usize)> = (0..random.next(40))
            .map(|_| {
                let (from, to, tag) =
                    (random.next(size) as u32, random.next(size) as u32, random.next(tags) as u32);
                let most = [1, 33, 9000, 200_000][random.next(4)];
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
        let mut expected: Vec<usize> =
            (0..messages.len()).filter(|number| messages[*number].1 == rank).collect();
        while !expected.is_empty() {
            let one = messages[expected[random.next(expected.len())]];
            let (data, status) = match random.next(3) {
                0 => world.receive_vec::<u8>(one.0, one.2),
                1 if by_tag => world.receive_vec::<u8>(Any, one.2),
                _ => world.receive_vec::<u8>(Any, Any),
            }
            .unwrap();
            let label =
                |number: &&usize| (messages[**number].0, messages[**number].2) == (status.source, status.tag);
            let number = *expected.iter().find(label).expect("a message that was sent");
            let (from, _, _, length) = messages[number];
            assert_eq!(data, filled(from, number, length), "case {case}, message {number}");
            expected.retain(|other| *other != number);
        }
        wait_all(sends).unwrap();
        world.barrier().unwrap();
        assert_eq!(world.try_probe::<u8>(Any, Any).unwrap(), None, "case {case}");
        // Nobody sends the next case's before all have looked.
        world.barrier().unwrap();
    }
}

fn collectives(world: &Communicator) {
    let (rank, size) = (world.rank(), world.size());
    let number = |rank: u32, place: usize| f64::from(rank + 1) * 0.1 + place as f64;
    for length in up_to_most([0, 1, 7, 5000, 300_000]) {
        let mine: Vec<f64> = (0..length).map(|place| number(rank, place)).collect();
        let sums: Vec<f64> =
            (0..length).map(|place| (0..size).map(|rank| number(rank, place)).sum()).collect();
        let is_near = |got: &[f64]| {
            got.len() == length
                && got.iter().zip(&sums).all(|(got, sum)| (got - sum).abs() <= 1e-9 * sum.abs())
        };
        for root in [0, size - 1] {
            let mut data = if rank == root { mine.clone() } else { vec![0.0; length] };
            world.broadcast(root, &mut data).unwrap();
            assert!(data.iter().enumerate().all(|(place, got)| *got == number(root, place)));
            let total = world.reduce(root, &mine, Sum).unwrap();
            assert_eq!(total.is_some(), rank == root);
            assert!(total.is_none_or(|total| is_near(&total)), "reduce of {length}");
            let all = world.gather(root, &mine).unwrap();
            let is_right = |all: Vec<f64>| {
                all.len() == length * size as usize
                    && all
                        .iter()
                        .enumerate()
                        .all(|(place, got)| *got == number((place / length) as u32, place % length))
            };
            assert!(all.is_none_or(is_right), "gather of {length}");
            let all: Vec<f64> =
                (0..size).flat_map(|rank| (0..length).map(move |place| number(rank, place))).collect();
            let mut part = vec![0.0; length];
            world.scatter(root, if rank == root { &all } else { &[] }, &mut part).unwrap();
            assert_eq!(part, mine);
            let varying: Vec<Vec<u32>> = (0..size).map(|to| vec![to; length / 100 + to as usize]).collect();
            let got = world.scatter_varying(root, &varying).unwrap();
            assert_eq!(got, vec![rank; length / 100 + rank as usize]);
            let all = world.gather_varying(root, &got).unwrap();
            assert!(all.is_none_or(|all| all == varying));
        }
        let mut data = mine.clone();
        world.all_reduce(&mut data, Sum).unwrap();
        assert!(is_near(&data), "all_reduce of {length}");
        // The same on every rank, to the last bit.
        let bits =
            |data: &[f64]| data.iter().fold(0_u64, |sum, number| sum.rotate_left(1) ^ number.to_bits());
        let (mut low, mut high) = ([bits(&data)], [bits(&data)]);
        world.all_reduce(&mut low, Min).unwrap();
        world.all_reduce(&mut high, Max).unwrap();
        assert_eq!(low, high);
        let mut longest = vec![[rank, length as u32]; 3];
        world.all_reduce(&mut longest, |a: [u32; 2], b: [u32; 2]| a.max(b)).unwrap();
        assert_eq!(longest, vec![[size - 1, length as u32]; 3]);
        let all = world.all_gather(&mine).unwrap();
        assert!(
            all.iter()
                .enumerate()
                .all(|(place, got)| *got == number((place / length) as u32, place % length))
        );
        assert_eq!(all.len(), length * size as usize);
        let varying = world.all_gather_varying(&vec![rank; length / 50 + rank as usize]).unwrap();
        assert!((0..).zip(varying).all(|(from, theirs)| theirs == vec![from; length / 50 + from as usize]));
        let to_each: Vec<u32> = (0..size).flat_map(|to| vec![1000 * rank + to; length]).collect();
        let from_each = world.all_to_all(&to_each).unwrap();
        assert!(from_each.into_iter().eq((0..size).flat_map(|from| vec![1000 * from + rank; length])));
        let to_each: Vec<Vec<u32>> = (0..size).map(|to| vec![rank; length / 20 + to as usize]).collect();
        let from_each = world.all_to_all_varying(&to_each).unwrap();
        assert!((0..).zip(from_each).all(|(from, theirs)| theirs == vec![from; length / 20 + rank as usize]));
        let data: Vec<u64> = (0..size).flat_map(|part| vec![u64::from(part); length]).collect();
        assert_eq!(world.reduce_scatter(&data, Sum).unwrap(), vec![u64::from(size * rank); length]);
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
    let error = world.all_to_all(&vec![0_u8; size as usize + 1]).unwrap_err();
    assert!(error.to_string().starts_with("all_to_all: "), "{error}");
    // Lengths that differ are told where they are noticed; nobody hangs.
    let mut data = vec![0_u8; if rank == 0 { 3 } else { 2 }];
    let result = world.broadcast(0, &mut data);
    assert_eq!(result.is_err(), rank != 0);
    world.barrier().unwrap();
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

#[test]
fn collectives_give_what_one_rank_would_compute() {
    for nodes in [&[1][..], &[2], &[5], &[8], &[1, 1, 1], &[2, 4]] {
        common::run(nodes, "collectives");
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

#[test]
fn a_rank_that_ends_is_told_to_all() {
    common::run(&[4], "death");
    common::run(&[2, 2], "death");
}
