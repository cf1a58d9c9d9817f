//! What the hardware needs at least: two threads on two CPUs that hand one cache line back and forth.

use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Instant;

use anyhow::Result;

/// So that no other data shares the line, nor the one that the processor fetches with it.
#[repr(align(128))]
struct Line(AtomicU64);

/// Nanoseconds from one CPU to the other, over so many round trips.
pub(crate) fn half_round_trip(times: u64) -> Result<f64> {
    let line = Line(AtomicU64::new(0));
    // Each side waits for the other's number and stores the next.
    let play = |first: u64| {
        for turn in 0..times {
            let mine = 2 * turn + first;
            while line.0.load(Ordering::Acquire) != mine {
                std::hint::spin_loop();
            }
            line.0.store(mine + 1, Ordering::Release);
        }
    };
    thread::scope(|scope| {
        let other = scope.spawn(|| {
            crate::bind(1)?;
            play(1);
            anyhow::Ok(())
        });
        crate::bind(0)?;
        let start = Instant::now();
        play(0);
        let joined = other.join();
        let took = start.elapsed();
        joined.unwrap_or_else(|_| anyhow::bail!("a thread panicked"))?;
        #[expect(clippy::cast_precision_loss, reason = "far below 2^53")]
        let ns = took.as_secs_f64() * 1e9 / times as f64;
        Ok(ns / 2.0)
    })
}
