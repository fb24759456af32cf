//! Links that are bad and not cut: packets lost by chance, big ones lost always, or a link so narrow that all wait.
//!
//! The one rule: a flaw counts once datagrams have shown it, and is undone once as many of them all arrive.

use std::fmt::Write;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, ensure};
use store::clock;

use super::cut::{NO_NETWORK, Others};
use super::{Network, Place, Site, namespace, probe, run};
use crate::lab::{Lab, Struck};

/// A host whose link to some others is bad, in both directions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Flaw {
    pub site: Site,
    pub to: Others,
    pub kind: Kind,
}

/// What is bad about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Of a hundred packets so many are lost.
    Loss(u8),
    /// Packets that are longer than this many bytes vanish, and nobody is told: a tunnel with a smaller MTU behind a firewall
    /// that drops ICMP.
    LongLost(u16),
    /// All that the host sends leaves at this many kilobits a second.
    Narrow(u32),
}

/// Enough that a tenth of them is told from none and from half.
const DATAGRAMS: usize = 400;

/// Rules are gone at once; this is for a machine under load.
const REPAIRED: Duration = Duration::from_secs(10);

const SHORT: usize = 64;
/// Below the usual MTU of 1500 with all headers.
const LONG: usize = 1_400;

/// What a narrow link holds back before it drops, in milliseconds: about what routers at homes and offices do.
const HELD_MS: u32 = 400;

/// A burst that passes at once, in bytes: no less than one packet as virtual links pass it on, which is of up to 64 kB.
const BURST: u32 = 70_000;

impl Flaw {
    /// Both directions between the host and all that it is about.
    fn rules(&self, network: &Network) -> anyhow::Result<String> {
        let what = match self.kind {
            Kind::Loss(percent) => format!("numgen random mod 100 < {percent} drop"),
            Kind::LongLost(bytes) => format!("meta length > {bytes} drop"),
            Kind::Narrow(_) => return Ok(String::new()),
        };
        let own = network.place(&self.site)?.address;
        let mut rules = String::new();
        for other in network.places.keys().filter(|other| self.to.covers(&self.site, other)) {
            let other = network.place(other)?.address;
            let _ = writeln!(rules, "ip saddr {own} ip daddr {other} {what}");
            let _ = writeln!(rules, "ip saddr {other} ip daddr {own} {what}");
        }
        Ok(rules)
    }

    /// Demands that datagrams between the two show the flaw.
    pub(super) fn prove_bad(&self, (own, other): &(Place, Place)) -> anyhow::Result<()> {
        let arrived = |bytes| probe::arrived(own, other, DATAGRAMS, bytes);
        let (short, long) = (arrived(SHORT)?, arrived(LONG)?);
        let shows = match self.kind {
            Kind::Loss(percent) => {
                let usual = DATAGRAMS * usize::from(percent) / 100;
                (usual / 3..=usual * 3).contains(&(DATAGRAMS - short))
            }
            Kind::LongLost(_) => short > DATAGRAMS / 2 && long == 0,
            // More than a burst: what does not fit the link is held back, and then lost.
            Kind::Narrow(_) => long < DATAGRAMS / 2,
        };
        ensure!(shows, "{self:?}: {short} short and {long} long of {DATAGRAMS} datagrams arrive");
        Ok(())
    }

    /// Demands that all datagrams arrive between the two. On a machine under load one may be lost by a full queue: then all
    /// are sent again.
    pub(super) fn prove_good(&self, (own, other): &(Place, Place)) -> anyhow::Result<()> {
        let deadline = clock::now() + REPAIRED;
        loop {
            let arrived = |bytes| probe::arrived(own, other, DATAGRAMS, bytes);
            let (short, long) = (arrived(SHORT)?, arrived(LONG)?);
            if (short, long) == (DATAGRAMS, DATAGRAMS) {
                return Ok(());
            }
            let late = clock::now() > deadline;
            ensure!(!late, "undo {self:?}: {short} short and {long} long of {DATAGRAMS} arrive");
        }
    }
}

impl Network {
    /// What the switch drops because of flaws.
    pub(super) fn flawed(&self) -> anyhow::Result<String> {
        self.flaws.iter().map(|flaw| flaw.rules(self)).collect()
    }

    fn narrow(&self, flaw: &Flaw) -> anyhow::Result<()> {
        let Kind::Narrow(kilobits) = flaw.kind else { return Ok(()) };
        let (rate, burst) = (format!("{kilobits}kbit"), BURST.to_string());
        let held = format!("{HELD_MS}ms");
        let words = ["root", "tbf", "rate", &rate, "burst", &burst, "latency", &held];
        self.tc(&flaw.site, "add", &words)
    }

    fn widen(&self, flaw: &Flaw) -> anyhow::Result<()> {
        match flaw.kind {
            Kind::Narrow(_) => self.tc(&flaw.site, "delete", &["root"]),
            Kind::Loss(_) | Kind::LongLost(_) => Ok(()),
        }
    }

    fn tc(&self, site: &Site, verb: &str, words: &[&str]) -> anyhow::Result<()> {
        let mut command = Command::new("tc");
        command.args(["-n", &namespace(self.number, site), "qdisc", verb, "dev", "eth0"]);
        run(command.args(words), "")
    }

    /// The host and the first of those that it is about; the rules are the same for each.
    fn ends_of(&self, flaw: &Flaw) -> anyhow::Result<(Place, Place)> {
        let other = self.places.keys().find(|other| flaw.to.covers(&flaw.site, other));
        let other = self.place(other.context("a flaw that is about nobody")?)?.clone();
        Ok((self.place(&flaw.site)?.clone(), other))
    }

    /// Makes a link bad, and returns between whom it can be seen.
    pub(super) fn impair(&mut self, flaw: &Flaw) -> anyhow::Result<(Place, Place)> {
        self.flaws.push(flaw.clone());
        self.enforce()?;
        self.narrow(flaw)?;
        self.ends_of(flaw)
    }

    /// Makes all bad links good, and returns each with between whom it can be seen.
    pub(super) fn repair(&mut self) -> anyhow::Result<Vec<(Flaw, (Place, Place))>> {
        let flaws = std::mem::take(&mut self.flaws);
        self.enforce()?;
        flaws.iter().try_for_each(|flaw| self.widen(flaw))?;
        flaws.into_iter().map(|flaw| Ok((flaw.clone(), self.ends_of(&flaw)?))).collect()
    }
}

impl Lab {
    /// Makes a link bad, and proves by datagrams that it is. Returns when.
    pub async fn impair(&mut self, flaw: &Flaw) -> anyhow::Result<Struck> {
        let network = self.network.as_mut().context(NO_NETWORK)?;
        let struck = Struck::now();
        let ends = network.impair(flaw)?;
        let flaw = flaw.clone();
        tokio::task::spawn_blocking(move || flaw.prove_bad(&ends)).await??;
        Ok(struck)
    }

    /// Makes all bad links good, and proves by datagrams that they are.
    pub async fn repair(&mut self) -> anyhow::Result<()> {
        let repaired = self.network.as_mut().context(NO_NETWORK)?.repair()?;
        let all_good = move || repaired.iter().try_for_each(|(flaw, ends)| flaw.prove_good(ends));
        tokio::task::spawn_blocking(all_good).await?
    }
}
