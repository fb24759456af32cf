//! Removes what copies that were cut have left beside the data directory, before the next one begins: otherwise a
//! disk that is too full for one copy is soon filled by ten.
//!
//! Rule: only directories that a copy of ours makes and that never became a member's data. What a finished copy
//! replaced has another name (`.old-e`) and is a person's to remove.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

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
}
