//! What the decider decides, told as stories on a scene; whole failovers as transcripts.

#![allow(clippy::unwrap_used, reason = "a test may panic, also in its helpers")]

mod bootstrap;
mod failover;
mod hold;
mod invariants;
mod later;
mod membership;
mod notice;
mod orders;
mod properties;
mod records;
mod restart;
mod scene;
mod switchover;
mod synchronous;
mod transcripts;
