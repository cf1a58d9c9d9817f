//! Asynchronous gradient descent finds the least-squares solution, whoever keeps the parameters and whoever makes the steps.

mod common;

#[test]
fn the_parameters_are_those_with_the_least_squares() {
    for (nodes, servers) in [(&[1][..], "1"), (&[4], "1"), (&[4], "3"), (&[2, 1], "1"), (&[1, 1, 2], "9")] {
        let text = common::run(
            env!("CARGO_BIN_EXE_parameter_server"),
            &["--samples", "6000", "--epochs", "6", "--servers", servers],
            nodes,
        );
        let ranks: u32 = nodes.iter().sum();
        let keepers = ranks.min(servers.parse().unwrap());
        let expected =
            format!("16 parameters on {keepers} of {ranks} ranks, 564 steps of 64 of 6000 samples: ");
        assert!(text.starts_with(&expected), "{text}");
        // Each step was made once.
        let by_rank = text.split_once("by rank ").unwrap().1.split_once(';').unwrap().0;
        let steps: Vec<u32> = by_rank.split(' ').map(|steps| steps.parse().unwrap()).collect();
        assert_eq!((steps.len() as u32, steps.iter().sum::<u32>()), (ranks, 564), "{text}");
    }
}
