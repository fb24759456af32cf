//! Whether what etcd holds may be believed: a store that was restored from a backup, emptied or swapped may say of promises
//! what is no longer true. Pure.
//!
//! The one rule: once distrusted, a store stays distrusted, also when its numbers catch up, until `pgdeputy adopt-store`
//! has written a state into it that is above all that this member has acted on.

use proto::ClusterState;

/// Returns why `found` must not be acted on; nothing if it may be.
///
/// `known`: the last state that this member believed. `frozen`: whether it distrusts the store already. `etcd`: the id of
/// the etcd cluster that has answered. `found` was read after `known` was.
pub fn distrust(
    known: Option<&ClusterState>,
    frozen: bool,
    found: Option<&ClusterState>,
    etcd: &str,
) -> Option<String> {
    // Who has acted on nothing has promised nothing.
    let known = known?;
    let Some(found) = found else {
        return Some(format!(
            "etcd holds no state of this cluster, this member has acted on state {}",
            known.number
        ));
    };
    if found.etcd_cluster_id != etcd {
        return Some(format!(
            "etcd's state {} was made in etcd cluster {} and this is {etcd}: it was restored from a backup",
            found.number, found.etcd_cluster_id
        ));
    }
    if found.adopted.is_some_and(|adopted| adopted > known.number) {
        return None;
    }
    if found.number < known.number || found.epoch < known.epoch {
        return Some(format!(
            "etcd holds state {} of epoch {}, this member has acted on state {} of epoch {}: the store was set back",
            found.number, found.epoch, known.number, known.epoch
        ));
    }
    if known.etcd_cluster_id != etcd {
        return Some(format!(
            "this etcd is cluster {etcd}, this member belongs to {}",
            known.etcd_cluster_id
        ));
    }
    let other = found.epoch_record(known.epoch).zip(known.epoch_record(known.epoch)).filter(
        |(found, known)| (found.timeline, &found.primary) != (known.timeline, &known.primary),
    );
    if let Some((found, known)) = other {
        return Some(format!(
            "etcd names {} primary of epoch {}, this member has acted on {}: the store was set back and went on",
            found.primary, found.epoch, known.primary
        ));
    }
    frozen.then(|| {
        "the store was set back and has caught up since, so it may have forgotten a promise"
            .to_owned()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::{Epoch, StateNumber};

    fn state(number: u64, epoch: u64) -> ClusterState {
        let text = format!(
            r#"{{"format_version":1,"number":{number},"etcd_cluster_id":"e","system_identifier":null,"epoch":{epoch},
            "phase":{{"name":"open"}},"primary":"a","sealing":null,"cfgs":[],"last_cfg":1,"timeline":{epoch},
            "highest_timeline":{epoch},"chosen":null,"open_at_once":true,"epochs":[{{"epoch":{epoch},
            "timeline":{epoch},"primary":"a","start_lsn":null}}],"members":{{}},"restart":null}}"#
        );
        proto::document::decode(text.as_bytes()).unwrap()
    }

    fn distrusted(known: &ClusterState, frozen: bool, found: &ClusterState, etcd: &str) -> bool {
        distrust(Some(known), frozen, Some(found), etcd).is_some()
    }

    #[test]
    fn a_store_that_goes_on_is_believed_and_one_that_was_set_back_is_not() {
        let known = state(9, 2);
        assert!(!distrusted(&known, false, &state(9, 2), "e"));
        assert!(!distrusted(&known, false, &state(12, 3), "e"));
        assert!(distrusted(&known, false, &state(8, 2), "e"));
        assert!(distrusted(&known, false, &state(20, 1), "e"), "more states, and an epoch less");
        let mut other = state(20, 2);
        other.epochs[0].primary = "b".parse().unwrap();
        assert!(distrusted(&known, false, &other, "e"), "the same epoch with another primary");
        assert!(distrust(Some(&known), false, None, "e").is_some(), "an emptied store");
        assert!(distrust(None, false, None, "e").is_none(), "a new cluster");
    }

    #[test]
    fn a_store_that_has_caught_up_stays_distrusted() {
        assert!(distrusted(&state(9, 2), true, &state(9, 2), "e"));
        assert!(distrusted(&state(9, 2), true, &state(90, 7), "e"));
    }

    #[test]
    fn another_etcd_is_believed_once_it_was_adopted_above_all_that_was_acted_on() {
        let known = state(9, 2);
        assert!(distrusted(&known, false, &state(9, 2), "other"));
        let mut moved = state(30, 2);
        moved.etcd_cluster_id = "other".into();
        assert!(distrusted(&known, true, &moved, "other"));
        moved.adopted = Some(StateNumber(9));
        assert!(distrusted(&known, true, &moved, "other"), "not above");
        moved.adopted = Some(StateNumber(20));
        assert!(!distrusted(&known, true, &moved, "other"));
        assert!(distrusted(&known, true, &moved, "third"), "and restored once more");
        moved.epoch = Epoch(2);
        assert!(distrusted(&moved, true, &moved, "other"), "adopted before what was acted on");
    }
}
