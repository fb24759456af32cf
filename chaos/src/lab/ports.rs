//! Free loopback ports, claimed for as long as the lab lives.
//!
//! They lie below the range from which the kernel takes ports for outgoing connections: otherwise a client's
//! connection could sit on a member's port while that member is down.

use std::net::TcpListener;

use anyhow::{Context, bail};

/// How many ports one lab may use. The first of each block is kept bound as the claim on the block.
const BLOCK: u16 = 64;

/// Ports below this belong to services by custom.
const LOWEST: u16 = 10_240;

/// How many blocks are tried: with half of them busy the chance to find none is below one in a billion.
const TRIES: usize = 32;

/// A block of ports that no other lab on this machine uses.
pub struct Ports {
    _claim: TcpListener,
    next: u16,
    end: u16,
}

impl Ports {
    /// Claims a block in which every port is free now.
    pub fn claim() -> anyhow::Result<Self> {
        let blocks = (lowest_outgoing_port() - LOWEST) / BLOCK;
        for _ in 0..TRIES {
            let first = LOWEST + rand::random_range(0..blocks) * BLOCK;
            let Ok(claim) = TcpListener::bind(("127.0.0.1", first)) else { continue };
            let free = |port| TcpListener::bind(("127.0.0.1", port)).is_ok();
            if (first + 1..first + BLOCK).all(free) {
                return Ok(Self { _claim: claim, next: first + 1, end: first + BLOCK });
            }
        }
        bail!("no {BLOCK} free ports in a row on 127.0.0.1 above {LOWEST}: stop what listens there")
    }

    /// Returns the next unused port of the block.
    pub fn next(&mut self) -> anyhow::Result<u16> {
        if self.next == self.end {
            bail!("a lab has {BLOCK} ports and all are used: start fewer members");
        }
        self.next += 1;
        Ok(self.next - 1)
    }
}

fn lowest_outgoing_port() -> u16 {
    /// The kernel's default, where it cannot be read.
    const DEFAULT: u16 = 32_768;
    let read = || -> anyhow::Result<u16> {
        let text = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range")?;
        Ok(text.split_whitespace().next().context("it is empty")?.parse()?)
    };
    read().ok().filter(|port| *port > LOWEST + 2 * BLOCK).unwrap_or(DEFAULT)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_labs_never_share_a_port() {
        let (mut one, mut two) = (Ports::claim().unwrap(), Ports::claim().unwrap());
        let mut all: Vec<u16> =
            (0..20).flat_map(|_| [one.next().unwrap(), two.next().unwrap()]).collect();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), 40);
        assert!(all.iter().all(|port| *port < 32_768 && *port > LOWEST));
    }
}
