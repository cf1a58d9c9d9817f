use std::fmt;
use std::str::FromStr;

use crate::ParseError;

/// One port of an RDMA device, written `mlx5_0:1` (ports count from 1).
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct DevicePort {
    /// Name of the RDMA device, as under `/sys/class/infiniband`.
    pub device: String,
    /// Number of the port, from 1.
    pub port: u8,
}

impl fmt::Display for DevicePort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.device, self.port)
    }
}

impl FromStr for DevicePort {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let parsed = text.split_once(':').and_then(|(device, port)| {
            let port = port.parse().ok().filter(|&port: &u8| port > 0)?;
            let plain = |byte: u8| byte.is_ascii_graphic() && !matches!(byte, b'/' | b',' | b':');
            (!device.is_empty() && device.bytes().all(plain))
                .then(|| Self { device: device.to_owned(), port })
        });
        parsed.ok_or_else(|| ParseError::new(text, "a device and port such as mlx5_0:1"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_and_prints() {
        assert_eq!("mlx5_bond_0:2".parse::<DevicePort>().unwrap().to_string(), "mlx5_bond_0:2");
        for text in ["mlx5_0", "mlx5_0:0", ":1", "a/b:1", "mlx5_0:1:1", "mlx5 0:1"] {
            assert!(text.parse::<DevicePort>().is_err(), "{text}");
        }
    }
}
