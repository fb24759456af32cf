//! Who was what, and in which phase the cluster was, as etcd showed it over the time of a run.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use proto::report::Server;
use proto::{MemberName, Moment, Phase};
use serde::Serialize;
use store::clock;
use tokio::task::JoinSet;

use crate::lab::{Cluster, Lab, await_cluster};

/// What a member's report says of its PostgreSQL.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    Primary,
    Standby,
    /// Its PostgreSQL does not run, or is on its way.
    Down,
    /// Its report has lapsed.
    Silent,
}

/// The roles from a moment on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    pub at: Moment,
    pub roles: BTreeMap<MemberName, Role>,
    pub phase: &'static str,
}

/// Watches for as long as it lives.
pub struct Roles {
    seen: Arc<Mutex<Vec<Seen>>>,
    _task: JoinSet<()>,
}

impl Roles {
    /// Begins to watch.
    pub fn watch(lab: &Lab) -> Self {
        let (store, keys, members) = (Arc::clone(lab.store()), lab.keys().clone(), lab.members());
        let seen: Arc<Mutex<Vec<Seen>>> = Arc::default();
        let noted = Arc::clone(&seen);
        let mut task = JoinSet::new();
        task.spawn(async move {
            loop {
                let follow = await_cluster(store.as_ref(), &keys, Duration::MAX, |cluster| {
                    note(
                        &mut noted.lock().expect("no holder of this lock panics"),
                        cluster,
                        &members,
                    );
                    None::<()>
                });
                // etcd is one of the things that are broken: what it does not show is not seen.
                let _ = follow.await;
            }
        });
        Self { seen, _task: task }
    }

    /// Returns all changes so far.
    pub fn all(&self) -> Vec<Seen> {
        self.seen.lock().expect("no holder of this lock panics").clone()
    }
}

fn note(seen: &mut Vec<Seen>, cluster: &Cluster, members: &[MemberName]) {
    let roles = members.iter().map(|member| (member.clone(), role(cluster, member))).collect();
    let now = Seen { at: clock::now(), roles, phase: phase(cluster) };
    let changed = seen.last().is_none_or(|l| (&l.roles, l.phase) != (&now.roles, now.phase));
    if changed {
        seen.push(now);
    }
}

fn role(cluster: &Cluster, member: &MemberName) -> Role {
    match cluster.reports.get(member).map(|report| report.server) {
        None => Role::Silent,
        Some(Server::Primary { .. }) => Role::Primary,
        Some(Server::Standby { .. }) => Role::Standby,
        Some(Server::Unknown | Server::Stopped | Server::Starting | Server::Dead { .. }) => {
            Role::Down
        }
    }
}

fn phase(cluster: &Cluster) -> &'static str {
    let Some(state) = &cluster.state else { return "none" };
    match &state.phase {
        Phase::Open if state.sealing.is_some() => "sealing",
        Phase::Open if state.cfgs.len() > 1 => "joint",
        Phase::Open => "open",
        Phase::Founding { .. } => "founding",
        Phase::Promoting => "promoting",
        Phase::Restarting => "restarting",
        Phase::Switchover(_) => "switchover",
    }
}
