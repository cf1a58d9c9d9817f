//! The example that needs no RDMA, started as `rocectl run` does.

use std::process::{Command, Stdio};

use roce_bootstrap::{LocalRun, Secret};

fn who() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_who"));
    command.env_clear().stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

#[test]
fn rank_0_prints_every_rank() {
    let secret = Secret::random().unwrap();
    let run = LocalRun { host: "here", size: 3, secret: &secret };
    let variables = |rank| run.variables(rank).into_iter().map(|(name, value)| (name, value.to_string()));
    let ranks: Vec<_> = (0..3).map(|rank| who().envs(variables(rank)).spawn().unwrap()).collect();
    let expected: String = (0..)
        .zip(&ranks)
        .map(|(rank, child)| format!("rank {rank} of 3: here process {}\n", child.id()))
        .collect();
    let printed = ranks.into_iter().map(|child| child.wait_with_output().unwrap()).map(|output| {
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    });
    assert_eq!(printed.collect::<Vec<_>>(), [expected, String::new(), String::new()]);
}

#[test]
fn alone_it_is_one_rank() {
    let output = who().output().unwrap();
    assert!(output.status.success(), "{output:?}");
    assert!(String::from_utf8(output.stdout).unwrap().starts_with("rank 0 of 1: "));
}
