//! What is remembered, and the file that it is in.

use roce_types::{DevicePort, TrafficClass};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::owner::Owner;

/// The whole file.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Record {
    /// What was set.
    traffic_class: u8,
    pub(crate) owners: Vec<Owner>,
    pub(crate) ports: Vec<SavedPort>,
}

/// A port as it was.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct SavedPort {
    #[serde(serialize_with = "write_port", deserialize_with = "read_port")]
    pub(crate) port: DevicePort,
    /// Its class before; unknown until its folder has been made.
    pub(crate) before: Option<u8>,
    /// Was its device's folder made by us?
    pub(crate) created: bool,
}

impl Record {
    pub(crate) fn new(
        owner: Owner,
        ports: &[DevicePort],
        class: TrafficClass,
        is_missing: impl Fn(&DevicePort) -> bool,
    ) -> Self {
        let saved =
            |port: &DevicePort| SavedPort { port: port.clone(), before: None, created: is_missing(port) };
        Self { traffic_class: class.0, owners: vec![owner], ports: ports.iter().map(saved).collect() }
    }

    pub(crate) fn class(&self) -> TrafficClass {
        TrafficClass(self.traffic_class)
    }

    pub(crate) fn has(&self, port: &DevicePort) -> bool {
        self.ports.iter().any(|saved| saved.port == *port)
    }

    /// For messages.
    pub(crate) fn steps(&self) -> String {
        self.owners.iter().map(|owner| owner.step.as_str()).collect::<Vec<_>>().join(", ")
    }

    /// For messages.
    pub(crate) fn port_list(&self) -> String {
        self.ports.iter().map(|saved| saved.port.to_string()).collect::<Vec<_>>().join(", ")
    }

    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        toml::from_str(text).map_err(|error| error.message().replace('\n', " "))
    }

    pub(crate) fn text(&self) -> String {
        // Numbers, booleans and texts under fixed names: TOML can say all of these.
        toml::to_string(self).expect("a record has nothing that TOML lacks")
    }
}

fn write_port<S: Serializer>(port: &DevicePort, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(port)
}

/// A device's name is that of a folder, whatever the file says.
fn read_port<'de, D: Deserializer<'de>>(deserializer: D) -> Result<DevicePort, D::Error> {
    let text = String::deserialize(deserializer)?;
    let port: DevicePort = text.parse().map_err(serde::de::Error::custom)?;
    if matches!(port.device.as_str(), "." | "..") {
        return Err(serde::de::Error::custom(format!("{text:?} is no device")));
    }
    Ok(port)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_back_and_nothing_else() {
        let owner = Owner::this_process("17.0".to_owned()).unwrap();
        let ports: Vec<DevicePort> = ["mlx5_0:1", "mlx5_1:2"].map(|port| port.parse().unwrap()).into();
        let mut record = Record::new(owner, &ports, TrafficClass(106), |port| port.port == 2);
        record.ports[0].before = Some(0);
        let text = record.text();
        assert_eq!(Record::parse(&text).unwrap(), record);
        for (good, bad) in [("mlx5_0:1", "..:1"), ("mlx5_0:1", "a/b:1"), ("traffic_class", "class")] {
            assert!(Record::parse(&text.replace(good, bad)).is_err(), "{bad}");
        }
        assert!(Record::parse(&text[..text.len() / 2]).is_err());
    }
}
