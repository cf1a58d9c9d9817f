//! PMI-2: messages of `key=value;` fields behind their length in six digits.

use zeroize::Zeroizing;

use super::variables::PmiVariables;
use super::wire::{Fields, LONGEST, Wire};
use super::{MAPPING, Session};
use crate::error::Result;

/// Digits of a message's length.
const LENGTH: usize = 6;

pub(super) struct Two {
    wire: Wire,
}

impl Two {
    /// After the versions were agreed on.
    pub(super) fn begin(mut wire: Wire, pmi: &PmiVariables) -> Result<Self> {
        let job = if pmi.job.is_empty() { String::new() } else { format!("pmijobid={};", pmi.job) };
        let answer = ask(&mut wire, "fullinit", &format!("{job}pmirank={};threaded=FALSE;", pmi.rank))?;
        let fields = Fields::of_message(&answer);
        for (key, known) in [("rank", pmi.rank), ("size", pmi.size)] {
            if let Some(said) = fields.get(key)
                && said != known.to_string()
            {
                let said = said.escape_debug();
                return Err(wire.failed(format!("the launcher says {key}={said}, its variables say {known}")));
            }
        }
        Ok(Self { wire })
    }

    /// An answer's value, which `flag` says is there.
    fn value(&mut self, command: &str, fields: &str, key: &str) -> Result<Zeroizing<String>> {
        let answer = ask(&mut self.wire, command, fields)?;
        let answer = Fields::of_message(&answer);
        let found = answer.get("flag").is_none_or(|flag| flag.eq_ignore_ascii_case("true"));
        let value = answer.get("value").filter(|_| found).map(|value| Zeroizing::new(value.to_owned()));
        value.ok_or_else(|| self.wire.failed(format!("the launcher has no value of {key}")))
    }
}

impl Session for Two {
    fn put(&mut self, key: &str, value: &str) -> Result<()> {
        let fields = Zeroizing::new(format!("key={key};value={value};"));
        ask(&mut self.wire, "kvs-put", &fields).map(drop)
    }

    fn fence(&mut self) -> Result<()> {
        ask(&mut self.wire, "kvs-fence", "").map(drop)
    }

    fn get(&mut self, key: &str) -> Result<Zeroizing<String>> {
        self.value("kvs-get", &format!("srcid=-1;key={key};"), key)
    }

    fn process_mapping(&mut self) -> Result<String> {
        self.value("info-getjobattr", &format!("key={MAPPING};"), MAPPING).map(|text| text.to_string())
    }

    fn finish(&mut self) -> Result<()> {
        ask(&mut self.wire, "finalize", "").map(drop)
    }
}

fn ask(wire: &mut Wire, command: &str, fields: &str) -> Result<Zeroizing<String>> {
    let message = Zeroizing::new(format!("cmd={command};{fields}"));
    let framed = Zeroizing::new(format!("{:LENGTH$}{}", message.len(), *message));
    wire.write(framed.as_bytes())?;
    let length = wire.read(LENGTH)?;
    let length: usize = match length.trim().parse() {
        Ok(length) if length <= LONGEST => length,
        _ => return Err(wire.failed(format!("{:?} is no length of a message", *length))),
    };
    let answer = wire.read(length)?;
    let read = Fields::of_message(&answer);
    read.expect(wire, &format!("{command}-response"))?;
    read.succeeded(wire, command)?;
    Ok(answer)
}
