#![no_main]

use roce_bootstrap::{NodeAddresses, expand_hostlist, testing};

// Lines as the environment of a rank, NAME=VALUE: who it is then has its place, or there is an error of one line. Each value is
// also read as a list of nodes and as their addresses.
libfuzzer_sys::fuzz_target!(|text: &str| {
    let variable = |name: &str| {
        text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('=')).map(str::to_owned)
    };
    match testing::hear_variables(&variable) {
        Ok(None) => {}
        Ok(Some(identity)) => {
            assert!(identity.rank < identity.size);
            assert!(identity.local_rank < identity.nodes[identity.node_index as usize].tasks);
            assert_eq!(
                identity.nodes.iter().map(|node| u64::from(node.tasks)).sum::<u64>(),
                identity.size.into()
            );
        }
        Err(error) => assert!(error.to_string().len() < 4096, "{error}"),
    }
    for line in text.lines() {
        let value = line.split_once('=').map_or(line, |(_, value)| value);
        let _ = value.parse::<NodeAddresses>();
        if let Some(names) = expand_hostlist(value) {
            assert!(!names.is_empty() && names.iter().all(|name| !name.is_empty()));
        }
    }
});
