//! Instructions of a callgrind file, apart from those that the device's provider and libibverbs had: what is left is what the caller
//! has beyond posting and polling.

use std::collections::HashMap;

use anyhow::{Context, Result};

/// Their names in the names of objects. Debian's have no symbols, but calls into them are told apart by object.
const PROVIDERS: [&str; 2] = ["/librxe", "/libibverbs"];

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Count {
    pub(super) all: u64,
    pub(super) in_providers: u64,
}

impl Count {
    /// The caller's, of each of so many.
    pub(super) fn own_of_each(self, times: u32) -> f64 {
        #[expect(clippy::cast_precision_loss, reason = "some hundred thousand")]
        let own = (self.all - self.in_providers) as f64;
        own / f64::from(times)
    }
}

pub(super) fn read(text: &str) -> Result<Count> {
    let mut objects = Objects::default();
    let (mut object, mut callee, mut is_call) = (false, None, false);
    let (mut own, mut in_providers) = (0, 0);
    for line in text.lines() {
        if let Some(name) = line.strip_prefix("ob=") {
            object = objects.is_provider(name);
        } else if let Some(name) = line.strip_prefix("cob=") {
            callee = Some(objects.is_provider(name));
        } else if line.starts_with("calls=") {
            is_call = true;
        } else if line.starts_with(|first: char| first.is_ascii_digit() || "+-*".contains(first)) {
            // A place and what it cost; after `calls=`, what was called cost with all that it called itself.
            let cost = line.split(' ').nth(1).map_or(Ok(0), str::parse::<u64>);
            let cost = cost.with_context(|| format!("no cost: {line:?}"))?;
            if !std::mem::take(&mut is_call) {
                own += cost;
            } else if callee.take().unwrap_or(object) && !object {
                in_providers += cost;
            }
        }
    }
    Ok(Count { all: own, in_providers })
}

/// `(3) name` names an object, and `(3)` is it again.
#[derive(Default)]
struct Objects<'a> {
    are_providers: HashMap<&'a str, bool>,
}

impl<'a> Objects<'a> {
    fn is_provider(&mut self, text: &'a str) -> bool {
        let (number, name) = text.split_once(' ').unwrap_or((text, ""));
        if !name.is_empty() {
            self.are_providers.insert(number, PROVIDERS.iter().any(|provider| name.contains(provider)));
        }
        self.are_providers.get(number).copied().unwrap_or(false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_providers_cost_is_apart_with_all_that_they_call() {
        let text = "events: Ir\n\nob=(1) /lab/bin/rank\nfn=(1) send\n10 100\ncob=(2) /usr/lib/librxe-rdmav34.so\n\
                    cfn=(2) post\ncalls=1 5\n12 70\n+3 5\ncfn=(3) copy\ncalls=2 5\n* 20\n\nfn=(3)\n1 20\n\n\
                    ob=(2)\nfn=(2)\n1 40\ncob=(3) /usr/lib/libc.so.6\ncfn=(4) ioctl\ncalls=1 0\n2 30\n\n\
                    ob=(3)\nfn=(4)\n3 30\n";
        assert_eq!(read(text).unwrap(), Count { all: 195, in_providers: 70 });
    }
}
