//! What a rank costs its node does not depend on how many ranks there are: the results are in memory that all share.

mod common;

use std::fs;
use std::time::Duration;

use common::{Process, task};
use roce_bootstrap::{Bootstrap, Identity, Launch, Node, Options, Secret, testing::SimulatedLeader};

fn secret() -> Secret {
    Secret::new([3; 32])
}

/// One of `size` ranks of a node; each test process has a step of its own.
fn identity(step: u32, rank: u32, size: u32) -> Identity {
    let nodes = vec![Node { name: "here".to_owned(), tasks: size }];
    Identity { rank, size, local_rank: rank, node_index: 0, nodes, launch: Launch::Slurm { job: 0, step } }
}

/// Memory of this process that no other shares, in KiB: what it wrote, and clean pages of files, which here are those of the
/// program that this process has touched and others have not (proc_pid_smaps(5)).
fn private_memory() -> [u64; 2] {
    let rollup = fs::read_to_string("/proc/self/smaps_rollup").unwrap();
    ["Private_Dirty:", "Private_Clean:"].map(|name| {
        let line = rollup.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        line.split_whitespace().next().unwrap().parse().unwrap()
    })
}

/// The one rank that is real.
#[test]
#[ignore = "the other test starts it"]
fn rank() {
    let Some(task) = task() else { return };
    let (step, size) = task.split_once(' ').unwrap();
    let (step, size) = (step.parse().unwrap(), size.parse().unwrap());
    // Reading it costs memory, too.
    private_memory();
    let before = private_memory();
    let options = Options { join: Duration::from_secs(20), ..Options::default() };
    let mut ranks = Bootstrap::join(identity(step, 1, size), Some(&secret()), &options).unwrap();
    let all = ranks.all_gather(&[7; 64]).unwrap();
    let bytes: u64 = all.iter().flatten().map(|byte| u64::from(*byte)).sum();
    assert_eq!(ranks.members().map(|member| member.local_rank).max(), Some(size - 1));
    let after = private_memory();
    println!("\nmemory {} {} {} {bytes}", before[0], after[0], after[1]);
}

#[test]
fn a_rank_among_4096_needs_no_more_memory_than_one_among_64() {
    let measure = |size: u32| {
        let step = std::process::id();
        let leader = SimulatedLeader::start(&identity(step, 0, size), &secret()).unwrap();
        let mut rank = Process::start("rank", &format!("{step} {size}"), &[], &[]);
        let results = leader.serve().unwrap();
        let line = rank.next(&["memory"]).unwrap();
        drop(results);
        let numbers: Vec<u64> = line.split(' ').skip(1).map(|number| number.parse().unwrap()).collect();
        let shared = size * (16 + 72) / 1024;
        let [before, after, clean, ..] = numbers[..] else { panic!("{line}") };
        println!(
            "{size} ranks: {after} KiB private and written ({before} before joining), {clean} KiB private and clean, {shared} KiB shared"
        );
        after - before
    };
    // The allocator and the C library take some 60 KiB more in some processes than in others.
    let least = |size| (0..3).map(|_| measure(size)).min().unwrap();
    let (few, many) = (least(64), least(4096));
    // The results alone are 350 KiB longer.
    assert!(many < few + 64, "joining takes {few} KiB among 64 ranks and {many} KiB among 4096");
}
