//! Everything that is simulated, as one value: machines, disks, links, the store, and what the oracle knows.

use std::collections::BTreeMap;
use std::rc::Rc;

use proto::{ClusterSpec, MemberName, SystemIdentifier};
use proxy_config::route::Routes;
use store::keys::Keys;
use tokio::sync::Notify;

use super::calm::Stir;
use super::cells::Cell;
use super::disk::Disk;
use super::etcd::Etcd;
use super::executor::{Node, ProcId};

use super::fencer::Fencer;
use super::keeper::Keeper;
use super::net::Net;
use super::oracle::Oracle;
use super::postgres::Server;
use super::profiles::Profile;
use super::read::Remembered;
use super::trace::Trace;
use super::wal::Wal;

/// The system identifier of every simulated cluster.
pub const SYSTEM: SystemIdentifier = SystemIdentifier(7_574_891_230_112_233_445);

/// One machine with a member.
pub struct Member {
    pub name: MemberName,
    pub up: bool,
    pub disk: Disk,
    /// Older copies of it.
    pub copies: Vec<Disk>,
    pub server: Option<Server>,
    pub fencer: Option<Fencer>,
    pub keeper: Option<Keeper>,
    pub keeper_proc: Option<ProcId>,
}

/// What happened, to be printed.
#[derive(Debug, Default, Clone)]
pub struct Counts {
    pub tried: u64,
    pub commits: u64,
    pub reads: u64,
    pub failovers: u64,
    pub restarts: u64,
    pub elections: u64,
    pub refused: u64,
    pub faults: u64,
    /// How often each thing happened that should happen at least sometimes.
    pub cells: BTreeMap<Cell, u64>,
}

pub struct World {
    pub spec: ClusterSpec,
    pub profile: Profile,
    pub mutant: Option<String>,
    pub keys: Keys,
    pub net: Net,
    pub etcd: Etcd,
    pub wal: Wal,
    pub members: Vec<Member>,
    pub sentinels: Vec<Option<ProcId>>,
    pub router: Option<ProcId>,
    pub routes: Option<Routes>,
    pub clock_rates: BTreeMap<Node, i64>,
    pub oracle: Oracle,
    pub read: Remembered,
    pub trace: Trace,
    pub counts: Counts,
    /// Told whenever the cluster may have come to another phase.
    pub moves: Rc<Notify>,
    pub stir: Stir,
}

impl World {
    /// Returns which member lives at an address.
    pub fn member_at(host: &str) -> Option<usize> {
        host.rsplit('.').next()?.parse().ok()
    }

    pub fn index_of(&self, name: &MemberName) -> Option<usize> {
        self.members.iter().position(|m| m.name == *name)
    }
}

/// The name of the member with this number: `a`, `b`, ...
pub fn member_name(number: usize) -> MemberName {
    let letter = char::from(b'a' + number as u8);
    letter.to_string().parse().expect("a letter is a name")
}
