//! The program from end to end, on machines that are built for it: what a user types and sees.

mod common;
mod errors;
mod hosts;
mod picture;
mod plan;
mod restore;
mod run;
mod show;
mod task;
