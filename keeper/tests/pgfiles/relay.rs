//! Stands between a rewind and its source, and stops right after a drawn number of bytes.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use keeper::postgres::source::Source;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Notify;
use tokio::task::JoinHandle;

use crate::cluster::directory;

/// A relay that ends with the test that made it.
pub struct Relay {
    dir: tempfile::TempDir,
    counted: Arc<Counted>,
    task: JoinHandle<()>,
}

struct Counted {
    sent: AtomicU64,
    stop_after: u64,
    reached: Notify,
    source: PathBuf,
}

impl Relay {
    /// Passes on what `source` sends, up to `stop_after` bytes; then it stands still.
    pub fn before(source: &Source, stop_after: u64) -> Self {
        let dir = directory();
        let listener = UnixListener::bind(socket(dir.path())).unwrap();
        let all = std::fs::Permissions::from_mode(0o777);
        std::fs::set_permissions(socket(dir.path()), all).unwrap();
        let counted = Arc::new(Counted {
            sent: AtomicU64::new(0),
            stop_after,
            reached: Notify::new(),
            source: socket(Path::new(&source.host)),
        });
        let shared = Arc::clone(&counted);
        let task = tokio::spawn(async move {
            let mut sessions = tokio::task::JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                sessions.spawn(pass(client, Arc::clone(&shared)));
            }
        });
        Self { dir, counted, task }
    }

    /// Returns how to reach the source through it.
    pub fn source(&self, source: &Source) -> Source {
        Source { host: self.dir.path().to_str().unwrap().to_owned(), ..source.clone() }
    }

    /// Returns once the drawn number of bytes has gone through.
    pub async fn reached(&self) {
        self.counted.reached.notified().await;
    }

    pub fn sent(&self) -> u64 {
        self.counted.sent.load(Ordering::Relaxed)
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn socket(dir: &Path) -> PathBuf {
    dir.join(".s.PGSQL.5432")
}

async fn pass(client: UnixStream, counted: Arc<Counted>) {
    let Ok(upstream) = UnixStream::connect(&counted.source).await else { return };
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_source, mut to_source) = upstream.into_split();
    let asking = tokio::io::copy(&mut from_client, &mut to_source);
    let answering = async {
        let mut buffer = vec![0; 16 << 10];
        loop {
            let Ok(bytes @ 1..) = from_source.read(&mut buffer).await else { return };
            let before = counted.sent.fetch_add(bytes as u64, Ordering::Relaxed);
            let left = usize::try_from(counted.stop_after.saturating_sub(before)).unwrap();
            if to_client.write_all(&buffer[..bytes.min(left)]).await.is_err() {
                return;
            }
            if bytes >= left {
                counted.reached.notify_one();
                std::future::pending::<()>().await;
            }
        }
    };
    tokio::select! {
        _ = asking => {}
        () = answering => {}
    }
}
