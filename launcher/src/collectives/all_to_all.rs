//! In pairs: in step k everyone sends to the rank k further and receives from the one k before. Little data of many ranks in
//! Bruck's way: fewer messages, which carry data of others on.

use bytemuck::Pod;

use crate::collectives::choose::{Algorithm, Collective};
use crate::collectives::round::Team;
use crate::collectives::{Operator, call, call_varying, zeros};
use crate::error::{Error, Result};
use crate::messages::Communicator;

impl Communicator {
    /// Gives every rank its part of every rank's elements: `data` has as many for each rank, by rank, and so has the result.
    ///
    /// ```
    /// # let job = roce_launcher::Job::init()?;
    /// # let world = job.world();
    /// let to_each: Vec<u32> = (0..world.size()).map(|to| 100 * world.rank() + to).collect();
    /// let from_each = world.all_to_all(&to_each)?;
    /// assert!((0..).zip(from_each).all(|(from, number)| number == 100 * from + world.rank()));
    /// # Ok::<(), roce_launcher::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`broadcast`](Self::broadcast).
    pub fn all_to_all<T: Pod>(&self, data: &[T]) -> Result<Vec<T>> {
        self.collective(call::<T>("all_to_all", None, data.len()), |round| {
            let team = round.everyone();
            let each = part_length(&team, data.len())?;
            match self.nodes.choose::<T>(Collective::AllToAll, each).messages {
                Some(Algorithm::Bruck) => bruck(&team, data, each),
                _ => pairwise(&team, data, each),
            }
        })
    }

    /// The same with a different number of elements for each rank: one `Vec` to each, one from each.
    ///
    /// ```
    /// # let job = roce_launcher::Job::init()?;
    /// # let world = job.world();
    /// let to_each: Vec<Vec<u32>> = (0..world.size()).map(|to| vec![world.rank(); to as usize]).collect();
    /// let from_each = world.all_to_all_varying(&to_each)?;
    /// assert!((0..).zip(from_each).all(|(from, theirs)| theirs == vec![from; world.rank() as usize]));
    /// # Ok::<(), roce_launcher::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`all_to_all`](Self::all_to_all).
    pub fn all_to_all_varying<T: Pod>(&self, data: &[Vec<T>]) -> Result<Vec<Vec<T>>> {
        self.collective(call_varying("all_to_all_varying", None), |round| {
            let team = round.everyone();
            if data.len() != team.size() as usize {
                let problem = format!("{} parts for {} ranks", data.len(), team.size());
                return Err(Error::Lengths { what: round.what, problem });
            }
            let mut result = vec![Vec::new(); data.len()];
            result[team.rank() as usize].clone_from(&data[team.rank() as usize]);
            for step in 1..team.size() {
                let (to, from) = (team.after(step), team.before(step));
                result[from as usize] = self.scope_in(round.context, |scope| {
                    scope.send(to, round.tag, &data[to as usize])?;
                    team.receive_vec(from)
                })?;
            }
            Ok(result)
        })
    }

    /// Combines all ranks' elements, place by place, and gives every rank its part of the result: `data` has as many for each
    /// rank.
    ///
    /// ```
    /// use roce_launcher::Sum;
    /// # let job = roce_launcher::Job::init()?;
    /// # let world = job.world();
    /// let ranks = world.size();
    /// let data: Vec<u32> = (0..ranks).collect();
    /// assert_eq!(world.reduce_scatter(&data, Sum)?, [ranks * world.rank()]);
    /// # Ok::<(), roce_launcher::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`all_to_all`](Self::all_to_all).
    #[expect(clippy::needless_pass_by_value, reason = "operators have no size, and read better so")]
    pub fn reduce_scatter<T: Pod>(&self, data: &[T], operator: impl Operator<T>) -> Result<Vec<T>> {
        self.collective(call::<T>("reduce_scatter", None, data.len()), |round| {
            let team = round.everyone();
            let each = part_length(&team, data.len())?;
            let part = |rank: u32| &data[rank as usize * each..(rank as usize + 1) * each];
            let mut result = part(team.rank()).to_vec();
            let mut others = zeros(each);
            for step in 1..team.size() {
                let (to, from) = (team.after(step), team.before(step));
                team.exchange(to, part(to), from, &mut others)?;
                operator.combine(&mut result, &others);
            }
            Ok(result)
        })
    }
}

fn part_length(team: &Team<'_>, length: usize) -> Result<usize> {
    let ranks = team.size() as usize;
    if length.is_multiple_of(ranks) {
        return Ok(length / ranks);
    }
    let problem = format!("{length} elements can't be shared equally by {ranks} ranks");
    Err(Error::Lengths { what: team.round.what, problem })
}

fn pairwise<T: Pod>(team: &Team<'_>, data: &[T], each: usize) -> Result<Vec<T>> {
    let part = |rank: u32| rank as usize * each..(rank as usize + 1) * each;
    let mut result = zeros(data.len());
    result[part(team.rank())].copy_from_slice(&data[part(team.rank())]);
    for step in 1..team.size() {
        let (to, from) = (team.after(step), team.before(step));
        team.exchange(to, &data[part(to)], from, &mut result[part(from)])?;
    }
    Ok(result)
}

/// What is for the rank k further is sent on in steps of the powers of two of which k is the sum.
fn bruck<T: Pod>(team: &Team<'_>, data: &[T], each: usize) -> Result<Vec<T>> {
    let (rank, size) = (team.rank() as usize, team.size() as usize);
    // By how much further each is to go.
    let mut held = data.to_vec();
    held.rotate_left(rank * each);
    let mut distance = 1;
    while distance < size {
        let on_the_way = || (0..size).filter(move |further| further & distance != 0);
        let part = |further: usize| further * each..(further + 1) * each;
        let outgoing: Vec<T> = on_the_way().flat_map(|further| held[part(further)].to_vec()).collect();
        let mut incoming = zeros(outgoing.len());
        let step = distance as u32;
        team.exchange(team.after(step), &outgoing, team.before(step), &mut incoming)?;
        for (number, further) in on_the_way().enumerate() {
            held[part(further)].copy_from_slice(&incoming[part(number)]);
        }
        distance *= 2;
    }
    // What has gone k further comes from the rank k before.
    let from = |source: usize| (rank + size - source) % size;
    let parts = (0..size).flat_map(|source| held[from(source) * each..(from(source) + 1) * each].to_vec());
    Ok(parts.collect())
}
