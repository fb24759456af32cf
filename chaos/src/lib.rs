//! Starts, breaks and judges real clusters. Demo, tests and benches share this one way of doing it.
//!
//! The one rule: what a client was told is written down when it is told, and is compared with what every
//! member holds at the end. Nothing here believes pgdeputy's own word about what was lost.

pub mod bench;
pub mod checker;
pub mod demo;
pub mod drills;
pub mod evidence;
pub mod fault;
pub mod lab;
pub mod load;
pub mod observer;
pub mod pgbench;
pub mod session;
pub mod verdict;
