//! `rocectl show`: what the node is made of.

use roce_node::{GidKind, GidRow, Gpu, Node, PortState, RdmaPort, Trust};
use roce_plan::{PlanError, Request, Site};

use crate::cli::ShowArgs;
use crate::source::Source;
use crate::survey::{self, Judged};
use crate::table::{BAD, BOLD, Cell, DIM, GOOD, PLAIN, Table, WARNING, cell, styled};
use crate::{picture, print, request, show_json};

pub(crate) fn run(arguments: &ShowArgs) -> anyhow::Result<()> {
    let site = request::site(&arguments.site)?;
    let source = Source::read(&arguments.node)?;
    let mut request = Request { asked_by: vec!["rocectl show".to_owned()], ..Request::default() };
    request::settle(&mut request, &arguments.site, Source::unknown_facts_of(&arguments.node));
    let judged = survey::survey(&source.node, &request, &site);
    let none = judged.as_ref().err().map(why_none);
    if let Some(path) = &arguments.svg {
        let ports = judged.as_deref().unwrap_or_default();
        picture::write(path, &picture::draw(&source.name, &source.node, ports, None, none.as_deref()))?;
    }
    if arguments.json {
        return print(&show_json::text(&source.node, judged.as_deref().unwrap_or_default())?);
    }
    print(&text(&source, &judged, arguments.verbose, &site))
}

fn text(source: &Source, judged: &Result<Vec<Judged<'_>>, PlanError>, verbose: bool, site: &Site) -> String {
    let node = &source.node;
    let mut out = styled(&format!("{}: {}\n", source.name, summary(node, judged.as_deref().ok())), BOLD);
    if !site.path.is_empty() {
        out += &styled(&format!("site file {}\n", site.path), DIM);
    }
    out += "\n";
    match judged {
        Ok(judged) => out += &ports(node, judged, verbose),
        Err(error) => out += &format!("{}\n", why_none(error)),
    }
    out += "\n";
    out += &numa_nodes(node, judged.as_deref().unwrap_or_default());
    if !node.gpus.is_empty() {
        out += "\n";
        out += &gpus(&node.gpus);
    }
    for problem in &node.problems {
        out += &format!("\n{} {problem}", styled("problem:", WARNING));
    }
    if node.problems.is_empty() { out } else { out + "\n" }
}

/// Why there is no port at all.
fn why_none(error: &PlanError) -> String {
    match error {
        PlanError::NoRdma { why, .. } => format!("no RDMA port: {why}"),
        other => other.to_string(),
    }
}

/// `1 CPU`, `2 CPUs`
pub(crate) fn count(count: usize, what: &str) -> String {
    if count == 1 { format!("1 {what}") } else { format!("{count} {what}s") }
}

/// `2 packages, 4 NUMA nodes, 128 CPUs, 8 GPUs, 10 RDMA ports, 8 of them usable`
pub(crate) fn summary(node: &Node, judged: Option<&[Judged<'_>]>) -> String {
    let mut parts = Vec::new();
    if !node.packages.is_empty() {
        parts.push(count(node.packages.len(), "package"));
    }
    parts.push(count(node.numa_nodes.len(), "NUMA node"));
    parts.push(count(node.cpus.len(), "CPU"));
    if !node.gpus.is_empty() {
        parts.push(count(node.gpus.len(), "GPU"));
    }
    parts.push(count(node.ports.len(), "RDMA port"));
    if let Some(judged) = judged.filter(|judged| !judged.is_empty()) {
        let usable = judged.iter().filter(|port| port.nic.is_ok()).count();
        parts.push(format!("{usable} usable"));
    }
    parts.join(", ")
}

fn known<T: ToString>(fact: Option<T>) -> String {
    fact.map_or_else(|| "?".to_owned(), |fact| fact.to_string())
}

pub(crate) fn list<T: ToString>(items: impl IntoIterator<Item = T>) -> String {
    items.into_iter().map(|item| item.to_string()).collect::<Vec<_>>().join(",")
}

fn ports(node: &Node, judged: &[Judged<'_>], verbose: bool) -> String {
    let mut table = Table::new(&[
        "", "PORT", "NETDEV", "STATE", "GBIT/S", "NUMA", "PCI", "RAIL", "GID", "PFC", "TRUST", "NOTE",
    ]);
    for judged in judged {
        table.row(port_row(judged));
        if verbose {
            port_notes(node, judged, &mut table);
        }
    }
    let mut out = table.render();
    out +=
        &styled("* for tasks, with the GID that they get   ? the kernel or the source doesn't tell\n", DIM);
    out
}

fn port_row(judged: &Judged<'_>) -> Vec<Cell> {
    let Judged { port, nic, gids } = judged;
    let (state, style) = match &port.state {
        PortState::Active => ("ACTIVE", PLAIN),
        PortState::Other(word) => (word.as_str(), BAD),
    };
    let gid = gids.chosen.as_ref().map_or_else(String::new, |row| format!("{} {}", row.index, row.gid));
    let qos = port.qos.as_ref();
    let pfc = qos.and_then(|qos| qos.pfc.as_ref()).map(|on| match on.as_slice() {
        [] => "off".to_owned(),
        on => list(on),
    });
    let mut notes = Vec::new();
    if let Err(reason) = nic {
        notes.push(survey::in_short(reason));
    }
    if let Some(forced) = port.forced_traffic_class {
        notes.push(format!("driver forces traffic class {forced}"));
    }
    vec![
        if nic.is_ok() { cell("*", GOOD) } else { " ".into() },
        cell(port.name.to_string(), if nic.is_ok() { GOOD } else { PLAIN }),
        port.netdev.clone().unwrap_or_default().into(),
        cell(state, style),
        known(port.rate_mbit.map(survey::gbit)).into(),
        known(port.numa_node).into(),
        known(port.pci.as_ref().map(|pci| pci.address)).into(),
        nic.as_ref().map_or_else(|_| String::new(), |nic| nic.rail.to_string()).into(),
        gid.into(),
        known(pfc).into(),
        known(qos.and_then(|qos| qos.trust).map(trust)).into(),
        cell(notes.join("; "), WARNING),
    ]
}

pub(crate) fn trust(trust: Trust) -> &'static str {
    match trust {
        Trust::Pcp => "pcp",
        Trust::Dscp => "dscp",
    }
}

fn port_notes(node: &Node, judged: &Judged<'_>, table: &mut Table) {
    let port = judged.port;
    for row in &port.gids {
        let (line, style) = gid_line(judged, row);
        table.note(cell(line, style));
    }
    if port.gids.is_empty() {
        table.note(cell("no GID", DIM));
    }
    let dscps = port.qos.as_ref().and_then(|qos| qos.dscp_to_priority.as_ref());
    if let Some(dscps) = dscps {
        let pairs = dscps.iter().map(|(dscp, priority)| format!("{dscp} to {priority}"));
        table.note(cell(format!("DSCP to priority: {}", pairs.collect::<Vec<_>>().join(", ")), DIM));
    }
    for line in place_lines(node, port) {
        table.note(cell(line, DIM));
    }
}

fn gid_line(judged: &Judged<'_>, row: &GidRow) -> (String, anstyle::Style) {
    let rejected = judged.gids.rejected.iter().find(|rejected| rejected.index == row.index);
    let chosen = judged.gids.chosen.as_ref() == Some(row);
    let (mark, verdict, style) = match rejected {
        Some(rejected) => (' ', format!("no: {}", rejected.reason), DIM),
        None if chosen => ('*', "chosen".to_owned(), GOOD),
        None => (' ', "usable".to_owned(), PLAIN),
    };
    let netdev = row.netdev.as_deref().unwrap_or("?");
    (format!("{mark} GID {} {} {} {netdev}: {verdict}", row.index, row.gid, kind(row)), style)
}

pub(crate) fn kind(row: &GidRow) -> &str {
    match &row.kind {
        Some(GidKind::RoceV2) => "RoCE v2",
        Some(GidKind::RoceV1) => "RoCE v1",
        Some(GidKind::Other(word)) => word,
        None => "?",
    }
}

/// Where the port sits and what its interface is.
fn place_lines(node: &Node, port: &RdmaPort) -> Vec<String> {
    let mut lines = Vec::new();
    if let Some(pci) = &port.pci {
        let bridges = pci.bridges.iter().map(|bridge| format!("{bridge} > ")).collect::<String>();
        lines.push(format!("PCI {} > {bridges}{}", pci.host_bridge, pci.address));
    }
    if let Some(function) = port.physical_function {
        lines.push(format!("virtual function of {function}"));
    }
    if let Some((name, netdev)) = port.netdev.as_ref().and_then(|name| node.netdevs.get_key_value(name)) {
        let mut line = format!("{name}: {}", netdev.operstate);
        if let Some(kind) = &netdev.kind {
            line += &format!(", {kind}");
        }
        if !netdev.lower.is_empty() {
            line += &format!(" over {}", list(&netdev.lower));
        }
        line += &format!(", MTU {}", known(netdev.mtu));
        match &netdev.addresses {
            Some(addresses) if addresses.is_empty() => line += ", no address",
            Some(addresses) => line += &format!(", {}", list(addresses)),
            None => line += ", addresses ?",
        }
        lines.push(line);
    }
    lines
}

fn numa_nodes(node: &Node, judged: &[Judged<'_>]) -> String {
    let mut table = Table::new(&["NUMA", "PACKAGE", "CPUS", "GPUS", "PORTS", "DISTANCES"]);
    let gpus_of = |numa: Option<u32>| {
        list(node.gpus.iter().enumerate().filter(|(_, gpu)| gpu.numa_node == numa).map(|(index, _)| index))
    };
    let ports_of = |numa: Option<u32>| {
        list(judged.iter().filter(|port| port.port.numa_node == numa).map(|port| &port.port.name.device))
    };
    for numa in &node.numa_nodes {
        let cpus = if numa.cpus.is_empty() { "none".to_owned() } else { numa.cpus.to_string() };
        let distances = numa.distances.iter().map(|(other, distance)| format!("{other}:{distance}"));
        table.row(vec![
            numa.id.to_string().into(),
            list(node.packages_of(&numa.cpus)).into(),
            cpus.into(),
            gpus_of(Some(numa.id)).into(),
            ports_of(Some(numa.id)).into(),
            distances.collect::<Vec<_>>().join(" ").into(),
        ]);
    }
    let (gpus, ports) = (gpus_of(None), ports_of(None));
    if !gpus.is_empty() || !ports.is_empty() {
        table.row(vec!["?".into(), "".into(), "".into(), gpus.into(), ports.into(), "".into()]);
    }
    table.render()
}

fn gpus(gpus: &[Gpu]) -> String {
    let mut table = Table::new(&["GPU", "VENDOR", "NUMA", "PCI", "HOST BRIDGE"]);
    for (index, gpu) in gpus.iter().enumerate() {
        table.row(vec![
            index.to_string().into(),
            vendor(gpu).into(),
            known(gpu.numa_node).into(),
            gpu.pci.address.to_string().into(),
            gpu.pci.host_bridge.clone().into(),
        ]);
    }
    table.render()
}

pub(crate) fn vendor(gpu: &Gpu) -> &'static str {
    match gpu.vendor {
        roce_node::GpuVendor::Nvidia => "NVIDIA",
        roce_node::GpuVendor::Amd => "AMD",
        roce_node::GpuVendor::Intel => "Intel",
    }
}
