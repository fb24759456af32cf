//! The member's copy of the agreed documents, with which a keeper starts while etcd is away. Beside the data directory.
//!
//! A copy may be older than what was agreed. `reconcile::alone` knows what may be done on its word; nothing acts on the
//! order in which copy and member files reach the disk.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use proto::right::Secrets;
use proto::{ClusterSpec, ClusterState, Document, MemberName, MemberReport};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::durable::{read_optional, write_atomic};
use crate::facts::ClusterView;

/// Changes come in bursts, and each copy costs a sync of the disk.
const SETTLES_IN: Duration = Duration::from_millis(200);

/// Stored as `<state dir>/cluster.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct KeptCluster {
    etcd_cluster_id: String,
    spec: Option<ClusterSpec>,
    state: Option<ClusterState>,
    /// The members' last words; a voter counts only with its own.
    reports: BTreeMap<MemberName, MemberReport>,
}

impl Document for KeptCluster {
    const KIND: &'static str = "cluster.json";
}

/// Returns the copy as a view. `None` where there is none that can be read: then etcd is needed.
pub fn load(state_dir: &Path) -> Option<ClusterView> {
    let path = cluster_file(state_dir);
    let read = || -> anyhow::Result<Option<KeptCluster>> {
        let text = read_optional(&path)?;
        Ok(text.map(|text| proto::document::decode(&text)).transpose()?)
    };
    let kept = read()
        .inspect_err(|error| tracing::warn!(%error, path = %path.display(), "read the copy"))
        .ok()??;
    kept.state.is_some().then_some(ClusterView {
        spec: kept.spec,
        state: kept.state,
        reports: kept.reports,
        etcd_cluster_id: kept.etcd_cluster_id,
        ..ClusterView::default()
    })
}

/// Keeps the copy up to date until `stop`.
pub async fn keep(
    state_dir: PathBuf,
    mut view: watch::Receiver<Arc<ClusterView>>,
    stop: CancellationToken,
) {
    let mut written: Option<KeptCluster> = None;
    loop {
        let seen = view.borrow_and_update().clone();
        if !seen.is_copy() && !seen.newer_format && seen.state.is_some() {
            let next = copy_of(&seen, written.as_ref());
            if written.as_ref() != Some(&next) {
                match write(&cluster_file(&state_dir), &next).await {
                    Ok(()) => written = Some(next),
                    Err(error) => {
                        tracing::warn!(error = format!("{error:#}"), "keep a copy of the state");
                    }
                }
            }
        }
        tokio::select! {
            changed = view.changed() => if changed.is_err() { return },
            () = stop.cancelled() => return,
        }
        tokio::time::sleep(SETTLES_IN).await;
    }
}

/// A member whose lease has lapsed is still known by its last word, as long as it is one.
fn copy_of(view: &ClusterView, before: Option<&KeptCluster>) -> KeptCluster {
    let mut reports = before.map(|b| b.reports.clone()).unwrap_or_default();
    reports.extend(view.reports.clone());
    reports.retain(|member, _| view.state.as_ref().is_some_and(|s| s.members.contains_key(member)));
    KeptCluster {
        etcd_cluster_id: view.etcd_cluster_id.clone(),
        spec: view.spec.clone(),
        state: view.state.clone(),
        reports,
    }
}

async fn write<D: Document + Clone + Send + 'static>(
    path: &Path,
    document: &D,
) -> anyhow::Result<()> {
    let text = proto::document::encode(document) + "\n";
    let path = path.to_path_buf();
    tokio::task::spawn_blocking(move || write_atomic(&path, text.as_bytes(), 0o600))
        .await
        .context("write a file")?
        .context("write a file")
}

fn cluster_file(state_dir: &Path) -> PathBuf {
    state_dir.join("cluster.json")
}

fn secrets_file(state_dir: &Path) -> PathBuf {
    state_dir.join("secrets.json")
}

/// Keeps the passwords that etcd holds, for a start without it. Only this user can read them.
pub fn keep_secrets(state_dir: &Path, secrets: &Secrets) -> anyhow::Result<()> {
    if load_secrets(state_dir).as_ref() == Some(secrets) {
        return Ok(());
    }
    let text = proto::document::encode(secrets) + "\n";
    write_atomic(&secrets_file(state_dir), text.as_bytes(), 0o600).context("keep the passwords")
}

/// Returns the passwords that etcd held.
pub fn load_secrets(state_dir: &Path) -> Option<Secrets> {
    proto::document::decode(&read_optional(&secrets_file(state_dir)).ok()??).ok()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn passwords_are_kept_for_this_user_only() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(load_secrets(dir.path()), None);
        let secrets =
            Secrets { superuser: "a".into(), replication: "b".into(), rewind: "c".into() };
        keep_secrets(dir.path(), &secrets).unwrap();
        assert_eq!(load_secrets(dir.path()), Some(secrets));
        let mode = secrets_file(dir.path()).metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn a_damaged_or_newer_copy_is_no_copy() {
        let dir = tempfile::tempdir().unwrap();
        assert!(load(dir.path()).is_none());
        for text in ["{", r#"{"format_version":99}"#, r#"{"format_version":1,"more":1}"#] {
            std::fs::write(cluster_file(dir.path()), text).unwrap();
            assert!(load(dir.path()).is_none(), "{text}");
        }
    }
}
