//! PostgreSQL as seen from outside: its programs, its files, and its own tools run as children.

pub mod binaries;
pub mod compare;
pub mod control;
pub mod copy;
pub mod fork;
pub mod gateway;
pub mod initdb;
pub mod kept_wal;
pub mod probe;
pub mod program;
pub mod rewind;
pub mod rewindable;
pub mod session;
pub mod settings;
pub mod source;
pub mod stopped;
pub mod tablespaces;
pub mod tls;
pub mod wal_contents;
pub mod wal_files;
pub mod wal_pages;
pub mod wal_scan;
pub mod walsender;
