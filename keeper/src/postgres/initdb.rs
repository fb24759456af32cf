//! Creates a new database cluster in a fresh directory, which the caller renames into place.
//!
//! Rule: it never touches a directory that has anything in it, and the password is never on a disk or a command line.

use std::fs;
use std::io::{self, Write};
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use proto::spec::Initdb;

use super::binaries::PostgresBinaries;
use super::control::ControlFile;
use super::program;

/// It says something at each of its steps; the longest, syncing some thousand small files, takes seconds.
const PATIENCE: Duration = Duration::from_secs(300);

/// Runs initdb into `into`, which must be absent or empty. Returns what was made.
pub async fn initdb(
    binaries: &PostgresBinaries,
    spec: &Initdb,
    into: &Path,
    superuser: &str,
    password: &str,
) -> anyhow::Result<ControlFile> {
    ensure!(!password.is_empty(), "the superuser's password is empty");
    ensure!(!password.contains(['\n', '\r', '\0']), "the superuser's password has a line break");
    ensure!(is_absent_or_empty(into)?, "{} is not empty: initdb is not run", into.display());
    let mut command = program::command(&binaries.initdb(), binaries.user());
    command
        .arg("--pgdata")
        .arg(into)
        .arg(format!("--username={superuser}"))
        .arg("--pwfile=/dev/stdin")
        .args(["--auth-local=scram-sha-256", "--auth-host=scram-sha-256"])
        .args(["--data-checksums", "--no-instructions"])
        .arg(format!("--wal-segsize={}", spec.wal_segment_size_mb))
        .arg(format!("--encoding={}", spec.encoding))
        .arg(format!("--locale={}", spec.locale))
        .stdin(in_memory(password).context("hand the superuser's password to initdb")?);
    let finished = program::run(command, |_| PATIENCE).await?;
    if !finished.status.success() {
        bail!("initdb {}: {}", finished.ending(), finished.last_words());
    }
    let control = ControlFile::read(into)?;
    ensure!(control.is_clean(), "initdb left the cluster {}", control.state.describe());
    Ok(control)
}

/// Returns a file without a name that holds the password, opened at its beginning.
fn in_memory(password: &str) -> io::Result<Stdio> {
    let flags = nix::sys::memfd::MFdFlags::MFD_CLOEXEC;
    let mut file = fs::File::from(nix::sys::memfd::memfd_create(c"pgdeputy-password", flags)?);
    writeln!(file, "{password}")?;
    Ok(Stdio::from(file))
}

/// Returns whether nothing would be lost by creating something at `dir`.
pub fn is_absent_or_empty(dir: &Path) -> anyhow::Result<bool> {
    match fs::read_dir(dir) {
        Ok(mut entries) => Ok(entries.next().is_none()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(true),
        Err(error) => Err(error).with_context(|| format!("look into {}", dir.display())),
    }
}
