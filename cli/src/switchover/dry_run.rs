//! `switchover --dry-run`: whether one could work now, by the leader's own code. Writes nothing.

use std::collections::BTreeMap;
use std::fmt;

use anyhow::{Context, bail, ensure};
use proto::request::Terms;
use proto::status::MemberStatus;
use proto::{ClusterName, MemberName};
use sentinel::decide::preview::{Preview, preview};
use sentinel::observe::{Stored, World, observe};
use serde::Serialize;
use store::{Store, clock};

use super::checks::{Check, checks};
use crate::status;
use crate::table::{Table, bytes};
use crate::target::Target;

/// The answer. Field names are scripted against: they stay.
#[derive(Debug, Serialize)]
pub struct DryRun {
    cluster: ClusterName,
    pub possible: bool,
    from: Option<MemberName>,
    /// Who would take over.
    to: Option<MemberName>,
    /// Why it cannot work.
    reason: Option<String>,
    /// Proxies that would keep their clients waiting; all others cut them.
    holding: Vec<String>,
    /// PgBouncers whose clients are cut because they do not do what they are told, and why.
    cut: Vec<String>,
    members: Vec<Candidate>,
    /// What it needs beside the leader's consent; empty where there is no target.
    checks: Vec<Check>,
    /// What the primary's keeper complains of.
    problems: Vec<String>,
}

#[derive(Debug, Serialize)]
struct Candidate {
    member: MemberName,
    able: bool,
    reason: Option<String>,
    zone: Option<String>,
    /// What it has left to receive and to replay; null where the primary's keeper did not say.
    left_bytes: Option<u64>,
    problems: Vec<String>,
}

/// Returns what a switchover with `terms` would come to.
pub async fn ask(store: &dyn Store, target: &Target, terms: &Terms) -> anyhow::Result<DryRun> {
    let keys = target.keys();
    let snapshot = store.read(keys.prefix()).await.context("read the cluster's documents")?;
    let world = observe(&snapshot, &keys, "dry run");
    let (spec, state) = match (&world.spec, &world.state) {
        (Stored::Known(spec), Stored::Known(state)) => (spec, state),
        (Stored::Newer(problem) | Stored::Malformed(problem), _)
        | (_, Stored::Newer(problem) | Stored::Malformed(problem)) => bail!("{problem}"),
        (Stored::Absent, _) | (_, Stored::Absent) => {
            bail!("cluster {} is not known to this etcd, or not founded yet", target.cluster)
        }
    };
    ensure!(
        snapshot.entries.contains_key(&keys.leader()),
        "no sentinel leads cluster {}, so nobody would begin it: start one with `pgdeputy sentinel`",
        target.cluster
    );
    let primary = state.primary.clone();
    let answers = status::ask::all(&world.seen.members).await;
    let left = primary.as_ref().and_then(|p| answers.get(p)).map(left).unwrap_or_default();
    let now = (clock::now(), clock::wall());
    let preview = preview((spec, state), &world.seen, terms, &left, now);
    let all: Vec<MemberName> = state.members.keys().cloned().collect();
    let checks = match (&primary, &preview.target) {
        (Some(from), Ok(to)) => checks((from, to), &all, left.get(to).copied(), &answers),
        (Some(_) | None, _) => Vec::new(),
    };
    Ok(dry_run(target.cluster.clone(), primary, (preview, checks), &world))
}

/// Returns what each standby has left to receive and to replay, by the primary's walsenders.
fn left(status: &MemberStatus) -> BTreeMap<MemberName, u64> {
    let Some(positions) = status.positions else { return BTreeMap::new() };
    let standbys = status.standbys.iter();
    standbys
        .filter_map(|s| {
            Some((s.member.clone()?, positions.flush_lsn.bytes_ahead_of(s.replay_lsn?)))
        })
        .collect()
}

fn dry_run(
    cluster: ClusterName,
    from: Option<MemberName>,
    (preview, checks): (Preview, Vec<Check>),
    world: &World,
) -> DryRun {
    let report = |member: &MemberName| world.seen.members.get(member);
    let problems = from.as_ref().and_then(report).map(|r| r.problems.iter().cloned().collect());
    let members = preview.members.into_iter().map(|(member, candidate)| Candidate {
        able: candidate.cannot.is_none(),
        reason: candidate.cannot,
        zone: report(&member).and_then(|r| r.zone.clone()),
        left_bytes: candidate.left,
        problems: candidate.problems.into_iter().collect(),
        member,
    });
    DryRun {
        cluster,
        possible: preview.target.is_ok(),
        from,
        to: preview.target.as_ref().ok().cloned(),
        reason: preview.target.err(),
        holding: preview.holders,
        cut: preview.cut,
        members: members.collect(),
        checks,
        problems: problems.unwrap_or_default(),
    }
}

impl fmt::Display for DryRun {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = |m: &Option<MemberName>| m.as_ref().map_or("?".into(), ToString::to_string);
        match &self.reason {
            None => writeln!(
                f,
                "cluster {}: a switchover from {} to {} could begin now",
                self.cluster,
                name(&self.from),
                name(&self.to)
            )?,
            Some(reason) => {
                writeln!(f, "cluster {}: no switchover could begin now: {reason}", self.cluster)?;
            }
        }
        match self.holding.is_empty() {
            true => writeln!(f, "no proxy holds clients: sessions to the old primary are cut")?,
            false => writeln!(f, "clients are held by {}", self.holding.join(", "))?,
        }
        for check in &self.checks {
            writeln!(f, "{check}")?;
        }
        for cut in &self.cut {
            writeln!(f, "{cut}")?;
        }
        for problem in &self.problems {
            writeln!(f, "problem of {}: {problem}", name(&self.from))?;
        }
        let mut table = Table::new(&["member", "zone", "left", "can take over"]);
        for member in &self.members {
            table.row([
                member.member.to_string(),
                member.zone.clone().unwrap_or_else(|| "-".into()),
                member.left_bytes.map_or("-".into(), bytes),
                member.reason.clone().unwrap_or_else(|| "yes".into()),
            ]);
        }
        write!(f, "{table}")?;
        for member in &self.members {
            for problem in &member.problems {
                writeln!(f, "problem of {}: {problem}", member.member)?;
            }
        }
        Ok(())
    }
}
