//! The keeper: runs beside one PostgreSQL, gathers facts, and converges it to what was agreed.

pub mod durable;
pub mod member_files;
pub mod postgres;
