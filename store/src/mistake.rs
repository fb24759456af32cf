//! Deliberate mistakes of a test-only build, chosen at run time: `make drill-mutants` shows by them that drills find what they
//! are there for. No build without the feature `mistakes` contains this file, or any place where one is made.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};

/// The environment variable that names the one mistake that a process makes. It does not begin with PGDEPUTY_, and so reaches
/// what a lab starts.
pub const VARIABLE: &str = "MISTAKE_OF_PGDEPUTY";

/// Those that have been told of: each is told once, and a run in which none was is no proof.
static MADE: Mutex<BTreeSet<&'static str>> = Mutex::new(BTreeSet::new());

/// Returns whether this process is to make the mistake `name`.
pub fn is_chosen(name: &str) -> bool {
    std::env::var(VARIABLE).is_ok_and(|chosen| chosen == name)
}

/// Says in the log that the mistake `name` is made.
pub fn made(name: &'static str) {
    let first = MADE.lock().unwrap_or_else(PoisonError::into_inner).insert(name);
    if first {
        tracing::warn!("makes the mistake {name}");
    }
}
