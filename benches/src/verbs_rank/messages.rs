//! Messages and windows, as programs use them.

use std::collections::VecDeque;

use anyhow::Result;
use roce_launcher::Communicator;

use crate::clock::{Laps, laps};

/// Tags.
const THERE: u32 = 1;
const STREAM: u32 = 2;
const ANSWER: u32 = 3;

/// Messages of a stream that are under way: many, but no more than caches hold.
pub(crate) fn window(size: usize) -> u32 {
    u32::try_from((4 << 20) / size.max(1)).unwrap_or(u32::MAX).clamp(2, 16)
}

/// Half of the time that a message and its answer take.
pub(crate) fn latency(world: &Communicator, size: usize, times: u32) -> Result<Laps> {
    let mut data = vec![1_u8; size];
    let peer = 1 - world.rank();
    let laps = laps(times, |_| {
        if world.rank() == 0 {
            world.send(peer, THERE, &data)?;
            world.receive(peer, THERE, &mut data)?;
        } else {
            world.receive(peer, THERE, &mut data)?;
            world.send(peer, THERE, &data)?;
        }
        Ok(())
    })?;
    Ok(laps.half())
}

/// The time of a message in a stream, each as soon as one of those before it is over.
pub(crate) fn stream(world: &Communicator, size: usize, times: u32) -> Result<Laps> {
    let peer = 1 - world.rank();
    // All of them are one lap, after a shorter one.
    let window = window(size);
    let mut count = window.min(times);
    let laps = laps(1, |_| {
        let mut under_way = VecDeque::new();
        for number in 0..count {
            let data = if number < window {
                vec![1_u8; size]
            } else {
                let Some(eldest) = under_way.pop_front() else { continue };
                roce_launcher::Request::wait(eldest)?.data
            };
            under_way.push_back(match world.rank() {
                0 => world.start_send(peer, STREAM, data)?,
                _ => world.start_receive(peer, STREAM, data)?,
            });
        }
        under_way.into_iter().try_for_each(|request| request.wait().map(drop))?;
        if world.rank() == 0 {
            world.receive(peer, ANSWER, &mut [0_u8])?;
        } else {
            world.send(peer, ANSWER, &[0_u8])?;
        }
        count = times;
        Ok(())
    })?;
    let each = laps.mean / f64::from(times);
    Ok(Laps { median: each, mean: each })
}

/// Half of the time until a rank sees in its window what the other put there when it saw what this one had put.
pub(crate) fn put(world: &Communicator, size: usize, times: u32) -> Result<Laps> {
    let words = (size / size_of::<u64>()).max(1);
    let window = world.window::<u64>(words)?;
    let mut data = vec![0_u64; words];
    let peer = 1 - world.rank();
    let laps = laps(times, |turn| {
        let number = u64::from(turn) + 1;
        data[words - 1] = number;
        if world.rank() == 0 {
            window.put(peer, 0, &data)?;
            window.wait_until(words - 1, |seen| seen == number)?;
        } else {
            window.wait_until(words - 1, |seen| seen == number)?;
            window.put(peer, 0, &data)?;
        }
        Ok(())
    })?;
    window.close()?;
    Ok(laps.half())
}
