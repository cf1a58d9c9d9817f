//! Bytes in and out of memory that others change at the same time.
//!
//! The memory is words of eight bytes, and every access to it, of whichever process, is an atomic access to a whole word. So two
//! accesses never have different sizes, which Rust's rules for atomics would forbid, and an element that lies within one word is
//! never seen half changed. Bytes that are less than a word are changed by compare-and-swap, so that neighbours stay as they are.
//! On today's processors such a load or store costs what a plain one does.

use std::sync::atomic::{AtomicU64, Ordering, fence};

const WORD: usize = size_of::<u64>();

/// How many words so many bytes need.
pub(super) const fn count(bytes: usize) -> usize {
    bytes.div_ceil(WORD)
}

/// Copies bytes out, from byte `at` on; they must be within the words. What the rank that wrote the last of them wrote before is
/// seen by what follows.
pub(super) fn read(words: &[AtomicU64], at: usize, into: &mut [u8]) {
    let (mut word, skip) = (at / WORD, at % WORD);
    let mut into = into;
    if skip > 0 && !into.is_empty() {
        let (head, rest) = into.split_at_mut(into.len().min(WORD - skip));
        head.copy_from_slice(&load(&words[word])[skip..skip + head.len()]);
        (word, into) = (word + 1, rest);
    }
    let mut whole = into.chunks_exact_mut(WORD);
    let end = word + whole.len();
    for (bytes, word) in whole.by_ref().zip(&words[word.min(end)..end]) {
        bytes.copy_from_slice(&load(word));
    }
    let tail = whole.into_remainder();
    if !tail.is_empty() {
        tail.copy_from_slice(&load(&words[end])[..tail.len()]);
    }
    fence(Ordering::Acquire);
}

/// Copies bytes in, to byte `at` and on; they must be within the words. Who sees one of them sees what was written before.
pub(super) fn write(words: &[AtomicU64], at: usize, from: &[u8]) {
    fence(Ordering::Release);
    let (mut word, skip) = (at / WORD, at % WORD);
    let mut from = from;
    if skip > 0 && !from.is_empty() {
        let (head, rest) = from.split_at(from.len().min(WORD - skip));
        change(&words[word], skip, head);
        (word, from) = (word + 1, rest);
    }
    let whole = from.chunks_exact(WORD);
    let (end, tail) = (word + whole.len(), whole.remainder());
    for (bytes, word) in whole.zip(&words[word..end]) {
        let mut value = [0; WORD];
        value.copy_from_slice(bytes);
        word.store(u64::from_ne_bytes(value), Ordering::Relaxed);
    }
    if !tail.is_empty() {
        change(&words[end], 0, tail);
    }
}

/// Adds numbers of eight bytes, each atomically, to the words from byte `at` on, which must be a word's first.
pub(super) fn add(words: &[AtomicU64], at: usize, numbers: &[u8]) {
    for (number, word) in numbers.chunks_exact(WORD).zip(&words[at / WORD..]) {
        let mut value = [0; WORD];
        value.copy_from_slice(number);
        word.fetch_add(u64::from_ne_bytes(value), Ordering::AcqRel);
    }
}

/// A change of one word that gives what was there before.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Change {
    /// Adds, around the end.
    Add(u64),
    /// Sets.
    Swap(u64),
    /// Sets to `new` if `expected` is there.
    CompareSwap { expected: u64, new: u64 },
}

/// Changes the word at byte `at`, which must be its first.
pub(super) fn apply(words: &[AtomicU64], at: usize, change: Change) -> u64 {
    let word = &words[at / WORD];
    match change {
        Change::Add(number) => word.fetch_add(number, Ordering::AcqRel),
        Change::Swap(new) => word.swap(new, Ordering::AcqRel),
        Change::CompareSwap { expected, new } => {
            match word.compare_exchange(expected, new, Ordering::AcqRel, Ordering::Acquire) {
                Ok(old) | Err(old) => old,
            }
        }
    }
}

fn load(word: &AtomicU64) -> [u8; WORD] {
    word.load(Ordering::Relaxed).to_ne_bytes()
}

/// Sets some bytes of a word and leaves the others.
fn change(word: &AtomicU64, skip: usize, bytes: &[u8]) {
    let mut old = word.load(Ordering::Relaxed);
    loop {
        let mut new = old.to_ne_bytes();
        new[skip..skip + bytes.len()].copy_from_slice(bytes);
        match word.compare_exchange_weak(old, u64::from_ne_bytes(new), Ordering::Relaxed, Ordering::Relaxed) {
            Ok(_) => return,
            Err(now) => old = now,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use proptest::prelude::*;

    use super::*;

    fn words(count: usize) -> Vec<AtomicU64> {
        (0..count).map(|_| AtomicU64::new(0)).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(if cfg!(miri) { 20 } else { 500 }))]

        #[test]
        fn bytes_go_where_they_would_in_an_array(
            writes in proptest::collection::vec((0usize..60, proptest::collection::vec(any::<u8>(), 0..40)), 0..10),
            at in 0usize..60,
            length in 0usize..40,
        ) {
            let (words, mut model) = (words(13), [0_u8; 13 * WORD]);
            for (at, bytes) in &writes {
                write(&words, *at, bytes);
                model[*at..at + bytes.len()].copy_from_slice(bytes);
            }
            let mut got = vec![0xee; length];
            read(&words, at, &mut got);
            prop_assert_eq!(&got, &model[at..at + length]);
            let mut all = [0; 13 * WORD];
            read(&words, 0, &mut all);
            prop_assert_eq!(all, model);
        }
    }

    #[test]
    fn the_end_of_the_words_can_be_reached() {
        let words = words(2);
        write(&words, 16, &[]);
        read(&words, 16, &mut []);
        write(&words, 13, &[1, 2, 3]);
        let mut got = [0; 3];
        read(&words, 13, &mut got);
        assert_eq!(got, [1, 2, 3]);
    }

    /// Each thread changes bytes of its own in the same words; none loses any.
    #[test]
    fn neighbours_do_not_lose_each_others_bytes() {
        let words = words(4);
        let rounds = if cfg!(miri) { 20 } else { 5000 };
        thread::scope(|scope| {
            for own in 0..4_u8 {
                let words = &words;
                scope.spawn(move || {
                    for round in 0..rounds {
                        let (value, mut got) = ([own, round as u8, own, own + 1, 77], [0; 5]);
                        let at = 3 + usize::from(own) * 5;
                        write(words, at, &value);
                        read(words, at, &mut got);
                        assert_eq!(got, value);
                    }
                });
            }
        });
    }

    #[test]
    fn changes_give_what_was_there() {
        let words = words(2);
        assert_eq!(apply(&words, 8, Change::Add(5)), 0);
        assert_eq!(apply(&words, 8, Change::Swap(u64::MAX)), 5);
        assert_eq!(apply(&words, 8, Change::Add(3)), u64::MAX);
        assert_eq!(apply(&words, 8, Change::CompareSwap { expected: 9, new: 1 }), 2);
        assert_eq!(apply(&words, 8, Change::CompareSwap { expected: 2, new: 1 }), 2);
        add(&words, 0, bytemuck::cast_slice(&[10_u64, 20]));
        assert_eq!((words[0].load(Ordering::Relaxed), words[1].load(Ordering::Relaxed)), (10, 21));
    }
}
