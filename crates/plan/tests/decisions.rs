//! The decisions on small machines, as a user sees them: the plan, the environment, the errors.

use std::collections::BTreeMap;
use std::net::IpAddr;

use roce_node::{GidKind, GidRow, LinkLayer, Netdev, Node, NumaNode, PortState, RdmaPort};
use roce_plan::{Options, Plan, PlanError, Request, RoceOption, Site, Source, Task, exports, plan};
use roce_types::{CpuSet, DevicePort};

/// Two NUMA nodes of two CPUs, one NIC on each: 10.0.RAIL.1 on rail RAIL.
fn two_rails() -> Node {
    let mut node = Node { cpus: cpus("0-3"), rdma_class_exists: true, ..Node::default() };
    for (id, list) in [(0, "0-1"), (1, "2-3")] {
        let distances = BTreeMap::from([(id, 10), (1 - id, 21)]);
        node.numa_nodes.push(NumaNode { id, cpus: cpus(list), distances });
    }
    add_nic(&mut node, "mlx5_0", "eth0", Some(0), "10.0.0.1");
    add_nic(&mut node, "mlx5_1", "eth1", Some(1), "10.0.1.1");
    node
}

fn cpus(list: &str) -> CpuSet {
    list.parse().unwrap()
}

fn add_nic(node: &mut Node, device: &str, netdev: &str, numa_node: Option<u32>, address: &str) {
    let address: IpAddr = address.parse().unwrap();
    let netdev_facts = Netdev {
        operstate: "up".into(),
        carrier: Some(true),
        mtu: Some(4500),
        kind: None,
        lower: Vec::new(),
        addresses: Some(vec![address]),
    };
    node.netdevs.insert(netdev.into(), netdev_facts);
    let gid = match address {
        IpAddr::V4(v4) => v4.into(),
        IpAddr::V6(v6) => v6.into(),
    };
    let row = |index, gid, kind| GidRow { index, gid, kind: Some(kind), netdev: Some(netdev.into()) };
    let link_local = "fe80::1".parse().unwrap();
    node.ports.push(RdmaPort {
        name: DevicePort { device: device.into(), port: 1 },
        link_layer: LinkLayer::Ethernet,
        state: PortState::Active,
        rate_mbit: Some(100_000),
        pci: None,
        numa_node,
        asic: None,
        physical_function: None,
        qos: None,
        forced_traffic_class: None,
        netdev: Some(netdev.into()),
        gids: vec![
            row(0, link_local, GidKind::RoceV1),
            row(1, link_local, GidKind::RoceV2),
            row(2, gid, GidKind::RoceV1),
            row(3, gid, GidKind::RoceV2),
        ],
    });
}

fn request(options: &[(RoceOption, &str)]) -> Request {
    request_at(options, &Site::default())
}

fn request_at(options: &[(RoceOption, &str)], site: &Site) -> Request {
    let mut given = Options::default();
    given.set(RoceOption::Mode, "on", Source::CommandLine);
    for (option, value) in options {
        given.set(*option, value, Source::CommandLine);
    }
    given.request(site).unwrap().unwrap()
}

/// One task per list of CPUs.
fn tasks(masks: &[&str]) -> Vec<Task> {
    (0..)
        .zip(masks)
        .map(|(local_rank, mask)| Task { local_rank, cpus: cpus(mask), cpus_needed: 1, gpus: Vec::new() })
        .collect()
}

fn planned(node: &Node, options: &[(RoceOption, &str)], masks: &[&str]) -> Result<Plan, PlanError> {
    plan(node, &request(options), &Site::default(), &tasks(masks))
}

fn lines(plan: &Plan) -> String {
    let lines = plan.tasks.iter().map(|task| {
        format!(
            "task {}: {}\n  {}",
            task.local_rank,
            plan.describe(task.local_rank).unwrap(),
            task.reasons.join("\n  ")
        )
    });
    lines.collect::<Vec<_>>().join("\n")
}

fn devices(plan: &Plan) -> Vec<String> {
    let devices = |task: &roce_plan::TaskPlan| {
        task.nics.iter().map(|nic| nic.port.device.clone()).collect::<Vec<_>>().join(",")
    };
    plan.tasks.iter().map(devices).collect()
}

#[test]
fn each_bound_task_gets_the_nic_of_its_numa_node() {
    insta::assert_snapshot!(lines(&planned(&two_rails(), &[(RoceOption::Tc, "3")], &["2", "0"]).unwrap()));
}

#[test]
fn unbound_tasks_spread_over_the_nics_and_are_narrowed_to_them() {
    insta::assert_snapshot!(lines(&planned(&two_rails(), &[], &["0-3", "0-3"]).unwrap()));
}

#[test]
fn a_task_is_never_narrowed_below_the_cpus_it_was_promised() {
    let mut tasks = tasks(&["0-3"]);
    tasks[0].cpus_needed = 4;
    let plan = plan(&two_rails(), &request(&[]), &Site::default(), &tasks).unwrap();
    assert_eq!(plan.tasks[0].cpus, cpus("0-3"));
    insta::assert_snapshot!(lines(&plan));
}

#[test]
fn bind_none_touches_neither_cpus_nor_memory() {
    insta::assert_snapshot!(lines(&planned(&two_rails(), &[(RoceOption::Bind, "none")], &["0-3"]).unwrap()));
}

#[test]
fn bind_numa_binds_memory_too_and_fails_where_it_cannot() {
    let numa = (RoceOption::Bind, "numa");
    insta::assert_snapshot!("bind_numa", lines(&planned(&two_rails(), &[numa], &["0-3"]).unwrap()));
    let far = planned(&two_rails(), &[numa, (RoceOption::Nics, "mlx5_1")], &["0"]).unwrap_err();
    insta::assert_snapshot!("bind_numa_impossible", far);
}

#[test]
fn all_nics_are_given_nearest_first() {
    let plan = planned(&two_rails(), &[(RoceOption::Nics, "all")], &["0", "2"]).unwrap();
    assert_eq!(devices(&plan), ["mlx5_0,mlx5_1", "mlx5_1,mlx5_0"]);
}

#[test]
fn named_nics_are_those_and_no_others() {
    let by_netdev = planned(&two_rails(), &[(RoceOption::Nics, "eth1")], &["0", "2"]).unwrap();
    assert_eq!(devices(&by_netdev), ["mlx5_1", "mlx5_1"]);
}

#[test]
fn a_slower_storage_nic_is_left_out_unless_it_is_named() {
    let mut node = two_rails();
    node.ports[0].rate_mbit = Some(25_000);
    assert_eq!(devices(&planned(&node, &[], &["0"]).unwrap()), ["mlx5_1"]);
    assert_eq!(devices(&planned(&node, &[(RoceOption::Nics, "mlx5_0")], &["0"]).unwrap()), ["mlx5_0"]);
}

#[test]
fn a_down_port_keeps_its_rail_number_and_gets_no_task() {
    let mut node = two_rails();
    node.ports[0].state = PortState::Other("DOWN".into());
    let plan = planned(&node, &[], &["0", "2"]).unwrap();
    assert_eq!(devices(&plan), ["mlx5_1", "mlx5_1"]);
    assert_eq!(plan.tasks[0].nics[0].rail, 1);
}

#[test]
fn the_site_excludes_includes_and_numbers_rails() {
    let site = |text| Site::parse(text, "roce.toml").unwrap();
    let at = |text| plan(&two_rails(), &request(&[]), &site(text), &tasks(&["0"])).unwrap();
    assert_eq!(devices(&at("[nics]\nexclude = [\"mlx5_0\"]")), ["mlx5_1"]);
    assert_eq!(devices(&at("[nics]\ninclude = [\"10.0.1.0/24\"]")), ["mlx5_1"]);
    let rails = at("[nics]\nrails = [\"10.0.1.0/24\", \"10.0.0.0/24\"]");
    assert_eq!(rails.tasks[0].nics[0].rail, 1);
}

#[test]
fn a_nic_of_unknown_place_is_the_last_resort_and_narrows_nothing() {
    let mut node = two_rails();
    node.ports[0].numa_node = None;
    let plan = planned(&node, &[], &["0"]).unwrap();
    assert_eq!(devices(&plan), ["mlx5_1"], "a known distance beats an unknown one");
    node.ports[1].numa_node = None;
    insta::assert_snapshot!(lines(&planned(&node, &[], &["0-3"]).unwrap()));
}

#[test]
fn gids_are_ranked_by_site_subnet_then_family_then_base_netdev_then_index() {
    let mut node = two_rails();
    node.ports.truncate(1);
    let netdev = node.netdevs.get_mut("eth0").unwrap();
    netdev.addresses.as_mut().unwrap().push("fd00::1".parse().unwrap());
    let mut vlan = netdev.clone();
    vlan.addresses = Some(vec!["10.7.0.1".parse().unwrap()]);
    node.netdevs.insert("eth0.7".into(), vlan);
    let row = |index, gid: &str, netdev: &str| GidRow {
        index,
        gid: gid.parse().unwrap(),
        kind: Some(GidKind::RoceV2),
        netdev: Some(netdev.into()),
    };
    node.ports[0].gids.insert(0, row(0, "::ffff:10.7.0.1", "eth0.7"));
    node.ports[0].gids.insert(1, row(1, "fd00::1", "eth0"));
    let chosen = |options: &[(RoceOption, &str)], site: &str| {
        let site = Site::parse(site, "roce.toml").unwrap();
        let plan = plan(&node, &request_at(options, &site), &site, &tasks(&["0"])).unwrap();
        plan.tasks[0].nics[0].gid.as_ref().unwrap().gid.to_string()
    };
    assert_eq!(chosen(&[], ""), "::ffff:10.0.0.1", "the base netdev's before the VLAN's");
    assert_eq!(chosen(&[], "[gid]\nfamily = \"ipv6\""), "fd00::1");
    assert_eq!(chosen(&[], "[gid]\nsubnets = [\"10.7.0.0/16\"]"), "::ffff:10.7.0.1");
    assert_eq!(chosen(&[(RoceOption::Gid, "ipv6")], ""), "fd00::1");
    assert_eq!(chosen(&[(RoceOption::Gid, "10.7.0.0/16")], ""), "::ffff:10.7.0.1");
}

#[test]
fn the_environment_of_a_task() {
    let options = [(RoceOption::Tc, "3"), (RoceOption::Nics, "all")];
    let plan = planned(&two_rails(), &options, &["0", "2"]).unwrap();
    let text: Vec<String> = exports(&plan, 1, &Site::default())
        .iter()
        .map(|export| {
            format!("{}={}{}", export.name, export.value, if export.overwrite { "" } else { " (unless set)" })
        })
        .collect();
    insta::assert_snapshot!(text.join("\n"));
}

#[test]
fn without_a_class_nothing_is_said_about_classes() {
    let plan = planned(&two_rails(), &[], &["0"]).unwrap();
    let exports = exports(&plan, 0, &Site::default());
    let class_names =
        ["ROCE_PRIORITY", "ROCE_DSCP", "ROCE_TRAFFIC_CLASS", "UCX_IB_TRAFFIC_CLASS", "NCCL_IB_TC"];
    assert!(exports.iter().all(|export| !class_names.contains(&export.name)));
}

#[test]
fn a_gid_index_is_exported_only_where_one_serves_all() {
    let mut node = two_rails();
    node.ports[1].gids[3].index = 5;
    let plan = planned(&node, &[(RoceOption::Nics, "all")], &["0"]).unwrap();
    let exports = exports(&plan, 0, &Site::default());
    let value = |name| exports.iter().find(|export| export.name == name).map(|export| export.value.as_str());
    assert_eq!(value("UCX_IB_GID_INDEX"), None);
    assert_eq!(value("NCCL_IB_GID_INDEX"), None);
    assert_eq!(value("NCCL_IB_ADDR_FAMILY"), Some("AF_INET"));
    assert_eq!(value("ROCE_GID_INDEXES"), Some("3,5"));
}

#[test]
fn the_site_chooses_the_libraries_and_whether_to_overwrite() {
    let site = Site::parse("[exports]\nlibraries = [\"nccl\"]\noverwrite = true", "roce.toml").unwrap();
    let plan = planned(&two_rails(), &[], &["0"]).unwrap();
    let exports = exports(&plan, 0, &site);
    assert!(exports.iter().any(|export| export.name == "NCCL_IB_HCA" && export.overwrite));
    assert!(exports.iter().all(|export| !export.name.starts_with("UCX_") && !export.name.starts_with("FI_")));
}

/// Every error of a node, as a user reads it.
#[test]
fn errors_name_the_option_what_was_found_and_what_is_allowed() {
    let bare = Node { cpus: cpus("0-3"), numa_nodes: two_rails().numa_nodes, ..Node::default() };
    let mut no_device = bare.clone();
    no_device.rdma_class_exists = true;
    let mut broken = no_device.clone();
    broken.problems.push("RDMA port mlx5_0:1 is left out: can't read sys/x: permission denied".into());
    let mut down = two_rails();
    for port in &mut down.ports {
        port.state = PortState::Other("DOWN".into());
    }
    let mut infiniband = two_rails();
    infiniband.ports.truncate(1);
    infiniband.ports[0].link_layer = LinkLayer::InfiniBand;
    let mut gone = two_rails();
    gone.ports.truncate(1);
    gone.netdevs.get_mut("eth0").unwrap().addresses = Some(Vec::new());
    let mut no_carrier = gone.clone();
    no_carrier.netdevs.get_mut("eth0").unwrap().carrier = Some(false);
    let cases = [
        (&bare, (RoceOption::Tc, "3")),
        (&no_device, (RoceOption::Tc, "3")),
        (&broken, (RoceOption::Tc, "3")),
        (&down, (RoceOption::Tc, "3")),
        (&infiniband, (RoceOption::Tc, "3")),
        (&gone, (RoceOption::Tc, "3")),
        (&no_carrier, (RoceOption::Tc, "3")),
        (&two_rails(), (RoceOption::Nics, "nosuch0")),
        (&down, (RoceOption::Nics, "mlx5_1")),
        (&two_rails(), (RoceOption::Nics, "3")),
        (&two_rails(), (RoceOption::Gid, "192.0.2.0/24")),
        (&two_rails(), (RoceOption::Gid, "0")),
    ];
    let lines: Vec<String> = cases
        .iter()
        .map(|(node, option)| planned(node, &[*option], &["0"]).unwrap_err().to_string())
        .collect();
    insta::assert_snapshot!(lines.join("\n"));
}

/// Every reason against a GID row, as `rocectl show -v` and errors print it.
#[test]
fn every_reason_against_a_gid_row_is_told() {
    let mut node = two_rails();
    node.ports.truncate(1);
    let netdev = |operstate: &str, carrier| Netdev {
        operstate: operstate.into(),
        carrier,
        addresses: Some(Vec::new()),
        ..Netdev::default()
    };
    node.netdevs.insert("eth_down".into(), netdev("down", None));
    node.netdevs.insert("eth_unplugged".into(), netdev("up", Some(false)));
    let row = |index, gid: &str, kind: Option<GidKind>, netdev: Option<&str>| GidRow {
        index,
        gid: gid.parse().unwrap(),
        kind,
        netdev: netdev.map(str::to_owned),
    };
    let v2 = Some(GidKind::RoceV2);
    node.ports[0].gids = vec![
        row(0, "::ffff:10.0.0.1", Some(GidKind::RoceV1), Some("eth0")),
        row(1, "::ffff:10.0.0.1", Some(GidKind::Other("RoCE v3".into())), Some("eth0")),
        row(2, "::ffff:10.0.0.1", None, Some("eth0")),
        row(3, "::ffff:224.0.0.1", v2.clone(), Some("eth0")),
        row(4, "::ffff:169.254.0.1", v2.clone(), Some("eth0")),
        row(5, "::ffff:10.0.0.1", v2.clone(), None),
        row(6, "::ffff:10.0.0.1", v2.clone(), Some("eth9")),
        row(7, "::ffff:10.0.0.1", v2.clone(), Some("eth_down")),
        row(8, "::ffff:10.0.0.1", v2.clone(), Some("eth_unplugged")),
        row(9, "::ffff:10.0.0.9", v2.clone(), Some("eth0")),
        row(10, "::ffff:10.0.0.1", v2, Some("eth0")),
    ];
    let told = |node: &Node, option: (RoceOption, &str)| {
        let request = request(&[option]);
        let search = roce_plan::choose_gid(&node.ports[0], node, &request, &Site::default());
        let lines = search.rejected.iter().map(|row| format!("{} {}: {}", row.index, row.gid, row.reason));
        lines.collect::<Vec<_>>().join("\n")
    };
    let mut text = told(&node, (RoceOption::Gid, "auto"));
    node.ports[0].gids.drain(..10);
    for selection in ["ipv6", "10.1.0.0/16", "3"] {
        text += &format!("\n{}", told(&node, (RoceOption::Gid, selection)));
    }
    node.ports[0].gids[0].gid = "fd00::1".parse().unwrap();
    node.netdevs.get_mut("eth0").unwrap().addresses = None;
    text += &format!("\n{}", told(&node, (RoceOption::Gid, "ipv4")));
    node.ports[0].state = PortState::Other("INIT".into());
    text += &format!("\n{}", told(&node, (RoceOption::Gid, "auto")));
    node.ports[0].state = PortState::Active;
    node.ports[0].link_layer = LinkLayer::InfiniBand;
    text += &format!("\n{}", told(&node, (RoceOption::Gid, "auto")));
    insta::assert_snapshot!(text);
}

/// Every reason against a port.
#[test]
fn every_reason_against_a_port_is_told() {
    let mut node = two_rails();
    for (number, device) in (2..).zip(["mlx5_2", "mlx5_3", "mlx5_4", "mlx5_5", "mlx5_6"]) {
        add_nic(&mut node, device, &format!("eth{number}"), Some(0), &format!("10.0.{number}.1"));
    }
    node.ports[1].link_layer = LinkLayer::InfiniBand;
    node.ports[2].state = PortState::Other("DOWN".into());
    node.ports[3].rate_mbit = Some(25_000);
    node.ports[4].gids.clear();
    node.ports[5].gids.truncate(1);
    let told = |options: &[(RoceOption, &str)], site: &str| {
        let site = Site::parse(site, "roce.toml").unwrap();
        let plan = plan(&node, &request_at(options, &site), &site, &tasks(&["0"])).unwrap();
        let lines = plan.rejected.iter().map(|(port, reason)| format!("{port}: {reason}"));
        lines.collect::<Vec<_>>().join("\n")
    };
    let text = [
        told(&[], "[nics]\nexclude = [\"mlx5_6\"]"),
        told(&[], "[nics]\ninclude = [\"mlx5_0\"]"),
        told(&[(RoceOption::Nics, "mlx5_0")], ""),
    ];
    insta::assert_snapshot!(text.join("\n\n"));
}

/// Every way of being near or far, and of being placed.
#[test]
fn every_reason_for_a_nic_is_told() {
    let mut node = two_rails();
    let place = |bridges: &[&str], address: &str, host: &str| roce_node::PciPlace {
        address: address.parse().unwrap(),
        host_bridge: host.into(),
        bridges: bridges.iter().map(|bridge| bridge.parse().unwrap()).collect(),
    };
    node.ports.truncate(1);
    let switch = ["0000:20:01.0", "0000:21:00.0", "0000:22:00.0"];
    node.ports[0].pci = Some(place(&switch, "0000:23:00.0", "pci0000:20"));
    let mut gpu = |bridges: &[&str], address: &str, host: &str, numa_node| {
        let pci = place(bridges, address, host);
        node.gpus.push(roce_node::Gpu { pci, vendor: roce_node::GpuVendor::Nvidia, numa_node });
        address.parse().unwrap()
    };
    let gpus = [
        gpu(&switch, "0000:23:00.1", "pci0000:20", Some(0)),
        gpu(&["0000:20:01.0", "0000:21:00.0", "0000:22:01.0"], "0000:24:00.0", "pci0000:20", Some(0)),
        gpu(
            &["0000:20:01.0", "0000:21:00.0", "0000:22:02.0", "0000:25:00.0", "0000:26:00.0"],
            "0000:27:00.0",
            "pci0000:20",
            Some(0),
        ),
        gpu(&["0000:20:02.0"], "0000:30:00.0", "pci0000:20", Some(0)),
        gpu(&["0000:40:01.0"], "0000:41:00.0", "pci0000:40", Some(0)),
        gpu(&["0000:80:01.0"], "0000:81:00.0", "pci0000:80", Some(1)),
        gpu(&["0000:c0:01.0"], "0000:c1:00.0", "pci0000:c0", None),
    ];
    let mut text = Vec::new();
    let mut tell = |node: &Node, options: &[(RoceOption, &str)], tasks: &[Task]| {
        let plan = plan(node, &request(options), &Site::default(), tasks).unwrap();
        text.extend(plan.tasks.iter().map(|task| task.reasons.join("; ")));
    };
    for gpu in gpus {
        let mut tasks = tasks(&["0"]);
        tasks[0].gpus.push(gpu);
        tell(&node, &[], &tasks);
    }
    let mut two = two_rails();
    for policy in ["nearest", "rail", "round-robin", "block"] {
        tell(&two, &[(RoceOption::Place, policy)], &tasks(&["0", "0"]));
    }
    tell(&two, &[(RoceOption::Dscp, "46"), (RoceOption::Bind, "numa")], &tasks(&["0-3"]));
    tell(&two, &[(RoceOption::Tclass, "106"), (RoceOption::Bind, "none")], &tasks(&["0-3"]));
    two.ports[0].numa_node = None;
    two.ports[1].numa_node = None;
    tell(&two, &[(RoceOption::Tc, "5")], &tasks(&["0"]));
    insta::assert_snapshot!(text.join("\n"));
}
