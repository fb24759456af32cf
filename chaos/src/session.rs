//! A PostgreSQL session with a deadline on everything, that knows whether the server warned.
//!
//! A commit that comes with a warning is not acknowledged: a cancelled wait for the standbys is told as one.

use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Context;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::task::JoinHandle;
use tokio_postgres::config::SslMode;
use tokio_postgres::tls::MakeTlsConnect;
use tokio_postgres::{AsyncMessage, Client, Config, Connection, NoTls, Socket};
use tokio_postgres_rustls::MakeRustlsConnect;
use tokio_rustls::rustls::ClientConfig;

/// Reads how TLS is spoken, at each connect: a renewed certificate needs no restart.
pub type TlsFiles = Arc<dyn Fn() -> anyhow::Result<ClientConfig> + Send + Sync>;

/// A way to a PostgreSQL.
#[derive(Clone)]
pub struct Way {
    config: Config,
    tls: Option<TlsFiles>,
}

impl Way {
    /// Never by TLS.
    pub fn plain(config: Config) -> Self {
        Self { config, tls: None }
    }

    /// By TLS only.
    pub fn by_tls(mut config: Config, files: TlsFiles) -> Self {
        config.ssl_mode(SslMode::Require);
        Self { config, tls: Some(files) }
    }
}

/// An open session. Dropping it closes the connection.
pub struct Session {
    client: Client,
    warned: Arc<AtomicBool>,
    driver: JoinHandle<()>,
}

impl Session {
    /// Connects without TLS and logs in.
    pub async fn open(config: &Config, deadline: Duration) -> anyhow::Result<Self> {
        Self::connect(config, NoTls, deadline).await
    }

    /// Connects by TLS where `way` says so, and logs in.
    pub async fn open_by(way: &Way, deadline: Duration) -> anyhow::Result<Self> {
        match &way.tls {
            Some(files) => {
                Self::connect(&way.config, MakeRustlsConnect::new(files()?), deadline).await
            }
            None => Self::open(&way.config, deadline).await,
        }
    }

    async fn connect<T>(config: &Config, tls: T, deadline: Duration) -> anyhow::Result<Self>
    where
        T: MakeTlsConnect<Socket>,
        T::Stream: Send + 'static,
    {
        let connected = tokio::time::timeout(deadline, config.connect(tls)).await;
        let (client, connection) =
            connected.context("connect to PostgreSQL: no answer in time")??;
        Ok(Self::driven(client, connection))
    }

    fn driven<S, T>(client: Client, mut connection: Connection<S, T>) -> Self
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
        T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
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
        Self { client, warned, driver }
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
