//! Keeps the WAL that a rewind discards, for a person who wants to know what was in it.
//!
//! Rule: it is a help and not a promise. It is bounded, only the last rewind's is kept, and no failure here stops a
//! rejoin.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::Context;
use proto::Epoch;
use proto::rejoin::Discarded;

use super::Worker;
use crate::durable::{read_optional, replace};
use crate::member_files::Fork;
use crate::postgres::wal_contents::{Span, contents};
use crate::postgres::wal_scan;

/// Where the segments of one rewind go: `<state dir>/diverged/e<epoch>`.
pub struct Diverged {
    dir: PathBuf,
    at_most_bytes: u64,
    left: AtomicU64,
}

/// What the WAL held, beside it.
const SUMMARY: &str = "summary.json";

impl Diverged {
    /// Makes room for the rejoin that leads to `epoch`: what earlier ones kept goes.
    pub fn new(worker: &Worker, epoch: Epoch) -> anyhow::Result<Self> {
        let megabytes = worker.spec().rejoin.keep_diverged_mb;
        Self::within(&worker.place.state_dir, epoch, u64::from(megabytes) << 20)
    }

    fn within(state_dir: &Path, epoch: Epoch, at_most_bytes: u64) -> anyhow::Result<Self> {
        let parent = state_dir.join("diverged");
        let dir = parent.join(format!("e{epoch}"));
        fs::create_dir_all(&dir).with_context(|| format!("create {}", dir.display()))?;
        for entry in fs::read_dir(&parent).context("list what was kept of diverged WAL")? {
            let older = entry?.path();
            if older != dir {
                for file in fs::read_dir(&older)? {
                    fs::remove_file(file?.path())
                        .context("remove diverged WAL of a rewind before")?;
                }
                fs::remove_dir(&older).context("remove diverged WAL of a rewind before")?;
            }
        }
        Ok(Self { dir, at_most_bytes, left: AtomicU64::new(at_most_bytes) })
    }

    /// Tells what the WAL from `fork` on holds, while it is still there; of a rejoin that was cut, what was found then.
    pub async fn sum_up(&self, worker: &Worker, fork: Fork) {
        let known = worker.local().end_of_wal.map(|end| (end.lsn, end.timeline));
        let (data_dir, dir) = (worker.place.data_dir.clone(), self.dir.clone());
        let at_most_bytes = self.at_most_bytes;
        let reading = tokio::task::spawn_blocking(move || {
            let end = match known {
                Some(end) => end,
                None => wal_scan::scan(&data_dir).map(|end| (end.lsn, end.timeline))?,
            };
            let span = Span { timeline: fork.timeline, from: fork.lsn, end, at_most_bytes };
            summary(&data_dir, &dir, span)
        });
        match reading.await.map_err(anyhow::Error::from).and_then(|found| found) {
            Ok(found) => {
                tracing::info!(
                    from = %found.from, to = %found.to, bytes = found.bytes(), commits = found.commits,
                    rollbacks = found.rollbacks, "gives up WAL that the primary does not have"
                );
                worker.tell(|details| details.discarded = Some(found));
            }
            Err(error) => {
                tracing::warn!(error = format!("{error:#}"), "what diverged WAL held is not known");
            }
        }
    }

    /// Keeps the segment at `path` under `name`, while there is room.
    pub fn save(&self, path: &Path, name: &str) -> io::Result<()> {
        let to = self.dir.join(name);
        // Copying over another name of the same file would empty both.
        if to.exists() {
            return Ok(());
        }
        let bytes = fs::metadata(path)?.len();
        let left = self.left.load(Ordering::Relaxed);
        if let Some(rest) = left.checked_sub(bytes) {
            self.left.store(rest, Ordering::Relaxed);
            let saved = fs::hard_link(path, &to).or_else(|_| fs::copy(path, &to).map(drop));
            if let Err(error) = saved {
                tracing::warn!(%error, name, "diverged WAL is not kept");
            }
        }
        Ok(())
    }
}

/// Returns what was found before, or finds it and puts it beside the segments.
fn summary(data_dir: &Path, dir: &Path, span: Span) -> anyhow::Result<Discarded> {
    let path = dir.join(SUMMARY);
    let before = read_optional(&path).context("read what diverged WAL held")?;
    let before = before.and_then(|text| serde_json::from_slice::<Discarded>(&text).ok());
    if let Some(before) = before.filter(|b| (b.timeline, b.from) == (span.timeline, span.from)) {
        return Ok(before);
    }
    let mut found = contents(data_dir, span)?;
    found.kept = Some(dir.display().to_string());
    let text = serde_json::to_vec_pretty(&found).context("write what diverged WAL held")?;
    // A rejoin does not wait for the disk's sync of it.
    replace(&path, &text, 0o600).context("write what diverged WAL held")?;
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_last_rewinds_segments_are_kept() {
        let dir = tempfile::tempdir().unwrap();
        let segment = dir.path().join("segment");
        fs::write(&segment, "diverged").unwrap();
        for epoch in [4, 5] {
            let diverged = Diverged::within(dir.path(), Epoch(epoch), 100).unwrap();
            diverged.save(&segment, "000000010000000000000003").unwrap();
            // A second try finds it there.
            diverged.save(&segment, "000000010000000000000003").unwrap();
        }
        let kept = dir.path().join("diverged");
        assert!(!kept.join("e4").exists());
        let saved = kept.join("e5/000000010000000000000003");
        assert_eq!(fs::read_to_string(saved).unwrap(), "diverged");
    }
}
