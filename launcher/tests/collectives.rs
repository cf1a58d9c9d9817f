//! Collectives of real processes: every algorithm, against what one rank would compute; and mistakes, which never hang.

mod common;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use roce_launcher::{Communicator, Error, Job, Max, Min, Sum};

/// A file for the sums of floating-point numbers that a job got.
const RESULTS: &str = "ROCE_TEST_RESULTS";

/// Elements of each rank: nothing, a cell, a half, several pieces; mostly no power of two.
const LENGTHS: [usize; 5] = [0, 1, 7, 2000, 70_000];

/// Settings that have every algorithm among them.
const BY_MESSAGES: [&str; 3] = [
    "barrier=dissemination,broadcast=binomial,reduce=binomial,all_reduce=recursive_doubling,all_gather=bruck,all_to_all=bruck",
    "barrier=dissemination,broadcast=chain,reduce=binomial,all_reduce=rabenseifner,all_gather=ring,all_to_all=pairwise",
    "all_reduce=ring",
];
const BY_MEMORY: [&str; 3] = [
    "barrier=shared_memory,broadcast=shared_memory+binomial,reduce=shared_memory,all_reduce=shared_memory+recursive_doubling,\
     all_gather=shared_memory+bruck",
    "broadcast=shared_memory+chain,all_reduce=shared_memory+rabenseifner,all_gather=shared_memory+ring",
    "all_reduce=shared_memory+ring",
];

/// What a rank does; the others start it.
#[test]
#[ignore = "the other tests start it"]
fn rank() {
    let task = common::task();
    if task == "settings" {
        return settings();
    }
    let job = Job::init().unwrap();
    job.set_timeout(Some(Duration::from_secs(40)));
    let world = job.world();
    match task.as_str() {
        "collectives" => collectives(&world),
        "many" => many(&world),
        "mistakes" => mistakes(&world),
        other => panic!("no task {other}"),
    }
    job.finalize().unwrap();
}

fn collectives(world: &Communicator) {
    let (rank, size) = (world.rank(), world.size());
    let number = |rank: u32, place: usize| f64::from(rank + 1) * 0.1 + place as f64;
    let mut results = Vec::new();
    for length in common::up_to_most(LENGTHS) {
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
        // The same on every rank, to the last bit, and in every run.
        let bits =
            |data: &[f64]| data.iter().fold(0_u64, |sum, number| sum.rotate_left(1) ^ number.to_bits());
        let (mut low, mut high) = ([bits(&data)], [bits(&data)]);
        world.all_reduce(&mut low, Min).unwrap();
        world.all_reduce(&mut high, Max).unwrap();
        assert_eq!(low, high);
        results.push(bits(&data));
        let total = world.reduce(0, &mine, Sum).unwrap();
        results.extend(total.map(|total| bits(&total)));
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
    if let (0, Some(file)) = (rank, std::env::var_os(RESULTS)) {
        std::fs::write(file, format!("{results:?}")).unwrap();
    }
}

/// Many rounds of every kind in turn, of several groups, without a pause: who is fast must not write where others still read.
fn many(world: &Communicator) {
    let half = world.split(Some(world.rank() % 2), 0).unwrap().unwrap();
    for turn in 0..100_u32 {
        for group in [world, &half] {
            let (rank, size) = (group.rank(), group.size());
            let length = [1, 3, 40, 20_000][(turn % 7).min(3) as usize];
            let root = turn % size;
            let mut data = vec![if rank == root { turn } else { 0 }; length];
            group.broadcast(root, &mut data).unwrap();
            assert_eq!(data, vec![turn; length]);
            let mut sum = vec![u64::from(rank + turn); length];
            group.all_reduce(&mut sum, Sum).unwrap();
            let expected = u64::from(size * turn + size * (size - 1) / 2);
            assert_eq!(sum, vec![expected; length]);
            let total = group.reduce(root, &[rank], Max).unwrap();
            assert_eq!(total, (rank == root).then(|| vec![size - 1]));
            if turn % 3 == 0 {
                assert!(group.all_gather(&[rank + turn]).unwrap().into_iter().eq(turn..turn + size));
                group.gather(root, &[1_u8]).unwrap();
            }
            if turn % 5 == 0 {
                group.barrier().unwrap();
            }
        }
    }
}

/// Ranks that call different things: nobody waits until the timeout, and what follows works.
fn mistakes(world: &Communicator) {
    let (rank, size) = (world.rank(), world.size());
    let is_odd = rank == 1;
    let long = 50_000;
    // Whether all ranks must hear of it: their own result needs every rank's part.
    let check = |what: &str, all: bool, act: &dyn Fn() -> Result<(), Error>| {
        let result = act();
        // Shown if this fails.
        println!("rank {rank}, {what}: {result:?}");
        match &result {
            Err(Error::TimedOut { .. } | Error::Over { .. } | Error::PeerLost { .. }) => {
                panic!("rank {rank}, {what}: {result:?}")
            }
            Ok(()) => assert!(!all, "rank {rank}, {what}"),
            Err(_) => {}
        }
        world.barrier().unwrap_or_else(|error| panic!("rank {rank}, after {what}: {error}"));
        let mut sum = vec![rank; 3];
        world.all_reduce(&mut sum, Sum).unwrap();
        assert_eq!(sum, [size * (size - 1) / 2; 3], "after {what}");
    };
    for length in [2_usize, long] {
        let odd = length + usize::from(is_odd);
        let own = vec![1_u64; odd];
        let even = vec![1_u64; length];
        let other_root = u32::from(is_odd);
        let no_root = if is_odd { size } else { 0 };
        let ranks = size as usize;
        check("lengths of all_reduce", true, &|| world.all_reduce(&mut own.clone(), Sum));
        check("lengths of all_gather", true, &|| world.all_gather(&own).map(drop));
        check("lengths of all_to_all", true, &|| world.all_to_all(&own.repeat(ranks)).map(drop));
        check("lengths of reduce_scatter", true, &|| world.reduce_scatter(&own.repeat(ranks), Sum).map(drop));
        check("no equal parts", true, &|| {
            world.all_to_all(&vec![0_u8; ranks + odd * ranks + usize::from(is_odd)]).map(drop)
        });
        check("lengths of broadcast", is_odd, &|| world.broadcast(0, &mut own.clone()));
        check("lengths of reduce", rank == 0, &|| world.reduce(0, &own, Sum).map(drop));
        check("lengths of gather", rank == 0, &|| world.gather(0, &own).map(drop));
        check("lengths of scatter", is_odd, &|| world.scatter(0, &even.repeat(ranks), &mut own.clone()));
        check("roots of broadcast", false, &|| world.broadcast(other_root, &mut even.clone()));
        check("roots of reduce", false, &|| world.reduce(other_root, &even, Sum).map(drop));
        check("roots of gather", false, &|| world.gather(other_root, &even).map(drop));
        check("roots of scatter", false, &|| {
            world.scatter(other_root, &even.repeat(ranks), &mut even.clone())
        });
        check("no root of broadcast", is_odd, &|| world.broadcast(no_root, &mut even.clone()));
        check("no root of reduce", is_odd, &|| world.reduce(no_root, &even, Sum).map(drop));
        check("different calls", true, &|| {
            if is_odd { world.barrier() } else { world.all_reduce(&mut even.clone(), Sum) }
        });
        check("different ways", true, &|| {
            if is_odd {
                world.all_to_all(&even.repeat(ranks)).map(drop)
            } else {
                world.all_gather(&even).map(drop)
            }
        });
        check("a part that panics", false, &|| {
            let add = |a: u64, b: u64| if is_odd { panic!("as this test wants") } else { a + b };
            catch_unwind(AssertUnwindSafe(|| world.all_reduce(&mut even.clone(), add))).unwrap_or(Ok(()))
        });
    }
    // In words.
    let mut data = vec![0_u8; if rank == 0 { 3 } else { 2 }];
    let result = world.broadcast(0, &mut data);
    assert_eq!(result.is_err(), rank != 0);
    if let Err(error) = result {
        let text = error.to_string();
        assert!(text.starts_with("broadcast: rank "), "{text}");
        assert!(text.contains("broadcast of 2 bytes with root 0"), "{text}");
    }
    world.barrier().unwrap();
}

/// The variable is wrong on all ranks, or differs.
fn settings() {
    let rank: u32 = std::env::var("SLURM_PROCID").unwrap().parse().unwrap();
    let differs = std::env::var("ROCE_ALGORITHMS").is_ok_and(|value| value == "differs");
    if differs {
        let value = ["all_reduce=ring", "all_reduce=rabenseifner"][usize::from(rank == 1)];
        // SAFETY: nobody else uses this process's environment yet.
        #[expect(unsafe_code, reason = "the environment of a process that has one thread more, which waits")]
        unsafe {
            std::env::set_var("ROCE_ALGORITHMS", value);
        }
    }
    let text = Job::init().err().expect("an error").to_string();
    let expected = if differs {
        "it is \"all_reduce=rabenseifner\" on rank 1 (127.0.0."
    } else {
        "it has shared_memory, binomial, chain"
    };
    assert!(text.contains(expected), "{text}");
}

fn with(nodes: &[u32], task: &str, setting: &str) {
    common::run_with(nodes, task, &[("ROCE_ALGORITHMS", setting)]);
}

#[test]
fn collectives_give_what_one_rank_would_compute() {
    for nodes in [&[1][..], &[2], &[1, 1, 1], &[2, 4]] {
        common::run(nodes, "collectives");
    }
}

#[test]
fn every_algorithm_by_messages_gives_the_same() {
    for setting in BY_MESSAGES {
        for nodes in [&[3][..], &[1, 3, 1, 2]] {
            with(nodes, "collectives", setting);
        }
    }
}

#[test]
fn every_algorithm_through_memory_gives_the_same() {
    for setting in BY_MEMORY {
        for nodes in [&[5][..], &[3, 1, 2, 2]] {
            with(nodes, "collectives", setting);
        }
    }
}

#[test]
fn sums_are_the_same_in_every_run() {
    let folder = tempfile::tempdir().unwrap();
    let run = |number: u32| {
        let file = folder.path().join(number.to_string());
        common::run_with(&[3, 2], "collectives", &[(RESULTS, file.to_str().unwrap())]);
        std::fs::read_to_string(file).unwrap()
    };
    assert_eq!(run(1), run(2));
}

#[test]
fn rounds_follow_each_other() {
    common::run(&[5], "many");
    common::run(&[2, 3], "many");
}

#[test]
fn mistakes_are_told_and_never_hang() {
    for nodes in [&[3][..], &[2, 2]] {
        common::run(nodes, "mistakes");
    }
    with(&[4], "mistakes", BY_MESSAGES[0]);
    with(&[1, 1, 1], "mistakes", BY_MESSAGES[1]);
    with(&[3], "mistakes", BY_MESSAGES[2]);
    with(&[1, 3], "mistakes", BY_MEMORY[1]);
}

#[test]
fn a_setting_that_is_wrong_is_told_to_every_rank() {
    with(&[2], "settings", "broadcast=nonesuch");
    with(&[1, 2], "settings", "differs");
}
