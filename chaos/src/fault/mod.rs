//! What can be broken, by name, and what the cluster is expected to do about it. The one catalogue of demo, bench, drills
//! and tests.
//!
//! The one rule: a fault is struck, proven to have bitten, undone, and the undoing is proven too. One that did not bite is
//! an error and shows nothing.

mod catalogue;
mod entry;
mod mend;
mod strike;

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use anyhow::Context;
use proto::MemberName;
use serde::Serialize;

use crate::lab::network::Placement;
use crate::lab::{Cluster, Lab, LabConfig, Struck, Stutter};
use crate::session::Session;
pub use catalogue::ALL;
pub use entry::Entry;

/// What is broken. `ALL` says of each what it does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fault {
    Member,
    Freeze,
    Partition,
    Crash,
    CrashTwice,
    Keeper,
    SentinelAndMember,
    Standby,
    StandbyFreeze,
    Etcd,
    Switchover,
    Stop,
    Backend,
    Walsender,
    Walreceiver,
    Fencer,
    KeeperFreeze,
    PostmasterFreeze,
    CutOff,
    CutPeers,
    CutEtcd,
    Mute,
    Deaf,
    Resets,
    Flapping,
    StandbyCut,
    DiskFull,
    DiskHung,
    EtcdMember,
    EtcdLeader,
    EtcdLeaderFreeze,
    EtcdQuorum,
    EtcdFreeze,
    EtcdFull,
    EtcdCompaction,
    Sentinel,
    SentinelFreeze,
    Sentinels,
    Haproxy,
    Pgbouncer,
    ProxyConfig,
    Connections,
    Stranger,
    SwitchoverTarget,
    RejoinCrash,
    Loss,
    MtuHole,
    StandbyMtuHole,
    Narrow,
    DiskSlow,
    DiskErrors,
    Processor,
    Memory,
    CrashBehind,
    EtcdRestored,
    Delay,
    Stall,
    Clock,
    CfgCrash,
    CopyCrash,
}

/// Kinds of faults, by what breaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Class {
    /// A process of PostgreSQL is killed.
    Postgres,
    /// A keeper or a fencer is killed or frozen.
    Deputies,
    /// All of a member is killed.
    Member,
    /// All of a member, or the postmaster, is frozen and thawed.
    Freeze,
    /// A member is cut off.
    Network,
    /// A member's disk is full or hangs.
    Disk,
    Etcd,
    Sentinels,
    Proxies,
    /// An operator changes the primary.
    Switchover,
    /// All processes of a member are stopped in order and started again.
    Reboot,
    /// The primary has no session left for anybody.
    Sessions,
    /// A second failure comes while the cluster is busy with the first.
    Twice,
    /// Somebody streams who is no member.
    Stranger,
    /// A member has hardly any processor, or no memory.
    Starved,
}

/// Whose part breaks, and so what is expected of the cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hits {
    /// The primary is gone: somebody else serves, or it serves again.
    Primary,
    /// Something of the primary, and its service must not change.
    PrimaryUnseen,
    /// The primary's own network comes and goes: it may be replaced or not.
    PrimaryLink,
    /// One of the standbys, and the service must not change as long as another one votes.
    Standby,
    /// etcd, a sentinel or a proxy: the service must not change.
    Others,
}

impl Hits {
    /// Returns whether writes are expected to come back by another service than before.
    pub fn changes_the_service(self) -> bool {
        self == Hits::Primary
    }

    /// Returns whether the same service is expected to go on.
    pub fn keeps_the_service(self) -> bool {
        !matches!(self, Hits::Primary | Hits::PrimaryLink)
    }
}

/// A fault that was struck, with what its undoing needs.
pub struct Injury {
    pub struck: Struck,
    /// Sessions that are held open.
    crowd: Vec<Session>,
    /// Who was killed, where it is not the one that the fault is about.
    killed: Option<MemberName>,
    /// A disk that stutters until this is told to end.
    stutter: Option<Stutter>,
}

impl From<Struck> for Injury {
    fn from(struck: Struck) -> Self {
        Self { struck, crowd: Vec::new(), killed: None, stutter: None }
    }
}

impl Fault {
    /// The fault's line in the catalogue.
    pub fn entry(self) -> &'static Entry {
        &ALL[self as usize]
    }

    /// The fault's name on the command line.
    pub fn name(self) -> &'static str {
        self.entry().name
    }

    /// Returns whose part it is that breaks.
    pub fn hits(self) -> Hits {
        self.entry().hits
    }

    /// Says in one line what is done to `victim`.
    pub fn describe(self, victim: &MemberName) -> String {
        self.entry().does.replace("{x}", victim.as_str())
    }

    /// Returns what an operator or a machine that starts again would do about it, if anything is to be done.
    pub fn remedy(self, victim: &MemberName) -> Option<String> {
        let undo = self.entry().undo;
        (!undo.is_empty()).then(|| undo.replace("{x}", victim.as_str()))
    }

    /// Does what has to have happened before it is struck.
    pub async fn prepare(self, lab: &mut Lab) -> anyhow::Result<()> {
        if self == Fault::EtcdRestored {
            lab.outlive_a_backup().await?;
        }
        Ok(())
    }

    /// Returns whether the primary that takes over is to be killed in turn as soon as writes are back.
    pub fn strikes_again(self) -> bool {
        self == Fault::CrashTwice
    }

    /// Returns whether the lab's hosts must have networks of their own.
    pub fn needs_network(self) -> bool {
        self.entry().class == Class::Network || self == Fault::CrashBehind
    }

    /// Returns whether only root can do it: networks and disks of their own are made by root.
    pub fn needs_root(self) -> bool {
        self.needs_network() || matches!(self.entry().class, Class::Disk | Class::Starved)
    }

    /// Gives the lab what this fault breaks.
    pub fn equip(self, config: &mut LabConfig) {
        if self.needs_network() {
            config.placement = Placement::Namespaces;
        }
        if self.entry().class == Class::Disk {
            config.disk_mb = Some(LabConfig::USUAL_DISK_MB);
        }
        if self.needs_etcd_majority() {
            config.etcd_members = config.etcd_members.max(3);
        }
        if self == Fault::Pgbouncer {
            config.pgbouncers = config.pgbouncers.max(1);
        }
        // Otherwise a keeper would come back while it is to be away.
        config.keepers_restart |= self == Fault::Keeper;
    }

    /// With one member, etcd as a whole would be gone.
    fn needs_etcd_majority(self) -> bool {
        matches!(
            self,
            Fault::EtcdMember | Fault::EtcdLeader | Fault::EtcdLeaderFreeze | Fault::EtcdQuorum
        )
    }

    /// Returns the member that this fault is about, by who is what now.
    pub fn victim(self, cluster: &Cluster, primary: &MemberName) -> anyhow::Result<MemberName> {
        if self.hits() != Hits::Standby {
            return Ok(primary.clone());
        }
        let standby = cluster.reports.keys().find(|name| *name != primary);
        standby.cloned().context("there is no standby to break")
    }

    /// The longest that writes may be away.
    pub fn bound(self) -> Duration {
        self.entry().bound
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Fault {
    type Err = String;
    fn from_str(given: &str) -> Result<Self, String> {
        let found = ALL.iter().find(|entry| entry.name == given).map(|entry| entry.fault);
        found.ok_or_else(|| {
            let names: Vec<&str> = ALL.iter().map(|entry| entry.name).collect();
            format!("{given:?} is no fault: use {}", names.join(", "))
        })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn names_are_read_back_and_a_wrong_one_lists_them_all() {
        for entry in &ALL {
            assert_eq!(entry.name.parse(), Ok(entry.fault));
        }
        assert!(
            "cut"
                .parse::<Fault>()
                .unwrap_err()
                .contains("use member, freeze, partition, crash, crash-twice, keeper,")
        );
    }

    #[test]
    fn each_fault_stands_at_its_own_place_in_the_catalogue_under_a_name_of_its_own() {
        for (place, entry) in ALL.iter().enumerate() {
            assert_eq!(entry.fault as usize, place, "{}", entry.name);
            assert!(entry.does.len() > 10 && entry.bound >= Duration::from_millis(500));
        }
        assert_eq!(ALL.iter().map(|e| e.name).collect::<BTreeSet<_>>().len(), ALL.len());
    }
}
