//! Durations of repeated acts, by the counter that perftest reads: the clock of an emulated machine may cost a microsecond a look.

use std::time::Instant;

use anyhow::{Context, Result};

/// Nanoseconds of one act.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Laps {
    pub(crate) median: f64,
    pub(crate) mean: f64,
}

impl Laps {
    /// Half of each: one way of a round trip.
    pub(crate) fn half(self) -> Self {
        Self { median: self.median / 2.0, mean: self.mean / 2.0 }
    }
}

/// Nanoseconds of one of so many, a tenth more of them before.
pub(crate) fn laps(times: u32, mut act: impl FnMut(u32) -> Result<()>) -> Result<Laps> {
    let before = times / 10 + 1;
    (0..before).try_for_each(&mut act)?;
    let mut ticks = Vec::with_capacity(times as usize + 1);
    let start = Instant::now();
    ticks.push(now());
    for turn in before..before + times {
        act(turn)?;
        ticks.push(now());
    }
    let took = start.elapsed().as_secs_f64() * 1e9;
    let mut each: Vec<u64> = ticks.windows(2).map(|pair| pair[1].wrapping_sub(pair[0])).collect();
    each.sort_unstable();
    let (median, all) = (each.get(each.len() / 2).context("no lap")?, each.iter().sum::<u64>());
    #[expect(clippy::cast_precision_loss, reason = "ticks of some seconds")]
    let median = *median as f64 * took / all as f64;
    Ok(Laps { median, mean: took / f64::from(times) })
}

#[cfg(target_arch = "x86_64")]
#[expect(unsafe_code, reason = "an instruction of the processor")]
fn now() -> u64 {
    // SAFETY: every x86-64 processor has the instruction, and it touches no memory.
    unsafe { std::arch::x86_64::_rdtsc() }
}

#[cfg(not(target_arch = "x86_64"))]
fn now() -> u64 {
    use std::sync::OnceLock;
    static START: OnceLock<Instant> = OnceLock::new();
    u64::try_from(START.get_or_init(Instant::now).elapsed().as_nanos()).unwrap_or(u64::MAX)
}
