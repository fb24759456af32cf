//! What the keeper reads and runs from outside, against real PostgreSQL and against WAL made byte by byte.

mod cluster;
mod control;
mod made_wal;
mod scan_made;
mod scan_real;
mod tools;
