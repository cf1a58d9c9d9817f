//! What only a device shows: soft-RoCE, both ends of each connection on one port. `ROCE_TEST_PORT=rxe0 ROCE_TEST_GID=::ffff:10.0.0.1`
//! names it; the lab runs these in a guest.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use roce_types::{DevicePort, Gid, TrafficClass};
use roce_verbs::{
    CompletionQueue, Connection, Context, Depth, INFINIBAND, Kept, PacketPair, PacketQueue, PacketRoom,
    ProtectionDomain, QueuePair, Told, find_roce_v2, read_gid_table,
};

const PATIENCE: Duration = Duration::from_secs(20);

/// The port, opened.
struct Port {
    domain: Arc<ProtectionDomain>,
    /// To itself, but for the numbers.
    connection: Connection,
}

impl Port {
    fn open() -> Self {
        let variable = |name: &str| std::env::var(name).unwrap_or_else(|_| panic!("{name} names no port"));
        let port = DevicePort { device: variable("ROCE_TEST_PORT"), port: 1 };
        let gid: Gid = variable("ROCE_TEST_GID").parse().unwrap();
        let context = Context::open(&port.device).unwrap();
        let limits = context.limits().unwrap();
        assert!(limits.is_soft, "{port} is no soft-RoCE");
        let table = read_gid_table(Path::new(INFINIBAND), &port).unwrap();
        let connection = Connection {
            port: port.port,
            local_gid_index: find_roce_v2(&table, &port, gid).unwrap(),
            remote_gid: gid,
            remote_qp_number: 0,
            local_psn: 0,
            remote_psn: 0,
            path_mtu: context.port(port.port).unwrap().active_mtu,
            traffic_class: TrafficClass(0),
            service_level: 0,
            initiator_depth: 1,
            responder_depth: 1,
        };
        Self { domain: ProtectionDomain::create(&context).unwrap(), connection }
    }

    fn to(&self, remote_qp_number: u32) -> Connection {
        Connection { remote_qp_number, ..self.connection }
    }

    fn connect_packets(&self, a: &PacketPair, b: &PacketPair) {
        a.connect(&self.to(b.number())).unwrap();
        b.connect(&self.to(a.number())).unwrap();
    }

    /// Two queue pairs that are connected, the first of which completes in the queue.
    fn pairs(&self, completions: &Arc<CompletionQueue>) -> [QueuePair; 2] {
        let others = CompletionQueue::create(self.domain.context(), 8).unwrap();
        let pairs = [completions, &others].map(|completions| {
            let pair = QueuePair::create(&self.domain, completions, Depth { send: 4, receive: 4 }).unwrap();
            pair.initialize(self.connection.port).unwrap();
            pair
        });
        pairs[0].connect(&self.to(pairs[1].number())).unwrap();
        pairs[1].connect(&self.to(pairs[0].number())).unwrap();
        pairs
    }
}

/// Soft-RoCE keeps the place of a packet of which not all has come when its connection fails. There is one, and five are lost.
#[test]
#[ignore = "needs a soft-RoCE device; the lab runs it"]
fn packets_have_places_however_many_the_device_has_kept_of_connections_that_failed() {
    const LONG: usize = 4 << 20;
    const FAILURES: u16 = 5;
    let port = Port::open();
    let room = PacketRoom {
        packet: LONG,
        receives: 1,
        receives_again: FAILURES,
        sends: 1,
        depth: 2,
        transfers: 1,
        connections: 1,
    };
    let [mut sender, mut receiver] = [(); 2].map(|()| PacketQueue::create(&port.domain, room).unwrap());
    let packet = vec![7; LONG - 1];
    let mut kept: Option<[Kept; 2]> = None;
    for turn in 0..=FAILURES {
        let [mut a, mut b] = [&sender, &receiver].map(|queue| {
            let packets = queue.packets();
            if turn == 0 { packets.pair(1) } else { packets.pair_again(1) }.unwrap()
        });
        port.connect_packets(&a, &b);
        // The packet before counts as arrived, so that there is room.
        let [ours, theirs] = kept.take().map_or([None, None], |kept| kept.map(Some));
        sender.begin(&mut a, ours, 1).unwrap();
        receiver.begin(&mut b, theirs, 0).unwrap();
        assert!(sender.send(&a, &[turn as u8], &packet, true).unwrap());
        if turn < FAILURES {
            // Soft-RoCE sends a few hundred KiB at most that were not acknowledged: the packet is in the middle.
            let ours = sender.take_down(a, &mut |_, _| {}).unwrap();
            let theirs = receiver.take_down(b, &mut |_, told| panic!("{told:?}")).unwrap();
            kept = Some([ours, theirs]);
            continue;
        }
        let (end, mut came) = (Instant::now() + PATIENCE, None);
        while came.is_none() {
            assert!(Instant::now() < end, "there was no place for a packet");
            let mut tell = |_, told: Told<'_>| match told {
                Told::Packet(bytes) => came = Some((bytes[0], bytes.len(), bytes[1..] == packet)),
                other => panic!("{other:?}"),
            };
            receiver.poll(&mut tell).unwrap();
            sender.poll_sent(&mut |_, told| assert!(matches!(told, Told::Sent(1)), "{told:?}")).unwrap();
        }
        assert_eq!(came, Some((FAILURES as u8, LONG, true)));
    }
}

/// Packets that do not tell when they have arrived are told of with one that does, or when the device is asked; then all slots are free.
#[test]
#[ignore = "needs a soft-RoCE device; the lab runs it"]
fn packets_that_do_not_tell_are_told_of_with_one_that_does_or_when_asked() {
    let port = Port::open();
    let room = PacketRoom {
        packet: 64,
        receives: 32,
        receives_again: 0,
        sends: 4,
        depth: 5,
        transfers: 1,
        connections: 1,
    };
    let [mut sender, receiver] = [(); 2].map(|()| PacketQueue::create(&port.domain, room).unwrap());
    let [mut a, b] = [&sender, &receiver].map(|queue| queue.packets().pair(1).unwrap());
    port.connect_packets(&a, &b);
    sender.begin(&mut a, None, 0).unwrap();
    let told = |sender: &mut PacketQueue| {
        std::thread::sleep(Duration::from_millis(50));
        let mut counts = Vec::new();
        let mut tell = |_, told: Told<'_>| match told {
            Told::Sent(count) => counts.push(count),
            other => panic!("{other:?}"),
        };
        while sender.poll_sent(&mut tell).unwrap() > 0 {}
        counts
    };
    let send = |sender: &mut PacketQueue, a: &PacketPair, tells: &[bool]| {
        tells.iter().all(|tells| sender.send(a, &[7; 8], &[], *tells).unwrap())
    };
    assert!(!sender.ask(&a).unwrap());
    for _ in 0..2 {
        assert!(send(&mut sender, &a, &[false, true, false, false]));
        assert!(!send(&mut sender, &a, &[true]));
        assert_eq!(told(&mut sender), [2]);
        assert!(send(&mut sender, &a, &[true]));
        assert_eq!(told(&mut sender), [3]);
    }
    assert!(send(&mut sender, &a, &[false, false]));
    assert_eq!(told(&mut sender), [0; 0]);
    assert!(sender.ask(&a).unwrap());
    assert_eq!(told(&mut sender), [2]);
    assert!(!sender.ask(&a).unwrap());

    // Of what was taken down nobody has heard; what the peer has not got goes over the next one, and tells.
    assert!(send(&mut sender, &a, &[false, false, false]));
    assert_eq!(told(&mut sender), [0; 0]);
    let kept = sender.take_down(a, &mut |_, told| panic!("{told:?}")).unwrap();
    let mut a = sender.packets().pair_again(1).unwrap();
    let b = receiver.packets().pair_again(1).unwrap();
    port.connect_packets(&a, &b);
    sender.begin(&mut a, Some(kept), 1).unwrap();
    assert_eq!(told(&mut sender), [1, 1]);
    assert!(send(&mut sender, &a, &[false, false, false, true]));
    assert_eq!(told(&mut sender), [4]);
}

/// Entries of a queue pair that is gone are taken out of the device's queue, with those that stood before them, behind them and between.
#[test]
#[ignore = "needs a soft-RoCE device; the lab runs it"]
fn when_a_queue_pair_goes_what_others_have_completed_is_told_once_and_in_order() {
    let port = Port::open();
    let completions = CompletionQueue::create(port.domain.context(), 8).unwrap();
    let [[stays, its_peer], [goes, other_peer]] = [(); 2].map(|()| port.pairs(&completions));
    for peer in [&its_peer, &other_peer] {
        for _ in 0..3 {
            peer.post_receive(roce_verbs::Buffer::register(&port.domain, 64).unwrap()).unwrap();
        }
    }
    let send = |pair: &QueuePair, number: u8| {
        let mut buffer = roce_verbs::Buffer::register(&port.domain, 64).unwrap();
        buffer.as_mut_slice()[0] = number;
        pair.post_send(buffer, 1).unwrap();
        // Nobody takes what is told meanwhile.
        std::thread::sleep(Duration::from_millis(50));
    };
    for (pair, number) in [(&goes, 1), (&stays, 2), (&goes, 3), (&stays, 4), (&goes, 5)] {
        send(pair, number);
    }
    goes.close().unwrap();
    send(&stays, 6);
    let end = Instant::now() + PATIENCE;
    let told: Vec<u8> = (0..3).map(|_| completions.wait(end).unwrap().buffer.as_slice()[0]).collect();
    assert_eq!(told, [2, 4, 6]);
    assert!(completions.poll().unwrap().is_none());
    // All room is there again.
    assert!(format!("{completions:?}").contains("outstanding: 0"), "{completions:?}");
}
