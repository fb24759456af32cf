//! Brings one PgBouncer to what is wanted: the present file loaded, nobody left on a replaced primary, clients waiting
//! or not. Looks first and acts on what it sees, so it may be cut anywhere and begun again.
//!
//! Found out with PgBouncer 1.18:
//! - `RELOAD` says nothing of a file that was refused: the databases are looked at afterwards.
//! - After a failed login it makes no other attempt for `server_login_retry`, 15 s by default, whatever is reloaded.
//!   `KILL` and `RESUME` of the database end that wait, and every session of the database.
//! - A transaction that waits for a host that has vanished holds its server connection for ever; `KILL` ends it.
//! - `RELOAD` closes what is idle or being connected to the old host, and leaves what is in a transaction.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use proto::{Moment, RequestId};
use store::clock;
use tokio::sync::watch;
use tokio_postgres::Config;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::console::{self, Console, ConsoleError, Row, quoted};
use super::entries::Version;
use super::render::Entry;

/// How often a PgBouncer is looked at though nothing has changed: it may have been restarted.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// The longest `server_login_retry` that is waited out; where it is longer, sessions are ended to get around it.
const SHORT_RETRY: f64 = 0.25;

/// What a PgBouncer is to be like.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Want {
    /// Counts the files that were written.
    pub file: u64,
    pub entries: Vec<Entry>,
    /// The switchover for which the clients of the primary wait.
    pub hold: Option<RequestId>,
    /// A switchover is being prepared, so that the hold comes soon.
    pub soon: bool,
    /// How long reads may go on at a standby that has left.
    pub drain: Duration,
}

/// How a PgBouncer stands to what is wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Standing {
    /// It was not asked yet.
    Unasked,
    /// It does not run: no client gets through it, and it will read the file when it starts.
    Away,
    /// It runs and does not do what it is told.
    Refusing(String),
    Following(Following),
}

/// A PgBouncer that does what it is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Following {
    pub version: Version,
    /// The file that it has loaded.
    pub file: u64,
    /// The switchover for which its clients wait.
    pub held: Option<RequestId>,
}

/// One PgBouncer.
pub struct Instance {
    at: Config,
    pub(super) name: String,
    /// There while some database may be paused by us: the next one to run lets its clients go.
    paused_mark: PathBuf,
    /// The file that pgbouncer.ini includes, for complaints.
    file: PathBuf,
    console: Option<Open>,
    /// For the `PAUSE` that comes soon: a login takes several milliseconds while PgBouncer has much to do.
    ready: Vec<Console>,
    /// What was shown before a reload whose consequences are not all drawn yet.
    before_reload: Option<Vec<Row>>,
    /// Those last wanted.
    entries: Vec<Entry>,
    /// Since when reads may hang on a standby that has left: see `readers`.
    pub(super) readers_left: Option<Moment>,
    said: String,
}

/// Where all PgBouncers of a host put how they stand.
#[derive(Clone)]
pub struct Board {
    pub standings: Arc<watch::Sender<Vec<Standing>>>,
    pub place: usize,
}

impl Board {
    fn put(&self, standing: Standing) {
        self.standings.send_if_modified(|all| match all.get_mut(self.place) {
            Some(mine) if *mine != standing => {
                *mine = standing;
                true
            }
            Some(_) | None => false,
        });
    }
}

pub(super) struct Open {
    pub(super) console: Console,
    version: Version,
    /// The file that it was last told to load, by this connection.
    told: Option<u64>,
}

impl Instance {
    /// Returns the PgBouncer whose console is at `at`.
    pub fn new(at: Config, file: &Path) -> Self {
        let name = name(&at);
        let ending = format!(".paused-{}", name.replace('/', "_"));
        let paused_mark = super::file::beside(file, &ending);
        Self {
            at,
            name,
            paused_mark,
            file: file.to_owned(),
            console: None,
            ready: Vec::new(),
            before_reload: None,
            entries: Vec::new(),
            readers_left: None,
            said: String::new(),
        }
    }

    /// Follows what is wanted until `stop`.
    pub async fn follow(
        mut self,
        mut wants: watch::Receiver<Want>,
        board: Board,
        stop: CancellationToken,
    ) {
        loop {
            let want = wants.borrow_and_update().clone();
            self.entries.clone_from(&want.entries);
            let outcome = tokio::select! {
                () = stop.cancelled() => return self.leave().await,
                outcome = self.converge(&want) => outcome,
                // What was begun is seen by the next look.
                changed = wants.changed() => match changed {
                    Ok(()) => continue,
                    Err(_) => return,
                },
            };
            board.put(self.standing(outcome));
            tokio::select! {
                () = stop.cancelled() => return self.leave().await,
                changed = wants.changed() => if changed.is_err() { return },
                () = tokio::time::sleep(LOOK_EVERY) => {}
            }
        }
    }

    /// Asks for the version; none where nobody answers as PgBouncer.
    pub async fn version(&mut self) -> Option<Version> {
        let open = self.open().await.ok()?;
        Some(self.console.insert(open).version)
    }

    /// Has the file with `entries` loaded, and pauses and resumes nothing. Returns how PgBouncer stands to it.
    pub async fn load_once(&mut self, entries: Vec<Entry>) -> Standing {
        let want = Want { file: 1, entries, ..Want::default() };
        let loaded = async {
            let open = self.open().await?;
            let version = self.console.insert(open).version;
            let seen = self.show_databases().await?;
            self.load(&want, seen).await?;
            Ok(Following { version, file: want.file, held: None })
        };
        let outcome = loaded.await;
        self.standing(outcome)
    }

    /// Nobody would let clients go after us: whatever they wait for, they wait no longer.
    async fn leave(&mut self) {
        if !self.paused_mark.exists() {
            return;
        }
        // The kept console may be in the middle of something.
        self.console = None;
        let want = Want { entries: self.entries.clone(), ..Want::default() };
        if let Err(e) = self.converge(&want).await {
            warn!(pgbouncer = %self.name, error = %e, "databases may stay paused: RESUME them by hand");
        }
    }

    fn standing(&mut self, outcome: Result<Following, ConsoleError>) -> Standing {
        let (text, standing) = match outcome {
            Ok(following) => {
                (format!("PgBouncer {} follows", following.version), Standing::Following(following))
            }
            Err(ConsoleError::Away(why)) => {
                (format!("PgBouncer does not run: {why}"), Standing::Away)
            }
            Err(e) => {
                (format!("PgBouncer does not follow: {e}"), Standing::Refusing(e.to_string()))
            }
        };
        if !matches!(standing, Standing::Following(_)) {
            self.console = None;
        }
        if text != self.said {
            match standing {
                Standing::Refusing(_) => warn!(pgbouncer = %self.name, "{text}"),
                Standing::Unasked | Standing::Away | Standing::Following(_) => {
                    info!(pgbouncer = %self.name, "{text}");
                }
            }
            self.said = text;
        }
        standing
    }

    async fn converge(&mut self, want: &Want) -> Result<Following, ConsoleError> {
        let open = match self.console.take().filter(|open| !open.console.is_closed()) {
            Some(open) => open,
            None => self.open().await?,
        };
        let version = self.console.insert(open).version;
        let mut seen = self.show_databases().await?;
        if want.file > 0 {
            seen = self.load(want, seen).await?;
        }
        self.free_readers(want).await?;
        let held = match &want.hold {
            Some(request) => {
                self.hold(&want.entries, &seen).await.map(|()| Some(request.clone()))?
            }
            None => self.let_go(&want.entries, &seen).await.map(|()| None)?,
        };
        let count = match want.soon {
            true => names(&want.entries, &seen, |entry| entry.kind.is_of_primary()).len(),
            false => 0,
        };
        self.ready.truncate(count);
        console::open_all(&self.at, &mut self.ready, count).await?;
        Ok(Following { version, file: want.file, held })
    }

    /// Has the present file loaded, and ends what is left on a primary that is not the primary any more.
    async fn load(&mut self, want: &Want, seen: Vec<Row>) -> Result<Vec<Row>, ConsoleError> {
        let is_told = self.console.as_ref().is_some_and(|open| open.told == Some(want.file));
        if is_told && self.before_reload.is_none() && missing(&want.entries, &seen).is_empty() {
            return Ok(seen);
        }
        let before = self.before_reload.get_or_insert(seen).clone();
        self.open_console()?.console.ask("RELOAD").await?;
        let seen = self.show_databases().await?;
        let missing = missing(&want.entries, &seen);
        if !missing.is_empty() {
            let file = self.file.display();
            let said = format!(
                "it has not loaded {file} ({missing} missing or elsewhere): see that pgbouncer.ini has `%include \
                 {file}`, that its user can read it, and what its log says"
            );
            return Err(ConsoleError::Refused { what: "RELOAD".into(), said });
        }
        let moved = |of_primary: bool| {
            repointed(&want.entries, (&before, &seen), |e| e.kind.is_of_primary() == of_primary)
        };
        if !moved(false).is_empty() {
            self.readers_left = Some(clock::now());
        }
        self.cut(&moved(true)).await?;
        self.before_reload = None;
        if let Some(open) = &mut self.console {
            open.told = Some(want.file);
        }
        self.show_databases().await
    }

    pub(super) fn open_console(&self) -> Result<&Open, ConsoleError> {
        self.console.as_ref().ok_or_else(|| ConsoleError::Away("the connection is gone".into()))
    }

    async fn show_databases(&self) -> Result<Vec<Row>, ConsoleError> {
        self.open_console()?.console.ask("SHOW DATABASES").await
    }

    async fn open(&self) -> Result<Open, ConsoleError> {
        let console = Console::open(&self.at).await?;
        let banner = console.ask("SHOW VERSION").await?;
        let banner =
            banner.first().and_then(|row| row.values().next()).cloned().unwrap_or_default();
        let Some(version) = Version::of_banner(&banner) else {
            let said = format!("{banner:?} is no version of PgBouncer");
            return Err(ConsoleError::Refused { what: "SHOW VERSION".into(), said });
        };
        let retry = retry(&console).await?;
        if retry > SHORT_RETRY {
            warn!(
                pgbouncer = %self.name,
                "its server_login_retry is {retry} s: set 0.1 in pgbouncer.ini, or a failover has to end all its \
                 sessions, idle ones too"
            );
        }
        Ok(Open { console, version, told: None })
    }

    /// Ends what is left on a replaced primary. `databases` lead elsewhere since a moment ago.
    async fn cut(&self, databases: &[String]) -> Result<(), ConsoleError> {
        if databases.is_empty() {
            return Ok(());
        }
        let console = &self.open_console()?.console;
        let waits = retry(console).await? > SHORT_RETRY;
        let servers = console.ask("SHOW SERVERS").await?;
        let is_left = |name: &String| {
            // Marked by the reload, and in the middle of a transaction.
            let left = |row: &&Row| {
                is(row, "database", name)
                    && is(row, "close_needed", "1")
                    && is(row, "state", "active")
            };
            servers.iter().any(|row| left(&row))
        };
        for name in databases.iter().filter(|name| waits || is_left(name)) {
            self.mark_paused()?;
            console.ask(&format!("KILL {}", quoted(name))).await?;
            console.ask(&format!("RESUME {}", quoted(name))).await?;
            info!(pgbouncer = %self.name, database = %name, "sessions with the replaced primary were ended");
        }
        Ok(())
    }

    async fn hold(&mut self, entries: &[Entry], seen: &[Row]) -> Result<(), ConsoleError> {
        let names = names(entries, seen, |entry| entry.kind.is_of_primary());
        let waiting = |name: &&String| {
            let row = seen.iter().find(|row| is(row, "name", name));
            // One that is paused may still have a transaction that runs.
            row.is_some_and(|row| is(row, "paused", "0") || !is(row, "current_connections", "0"))
        };
        let names: Vec<String> = names.iter().filter(waiting).cloned().collect();
        if names.is_empty() {
            return Ok(());
        }
        self.mark_paused()?;
        info!(pgbouncer = %self.name, databases = ?names, "pause");
        console::pause_all(&self.at, std::mem::take(&mut self.ready), &names).await
    }

    async fn let_go(&self, entries: &[Entry], seen: &[Row]) -> Result<(), ConsoleError> {
        // Before the first file it is not known which databases are ours.
        if entries.is_empty() || !self.paused_mark.exists() {
            return Ok(());
        }
        let console = &self.open_console()?.console;
        let is_paused =
            |name: &&String| seen.iter().any(|row| is(row, "name", name) && is(row, "paused", "1"));
        for name in names(entries, seen, |_| true).iter().filter(is_paused) {
            console.ask(&format!("RESUME {}", quoted(name))).await?;
            info!(pgbouncer = %self.name, database = %name, "resume");
        }
        match std::fs::remove_file(&self.paused_mark) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(self.cannot_mark(&e)),
            Ok(()) | Err(_) => Ok(()),
        }
    }

    /// Notes on disk that we pause: a proxy-config that dies in between is followed by one that knows. It need not
    /// outlive the host: a pause does not either.
    pub(super) fn mark_paused(&self) -> Result<(), ConsoleError> {
        std::fs::write(&self.paused_mark, "").map_err(|e| self.cannot_mark(&e))
    }

    fn cannot_mark(&self, error: &std::io::Error) -> ConsoleError {
        let said = format!("{}: {error}", self.paused_mark.display());
        ConsoleError::Refused { what: "a note that databases are paused".into(), said }
    }
}

/// Returns where the console is, as people write it.
pub fn name(at: &Config) -> String {
    use tokio_postgres::config::Host;
    let host = match at.get_hosts().first() {
        Some(Host::Tcp(host)) => host.clone(),
        Some(Host::Unix(path)) => path.display().to_string(),
        None => String::new(),
    };
    format!("{host}:{}", at.get_ports().first().unwrap_or(&5432))
}

async fn retry(console: &Console) -> Result<f64, ConsoleError> {
    let config = console.ask("SHOW CONFIG").await?;
    let row = config.iter().find(|row| is(row, "key", "server_login_retry"));
    Ok(row.and_then(|row| row.get("value")?.parse().ok()).unwrap_or(f64::INFINITY))
}

pub(super) fn is(row: &Row, column: &str, value: &str) -> bool {
    row.get(column).is_some_and(|found| found == value)
}

fn leads_to(row: &Row, entry: &Entry) -> bool {
    is(row, "host", &entry.host) && is(row, "port", &entry.port.to_string())
}

/// Returns the names of entries that are not shown as they should be, with commas. `*` is not shown at all.
fn missing(entries: &[Entry], seen: &[Row]) -> String {
    let is_shown = |entry: &&Entry| {
        entry.name == "*"
            || seen.iter().any(|row| is(row, "name", &entry.name) && leads_to(row, entry))
    };
    let missing = entries.iter().filter(|e| !is_shown(e)).map(|e| e.name.as_str());
    missing.collect::<Vec<_>>().join(", ")
}

/// Returns the databases of the chosen entries; for `*` those that lead to the same place and have no entry.
fn names(entries: &[Entry], seen: &[Row], chosen: impl Fn(&Entry) -> bool) -> Vec<String> {
    let has_entry = |name: &str| entries.iter().any(|entry| entry.name == name);
    let mut names = Vec::new();
    for entry in entries.iter().filter(|entry| chosen(entry)) {
        if entry.name != "*" {
            names.push(entry.name.clone());
            continue;
        }
        let opened = seen.iter().filter(|row| leads_to(row, entry));
        let opened = opened.filter_map(|row| row.get("name")).filter(|name| !has_entry(name));
        names.extend(opened.cloned());
    }
    names
}

/// Returns the databases of the chosen entries that lead elsewhere than before a reload. In one that was paused nothing
/// is left.
fn repointed(
    entries: &[Entry],
    (before, after): (&[Row], &[Row]),
    chosen: impl Fn(&Entry) -> bool,
) -> Vec<String> {
    let at = |rows: &[Row], name: &str| {
        let row = rows.iter().find(|row| is(row, "name", name) && is(row, "paused", "0"))?;
        Some((row.get("host").cloned(), row.get("port").cloned()))
    };
    let names = names(entries, after, chosen);
    names
        .into_iter()
        .filter(|n| at(before, n).is_some_and(|old| Some(old) != at(after, n)))
        .collect()
}
