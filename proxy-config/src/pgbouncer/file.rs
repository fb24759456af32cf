//! Puts the file with the databases in place. A file of a higher epoch is never replaced by one of a lower, also not by a
//! proxy-config that stood still and goes on with old news (I19); one that somebody else wrote is never replaced at all.

use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};
use nix::fcntl::{Flock, FlockArg};
use proto::ClusterName;

use crate::header::{Comment, Installed, read_back};
use crate::route::Routes;

/// PgBouncer often runs as another user. There is no secret in it.
const MODE: u32 = 0o644;

/// Returns the routes that the installed file was written for; none if there is no file.
pub fn installed(path: &Path, cluster: &ClusterName) -> anyhow::Result<Option<Routes>> {
    let shown = path.display();
    let text = match fs::read_to_string(path) {
        Ok(text) if text.trim().is_empty() => return Ok(None),
        Ok(text) => text,
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(e).with_context(|| format!("read {shown}")),
    };
    match read_back(Comment::Pgbouncer, &text) {
        Installed::Ours { cluster: of, routes } if of == cluster.as_str() => Ok(Some(*routes)),
        Installed::Ours { cluster: of, .. } => bail!(
            "{shown} belongs to cluster {of}, not {cluster}: choose another --pgbouncer-config"
        ),
        Installed::Foreign => bail!(
            "{shown} was not written by pgdeputy: move it away, or choose another --pgbouncer-config; it is a file of \
             its own, which pgbouncer.ini includes"
        ),
    }
}

/// Replaces the file, whose text was made for `routes`, and syncs it.
pub fn install(
    path: &Path,
    cluster: &ClusterName,
    made_for: (&Routes, &str),
) -> anyhow::Result<()> {
    replace(path, cluster, made_for)?;
    sync(path)
}

/// Syncs the file and its directory, so that it outlives the host.
pub fn sync(path: &Path) -> anyhow::Result<()> {
    let syncing = || {
        File::open(path)?.sync_all()?;
        File::open(path.parent().unwrap_or(Path::new("/")))?.sync_all()
    };
    syncing().with_context(|| format!("sync {}", path.display()))
}

/// Replaces the file, whose text was made for `routes`, unless it is of a higher epoch by now. What is not synced may be
/// the file of before again after a loss of power, or an empty one, which is as good as none.
pub fn replace(
    path: &Path,
    cluster: &ClusterName,
    (routes, text): (&Routes, &str),
) -> anyhow::Result<()> {
    let shown = path.display();
    // Over comparing and replacing: two proxy-configs for one file would else each see the other's old one.
    let lock = beside(path, ".lock");
    let lock = File::options().create(true).truncate(false).write(true).mode(MODE).open(&lock);
    let lock = lock.with_context(|| format!("open the lock of {shown}"))?;
    let _held = Flock::lock(lock, FlockArg::LockExclusive)
        .map_err(|(_, e)| e)
        .with_context(|| format!("lock {shown}"))?;
    let epoch = installed(path, cluster)?.map_or(proto::Epoch(0), |r| r.epoch);
    ensure!(
        epoch <= routes.epoch,
        "{shown} is of epoch {epoch}, and this would be {}: another proxy-config has written it and knows more",
        routes.epoch
    );
    let temporary = beside(path, ".new");
    let write = || {
        let mut file = File::create(&temporary)?;
        file.set_permissions(fs::Permissions::from_mode(MODE))?;
        file.write_all(text.as_bytes())?;
        fs::rename(&temporary, path)
    };
    write().with_context(|| format!("write {shown}"))
}

/// Returns the path with `ending` after its name.
pub fn beside(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(ending);
    name.into()
}
