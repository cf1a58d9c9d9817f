//! Windows of real processes, within a node and between nodes, against a model.

mod common;

use std::time::{Duration, Instant};

use roce_launcher::{Communicator, Error, Job, Window};

/// What a rank does; the others start it.
#[test]
#[ignore = "the other tests start it"]
fn rank() {
    let task = common::task();
    let job = Job::init().unwrap();
    job.set_timeout(Some(Duration::from_secs(40)));
    let world = job.world();
    match task.as_str() {
        "cases" => cases(&world),
        "long" => long(&world),
        "sums" => sums(&world),
        "lock" => lock(&world),
        "notice" => notice(&world),
        "alone" => alone(&world),
        "mistakes" => mistakes(&world),
        "ends" => return ends(job),
        "death" => return death(&job),
        "silence" => silence(&job),
        other => panic!("no task {other}"),
    }
    job.finalize().unwrap();
}

/// The same numbers on every rank, other ones for each case.
struct Random(u64);

impl Random {
    fn number(&mut self) -> u64 {
        // SplitMix64.
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut number = self.0;
        number = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        number ^ (number >> 31)
    }

    fn next(&mut self, below: usize) -> usize {
        usize::try_from(self.number() % below as u64).unwrap()
    }
}

/// One rank's memory, and every rank's picture of it.
struct Modelled<T: bytemuck::Pod> {
    window: Window<T>,
    model: Vec<Vec<T>>,
}

impl<T: bytemuck::Pod + PartialEq + std::fmt::Debug> Modelled<T> {
    fn new(world: &Communicator, length: impl Fn(u32) -> usize) -> Self {
        let window = world.window(length(world.rank())).unwrap();
        let model: Vec<Vec<T>> = (0..world.size()).map(|rank| vec![T::zeroed(); length(rank)]).collect();
        assert!((0..).zip(&model).all(|(rank, theirs)| window.length_of(rank) == Some(theirs.len())));
        assert_eq!(window.length_of(world.size()), None);
        Self { window, model }
    }

    /// In each round every rank changes parts that no other one touches, then all look at all.
    fn puts_and_gets(&mut self, world: &Communicator, random: &mut Random, element: impl Fn(u64) -> T) {
        for _ in 0..3 {
            for owner in 0..world.size() {
                let length = self.model[owner as usize].len();
                // The owner's memory is cut into one part for each rank, at random.
                let mut cuts: Vec<usize> = (1..world.size()).map(|_| random.next(length + 1)).collect();
                cuts.extend([0, length]);
                cuts.sort_unstable();
                for (rank, cut) in (0..).zip(cuts.windows(2)) {
                    let part = cut[0]..cut[1];
                    let part = part.start + random.next(part.len() + 1)..part.end;
                    let data: Vec<T> = part.clone().map(|_| element(random.number())).collect();
                    self.model[owner as usize][part.clone()].copy_from_slice(&data);
                    if rank == world.rank() {
                        if owner == rank && random.next(2) == 0 {
                            self.window.write(part.start, &data).unwrap();
                        } else {
                            self.window.put(owner, part.start, &data).unwrap();
                        }
                        // What this rank wrote it can read, as soon as it's there.
                        self.window.flush(owner).unwrap();
                        let mut got = vec![T::zeroed(); data.len()];
                        self.window.get(owner, part.start, &mut got).unwrap();
                        assert_eq!(got, data);
                    } else if owner == rank {
                        let _ = random.next(2);
                    }
                }
            }
            self.window.fence().unwrap();
            for (owner, model) in (0..).zip(&self.model) {
                let mut got = vec![T::zeroed(); model.len()];
                self.window.get(owner, 0, &mut got).unwrap();
                assert!(got == *model, "memory of rank {owner}");
            }
            let mut own = vec![T::zeroed(); self.model[world.rank() as usize].len()];
            self.window.read(0, &mut own).unwrap();
            assert!(own == self.model[world.rank() as usize]);
            // Nobody writes the next round's before all have looked.
            self.window.fence().unwrap();
        }
    }
}

fn cases(world: &Communicator) {
    for case in 0..4 {
        let mut random = Random(case);
        let lengths: Vec<usize> =
            (0..world.size()).map(|_| [0, 5, 100, 3000][random.next(4)] + random.next(9)).collect();
        let length = |rank: u32| lengths[rank as usize];
        let mut bytes = Modelled::<u8>::new(world, length);
        let mut triples = Modelled::<[u16; 3]>::new(world, length);
        let mut numbers = Modelled::<f64>::new(world, length);
        bytes.puts_and_gets(world, &mut random, |number| number as u8);
        triples.puts_and_gets(world, &mut random, |number| [0, 1, 2].map(|place| (number >> place) as u16));
        numbers.puts_and_gets(world, &mut random, |number| number as f64);
        // In another order than they were opened, and one of them never.
        triples.window.close().unwrap();
        bytes.window.close().unwrap();
    }
}

/// More than any packet or queue has room for, from all to all at once.
fn long(world: &Communicator) {
    common::up_to_most([10_000, 500_000]).for_each(|length| long_of(world, length));
}

fn long_of(world: &Communicator, length: usize) {
    let (rank, size) = (world.rank(), world.size());
    let window = world.window::<u32>(length * size as usize).unwrap();
    let data = |from: u32, to: u32| -> Vec<u32> {
        (0..length as u32).map(|place| place * 7 + from * 100 + to).collect()
    };
    for peer in 0..size {
        window.put(peer, length * rank as usize, &data(rank, peer)).unwrap();
    }
    window.fence().unwrap();
    for from in 0..size {
        let mut got = vec![0; length];
        window.read(length * from as usize, &mut got).unwrap();
        assert!(got == data(from, rank));
        window.get((rank + 1) % size, length * from as usize, &mut got).unwrap();
        assert!(got == data(from, (rank + 1) % size));
    }
    window.close().unwrap();
}

/// A NIC puts to a rank that does nothing, and gets from it: it calls nothing of the library before a file is there that says that all has arrived.
fn alone(world: &Communicator) {
    const LENGTH: usize = 40_000;
    let folder = std::env::var("ROCE_TEST_FOLDER").unwrap();
    let all_there = |rank: u32| std::path::Path::new(&folder).join(format!("alone.{rank}"));
    let (rank, size) = (world.rank(), world.size());
    let owner = size - 1;
    let window = world.window::<u32>(LENGTH).unwrap();
    let _ = std::fs::remove_file(all_there(rank));
    world.barrier().unwrap();
    if rank == 0 {
        let data: Vec<u32> = (0..LENGTH as u32).collect();
        window.put(owner, 0, &data[..10]).unwrap();
        window.put(owner, 10, &data[10..]).unwrap();
        window.flush(owner).unwrap();
        for length in [10, 5_000, LENGTH] {
            let mut got = vec![0; length];
            window.get(owner, LENGTH - length, &mut got).unwrap();
            assert!(got == data[LENGTH - length..]);
        }
        std::fs::write(all_there(owner), "").unwrap();
    } else if rank == owner {
        let end = Instant::now() + Duration::from_secs(60);
        while !all_there(owner).exists() && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(20));
        }
        let mut got = vec![0; LENGTH];
        window.read(0, &mut got).unwrap();
        assert!(got.into_iter().eq(0..LENGTH as u32));
    }
    window.close().unwrap();
}

/// Everyone adds to everyone's numbers, near and far ranks at once.
fn sums(world: &Communicator) {
    const EACH: u64 = 300;
    let (rank, size) = (world.rank(), u64::from(world.size()));
    let counters = world.window::<u64>(3).unwrap();
    let signed = world.window::<i64>(40).unwrap();
    let mut tickets = Vec::new();
    for round in 0..EACH {
        for owner in 0..world.size() {
            let ticket = counters.fetch_add(owner, 1, 1).unwrap();
            if owner == 0 {
                tickets.push(ticket);
            }
            counters.add(owner, 2, &[u64::from(rank)]).unwrap();
            let sign = if round % 2 == 0 { 1 } else { -3 };
            signed.add(owner, 0, &[sign * i64::from(rank); 40]).unwrap();
        }
    }
    counters.fence().unwrap();
    signed.fence().unwrap();
    let ranks: u64 = (0..size).sum();
    for owner in 0..world.size() {
        let mut got = [0; 3];
        counters.get(owner, 0, &mut got).unwrap();
        assert_eq!(got, [0, EACH * size, EACH * ranks]);
        let mut got = [0; 40];
        signed.get(owner, 0, &mut got).unwrap();
        assert_eq!(got, [-i64::try_from(EACH * ranks).unwrap(); 40]);
    }
    // Every number was drawn once.
    let mut all = world.all_gather(&tickets).unwrap();
    all.sort_unstable();
    assert!(all.into_iter().eq(0..EACH * size));
    let old = signed.swap((rank + 1) % world.size(), 0, 5).unwrap();
    assert_eq!(old, -i64::try_from(EACH * ranks).unwrap());
    signed.close().unwrap();
    counters.close().unwrap();
}

/// A lock on rank 0 keeps two numbers on the last rank together.
fn lock(world: &Communicator) {
    const EACH: u64 = 25;
    let (lock, pair) = (world.window::<u64>(1).unwrap(), world.window::<u64>(2).unwrap());
    let last = world.size() - 1;
    let me = u64::from(world.rank()) + 1;
    for _ in 0..EACH {
        while lock.compare_swap(0, 0, 0, me).unwrap() != 0 {}
        let mut numbers = [0; 2];
        pair.get(last, 0, &mut numbers).unwrap();
        assert_eq!(numbers[0], numbers[1]);
        pair.put(last, 0, &[numbers[0] + 1]).unwrap();
        pair.put(last, 1, &[numbers[1] + 1]).unwrap();
        pair.flush(last).unwrap();
        assert_eq!(lock.compare_swap(0, 0, me, 0).unwrap(), me);
    }
    pair.fence().unwrap();
    let mut numbers = [0; 2];
    pair.get(last, 0, &mut numbers).unwrap();
    assert_eq!(numbers, [EACH * u64::from(world.size()); 2]);
    pair.close().unwrap();
    lock.close().unwrap();
}

/// Data, a flush, then a word that says that it's there: around all ranks, many times.
fn notice(world: &Communicator) {
    const ROUNDS: u64 = 100;
    let (rank, size) = (world.rank(), world.size());
    let (data, word) = (world.window::<u8>(1000).unwrap(), world.window::<u64>(1).unwrap());
    let next = (rank + 1) % size;
    for round in 1..=ROUNDS {
        if rank > 0 || round > 1 {
            // Rank 0 begins.
            let expected = if rank == 0 { round - 1 } else { round };
            assert_eq!(word.wait_until(0, |value| value >= expected).unwrap(), expected);
            let mut got = [0; 1000];
            data.read(0, &mut got).unwrap();
            assert_eq!(got, [expected as u8; 1000]);
        }
        data.put(next, 0, &[round as u8; 1000]).unwrap();
        data.flush(next).unwrap();
        word.put(next, 0, &[round]).unwrap();
    }
    word.fence().unwrap();
    data.close().unwrap();
    word.close().unwrap();
}

/// Wrong use is an error with names; nothing was touched, and what follows still works.
fn mistakes(world: &Communicator) {
    let (rank, size) = (world.rank(), world.size());
    let window = world.window::<u64>(if rank == 1 { 10 } else { 20 }).unwrap();
    let mut room = [0; 3];
    let far = u64::MAX as usize;
    for (text, error) in [
        ("put of 2 elements from 9 on", window.put(1, 9, &[1, 2])),
        ("get of 3 elements from 8 on", window.get(1, 8, &mut room)),
        ("add of 1 elements from 10 on", window.add(1, 10, &[1])),
        ("put of 1 elements from 18446744073709551615 on", window.put(1, far, &[1])),
        ("fetch_add of 1 elements from 10 on", window.fetch_add(1, 10, 1).map(|_| ())),
        ("swap of 1 elements from 11 on", window.swap(1, 11, 1).map(|_| ())),
        ("compare_swap of 1 elements from 12 on", window.compare_swap(1, 12, 0, 1).map(|_| ())),
    ] {
        let error = error.unwrap_err().to_string();
        assert!(
            error.starts_with(&format!("{text} is beyond the window of rank 1 (127.0.0."))
                && error.ends_with("), which has 10 elements"),
            "{error}"
        );
    }
    window.put(1, 10, &[]).unwrap();
    let error = window.put(size, 0, &[1]).unwrap_err().to_string();
    assert_eq!(error, format!("put names rank {size}, and the communicator has ranks 0 to {}", size - 1));
    let length = window.length_of(rank).unwrap();
    for error in [
        window.read(length, &mut [0]),
        window.write(length, &[0]),
        window.wait_until(length, |_| true).map(|_| ()),
    ] {
        let error = error.unwrap_err();
        assert!(
            matches!(error, Error::BeyondWindow { rank: owner, length: 1, .. } if owner == rank),
            "{error}"
        );
    }
    window.fence().unwrap();
    let mut got = vec![1; length];
    window.read(0, &mut got).unwrap();
    assert_eq!(got, vec![0; length]);
    window.close().unwrap();
    // What one rank can't do, all hear of.
    let error = world.window::<u64>(if rank == 1 { usize::MAX } else { 1 }).unwrap_err().to_string();
    let expected = if rank == 1 { "no memory for a window on this node" } else { "rank 1 (127.0.0." };
    assert!(error.contains(expected), "{error}");
    let error =
        if rank == 1 { world.window::<u32>(4).map(|_| ()) } else { world.window::<u64>(4).map(|_| ()) };
    let error = error.unwrap_err().to_string();
    assert!(
        error.contains("rank 0 (127.0.0.1) opens a window of elements of 8 bytes, and rank 1 (127.0.0.")
            && error.contains(") of 4; do all mean the same type?"),
        "{error}"
    );
    // A group's ranks are the group's.
    let backwards = world.split(Some(0), size - rank).unwrap().unwrap();
    let window = backwards.window::<u32>(1).unwrap();
    window.put(0, 0, &[77]).unwrap();
    window.fence().unwrap();
    let mut got = [0];
    window.read(0, &mut got).unwrap();
    assert_eq!(got, [if rank == size - 1 { 77 } else { 0 }]);
}

/// Some ranks drop the window early, and do nothing but wait for the end: their memory is there until then.
fn ends(job: Job) {
    let world = job.world();
    let window = world.window::<u64>(1).unwrap();
    let size = world.size();
    if world.rank() % 2 == 1 {
        drop(window);
    } else {
        std::thread::sleep(Duration::from_millis(200));
        for peer in 0..size {
            window.add(peer, 0, &[1]).unwrap();
            window.flush(peer).unwrap();
            assert!(window.fetch_add(peer, 0, 0).unwrap() > 0);
        }
    }
    job.finalize().unwrap();
}

/// Rank 1 ends in the middle; everyone else hears of it, whatever they do.
fn death(job: &Job) {
    let world = job.world();
    let window = world.window::<u64>(1000).unwrap();
    if world.rank() == 1 {
        std::thread::sleep(Duration::from_millis(300));
        std::process::exit(0);
    }
    let started = Instant::now();
    let error = loop {
        assert!(started.elapsed() < Duration::from_secs(30), "nobody said that rank 1 is gone");
        let result = match world.rank() {
            // Waits for the dead one's word, and for its lock.
            0 => window.wait_until(0, |value| value == 1).map(|_| ()),
            2 => window.compare_swap(1, 0, 1, 0).map(|_| ()),
            3 => window.put(1, 0, &[0; 1000]).and_then(|()| window.flush(1)),
            _ => window.get(1, 0, &mut [0; 1000]),
        };
        if let Err(error) = result {
            break error.to_string();
        }
    };
    assert!(error.contains("rank 1 (127.0.0."), "{error}");
}

/// Rank 1 lives and does not answer: others don't wait longer than they want to.
fn silence(job: &Job) {
    let world = job.world();
    let window = world.window::<u64>(1).unwrap();
    // Beside the job, for rank 1 is not to look at any message.
    let step = ["SLURM_JOB_ID", "SLURM_STEP_ID"].map(|name| std::env::var(name).unwrap()).join("-");
    let file = |what| std::env::temp_dir().join(format!("roce-launcher-windows-{step}-{what}"));
    let say = |what| std::fs::write(file(what), []).unwrap();
    let hear = |what| {
        while std::fs::remove_file(file(what)).is_err() {
            std::thread::sleep(Duration::from_millis(5));
        }
    };
    if world.rank() == 1 {
        say("silent");
        hear("given-up");
    } else {
        hear("silent");
        job.set_timeout(Some(Duration::from_millis(100)));
        for (what, error) in [
            ("flush", window.put(1, 0, &[1]).and_then(|()| window.flush(1))),
            ("get", window.get(1, 0, &mut [0])),
            ("fetch_add", window.fetch_add(1, 0, 1).map(|_| ())),
        ] {
            let error = error.unwrap_err().to_string();
            let expected =
                format!("rank {}: its {what} with rank 1 (127.0.0.2) was not over within", world.rank());
            assert!(error.starts_with(&expected), "{error}");
        }
        let error = window.wait_until(0, |value| value == 1).unwrap_err().to_string();
        assert!(error.contains(": its wait for element 0 of its own memory was not over within"), "{error}");
        job.set_timeout(Some(Duration::from_secs(40)));
        say("given-up");
        // What was given up was carried out all the same, once.
        window.flush(1).unwrap();
    }
    window.fence().unwrap();
    let mut got = [0];
    window.get(1, 0, &mut got).unwrap();
    assert_eq!(got, [2]);
}

#[test]
fn random_puts_and_gets_as_the_model_says() {
    for nodes in [&[1][..], &[4], &[1, 1], &[3, 2, 2, 1]] {
        common::run(nodes, "cases");
    }
}

#[test]
fn long_puts_and_gets_from_all_to_all() {
    common::run(&[2], "long");
    common::run(&[1, 2], "long");
}

#[test]
fn sums_of_all_ranks_are_right() {
    for nodes in [&[8][..], &[2, 2], &[1, 1, 1]] {
        common::run(nodes, "sums");
    }
}

#[test]
fn a_lock_keeps_two_numbers_together() {
    common::run(&[4], "lock");
    common::run(&[2, 1, 1], "lock");
}

#[test]
fn data_is_there_when_its_word_is() {
    common::run(&[3], "notice");
    common::run(&[1, 2], "notice");
}

#[test]
fn mistakes_are_errors_with_names() {
    common::run(&[3], "mistakes");
    common::run(&[1, 2], "mistakes");
}

#[test]
fn dropped_windows_keep_their_memory_until_the_end() {
    common::run(&[2, 2], "ends");
}

#[test]
fn a_rank_that_ends_is_told_to_all_who_access_its_memory() {
    common::run(&[5], "death");
    common::run(&[1, 1, 3], "death");
}

#[test]
fn who_is_not_answered_hears_of_it_in_time() {
    common::run(&[1, 1], "silence");
}
