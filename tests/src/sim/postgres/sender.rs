//! A walsender: sends what is flushed, and releases commits by the rule that it has read itself.

use proto::Lsn;
use tokio::sync::mpsc::UnboundedReceiver;

use super::{Pg, Phase, Rule, Server};
use crate::sim::executor::{Micros, ProcId, Sim};
use crate::sim::net::Near;
use crate::sim::rng::Stream;
use crate::sim::wal::{At, BranchId, segment_start};

/// `wal_sender_timeout`.
const TIMEOUT: Micros = 10_000_000;

/// What a walsender shows in shared memory.
pub struct Sender {
    pub proc: ProcId,
    pub member: usize,
    pub name: String,
    pub streaming: bool,
    pub flush: Option<Lsn>,
    pub replay: Option<Lsn>,
    pub rule: Rule,
    pub priority: i32,
}

/// From the walsender.
pub enum Down {
    /// WAL of a branch up to a position.
    Wal {
        branch: BranchId,
        upto: Lsn,
    },
    /// The branch ends at the last position sent; ask for the next.
    EndOfTimeline,
    KeepAlive,
}

/// From the receiver.
pub enum Up {
    Position {
        flush: Lsn,
        replay: Lsn,
    },
    /// Begin to send `branch` from `from`.
    Stream {
        branch: BranchId,
        from: Lsn,
    },
    Ping,
}

impl Sender {
    pub fn learn(&mut self, names: &str) {
        self.rule = Rule::parse(names);
        self.priority = self.rule.priority(&self.name);
    }
}

/// A walsender's ends of its connection.
pub struct Line {
    pub down: Near<Down>,
    pub up: UnboundedReceiver<Up>,
}

/// Starts a walsender for a receiver that has logged in; false where another one has its standby's slot, and be it one
/// that does not know yet that its standby has left.
pub fn start(pg: &Pg, member: usize, name: String, line: Line) -> bool {
    let taken = |s: &mut Server| s.senders.values().any(|other| other.member == member);
    let shared = pg.sim.mutant("a-standby-streams-twice");
    if pg.with(taken).is_none_or(|taken| taken && !shared) {
        return false;
    }
    let proc = pg.sim.start_process(pg.node());
    let pid = 40_000 + (pg.sim.fresh() % 1_000_000) as i32;
    pg.with(|s| {
        let mut sender = Sender {
            proc,
            member,
            name,
            streaming: false,
            flush: None,
            replay: None,
            rule: Rule::default(),
            priority: 0,
        };
        sender.learn(&s.conf.standby_names);
        s.senders.insert(pid, sender);
    });
    let of = pg.clone();
    pg.sim.spawn(proc, async move {
        serve(&of, pid, line).await;
        of.with(|s| s.senders.remove(&pid));
        of.sim.kill(proc);
    });
    true
}

struct Sending {
    branch: BranchId,
    sent: Lsn,
}

async fn serve(pg: &Pg, pid: i32, mut line: Line) {
    let Some(mut changed) = pg.with(|s| s.changed.subscribe()) else { return };
    let mut sending: Option<Sending> = None;
    let mut heard = pg.sim.now();
    let mut alarm = pg.sim.sleep_until(heard + TIMEOUT);
    loop {
        tokio::select! {
            biased;
            said = line.up.recv() => {
                let Some(said) = said else { return };
                heard = pg.sim.now();
                match said {
                    Up::Stream { branch, from } => sending = Some(Sending { branch, sent: from }),
                    Up::Position { flush, replay } => pg.heard(pid, flush, replay),
                    Up::Ping => drop(line.down.send(Down::KeepAlive)),
                }
            }
            _ = changed.changed() => {}
            () = &mut alarm => {
                if pg.sim.now() >= heard + TIMEOUT {
                    return;
                }
                alarm = pg.sim.sleep_until(heard + TIMEOUT);
            }
        }
        let Some(stage) = &mut sending else { continue };
        match pg.send_more(stage, pid) {
            Next::Wal { upto, more } => {
                stage.sent = upto;
                if line.down.send(Down::Wal { branch: stage.branch, upto }).is_err() {
                    return;
                }
                if more {
                    pg.tell_later();
                }
            }
            Next::End => {
                sending = None;
                let _ = line.down.send(Down::EndOfTimeline);
            }
            Next::Nothing => {}
            Next::Diverged => sending = None,
        }
    }
}

enum Next {
    Wal {
        upto: Lsn,
        /// Not all that there is fits into one message.
        more: bool,
    },
    End,
    Nothing,
    Diverged,
}

impl Pg {
    /// The rest comes soon, or once a disk or a processor has time for it.
    fn tell_later(&self) {
        let of = self.clone();
        let slow = self.sim.with(|w| w.profile.slow_senders);
        let pause = self.sim.chance(Stream::Postgres, |rng| match rng.percent(slow) {
            true => rng.between(1_000, 800_000),
            false => 50,
        });
        let at = self.sim.now() + pause;
        self.sim.at(at, move |_| of.tell());
    }

    /// Returns what lies beyond what was sent on a branch.
    fn send_more(&self, stage: &Sending, pid: i32) -> Next {
        let cut = self.sim.chance(Stream::Postgres, |r| r.percent(25).then(|| r.next()));
        self.with_world(|w| {
            let Some(at) = w.flushed(self.member) else { return Next::Nothing };
            let on = w.server(self.member).map(|s| (s.phase, s.branch));
            let own = match on {
                Some((Phase::Primary, branch)) => At { branch, lsn: at.lsn },
                _ => at,
            };
            let Some(limit) = w.wal.limit(own, stage.branch) else { return Next::Diverged };
            let upto = match cut {
                _ if stage.sent >= limit => stage.sent,
                Some(cut) => Lsn(stage.sent.0 + 1 + cut % (limit.0 - stage.sent.0)),
                None => limit,
            };
            let (ends, more) = (own.branch != stage.branch, upto < limit);
            if !ends
                && !more
                && let Some(sender) = w.server(self.member).and_then(|s| s.senders.get_mut(&pid))
            {
                sender.streaming = true;
            }
            match upto > stage.sent {
                true => Next::Wal { upto, more: more || ends },
                false if ends => Next::End,
                false => Next::Nothing,
            }
        })
        .unwrap_or(Next::Nothing)
    }

    /// A receiver told its positions: commits may be released, by this walsender's own rule.
    fn heard(&self, pid: i32, flush: Lsn, replay: Lsn) {
        self.with(|s| {
            let sender = s.senders.get_mut(&pid)?;
            sender.flush = Some(flush);
            sender.replay = Some(replay);
            s.release(pid)
        });
    }
}

impl Server {
    /// `SyncRepReleaseWaiters` of PostgreSQL 15, as the walsender `pid` does it.
    fn release(&mut self, pid: i32) -> Option<()> {
        let own = self.senders.get(&pid).filter(|s| s.streaming && s.priority > 0)?;
        let rule = own.rule.clone();
        let mut candidates: Vec<(i32, i32, Lsn)> = self
            .senders
            .iter()
            .filter(|(_, s)| s.streaming && s.priority > 0)
            .filter_map(|(pid, s)| Some((s.priority, *pid, s.flush?)))
            .collect();
        if candidates.len() < rule.k || rule.k == 0 {
            return None;
        }
        let synced = if rule.first {
            candidates.sort();
            candidates.truncate(rule.k);
            candidates.iter().any(|c| c.1 == pid).then_some(())?;
            candidates.iter().map(|c| c.2).min()?
        } else {
            candidates.sort_by_key(|c| std::cmp::Reverse(c.2));
            candidates[rule.k - 1].2
        };
        if synced <= self.released {
            return None;
        }
        self.released = synced;
        let (free, wait) =
            std::mem::take(&mut self.waiters).into_iter().partition(|w| w.lsn <= synced);
        self.waiters = wait;
        let free: Vec<super::Waiter> = free;
        for waiter in free {
            let _ = waiter.release.send(true);
        }
        Some(())
    }
}

/// Returns where a stream begins that is to go on from `lsn`.
pub fn begin(lsn: Lsn) -> Lsn {
    segment_start(lsn)
}

/// The walsenders of a member, for the keeper's probe.
pub fn shown(sim: &Sim, member: usize) -> Vec<keeper::postgres::probe::Walsender> {
    sim.with(|w| {
        let Some(server) = w.server(member) else { return Vec::new() };
        let show = |(pid, s): (&i32, &Sender)| keeper::postgres::probe::Walsender {
            pid: *pid,
            name: s.name.clone(),
            state: if s.streaming { "streaming" } else { "catchup" }.to_owned(),
            flush_lsn: s.flush,
            replay_lsn: s.replay,
            sync_priority: s.priority,
            sync_state: if s.priority > 0 { "quorum" } else { "async" }.to_owned(),
        };
        server.senders.iter().map(show).collect()
    })
}
