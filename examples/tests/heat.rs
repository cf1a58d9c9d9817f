//! The heat equation gives what the exact solution says, the same to the last digit for any number of ranks and nodes.

use std::process::{Command, Stdio};

fn heat(nodes: &[u32]) -> String {
    let size: u32 = nodes.iter().sum();
    let names = (1..=nodes.len()).map(|node| format!("127.0.0.{node}")).collect::<Vec<_>>().join(",");
    let counts = nodes.iter().map(u32::to_string).collect::<Vec<_>>().join(",");
    let places =
        nodes.iter().enumerate().flat_map(|(node, count)| (0..*count).map(move |local| (node, local)));
    let ranks: Vec<_> = places
        .enumerate()
        .map(|(rank, (node, local))| {
            let mut command = Command::new(env!("CARGO_BIN_EXE_heat"));
            command.args(["60", "40"]).env_clear().stdout(Stdio::piped()).stderr(Stdio::piped());
            command
                .env("SLURM_JOB_ID", std::process::id().to_string())
                .env("SLURM_STEP_ID", nodes.len().to_string())
                .env("SLURM_PROCID", rank.to_string())
                .env("SLURM_LOCALID", local.to_string())
                .env("SLURM_NODEID", node.to_string())
                .env("SLURM_NTASKS", size.to_string())
                .env("SLURM_STEP_NODELIST", &names)
                .env("SLURM_STEP_TASKS_PER_NODE", &counts)
                .env("SLURM_ROCE_SECRET", "6b".repeat(32));
            command.spawn().unwrap()
        })
        .collect();
    let outputs: Vec<_> = ranks.into_iter().map(|rank| rank.wait_with_output().unwrap()).collect();
    assert!(outputs.iter().all(|output| output.status.success()), "{outputs:?}");
    String::from_utf8(outputs[0].stdout.clone()).unwrap()
}

#[test]
fn the_same_heat_on_any_ranks() {
    let error = |text: &str| text.split("at most ").nth(1).unwrap().to_owned();
    let alone = heat(&[1]);
    assert!(alone.starts_with("60 x 60 points, 40 steps on 1 ranks"), "{alone}");
    for nodes in [&[4][..], &[2, 1]] {
        let text = heat(nodes);
        assert_eq!(error(&text), error(&alone), "{text}");
    }
}
