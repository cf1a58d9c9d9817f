//! Conjugate gradients on a sparse matrix: the Laplacian of a cube of points, seven of them in an equation.
//!
//! Each rank has a block of rows in CSR form. From its columns it works out which unknowns of other ranks it needs, tells their
//! owners once, and gets their values before each product; rows that need none are multiplied meanwhile. This works for any
//! matrix. The right side is made for a known solution, and how far the result may be from it is known too.
//!
//! `srun --roce-tc=3 conjugate_gradient`, `rocectl run -n 4 conjugate_gradient`, or alone.

use std::f64::consts::PI;
use std::ops::Range;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Result, ensure};
use clap::Parser;
use roce_launcher::{Communicator, Job, Max, Sum};

/// Messages with unknowns.
const HALO: u32 = 1;

/// Solves a Poisson equation in a cube by conjugate gradients, and checks the solution.
#[derive(Parser)]
struct Arguments {
    /// Points along each edge of the cube.
    #[arg(long, default_value_t = 40)]
    points: usize,
    /// How small the residual is to become, as a share of the right side.
    #[arg(long, default_value_t = 1e-10)]
    tolerance: f64,
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("conjugate_gradient: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<()> {
    let &Arguments { points, tolerance } = arguments;
    ensure!((1..=1000).contains(&points), "--points {points}: give 1 to 1000");
    ensure!(tolerance > 0.0, "--tolerance {tolerance}: give a number above 0");
    let job = Job::init()?;
    let world = job.world();
    let unknowns = points.pow(3);
    let matrix = Matrix::new(&world, unknowns, |row| laplacian(points, row))?;

    let known: Vec<f64> = matrix.rows.clone().map(solution).collect();
    let right = matrix.times(&mut matrix.vector(&known))?;
    let start = Instant::now();
    let (found, iterations) = solve(&matrix, &right, tolerance, 10 * unknowns)?;
    let took = start.elapsed();

    let wrong: Vec<f64> = found.iter().zip(&known).map(|(found, known)| found - known).collect();
    let product = matrix.times(&mut matrix.vector(&found))?;
    let residual: Vec<f64> = right.iter().zip(&product).map(|(right, product)| right - product).collect();
    let mut worst = [wrong.iter().fold(0.0, |worst: f64, wrong| worst.max(wrong.abs()))];
    world.all_reduce(&mut worst, Max)?;
    let [squares, residual_squares, right_squares] =
        matrix.dots([(&wrong, &wrong), (&residual, &residual), (&right, &right)])?;
    // A solution is wrong by its residual over the matrix's smallest eigenvalue at most, which is known for this matrix. Rounding
    // leaves a residual too.
    let smallest = 12.0 * (PI / (2.0 * (points as f64 + 1.0))).sin().powi(2);
    let allowed = 2.0 * residual_squares.sqrt() / smallest;
    if world.rank() == 0 {
        let each = took.as_secs_f64() * 1e6 / f64::from(iterations.max(1));
        println!(
            "{unknowns} unknowns on {} ranks: {iterations} iterations, {each:.1} us each, at most {:.2e} from the known solution",
            world.size(),
            worst[0]
        );
    }
    let reached = (residual_squares / right_squares).sqrt();
    job.finalize()?;
    // The residual that the iteration keeps drifts away from the true one by rounding.
    ensure!(reached <= 2.0 * tolerance.max(1e-14), "the residual is {reached:.2e} of the right side");
    ensure!(
        squares.sqrt() <= allowed.max(1e-12),
        "the result is {:.2e} from the known solution, and its residual allows {allowed:.2e}",
        squares.sqrt()
    );
    Ok(())
}

/// Unknowns from 0 until the residual is small. Gives how many iterations that took, too.
fn solve(matrix: &Matrix<'_>, right: &[f64], tolerance: f64, most: usize) -> Result<(Vec<f64>, u32)> {
    let mut found = vec![0.0; right.len()];
    let mut residual = right.to_vec();
    let mut direction = matrix.vector(right);
    let [mut squares] = matrix.dots([(right, right)])?;
    let goal = squares * tolerance * tolerance;
    let mut iterations = 0;
    while squares > goal {
        ensure!((iterations as usize) < most, "no solution within {most} iterations");
        let product = matrix.times(&mut direction)?;
        let [curvature] = matrix.dots([(&direction[..right.len()], &product)])?;
        let step = squares / curvature;
        for (row, product) in product.iter().enumerate() {
            found[row] += step * direction[row];
            residual[row] -= step * product;
        }
        let [next] = matrix.dots([(&residual, &residual)])?;
        for (direction, residual) in direction.iter_mut().zip(&residual) {
            *direction = residual + next / squares * *direction;
        }
        squares = next;
        iterations += 1;
    }
    Ok((found, iterations))
}

/// A rank's rows of a sparse matrix, and whom it exchanges unknowns with.
struct Matrix<'a> {
    world: &'a Communicator,
    rows: Range<usize>,
    /// Where each row's elements begin; the end of the last.
    begins: Vec<usize>,
    /// The unknown that an element multiplies: this rank's own first, then those of others.
    columns: Vec<usize>,
    values: Vec<f64>,
    /// Rows that need no unknown of another rank, and the rest.
    inner: Vec<usize>,
    outer: Vec<usize>,
    /// How many unknowns of others come from each rank, in this order.
    from: Vec<(u32, usize)>,
    /// Which of its own this rank sends to whom.
    to: Vec<(u32, Vec<usize>)>,
}

impl<'a> Matrix<'a> {
    /// `elements` gives a row's columns and values.
    fn new(
        world: &'a Communicator,
        unknowns: usize,
        elements: impl Fn(usize) -> Vec<(usize, f64)>,
    ) -> Result<Self> {
        let size = world.size() as usize;
        let begin = |rank: usize| rank * unknowns / size;
        let rows = begin(world.rank() as usize)..begin(world.rank() as usize + 1);
        let mut matrix = Self {
            world,
            begins: vec![0],
            columns: Vec::new(),
            values: Vec::new(),
            inner: Vec::new(),
            outer: Vec::new(),
            from: Vec::new(),
            to: Vec::new(),
            rows: rows.clone(),
        };
        for row in rows.clone() {
            let elements = elements(row);
            let is_inner = elements.iter().all(|(column, _)| rows.contains(column));
            if is_inner { &mut matrix.inner } else { &mut matrix.outer }.push(row - rows.start);
            for (column, value) in elements {
                matrix.columns.push(column);
                matrix.values.push(value);
            }
            matrix.begins.push(matrix.columns.len());
        }
        let mut needed: Vec<usize> =
            matrix.columns.iter().copied().filter(|column| !rows.contains(column)).collect();
        needed.sort_unstable();
        needed.dedup();
        // Sorted, they are in the order of the ranks that have them.
        let of_rank = |rank: usize| {
            let place = |unknown: usize| needed.partition_point(|needed| *needed < unknown);
            needed[place(begin(rank))..place(begin(rank + 1))].iter().map(|unknown| *unknown as u64).collect()
        };
        let wanted: Vec<Vec<u64>> = (0..size).map(of_rank).collect();
        let sent = world.all_to_all_varying(&wanted)?;
        let ranks = 0..world.size();
        matrix.from =
            ranks.clone().zip(wanted.iter().map(Vec::len)).filter(|(_, count)| *count > 0).collect();
        let places =
            |unknowns: Vec<u64>| unknowns.iter().map(|unknown| *unknown as usize - rows.start).collect();
        matrix.to = ranks
            .zip(sent)
            .filter(|(_, unknowns)| !unknowns.is_empty())
            .map(|(rank, unknowns)| (rank, places(unknowns)))
            .collect();
        for column in &mut matrix.columns {
            *column = if rows.contains(column) {
                *column - rows.start
            } else {
                rows.len() + needed.partition_point(|needed| *needed < *column)
            };
        }
        Ok(matrix)
    }

    /// This rank's part of a vector, with room for what it needs of others.
    fn vector(&self, own: &[f64]) -> Vec<f64> {
        let others: usize = self.from.iter().map(|(_, count)| count).sum();
        let mut vector = own.to_vec();
        vector.resize(own.len() + others, 0.0);
        vector
    }

    /// The product with a vector; gets what is needed of other ranks.
    fn times(&self, vector: &mut [f64]) -> Result<Vec<f64>> {
        let (own, mut others) = vector.split_at_mut(self.rows.len());
        let pack = |(rank, places): &(u32, Vec<usize>)| {
            (*rank, places.iter().map(|place| own[*place]).collect::<Vec<f64>>())
        };
        let outgoing: Vec<_> = self.to.iter().map(pack).collect();
        let mut product = vec![0.0; self.rows.len()];
        self.world.scope(|scope| {
            for (rank, count) in &self.from {
                let (room, rest) = std::mem::take(&mut others).split_at_mut(*count);
                scope.receive(*rank, HALO, room)?;
                others = rest;
            }
            outgoing.iter().try_for_each(|(rank, values)| scope.send(*rank, HALO, values))?;
            self.multiply(&self.inner, own, &mut product);
            Ok(())
        })?;
        self.multiply(&self.outer, vector, &mut product);
        Ok(product)
    }

    fn multiply(&self, rows: &[usize], vector: &[f64], product: &mut [f64]) {
        for &row in rows {
            let elements = self.begins[row]..self.begins[row + 1];
            product[row] = elements.map(|element| self.values[element] * vector[self.columns[element]]).sum();
        }
    }

    /// Dot products of vectors of all ranks, with one message for all of them.
    fn dots<const COUNT: usize>(&self, pairs: [(&[f64], &[f64]); COUNT]) -> Result<[f64; COUNT]> {
        let mut sums = pairs.map(|(a, b)| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>());
        self.world.all_reduce(&mut sums, Sum)?;
        Ok(sums)
    }
}

/// A row of the matrix: each point of the cube against its six neighbours; outside of the cube is zero.
fn laplacian(points: usize, row: usize) -> Vec<(usize, f64)> {
    let mut elements = vec![(row, 6.0)];
    for stride in [1, points, points * points] {
        let place = row / stride % points;
        if place > 0 {
            elements.push((row - stride, -1.0));
        }
        if place + 1 < points {
            elements.push((row + stride, -1.0));
        }
    }
    elements
}

/// Nothing that a few waves would describe.
fn solution(row: usize) -> f64 {
    (row as f64 * 0.7 + 0.7).sin() + (row % 17) as f64 / 17.0
}
