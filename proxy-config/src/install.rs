//! Puts HAProxy's files in place and sees to it that HAProxy has loaded them. A file that HAProxy would refuse is
//! never installed, and one that somebody else wrote is never replaced.
//!
//! Safe when cut after any step: what is loaded is asked of HAProxy itself (its `description` is the file's
//! fingerprint), so a proxy-config that starts again finds out whether a reload is missing.

use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use proto::{ClusterName, Moment};
use store::clock;
use tokio::process::Command;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::haproxy::{self, Rendered};
use crate::header::{Comment, Installed, read_back};
use crate::push::{self, PushError, Running};
use crate::route::Routes;
use crate::{Config, HaproxyConfig};

/// How often a running HAProxy is asked what it has loaded: it may have been started, restarted or replaced.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// A worker answers before its master has set up its signals: a reload asked for in that moment was lost (measured,
/// with HAProxy 2.6.12, about once in ten).
const SETTLED_AFTER: Duration = Duration::from_secs(1);
/// A new worker answers within 0.2 s of the signal; a service manager's reload takes longer.
const LOAD_WITHIN: Duration = Duration::from_secs(3);
/// A reload that had no effect is asked for again, but not in a hurry: it is somebody's command.
const RELOAD_AGAIN_AFTER: Duration = Duration::from_secs(6);
const COMMAND_WITHIN: Duration = Duration::from_secs(30);

/// Returns the routes that the installed file was written for; none if there is no file.
pub fn installed(config: &Config) -> anyhow::Result<Option<Routes>> {
    let Some(haproxy) = &config.haproxy else { return Ok(None) };
    let path = haproxy.file.display();
    let Some(text) = text_of(&haproxy.file)? else { return Ok(None) };
    match read_back(Comment::Haproxy, &text) {
        Installed::Ours { cluster, routes } if cluster == config.cluster.as_str() => {
            Ok(Some(*routes))
        }
        Installed::Ours { cluster, .. } => bail!(
            "{path} belongs to cluster {cluster}, not {}: choose another --haproxy-config",
            config.cluster
        ),
        Installed::Foreign => bail!(
            "{path} was not written by pgdeputy: move it away, or choose another --haproxy-config"
        ),
    }
}

/// Returns the text of an installed file; none if there is no file, or an empty one.
pub fn text_of(path: &Path) -> anyhow::Result<Option<String>> {
    match fs::read_to_string(path) {
        Ok(text) if text.trim().is_empty() => Ok(None),
        Ok(text) => Ok(Some(text)),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e).with_context(|| format!("read {}", path.display())),
    }
}

/// Follows the routes with files until `stop`.
pub async fn follow(
    (cluster, config): (ClusterName, HaproxyConfig),
    mut wanted: watch::Receiver<Option<Routes>>,
    stop: CancellationToken,
) {
    let mut installer = Installer::new(cluster, config);
    loop {
        let routes = wanted.borrow_and_update().clone();
        if let Some(routes) = routes {
            let outcome = installer.install(&routes).await;
            installer.say(outcome);
        }
        tokio::select! {
            () = stop.cancelled() => return,
            changed = wanted.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(LOOK_EVERY) => {}
        }
    }
}

/// Brings one HAProxy's files in place.
pub struct Installer {
    cluster: ClusterName,
    config: HaproxyConfig,
    written: Option<Rendered>,
    /// The fingerprint that a reload was last asked for, and when.
    reloaded: Option<(String, Moment)>,
    /// The last trouble that was logged, so that each is logged once.
    said: String,
}

/// What became of an installation.
pub enum Outcome {
    Loaded(Running),
    /// HAProxy does not run; it will read the file when it starts.
    Away,
    /// It has just started, with an older file: it is asked to reload at the next look.
    Settling,
}

impl Installer {
    /// Begins with nothing known of what is loaded.
    pub fn new(cluster: ClusterName, config: HaproxyConfig) -> Self {
        Self { cluster, config, written: None, reloaded: None, said: String::new() }
    }

    /// Writes the files where they differ, and makes HAProxy load them.
    pub async fn install(&mut self, routes: &Routes) -> anyhow::Result<Outcome> {
        let rendered = haproxy::render(&self.cluster, &self.config, routes);
        if self.written.as_ref() != Some(&rendered) {
            write_files(&self.config.file, &rendered).await?;
            self.written = Some(rendered.clone());
        }
        let running = match push::running(&self.config.socket).await {
            Ok(running) => running,
            Err(PushError::Away(_)) => return Ok(Outcome::Away),
            Err(e) => return Err(e.into()),
        };
        if running.description == rendered.fingerprint {
            return Ok(Outcome::Loaded(running));
        }
        if running.up_for < SETTLED_AFTER {
            return Ok(Outcome::Settling);
        }
        let now = clock::now();
        if let Some((fingerprint, at)) = &self.reloaded
            && *fingerprint == rendered.fingerprint
            && now.since(*at) < RELOAD_AGAIN_AFTER
        {
            bail!("HAProxy was told to reload and has not loaded {}", self.config.file.display());
        }
        self.reloaded = Some((rendered.fingerprint.clone(), now));
        let states = haproxy::states_path(&self.config.file);
        replace(&states, &rendered.states).await?;
        let loaded = self.load(&running, &rendered.fingerprint, now).await;
        replace(&states, &rendered.closed).await?;
        loaded
    }

    async fn load(
        &self,
        running: &Running,
        fingerprint: &str,
        now: Moment,
    ) -> anyhow::Result<Outcome> {
        self.reload(running).await?;
        self.loaded(fingerprint, now + LOAD_WITHIN).await
    }

    async fn reload(&self, running: &Running) -> anyhow::Result<()> {
        if let Some(command) = &self.config.reload {
            info!(%command, "reload HAProxy");
            return run(Command::new("sh").arg("-c").arg(command)).await.context("reload HAProxy");
        }
        let Some(master) = master_of(running.pid) else {
            bail!(
                "HAProxy has not loaded {}: reload or restart it, and start it with -W or give a reload \
                 command (--reload) so that it need not be done by hand",
                self.config.file.display()
            );
        };
        info!(master = master.as_raw(), "reload HAProxy");
        nix::sys::signal::kill(master, nix::sys::signal::Signal::SIGUSR2)
            .with_context(|| format!("signal HAProxy's master process {master} to reload"))
    }

    async fn loaded(&self, fingerprint: &str, deadline: Moment) -> anyhow::Result<Outcome> {
        loop {
            match push::running(&self.config.socket).await {
                Ok(running) if running.description == fingerprint => {
                    return Ok(Outcome::Loaded(running));
                }
                // The old worker answers, or the socket is just being handed over.
                Ok(_) | Err(_) => {}
            }
            let path = self.config.file.display();
            ensure!(
                clock::now() < deadline,
                "HAProxy was told to reload and has not loaded {path}"
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    fn say(&mut self, outcome: anyhow::Result<Outcome>) {
        let (text, trouble) = match &outcome {
            Ok(Outcome::Loaded(running)) => {
                (format!("HAProxy {} has loaded {}", running.pid, running.description), false)
            }
            Ok(Outcome::Settling) => return,
            Ok(Outcome::Away) => {
                ("HAProxy does not run yet; its file is in place".to_owned(), false)
            }
            Err(e) => (format!("{e:#}"), true),
        };
        if text == self.said {
            return;
        }
        let config = self.config.file.display();
        match trouble {
            true => warn!(%config, "{text}"),
            false => info!(%config, "{text}"),
        }
        self.said = text;
    }
}

/// Writes both files. The states go first when the servers change and come back last: a HAProxy that starts in
/// between takes no port from an old line.
async fn write_files(path: &Path, rendered: &Rendered) -> anyhow::Result<()> {
    let states = haproxy::states_path(path);
    let line = format!("    description {}\n", rendered.fingerprint);
    let same_servers = fs::read_to_string(path).is_ok_and(|text| text.contains(&line));
    if !same_servers {
        let candidate = beside(path, ".new");
        write_synced(candidate.clone(), rendered.text.clone()).await?;
        check(&candidate).await?;
        match fs::remove_file(&states) {
            Err(e) if e.kind() != ErrorKind::NotFound => {
                return Err(e).with_context(|| format!("remove {}", states.display()));
            }
            Ok(()) | Err(_) => {}
        }
    }
    replace(path, &rendered.text).await?;
    replace(&states, &rendered.closed).await
}

async fn replace(path: &Path, text: &str) -> anyhow::Result<()> {
    let temporary = beside(path, ".new");
    write_synced(temporary.clone(), text.to_owned()).await?;
    fs::rename(&temporary, path).with_context(|| format!("rename {}", temporary.display()))?;
    let directory = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(directory)
        .and_then(|d| d.sync_all())
        .with_context(|| format!("sync {}", directory.display()))
}

async fn write_synced(path: PathBuf, text: String) -> anyhow::Result<()> {
    let shown = path.display().to_string();
    let write = move || {
        let mut file = File::create(&path)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()
    };
    tokio::task::spawn_blocking(write).await?.with_context(|| {
        format!(
            "write {shown}: its directory must be there, and writable for the user of proxy-config"
        )
    })
}

fn beside(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(ending);
    name.into()
}

/// Lets HAProxy itself judge the file, where its program is on this host.
async fn check(candidate: &Path) -> anyhow::Result<()> {
    let Some(program) = program() else {
        warn!("haproxy is not on PATH: its file is installed without haproxy -c");
        return Ok(());
    };
    run(Command::new(program).arg("-c").arg("-f").arg(candidate))
        .await
        .with_context(|| {
            format!(
                "HAProxy refuses {}, so it is not installed and the file before stays; check it with haproxy -c",
                candidate.display()
            )
        })
}

fn program() -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let usual = ["/usr/sbin", "/usr/local/sbin"].map(PathBuf::from);
    std::env::split_paths(&path).chain(usual).map(|d| d.join("haproxy")).find(|p| p.is_file())
}

/// Runs a command to its end, which must be good and soon.
pub async fn run(command: &mut Command) -> anyhow::Result<()> {
    command.stdin(Stdio::null()).kill_on_drop(true);
    let output = tokio::time::timeout(COMMAND_WITHIN, command.output())
        .await
        .with_context(|| format!("it did not end within {} s", COMMAND_WITHIN.as_secs()))??;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "it ended with {}: {}", output.status, said.trim());
    Ok(())
}

/// Returns the master process of a worker, where HAProxy runs as master and worker (`-W`, `-Ws`): it reads its file
/// again on SIGUSR2. Both must be HAProxy's: with a socket from another pid namespace the number is a stranger's.
fn master_of(worker: i32) -> Option<nix::unistd::Pid> {
    let is_haproxy = |pid: i32| {
        fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.trim() == "haproxy")
    };
    let status = fs::read_to_string(format!("/proc/{worker}/status")).ok()?;
    let parent = status.lines().find_map(|l| l.strip_prefix("PPid:"))?.trim().parse().ok()?;
    let arguments = fs::read(format!("/proc/{parent}/cmdline")).ok()?;
    let masters = arguments.split(|b| *b == 0).any(|a| a == b"-W" || a == b"-Ws");
    let both = is_haproxy(worker) && is_haproxy(parent) && masters;
    both.then_some(nix::unistd::Pid::from_raw(parent))
}
