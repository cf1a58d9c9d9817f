//! Packets on a connection: `length of the payload (4 bytes) | header | payload`, numbers as this machine has them, since all
//! ranks of a job are of one kind of machine.

use crate::transport::Header;

/// The most bytes of payload in one packet.
pub(super) const MOST: usize = 64 * 1024;
/// Bytes before the payload.
pub(super) const HEAD: usize = 4 + size_of::<Header>();

/// What comes before the payload.
pub(super) fn head(header: &Header, length: usize) -> [u8; HEAD] {
    let mut head = [0; HEAD];
    // At most `MOST`.
    head[..4].copy_from_slice(&u32::try_from(length).unwrap_or(u32::MAX).to_ne_bytes());
    head[4..].copy_from_slice(bytemuck::bytes_of(header));
    head
}

/// Gives the whole packets at the beginning of `bytes`, and how many bytes they are. What is left is shorter than one packet,
/// and its length is none that is refused.
///
/// # Errors
/// The length of a payload that is longer than any may be.
pub(super) fn take(bytes: &[u8], mut deliver: impl FnMut(&Header, &[u8])) -> Result<usize, usize> {
    let mut taken = 0;
    while let Some((head, rest)) = bytes[taken..].split_first_chunk::<HEAD>() {
        let (length, header) = head.split_at(4);
        let length = u32::from_ne_bytes(length.try_into().unwrap_or([0xff; 4])) as usize;
        if length > MOST {
            return Err(length);
        }
        let Some(payload) = rest.get(..length) else { break };
        deliver(&bytemuck::pod_read_unaligned(header), payload);
        taken += HEAD + length;
    }
    Ok(taken)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn header(number: u32) -> Header {
        Header { kind: 1, context: number, tag: 2, operation: 3, length: u64::from(number) << 32 }
    }

    #[test]
    fn a_huge_length_is_refused_before_its_bytes_come() {
        let bytes = head(&header(0), MOST + 1);
        assert_eq!(take(&bytes, |_, _| panic!()), Err(MOST + 1));
        assert_eq!(take(&head(&header(0), MOST), |_, _| panic!()), Ok(0));
        assert_eq!(take(&[0xff; HEAD], |_, _| panic!()), Err(u32::MAX as usize));
        assert_eq!(take(&[0xff; HEAD - 1], |_, _| panic!()), Ok(0));
    }

    proptest! {
        /// Wherever the stream is cut.
        #[test]
        fn packets_come_out_as_they_went_in(
            payloads in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..100), 0..10),
            cuts in proptest::collection::vec(1usize..150, 1..20),
        ) {
            let mut stream = Vec::new();
            for (number, payload) in (0..).zip(&payloads) {
                stream.extend_from_slice(&head(&header(number), payload.len()));
                stream.extend_from_slice(payload);
            }
            let (mut got, mut kept) = (Vec::new(), Vec::new());
            let (mut rest, mut cuts) = (&stream[..], cuts.iter().cycle());
            while !rest.is_empty() {
                let (now, later) = rest.split_at(rest.len().min(*cuts.next().unwrap()));
                rest = later;
                kept.extend_from_slice(now);
                let taken = take(&kept, |header, payload| got.push((*header, payload.to_vec()))).unwrap();
                kept.drain(..taken);
            }
            prop_assert!(kept.is_empty());
            let sent: Vec<_> = (0..).map(header).zip(payloads).collect();
            prop_assert_eq!(got, sent);
        }
    }
}
