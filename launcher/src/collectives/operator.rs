//! How a reduction combines two ranks' elements.

use bytemuck::Pod;

/// Combines elements of two ranks. Anything `Fn(T, T) -> T` is one. It must be associative and commutative, but for rounding.
///
/// Which elements are combined first depends on the number of ranks and the length only: the result is the same, bit for bit,
/// on every rank and from run to run.
pub trait Operator<T> {
    /// `lower[i] = lower[i] combined with higher[i]`
    fn combine(&self, lower: &mut [T], higher: &[T]);
}

impl<T: Pod, F: Fn(T, T) -> T> Operator<T> for F {
    fn combine(&self, lower: &mut [T], higher: &[T]) {
        each(lower, higher, self);
    }
}

fn each<T: Copy>(lower: &mut [T], higher: &[T], combine: impl Fn(T, T) -> T) {
    for (lower, higher) in lower.iter_mut().zip(higher) {
        *lower = combine(*lower, *higher);
    }
}

macro_rules! operators {
    ($($(#[$doc:meta])* $name:ident: $($type:ty)*, $combine:expr;)*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        pub struct $name;
        $(impl Operator<$type> for $name {
            fn combine(&self, lower: &mut [$type], higher: &[$type]) {
                each(lower, higher, $combine);
            }
        })*
    )*};
}

operators! {
    /// The sum. Floating-point numbers are added in a fixed order.
    Sum: f32 f64, |a, b| a + b;
    /// The product. Floating-point numbers are multiplied in a fixed order.
    Product: f32 f64, |a, b| a * b;
    /// The smaller one; the other one where one is not a number.
    Min: f32 f64, |a, b| a.min(b);
    /// The larger one; the other one where one is not a number.
    Max: f32 f64, |a, b| a.max(b);
    /// The bits that are set in both.
    And: u8 i8 u16 i16 u32 i32 u64 i64 u128 i128 usize isize, |a, b| a & b;
    /// The bits that are set in either.
    Or: u8 i8 u16 i16 u32 i32 u64 i64 u128 i128 usize isize, |a, b| a | b;
    /// The bits that are set in one only.
    Xor: u8 i8 u16 i16 u32 i32 u64 i64 u128 i128 usize isize, |a, b| a ^ b;
}

macro_rules! of_integers {
    ($($name:ident, $combine:expr;)*) => {$(of_integers! { $name, $combine,
        u8 i8 u16 i16 u32 i32 u64 i64 u128 i128 usize isize })*};
    ($name:ident, $combine:expr, $($type:ty)*) => {$(
        impl Operator<$type> for $name {
            fn combine(&self, lower: &mut [$type], higher: &[$type]) {
                each(lower, higher, $combine);
            }
        }
    )*};
}

// Integers wrap around, as they do in C and MPI.
of_integers! {
    Sum, |a, b| a.wrapping_add(b);
    Product, |a, b| a.wrapping_mul(b);
    Min, |a, b| a.min(b);
    Max, |a, b| a.max(b);
}
