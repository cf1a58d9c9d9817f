//! How a window comes to be: each rank makes its memory, tells the others where it is, and maps those of its node.

use std::marker::PhantomData;
use std::rc::Rc;

use bytemuck::Pod;
use serde::{Deserialize, Serialize};

use super::memory::Memory;
use super::window::{Part, Way, Window};
use crate::agree::agree_by;
use crate::error::{Error, Result};
use crate::memory_file;
use crate::messages::Communicator;
use crate::transport::Shown;

/// What a rank tells about its memory.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Card {
    /// In elements.
    length: usize,
    /// Of an element, in bytes.
    size: usize,
    /// `None` where nobody else could map it.
    memory: Option<memory_file::Card>,
    /// Where NICs can read and write it.
    shown: Option<Shown>,
}

impl Communicator {
    /// Opens memory of `length` elements on this rank, all zero, to all ranks of the group. Every rank must call it; they may
    /// give different lengths.
    ///
    /// ```
    /// # let job = roce_launcher::Job::init()?;
    /// let world = job.world();
    /// let (rank, size) = (world.rank(), world.size());
    /// let window = world.window::<u64>(10)?;
    /// window.put((rank + 1) % size, 3, &[7, 8])?; // into the right neighbour's memory
    /// window.fence()?; // everyone's puts are there now
    /// let mut got = [0; 2];
    /// window.read(3, &mut got)?;
    /// assert_eq!(got, [7, 8]);
    /// window.close()?;
    /// # Ok::<(), roce_launcher::Error>(())
    /// ```
    ///
    /// # Errors
    /// On every rank, if any of them fails: [`Error::Memory`], [`Error::Lengths`] where the elements differ, or
    /// [`Error::Others`] with what others failed with. Those of [`send`](Self::send).
    pub fn window<T: Pod>(&self, length: usize) -> Result<Window<T>> {
        let own = self.duplicate()?;
        let node = own.world.node_of(own.world.rank);
        let refused = |problem: String| Error::Memory { node: node.to_owned(), problem };
        let local = own.ranks_here()?;
        let made = make::<T>(length, local.len() > 1).map_err(refused).map(|(memory, file, card)| {
            let (memory, size) = (Rc::new(memory), size_of::<T>());
            let shown = own.world.with_engine(|engine| engine.show(own.context, &memory));
            ((memory, file), Card { length, size, memory: card, shown })
        });
        let agreed = own.agree(made).inspect_err(|_| own.world.close_window(own.context));
        let ((memory, file), cards) = agreed?;
        let parts = own.parts::<T>(&memory, &cards, &local);
        if parts.is_ok() {
            let (memory, bytes) = (Rc::clone(&memory), length * size_of::<T>());
            own.world.windows.borrow_mut().insert(own.context, own.group());
            own.world.with_engine(|engine| {
                engine.windows().open(own.context, memory, bytes);
            });
        }
        // When this is over nobody needs the file any more, and all are ready to be accessed.
        let agreed = own.agree(parts.map(|parts| (parts, ())));
        drop(file);
        match agreed {
            Ok((parts, _)) => Ok(Window { communicator: own, memory, parts, elements: PhantomData }),
            Err(error) => {
                own.world.close_window(own.context);
                Err(error)
            }
        }
    }

    /// The places in the group of the ranks on this node.
    fn ranks_here(&self) -> Result<Vec<u32>> {
        let here = self.world.with_exchange(|exchange| exchange.local_ranks().collect::<Vec<u32>>());
        let here = here.ok_or_else(|| Error::Over { why: "this rank has given up".to_owned() })?;
        let places = (0..).zip(self.ranks.iter()).filter(|(_, rank)| here.binary_search(rank).is_ok());
        Ok(places.map(|(place, _)| place).collect())
    }

    fn agree<L, T: Serialize + for<'a> Deserialize<'a>>(&self, mine: Result<(L, T)>) -> Result<(L, Vec<T>)> {
        let name = |place| {
            let rank = self.rank_in_job(place).unwrap_or(u32::MAX);
            (rank, self.world.node_of(rank))
        };
        agree_by(|mine| self.all_gather_varying(mine), name, mine)
    }

    /// The way to each rank's memory.
    fn parts<T: Pod>(&self, own: &Rc<Memory>, cards: &[Card], local: &[u32]) -> Result<Vec<Part>> {
        let name = |place: u32| {
            let rank = self.rank_in_job(place).unwrap_or(u32::MAX);
            format!("rank {rank} ({})", self.world.node_of(rank))
        };
        if let Some((place, card)) = (0..).zip(cards).find(|(_, card)| card.size != cards[0].size) {
            let (first, other) = (name(0), name(place));
            let problem = format!(
                "{first} opens a window of elements of {} bytes, and {other} of {}; do all mean the same type?",
                cards[0].size, card.size
            );
            return Err(Error::Lengths { what: "window", problem });
        }
        let mut parts = Vec::with_capacity(cards.len());
        for (place, card) in (0..).zip(cards) {
            let way = match card.memory {
                _ if place == self.rank() => Way::Mapped(Rc::clone(own)),
                Some(memory) if local.contains(&place) => {
                    let mapped = card.length.checked_mul(size_of::<T>()).ok_or_else(too_long);
                    let mapped = mapped.and_then(|bytes| Memory::open(&memory, bytes));
                    Way::Mapped(Rc::new(mapped.map_err(|error| Error::Memory {
                        node: self.world.node_of(self.world.rank).to_owned(),
                        problem: format!("that of {} can't be shared: {error}", name(place)),
                    })?))
                }
                _ => Way::Far(card.shown.as_ref().and_then(|shown| {
                    let peer = self.rank_in_job(place)?;
                    self.world.with_engine(|engine| engine.there(peer, shown))
                })),
            };
            parts.push(Part { length: card.length, way });
        }
        Ok(parts)
    }
}

type Made = (Memory, Option<std::fs::File>, Option<memory_file::Card>);

fn make<T>(length: usize, is_shared: bool) -> Result<Made, String> {
    let made = length.checked_mul(size_of::<T>()).ok_or_else(too_long).and_then(|bytes| {
        if is_shared {
            Memory::shared(bytes).map(|(memory, file, card)| (memory, Some(file), Some(card)))
        } else {
            Ok((Memory::own(bytes)?, None, None))
        }
    });
    made.map_err(|error| format!("{length} elements of {} bytes: {error}", size_of::<T>()))
}

fn too_long() -> std::io::Error {
    std::io::Error::from(std::io::ErrorKind::FileTooLarge)
}
