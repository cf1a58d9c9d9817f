//! The examples that are real codes check their results themselves and fail where they are wrong: on one rank, on several of one
//! node and of several, and on more ranks than there is work for.

mod common;

const NODES: [&[u32]; 3] = [&[1], &[4], &[1, 2, 2]];

/// What a report says between two phrases.
fn between<'a>(text: &'a str, before: &str, behind: &str) -> &'a str {
    let rest = text.split_once(before).unwrap_or_else(|| panic!("{text}")).1;
    rest.split_once(behind).unwrap_or_else(|| panic!("{text}")).0
}

#[test]
fn conjugate_gradients_find_the_known_solution() {
    let solve =
        |points, nodes| common::run(env!("CARGO_BIN_EXE_conjugate_gradient"), &["--points", points], nodes);
    let mut alone = None;
    for nodes in NODES {
        let text = solve("8", nodes);
        let ranks: u32 = nodes.iter().sum();
        assert!(text.starts_with(&format!("512 unknowns on {ranks} ranks: ")), "{text}");
        let iterations: u32 = between(&text, "ranks: ", " iterations").parse().unwrap();
        // Sums of other ranks' parts are rounded otherwise.
        assert!(iterations.abs_diff(*alone.get_or_insert(iterations)) <= 1, "{alone:?} alone; {text}");
    }
    solve("1", &[3]);
    solve("2", &[2, 7]);
}

#[test]
fn bodies_move_as_one_rank_computes() {
    let simulate = |bodies, nodes| {
        common::run(env!("CARGO_BIN_EXE_nbody"), &["--bodies", bodies, "--steps", "10"], nodes)
    };
    for nodes in NODES {
        let text = simulate("200", nodes);
        assert!(text.starts_with("200 bodies, 10 steps on "), "{text}");
    }
    simulate("1", &[2]);
    simulate("3", &[3, 2]);
}

#[test]
fn keys_are_sorted_whatever_they_are() {
    let sort = |arguments: &[&str], nodes| {
        let text = common::run(env!("CARGO_BIN_EXE_sort"), arguments, nodes);
        let largest: f64 = between(&text, "part is ", " of an equal").parse().unwrap();
        assert!(largest <= 2.0 || arguments[1].len() < 3, "{text}");
    };
    for nodes in NODES {
        sort(&["--keys", "30000"], nodes);
        sort(&["--keys", "30000", "--distinct", "3"], nodes);
    }
    sort(&["--keys", "30000", "--distinct", "1"], &[3]);
    sort(&["--keys", "0"], &[2]);
    sort(&["--keys", "3"], &[2, 3]);
}
