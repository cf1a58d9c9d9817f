//! PMI-1: lines of `key=value` words.

use zeroize::Zeroizing;

use super::wire::{Fields, Wire};
use super::{MAPPING, Session};
use crate::error::Result;

pub(super) struct One {
    wire: Wire,
    /// The table's name, which each request repeats.
    table: String,
}

impl One {
    /// After the versions were agreed on.
    pub(super) fn begin(mut wire: Wire) -> Result<Self> {
        let line = ask(&mut wire, "cmd=get_my_kvsname\n", "my_kvsname")?;
        match Fields::of_line(&line).get("kvsname") {
            Some(table) => Ok(Self { wire, table: table.to_owned() }),
            None => Err(wire.failed("the launcher names no table of keys and values".to_owned())),
        }
    }
}

impl Session for One {
    fn put(&mut self, key: &str, value: &str) -> Result<()> {
        let request = Zeroizing::new(format!("cmd=put kvsname={} key={key} value={value}\n", self.table));
        ask(&mut self.wire, &request, "put_result").map(drop)
    }

    fn fence(&mut self) -> Result<()> {
        ask(&mut self.wire, "cmd=barrier_in\n", "barrier_out").map(drop)
    }

    fn get(&mut self, key: &str) -> Result<Zeroizing<String>> {
        let request = format!("cmd=get kvsname={} key={key}\n", self.table);
        let line = ask(&mut self.wire, &request, "get_result")?;
        let value = Fields::of_line(&line).get("value").map(|value| Zeroizing::new(value.to_owned()));
        value.ok_or_else(|| self.wire.failed(format!("the launcher has no value of {key}")))
    }

    fn process_mapping(&mut self) -> Result<String> {
        self.get(MAPPING).map(|text| text.to_string())
    }

    fn finish(&mut self) -> Result<()> {
        ask(&mut self.wire, "cmd=finalize\n", "finalize_ack").map(drop)
    }
}

fn ask(wire: &mut Wire, request: &str, answer: &str) -> Result<Zeroizing<String>> {
    wire.write(request.as_bytes())?;
    let line = wire.read_line()?;
    let fields = Fields::of_line(&line);
    fields.expect(wire, answer)?;
    // Without the value, which may be a secret.
    let asked = request.split(" value=").next().unwrap_or_default().trim_end();
    fields.succeeded(wire, asked)?;
    Ok(line)
}
