//! What a drill is judged by: one reading of etcd, and what the keepers say of their lag.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::{Context, bail};
use proto::canary::{CanaryHolder, CanaryRecord};
use proto::document::decode;
use proto::drill::{
    Drill, DrillCoverage, DrillRecord, DrillTarget, Drilled, Hits, LiveFault, Undertaking, Verdict,
};
use proto::drill_lock::DrillLock;
use proto::history::{HistoryKind, HistoryRecord};
use proto::schedule::Scheduled;
use proto::topology::Role;
use proto::{ClusterSpec, ClusterState, MemberName, Moment, WallTime};
use sentinel::decide::preview::missing_redundancy;
use sentinel::observe::{Observations, Stored, observe};
use store::{Store, StoreError, clock};

use super::coverage;
use super::crew::Crew;
use crate::read::Documents;
use crate::status;
use crate::target::Target;

/// An election of etcd takes seconds.
pub const PATIENCE: Duration = Duration::from_secs(30);

pub const ASK_AGAIN: Duration = Duration::from_millis(500);

/// One look.
pub struct Seen {
    pub spec: ClusterSpec,
    pub state: ClusterState,
    pub observed: Observations,
    pub leads: bool,
    /// What is asked of a keeper.
    pub drill: Option<Drill>,
    /// Whoever may break something now: it lives.
    pub lock: Option<DrillLock>,
    /// Past ones, oldest first.
    pub records: Vec<DrillRecord>,
    pub answers: BTreeMap<DrillTarget, Drilled>,
    /// What is kept of all drills of a kind.
    pub coverage: BTreeMap<Undertaking, DrillCoverage>,
    /// What the standing canary has seen, if there ever was one, and who writes it now.
    pub canary: Option<CanaryRecord>,
    pub canary_holder: Option<CanaryHolder>,
    pub crew: Crew,
    pub history: Vec<HistoryRecord>,
    pub scheduled: Vec<Scheduled>,
    /// For how long the oldest WAL that a standby has not replayed has been known to it.
    pub lag: BTreeMap<MemberName, Duration>,
    pub now: WallTime,
}

impl Seen {
    /// Looks at etcd alone.
    pub async fn look(store: &dyn Store, target: &Target) -> anyhow::Result<Self> {
        let keys = target.keys();
        let snapshot = store.read(keys.prefix()).await.context("read the cluster's documents")?;
        let world = observe(&snapshot, &keys, "drill");
        let (spec, state) = match (world.spec, world.state) {
            (Stored::Known(spec), Stored::Known(state)) => (spec, state),
            (Stored::Newer(problem) | Stored::Malformed(problem), _)
            | (_, Stored::Newer(problem) | Stored::Malformed(problem)) => bail!("{problem}"),
            (Stored::Absent, _) | (_, Stored::Absent) => {
                bail!("cluster {} is not known to this etcd, or not founded yet", target.cluster)
            }
        };
        let documents = Documents::of(&snapshot, &keys)?;
        let (mut records, mut answers) = (Vec::new(), BTreeMap::new());
        for (key, entry) in &snapshot.entries {
            match keys.strip(key) {
                Some(name) if name.starts_with("drills/") => {
                    records.extend(decode::<DrillRecord>(&entry.value));
                }
                Some(name) => {
                    let Some(target) = name.strip_prefix("drill/answers/") else { continue };
                    let target = DrillTarget::try_from(target.to_owned());
                    if let (Ok(target), Ok(said)) = (target, decode(&entry.value)) {
                        answers.insert(target, said);
                    }
                }
                None => {}
            }
        }
        let found = |key: String| snapshot.entries.get(&key).map(|entry| &entry.value);
        let drill = found(keys.drill()).map(|text| decode::<Drill>(text)).transpose()?;
        let lock = found(keys.drill_lock()).map(|text| decode::<DrillLock>(text)).transpose()?;
        let turns = keys.all_drill_turns();
        let turns: BTreeSet<&str> =
            snapshot.entries.keys().filter_map(|key| key.strip_prefix(&turns)).collect();
        for record in &mut records {
            let is_run = lock.as_ref().is_some_and(|lock| lock.id == record.id);
            settle(record, is_run || turns.contains(record.id.0.as_str()));
        }
        let coverage = coverage::known(&snapshot, &keys.all_drill_coverage(), &records);
        Ok(Self {
            coverage,
            canary: found(keys.canary()).and_then(|text| decode(text).ok()),
            canary_holder: found(keys.canary_holder()).and_then(|text| decode(text).ok()),
            spec,
            state,
            observed: world.seen,
            leads: documents.leader.is_some(),
            crew: Crew::of(&snapshot, &keys, documents.leader.map(|leader| leader.id)),
            drill,
            lock,
            records,
            answers,
            history: documents.history,
            scheduled: documents.scheduled,
            lag: BTreeMap::new(),
            now: clock::wall(),
        })
    }

    /// The same, and where etcd does not answer, such as while it elects a leader, again and again for a while.
    pub async fn look_patiently(store: &dyn Store, target: &Target) -> anyhow::Result<Self> {
        let until = clock::now() + PATIENCE;
        loop {
            match Self::look(store, target).await {
                Err(error) if error.is::<StoreError>() && clock::now() < until => {
                    tracing::warn!(error = format!("{error:#}"), "etcd does not answer");
                    tokio::time::sleep(ASK_AGAIN).await;
                }
                answer => return answer,
            }
        }
    }

    /// The same as `look`, and asks the keepers for their lag.
    pub async fn ask(store: &dyn Store, target: &Target) -> anyhow::Result<Self> {
        let mut seen = Self::look(store, target).await?;
        let answers = status::ask::all(&seen.observed.members).await;
        let lag = |s: &proto::status::MemberStatus| s.lag.map(|lag| Duration::from_millis(lag.ms));
        seen.lag = answers.into_iter().filter_map(|(m, s)| Some((m, lag(&s)?))).collect();
        Ok(seen)
    }

    /// Returns what the cluster lacks to be fully redundant, by the leader's own code.
    pub fn lacks(&self) -> Option<String> {
        missing_redundancy(&self.spec, &self.state, &self.observed)
    }

    /// Returns the members that have this role.
    pub fn with_role(&self, role: Role) -> Vec<MemberName> {
        let is_primary = |m: &&MemberName| self.state.primary.as_ref() == Some(*m);
        let members = self.state.members.keys();
        members.filter(|m| is_primary(m) == (role == Role::Primary)).cloned().collect()
    }

    /// Returns whom `fault` may hit.
    pub fn targets(&self, fault: LiveFault) -> Vec<DrillTarget> {
        let members = |role| self.with_role(role).into_iter().map(DrillTarget::Member).collect();
        match fault.hits() {
            Hits::Primary => members(Role::Primary),
            Hits::Standby => members(Role::Standby),
            Hits::Leader => self.crew.leader.iter().cloned().map(DrillTarget::Sentinel).collect(),
            Hits::Proxy => self.crew.proxies.keys().cloned().map(DrillTarget::Proxy).collect(),
        }
    }

    /// Returns the drills for which there is a target.
    pub fn that_hit_somebody(&self) -> Vec<LiveFault> {
        LiveFault::ALL.into_iter().filter(|fault| !self.targets(*fault).is_empty()).collect()
    }

    /// Returns the last change of primary that nobody had asked for, and when it began.
    pub fn last_incident(&self) -> Option<(&HistoryRecord, WallTime)> {
        let unasked =
            |r: &&HistoryRecord| matches!(r.kind, HistoryKind::Failover | HistoryKind::Restart);
        let began = |r: &HistoryRecord| r.phases.first().map(|phase| phase.start);
        let in_a_drill = |at: WallTime| {
            self.records.iter().any(|d| d.begun <= at && d.ended.is_none_or(|ended| at <= ended))
        };
        let all = self.history.iter().filter(unasked).filter_map(|r| Some((r, began(r)?)));
        all.filter(|(_, at)| !in_a_drill(*at)).max_by_key(|(_, at)| *at)
    }
}

/// Says in a record that nobody goes on with what became of its drill.
fn settle(record: &mut DrillRecord, has_runner: bool) {
    match record.verdict {
        Verdict::Running if !has_runner => record.verdict = Verdict::Abandoned,
        Verdict::Taken if !has_runner => {
            record.verdict = Verdict::NotBegun;
            record.reasons.push("its runner died, or lost etcd, before it began".into());
        }
        _ => {}
    }
}

/// So many looks in a row must find nothing wrong: reports of before may still stand.
const CALM_LOOKS: u32 = 5;

/// Looks every so often until `wrong` finds nothing any more, and returns the last look. Fails where `look` does, and at
/// `deadline` with `what` and what is wrong then.
pub async fn until_calm(
    look: impl AsyncFn() -> anyhow::Result<Seen>,
    wrong: impl Fn(&Seen) -> Option<String>,
    (every, deadline): (Duration, Moment),
    what: &str,
) -> anyhow::Result<Seen> {
    let mut calm = 0;
    loop {
        let seen = look().await?;
        let wrong = wrong(&seen);
        calm = if wrong.is_none() { calm + 1 } else { 0 };
        if calm >= CALM_LOOKS {
            return Ok(seen);
        }
        if clock::now() >= deadline {
            bail!("{what}: {}", wrong.unwrap_or_else(|| "nothing for a moment".into()));
        }
        tokio::time::sleep(every).await;
    }
}
