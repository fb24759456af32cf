//! Names and history files in `pg_wal`: which timeline wrote a position, and which number the next one will get.
//!
//! Rule: a position at or before a switch point belongs to the parent.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use proto::{Lsn, Timeline, TimelineHistory};

use crate::durable;

/// A WAL segment: its timeline and its number from the beginning of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Segment {
    pub timeline: Timeline,
    pub number: u64,
}

impl Segment {
    /// Returns the segment of `timeline` that holds the byte at `lsn`.
    pub fn at(timeline: Timeline, lsn: Lsn, segment_size: u32) -> Self {
        Self { timeline, number: lsn.0 / u64::from(segment_size) }
    }

    /// Returns its file name, such as `000000010000000000000003`.
    pub fn file_name(self, segment_size: u32) -> String {
        let per_id = (1_u64 << 32) / u64::from(segment_size);
        let (high, low) = (self.number / per_id, self.number % per_id);
        format!("{:08X}{high:08X}{low:08X}", self.timeline.0)
    }

    /// Reads a file name; `None` if it is not that of a segment (`.partial`, `.backup`, `.history`, temporary files).
    pub fn parse(name: &str, segment_size: u32) -> Option<Self> {
        let per_id = (1_u64 << 32) / u64::from(segment_size);
        if name.len() != 24 || !name.bytes().all(|b| matches!(b, b'0'..=b'9' | b'A'..=b'F')) {
            return None;
        }
        let part = |range| u64::from_str_radix(&name[range], 16).ok();
        let (timeline, high, low) = (part(0..8)?, part(8..16)?, part(16..24)?);
        if timeline == 0 || low >= per_id {
            return None;
        }
        Some(Self { timeline: Timeline(timeline as u32), number: high * per_id + low })
    }
}

/// Returns the history of `timeline`: that of its file, and none where there is no file, as PostgreSQL takes it.
pub fn history(pg_wal: &Path, timeline: Timeline) -> anyhow::Result<TimelineHistory> {
    let path = pg_wal.join(timeline.history_file_name());
    let text = durable::read_optional(&path).with_context(|| format!("read {}", path.display()))?;
    let Some(text) = text else { return Ok(TimelineHistory::first(timeline)) };
    // Comments may be in any encoding; what counts is ASCII.
    TimelineHistory::parse(timeline, &String::from_utf8_lossy(&text))
        .with_context(|| format!("read {}", path.display()))
}

/// Returns the timeline that wrote the byte before `lsn`: that of the newest segment file that holds it, or the
/// ancestor of it that the history names. `None` if no file holds it.
pub fn newest_timeline_holding(
    pg_wal: &Path,
    lsn: Lsn,
    segment_size: u32,
) -> anyhow::Result<Option<Timeline>> {
    let wanted = Lsn(lsn.0.saturating_sub(1)).0 / u64::from(segment_size);
    let newest = segments(pg_wal, segment_size)
        .with_context(|| format!("list {}", pg_wal.display()))?
        .into_iter()
        .filter(|segment| segment.number == wanted)
        .map(|segment| segment.timeline)
        .max();
    match newest {
        None => Ok(None),
        Some(newest) => Ok(Some(history(pg_wal, newest)?.writer_of(lsn))),
    }
}

/// Returns the timelines above `reach` of which `pg_wal` holds segments or a history, though its log has not got that
/// far. PostgreSQL would take such a segment for the whole of its part of the log, also where an older timeline's has
/// more, and would never leave such a history for another timeline.
pub fn unreached(
    pg_wal: &Path,
    reach: Timeline,
    segment_size: u32,
) -> anyhow::Result<BTreeSet<Timeline>> {
    let segments = segments(pg_wal, segment_size)
        .with_context(|| format!("list {}", pg_wal.display()))?
        .into_iter()
        .map(|segment| segment.timeline);
    let histories = history_files(pg_wal)?.into_iter().filter(|(_, bytes)| *bytes > 0);
    Ok(segments.chain(histories.map(|(timeline, _)| timeline)).filter(|t| *t > reach).collect())
}

/// Gives the files of `unreached` another name, under which PostgreSQL does not see them. Not for a running server.
pub fn set_unreached_aside(
    pg_wal: &Path,
    reach: Timeline,
    segment_size: u32,
) -> anyhow::Result<BTreeSet<Timeline>> {
    let timelines = unreached(pg_wal, reach, segment_size)?;
    if timelines.is_empty() {
        return Ok(timelines);
    }
    let list = fs::read_dir(pg_wal).with_context(|| format!("list {}", pg_wal.display()))?;
    for entry in list {
        let entry = entry.with_context(|| format!("list {}", pg_wal.display()))?;
        let Some(name) = entry.file_name().to_str().map(str::to_owned) else { continue };
        let segment = Segment::parse(&name, segment_size).map(|segment| segment.timeline);
        let timeline = segment.or_else(|| parse_history_name(&name));
        if timeline.is_some_and(|timeline| timelines.contains(&timeline)) {
            let aside = pg_wal.join(format!("{name}.unreached"));
            fs::rename(entry.path(), &aside)
                .with_context(|| format!("rename {name} to {}", aside.display()))?;
        }
    }
    durable::fsync_dir(pg_wal).with_context(|| format!("sync {}", pg_wal.display()))?;
    Ok(timelines)
}

/// Removes the segments of `timeline` and later ones from that of `lsn` on, newest first, so that a cut leaves no hole.
/// `take` has each before it goes. Returns their names. Not for a running server.
pub fn remove_from(
    pg_wal: &Path,
    timeline: Timeline,
    lsn: Lsn,
    segment_size: u32,
    mut take: impl FnMut(&Path, &str) -> io::Result<()>,
) -> io::Result<Vec<String>> {
    let first = lsn.0 / u64::from(segment_size);
    let mut segments = segments(pg_wal, segment_size)?;
    segments.retain(|s| s.timeline >= timeline && s.number >= first);
    segments.sort_by_key(|s| std::cmp::Reverse((s.number, s.timeline)));
    let mut removed = Vec::new();
    for segment in segments {
        let name = segment.file_name(segment_size);
        let path = pg_wal.join(&name);
        take(&path, &name)?;
        durable::remove_if_there(&path)?;
        removed.push(name);
    }
    durable::fsync_dir(pg_wal)?;
    Ok(removed)
}

/// Returns all segments in `pg_wal`, in no particular order.
pub fn segments(pg_wal: &Path, segment_size: u32) -> io::Result<Vec<Segment>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(pg_wal)? {
        let name = entry?.file_name();
        found.extend(name.to_str().and_then(|name| Segment::parse(name, segment_size)));
    }
    Ok(found)
}

/// Puts an empty history file for every timeline from 2 to `up_to` that has none, so that the next promotion here
/// gets the number after `up_to`. Fails, without a promise about the files, if it would get another one.
///
/// PostgreSQL counts up from its own timeline to the first number without a history file. Followers look for the
/// file of every number up to the primary's, so the placeholders stay until `remove_placeholders`.
pub fn place_placeholders(pg_wal: &Path, up_to: Timeline) -> anyhow::Result<()> {
    for number in 2..=up_to.0 {
        let path = pg_wal.join(Timeline(number).history_file_name());
        match OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path) {
            Ok(file) => file.sync_all().with_context(|| format!("sync {}", path.display()))?,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error).with_context(|| format!("create {}", path.display())),
        }
    }
    durable::fsync_dir(pg_wal).with_context(|| format!("sync {}", pg_wal.display()))?;
    let files = history_files(pg_wal)?;
    for number in 2..=up_to.0 {
        ensure!(
            files.contains_key(&Timeline(number)),
            "{} vanished from {}",
            Timeline(number).history_file_name(),
            pg_wal.display()
        );
    }
    let highest = files.keys().next_back().copied().unwrap_or(Timeline(1));
    ensure!(
        highest <= up_to.max(Timeline(1)),
        "{} has {}: a promotion would not get timeline {}",
        pg_wal.display(),
        highest.history_file_name(),
        up_to.next()
    );
    Ok(())
}

/// Removes empty history files, but those below a history file with content: followers of that timeline still ask
/// for them. Returns the timelines whose placeholder went.
pub fn remove_placeholders(pg_wal: &Path) -> anyhow::Result<Vec<Timeline>> {
    let files = history_files(pg_wal)?;
    let last_real =
        files.iter().rev().find(|(_, bytes)| **bytes > 0).map(|(timeline, _)| *timeline);
    let mut removed = Vec::new();
    for (timeline, bytes) in files {
        if bytes == 0 && last_real.is_none_or(|real| timeline > real) {
            let path = pg_wal.join(timeline.history_file_name());
            durable::remove_if_there(&path)
                .with_context(|| format!("remove {}", path.display()))?;
            removed.push(timeline);
        }
    }
    if !removed.is_empty() {
        durable::fsync_dir(pg_wal).with_context(|| format!("sync {}", pg_wal.display()))?;
    }
    Ok(removed)
}

/// Returns the history files of `pg_wal` with their sizes in bytes.
pub fn history_files(pg_wal: &Path) -> anyhow::Result<BTreeMap<Timeline, u64>> {
    let list = || -> io::Result<BTreeMap<Timeline, u64>> {
        let mut found = BTreeMap::new();
        for entry in fs::read_dir(pg_wal)? {
            let entry = entry?;
            let Some(timeline) = entry.file_name().to_str().and_then(parse_history_name) else {
                continue;
            };
            found.insert(timeline, fs::metadata(entry.path())?.len());
        }
        Ok(found)
    };
    list().with_context(|| format!("list history files of {}", pg_wal.display()))
}

fn parse_history_name(name: &str) -> Option<Timeline> {
    let number = name.strip_suffix(".history")?;
    if number.len() != 8 || !number.bytes().all(|b| matches!(b, b'0'..=b'9' | b'A'..=b'F')) {
        return None;
    }
    u32::from_str_radix(number, 16).ok().filter(|n| *n > 0).map(Timeline)
}

/// Returns the real directory behind `<data dir>/pg_wal`, which may be a symbolic link.
pub fn pg_wal_of(data_dir: &Path) -> anyhow::Result<PathBuf> {
    let path = data_dir.join("pg_wal");
    fs::canonicalize(&path).with_context(|| format!("find {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MB: u32 = 1 << 20;

    fn dir_with(files: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in files {
            fs::write(dir.path().join(name), text).unwrap();
        }
        dir
    }

    fn names(dir: &Path) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(dir)
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn pieces_of_a_timeline_that_the_log_has_not_reached_are_found_and_set_aside() {
        let files = [
            ("000000010000000000000003", "log"),
            ("000000020000000000000003", "piece"),
            ("00000002.history", "1\t0/300148\tx\n"),
            // A placeholder says nothing, and is another rule's to remove.
            ("00000003.history", ""),
        ];
        let dir = dir_with(&files);
        assert!(unreached(dir.path(), Timeline(2), MB).unwrap().is_empty());
        let aside = set_unreached_aside(dir.path(), Timeline(1), MB).unwrap();
        assert_eq!(aside, [Timeline(2)].into());
        assert_eq!(
            names(dir.path()),
            [
                "000000010000000000000003",
                "00000002.history.unreached",
                "000000020000000000000003.unreached",
                "00000003.history",
            ]
        );
        assert!(unreached(dir.path(), Timeline(1), MB).unwrap().is_empty());
    }

    #[test]
    fn segment_names_are_postgresqls_for_every_segment_size() {
        let at = |lsn: u64, size| Segment::at(Timeline(1), Lsn(lsn), size).file_name(size);
        assert_eq!(at(0x3000060, 16 * MB), "000000010000000000000003");
        assert_eq!(at(0x16_B374_D848, 16 * MB), "0000000100000016000000B3");
        assert_eq!(at(0x16_B374_D848, MB), "000000010000001600000B37");
        assert_eq!(at(0x16_B374_D848, 1024 * MB), "000000010000001600000002");
        for size in [MB, 16 * MB, 1024 * MB] {
            let segment = Segment { timeline: Timeline(0x2A), number: 77_777 };
            assert_eq!(Segment::parse(&segment.file_name(size), size), Some(segment));
        }
        for other in [
            "000000010000000000000003.partial",
            "00000001000000000000000",
            "00000001000000000000000a",
            "000000000000000000000003",
            "000000010000000000000100",
            "00000002.history",
            "archive_status",
        ] {
            assert_eq!(Segment::parse(other, 16 * MB), None, "{other}");
        }
    }

    #[test]
    fn a_position_at_the_switch_point_is_the_parents_though_the_childs_file_holds_it() {
        let dir = dir_with(&[
            ("000000010000000000000002", ""),
            ("000000010000000000000003", ""),
            ("000000020000000000000003", ""),
            ("00000002.history", "1\t0/3000148\tno recovery target specified\n"),
            ("000000030000000000000004.partial", ""),
        ]);
        let newest = |lsn| newest_timeline_holding(dir.path(), Lsn(lsn), 16 * MB).unwrap();
        assert_eq!(newest(0x3000148), Some(Timeline(1)));
        assert_eq!(newest(0x3000149), Some(Timeline(2)));
        assert_eq!(newest(0x4000000), Some(Timeline(2)));
        assert_eq!(newest(0x3000000), Some(Timeline(1)));
        assert_eq!(newest(0x4000001), None);
    }

    #[test]
    fn placeholders_fill_every_gap_and_keep_what_is_there() {
        let real = "1\t0/3000148\treason\n";
        let dir = dir_with(&[("00000003.history", real)]);
        place_placeholders(dir.path(), Timeline(5)).unwrap();
        assert_eq!(
            names(dir.path()),
            ["00000002.history", "00000003.history", "00000004.history", "00000005.history"]
        );
        assert_eq!(fs::read_to_string(dir.path().join("00000003.history")).unwrap(), real);
        place_placeholders(dir.path(), Timeline(5)).unwrap();
        assert_eq!(history(dir.path(), Timeline(4)).unwrap(), TimelineHistory::first(Timeline(4)));
    }

    #[test]
    fn a_history_file_above_the_placeholders_is_an_error_because_the_number_would_be_another() {
        let dir = dir_with(&[("00000005.history", "1\t0/3000148\treason\n")]);
        let error = place_placeholders(dir.path(), Timeline(4)).unwrap_err().to_string();
        assert!(error.contains("00000005.history"), "{error}");
        let empty = dir_with(&[]);
        place_placeholders(empty.path(), Timeline(1)).unwrap();
        assert!(names(empty.path()).is_empty());
    }

    #[test]
    fn only_empty_files_above_the_last_real_history_are_removed() {
        let dir = dir_with(&[
            ("00000002.history", ""),
            ("00000003.history", "1\t0/3000148\treason\n"),
            ("00000004.history", ""),
            ("00000005.history", ""),
            ("000000010000000000000003", ""),
        ]);
        assert_eq!(remove_placeholders(dir.path()).unwrap(), [Timeline(4), Timeline(5)]);
        assert_eq!(
            names(dir.path()),
            ["000000010000000000000003", "00000002.history", "00000003.history"]
        );
        assert_eq!(remove_placeholders(dir.path()).unwrap(), []);
    }
}
