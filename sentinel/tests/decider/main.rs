//! What the decider decides, told as stories on a scene; whole failovers as transcripts.

mod bootstrap;
mod failover;
mod invariants;
mod membership;
mod notice;
mod properties;
mod records;
mod restart;
mod scene;
mod synchronous;
mod transcripts;
