//! The slots that one connection sends from, one after the other, round and round: what a queue pair is given to do ends in the order in
//! which it was given. So the end of one says that all before it are over, whether they tell so or not.

use rdma_mummy_sys as ffi;

use super::{KIND, TELLS, name, request};
use crate::packets::{Packets, Slots};

/// A slot, with the request that it was last used for. Its bytes are kept by the queue's `Packets`.
pub(super) struct SendSlot {
    pub(super) start: *mut u8,
    pub(super) element: ffi::ibv_sge,
    pub(super) request: ffi::ibv_send_wr,
    /// The number of its requests, but for their kind.
    pub(super) name: u64,
}

impl SendSlot {
    /// Packets stay when a connection is taken down, and so do puts; gets do not.
    fn is_get(&self) -> bool {
        self.request.opcode == ffi::ibv_wr_opcode::IBV_WR_RDMA_READ
    }

    fn is_packet(&self) -> bool {
        self.request.opcode == ffi::ibv_wr_opcode::IBV_WR_SEND
    }
}

pub(super) struct Ring {
    number: u32,
    /// As many as a power of two.
    slots: Vec<SendSlot>,
    /// Slots that were ever taken, and given back, modulo 2^32.
    taken: u32,
    given_back: u32,
    /// How many were taken when the device was last asked after them.
    asked: u32,
}

impl Ring {
    pub(super) fn new(packets: &Packets, slots: &Slots, number: u32) -> Self {
        let room = packets.room;
        let slots = (0..room.sends).map(|place| {
            let slot = packets.slot(slots, room.receives + place);
            let name = name(0, number, place.into());
            SendSlot { start: slot.start, element: slot.element(0), request: request(), name }
        });
        Self { number, slots: slots.collect(), taken: 0, given_back: 0, asked: 0 }
    }

    #[inline]
    fn place(&self, number: u32) -> usize {
        number as usize & (self.slots.len() - 1)
    }

    /// The next slot, if one is free.
    #[inline]
    pub(super) fn next(&mut self) -> Option<&mut SendSlot> {
        if self.taken.wrapping_sub(self.given_back) as usize >= self.slots.len() {
            return None;
        }
        let place = self.place(self.taken);
        self.slots.get_mut(place)
    }

    /// What `next` gave is in use.
    #[inline]
    pub(super) fn take(&mut self) {
        self.taken = self.taken.wrapping_add(1);
    }

    /// The slot at a place.
    pub(super) fn slot(&mut self, place: u32) -> Option<&mut SendSlot> {
        self.slots.get_mut(place as usize)
    }

    /// The last slot taken, if its end is not told and nobody has asked after it.
    pub(super) fn unheard(&self) -> Option<&SendSlot> {
        let last = self.slots.get(self.place(self.taken.wrapping_sub(1)))?;
        let is_under_way = self.taken != self.given_back && self.taken != self.asked;
        (is_under_way && last.request.send_flags == 0).then_some(last)
    }

    pub(super) fn asked(&mut self) {
        self.asked = self.taken;
    }

    /// How many before this one are not over yet.
    #[inline]
    pub(super) fn before(&self, place: u32) -> u32 {
        self.place(place.wrapping_sub(self.given_back)) as u32
    }

    /// What the slot at this place was used for is over, and all before. How many those before are.
    #[inline]
    pub(super) fn give_back(&mut self, place: u32) -> u32 {
        let before = self.before(place);
        self.given_back = self.given_back.wrapping_add(before + 1);
        before
    }

    /// Another queue pair goes on with what is not over: all but the first packets, so many, which have arrived, and gets, for they are asked
    /// for anew. The places, in their order. Their ends are told.
    pub(super) fn go_on(&mut self, arrived: usize) -> Vec<u32> {
        let (mut left, mut next, mut rest) = (arrived, self.given_back, Vec::new());
        let mut number = self.given_back;
        while number != self.taken {
            let Some(slot) = self.slots.get(self.place(number)) else { break };
            let is_over = slot.is_get() || (slot.is_packet() && left > 0);
            if is_over {
                left -= usize::from(slot.is_packet());
            } else {
                self.move_to(next, number);
                rest.push(self.place(next) as u32);
                next = next.wrapping_add(1);
            }
            number = number.wrapping_add(1);
        }
        (self.taken, self.asked) = (next, next);
        rest
    }

    /// Closes the gap that others have left: the slot and one that is over change places.
    fn move_to(&mut self, next: u32, number: u32) {
        let (to, from) = (self.place(next), self.place(number));
        self.slots.swap(to, from);
        for place in [from, to] {
            let Some(slot) = self.slots.get_mut(place) else { continue };
            slot.name = name(0, self.number, place as u32);
            slot.request.wr_id = slot.request.wr_id >> KIND << KIND | slot.name;
            slot.request.send_flags = TELLS;
        }
    }
}

#[cfg(test)]
#[expect(unsafe_code, reason = "reads and writes slots")]
mod tests {
    use super::*;

    const PACKET: u32 = ffi::ibv_wr_opcode::IBV_WR_SEND;
    const PUT: u32 = ffi::ibv_wr_opcode::IBV_WR_RDMA_WRITE;
    const GET: u32 = ffi::ibv_wr_opcode::IBV_WR_RDMA_READ;

    /// Four slots of two bytes, of connection 7.
    fn ring(memory: &mut [u8; 8]) -> Ring {
        let slots = memory.chunks_mut(2).zip(0..).map(|(slot, place)| SendSlot {
            start: slot.as_mut_ptr(),
            element: ffi::ibv_sge { addr: 0, length: 1, lkey: 5 },
            request: request(),
            name: name(0, 7, place),
        });
        Ring { number: 7, slots: slots.collect(), taken: 0, given_back: 0, asked: 0 }
    }

    fn take(ring: &mut Ring, content: u8, opcode: u32, flags: u32) -> u32 {
        let slot = ring.next().unwrap();
        // SAFETY: the slot has two bytes.
        unsafe { slot.start.write(content) };
        (slot.request.opcode, slot.request.send_flags) = (opcode, flags);
        let place = slot.name as u32;
        ring.take();
        place
    }

    #[test]
    fn slots_are_taken_in_turn_and_given_back_with_those_before() {
        let mut memory = [0; 8];
        let mut ring = ring(&mut memory);
        for _ in 0..5 {
            let places: Vec<u32> = (0..4).map(|_| take(&mut ring, 1, PACKET, 0)).collect();
            assert_eq!(places, [0, 1, 2, 3]);
            assert!(ring.next().is_none());
            assert_eq!((ring.before(2), ring.give_back(2)), (2, 2));
            assert_eq!(ring.next().map(|slot| slot.name as u32), Some(0));
            assert_eq!(ring.give_back(3), 0);
        }
    }

    #[test]
    fn the_last_is_asked_after_once_unless_its_end_is_told_or_it_is_over() {
        let mut memory = [0; 8];
        let mut ring = ring(&mut memory);
        assert!(ring.unheard().is_none());
        take(&mut ring, 1, PACKET, 0);
        let last = take(&mut ring, 1, PACKET, 0);
        assert_eq!(ring.unheard().map(|slot| slot.name as u32), Some(last));
        ring.asked();
        assert!(ring.unheard().is_none());
        take(&mut ring, 1, PUT, TELLS);
        assert!(ring.unheard().is_none());
        let last = take(&mut ring, 1, PACKET, 0);
        assert!(ring.unheard().is_some());
        assert_eq!(ring.give_back(last), 3);
        assert!(ring.unheard().is_none());
    }

    #[test]
    fn another_queue_pair_goes_on_with_what_is_not_over_in_its_order() {
        let mut memory = [0; 8];
        let mut ring = ring(&mut memory);
        // The ring's end is in the middle.
        let place = take(&mut ring, 0, PACKET, 0);
        ring.give_back(place);
        for (content, opcode) in [(1, PACKET), (2, GET), (3, PUT), (4, PACKET)] {
            take(&mut ring, content, opcode, 0);
        }
        let rest = ring.go_on(1);
        let mut content = |place: &u32| {
            let slot = ring.slot(*place).unwrap();
            // SAFETY: the slot has two bytes, and all of the memory has a value.
            let content = unsafe { slot.start.read() };
            (slot.request.opcode, slot.request.send_flags, slot.request.wr_id as u32, content)
        };
        assert_eq!(rest, [1, 2]);
        assert_eq!(
            rest.iter().map(&mut content).collect::<Vec<_>>(),
            [(PUT, TELLS, 1, 3), (PACKET, TELLS, 2, 4)]
        );
        assert_eq!(ring.next().map(|slot| slot.name as u32), Some(3));
        assert!(ring.unheard().is_none());
        assert_eq!(ring.give_back(2), 1);
    }

    #[test]
    fn what_was_asked_after_on_another_queue_pair_is_asked_after_again() {
        let mut memory = [0; 8];
        let mut ring = ring(&mut memory);
        (0..2).for_each(|_| _ = take(&mut ring, 1, PACKET, 0));
        ring.asked();
        assert_eq!(ring.go_on(1), [0]);
        let last = take(&mut ring, 1, PACKET, 0);
        assert_eq!(ring.unheard().map(|slot| slot.name as u32), Some(last));
    }
}
