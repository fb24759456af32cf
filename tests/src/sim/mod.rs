//! A deterministic world: the product's deciders on a modelled store, PostgreSQL, network and clock, from one seed.
//!
//! The one rule: the same seed gives the same run, to the last event. See docs/simulator.md.

mod calm;
pub mod campaign;
pub mod cells;
mod clients;
mod disk;
mod etcd;
mod executor;
pub mod faults;
mod fencer;
mod keeper;
pub mod long;
mod mistakes;
pub mod mutants;
mod net;
mod oracle;
mod orders;
mod places;
mod postgres;
pub mod profiles;
mod read;
mod restore;
mod rng;
mod router;
pub mod run;
pub mod scripted;
mod sentinel;
pub mod stored;
mod strike;
mod trace;
mod wal;
mod watch;
mod wishes;
mod world;

pub use faults::Fault;
pub use oracle::Violation;
pub use profiles::{PROFILES, Profile};
pub use run::{Outcome, Plan};
