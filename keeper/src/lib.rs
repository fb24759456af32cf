//! The keeper: runs beside one PostgreSQL, gathers facts, and converges it to what was agreed.

pub mod action;
pub mod announce;
pub mod cluster;
pub mod config;
pub mod durable;
pub mod echo;
pub mod facts;
pub mod fencer;
pub mod gather;
pub mod health;
pub mod http;
pub mod kept;
pub mod late_store;
pub mod member_files;
pub mod postgres;
pub mod present;
pub mod privileges;
mod pulse;
pub mod reconcile;
pub mod renew;
pub mod report;
pub mod run;
pub mod service;
pub mod sign;
pub mod startup;
pub mod stopping;
pub mod take_over;
pub mod trust;
pub mod view;
pub mod wiring;
pub mod worker;

pub use config::Config;
pub use run::run;
pub use startup::preflight;
