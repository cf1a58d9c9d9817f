//! What holds for every plan, on random machines with random options.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use roce_node::{
    GidKind, GidRow, Gpu, GpuVendor, LinkLayer, Netdev, Node, NumaNode, Package, PciPlace, PortState,
    RdmaPort,
};
use roce_plan::{
    BindMode, GidSelection, NicSelection, Placement, Plan, PlanError, Request, Site, Task, exports, plan,
};
use roce_types::{CpuSet, DevicePort, Gid, PciAddress};

/// What is drawn of a port; the rest follows from its number.
#[derive(Debug, Clone)]
struct PortFacts {
    up: bool,
    ethernet: bool,
    carrier: bool,
    fast: bool,
    numa_node: Option<u32>,
    host_bridge: u8,
    switch: u8,
}

fn port_facts() -> impl Strategy<Value = PortFacts> {
    (
        prop::bool::weighted(0.8),
        prop::bool::weighted(0.8),
        prop::bool::weighted(0.9),
        prop::bool::weighted(0.9),
        prop::option::weighted(0.9, 0_u32..4),
        0_u8..3,
        0_u8..2,
    )
        .prop_map(|(up, ethernet, carrier, fast, numa_node, host_bridge, switch)| PortFacts {
            up,
            ethernet,
            carrier,
            fast,
            numa_node,
            host_bridge,
            switch,
        })
}

fn place(host_bridge: u8, switch: u8, device: u8) -> PciPlace {
    let address = |bus, device| PciAddress { domain: 0, bus, device, function: 0 };
    let bus = host_bridge * 64;
    PciPlace {
        address: address(bus + 16 + switch * 8, device),
        host_bridge: format!("pci0000:{bus:02x}"),
        bridges: vec![address(bus, switch), address(bus + 1 + switch, 0), address(bus + 4 + switch, device)],
    }
}

/// A machine with 4 NUMA nodes of 4 CPUs in 2 packages.
fn machine(ports: &[PortFacts], gpus: &[(u8, u8)]) -> Node {
    let cpus = |first: usize, last: usize| (first..=last).collect::<CpuSet>();
    let mut node = Node {
        cpus: cpus(0, 15),
        packages: (0..2).map(|id| Package { id, cpus: cpus(id as usize * 8, id as usize * 8 + 7) }).collect(),
        rdma_class_exists: true,
        ..Node::default()
    };
    for id in 0..4_u32 {
        let distances = (0..4).map(|other| {
            (
                other,
                if other == id {
                    10
                } else if other / 2 == id / 2 {
                    12
                } else {
                    32
                },
            )
        });
        let first = id as usize * 4;
        node.numa_nodes.push(NumaNode { id, cpus: cpus(first, first + 3), distances: distances.collect() });
    }
    for (number, &(host_bridge, switch)) in (16_u8..).zip(gpus) {
        let pci = place(host_bridge, switch, number);
        node.gpus.push(Gpu { pci, vendor: GpuVendor::Nvidia, numa_node: Some(u32::from(host_bridge)) });
    }
    for (number, facts) in (0_u8..).zip(ports) {
        let netdev = format!("eth{number}");
        let gid = Gid::from(std::net::Ipv4Addr::new(10, 0, number, 1));
        node.netdevs.insert(
            netdev.clone(),
            Netdev { operstate: "up".into(), carrier: Some(facts.carrier), ..Netdev::default() },
        );
        node.ports.push(RdmaPort {
            name: DevicePort { device: format!("mlx5_{number}"), port: 1 },
            link_layer: if facts.ethernet { LinkLayer::Ethernet } else { LinkLayer::InfiniBand },
            state: if facts.up { PortState::Active } else { PortState::Other("DOWN".into()) },
            rate_mbit: Some(if facts.fast { 400_000 } else { 25_000 }),
            pci: Some(place(facts.host_bridge, facts.switch, number)),
            numa_node: facts.numa_node,
            netdev: Some(netdev.clone()),
            asic: None,
            physical_function: None,
            qos: None,
            forced_traffic_class: None,
            gids: vec![GidRow { index: 3, gid, kind: Some(GidKind::RoceV2), netdev: Some(netdev) }],
        });
    }
    node
}

fn request() -> impl Strategy<Value = Request> {
    let nics = prop_oneof![
        Just(NicSelection::Auto),
        Just(NicSelection::All),
        (1_usize..4).prop_map(NicSelection::Count),
        Just(NicSelection::Names(vec!["mlx5_0".into(), "eth1".into()])),
    ];
    let place = prop_oneof![
        Just(Placement::Nearest),
        Just(Placement::Rail),
        Just(Placement::RoundRobin),
        Just(Placement::Block),
    ];
    let bind = prop_oneof![Just(BindMode::Auto), Just(BindMode::Numa), Just(BindMode::None)];
    (nics, place, bind).prop_map(|(nics, place, bind)| Request {
        nics,
        place,
        bind,
        gid: GidSelection::Auto,
        ..Request::default()
    })
}

/// Tasks with any CPUs of the machine, needing one or more of them, with or without GPUs.
fn tasks(gpus: usize) -> impl Strategy<Value = Vec<(BTreeSet<usize>, usize, Vec<usize>)>> {
    let gpus =
        if gpus == 0 { Just(Vec::new()).boxed() } else { prop::collection::vec(0..gpus, 0..2).boxed() };
    prop::collection::vec((prop::collection::btree_set(0_usize..16, 1..16), 1_usize..4, gpus), 1..20)
}

fn scenario() -> impl Strategy<Value = (Node, Request, Vec<Task>, Site)> {
    (
        prop::collection::vec(port_facts(), 0..8),
        prop::collection::vec((0_u8..3, 0_u8..2), 0..5),
        request(),
        any::<bool>(),
    )
        .prop_flat_map(|(ports, gpus, request, exclude)| {
            let node = machine(&ports, &gpus);
            let site = if exclude { "[nics]\nexclude = [\"mlx5_2\"]" } else { "" };
            let site = Site::parse(site, "roce.toml").unwrap();
            let tasks = tasks(gpus.len());
            (Just(node), Just(request), tasks, Just(site))
        })
        .prop_map(|(node, request, drawn, site)| {
            let tasks = (0..)
                .zip(drawn)
                .map(|(local_rank, (cpus, needed, gpus))| {
                    let cpus: CpuSet = cpus.into_iter().collect();
                    let cpus_needed = needed.min(cpus.len());
                    let gpus = gpus.into_iter().map(|gpu| node.gpus[gpu].pci.address).collect();
                    Task { local_rank, cpus, cpus_needed, gpus }
                })
                .collect();
            (node, request, tasks, site)
        })
}

fn usable(node: &Node, name: &DevicePort, site: &Site) -> bool {
    node.ports.iter().any(|port| {
        port.name == *name
            && port.state == PortState::Active
            && port.link_layer == LinkLayer::Ethernet
            && !site.nics.exclude.contains(&port.name.device)
            && node.netdevs[port.netdev.as_ref().unwrap()].carrier == Some(true)
    })
}

fn check_tasks(
    plan: &Plan,
    node: &Node,
    request: &Request,
    tasks: &[Task],
    site: &Site,
) -> Result<(), TestCaseError> {
    prop_assert_eq!(plan.tasks.len(), tasks.len(), "total: a row for every task");
    for (task, row) in tasks.iter().zip(&plan.tasks) {
        prop_assert_eq!(task.local_rank, row.local_rank);
        prop_assert!(!row.nics.is_empty());
        prop_assert!(
            row.nics.iter().all(|nic| usable(node, &nic.port, site)),
            "never a port that can't be used"
        );
        let distinct: BTreeSet<_> = row.nics.iter().map(|nic| &nic.port).collect();
        prop_assert_eq!(distinct.len(), row.nics.len(), "no NIC twice");
        prop_assert!(row.cpus.is_subset(&task.cpus), "never outside the task's CPUs");
        prop_assert!(!row.cpus.is_empty());
        match request.bind {
            BindMode::Auto => prop_assert!(row.cpus.len() >= task.cpus_needed),
            BindMode::None => prop_assert_eq!(&row.cpus, &task.cpus),
            BindMode::Numa => {}
        }
        if let NicSelection::Count(count) = request.nics {
            prop_assert_eq!(row.nics.len(), count);
        }
        let nccl = |rank| {
            let hca = exports(plan, rank, site).into_iter().find(|export| export.name == "NCCL_IB_HCA");
            hca.map(|export| export.value)
        };
        prop_assert_eq!(nccl(row.local_rank), nccl(0), "NCCL's list is the same in all tasks");
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn a_plan_is_total_valid_and_the_same_every_time((node, request, tasks, site) in scenario()) {
        let first = plan(&node, &request, &site, &tasks);
        prop_assert_eq!(&first, &plan(&node, &request, &site, &tasks), "deterministic");
        match first {
            Ok(plan) => {
                check_tasks(&plan, &node, &request, &tasks, &site)?;
                // Every port is either a NIC of the step or has a reason.
                let mut named: BTreeMap<String, usize> = BTreeMap::new();
                let nics = plan.nics.iter().map(|nic| &nic.port);
                for name in nics.chain(plan.rejected.iter().map(|(name, _)| name)) {
                    *named.entry(name.to_string()).or_default() += 1;
                }
                prop_assert!(named.len() == node.ports.len() && named.values().all(|&times| times == 1));
            }
            Err(PlanError::NoRdma { .. }) => prop_assert!(node.ports.is_empty()),
            Err(error) => prop_assert!(!error.to_string().contains('\n'), "an error is one line"),
        }
    }

    /// With the nearest policy and a NIC each, no other usable NIC is nearer to a task than its own.
    #[test]
    fn no_task_has_a_nearer_nic_than_its_own((node, mut request, tasks, site) in scenario()) {
        request.nics = NicSelection::Auto;
        request.place = Placement::Nearest;
        request.bind = BindMode::None;
        if let Ok(one) = plan(&node, &request, &site, &tasks) {
            request.nics = NicSelection::All;
            let all = plan(&node, &request, &site, &tasks).unwrap();
            for (task, every) in one.tasks.iter().zip(&all.tasks) {
                prop_assert_eq!(task.distance, every.distance, "the first of all is the nearest");
            }
        }
    }
}
