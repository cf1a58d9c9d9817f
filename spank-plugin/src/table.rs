//! What slurmstepd and the tasks that it forks share: the NICs of each task, and, where the tasks settle
//! these among themselves, what each of them knows about itself.
//!
//! Tasks run as the user. slurmstepd, which is root, writes to the table and never reads it.

use std::io;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use roce_types::CpuSet;

use crate::os::{SharedWords, wait_while, wake_all};

/// The first two words: how far the assignment is, and how many tasks have joined.
const STAGE: usize = 0;
const JOINED: usize = 1;
const HEADER_WORDS: usize = 2;

/// Stages of the assignment. Each follows the one before, once.
const OPEN: u32 = 0;
const CLAIMED: u32 = 1;
const SETTLED: u32 = 2;

/// A task's row: its state, its GPUs (1,024, more than any node has), its CPUs (8,192, the most that Linux
/// can be built for).
const GPU_WORDS: usize = 32;
const CPU_WORDS: usize = 256;
const ROW_WORDS: usize = 1 + GPU_WORDS + CPU_WORDS;

/// A row that may be read.
const READY: u32 = 1;

/// Shared by every process forked after [`TaskTable::new`].
#[derive(Debug)]
pub(crate) struct TaskTable {
    words: SharedWords,
    tasks: usize,
    nics_per_task: usize,
}

/// What a task knows about itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Row {
    pub(crate) local_rank: u32,
    pub(crate) cpus: CpuSet,
    /// Positions in the node's list.
    pub(crate) gpus: Vec<usize>,
}

/// What stands at the end of a wait for the assignment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Waited {
    Settled,
    /// Nobody has claimed it, and the time is over.
    Open,
    /// Somebody has claimed it and not finished, and the time is over.
    Claimed,
}

impl TaskTable {
    /// A table for that many tasks, with that many NICs each; `joining` if tasks will [`join`](Self::join).
    pub(crate) fn new(tasks: u32, nics_per_task: usize, joining: bool) -> io::Result<Self> {
        let tasks = tasks as usize;
        let row = nics_per_task + if joining { ROW_WORDS } else { 0 };
        let words = row.checked_mul(tasks).and_then(|words| words.checked_add(HEADER_WORDS));
        let words = SharedWords::new(words.ok_or(io::ErrorKind::InvalidInput)?)?;
        Ok(Self { words, tasks, nics_per_task })
    }

    pub(crate) fn tasks(&self) -> usize {
        self.tasks
    }

    /// Writes the NICs of these tasks, as positions in a list that all processes have alike, and wakes who
    /// waits for them. A task beyond the table is ignored.
    pub(crate) fn settle<'a>(&self, assigned: impl Iterator<Item = (u32, &'a [usize])>) {
        for (task, nics) in assigned {
            for (slot, nic) in self.nics_of(task).iter().zip(nics) {
                // 0 stands for none.
                slot.store(u32::try_from(nic + 1).unwrap_or(0), Ordering::Relaxed);
            }
        }
        // Release: whoever sees the stage sees the NICs.
        self.words[STAGE].store(SETTLED, Ordering::Release);
        wake_all(&self.words[STAGE]);
    }

    pub(crate) fn is_settled(&self) -> bool {
        self.words[STAGE].load(Ordering::Acquire) == SETTLED
    }

    /// The NICs of a task, below `nics`; `None` if it was given none.
    pub(crate) fn assigned(&self, task: u32, nics: usize) -> Option<Vec<usize>> {
        let slots = self.nics_of(task).iter();
        let nic = |slot: &AtomicU32| (slot.load(Ordering::Relaxed) as usize).checked_sub(1);
        let own: Option<Vec<usize>> = slots.map(|slot| nic(slot).filter(|&nic| nic < nics)).collect();
        own.filter(|own| !own.is_empty())
    }

    /// Writes a task's row. Are all there now?
    pub(crate) fn join(&self, row: &Row) -> bool {
        let Some((state, gpus, cpus)) = self.row(row.local_rank) else { return false };
        for &gpu in &row.gpus {
            if let Some(word) = gpus.get(gpu / 32) {
                word.fetch_or(1 << (gpu % 32), Ordering::Relaxed);
            }
        }
        for (pair, word) in cpus.chunks_exact(2).zip(row.cpus.words()) {
            for (half, slot) in [word & u64::from(u32::MAX), word >> 32].into_iter().zip(pair) {
                slot.store(u32::try_from(half).unwrap_or_default(), Ordering::Relaxed);
            }
        }
        state.store(READY, Ordering::Release);
        self.words[JOINED].fetch_add(1, Ordering::AcqRel) as usize + 1 == self.tasks
    }

    /// The rows of all tasks that have joined, by local rank.
    pub(crate) fn rows(&self) -> Vec<Row> {
        (0..).take(self.tasks).filter_map(|local_rank| self.joined(local_rank)).collect()
    }

    fn joined(&self, local_rank: u32) -> Option<Row> {
        let (state, gpus, cpus) = self.row(local_rank)?;
        if state.load(Ordering::Acquire) != READY {
            return None;
        }
        let has = |gpu: usize| gpus[gpu / 32].load(Ordering::Relaxed) >> (gpu % 32) & 1 == 1;
        let word = |pair: &[AtomicU32]| {
            pair.iter().rev().fold(0, |all, half| all << 32 | u64::from(half.load(Ordering::Relaxed)))
        };
        let cpus: Vec<u64> = cpus.chunks_exact(2).map(word).collect();
        let gpus = (0..GPU_WORDS * 32).filter(|&gpu| has(gpu)).collect();
        Some(Row { local_rank, cpus: CpuSet::from_words(&cpus), gpus })
    }

    /// Takes on to settle the assignment. Only one process ever succeeds.
    pub(crate) fn claim(&self) -> bool {
        self.words[STAGE].compare_exchange(OPEN, CLAIMED, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    /// Waits until the assignment is settled, for at most so long.
    pub(crate) fn wait(&self, at_most: Duration) -> Waited {
        let deadline = Instant::now() + at_most;
        loop {
            let stage = self.words[STAGE].load(Ordering::Acquire);
            let left = deadline.saturating_duration_since(Instant::now());
            match stage {
                OPEN if left.is_zero() => return Waited::Open,
                CLAIMED if left.is_zero() => return Waited::Claimed,
                OPEN | CLAIMED => wait_while(&self.words[STAGE], stage, left),
                _ => return Waited::Settled,
            }
        }
    }

    fn nics_of(&self, task: u32) -> &[AtomicU32] {
        let start = HEADER_WORDS + (task as usize).min(self.tasks) * self.nics_per_task;
        let end = HEADER_WORDS + (task as usize + 1).min(self.tasks) * self.nics_per_task;
        &self.words[start..end]
    }

    /// State, GPUs and CPUs of a task; `None` beyond the table.
    fn row(&self, task: u32) -> Option<(&AtomicU32, &[AtomicU32], &[AtomicU32])> {
        let task = Some(task as usize).filter(|&task| task < self.tasks)?;
        let start = HEADER_WORDS + self.tasks * self.nics_per_task + task * ROW_WORDS;
        let (state, rest) = self.words.get(start..start + ROW_WORDS)?.split_first()?;
        let (gpus, cpus) = rest.split_at(GPU_WORDS);
        Some((state, gpus, cpus))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(local_rank: u32) -> Row {
        Row { local_rank, cpus: "0-3,31-32,64,8191".parse().unwrap(), gpus: vec![0, 31, 32, 1023] }
    }

    #[test]
    fn a_row_gives_back_what_was_written() {
        let table = TaskTable::new(2, 1, true).unwrap();
        assert!(!table.join(&row(1)));
        assert_eq!(table.rows(), [row(1)]);
        assert!(!table.join(&row(2)), "no such task");
        assert!(table.join(&row(0)), "the last one");
        assert_eq!(table.rows(), [row(0), row(1)]);
    }

    #[test]
    fn the_assignment_is_claimed_once_and_seen_when_it_is_settled() {
        let table = TaskTable::new(3, 2, false).unwrap();
        assert_eq!(table.wait(Duration::ZERO), Waited::Open);
        assert!(table.claim() && !table.claim());
        assert_eq!(table.wait(Duration::from_millis(1)), Waited::Claimed);
        assert!(!table.is_settled());
        table.settle([(0, [3, 0].as_slice()), (2, &[1, 9]), (3, &[5, 5])].into_iter());
        assert!(table.is_settled() && !table.claim());
        assert_eq!(table.wait(Duration::ZERO), Waited::Settled);
        assert_eq!(table.assigned(0, 4), Some(vec![3, 0]));
        assert_eq!(table.assigned(1, 4), None, "it was given none");
        assert_eq!(table.assigned(2, 4), None, "9 is no NIC");
        assert_eq!(table.assigned(3, 4), None, "no such task");
    }

    #[test]
    fn who_waits_is_woken() {
        let table = TaskTable::new(1, 1, false).unwrap();
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| table.wait(Duration::from_secs(30)));
            std::thread::sleep(Duration::from_millis(20));
            table.settle([(0, [0].as_slice())].into_iter());
            assert_eq!(waiting.join().unwrap(), Waited::Settled);
        });
    }

    #[test]
    fn a_table_of_impossible_size_is_an_error() {
        assert!(TaskTable::new(u32::MAX, usize::MAX / 2, true).is_err());
    }
}
