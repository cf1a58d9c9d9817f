//! The site file, `/etc/slurm/roce.toml`: what the administrators decided.

use std::collections::BTreeMap;

use ipnet::IpNet;
use roce_types::{Dscp, Priority};
use serde::{Deserialize, Deserializer};

use crate::request::ClassRequest;

/// The site's decisions. Every key is optional; an unknown key is an error.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Site {
    /// `[policy]`
    pub policy: Policy,
    /// `[classes.NAME]`
    pub classes: BTreeMap<String, SiteClass>,
    /// `[nics]`
    pub nics: Nics,
    /// `[gid]`
    pub gid: GidPolicy,
    /// `[exports]`
    pub exports: ExportPolicy,
    /// `[limits]`
    pub limits: Limits,
    /// `[bootstrap]`
    pub bootstrap: Bootstrap,
    /// Where it was read from, for messages.
    #[serde(skip)]
    pub path: String,
}

/// `[policy]`
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Policy {
    /// Which steps the plugin acts on.
    pub activate: Activate,
    /// What happens to a task that can't have what was asked.
    pub on_failure: OnFailure,
    /// The priorities that users may ask for; `None`: every one.
    #[serde(deserialize_with = "priorities")]
    pub allowed_priorities: Option<Vec<Priority>>,
    /// The class of steps that ask for none: a class name or a priority as text.
    pub class: Option<String>,
    /// What to do where a NIC is known not to protect the class: no priority flow control on its
    /// priority, or no trust in the DSCP.
    pub lossless: Lossless,
    /// Where a job has the whole node, its class is that of every rdma_cm connection there, also of programs that
    /// know nothing of it.
    pub node_wide: bool,
}

/// Which steps the plugin acts on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Activate {
    /// Those with an option or variable of ours.
    #[default]
    OnRequest,
    /// Every step but those with `--roce=off`.
    Always,
}

/// What happens to a task that can't have what was asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnFailure {
    /// It fails with one line.
    #[default]
    Fail,
    /// It runs untouched, with one line of warning.
    Warn,
}

/// What to do where a NIC is known not to protect a class. Where it can't tell, nothing is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Lossless {
    /// Say so in the plan.
    #[default]
    Warn,
    /// Fail.
    Fail,
    /// Some fabrics do without priority flow control.
    Ignore,
}

/// `[classes.NAME]`
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SiteClass {
    /// The 802.1p priority, 0-7.
    #[serde(deserialize_with = "priority")]
    pub priority: Priority,
    /// The DSCP, a number or a name; without it the map of `--roce-tc` is used.
    #[serde(deserialize_with = "dscp", default)]
    pub dscp: Option<Dscp>,
}

/// `[nics]`: entries are RDMA devices, ports (`mlx5_0:1`), netdevs, PCI addresses or subnets.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Nics {
    /// Only these are for jobs; empty: every one, of the highest rate that the node has.
    pub include: Vec<String>,
    /// These never are (storage, management).
    pub exclude: Vec<String>,
    /// The i-th entry is rail i.
    pub rails: Vec<String>,
}

/// `[gid]`
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct GidPolicy {
    /// The family that `--roce-gid=auto` takes first.
    pub family: Family,
    /// A GID of one of these is taken before any other.
    pub subnets: Vec<IpNet>,
}

/// An address family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Family {
    /// IPv4-mapped GIDs.
    #[default]
    Ipv4,
    /// IPv6 GIDs.
    Ipv6,
}

/// `[exports]`
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ExportPolicy {
    /// The libraries to tell; `None`: every one that is known.
    pub libraries: Option<Vec<Library>>,
    /// Replace variables that the user set.
    pub overwrite: bool,
}

/// A communication library that is told through its own variables.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Library {
    /// UCX, and what is built on it: Open MPI, MPICH, NIXL.
    Ucx,
    /// NCCL and RCCL.
    Nccl,
    /// libfabric's verbs provider: Intel MPI, MPICH.
    Libfabric,
    /// Open MPI's openib, up to version 4.
    Openmpi,
    /// MVAPICH2 and MVAPICH 3.
    Mvapich,
    /// NVSHMEM.
    Nvshmem,
    /// rocSHMEM.
    Rocshmem,
    /// Gloo.
    Gloo,
    /// Mooncake's transfer engine.
    Mooncake,
    /// HCCL.
    Hccl,
}

/// `[limits]`
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Locked memory of a task.
    #[serde(deserialize_with = "memlock")]
    pub memlock: Memlock,
}

/// Locked memory (`RLIMIT_MEMLOCK`) of a task. RDMA buffers are locked memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Memlock {
    /// No limit.
    #[default]
    Unlimited,
    /// As Slurm left it.
    Keep,
    /// So many bytes.
    Bytes(u64),
}

/// `[bootstrap]`
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Bootstrap {
    /// TCP ports for the address exchange of roce-launcher, first and last: `[50000, 50999]`.
    #[serde(deserialize_with = "ports")]
    pub ports: Option<(u16, u16)>,
    /// Where nodes are reached in the exchange: subnets, interfaces, and addresses or names of nodes, as in
    /// `["10.1.0.0/16"]`, `["eth1"]` or `["n[1-8]=n[1-8]-hsn"]`. Empty: by their names.
    #[serde(deserialize_with = "addresses")]
    pub addresses: Vec<String>,
}

/// A site file that can't be used, in one line with file, line and key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{path} line {line}: {message}")]
pub struct SiteError {
    /// The file.
    pub path: String,
    /// From 1.
    pub line: usize,
    /// What is wrong there, with the key.
    pub message: String,
}

impl Site {
    /// Reads the text of a site file; `path` is for messages.
    ///
    /// # Errors
    /// When it is no TOML, or a key or value is not known.
    pub fn parse(text: &str, path: &str) -> Result<Self, SiteError> {
        let mut site: Self = toml::from_str(text).map_err(|error| {
            let start = error.span().map_or(0, |span| span.start.min(text.len()));
            SiteError {
                path: path.to_owned(),
                line: text.as_bytes()[..start].iter().filter(|&&byte| byte == b'\n').count() + 1,
                message: format!("{}{}", key_of(text, start), error.message().replace('\n', " ")),
            }
        })?;
        path.clone_into(&mut site.path);
        Ok(site)
    }

    /// The class of this name, or of this priority in text.
    pub(crate) fn class(&self, name: &str) -> Result<ClassRequest, String> {
        if let Some(class) = self.classes.get(name) {
            return Ok(ClassRequest::Named {
                name: name.to_owned(),
                priority: class.priority,
                dscp: class.dscp,
            });
        }
        let priority = if name.len() == 1 { name.parse().ok().and_then(Priority::new) } else { None };
        priority
            .map(ClassRequest::Priority)
            .ok_or_else(|| format!("allowed is a priority 0-7{}", self.class_list()))
    }

    /// The continuation of "allowed is a priority 0-7".
    pub(crate) fn class_list(&self) -> String {
        if self.classes.is_empty() {
            return " (the site file defines no class names)".to_owned();
        }
        let names: Vec<&str> = self.classes.keys().map(String::as_str).collect();
        format!(" or a class of the site: {}", names.join(", "))
    }

    /// Refuses a class whose priority the site doesn't allow.
    pub(crate) fn permit(&self, class: ClassRequest) -> Result<ClassRequest, String> {
        let Some(allowed) = &self.policy.allowed_priorities else { return Ok(class) };
        if allowed.contains(&class.priority()) {
            return Ok(class);
        }
        let list: Vec<String> = allowed.iter().map(ToString::to_string).collect();
        Err(format!(
            "it has priority {}, and {} allows {}",
            class.priority(),
            self.path,
            if list.is_empty() { "none".to_owned() } else { list.join(", ") }
        ))
    }
}

/// `"key: "` of the line that `position` is in, unless the message names it anyway.
fn key_of(text: &str, position: usize) -> String {
    let line_start = text[..position].rfind('\n').map_or(0, |newline| newline + 1);
    let line = text[line_start..].lines().next().unwrap_or_default();
    match line.split_once('=') {
        Some((key, _)) if position > line_start + key.len() => format!("{}: ", key.trim()),
        _ => String::new(),
    }
}

fn to_priority<E: serde::de::Error>(value: i64) -> Result<Priority, E> {
    let priority = u8::try_from(value).ok().and_then(Priority::new);
    priority.ok_or_else(|| E::custom(format!("{value} is not a priority 0-7")))
}

fn priority<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Priority, D::Error> {
    to_priority(i64::deserialize(deserializer)?)
}

fn priorities<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Vec<Priority>>, D::Error> {
    let values = Vec::<i64>::deserialize(deserializer)?;
    values.into_iter().map(to_priority).collect::<Result<_, _>>().map(Some)
}

#[derive(Deserialize)]
#[serde(untagged)]
enum NumberOrText {
    Number(i64),
    Text(String),
}

fn dscp<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Dscp>, D::Error> {
    let text = match NumberOrText::deserialize(deserializer)? {
        NumberOrText::Number(number) => number.to_string(),
        NumberOrText::Text(text) => text,
    };
    text.parse().map(Some).map_err(serde::de::Error::custom)
}

fn memlock<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Memlock, D::Error> {
    match NumberOrText::deserialize(deserializer)? {
        NumberOrText::Text(text) if text == "unlimited" => Ok(Memlock::Unlimited),
        NumberOrText::Text(text) if text == "keep" => Ok(Memlock::Keep),
        NumberOrText::Number(bytes) if bytes >= 0 => Ok(Memlock::Bytes(bytes.unsigned_abs())),
        _ => Err(serde::de::Error::custom("allowed is \"unlimited\", \"keep\" or a number of bytes")),
    }
}

fn ports<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<(u16, u16)>, D::Error> {
    let (first, last) = <(u16, u16)>::deserialize(deserializer)?;
    if first == 0 || first > last {
        return Err(serde::de::Error::custom("the first port is above the last, or 0"));
    }
    Ok(Some((first, last)))
}

/// Their form alone: who reads them (roce-bootstrap) expands node names and asks for interfaces.
fn addresses<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    let entries = Vec::<String>::deserialize(deserializer)?;
    for entry in &entries {
        let is_plain = !entry.is_empty() && entry.bytes().all(|byte| byte.is_ascii_graphic());
        let well_formed = match entry.split_once('=') {
            Some((nodes, places)) => !nodes.is_empty() && !places.is_empty(),
            None if entry.contains('/') => entry.parse::<IpNet>().is_ok(),
            // IFNAMSIZ has room for 15 characters.
            None => entry.len() <= 15 && !entry.contains([',', ':', '[']),
        };
        if !is_plain || !well_formed {
            return Err(serde::de::Error::custom(format!(
                "{entry:?} is no subnet, network interface or NODES=ADDRESSES"
            )));
        }
    }
    Ok(entries)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_is_read() {
        let site = Site::parse(
            r#"
            [policy]
            activate = "always"
            on_failure = "warn"
            allowed_priorities = [3, 4]
            class = "bulk"
            node_wide = true
            [classes.bulk]
            priority = 3
            dscp = "af31"
            [classes.low]
            priority = 4
            [nics]
            include = ["mlx5_0", "10.1.0.0/16"]
            exclude = ["0000:21:00.0"]
            rails = ["10.1.0.0/24", "10.1.1.0/24"]
            [gid]
            family = "ipv6"
            subnets = ["fd00::/8"]
            [exports]
            libraries = ["ucx", "nccl", "libfabric"]
            overwrite = true
            [limits]
            memlock = 1073741824
            [bootstrap]
            ports = [50000, 50999]
            addresses = ["10.1.0.0/16", "eth1", "n[1-8]=n[1-8]-hsn"]
            "#,
            "roce.toml",
        )
        .unwrap();
        assert_eq!(site.classes["bulk"].dscp, Dscp::new(26));
        assert_eq!(site.limits.memlock, Memlock::Bytes(1 << 30));
        assert!(site.policy.node_wide);
        assert_eq!(site.bootstrap.ports, Some((50_000, 50_999)));
        assert_eq!(site.bootstrap.addresses, ["10.1.0.0/16", "eth1", "n[1-8]=n[1-8]-hsn"]);
        assert_eq!(site.gid.family, Family::Ipv6);
    }

    /// The file that packages install, as it is and with every example switched on.
    #[test]
    fn the_example_file_is_valid() {
        let example = include_str!("../../../spank-plugin/roce.toml.example");
        let as_it_is = Site::parse(example, "").unwrap();
        assert_eq!(as_it_is, Site::default());
        let uncommented: String = example
            .lines()
            .map(|line| line.strip_prefix('#').filter(|rest| !rest.starts_with(' ')).unwrap_or(line))
            .flat_map(|line| [line, "\n"])
            .collect();
        let all = Site::parse(&uncommented, "").unwrap();
        assert_eq!(all.policy.class.as_deref(), Some("bulk"));
        assert_eq!(all.bootstrap.ports, Some((50_000, 50_999)));
    }

    #[test]
    fn the_manual_page_has_every_key_of_the_example_file() {
        let example = include_str!("../../../spank-plugin/roce.toml.example");
        let page = include_str!("../../../docs/man/roce.toml.5");
        let assignments =
            example.lines().filter_map(|line| line.strip_prefix('#').unwrap_or(line).split_once(" = "));
        let keys: Vec<&str> = assignments.map(|(key, _)| key).filter(|key| !key.contains(' ')).collect();
        assert!(keys.len() > 10, "{keys:?}");
        for key in keys {
            assert!(page.contains(&format!("\n.BR {key} \"")), "roce.toml(5) lacks {key}");
        }
    }

    #[test]
    fn an_empty_file_is_the_defaults() {
        let site = Site::parse("", "").unwrap();
        assert_eq!(site, Site::default());
        assert_eq!(site.limits.memlock, Memlock::Unlimited);
    }

    /// Every refusal, as an administrator reads it.
    #[test]
    fn mistakes_are_named_with_file_line_and_key() {
        let bad = [
            "[policy]\non_failur = \"fail\"",
            "[policy]\n\non_failure = \"ignore\"",
            "[polcy]",
            "[classes.bulk]\npriority = 9",
            "[classes.bulk]\ndscp = 26",
            "[classes.bulk]\npriority = 3\ndscp = 64",
            "[limits]\nmemlock = \"lots\"",
            "[gid]\nsubnets = [\"10.0.0.0/99\"]",
            "[bootstrap]\nports = [1]",
            "[bootstrap]\nports = [50999, 50000]",
            "[bootstrap]\naddresses = [\"10.1.0.0/99\"]",
            "[bootstrap]\naddresses = [\"eth1 eth2\"]",
            "[policy\n",
        ];
        let lines: Vec<_> = bad
            .iter()
            .map(|text| Site::parse(text, "/etc/slurm/roce.toml").unwrap_err().to_string())
            .collect();
        insta::assert_snapshot!(lines.join("\n"));
    }

    #[test]
    fn a_priority_that_the_site_forbids_is_refused_however_it_is_asked_for() {
        let site = Site::parse("[policy]\nallowed_priorities = [3]", "roce.toml").unwrap();
        let dscp = |value| ClassRequest::Dscp(Dscp::new(value).unwrap());
        assert!(site.permit(dscp(26)).is_ok());
        assert_eq!(site.permit(dscp(46)).unwrap_err(), "it has priority 5, and roce.toml allows 3");
    }
}
