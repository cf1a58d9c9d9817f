//! The example where there is no RDMA, or not the device that was assigned: one clear error on every rank, soon.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const SECRET: &str = "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff";

/// The program with an environment of its own: what this machine's Slurm or plugin set does not count.
fn program() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_pair_exchange"));
    command.env_clear().stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn rank_of_two(rank: u32, step: u32) -> Command {
    let mut command = program();
    command
        .env("SLURM_JOB_ID", std::process::id().to_string())
        .env("SLURM_STEP_ID", step.to_string())
        .env("SLURM_PROCID", rank.to_string())
        .env("SLURM_LOCALID", rank.to_string())
        .env("SLURM_NODEID", "0")
        .env("SLURM_NTASKS", "2")
        .env("SLURM_STEP_NODELIST", "here")
        .env("SLURM_STEP_TASKS_PER_NODE", "2")
        .env("SLURM_ROCE_SECRET", SECRET);
    command
}

/// What it printed on standard error. It must have failed.
fn failure(child: Child) -> String {
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(text.lines().count(), 1, "{text}");
    text
}

#[test]
fn a_node_without_rdma_is_told_as_that() {
    if Path::new("/sys/class/infiniband").exists() {
        assert!(std::env::var_os("ROCE_REQUIRE").is_none(), "this machine has RDMA");
        println!("skipped: this machine has RDMA");
        return;
    }
    let on_own_node = |rank: u32| {
        let mut command = rank_of_two(rank, 3);
        command.env("SLURM_LOCALID", "0").env("SLURM_NODEID", rank.to_string());
        command.env("SLURM_STEP_NODELIST", "127.0.0.[1-2]").env("SLURM_STEP_TASKS_PER_NODE", "1(x2)");
        command.spawn().unwrap()
    };
    for text in [0, 1].map(on_own_node).map(failure) {
        assert!(text.contains(") has no RoCE port: /sys/class/infiniband does not exist"), "{text}");
    }
}

#[test]
fn an_assigned_device_that_is_not_there_is_named_by_every_rank() {
    let start = Instant::now();
    let assigned = |mut command: Command| {
        command.env("ROCE_DEVICES", "nonesuch:1").env("ROCE_GIDS", "::ffff:10.0.0.1").spawn().unwrap()
    };
    let ranks = [0, 1].map(|rank| assigned(rank_of_two(rank, 0)));
    for text in ranks.map(failure) {
        assert!(text.contains("nonesuch:1 on this node (here) cannot be used"), "{text}");
    }
    assert!(start.elapsed() < Duration::from_secs(20), "{:?}", start.elapsed());
}

#[test]
fn one_rank_with_a_wrong_variable_fails_the_other_too() {
    let mut wrong = rank_of_two(1, 1);
    wrong.env("ROCE_DEVICES", "nonesuch").env("ROCE_GIDS", "::1");
    let ranks = [
        rank_of_two(0, 1).env("ROCE_DEVICES", "x:1").env("ROCE_GIDS", "::1").spawn().unwrap(),
        wrong.spawn().unwrap(),
    ];
    let [other, own] = ranks.map(failure);
    assert!(own.contains("ROCE_DEVICES=\"nonesuch\""), "{own}");
    assert!(other.contains("x:1 on this node"), "{other}");
}

#[test]
fn half_a_slurm_environment_is_an_error_that_names_what_is_missing() {
    let text = failure(rank_of_two(0, 2).env_remove("SLURM_NODEID").spawn().unwrap());
    assert!(text.contains("SLURM_STEP_ID=2 is set, but SLURM_NODEID is not"), "{text}");
}
