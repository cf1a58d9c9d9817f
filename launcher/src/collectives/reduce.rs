//! Within a node through memory. Between nodes a binomial tree in their order: each combines what those behind it have, and hands
//! it to the front.

use bytemuck::Pod;

use crate::collectives::choose::Collective;
use crate::collectives::node::Way;
use crate::collectives::round::Team;
use crate::collectives::{Operator, call, zeros};
use crate::error::Result;
use crate::messages::Communicator;

impl Communicator {
    /// Combines all ranks' elements, place by place; rank `root` gets the result, the others `None`.
    ///
    /// ```
    /// use roce_launcher::Sum;
    /// # let job = roce_launcher::Job::init()?;
    /// # let world = job.world();
    /// let total = world.reduce(0, &[1_u64, 10], Sum)?;
    /// if world.rank() == 0 {
    ///     let ranks = u64::from(world.size());
    ///     assert_eq!(total, Some(vec![ranks, 10 * ranks]));
    /// }
    /// # Ok::<(), roce_launcher::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`broadcast`](Self::broadcast).
    #[expect(clippy::needless_pass_by_value, reason = "operators have no size, and read better so")]
    pub fn reduce<T: Pod>(
        &self,
        root: u32,
        data: &[T],
        operator: impl Operator<T>,
    ) -> Result<Option<Vec<T>>> {
        let mut result = data.to_vec();
        self.collective(call::<T>("reduce", Some(root), data.len()), |round| {
            let choice = self.nodes.choose::<T>(Collective::Reduce, data.len());
            if choice.shared_memory {
                let local = self.nodes.enter(round)?;
                let speaks = local.speaker(Some(root)) == local.place();
                if local.is_little(size_of_val(data)) {
                    local.post(Way::Up, data)?;
                    if speaks {
                        local.fold(&mut result, &operator)?;
                    }
                } else {
                    local.fold_slices(&mut result, &operator, speaks)?;
                }
                if speaks && choice.messages.is_some() {
                    let (speakers, root) = local.speakers(Some(root));
                    by_messages(&speakers, root, &mut result, &operator)?;
                }
            } else {
                by_messages(&round.everyone(), root, &mut result, &operator)?;
            }
            Ok(())
        })?;
        Ok((self.rank() == root).then_some(result))
    }
}

fn by_messages<T: Pod>(
    team: &Team<'_>,
    root: u32,
    data: &mut [T],
    operator: &impl Operator<T>,
) -> Result<()> {
    let rank = team.rank();
    let mut others = zeros(data.len());
    let mut distance = 1;
    while distance < team.size() {
        if rank & distance != 0 {
            team.send(rank - distance, data)?;
            break;
        }
        if rank + distance < team.size() {
            team.receive(rank + distance, &mut others)?;
            operator.combine(data, &others);
        }
        distance *= 2;
    }
    // Rank 0 has it.
    match (rank, root) {
        (_, 0) => Ok(()),
        (0, root) => team.send(root, data),
        (rank, root) if rank == root => team.receive(0, data),
        _ => Ok(()),
    }
}
