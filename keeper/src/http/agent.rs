//! HAProxy's agent-check, on the port of HTTP: a connection that begins with `agent` is answered with one line and
//! closed. `maint` says that this member is out of service on purpose, which HAProxy shows as MAINT and not as DOWN;
//! `ready up` takes it back. Anything else leaves HAProxy with its health checks.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use proto::Moment;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, mpsc, watch};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::view::{Serving, View};

/// How a connection of an agent-check begins. No method of HTTP does.
const HAIL: &[u8] = b"agent";

/// The longest question: HAIL, the name of a backend and the path of a socket.
const LONGEST: usize = 512;

/// A client that says nothing for so long is none.
const FIRST_WORD: Duration = Duration::from_secs(10);

/// A question and its answer are one packet each.
const EXCHANGE: Duration = Duration::from_secs(1);

/// Two questions at the pace that our own configuration sets.
const ASKS_STILL: Duration = Duration::from_secs(2);

/// One question later everybody who asks has been told.
const FAREWELL: Duration = Duration::from_millis(1100);

/// What an agent answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Word {
    /// It serves.
    Ready,
    /// It is out of service on purpose.
    Maint,
    /// Its health checks say how it is.
    Nothing,
}

impl Word {
    /// Returns the answer for `view` at `now`.
    pub fn of(view: &View, now: Moment) -> Self {
        let member = &view.status.report.member;
        let removed = view.cluster.as_ref().is_some_and(|c| c.orders.removed.contains_key(member));
        let on_purpose = view.status.report.leaving || removed;
        match view.serving_at(now) {
            // Whoever is asked to stop hands over first.
            Serving::Primary => Self::Ready,
            Serving::Standby | Serving::Nobody if on_purpose => Self::Maint,
            Serving::Standby => Self::Ready,
            Serving::Nobody => Self::Nothing,
        }
    }

    fn line(self) -> &'static [u8] {
        match self {
            Self::Ready => b"ready up\n",
            Self::Maint => b"maint\n",
            // A word that HAProxy does not know is no change of anything.
            Self::Nothing => b"unchanged\n",
        }
    }
}

/// When each was last answered, by its address and question, and with what.
type Askers = BTreeMap<(IpAddr, Vec<u8>), (Moment, Word)>;

/// Who asks, and what they were last told.
#[derive(Debug, Default)]
pub struct Agents {
    askers: Mutex<Askers>,
    told: Notify,
}

impl Agents {
    /// Waits until all who have asked of late know that this member is out of service; for one of their questions at most.
    pub async fn farewell(&self) {
        let everybody = async {
            loop {
                let told = self.told.notified();
                let now = store::clock::now();
                let knows = |(asked, word): &(Moment, Word)| {
                    now.since(*asked) > ASKS_STILL || *word == Word::Maint
                };
                if self.lock().values().all(knows) {
                    return;
                }
                told.await;
            }
        };
        let _ = timeout(FAREWELL, everybody).await;
    }

    fn note(&self, from: IpAddr, question: &[u8], word: Word) {
        let now = store::clock::now();
        let mut askers = self.lock();
        askers.retain(|_, (asked, _)| now.since(*asked) <= ASKS_STILL);
        askers.insert((from, question.to_vec()), (now, word));
        drop(askers);
        self.told.notify_waiters();
    }

    fn lock(&self) -> MutexGuard<'_, Askers> {
        self.askers.lock().expect("no holder of this lock panics")
    }
}

/// Connections that speak HTTP, for axum.
pub(super) struct Sorted {
    address: SocketAddr,
    http: mpsc::Receiver<(TcpStream, SocketAddr)>,
}

impl axum::serve::Listener for Sorted {
    type Io = TcpStream;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (TcpStream, SocketAddr) {
        match self.http.recv().await {
            Some(connection) => connection,
            // Its other end goes with the listener, at the end of the keeper.
            None => std::future::pending().await,
        }
    }

    fn local_addr(&self) -> std::io::Result<SocketAddr> {
        Ok(self.address)
    }
}

/// Accepts on `listener` until `stop`, answers agents, and hands on the rest.
pub(super) fn sort(
    listener: TcpListener,
    view: watch::Receiver<View>,
    agents: Arc<Agents>,
    stop: CancellationToken,
) -> std::io::Result<Sorted> {
    let address = listener.local_addr()?;
    let (sender, http) = mpsc::channel(16);
    let accepting = async move {
        loop {
            let Ok((stream, from)) = listener.accept().await else {
                // Out of files: the next moment may be better, and spinning would make it worse.
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            };
            // Answers are small and load balancers wait for them: Nagle's delay would only add to the outage.
            let _ = stream.set_nodelay(true);
            let (sender, view, agents) = (sender.clone(), view.clone(), agents.clone());
            tokio::spawn(async move {
                match begins(&stream).await {
                    Some(true) => {
                        drop(timeout(EXCHANGE, answer(stream, from, view, &agents)).await)
                    }
                    Some(false) => drop(sender.send((stream, from)).await),
                    None => {}
                }
            });
        }
    };
    tokio::spawn(stop.run_until_cancelled_owned(accepting));
    Ok(Sorted { address, http })
}

/// Returns whether a connection begins as an agent's; none if it begins with nothing.
async fn begins(stream: &TcpStream) -> Option<bool> {
    let mut first = [0];
    let peeked = timeout(FIRST_WORD, stream.peek(&mut first)).await.ok()?.ok()?;
    // No method of HTTP begins with a small letter.
    (peeked == 1).then_some(first[0] == HAIL[0])
}

async fn answer(
    mut stream: TcpStream,
    from: SocketAddr,
    view: watch::Receiver<View>,
    agents: &Agents,
) -> std::io::Result<()> {
    let mut question = Vec::new();
    let mut buffer = [0; 64];
    while !question.contains(&b'\n') && question.len() < LONGEST {
        match stream.read(&mut buffer).await? {
            0 => break,
            length => question.extend_from_slice(&buffer[..length]),
        }
    }
    if !question.starts_with(HAIL) {
        return Ok(());
    }
    let word = Word::of(&view.borrow(), store::clock::now());
    stream.write_all(word.line()).await?;
    stream.shutdown().await?;
    agents.note(from.ip(), &question, word);
    Ok(())
}
