//! A node's addresses by its name.

use std::net::{IpAddr, ToSocketAddrs};

/// The addresses of a node, or why there are none. It takes as long as the resolver takes, so it is called where nobody
/// waits for it.
pub(crate) fn addresses_of(name: &str) -> Result<Vec<IpAddr>, String> {
    let found = (name, 0).to_socket_addrs().map_err(|error| error.to_string())?;
    let found: Vec<IpAddr> = found.map(|address| address.ip()).collect();
    if found.is_empty() { Err("the name has no address".to_owned()) } else { Ok(found) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_its_own_name_and_nonsense_has_none() {
        assert_eq!(addresses_of("127.0.0.1").unwrap(), ["127.0.0.1".parse::<IpAddr>().unwrap()]);
        assert!(addresses_of("no such name").is_err());
    }
}
