//! What the keeper reads and runs from outside, against real PostgreSQL and against WAL made byte by byte.

#![allow(clippy::unwrap_used, reason = "a test may end where a fact does not hold")]

mod bench_rejoin;
mod cluster;
mod contents;
mod control;
mod damaged;
mod delta;
mod fallback;
mod interrupted;
mod ladder;
mod link;
mod made_wal;
mod matrix;
mod prefix;
mod relay;
mod rewindable;
mod scan_made;
mod scan_real;
mod tablespaces;
mod tls;
mod tools;
mod waiting;
