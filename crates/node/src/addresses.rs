use std::collections::BTreeMap;
use std::net::IpAddr;

use crate::Netdev;

/// Adds the live machine's IP addresses (getifaddrs(3)): sysfs doesn't have them.
pub(crate) fn fill_in(netdevs: &mut BTreeMap<String, Netdev>, problems: &mut Vec<String>) {
    let entries = match nix::ifaddrs::getifaddrs() {
        Ok(entries) => entries,
        Err(error) => {
            problems
                .push(format!("the addresses of the network interfaces are unknown: getifaddrs: {error}"));
            return;
        }
    };
    for netdev in netdevs.values_mut() {
        netdev.addresses = Some(Vec::new());
    }
    for entry in entries {
        let Some(address) = entry.address else { continue };
        let v4 = address.as_sockaddr_in().map(|v4| IpAddr::V4(v4.ip()));
        let v6 = address.as_sockaddr_in6().map(|v6| IpAddr::V6(v6.ip()));
        // An IPv4 alias is listed as `eth0:1`, the interface is eth0.
        let name = entry.interface_name.split(':').next().unwrap_or_default();
        if let (Some(ip), Some(netdev)) = (v4.or(v6), netdevs.get_mut(name)) {
            netdev.addresses.get_or_insert_default().push(ip);
        }
    }
}
