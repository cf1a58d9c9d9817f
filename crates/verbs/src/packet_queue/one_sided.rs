//! One-sided access over the connections of a port: to and from slots for short pieces, and registered memory for long ones.
#![expect(unsafe_code, reason = "writes and reads slots that a device uses in turn")]

use rdma_mummy_sys as ffi;

use super::{BEFORE, GET, KIND, PUT, PacketQueue, READ, TELLS, WRITE, post_element, request};
use crate::error::{Error, Result};
use crate::memory::check_range;
use crate::packets::PacketPair;
use crate::registration::Registration;

/// Which way memory goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Movement {
    /// From the peer to here: RDMA read.
    Read,
    /// From here to the peer: RDMA write.
    Write,
}

impl PacketQueue {
    /// Writes bytes to a peer's memory, at this address and with its key, from a slot. Whether there was one for it. They may be
    /// as many as a packet. The caller sees to the room as with [`send`](Self::send).
    ///
    /// # Errors
    /// As [`send`](Self::send).
    pub fn put(&mut self, pair: &PacketPair, bytes: &[u8], to: (u64, u32)) -> Result<bool> {
        let (length, most) = (bytes.len(), self.packets.room.packet);
        if length > most {
            return Err(Error::Length { what: "a put", length, most });
        }
        if self.rings.len() <= pair.ring as usize {
            self.learn();
        }
        let Some(ring) = self.rings.get_mut(pair.ring as usize) else { return Ok(false) };
        let Some(slot) = ring.next() else { return Ok(false) };
        // SAFETY: as in `send`.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), slot.start, length) };
        // No packet has 4 GiB: looked at when the queues were made.
        slot.element.length = length as u32;
        slot.request.opcode = ffi::ibv_wr_opcode::IBV_WR_RDMA_WRITE;
        slot.request.wr_id = PUT << KIND | slot.name;
        slot.request.send_flags = TELLS;
        slot.request.wr.rdma = ffi::rdma_t { remote_addr: to.0, rkey: to.1 };
        post_element(pair, &mut slot.request, &mut slot.element)?;
        ring.take();
        Ok(true)
    }

    /// Reads so many bytes of a peer's memory, at this address and with its key, to a slot. Whether there was one for it. They must be fewer
    /// than a packet's. With `proof` a second read of one byte follows, and the end is told when that is over too. The caller sees to the
    /// room as with [`send`](Self::send).
    ///
    /// # Errors
    /// As [`send`](Self::send).
    pub fn get(&mut self, pair: &PacketPair, length: usize, from: (u64, u32), proof: bool) -> Result<bool> {
        let most = self.packets.room.packet - 1;
        if length > most {
            return Err(Error::Length { what: "a get", length, most });
        }
        if self.rings.len() <= pair.ring as usize {
            self.learn();
        }
        let Some(ring) = self.rings.get_mut(pair.ring as usize) else { return Ok(false) };
        let Some(slot) = ring.next() else { return Ok(false) };
        // No packet has 4 GiB, as above.
        slot.element.length = length as u32;
        slot.request.opcode = ffi::ibv_wr_opcode::IBV_WR_RDMA_READ;
        slot.request.wr_id = if proof { BEFORE } else { GET } << KIND | slot.name;
        slot.request.send_flags = TELLS;
        slot.request.wr.rdma = ffi::rdma_t { remote_addr: from.0, rkey: from.1 };
        post_element(pair, &mut slot.request, &mut slot.element)?;
        let (name, mut last) = (slot.name, slot.element);
        // From here on the device may write there, whatever becomes of the second.
        ring.take();
        if proof {
            let mut request = request();
            request.opcode = ffi::ibv_wr_opcode::IBV_WR_RDMA_READ;
            request.wr_id = GET << KIND | name;
            request.wr.rdma = ffi::rdma_t { remote_addr: from.0, rkey: from.1 };
            // To the end of the slot, which is not the bytes'.
            (last.addr, last.length) = (last.addr + most as u64, 1);
            post_element(pair, &mut request, &mut last)?;
        }
        Ok(true)
    }

    /// Reads `length` bytes of a peer's memory, at this address and with its key, to `offset` of memory here, or writes them there. The end
    /// is told with `name`.
    ///
    /// # Errors
    /// [`Error::OutOfRange`], [`Error::Call`].
    pub fn move_memory(
        &mut self,
        pair: &PacketPair,
        name: u32,
        movement: Movement,
        here: (&Registration, usize),
        there: (u64, u32),
        length: u32,
    ) -> Result<()> {
        let (memory, offset) = here;
        check_range(offset as u64, u64::from(length), memory.length() as u64, "the memory")?;
        let addr = memory.address() + offset as u64;
        let mut element = ffi::ibv_sge { addr, length, lkey: memory.local_key() };
        let (kind, opcode) = match movement {
            Movement::Read => (READ, ffi::ibv_wr_opcode::IBV_WR_RDMA_READ),
            Movement::Write => (WRITE, ffi::ibv_wr_opcode::IBV_WR_RDMA_WRITE),
        };
        let mut request = request();
        request.wr_id = super::name(kind, 0, name);
        request.opcode = opcode;
        request.wr.rdma = ffi::rdma_t { remote_addr: there.0, rkey: there.1 };
        post_element(pair, &mut request, &mut element)
    }
}
