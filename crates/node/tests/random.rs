//! Valid inputs, changed at random: every result is a node or an error, and comes soon. The seed is
//! fixed, so that a failure fails again; `fuzz/` searches further.

mod common;

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use roce_node::{capture, fuzzing, read_bytes};

/// Marsaglia's xorshift64*.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() % (bound.max(1) as u64)).unwrap()
    }

    /// Some bytes changed, doubled, cut out, or replaced by what parsers stumble over.
    fn changed(&mut self, valid: &[u8]) -> Vec<u8> {
        const TRAPS: [&[u8]; 12] = [
            b"",
            b"\0",
            b"-1",
            b"99999999999999999999",
            b"0xffffffff",
            b"\"",
            b"<",
            b"/>",
            b"&amp;",
            b"..",
            b",",
            "\u{fffd}".as_bytes(),
        ];
        let mut bytes = valid.to_vec();
        for _ in 0..=self.below(4) {
            let at = self.below(bytes.len());
            let end = (at + 1 + self.below(24)).min(bytes.len());
            match self.below(6) {
                0 if at < bytes.len() => bytes[at] = self.next().to_le_bytes()[0],
                1 => drop(bytes.drain(at..end)),
                2 => {
                    let piece = bytes[at..end].to_vec();
                    let to = self.below(bytes.len());
                    bytes.splice(to..to, piece);
                }
                3 => bytes.truncate(at),
                _ => {
                    let trap = TRAPS[self.below(TRAPS.len())];
                    bytes.splice(at..(at + self.below(8)).min(end), trap.iter().copied());
                }
            }
        }
        bytes
    }
}

/// Reads each input many times, changed, and gives up on none for long.
fn survive(name: &str, valid: &[u8], runs: usize) {
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    for run in 0..runs {
        let bytes = random.changed(valid);
        let start = Instant::now();
        drop(read_bytes(Path::new(name), &bytes));
        assert!(start.elapsed() < Duration::from_secs(20), "{name}: run {run} took {:?}", start.elapsed());
    }
}

#[test]
fn changed_xml_is_a_node_or_an_error() {
    let hwloc = include_str!("inputs/hwloc3.xml");
    let nccl = include_str!("inputs/nccl.xml");
    read_bytes(Path::new("valid"), hwloc.as_bytes()).unwrap();
    read_bytes(Path::new("valid"), nccl.as_bytes()).unwrap();
    survive("hwloc3.xml", hwloc.as_bytes(), 3000);
    survive("nccl.xml", nccl.as_bytes(), 3000);
}

#[test]
fn changed_real_files_are_nodes_or_errors() {
    let Some(data) = common::data() else { return };
    for folder in ["hwloc-xml", "nccl-xml"] {
        for entry in fs::read_dir(data.join(folder)).unwrap() {
            let path = entry.unwrap().path();
            survive(&path.display().to_string(), &fs::read(&path).unwrap(), 20);
        }
    }
}

#[test]
fn changed_archives_are_nodes_or_errors_and_stay_inside() {
    let folder = roce_machines::scratch().unwrap();
    let tree = folder.path().join("tree");
    roce_machines::named("soft_roce_laptop").unwrap().build(&tree).unwrap();
    let out = folder.path().join("capture.tar");
    capture(&tree, &out, false).unwrap();
    let valid = fs::read(&out).unwrap();
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    for _ in 0..200 {
        fuzzing::archive(&random.changed(&valid));
    }
}

#[test]
fn changed_values_are_read_or_refused() {
    let values = [
        "0-3,8,10-11",
        "0000:0000:0000:0000:0000:ffff:0a00:0001",
        "4: ACTIVE",
        "2.5 Gb/sec (1X SDR)",
        "0000:21:00.0",
        "mlx5_0:1",
        "0x030200",
        "Global tclass=106",
        "0x0000ffff,,0xffffffff",
        "af31",
        "format = 1\n[addresses]\neth0 = [\"10.0.0.1\"]\n[qos.\"mlx5_0:1\"]\npfc = [3]\ndscp = { 26 = 3 }\n",
    ];
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    for value in values {
        for _ in 0..2000 {
            let bytes = random.changed(value.as_bytes());
            let text = String::from_utf8_lossy(&bytes);
            fuzzing::sysfs_values(&text);
            fuzzing::capture_facts(&text);
        }
    }
}
