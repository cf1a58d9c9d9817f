//! Every rank exchanges bytes with ranks of other nodes, in each of the ways that a queue pair offers, checks every
//! byte, and measures how long eight bytes take.
//!
//! ```text
//! srun -N2 --ntasks-per-node=2 --roce-tc=3 pair_exchange
//! srun -N2 --ntasks-per-node=2 --roce-tc=3 --roce-nics=all pair_exchange --peers all
//! ```

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::Parser;
use roce_examples::pattern::{self, Way};
use roce_examples::peers::Peers;
use roce_examples::report::{Latency, PairReport, Report};
use roce_launcher::{Job, QueuePair, RemoteWindow, WorkId};

/// Ping-pongs before the measured ones.
const WARM_UP: usize = 3;
/// Bytes of a ping.
const PING: usize = 8;

/// Exchanges bytes with ranks of other nodes and checks them.
#[derive(Parser)]
struct Arguments {
    /// Whom to exchange with.
    #[arg(long, value_enum, default_value = "partner")]
    peers: Peers,
    /// How many bytes, each way and in each way of transfer.
    #[arg(long, default_value_t = 1 << 20)]
    bytes: usize,
    /// How many 8-byte ping-pongs to measure.
    #[arg(long, default_value_t = 20)]
    latency_samples: usize,
    /// Folder for a JSON report of each rank.
    #[arg(long, value_name = "DIR")]
    report: Option<PathBuf>,
    /// Seconds that any one wait may take.
    #[arg(long, default_value_t = 120, value_name = "SECONDS")]
    timeout: u64,
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // One line with the whole chain of causes.
            eprintln!("pair_exchange: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<()> {
    ensure!(arguments.bytes > 0, "--bytes 0: there is nothing to exchange; give at least 1");
    let patience = Duration::from_secs(arguments.timeout);

    let mut job = Job::init()?;
    job.require_nics()?;
    if job.node_count() < 2 {
        bail!(
            "all {} ranks are on node {}: start them on at least two nodes, as in srun -N2",
            job.size(),
            job.node()
        );
    }
    let peers = arguments.peers.of(&job);
    let mut pairs = job.connect(&peers)?;
    // All ranks take their pairs in one global order, so that two ranks never wait for each other's third.
    pairs.sort_by_key(|pair| (job.rank().min(pair.peer()), job.rank().max(pair.peer())));

    // Receives are posted before anybody sends: a message without one is refused and sent again and again.
    let expected: Vec<Expected> =
        pairs.iter().map(|pair| Expected::post(pair, arguments.bytes)).collect::<Result<_>>()?;
    job.barrier()?;
    for (pair, expected) in pairs.iter_mut().zip(&expected) {
        exchange(pair, expected, job.rank(), arguments.bytes, patience)
            .with_context(|| format!("rank {} ({}) with rank {}", job.rank(), job.node(), pair.peer()))?;
    }
    // Latency is measured after all bulk transfers, and one pair of a rank after the other.
    job.barrier()?;
    let mut report = Report::of(&job);
    for (pair, expected) in pairs.iter_mut().zip(&expected) {
        let leads = job.rank() < pair.peer();
        let latency = ping_pong(pair, expected.first_ping, leads, arguments.latency_samples, patience)
            .with_context(|| format!("latency of rank {} with rank {}", job.rank(), pair.peer()))?;
        if leads {
            println!("{}", line(&job, pair, arguments.bytes, latency));
        }
        report.pairs.push(pair_report(pair, arguments.bytes, latency));
    }
    if let Some(folder) = &arguments.report {
        report
            .write(folder)
            .with_context(|| format!("writing rank-{}.json to {}", job.rank(), folder.display()))?;
    }
    // A peer may still wait for an acknowledgement: the queue pairs go after everybody has come this far.
    job.finalize()?;
    for pair in pairs {
        pair.close()?;
    }
    Ok(())
}

/// The receives for what the peer will send, in its order.
struct Expected {
    key: WorkId,
    bulk: WorkId,
    written: WorkId,
    filled: WorkId,
    read: WorkId,
    first_ping: WorkId,
}

impl Expected {
    fn post(pair: &QueuePair, bytes: usize) -> Result<Self> {
        let post = |bytes| anyhow::Ok(pair.post_receive(pair.buffer(bytes)?)?);
        Ok(Self {
            key: post(RemoteWindow::BYTES)?,
            bulk: post(bytes)?,
            written: post(1)?,
            filled: post(1)?,
            read: post(1)?,
            first_ping: post(PING)?,
        })
    }
}

/// Moves `bytes` each way by send/receive, RDMA write and RDMA read. The peer does the same at the same time.
fn exchange(
    pair: &mut QueuePair,
    expected: &Expected,
    rank: u32,
    bytes: usize,
    patience: Duration,
) -> Result<()> {
    let peer = pair.peer();
    // Memory that the peer may write and read, and the key to the peer's.
    let mut window = pair.window(bytes)?;
    tell(pair, &window.remote().to_bytes(), patience).context("sending the window's key")?;
    let key = pair.wait(expected.key, patience)?.buffer;
    let remote = RemoteWindow::from_bytes(key.as_slice().try_into()?);
    let mut buffer = pair.buffer(bytes)?;

    // Send and receive.
    pattern::fill(buffer.as_mut_slice(), rank, peer, Way::Send);
    buffer = pair.send(buffer, bytes, patience)?;
    let received = pair.wait(expected.bulk, patience)?;
    ensure!(received.bytes == bytes, "received {} bytes instead of {bytes}", received.bytes);
    verify(received.buffer.as_slice(), peer, rank, Way::Send)?;

    // RDMA write: the peer's program learns of it by a message, which never overtakes a write.
    pattern::fill(buffer.as_mut_slice(), rank, peer, Way::Write);
    buffer = pair.write(buffer, bytes, remote, 0, patience)?;
    tell(pair, b"w", patience)?;
    pair.wait(expected.written, patience)?;
    let mut copy = vec![0; bytes];
    window.read(0, &mut copy)?;
    verify(&copy, peer, rank, Way::Write)?;

    // RDMA read: from a window that the peer has filled, and leaves alone until it is told.
    pattern::fill(&mut copy, rank, peer, Way::Read);
    window.write(0, &copy)?;
    tell(pair, b"f", patience)?;
    pair.wait(expected.filled, patience)?;
    buffer = pair.read(buffer, bytes, remote, 0, patience)?;
    verify(buffer.as_slice(), peer, rank, Way::Read)?;
    tell(pair, b"r", patience)?;
    pair.wait(expected.read, patience)?;
    Ok(())
}

/// Sends a short message.
fn tell(pair: &mut QueuePair, message: &[u8], patience: Duration) -> Result<()> {
    let mut buffer = pair.buffer(message.len())?;
    buffer.as_mut_slice().copy_from_slice(message);
    pair.send(buffer, message.len(), patience)?;
    Ok(())
}

fn verify(bytes: &[u8], from: u32, to: u32, way: Way) -> Result<()> {
    pattern::check(bytes, from, to, way).map_err(|offset| {
        anyhow::anyhow!("{way:?} from rank {from} to rank {to}: wrong byte at offset {offset}")
    })
}

/// Half round trips of 8 bytes: from a message's sending to the answer's arrival. The rank that leads sends first;
/// the other takes the next message as the answer to its own.
fn ping_pong(
    pair: &mut QueuePair,
    first: WorkId,
    leads: bool,
    samples: usize,
    patience: Duration,
) -> Result<Latency> {
    let mut outgoing = pair.buffer(PING)?;
    let mut receive = first;
    let mut times = Vec::new();
    if !leads {
        let received = pair.wait(receive, patience)?;
        receive = pair.post_receive(received.buffer)?;
    }
    for _ in 0..WARM_UP + samples {
        let start = Instant::now();
        let send = pair.post_send(outgoing, PING)?;
        let received = pair.wait(receive, patience)?;
        times.push(start.elapsed().as_secs_f64() * 1e6 / 2.0);
        // Before the next message goes out, so that its answer finds it.
        receive = pair.post_receive(received.buffer)?;
        outgoing = pair.wait(send, patience)?.buffer;
    }
    if leads {
        // The answer to the last message of the other, which measures as often.
        pair.send(outgoing, PING, patience)?;
    }
    Ok(Latency::of(times.split_off(WARM_UP)))
}

fn line(job: &Job, pair: &QueuePair, bytes: usize, latency: Latency) -> String {
    let nic = pair.nic();
    let rail = nic.rail.map_or_else(|| "?".to_owned(), |rail| rail.to_string());
    format!(
        "rank {} ({} {} rail {rail}) <-> rank {} ({}): {} send/recv ok, write ok, read ok; 8 B latency {:.0} us (min {:.0}, max {:.0}, n={})",
        job.rank(),
        job.node(),
        nic.port.device,
        pair.peer(),
        pair.peer_node(),
        size(bytes),
        latency.median,
        latency.min,
        latency.max,
        latency.samples,
    )
}

fn size(bytes: usize) -> String {
    match bytes {
        _ if bytes >= 1 << 20 && bytes.is_multiple_of(1 << 20) => format!("{} MiB", bytes >> 20),
        _ if bytes >= 1 << 10 && bytes.is_multiple_of(1 << 10) => format!("{} KiB", bytes >> 10),
        _ => format!("{bytes} B"),
    }
}

/// A pair gets its report only after every byte was checked: a failure ends the program before.
fn pair_report(pair: &QueuePair, bytes: usize, latency: Latency) -> PairReport {
    let nic = pair.nic();
    PairReport {
        peer: pair.peer(),
        peer_node: pair.peer_node().to_owned(),
        rail: nic.rail,
        device: nic.port.device.clone(),
        gid: nic.gid.to_string(),
        peer_gid: pair.peer_gid().to_string(),
        path_mtu: pair.path_mtu().bytes(),
        confirmed: pair.readback().confirmed.clone(),
        not_reported: pair.readback().not_reported.clone(),
        bytes,
        send_recv: true,
        write: true,
        read: true,
        latency_us: latency,
    }
}
