//! How a reduction combines two ranks' elements.

use std::ops::{Add, BitAnd, BitOr, BitXor, Mul};

use bytemuck::Pod;

/// Combines elements of two ranks. Anything `Fn(T, T) -> T` is one. It must be associative and commutative, but for rounding.
///
/// Which elements are combined first depends on the ranks, their nodes and the length only: the result is the same, bit for bit,
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
    ($($(#[$doc:meta])* $name:ident: $($type:ty)*, $combine:ident;)*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        pub struct $name;
        $(impl Operator<$type> for $name {
            fn combine(&self, lower: &mut [$type], higher: &[$type]) {
                each(lower, higher, <$type>::$combine);
            }
        })*
    )*};
}

operators! {
    /// The sum. Floating-point numbers are added in a fixed order.
    Sum: f32 f64, add;
    /// The product. Floating-point numbers are multiplied in a fixed order.
    Product: f32 f64, mul;
    /// The smaller one; the other one where one is not a number.
    Min: f32 f64, min;
    /// The larger one; the other one where one is not a number.
    Max: f32 f64, max;
    /// The bits that are set in both.
    And: u8 i8 u16 i16 u32 i32 u64 i64 u128 i128 usize isize, bitand;
    /// The bits that are set in either.
    Or: u8 i8 u16 i16 u32 i32 u64 i64 u128 i128 usize isize, bitor;
    /// The bits that are set in one only.
    Xor: u8 i8 u16 i16 u32 i32 u64 i64 u128 i128 usize isize, bitxor;
}

macro_rules! of_integers {
    ($($name:ident, $combine:ident;)*) => {$(of_integers! { $name, $combine,
        u8 i8 u16 i16 u32 i32 u64 i64 u128 i128 usize isize })*};
    ($name:ident, $combine:ident, $($type:ty)*) => {$(
        impl Operator<$type> for $name {
            fn combine(&self, lower: &mut [$type], higher: &[$type]) {
                each(lower, higher, <$type>::$combine);
            }
        }
    )*};
}

// Integers wrap around, as they do in C and MPI.
of_integers! {
    Sum, wrapping_add;
    Product, wrapping_mul;
    Min, min;
    Max, max;
}
