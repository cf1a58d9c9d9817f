//! A TCP connection whose every wait has a deadline, and on it the frames of a proven peer.

use std::io::{self, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use crate::authentication::Keys;
use crate::error::{Error, Result};
use crate::frame::{HEADER, TAG, payload_length};
use crate::message::Message;

/// Memory for a payload is taken in steps of this, as the bytes arrive: a length alone costs nothing.
const STEP: usize = 64 * 1024;

/// Bytes, with deadlines.
pub(crate) struct Wire {
    stream: TcpStream,
}

impl Wire {
    pub(crate) fn new(stream: TcpStream) -> io::Result<Self> {
        stream.set_nonblocking(false)?;
        stream.set_nodelay(true)?;
        Ok(Self { stream })
    }

    /// Fills `bytes`, or fails: `TimedOut` at the deadline, `UnexpectedEof` where the connection ended.
    pub(crate) fn read(&mut self, mut bytes: &mut [u8], deadline: Instant) -> io::Result<()> {
        while !bytes.is_empty() {
            self.stream.set_read_timeout(Some(time_left(deadline)?))?;
            match self.stream.read(bytes) {
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(count) => bytes = &mut bytes[count..],
                Err(error) if is_retry(&error) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Sends all of `bytes`, or fails: `TimedOut` at the deadline.
    pub(crate) fn write(&mut self, mut bytes: &[u8], deadline: Instant) -> io::Result<()> {
        while !bytes.is_empty() {
            self.stream.set_write_timeout(Some(time_left(deadline)?))?;
            match self.stream.write(bytes) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(count) => bytes = &bytes[count..],
                Err(error) if is_retry(&error) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Would a read return at once, be it with bytes, the connection's end, or an error?
    fn is_ready(&self) -> io::Result<bool> {
        self.stream.set_nonblocking(true)?;
        let peeked = self.stream.peek(&mut [0]);
        self.stream.set_nonblocking(false)?;
        Ok(!matches!(peeked, Err(error) if error.kind() == ErrorKind::WouldBlock))
    }
}

/// The socket's own timeout ran out, or a signal came: the deadline decides.
fn is_retry(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted)
}

fn time_left(deadline: Instant) -> io::Result<Duration> {
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() { Err(ErrorKind::TimedOut.into()) } else { Ok(left) }
}

/// Messages to and from one proven rank.
pub(crate) struct Channel {
    wire: Wire,
    keys: Keys,
    rank: u32,
    /// The rank's node, once it is known.
    node: String,
}

impl Channel {
    pub(crate) fn new(wire: Wire, keys: Keys, rank: u32, node: &str) -> Self {
        Self { wire, keys, rank, node: node.to_owned() }
    }

    pub(crate) fn rank(&self) -> u32 {
        self.rank
    }

    pub(crate) fn node(&self) -> &str {
        &self.node
    }

    pub(crate) fn set_node(&mut self, node: &str) {
        node.clone_into(&mut self.node);
    }

    pub(crate) fn is_ready(&self) -> Result<bool> {
        self.wire.is_ready().map_err(|source| self.lost(source))
    }

    pub(crate) fn send(&mut self, message: &Message, deadline: Instant) -> Result<()> {
        let payload = message.encode();
        let length = payload.len();
        let most = u32::MAX as usize;
        let frame =
            self.keys.send.seal(&payload).ok_or(Error::TooLong { what: "a message", length, most })?;
        self.wire.write(&frame, deadline).map_err(|source| self.lost(source))
    }

    /// The next message, whose payload may have `most` bytes.
    pub(crate) fn receive(&mut self, most: usize, deadline: Instant) -> Result<Message> {
        let mut header = [0; HEADER];
        self.wire.read(&mut header, deadline).map_err(|source| self.lost(source))?;
        let length = payload_length(header, most).map_err(|length| Error::TooLong {
            what: "a message",
            length,
            most,
        })?;
        let mut payload = Vec::new();
        while payload.len() < length {
            let start = payload.len();
            payload.resize(length.min(start + STEP), 0);
            self.wire.read(&mut payload[start..], deadline).map_err(|source| self.lost(source))?;
        }
        let mut tag = [0; TAG];
        self.wire.read(&mut tag, deadline).map_err(|source| self.lost(source))?;
        if !self.keys.receive.open(&payload, &tag) {
            return Err(Error::Tampered { rank: self.rank, node: self.node.clone() });
        }
        Message::decode(&payload).map_err(|what| Error::Malformed {
            rank: self.rank,
            node: self.node.clone(),
            what,
        })
    }

    fn lost(&self, source: io::Error) -> Error {
        Error::Lost { rank: self.rank, node: self.node.clone(), source }
    }
}
