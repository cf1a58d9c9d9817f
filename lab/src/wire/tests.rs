//! Frames made by hand, whole and cut off.

use super::*;
use etherparse::PacketBuilder;
use pcap_file::pcap::{PcapPacket, PcapWriter};

type Result<T = ()> = std::result::Result<T, Box<dyn std::error::Error>>;

const VM1: [u8; 6] = [0x52, 0x54, 0, 0, 1, 1];
const VM2: [u8; 6] = [0x52, 0x54, 0, 0, 1, 2];
/// An RC "RDMA write only" to queue pair 0x000012, PSN 0x26ea81.
const BTH: [u8; 12] = [0x0a, 0x40, 0xff, 0xff, 0, 0, 0, 0x12, 0x80, 0x26, 0xea, 0x81];

fn ipv4(tos: u8, port: u16, payload: &[u8]) -> Result<Vec<u8>> {
    let builder = PacketBuilder::ethernet2(VM1, VM2).ipv4([10, 0, 1, 1], [10, 0, 1, 2], 64).udp(49152, port);
    let mut frame = Vec::new();
    builder.write(&mut frame, payload)?;
    // The type of service is the second byte of the IP header.
    frame[15] = tos;
    Ok(frame)
}

fn ipv6(traffic_class: u8, payload: &[u8]) -> Result<Vec<u8>> {
    let mut destination = [0; 16];
    destination[15] = 2;
    let builder =
        PacketBuilder::ethernet2(VM1, VM2).ipv6([0xfd; 16], destination, 64).udp(49152, ROCE_V2_PORT);
    let mut frame = Vec::new();
    builder.write(&mut frame, payload)?;
    frame[14] = 0x60 | traffic_class >> 4;
    frame[15] = traffic_class << 4;
    Ok(frame)
}

fn read(frame: &[u8]) -> Option<Packet> {
    decode("vm1", 1, Duration::ZERO, frame)
}

fn write_capture(folder: &Path, name: &str, frames: &[Vec<u8>]) -> Result {
    let mut writer = PcapWriter::new(fs::File::create(folder.join(name))?)?;
    for frame in frames {
        writer.write_packet(&PcapPacket::new(Duration::from_secs(1), u32::try_from(frame.len())?, frame))?;
    }
    Ok(())
}

#[test]
fn a_packet_over_ipv4_is_read_whole() -> Result {
    let packet = read(&ipv4(106, ROCE_V2_PORT, &BTH)?).ok_or("not read")?;
    assert_eq!((packet.dscp, packet.ecn), (26, 2));
    assert_eq!((packet.from.as_str(), packet.to.as_str(), packet.direction), ("vm1", "vm2", Direction::Sent));
    assert_eq!(packet.destination.to_string(), "10.0.1.2");
    assert_eq!(packet.transport, Some(TransportHeader { opcode: 10, destination_qp: 0x12, psn: 0x26_ea81 }));
    Ok(())
}

#[test]
fn a_packet_over_ipv6_is_read_whole() -> Result {
    let packet = read(&ipv6(46 << 2 | 1, &BTH)?).ok_or("not read")?;
    assert_eq!((packet.dscp, packet.ecn, packet.destination.to_string().as_str()), (46, 1, "::2"));
    assert_eq!(packet.transport.map(|header| header.opcode), Some(10));
    Ok(())
}

#[test]
fn the_direction_is_the_capturing_nodes() -> Result {
    let packet = decode("vm2", 1, Duration::ZERO, &ipv4(0, ROCE_V2_PORT, &BTH)?).ok_or("not read")?;
    assert_eq!((packet.direction, packet.from.as_str()), (Direction::Received, "vm1"));
    Ok(())
}

#[test]
fn other_ports_are_not_roce() -> Result {
    assert_eq!(read(&ipv4(106, 4790, &BTH)?), None);
    Ok(())
}

#[test]
fn a_frame_cut_anywhere_is_read_as_far_as_it_goes() -> Result {
    for frame in [ipv4(106, ROCE_V2_PORT, &BTH)?, ipv6(106, &BTH)?] {
        let transport = frame.len() - BTH.len();
        for length in 0..frame.len() {
            match read(&frame[..length]) {
                Some(packet) => {
                    assert!(length >= transport, "{length}");
                    assert_eq!((packet.dscp, packet.transport), (26, None), "{length}");
                }
                None => assert!(length < transport, "{length}"),
            }
        }
    }
    Ok(())
}

#[test]
fn only_what_came_after_a_mark_is_counted_and_a_record_under_way_is_not() -> Result {
    let folder = tempfile::tempdir()?;
    let captures = Captures::new(folder.path());
    let (old, new) = (ipv4(0, ROCE_V2_PORT, &BTH)?, ipv4(106, ROCE_V2_PORT, &BTH)?);
    write_capture(folder.path(), "vm1.rail1.pcap", std::slice::from_ref(&old))?;
    let mark = captures.mark();
    assert!(captures.packets_since(&mark)?.is_empty());
    write_capture(folder.path(), "vm1.rail1.pcap", &[old, new.clone(), new.clone(), new])?;
    write_capture(folder.path(), "notes.txt", &[])?;
    let path = captures.path("vm1", 1);
    let bytes = fs::read(&path)?;
    fs::write(&path, &bytes[..bytes.len() - 5])?;
    let packets = captures.packets_since(&mark)?;
    assert_eq!(packets.len(), 2);
    let table = Table::of(&packets);
    assert_eq!((table.count(1, "vm1", "vm2"), table.count(1, "vm2", "vm1"), table.dscps()), (2, 0, vec![26]));
    assert_eq!(captures.packets_since(&Mark::default())?.len(), 3);
    Ok(())
}

#[test]
fn a_file_that_is_no_capture_is_named() -> Result {
    let folder = tempfile::tempdir()?;
    fs::write(folder.path().join("vm1.rail0.pcap"), "not a capture, but long enough for a header")?;
    let error = Captures::new(folder.path()).packets_since(&Mark::default()).err().ok_or("no error")?;
    assert!(error.to_string().contains("vm1.rail0.pcap"), "{error}");
    Ok(())
}

#[test]
fn the_table_counts_at_the_sender_only() -> Result {
    let frame = ipv4(106, ROCE_V2_PORT, &BTH)?;
    let both: Vec<_> =
        ["vm1", "vm2"].iter().filter_map(|node| decode(node, 1, Duration::ZERO, &frame)).collect();
    let text = Table::of(&both).to_string();
    assert_eq!(text, "rail  direction    DSCP  RoCEv2 packets\n1     vm1 -> vm2     26               1\n");
    Ok(())
}
