//! Who the keeper runs as: never root, because PostgreSQL refuses root and a keeper needs nothing of it.
//!
//! Both functions are called before any thread, runtime or file of the keeper exists, and change nothing for a
//! process that does not run as root.

use std::ffi::CString;
use std::fs::DirBuilder;
use std::io::ErrorKind;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};
use nix::sys::resource::{RLIM_INFINITY, Resource, setrlimit};
use nix::unistd::{Uid, User, chown, geteuid, initgroups, setresgid, setresuid};

/// Becomes `user` if this process runs as root, with that user's groups and home directory, for good.
///
/// Not root: stays who it is, since then only one user is possible.
pub fn drop_to(user: &str) -> anyhow::Result<()> {
    if !geteuid().is_root() {
        return Ok(());
    }
    let user = find(user)?;
    // The fencer locks its memory; as this user it may not ask for more than it was given.
    let _ = setrlimit(Resource::RLIMIT_MEMLOCK, RLIM_INFINITY, RLIM_INFINITY);
    // And it raises its priority, to nice -10: the limit counts from 20 down.
    let _ = setrlimit(Resource::RLIMIT_NICE, 30, 30);
    let name = CString::new(user.name.as_str()).context("read the user's name")?;
    let context = || format!("change to user {}", user.name);
    initgroups(&name, user.gid).with_context(context)?;
    setresgid(user.gid, user.gid, user.gid).with_context(context)?;
    setresuid(user.uid, user.uid, user.uid).with_context(context)?;
    let root = Uid::from_raw(0);
    ensure!(setresuid(root, root, root).is_err(), "change to user {}: root came back", user.name);
    // SAFETY: no other thread exists yet, so none reads the environment meanwhile.
    unsafe {
        std::env::set_var("HOME", &user.dir);
        std::env::set_var("USER", &user.name);
        std::env::set_var("LOGNAME", &user.name);
    }
    Ok(())
}

/// Makes what `user` cannot make by itself: as root, the missing directories on the way to `data_dir` and
/// `state_dir`, and `state_dir` itself.
///
/// What it makes belongs to `user`. What is there already keeps its owner; only an empty state directory changes
/// hands, and one of somebody else is an error, because it may be a mistyped path.
pub fn prepare_directories(user: &str, data_dir: &Path, state_dir: &Path) -> anyhow::Result<()> {
    if !geteuid().is_root() {
        return Ok(());
    }
    let user = find(user)?;
    for dir in [data_dir, state_dir] {
        let dir = std::path::absolute(dir).with_context(|| format!("find {}", dir.display()))?;
        make_missing(dir.parent().unwrap_or(Path::new("/")), &user)?;
    }
    hand_over(state_dir, &user)?;
    // Elsewhere initdb or the copy makes it, which is how they know that it is theirs to fill.
    let beside =
        std::path::absolute(data_dir).ok().and_then(|dir| dir.parent().map(Path::to_path_buf));
    if !data_dir.exists() && beside.is_some_and(|dir| owner(&dir) != Some(user.uid)) {
        make(data_dir, &user)?;
    }
    Ok(())
}

fn find(name: &str) -> anyhow::Result<User> {
    let found = User::from_name(name).with_context(|| format!("look up user {name}"))?;
    let Some(user) = found else {
        bail!(
            "user {name} does not exist: create it, or name the one that runs PostgreSQL with --postgres-user"
        );
    };
    if user.uid.is_root() {
        bail!("PostgreSQL refuses to run as root: name an ordinary user with --postgres-user");
    }
    Ok(user)
}

fn hand_over(state_dir: &Path, user: &User) -> anyhow::Result<()> {
    match owner(state_dir) {
        None => make(state_dir, user),
        Some(uid) if uid == user.uid => Ok(()),
        Some(_) if is_empty(state_dir) => give(state_dir, user),
        Some(uid) => bail!(
            "state directory {path} belongs to user number {uid}: if it is the right one, run `chown -R {name} {path}`",
            path = state_dir.display(),
            name = user.name
        ),
    }
}

fn make_missing(dir: &Path, user: &User) -> anyhow::Result<()> {
    let missing: Vec<PathBuf> =
        dir.ancestors().take_while(|d| owner(d).is_none()).map(Path::to_path_buf).collect();
    missing.iter().rev().try_for_each(|dir| make(dir, user))
}

fn make(dir: &Path, user: &User) -> anyhow::Result<()> {
    match DirBuilder::new().mode(0o700).create(dir) {
        Ok(()) => give(dir, user),
        // Somebody was faster: then it is not ours to give away.
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(error).with_context(|| format!("create {}", dir.display())),
    }
}

fn give(dir: &Path, user: &User) -> anyhow::Result<()> {
    chown(dir, Some(user.uid), Some(user.gid))
        .with_context(|| format!("give {} to {}", dir.display(), user.name))
}

fn owner(path: &Path) -> Option<Uid> {
    std::fs::metadata(path).ok().map(|m| Uid::from_raw(m.uid()))
}

fn is_empty(dir: &Path) -> bool {
    std::fs::read_dir(dir).is_ok_and(|mut entries| entries.next().is_none())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Only root changes users or owners; as anybody else there is nothing to show.
    fn is_root() -> bool {
        geteuid().is_root()
    }

    fn uid(name: &str) -> Uid {
        User::from_name(name).unwrap().unwrap().uid
    }

    #[test]
    fn a_user_that_does_not_exist_is_an_error_that_names_the_flag() {
        if is_root() {
            let error = drop_to("no-such-user").unwrap_err().to_string();
            assert!(error.contains("no-such-user") && error.contains("--postgres-user"), "{error}");
            assert!(drop_to("root").is_err());
        } else {
            drop_to("no-such-user").unwrap();
        }
    }

    #[test]
    fn directories_on_the_way_are_made_for_the_user_and_the_data_directory_is_left_to_initdb() {
        if !is_root() {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let (data, state) = (dir.path().join("x/y/data"), dir.path().join("x/z/state"));
        prepare_directories("daemon", &data, &state).unwrap();
        prepare_directories("daemon", &data, &state).unwrap();
        for made in ["x", "x/y", "x/z", "x/z/state"] {
            assert_eq!(owner(&dir.path().join(made)), Some(uid("daemon")), "{made}");
        }
        assert!(!data.exists());
        assert_eq!(owner(dir.path()), Some(geteuid()));
    }

    #[test]
    fn nothing_that_holds_files_changes_its_owner() {
        if !is_root() {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let (data, state) = (dir.path().join("data"), dir.path().join("state"));
        for full in [&data, &state] {
            std::fs::create_dir(full).unwrap();
            std::fs::write(full.join("file"), "").unwrap();
        }
        let error = prepare_directories("daemon", &data, &state).unwrap_err().to_string();
        assert!(error.contains("chown"), "{error}");
        std::fs::remove_file(state.join("file")).unwrap();
        prepare_directories("daemon", &data, &state).unwrap();
        assert_eq!(owner(&state), Some(uid("daemon")));
        assert_eq!(owner(&data), Some(geteuid()));
    }

    #[test]
    fn a_data_directory_whose_parent_is_not_the_users_is_made_for_it() {
        if !is_root() {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let (data, state) = (dir.path().join("data"), dir.path().join("state"));
        prepare_directories("daemon", &data, &state).unwrap();
        assert_eq!(owner(&data), Some(uid("daemon")));
    }
}
