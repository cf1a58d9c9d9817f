//! Within a node short data through memory. Between nodes, or where data is long, by messages: short data in Bruck's way,
//! ceil(log2 ranks) exchanges; long data in a ring, in which everyone hands on what it got last.

use bytemuck::Pod;

use crate::collectives::choose::{Algorithm, Choice, Collective};
use crate::collectives::local::Local;
use crate::collectives::round::Team;
use crate::collectives::{call, call_varying, zeros};
use crate::error::Result;
use crate::messages::Communicator;

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
    /// As [`broadcast`](Self::broadcast).
    pub fn all_gather<T: Pod>(&self, data: &[T]) -> Result<Vec<T>> {
        self.collective(call::<T>("all_gather", None, data.len()), |round| {
            let choice = self.nodes.choose::<T>(Collective::AllGather, data.len());
            match choice.messages {
                _ if choice.shared_memory => through_memory(&self.nodes.enter(round)?, choice, data),
                Some(Algorithm::Ring) => {
                    let team = round.everyone();
                    ring(&team, data, &vec![data.len(); team.size() as usize])
                }
                _ => bruck(&round.everyone(), data),
            }
        })
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
    /// As [`broadcast`](Self::broadcast).
    pub fn all_gather_varying<T: Pod>(&self, data: &[T]) -> Result<Vec<Vec<T>>> {
        let lengths = self.all_gather(&[data.len() as u64])?;
        let lengths: Vec<usize> =
            lengths.into_iter().map(|length| usize::try_from(length).unwrap_or(usize::MAX)).collect();
        let all = self.collective(call_varying("all_gather_varying", None), |round| {
            ring(&round.everyone(), data, &lengths)
        })?;
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

fn through_memory<T: Pod>(local: &Local<'_>, choice: Choice, data: &[T]) -> Result<Vec<T>> {
    let Some(way) = choice.messages else {
        return local.collect(data, true).map(|(all, _)| all);
    };
    let leads = local.place() == 0;
    let (mut all, steps) = local.collect(data, leads)?;
    let counts = local.counts();
    if leads {
        let speakers = local.speakers(None).0;
        let alike = counts.iter().all(|count| *count == counts[0]);
        all = if way == Algorithm::Bruck && alike {
            bruck(&speakers, &all)?
        } else {
            ring(&speakers, &all, &counts.iter().map(|count| count * data.len()).collect::<Vec<_>>())?
        };
    }
    all.resize(counts.iter().sum::<usize>() * data.len(), T::zeroed());
    local.spread(0, &mut all, steps)?;
    local.all_are_here();
    Ok(local.by_rank(&all, data.len()))
}

fn bruck<T: Pod>(team: &Team<'_>, data: &[T]) -> Result<Vec<T>> {
    let (size, each) = (team.size(), data.len());
    // From this rank on, around the end.
    let mut held = zeros(each * size as usize);
    held[..each].copy_from_slice(data);
    let mut count = 1;
    while count < size {
        let more = count.min(size - count);
        let (have, room) = held.split_at_mut(count as usize * each);
        let (have, room) = (&have[..more as usize * each], &mut room[..more as usize * each]);
        team.exchange(team.before(count), have, team.after(count), room)?;
        count += more;
    }
    held.rotate_right(team.rank() as usize * each);
    Ok(held)
}

fn ring<T: Pod>(team: &Team<'_>, data: &[T], lengths: &[usize]) -> Result<Vec<T>> {
    let mut ends = Vec::with_capacity(lengths.len());
    let mut end = 0;
    for length in lengths {
        end += length;
        ends.push(end);
    }
    let place = |rank: u32| ends[rank as usize] - lengths[rank as usize]..ends[rank as usize];
    let mut all = zeros(end);
    all[place(team.rank())].copy_from_slice(data);
    let mut outgoing = data.to_vec();
    for step in 1..team.size() {
        let from = team.before(step);
        let mut incoming = zeros(lengths[from as usize]);
        team.exchange(team.after(1), &outgoing, team.before(1), &mut incoming)?;
        all[place(from)].copy_from_slice(&incoming);
        outgoing = incoming;
    }
    Ok(all)
}
