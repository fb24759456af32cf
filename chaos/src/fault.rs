//! What can be broken, by name, and what the cluster is expected to do about it.

use std::fmt;
use std::str::FromStr;

use proto::MemberName;
use serde::Serialize;

use crate::lab::network::cut::Cut;
use crate::lab::{Lab, Part, Struck};

/// A fault of the demo and of the bench.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fault {
    /// Keeper, fencer and PostgreSQL of the primary are killed at once, and started again later.
    Member,
    /// The same are frozen where they stand, and thawed later.
    Freeze,
    /// The primary's member is cut off from all other members, etcd and sentinels, and clients still reach it.
    Partition,
    /// The primary's postmaster is killed.
    Crash,
    /// The primary's postmaster is killed, and that of whoever is primary as soon as writes are back.
    CrashTwice,
    /// The primary's keeper is killed, and nothing else.
    Keeper,
    /// The leading sentinel is killed together with all that belongs to the primary.
    SentinelAndMember,
    /// Keeper, fencer and PostgreSQL of a standby are killed at once, and started again later.
    Standby,
    /// Those of a standby are frozen, and thawed later.
    StandbyFreeze,
    /// Every etcd member is killed, and started again later.
    Etcd,
    /// Nothing breaks: an operator asks for a switchover.
    Switchover,
    /// The primary's keeper is asked to stop, as at a reboot, and started again later.
    Stop,
}

/// All faults, in the order of the help text.
pub const ALL: [Fault; 12] = [
    Fault::Member,
    Fault::Freeze,
    Fault::Partition,
    Fault::Crash,
    Fault::CrashTwice,
    Fault::Keeper,
    Fault::SentinelAndMember,
    Fault::Standby,
    Fault::StandbyFreeze,
    Fault::Etcd,
    Fault::Switchover,
    Fault::Stop,
];

impl Fault {
    /// The fault's name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Fault::Member => "member",
            Fault::Freeze => "freeze",
            Fault::Partition => "partition",
            Fault::Crash => "crash",
            Fault::CrashTwice => "crash-twice",
            Fault::Keeper => "keeper",
            Fault::SentinelAndMember => "sentinel-and-member",
            Fault::Standby => "standby",
            Fault::StandbyFreeze => "standby-freeze",
            Fault::Etcd => "etcd",
            Fault::Switchover => "switchover",
            Fault::Stop => "stop",
        }
    }

    /// Returns whose part it is that breaks.
    pub fn hits(self) -> Hits {
        match self {
            Fault::Member
            | Fault::Freeze
            | Fault::Partition
            | Fault::Crash
            | Fault::CrashTwice
            | Fault::SentinelAndMember
            | Fault::Switchover
            | Fault::Stop => Hits::Primary,
            Fault::Keeper => Hits::PrimaryUnseen,
            Fault::Standby | Fault::StandbyFreeze => Hits::Standby,
            Fault::Etcd => Hits::Store,
        }
    }

    /// Returns whether the lab's hosts must have networks of their own.
    pub fn needs_network(self) -> bool {
        self == Fault::Partition
    }

    /// Breaks `victim`, and proves that it is broken; returns when it was.
    pub async fn strike(self, lab: &mut Lab, victim: &MemberName) -> anyhow::Result<Struck> {
        match self {
            Fault::Member | Fault::Standby => lab.kill_member(victim),
            Fault::Freeze | Fault::StandbyFreeze => lab.freeze(victim, Part::Member).await,
            Fault::Partition => lab.partition(&Cut::isolated(victim)).await,
            Fault::Crash | Fault::CrashTwice => lab.kill_postgres(victim),
            Fault::Keeper => lab.kill_keeper(victim).await,
            Fault::SentinelAndMember => lab.kill_leader_with(victim).await,
            Fault::Etcd => lab.kill_etcd(),
            Fault::Switchover => lab.ask_for_switchover(None).await.map(|(struck, _)| struck),
            Fault::Stop => lab.stop_member(victim),
        }
    }

    /// Returns what an operator or a machine that starts again would do about it, if anything is to be done.
    pub fn remedy(self, victim: &MemberName) -> Option<String> {
        match self {
            Fault::Member | Fault::Standby | Fault::Stop => {
                Some(format!("{victim} is started again"))
            }
            Fault::Freeze | Fault::StandbyFreeze => Some(format!("{victim} is thawed")),
            Fault::Partition => Some(format!("the network of {victim} is mended")),
            Fault::Crash | Fault::CrashTwice | Fault::Switchover => None,
            Fault::Keeper => Some(format!("the keeper of {victim} is to run again")),
            Fault::SentinelAndMember => {
                Some(format!("the sentinel and {victim} are started again"))
            }
            Fault::Etcd => Some("etcd is started again".into()),
        }
    }

    /// Does what `remedy` says.
    pub async fn mend(self, lab: &mut Lab, victim: &MemberName) -> anyhow::Result<()> {
        match self {
            Fault::Member | Fault::Standby | Fault::Stop => start_again(lab, victim).await,
            Fault::Freeze | Fault::StandbyFreeze => lab.thaw(victim).map(drop),
            Fault::Partition => lab.heal().await.map(drop),
            Fault::Crash | Fault::CrashTwice | Fault::Switchover => Ok(()),
            Fault::Keeper => lab.keeper_back(victim).await,
            Fault::SentinelAndMember => {
                lab.start_sentinels()?;
                start_again(lab, victim).await
            }
            Fault::Etcd => lab.start_etcd().await,
        }
    }

    /// Says in one line what is done to `victim`.
    pub fn describe(self, victim: &MemberName) -> String {
        match self {
            Fault::Member => {
                format!("kill -9 keeper, fencer and PostgreSQL of the primary {victim}")
            }
            Fault::Freeze => {
                format!("kill -STOP keeper, fencer and PostgreSQL of the primary {victim}")
            }
            Fault::Partition => {
                format!("cut the primary {victim} off from members, etcd and sentinels")
            }
            Fault::Crash | Fault::CrashTwice => {
                format!("kill -9 the postmaster of the primary {victim}")
            }
            Fault::Keeper => format!("kill -9 the keeper of the primary {victim}"),
            Fault::SentinelAndMember => format!(
                "kill -9 the leading sentinel, and keeper, fencer and PostgreSQL of the primary {victim}"
            ),
            Fault::Standby => {
                format!("kill -9 keeper, fencer and PostgreSQL of the standby {victim}")
            }
            Fault::StandbyFreeze => {
                format!("kill -STOP keeper, fencer and PostgreSQL of the standby {victim}")
            }
            Fault::Etcd => "kill -9 every etcd member".to_owned(),
            Fault::Switchover => format!("a switchover from the primary {victim} is asked for"),
            Fault::Stop => format!("the keeper of the primary {victim} is asked to stop"),
        }
    }
}

/// Whose part breaks, and so what is expected of the cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hits {
    /// The primary is gone: somebody else serves, or it serves again.
    Primary,
    /// Something of the primary, and clients must not notice.
    PrimaryUnseen,
    /// One of the standbys, and clients must not notice as long as another one votes.
    Standby,
    /// etcd, and clients must not notice.
    Store,
}

impl Hits {
    /// Returns whether writes are expected to come back by another service than before.
    pub fn changes_the_service(self) -> bool {
        self == Hits::Primary
    }
}

async fn start_again(lab: &mut Lab, victim: &MemberName) -> anyhow::Result<()> {
    lab.member_gone(victim).await?;
    lab.start_member(victim)
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Fault {
    type Err = String;
    fn from_str(given: &str) -> Result<Self, String> {
        ALL.into_iter().find(|fault| fault.name() == given).ok_or_else(|| {
            format!("{given:?} is no fault: use {}", ALL.map(Fault::name).join(", "))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_back_and_a_wrong_one_lists_them_all() {
        for fault in ALL {
            assert_eq!(fault.name().parse(), Ok(fault));
        }
        assert!(
            "cut"
                .parse::<Fault>()
                .unwrap_err()
                .contains("use member, freeze, partition, crash, crash-twice, keeper,")
        );
    }
}
