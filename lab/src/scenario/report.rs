//! What each rank of `examples/pair_exchange` writes with `--report DIR`: `DIR/rank-<rank>.json`.

use crate::Error;
use serde::{Deserialize, Serialize};
use std::{fs, path::Path};

/// One rank's report.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RankReport {
    /// Its rank.
    pub rank: usize,
    /// The number of ranks.
    pub size: usize,
    /// The node's name.
    pub node: String,
    /// Its number among the node's ranks.
    pub local_rank: usize,
    /// The NIC ports that it was assigned, best first.
    #[serde(default)]
    pub nics: Vec<Nic>,
    /// 802.1p priority.
    #[serde(default)]
    pub priority: Option<u8>,
    /// The DSCP that it was told to use.
    #[serde(default)]
    pub dscp: Option<u8>,
    /// The byte that DSCP and ECN make.
    #[serde(default)]
    pub traffic_class: Option<u8>,
    /// `ROCE_CPUS`.
    #[serde(default)]
    pub planned_cpus: Option<String>,
    /// `ROCE_NUMA_NODES`.
    #[serde(default)]
    pub planned_numa_nodes: Option<String>,
    /// `Cpus_allowed_list` of /proc/self/status.
    pub cpus_allowed: String,
    /// The policy in /proc/self/numa_maps, such as `prefer:0`.
    pub memory_policy: String,
    /// RLIMIT_MEMLOCK: `unlimited`, or bytes.
    #[serde(deserialize_with = "text_or_number")]
    pub memlock: String,
    /// What it did with each peer.
    pub pairs: Vec<Pair>,
}

/// A NIC port of a rank.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Nic {
    /// The RDMA device.
    pub device: String,
    /// Its port, from 1.
    pub port: u32,
    /// The GID's value.
    pub gid: String,
    /// The GID's row.
    pub gid_index: u32,
    /// The rail.
    #[serde(default)]
    pub rail: Option<usize>,
}

/// An exchange with one peer, as one rank saw it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Pair {
    /// The other rank.
    pub peer: usize,
    /// Its node.
    pub peer_node: String,
    /// The rail that the pair went over.
    #[serde(default)]
    pub rail: Option<usize>,
    /// The own device.
    pub device: String,
    /// The own GID.
    pub gid: String,
    /// The peer's GID.
    pub peer_gid: String,
    /// In bytes.
    pub path_mtu: u32,
    /// Moved each way by each operation.
    pub bytes: u64,
    /// Whether every byte that arrived by send/receive was right.
    pub send_recv: bool,
    /// The same of RDMA write.
    pub write: bool,
    /// The same of RDMA read.
    #[serde(default)]
    pub read: Option<bool>,
    /// Half round trips.
    #[serde(default)]
    pub latency_us: Option<Latency>,
}

/// Latencies in microseconds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Latency {
    /// The middle one.
    pub median: f64,
    /// The shortest.
    pub min: f64,
    /// The longest.
    pub max: f64,
    /// How many there were.
    pub samples: u64,
}

/// The reports in a folder, by rank.
pub(super) fn read_all(folder: &Path) -> Result<Vec<RankReport>, Error> {
    let mut reports: Vec<RankReport> = Vec::new();
    for entry in fs::read_dir(folder).map_err(Error::file("list", folder))? {
        let path = entry.map_err(Error::file("list", folder))?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if name.starts_with("rank-") && name.ends_with(".json") {
            let text = fs::read_to_string(&path).map_err(Error::file("read", &path))?;
            let report =
                serde_json::from_str(&text).map_err(|error| Error::file("parse", &path)(error.into()))?;
            reports.push(report);
        }
    }
    reports.sort_by_key(|report| report.rank);
    Ok(reports)
}

/// A limit is a number or the word `unlimited`.
fn text_or_number<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Either {
        Text(String),
        Number(u64),
    }
    Ok(match Either::deserialize(deserializer)? {
        Either::Text(text) => text,
        Either::Number(number) => number.to_string(),
    })
}
