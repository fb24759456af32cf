//! The tasks around the keeper's loop, as the product runs them: renewing, watching, announcing, asking, signing, the
//! echo.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use crate::sim::watch;
use keeper::action::ActionKind;
use keeper::cluster::{Read, Taken, apply_by, judged, take_read, view_of};
use keeper::facts::{ClusterView, Process};
use keeper::postgres::probe::{Receiver, SqlFacts, Walsender};
use keeper::report::kind;
use keeper::sign::whose_signs_count;
use keeper::worker::{LeaseView, serve_until};
use proto::document::{decode, encode};
use proto::{Epoch, MemberReport, Moment, Phase, Timeline};
use store::{Guard, LeaseId, Operation, StoreError, Txn, TxnOutcome, WatchEvent};

use super::probe::{probe, probe_calmly};
use super::prove::wait_for_voters;
use super::worker::{Shared, Worker};
use crate::sim::calm;
use crate::sim::executor::Node;
use crate::sim::net::Host;
use crate::sim::world::World;

/// Between two questions to the primary's keeper.
const ECHO_EVERY: Duration = Duration::from_millis(100);
/// Renewals and signs per `lease_ttl`.
const PER_LEASE: u32 = 5;

/// A lease as the keeper believes it.
#[derive(Clone, Copy)]
struct Own {
    id: LeaseId,
    ttl: Duration,
    expires: Moment,
}

/// What the renewing task sends to.
pub struct Renewing {
    pub host: Host,
    pub member: usize,
    pub view: watch::Sender<Arc<ClusterView>>,
    pub lease: watch::Sender<Option<LeaseView>>,
    pub renewed: watch::Sender<Option<LeaseView>>,
}

/// Renews for ever, beginning with a kept lease.
pub async fn renew(renewing: Renewing, kept: Option<LeaseId>) {
    let host = renewing.host.clone();
    let ttl =
        || renewing.view.borrow().spec.as_ref().map_or(Duration::from_secs(4), |s| s.lease_ttl);
    let mut own = kept.map(|id| Own { id, ttl: ttl(), expires: Moment::default() });
    loop {
        let begun = host.now();
        if let Err(StoreError::LeaseExpired) = renew_once(&renewing, &mut own, ttl()).await {
            continue;
        }
        let pause = (ttl() / PER_LEASE).saturating_sub(host.now().since(begun));
        host.sleep(pause.max(Duration::from_millis(50))).await;
    }
}

async fn renew_once(
    renewing: &Renewing,
    own: &mut Option<Own>,
    ttl: Duration,
) -> Result<(), StoreError> {
    let (host, node) = (&renewing.host, renewing.host.node);
    let sim = &host.sim;
    if own.is_none() {
        let sent = host.now();
        let (id, granted) = sim.etcd_grant(node, ttl).await?;
        let ttl = ttl.min(granted);
        *own = Some(Own { id, ttl, expires: sent + ttl });
    }
    let Some(lease) = own else { return Ok(()) };
    let keys = sim.with(|w| w.keys.clone());
    let (key, id) = (keys.state(), lease.id);
    let sent = host.now();
    let (sent_at, acted_on) = (sim.now(), sim.acted_on(renewing.member));
    let known = renewing.view.borrow().state.as_ref().map(|s| s.number);
    let (kept, read) = tokio::join!(sim.etcd_keep_alive(node, id), sim.etcd_read(node, &key));
    if let Err(StoreError::LeaseExpired) = kept {
        *own = None;
        renewing.lease.send_replace(None);
        return Err(StoreError::LeaseExpired);
    }
    kept?;
    let counted = if sim.mutant("renewal-counts-from-receipt") { host.now() } else { sent };
    lease.expires = lease.expires.max(counted + lease.ttl);
    let view = LeaseView { id, expires: lease.expires };
    renewing.lease.send_if_modified(|known| known.replace(view) != Some(view));
    if sim.mutant("keepalive-alone-renews") {
        renewing.renewed.send_replace(Some(view));
        return Ok(());
    }
    let snapshot = read?;
    let entry = snapshot.entries.get(&key);
    let state = entry.and_then(|e| sim.with(|w| w.etcd.decoded(e)));
    let named = state.clone();
    let revision = entry.map_or(snapshot.revision, |e| e.mod_revision);
    let etcd_cluster_id = snapshot.cluster_id.clone();
    let read = Read { state, revision, etcd_cluster_id, known };
    let mut taken = Taken::Known;
    renewing.view.send_if_modified(|known| {
        taken = take_read(known, &read);
        taken == Taken::New
    });
    // A store that is not believed renews nothing: the voters' signs do.
    let believed = taken != Taken::Overtaken && renewing.view.borrow().frozen.is_none();
    if believed || sim.mutant("set-back-store-renews") {
        if let Some(state) = named {
            sim.oracle_renewed(renewing.member, &state, (sent_at, acted_on));
        }
        renewing.renewed.send_replace(Some(view));
    }
    Ok(())
}

/// Keeps the view up to date.
pub async fn watch_cluster(host: Host, view: watch::Sender<Arc<ClusterView>>) {
    loop {
        let _ = follow(&host, &view).await;
        host.sleep(Duration::from_millis(200)).await;
    }
}

async fn follow(host: &Host, view: &watch::Sender<Arc<ClusterView>>) -> Result<(), StoreError> {
    let sim = &host.sim;
    let keys = sim.with(|w| w.keys.clone());
    let mut again = false;
    let revision = loop {
        let snapshot = sim.etcd_read(host.node, keys.prefix()).await?;
        let fresh = Arc::new(view_of(&keys, &snapshot));
        let mut taken = false;
        view.send_if_modified(|known| {
            taken = again || known.state_revision <= snapshot.revision;
            if taken {
                *known = Arc::new(judged(known, &fresh));
            }
            taken
        });
        if taken {
            break snapshot.revision;
        }
        again = true;
    };
    let mut events = sim.etcd_watch(host.node, keys.prefix(), revision + 1).await?;
    while let Some(batch) = events.recv().await {
        view.send_modify(|known| {
            let next = Arc::make_mut(known);
            for event in &batch {
                let entry = match event {
                    WatchEvent::Put { entry, .. } => Some(entry),
                    WatchEvent::Delete { .. } => None,
                };
                sim.with(|w| apply_by(&mut w.read, next, &keys, (event.key(), entry)));
            }
        });
    }
    Ok(())
}

/// Keeps the member's copy of what was agreed; a report that has lapsed stays in it.
pub async fn keep_copy(host: Host, member: usize, mut view: watch::Receiver<Arc<ClusterView>>) {
    loop {
        let seen = view.borrow_and_update().clone();
        if !seen.is_copy() && seen.state.is_some() {
            host.sim.with(|w| {
                let disk = &mut w.members[member].disk;
                let mut copy = (*seen).clone();
                copy.state_revision = 0;
                copy.primary_key = None;
                for (name, report) in disk.copy.take().into_iter().flat_map(|c| c.reports) {
                    copy.reports.entry(name).or_insert(report);
                }
                disk.copy = Some(copy);
            });
        }
        if view.changed().await.is_err() {
            return;
        }
        host.sleep(Duration::from_millis(200)).await;
    }
}

/// Puts each new report, and the last one again under each new lease.
pub async fn announce(
    worker: Shared,
    mut report: watch::Receiver<Option<MemberReport>>,
    mut lease: watch::Receiver<Option<LeaseView>>,
) {
    let mut put: Option<(MemberReport, LeaseId)> = None;
    let mut last: Option<i64> = None;
    let mut view = worker.view.clone();
    let mut reads = view.borrow().reads;
    let mut due = true;
    loop {
        let reads_now = view.borrow_and_update().reads;
        let anew = std::mem::replace(&mut reads, reads_now) != reads_now;
        if anew && !worker.sim.mutant("restored-reports-stay") {
            (put, due) = (None, true);
        }
        let newest = if due { report.borrow_and_update().clone() } else { None };
        let held = *lease.borrow_and_update();
        if let (Some(newest), Some(held)) = (newest, held)
            && put.as_ref() != Some(&(newest.clone(), held.id))
        {
            match put_report(&worker, &newest, held.id, last.take()).await {
                Ok(revision) => {
                    last = Some(revision);
                    put = Some((newest, held.id));
                }
                Err(_) => {
                    put = None;
                    worker.host.sleep(Duration::from_millis(100)).await;
                    continue;
                }
            }
        }
        let changed = tokio::select! {
            biased;
            changed = report.changed() => changed.map(|()| true),
            changed = lease.changed() => changed.map(|()| true),
            changed = view.changed() => changed.map(|()| false),
        };
        due = match changed {
            Ok(due) => due,
            Err(_) => return,
        };
    }
}

async fn put_report(
    worker: &Worker,
    report: &MemberReport,
    lease: LeaseId,
    last: Option<i64>,
) -> anyhow::Result<i64> {
    let (sim, node) = (&worker.sim, worker.node());
    let key = worker.keys.member(&worker.name);
    let value = encode(report).into_bytes();
    let operation = Operation::Put { key: key.clone(), value, lease: Some(lease) };
    if let Some(revision) = last {
        let when = vec![Guard::ModRevision(key.clone(), revision)];
        let txn = Txn { when, then: vec![operation.clone()] };
        if let TxnOutcome::Committed { revision } = sim.etcd_commit(node, txn).await? {
            return Ok(revision);
        }
    }
    let snapshot = sim.etcd_read(node, &key).await?;
    let guard = match snapshot.entries.get(&key) {
        None => Guard::Absent(key),
        Some(entry) => {
            let holder: MemberReport = decode(&entry.value)?;
            anyhow::ensure!(holder.incarnation == report.incarnation, "another keeper's name");
            Guard::ModRevision(key, entry.mod_revision)
        }
    };
    match sim.etcd_commit(node, Txn { when: vec![guard], then: vec![operation] }).await? {
        TxnOutcome::Committed { revision } => Ok(revision),
        TxnOutcome::Conflict => anyhow::bail!("the report changed meanwhile"),
    }
}

/// So many times in a row an eager keeper hears nothing new before it asks less often in a run at some pace. The product, and a
/// run at none, asks on.
const EAGER: u32 = 30;

/// Asks PostgreSQL over and over.
pub async fn gather(
    worker: Shared,
    mut eager: watch::Receiver<bool>,
    facts: watch::Sender<Option<SqlFacts>>,
) {
    // When the last answer was asked for that woke the deciders.
    let mut told = Moment::default();
    let (mut in_vain, rests) = (0, worker.sim.with(|w| w.profile.pace.is_some()));
    loop {
        let asked_of = worker.local.borrow().process;
        let is_eager = *eager.borrow_and_update();
        let answer = match asked_of {
            Process::Running { .. } if is_eager => probe(&worker).await,
            Process::Running { .. } => probe_calmly(&worker).await,
            Process::None | Process::Exited { .. } => None,
        };
        if let Some(answer) = &answer {
            note_answer(&worker, asked_of, answer);
        }
        let asked = answer.as_ref().map(|answer| answer.asked);
        let mut tells = asked.is_some_and(|asked| is_due(&worker, told, asked, is_eager));
        facts.send_if_modified(|known| {
            let news = is_news(known.as_ref(), answer.as_ref(), is_eager);
            in_vain = if news { 0 } else { in_vain + 1 };
            tells |= news;
            *known = answer;
            tells
        });
        told = asked.filter(|_| tells).unwrap_or(told);
        let is_eager = *eager.borrow_and_update();
        let pause = Duration::from_millis(match is_eager {
            true if !rests || in_vain < EAGER => 10,
            true => 50,
            false => 100,
        });
        let calm = if is_eager { pause } else { calm::LOOK };
        tokio::select! {
            biased;
            () = worker.host.rest(pause, calm) => {}
            _ = eager.changed() => in_vain = 0,
        }
    }
}

/// Whether the deciders are to see an answer though it holds nothing new: it is the first after an action, or time has
/// gone by that they may count. The product decides on every answer, and comes to the same.
fn is_due(worker: &Worker, told: Moment, asked: Moment, eager: bool) -> bool {
    let settled = worker.settled.get();
    let after = Duration::from_millis(if eager { 100 } else { 1_000 });
    told < settled && asked >= settled || asked.since(told) >= after
}

/// Whether an answer holds anything new. Positions move all the time; in a calm time nothing is done because of that.
fn is_news(known: Option<&SqlFacts>, answer: Option<&SqlFacts>, eager: bool) -> bool {
    let (Some(known), Some(answer)) = (known, answer) else {
        return known.is_some() != answer.is_some();
    };
    let moves = eager
        && (known.flush_lsn != answer.flush_lsn
            || known.replay_lsn != answer.replay_lsn
            || known.walsenders != answer.walsenders);
    moves
        || known.in_recovery != answer.in_recovery
        || known.timeline != answer.timeline
        || known.standby_names != answer.standby_names
        || !known.receiver.iter().map(stream).eq(answer.receiver.iter().map(stream))
        || !known.walsenders.iter().map(place).eq(answer.walsenders.iter().map(place))
}

/// A receiver without the time for which it has heard nothing.
fn stream(receiver: &Receiver) -> (bool, Timeline, Option<&str>) {
    (receiver.streaming, receiver.timeline, receiver.name.as_deref())
}

/// A walsender without its positions.
fn place(sender: &Walsender) -> (i32, &str, &str, i32) {
    (sender.pid, &sender.name, &sender.state, sender.sync_priority)
}

fn note_answer(worker: &Worker, asked_of: Process, answer: &SqlFacts) {
    let mut local = worker.local.borrow_mut();
    if local.process != asked_of {
        return;
    }
    let first = local.last_answer.is_none();
    if first {
        local.failures.remove(&ActionKind::StartStandby);
        local.failures.remove(&ActionKind::StartPrimary);
    }
    local.last_answer = Some((kind(answer), answer.asked));
    let streaming = answer.receiver.as_ref().filter(|r| r.streaming);
    let timeline = streaming.map(|r| r.timeline);
    let moved = timeline.is_some() && local.streamed != timeline;
    if moved {
        local.streamed = timeline;
        local.begins = timeline.and_then(|tli| {
            let parent =
                worker.sim.with(|w| w.wal.branches().find(|(_, b)| b.tli == tli)?.1.parent);
            Some((tli, parent?.lsn))
        });
    }
    drop(local);
    if first || moved {
        worker.note_change();
    }
}

/// Gives signs while renewals fail.
pub async fn sign(
    worker: Shared,
    renewed: watch::Receiver<Option<LeaseView>>,
    signed: watch::Sender<Option<Moment>>,
) {
    loop {
        let spec = worker.spec();
        let interval = spec.lease_ttl / PER_LEASE;
        worker.host.sleep(interval).await;
        let last = renewed.borrow().map(|r| r.expires - spec.lease_ttl);
        let fails = last.is_none_or(|sent| worker.host.now().since(sent) > interval * 2);
        if !fails || worker.local.borrow().opened.is_none() || worker.sim.mutant("no-signs") {
            continue;
        }
        if let Some(Ok(at)) = worker.host.within(interval * 2, give(&worker)).await {
            signed.send_replace(Some(serve_until(at + spec.lease_ttl, &spec)));
        }
    }
}

/// Returns the moment of which the voters gave a sign.
pub async fn give(worker: &Worker) -> anyhow::Result<Moment> {
    let cfg = whose_signs_count(&worker.files(), worker.state()?)?;
    let at = worker.host.now();
    if cfg.k == 0 {
        worker.sim.oracle_sign(worker.member, None);
        return Ok(at);
    }
    let session = worker.admin()?;
    if worker.sim.mutant("sign-without-causality") {
        wait_for_voters(worker, &session, &cfg, proto::Lsn(0)).await?;
        return Ok(worker.host.now());
    }
    let begun = worker.sim.now();
    let lsn = session.own_record().await?;
    worker.sim.oracle_sign(worker.member, Some((begun, lsn, cfg.clone())));
    wait_for_voters(worker, &session, &cfg, lsn).await?;
    Ok(at)
}

/// Asks the primary's keeper ten times a second whether it is there.
pub async fn echo(worker: Shared, sql: watch::Receiver<Option<SqlFacts>>) {
    let heard = Rc::new(std::cell::Cell::new(0u32));
    let mut target: Option<(usize, Epoch)> = None;
    loop {
        let now_target = echo_target(&worker);
        if now_target != target {
            target = now_target;
            heard.set(0);
        }
        let silent_after = worker.silent_after();
        let enough = silent_after.as_millis().div_ceil(100) as u32;
        let silence = target
            .map(|(_, epoch)| epoch)
            .filter(|_| heard.get() >= enough && stream_is_silent(&sql, silent_after));
        if worker.local.borrow().silence != silence {
            worker.update(|local| local.silence = silence);
        }
        if let Some((primary, epoch)) = target {
            heard.set(heard.get().saturating_add(1));
            ask_for_echo(&worker, primary, epoch, &heard);
        }
        worker.host.rest(ECHO_EVERY, calm::LOOK).await;
    }
}

fn ask_for_echo(worker: &Worker, primary: usize, epoch: Epoch, heard: &Rc<std::cell::Cell<u32>>) {
    match worker.sim.echo_answers_at_once(worker.node(), primary, epoch) {
        Some(true) => heard.set(0),
        Some(false) => {}
        None => {
            let (sim, from, heard) = (worker.sim.clone(), worker.node(), heard.clone());
            worker.sim.on_the_wire(async move {
                let to = Node::Member(primary);
                if sim.datagram(from, to).await
                    && sim.echo_answers(primary, epoch).await
                    && sim.datagram(to, from).await
                {
                    heard.set(0);
                }
            });
        }
    }
}

fn echo_target(worker: &Worker) -> Option<(usize, Epoch)> {
    let view = worker.view.borrow();
    let state = view.state.as_ref().filter(|s| s.phase == Phase::Open && s.sealing.is_none())?;
    let primary = state.primary.as_ref().filter(|p| **p != worker.name)?;
    let report = view.reports.get(primary)?;
    let host = report.postgres_address.split(':').next()?;
    Some((World::member_at(host)?, state.epoch))
}

fn stream_is_silent(sql: &watch::Receiver<Option<SqlFacts>>, silent_after: Duration) -> bool {
    let sql = sql.borrow();
    let Some(sql) = sql.as_ref().filter(|s| s.in_recovery) else { return false };
    sql.receiver.as_ref().is_none_or(|r| !r.streaming || r.silent_for >= silent_after)
}
