//! A deterministic world: the product's deciders on a modelled store, PostgreSQL, network and clock, from one seed.
//!
//! The one rule: the same seed gives the same run, to the last event. See docs/simulator.md.

mod clients;
mod disk;
mod etcd;
mod executor;
pub mod faults;
mod fencer;
mod keeper;
pub mod mutants;
mod net;
mod oracle;
mod postgres;
mod rng;
mod router;
pub mod run;
mod sentinel;
mod trace;
mod wal;
mod watch;
mod world;

pub use faults::{Fault, PROFILES, Profile};
pub use oracle::Violation;
pub use run::{Outcome, Plan};
