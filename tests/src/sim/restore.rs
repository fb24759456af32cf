//! Backups that are put in the place of what they were taken of: of etcd, and of a member's disk.

use proto::state::Floor;
use proto::{ClusterState, MemberName};

use super::disk::Disk;
use super::executor::{Micros, Sim};
use super::faults::Kind;
use super::world::World;

const EVERY: Micros = 4_000_000;
/// Older ones are not kept: what a run of some minutes forgets is enough.
const KEPT: usize = 12;

impl Sim {
    /// Takes backups of what the profile restores.
    pub fn backups_start(&self) {
        let kinds = self.with(|w| w.profile.kinds.clone());
        let (store, disks) =
            (kinds.contains(&Kind::StoreRestored), kinds.contains(&Kind::DiskRestored));
        if !store && !disks {
            return;
        }
        let sim = self.clone();
        self.on_the_wire(async move {
            loop {
                sim.sleep(EVERY).await;
                sim.with(|w| {
                    if store && w.oracle.state().is_some() {
                        keep(&mut w.etcd.backups, w.etcd.core.clone());
                    }
                    for member in w.members.iter_mut().filter(|m| disks && m.disk.is_whole()) {
                        let copy = member.disk.clone();
                        keep(&mut member.copies, copy);
                    }
                });
            }
        });
    }

    /// Sets etcd back to a backup, under another cluster id or the same.
    pub fn store_restored(&self, by: u64) -> bool {
        let now = self.now();
        let done = self.with(|w| {
            let count = w.etcd.backups.len() as u64;
            if count == 0 {
                return false;
            }
            let backup = w.etcd.backups[(by % count) as usize].clone();
            let id = ((by >> 20) % 2 == 1).then(|| format!("{:016x}", by | 1));
            w.etcd.restore(backup, id.as_deref(), now);
            let key = w.keys.state();
            let entry = w.etcd.core.read(&key).entries.remove(&key);
            let state = entry.and_then(|e| proto::document::decode::<ClusterState>(&e.value).ok());
            w.oracle.store_set_back(now, state);
            // What operators last asked for is forgotten with the rest.
            let key = w.keys.spec();
            let entry = w.etcd.core.read(&key).entries.remove(&key);
            if let Some(spec) = entry.and_then(|e| proto::document::decode(&e.value).ok()) {
                w.spec = spec;
            }
            true
        });
        if done {
            self.trace(|| "etcd is set back to a backup".into());
            // Leases of the backup live again, and the watchers have to come anew.
            self.with_etcd(|_| ());
        }
        done
    }

    /// Sets the disk of a machine that is down back to a copy that holds less than its floor, if there is one.
    pub fn disk_restored(&self, member: usize) -> bool {
        self.with(|w| {
            // A seal that its member has forgotten by the time it counts breaks I2: docs/safety.md has that under "Open holes".
            let is_sealing = w.oracle.state().is_some_and(|state| state.sealing.is_some());
            if is_sealing && w.profile.pace.is_some() {
                return false;
            }
            let Some(floor) = floor_of(w, &w.members[member].name) else { return false };
            let below = |copy: &&Disk| holds_less(w, copy, floor);
            let Some(copy) = w.members[member].copies.iter().rev().find(below).cloned() else {
                return false;
            };
            w.members[member].disk = copy;
            w.oracle.disks_restored += 1;
            true
        })
    }
}

fn keep<T>(backups: &mut Vec<T>, backup: T) {
    backups.push(backup);
    if backups.len() > KEPT {
        backups.remove(0);
    }
}

/// Returns what a member must hold, as the agreed state says.
pub fn floor_of(w: &World, name: &MemberName) -> Option<Floor> {
    w.oracle.state()?.members.get(name)?.floor
}

/// Returns whether a disk holds less than `floor`.
pub fn holds_less(w: &World, disk: &Disk, floor: Floor) -> bool {
    disk.data.as_ref().is_none_or(|data| {
        let end = data.end(&w.wal);
        (w.wal.branch(end.branch).epoch, end.lsn) < (floor.epoch.0, floor.lsn)
    })
}
