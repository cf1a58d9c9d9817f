#![no_main]

use roce_bootstrap::{Secret, testing};

// What a stranger may say to a leader, as a caller, as a listener in a leader's place, or as a rank of its node. Nobody gets in
// but who says exactly what the secret's owner would say.
libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let Some((&who, said)) = bytes.split_first() else { return };
    let secret = Secret::new([9; 32]);
    match who % 3 {
        0 => {
            let (admitted, right) = testing::hear_caller(&secret, said);
            assert_eq!(admitted, right);
        }
        1 => {
            let (believed, right) = testing::hear_listener(&secret, said);
            assert_eq!(believed, right);
        }
        _ => {
            let (found, right) = testing::hear_rank(&secret, said);
            assert_eq!(found.is_some(), right);
        }
    }
});
