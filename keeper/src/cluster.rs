//! The cluster as etcd shows it: one snapshot, then every change, decoded as it comes.

use std::sync::Arc;
use std::time::Duration;

use proto::document::{DecodeError, decode};
use proto::{ClusterState, Document, MemberName};
use store::keys::Keys;
use store::{Entry, Snapshot, Store, StoreError, WatchEvent};
use tokio::sync::watch;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::facts::ClusterView;

/// Between two tries to read a store that does not answer.
const RETRY: Duration = Duration::from_millis(200);

/// Keeps `view` up to date until `stop`. While the store is away the last view stands.
pub async fn watch_cluster(
    store: Arc<dyn Store>,
    keys: Keys,
    view: watch::Sender<Arc<ClusterView>>,
    stop: CancellationToken,
) {
    while !stop.is_cancelled() {
        tokio::select! {
            () = stop.cancelled() => return,
            broken = follow(store.as_ref(), &keys, &view) => {
                if let Err(error) = broken {
                    tracing::warn!(%error, "watch the cluster");
                }
            }
        }
        sleep(RETRY).await;
    }
}

async fn follow(
    store: &dyn Store,
    keys: &Keys,
    view: &watch::Sender<Arc<ClusterView>>,
) -> Result<(), StoreError> {
    let revision = read_anew(store, keys, view).await?;
    let mut watch = store.watch(keys.prefix(), revision + 1).await?;
    while let Some(events) = watch.events.recv().await {
        view.send_modify(|known| {
            let next = Arc::make_mut(known);
            for event in &events {
                match event {
                    WatchEvent::Put { key, entry } => apply(next, keys, key, Some(entry)),
                    WatchEvent::Delete { key, .. } => apply(next, keys, key, None),
                }
            }
        });
    }
    Ok(())
}

/// Reads the whole cluster once.
pub async fn read(store: &dyn Store, keys: &Keys) -> Result<(ClusterView, i64), StoreError> {
    let snapshot = store.read(keys.prefix()).await?;
    Ok((view_of(keys, &snapshot), snapshot.revision))
}

/// Returns the cluster that a snapshot shows.
pub fn view_of(keys: &Keys, snapshot: &Snapshot) -> ClusterView {
    let etcd_cluster_id = snapshot.cluster_id.clone();
    let mut view = ClusterView { etcd_cluster_id, ..ClusterView::default() };
    for (key, entry) in &snapshot.entries {
        apply(&mut view, keys, key, Some(entry));
    }
    view
}

/// Puts the whole cluster into `view` and returns its revision. A renewal may read a newer state meanwhile, and the view
/// must not go back behind that: a right would be renewed by a state that has moved on. A store that is older also
/// at the second look was set back.
async fn read_anew(
    store: &dyn Store,
    keys: &Keys,
    view: &watch::Sender<Arc<ClusterView>>,
) -> Result<i64, StoreError> {
    let mut again = false;
    loop {
        let (fresh, revision) = read(store, keys).await?;
        let fresh = Arc::new(fresh);
        let mut taken = false;
        view.send_if_modified(|known| {
            taken = again || known.state_revision <= revision;
            if taken {
                *known = Arc::clone(&fresh);
            }
            taken
        });
        if taken {
            return Ok(revision);
        }
        again = true;
    }
}

/// Puts a state that was read apart from the watch into the view, unless the view is as new.
pub fn put_state(view: &watch::Sender<Arc<ClusterView>>, state: ClusterState, revision: i64) {
    view.send_if_modified(|known| take_newer(known, state, revision));
}

/// Returns whether the state read at `revision` is newer than the view's, and was taken.
pub fn take_newer(known: &mut Arc<ClusterView>, state: ClusterState, revision: i64) -> bool {
    if known.state_revision >= revision {
        return false;
    }
    let next = Arc::make_mut(known);
    next.state = Some(state);
    next.state_revision = revision;
    true
}

/// Puts one change of the store into the view.
pub fn apply(view: &mut ClusterView, keys: &Keys, key: &str, entry: Option<&Entry>) {
    let Some(name) = keys.strip(key) else { return };
    match name {
        "spec" => view.spec = take(entry, &mut view.newer_format),
        "state" => {
            let revision = entry.map_or(0, |e| e.mod_revision);
            // A state read by the renewals may be newer than this event.
            if entry.is_none() || revision >= view.state_revision {
                view.state = take(entry, &mut view.newer_format);
                view.state_revision = revision;
            }
        }
        "primary" => view.primary_key = take(entry, &mut view.newer_format),
        _ => {
            let Some(member) = name.strip_prefix("members/") else { return };
            let Ok(member) = member.parse::<MemberName>() else { return };
            match take(entry, &mut view.newer_format) {
                Some(report) => view.reports.insert(member, report),
                None => view.reports.remove(&member),
            };
        }
    }
}

fn take<D: Document>(entry: Option<&Entry>, newer_format: &mut bool) -> Option<D> {
    match decode(&entry?.value) {
        Ok(document) => Some(document),
        Err(error) => {
            *newer_format |= matches!(error, DecodeError::NewerFormat { .. });
            tracing::error!(%error, "read a document");
            None
        }
    }
}
