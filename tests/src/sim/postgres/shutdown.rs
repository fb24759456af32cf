//! A fast shutdown: clients are cut, the checkpointer writes the shutdown checkpoint, and walsenders send all that there
//! is before the postmaster ends.

use super::{Pg, Phase};
use crate::sim::executor::{Micros, Sim};
use crate::sim::rng::Stream;
use crate::sim::wal::At;

const LOOK_EVERY: Micros = 2_000;

impl Sim {
    /// SIGINT to the postmaster. Of the walsenders only those under a name of `waits_for` are waited for.
    pub fn server_shuts_down(&self, pg: &Pg, waits_for: &[String]) {
        let Some((postmaster, backends)) = pg.with(|s| (s.postmaster, s.backends)) else { return };
        let (of, waits_for) = (pg.clone(), waits_for.to_vec());
        self.spawn(postmaster, async move {
            let sim = of.sim.clone();
            sim.sleep(sim.between(Stream::Postgres, 200, 3_000)).await;
            // A commit that waits is cut with its session: its client hears no success.
            of.with(|s| {
                s.sessions = false;
                s.waiters.clear();
            });
            if !sim.is_paused(backends) {
                sim.kill(backends);
            }
            let (ended, member) = (of.end_others(&waits_for), of.member);
            ended.into_iter().for_each(|proc| sim.kill(proc));
            let Some(checkpointer) = of.with(|s| s.checkpointer) else { return };
            let writes = of.clone();
            let (_, written) = sim.call(checkpointer, async move { writes.last_record().await });
            let Ok(Some(end)) = written.await else { return };
            while !of.is_sent(end) {
                sim.sleep(LOOK_EVERY).await;
            }
            // The postmaster is this task's own process, so the world ends it.
            let at = sim.now() + 1_000;
            sim.at(at, move |sim| {
                if of.with(|s| s.postmaster_lives) == Some(true) {
                    sim.server_ends(member);
                    sim.child_ended(member);
                }
            });
        });
    }
}

impl Pg {
    fn end_others(&self, waits_for: &[String]) -> Vec<crate::sim::executor::ProcId> {
        self.with(|s| {
            let other = |name: &String| !waits_for.contains(name);
            let procs = s.senders.values().filter(|x| other(&x.name)).map(|x| x.proc).collect();
            s.senders.retain(|_, x| !other(&x.name));
            procs
        })
        .unwrap_or_default()
    }

    async fn last_record(&self) -> Option<At> {
        self.sync_takes(self.sim.between(Stream::Postgres, 2_000, 60_000)).await;
        let end = self.with_world(|w| {
            let branch = w.server(self.member).filter(|s| s.phase == Phase::Primary)?.branch;
            let at = At { branch, lsn: w.wal.append(branch, 120) };
            let tli = w.wal.branch(branch).tli;
            let data = w.members[self.member].disk.data.as_mut()?;
            data.at = at;
            data.written = at;
            data.control = tli;
            data.clean = true;
            Some(at)
        });
        self.tell();
        end.flatten()
    }

    fn is_sent(&self, end: At) -> bool {
        let sent = self
            .with(|s| s.senders.values().all(|x| x.flush.is_some_and(|flush| flush >= end.lsn)));
        sent != Some(false)
    }
}
