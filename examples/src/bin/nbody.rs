//! A star cluster: every body attracts every other, summed directly, leapfrog in time.
//!
//! Each rank has a share of the bodies. A copy of each share travels around the ring of ranks; while one is on its way, the bodies
//! here are attracted by the one before. The forces are checked against those that one rank computes, the motion by what can't
//! change: energy, but for the scheme's own small error, and momentum.
//!
//! `srun --roce-tc=3 nbody`, `rocectl run -n 4 nbody`, or alone.

use std::f64::consts::PI;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Result, ensure};
use clap::Parser;
use roce_launcher::{Communicator, Job, Sum};

/// Messages with bodies.
const SHARE: u32 = 1;
/// Bodies that are nearer than this hardly attract each other more: no step would be short enough.
const SOFTENING: f64 = 0.05;
/// That of a Plummer sphere, but for the sign.
const ENERGY: f64 = 3.0 * PI / 64.0;

type Vector = [f64; 3];
/// Where a body is, and its mass.
type Body = [f64; 4];

/// Computes the motion of a star cluster, and checks forces, energy and momentum.
#[derive(Parser)]
struct Arguments {
    /// How many.
    #[arg(long, default_value_t = 2000)]
    bodies: usize,
    /// How many steps in time.
    #[arg(long, default_value_t = 50)]
    steps: u32,
    /// How long a step is; a body crosses the cluster in about 3.
    #[arg(long, default_value_t = 0.01)]
    step: f64,
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("nbody: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<()> {
    let &Arguments { bodies, steps, step } = arguments;
    ensure!(bodies > 0, "--bodies 0: give at least 1");
    let job = Job::init()?;
    let world = job.world();
    let mut share = Share::new(&world, bodies);

    let mut forces = share.attraction()?;
    let wrong = share.compare(&forces)?;
    let before = share.totals(&forces)?;
    let start = Instant::now();
    for _ in 0..steps {
        share.kick(&forces, step / 2.0);
        share.drift(step);
        forces = share.attraction()?;
        share.kick(&forces, step / 2.0);
    }
    let took = start.elapsed();
    let after = share.totals(&forces)?;

    let energy = (after.energy - before.energy).abs() / ENERGY;
    let momentum = after
        .momentum
        .iter()
        .zip(before.momentum)
        .map(|(after, before)| (after - before).abs())
        .fold(0.0, f64::max);
    if world.rank() == 0 {
        let per_step = took.as_secs_f64() * 1e3 / f64::from(steps.max(1));
        println!(
            "{bodies} bodies, {steps} steps on {} ranks: {per_step:.2} ms a step, forces within {wrong:.1e} of one rank's, energy \
             changed by {energy:.1e} of it, momentum by {momentum:.1e}",
            world.size()
        );
    }
    job.finalize()?;
    ensure!(wrong < 1e-11, "forces differ from those that one rank computes by {wrong:.1e}");
    ensure!(energy < 30.0 * step * step, "the energy changed by {energy:.1e} of it");
    ensure!(momentum < 1e-11, "the momentum changed by {momentum:.1e}");
    Ok(())
}

/// A rank's bodies.
struct Share<'a> {
    world: &'a Communicator,
    /// How many each rank has.
    counts: Vec<usize>,
    bodies: Vec<Body>,
    velocities: Vec<Vector>,
}

/// What attracts a body: the acceleration, and the potential.
#[derive(Clone, Copy, Default)]
struct Force {
    acceleration: Vector,
    potential: f64,
}

struct Totals {
    energy: f64,
    momentum: Vector,
}

impl<'a> Share<'a> {
    fn new(world: &'a Communicator, bodies: usize) -> Self {
        let (rank, size) = (world.rank() as usize, world.size() as usize);
        let begin = |rank: usize| rank * bodies / size;
        let counts = (0..size).map(|rank| begin(rank + 1) - begin(rank)).collect();
        let mine = begin(rank)..begin(rank + 1);
        let (bodies, velocities) = mine.map(|number| star(number, bodies)).unzip();
        Self { world, counts, bodies, velocities }
    }

    /// What attracts each body here. Shares come from the right and go to the left until each rank has seen all.
    fn attraction(&self) -> Result<Vec<Force>> {
        let (rank, size) = (self.world.rank(), self.world.size());
        let (left, right) = ((rank + size - 1) % size, (rank + 1) % size);
        let mut forces = vec![Force::default(); self.bodies.len()];
        let mut here = self.bodies.clone();
        for turn in 1..=size {
            // Nothing comes in the last turn.
            let coming = if turn < size { self.counts[((rank + turn) % size) as usize] } else { 0 };
            let mut next = vec![Body::default(); coming];
            self.world.scope(|scope| {
                if turn < size {
                    scope.receive(right, SHARE, &mut next)?;
                    scope.send(left, SHARE, &here)?;
                }
                for (force, body) in forces.iter_mut().zip(&self.bodies) {
                    attract(force, body, &here);
                }
                Ok(())
            })?;
            here = next;
        }
        Ok(forces)
    }

    fn kick(&mut self, forces: &[Force], time: f64) {
        for (velocity, force) in self.velocities.iter_mut().zip(forces) {
            for (velocity, acceleration) in velocity.iter_mut().zip(force.acceleration) {
                *velocity += time * acceleration;
            }
        }
    }

    fn drift(&mut self, time: f64) {
        for (body, velocity) in self.bodies.iter_mut().zip(&self.velocities) {
            for (place, velocity) in body.iter_mut().zip(velocity) {
                *place += time * velocity;
            }
        }
    }

    /// The largest difference from the forces that one rank computes of all bodies, as a share of the largest force.
    fn compare(&self, forces: &[Force]) -> Result<f64> {
        let accelerations: Vec<Vector> = forces.iter().map(|force| force.acceleration).collect();
        let bodies = self.world.gather_varying(0, &self.bodies)?;
        let accelerations = self.world.gather_varying(0, &accelerations)?;
        let mut differs = [0.0];
        if let (Some(bodies), Some(accelerations)) = (bodies, accelerations) {
            let (bodies, accelerations) = (bodies.concat(), accelerations.concat());
            let mut strongest = f64::MIN_POSITIVE;
            for (body, acceleration) in bodies.iter().zip(accelerations) {
                let mut serial = Force::default();
                attract(&mut serial, body, &bodies);
                for (serial, parallel) in serial.acceleration.iter().zip(acceleration) {
                    strongest = serial.abs().max(strongest);
                    differs[0] = (serial - parallel).abs().max(differs[0]);
                }
            }
            differs[0] /= strongest;
        }
        self.world.broadcast(0, &mut differs)?;
        Ok(differs[0])
    }

    fn totals(&self, forces: &[Force]) -> Result<Totals> {
        let mut sums = [0.0; 4];
        for ((body, velocity), force) in self.bodies.iter().zip(&self.velocities).zip(forces) {
            let mass = body[3];
            let speed: f64 = velocity.iter().map(|velocity| velocity * velocity).sum();
            // Each pair's potential is there twice.
            sums[3] += mass * (speed + force.potential) / 2.0;
            for (sum, velocity) in sums.iter_mut().zip(velocity) {
                *sum += mass * velocity;
            }
        }
        self.world.all_reduce(&mut sums, Sum)?;
        let [x, y, z, energy] = sums;
        Ok(Totals { energy, momentum: [x, y, z] })
    }
}

fn attract(force: &mut Force, body: &Body, others: &[Body]) {
    for other in others {
        let [x, y, z] = [other[0] - body[0], other[1] - body[1], other[2] - body[2]];
        let squared = x * x + y * y + z * z;
        // A body doesn't attract itself, whose distance is exactly zero.
        let mass = if squared > 0.0 { other[3] } else { 0.0 };
        let distance = (squared + SOFTENING * SOFTENING).sqrt();
        let strength = mass / (distance * distance * distance);
        force.acceleration[0] += strength * x;
        force.acceleration[1] += strength * y;
        force.acceleration[2] += strength * z;
        force.potential -= mass / distance;
    }
}

/// One of so many stars of a Plummer sphere of mass 1 and radius 1, at random but the same for any number of ranks.
fn star(number: usize, bodies: usize) -> (Body, Vector) {
    let mut random = Random(number as u64 * 1000);
    // Not the few far outside.
    let radius = ((0.01 + 0.98 * random.next()).powf(-2.0 / 3.0) - 1.0).sqrt().recip();
    let escape = (2.0_f64).sqrt() * (1.0 + radius * radius).powf(-0.25);
    // By rejection, as its density is no function that can be turned around.
    let speed = loop {
        let (share, height) = (random.next(), random.next());
        if 0.1 * height < share * share * (1.0 - share * share).powf(3.5) {
            break share * escape;
        }
    };
    let [x, y, z] = random.direction().map(|part| part * radius);
    let velocity = random.direction().map(|part| part * speed);
    ([x, y, z, 1.0 / bodies as f64], velocity)
}

/// SplitMix64.
struct Random(u64);

impl Random {
    /// From 0 to 1.
    fn next(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut number = self.0;
        number = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((number ^ (number >> 31)) >> 11) as f64 / (1_u64 << 53) as f64
    }

    fn direction(&mut self) -> Vector {
        let (height, angle) = (2.0 * self.next() - 1.0, 2.0 * PI * self.next());
        let around = (1.0 - height * height).sqrt();
        [around * angle.cos(), around * angle.sin(), height]
    }
}
