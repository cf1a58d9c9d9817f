//! The heat equation gives what the exact solution says, the same to the last digit for any number of ranks and nodes.

mod common;

fn heat(nodes: &[u32]) -> String {
    common::run(env!("CARGO_BIN_EXE_heat"), &["60", "40"], nodes)
}

#[test]
fn the_same_heat_on_any_ranks() {
    // The line after it says how the ranks talked.
    let error = |text: &str| text.lines().next().unwrap().split("at most ").nth(1).unwrap().to_owned();
    let alone = heat(&[1]);
    assert!(alone.starts_with("60 x 60 points, 40 steps on 1 ranks"), "{alone}");
    for nodes in [&[4][..], &[2, 1]] {
        let text = heat(nodes);
        assert_eq!(error(&text), error(&alone), "{text}");
    }
}
