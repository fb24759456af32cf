//! An upgrade of the program beside a running PostgreSQL: the new keeper prepares, then asks the old one to leave. The
//! old one does so between two actions and directly after it has renewed its right, so that the new one, which renews
//! from the same lease first of all, has nearly all of a lease to do it in.
//!
//! Only for a keeper that was started with `--take-over`: two that were started by mistake must not end each other.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::durable::remove_if_there;
use crate::fencer::Process;

/// The version of what is said here; a keeper that speaks another one is left where it is.
const PROTOCOL: u32 = 1;

/// An action such as a proof takes a second or two, a renewal comes with each fifth of a lease.
const PATIENCE: Duration = Duration::from_secs(15);

/// A process that has said that it leaves is gone within milliseconds.
const LEAVES_WITHIN: Duration = Duration::from_secs(3);

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Message {
    /// The new keeper: leave PostgreSQL to me.
    HandOver {
        protocol: u32,
    },
    /// The old one: I am `pid`, and I leave now.
    Leaving {
        pid: u32,
    },
    Refused {
        why: String,
    },
}

/// Somebody has asked for the member. A keeper that leaves sends what is then told that the other one knows.
pub type Request = oneshot::Sender<oneshot::Sender<()>>;

/// Returns where the keeper of a state directory is asked.
pub fn socket_path(state_dir: &Path) -> PathBuf {
    state_dir.join("keeper.sock")
}

/// Asks the keeper of `state_dir` to leave, and returns once it has; at once where none runs.
pub async fn take_over(state_dir: &Path) -> anyhow::Result<()> {
    let stream = match UnixStream::connect(socket_path(state_dir)).await {
        Ok(stream) => stream,
        Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused) => {
            tracing::info!("no keeper runs that could be taken over from");
            return Ok(());
        }
        Err(error) => return Err(error).context("ask the running keeper to leave"),
    };
    let asked = timeout(PATIENCE, converse(stream, &Message::HandOver { protocol: PROTOCOL }));
    let answer = asked
        .await
        .context("the running keeper does not leave: it may be in the middle of something")??;
    let pid = match answer {
        Message::Leaving { pid } => pid,
        Message::Refused { why } => bail!("the running keeper does not leave: {why}"),
        Message::HandOver { .. } => bail!("the running keeper said something unexpected"),
    };
    let deadline = store::clock::now() + LEAVES_WITHIN;
    while Process::with_pid(pid).is_some() {
        ensure!(
            store::clock::now() < deadline,
            "the running keeper {pid} said that it leaves and did not"
        );
        sleep(Duration::from_millis(2)).await;
    }
    tracing::info!(pid, "took over from the keeper before");
    Ok(())
}

async fn converse(mut stream: UnixStream, said: &Message) -> anyhow::Result<Message> {
    write(&mut stream, said).await?;
    read(stream).await.map(|(heard, _)| heard)
}

async fn write(stream: &mut UnixStream, said: &Message) -> anyhow::Result<()> {
    let line = serde_json::to_string(said)? + "\n";
    stream.write_all(line.as_bytes()).await.context("speak to the other keeper")
}

async fn read(stream: UnixStream) -> anyhow::Result<(Message, UnixStream)> {
    let mut stream = BufReader::new(stream);
    let mut line = String::new();
    stream.read_line(&mut line).await.context("hear the other keeper")?;
    Ok((serde_json::from_str(&line).context("understand the other keeper")?, stream.into_inner()))
}

/// Passes on who asks for the member, until `stop`. The lock on the state directory is held, so a socket that lies there
/// is a dead keeper's.
pub async fn listen(state_dir: PathBuf, asked: mpsc::Sender<Request>, stop: CancellationToken) {
    let path = socket_path(&state_dir);
    let bound = remove_if_there(&path).and_then(|_| UnixListener::bind(&path));
    let listener = match bound {
        Ok(listener) => listener,
        Err(error) => return tracing::warn!(%error, "this keeper cannot be taken over from"),
    };
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            accepted = listener.accept() => {
                let Ok((stream, _)) = accepted else { continue };
                // One at a time: whoever comes second finds nobody there to take over from.
                if let Err(error) = answer(stream, &asked).await {
                    tracing::warn!(error = format!("{error:#}"), "asked to be taken over from");
                }
            }
        }
    }
}

async fn answer(stream: UnixStream, asked: &mpsc::Sender<Request>) -> anyhow::Result<()> {
    let (said, mut stream) = timeout(PATIENCE, read(stream)).await??;
    let Message::HandOver { protocol: PROTOCOL } = said else {
        let why = format!("it speaks version {PROTOCOL} of the hand-over, and was asked {said:?}");
        return write(&mut stream, &Message::Refused { why }).await;
    };
    let (request, leaving) = oneshot::channel();
    asked.send(request).await.context("pass the request on")?;
    // Dropped with this future if the other one does not wait that long: then this keeper stays.
    let told = timeout(PATIENCE, leaving).await.context("no moment to leave was found")??;
    write(&mut stream, &Message::Leaving { pid: std::process::id() }).await?;
    let _ = told.send(());
    Ok(())
}

/// Tells whoever has asked that this keeper leaves; returns whether it knows.
pub async fn leaving(request: Request) -> bool {
    let (told, tells) = oneshot::channel();
    request.send(told).is_ok() && matches!(timeout(LEAVES_WITHIN, tells).await, Ok(Ok(())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn where_nobody_runs_there_is_nobody_to_take_over_from() {
        let dir = tempfile::tempdir().unwrap();
        take_over(dir.path()).await.unwrap();
        std::os::unix::net::UnixListener::bind(socket_path(dir.path())).unwrap();
        take_over(dir.path()).await.unwrap();
    }

    #[tokio::test]
    async fn a_keeper_that_speaks_another_version_is_left_where_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let (asked, mut requests) = mpsc::channel(1);
        let stop = CancellationToken::new();
        let listening = tokio::spawn(listen(dir.path().to_path_buf(), asked, stop.clone()));
        while !socket_path(dir.path()).exists() {
            tokio::task::yield_now().await;
        }
        let stream = UnixStream::connect(socket_path(dir.path())).await.unwrap();
        let answer = converse(stream, &Message::HandOver { protocol: 99 }).await.unwrap();
        assert!(matches!(answer, Message::Refused { .. }), "{answer:?}");
        assert!(requests.try_recv().is_err());
        stop.cancel();
        listening.await.unwrap();
    }
}
