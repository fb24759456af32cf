//! Writes files so that they survive a crash of the machine at any instant.
//!
//! Rule: after a return without error the new content is on disk; before it the old or the new one, never a mixture.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// Replaces the content of `path`, with file permissions `mode`.
///
/// One writer at a time for each path: the temporary name beside it is always the same, so that crashes leave at
/// most one.
pub fn write_atomic(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let (file, temporary) = write_beside(path, bytes, mode)?;
    file.sync_all()?;
    drop(file);
    fs::rename(&temporary, path)?;
    fsync_dir(parent(path)?)
}

/// Replaces the content of `path` for readers on this running machine: the old or the new one, never a mixture. After
/// a crash of the machine it may be either or empty, so this is for files that are written anew before each use.
pub fn replace(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let (_, temporary) = write_beside(path, bytes, mode)?;
    fs::rename(&temporary, path)
}

fn write_beside(path: &Path, bytes: &[u8], mode: u32) -> io::Result<(File, PathBuf)> {
    let temporary = temporary_name(path)?;
    // A leftover may have other permissions or owner, which opening it would keep.
    remove_if_there(&temporary)?;
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&temporary)?;
    // The umask took its part of `mode` away at creation.
    file.set_permissions(Permissions::from_mode(mode))?;
    file.write_all(bytes)?;
    Ok((file, temporary))
}

/// Makes the names in `dir` durable: files created, renamed or removed in it.
pub fn fsync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

/// Returns the content of `path`, `None` where there is no such file.
pub fn read_optional(path: &Path) -> io::Result<Option<Vec<u8>>> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Removes a file. Returns whether there was one. Not durable before the directory is synced.
pub fn remove_if_there(path: &Path) -> io::Result<bool> {
    match fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// Returns the directory that holds `path`.
pub fn parent(path: &Path) -> io::Result<&Path> {
    match path.parent() {
        Some(dir) if dir.as_os_str().is_empty() => Ok(Path::new(".")),
        Some(dir) => Ok(dir),
        None => Err(io::Error::new(io::ErrorKind::InvalidInput, format!("{path:?} is no file"))),
    }
}

fn temporary_name(path: &Path) -> io::Result<PathBuf> {
    let name = path.file_name().ok_or_else(|| {
        io::Error::new(io::ErrorKind::InvalidInput, format!("{path:?} names no file"))
    })?;
    let mut hidden = OsString::from(".");
    hidden.push(name);
    hidden.push(".new");
    Ok(path.with_file_name(hidden))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_replaced_file_has_the_new_content_and_mode_and_leaves_nothing_beside_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("member.json");
        fs::write(&path, "old").unwrap();
        // What a crash in the middle of an earlier write leaves behind.
        fs::write(dir.path().join(".member.json.new"), "a much longer torn text").unwrap();
        write_atomic(&path, b"new", 0o600).unwrap();
        assert_eq!(read_optional(&path).unwrap().as_deref(), Some(&b"new"[..]));
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_write_that_fails_keeps_the_old_content() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("member.json");
        fs::write(&path, "old").unwrap();
        // A directory in the place of the temporary file: it can neither be removed nor opened for writing.
        fs::create_dir(dir.path().join(".member.json.new")).unwrap();
        assert!(write_atomic(&path, b"new", 0o600).is_err());
        assert_eq!(fs::read_to_string(&path).unwrap(), "old");
    }

    #[test]
    fn an_absent_file_is_none_and_an_unreadable_one_an_error() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(read_optional(&dir.path().join("none")).unwrap(), None);
        assert!(read_optional(dir.path()).is_err());
        assert!(!remove_if_there(&dir.path().join("none")).unwrap());
    }
}
