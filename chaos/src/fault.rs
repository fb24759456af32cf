//! What can be broken, by name, and what the cluster is expected to do about it.

use std::fmt;
use std::str::FromStr;

use proto::MemberName;
use serde::Serialize;

use crate::lab::{Lab, Struck};

/// A fault of the demo and of the bench.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fault {
    /// Keeper, fencer and PostgreSQL of the primary are killed at once, and started again later.
    Member,
    /// The primary's postmaster is killed.
    Crash,
    /// The primary's postmaster is killed, and that of whoever is primary as soon as writes are back.
    CrashTwice,
    /// Keeper, fencer and PostgreSQL of a standby are killed at once, and started again later.
    Standby,
    /// Every etcd member is killed, and started again later.
    Etcd,
}

/// All faults, in the order of the help text.
pub const ALL: [Fault; 5] =
    [Fault::Member, Fault::Crash, Fault::CrashTwice, Fault::Standby, Fault::Etcd];

impl Fault {
    /// The fault's name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Fault::Member => "member",
            Fault::Crash => "crash",
            Fault::CrashTwice => "crash-twice",
            Fault::Standby => "standby",
            Fault::Etcd => "etcd",
        }
    }

    /// Returns whether the whole member goes and has to be started again.
    pub fn takes_the_member(self) -> bool {
        match self {
            Fault::Member | Fault::Standby => true,
            Fault::Crash | Fault::CrashTwice | Fault::Etcd => false,
        }
    }

    /// Returns whether the primary is hit.
    pub fn hits_the_primary(self) -> bool {
        match self {
            Fault::Member | Fault::Crash | Fault::CrashTwice => true,
            Fault::Standby | Fault::Etcd => false,
        }
    }

    /// Breaks `victim`; returns when.
    pub fn strike(self, lab: &mut Lab, victim: &MemberName) -> anyhow::Result<Struck> {
        match self {
            Fault::Member | Fault::Standby => lab.kill_member(victim),
            Fault::Crash | Fault::CrashTwice => lab.kill_postgres(victim),
            Fault::Etcd => lab.kill_etcd(),
        }
    }

    /// Says in one line what is done to `victim`.
    pub fn describe(self, victim: &MemberName) -> String {
        match self {
            Fault::Member => {
                format!("kill -9 keeper, fencer and PostgreSQL of the primary {victim}")
            }
            Fault::Crash | Fault::CrashTwice => {
                format!("kill -9 the postmaster of the primary {victim}")
            }
            Fault::Standby => {
                format!("kill -9 keeper, fencer and PostgreSQL of the standby {victim}")
            }
            Fault::Etcd => "kill -9 every etcd member".to_owned(),
        }
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
                .contains("use member, crash, crash-twice, standby, etcd")
        );
    }
}
