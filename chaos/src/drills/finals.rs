//! What each member holds at the end of a run, read from each directly.
//!
//! The one rule: a run that got stuck is judged too, by those who can be read; who is left out is a finding.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Context;
use proto::{MemberName, Moment};

use super::pages;
use crate::checker::{Final, Finding, Kind};
use crate::evidence::Watchers;
use crate::lab::Lab;
use crate::load::Told;
use crate::session::Session;
use crate::verdict::{Evidence, Holding};

/// For a few thousand rows in a table; this is for a machine under load.
const DEADLINE: Duration = Duration::from_secs(30);

/// What a run is judged by, besides what its clients have noted.
pub struct Ending {
    pub evidence: Evidence,
    /// What the writers through HAProxy were told.
    pub told: Told,
    pub members: BTreeMap<MemberName, Final>,
    pub findings: Vec<Finding>,
}

/// Reads all members of a cluster that is whole, and compares their files.
pub async fn of_all(
    lab: &mut Lab,
    watchers: Watchers,
    steady: (Moment, Moment),
) -> anyhow::Result<Ending> {
    let (evidence, told) = watchers.finish(lab, steady).await.context("read all members")?;
    let mut members = BTreeMap::new();
    for (member, held) in &evidence.holdings {
        members.insert(member.clone(), read(lab, member, held).await?);
    }
    let findings = pages::compare(lab).await.context("compare the members' files")?;
    Ok(Ending { evidence, told, members, findings })
}

/// Reads who can be read. Files are not compared: for that all members would have to stop in order.
pub async fn of_who_is_there(lab: &Lab, watchers: Watchers, steady: (Moment, Moment)) -> Ending {
    let (evidence, told, mut left_out) = watchers.finish_with_who_is_there(lab, steady).await;
    let mut members = BTreeMap::new();
    for (member, held) in &evidence.holdings {
        match read(lab, member, held).await {
            Ok(read) => drop(members.insert(member.clone(), read)),
            Err(error) => left_out.push(format!("{error:#}")),
        }
    }
    let findings = left_out.into_iter().map(|why| Finding::new(Kind::Inconclusive, why)).collect();
    Ending { evidence, told, members, findings }
}

/// Reads `member`, whose standby has replayed all before, when what it holds of the load was read.
async fn read(lab: &Lab, member: &MemberName, held: &Holding) -> anyhow::Result<Final> {
    let read = tokio::time::timeout(DEADLINE, one(lab, member)).await;
    let read = read.context("no answer in time").flatten();
    let read = read.with_context(|| format!("read what {member} holds"))?;
    Ok(Final { ids: held.commits.clone(), ..read })
}

async fn one(lab: &Lab, member: &MemberName) -> anyhow::Result<Final> {
    let session = Session::open(&lab.application_at(member)?, DEADLINE).await?;
    let client = session.client();
    let mut held = Final::default();
    for row in client.query("SELECT stream, number FROM stream ORDER BY 1, 2", &[]).await? {
        held.streams.entry(row.try_get(0)?).or_default().push(row.try_get(1)?);
    }
    for row in client.query("SELECT key, items FROM list", &[]).await? {
        held.lists.insert(row.try_get(0)?, row.try_get(1)?);
    }
    let total = client.query_one("SELECT sum(money)::bigint FROM account", &[]).await?;
    held.total = total.try_get(0)?;
    Ok(held)
}
