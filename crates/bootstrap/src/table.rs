//! The result of a collective: `count | end of each part | the parts`, numbers as 8 bytes, big endian. A node's leader writes it
//! once into a memory file that nobody can change any more; every rank maps that one copy.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;

use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};

use crate::mapped::Mapped;

/// How long the table of so many parts is, which have so many bytes.
pub(crate) fn length(parts: usize, bytes: usize) -> usize {
    8 * (parts + 1) + bytes
}

/// The parts as one table.
pub(crate) fn encode(parts: &[&[u8]]) -> Vec<u8> {
    let bytes = parts.iter().map(|part| part.len()).sum();
    let mut table = Vec::with_capacity(length(parts.len(), bytes));
    table.extend_from_slice(&(parts.len() as u64).to_be_bytes());
    let mut end = 0u64;
    for part in parts {
        end += part.len() as u64;
        table.extend_from_slice(&end.to_be_bytes());
    }
    for part in parts {
        table.extend_from_slice(part);
    }
    table
}

/// Everyone's bytes, by rank: what [`Bootstrap::all_gather`](crate::Bootstrap::all_gather) returns.
///
/// The bytes are in one piece of memory that all ranks of a node share, and live as long as this value.
#[derive(Debug)]
pub struct Gathered {
    bytes: Bytes,
    count: usize,
}

#[derive(Debug)]
enum Bytes {
    Own(Vec<u8>),
    Shared(Mapped),
}

impl Gathered {
    /// Of one rank alone.
    pub(crate) fn alone(part: &[u8]) -> Self {
        Self { bytes: Bytes::Own(encode(&[part])), count: 1 }
    }

    /// What the leader wrote, if it is a table of `count` parts.
    pub(crate) fn map(file: &OwnedFd, count: usize) -> io::Result<Self> {
        let bytes = Mapped::new(file, seals())?;
        check(bytes.bytes(), count)?;
        Ok(Self { bytes: Bytes::Shared(bytes), count })
    }

    /// The same of bytes that are no file.
    #[cfg(any(test, feature = "testing"))]
    pub(crate) fn own(bytes: Vec<u8>, count: usize) -> io::Result<Self> {
        check(&bytes, count)?;
        Ok(Self { bytes: Bytes::Own(bytes), count })
    }

    fn table(&self) -> &[u8] {
        match &self.bytes {
            Bytes::Own(bytes) => bytes,
            Bytes::Shared(mapped) => mapped.bytes(),
        }
    }

    /// How many ranks.
    #[must_use]
    pub fn len(&self) -> usize {
        self.count
    }

    /// Never: there is always this rank.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// A rank's bytes.
    #[must_use]
    pub fn get(&self, rank: u32) -> Option<&[u8]> {
        let rank = rank as usize;
        if rank >= self.count {
            return None;
        }
        let (ends, parts) = self.table().get(8..)?.split_at_checked(8 * self.count)?;
        let start = if rank == 0 { 0 } else { number(ends, rank - 1)? };
        parts.get(start..number(ends, rank)?)
    }

    /// Every rank's bytes, in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &[u8]> {
        // Every rank has a part: the ends were checked.
        (0..self.count)
            .map(|rank| u32::try_from(rank).ok().and_then(|rank| self.get(rank)).unwrap_or_default())
    }
}

impl std::ops::Index<usize> for Gathered {
    type Output = [u8];

    /// A rank's bytes.
    ///
    /// # Panics
    /// Where there is no such rank.
    fn index(&self, rank: usize) -> &[u8] {
        let found = u32::try_from(rank).ok().and_then(|rank| self.get(rank));
        found.unwrap_or_else(|| panic!("there is no rank {rank} among {}", self.count))
    }
}

fn number(ends: &[u8], place: usize) -> Option<usize> {
    let number = ends.get(8 * place..)?.first_chunk()?;
    usize::try_from(u64::from_be_bytes(*number)).ok()
}

/// Ends that grow, the last of them that of the table.
fn check(table: &[u8], count: usize) -> io::Result<()> {
    let bad = |what| Err(io::Error::new(io::ErrorKind::InvalidData, what));
    if number(table, 0) != Some(count) {
        return bad("the table is of another number of ranks");
    }
    let Some((ends, parts)) = table[8..].split_at_checked(8 * count) else {
        return bad("the table is cut off");
    };
    let ends = || ends.chunks_exact(8).map(|end| number(end, 0).unwrap_or(usize::MAX));
    if !ends().is_sorted() || ends().next_back().unwrap_or(0) != parts.len() {
        return bad("the table's parts are not one behind the other");
    }
    Ok(())
}

fn seals() -> SealFlag {
    SealFlag::F_SEAL_SEAL | SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_WRITE
}

/// A memory file with these bytes, which nobody can change.
pub(crate) fn seal(table: &[u8]) -> io::Result<OwnedFd> {
    let file = memfd_create(c"roce-table", MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING)?;
    let mut file = File::from(file);
    file.write_all(table)?;
    fcntl(&file, FcntlArg::F_ADD_SEALS(seals()))?;
    Ok(file.into())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_table_that_could_still_change_is_refused() {
        let table = encode(&[b"x"]);
        assert_eq!(&Gathered::map(&seal(&table).unwrap(), 1).unwrap()[0], b"x");
        let file = memfd_create(c"open", MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING).unwrap();
        File::from(file.try_clone().unwrap()).write_all(&table).unwrap();
        assert!(Gathered::map(&file, 1).unwrap_err().to_string().contains("sealed"));
    }

    proptest! {
        #[test]
        fn parts_come_back(parts in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..9), 1..9)) {
            let table = encode(&parts.iter().map(Vec::as_slice).collect::<Vec<_>>());
            let gathered = Gathered::map(&seal(&table).unwrap(), parts.len()).unwrap();
            prop_assert_eq!(gathered.iter().map(<[u8]>::to_vec).collect::<Vec<_>>(), &parts[..]);
            prop_assert!(gathered.get(u32::try_from(parts.len()).unwrap()).is_none());
            for end in 0..table.len() {
                prop_assert!(check(&table[..end], parts.len()).is_err());
            }
            prop_assert!(check(&table, parts.len() + 1).is_err());
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..40), count in 0u64..4) {
            let table = [&count.to_be_bytes()[..], &bytes].concat();
            let count = usize::try_from(count).unwrap();
            if let Ok(gathered) = Gathered::own(table, count) {
                prop_assert_eq!(gathered.iter().map(<[u8]>::len).sum::<usize>(), bytes.len() - 8 * count);
            }
        }
    }
}
