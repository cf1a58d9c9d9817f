#![no_main]

use libfuzzer_sys::Corpus;
use roce_bootstrap::{NodeAddresses, expand_hostlist, testing};

/// What names more nodes is tried, and not varied further: it shows nothing that a shorter list does not, and takes a thousand times
/// as long.
const MOST_NODES: usize = 1000;

// Lines as the environment of a rank, NAME=VALUE: who it is then has its place, or there is an error of one line. Each value is
// also read as a list of nodes and as their addresses.
libfuzzer_sys::fuzz_target!(|text: &str| -> Corpus {
    let mut most = 0;
    let variable = |name: &str| {
        text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('=')).map(str::to_owned)
    };
    match testing::hear_variables(&variable) {
        Ok(None) => {}
        Ok(Some(identity)) => {
            most = identity.nodes.len();
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
            most = most.max(names.len());
            assert!(!names.is_empty() && names.iter().all(|name| !name.is_empty()));
        }
    }
    if most > MOST_NODES { Corpus::Reject } else { Corpus::Keep }
});
