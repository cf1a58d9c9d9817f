//! Why an exchange ended before its time.

/// What kind of fault.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FaultKind {
    /// A rank is gone: its process ended, its connection broke, or it is silent.
    Lost,
    /// A rank called abort.
    Aborted,
    /// Ranks did not come in time.
    Missing,
    /// The ranks do not do the same.
    OutOfStep,
}

/// The first fault of a job, as it is told to everyone.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Fault {
    /// What happened.
    pub kind: FaultKind,
    /// To whom, where that is known.
    pub rank: Option<u32>,
    /// On which node.
    pub node: u32,
    /// Why, in words.
    pub text: String,
}
