//! In pairs: in step k everyone sends to the rank k further and receives from the one k before.

use bytemuck::Pod;

use crate::collectives::{Operator, Round, zeros};
use crate::error::{Error, Result};
use crate::messages::{Communicator, Source, Tag};

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
    /// As [`send`](Self::send), and [`Error::Lengths`](crate::Error::Lengths).
    pub fn all_to_all<T: Pod>(&self, data: &[T]) -> Result<Vec<T>> {
        let round = Round::of(self);
        let each = round.part_length("all_to_all", data.len())?;
        let part = |rank: u32| rank as usize * each..(rank as usize + 1) * each;
        let mut result = zeros(data.len());
        result[part(round.rank())].copy_from_slice(&data[part(round.rank())]);
        for step in 1..round.size() {
            let (to, from) = (round.after(step), round.before(step));
            round.exchange("all_to_all", to, &data[part(to)], from, &mut result[part(from)])?;
        }
        Ok(result)
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
        const WHAT: &str = "all_to_all_varying";
        let round = Round::of(self);
        if data.len() != round.size() as usize {
            let problem = format!("{} parts for {} ranks", data.len(), round.size());
            return Err(Error::Lengths { what: WHAT, problem });
        }
        let mut result = vec![Vec::new(); data.len()];
        result[round.rank() as usize].clone_from(&data[round.rank() as usize]);
        for step in 1..round.size() {
            let (to, from) = (round.after(step), round.before(step));
            result[from as usize] = self.scope_in(round.context, |scope| {
                scope.send(to, round.tag, &data[to as usize])?;
                self.receive_vec_in(round.context, Source::from(from), Tag::from(round.tag))
                    .map(|(data, _)| data)
            })?;
        }
        Ok(result)
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
        let round = Round::of(self);
        let each = round.part_length("reduce_scatter", data.len())?;
        let part = |rank: u32| &data[rank as usize * each..(rank as usize + 1) * each];
        let mut result = part(round.rank()).to_vec();
        let mut others = zeros(each);
        for step in 1..round.size() {
            let (to, from) = (round.after(step), round.before(step));
            round.exchange("reduce_scatter", to, part(to), from, &mut others)?;
            operator.combine(&mut result, &others);
        }
        Ok(result)
    }
}

impl Round<'_> {
    fn part_length(&self, what: &'static str, length: usize) -> Result<usize> {
        let ranks = self.size() as usize;
        if length.is_multiple_of(ranks) {
            return Ok(length / ranks);
        }
        let problem = format!("{length} elements can't be shared equally by {ranks} ranks");
        Err(Error::Lengths { what, problem })
    }
}
