//! Reads captures: which RoCEv2 packets went over which rail, from whom to whom, in which traffic class.
//!
//! A capture is a pcap file named `<node>.rail<k>.pcap`. A packet between two guests is in both guests' captures: as
//! sent in one, as received in the other.

use crate::{
    Error,
    options::{node_name, node_of_mac},
};
use etherparse::{LaxNetSlice, LaxSlicedPacket, LinkSlice, TransportSlice};
use pcap_file::{PcapError, pcap::PcapParser};
use std::{
    collections::BTreeMap,
    fmt, fs,
    net::IpAddr,
    path::{Path, PathBuf},
    time::Duration,
};

/// RoCEv2's UDP port (IBTA annex A17).
pub const ROCE_V2_PORT: u16 = 4791;

/// Whether the node of a capture sent a packet or received it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Direction {
    /// The node's NIC sent it.
    Sent,
    /// The node's NIC was given it.
    Received,
}

/// The part of a base transport header that tells what a packet is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TransportHeader {
    /// Transport and operation, such as 17: RC acknowledge.
    pub opcode: u8,
    /// The queue pair that it is for.
    pub destination_qp: u32,
    /// Its packet sequence number.
    pub psn: u32,
}

/// A RoCEv2 packet in a capture.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Packet {
    /// The node at whose NIC it was captured.
    pub node: String,
    /// The rail of that NIC.
    pub rail: usize,
    /// Which way it went there.
    pub direction: Direction,
    /// The node that sent it, by its NIC's address; `?` for a stranger's.
    pub from: String,
    /// The node that it was sent to; `?` for a stranger's or a group's address.
    pub to: String,
    /// Time since 1970.
    pub time: Duration,
    /// Source address.
    pub source: IpAddr,
    /// Destination address.
    pub destination: IpAddr,
    /// 0 to 63.
    pub dscp: u8,
    /// 0 to 3; 3 is "congestion experienced".
    pub ecn: u8,
    /// `None` in a packet that was cut off before its end.
    pub transport: Option<TransportHeader>,
}

/// The captures of a run.
#[derive(Debug, Clone)]
pub struct Captures {
    folder: PathBuf,
}

/// How far captures had grown at some time.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Mark(BTreeMap<PathBuf, u64>);

/// Counts of packets at their senders.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Table(BTreeMap<Flow, u64>);

/// What a [`Table`] counts by.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Flow {
    /// The rail.
    pub rail: usize,
    /// The sending node.
    pub from: String,
    /// The receiving node.
    pub to: String,
    /// The traffic class.
    pub dscp: u8,
}

impl Captures {
    /// The captures in a folder.
    #[must_use]
    pub fn new(folder: impl Into<PathBuf>) -> Self {
        Self { folder: folder.into() }
    }

    /// The capture of a node's NIC.
    #[must_use]
    pub fn path(&self, node: &str, rail: usize) -> PathBuf {
        self.folder.join(format!("{node}.rail{rail}.pcap"))
    }

    /// The folder.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Remembers where the captures end now. A capture that can't be looked at will be read from its beginning.
    #[must_use]
    pub fn mark(&self) -> Mark {
        let files = self.files().unwrap_or_default();
        let length = |path: &PathBuf| fs::metadata(path).map_or(0, |metadata| metadata.len());
        Mark(files.into_iter().map(|(path, ..)| (path.clone(), length(&path))).collect())
    }

    /// The RoCEv2 packets since a mark, capture by capture, each in the order in which it was written. A record that is
    /// still being written is left out.
    ///
    /// # Errors
    /// [`Error::File`] and [`Error::Capture`].
    pub fn packets_since(&self, mark: &Mark) -> Result<Vec<Packet>, Error> {
        let mut packets = Vec::new();
        for (path, node, rail) in self.files()? {
            let bytes = fs::read(&path).map_err(Error::file("read", &path))?;
            let start = mark.0.get(&path).copied().unwrap_or_default();
            let start = usize::try_from(start).unwrap_or(usize::MAX);
            let broken = |error: PcapError| Error::Capture { path: path.clone(), reason: error.to_string() };
            let (records, parser) = PcapParser::new(&bytes).map_err(broken)?;
            let mut rest = if start == 0 { records } else { bytes.get(start..).unwrap_or_default() };
            loop {
                match parser.next_packet(rest) {
                    Ok((next, record)) => {
                        packets.extend(decode(&node, rail, record.timestamp, &record.data));
                        rest = next;
                    }
                    Err(PcapError::IncompleteBuffer) => break,
                    Err(error) => return Err(broken(error)),
                }
            }
        }
        Ok(packets)
    }

    /// Each capture with its node and rail, in the order of their names.
    fn files(&self) -> Result<Vec<(PathBuf, String, usize)>, Error> {
        let mut files = Vec::new();
        for entry in fs::read_dir(&self.folder).map_err(Error::file("list", &self.folder))? {
            let path = entry.map_err(Error::file("list", &self.folder))?.path();
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            let parts = name.strip_suffix(".pcap").and_then(|name| name.split_once(".rail"));
            if let Some((node, rail)) =
                parts.and_then(|(node, rail)| Some((node.to_owned(), rail.parse().ok()?)))
            {
                files.push((path, node, rail));
            }
        }
        files.sort();
        Ok(files)
    }
}

impl Table {
    /// Counts packets by rail, direction and class. Only what was captured at the sender counts, so that each packet
    /// counts once.
    #[must_use]
    pub fn of(packets: &[Packet]) -> Self {
        let mut table = Self::default();
        for packet in packets.iter().filter(|packet| packet.direction == Direction::Sent) {
            let Packet { rail, from, to, dscp, .. } = packet;
            let flow = Flow { rail: *rail, from: from.clone(), to: to.clone(), dscp: *dscp };
            *table.0.entry(flow).or_default() += 1;
        }
        table
    }

    /// Every flow with its count, by rail first.
    pub fn flows(&self) -> impl Iterator<Item = (&Flow, u64)> {
        self.0.iter().map(|(flow, count)| (flow, *count))
    }

    /// Whether nothing was sent.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Every DSCP that was seen, once, in order.
    #[must_use]
    pub fn dscps(&self) -> Vec<u8> {
        let all: std::collections::BTreeSet<u8> = self.0.keys().map(|flow| flow.dscp).collect();
        all.into_iter().collect()
    }

    /// Packets on a rail from one node to another, of any class.
    #[must_use]
    pub fn count(&self, rail: usize, from: &str, to: &str) -> u64 {
        let of_it = |flow: &Flow| flow.rail == rail && flow.from == from && flow.to == to;
        self.flows().filter(|(flow, _)| of_it(flow)).map(|(_, count)| count).sum()
    }
}

impl fmt::Display for Table {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(out, "rail  direction    DSCP  RoCEv2 packets")?;
        for (flow, count) in self.flows() {
            let direction = format!("{} -> {}", flow.from, flow.to);
            writeln!(out, "{:<4}  {direction:<11}  {:>4}  {count:>14}", flow.rail, flow.dscp)?;
        }
        if self.is_empty() {
            writeln!(out, "(none)")?;
        }
        Ok(())
    }
}

/// A frame as a RoCEv2 packet; `None` if it isn't one, or is cut off before that could be told.
fn decode(node: &str, rail: usize, time: Duration, frame: &[u8]) -> Option<Packet> {
    let sliced = LaxSlicedPacket::from_ethernet(frame).ok()?;
    let Some(LinkSlice::Ethernet2(link)) = &sliced.link else { return None };
    let Some(TransportSlice::Udp(udp)) = &sliced.transport else { return None };
    if udp.destination_port() != ROCE_V2_PORT {
        return None;
    }
    let (source, destination, dscp, ecn): (IpAddr, IpAddr, _, _) = match sliced.net.as_ref()? {
        LaxNetSlice::Ipv4(ip) => {
            let header = ip.header();
            (header.source_addr().into(), header.destination_addr().into(), header.dcp(), header.ecn())
        }
        LaxNetSlice::Ipv6(ip) => {
            let header = ip.header();
            (header.source_addr().into(), header.destination_addr().into(), header.dscp(), header.ecn())
        }
        LaxNetSlice::Arp(_) => return None,
    };
    let name = |mac: [u8; 6]| node_of_mac(&mac).map_or_else(|| "?".into(), node_name);
    let (from, to) = (name(link.source()), name(link.destination()));
    let direction = if from == node { Direction::Sent } else { Direction::Received };
    Some(Packet {
        node: node.into(),
        rail,
        direction,
        from,
        to,
        time,
        source,
        destination,
        dscp: dscp.value(),
        ecn: ecn.value(),
        transport: transport_header(udp.payload()),
    })
}

/// The base transport header: 12 bytes (InfiniBand specification volume 1, 9.2).
fn transport_header(payload: &[u8]) -> Option<TransportHeader> {
    let header = payload.first_chunk::<12>()?;
    let number = |bytes: &[u8]| bytes.iter().fold(0, |number, byte| number << 8 | u32::from(*byte));
    Some(TransportHeader {
        opcode: header[0],
        destination_qp: number(&header[5..8]),
        psn: number(&header[9..12]),
    })
}

#[cfg(test)]
mod tests;
