//! The prefix proof: whether a stopped member's WAL is the source's, byte for byte, just before their logs part.
//!
//! Timelines are numbers, and two servers that were promoted apart can give one number to two logs. So the last bytes
//! that both should have are compared; each record carries a checksum and the position of the one before.
//!
//! Rule: only bytes that differ are a difference. WAL that either side has no more proves nothing of the bytes; where it
//! is the source that lacks what comes next, the member can wait for that for ever.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::Context;
use proto::{Lsn, SystemIdentifier, Timeline, TimelineHistory};

use super::control::ControlFile;
use super::fork::fork_of;
use super::source::Source;
use super::wal_files::{self, Segment};
use super::walsender::{Identity, Walsender, is_removed};

/// How much is compared at most: hundreds of records, and one message of a walsender.
const AT_MOST: u64 = 64 << 10;

/// What the primary says that a member is to follow, and whether its WAL fits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceSays {
    pub system_identifier: SystemIdentifier,
    pub history: TimelineHistory,
    /// How far it had flushed.
    pub flushed: Lsn,
    pub proof: Proof,
}

/// What the comparison showed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Proof {
    /// The bytes in this range are equal.
    Same { from: Lsn, to: Lsn },
    /// The first byte that is not.
    Differs { at: Lsn, timeline: Timeline },
    /// The source has the WAL no more with which this member would go on from here.
    Removed { at: Lsn, timeline: Timeline },
    /// They could not be compared.
    Unknown(String),
}

/// Asks `source` for its timelines and compares its WAL with that in `data_dir`, which ends at `end`.
pub async fn compare(
    source: &Source,
    password: &str,
    data_dir: &Path,
    end: (Lsn, Timeline),
) -> anyhow::Result<SourceSays> {
    let mut walsender = Walsender::connect(source, password).await?;
    let identity = walsender.identify().await?;
    let history = walsender.history(identity.timeline).await?;
    let control = ControlFile::read(data_dir)?;
    let pg_wal = wal_files::pg_wal_of(data_dir)?;
    let ours = wal_files::history(&pg_wal, end.1)?;
    let proof = if identity.system_identifier == control.system_identifier {
        let own = own_bytes(&pg_wal, &control, &ours, &history, end.0);
        match own.context("read this member's WAL")? {
            Some(own) => match walsender.wal(own.timeline, own.from, own.to()).await {
                Ok(theirs) => own.differs(&theirs),
                Err(error)
                    if is_removed(&error) && next_is_removed(source, password, &own).await =>
                {
                    Proof::Removed { at: own.end, timeline: own.timeline }
                }
                Err(error) => Proof::Unknown(format!("{error:#}")),
            },
            None => Proof::Unknown("this member has no WAL from before the fork".to_owned()),
        }
    } else {
        Proof::Unknown("it is another cluster".to_owned())
    };
    let Identity { system_identifier, flushed, .. } = identity;
    Ok(SourceSays { system_identifier, history, flushed, proof })
}

/// A piece of a member's WAL.
struct Own {
    timeline: Timeline,
    from: Lsn,
    bytes: Vec<u8>,
    /// Where the common part ends, or this member's WAL before that: from here on it needs the source's.
    end: Lsn,
    segment_size: u64,
}

impl Own {
    fn to(&self) -> Lsn {
        Lsn(self.from.0 + self.bytes.len() as u64)
    }

    fn differs(&self, theirs: &[u8]) -> Proof {
        match self.bytes.iter().zip(theirs).position(|(a, b)| a != b) {
            None => Proof::Same { from: self.from, to: self.to() },
            Some(at) => {
                Proof::Differs { at: Lsn(self.from.0 + at as u64), timeline: self.timeline }
            }
        }
    }
}

/// Of a source that lacks the WAL which was to be compared: returns whether it lacks also what comes next. A receiver asks
/// for whole segments, so that is the same segment, but where this member's WAL fills its last one.
async fn next_is_removed(source: &Source, password: &str, own: &Own) -> bool {
    if !own.end.0.is_multiple_of(own.segment_size) {
        return true;
    }
    match Walsender::connect(source, password).await {
        Ok(walsender) => {
            let next = walsender.wal(own.timeline, own.end, Lsn(own.end.0 + 1)).await;
            next.is_err_and(|error| is_removed(&error))
        }
        Err(_) => false,
    }
}

/// Returns the last bytes of the common part that the member has; `None` where it has none.
fn own_bytes(
    pg_wal: &Path,
    control: &ControlFile,
    ours: &TimelineHistory,
    theirs: &TimelineHistory,
    end: Lsn,
) -> io::Result<Option<Own>> {
    let Some(fork) = fork_of(ours, theirs) else { return Ok(None) };
    let to = fork.until.map_or(end, |until| until.min(end));
    let size = u64::from(control.wal_segment_size);
    let number = to.0.saturating_sub(1) / size;
    // A later timeline's file of this segment begins with a copy of the earlier one's.
    let file = (fork.timeline.0..=ours.timeline.0).map(Timeline).find_map(|timeline| {
        let name = Segment { timeline, number }.file_name(control.wal_segment_size);
        File::open(pg_wal.join(name)).ok()
    });
    let Some(file) = file else { return Ok(None) };
    let mut bytes = vec![0; usize::try_from(to.0 - number * size).map_err(io::Error::other)?];
    if file.read_exact_at(&mut bytes, 0).is_err() {
        return Ok(None);
    }
    // What follows the end of a segment that was left early is zeros and would be equal by itself.
    let Some(last) = bytes.iter().rposition(|byte| *byte != 0) else { return Ok(None) };
    bytes.truncate(last + 1);
    let skipped = bytes.len().saturating_sub(AT_MOST as usize);
    let from = Lsn(number * size + skipped as u64);
    let bytes = bytes.split_off(skipped);
    Ok(Some(Own { timeline: fork.timeline, from, bytes, end: to, segment_size: size }))
}
