//! The tasks of a node settle their NICs among themselves: where what a task needs is known inside it only.
//! docs/decisions/008-plan-once-per-node.md

use std::time::Duration;

use crate::table::{Row, TaskTable, Waited};

/// How long a task waits for the others to say what they need, and then for the one that plans.
pub(crate) const PATIENCE: Duration = Duration::from_secs(2);

/// A task's NICs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Settled {
    pub(crate) nics: Vec<usize>,
    /// What went on without somebody.
    pub(crate) warning: Option<String>,
}

/// Joins the others and gives this task's NICs, below `nics`. One of the tasks assigns for all: the last to
/// join, or, when one is missing for too long, the first to lose patience. Who comes later is assigned by
/// itself.
///
/// # Errors
/// If the one that assigns doesn't finish.
pub(crate) fn settle(
    table: &TaskTable,
    own: &Row,
    nics: usize,
    patience: Duration,
    assign: impl Fn(&[Row]) -> Vec<Vec<usize>>,
) -> Result<Settled, String> {
    let mut missing = 0;
    let assign_all = || {
        let rows = table.rows();
        let assigned = assign(&rows);
        let assigned = rows.iter().map(|row| row.local_rank).zip(assigned.iter().map(Vec::as_slice));
        table.settle(assigned);
        table.tasks() - rows.len()
    };
    if table.join(own) && table.claim() {
        assign_all();
    }
    if table.wait(patience) == Waited::Open && table.claim() {
        missing = assign_all();
    }
    let seconds = patience.as_secs();
    if table.wait(patience) != Waited::Settled {
        return Err(format!("the task that plans for this node has not finished in {seconds} s"));
    }
    let warning = (missing > 0).then(|| {
        format!("planned without {missing} of the {} tasks: not there in {seconds} s", table.tasks())
    });
    if let Some(nics) = table.assigned(own.local_rank, nics) {
        return Ok(Settled { nics, warning });
    }
    let alone = assign(std::slice::from_ref(own)).pop().filter(|nics| !nics.is_empty());
    let nics = alone.ok_or_else(|| format!("the plan has no local task {}", own.local_rank))?;
    let warning =
        format!("planned by itself: the other tasks of this node did not wait more than {seconds} s");
    Ok(Settled { nics, warning: Some(warning) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(local_rank: u32) -> Row {
        Row { local_rank, cpus: [local_rank as usize].into_iter().collect(), gpus: Vec::new() }
    }

    /// Task i of those that are there gets NIC i.
    fn in_turn(rows: &[Row]) -> Vec<Vec<usize>> {
        (0..rows.len()).map(|nic| vec![nic]).collect()
    }

    fn settle_all(table: &TaskTable, ranks: &[u32]) -> Vec<Settled> {
        let one = |rank: u32| settle(table, &row(rank), 9, Duration::from_millis(300), in_turn).unwrap();
        std::thread::scope(|scope| {
            let tasks: Vec<_> = ranks.iter().map(|&rank| scope.spawn(move || one(rank))).collect();
            tasks.into_iter().map(|task| task.join().unwrap()).collect()
        })
    }

    #[test]
    fn all_tasks_take_their_nics_from_one_assignment() {
        let table = TaskTable::new(4, 1, true).unwrap();
        let expected: Vec<_> = (0..4).map(|nic| Settled { nics: vec![nic], warning: None }).collect();
        assert_eq!(settle_all(&table, &[0, 1, 2, 3]), expected);
    }

    #[test]
    fn a_missing_task_is_planned_without_and_one_of_the_others_says_so() {
        let table = TaskTable::new(3, 1, true).unwrap();
        let settled = settle_all(&table, &[0, 2]);
        assert_eq!(settled.iter().map(|task| task.nics[0]).collect::<Vec<_>>(), [0, 1]);
        let warnings: Vec<_> = settled.iter().filter_map(|task| task.warning.as_deref()).collect();
        assert_eq!(warnings, ["planned without 1 of the 3 tasks: not there in 0 s"]);
        let late = settle_all(&table, &[1]).pop().unwrap();
        assert_eq!(late.nics, [0]);
        assert!(late.warning.unwrap().starts_with("planned by itself"));
    }

    #[test]
    fn a_planner_that_dies_is_not_waited_for_without_end() {
        let table = TaskTable::new(2, 1, true).unwrap();
        assert!(table.claim());
        let settled = settle(&table, &row(0), 9, Duration::from_millis(20), in_turn);
        assert_eq!(settled.unwrap_err(), "the task that plans for this node has not finished in 0 s");
    }
}
