//! What the plugin assigned to this task, from the `ROCE_*` variables of its environment. Strict: a value that
//! the plugin would not write is an error, never a guess.

use std::ops::RangeInclusive;
use std::str::FromStr;

use roce_types::{CpuSet, DevicePort, Dscp, Gid, Priority, TrafficClass};
use roce_verbs::Keep;

use crate::assignment::{Assignment, Nic, Source};
use crate::error::{Error, Result};
use crate::transport::Wanted;

const DEVICES: &str = "ROCE_DEVICES";
const NETDEVS: &str = "ROCE_NETDEVS";
const GIDS: &str = "ROCE_GIDS";
const GID_INDEXES: &str = "ROCE_GID_INDEXES";
const RAILS: &str = "ROCE_RAILS";
const PRIORITY: &str = "ROCE_PRIORITY";
const DSCP: &str = "ROCE_DSCP";
const TRAFFIC_CLASS: &str = "ROCE_TRAFFIC_CLASS";
const CPUS: &str = "ROCE_CPUS";
const NUMA_NODES: &str = "ROCE_NUMA_NODES";
const BOOTSTRAP_PORTS: &str = "ROCE_BOOTSTRAP_PORTS";
const TRANSPORTS: &str = "ROCE_TRANSPORTS";
const REGISTRATION_CACHE: &str = "ROCE_REGISTRATION_CACHE";
const STRIPING: &str = "ROCE_STRIPING";

/// Stands in a list for what is not known.
const UNKNOWN: &str = "-";

/// The assignment, `None` where `ROCE_DEVICES` is not set.
///
/// The lists have one element per port of `ROCE_DEVICES`; `ROCE_GIDS` must be there with it, the others may be missing,
/// and an element of theirs may be `-`, as nothing depends on them but reports and the choice of rails.
pub(crate) fn read(variable: impl Fn(&str) -> Option<String>) -> Result<Option<Assignment>> {
    let Some(devices) = variable(DEVICES) else { return Ok(None) };
    let ports: Vec<DevicePort> =
        devices.split(',').map(|text| parse(DEVICES, &devices, text)).collect::<Result<_>>()?;
    let count = ports.len();
    let missing = || wrong(DEVICES, &devices, format!("{GIDS} is not set beside it"));
    let gid_list = variable(GIDS).ok_or_else(missing)?;
    let gids: Vec<Gid> = list(GIDS, &gid_list, count, |text| parse(GIDS, &gid_list, text))?;
    let optional = |name| variable(name).map(|value| (name, value));
    let netdevs = optional_list(optional(NETDEVS), count, |_, _, text| match text {
        "" => Err("a name is missing".to_owned()),
        name => Ok(name.to_owned()),
    })?;
    let gid_indexes = optional_list(optional(GID_INDEXES), count, |_, _, text| number(text))?;
    let rails = optional_list(optional(RAILS), count, |_, _, text| number(text))?;

    let nics = ports.into_iter().zip(gids).zip(netdevs).zip(gid_indexes).zip(rails);
    let nics = nics
        .map(|((((port, gid), netdev), gid_index), rail)| Nic { port, netdev, gid, gid_index, rail })
        .collect();

    let class =
        variable(TRAFFIC_CLASS).map(|text| byte(TRAFFIC_CLASS, &text).map(TrafficClass)).transpose()?;
    let dscp = variable(DSCP).map(|text| byte(DSCP, &text).map(|value| (value, text))).transpose()?;
    let dscp = dscp
        .map(|(value, text)| Dscp::new(value).ok_or_else(|| wrong(DSCP, &text, "not a DSCP: 0-63")))
        .transpose()?;
    let priority =
        variable(PRIORITY).map(|text| byte(PRIORITY, &text).map(|value| (value, text))).transpose()?;
    let priority = priority
        .map(|(value, text)| {
            Priority::new(value).ok_or_else(|| wrong(PRIORITY, &text, "not a priority: 0-7"))
        })
        .transpose()?;
    if let Some(dscp) = dscp
        && class.map(TrafficClass::dscp) != Some(dscp)
    {
        let class = class.map_or("not set".to_owned(), |class| class.to_string());
        return Err(wrong(
            DSCP,
            &dscp.to_string(),
            format!("{TRAFFIC_CLASS} is {class}, which is not its byte"),
        ));
    }
    let set = |name| variable(name).map(|text| parse::<CpuSet>(name, &text, &text)).transpose();
    Ok(Some(Assignment {
        nics,
        priority,
        dscp,
        traffic_class: class.unwrap_or_default(),
        service_level: priority.map_or(0, Priority::get),
        cpus: set(CPUS)?,
        numa_nodes: set(NUMA_NODES)?,
        source: Source::Plugin,
    }))
}

/// The site's TCP ports for the address exchange, `None` where the site names none.
pub(crate) fn bootstrap_ports(
    variable: impl Fn(&str) -> Option<String>,
) -> Result<Option<RangeInclusive<u16>>> {
    let Some(value) = variable(BOOTSTRAP_PORTS) else { return Ok(None) };
    let ends = value.split_once('-').and_then(|(first, last)| Some(first.parse().ok()?..=last.parse().ok()?));
    let ports = ends.filter(|ports: &RangeInclusive<u16>| !ports.is_empty() && *ports.start() > 0);
    let not_ports =
        || wrong(BOOTSTRAP_PORTS, &value, "not the first and last of a range of ports, as 50000-50999");
    ports.map(Some).ok_or_else(not_ports)
}

/// Which transports messages may use; all where nobody says.
pub(crate) fn transports(variable: impl Fn(&str) -> Option<String>) -> Result<Wanted> {
    let Some(value) = variable(TRANSPORTS) else {
        return Ok(Wanted { shared: true, verbs: true, tcp: true });
    };
    let mut wanted = Wanted { shared: false, verbs: false, tcp: false };
    for name in value.split(',') {
        match name {
            "shared" => wanted.shared = true,
            "verbs" => wanted.verbs = true,
            "tcp" => wanted.tcp = true,
            other => return Err(Error::Transports { value: cut(&value), name: cut(other) }),
        }
    }
    Ok(wanted)
}

/// Whether registrations of memory are kept for the next use; where that is safe if nobody says.
pub(crate) fn registration_cache(variable: impl Fn(&str) -> Option<String>) -> Result<Keep> {
    match variable(REGISTRATION_CACHE).as_deref() {
        None => Ok(Keep::WhereSafe),
        Some("on") => Ok(Keep::Always),
        Some("off") => Ok(Keep::Never),
        Some(value) => Err(wrong(REGISTRATION_CACHE, value, "neither on nor off")),
    }
}

/// Whether long messages go over all rails that two ranks have; they do if nobody says.
pub(crate) fn striping(variable: impl Fn(&str) -> Option<String>) -> Result<bool> {
    match variable(STRIPING).as_deref() {
        None | Some("on") => Ok(true),
        Some("off") => Ok(false),
        Some(value) => Err(wrong(STRIPING, value, "neither on nor off")),
    }
}

fn list<T>(
    name: &'static str,
    value: &str,
    count: usize,
    element: impl Fn(&str) -> Result<T>,
) -> Result<Vec<T>> {
    let elements: Vec<T> = value.split(',').map(element).collect::<Result<_>>()?;
    if elements.len() != count {
        let problem = format!("{} elements, but {DEVICES} has {count}", elements.len());
        return Err(wrong(name, value, problem));
    }
    Ok(elements)
}

/// A list that may be missing, with elements that may be unknown.
fn optional_list<T>(
    variable: Option<(&'static str, String)>,
    count: usize,
    element: impl Fn(&'static str, &str, &str) -> std::result::Result<T, String>,
) -> Result<Vec<Option<T>>> {
    let Some((name, value)) = variable else { return Ok((0..count).map(|_| None).collect()) };
    list(name, &value, count, |text| {
        if text == UNKNOWN {
            return Ok(None);
        }
        element(name, &value, text).map(Some).map_err(|problem| wrong(name, &value, problem))
    })
}

fn number(text: &str) -> std::result::Result<u32, String> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|_| digits).ok_or_else(|| format!("\"{}\" is not a number", cut(text)))
}

fn byte(name: &'static str, text: &str) -> Result<u8> {
    let value = number(text).map_err(|problem| wrong(name, text, problem))?;
    u8::try_from(value).map_err(|_| wrong(name, text, "more than a byte: 0-255"))
}

fn parse<T: FromStr<Err = roce_types::ParseError>>(name: &'static str, value: &str, text: &str) -> Result<T> {
    text.parse().map_err(|error: roce_types::ParseError| wrong(name, value, error.to_string()))
}

fn wrong(variable: &'static str, value: &str, problem: impl Into<String>) -> Error {
    Error::Variable { variable, value: cut(value), problem: problem.into() }
}

fn cut(value: &str) -> String {
    value.chars().take(200).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PLUGIN: [(&str, &str); 10] = [
        (DEVICES, "mlx5_0:1,mlx5_3:1"),
        (NETDEVS, "eth0,eth3"),
        (GIDS, "::ffff:10.0.0.1,::ffff:10.0.1.1"),
        (GID_INDEXES, "3,5"),
        (RAILS, "0,1"),
        (PRIORITY, "3"),
        (DSCP, "26"),
        (TRAFFIC_CLASS, "106"),
        (CPUS, "0-3"),
        (NUMA_NODES, "0"),
    ];

    fn read_with(changes: &[(&str, Option<&str>)]) -> Result<Option<Assignment>> {
        read(|name| {
            let changed = changes.iter().find(|(changed, _)| *changed == name).map(|(_, value)| *value);
            changed
                .unwrap_or_else(|| PLUGIN.iter().find(|(known, _)| *known == name).map(|(_, value)| *value))
                .map(str::to_owned)
        })
    }

    #[test]
    fn what_the_plugin_writes_is_read() {
        let assignment = read_with(&[]).unwrap().unwrap();
        assert_eq!(assignment.nics.len(), 2);
        assert_eq!(assignment.nics[1].port.to_string(), "mlx5_3:1");
        assert_eq!(assignment.nics[1].gid.to_string(), "::ffff:10.0.1.1");
        assert_eq!((assignment.nics[1].gid_index, assignment.nics[1].rail), (Some(5), Some(1)));
        assert_eq!((assignment.traffic_class, assignment.service_level), (TrafficClass(106), 3));
        assert_eq!(assignment.cpus.unwrap().len(), 4);
    }

    #[test]
    fn without_a_class_both_are_zero() {
        let none = [(PRIORITY, None), (DSCP, None), (TRAFFIC_CLASS, None)];
        let assignment = read_with(&none).unwrap().unwrap();
        assert_eq!(
            (assignment.traffic_class, assignment.service_level, assignment.dscp),
            (TrafficClass(0), 0, None)
        );
    }

    #[test]
    fn without_the_plugin_there_is_no_assignment() {
        assert_eq!(read_with(&[(DEVICES, None)]).unwrap(), None);
    }

    #[test]
    fn unknown_rails_and_missing_lists_are_unknown_not_zero() {
        let assignment = read_with(&[(RAILS, Some("-,1")), (NETDEVS, None)]).unwrap().unwrap();
        assert_eq!((assignment.nics[0].rail, assignment.nics[1].rail), (None, Some(1)));
        assert_eq!(assignment.nics[0].netdev, None);
    }

    #[test]
    fn what_the_plugin_would_not_write_is_an_error_that_names_the_variable() {
        for (name, value) in [
            (DEVICES, "mlx5_0"),
            (DEVICES, ""),
            (GIDS, "::ffff:10.0.0.1"),
            (GIDS, "x,y"),
            (RAILS, "0"),
            (RAILS, "0,x"),
            (RAILS, "0,+1"),
            (GID_INDEXES, "1,2,3"),
            (NETDEVS, ",eth3"),
            (PRIORITY, "8"),
            (DSCP, "64"),
            (DSCP, "27"),
            (TRAFFIC_CLASS, "256"),
            (TRAFFIC_CLASS, "af31"),
            (CPUS, "0-"),
            (NUMA_NODES, "x"),
        ] {
            let error = read_with(&[(name, Some(value))]).unwrap_err().to_string();
            assert!(
                error.starts_with(&format!("{name}={value:?}: ")) || error.starts_with("ROCE_"),
                "{error}"
            );
        }
        let error = read_with(&[(GIDS, None)]).unwrap_err().to_string();
        assert!(error.contains("ROCE_GIDS is not set"), "{error}");
    }

    proptest! {
        #[test]
        fn no_environment_makes_it_panic(values in proptest::collection::vec(proptest::option::of("[a-z0-9:,.\\-]{0,20}"), 10)) {
            let _ = read(|name| PLUGIN.iter().position(|(known, _)| *known == name).and_then(|i| values[i].clone()));
        }
    }

    #[test]
    fn transports_are_a_list_and_an_unknown_one_is_an_error() {
        let read = |value: Option<&str>| transports(|_| value.map(str::to_owned));
        assert_eq!(read(None).unwrap(), Wanted { shared: true, verbs: true, tcp: true });
        assert_eq!(read(Some("tcp")).unwrap(), Wanted { shared: false, verbs: false, tcp: true });
        assert_eq!(read(Some("verbs,shared")).unwrap(), Wanted { shared: true, verbs: true, tcp: false });
        for (value, name) in [("tpc", "tpc"), ("tcp,", ""), ("shared, tcp", " tcp"), ("", "")] {
            let error = read(Some(value)).unwrap_err().to_string();
            let expected = format!("ROCE_TRANSPORTS={value:?}: there is no transport {name:?}");
            assert!(error.starts_with(&expected), "{error}");
        }
    }

    #[test]
    fn registrations_are_kept_where_that_is_safe_unless_somebody_says_otherwise() {
        let read = |value: Option<&str>| registration_cache(|_| value.map(str::to_owned));
        assert_eq!(read(None).unwrap(), Keep::WhereSafe);
        assert_eq!(read(Some("on")).unwrap(), Keep::Always);
        assert_eq!(read(Some("off")).unwrap(), Keep::Never);
        for value in ["", "no", "ON"] {
            let error = read(Some(value)).unwrap_err().to_string();
            assert!(
                error.starts_with(&format!("ROCE_REGISTRATION_CACHE={value:?}: neither on nor off")),
                "{error}"
            );
        }
    }

    #[test]
    fn long_messages_are_striped_unless_somebody_says_otherwise() {
        let read = |value: Option<&str>| striping(|_| value.map(str::to_owned));
        assert_eq!([None, Some("on"), Some("off")].map(|value| read(value).unwrap()), [true, true, false]);
        let error = read(Some("2")).unwrap_err().to_string();
        assert!(error.starts_with("ROCE_STRIPING=\"2\": neither on nor off"), "{error}");
    }

    #[test]
    fn the_sites_ports_are_read_strictly() {
        let read = |value: &str| bootstrap_ports(|_| Some(value.to_owned()));
        assert_eq!(read("50000-50999").unwrap(), Some(50_000..=50_999));
        assert_eq!(bootstrap_ports(|_| None).unwrap(), None);
        for value in ["", "50000", "50999-50000", "0-10", "1-65536", "a-b"] {
            let error = read(value).unwrap_err().to_string();
            assert!(
                error.starts_with(&format!("ROCE_BOOTSTRAP_PORTS={value:?}: not the first and last")),
                "{error}"
            );
        }
    }
}
