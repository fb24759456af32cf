//! A host that is far away, or stands still for the others: through a relay of the lab's own.
//!
//! The one rule: a datagram has to have shown it, and that it is undone.

use std::fs::File;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, ensure};
use proto::MemberName;
use store::clock;

use super::cut::NO_NETWORK;
use super::relay::{Late, Relay};
use super::{NAMES, Network, Place, Site, ip, probe, switch};
use crate::lab::{Lab, Struck};

/// A relay ends at once; this is for a machine under load.
const UNDONE: Duration = Duration::from_secs(10);

impl Network {
    /// Puts a relay between a host and the switch; returns between whom it can be seen.
    pub(super) fn hold_up(&mut self, site: &Site, late: Late) -> anyhow::Result<(Place, Place)> {
        let (switch, port) = (switch(self.number), self.port(site)?);
        let tap = format!("late-{port}");
        let namespace = File::open(Path::new(NAMES).join(&switch)).context("open the switch")?;
        let relay = Relay::open(&namespace, &port, &tap, late)?;
        ip(&["-n", &switch, "link", "set", &tap, "master", "switch", "up"])?;
        ip(&["-n", &switch, "link", "set", &port, "nomaster"])?;
        relay.begin()?;
        self.relays.insert(site.clone(), relay);
        self.seen_from(site)
    }

    /// Ends all relays; returns between whom that can be seen, and how many frames each has passed on.
    pub(super) fn let_go(&mut self) -> anyhow::Result<Vec<((Place, Place), u64)>> {
        let switch = switch(self.number);
        let relays = std::mem::take(&mut self.relays);
        let ended = relays.into_iter().map(|(site, relay)| {
            let passed = relay.end()?;
            ip(&["-n", &switch, "link", "set", &self.port(&site)?, "master", "switch"])?;
            Ok((self.seen_from(&site)?, passed))
        });
        ended.collect()
    }

    /// The switch's end of a host's link.
    fn port(&self, site: &Site) -> anyhow::Result<String> {
        let [.., last] = self.place(site)?.address.octets();
        Ok(format!("port{last}"))
    }

    fn seen_from(&self, site: &Site) -> anyhow::Result<(Place, Place)> {
        Ok((self.place(&Site::Clients)?.clone(), self.place(site)?.clone()))
    }
}

impl Lab {
    /// Has all that `member` sends and receives come late, and proves by a datagram that it does. Returns when.
    pub async fn hold_up(&mut self, member: &MemberName, late: Late) -> anyhow::Result<Struck> {
        let network = self.network.as_mut().context(NO_NETWORK)?;
        let struck = Struck::now();
        let (from, to) = network.hold_up(&Site::Member(member.clone()), late)?;
        let wait = match late {
            Late::By(_) => UNDONE,
            Late::Held => HELD,
        };
        let took = tokio::task::spawn_blocking(move || probe::took(&from, &to, wait)).await??;
        let shows = match late {
            Late::By(late) => took.is_some_and(|took| took >= late),
            Late::Held => took.is_none(),
        };
        ensure!(shows, "what is sent to {member} comes after {took:?}, and not {late:?}");
        Ok(struck)
    }

    /// Lets all pass at once again, what was held first, and proves it by datagrams.
    pub async fn let_go(&mut self) -> anyhow::Result<()> {
        let ended = self.network.as_mut().context(NO_NETWORK)?.let_go()?;
        for ((from, to), passed) in ended {
            ensure!(passed > 0, "nothing has passed the relay");
            let soon = move || -> anyhow::Result<()> {
                let deadline = clock::now() + UNDONE;
                while probe::took(&from, &to, UNDONE)?.is_none_or(|took| took >= SOON) {
                    ensure!(clock::now() < deadline, "datagrams still come late");
                }
                Ok(())
            };
            tokio::task::spawn_blocking(soon).await??;
        }
        Ok(())
    }
}

/// So long nothing may arrive of what is held.
const HELD: Duration = Duration::from_millis(250);

/// Less than any relay's delay, and more than a datagram takes on a machine under load.
const SOON: Duration = Duration::from_millis(15);
