//! Sorts more keys than one rank has: sample sort.
//!
//! Each rank sorts its own keys and shows a few of them, evenly spaced. All ranks agree by them where to cut, send each other what
//! belongs to each, and merge. Equal keys are told apart by where they were, so that nobody gets more than twice an equal share,
//! whatever the keys are.
//!
//! `srun --roce-tc=3 sort`, `rocectl run -n 4 sort`, or alone.

use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Result, ensure};
use clap::Parser;
use roce_launcher::{Communicator, Job, Max, Sum};

/// So many keys are also sorted by one rank alone, to compare.
const SMALL: usize = 1 << 20;

/// Sorts random keys that are spread over all ranks, and checks the result.
#[derive(Parser)]
struct Arguments {
    /// How many, in all.
    #[arg(long, default_value_t = 1_000_000)]
    keys: usize,
    /// How many different ones there may be.
    #[arg(long, default_value_t = u64::MAX, value_name = "KEYS")]
    distinct: u64,
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("sort: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<()> {
    let &Arguments { keys, distinct } = arguments;
    ensure!(distinct > 0, "--distinct 0: give at least 1");
    let job = Job::init()?;
    let world = job.world();
    let (rank, size) = (world.rank() as usize, world.size() as usize);
    let mine = rank * keys / size..(rank + 1) * keys / size;
    let unsorted: Vec<u64> = mine.map(|number| key(number as u64) % distinct).collect();

    world.barrier()?;
    let start = Instant::now();
    let sorted = sort(&world, unsorted.clone())?;
    world.barrier()?;
    let took = start.elapsed();

    let problem = check(&world, keys, &unsorted, &sorted)?;
    let mut largest = [sorted.len() as u64];
    world.all_reduce(&mut largest, Max)?;
    if rank == 0 && problem.is_none() {
        println!(
            "{keys} keys on {size} ranks: sorted in {:.2} ms, the largest part is {:.2} of an equal one",
            took.as_secs_f64() * 1e3,
            largest[0] as f64 * size as f64 / keys.max(1) as f64
        );
    }
    job.finalize()?;
    ensure!(problem.is_none(), "rank {rank}: {}", problem.unwrap_or_default());
    Ok(())
}

/// Takes this rank's keys and gives the rank's part of all of them in order: each rank's are behind those of the rank before.
fn sort(world: &Communicator, mut keys: Vec<u64>) -> Result<Vec<u64>> {
    let size = world.size() as usize;
    keys.sort_unstable();
    // A key with its rank and its place there: no two are equal.
    let rank = u64::from(world.rank());
    let sample: Vec<[u64; 3]> = (1..=size)
        .map(|number| number * keys.len() / (size + 1))
        .filter(|place| *place < keys.len())
        .map(|place| [keys[place], rank, place as u64])
        .collect();
    let mut sample = world.all_gather_varying(&sample)?.concat();
    sample.sort_unstable();
    sample.dedup();
    let cut = |part: usize| {
        if part == 0 || sample.is_empty() {
            return if part == 0 { 0 } else { keys.len() };
        }
        let [key, owner, place] = sample[(part * sample.len() / size).min(sample.len() - 1)];
        match rank.cmp(&owner) {
            std::cmp::Ordering::Less => keys.partition_point(|other| *other <= key),
            std::cmp::Ordering::Equal => place as usize,
            std::cmp::Ordering::Greater => keys.partition_point(|other| *other < key),
        }
    };
    let cuts: Vec<usize> = (0..size).map(cut).chain([keys.len()]).collect();
    let parts: Vec<Vec<u64>> = cuts.windows(2).map(|ends| keys[ends[0]..ends[1]].to_vec()).collect();
    // Each rank's part is in order already: a stable sort finds such runs and merges them.
    let mut sorted = world.all_to_all_varying(&parts)?.concat();
    sorted.sort();
    Ok(sorted)
}

/// What is wrong with the result, if anything is.
fn check(world: &Communicator, keys: usize, unsorted: &[u64], sorted: &[u64]) -> Result<Option<String>> {
    let mut problem = None;
    if !sorted.is_sorted() {
        problem = Some("its keys are not in order".to_owned());
    }
    let ends: Vec<u64> = sorted.first().into_iter().chain(sorted.last()).copied().collect();
    if !world.all_gather_varying(&ends)?.concat().is_sorted() {
        problem = Some("the ranks' parts are not in order".to_owned());
    }
    // The same keys, each as often: sums of scrambled keys agree.
    let sum = |keys: &[u64]| keys.iter().fold(0_u64, |sum, one| sum.wrapping_add(key(*one)));
    let mut sums = [unsorted.len() as u64, sorted.len() as u64, sum(unsorted), sum(sorted)];
    world.all_reduce(&mut sums, Sum)?;
    if sums[0] != sums[1] || sums[2] != sums[3] {
        problem = Some(format!("{} keys became {} others", sums[0], sums[1]));
    }
    if keys <= SMALL {
        let all = (world.gather_varying(0, unsorted)?, world.gather_varying(0, sorted)?);
        if let (Some(unsorted), Some(sorted)) = all {
            let mut serial = unsorted.concat();
            serial.sort_unstable();
            if serial != sorted.concat() {
                problem = Some("one rank alone sorts them into another order".to_owned());
            }
        }
    }
    Ok(problem)
}

/// A number that looks random: the finish of SplitMix64. Different ones for different numbers.
fn key(number: u64) -> u64 {
    let mut number = number.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    number = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    number ^ (number >> 31)
}
