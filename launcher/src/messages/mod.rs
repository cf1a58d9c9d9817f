//! Messages between ranks: what a program sends and receives, whatever carries it.

mod engine;
mod lent;
mod matching;
