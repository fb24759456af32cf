//! The founder's part: initdb beside the data directory, member files, and only then the data directory's name.

use std::fs;

use anyhow::Context;
use proto::{Epoch, Incarnation};

use super::Worker;
use crate::durable::fsync_dir;
use crate::member_files::Role;
use crate::postgres::control::ControlFile;
use crate::postgres::initdb;
use crate::postgres::settings::SUPERUSER;

/// Creates the cluster's first data directory.
pub async fn found(worker: &Worker) -> anyhow::Result<()> {
    let data_dir = &worker.place.data_dir;
    let bits = store::clock::wall().0 as u64;
    // A directory of its own each time: one that was left half-made by a crash is never reused or removed.
    let fresh = data_dir.with_file_name(format!(
        "{}.founding-{}",
        data_dir.file_name().unwrap_or_default().to_string_lossy(),
        Incarnation::from_random(bits)
    ));
    let spec = worker.spec();
    initdb::initdb(&worker.binaries, &spec.initdb, &fresh, SUPERUSER, &worker.secrets.superuser)
        .await
        .context("create the cluster")?;
    let control = ControlFile::read(&fresh)?;
    worker.save(|files| {
        files.promise = files.promise.max(Epoch(1));
        files.epoch = files.epoch.max(Epoch(1));
        files.role = Role::Primary;
        files.complete = true;
        files.system_identifier = Some(control.system_identifier);
    })?;
    put_in_place(&fresh, data_dir)?;
    tracing::info!(system_identifier = %control.system_identifier, "founded");
    worker.update(|_| {});
    Ok(())
}

/// Gives a finished directory the data directory's name. What has that name must be absent or empty.
pub fn put_in_place(fresh: &std::path::Path, data_dir: &std::path::Path) -> anyhow::Result<()> {
    if data_dir.exists() {
        fs::remove_dir(data_dir)
            .context("the data directory is not empty, so nothing is put in its place")?;
    }
    fs::rename(fresh, data_dir).context("rename the finished directory")?;
    fsync_dir(data_dir.parent().context("the data directory has no parent")?)
        .context("sync the parent directory")
}
