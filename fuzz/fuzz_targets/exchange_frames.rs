#![no_main]

use roce_bootstrap::testing;

// A leader's frames, changed on their way: the first byte says where bytes are cut, the second how they are changed. What
// comes out is what was sent, from the first frame on, or nothing more.
libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let Some((&[cut, kind], rest)) = bytes.split_first_chunk() else { return };
    let key = [5; 32];
    let payloads: Vec<&[u8]> = rest.chunks(1 + usize::from(cut >> 4)).take(6).collect();
    let sent = testing::frames(key, &payloads);
    let stream = match kind % 4 {
        // Anything at all.
        0 => rest.to_vec(),
        // One byte changed.
        1 => {
            let mut changed = sent.clone();
            let place = rest.iter().map(|byte| usize::from(*byte)).sum::<usize>() % changed.len().max(1);
            if let Some(byte) = changed.get_mut(place) {
                *byte ^= kind | 1;
            }
            changed
        }
        // Repeated.
        2 => [&sent[..], &sent].concat(),
        _ => sent.clone(),
    };
    let pieces: Vec<&[u8]> = stream.chunks(1 + usize::from(cut)).collect();
    let heard = testing::hear_frames(key, &pieces, 1000);
    if kind % 4 == 0 {
        // The fuzzer sees what bytes are compared with and can so make a frame; but only those that have the key's tag count.
        let heard: Vec<&[u8]> = heard.iter().map(Vec::as_slice).collect();
        assert!(stream.starts_with(&testing::frames(key, &heard)));
    } else {
        assert!(heard.len() <= payloads.len() && heard.iter().eq(&payloads[..heard.len()]));
        assert_eq!(heard.len() < payloads.len(), kind % 4 == 1 && !sent.is_empty());
    }
});
