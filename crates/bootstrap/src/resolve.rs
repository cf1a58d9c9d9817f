//! Where nodes are reached: by their names, unless `ROCE_NODE_ADDRS` says otherwise.

use std::collections::BTreeMap;
use std::net::{IpAddr, ToSocketAddrs};

use ipnet::IpNet;

use crate::error::Result;
use crate::hostlist::{expand_hostlist, split_outside_brackets};
use crate::step::wrong;

/// The variable that says which addresses nodes have in the exchange; the plugin sets it to what the site says.
pub const ADDRESSES_VARIABLE: &str = "ROCE_NODE_ADDRS";
const FORM: &str = "a list of NODES=ADDRESSES such as n1=10.0.0.1 or n[1-8]=n[1-8]-hsn, subnets such as 10.1.0.0/16, and \
                    network interfaces such as eth1";
/// The longest name of an interface (IFNAMSIZ - 1).
const LONGEST_INTERFACE: usize = 15;

/// Where nodes are reached. By default at the addresses of their names (DNS, /etc/hosts).
///
/// The text of `ROCE_NODE_ADDRS` is a list, separated by commas, of
/// - `NODES=ADDRESSES`: these nodes are at these addresses or names, one for each node, or one for all: `n1=10.0.0.1`,
///   `n1=fd00::1`, `n[1-8]=10.0.0.[1-8]`, `n[1-8]=n[1-8]-hsn`, `n[1-8]=127.0.0.1`. Given twice, a node has both.
/// - `SUBNET`: of the addresses that a name has, only those in it, `10.1.0.0/16`. With several subnets those of the first
///   come first.
/// - `INTERFACE`: the subnets of this network interface of the node that looks, `eth1`.
///
/// ```
/// let addresses: roce_bootstrap::NodeAddresses = "n[1-2]=10.0.0.[1-2]".parse()?;
/// # Ok::<(), roce_bootstrap::Error>(())
/// ```
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct NodeAddresses {
    /// Addresses or names by the node's name.
    told: BTreeMap<String, Vec<String>>,
    /// In the order of preference.
    within: Vec<Within>,
}

#[derive(Clone, PartialEq, Eq, Debug)]
enum Within {
    Subnet(IpNet),
    Interface(String),
}

impl std::str::FromStr for NodeAddresses {
    type Err = crate::Error;

    fn from_str(text: &str) -> Result<Self> {
        let mut addresses = Self::default();
        addresses.read(text).ok_or_else(|| wrong(ADDRESSES_VARIABLE, text, FORM))?;
        Ok(addresses)
    }
}

impl NodeAddresses {
    /// What `ROCE_NODE_ADDRS` says; without it, or where it is empty, nodes are reached by name.
    ///
    /// # Errors
    /// [`Error::Variable`](crate::Error::Variable).
    pub fn from_environment() -> Result<Self> {
        match std::env::var_os(ADDRESSES_VARIABLE).filter(|value| !value.is_empty()) {
            Some(value) => value.to_string_lossy().parse(),
            None => Ok(Self::default()),
        }
    }

    fn read(&mut self, text: &str) -> Option<()> {
        for entry in split_outside_brackets(text)? {
            match entry.split_once('=') {
                Some((nodes, places)) => {
                    let nodes = expand_hostlist(nodes)?;
                    let places = match places.parse::<IpAddr>() {
                        Ok(address) => vec![address.to_string()],
                        Err(_) => expand_hostlist(places)?,
                    };
                    if places.len() != 1 && places.len() != nodes.len() {
                        return None;
                    }
                    for (node, place) in nodes.into_iter().zip(places.into_iter().cycle()) {
                        self.told.entry(node).or_default().push(place);
                    }
                }
                None if entry.contains('/') => {
                    self.within.push(Within::Subnet(entry.parse::<IpNet>().ok()?.trunc()));
                }
                None => {
                    let is_address = entry.parse::<IpAddr>().is_ok();
                    let well_formed = !entry.is_empty()
                        && entry.len() <= LONGEST_INTERFACE
                        && entry.bytes().all(|byte| byte.is_ascii_graphic() && !b"[]:".contains(&byte));
                    if is_address || !well_formed {
                        return None;
                    }
                    self.within.push(Within::Interface(entry.to_owned()));
                }
            }
        }
        Some(())
    }

    /// The addresses of a node whose addresses are told by themselves; `None` where the resolver must be asked ([`of`](Self::of)).
    ///
    /// ```
    /// let addresses: roce_bootstrap::NodeAddresses = "n1=10.0.0.1".parse()?;
    /// assert_eq!(addresses.known("n1"), Some(vec!["10.0.0.1".parse().unwrap()]));
    /// assert_eq!(addresses.known("n2"), None);
    /// # Ok::<(), roce_bootstrap::Error>(())
    /// ```
    #[must_use]
    pub fn known(&self, node: &str) -> Option<Vec<IpAddr>> {
        let places = self.told.get(node).map_or(&[][..], Vec::as_slice);
        if places.is_empty() && self.within.is_empty() {
            return node.parse().ok().map(|address| vec![address]);
        }
        let addresses: Vec<IpAddr> = places.iter().map(|place| place.parse().ok()).collect::<Option<_>>()?;
        (!addresses.is_empty()).then_some(addresses)
    }

    /// The addresses of a node, the best first, or why there are none. It takes as long as the resolver takes, so it is
    /// called where nobody waits for it.
    ///
    /// ```
    /// let addresses = roce_bootstrap::NodeAddresses::default();
    /// assert_eq!(addresses.of("127.0.0.1"), Ok(vec!["127.0.0.1".parse().unwrap()]));
    /// ```
    ///
    /// # Errors
    /// Why there are none, in words that go behind the node's name.
    pub fn of(&self, node: &str) -> Result<Vec<IpAddr>, String> {
        let itself = [node.to_owned()];
        let places = self.told.get(node).map_or(&itself[..], Vec::as_slice);
        let (mut literal, mut found) = (Vec::new(), Vec::new());
        let mut failure = None;
        for place in places {
            match place.parse::<IpAddr>() {
                // Whoever names an address means it.
                Ok(address) => literal.push(address),
                Err(_) => match resolve(place) {
                    Ok(addresses) => found.extend(addresses),
                    Err(reason) => failure = Some(format!("{place}: {reason}")),
                },
            }
        }
        if literal.is_empty() && found.is_empty() {
            return Err(failure.unwrap_or_else(|| "the name has no address".to_owned()));
        }
        let found = self.choose(found)?;
        let mut addresses = literal;
        for address in found {
            if !addresses.contains(&address) {
                addresses.push(address);
            }
        }
        Ok(addresses)
    }

    /// Of what the resolver found, that which is inside the subnets.
    fn choose(&self, found: Vec<IpAddr>) -> Result<Vec<IpAddr>, String> {
        if self.within.is_empty() || found.is_empty() {
            return Ok(without_link_local(found));
        }
        let mut subnets = Vec::new();
        for within in &self.within {
            match within {
                Within::Subnet(subnet) => subnets.push(*subnet),
                Within::Interface(name) => subnets.extend(subnets_of(name)?),
            }
        }
        let inside = |subnet: &IpNet| {
            let subnet = *subnet;
            found.iter().copied().filter(move |address| subnet.contains(address))
        };
        let chosen: Vec<IpAddr> = subnets.iter().flat_map(inside).collect();
        if chosen.is_empty() {
            let list = |items: Vec<String>| items.join(", ");
            let found = list(found.iter().map(ToString::to_string).collect());
            let subnets = list(subnets.iter().map(ToString::to_string).collect());
            return Err(format!("it has {found}, and {ADDRESSES_VARIABLE} allows {subnets} only"));
        }
        Ok(chosen)
    }
}

/// An IPv6 address of one link is reached only with the number of an interface, which no name service knows. Some give
/// them all the same (nss-myhostname).
fn without_link_local(found: Vec<IpAddr>) -> Vec<IpAddr> {
    let is_usable =
        |address: &IpAddr| !matches!(address, IpAddr::V6(address) if address.is_unicast_link_local());
    if found.iter().any(is_usable) { found.into_iter().filter(is_usable).collect() } else { found }
}

/// The subnets of one of this node's network interfaces.
fn subnets_of(interface: &str) -> Result<Vec<IpNet>, String> {
    let all = nix::ifaddrs::getifaddrs().map_err(|error| format!("this node's addresses: {error}"))?;
    let subnets: Vec<IpNet> = all
        .filter(|one| one.interface_name == interface)
        .filter_map(|one| {
            let (address, mask) = (one.address?, one.netmask?);
            let v4 = |storage: &nix::sys::socket::SockaddrStorage| {
                storage.as_sockaddr_in().map(|address| IpAddr::V4(address.ip()))
            };
            let v6 = |storage: &nix::sys::socket::SockaddrStorage| {
                storage.as_sockaddr_in6().map(|address| IpAddr::V6(address.ip()))
            };
            let (address, mask) = (v4(&address).or(v6(&address))?, v4(&mask).or(v6(&mask))?);
            Some(IpNet::with_netmask(address, mask).ok()?.trunc())
        })
        .collect();
    if subnets.is_empty() {
        return Err(format!(
            "{ADDRESSES_VARIABLE} names the interface {interface}, which has no address on this node"
        ));
    }
    Ok(subnets)
}

fn resolve(name: &str) -> Result<Vec<IpAddr>, String> {
    let found = (name, 0).to_socket_addrs().map_err(|error| error.to_string())?;
    let found: Vec<IpAddr> = found.map(|address| address.ip()).collect();
    if found.is_empty() { Err("the name has no address".to_owned()) } else { Ok(found) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn of(text: &str, node: &str) -> Result<String, String> {
        let addresses = text.parse::<NodeAddresses>().unwrap().of(node)?;
        Ok(addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "))
    }

    fn by_name() -> NodeAddresses {
        NodeAddresses::default()
    }

    #[test]
    fn an_address_is_its_own_name_and_nonsense_has_none() {
        for address in ["127.0.0.1", "::1"] {
            assert_eq!(by_name().of(address).unwrap(), [address.parse::<IpAddr>().unwrap()]);
        }
        assert!(by_name().of("no such name").is_err());
    }

    #[test]
    fn nodes_are_told_one_by_one_or_as_a_list_in_both_families() {
        assert_eq!(of("n1=10.0.0.1,n2=10.0.0.2", "n2").unwrap(), "10.0.0.2");
        assert_eq!(of("n[1-8,10]=10.0.[1-3].[2,4,6]", "n10").unwrap(), "10.0.3.6");
        assert_eq!(of("n[1-8]=127.0.0.1", "n7").unwrap(), "127.0.0.1");
        assert_eq!(of("n1=fd00::1,n1=10.0.0.1", "n1").unwrap(), "fd00::1 10.0.0.1");
        assert_eq!(of("n[1-2]=localhost,127.0.0.0/8", "n1").unwrap(), "127.0.0.1");
    }

    #[test]
    fn subnets_and_interfaces_choose_among_what_a_name_has() {
        let found = ["192.168.0.2", "fe80::2", "10.1.0.2", "fd00::2"].map(|text| text.parse().unwrap());
        let choose = |text: &str| {
            let chosen = text.parse::<NodeAddresses>().unwrap().choose(found.to_vec())?;
            Ok::<_, String>(chosen.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "))
        };
        assert_eq!(choose("n9=10.0.0.9").unwrap(), "192.168.0.2 10.1.0.2 fd00::2");
        assert_eq!(choose("10.1.0.0/16").unwrap(), "10.1.0.2");
        assert_eq!(choose("fd00::/8,10.1.2.3/16").unwrap(), "fd00::2 10.1.0.2");
        let error = choose("10.2.0.0/16").unwrap_err();
        assert_eq!(
            error,
            "it has 192.168.0.2, fe80::2, 10.1.0.2, fd00::2, and ROCE_NODE_ADDRS allows 10.2.0.0/16 only"
        );
        assert!(choose("lo").unwrap_err().contains("allows 127.0.0.0/8"), "{:?}", choose("lo"));
        let error = choose("nonesuch0").unwrap_err();
        assert!(
            error.contains("names the interface nonesuch0, which has no address on this node"),
            "{error}"
        );
        assert_eq!(of("lo", "127.0.0.1").unwrap(), "127.0.0.1");
        assert_eq!(of("lo,n1=localhost", "n1").unwrap().split(' ').next_back(), Some("127.0.0.1"));
        // An address that was told by itself is meant.
        assert_eq!(of("10.2.0.0/16,n1=10.1.0.1", "n1").unwrap(), "10.1.0.1");
    }

    #[test]
    fn anything_else_is_refused_with_the_form() {
        for text in [
            "n1=",
            "=10.0.0.1",
            "10.0.0.1",
            "fd00::1",
            "n[1-2]=10.0.0.[1-3]",
            "n1=10.0.0.1,,n2=10.0.0.2",
            "10.0.0.0/33",
            "n[1-2",
            "n1=10.0.0.1 n2=10.0.0.2",
            "a-name-that-is-too-long",
        ] {
            let error = text.parse::<NodeAddresses>().unwrap_err().to_string();
            assert!(
                error.starts_with(&format!("ROCE_NODE_ADDRS={text:?} is not a list of NODES=")),
                "{error}"
            );
        }
    }

    #[test]
    fn addresses_that_are_told_need_no_resolver() {
        let known = |text: &str, node| text.parse::<NodeAddresses>().unwrap().known(node);
        let addresses =
            |texts: &[&str]| Some(texts.iter().map(|text| text.parse().unwrap()).collect::<Vec<IpAddr>>());
        assert_eq!(by_name().known("10.0.0.1"), addresses(&["10.0.0.1"]));
        assert_eq!(known("n1=fd00::1,n1=10.0.0.1,eth1", "n1"), addresses(&["fd00::1", "10.0.0.1"]));
        assert_eq!(known("n1=10.0.0.1,n1=other", "n1"), None);
        assert_eq!(known("n1=10.0.0.1", "n2"), None);
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "[a-z0-9=,./:\\[\\]-]{0,40}") {
            let _ = text.parse::<NodeAddresses>();
        }
    }
}
