//! Everyone sends to the root.

use bytemuck::Pod;

use crate::collectives::{call, call_varying, zeros};
use crate::error::Result;
use crate::messages::Communicator;

impl Communicator {
    /// Gives rank `root` every rank's elements, by rank, of which each has as many; the others get `None`.
    ///
    /// ```
    /// # let job = roce_launcher::Job::init()?;
    /// # let world = job.world();
    /// let all = world.gather(0, &[world.rank(), 7])?;
    /// if let Some(all) = all {
    ///     assert_eq!(all[..2], [0, 7]);
    /// }
    /// # Ok::<(), roce_launcher::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`broadcast`](Self::broadcast).
    pub fn gather<T: Pod>(&self, root: u32, data: &[T]) -> Result<Option<Vec<T>>> {
        self.collective(call::<T>("gather", Some(root), data.len()), |round| {
            let team = round.everyone();
            if team.rank() != root {
                return team.send(root, data).map(|()| None);
            }
            let mut all = zeros(data.len() * team.size() as usize);
            let parts = all.chunks_mut(data.len().max(1));
            self.scope_in(round.context, |scope| {
                for (from, part) in (0..).zip(parts) {
                    if from == root {
                        part.copy_from_slice(data);
                    } else {
                        scope.receive_exactly(round.what, from, round.tag, part)?;
                    }
                }
                Ok(())
            })?;
            if data.is_empty() {
                // No room was asked for; their messages must not wait for ever.
                for from in (0..team.size()).filter(|from| *from != root) {
                    team.receive::<T>(from, &mut [])?;
                }
            }
            Ok(Some(all))
        })
    }

    /// The same where ranks have different numbers of elements.
    ///
    /// ```
    /// # let job = roce_launcher::Job::init()?;
    /// # let world = job.world();
    /// let mine = vec![1.0; world.rank() as usize];
    /// if let Some(all) = world.gather_varying(0, &mine)? {
    ///     assert!(all.iter().enumerate().all(|(rank, theirs)| theirs.len() == rank));
    /// }
    /// # Ok::<(), roce_launcher::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`broadcast`](Self::broadcast).
    pub fn gather_varying<T: Pod>(&self, root: u32, data: &[T]) -> Result<Option<Vec<Vec<T>>>> {
        self.collective(call_varying("gather_varying", Some(root)), |round| {
            let team = round.everyone();
            if team.rank() != root {
                return team.send(root, data).map(|()| None);
            }
            let theirs = |from: u32| if from == root { Ok(data.to_vec()) } else { team.receive_vec(from) };
            (0..team.size()).map(theirs).collect::<Result<_>>().map(Some)
        })
    }
}
