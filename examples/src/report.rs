//! What a rank tells about itself and its transfers, as JSON: `rank-<rank>.json`.

use std::fs;
use std::io;
use std::path::Path;

use roce_launcher::{Job, Nic};
use serde::Serialize;

/// One rank.
#[derive(Debug, Serialize)]
pub struct Report {
    /// 0 to `size - 1`.
    pub rank: u32,
    /// How many ranks.
    pub size: u32,
    /// This rank's node.
    pub node: String,
    /// Its number there.
    pub local_rank: u32,
    /// The NIC ports it may use, best first.
    pub nics: Vec<NicReport>,
    /// The 802.1p priority, where a class was asked for.
    pub priority: Option<u8>,
    /// The code point, where a class was asked for.
    pub dscp: Option<u8>,
    /// The byte of the IP header.
    pub traffic_class: u8,
    /// The CPUs that the plan gave this task, as a list.
    pub planned_cpus: Option<String>,
    /// The NUMA nodes that the plan gave this task, as a list.
    pub planned_numa_nodes: Option<String>,
    /// The CPUs that the kernel lets it run on (`/proc/self/status`, Cpus_allowed_list).
    pub cpus_allowed: Option<String>,
    /// Its memory policy, as `prefer:0` (`/proc/self/numa_maps`, second field of the first line).
    pub memory_policy: Option<String>,
    /// How much memory it may lock: `unlimited`, or bytes (`/proc/self/limits`, soft limit).
    pub memlock: Option<String>,
    /// Its transfers, by peer.
    pub pairs: Vec<PairReport>,
}

/// One NIC port.
#[derive(Debug, Serialize)]
pub struct NicReport {
    /// The RDMA device.
    pub device: String,
    /// Its port, from 1.
    pub port: u8,
    /// Its address.
    pub gid: String,
    /// The address's row when it was assigned.
    pub gid_index: Option<u32>,
    /// Its rail.
    pub rail: Option<u32>,
}

/// The transfers with one peer.
#[derive(Debug, Serialize)]
pub struct PairReport {
    /// The peer's rank.
    pub peer: u32,
    /// The peer's node.
    pub peer_node: String,
    /// The rail they talk over.
    pub rail: Option<u32>,
    /// This end's RDMA device.
    pub device: String,
    /// This end's address.
    pub gid: String,
    /// The peer's address.
    pub peer_gid: String,
    /// Payload bytes per packet.
    pub path_mtu: u32,
    /// Attributes of the queue pair that the kernel reports as they were asked for.
    pub confirmed: Vec<&'static str>,
    /// Attributes that it does not report, as some drivers do not report all.
    pub not_reported: Vec<&'static str>,
    /// How many bytes each transfer moved.
    pub bytes: usize,
    /// Did send and receive bring every byte, both ways?
    pub send_recv: bool,
    /// Did RDMA write?
    pub write: bool,
    /// Did RDMA read?
    pub read: bool,
    /// Half round trips of 8 bytes.
    pub latency_us: Latency,
}

/// Half round trips in microseconds.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Latency {
    /// The middle one.
    pub median: f64,
    /// The shortest.
    pub min: f64,
    /// The longest.
    pub max: f64,
    /// How many.
    pub samples: usize,
}

impl Latency {
    /// From samples in microseconds; zeros for none.
    #[must_use]
    pub fn of(mut samples: Vec<f64>) -> Self {
        samples.sort_by(f64::total_cmp);
        let at = |place: usize| samples.get(place).copied().unwrap_or(0.0);
        Self {
            median: at(samples.len() / 2),
            min: at(0),
            max: at(samples.len().saturating_sub(1)),
            samples: samples.len(),
        }
    }
}

impl Report {
    /// How this rank was placed; no transfers yet.
    #[must_use]
    pub fn of(job: &Job) -> Self {
        let assignment = job.assignment();
        let text = |file: &str| fs::read_to_string(file).unwrap_or_default();
        Self {
            rank: job.rank(),
            size: job.size(),
            node: job.node().to_owned(),
            local_rank: job.local_rank(),
            nics: assignment.iter().flat_map(|assignment| &assignment.nics).map(NicReport::of).collect(),
            priority: assignment.and_then(|assignment| assignment.priority).map(roce_launcher::Priority::get),
            dscp: assignment.and_then(|assignment| assignment.dscp).map(roce_launcher::Dscp::get),
            traffic_class: assignment.map_or(0, |assignment| assignment.traffic_class.0),
            planned_cpus: assignment.and_then(|assignment| assignment.cpus.as_ref()).map(ToString::to_string),
            planned_numa_nodes: assignment
                .and_then(|assignment| assignment.numa_nodes.as_ref())
                .map(ToString::to_string),
            cpus_allowed: cpus_allowed(&text("/proc/self/status")),
            memory_policy: memory_policy(&text("/proc/self/numa_maps")),
            memlock: memlock(&text("/proc/self/limits")),
            pairs: Vec::new(),
        }
    }

    /// Writes it to `<folder>/rank-<rank>.json`, making the folder where it is missing.
    ///
    /// # Errors
    /// What creating the folder or writing the file says.
    pub fn write(&self, folder: &Path) -> io::Result<()> {
        fs::create_dir_all(folder)?;
        let mut text = serde_json::to_string_pretty(self)?;
        text.push('\n');
        fs::write(folder.join(format!("rank-{}.json", self.rank)), text)
    }
}

impl NicReport {
    fn of(nic: &Nic) -> Self {
        Self {
            device: nic.port.device.clone(),
            port: nic.port.port,
            gid: nic.gid.to_string(),
            gid_index: nic.gid_index,
            rail: nic.rail,
        }
    }
}

fn cpus_allowed(status: &str) -> Option<String> {
    let line = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"))?;
    Some(line.trim().to_owned())
}

fn memory_policy(numa_maps: &str) -> Option<String> {
    numa_maps.lines().next()?.split_whitespace().nth(1).map(str::to_owned)
}

fn memlock(limits: &str) -> Option<String> {
    let line = limits.lines().find_map(|line| line.strip_prefix("Max locked memory"))?;
    line.split_whitespace().next().map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_texts_are_read() {
        assert_eq!(cpus_allowed("Name:\tx\nCpus_allowed_list:\t0-1,4\n").as_deref(), Some("0-1,4"));
        let maps = "5581d8a00000 prefer:0 file=/usr/bin/x mapped=3 N0=3\n5581d8b00000 default anon=1\n";
        assert_eq!(memory_policy(maps).as_deref(), Some("prefer:0"));
        let limits = "Limit   Soft Limit  Hard Limit  Units\nMax locked memory         unlimited            unlimited            bytes\n";
        assert_eq!(memlock(limits).as_deref(), Some("unlimited"));
        assert_eq!((cpus_allowed(""), memory_policy(""), memlock("")), (None, None, None));
    }

    #[test]
    fn the_median_is_the_middle_sample() {
        let latency = Latency::of(vec![3.0, 1.0, 9.0]);
        assert_eq!((latency.median, latency.min, latency.max, latency.samples), (3.0, 1.0, 9.0, 3));
        assert_eq!(Latency::of(Vec::new()).samples, 0);
    }
}
