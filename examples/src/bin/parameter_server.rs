//! Asynchronous stochastic gradient descent with a parameter server: a linear regression whose parameters are in a window.
//!
//! Every rank is a worker. It draws the number of a batch, gets the parameters as they are just now, computes the batch's gradient, and
//! adds its step to the parameters, atomically and as fixed-point numbers, while the others do the same. Nobody waits for anybody,
//! and no server runs: within a node a step is a few loads and atomic additions. The parameters are kept by the first
//! `--servers` ranks, a part by each.
//!
//! The result is checked against the least-squares solution, which all ranks compute together. What the order of the steps changes,
//! and that a gradient may be some steps old, is noise like that of the batches: the tolerance is eight of its standard deviations.
//!
//! ```text
//! srun --roce-tc=3 parameter_server
//! rocectl run -n 4 parameter_server --servers 2
//! ```

use std::ops::Range;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Result, ensure};
use clap::Parser;
use roce_launcher::{Communicator, Job, Sum, Window};

/// Fixed point: parameters are below 2^31, and exact to 2^-32.
const ONE: f64 = (1_u64 << 32) as f64;
/// Standard deviation of what the samples' results are wrong by.
const NOISE: f64 = 0.1;

/// Fits a linear model by asynchronous gradient descent, with its parameters in a window.
#[derive(Parser)]
struct Arguments {
    /// Parameters of the model.
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=1000))]
    parameters: u32,
    /// Samples.
    #[arg(long, default_value_t = 20_000, value_parser = clap::value_parser!(u32).range(1..))]
    samples: u32,
    /// Samples of one step.
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..))]
    batch: u32,
    /// How often each sample is used. By default more on many ranks, whose gradients are older and their first steps shorter.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    epochs: Option<u32>,
    /// Ranks that keep parameters.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    servers: u32,
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("parameter_server: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<bool> {
    let job = Job::init()?;
    let world = job.world();
    let size = world.size();
    let &Arguments { parameters, samples, batch, .. } = arguments;
    ensure!(
        samples >= 10 * parameters,
        "{samples} samples don't tell {parameters} parameters: give 10 for each"
    );
    let servers = arguments.servers.min(size).min(parameters);
    let epochs = arguments.epochs.unwrap_or(5 + size / 2);
    let plan = Plan { samples, batch, size, steps: samples.div_ceil(batch) * epochs };

    let server = Server::open(&world, parameters, servers)?;
    // A worker that has to connect to a server after its first step's number was drawn would make that step when it is too old.
    server.get()?;
    server.tickets.fence()?;
    let start = Instant::now();
    let steps = work(&server, &plan)?;
    server.tickets.fence()?;
    let took = start.elapsed();

    let found = server.get()?;
    let best = least_squares(&world, parameters, samples)?;
    let worst = found.iter().zip(&best).map(|(found, best)| (found - best).abs()).fold(0.0, f64::max);
    let tolerance = 8.0 * plan.deviation();
    let all = world.gather(0, &[steps])?;
    if let Some(all) = all {
        let per_rank: Vec<String> = all.iter().map(u32::to_string).collect();
        println!(
            "{parameters} parameters on {servers} of {size} ranks, {} steps of {batch} of {samples} samples: {:.1} us a step, by rank {}; \
             at most {worst:.2e} from the least-squares solution, where {tolerance:.2e} is allowed",
            plan.steps,
            took.as_secs_f64() * 1e6 / f64::from(plan.steps),
            per_rank.join(" "),
        );
    }
    server.close()?;
    job.finalize()?;
    Ok(worst <= tolerance)
}

/// What is the same on all ranks.
struct Plan {
    samples: u32,
    batch: u32,
    size: u32,
    steps: u32,
}

impl Plan {
    /// The samples of a step.
    fn batch_of(&self, step: u32) -> Range<u32> {
        let batches = self.samples.div_ceil(self.batch);
        let first = step % batches * self.batch;
        first..(first + self.batch).min(self.samples)
    }

    /// How far a step goes along its gradient. At first so little that it may be as many steps old as there are ranks.
    fn rate(&self, step: u32) -> f64 {
        1.0 / (8.0 + 2.0 * f64::from(self.size) + f64::from(step) / 4.0)
    }

    /// What a parameter still deviates from the best after the last step. The samples' numbers have variance 1, so a
    /// batch's gradient has the noise's over its samples, of which the steps keep half their rate.
    fn deviation(&self) -> f64 {
        NOISE * (self.rate(self.steps) / (2.0 * f64::from(self.batch))).sqrt()
    }
}

/// Where the parameters are.
struct Server {
    /// How many steps have been given out, on rank 0.
    tickets: Window<u64>,
    parameters: Window<i64>,
    /// Which parameters each server keeps.
    parts: Vec<Range<usize>>,
}

impl Server {
    fn open(world: &Communicator, parameters: u32, servers: u32) -> Result<Self> {
        let cut = |server: u32| (server as usize * parameters as usize) / servers as usize;
        let parts: Vec<Range<usize>> = (0..servers).map(|server| cut(server)..cut(server + 1)).collect();
        let own = parts.get(world.rank() as usize).map_or(0, Range::len);
        let tickets = world.window(usize::from(world.rank() == 0))?;
        Ok(Self { tickets, parameters: world.window(own)?, parts })
    }

    /// The parameters as they are now.
    fn get(&self) -> Result<Vec<f64>> {
        let mut fixed = vec![0_i64; self.parts.last().map_or(0, |part| part.end)];
        for (server, part) in (0..).zip(&self.parts) {
            self.parameters.get(server, 0, &mut fixed[part.clone()])?;
        }
        Ok(fixed.into_iter().map(|number| number as f64 / ONE).collect())
    }

    fn add(&self, step: &[f64]) -> Result<()> {
        let fixed: Vec<i64> = step.iter().map(|number| (number * ONE).round() as i64).collect();
        for (server, part) in (0..).zip(&self.parts) {
            self.parameters.add(server, 0, &fixed[part.clone()])?;
        }
        Ok(())
    }

    fn close(self) -> Result<()> {
        self.parameters.close()?;
        Ok(self.tickets.close()?)
    }
}

/// Makes steps until all have been made. How many this rank made.
fn work(server: &Server, plan: &Plan) -> Result<u32> {
    let mut steps = 0;
    loop {
        let step = u32::try_from(server.tickets.fetch_add(0, 0, 1)?)?;
        if step >= plan.steps {
            server.parameters.flush_all()?;
            return Ok(steps);
        }
        let parameters = server.get()?;
        let batch = plan.batch_of(step);
        let share = plan.rate(step) / f64::from(batch.end - batch.start);
        let mut change = vec![0.0; parameters.len()];
        for number in batch {
            let (sample, result) = sample(number, parameters.len());
            let wrong = dot(&sample, &parameters) - result;
            change.iter_mut().zip(&sample).for_each(|(change, x)| *change -= share * wrong * x);
        }
        server.add(&change)?;
        steps += 1;
    }
}

/// A sample by its number: numbers of mean 0 and variance 1, and the true model's result with some noise.
fn sample(number: u32, length: usize) -> (Vec<f64>, f64) {
    let mut state = u64::from(number) << 32;
    let mut uniform = || {
        // SplitMix64.
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((bits ^ (bits >> 31)) as f64 / u64::MAX as f64 * 2.0 - 1.0) * 3.0_f64.sqrt()
    };
    let sample: Vec<f64> = (0..length).map(|_| uniform()).collect();
    let truth: Vec<f64> = (1..=length).map(|place| (place as f64).sin()).collect();
    let result = dot(&sample, &truth) + NOISE * uniform();
    (sample, result)
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// The parameters with the least squares, by the normal equations: each rank sums up a share of the samples.
fn least_squares(world: &Communicator, parameters: u32, samples: u32) -> Result<Vec<f64>> {
    let count = parameters as usize;
    // A row for each parameter, with the right-hand side behind it.
    let width = count + 1;
    let mut sums = vec![0.0; count * width];
    for number in (world.rank()..samples).step_by(world.size() as usize) {
        let (mut sample, result) = sample(number, count);
        sample.push(result);
        for (row, x) in sums.chunks_exact_mut(width).zip(&sample) {
            row.iter_mut().zip(&sample).for_each(|(sum, y)| *sum += x * y);
        }
    }
    world.all_reduce(&mut sums, Sum)?;
    // The matrix is symmetric and positive, so elimination needs no pivots.
    for done in 0..count {
        let (above, below) = sums.split_at_mut((done + 1) * width);
        let pivot = &above[done * width..];
        for row in below.chunks_exact_mut(width) {
            let factor = row[done] / pivot[done];
            row.iter_mut().zip(pivot).skip(done).for_each(|(number, other)| *number -= factor * other);
        }
    }
    let mut best = vec![0.0; count];
    for place in (0..count).rev() {
        let row = &sums[place * width..(place + 1) * width];
        best[place] = (row[count] - dot(&row[place + 1..count], &best[place + 1..])) / row[place];
    }
    Ok(best)
}
