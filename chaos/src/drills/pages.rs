//! What rows do not show: whether every page of every member bears the right checksum, and whether all members know the same
//! history of timelines.
//!
//! The one rule: it comes last, because it stops all members.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, ensure};
use proto::MemberName;
use store::clock;
use tokio::process::Command;

use crate::checker::{Finding, Kind};
use crate::lab::Lab;

/// A stop in order takes a second; this is for a machine under load.
const STOPPED: Duration = Duration::from_secs(60);

/// The history files of one member with their content, by name.
type Histories = BTreeMap<String, String>;

/// Compares the members' histories, stops all of them and checks all their pages.
pub async fn compare(lab: &mut Lab) -> anyhow::Result<Vec<Finding>> {
    let (mut histories, mut servers) = (BTreeMap::new(), BTreeMap::new());
    for member in lab.members() {
        histories.insert(member.clone(), histories_of(lab, &member).await?);
        servers.insert(member.clone(), programs_of(lab, &member)?);
    }
    let mut findings = differences(&histories);
    stop_all(lab).await?;
    for (member, programs) in servers {
        let mut check = Command::new(programs.join("pg_checksums"));
        let check = check.arg("--check").arg("-D").arg(lab.layout().data(&member));
        let checked = check.output().await.context("start pg_checksums")?;
        if !checked.status.success() {
            let said = String::from_utf8_lossy(&checked.stderr).into_owned();
            findings.push(Finding::new(Kind::Diverged, format!("pages of {member}: {said}")));
        }
    }
    Ok(findings)
}

async fn histories_of(lab: &Lab, member: &MemberName) -> anyhow::Result<Histories> {
    // An empty one reserves the number of a timeline that never was.
    const READ: &str = "SELECT name, pg_read_file('pg_wal/' || name) FROM pg_ls_waldir() \
         WHERE name LIKE '%.history' AND size > 0";
    let session = lab.superuser(member).await?;
    let rows = session.client().query(READ, &[]).await?;
    rows.iter().map(|row| Ok((row.try_get(0)?, row.try_get(1)?))).collect()
}

/// The directory of the programs that serve it now.
fn programs_of(lab: &Lab, member: &MemberName) -> anyhow::Result<PathBuf> {
    let program = std::fs::read_link(format!("/proc/{}/exe", lab.postmaster(member)?))?;
    Ok(program.parent().context("a program lies in a directory")?.to_owned())
}

/// All must end with the same timeline, and tell of each alike.
fn differences(histories: &BTreeMap<MemberName, Histories>) -> Vec<Finding> {
    let mut findings = Vec::new();
    let all: Histories =
        histories.values().flatten().map(|(k, v)| (k.clone(), v.clone())).collect();
    let newest = all.keys().next_back();
    for (member, own) in histories {
        if own.keys().next_back() != newest {
            let text = format!("{member} does not know of {newest:?}");
            findings.push(Finding::new(Kind::Diverged, text));
        }
        for (name, content) in own.iter().filter(|(name, content)| all[*name] != **content) {
            let text = format!("{name} of {member} differs: {content:?} and {:?}", all[name]);
            findings.push(Finding::new(Kind::Diverged, text));
        }
    }
    findings
}

/// Standbys first, so that nobody takes over.
async fn stop_all(lab: &mut Lab) -> anyhow::Result<()> {
    let primary = lab.cluster().await?.service().context("no primary serves at the end")?.1;
    let standbys = lab.members().into_iter().filter(|name| *name != primary);
    for member in standbys.chain([primary.clone()]).collect::<Vec<_>>() {
        // A fencer may have started it anew.
        lab.keeper_back(&member).await?;
        let struck = lab.stop_member(&member)?;
        while !lab.processes_of(&member).is_empty() {
            ensure!(clock::now() < struck.at + STOPPED, "{member} does not stop");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(files: &[(&str, &str)]) -> Histories {
        files.iter().map(|(name, content)| ((*name).into(), (*content).into())).collect()
    }

    fn found(a: &[(&str, &str)], b: &[(&str, &str)]) -> usize {
        let names = ["a", "b"].map(|name| name.parse().unwrap());
        differences(&names.into_iter().zip([member(a), member(b)]).collect()).len()
    }

    #[test]
    fn a_history_that_differs_or_ends_earlier_is_found_and_a_shorter_memory_is_none() {
        let all = [("00000002.history", "1 0/3"), ("00000003.history", "2 0/5")];
        assert_eq!(found(&all, &all), 0);
        assert_eq!(found(&[], &[]), 0);
        // A fresh copy brings the newest alone.
        assert_eq!(found(&all, &all[1..]), 0);
        assert_eq!(found(&all, &all[..1]), 1);
        assert_eq!(found(&all, &[("00000003.history", "2 0/4")]), 1);
    }
}
