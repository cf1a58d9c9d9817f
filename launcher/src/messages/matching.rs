//! Which message goes to which receive: MPI's rules. No I/O.
//!
//! Messages of one source on one communicator match receives in the order in which they were sent; a receive takes the
//! earliest message that fits, a message the earliest receive that fits. Wildcards fit any source or any tag.

use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasherDefault, Hasher};

/// Ranks of one communicator talk apart from those of every other.
pub(crate) type Context = u32;

/// What a receive or a probe asks for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Wanted {
    /// A rank of the job; `None` is any.
    pub(crate) source: Option<u32>,
    /// `None` is any.
    pub(crate) tag: Option<u32>,
}

/// What a message says of itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Label {
    pub(crate) source: u32,
    pub(crate) tag: u32,
}

impl Wanted {
    fn fits(self, label: Label) -> bool {
        self.source.is_none_or(|source| source == label.source) && self.tag.is_none_or(|tag| tag == label.tag)
    }
}

/// Receives that wait for a message (`R`), and messages that wait for a receive (`M`). For no context both hold something
/// that fits each other.
#[derive(Debug)]
pub(crate) struct Matching<R, M> {
    queues: HashMap<Context, Queues<R, M>, BuildHasherDefault<Spread>>,
    /// How many receives and messages wait in all of them.
    waiting: usize,
}

/// Contexts are small numbers that ranks agree upon; every message is looked up by one, so its hash is one multiplication.
#[derive(Default)]
struct Spread(u64);

impl Hasher for Spread {
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u32(u32::from(*byte));
        }
    }

    fn write_u32(&mut self, number: u32) {
        // Knuth's multiplicative hashing, with the golden ratio.
        self.0 = (self.0 ^ u64::from(number)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }

    fn finish(&self) -> u64 {
        // The map looks at the lowest and the highest bits.
        self.0 ^ (self.0 >> 32)
    }
}

#[derive(Debug)]
struct Queues<R, M> {
    receives: VecDeque<(Wanted, R)>,
    messages: VecDeque<(Label, M)>,
}

impl<R, M> Default for Matching<R, M> {
    fn default() -> Self {
        Self { queues: HashMap::default(), waiting: 0 }
    }
}

impl<R, M> Default for Queues<R, M> {
    fn default() -> Self {
        Self { receives: VecDeque::new(), messages: VecDeque::new() }
    }
}

impl<R, M> Matching<R, M> {
    /// Takes the earliest message that fits; if there is none, `receive` waits for one.
    pub(crate) fn receive(&mut self, context: Context, wanted: Wanted, receive: R) -> Option<(R, Label, M)> {
        let queues = self.queues.entry(context).or_default();
        match queues.messages.iter().position(|(label, _)| wanted.fits(*label)) {
            Some(place) => {
                self.waiting -= 1;
                queues.messages.remove(place).map(|(label, message)| (receive, label, message))
            }
            None => {
                self.waiting += 1;
                queues.receives.push_back((wanted, receive));
                None
            }
        }
    }

    /// Takes the earliest receive that a message fits.
    pub(crate) fn arrive(&mut self, context: Context, label: Label) -> Option<R> {
        let receives = &mut self.queues.get_mut(&context)?.receives;
        let place = receives.iter().position(|(wanted, _)| wanted.fits(label))?;
        self.waiting -= 1;
        receives.remove(place).map(|(_, receive)| receive)
    }

    /// A message that [`arrive`](Self::arrive) found no receive for waits.
    pub(crate) fn keep(&mut self, context: Context, label: Label, message: M) {
        self.waiting += 1;
        self.queues.entry(context).or_default().messages.push_back((label, message));
    }

    /// The earliest waiting message that fits, left where it is.
    pub(crate) fn probe(&self, context: Context, wanted: Wanted) -> Option<(Label, &M)> {
        let messages = &self.queues.get(&context)?.messages;
        messages.iter().find(|(label, _)| wanted.fits(*label)).map(|(label, message)| (*label, message))
    }

    /// The earliest waiting message that is such a one, left where it is.
    pub(crate) fn find(&self, context: Context, is_it: impl Fn(Label, &M) -> bool) -> Option<(Label, &M)> {
        self.waiting(context).find(|(label, message)| is_it(*label, message))
    }

    /// All waiting messages.
    pub(crate) fn waiting(&self, context: Context) -> impl Iterator<Item = (Label, &M)> {
        let queues = self.queues.get(&context).into_iter();
        queues.flat_map(|queues| queues.messages.iter().map(|(label, message)| (*label, message)))
    }

    /// Takes all waiting messages with such labels.
    pub(crate) fn take_all(
        &mut self,
        context: Context,
        are_they: impl Fn(Label) -> bool,
    ) -> VecDeque<(Label, M)> {
        let Some(queues) = self.queues.get_mut(&context) else { return VecDeque::new() };
        let (taken, kept): (VecDeque<_>, _) =
            std::mem::take(&mut queues.messages).into_iter().partition(|(label, _)| are_they(*label));
        queues.messages = kept;
        self.waiting -= taken.len();
        taken
    }

    /// Nothing waits in any context, as mostly: a quick look.
    #[inline]
    pub(crate) fn nothing_waits(&self) -> bool {
        self.waiting == 0
    }

    /// Neither receives nor messages wait.
    #[inline]
    pub(crate) fn is_empty(&self, context: Context) -> bool {
        let queues = self.queues.get(&context);
        queues.is_none_or(|queues| queues.receives.is_empty() && queues.messages.is_empty())
    }

    /// Receives wait, and no messages.
    pub(crate) fn only_receives_wait(&self, context: Context) -> bool {
        let queues = self.queues.get(&context);
        queues.is_some_and(|queues| queues.messages.is_empty() && !queues.receives.is_empty())
    }

    /// Takes back a receive that waits.
    pub(crate) fn cancel(&mut self, context: Context, is_it: impl Fn(&R) -> bool) -> Option<R> {
        let receives = &mut self.queues.get_mut(&context)?.receives;
        let place = receives.iter().position(|(_, receive)| is_it(receive))?;
        self.waiting -= 1;
        receives.remove(place).map(|(_, receive)| receive)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What is done, in this order; receives and messages are known by the number of the step.
    #[derive(Clone, Copy, Debug)]
    enum Step {
        Receive(Context, Wanted),
        Message(Context, Label),
        Cancel(usize),
    }

    fn step() -> impl Strategy<Value = Step> {
        let wanted = (proptest::option::of(0u32..3), proptest::option::of(0u32..3));
        prop_oneof![
            4 => (0u32..2, wanted).prop_map(|(context, (source, tag))| Step::Receive(context, Wanted { source, tag })),
            4 => (0u32..2, 0u32..3, 0u32..3)
                .prop_map(|(context, source, tag)| Step::Message(context, Label { source, tag })),
            1 => (0usize..40).prop_map(Step::Cancel),
        ]
    }

    /// The rules said naively: all that was ever done stays in one list, each step looks for its earliest counterpart there.
    fn model(steps: &[Step]) -> Vec<(usize, usize)> {
        let mut taken = vec![false; steps.len()];
        let mut pairs = Vec::new();
        for now in 0..steps.len() {
            let counterpart = (0..now).find(|&past| {
                !taken[past]
                    && match (steps[past], steps[now]) {
                        (Step::Message(theirs, label), Step::Receive(ours, wanted))
                        | (Step::Receive(ours, wanted), Step::Message(theirs, label)) => {
                            theirs == ours && wanted.fits(label)
                        }
                        _ => false,
                    }
            });
            match (steps[now], counterpart) {
                (Step::Cancel(past), _) if past < now && matches!(steps[past], Step::Receive(..)) => {
                    taken[past] = true;
                }
                (Step::Receive(..), Some(past)) => pairs.push((now, past)),
                (Step::Message(..), Some(past)) => pairs.push((past, now)),
                _ => {}
            }
            if let Some(past) = counterpart {
                (taken[past], taken[now]) = (true, true);
            }
        }
        pairs
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(if cfg!(miri) { 20 } else { 2000 }))]
        #[test]
        fn as_the_rules_say(steps in proptest::collection::vec(step(), 0..40)) {
            let mut matching = Matching::default();
            let mut pairs = Vec::new();
            for (now, step) in steps.iter().enumerate() {
                match *step {
                    Step::Receive(context, wanted) => {
                        let seen = matching.probe(context, wanted).map(|(_, message)| *message);
                        let matched = matching.receive(context, wanted, now);
                        prop_assert_eq!(seen, matched.map(|(_, _, message)| message));
                        pairs.extend(matched.map(|(receive, _, message)| (receive, message)));
                    }
                    Step::Message(context, label) => match matching.arrive(context, label) {
                        Some(receive) => pairs.push((receive, now)),
                        None => matching.keep(context, label, now),
                    },
                    Step::Cancel(past) => {
                        for context in 0..2 {
                            matching.cancel(context, |receive| *receive == past);
                        }
                    }
                }
                let is_empty = (0..2).all(|context| matching.is_empty(context));
                prop_assert_eq!(matching.nothing_waits(), is_empty);
            }
            prop_assert_eq!(pairs, model(&steps));
        }
    }
}
