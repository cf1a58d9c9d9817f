//! Ranks in error messages.

/// `rank 3`, or `ranks 3 (vm2), 4 (vm2) and 12 others`.
pub(crate) fn list_ranks<'a>(ranks: impl Iterator<Item = (u32, Option<&'a str>)>) -> String {
    let named = |(rank, node): (u32, Option<&str>)| match node {
        Some(node) => format!("{rank} ({node})"),
        None => rank.to_string(),
    };
    let mut all: Vec<String> = ranks.map(named).collect();
    let more = all.len().saturating_sub(8);
    all.truncate(8);
    let plural = if all.len() + more == 1 { "rank" } else { "ranks" };
    let others = if more == 0 { String::new() } else { format!(" and {more} others") };
    format!("{plural} {}{others}", all.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_lists_of_ranks_are_cut() {
        assert_eq!(list_ranks([(3, Some("vm2"))].into_iter()), "rank 3 (vm2)");
        assert_eq!(
            list_ranks((1..=10).map(|rank| (rank, None))),
            "ranks 1, 2, 3, 4, 5, 6, 7, 8 and 2 others"
        );
    }
}
