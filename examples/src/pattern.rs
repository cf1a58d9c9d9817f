//! Bytes that tell where they come from, so that a transfer can be checked byte by byte.

/// The ways in which bytes travel between two ranks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Way {
    /// Send and receive.
    Send,
    /// RDMA write, from the rank that writes.
    Write,
    /// RDMA read, from the rank that is read.
    Read,
}

/// The bytes that `from` has for `to`, from offset 0.
pub fn fill(bytes: &mut [u8], from: u32, to: u32, way: Way) {
    for (word, chunk) in bytes.chunks_mut(8).enumerate() {
        chunk.copy_from_slice(&eight(from, to, way, word).to_le_bytes()[..chunk.len()]);
    }
}

/// Are these the bytes that `from` has for `to`? If not: the first offset that differs.
///
/// # Errors
/// The offset of the first wrong byte.
pub fn check(bytes: &[u8], from: u32, to: u32, way: Way) -> Result<(), usize> {
    for (word, chunk) in bytes.chunks(8).enumerate() {
        let expected = eight(from, to, way, word).to_le_bytes();
        if let Some(wrong) = chunk.iter().zip(expected).position(|(&byte, expected)| byte != expected) {
            return Err(word * 8 + wrong);
        }
    }
    Ok(())
}

/// Eight bytes of the pattern. Multiplying by an odd constant is one-to-one, so two words of a pattern never agree.
fn eight(from: u32, to: u32, way: Way, word: usize) -> u64 {
    let place = u64::from(from) << 48 ^ u64::from(to) << 34 ^ (way as u64) << 32;
    let mixed = (place ^ word as u64).wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    mixed ^ mixed >> 31
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_byte_is_found_where_it_is() {
        let mut bytes = vec![0; 1001];
        fill(&mut bytes, 0, 2, Way::Send);
        assert_eq!(check(&bytes, 0, 2, Way::Send), Ok(()));
        bytes[999] ^= 4;
        assert_eq!(check(&bytes, 0, 2, Way::Send), Err(999));
    }

    #[test]
    fn another_sender_receiver_way_or_offset_is_noticed_at_once() {
        let mut bytes = vec![0; 64];
        fill(&mut bytes, 0, 2, Way::Send);
        for (from, to, way) in [(1, 2, Way::Send), (0, 3, Way::Send), (2, 0, Way::Send), (0, 2, Way::Write)] {
            assert!(check(&bytes, from, to, way).is_err_and(|offset| offset < 8), "{from} {to} {way:?}");
        }
        assert!(check(&bytes[8..], 0, 2, Way::Send).is_err_and(|offset| offset < 8));
    }
}
