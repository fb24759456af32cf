//! A PostgreSQL session with a deadline on everything, that knows whether the server warned.
//!
//! A commit that comes with a warning is not acknowledged: a cancelled wait for the standbys is told as one.

use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Context;
use tokio::task::JoinHandle;
use tokio_postgres::{AsyncMessage, Client, Config, NoTls};

/// An open session. Dropping it closes the connection.
pub struct Session {
    client: Client,
    warned: Arc<AtomicBool>,
    driver: JoinHandle<()>,
}

impl Session {
    /// Connects and logs in.
    pub async fn open(config: &Config, deadline: Duration) -> anyhow::Result<Self> {
        let connected = tokio::time::timeout(deadline, config.connect(NoTls)).await;
        let (client, mut connection) =
            connected.context("connect to PostgreSQL: no answer in time")??;
        let warned = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&warned);
        let driver = tokio::spawn(async move {
            while let Some(Ok(message)) = poll_fn(|cx| connection.poll_message(cx)).await {
                // Told before the answer that it belongs to, so the flag is up when that answer is read.
                if let AsyncMessage::Notice(notice) = message
                    && notice.severity() == "WARNING"
                {
                    flag.store(true, Ordering::SeqCst);
                }
            }
        });
        Ok(Self { client, warned, driver })
    }

    /// The session itself.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// Returns whether the server has warned since the session was opened.
    pub fn has_warned(&self) -> bool {
        self.warned.load(Ordering::SeqCst)
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.driver.abort();
    }
}
