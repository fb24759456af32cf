//! The keeper: runs beside one PostgreSQL, gathers facts, and converges it to what was agreed.

pub mod config;
pub mod durable;
pub mod fencer;
pub mod http;
pub mod member_files;
pub mod postgres;
pub mod privileges;
pub mod service;
pub mod view;
