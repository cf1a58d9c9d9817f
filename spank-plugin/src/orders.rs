//! What many tasks of a node are to do alike: worked out once, in slurmstepd, and read by each of them.
//!
//! Where tasks share CPUs they also wait for each other, and what a task computes after the fork costs it pages
//! besides: of code, of the heap, of the stack. docs/decisions/008-plan-once-per-node.md
//!
//! As with the table of tasks, slurmstepd writes here and never reads.

use std::io;
use std::sync::atomic::{AtomicU32, Ordering};

use roce_plan::{Change, MemoryPolicy};
use roce_types::CpuSet;

use crate::os::SharedWords;

/// From so many tasks on it is worth it. With fewer, as where each task has CPUs of its own, the tasks do it side by
/// side, sooner than slurmstepd would do it for one after the other.
pub(crate) const ALIKE: usize = 8;

/// Room for one text, in words; they have about 2 KiB.
const TEXT_WORDS: usize = 4096;

/// What a task does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Order {
    /// The CPUs that Slurm has bound it to.
    pub(crate) own: CpuSet,
    /// Those that the plan wants for it.
    pub(crate) cpus: CpuSet,
    /// Where its memory comes from.
    pub(crate) memory: MemoryPolicy,
    /// What changes in its environment.
    pub(crate) edits: Vec<Change>,
}

/// The place of an order's text.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Text(u32);

/// Shared by every process forked after [`Orders::new`]: for each task the place of its text, and the texts.
#[derive(Debug)]
pub(crate) struct Orders {
    words: SharedWords,
    tasks: usize,
    /// Where the next text goes. slurmstepd's.
    next: usize,
}

impl Orders {
    /// Room for that many tasks; nothing for so few that no order is given.
    pub(crate) fn new(tasks: u32) -> io::Result<Option<Self>> {
        let tasks = tasks as usize;
        if tasks < ALIKE {
            return Ok(None);
        }
        let words = (tasks / ALIKE).checked_mul(TEXT_WORDS).and_then(|texts| texts.checked_add(tasks));
        let words = SharedWords::new(words.ok_or(io::ErrorKind::InvalidInput)?)?;
        Ok(Some(Self { words, tasks, next: tasks }))
    }

    /// Writes an order down, for tasks to be given. `None` without room for it: the tasks do without.
    pub(crate) fn write(&mut self, order: &Order) -> Option<Text> {
        let text = encode(order)?;
        let needed = 1 + text.len().div_ceil(4);
        let place = self.words.get(self.next..self.next + needed)?;
        let (at, length) = (u32::try_from(self.next).ok()?, u32::try_from(text.len()).ok()?);
        place[0].store(length, Ordering::Relaxed);
        for (word, bytes) in place[1..].iter().zip(text.as_bytes().chunks(4)) {
            let mut whole = [0; 4];
            whole[..bytes.len()].copy_from_slice(bytes);
            word.store(u32::from_ne_bytes(whole), Ordering::Relaxed);
        }
        self.next += needed;
        Some(Text(at))
    }

    /// Gives a task an order. A task beyond the table is ignored.
    pub(crate) fn give(&self, task: u32, text: Text) {
        if let Some(word) = self.words[..self.tasks].get(task as usize) {
            // Release: who sees the place sees the text.
            word.store(text.0, Ordering::Release);
        }
    }

    /// A task's order, if it was given one.
    pub(crate) fn of(&self, task: u32) -> Option<Order> {
        let at = self.words[..self.tasks].get(task as usize)?.load(Ordering::Acquire) as usize;
        let (length, words) = self.words.get(at..)?.split_first().filter(|_| at >= self.tasks)?;
        let length = length.load(Ordering::Relaxed) as usize;
        let bytes = |word: &AtomicU32| word.load(Ordering::Relaxed).to_ne_bytes();
        let mut text: Vec<u8> = words.get(..length.div_ceil(4))?.iter().flat_map(bytes).collect();
        text.truncate(length);
        decode(std::str::from_utf8(&text).ok()?)
    }
}

/// The CPUs, the memory policy and the variables, each ended by a zero byte, which none of them contains.
fn encode(order: &Order) -> Option<String> {
    let memory = match &order.memory {
        MemoryPolicy::Keep => String::new(),
        MemoryPolicy::Prefer(node) => format!("prefer {node}"),
        MemoryPolicy::Bind(nodes) => nodes.iter().map(u32::to_string).collect::<Vec<_>>().join(" "),
    };
    let edit = |(name, value): &Change| match value {
        Some(value) => format!("{name}={value}"),
        None => name.clone(),
    };
    let head = [order.own.to_string(), order.cpus.to_string(), memory];
    let fields: Vec<String> = head.into_iter().chain(order.edits.iter().map(edit)).collect();
    (!fields.iter().any(|field| field.contains('\0'))).then(|| fields.join("\0"))
}

fn decode(text: &str) -> Option<Order> {
    let mut fields = text.split('\0');
    let (own, cpus) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
    let memory = fields.next()?;
    let memory = match memory.strip_prefix("prefer ") {
        Some(node) => MemoryPolicy::Prefer(node.parse().ok()?),
        None if memory.is_empty() => MemoryPolicy::Keep,
        None => MemoryPolicy::Bind(memory.split(' ').map(|node| node.parse().ok()).collect::<Option<_>>()?),
    };
    let edit = |field: &str| match field.split_once('=') {
        Some((name, value)) => (name.to_owned(), Some(value.to_owned())),
        None => (field.to_owned(), None),
    };
    Some(Order { own, cpus, memory, edits: fields.map(edit).collect() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order(memory: MemoryPolicy) -> Order {
        let edits = vec![
            ("A".to_owned(), Some("x=1,2".to_owned())),
            ("B".to_owned(), None),
            ("C".to_owned(), Some(String::new())),
        ];
        Order { own: "0-3,8".parse().unwrap(), cpus: "0-3".parse().unwrap(), memory, edits }
    }

    #[test]
    fn each_task_reads_the_order_that_it_was_given() {
        let mut orders = Orders::new(16).unwrap().unwrap();
        let near = order(MemoryPolicy::Prefer(1));
        let bound = Order { cpus: CpuSet::new(), ..order(MemoryPolicy::Bind(vec![0, 12])) };
        let text = orders.write(&near).unwrap();
        [0, 15, 16, u32::MAX].into_iter().for_each(|task| orders.give(task, text));
        let text = orders.write(&bound).unwrap();
        orders.give(2, text);
        assert_eq!(orders.of(0), Some(near.clone()));
        assert_eq!(orders.of(15), Some(near));
        assert_eq!(orders.of(2), Some(bound));
        for task in [1, 16, u32::MAX] {
            assert_eq!(orders.of(task), None, "{task}");
        }
    }

    #[test]
    fn nothing_to_do_is_an_order_too() {
        let mut orders = Orders::new(8).unwrap().unwrap();
        let nothing = Order { edits: Vec::new(), ..order(MemoryPolicy::Keep) };
        let text = orders.write(&nothing).unwrap();
        orders.give(3, text);
        assert_eq!(orders.of(3), Some(nothing));
    }

    #[test]
    fn what_has_no_room_is_not_written() {
        let mut orders = Orders::new(8).unwrap().unwrap();
        let edits = vec![("A".to_owned(), Some("7".repeat(TEXT_WORDS * 4)))];
        let long = Order { edits, ..order(MemoryPolicy::Keep) };
        assert!(orders.write(&long).is_none());
        assert!(Orders::new(7).unwrap().is_none());
    }
}
