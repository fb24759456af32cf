//! Keeps HAProxy in line with the agreed state: a write port that leads to the primary, a read port to standbys.
//!
//! The one rule: a router that has seen epoch n never routes writes by an epoch below n (I19).

mod config;
mod follow;
pub mod haproxy;
mod install;
mod presence;
pub mod push;
pub mod route;
mod run;

pub use config::{Config, HaproxyConfig};
pub use run::{run, run_on};
