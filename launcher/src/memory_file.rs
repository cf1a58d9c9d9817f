//! Memory files without a name, which ranks of one node share. Who made one tells the others its [`Card`], and they map it through
//! `/proc/PID/fd/N`. So there is nothing that could be left behind, however a rank ends, and what a rank has mapped stays there for
//! it when the owner has gone. The file can't become shorter (it is sealed), so no access to it can fail later.

use std::fmt;
use std::fs::{File, Metadata, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};

use nix::fcntl::{FcntlArg, OFlag, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

/// How other ranks of the node find a file, as long as its owner has it open.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Card {
    pub(crate) pid: i32,
    /// Its number in that process.
    pub(crate) descriptor: i32,
    /// Which file it is, wherever it is opened.
    device: u64,
    inode: u64,
}

impl fmt::Display for Card {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "/proc/{}/fd/{}", self.pid, self.descriptor)
    }
}

impl Card {
    fn is_of(&self, found: &Metadata) -> bool {
        found.is_file() && (found.dev(), found.ino()) == (self.device, self.inode)
    }
}

/// One of so many bytes, all zero. The name is for those who look at a process's maps.
///
/// # Errors
/// If the operating system refuses.
pub(crate) fn create(name: &str, length: u64) -> io::Result<(File, Card)> {
    let file = File::from(memfd_create(name, MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING)?);
    file.set_len(length)?;
    let seals = SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SEAL;
    fcntl(&file, FcntlArg::F_ADD_SEALS(seals))?;
    let found = file.metadata()?;
    let (pid, descriptor) = (Pid::this().as_raw(), file.as_raw_fd());
    let card = Card { pid, descriptor, device: found.dev(), inode: found.ino() };
    Ok((file, card))
}

/// That of another rank of the node, which must have so many bytes.
///
/// # Errors
/// If it can't be opened, or is not what the card says.
pub(crate) fn open(card: &Card, length: u64) -> io::Result<File> {
    let path = card.to_string();
    let wrong = |problem| io::Error::new(io::ErrorKind::InvalidData, format!("{path}: {problem}"));
    let another = || wrong("it is another file; does the rank run in another container?".to_owned());
    // What is opened could be anything, if the number means another process here: opening it must have no effect.
    if !card.is_of(&std::fs::metadata(&path)?) {
        return Err(another());
    }
    let flags = OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
    let file = OpenOptions::new().read(true).write(true).custom_flags(flags.bits()).open(&path)?;
    let found = file.metadata()?;
    if !card.is_of(&found) {
        return Err(another());
    }
    let seals = SealFlag::from_bits_truncate(fcntl(&file, FcntlArg::F_GET_SEALS)?);
    if !seals.contains(SealFlag::F_SEAL_SHRINK) || found.len() != length {
        let problem = format!(
            "it has {} bytes and the seals {seals:?}, not {length} bytes and F_SEAL_SHRINK; do all ranks run the same build?",
            found.len()
        );
        return Err(wrong(problem));
    }
    Ok(file)
}

#[cfg(test)]
#[cfg(not(miri))]
mod tests {
    use std::io::Read;
    use std::os::unix::fs::FileExt;

    use super::*;

    #[test]
    fn who_opens_it_has_the_same_file_also_when_its_owner_has_gone() {
        let (owner, card) = create("test", 5).unwrap();
        let mut other = open(&card, 5).unwrap();
        owner.write_all_at(b"seven", 0).unwrap();
        drop(owner);
        let mut found = String::new();
        other.read_to_string(&mut found).unwrap();
        assert_eq!(found, "seven");
        assert!(open(&card, 5).unwrap_err().kind() == io::ErrorKind::NotFound);
    }

    #[test]
    fn another_file_or_length_is_refused_and_its_path_is_named() {
        let (_file, card) = create("one", 100).unwrap();
        let (another, of_another) = create("another", 100).unwrap();
        let error = |card: &Card, length| open(card, length).unwrap_err().to_string();
        let text = error(&Card { descriptor: another.as_raw_fd(), ..card }, 100);
        assert!(text.starts_with(&of_another.to_string()) && text.contains("it is another file"), "{text}");
        let text = error(&card, 1000);
        assert!(text.contains("it has 100 bytes") && text.contains("not 1000 bytes"), "{text}");
        let null = File::open("/dev/null").unwrap();
        assert!(error(&Card { descriptor: null.as_raw_fd(), ..card }, 100).contains("another file"));
    }

    #[test]
    fn a_file_that_could_become_shorter_is_refused() {
        let file = tempfile().unwrap();
        let found = file.metadata().unwrap();
        let (pid, descriptor) = (Pid::this().as_raw(), file.as_raw_fd());
        let card = Card { pid, descriptor, device: found.dev(), inode: found.ino() };
        let text = open(&card, 0).unwrap_err().to_string();
        assert!(text.contains("F_SEAL_SHRINK"), "{text}");
    }

    /// A memory file without seals.
    fn tempfile() -> io::Result<File> {
        Ok(File::from(memfd_create("test", MFdFlags::MFD_CLOEXEC)?))
    }
}
