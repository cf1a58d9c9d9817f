//! What the programs in the guest print.

use anyhow::{Context, Result, ensure};

use super::Laps;

/// Packets that the device sent meanwhile: at least so many, or it was not verbs that was measured.
pub(super) fn over_verbs(text: &str, least: u64) -> Result<()> {
    let packets = text.lines().find_map(|line| line.strip_prefix("packets "));
    let packets: u64 = packets.with_context(|| format!("no line of packets: {text:?}"))?.parse()?;
    ensure!(packets >= least, "{packets} packets for {least} messages: they went another way\n{text}");
    Ok(())
}

/// Ours: `name/size median mean`, in nanoseconds.
pub(super) fn ours(text: &str, name: &str, size: usize) -> Result<Laps> {
    let start = format!("{name}/{size} ");
    let line = text.lines().find_map(|line| line.strip_prefix(&start));
    let line = line.with_context(|| format!("no line \"{start}\": {text:?}"))?;
    let (median, mean) = line.split_once(' ').with_context(|| line.to_owned())?;
    Ok(Laps { median: median.parse()?, mean: mean.parse()? })
}

/// One number of ours, or of Open MPI's ranks: `name number`.
pub(super) fn number(text: &str, name: &str) -> Result<f64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    Ok(line.with_context(|| format!("no line \"{name}\": {text:?}"))?.trim().parse()?)
}

/// The words of the first line of numbers below the one that begins with `#bytes` or `bytes`.
fn row(text: &str) -> Result<Vec<&str>> {
    let mut lines = text.lines().skip_while(|line| !line.trim_start_matches([' ', '#']).starts_with("bytes"));
    let row = lines.find(|line| line.trim_start().starts_with(|first: char| first.is_ascii_digit()));
    Ok(row.with_context(|| format!("no row: {text:?}"))?.split_whitespace().collect())
}

fn column(text: &str, place: usize) -> Result<f64> {
    let row = row(text)?;
    let word = row.get(place).with_context(|| format!("no column {place}: {row:?}"))?;
    word.parse().with_context(|| format!("column {place} of {row:?}"))
}

/// perftest's latencies: the median in microseconds, in the fifth column. `None` where it failed to measure how fast
/// the processor's counter is, as it does now and then on a busy machine.
pub(super) fn perftest_latency(text: &str) -> Result<Option<f64>> {
    let median = column(text, 4)? * 1e3;
    Ok(Some(median).filter(|median| median.is_finite() && *median > 0.0))
}

/// perftest's bandwidths: 2^20 bytes a second, the average in the fourth column. In megabytes of 10^6.
pub(super) fn perftest_bandwidth(text: &str) -> Result<f64> {
    Ok(column(text, 3)? * 1.048_576)
}

/// fi_pingpong's, of one size: the mean in microseconds, in the column before the last.
pub(super) fn pingpong(text: &str, size: usize) -> Result<f64> {
    let name = match size {
        0..1024 => size.to_string(),
        1024..1_048_576 => format!("{}k", size >> 10),
        _ => format!("{}m", size >> 20),
    };
    let is_it = |line: &&str| line.split_whitespace().next() == Some(&name);
    let line = text.lines().find(is_it).with_context(|| format!("no row of {name}: {text:?}"))?;
    let word = line.split_whitespace().rev().nth(1).with_context(|| line.to_owned())?;
    Ok(word.parse::<f64>().with_context(|| line.to_owned())? * 1e3)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_peers_row_is_read() {
        let latency = " #bytes #iterations    t_min[usec]    t_max[usec]  t_typical[usec]    t_avg[usec]\nConflicting \
                       CPU frequency values detected\n 8       600          74.09          987.21       85.65  \t       91.28\n";
        assert_eq!(perftest_latency(latency).unwrap(), Some(85_650.0));
        assert_eq!(perftest_latency(&latency.replace("85.65", "inf")).unwrap(), None);
        let bandwidth = " #bytes     #iterations    BW peak[MB/sec]    BW average[MB/sec]   MsgRate[Mpps]\n \
                         65536      500              120.00             100.00   0.001600\n";
        assert!((perftest_bandwidth(bandwidth).unwrap() - 104.8576).abs() < 1e-6);
        let libfabric = "bytes   #sent   #ack     total       time     MB/sec    usec/xfer   Mxfers/sec\n\
                         8       600     =600     9.3k        0.12s      0.08     100.25       0.01\n";
        assert!(pingpong("fi_getinfo: No data available", 8).is_err());
        let libfabric = format!(
            "{libfabric}4k      200     =200     1.5m        0.05s     31.14     131.52       0.01\n\
             1m      200     =200     400m        6.94s     60.48   17338.17       0.00\n"
        );
        let means = [8, 4 << 10, 1 << 20].map(|size| pingpong(&libfabric, size).unwrap().round());
        assert_eq!(means, [100_250.0, 131_520.0, 17_338_170.0]);
        assert!(pingpong(&libfabric, 64).is_err());
    }

    #[test]
    fn messages_that_went_another_way_are_an_error() {
        assert!(over_verbs("message/8 1.0 2.0\npackets 1200\n", 1200).is_ok());
        assert!(over_verbs("message/8 1.0 2.0\npackets 1199\n", 1200).is_err());
        assert!(over_verbs("message/8 1.0 2.0\n", 1200).is_err());
    }
}
