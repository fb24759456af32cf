//! Cuts between the lab's hosts: who loses whom, in which direction, and whether packets vanish or are refused.
//!
//! The one rule: a cut that was not seen to bite proves nothing, so datagrams are sent both ways before it counts, and
//! again when it is undone.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::process::Command;

use anyhow::{Context, ensure};
use proto::MemberName;

use super::{Network, Site, namespace, probe, run, switch};
use crate::lab::{Lab, Struck};

/// One host, and what it is cut from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cut {
    pub site: Site,
    pub from: Others,
    pub way: Way,
    pub how: How,
    pub traffic: Traffic,
}

/// Which other hosts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Others {
    /// All, clients and proxies too.
    Everybody,
    /// Members, etcd and sentinels. Clients still reach it: whoever serves wrongly is seen to.
    Cluster,
    Etcd,
    Members,
    Sentinels,
    One(Site),
}

/// Which packets are lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    Both,
    /// What the host sends does not arrive; it still receives.
    Out,
    /// What is sent to the host does not arrive; it still sends.
    In,
}

/// What becomes of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum How {
    /// They vanish, as with a host that is off or a link that is down: everything has to time out.
    BlackHole,
    /// TCP is reset and datagrams are dropped, as by a firewall that rejects.
    Reset,
}

/// Which kind of packets are lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Traffic {
    All,
    /// TCP alone: sessions and streams. Keepers still hear each other, as behind a firewall that was set up badly.
    Tcp,
}

impl Cut {
    /// A member that loses members, etcd and sentinels, silently and in both directions.
    pub fn isolated(member: &MemberName) -> Self {
        Self::between(member, Others::Cluster)
    }

    /// A member that loses some others, silently and in both directions.
    pub fn between(member: &MemberName, from: Others) -> Self {
        let site = Site::Member(member.clone());
        Self { site, from, way: Way::Both, how: How::BlackHole, traffic: Traffic::All }
    }

    /// The same in one direction only.
    #[must_use]
    pub fn way(self, way: Way) -> Self {
        Self { way, ..self }
    }

    /// The same by resets.
    #[must_use]
    pub fn reset(self) -> Self {
        Self { how: How::Reset, ..self }
    }

    /// The same for TCP alone.
    #[must_use]
    pub fn tcp_only(self) -> Self {
        Self { traffic: Traffic::Tcp, ..self }
    }

    fn covers(&self, other: &Site) -> bool {
        self.from.covers(&self.site, other)
    }
}

impl Others {
    /// Returns whether these are what `other` is to `site`.
    pub(super) fn covers(&self, site: &Site, other: &Site) -> bool {
        if other == site {
            return false;
        }
        match self {
            Others::Everybody => true,
            Others::Cluster => *other != Site::Clients,
            Others::Etcd => matches!(other, Site::Etcd(_)),
            Others::Members => matches!(other, Site::Member(_)),
            Others::Sentinels => matches!(other, Site::Sentinel(_)),
            Others::One(site) => other == site,
        }
    }
}

impl Traffic {
    fn rule(self) -> &'static str {
        match self {
            Traffic::All => "",
            Traffic::Tcp => "ip protocol tcp ",
        }
    }
}

/// Packets of the first host to the second.
type Pair = (Site, Site);

impl Network {
    fn lost_by(&self, cut: &Cut) -> BTreeSet<Pair> {
        let mut pairs = BTreeSet::new();
        for other in self.places.keys().filter(|other| cut.covers(other)) {
            if cut.way != Way::In {
                pairs.insert((cut.site.clone(), other.clone()));
            }
            if cut.way != Way::Out {
                pairs.insert((other.clone(), cut.site.clone()));
            }
        }
        pairs
    }

    /// What `traffic` loses: TCP what all loses, too.
    fn lost(&self, traffic: Traffic) -> BTreeSet<Pair> {
        let cuts = self.cuts.iter();
        let which = cuts.filter(|cut| traffic == Traffic::Tcp || cut.traffic == Traffic::All);
        which.flat_map(|cut| self.lost_by(cut)).collect()
    }

    /// Adds a cut to those in force.
    pub(super) fn cut(&mut self, cut: &Cut) -> anyhow::Result<()> {
        self.place(&cut.site)?;
        ensure!(!self.lost_by(cut).is_empty(), "{cut:?} cuts nobody off from anybody");
        ensure!(
            cut.how == How::BlackHole || cut.site != Site::Clients,
            "the machine's own network rejects nothing: cut the other host"
        );
        self.cuts.push(cut.clone());
        self.enforce()
    }

    /// Undoes one cut of those in force.
    fn mend_one(&mut self, cut: &Cut) -> anyhow::Result<()> {
        let others: Vec<Cut> = self.cuts.iter().filter(|other| *other != cut).cloned().collect();
        ensure!(others.len() < self.cuts.len(), "{cut:?} is not in force");
        let rejected = self.rejecting();
        self.cuts = others;
        self.enforce()?;
        let left = self.rejecting();
        rejected.difference(&left).try_for_each(|site| self.accept(site))
    }

    fn accept(&self, site: &Site) -> anyhow::Result<()> {
        self.load(&namespace(self.number, site), &table("inet", ""))
    }

    /// Undoes every cut.
    pub(super) fn mend(&mut self) -> anyhow::Result<()> {
        let rejecting = self.rejecting();
        self.cuts.clear();
        self.enforce()?;
        rejecting.iter().try_for_each(|site| self.accept(site))
    }

    fn rejecting(&self) -> BTreeSet<Site> {
        self.cuts.iter().filter(|c| c.how == How::Reset).map(|c| c.site.clone()).collect()
    }

    /// Packets vanish in the switch, where their sender does not notice; they are refused at the host itself.
    pub(super) fn enforce(&self) -> anyhow::Result<()> {
        let mut rules = self.flawed()?;
        for cut in self.cuts.iter().filter(|c| c.how == How::BlackHole) {
            for (from, to) in self.lost_by(cut) {
                let (from, to) = (self.place(&from)?.address, self.place(&to)?.address);
                let which = cut.traffic.rule();
                let _ = writeln!(rules, "ip saddr {from} ip daddr {to} {which}drop");
            }
        }
        let chain = format!("chain cut {{ type filter hook prerouting priority 0;\n{rules} }}");
        self.load(&switch(self.number), &table("bridge", &chain))?;
        for site in self.rejecting() {
            let chains = self.refusals(&site)?;
            self.load(&namespace(self.number, &site), &table("inet", &chains))?;
        }
        Ok(())
    }

    fn refusals(&self, site: &Site) -> anyhow::Result<String> {
        // The refusals themselves go through these rules too.
        let refusals = "ip protocol tcp tcp flags & rst == rst accept\n";
        let (mut incoming, mut outgoing) = (refusals.to_owned(), refusals.to_owned());
        for cut in self.cuts.iter().filter(|c| c.how == How::Reset && c.site == *site) {
            for (from, to) in self.lost_by(cut) {
                let (rules, end, other) = match from == *site {
                    true => (&mut outgoing, "daddr", to),
                    false => (&mut incoming, "saddr", from),
                };
                let address = self.place(&other)?.address;
                let _ = writeln!(rules, "ip {end} {address} ip protocol tcp reject with tcp reset");
                let _ = writeln!(rules, "ip {end} {address} {}drop", cut.traffic.rule());
            }
        }
        Ok(format!(
            "chain in {{ type filter hook input priority 0;\n{incoming} }}
             chain out {{ type filter hook output priority 0;\n{outgoing} }}"
        ))
    }

    /// All rules of a table are replaced at one instant.
    fn load(&self, namespace: &str, rules: &str) -> anyhow::Result<()> {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", namespace, "nft", "-f", "-"]);
        run(&mut command, rules).context("change the rules of the lab's network")
    }

    /// Sends datagrams between all hosts that `cuts` concern, and connects where a cut is of TCP; demands that just that
    /// arrives that may.
    async fn prove(&self, cuts: &[Cut]) -> anyhow::Result<()> {
        let mut looks = Vec::new();
        for cut in cuts {
            for other in self.places.keys().filter(|site| **site != cut.site) {
                for (from, to) in [(&cut.site, other), (other, &cut.site)] {
                    let places = (self.place(from)?.clone(), self.place(to)?.clone());
                    let look = match cut.traffic {
                        Traffic::All => probe::passes,
                        Traffic::Tcp => probe::connects,
                    };
                    let look = tokio::task::spawn_blocking(move || look(&places.0, &places.1));
                    looks.push((cut.traffic, (from.clone(), to.clone()), look));
                }
            }
        }
        for (traffic, (from, to), look) in looks {
            let passed = look.await?.with_context(|| format!("probe from {from} to {to}"))?;
            let fault = match passed {
                true => "passed though they are cut",
                false => "was lost though nothing cuts them",
            };
            let may_pass = self.may_pass(traffic, &(from.clone(), to.clone()));
            ensure!(passed == may_pass, "a packet from {from} to {to} {fault}");
        }
        Ok(())
    }

    /// A connection needs both directions.
    fn may_pass(&self, traffic: Traffic, pair: &Pair) -> bool {
        let lost = self.lost(traffic);
        let back = (pair.1.clone(), pair.0.clone());
        !lost.contains(pair) && (traffic == Traffic::All || !lost.contains(&back))
    }
}

/// A table that takes the place of the one before.
fn table(family: &str, chains: &str) -> String {
    format!("table {family} lab\ndelete table {family} lab\ntable {family} lab {{\n{chains}\n}}\n")
}

impl Lab {
    /// Cuts a host off, besides what is cut already, and proves by datagrams that it is. Returns when.
    pub async fn partition(&mut self, cut: &Cut) -> anyhow::Result<Struck> {
        let struck = self.cut(cut)?;
        self.prove_cut(cut).await?;
        Ok(struck)
    }

    /// Cuts a host off and returns when. `prove_cut` has to follow before anything is concluded from it.
    pub fn cut(&mut self, cut: &Cut) -> anyhow::Result<Struck> {
        let network = self.network.as_mut().context(NO_NETWORK)?;
        let struck = Struck::now();
        network.cut(cut)?;
        Ok(struck)
    }

    /// Proves by datagrams that a host is cut off as it should be.
    pub async fn prove_cut(&self, cut: &Cut) -> anyhow::Result<()> {
        self.network.as_ref().context(NO_NETWORK)?.prove(std::slice::from_ref(cut)).await
    }

    /// Undoes every cut, and proves that everybody reaches everybody again. Returns when.
    pub async fn heal(&mut self) -> anyhow::Result<Struck> {
        let network = self.network.as_mut().context(NO_NETWORK)?;
        let cuts = network.cuts.clone();
        let struck = Struck::now();
        network.mend()?;
        network.prove(&cuts).await?;
        Ok(struck)
    }

    /// Undoes one cut; the others stay.
    pub async fn mend(&mut self, cut: &Cut) -> anyhow::Result<()> {
        let network = self.network.as_mut().context(NO_NETWORK)?;
        network.mend_one(cut)?;
        network.prove(std::slice::from_ref(cut)).await
    }

    /// Returns whether anything is cut now.
    pub fn is_cut(&self) -> bool {
        self.network.as_ref().is_some_and(|network| !network.cuts.is_empty())
    }
}

pub(super) const NO_NETWORK: &str =
    "this lab's members share the loopback: start it with Placement::Namespaces to cut them off";
