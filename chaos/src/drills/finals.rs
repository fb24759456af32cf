//! What each member holds at the end of a run, read from each directly.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::Context;
use proto::MemberName;

use crate::checker::Final;
use crate::lab::Lab;
use crate::session::Session;

/// For a few thousand rows in a table; this is for a machine under load.
const DEADLINE: Duration = Duration::from_secs(30);

/// Reads all members. Their standbys have replayed everything before, and `ids` were read then.
pub async fn read(
    lab: &Lab,
    ids: &BTreeMap<MemberName, BTreeSet<i64>>,
) -> anyhow::Result<BTreeMap<MemberName, Final>> {
    let mut all = BTreeMap::new();
    for (member, ids) in ids {
        let held = tokio::time::timeout(DEADLINE, one(lab, member)).await;
        let held = held.context("no answer in time").flatten();
        let held = held.with_context(|| format!("read what {member} holds"))?;
        all.insert(member.clone(), Final { ids: ids.clone(), ..held });
    }
    Ok(all)
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
