//! The cluster as etcd shows it: one snapshot, then every change, decoded as it comes.

use std::sync::Arc;
use std::time::Duration;

use proto::document::{Anew, DecodeError, Reader};
use proto::{ClusterState, Document, MemberName, StateNumber};
use store::keys::Keys;
use store::{Entry, Snapshot, Store, StoreError, WatchEvent};
use tokio::sync::watch;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::facts::ClusterView;
use crate::member_files::MemberFiles;
use crate::trust::distrust;

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
            let was_frozen = next.frozen.is_some();
            for event in &events {
                match event {
                    WatchEvent::Put { key, entry } => apply(next, keys, key, Some(entry)),
                    WatchEvent::Delete { key, .. } => apply(next, keys, key, None),
                }
            }
            tell(was_frozen, next);
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
                let was_frozen = known.frozen.is_some();
                *known = Arc::new(judged(known, &fresh));
                tell(was_frozen, known);
            }
            taken
        });
        if taken {
            return Ok(revision);
        }
        again = true;
    }
}

/// Returns the view of a keeper that starts: what it acted on before tells whether the store may be believed.
pub fn believed(fresh: ClusterView, files: &MemberFiles) -> ClusterView {
    let known = ClusterView {
        state: files.acted_on.clone(),
        frozen: files.frozen.then(String::new),
        ..ClusterView::default()
    };
    if fresh.is_copy() {
        // It may be older than what the member files hold, and is no word of etcd's.
        let newer =
            |s: &ClusterState| fresh.state.as_ref().is_none_or(|copy| copy.number < s.number);
        let state = known.state.clone().filter(newer).or(fresh.state);
        let frozen =
            known.frozen.map(|_| "etcd does not answer, and was distrusted before".to_owned());
        return ClusterView { state, frozen, ..fresh };
    }
    judged(&known, &fresh)
}

/// Returns `fresh`, or, where its state is not to be believed, with the state that is `known` instead.
pub fn judged(known: &ClusterView, fresh: &ClusterView) -> ClusterView {
    let mut next = fresh.clone();
    next.reads = known.reads + 1;
    if fresh.newer_format && fresh.state.is_none() {
        next.frozen.clone_from(&known.frozen);
        next.state.clone_from(&known.state);
        return next;
    }
    let frozen = known.frozen.is_some();
    next.frozen =
        distrust(known.state.as_ref(), frozen, fresh.state.as_ref(), &fresh.etcd_cluster_id);
    if next.frozen.is_some() && known.state.is_some() {
        next.state = known.state.clone();
    }
    next
}

/// Puts a state into `view`, if it is to be believed; else says why not.
fn take_state(view: &mut ClusterView, found: Option<ClusterState>, revision: i64) {
    let frozen = view.frozen.is_some();
    view.frozen = distrust(view.state.as_ref(), frozen, found.as_ref(), &view.etcd_cluster_id);
    view.state_revision = revision;
    if view.frozen.is_none() || view.state.is_none() {
        view.state = found;
    }
}

fn tell(was_frozen: bool, now: &ClusterView) {
    match (was_frozen, &now.frozen) {
        (false, Some(why)) => tracing::error!(
            why,
            "the store is not believed: nothing in it is acted on until `pgdeputy adopt-store`; clients are served"
        ),
        (true, None) => tracing::info!("the store is believed again"),
        (false, None) | (true, Some(_)) => {}
    }
}

/// The state that a renewal read apart from the watch, where the store has one.
pub struct Read {
    pub state: Option<ClusterState>,
    pub revision: i64,
    pub etcd_cluster_id: String,
    /// The number of the view's state before this was read: a store that shows less was set back.
    pub known: Option<StateNumber>,
}

/// Puts a state that was read apart from the watch into the view, unless the view is as new. Returns whether what was
/// read is believed.
pub fn put_state(view: &watch::Sender<Arc<ClusterView>>, read: &Read) -> bool {
    let mut taken = Taken::Known;
    view.send_if_modified(|known| {
        taken = take_read(known, read);
        taken == Taken::New
    });
    taken != Taken::Overtaken && view.borrow().frozen.is_none()
}

/// What became of a state that was read apart from the watch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Taken {
    /// It is in the view now.
    New,
    /// The view was as new.
    Known,
    /// It is older than what was known when it was asked for, and the view has moved on since: a store that was set
    /// back may have been adopted between. It says nothing of now.
    Overtaken,
}

/// Puts what was read into the view, where it belongs there.
pub fn take_read(known: &mut Arc<ClusterView>, read: &Read) -> Taken {
    let number = read.state.as_ref().map(|s| s.number);
    let set_back = number < read.known || read.etcd_cluster_id != known.etcd_cluster_id;
    if set_back && known.state.as_ref().map(|s| s.number) != read.known {
        return Taken::Overtaken;
    }
    if known.state_revision >= read.revision && !set_back {
        return Taken::Known;
    }
    let next = Arc::make_mut(known);
    let was_frozen = next.frozen.is_some();
    next.etcd_cluster_id.clone_from(&read.etcd_cluster_id);
    take_state(next, read.state.clone(), read.revision);
    tell(was_frozen, next);
    Taken::New
}

/// Puts one change of the store into the view.
pub fn apply(view: &mut ClusterView, keys: &Keys, key: &str, entry: Option<&Entry>) {
    apply_by(&mut Anew, view, keys, (key, entry));
}

/// The same, with what `reader` makes of the documents.
pub fn apply_by(
    reader: &mut impl Reader,
    view: &mut ClusterView,
    keys: &Keys,
    (key, entry): (&str, Option<&Entry>),
) {
    let Some(name) = keys.strip(key) else { return };
    let stored = entry.map(|entry| (key, entry));
    match name {
        "spec" => view.spec = take(reader, stored, &mut view.newer_format),
        "state" => {
            let revision = entry.map_or(0, |e| e.mod_revision);
            // A state read by the renewals may be newer than this event.
            if entry.is_none() || revision >= view.state_revision {
                let found = take(reader, stored, &mut view.newer_format);
                // One that cannot be read is no sign of a store that was set back: this keeper stands by.
                if found.is_some() || entry.is_none() {
                    take_state(view, found, revision);
                }
            }
        }
        "primary" => view.primary_key = take(reader, stored, &mut view.newer_format),
        _ => {
            let Some(member) = name.strip_prefix("members/") else { return };
            let Ok(member) = member.parse::<MemberName>() else { return };
            match take(reader, stored, &mut view.newer_format) {
                Some(report) => view.reports.insert(member, report),
                None => view.reports.remove(&member),
            };
        }
    }
}

fn take<D: Document + Clone + 'static>(
    reader: &mut impl Reader,
    stored: Option<(&str, &Entry)>,
    newer_format: &mut bool,
) -> Option<D> {
    let (key, entry) = stored?;
    match reader.read(key, &entry.value) {
        Ok(document) => Some(document),
        Err(error) => {
            *newer_format |= matches!(error, DecodeError::NewerFormat { .. });
            tracing::error!(%error, "read a document");
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(number: u64, adopted: &str) -> ClusterState {
        let text = format!(
            r#"{{"format_version":1,"number":{number},"etcd_cluster_id":"e","system_identifier":null,"epoch":2,
            "phase":{{"name":"open"}},"primary":"a","sealing":null,"cfgs":[],"last_cfg":1,"timeline":2,
            "highest_timeline":2,"chosen":null,"open_at_once":true,"epochs":[],"members":{{}},"restart":null,
            "adopted":{adopted}}}"#
        );
        proto::document::decode(text.as_bytes()).expect("a state")
    }

    fn read(found: u64, known: u64) -> Read {
        let known = Some(StateNumber(known));
        Read { state: Some(state(found, "null")), revision: 5, etcd_cluster_id: "e".into(), known }
    }

    fn view(state: ClusterState) -> Arc<ClusterView> {
        let etcd_cluster_id = "e".into();
        Arc::new(ClusterView {
            state: Some(state),
            state_revision: 9,
            etcd_cluster_id,
            ..Default::default()
        })
    }

    #[test]
    fn a_read_that_was_sent_before_the_store_was_adopted_freezes_nobody_afterwards() {
        // Asked for when 58 was known, served by the store that was set back to 47; meanwhile 1058 was adopted.
        let mut known = view(state(1058, "1058"));
        assert_eq!(take_read(&mut known, &read(47, 58)), Taken::Overtaken);
        assert_eq!(known.frozen, None);
        let sender = watch::Sender::new(known);
        assert!(!put_state(&sender, &read(47, 58)), "and it renews no right");
    }

    #[test]
    fn a_read_of_a_store_that_was_set_back_freezes() {
        let mut known = view(state(58, "null"));
        assert_eq!(take_read(&mut known, &read(47, 58)), Taken::New);
        assert!(known.frozen.is_some());
        let mut moved_on = view(state(59, "null"));
        assert_eq!(take_read(&mut moved_on, &read(58, 58)), Taken::Known, "the watch was faster");
    }
}
