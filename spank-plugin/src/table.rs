//! The CPU masks of a step's tasks on this node, shared between slurmstepd and the tasks it forks.
//!
//! slurmstepd writes a row per task after the fork; the tasks wait until all rows are written, then each
//! reads all of them and makes the same plan.

use std::io;
use std::sync::atomic::Ordering;

use roce_types::CpuSet;

use crate::os::{MASK_WORDS, SharedWords};

/// A row: its state, then the mask.
const ROW_WORDS: usize = 1 + MASK_WORDS;

/// States of a row: nothing yet, a mask, or (with the error number above it) no mask.
const EMPTY: u64 = 0;
const READY: u64 = 1;
const FAILED: u64 = 2;

/// A row per local task, in memory that is shared with every task forked after [`TaskTable::new`].
#[derive(Debug)]
pub(crate) struct TaskTable {
    words: SharedWords,
    tasks: u32,
}

/// A row that can't be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RowError {
    #[error("the CPU mask of local task {0} was not recorded before the tasks started")]
    Empty(u32),
    #[error("can't read the CPU mask of local task {0}: {1}")]
    Unreadable(u32, io::Error),
}

impl TaskTable {
    /// A table for that many tasks, all rows empty.
    pub(crate) fn new(tasks: u32) -> io::Result<Self> {
        Ok(Self { words: SharedWords::new(tasks as usize * ROW_WORDS)?, tasks })
    }

    pub(crate) fn tasks(&self) -> u32 {
        self.tasks
    }

    /// Writes a task's row; a number beyond the table is ignored, for no row would be read for it.
    pub(crate) fn record(&self, task: u32, mask: io::Result<CpuSet>) {
        let start = task as usize * ROW_WORDS;
        let Some(row) = self.words.get(start..start + ROW_WORDS) else { return };
        let state = match mask {
            Ok(mask) => {
                for (slot, word) in row[1..].iter().zip(mask.words()) {
                    slot.store(*word, Ordering::Relaxed);
                }
                READY
            }
            Err(error) => FAILED | u64::from(error.raw_os_error().unwrap_or(0).unsigned_abs()) << 32,
        };
        // Release: whoever sees the state sees the mask.
        row[0].store(state, Ordering::Release);
    }

    /// The mask that was recorded for a task.
    pub(crate) fn mask(&self, task: u32) -> Result<CpuSet, RowError> {
        let start = task as usize * ROW_WORDS;
        let row = self.words.get(start..start + ROW_WORDS).ok_or(RowError::Empty(task))?;
        match row[0].load(Ordering::Acquire) {
            EMPTY => Err(RowError::Empty(task)),
            READY => {
                let words: Vec<u64> = row[1..].iter().map(|word| word.load(Ordering::Relaxed)).collect();
                Ok(CpuSet::from_words(&words))
            }
            failed => {
                let number = i32::try_from(failed >> 32).unwrap_or(0);
                Err(RowError::Unreadable(task, io::Error::from_raw_os_error(number)))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_gives_back_what_was_recorded() {
        let table = TaskTable::new(3).unwrap();
        let mask: CpuSet = "0-3,64,8191".parse().unwrap();
        table.record(1, Ok(mask.clone()));
        table.record(2, Err(io::Error::from_raw_os_error(libc::ESRCH)));
        table.record(3, Ok(mask.clone()));
        assert!(matches!(table.mask(0), Err(RowError::Empty(0))));
        assert_eq!(table.mask(1).unwrap(), mask);
        let error = table.mask(2).unwrap_err().to_string();
        assert!(error.starts_with("can't read the CPU mask of local task 2: No such process"), "{error}");
        assert!(matches!(table.mask(3), Err(RowError::Empty(3))));
    }
}
