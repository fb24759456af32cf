//! Stands between a stock pg_rewind and the source, and shows it only the WAL that is missing.
//!
//! pg_rewind of 13 to 18 copies all WAL of its source. Here one of its queries, the list of the source's files, is
//! changed; all else passes as it is. Before that the member's own WAL gets second names (see `kept_wal`).
//!
//! Rule: until the list has been handed on, nothing of the member has changed; whatever is not as expected before
//! then ends the rewind.

mod listing;
pub(super) mod upstream;
pub(super) mod wire;

use std::collections::BTreeMap;
use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

use anyhow::{Context, ensure};
use proto::{Lsn, Timeline};
use tokio::io::{AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;
use tokio::time::timeout;

use super::binaries::RunAs;
use super::kept_wal::{self, ForkSegment};
use super::source::{Source, quote};
use super::wal_files::{self, Segment};
use super::wal_scan;
use crate::durable;
use listing::Shown;
use upstream::{AnyStream, As};
use wire::Frame;

/// The lines are written before the query is sent, but come another way.
const LINES_WITHIN: Duration = Duration::from_secs(5);

/// A login is a few round trips.
const LOGIN_WITHIN: Duration = Duration::from_secs(30);

/// The database that pg_rewind connects to: any in which its role may read files.
pub const DATABASE: &str = "postgres";

/// What pg_rewind said of where it begins, in the lines that it prints before it asks for the list of files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Divergence {
    pub at: Lsn,
    pub timeline: Timeline,
    /// The last checkpoint before it.
    pub from_checkpoint: Lsn,
}

/// How a rewind goes through the gateway.
pub struct Plan<'a> {
    pub source: &'a Source,
    pub password: &'a str,
    pub data_dir: &'a Path,
    /// Where the socket's directory is made, see `Delta::place`.
    pub place: &'a Path,
    /// What pg_rewind must find: the end of the common timeline by both histories.
    pub expected: (Timeline, Lsn),
    /// Told before the first second name is made; an error ends the rewind with nothing changed.
    pub on_fork: &'a (dyn Fn(ForkSegment) -> anyhow::Result<()> + Sync),
}

/// What went through.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Traffic {
    /// All that the source sent, messages included.
    pub bytes: u64,
    /// Contents of files, by path.
    pub files: BTreeMap<String, u64>,
    /// The list was changed: from here on pg_rewind may change the member.
    pub listed: bool,
}

impl Traffic {
    /// Returns the WAL segments from before `fork` that were fetched: at most those that the member lacked.
    pub fn before(&self, fork: &ForkSegment) -> Vec<&str> {
        let is_before = |path: &&str| {
            path.strip_prefix("pg_wal/")
                .and_then(|name| Segment::parse(name, fork.segment_size))
                .is_some_and(|segment| segment.number < fork.number)
        };
        self.files.keys().map(String::as_str).filter(is_before).collect()
    }
}

/// Why the gateway ended a rewind.
#[derive(Debug)]
pub enum Trouble {
    /// This pg_rewind or file system is not as the gateway needs it; without the gateway it may work.
    Unfit(anyhow::Error),
    /// It would not work without the gateway either, or must not.
    Failed(anyhow::Error),
}

impl From<anyhow::Error> for Trouble {
    fn from(error: anyhow::Error) -> Self {
        Self::Failed(error)
    }
}

/// A gateway that pg_rewind can connect to. Its socket goes with it.
pub struct Gateway<'a> {
    plan: Plan<'a>,
    dir: PathBuf,
    listener: UnixListener,
    traffic: Mutex<Traffic>,
}

impl<'a> Gateway<'a> {
    /// Begins to listen in a directory that only `user` may enter. One that a killed keeper has left is taken over: its
    /// name is always the same.
    pub fn listen(plan: Plan<'a>, user: Option<RunAs>) -> anyhow::Result<Self> {
        let dir = plan.place.join(DIRECTORY);
        let socket = socket_in(&dir);
        durable::remove_if_there(&socket).context("remove the socket of a killed keeper")?;
        match fs::create_dir(&dir) {
            Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
                return Err(error).context("create a directory for a socket");
            }
            Ok(()) | Err(_) => {}
        }
        fs::set_permissions(&dir, Permissions::from_mode(0o700))
            .context("close the socket's directory")?;
        let listener = UnixListener::bind(&socket)
            .with_context(|| format!("listen on {}", socket.display()))?;
        fs::set_permissions(&socket, Permissions::from_mode(0o600))?;
        if let Some(user) = user {
            for path in [&dir, &socket] {
                chown(path, Some(user.uid), Some(user.gid)).context("hand the socket over")?;
            }
        }
        Ok(Self { plan, dir, listener, traffic: Mutex::default() })
    }

    /// Returns the connection string for pg_rewind.
    pub fn conninfo(&self) -> String {
        let host = quote(&self.dir.to_string_lossy());
        let user = quote(&self.plan.source.user);
        format!(
            "host={host} port={PORT} user={user} dbname={DATABASE} sslmode=disable gssencmode=disable"
        )
    }

    /// Returns what went through so far.
    pub fn traffic(&self) -> Traffic {
        self.lock().clone()
    }

    /// Serves pg_rewind until this future is dropped. Returns only what went wrong.
    pub async fn serve(&self, said: &watch::Receiver<Option<Divergence>>) -> Trouble {
        loop {
            let served = async {
                let (mut client, _) = self.listener.accept().await.context("accept pg_rewind")?;
                if wire::read_startup(&mut client).await.context("hear pg_rewind")? {
                    self.session(client, said).await?;
                }
                Ok::<(), Trouble>(())
            };
            if let Err(error) = served.await {
                return error;
            }
        }
    }

    async fn session(
        &self,
        mut client: UnixStream,
        said: &watch::Receiver<Option<Divergence>>,
    ) -> Result<(), Trouble> {
        let login = upstream::connect(self.plan.source, self.plan.password, As::Client);
        let upstream =
            timeout(LOGIN_WITHIN, login).await.context("the source does not answer")??;
        client.write_all(&upstream.greeting).await.context("greet pg_rewind")?;
        let (from_client, to_client) = tokio::io::split(client);
        let (from_source, to_source) = tokio::io::split(upstream.stream);
        // The client ends the session; the source only answers.
        tokio::select! {
            ended = self.forward_queries(from_client, to_source, said.clone()) => ended,
            ended = self.forward_answers(from_source, to_client) => Ok(ended?),
        }
    }

    async fn forward_queries(
        &self,
        mut from: ReadHalf<UnixStream>,
        mut to: WriteHalf<AnyStream>,
        mut said: watch::Receiver<Option<Divergence>>,
    ) -> Result<(), Trouble> {
        let mut frame = Frame::default();
        while wire::read(&mut from, &mut frame).await.context("hear pg_rewind")? {
            let changed = match frame.query().filter(|sql| listing::is_listing(sql)) {
                Some(sql) => Some(self.change(sql, &mut said).await?),
                None => None,
            };
            let bytes = changed.as_ref().unwrap_or(&frame).bytes();
            to.write_all(bytes).await.context("hand a query on to the source")?;
            if frame.kind() == b'X' {
                return Ok(());
            }
        }
        Ok(())
    }

    async fn change(
        &self,
        sql: &str,
        said: &mut watch::Receiver<Option<Divergence>>,
    ) -> Result<Frame, Trouble> {
        let heard = timeout(LINES_WITHIN, said.wait_for(Option::is_some)).await;
        let divergence = match heard {
            Ok(Ok(divergence)) => *divergence,
            Ok(Err(_)) | Err(_) => None,
        };
        let divergence = divergence
            .context("this pg_rewind does not say where it begins")
            .map_err(Trouble::Unfit)?;
        self.check(divergence)?;
        let shown = self.prepare(divergence).map_err(Trouble::Unfit)?;
        let mut body = listing::rewrite(sql, &shown).into_bytes();
        body.push(0);
        self.lock().listed = true;
        Ok(Frame::new(b'Q', &body))
    }

    /// Checks what pg_rewind found against what was known before.
    fn check(&self, divergence: Divergence) -> anyhow::Result<()> {
        let (timeline, lsn) = self.plan.expected;
        ensure!(
            (divergence.timeline, divergence.at) == (timeline, lsn),
            "pg_rewind sees the fork at {} of timeline {}, the histories at {lsn} of timeline {timeline}",
            divergence.at,
            divergence.timeline,
        );
        Ok(())
    }

    /// Gives the member's WAL its second names.
    fn prepare(&self, divergence: Divergence) -> anyhow::Result<Shown> {
        let timeline = divergence.timeline;
        let data_dir = self.plan.data_dir;
        let checkpoint = wal_scan::checkpoint(data_dir, timeline, divergence.from_checkpoint)?;
        let size = checkpoint.segment_size;
        let number = |lsn: Lsn| lsn.0 / u64::from(size);
        let fork =
            ForkSegment { common: timeline, number: number(divergence.at), segment_size: size };
        (self.plan.on_fork)(fork)?;
        let kept = kept_wal::keep(&wal_files::pg_wal_of(data_dir)?, &fork)
            .context("link this member's WAL under second names")?;
        let redo_segment = number(checkpoint.redo);
        let held = kept.iter().map(|file| &file.name).filter(|name| {
            Segment::parse(name, size)
                .is_some_and(|s| (redo_segment..fork.number).contains(&s.number))
        });
        Ok(Shown {
            segment_size: size,
            common: timeline,
            fork_segment: fork.number,
            redo_segment,
            held: held.cloned().collect(),
            kept,
        })
    }

    async fn forward_answers(
        &self,
        mut from: ReadHalf<AnyStream>,
        mut to: WriteHalf<UnixStream>,
    ) -> anyhow::Result<()> {
        let mut frame = Frame::default();
        while wire::read(&mut from, &mut frame).await.context("hear the source")? {
            self.count(&frame);
            to.write_all(frame.bytes()).await.context("hand an answer on to pg_rewind")?;
        }
        anyhow::bail!("the source closed the connection")
    }

    fn count(&self, frame: &Frame) {
        let mut traffic = self.lock();
        traffic.bytes += frame.bytes().len() as u64;
        if let Some((path, bytes)) = frame.fetched() {
            match traffic.files.get_mut(path) {
                Some(known) => *known += bytes,
                None => drop(traffic.files.insert(path.to_owned(), bytes)),
            }
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Traffic> {
        self.traffic.lock().expect("no thread panics while it holds this lock")
    }
}

impl Drop for Gateway<'_> {
    fn drop(&mut self) {
        // What cannot be removed is an empty directory among temporary ones.
        let _ = fs::remove_file(socket_in(&self.dir));
        let _ = fs::remove_dir(&self.dir);
    }
}

fn socket_in(dir: &Path) -> PathBuf {
    dir.join(format!(".s.PGSQL.{PORT}"))
}

/// The directory of the socket, and the number in the socket's name. Together no longer than the path of PostgreSQL's own
/// socket, which was checked when the keeper started.
const DIRECTORY: &str = "gate";
const PORT: u16 = 1;

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_a_killed_keeper_has_left_is_taken_over_and_goes() {
        let place = tempfile::tempdir().unwrap();
        let source = Source {
            host: "/nonexistent".into(),
            port: 5432,
            user: "x".into(),
            passfile: "/nonexistent".into(),
            application_name: "x".into(),
            tls: None,
        };
        let plan = || Plan {
            source: &source,
            password: "",
            data_dir: Path::new("/nonexistent"),
            place: place.path(),
            expected: (Timeline(1), Lsn(1)),
            on_fork: &|_| Ok(()),
        };
        // A killed keeper runs no destructor.
        let _killed = std::mem::ManuallyDrop::new(Gateway::listen(plan(), None).unwrap());
        let dir = place.path().join(DIRECTORY);
        assert!(socket_in(&dir).exists());
        let gateway = Gateway::listen(plan(), None).unwrap();
        let (_tell, said) = watch::channel(None);
        tokio::select! {
            trouble = gateway.serve(&said) => panic!("{trouble:?}"),
            connected = UnixStream::connect(socket_in(&dir)) => drop(connected.unwrap()),
        }
        drop(gateway);
        assert!(!dir.exists());
        // Whatever else lies there stays.
        fs::create_dir(&dir).unwrap();
        fs::write(dir.join("other"), "").unwrap();
        drop(Gateway::listen(plan(), None).unwrap());
        assert!(dir.join("other").exists() && !socket_in(&dir).exists());
    }
}
