//! Keeps HAProxy and PgBouncer in line with the agreed state: writes lead to the primary, reads to standbys.
//!
//! The one rule: a router that has seen epoch n never routes writes by an epoch below n (I19).

mod ask;
mod collisions;
mod config;
mod diff;
mod drill;
mod follow;
pub mod haproxy;
pub mod header;
mod install;
pub mod once;
pub mod pgbouncer;
mod presence;
pub mod push;
pub mod route;
mod run;

pub use config::{Config, Drills, HaproxyConfig};
pub use pgbouncer::PgbouncerConfig;
pub use run::{run, run_on};
