//! Finds where the WAL on disk ends, without starting PostgreSQL.
//!
//! Rule: the end is that of the last record which PostgreSQL's own recovery would accept. A record counts only if
//! its checksum, its link to the one before and all its pages fit, and if it was written on the timeline to which
//! its position belongs. What is beyond may be old or torn and says nothing.

use std::path::Path;

use anyhow::{Context, anyhow, bail, ensure};
use proto::{Lsn, Timeline, TimelineHistory};

use super::control::ControlFile;
use super::wal_files;
use super::wal_pages::{Absent, PAGE, PageReader, WalDir, split, u32_at, u64_at};

/// Where the WAL of a data directory ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EndOfWal {
    /// The end of the last record, where PostgreSQL would write the next one.
    pub lsn: Lsn,
    /// The timeline that wrote the last record.
    pub timeline: Timeline,
    /// Where the last record begins.
    pub last_record: Lsn,
    /// Why there is no further one, for logs.
    pub because: Absent,
}

/// Where a scan begins, and what is known of the data by then.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WalStart {
    /// Where the last checkpoint record begins.
    pub lsn: Lsn,
    /// The timeline that wrote that record.
    pub timeline: Timeline,
    /// The newest timeline that the data is known to be on.
    pub at_least: Timeline,
    /// The data may hold changes up to here, on `at_least`; zero where that is not known.
    pub min_recovery_point: Lsn,
}

/// Finds the end of the WAL of a data directory whose server is down, or is a standby that receives nothing.
pub fn scan(data_dir: &Path) -> anyhow::Result<EndOfWal> {
    let mut control = ControlFile::read(data_dir)?;
    loop {
        let found = scan_from(data_dir, &control);
        if found.is_ok() {
            return found;
        }
        // A running standby may have made a restartpoint meanwhile and removed the WAL from before it. Each turn
        // needs a new one, so that the loop ends.
        let now = ControlFile::read(data_dir)?;
        if now.checkpoint == control.checkpoint {
            return found;
        }
        control = now;
    }
}

fn scan_from(data_dir: &Path, control: &ControlFile) -> anyhow::Result<EndOfWal> {
    let wal = wal_dir(data_dir, control)?;
    let start = WalStart {
        lsn: control.checkpoint,
        timeline: control.checkpoint_timeline,
        at_least: control.timeline(),
        min_recovery_point: control.min_recovery_point,
    };
    newest_end(&wal, &start)
        .with_context(|| format!("find the end of the WAL in {}", wal.pg_wal.display()))
}

pub(super) fn wal_dir(data_dir: &Path, control: &ControlFile) -> anyhow::Result<WalDir> {
    Ok(WalDir {
        pg_wal: wal_files::pg_wal_of(data_dir)?,
        segment_size: control.wal_segment_size,
        system_identifier: control.system_identifier,
        major: control.major,
    })
}

/// Finds the end of the log along the newest timeline that it goes over to.
///
/// A standby may have received WAL of a newer timeline than the control file names, and crashed before it replayed
/// any. So each newer timeline that descends from the known one is tried; it counts only if the log really crosses
/// its switch point in its own files.
pub fn newest_end(wal: &WalDir, start: &WalStart) -> anyhow::Result<EndOfWal> {
    let segments = wal_files::segments(&wal.pg_wal, wal.segment_size).context("list segments")?;
    let mut newer: Vec<Timeline> =
        segments.iter().map(|s| s.timeline).filter(|t| *t > start.at_least).collect();
    newer.sort_unstable();
    newer.dedup();
    for timeline in newer.into_iter().rev() {
        let history = wal_files::history(&wal.pg_wal, timeline)?;
        let descends = history.left_at(start.at_least).is_some_and(|left| {
            left >= start.min_recovery_point
                && history.writer_of(after(start.lsn)) == start.timeline
        });
        if descends {
            let end = end_of_wal(wal, &history, start.lsn)?;
            if end.timeline == timeline {
                return Ok(end);
            }
        }
    }
    let history = wal_files::history(&wal.pg_wal, start.at_least)?;
    ensure!(
        history.writer_of(after(start.lsn)) == start.timeline,
        "the checkpoint at {} is of timeline {}, which {} does not say: copy this member anew",
        start.lsn,
        start.timeline,
        start.at_least.history_file_name()
    );
    end_of_wal(wal, &history, start.lsn)
}

/// Finds the end of the log along `history`, beginning with the checkpoint record at `checkpoint`.
pub fn end_of_wal(
    wal: &WalDir,
    history: &TimelineHistory,
    checkpoint: Lsn,
) -> anyhow::Result<EndOfWal> {
    // Half of all positions is more than any log will have, and sums of two of them do not overflow.
    ensure!(
        checkpoint.0 > 0 && checkpoint.0 < u64::MAX / 2,
        "{checkpoint} is no place for a record"
    );
    let mut walk = Walk::new(wal, history)?;
    let first = match walk.record(checkpoint).context("read WAL")? {
        Ok(record) if record.is_checkpoint => record,
        Ok(_) => bail!("the record at {checkpoint} is no checkpoint: copy this member anew"),
        Err(why) => {
            return Err(anyhow!(
                "the checkpoint record at {checkpoint} cannot be read ({why}): copy this member anew"
            ));
        }
    };
    let mut last = first;
    loop {
        let next = walk.record(last.end).context("read WAL")?;
        match next.and_then(|record| belongs(history, record)) {
            Ok(record) => last = record,
            Err(because) => {
                return Ok(EndOfWal {
                    lsn: last.end,
                    timeline: history.writer_of(last.end),
                    last_record: last.start,
                    because,
                });
            }
        }
    }
}

/// A checkpoint record, read from the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Checkpoint {
    /// Where replay from it begins.
    pub redo: Lsn,
    pub segment_size: u32,
}

/// Reads the checkpoint record at `lsn` of `timeline` or one of its ancestors.
pub fn checkpoint(data_dir: &Path, timeline: Timeline, lsn: Lsn) -> anyhow::Result<Checkpoint> {
    let control = ControlFile::read(data_dir)?;
    let wal = wal_dir(data_dir, &control)?;
    let history = wal_files::history(&wal.pg_wal, timeline)?;
    let mut walk = Walk::new(&wal, &history)?;
    let record = walk
        .record(lsn)
        .context("read WAL")?
        .map_err(|why| anyhow!("the checkpoint record at {lsn} cannot be read ({why})"))?;
    let is_checkpoint =
        record.is_checkpoint && walk.body.len() >= BODY && walk.body[0] == SHORT_DATA;
    ensure!(is_checkpoint, "the record at {lsn} is no checkpoint");
    let redo = Lsn(u64_at(&walk.body, 2));
    ensure!(redo <= lsn, "the checkpoint at {lsn} begins later, at {redo}");
    Ok(Checkpoint { redo, segment_size: control.wal_segment_size })
}

/// Refuses a record that another timeline wrote where this history has long gone over to the next one.
pub(super) fn belongs(history: &TimelineHistory, record: Record) -> Result<Record, Absent> {
    let owner = history.writer_of(after(record.start));
    if record.file_timeline < owner || history.writer_of(record.end) != owner {
        return Err("the next record is beyond the switch point of its timeline");
    }
    Ok(record)
}

/// Returns the position whose preceding byte is the one at `lsn`.
fn after(lsn: Lsn) -> Lsn {
    Lsn(lsn.0.saturating_add(1))
}

/// The size of a record's header, and where its checksum stands in it.
const HEADER: usize = 24;
const CRC_AT: usize = 20;

/// How much of a record's data a scan keeps: the id and length of a short main part, and a checkpoint's first field.
const BODY: usize = 10;

/// The id of a main part of less than 256 bytes.
const SHORT_DATA: u8 = 255;

const XLOG_RESOURCE_MANAGER: u8 = 0;
const CHECKPOINT_SHUTDOWN: u8 = 0x00;
const CHECKPOINT_ONLINE: u8 = 0x10;
const SWITCH: u8 = 0x40;

/// The last resource manager of PostgreSQL's own in 15 to 18, and the first of extensions.
const LAST_BUILT_IN: u8 = 21;
const FIRST_CUSTOM: u8 = 128;

#[derive(Debug, Clone, Copy)]
pub(super) struct Record {
    pub(super) start: Lsn,
    /// Where the next one begins, but for page headers.
    pub(super) end: Lsn,
    /// Which part of PostgreSQL wrote it, and what it says to that part.
    pub(super) manager: u8,
    pub(super) info: u8,
    /// How much there is of it besides its header.
    pub(super) data_bytes: usize,
    file_timeline: Timeline,
    is_checkpoint: bool,
}

/// Walks from record to record.
pub(super) struct Walk<'a> {
    pages: PageReader<'a>,
    previous: Option<Lsn>,
    header: [u8; HEADER],
    /// The begin of the last record's data, `keep` bytes at most.
    pub(super) body: Vec<u8>,
    keep: usize,
}

type Read<T> = std::io::Result<Result<T, Absent>>;

/// Returns from the caller's function where there is no page or record.
macro_rules! found {
    ($outcome:expr) => {
        match $outcome {
            Ok(value) => value,
            Err(absent) => return Ok(Err(absent)),
        }
    };
}

impl<'a> Walk<'a> {
    fn new(wal: &'a WalDir, history: &'a TimelineHistory) -> std::io::Result<Self> {
        Self::keeping(BODY, wal, history)
    }

    /// Returns a walk that keeps the first `keep` bytes of each record's data.
    pub(super) fn keeping(
        keep: usize,
        wal: &'a WalDir,
        history: &'a TimelineHistory,
    ) -> std::io::Result<Self> {
        let pages = PageReader::new(wal, history)?;
        Ok(Self {
            pages,
            previous: None,
            header: [0; HEADER],
            body: Vec::with_capacity(keep),
            keep,
        })
    }

    /// Reads the record at or, past a page header, after `at`.
    pub(super) fn record(&mut self, at: Lsn) -> Read<Record> {
        let mut at = at;
        loop {
            match found!(self.attempt(at)?) {
                Attempt::Whole(record) => {
                    self.previous = Some(record.start);
                    return Ok(Ok(record));
                }
                Attempt::Overwritten(page) => at = page,
            }
        }
    }

    fn attempt(&mut self, at: Lsn) -> Read<Attempt> {
        let (address, mut offset) = split(at);
        let page = found!(self.pages.page(address)?);
        if offset == 0 {
            offset = page.header_bytes;
        } else if offset < page.header_bytes {
            return Ok(Err("the position is within a page header"));
        }
        if offset % 8 != 0 {
            return Ok(Err("the position is not aligned"));
        }
        if page.first_is_contrecord() && offset == page.header_bytes {
            return Ok(Err("the page begins with the rest of a record that is not there"));
        }
        let start = Lsn(address + offset as u64);
        let bytes = self.pages.bytes(&page);
        let total = u32_at(bytes, offset) as usize;
        if total < HEADER {
            return Ok(Err("the next record has an invalid length"));
        }
        let mut sum = Sum { got: 0, crc: 0, keep: self.keep };
        self.body.clear();
        let (header, body) = (&mut self.header, &mut self.body);
        sum.feed(header, body, &bytes[offset..(offset + total).min(PAGE as usize)]);
        let mut end = start.0 + align(total as u64);
        if sum.got >= HEADER {
            found!(self.check_header(start));
        }
        if sum.got < total {
            match found!(self.continuation(start, total, &mut sum)?) {
                Continued::To(position) => end = position,
                Continued::Overwritten(page) => return Ok(Ok(Attempt::Overwritten(page))),
            }
        }
        if sum.finish(&self.header) != u32_at(&self.header, CRC_AT) {
            return Ok(Err("the next record has a wrong checksum"));
        }
        let (info, manager) = (self.header[16] & 0xF0, self.header[17]);
        let is_xlog = manager == XLOG_RESOURCE_MANAGER;
        if is_xlog && info == SWITCH {
            end = end.next_multiple_of(self.pages.segment_size());
        }
        Ok(Ok(Attempt::Whole(Record {
            start,
            end: Lsn(end),
            manager,
            info,
            data_bytes: total - HEADER,
            file_timeline: page.file_timeline,
            is_checkpoint: is_xlog && [CHECKPOINT_SHUTDOWN, CHECKPOINT_ONLINE].contains(&info),
        })))
    }

    /// Reads the rest of a record from the pages that follow. Returns where it ends.
    fn continuation(&mut self, start: Lsn, total: usize, sum: &mut Sum) -> Read<Continued> {
        let mut address = split(start).0;
        loop {
            address += PAGE;
            let page = found!(self.pages.page(address)?);
            if page.overwrites_contrecord() {
                return Ok(Ok(Continued::Overwritten(Lsn(address))));
            }
            let remaining = page.remaining_bytes as usize;
            if !page.first_is_contrecord() || remaining == 0 || sum.got + remaining != total {
                return Ok(Err("the rest of the next record is not there"));
            }
            let header_was_split = sum.got < HEADER;
            let bytes = &self.pages.bytes(&page)[page.header_bytes..];
            sum.feed(&mut self.header, &mut self.body, &bytes[..remaining.min(bytes.len())]);
            if header_was_split {
                found!(self.check_header(start));
            }
            if sum.got == total {
                let end = address + page.header_bytes as u64 + align(remaining as u64);
                return Ok(Ok(Continued::To(end)));
            }
        }
    }

    fn check_header(&self, start: Lsn) -> Result<(), Absent> {
        let manager = self.header[17];
        if manager > LAST_BUILT_IN && manager < FIRST_CUSTOM {
            return Err("the next record has an unknown resource manager");
        }
        let link = Lsn(u64_at(&self.header, 8));
        match self.previous {
            Some(previous) if link != previous => {
                Err("the next record links to another one before")
            }
            None if link >= start => Err("the record links to a later one"),
            Some(_) | None => Ok(()),
        }
    }
}

enum Attempt {
    Whole(Record),
    /// The record was never finished; the page at which PostgreSQL went on after its restart.
    Overwritten(Lsn),
}

enum Continued {
    To(u64),
    Overwritten(Lsn),
}

/// Takes a record's bytes piece by piece: keeps the header, sums up the rest.
struct Sum {
    got: usize,
    crc: u32,
    keep: usize,
}

impl Sum {
    fn feed(&mut self, header: &mut [u8; HEADER], body: &mut Vec<u8>, mut bytes: &[u8]) {
        if self.got < HEADER {
            let part = bytes.len().min(HEADER - self.got);
            header[self.got..self.got + part].copy_from_slice(&bytes[..part]);
            self.got += part;
            bytes = &bytes[part..];
        }
        let part = bytes.len().min(self.keep - body.len());
        body.extend_from_slice(&bytes[..part]);
        self.crc = crc32c::crc32c_append(self.crc, bytes);
        self.got += bytes.len();
    }

    /// PostgreSQL sums up the data first and then the header up to the checksum itself.
    fn finish(&self, header: &[u8; HEADER]) -> u32 {
        crc32c::crc32c_append(self.crc, &header[..CRC_AT])
    }
}

fn align(bytes: u64) -> u64 {
    bytes.next_multiple_of(8)
}
