//! The one place where shells read the time; deciders are given it.

use std::time::Duration;

use proto::{Moment, WallTime};

/// Returns this machine's CLOCK_BOOTTIME: it goes on while the machine sleeps and no one can set it.
pub fn now() -> Moment {
    let time = nix::time::clock_gettime(nix::time::ClockId::CLOCK_BOOTTIME)
        .expect("CLOCK_BOOTTIME exists since Linux 2.6.39");
    Moment::since_boot(Duration::new(time.tv_sec() as u64, time.tv_nsec() as u32))
}

/// Returns the wall clock, for people and records only.
pub fn wall() -> WallTime {
    let time = nix::time::clock_gettime(nix::time::ClockId::CLOCK_REALTIME)
        .expect("CLOCK_REALTIME always exists");
    WallTime(time.tv_sec() * 1000 + time.tv_nsec() / 1_000_000)
}
