//! Keeps a member's own WAL through a rewind by hard links under a second name, which pg_rewind leaves alone.
//!
//! pg_rewind removes what only the target has and copies what both have, except files whose path ends with
//! `PG_VERSION`. A link, unlike another name, leaves the segment where pg_rewind itself must read it, and a cut
//! anywhere leaves all bytes in place.
//!
//! Rule: exactly those files get a second name that the source does not list: copying over a linked file would write
//! into both names.

use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use proto::Timeline;

use super::wal_files::Segment;
use crate::durable::{fsync_dir, remove_if_there};

/// The end of a second name.
pub const KEPT: &str = ".pgdeputy-keep.PG_VERSION";

/// The directory in `pg_wal` that says what was archived.
const STATUS: &str = "archive_status";

/// A file of `pg_wal` that has a second name; `name` is the first, below `pg_wal`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeptFile {
    pub name: String,
    pub bytes: u64,
}

/// Where the member's log leaves the source's, by segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ForkSegment {
    pub common: Timeline,
    pub number: u64,
    pub segment_size: u32,
}

impl ForkSegment {
    /// Returns whether the source's version of this segment is hidden from pg_rewind if the member has one: both have
    /// it, or it holds WAL of the member's own that a second try needs.
    fn hides(&self, segment: Segment) -> bool {
        segment.number < self.number || self.is_diverged(segment)
    }

    fn is_diverged(&self, segment: Segment) -> bool {
        segment.timeline == self.common && segment.number >= self.number
    }
}

/// Gives the member's own WAL second names. An error leaves some of them; `restore` takes them away.
pub fn keep(pg_wal: &Path, fork: &ForkSegment) -> io::Result<Vec<KeptFile>> {
    let mut kept = Vec::new();
    for (path, metadata) in files(pg_wal)? {
        let name = file_name(&path);
        let Some(segment) = Segment::parse(&name, fork.segment_size) else { continue };
        if !fork.hides(segment) || metadata.len() != u64::from(fork.segment_size) {
            continue;
        }
        link(&path)?;
        kept.push(KeptFile { name, bytes: metadata.len() });
    }
    fsync_dir(pg_wal)?;
    let status = pg_wal.join(STATUS);
    for (path, metadata) in files(&status)? {
        let name = file_name(&path);
        let segment =
            name.split_once('.').and_then(|(name, _)| Segment::parse(name, fork.segment_size));
        let ours = segment.is_some_and(|s| s.number < fork.number) && metadata.len() == 0;
        if ours && (name.ends_with(".done") || name.ends_with(".ready")) {
            link(&path)?;
            kept.push(KeptFile { name: format!("{STATUS}/{name}"), bytes: 0 });
        }
    }
    if status.is_dir() {
        fsync_dir(&status)?;
    }
    kept.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(kept)
}

/// Puts every kept file back under its first name, after a rewind that failed or was cut. Returns how many there were.
pub fn restore(pg_wal: &Path) -> io::Result<usize> {
    let mut restored = 0;
    for dir in [pg_wal.to_owned(), pg_wal.join(STATUS)] {
        let second_names = second_names(&dir)?;
        restored += second_names.len();
        for second in &second_names {
            put_back(second)?;
        }
        if !second_names.is_empty() {
            fsync_dir(&dir)?;
        }
    }
    Ok(restored)
}

/// After a finished rewind: puts back what is before the fork, and takes away the member's own WAL from the fork on,
/// which would otherwise be replayed. Returns the paths of the diverged segments' last names before they go, so that
/// `take` can save them.
pub fn finish(
    pg_wal: &Path,
    fork: &ForkSegment,
    mut take: impl FnMut(&Path, &str) -> io::Result<()>,
) -> io::Result<()> {
    for second in second_names(pg_wal)? {
        let first = first_name(&second);
        let name = file_name(&first);
        if Segment::parse(&name, fork.segment_size).is_some_and(|s| fork.is_diverged(s)) {
            take(&second, &name)?;
            remove_if_there(&first)?;
            remove_if_there(&second)?;
        } else {
            put_back(&second)?;
        }
    }
    fill_up(pg_wal, fork)?;
    fsync_dir(pg_wal)?;
    let status = pg_wal.join(STATUS);
    for second in second_names(&status)? {
        let first = first_name(&second);
        let other = match file_name(&first).rsplit_once('.') {
            Some((name, "done")) => format!("{name}.ready"),
            Some((name, _)) => format!("{name}.done"),
            None => continue,
        };
        if first.exists() || status.join(other).exists() {
            remove_if_there(&second)?;
        } else {
            put_back(&second)?;
        }
    }
    if status.is_dir() { fsync_dir(&status) } else { Ok(()) }
}

/// Gives the source's newest segment its full length, of which only what was written has come. The rest is received.
fn fill_up(pg_wal: &Path, fork: &ForkSegment) -> io::Result<()> {
    let size = u64::from(fork.segment_size);
    for (path, metadata) in files(pg_wal)? {
        let segment = Segment::parse(&file_name(&path), fork.segment_size);
        let is_new = segment.is_some_and(|s| s.timeline > fork.common && s.number >= fork.number);
        if is_new && metadata.len() < size {
            let file = fs::File::options().write(true).open(&path)?;
            file.set_len(size)?;
            file.sync_all()?;
        }
    }
    Ok(())
}

fn link(path: &Path) -> io::Result<()> {
    let second = path.with_file_name(format!("{}{KEPT}", file_name(path)));
    match fs::hard_link(path, &second) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && is_same(path, &second)? => {
            Ok(())
        }
        outcome => outcome,
    }
}

fn put_back(second: &Path) -> io::Result<()> {
    let first = first_name(second);
    // Renaming one name of a file over another one of it reports success and does nothing.
    if first.exists() && is_same(&first, second)? {
        fs::remove_file(second)
    } else {
        fs::rename(second, first)
    }
}

fn is_same(one: &Path, other: &Path) -> io::Result<bool> {
    let (one, other) = (fs::metadata(one)?, fs::metadata(other)?);
    Ok((one.dev(), one.ino()) == (other.dev(), other.ino()))
}

fn first_name(second: &Path) -> PathBuf {
    second.with_file_name(file_name(second).trim_end_matches(KEPT))
}

fn second_names(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let files = files(dir)?.into_iter().map(|(path, _)| path);
    Ok(files.filter(|path| file_name(path).ends_with(KEPT)).collect())
}

/// Returns the regular files of a directory; none where there is no directory.
fn files(dir: &Path) -> io::Result<Vec<(PathBuf, Metadata)>> {
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry?;
        let metadata = entry.metadata()?;
        if metadata.is_file() {
            found.push((entry.path(), metadata));
        }
    }
    Ok(found)
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    const FORK: ForkSegment = ForkSegment { common: Timeline(1), number: 4, segment_size: 1 << 20 };

    fn name(timeline: u32, number: u64) -> String {
        Segment { timeline: Timeline(timeline), number }.file_name(FORK.segment_size)
    }

    fn wal(segments: &[(u32, u64)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join(STATUS)).unwrap();
        for (timeline, number) in segments {
            let bytes = vec![*number as u8; FORK.segment_size as usize];
            fs::write(dir.path().join(name(*timeline, *number)), bytes).unwrap();
        }
        dir
    }

    fn names(dir: &Path) -> Vec<String> {
        let mut names: Vec<String> =
            files(dir).unwrap().iter().map(|(path, _)| file_name(path)).collect();
        names.sort();
        names
    }

    #[test]
    fn what_the_source_still_lists_gets_no_second_name() {
        let dir = wal(&[(1, 3), (1, 4), (2, 4), (2, 5)]);
        fs::write(dir.path().join(name(1, 2)), "too short to be a segment").unwrap();
        let kept = keep(dir.path(), &FORK).unwrap();
        let kept: Vec<&str> = kept.iter().map(|k| k.name.as_str()).collect();
        assert_eq!(kept, [name(1, 3), name(1, 4)]);
    }

    #[test]
    fn restored_is_all_as_it_was_wherever_the_rewind_was_cut() {
        let segments = [(1, 2), (1, 3), (1, 4), (1, 5)];
        // How far pg_rewind got with removing first names, or with copying its own version in their place.
        for removed in 0..=segments.len() {
            for replaced in 0..=removed {
                let dir = wal(&segments);
                keep(dir.path(), &FORK).unwrap();
                for (at, (timeline, number)) in segments[..removed].iter().enumerate() {
                    let path = dir.path().join(name(*timeline, *number));
                    fs::remove_file(&path).unwrap();
                    if at < replaced {
                        fs::write(&path, "the source's").unwrap();
                    }
                }
                assert_eq!(restore(dir.path()).unwrap(), segments.len());
                assert_eq!(restore(dir.path()).unwrap(), 0);
                for (timeline, number) in segments {
                    let bytes = fs::read(dir.path().join(name(timeline, number))).unwrap();
                    assert!(bytes.iter().all(|b| *b == number as u8));
                }
                assert_eq!(names(dir.path()).len(), segments.len());
            }
        }
    }

    #[test]
    fn a_finished_rewind_keeps_what_is_common_and_hands_out_what_diverged() {
        let dir = wal(&[(1, 3), (1, 4), (1, 5)]);
        let status = dir.path().join(STATUS);
        for number in [3, 4] {
            fs::write(status.join(format!("{}.done", name(1, number))), "").unwrap();
        }
        keep(dir.path(), &FORK).unwrap();
        for number in [3, 4] {
            fs::remove_file(dir.path().join(name(1, number))).unwrap();
            fs::remove_file(status.join(format!("{}.done", name(1, number)))).unwrap();
        }
        fs::write(dir.path().join(name(2, 4)), "only what was written").unwrap();
        let mut taken = Vec::new();
        for _ in 0..2 {
            // The second time as after a cut: nothing is left to do.
            finish(dir.path(), &FORK, |path, name| {
                assert!(path.exists());
                taken.push(name.to_owned());
                Ok(())
            })
            .unwrap();
        }
        taken.sort();
        assert_eq!(taken, [name(1, 4), name(1, 5)]);
        assert_eq!(names(dir.path()), [name(1, 3), name(2, 4)]);
        let newest = fs::read(dir.path().join(name(2, 4))).unwrap();
        assert_eq!(newest.len(), FORK.segment_size as usize);
        assert!(newest.starts_with(b"only what was written\0"));
        assert_eq!(names(&status), [format!("{}.done", name(1, 3))]);
    }
}
