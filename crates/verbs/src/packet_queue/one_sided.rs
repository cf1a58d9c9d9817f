//! One-sided access over the connections of a port: to and from slots for short pieces, and registered memory for long ones.
#![expect(unsafe_code, reason = "writes and reads slots that a device uses in turn")]

use rdma_mummy_sys as ffi;

use super::{BEFORE, GET, KEPT, KIND, PUT, PacketQueue, PacketSlot, READ, SendSlot, WRITE, post, request};
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
    /// Writes bytes to a peer's memory, at this address and with its key, from a slot; `None` if there is none now. They may be
    /// as many as a packet. The caller sees to the room as with [`send`](Self::send).
    ///
    /// # Errors
    /// As [`send`](Self::send).
    pub fn put(&mut self, pair: &PacketPair, bytes: &[u8], to: (u64, u32)) -> Result<Option<PacketSlot>> {
        let (length, most) = (bytes.len(), self.packets.room.packet);
        if length > most {
            return Err(Error::Length { what: "a put", length, most });
        }
        let Some((number, slot)) = self.take_free() else { return Ok(None) };
        // SAFETY: as in `send`.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), slot.start, length) };
        let slot = PacketSlot { number, length: length as u32 };
        match self.post_put(pair, slot, to) {
            Ok(()) => Ok(Some(slot)),
            Err(error) => {
                self.free.push(number);
                Err(error)
            }
        }
    }

    fn post_put(&mut self, pair: &PacketPair, slot: PacketSlot, to: (u64, u32)) -> Result<()> {
        let PacketSlot { number, length } = slot;
        let Some(SendSlot { slot, user }) = self.sends.get_mut(number as usize) else { return Ok(()) };
        let mut element = slot.element(length);
        self.put.wr_id = PUT << KIND | u64::from(number);
        self.put.sg_list = &raw mut element;
        self.put.wr.rdma = ffi::rdma_t { remote_addr: to.0, rkey: to.1 };
        post(pair, &mut self.put)?;
        *user = pair.number();
        Ok(())
    }

    /// Puts once more what was put on a connection that was taken down.
    ///
    /// # Errors
    /// [`Error::Call`]; the slot stays as it was.
    pub fn put_again(&mut self, pair: &PacketPair, slot: PacketSlot, to: (u64, u32)) -> Result<()> {
        match self.sends.get(slot.number as usize) {
            Some(SendSlot { user: KEPT, .. }) => self.post_put(pair, slot, to),
            _ => Ok(()),
        }
    }

    /// Reads so many bytes of a peer's memory, at this address and with its key, to a slot; `None` if there is none now. They must be fewer
    /// than a packet's. With `proof` a second read of one byte follows, and the end is told when that is over too. The caller sees to the
    /// room as with [`send`](Self::send).
    ///
    /// # Errors
    /// As [`send`](Self::send). The slot stays lost where one read was posted and the other refused.
    pub fn get(
        &mut self,
        pair: &PacketPair,
        length: usize,
        from: (u64, u32),
        proof: bool,
    ) -> Result<Option<PacketSlot>> {
        let most = self.packets.room.packet - 1;
        if length > most {
            return Err(Error::Length { what: "a get", length, most });
        }
        let Some((number, slot)) = self.take_free() else { return Ok(None) };
        let read = |kind: u64, offset: usize, length: u32| {
            let mut element = slot.element(length);
            element.addr += offset as u64;
            let mut request = request();
            request.wr_id = kind << KIND | u64::from(number);
            request.sg_list = &raw mut element;
            request.opcode = ffi::ibv_wr_opcode::IBV_WR_RDMA_READ;
            request.wr.rdma = ffi::rdma_t { remote_addr: from.0, rkey: from.1 };
            post(pair, &mut request)
        };
        // No packet has 4 GiB: looked at when the queues were made.
        let length = length as u32;
        let first = read(if proof { BEFORE } else { GET }, 0, length);
        if let Err(error) = first {
            self.free.push(number);
            return Err(error);
        }
        // To the end of the slot, which is not the bytes'.
        let second = if proof { read(GET, most, 1) } else { Ok(()) };
        if let Some(send) = self.sends.get_mut(number as usize) {
            send.user = pair.number();
        }
        second.map(|()| Some(PacketSlot { number, length }))
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
        request.wr_id = kind << KIND | u64::from(name);
        request.sg_list = &raw mut element;
        request.opcode = opcode;
        request.wr.rdma = ffi::rdma_t { remote_addr: there.0, rkey: there.1 };
        post(pair, &mut request)
    }

    /// The slot that a read has filled.
    pub(super) fn got(&self, entry: &ffi::ibv_wc) -> &[u8] {
        // It may be of a connection that was taken down: the slot is another one's by now, and what it holds is nobody's.
        let slot = self.sends.get(entry.wr_id as u32 as usize).filter(|slot| slot.user == entry.qp_num);
        let Some(SendSlot { slot, .. }) = slot else { return &[] };
        // SAFETY: the slot has so many initialised bytes (its pages began as zeros). Its read is over, and it is not free before this borrow
        // has ended, so no device writes there.
        unsafe { std::slice::from_raw_parts(slot.start, self.packets.room.packet) }
    }
}
