#![no_main]

use roce_bootstrap::testing;

// Bytes as the table that a rank maps, of so many parts as the first byte says: every part lies inside, one behind the other.
libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let Some((&count, table)) = bytes.split_first() else { return };
    let count = usize::from(count % 32);
    if let Some(gathered) = testing::read_table(table.to_vec(), count) {
        let parts: Vec<&[u8]> = gathered.iter().collect();
        assert_eq!((parts.len(), gathered.len()), (count, count));
        assert_eq!(parts.concat(), &table[8 * (count + 1)..]);
    }
});
