#![no_main]

use std::sync::Arc;
use std::time::Duration;

use roce_bootstrap::core::{Core, Layout, Limits, Link, Output, Way};
use roce_bootstrap::message::{BetweenLeaders, FromMember};

// What may happen to a leader of two ranks among five nodes, in any order: each step is a byte for what it is, one for whom
// it comes from, one for the length of the message, and that. It gives each result once and in order, tells one fault,
// and then nothing more.
libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let names: Arc<[String]> = (0..5).map(|node| format!("n{node}")).collect();
    let limits = Limits { join: Duration::from_secs(60), collective: Duration::from_secs(300) };
    let mut core = Core::new(Layout::new(1, names, 2, 6), limits);
    let (mut rest, mut now, mut delivered, mut faults) = (bytes, Duration::ZERO, 0, 0);
    while let Some((&[what, whom, length], after)) = rest.split_first_chunk() {
        let (message, after) = after.split_at(usize::from(length).min(after.len()));
        rest = after;
        let local = u32::from(whom % 3);
        let way = if whom & 8 == 0 { Way::Before } else { Way::Behind };
        let link = Link { way, round: usize::from(whom % 3) };
        match what % 8 {
            0 => drop(core.local_joined(local, u32::from(length))),
            1 => {
                if let Ok(message) = FromMember::decode(message) {
                    core.local_message(now, local, message);
                }
            }
            2 => core.local_closed(local, "closed"),
            3 => drop(core.peer_joined(link, u32::from(length))),
            4 | 5 => {
                if let Ok(message) = BetweenLeaders::decode(message) {
                    core.peer_message(now, link, message);
                }
            }
            6 => core.peer_closed(link, "closed"),
            _ => {
                now += Duration::from_secs(u64::from(length));
                core.tick(now, |_| None);
            }
        }
        while let Some(output) = core.output() {
            match output {
                Output::Deliver { number, .. } => {
                    assert_eq!((number, faults), (delivered, 0));
                    delivered += 1;
                }
                Output::Fail { .. } => faults += 1,
                Output::Send { .. } | Output::Finished => {}
            }
        }
        assert!(faults <= 1 && (faults == 1) == core.fault().is_some());
    }
});
