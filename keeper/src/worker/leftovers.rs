//! Removes what copies that were cut have left beside the data directory, before the next one begins: otherwise a
//! disk that is too full for one copy is soon filled by ten.
//!
//! Rule: only directories that a copy of ours makes and that never became a member's data. What a finished copy
//! replaced has another name (`.old-e`) and is a person's to remove, unless the spec says otherwise.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use proto::spec::Replaced;

use super::Worker;
use crate::postgres::tablespaces::links;

/// What stands between the data directory's name and the epoch in a copy's own name.
const UNFINISHED: &str = ".copy-e";

/// Removes unfinished copies beside `data_dir`. Returns them.
pub fn remove_unfinished(data_dir: &Path) -> io::Result<Vec<PathBuf>> {
    let (Some(parent), Some(name)) = (data_dir.parent(), data_dir.file_name()) else {
        return Ok(Vec::new());
    };
    let prefix = format!("{}{UNFINISHED}", name.to_string_lossy());
    let mut removed = Vec::new();
    for entry in fs::read_dir(parent)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let is_ours = name.strip_prefix(&prefix).is_some_and(is_epoch_and_number);
        // The type of the entry itself: a link is somebody else's.
        if is_ours && entry.file_type()?.is_dir() {
            #[expect(clippy::disallowed_methods, reason = "a copy that never became data")]
            fs::remove_dir_all(entry.path())?;
            removed.push(entry.path());
        }
    }
    Ok(removed)
}

/// What stands between the data directory's name and the epoch in the name of data that was replaced.
const REPLACED: &str = ".old-e";

/// Removes, in the background, the data that the last copy replaced, where the spec wants that. To be called when the
/// copy streams and is complete: by then nothing is in the old data that counts.
pub fn remove_replaced_soon(worker: &Arc<Worker>) {
    let kept = worker.local().rejoin.and_then(|rejoin| rejoin.kept).map(PathBuf::from);
    let Some(kept) = kept.filter(|_| worker.spec().rejoin.replaced == Replaced::Remove) else {
        return;
    };
    let worker = Arc::clone(worker);
    tokio::task::spawn_blocking(move || match remove_replaced(&worker.place.data_dir, &kept) {
        Ok(()) => {
            tracing::info!(kept = %kept.display(), "removed the data that a copy replaced");
            worker.update(|local| {
                if let Some(rejoin) = &mut local.rejoin {
                    rejoin.kept = None;
                }
            });
        }
        Err(error) => {
            tracing::warn!(%error, kept = %kept.display(), "the data that a copy replaced stays");
        }
    });
}

/// Removes `kept` if it is what a copy beside `data_dir` has replaced, by its name and by what is in it.
fn remove_replaced(data_dir: &Path, kept: &Path) -> io::Result<()> {
    let names = (data_dir.file_name(), kept.file_name());
    let is_ours = match names {
        (Some(data), Some(name)) => name
            .to_string_lossy()
            .strip_prefix(&format!("{}{REPLACED}", data.to_string_lossy()))
            .is_some_and(is_epoch_and_number),
        _ => false,
    };
    let is_data = fs::symlink_metadata(kept)?.is_dir() && kept.join("PG_VERSION").exists();
    if !is_ours || kept.parent() != data_dir.parent() || !is_data {
        let text = format!("{} is not what a copy replaced", kept.display());
        return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
    }
    for (_, tablespace) in links(kept)? {
        let name = tablespace.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let was_set_aside =
            name.rsplit_once(REPLACED).is_some_and(|(_, numbers)| is_epoch_and_number(numbers));
        if was_set_aside && fs::symlink_metadata(&tablespace).is_ok_and(|found| found.is_dir()) {
            #[expect(clippy::disallowed_methods, reason = "of data that a copy has replaced")]
            fs::remove_dir_all(&tablespace)?;
        }
    }
    #[expect(clippy::disallowed_methods, reason = "replaced by a copy that streams, as ordered")]
    fs::remove_dir_all(kept)
}

fn is_epoch_and_number(text: &str) -> bool {
    let is_number = |t: &str| !t.is_empty() && t.bytes().all(|b| b.is_ascii_digit());
    text.split_once('.').is_some_and(|(epoch, number)| is_number(epoch) && is_number(number))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_copies_that_never_became_data_go() {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join("a");
        let stay =
            ["a", "a.old-e3.1", "a.pgdeputy", "ab.copy-e3.1", "a.copy-e3", "a.copy-e3.1.bak"];
        for name in stay.into_iter().chain(["a.copy-e3.1", "a.copy-e12.20"]) {
            fs::create_dir(dir.path().join(name)).unwrap();
            fs::write(dir.path().join(name).join("PG_VERSION"), "15").unwrap();
        }
        let target = dir.path().join("a.old-e3.1");
        std::os::unix::fs::symlink(target, dir.path().join("a.copy-e3.2")).unwrap();
        assert_eq!(remove_unfinished(&data).unwrap().len(), 2);
        assert!(stay.iter().all(|name| dir.path().join(name).join("PG_VERSION").exists()));
        assert!(dir.path().join("a.copy-e3.2").is_symlink());
        assert_eq!(remove_unfinished(&data).unwrap().len(), 0);
    }

    #[test]
    fn of_replaced_data_only_what_bears_its_name_goes() {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join("a");
        let other = dir.path().join("other");
        for path in [&data, &other, &other.join("a.old-e3.1"), &dir.path().join("a.old-e3.1")] {
            fs::create_dir(path).unwrap();
            fs::write(path.join("PG_VERSION"), "15").unwrap();
        }
        fs::create_dir(dir.path().join("a.old-e3.2")).unwrap();
        std::os::unix::fs::symlink(&other, dir.path().join("a.old-e3.3")).unwrap();
        for stays in ["a", "other", "other/a.old-e3.1", "a.old-e3.2", "a.old-e3.3", "a.old-e4.1"] {
            assert!(remove_replaced(&data, &dir.path().join(stays)).is_err(), "{stays}");
        }
        assert!(other.join("PG_VERSION").exists() && data.join("PG_VERSION").exists());
        let kept = dir.path().join("a.old-e3.1");
        fs::create_dir(kept.join("pg_tblspc")).unwrap();
        for (oid, name) in [("1", "fast.old-e3.1"), ("2", "slow")] {
            fs::create_dir(dir.path().join(name)).unwrap();
            std::os::unix::fs::symlink(dir.path().join(name), kept.join("pg_tblspc").join(oid))
                .unwrap();
        }
        remove_replaced(&data, &kept).unwrap();
        assert!(!kept.exists() && !dir.path().join("fast.old-e3.1").exists());
        assert!(dir.path().join("slow").exists(), "it may be in use");
    }
}
