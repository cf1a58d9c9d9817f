//! The simulated network: what a message costs, and when it is there. Times in nanoseconds.

use fastrand::Rng;

/// What the network and the nodes are like.
#[derive(Clone, Debug)]
pub(super) struct Network {
    /// One way, through both kernels and all switches.
    pub(super) latency: u64,
    /// Of each node, in each direction.
    pub(super) gbit_s: f64,
    /// The part of all packets that is lost.
    pub(super) loss: f64,
    /// The part of all nodes that is slow.
    pub(super) slow: f64,
    /// The last leader starts so long after the first.
    pub(super) skew: u64,
}

/// A kernel waits so long for the acknowledgement of a segment, and twice as long each time after that; for that of a SYN
/// (Linux: TCP_RTO_MIN, TCP_TIMEOUT_INIT).
const RETRANSMIT: u64 = 200_000_000;
const RETRANSMIT_SYN: u64 = 1_000_000_000;
/// Bytes in a segment, and of its headers on the wire.
const SEGMENT: u64 = 1448;
const HEADERS: u64 = 66;
/// A lost segment is noticed early only when so many came after it.
const DUPLICATES: u64 = 3;
/// How many times slower a slow node's CPU and NIC are.
pub(super) const SLOWER: u64 = 10;

/// A node's NIC.
#[derive(Clone, Default, Debug)]
pub(super) struct Nic {
    sends_until: u64,
    receives_until: u64,
}

impl Network {
    /// How long a NIC needs for a message.
    pub(super) fn transfer(&self, bytes: u64, slow: bool) -> u64 {
        let wire = bytes + bytes.div_ceil(SEGMENT) * HEADERS;
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            clippy::cast_precision_loss,
            reason = "ns"
        )]
        let time = (wire as f64 * 8.0 / self.gbit_s) as u64;
        if slow { time * SLOWER } else { time }
    }

    /// How much later than without any loss a message is there.
    pub(super) fn delay(&self, random: &mut Rng, bytes: u64) -> u64 {
        let segments = bytes.div_ceil(SEGMENT).max(1);
        let tail = segments.min(DUPLICATES);
        let early = self.lost(random, segments - tail);
        // Each is sent again after one more round trip, one after the other.
        let early = early * 2 * self.latency;
        early + (0..tail).map(|_| self.timeouts(random, RETRANSMIT)).max().unwrap_or(0)
    }

    /// How much later a SYN or its answer is there.
    pub(super) fn delay_of_syn(&self, random: &mut Rng) -> u64 {
        self.timeouts(random, RETRANSMIT_SYN)
    }

    /// The timeouts of one segment until it comes through.
    fn timeouts(&self, random: &mut Rng, first: u64) -> u64 {
        let (mut sum, mut timeout) = (0, first);
        while self.loss > 0.0 && random.f64() < self.loss {
            sum += timeout;
            timeout *= 2;
        }
        sum
    }

    /// How many of so many segments are lost: each by itself with the probability of loss.
    fn lost(&self, random: &mut Rng, segments: u64) -> u64 {
        if self.loss <= 0.0 {
            return 0;
        }
        // How many come through before the next that does not, has a geometric distribution.
        let (mut lost, mut passed) = (0, 0.0);
        loop {
            passed += 1.0 + ((1.0 - random.f64()).ln() / (1.0 - self.loss).ln()).floor();
            #[expect(clippy::cast_precision_loss, reason = "far below 2^53")]
            if passed > segments as f64 {
                return lost;
            }
            lost += 1;
        }
    }
}

impl Nic {
    /// When a message that is handed over at `now` and needs `transfer` has left its first byte.
    pub(super) fn send(&mut self, now: u64, transfer: u64) -> u64 {
        let begin = now.max(self.sends_until);
        self.sends_until = begin + transfer;
        begin
    }

    /// When a message whose first byte comes at `now` is here.
    pub(super) fn receive(&mut self, now: u64, transfer: u64) -> u64 {
        self.receives_until = now.max(self.receives_until) + transfer;
        self.receives_until
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn network(loss: f64) -> Network {
        Network { latency: 10_000, gbit_s: 8.0, loss, slow: 0.0, skew: 0 }
    }

    #[test]
    fn a_nic_does_one_thing_at_a_time_in_each_direction() {
        let mut nic = Nic::default();
        assert_eq!([nic.send(5, 100), nic.send(6, 100), nic.receive(6, 100)], [5, 105, 106]);
        assert_eq!(network(0.0).transfer(1448, false), 1448 + 66);
        assert_eq!(network(0.0).transfer(1448, true), 10 * (1448 + 66));
    }

    #[test]
    fn the_end_of_a_message_costs_a_timeout_and_its_middle_a_round_trip() {
        let mut random = Rng::with_seed(1);
        assert_eq!(network(0.0).delay(&mut random, 1 << 30), 0);
        let lossy = network(0.01);
        let lost: u64 = (0..100).map(|_| lossy.lost(&mut random, 10_000)).sum();
        assert!((9_000..11_000).contains(&lost), "{lost} of a million segments");
        let late = (0..10_000).filter(|_| lossy.delay(&mut random, 100) >= RETRANSMIT).count();
        assert!((60..140).contains(&late), "{late} of 10000 short messages");
        assert!((0..10_000).any(|_| lossy.delay_of_syn(&mut random) == RETRANSMIT_SYN));
    }
}
