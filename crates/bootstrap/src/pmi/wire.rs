//! Bytes to and from the launcher, in bounded time.

use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use zeroize::Zeroizing;

use super::variables::{FD, PmiVariables, half_set};
use super::{descriptor, failed};
use crate::error::{Error, Result};

/// The longest message that is believed; the longest value of PMI has 1,024 bytes.
pub(super) const LONGEST: usize = 16 * 1024;

/// The socket to the launcher.
pub(super) struct Wire {
    stream: UnixStream,
    /// What came after the last message. A secret may be in it.
    rest: Zeroizing<Vec<u8>>,
    pmi: PmiVariables,
    deadline: Instant,
}

impl Wire {
    /// The socket named by `PMI_FD`.
    pub(super) fn open(pmi: PmiVariables, deadline: Instant) -> Result<Self> {
        let variable = |name: &str| (name == super::RANK).then(|| pmi.rank.to_string());
        let fd = pmi.fd.ok_or_else(|| half_set(super::RANK, FD, &variable))?;
        let copy = descriptor::duplicate(fd);
        let copy = copy.map_err(|error| failed(&pmi, format!("it is no open socket ({error})")))?;
        // Any stream socket reads and writes alike.
        Ok(Self { stream: copy.into(), rest: Zeroizing::default(), pmi, deadline })
    }

    #[cfg(any(test, feature = "testing"))]
    pub(super) fn new(stream: UnixStream, pmi: PmiVariables, deadline: Instant) -> Self {
        Self { stream, rest: Zeroizing::default(), pmi, deadline }
    }

    /// Asks for a version of the protocol. This exchange is the same in all of them.
    pub(super) fn offers(&mut self, version: u32, subversion: u32) -> Result<bool> {
        self.write(format!("cmd=init pmi_version={version} pmi_subversion={subversion}\n").as_bytes())?;
        let line = self.read_line()?;
        let answer = Fields::of_line(&line);
        answer.expect(self, "response_to_init")?;
        Ok(answer.get("rc") == Some("0") && answer.get("pmi_version") == Some(&version.to_string()))
    }

    pub(super) fn write(&mut self, bytes: &[u8]) -> Result<()> {
        let left = self.left()?;
        let sent = self.stream.set_write_timeout(Some(left)).and_then(|()| self.stream.write_all(bytes));
        sent.map_err(|error| self.broken(&error))
    }

    /// Up to a line's end, which is not part of the answer.
    pub(super) fn read_line(&mut self) -> Result<Zeroizing<String>> {
        let end = loop {
            if let Some(end) = self.rest.iter().position(|&byte| byte == b'\n') {
                break end;
            }
            self.read_more()?;
        };
        let line = self.take(end)?;
        self.take(1)?;
        Ok(line)
    }

    /// So many bytes.
    pub(super) fn read(&mut self, count: usize) -> Result<Zeroizing<String>> {
        while self.rest.len() < count {
            self.read_more()?;
        }
        self.take(count)
    }

    fn take(&mut self, count: usize) -> Result<Zeroizing<String>> {
        let after = Zeroizing::new(self.rest.split_off(count));
        let taken = std::mem::replace(&mut self.rest, after);
        let text = std::str::from_utf8(&taken).map(|text| Zeroizing::new(text.to_owned()));
        text.map_err(|_| self.failed("it answers in no text".to_owned()))
    }

    fn read_more(&mut self) -> Result<()> {
        if self.rest.len() > LONGEST {
            return Err(self.failed(format!("it sends more than {LONGEST} bytes in one message")));
        }
        let left = self.left()?;
        let mut bytes = Zeroizing::new([0; 4096]);
        let read = self.stream.set_read_timeout(Some(left)).and_then(|()| {
            loop {
                match self.stream.read(&mut *bytes) {
                    Err(error) if error.kind() == ErrorKind::Interrupted => {}
                    read => break read,
                }
            }
        });
        match read {
            Ok(0) => Err(self.failed("the launcher has closed it".to_owned())),
            Ok(count) => {
                self.rest.extend_from_slice(&bytes[..count]);
                Ok(())
            }
            Err(error) => Err(self.broken(&error)),
        }
    }

    fn left(&self) -> Result<Duration> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        if left.is_zero() { Err(self.broken(&ErrorKind::TimedOut.into())) } else { Ok(left) }
    }

    fn broken(&self, error: &io::Error) -> Error {
        match error.kind() {
            ErrorKind::TimedOut | ErrorKind::WouldBlock => {
                self.failed("the launcher did not answer in time; did every rank start?".to_owned())
            }
            _ => self.failed(error.to_string()),
        }
    }

    pub(super) fn failed(&self, reason: String) -> Error {
        failed(&self.pmi, reason)
    }
}

/// The fields of one message.
pub(super) struct Fields<'a>(Vec<(&'a str, &'a str)>);

impl<'a> Fields<'a> {
    /// PMI-1: words of `key=value`.
    pub(super) fn of_line(line: &'a str) -> Self {
        Self(line.split_ascii_whitespace().filter_map(|word| word.split_once('=')).collect())
    }

    /// PMI-2: `key=value;` after each other. (A `;` in a value would be doubled; no value that is read here has one.)
    pub(super) fn of_message(message: &'a str) -> Self {
        Self(message.split(';').filter_map(|word| word.split_once('=')).collect())
    }

    pub(super) fn get(&self, key: &str) -> Option<&'a str> {
        self.0.iter().find(|(known, _)| *known == key).map(|(_, value)| *value)
    }

    /// The message must be this one.
    pub(super) fn expect(&self, wire: &Wire, command: &str) -> Result<()> {
        match self.get("cmd") {
            Some(found) if found == command => Ok(()),
            found => {
                let found = found.unwrap_or("something else").escape_debug().to_string();
                Err(wire.failed(format!("the launcher answers with {found} where {command} was expected")))
            }
        }
    }

    /// And have gone well.
    pub(super) fn succeeded(&self, wire: &Wire, asked: &str) -> Result<()> {
        match self.get("rc") {
            None | Some("0") => Ok(()),
            Some(code) => {
                let code = code.escape_debug();
                let why = self.get("msg").or(self.get("errmsg")).unwrap_or("no reason given").escape_debug();
                Err(wire.failed(format!("the launcher refuses {asked}: {why} (rc={code})")))
            }
        }
    }
}
