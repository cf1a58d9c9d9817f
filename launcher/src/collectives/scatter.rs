//! The root sends to everyone.

use bytemuck::Pod;

use crate::collectives::{call, call_varying};
use crate::error::{Error, Result};
use crate::messages::Communicator;

impl Communicator {
    /// Gives every rank its part of what rank `root` has: `mine` elements each, by rank. Others' `all` is not looked at.
    ///
    /// ```
    /// # let job = roce_launcher::Job::init()?;
    /// # let world = job.world();
    /// let all: Vec<u32> = (0..2 * world.size()).collect(); // only rank 0 needs it
    /// let mut mine = [0; 2];
    /// world.scatter(0, &all, &mut mine)?;
    /// assert_eq!(mine, [2 * world.rank(), 2 * world.rank() + 1]);
    /// # Ok::<(), roce_launcher::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`broadcast`](Self::broadcast).
    pub fn scatter<T: Pod>(&self, root: u32, all: &[T], mine: &mut [T]) -> Result<()> {
        self.collective(call::<T>("scatter", Some(root), mine.len()), |round| {
            let team = round.everyone();
            if team.rank() != root {
                return team.receive(root, mine);
            }
            let (ranks, each) = (team.size() as usize, mine.len());
            if all.len() != ranks * each {
                let problem =
                    format!("rank {root} gave {} elements for {ranks} ranks of {each} each", all.len());
                return Err(Error::Lengths { what: round.what, problem });
            }
            let part = |rank: u32| &all[rank as usize * each..(rank as usize + 1) * each];
            mine.copy_from_slice(part(root));
            self.scope_in(round.context, |scope| {
                let others = (0..team.size()).filter(|rank| *rank != root);
                others.into_iter().try_for_each(|rank| scope.send(rank, round.tag, part(rank)))
            })
        })
    }

    /// The same where ranks get different numbers of elements: `all` has one slice for each rank.
    ///
    /// # Errors
    /// As [`scatter`](Self::scatter).
    pub fn scatter_varying<T: Pod>(&self, root: u32, all: &[Vec<T>]) -> Result<Vec<T>> {
        self.collective(call_varying("scatter_varying", Some(root)), |round| {
            let team = round.everyone();
            if team.rank() != root {
                return team.receive_vec(root);
            }
            if all.len() != team.size() as usize {
                let problem = format!("rank {root} gave {} parts for {} ranks", all.len(), team.size());
                return Err(Error::Lengths { what: round.what, problem });
            }
            self.scope_in(round.context, |scope| {
                let others = (0..).zip(all).filter(|(rank, _)| *rank != root);
                others.into_iter().try_for_each(|(rank, part)| scope.send(rank, round.tag, part))
            })?;
            Ok(all[root as usize].clone())
        })
    }
}
