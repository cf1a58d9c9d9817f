//! The two-dimensional heat equation, explicit in time, on a square whose edge is kept at zero.
//!
//! The square is cut into strips of rows, one for each rank; before each step a rank gives its outermost rows to its neighbours
//! and gets theirs. The result is checked against the exact solution, and does not depend on the number of ranks: it is the
//! same to the last bit.
//!
//! `srun --roce-tc=3 heat`, `rocectl run -n 4 heat`, or alone; `heat POINTS STEPS` for another size.

use std::f64::consts::PI;
use std::process::ExitCode;
use std::time::Instant;

use roce_launcher::{Communicator, Error, Job, Max};

/// Share of a point's heat that goes to each of its four neighbours in a step. More than a quarter is unstable.
const RATE: f64 = 0.2;

/// Messages to the neighbour above and below.
const UP: u32 = 1;
const DOWN: u32 = 2;

fn main() -> ExitCode {
    match run() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("heat: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<bool, Error> {
    let job = Job::init()?;
    let world = job.world();
    let arguments: Vec<usize> =
        std::env::args().skip(1).filter_map(|argument| argument.parse().ok()).collect();
    let points = arguments.first().copied().unwrap_or(254).max(world.size() as usize);
    let steps = arguments.get(1).copied().unwrap_or(500);

    let mut strip = Strip::new(&world, points);
    let start = Instant::now();
    for _ in 0..steps {
        strip.step()?;
    }
    let took = start.elapsed();

    let mut error = [strip.error(steps)];
    world.all_reduce(&mut error, Max)?;
    // What the scheme itself is wrong by: the next term of its Taylor series, for every step.
    let spacing = PI / (points as f64 + 1.0);
    let of_scheme = (RATE / 6.0 - 2.0 * RATE * RATE).abs() * spacing.powi(4) * steps as f64;
    let is_right = error[0] < 1e-12 + 1.1 * of_scheme;
    if world.rank() == 0 {
        let per_step = took.as_secs_f64() * 1e6 / steps.max(1) as f64;
        println!(
            "{points} x {points} points, {steps} steps on {} ranks: {per_step:.1} us a step, at most {:.2e} from the exact solution",
            world.size(),
            error[0]
        );
        println!("from rank 0 to {}", job.describe());
    }
    job.finalize()?;
    Ok(is_right)
}

/// A rank's rows, with a row of each neighbour's around them.
struct Strip<'a> {
    world: &'a Communicator,
    points: usize,
    /// The first of its rows, counted from 1 in the whole square; row 0 and the last are its edge.
    first: usize,
    rows: Vec<Vec<f64>>,
    next: Vec<Vec<f64>>,
}

impl<'a> Strip<'a> {
    fn new(world: &'a Communicator, points: usize) -> Self {
        let (rank, size) = (world.rank() as usize, world.size() as usize);
        let (first, end) = (1 + rank * points / size, 1 + (rank + 1) * points / size);
        let row = |row| (0..points + 2).map(|column| start(points, row, column)).collect();
        let rows: Vec<Vec<f64>> = (first - 1..=end).map(row).collect();
        Self { world, points, first, next: rows.clone(), rows }
    }

    /// One step: the rows within while the neighbours' come, then the two outermost.
    fn step(&mut self) -> Result<(), Error> {
        let last = self.rows.len() - 2;
        let above = self.world.rank().checked_sub(1);
        let below = Some(self.world.rank() + 1).filter(|rank| *rank < self.world.size());
        let (top, rest) = self.rows.split_at_mut(1);
        let (inner, bottom) = rest.split_at_mut(last);
        let next = &mut self.next;
        self.world.scope(|scope| {
            if let Some(above) = above {
                scope.receive(above, DOWN, &mut top[0])?;
                scope.send(above, UP, &inner[0])?;
            }
            if let Some(below) = below {
                scope.receive(below, UP, &mut bottom[0])?;
                scope.send(below, DOWN, &inner[last - 1])?;
            }
            for row in 1..inner.len().saturating_sub(1) {
                spread(&inner[row - 1], &inner[row], &inner[row + 1], &mut next[row + 1]);
            }
            Ok(())
        })?;
        for row in [1, last] {
            spread(&self.rows[row - 1], &self.rows[row], &self.rows[row + 1], &mut self.next[row]);
        }
        std::mem::swap(&mut self.rows, &mut self.next);
        Ok(())
    }

    /// How far the worst point is from the exact solution.
    fn error(&self, steps: usize) -> f64 {
        let spacing = PI / (self.points as f64 + 1.0);
        // What one step does to this mode, exactly: the heat that it loses in that time.
        let time = RATE * spacing * spacing * steps as f64;
        let left = (-2.0 * time).exp();
        let own = self.rows.iter().enumerate().take(self.rows.len() - 1).skip(1);
        let errors = own.flat_map(|(number, row)| {
            let row_number = self.first + number - 1;
            row.iter()
                .enumerate()
                .map(move |(column, value)| (value - left * start(self.points, row_number, column)).abs())
        });
        errors.fold(0.0, f64::max)
    }
}

/// The start: one wave in each direction, which keeps its form and only fades.
fn start(points: usize, row: usize, column: usize) -> f64 {
    let spacing = PI / (points as f64 + 1.0);
    let at =
        |place: usize| if place == 0 || place == points + 1 { 0.0 } else { (place as f64 * spacing).sin() };
    at(row) * at(column)
}

fn spread(above: &[f64], row: &[f64], below: &[f64], next: &mut [f64]) {
    for column in 1..row.len() - 1 {
        let around = above[column] + below[column] + row[column - 1] + row[column + 1];
        next[column] = row[column] + RATE * (around - 4.0 * row[column]);
    }
}
