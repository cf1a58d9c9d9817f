//! The step's secret and what is derived from it.

use std::collections::BTreeSet;
use std::fmt;
use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicBool, Ordering};

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

use crate::environment;
use crate::error::{Error, Result};

/// The variable that carries it, made by the plugin in srun: 64 hexadecimal digits.
pub const SECRET_VARIABLE: &str = "SLURM_ROCE_SECRET";

/// Whether this process has taken it out of its environment.
static TAKEN: AtomicBool = AtomicBool::new(false);

/// How many ports a node's leader may try.
const CANDIDATES: u32 = 16;

/// 32 bytes that only the ranks of one step know. Overwritten when dropped, never printed.
#[derive(Clone)]
pub struct Secret(Zeroizing<[u8; 32]>);

impl Secret {
    /// From 32 random bytes.
    #[must_use]
    pub fn new(bytes: [u8; 32]) -> Self {
        Self(Zeroizing::new(bytes))
    }

    /// 32 fresh bytes from the operating system.
    ///
    /// # Errors
    /// [`Error::Random`].
    pub fn random() -> Result<Self> {
        let mut secret = Self::new([0; 32]);
        getrandom::fill(&mut *secret.0).map_err(|error| Error::Random(error.to_string()))?;
        Ok(secret)
    }

    /// Takes `SLURM_ROCE_SECRET` out of the environment; `None` where it is not set, or empty.
    ///
    /// Its bytes are overwritten where they were, so that `/proc/PID/environ` does not show them any more. The variable is
    /// unset if this process has one thread; with more it stays, empty, since unsetting it could disturb a thread
    /// that reads the environment. Either way children inherit no secret. Call it, or [`Bootstrap::init`](crate::Bootstrap::init)
    /// which does, before the program starts others that should not have it.
    ///
    /// # Errors
    /// [`Error::BadSecret`], which does not show the value; [`Error::SecretTaken`] if this process took it before.
    pub fn take_from_environment() -> Result<Option<Self>> {
        let Some(text) = environment::take(SECRET_VARIABLE) else {
            return if TAKEN.load(Ordering::Relaxed) { Err(Error::SecretTaken) } else { Ok(None) };
        };
        TAKEN.store(true, Ordering::Relaxed);
        Self::from_hex(&text).map(Some)
    }

    /// From 64 hexadecimal digits.
    ///
    /// # Errors
    /// [`Error::BadSecret`].
    pub fn from_hex(digits: &[u8]) -> Result<Self> {
        let bad = || Error::BadSecret { length: digits.len() };
        if digits.len() != 64 {
            return Err(bad());
        }
        let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
        let mut secret = Self::new([0; 32]);
        for (byte, pair) in secret.0.iter_mut().zip(digits.chunks_exact(2)) {
            *byte = digit(pair[0]).ok_or_else(bad)? << 4 | digit(pair[1]).ok_or_else(bad)?;
        }
        Ok(secret)
    }

    /// The 64 digits that [`from_hex`](Self::from_hex) reads, overwritten when dropped.
    #[must_use]
    pub fn to_hex(&self) -> Zeroizing<String> {
        let mut digits = Zeroizing::new(String::with_capacity(64));
        for half in self.0.iter().flat_map(|byte| [byte >> 4, byte & 15]) {
            digits.extend(char::from_digit(u32::from(half), 16));
        }
        digits
    }

    /// What only who knows the secret can say about the parts: HMAC-SHA256 over them, each with its length.
    ///
    /// ```
    /// # use roce_bootstrap::Secret;
    /// let secret = Secret::random()?;
    /// let tag = secret.tag(&[b"from rank 1", b"hello"]);
    /// assert!(secret.is_tag(&[b"from rank 1", b"hello"], &tag));
    /// assert!(!secret.is_tag(&[b"from rank 2", b"hello"], &tag));
    /// # Ok::<(), roce_bootstrap::Error>(())
    /// ```
    #[must_use]
    pub fn tag(&self, parts: &[&[u8]]) -> [u8; 32] {
        authenticate(self.bytes(), parts)
    }

    /// Whether that is the parts' tag; how long it takes says nothing about the right one.
    #[must_use]
    pub fn is_tag(&self, parts: &[&[u8]], tag: &[u8]) -> bool {
        bool::from(self.tag(parts).ct_eq(tag))
    }

    pub(crate) fn bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The ports that a node's leader tries, in order, without repetition.
    pub(crate) fn candidate_ports(
        &self,
        job: u32,
        step: u32,
        node: u32,
        ports: &RangeInclusive<u16>,
    ) -> Vec<u16> {
        let span = u64::from(ports.end().saturating_sub(*ports.start())) + 1;
        let mut seen = BTreeSet::new();
        let port = |attempt: u32| {
            let numbers = [job, step, node, attempt].map(u32::to_be_bytes).concat();
            let [a, b, c, d, e, f, g, h, ..] = authenticate(self.bytes(), &[b"port", &numbers]);
            let offset = u64::from_be_bytes([a, b, c, d, e, f, g, h]) % span;
            // `offset` is below `span`, which is at most 65,536.
            ports.start().saturating_add(u16::try_from(offset).unwrap_or(0))
        };
        (0..CANDIDATES).map(port).filter(|port| seen.insert(*port)).collect()
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// HMAC-SHA256 over the parts, each preceded by its length, so that no two lists of parts look alike.
pub(crate) fn authenticate(key: &[u8; 32], parts: &[&[u8]]) -> [u8; 32] {
    // A key of 32 bytes fits into the block of SHA-256, so this is HMAC without hashing the key first.
    let mut mac = <Hmac<Sha256> as KeyInit>::new(&{
        let mut block = hmac::digest::Key::<Hmac<Sha256>>::default();
        block[..32].copy_from_slice(key);
        block
    });
    for part in parts {
        mac.update(&(part.len() as u64).to_be_bytes());
        mac.update(part);
    }
    mac.finalize().into_bytes().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secret(byte: u8) -> Secret {
        Secret::new([byte; 32])
    }

    /// Test case 2 of RFC 4231 has a key of 4 bytes, which HMAC pads with zeros as ours is padded.
    #[test]
    fn it_is_hmac_sha256() {
        let mut key = [0; 32];
        key[..4].copy_from_slice(b"Jefe");
        // One part is preceded by its length, so the reference is computed over the same bytes.
        let mut reference = <Hmac<Sha256> as KeyInit>::new_from_slice(b"Jefe").unwrap();
        reference.update(&28u64.to_be_bytes());
        reference.update(b"what do ya want for nothing?");
        let reference: [u8; 32] = reference.finalize().into_bytes().into();
        assert_eq!(authenticate(&key, &[b"what do ya want for nothing?"]), reference);
    }

    #[test]
    fn parts_cannot_be_shifted_into_each_other() {
        let key = [1; 32];
        assert_ne!(authenticate(&key, &[b"ab", b"c"]), authenticate(&key, &[b"a", b"bc"]));
    }

    #[test]
    fn hexadecimal_digits_are_read_strictly_and_never_shown() {
        let good = "00ff".repeat(16);
        assert_eq!(Secret::from_hex(good.as_bytes()).unwrap().bytes()[..2], [0, 255]);
        assert_eq!(*Secret::from_hex(good.as_bytes()).unwrap().to_hex(), good);
        assert_ne!(Secret::random().unwrap().bytes(), Secret::random().unwrap().bytes());
        for text in ["", "00", &"0g".repeat(32), &"0".repeat(65)] {
            let error = Secret::from_hex(text.as_bytes()).unwrap_err().to_string();
            assert!(error.contains(&format!("it has {} characters", text.len())), "{error}");
            assert!(text.is_empty() || text == "00" || !error.contains(text));
        }
        assert_eq!(format!("{:?}", secret(7)), "Secret(..)");
    }

    #[test]
    fn candidate_ports_are_the_same_for_all_and_differ_between_steps() {
        let range = 49152..=65535;
        let ports = secret(1).candidate_ports(7, 0, 0, &range);
        assert_eq!(ports, secret(1).candidate_ports(7, 0, 0, &range));
        assert_ne!(ports, secret(1).candidate_ports(7, 1, 0, &range));
        assert_ne!(ports, secret(1).candidate_ports(7, 0, 1, &range));
        assert_ne!(ports, secret(2).candidate_ports(7, 0, 0, &range));
        assert!(ports.len() > 10 && ports.iter().all(|port| range.contains(port)));
        assert_eq!(secret(1).candidate_ports(7, 0, 0, &(5000..=5000)), [5000]);
        assert_eq!(secret(1).candidate_ports(7, 0, 0, &(0..=u16::MAX)).len(), 16);
    }
}
