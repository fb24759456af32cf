//! The directory of one lab, who starts its processes, and what ends them whatever happens.

use std::io::Write;
use std::os::fd::BorrowedFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};

use anyhow::{Context, ensure};
use nix::fcntl::{FcntlArg, FdFlag, fcntl};

use super::cleanup;
use super::commands;
use super::config::{DIRECTORY_PREFIX, LabConfig, Layout, Lifetime};
use super::network::{self, Claim, KEPT, Placement};
use super::spawner::Spawner;

/// How much of each log a failed run shows.
const TAIL_LINES: usize = 40;

/// What clients were told fills thousands of lines and says nothing about a failure.
const NOT_SHOWN: [&str; 3] = ["acknowledged.log", "acknowledged-pooled.log", "operations.log"];

/// Everything that has to go when a lab ends. Dropping it makes it go.
pub struct Home {
    pub layout: Layout,
    pub spawner: Spawner,
    guard: Child,
    /// Of a lab whose members have networks of their own.
    claim: Option<Claim>,
    lifetime: Lifetime,
    user: Option<nix::unistd::User>,
    kept: bool,
}

impl Home {
    /// Makes the directory and starts the guard.
    pub fn make(config: &LabConfig) -> anyhow::Result<Self> {
        ensure!(
            config.pgdeputy.is_file(),
            "{} does not exist: run `make build` first, or name the program in PGDEPUTY_BIN",
            config.pgdeputy.display()
        );
        let user = keepers_user(config)?;
        let directory = tempfile::Builder::new()
            .prefix(DIRECTORY_PREFIX)
            .permissions(std::fs::Permissions::from_mode(0o755))
            .tempdir_in(temporary_directory())
            .context("make the lab's directory")?;
        // The umask may have taken the right that the keepers' user needs.
        std::fs::set_permissions(directory.path(), std::fs::Permissions::from_mode(0o755))?;
        let layout = Layout { root: directory.path().canonicalize()? };
        std::fs::create_dir(layout.logs()).context("make the directory of the logs")?;
        std::fs::write(Layout::marker(&layout.root), "").context("mark the lab's directory")?;
        let spawner = Spawner::new(config.lifetime)?;
        let claim = match config.placement {
            Placement::Loopback => None,
            Placement::Namespaces => Some(Claim::take(&layout.root)?),
        };
        if let Some(claim) = &claim {
            network::note(&layout.root, claim.number)?;
        }
        let guard = start_guard(config, &layout, claim.as_ref())?;
        // From here on the directory is removed by this value and by the guard.
        let _ = directory.keep();
        Ok(Self { layout, spawner, guard, claim, lifetime: config.lifetime, user, kept: false })
    }

    /// The number of this lab's network, if it is to have one.
    pub fn network_number(&self) -> Option<u8> {
        self.claim.as_ref().map(|claim| claim.number)
    }

    /// Makes a directory that belongs to the keepers' user.
    pub fn make_private(&self, directory: &Path) -> anyhow::Result<()> {
        std::fs::create_dir(directory).with_context(|| format!("make {}", directory.display()))?;
        self.close(directory)
    }

    /// Gives a directory to the keepers' user, and closes it to everybody else.
    pub fn close(&self, directory: &Path) -> anyhow::Result<()> {
        std::fs::set_permissions(directory, std::fs::Permissions::from_mode(0o700))?;
        self.hand_over(directory)
    }

    /// Writes a file that only the keepers' user may read.
    pub fn write_private(&self, file: &Path, text: &str) -> anyhow::Result<()> {
        std::fs::write(file, "").with_context(|| format!("write {}", file.display()))?;
        std::fs::set_permissions(file, std::fs::Permissions::from_mode(0o600))?;
        std::fs::write(file, text)?;
        self.hand_over(file)
    }

    /// Gives a file or directory to the keepers' user.
    pub fn hand_over(&self, path: &Path) -> anyhow::Result<()> {
        let Some(user) = &self.user else { return Ok(()) };
        std::os::unix::fs::chown(path, Some(user.uid.as_raw()), Some(user.gid.as_raw()))
            .with_context(|| format!("give {} to {}", path.display(), user.name))
    }

    /// Leaves everything as it is when this value is dropped.
    pub fn keep(&mut self) -> anyhow::Result<PathBuf> {
        ensure!(
            self.lifetime == Lifetime::MayBeKept,
            "this lab was started to end with its process"
        );
        std::fs::write(self.layout.root.join(KEPT), "").context("note that the lab is kept")?;
        let pipe = self.guard.stdin.as_mut().context("the guard's pipe is gone")?;
        pipe.write_all(b"keep\n").context("dismiss the guard")?;
        self.kept = true;
        Ok(self.layout.root.clone())
    }

    /// Ends all processes and removes the directory. A second call finds nothing left to do.
    pub fn end(&self) -> anyhow::Result<()> {
        let is_there = Layout::marker(&self.layout.root).is_file();
        if is_there { cleanup::end_lab(&self.layout.root).map(drop) } else { Ok(()) }
    }

    /// Returns every log with a name that no other has: those of the lab's processes, and each member's own.
    pub fn log_files(&self) -> Vec<(String, PathBuf)> {
        let listed =
            |directory: PathBuf| std::fs::read_dir(directory).into_iter().flatten().flatten();
        let name = |path: &Path| {
            path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default()
        };
        let mut files: Vec<(String, PathBuf)> =
            listed(self.layout.logs()).map(|e| (name(&e.path()), e.path())).collect();
        for member in listed(self.layout.root.clone()).map(|entry| entry.path()) {
            for log in ["postgresql.log", "fencer.log"] {
                let file = member.join("data.pgdeputy").join(log);
                if file.is_file() {
                    files.push((format!("{}-{log}", name(&member)), file));
                }
            }
        }
        files.sort();
        files
    }

    /// The last lines of every log, for a failed run.
    pub fn log_tails(&self) -> String {
        let mut files = self.log_files();
        files.retain(|(name, _)| !NOT_SHOWN.contains(&name.as_str()));
        let tail = |(_, path): (String, PathBuf)| {
            let text =
                String::from_utf8_lossy(&std::fs::read(&path).unwrap_or_default()).into_owned();
            let lines: Vec<&str> = text.lines().collect();
            let last = lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n");
            format!("--- {}\n{last}\n", path.display())
        };
        files.into_iter().map(tail).collect()
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        if !self.kept {
            if std::thread::panicking() {
                eprintln!("{}", self.log_tails());
            }
            if let Err(error) = self.end() {
                eprintln!("{error:#}");
            }
        }
        // The closed pipe wakes the guard, which finds nothing left to do.
        drop(self.guard.stdin.take());
        let _ = self.guard.wait();
    }
}

/// Whom the keepers become: nobody else, unless this is root.
fn keepers_user(config: &LabConfig) -> anyhow::Result<Option<nix::unistd::User>> {
    if !nix::unistd::geteuid().is_root() {
        return Ok(None);
    }
    let name = &config.postgres_user;
    let user =
        nix::unistd::User::from_name(name).with_context(|| format!("look up user {name}"))?;
    let user = user.with_context(|| {
        format!(
            "there is no user {name}: run `make deps`, or name another one, PostgreSQL refuses root"
        )
    })?;
    Ok(Some(user))
}

/// The person's own choice may be closed to the keepers' user, as root's usually is.
fn temporary_directory() -> PathBuf {
    let own = std::env::temp_dir();
    let open = |path: &Path| {
        path.ancestors().all(|p| p.metadata().is_ok_and(|m| m.permissions().mode() & 0o001 != 0))
    };
    if open(&own) { own } else { PathBuf::from("/tmp") }
}

fn start_guard(
    config: &LabConfig,
    layout: &Layout,
    claim: Option<&Claim>,
) -> anyhow::Result<Child> {
    let mut command = commands::guard(&config.pgdeputy);
    // The lock on the network's number stays with the guard, which removes the network.
    let lock = claim.map(Claim::descriptor);
    let prepare = move || {
        nix::unistd::setsid()?;
        if let Some(lock) = lock {
            // SAFETY: the lock is open: the claim lives in the caller until the child was made.
            let lock = unsafe { BorrowedFd::borrow_raw(lock) };
            fcntl(lock, FcntlArg::F_SETFD(FdFlag::empty()))?;
        }
        Ok(())
    };
    // SAFETY: setsid and fcntl are async-signal-safe, and nothing else runs between fork and exec.
    unsafe { command.pre_exec(prepare) };
    let mut guard = spawn(&mut command)?;
    let pipe = guard.stdin.as_mut().context("the guard's pipe is missing")?;
    writeln!(pipe, "{}", layout.root.display()).context("tell the guard its lab")?;
    Ok(guard)
}

fn spawn(command: &mut Command) -> anyhow::Result<Child> {
    command.spawn().with_context(|| format!("start {}", command.get_program().display()))
}
