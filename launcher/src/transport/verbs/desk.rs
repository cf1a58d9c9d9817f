//! Between a rank and its service thread: what the rank wants, and what the thread has to tell.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nix::sys::eventfd::{EfdFlags, EventFd};
use roce_verbs::{Connection, PacketPair};

use super::lanes::Peer;

/// What the rank wants.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Wish {
    /// A connection to a peer, with the first packet for it where that may go before.
    Open { peer: Peer, early: Vec<u8> },
    /// Another one to a peer, instead of one that was taken down, over which so many packets came.
    Again { peer: Peer, received: u64 },
    /// None to a peer any more.
    End { peer: Peer, why: String },
    /// Something has come over a peer's connection.
    Heard(Peer),
    /// The end.
    Stop,
}

/// What the thread tells.
#[derive(Debug)]
pub(super) enum News {
    /// A peer's first packet came before its connection: see [`Desk::take_early`].
    Early(u32),
    /// What goes before a connection is on its way.
    Greeted,
    /// Packets can be sent to a peer, which has received so many. What was asked of the kernel is to be read back.
    Ready { peer: Peer, pair: PacketPair, received: u64, asked: Box<Connection> },
    /// A peer has taken its end of a connection down, and asks for the one with this number.
    Asked { peer: Peer, era: u32 },
    /// There is no connection to a peer.
    Failed { peer: Peer, why: String },
    /// A port can't be used any more.
    PortLost { port: usize, why: String },
    /// A queue pair can't.
    PairLost { port: usize, number: u32, why: String },
}

#[derive(Debug)]
pub(super) struct Desk {
    wishes: Mutex<Vec<Wish>>,
    bell: EventFd,
    news: Mutex<All>,
    has_news: AtomicBool,
    told: Condvar,
    /// Whose is a connection, by port and number. There before anything can come over it.
    peers: Mutex<BTreeMap<(usize, u32), u32>>,
    /// First packets that came before connections, by peer. Not among the news, for what comes over a connection may be found before those.
    early: Mutex<Early>,
    delivered: Condvar,
}

#[derive(Debug, Default)]
struct Early {
    packets: BTreeMap<u32, Vec<u8>>,
    /// With those that the rank has taken, and not delivered yet.
    undelivered: usize,
}

#[derive(Debug, Default)]
struct All {
    news: Vec<News>,
    /// The rank sleeps until there are any: to wake nobody is a call of the kernel, too.
    is_waited_for: bool,
}

impl Desk {
    pub(super) fn new() -> nix::Result<Self> {
        let bell = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        let (wishes, news, peers) = (Mutex::default(), Mutex::default(), Mutex::default());
        let (has_news, told) = (AtomicBool::new(false), Condvar::new());
        let (early, delivered) = (Mutex::default(), Condvar::new());
        Ok(Self { wishes, bell, news, has_news, told, peers, early, delivered })
    }

    /// For the rank.
    pub(super) fn wish(&self, wish: Wish) {
        lock(&self.wishes).push(wish);
        // It only fails when it has been rung 2^64 times.
        let _ = self.bell.write(1);
    }

    /// For the rank: is anything new?
    #[inline]
    pub(super) fn has_news(&self) -> bool {
        self.has_news.load(Ordering::Relaxed)
    }

    /// For the rank: what is new. One load where nothing is.
    #[inline]
    pub(super) fn take_news(&self) -> Vec<News> {
        if !self.has_news() {
            return Vec::new();
        }
        let mut all = lock(&self.news);
        self.has_news.store(false, Ordering::Relaxed);
        std::mem::take(&mut all.news)
    }

    /// For the rank: leaves its CPU to others, but not for longer than this, and not when something is new.
    #[cold]
    pub(super) fn wait_for_news(&self, most: Duration) {
        let mut all = lock(&self.news);
        if all.news.is_empty() {
            all.is_waited_for = true;
            let _ = self.told.wait_timeout(all, most);
        }
    }

    /// For the rank: whose connection that is.
    pub(super) fn peer(&self, port: usize, number: u32) -> Option<u32> {
        lock(&self.peers).get(&(port, number)).copied()
    }

    /// For the rank: the first packet of a peer, if it came before there was a connection, once.
    pub(super) fn take_early(&self, peer: u32) -> Option<Vec<u8>> {
        lock(&self.early).packets.remove(&peer)
    }

    /// For the rank: what it has [taken](Self::take_early) is where it belongs.
    pub(super) fn has_delivered(&self) {
        lock(&self.early).undelivered -= 1;
        self.delivered.notify_one();
    }

    /// For the rank: that connection is no more, and its number may be given to another.
    pub(super) fn leave(&self, port: usize, number: u32) {
        lock(&self.peers).remove(&(port, number));
    }

    /// For the thread: readable when there are wishes.
    pub(super) fn bell(&self) -> BorrowedFd<'_> {
        self.bell.as_fd()
    }

    /// For the thread: the bell was heard. What is wished from here on rings it again.
    pub(super) fn hush(&self) {
        let _ = self.bell.read();
    }

    /// For the thread: is anything wished?
    pub(super) fn has_wishes(&self) -> bool {
        !lock(&self.wishes).is_empty()
    }

    /// For the thread.
    pub(super) fn take_wishes(&self) -> Vec<Wish> {
        std::mem::take(&mut lock(&self.wishes))
    }

    /// For the thread.
    pub(super) fn tell(&self, news: News) {
        let mut all = lock(&self.news);
        all.news.push(news);
        self.has_news.store(true, Ordering::Relaxed);
        if std::mem::take(&mut all.is_waited_for) {
            drop(all);
            self.told.notify_one();
        }
    }

    /// For the thread: a peer's first packet, before anything can come over its connection.
    pub(super) fn tell_early(&self, peer: u32, packet: Vec<u8>) {
        let mut early = lock(&self.early);
        early.packets.insert(peer, packet);
        early.undelivered += 1;
        drop(early);
        self.tell(News::Early(peer));
    }

    /// For the thread: leaves its CPU to the rank until that has delivered what came early, but not for longer than this.
    pub(super) fn wait_for_delivery(&self, most: Duration) {
        let early = lock(&self.early);
        let _ = self.delivered.wait_timeout_while(early, most, |early| early.undelivered > 0);
    }

    /// For the thread.
    pub(super) fn enter(&self, port: usize, number: u32, peer: u32) {
        lock(&self.peers).insert((port, number), peer);
    }
}

/// Nobody panics while holding one of these locks, and what they guard is whole between statements.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_packet_that_came_early_can_be_taken_before_the_news_of_it_and_once() {
        let desk = Desk::new().unwrap();
        desk.tell_early(3, b"first".to_vec());
        assert_eq!((desk.take_early(4), desk.take_early(3).as_deref()), (None, Some(&b"first"[..])));
        assert!(desk.has_news() && matches!(desk.take_news()[..], [News::Early(3)]));
        assert_eq!(desk.take_early(3), None);
    }

    #[test]
    fn the_thread_waits_for_a_packets_delivery_and_not_for_ever() {
        let desk = Desk::new().unwrap();
        desk.tell_early(3, b"first".to_vec());
        desk.wait_for_delivery(Duration::from_millis(1));
        std::thread::scope(|scope| {
            scope.spawn(|| desk.wait_for_delivery(Duration::MAX));
            desk.take_early(3);
            desk.has_delivered();
        });
        desk.wait_for_delivery(Duration::MAX);
    }
}
