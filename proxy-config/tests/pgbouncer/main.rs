//! What proxy-config claims of PgBouncer, on values and on real PgBouncers in front of servers that say their names.

#![allow(clippy::unwrap_used, reason = "clippy takes helpers of tests for product code")]

mod bad_input;
mod following;
mod holding;
mod rendering;
#[path = "../proxy_config/scene.rs"]
#[allow(dead_code, reason = "the other suite needs more of it")]
mod scene;
mod server;
#[path = "../proxy_config/waiting.rs"]
mod waiting;
mod world;
