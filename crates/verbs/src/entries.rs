//! Which registrations are kept: the most recently used ones, up to a number of them and of their bytes.
//!
//! What is in use is its user's; the entry waits for it, and its place is taken meanwhile.

use std::ops::Range;

use crate::registration::Access;

/// How many are kept.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Most {
    pub(crate) entries: usize,
    pub(crate) bytes: usize,
}

#[derive(Debug)]
struct Entry<T> {
    number: u64,
    pages: Range<usize>,
    access: Access,
    /// `None` while it is in use.
    kept: Option<T>,
}

#[derive(Debug)]
pub(crate) struct Entries<T> {
    most: Most,
    /// The one that was used last is the last.
    all: Vec<Entry<T>>,
    bytes: usize,
    made: u64,
}

/// What is kept no more: its pages, and itself if it was not in use.
pub(crate) type Removed<T> = (Range<usize>, Option<T>);

impl<T> Entries<T> {
    pub(crate) fn new(most: Most) -> Self {
        Self { most, all: Vec::new(), bytes: 0, made: 0 }
    }

    /// One that covers these pages and is not in use, with its number. It is in use from here on.
    pub(crate) fn take(&mut self, pages: &Range<usize>, access: Access) -> Option<(u64, T)> {
        let covers = |entry: &Entry<T>| {
            entry.kept.is_some()
                && entry.access == access
                && entry.pages.start <= pages.start
                && pages.end <= entry.pages.end
        };
        let place = self.all.iter().rposition(covers)?;
        let mut entry = self.all.remove(place);
        let (number, kept) = (entry.number, entry.kept.take());
        self.all.push(entry);
        Some((number, kept?))
    }

    /// Whether there may be one more of so many bytes, and what has to go for it.
    pub(crate) fn make_room(&mut self, bytes: usize) -> (bool, Vec<Removed<T>>) {
        let mut removed = Vec::new();
        if bytes > self.most.bytes || self.most.entries == 0 {
            return (false, removed);
        }
        while self.bytes + bytes > self.most.bytes || self.all.len() >= self.most.entries {
            let Some(eldest) = self.all.iter().position(|entry| entry.kept.is_some()) else {
                return (false, removed);
            };
            removed.push(self.remove_at(eldest));
        }
        (true, removed)
    }

    /// Another one, in use from the start. Its number.
    pub(crate) fn add(&mut self, pages: Range<usize>, access: Access) -> u64 {
        self.made += 1;
        self.bytes += pages.len();
        self.all.push(Entry { number: self.made, pages, access, kept: None });
        self.made
    }

    /// One that was in use is not any more. It comes back if it is not wanted here.
    pub(crate) fn give_back(&mut self, number: u64, kept: T) -> Option<T> {
        match self.all.iter_mut().rfind(|entry| entry.number == number) {
            Some(entry) => entry.kept.replace(kept),
            None => Some(kept),
        }
    }

    pub(crate) fn remove(&mut self, number: u64) -> Option<Removed<T>> {
        let place = self.all.iter().position(|entry| entry.number == number)?;
        Some(self.remove_at(place))
    }

    /// Removes all that have to do with these pages. What of them is in use is wanted no more when it comes back.
    pub(crate) fn change(&mut self, pages: &Range<usize>) -> Vec<Removed<T>> {
        self.remove_where(|entry| entry.pages.start < pages.end && pages.start < entry.pages.end)
    }

    /// Removes all that are not in use.
    pub(crate) fn clear(&mut self) -> Vec<Removed<T>> {
        self.remove_where(|entry| entry.kept.is_some())
    }

    fn remove_where(&mut self, is_it: impl Fn(&Entry<T>) -> bool) -> Vec<Removed<T>> {
        let mut removed = Vec::new();
        while let Some(place) = self.all.iter().position(&is_it) {
            removed.push(self.remove_at(place));
        }
        removed
    }

    fn remove_at(&mut self, place: usize) -> Removed<T> {
        let entry = self.all.remove(place);
        self.bytes -= entry.pages.len();
        (entry.pages, entry.kept)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MOST: Most = Most { entries: 4, bytes: 40 };

    #[derive(Clone, Debug)]
    enum Step {
        /// Wants memory from here on, so long, and keeps using it.
        Use(usize, usize, Access),
        /// Gives one that is in use back.
        GiveBack(usize),
        /// Ends one that is in use for good.
        End(usize),
        Change(usize, usize),
        Clear,
    }

    fn step() -> impl Strategy<Value = Step> {
        let access = prop_oneof![Just(Access::PeersRead), Just(Access::OwnWrite)];
        prop_oneof![
            6 => (0_usize..60, 1_usize..20, access).prop_map(|(start, length, access)| Step::Use(start, length, access)),
            5 => any::<usize>().prop_map(Step::GiveBack),
            1 => any::<usize>().prop_map(Step::End),
            2 => (0_usize..60, 1_usize..10).prop_map(|(start, length)| Step::Change(start, length)),
            1 => Just(Step::Clear),
        ]
    }

    /// What one may look like, and when it was last used.
    #[derive(Clone, Debug)]
    struct Model {
        pages: Range<usize>,
        access: Access,
        used: usize,
        in_use: bool,
        has_changed: bool,
    }

    proptest! {
        /// Each registration is one of these, by number: what is found is right, what has changed is never found, what goes is the eldest, and
        /// nothing that is in use goes.
        #[test]
        fn entries_are_as_the_model_says(steps in proptest::collection::vec(step(), 0..80)) {
            let mut entries: Entries<u64> = Entries::new(MOST);
            let mut model: Vec<Model> = Vec::new();
            let mut gone: Vec<u64> = Vec::new();
            let number = |which: usize, model: &[Model]| {
                let used: Vec<usize> = (0..model.len()).filter(|at| model[*at].in_use).collect();
                (!used.is_empty()).then(|| used[which % used.len()])
            };
            for (time, step) in steps.into_iter().enumerate() {
                let is_there = |at: usize, gone: &[u64]| !gone.contains(&(at as u64 + 1));
                match step {
                    Step::Use(start, length, access) => {
                        let pages = start..start + length;
                        let fits = |(at, one): &(usize, &Model)| {
                            is_there(*at, &gone) && !one.in_use && one.access == access && one.pages.start <= start && pages.end <= one.pages.end
                        };
                        let expected = model.iter().enumerate().filter(fits).max_by_key(|(_, one)| one.used).map(|(at, _)| at);
                        let found = entries.take(&pages, access);
                        prop_assert_eq!(found, expected.map(|at| (at as u64 + 1, at as u64 + 1)));
                        if let Some(at) = expected {
                            prop_assert!(!model[at].has_changed);
                            (model[at].in_use, model[at].used) = (true, time);
                            continue;
                        }
                        let (fits, removed) = entries.make_room(length);
                        for (pages, kept) in removed {
                            let kept = kept.expect("what is in use stays");
                            let one = model[kept as usize - 1].clone();
                            prop_assert!(!one.in_use && one.pages == pages);
                            let eldest = model.iter().enumerate().filter(|(at, one)| is_there(*at, &gone) && !one.in_use).map(|(_, one)| one.used).min();
                            prop_assert_eq!(Some(one.used), eldest);
                            gone.push(kept);
                        }
                        let left: Vec<&Model> = model.iter().enumerate().filter(|(at, _)| is_there(*at, &gone)).map(|(_, one)| one).collect();
                        let bytes: usize = left.iter().map(|one| one.pages.len()).sum();
                        let has_room = left.len() < MOST.entries && bytes + length <= MOST.bytes;
                        prop_assert_eq!(fits, has_room);
                        if fits {
                            prop_assert_eq!(entries.add(pages.clone(), access), model.len() as u64 + 1);
                            model.push(Model { pages, access, used: time, in_use: true, has_changed: false });
                        }
                    }
                    Step::GiveBack(which) => if let Some(at) = number(which, &model) {
                        let back = entries.give_back(at as u64 + 1, at as u64 + 1);
                        prop_assert_eq!(back.is_some(), model[at].has_changed);
                        model[at].in_use = false;
                    },
                    Step::End(which) => if let Some(at) = number(which, &model) {
                        let removed = entries.remove(at as u64 + 1);
                        prop_assert_eq!(removed, (!model[at].has_changed).then(|| (model[at].pages.clone(), None)));
                        model[at].in_use = false;
                        gone.push(at as u64 + 1);
                    },
                    Step::Change(start, length) => {
                        let mut removed: Vec<Range<usize>> = entries.change(&(start..start + length)).into_iter().map(|(pages, _)| pages).collect();
                        let mut expected = Vec::new();
                        for (at, one) in model.iter_mut().enumerate() {
                            if is_there(at, &gone) && one.pages.start < start + length && start < one.pages.end {
                                one.has_changed = true;
                                gone.push(at as u64 + 1);
                                expected.push(one.pages.clone());
                            }
                        }
                        let by_start = |pages: &Range<usize>| (pages.start, pages.end);
                        removed.sort_by_key(by_start);
                        expected.sort_by_key(by_start);
                        prop_assert_eq!(removed, expected);
                    }
                    Step::Clear => {
                        let removed = entries.clear();
                        for (_, kept) in removed {
                            gone.push(kept.expect("what is in use stays"));
                        }
                        prop_assert!(model.iter().enumerate().all(|(at, one)| one.in_use || !is_there(at, &gone)));
                    }
                }
            }
        }
    }
}
