//! The keeper: runs beside one PostgreSQL, gathers facts, and converges it to what was agreed.

pub mod action;
pub mod announce;
pub mod cluster;
mod commit_level;
pub mod config;
pub mod drill;
pub mod durable;
pub mod echo;
pub mod facts;
pub mod fencer;
pub mod freshness;
pub mod gather;
pub mod health;
pub mod http;
pub mod kept;
pub mod lag;
pub mod late_store;
pub mod member_files;
#[cfg(feature = "mistakes")]
mod mistakes;
mod onlooker;
pub mod postgres;
pub mod prerequisites;
pub mod present;
pub mod privileges;
mod pulse;
mod receiver;
pub mod reconcile;
pub mod renew;
pub mod report;
pub mod run;
pub mod service;
pub mod sign;
pub mod standstill;
pub mod startup;
pub mod stopping;
pub mod take_over;
pub mod topology;
pub mod trust;
pub mod view;
pub mod wiring;
pub mod worker;

pub use config::Config;
pub use run::run;
pub use startup::preflight;
