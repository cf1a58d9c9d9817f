//! What keeps ranks from waiting for ever in a collective that can't end: one where they want different things, or where the part
//! of one has failed.
//!
//! Each call of a collective on a communicator is a round with a number. All its messages have one tag, made of that number and of
//! what the rank wants ([`Call`]). A rank whose part fails tells all others with a *notice*. Who waits looks now and then
//! whether a message of its round has another tag: then its part fails too.
//!
//! Ranks that want different things may wait for each other without having sent anything. So who has waited for long asks the rank
//! that it waits for, once, with a notice that says what it wants itself. One that has left the round says so: as messages of a
//! rank come in order, all that it had to send has come by then.
//!
//! A send that was offered can't be given up ([`World::cancel`]). So a rank whose part has failed waits until its receiver has taken
//! it or has left the round: what comes for a round that a rank has left is answered as if it had been fetched.

use std::cell::Cell;
use std::fmt;
use std::rc::Rc;
use std::time::{Duration, Instant};

use crate::error::{Error, Result};
use crate::messages::communicator::Communicator;
use crate::messages::matching::Context;
use crate::messages::world::World;

/// Bits of a tag that say what the rank wants; the rest is the round's number.
const WANTS: u32 = 12;
/// Stands there in a notice.
const NOTICE: u32 = (1 << WANTS) - 1;
/// So many numbers there are.
const NUMBERS: u64 = 1 << (32 - WANTS);
/// After so many rounds all ranks wait for each other, so that a number always means one round.
pub(crate) const TOGETHER: u64 = NUMBERS / 4;
/// The most characters of a failure's words that others are told.
const WORDS: usize = 200;
/// Who has waited so long asks.
const LONG: Duration = Duration::from_millis(100);

/// What a notice begins with.
const FAILED: u8 = 0;
const ASKED: u8 = 1;
const LEFT: u8 = 2;

/// What a rank calls, as far as all must call the same.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Call {
    pub(crate) what: &'static str,
    pub(crate) root: Option<u32>,
    /// Bytes of each rank, where all must give as many.
    pub(crate) bytes: Option<usize>,
}

impl Call {
    /// Another number for another call, nearly always; the same for the same one in every process.
    #[inline]
    pub(crate) fn signature(&self) -> u64 {
        let mix = |sum: u64, number: u64| (sum ^ number).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29);
        let name = self.what.bytes().fold(0, |sum, byte| sum * 31 % 1_000_003 + u64::from(byte));
        let bytes = self.bytes.map_or(u64::MAX, |bytes| bytes as u64);
        mix(mix(mix(0, name), self.root.map_or(u64::MAX, u64::from)), bytes) | 1
    }
}

/// `broadcast of 8 bytes with root 3`
impl fmt::Display for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.what)?;
        if let Some(bytes) = self.bytes {
            write!(f, " of {bytes} bytes")?;
        }
        self.root.map_or(Ok(()), |root| write!(f, " with root {root}"))
    }
}

/// The round of a communicator that is on, or will be next.
pub(crate) type Rounds = Rc<Cell<u64>>;

/// Whether a context is one of collectives: each communicator has two, the second for them.
pub(crate) fn has_rounds(context: Context) -> bool {
    context % 2 == 1
}

/// Whether a tag is of a round before the one with this number.
pub(crate) fn is_past(tag: u32, number: u64) -> bool {
    let ago = number.wrapping_sub(u64::from(tag >> WANTS)) % NUMBERS;
    ago != 0 && ago < NUMBERS / 2
}

/// The tag of a round's messages.
pub(crate) fn tag(number: u64, signature: u64) -> u32 {
    let number = (number % NUMBERS) as u32;
    number << WANTS | (signature % u64::from(NOTICE)) as u32
}

/// Whether a message is of the same round as a tag, but of a rank that wants something else. `bytes` is the message if it is here.
pub(crate) fn is_odd(message: u32, bytes: Option<&[u8]>, tag: u32) -> bool {
    let asks_as_well = || bytes == Some(&asking(tag)[..]);
    message != tag && message >> WANTS == tag >> WANTS && !(is_notice(message) && asks_as_well())
}

pub(crate) fn is_notice(tag: u32) -> bool {
    tag & NOTICE == NOTICE
}

/// Whether a notice says that its rank has left the round.
pub(crate) fn is_left(notice: &[u8]) -> bool {
    notice == [LEFT]
}

/// What a rank says that waits in the round with this tag.
fn asking(tag: u32) -> [u8; 5] {
    let [a, b, c, d] = tag.to_le_bytes();
    [ASKED, a, b, c, d]
}

/// The answer to a notice from a rank that waits in a round that this rank has left.
pub(crate) fn answer(notice: &[u8]) -> Option<&'static [u8]> {
    (notice.first() == Some(&ASKED)).then_some(&[LEFT])
}

/// A round that this rank is in.
pub(crate) struct Watch {
    call: Call,
    context: Context,
    tag: u32,
    rounds: Rounds,
    number: u64,
    /// Its ranks, as ranks of the job.
    ranks: Rc<[u32]>,
    has_failed: bool,
    /// The first look of a wait, for whom, and whether that rank was asked and has said that it has left.
    wait: Option<Wait>,
}

#[derive(Clone, Copy)]
struct Wait {
    since: Instant,
    awaited: Option<u32>,
    has_asked: bool,
    has_left: bool,
}

impl Watch {
    pub(crate) fn new(communicator: &Communicator, call: Call, context: Context, tag: u32) -> Self {
        let (rounds, number) = (Rc::clone(&communicator.rounds), communicator.rounds.get());
        Self {
            call,
            context,
            tag,
            rounds,
            number,
            ranks: communicator.job_ranks(),
            has_failed: false,
            wait: None,
        }
    }
}

/// A rank is in a round as long as it has this.
pub(crate) struct Watched<'a> {
    world: &'a World,
    /// The round that this one is within.
    outer: Option<Watch>,
}

impl World {
    pub(crate) fn enter(&self, watch: Watch) -> Watched<'_> {
        let outer = self.watch.borrow_mut().replace(watch);
        Watched { world: self, outer }
    }

    /// Is this rank in a round that has failed?
    pub(crate) fn has_failed(&self) -> bool {
        self.watch.borrow().as_ref().is_some_and(|watch| watch.has_failed)
    }

    /// Where this rank is in a round: its part has failed, and the others are told.
    pub(crate) fn fail(&self, error: &Error) {
        let mut watch = self.watch.borrow_mut();
        let Some(watch) = watch.as_mut().filter(|watch| !watch.has_failed) else { return };
        watch.has_failed = true;
        // From now on what others offer in this round is answered: they may wait for that, as this rank may for them.
        watch.rounds.set(watch.number + 1);
        self.with_engine(|engine| engine.leave(watch.context, true));
        // What was told to this rank, was told to all.
        if matches!(error, Error::Over { .. } | Error::InCollective { told: true, .. }) {
            return;
        }
        let words: String = error.to_string().chars().take(WORDS).collect();
        let words = [&[FAILED], words.as_bytes()].concat();
        let tag = watch.tag | NOTICE;
        self.with_engine(|engine| {
            for &rank in watch.ranks.iter().filter(|rank| **rank != self.rank) {
                engine.notify(watch.context, rank, tag, &words);
            }
        });
    }

    /// Looks whether the round that this rank is in can still end.
    ///
    /// # Errors
    /// Says why not.
    pub(crate) fn look_at_round(&self) -> Result<()> {
        let mut watch = self.watch.borrow_mut();
        let Some(watch) = watch.as_mut().filter(|watch| !watch.has_failed) else { return Ok(()) };
        self.ask(watch);
        let odd = self.with_engine(|engine| engine.odd(watch.context, watch.tag, self.awaited.get()));
        let Some((label, bytes)) = odd else { return Ok(()) };
        let rank = label.source;
        let notice = bytes.as_deref().filter(|_| is_notice(label.tag)).and_then(<[u8]>::split_first);
        match notice {
            Some((&FAILED, words)) => {
                let problem = format!("failed: {}", String::from_utf8_lossy(words));
                Err(self.in_collective(watch, rank, problem, true))
            }
            Some((&LEFT, _)) => {
                // Looked at once more: what it wrote to shared memory before may be seen only now.
                let seen = watch.wait.as_mut().map(|wait| std::mem::replace(&mut wait.has_left, true));
                match seen {
                    Some(true) => Err(self.in_collective(watch, rank, self.different(watch), false)),
                    _ => Ok(()),
                }
            }
            _ => Err(self.in_collective(watch, rank, self.different(watch), false)),
        }
    }

    /// Asks the rank that is waited for, if that takes long.
    fn ask(&self, watch: &mut Watch) {
        let awaited = self.awaited.get();
        let new = Wait { since: Instant::now(), awaited, has_asked: false, has_left: false };
        let wait = match &mut watch.wait {
            Some(wait) if wait.awaited == awaited => wait,
            other => other.insert(new),
        };
        if let Some(peer) = awaited.filter(|peer| *peer != self.rank)
            && !wait.has_asked
            && wait.since.elapsed() > LONG
        {
            wait.has_asked = true;
            let (context, tag, own) = (watch.context, watch.tag | NOTICE, asking(watch.tag));
            self.with_engine(|engine| engine.notify(context, peer, tag, &own));
        }
    }

    /// The error where a rank calls something else in the round that this rank is in.
    pub(crate) fn differs(&self, rank: u32) -> Error {
        match self.watch.borrow().as_ref() {
            Some(watch) => self.in_collective(watch, rank, self.different(watch), false),
            None => Error::Over { why: "a collective was left".to_owned() },
        }
    }

    fn different(&self, watch: &Watch) -> String {
        format!(
            "called something else than rank {} did, which called {}: all ranks must call the same, with the same root and length",
            self.rank, watch.call
        )
    }

    fn in_collective(&self, watch: &Watch, rank: u32, problem: String, told: bool) -> Error {
        Error::InCollective {
            what: watch.call.what,
            rank,
            node: self.node_of(rank).to_owned(),
            problem,
            told,
        }
    }
}

impl Watched<'_> {
    /// The round is over for this rank.
    pub(crate) fn end<R>(self, result: Result<R>) -> Result<R> {
        if let Err(error) = &result {
            self.world.fail(error);
        }
        result
    }
}

impl Drop for Watched<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let problem = "it panicked".to_owned();
            self.world.fail(&Error::Lengths { what: "a collective", problem });
        }
        let mut watch = self.world.watch.borrow_mut();
        if let Some(watch) = watch.as_ref() {
            watch.rounds.set(watch.number + 1);
            self.world.with_engine(|engine| engine.leave(watch.context, false));
        }
        *watch = self.outer.take();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_tell_rounds_and_wants_apart() {
        let call = Call { what: "broadcast", root: Some(3), bytes: Some(8) };
        assert_eq!(call.to_string(), "broadcast of 8 bytes with root 3");
        let others = [
            Call { what: "reduce", ..call },
            Call { root: Some(2), ..call },
            Call { root: None, ..call },
            Call { bytes: Some(9), ..call },
            Call { bytes: None, ..call },
        ];
        for number in [1, NUMBERS - 1, NUMBERS, 7 * NUMBERS + 5] {
            let own = tag(number, call.signature());
            assert!(others.iter().all(|other| is_odd(tag(number, other.signature()), None, own)));
            assert!(!is_odd(own, None, own) && !is_odd(tag(number + 1, call.signature()), None, own));
            let odd_notice = |bytes: &[u8]| is_odd(own | NOTICE, Some(bytes), own);
            assert!(odd_notice(&[FAILED]) && odd_notice(&[LEFT]) && odd_notice(&asking(own + 1)));
            assert!(!odd_notice(&asking(own)));
            assert!(!is_past(own, number) && is_past(own, number + 1) && is_past(own, number + TOGETHER));
            assert!(!is_past(own, number - 1) && !is_past(own, number.saturating_sub(TOGETHER)));
        }
    }
}
