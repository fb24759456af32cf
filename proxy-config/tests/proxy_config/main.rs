//! What proxy-config claims, on values and on a real HAProxy.

#![allow(clippy::unwrap_used, reason = "clippy takes helpers of tests for product code")]

mod following;
mod once;
mod reads;
mod rendering;
mod routing;
mod scene;
mod starting;
mod waiting;
mod world;
