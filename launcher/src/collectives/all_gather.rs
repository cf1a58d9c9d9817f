//! Short data: Bruck's way, ceil(log2 ranks) exchanges. Long data: a ring, in which everyone hands on what it got last.

use bytemuck::Pod;

use crate::collectives::{Round, zeros};
use crate::error::Result;
use crate::messages::Communicator;

/// From so many bytes of each rank on data is long.
const LONG: usize = 16 * 1024;

impl Communicator {
    /// Gives every rank every rank's elements, by rank, of which each has as many.
    ///
    /// ```
    /// # let job = roce_launcher::Job::init()?;
    /// # let world = job.world();
    /// let all = world.all_gather(&[world.rank()])?;
    /// assert!(all.into_iter().eq(0..world.size()));
    /// # Ok::<(), roce_launcher::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`send`](Self::send), and [`Error::Lengths`](crate::Error::Lengths).
    pub fn all_gather<T: Pod>(&self, data: &[T]) -> Result<Vec<T>> {
        let round = Round::of(self);
        let lengths = vec![data.len(); round.size() as usize];
        if size_of_val(data) >= LONG { ring(&round, data, &lengths) } else { bruck(&round, data) }
    }

    /// The same where ranks have different numbers of elements.
    ///
    /// ```
    /// # let job = roce_launcher::Job::init()?;
    /// # let world = job.world();
    /// let all = world.all_gather_varying(&vec![0_u8; world.rank() as usize])?;
    /// assert!(all.iter().enumerate().all(|(rank, theirs)| theirs.len() == rank));
    /// # Ok::<(), roce_launcher::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`send`](Self::send).
    pub fn all_gather_varying<T: Pod>(&self, data: &[T]) -> Result<Vec<Vec<T>>> {
        let lengths = self.all_gather(&[data.len() as u64])?;
        let lengths: Vec<usize> =
            lengths.into_iter().map(|length| usize::try_from(length).unwrap_or(usize::MAX)).collect();
        let all = ring(&Round::of(self), data, &lengths)?;
        let mut rest = &all[..];
        let mut parts = Vec::with_capacity(lengths.len());
        for length in lengths {
            let (part, others) = rest.split_at(length);
            parts.push(part.to_vec());
            rest = others;
        }
        Ok(parts)
    }
}

fn bruck<T: Pod>(round: &Round<'_>, data: &[T]) -> Result<Vec<T>> {
    let (size, each) = (round.size(), data.len());
    // From this rank on, around the end.
    let mut held = zeros(each * size as usize);
    held[..each].copy_from_slice(data);
    let mut count = 1;
    while count < size {
        let more = count.min(size - count);
        let (have, room) = held.split_at_mut(count as usize * each);
        let (have, room) = (&have[..more as usize * each], &mut room[..more as usize * each]);
        round.exchange("all_gather", round.before(count), have, round.after(count), room)?;
        count += more;
    }
    held.rotate_right(round.rank() as usize * each);
    Ok(held)
}

fn ring<T: Pod>(round: &Round<'_>, data: &[T], lengths: &[usize]) -> Result<Vec<T>> {
    let mut ends = Vec::with_capacity(lengths.len());
    let mut end = 0;
    for length in lengths {
        end += length;
        ends.push(end);
    }
    let place = |rank: u32| ends[rank as usize] - lengths[rank as usize]..ends[rank as usize];
    let mut all = zeros(end);
    all[place(round.rank())].copy_from_slice(data);
    let mut outgoing = data.to_vec();
    for step in 1..round.size() {
        let from = round.before(step);
        let mut incoming = zeros(lengths[from as usize]);
        round.exchange("all_gather", round.after(1), &outgoing, round.before(1), &mut incoming)?;
        all[place(from)].copy_from_slice(&incoming);
        outgoing = incoming;
    }
    Ok(all)
}
