//! What may be broken on a live cluster, and what each of it costs.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// What may be broken on a live cluster. Named as the lab's faults are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LiveFault {
    /// The primary's postmaster is killed.
    Crash,
    /// A session's process of the primary is killed, and PostgreSQL restarts all others.
    Backend,
    /// A standby's postmaster is killed.
    StandbyCrash,
    /// A standby's PostgreSQL stands still for a while.
    StandbyFreeze,
    /// A standby's walreceiver is killed.
    Walreceiver,
    /// The primary's keeper is killed.
    Keeper,
    /// A standby's keeper is killed.
    StandbyKeeper,
    /// A planned change of primary.
    Switchover,
    /// The leading sentinel gives its leadership up.
    SentinelResign,
    /// The leading sentinel is killed.
    Sentinel,
    /// A proxy-config is killed.
    ProxyConfig,
    /// The HAProxy of a proxy-config is restarted.
    Haproxy,
    /// A PgBouncer of a proxy-config is restarted.
    Pgbouncer,
}

/// Of which kind the target is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hits {
    Primary,
    Standby,
    /// The sentinel that leads.
    Leader,
    /// A proxy-config.
    Proxy,
}

impl LiveFault {
    /// All of them, from the mildest on.
    pub const ALL: [Self; 13] = [
        Self::ProxyConfig,
        Self::SentinelResign,
        Self::Sentinel,
        Self::StandbyKeeper,
        Self::Walreceiver,
        Self::Keeper,
        Self::StandbyCrash,
        Self::StandbyFreeze,
        Self::Haproxy,
        Self::Pgbouncer,
        Self::Switchover,
        Self::Crash,
        Self::Backend,
    ];

    /// Returns its name in commands and records.
    pub fn name(self) -> &'static str {
        match self {
            Self::Crash => "crash",
            Self::Backend => "backend",
            Self::StandbyCrash => "standby-crash",
            Self::StandbyFreeze => "standby-freeze",
            Self::Walreceiver => "walreceiver",
            Self::Keeper => "keeper",
            Self::StandbyKeeper => "standby-keeper",
            Self::Switchover => "switchover",
            Self::SentinelResign => "sentinel-resign",
            Self::Sentinel => "sentinel",
            Self::ProxyConfig => "proxy-config",
            Self::Haproxy => "haproxy",
            Self::Pgbouncer => "pgbouncer",
        }
    }

    /// Returns whom it hits.
    pub fn hits(self) -> Hits {
        match self {
            Self::Crash | Self::Backend | Self::Keeper | Self::Switchover => Hits::Primary,
            Self::StandbyCrash | Self::StandbyFreeze | Self::Walreceiver | Self::StandbyKeeper => {
                Hits::Standby
            }
            Self::SentinelResign | Self::Sentinel => Hits::Leader,
            Self::ProxyConfig | Self::Haproxy | Self::Pgbouncer => Hits::Proxy,
        }
    }

    /// Returns what is done.
    pub fn what(self) -> &'static str {
        match self {
            Self::Crash => "kill -9 the postmaster of the primary",
            Self::Backend => "kill -9 the process of one session of the primary",
            Self::StandbyCrash => "kill -9 the postmaster of a standby",
            Self::StandbyFreeze => "kill -STOP PostgreSQL of a standby, for 10 s",
            Self::Walreceiver => "kill -9 the walreceiver of a standby",
            Self::Keeper => "kill -9 the keeper of the primary",
            Self::StandbyKeeper => "kill -9 the keeper of a standby",
            Self::Switchover => "a switchover to the best standby",
            Self::SentinelResign => "the leading sentinel steps down, and another one leads",
            Self::Sentinel => {
                "kill -9 the leading sentinel, which its service manager starts again"
            }
            Self::ProxyConfig => "kill -9 a proxy-config, which its service manager starts again",
            Self::Haproxy => "restart HAProxy by the command that its proxy-config is given for it",
            Self::Pgbouncer => {
                "restart a PgBouncer by the command that its proxy-config is given for it"
            }
        }
    }

    /// Returns what clients notice.
    pub fn clients(self) -> &'static str {
        match self {
            Self::Crash | Self::Backend => {
                "sessions of the primary are cut, writes are away below a second"
            }
            Self::StandbyCrash | Self::StandbyFreeze => {
                "read sessions of the standby are cut or stand still"
            }
            Self::Walreceiver => "reads on the standby are a moment older",
            Self::Keeper | Self::StandbyKeeper => "nothing",
            Self::Switchover => "behind PgBouncer a pause, else sessions of the primary are cut",
            Self::SentinelResign | Self::Sentinel | Self::ProxyConfig => "nothing",
            Self::Haproxy => {
                "sessions by this HAProxy are cut, and new ones refused until it is back"
            }
            Self::Pgbouncer => {
                "sessions by this PgBouncer are cut, and new ones refused until it is back"
            }
        }
    }

    /// Returns how long it stays before it is undone; zero where nothing has to be undone.
    pub fn stays(self) -> Duration {
        match self {
            Self::StandbyFreeze => Duration::from_secs(10),
            Self::Crash
            | Self::Backend
            | Self::StandbyCrash
            | Self::Walreceiver
            | Self::Keeper
            | Self::StandbyKeeper
            | Self::Switchover
            | Self::SentinelResign
            | Self::Sentinel
            | Self::ProxyConfig
            | Self::Haproxy
            | Self::Pgbouncer => Duration::ZERO,
        }
    }
}

impl fmt::Display for LiveFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for LiveFault {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL.into_iter().find(|fault| fault.name() == text).ok_or_else(|| {
            let names = Self::ALL.map(Self::name).join(", ");
            format!("no drill {text:?}: use {names}")
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_fault_is_found_by_its_name_and_stored_under_it() {
        for fault in LiveFault::ALL {
            assert_eq!(fault.name().parse(), Ok(fault));
            assert_eq!(serde_json::to_string(&fault).unwrap(), format!("\"{fault}\""));
        }
        assert!("fire".parse::<LiveFault>().unwrap_err().contains("standby-freeze"));
    }
}
