#![no_main]

use roce_bootstrap::message::{BetweenLeaders, FromMember, ToMember};

// A payload as each of the three kinds of messages: what can be read is written and read as the same.
libfuzzer_sys::fuzz_target!(|payload: &[u8]| {
    if let Ok(message) = FromMember::decode(payload) {
        assert_eq!(FromMember::decode(&message.encode()).map(|again| again == cut(&message)), Ok(true));
    }
    if let Ok(message) = ToMember::decode(payload) {
        assert!(ToMember::decode(&message.encode()).is_ok());
    }
    if let Ok(message) = BetweenLeaders::decode(payload) {
        assert!(BetweenLeaders::decode(&message.encode()).is_ok());
        if !matches!(message, BetweenLeaders::Fault(_)) {
            assert_eq!(message.encode(), payload);
        }
    }
});

/// A reason is sent no longer than 2 KiB.
fn cut(message: &FromMember) -> FromMember {
    match FromMember::decode(&message.encode()) {
        Ok(cut @ FromMember::Abort { .. }) => cut,
        _ => message.clone(),
    }
}
