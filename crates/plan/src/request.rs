//! What the user asks for, as values, and how each option's text becomes one.

use ipnet::IpNet;
use roce_types::{Dscp, Priority, TrafficClass};

use crate::option::RoceOption;
use crate::site::Site;

/// What a step asks for. The default is what `--roce=on` alone means.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Request {
    /// One line per task on stderr.
    pub verbose: bool,
    /// `None`: no class was asked for, packets go out unmarked.
    pub class: Option<ClassRequest>,
    /// Which NICs a task gets.
    pub nics: NicSelection,
    /// Which task gets which NIC.
    pub place: Placement,
    /// Which GID of a NIC.
    pub gid: GidSelection,
    /// Whether CPUs and memory are bound.
    pub bind: BindMode,
    /// The options as given (`--roce-tc=3`), for messages.
    pub asked_by: Vec<String>,
}

impl Request {
    /// Who asked, for messages: `--roce-tc=3 --roce-nics=all`.
    #[must_use]
    pub fn asked_by(&self) -> String {
        if self.asked_by.is_empty() {
            "activate = \"always\" of the site file".to_owned()
        } else {
            self.asked_by.join(" ")
        }
    }
}

/// A traffic class in one of the three ways of asking for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ClassRequest {
    /// `--roce-tc=3`
    Priority(Priority),
    /// `--roce-tc=NAME` of the site file.
    Named {
        /// Name of the class.
        name: String,
        /// Its priority.
        priority: Priority,
        /// Its DSCP, where the site file gives one.
        dscp: Option<Dscp>,
    },
    /// `--roce-dscp=26`
    Dscp(Dscp),
    /// `--roce-tclass=106`
    Byte(TrafficClass),
}

impl ClassRequest {
    /// The 802.1p priority. That of a bare DSCP is its upper three bits, the class selector
    /// (RFC 2474, 4.2.2).
    #[must_use]
    pub fn priority(&self) -> Priority {
        let selector = |dscp: Dscp| Priority::new(dscp.get() >> 3).expect("6 bits, shifted by 3, are 0-7");
        match self {
            Self::Priority(priority) | Self::Named { priority, .. } => *priority,
            Self::Dscp(dscp) => selector(*dscp),
            Self::Byte(byte) => selector(byte.dscp()),
        }
    }
}

/// `--roce-nics`
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum NicSelection {
    /// One NIC per task, by the placement policy.
    #[default]
    Auto,
    /// Every usable NIC of the node, nearest first.
    All,
    /// So many NICs per task.
    Count(usize),
    /// Exactly these, nearest first: RDMA devices (`mlx5_0`), ports (`mlx5_0:1`) or netdevs.
    Names(Vec<String>),
}

/// `--roce-place`
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Placement {
    /// The nearest NIC; tasks equally near to several spread evenly over them.
    #[default]
    Nearest,
    /// Local rank i on rail i.
    Rail,
    /// Local rank i on the i-th NIC.
    RoundRobin,
    /// Consecutive ranks share a NIC.
    Block,
}

/// `--roce-gid`
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum GidSelection {
    /// By the site's rules, IPv4 first.
    #[default]
    Auto,
    /// An IPv4-mapped GID.
    Ipv4,
    /// An IPv6 GID.
    Ipv6,
    /// A GID of this subnet.
    Subnet(IpNet),
    /// This row of the table, checked as any other.
    Index(u32),
}

/// `--roce-bind`
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum BindMode {
    /// Narrow a task's CPUs to its NICs' NUMA nodes only where Slurm left them wider and enough
    /// CPUs remain for the task; prefer the memory of its NUMA node.
    #[default]
    Auto,
    /// The task's CPUs and memory are those of its NICs' NUMA nodes, or the task fails.
    Numa,
    /// Leave CPUs and memory alone.
    None,
}

/// Puts one option's value into the request. The error says what is allowed.
pub(crate) fn apply(
    request: &mut Request,
    option: RoceOption,
    value: &str,
    site: &Site,
) -> Result<(), String> {
    match option {
        RoceOption::Mode => request.verbose = mode(value)?,
        RoceOption::Tc => request.class = Some(site.permit(traffic_class(value, site)?)?),
        RoceOption::Dscp => {
            let dscp =
                value.parse().map_err(|_| "allowed is 0-63, or a name such as af31, cs3, ef".to_owned())?;
            request.class = Some(site.permit(ClassRequest::Dscp(dscp))?);
        }
        RoceOption::Tclass => {
            let byte = number(value).and_then(|byte| u8::try_from(byte).ok());
            let byte = byte.ok_or("allowed is a byte, 0-255: DSCP << 2 | ECN")?;
            request.class = Some(site.permit(ClassRequest::Byte(TrafficClass(byte)))?);
        }
        RoceOption::Nics => request.nics = nics(value)?,
        RoceOption::Place => request.place = place(value)?,
        RoceOption::Gid => request.gid = gid(value)?,
        RoceOption::Bind => request.bind = bind(value)?,
    }
    Ok(())
}

/// A plain decimal number: no sign, no white space.
fn number(text: &str) -> Option<u32> {
    if text.bytes().all(|byte| byte.is_ascii_digit()) { text.parse().ok() } else { None }
}

/// Returns whether it is verbose; `off` is judged where the sources are known.
fn mode(value: &str) -> Result<bool, String> {
    match value {
        "on" | "off" => Ok(false),
        "verbose" => Ok(true),
        _ => Err("allowed is on, off or verbose".to_owned()),
    }
}

fn traffic_class(value: &str, site: &Site) -> Result<ClassRequest, String> {
    let priority = number(value).and_then(|number| Priority::new(u8::try_from(number).ok()?));
    if let Some(priority) = priority {
        return Ok(ClassRequest::Priority(priority));
    }
    // Somebody who types a larger number has a DSCP in mind: offer it.
    match number(value).and_then(|number| Dscp::new(u8::try_from(number).ok()?)) {
        Some(dscp) => Err(format!(
            "allowed is a priority 0-7{}; for DSCP {dscp} use --roce-dscp={dscp}",
            site.class_list()
        )),
        None => site.class(value),
    }
}

fn nics(value: &str) -> Result<NicSelection, String> {
    let allowed = "allowed is auto, all, a count from 1, or names such as mlx5_0,mlx5_3";
    match value {
        "auto" => return Ok(NicSelection::Auto),
        "all" => return Ok(NicSelection::All),
        _ => {}
    }
    if let Some(count) = number(value) {
        let count = usize::try_from(count).ok().filter(|&count| count > 0).ok_or(allowed)?;
        return Ok(NicSelection::Count(count));
    }
    let mut names: Vec<String> = Vec::new();
    for name in value.split(',') {
        // Interface names are at most 15 bytes, RDMA device names 63 (IB_DEVICE_NAME_MAX).
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_-.:@".contains(&byte);
        if name.is_empty() || name.len() > 66 || !name.bytes().all(plain) {
            return Err(allowed.to_owned());
        }
        if names.iter().any(|other| other == name) {
            return Err(format!("{name} is named twice"));
        }
        names.push(name.to_owned());
    }
    Ok(NicSelection::Names(names))
}

fn place(value: &str) -> Result<Placement, String> {
    match value {
        "nearest" => Ok(Placement::Nearest),
        "rail" => Ok(Placement::Rail),
        "round-robin" => Ok(Placement::RoundRobin),
        "block" => Ok(Placement::Block),
        _ => Err("allowed is nearest, rail, round-robin or block".to_owned()),
    }
}

fn gid(value: &str) -> Result<GidSelection, String> {
    match value {
        "auto" => return Ok(GidSelection::Auto),
        "ipv4" => return Ok(GidSelection::Ipv4),
        "ipv6" => return Ok(GidSelection::Ipv6),
        _ => {}
    }
    if let Some(index) = number(value) {
        return Ok(GidSelection::Index(index));
    }
    let subnet = value.parse::<IpNet>();
    subnet.map(|subnet| GidSelection::Subnet(subnet.trunc())).map_err(|_| {
        "allowed is auto, ipv4, ipv6, a subnet such as 10.1.0.0/16, or an index from 0".to_owned()
    })
}

fn bind(value: &str) -> Result<BindMode, String> {
    match value {
        "auto" => Ok(BindMode::Auto),
        "numa" => Ok(BindMode::Numa),
        "none" => Ok(BindMode::None),
        _ => Err("allowed is auto, numa or none".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Options, Source};

    fn read(option: RoceOption, value: &str) -> Result<Request, String> {
        let mut options = Options::default();
        options.set(option, value, Source::CommandLine);
        match options.request(&Site::default()) {
            Ok(request) => Ok(request.expect("an option was given")),
            Err(error) => Err(error.to_string()),
        }
    }

    #[test]
    fn good_values_are_read() {
        assert_eq!(read(RoceOption::Tc, "3").unwrap().class.map(|class| class.priority().get()), Some(3));
        assert_eq!(read(RoceOption::Dscp, "af31").unwrap().class, Dscp::new(26).map(ClassRequest::Dscp));
        assert_eq!(
            read(RoceOption::Tclass, "106").unwrap().class,
            Some(ClassRequest::Byte(TrafficClass(106)))
        );
        assert_eq!(read(RoceOption::Nics, "2").unwrap().nics, NicSelection::Count(2));
        assert_eq!(
            read(RoceOption::Nics, "mlx5_0,mlx5_3:1").unwrap().nics,
            NicSelection::Names(vec!["mlx5_0".into(), "mlx5_3:1".into()])
        );
        assert_eq!(
            read(RoceOption::Gid, "10.1.2.3/16").unwrap().gid,
            GidSelection::Subnet("10.1.0.0/16".parse().unwrap())
        );
        assert_eq!(read(RoceOption::Gid, "3").unwrap().gid, GidSelection::Index(3));
        assert!(read(RoceOption::Mode, "verbose").unwrap().verbose);
    }

    /// Every refusal, as a user reads it.
    #[test]
    fn bad_values_are_refused_in_one_line_that_says_what_is_allowed() {
        let bad = [
            (RoceOption::Mode, "yes"),
            (RoceOption::Tc, "9"),
            (RoceOption::Tc, ""),
            (RoceOption::Tc, "64"),
            (RoceOption::Tc, "-1"),
            (RoceOption::Tc, "bulk"),
            (RoceOption::Dscp, "64"),
            (RoceOption::Dscp, "af99"),
            (RoceOption::Tclass, "256"),
            (RoceOption::Nics, "0"),
            (RoceOption::Nics, "mlx5_0,"),
            (RoceOption::Nics, "../mlx5_0"),
            (RoceOption::Nics, "mlx5_0,mlx5_0"),
            (RoceOption::Place, "near"),
            (RoceOption::Gid, "10.1.0.0/33"),
            (RoceOption::Gid, "ipv5"),
            (RoceOption::Bind, "cores"),
        ];
        let lines: Vec<String> =
            bad.iter().map(|(option, value)| read(*option, value).unwrap_err()).collect();
        insta::assert_snapshot!(lines.join("\n"));
    }
}
