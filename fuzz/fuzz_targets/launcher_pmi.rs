#![no_main]

use roce_bootstrap::{Identity, testing};

// Bytes as all that a PMI launcher says: the first two choose rank and size, a bit of the third whether the variables told
// the rest. Who is introduced is who the launcher was asked about.
libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let Some((&[rank, size, kind], said)) = bytes.split_first_chunk() else { return };
    let (rank, size) = (u32::from(rank), u32::from(size) + 1);
    if rank >= size {
        return;
    }
    let told = (kind % 2 == 1).then(|| Identity { rank, size, ..Identity::alone("here") });
    let Some((identity, _)) = testing::hear_pmi(rank, size, told.clone(), said) else { return };
    assert_eq!((identity.rank, identity.size), (rank, size));
    if told.is_none() {
        assert!(identity.local_rank < identity.nodes[identity.node_index as usize].tasks);
        assert_eq!(identity.nodes.iter().map(|node| node.tasks).sum::<u32>(), size);
    }
});
