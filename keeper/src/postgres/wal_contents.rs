//! Sums up what a stopped member's WAL holds from a position on: how many commits, and which relations it touches.
//!
//! Rule: read by our own scanner, so that just the records count which recovery would accept. Whatever a record says
//! that is not understood is left out and never an error: this is told to people, and no rejoin waits for it.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, ensure};
use proto::rejoin::{Discarded, RELATIONS_TOLD, RelationChanges};
use proto::{Lsn, Timeline, TimelineHistory};

use super::control::ControlFile;
use super::wal_files;
use super::wal_pages::{WalDir, u32_at};
use super::wal_scan::{Walk, belongs, wal_dir};

/// The headers of 33 block references and of the main part have less than this.
const HEADERS: usize = 1024;

/// How many relations are counted apart; a member that gave up more has been away for days.
const RELATIONS_COUNTED: usize = 10_000;

const XACT: u8 = 1;
const XACT_OPERATION: u8 = 0x70;
const COMMIT: u8 = 0x00;
const ABORT: u8 = 0x20;
const COMMIT_PREPARED: u8 = 0x30;
const ABORT_PREPARED: u8 = 0x40;

const MAX_BLOCK: u8 = 32;
const TOP_LEVEL_XID: u8 = 252;
const ORIGIN: u8 = 253;
const HAS_IMAGE: u8 = 0x10;
const SAME_RELATION: u8 = 0x80;
const IMAGE_HAS_HOLE: u8 = 0x01;
const IMAGE_COMPRESSED: u8 = 0x04 | 0x08 | 0x10;

/// What to read.
#[derive(Debug, Clone, Copy)]
pub struct Span {
    /// The timeline that is left at `from`, the end of what both sides have.
    pub timeline: Timeline,
    pub from: Lsn,
    /// Where the member's own log ends, and the timeline of its last record.
    pub end: (Lsn, Timeline),
    pub at_most_bytes: u64,
}

/// Sums up the WAL of `span` in the data directory of a server that is down.
pub fn contents(data_dir: &Path, span: Span) -> anyhow::Result<Discarded> {
    let control = ControlFile::read(data_dir)?;
    let wal = wal_dir(data_dir, &control)?;
    let history = wal_files::history(&wal.pg_wal, span.end.1)?;
    sum_up(&wal, &history, span)
        .with_context(|| format!("read WAL from {} of timeline {} on", span.from, span.timeline))
}

fn sum_up(wal: &WalDir, history: &TimelineHistory, span: Span) -> anyhow::Result<Discarded> {
    ensure!(
        span.from.0 > 0 && span.from.0 < u64::MAX / 2 && span.from <= span.end.0,
        "there is none"
    );
    let mut found = Discarded {
        timeline: span.timeline,
        from: span.from,
        to: span.end.0,
        read_to: span.from,
        records: 0,
        commits: 0,
        rollbacks: 0,
        first_commit: None,
        relations: Vec::new(),
        more_relations: 0,
        kept: None,
    };
    let mut relations = Relations::default();
    let mut walk = Walk::keeping(HEADERS, wal, history)?;
    while found.read_to < found.to && found.read_to.0 - found.from.0 < span.at_most_bytes {
        let next = walk.record(found.read_to).context("read WAL")?;
        let Ok(record) = next.and_then(|record| belongs(history, record)) else { break };
        found.read_to = record.end;
        found.records += 1;
        relations.take(&walk.body, record.data_bytes);
        match (record.manager, record.info & XACT_OPERATION) {
            (XACT, COMMIT | COMMIT_PREPARED) => {
                found.commits += 1;
                found.first_commit.get_or_insert(record.end);
            }
            (XACT, ABORT | ABORT_PREPARED) => found.rollbacks += 1,
            _ => {}
        }
    }
    (found.relations, found.more_relations) = relations.most_changed();
    Ok(found)
}

/// How many records touched each relation: database, tablespace and file number.
#[derive(Default)]
struct Relations {
    records: BTreeMap<(u32, u32, u32), u64>,
    not_counted_apart: u64,
}

impl Relations {
    fn take(&mut self, body: &[u8], data_bytes: usize) {
        let mut touched = touched(body, data_bytes);
        touched.sort_unstable();
        touched.dedup();
        for relation in touched {
            let is_known = self.records.contains_key(&relation);
            if is_known || self.records.len() < RELATIONS_COUNTED {
                *self.records.entry(relation).or_default() += 1;
            } else {
                self.not_counted_apart = 1;
            }
        }
    }

    fn most_changed(self) -> (Vec<RelationChanges>, u64) {
        let total = self.records.len() as u64 + self.not_counted_apart;
        let mut sorted: Vec<_> = self.records.into_iter().collect();
        sorted.sort_by_key(|(relation, records)| (std::cmp::Reverse(*records), *relation));
        sorted.truncate(RELATIONS_TOLD);
        let told: Vec<RelationChanges> = sorted
            .into_iter()
            .map(|((database, tablespace, filenode), records)| RelationChanges {
                database,
                tablespace,
                filenode,
                records,
            })
            .collect();
        let more = total - told.len() as u64;
        (told, more)
    }
}

/// Returns the relations of a record's block references, from the begin of its data, of which it has `data_bytes`. It ends
/// at the first thing that is not as it should be.
fn touched(body: &[u8], data_bytes: usize) -> Vec<(u32, u32, u32)> {
    let mut found: Vec<(u32, u32, u32)> = Vec::new();
    // What the headers so far say will follow them; behind the last header just that is left.
    let (mut at, mut announced) = (0, 0);
    while at + announced < data_bytes
        && let Some(id) = body.get(at).copied()
    {
        at += 1;
        match id {
            0..=MAX_BLOCK => match block_reference(body, at) {
                Some(reference) => {
                    // The same relation as the reference before, where it is not named again.
                    found.extend(reference.relation);
                    announced += reference.data_bytes;
                    at = reference.end;
                }
                None => break,
            },
            ORIGIN => at += 2,
            TOP_LEVEL_XID => at += 4,
            // The main part: its length is the last of the headers.
            _ => break,
        }
    }
    found
}

/// The header of a block reference.
struct BlockReference {
    /// `None`: that of the reference before.
    relation: Option<(u32, u32, u32)>,
    /// How much data and image follow behind all headers.
    data_bytes: usize,
    /// Where the next header begins.
    end: usize,
}

/// Reads a block reference's header from behind its id.
fn block_reference(body: &[u8], at: usize) -> Option<BlockReference> {
    let length =
        |at: usize| Some(usize::from(u16::from_le_bytes([*body.get(at)?, *body.get(at + 1)?])));
    let flags = *body.get(at)?;
    let mut data_bytes = length(at + 1)?;
    let mut at = at + 3;
    if flags & HAS_IMAGE != 0 {
        data_bytes += length(at)?;
        let info = *body.get(at + 4)?;
        at += 5;
        if info & IMAGE_HAS_HOLE != 0 && info & IMAGE_COMPRESSED != 0 {
            at += 2;
        }
    }
    let mut relation = None;
    if flags & SAME_RELATION == 0 {
        body.get(at..at + 12)?;
        relation = Some((u32_at(body, at + 4), u32_at(body, at), u32_at(body, at + 8)));
        at += 12;
    }
    // The block's number.
    Some(BlockReference { relation, data_bytes, end: at + 4 })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn reference(id: u8, flags: u8, image: &[u8], relation: Option<[u32; 3]>) -> Vec<u8> {
        let mut bytes = vec![id, flags, 8, 0];
        bytes.extend(image);
        bytes.extend(relation.into_iter().flatten().flat_map(u32::to_le_bytes));
        bytes.extend(7_u32.to_le_bytes());
        bytes
    }

    #[test]
    fn block_references_name_their_relations_past_images_of_every_kind() {
        let plain_image = [0, 1, 0, 0, 0];
        let compressed_with_hole = [0, 1, 0, 0, IMAGE_HAS_HOLE | 0x08, 9, 0];
        let body = [
            reference(0, 0, &[], Some([1663, 5, 16384])),
            reference(1, SAME_RELATION, &[], None),
            reference(2, HAS_IMAGE, &plain_image, Some([1663, 5, 16390])),
            reference(3, HAS_IMAGE, &compressed_with_hole, Some([1664, 0, 1262])),
            vec![ORIGIN, 1, 0, TOP_LEVEL_XID, 1, 0, 0, 0, 255, 3, 0, 0, 0],
        ]
        .concat();
        let named = [(5, 1663, 16384), (5, 1663, 16390), (0, 1664, 1262)];
        assert_eq!(touched(&body, usize::MAX), named);
        // Cut in the middle of the last one.
        assert_eq!(touched(&body[..body.len() - 30], usize::MAX).len(), 2);
        // Without a main part what follows the headers is data, whatever it looks like.
        let mut bare = reference(0, 0, &[], Some([1663, 5, 16384]));
        let data_bytes = bare.len() + 8;
        bare.extend(reference(1, 0, &[], Some([7, 7, 7])));
        assert_eq!(touched(&bare, data_bytes), named[..1]);
        let mut relations = Relations::default();
        (0..3).for_each(|_| {
            relations.take(&reference(0, 0, &[], Some([1663, 5, 16390])), usize::MAX);
        });
        relations.take(&body, usize::MAX);
        let (told, more) = relations.most_changed();
        assert_eq!((told[0].filenode, told[0].records, more), (16390, 4, 0));
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(body in proptest::collection::vec(any::<u8>(), 0..HEADERS)) {
            touched(&body, usize::MAX);
        }
    }
}
