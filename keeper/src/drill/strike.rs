//! The blows themselves.

use anyhow::{Context, bail};
use nix::sys::signal::Signal;
use proto::drill::{Drill, LiveFault};

use super::broken::Broken;
use crate::facts::Process as Server;
use crate::fencer::{Process, of_data_directory};
use crate::postgres::settings::Place;
use crate::worker::Worker;

/// Something that can be struck now.
pub enum Blow {
    Kill(Process),
    Freeze(Vec<Process>),
}

/// Finds what `drill` is to hit.
pub async fn prepare(worker: &Worker, drill: &Drill) -> anyhow::Result<Blow> {
    let postmaster = || match worker.local().process {
        Server::Running { pid } => living(pid),
        Server::None | Server::Exited { .. } => bail!("PostgreSQL does not run"),
    };
    Ok(match drill.fault {
        LiveFault::Crash | LiveFault::StandbyCrash => Blow::Kill(postmaster()?),
        LiveFault::Keeper | LiveFault::StandbyKeeper => Blow::Kill(living(std::process::id())?),
        LiveFault::Backend => Blow::Kill(asked(worker, A_SESSION).await?),
        LiveFault::Walreceiver => Blow::Kill(asked(worker, THE_RECEIVER).await?),
        LiveFault::StandbyFreeze => {
            let postmaster = postmaster()?;
            // It comes first, so that it starts nobody behind this look.
            let others = of_data_directory(&worker.place.data_dir, None);
            let others = others.into_iter().filter(|p| p.pid != postmaster.pid);
            Blow::Freeze(std::iter::once(postmaster).chain(others).collect())
        }
        LiveFault::Switchover
        | LiveFault::SentinelResign
        | LiveFault::Sentinel
        | LiveFault::ProxyConfig
        | LiveFault::Haproxy
        | LiveFault::Pgbouncer => bail!("{} is not a keeper's", drill.fault),
    })
}

/// The youngest session of a client.
const A_SESSION: &str = "SELECT pid FROM pg_stat_activity WHERE backend_type = 'client backend' \
     AND pid <> pg_backend_pid() AND application_name NOT LIKE 'pgdeputy%' \
     ORDER BY backend_start DESC LIMIT 1";

const THE_RECEIVER: &str = "SELECT pid FROM pg_stat_wal_receiver WHERE pid IS NOT NULL";

async fn asked(worker: &Worker, query: &str) -> anyhow::Result<Process> {
    let session = worker.door.open().await?;
    let rows = session.rows(query, &[]).await?;
    let pid: i32 = rows.first().context("there is no such process now")?.try_get(0)?;
    living(u32::try_from(pid)?)
}

fn living(pid: u32) -> anyhow::Result<Process> {
    Process::with_pid(pid).context("the process has ended")
}

impl Blow {
    /// Strikes, and returns what has to be undone.
    pub fn strike(self, drill: &Drill, place: &Place) -> anyhow::Result<Option<Broken>> {
        match self {
            Self::Kill(process) => {
                process.signal(Signal::SIGKILL).context("kill")?;
                Ok(None)
            }
            Self::Freeze(all) => Broken::freeze(drill.id.clone(), &all, &place.state_dir).map(Some),
        }
    }
}
