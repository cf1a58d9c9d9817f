use roce_types::CpuSet;

/// More words than any machine has CPUs for (65,536 of them).
const MAX_WORDS: usize = 2048;

/// Reads a CPU mask as hwloc, NCCL and the kernel's `local_cpus` write it: hexadecimal words of 32
/// bits, the most significant first, between commas; `0x` before each is optional, an empty word is
/// 0. `None` for anything else, hwloc's infinite sets (`0xf...f`) among it.
pub(crate) fn cpus(text: &str) -> Option<CpuSet> {
    let mut words: Vec<u64> = Vec::new();
    for (i, word) in text.trim().rsplit(',').enumerate() {
        let digits = word.strip_prefix("0x").unwrap_or(word);
        if i >= MAX_WORDS || digits.len() > 8 || !digits.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return None;
        }
        let value = if word.is_empty() { 0 } else { u64::from_str_radix(digits, 16).ok()? };
        match i % 2 {
            0 => words.push(value),
            _ => *words.last_mut()? |= value << 32,
        }
    }
    Some(CpuSet::from_words(&words))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_read_with_and_without_prefix_and_empty() {
        let read = |text| cpus(text).map(|cpus| cpus.to_string());
        assert_eq!(read("0x0").as_deref(), Some(""));
        assert_eq!(read("").as_deref(), Some(""));
        assert_eq!(read("0000,00000011,11111111").as_deref(), Some("0,4,8,12,16,20,24,28,32,36"));
        assert_eq!(read("0x80000000,,,0x1").as_deref(), Some("0,127"));
        assert_eq!(read("0x0000ffff,0xffffffff").as_deref(), Some("0-47"));
    }

    #[test]
    fn what_is_no_mask_is_refused() {
        let long = ",".repeat(2048);
        for text in ["0xf...f", "0x", "g", "123456789", "0-3", "+1", long.as_str()] {
            assert_eq!(cpus(text), None, "{text:?}");
        }
    }
}
