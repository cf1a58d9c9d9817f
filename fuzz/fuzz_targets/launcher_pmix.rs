#![no_main]

use roce_bootstrap::testing;

// Lines as a PMIx launcher's nodes, each byte a rank; the first two bytes are this rank and the number of ranks. What is
// believed has every rank once.
libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let Some((&[rank, size], lines)) = bytes.split_first_chunk() else { return };
    let nodes = (0..).zip(lines.split(|byte| *byte == b'\n'));
    let nodes = nodes.map(|(node, ranks): (u32, &[u8])| {
        (format!("n{node}"), ranks.iter().map(|rank| u32::from(*rank)).collect())
    });
    let nodes: Vec<(String, Vec<u32>)> = nodes.collect();
    let (rank, size) = (u32::from(rank), u32::from(size));
    let Ok(identity) = testing::hear_pmix(nodes.clone(), rank, size) else { return };
    let mut all: Vec<u32> = nodes.iter().flat_map(|(_, ranks)| ranks.clone()).collect();
    all.sort_unstable();
    assert!(all.into_iter().eq(0..size) && rank < size);
    let (_, here) = nodes.iter().find(|(name, _)| name == identity.node_name()).unwrap();
    assert!(here.contains(&rank));
    assert_eq!(here.iter().filter(|other| **other < rank).count(), identity.local_rank as usize);
    assert_eq!(identity.nodes.iter().map(|node| node.tasks).sum::<u32>(), size);
});
