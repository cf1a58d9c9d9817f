//! Slurm's way of writing node names: `vm[1-2],gpu[01-03,7]`, `r[1-2]n[0-3]`.

/// More nodes than this in one expression are not believed; Slurm itself allows 65,536.
const MOST: usize = 65_536;

/// The node names of a hostlist expression, in order. `None` for what is not one, or names more than 65,536 nodes.
///
/// Numbers keep the width of their range's first: `gpu[08-10]` is gpu08, gpu09, gpu10.
///
/// ```
/// let names = roce_bootstrap::expand_hostlist("vm[1-2],gpu[01-03,7]").unwrap();
/// assert_eq!(names, ["vm1", "vm2", "gpu01", "gpu02", "gpu03", "gpu7"]);
/// ```
#[must_use]
pub fn expand_hostlist(text: &str) -> Option<Vec<String>> {
    let mut names = Vec::new();
    for expression in split_outside_brackets(text)? {
        names.extend(expand_one(expression)?);
        if names.len() > MOST {
            return None;
        }
    }
    Some(names)
}

/// The parts between commas that are not inside brackets.
pub(crate) fn split_outside_brackets(text: &str) -> Option<Vec<&str>> {
    let (mut parts, mut start, mut inside) = (Vec::new(), 0, false);
    for (position, character) in text.char_indices() {
        match character {
            '[' if !inside => inside = true,
            ']' if inside => inside = false,
            '[' | ']' => return None,
            ',' if !inside => {
                parts.push(&text[start..position]);
                start = position + 1;
            }
            _ => {}
        }
    }
    parts.push(&text[start..]);
    (!inside).then_some(parts)
}

/// Every combination of one expression's bracketed sets, the last varying fastest.
fn expand_one(expression: &str) -> Option<Vec<String>> {
    let mut names = vec![String::new()];
    let mut rest = expression;
    while let Some((before, after)) = rest.split_once('[') {
        let (set, after) = after.split_once(']')?;
        let numbers = expand_set(set)?;
        if !is_plain(before) || names.len().checked_mul(numbers.len())? > MOST {
            return None;
        }
        names = names
            .iter()
            .flat_map(|name| numbers.iter().map(move |number| format!("{name}{before}{number}")))
            .collect();
        rest = after;
    }
    let well_formed = is_plain(rest) && !expression.is_empty();
    well_formed.then(|| names.into_iter().map(|name| name + rest).collect())
}

/// The numbers of `01-03,7`, each as wide as the first of its range.
fn expand_set(set: &str) -> Option<Vec<String>> {
    let mut numbers = Vec::new();
    for range in set.split(',') {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let number = |digits: &str| {
            let well_formed = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
            if well_formed { digits.parse::<u32>().ok() } else { None }
        };
        let (low, high, width) = (number(first)?, number(last)?, first.len());
        // The width is the user's: a name of thousands of digits is none.
        if low > high || (high - low) as usize >= MOST || numbers.len() > MOST || width > 16 {
            return None;
        }
        numbers.extend((low..=high).map(|number| format!("{number:0width$}")));
    }
    Some(numbers)
}

/// May these characters stand in a node's name?
fn is_plain(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.'))
}

/// The tasks on each node, from Slurm's `4(x3),2`: four on each of three nodes, two on the fourth.
pub(crate) fn expand_counts(text: &str) -> Option<Vec<u32>> {
    let mut counts = Vec::new();
    for part in text.split(',') {
        let number = |digits: &str| {
            let well_formed = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
            if well_formed { digits.parse::<u32>().ok() } else { None }
        };
        let (count, times) = match part.split_once("(x") {
            Some((count, times)) => (number(count)?, number(times.strip_suffix(')')?)? as usize),
            None => (number(part)?, 1),
        };
        if counts.len() + times > MOST {
            return None;
        }
        counts.resize(counts.len() + times, count);
    }
    Some(counts)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn joined(text: &str) -> Option<String> {
        expand_hostlist(text).map(|names| names.join(" "))
    }

    #[test]
    fn ranges_keep_the_width_of_their_first_number() {
        assert_eq!(joined("gpu[08-10,7]").unwrap(), "gpu08 gpu09 gpu10 gpu7");
    }

    #[test]
    fn several_brackets_are_combined_and_a_suffix_stays() {
        assert_eq!(joined("r[1-2]n[0,3]-ib").unwrap(), "r1n0-ib r1n3-ib r2n0-ib r2n3-ib");
    }

    #[test]
    fn plain_names_are_themselves() {
        assert_eq!(joined("login.cluster.org,vm-1").unwrap(), "login.cluster.org vm-1");
    }

    #[test]
    fn what_slurm_would_not_write_is_refused() {
        for text in [
            "",
            ",",
            "vm[",
            "vm]",
            "vm[]",
            "vm[1",
            "vm[2-1]",
            "vm[a]",
            "vm[1-]",
            "vm[[1]]",
            "vm 1",
            "v[0-99999]",
            "v[0-999]n[0-999]",
            "vm[1,]",
            "vm[4294967296]",
        ] {
            assert_eq!(joined(text), None, "{text:?}");
        }
    }

    #[test]
    fn counts_are_repeated_as_slurm_says() {
        assert_eq!(expand_counts("4(x3),2"), Some(vec![4, 4, 4, 2]));
        assert_eq!(expand_counts("1"), Some(vec![1]));
        for text in ["", "4(x", "4(3)", "(x3)", "4(x3)2", "-1", "1,,2", "1(x99999)"] {
            assert_eq!(expand_counts(text), None, "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "[a-z0-9\\[\\],\\-()x]{0,40}", any in ".{0,40}") {
            for text in [text, any] {
                if let Some(names) = expand_hostlist(&text) {
                    prop_assert!(!names.is_empty() && names.iter().all(|name| !name.is_empty()));
                }
                let _ = expand_counts(&text);
            }
        }

        #[test]
        fn a_range_has_as_many_names_as_numbers(low in 0u32..1000, more in 0u32..1000) {
            let names = expand_hostlist(&format!("n[{low}-{}]", low + more)).unwrap();
            prop_assert_eq!(names.len(), more as usize + 1);
            prop_assert_eq!(&names[0], &format!("n{low}"));
        }
    }
}
