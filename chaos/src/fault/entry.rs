//! A line of the catalogue.

use std::time::Duration;

use super::{Class, Fault, Hits};

/// What is known of a fault beforehand.
#[derive(Debug, Clone, Copy)]
pub struct Entry {
    pub fault: Fault,
    /// On the command line.
    pub name: &'static str,
    pub class: Class,
    pub hits: Hits,
    /// The longest that writes may be away, on a small machine with other things to do.
    pub bound: Duration,
    /// How long a drill leaves it broken once writes are back.
    pub stays: Duration,
    /// What is done, where `{x}` is the member that it hits.
    pub does: &'static str,
    /// What is done about it later; empty where nothing has to be.
    pub undo: &'static str,
}

/// Both times in milliseconds.
pub(super) const fn line(
    fault: Fault,
    name: &'static str,
    (class, hits): (Class, Hits),
    (bound, stays): (u64, u64),
    (does, undo): (&'static str, &'static str),
) -> Entry {
    let (bound, stays) = (Duration::from_millis(bound), Duration::from_millis(stays));
    Entry { fault, name, class, hits, bound, stays, does, undo }
}
