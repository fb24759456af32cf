//! The keeper's own sessions, over the Unix socket. Every statement has a deadline, and none of them waits for
//! standbys: `synchronous_commit` is `local` but for the canary.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use tokio::time::timeout;
use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, Config, NoTls, Row, Statement};

use super::settings::{Place, SUPERUSER};

/// Long enough for a catalog query on a busy machine, short enough that a hung server is a fact and not a hang.
pub const STATEMENT_DEADLINE: Duration = Duration::from_secs(2);

/// Why a statement gave no answer.
#[derive(Debug, thiserror::Error)]
pub enum SqlError {
    #[error("no connection to PostgreSQL: {0}")]
    Connect(String),
    #[error("PostgreSQL refused: {0}")]
    Statement(String),
    #[error("PostgreSQL did not answer within {0:?}")]
    Deadline(Duration),
}

/// Where and as whom the keeper connects.
#[derive(Clone)]
pub struct Door {
    socket_dir: PathBuf,
    port: u16,
    password: String,
}

impl Door {
    /// Returns the door of the member at `place`.
    pub fn new(place: &Place, superuser_password: &str) -> Self {
        Self {
            socket_dir: place.socket_dir(),
            port: place.port,
            password: superuser_password.to_owned(),
        }
    }

    /// Opens a session whose commits do not wait for standbys.
    pub async fn open(&self) -> Result<Session, SqlError> {
        self.connect(&own("local")).await
    }

    /// Opens a session with the settings of a client that asks for none.
    pub async fn open_as_a_client(&self) -> Result<Session, SqlError> {
        self.connect("").await
    }

    /// Opens a session whose commits wait as a client's do.
    pub async fn open_synchronous(&self) -> Result<Session, SqlError> {
        self.connect(&own("on")).await
    }

    /// Asks for a session, and gives it back: whether one can be had at all.
    pub async fn knock(&self, patience: Duration) -> Knock {
        let config = self.config("");
        match timeout(patience, config.connect(NoTls)).await {
            Err(_) => Knock::Unanswered,
            Ok(Ok(_)) => Knock::Answered,
            Ok(Err(error)) if error.as_db_error().is_some() => Knock::Answered,
            Ok(Err(error)) => {
                let source = std::error::Error::source(&error);
                let io = source.and_then(|e| e.downcast_ref::<std::io::Error>());
                match io.map(std::io::Error::kind) {
                    Some(std::io::ErrorKind::WouldBlock) => Knock::QueueIsFull,
                    Some(_) | None => Knock::NoDoor,
                }
            }
        }
    }

    /// Connects and closes again without a word: PostgreSQL's postmaster wakes up, and logs nothing.
    pub async fn ring(&self) {
        let socket = self.socket_dir.join(format!(".s.PGSQL.{}", self.port));
        // Where nobody listens there is nobody to wake.
        let _ = timeout(RING_DEADLINE, tokio::net::UnixStream::connect(socket)).await;
    }

    async fn connect(&self, options: &str) -> Result<Session, SqlError> {
        let config = self.config(options);
        let connecting = timeout(STATEMENT_DEADLINE, config.connect(NoTls)).await;
        let (client, connection) = connecting
            .map_err(|_| SqlError::Deadline(STATEMENT_DEADLINE))?
            .map_err(|e| SqlError::Connect(describe(&e)))?;
        // Ends by itself when the client is dropped or the server closes.
        tokio::spawn(async move {
            let _ = connection.await;
        });
        Ok(Session { client, prepared: Mutex::default() })
    }

    fn config(&self, options: &str) -> Config {
        let mut config = Config::new();
        config
            .host_path(&self.socket_dir)
            .port(self.port)
            .user(SUPERUSER)
            .password(&self.password)
            .dbname("postgres")
            .application_name("pgdeputy-keeper")
            .options(options);
        config
    }
}

/// Returns the settings of a session of the keeper's own. Whoever may create schemas must not come before PostgreSQL's own
/// functions with theirs: a schema with the name of a role comes first in its default search_path.
fn own(synchronous_commit: &str) -> String {
    format!(
        "-c synchronous_commit={synchronous_commit} -c statement_timeout=0 -c search_path=pg_catalog"
    )
}

/// The kernel connects at once, or says that the queue is full.
const RING_DEADLINE: Duration = Duration::from_millis(100);

/// What became of asking for a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Knock {
    /// One was granted, or refused in PostgreSQL's own words, such as "too many clients": it lives.
    Answered,
    /// Others have waited for so long that no more may.
    QueueIsFull,
    Unanswered,
    /// There is no socket, or one that nobody listens at; PostgreSQL may be well behind another one.
    NoDoor,
}

/// One open session.
pub struct Session {
    client: Client,
    /// Statements that the server has parsed already: each is one round trip from then on.
    prepared: Mutex<BTreeMap<String, Statement>>,
}

impl Session {
    /// Returns whether the server has closed this session.
    pub fn is_closed(&self) -> bool {
        self.client.is_closed()
    }

    async fn prepared(&self, sql: &str) -> Result<Statement, SqlError> {
        let known = self.lock_prepared().get(sql).cloned();
        if let Some(statement) = known {
            return Ok(statement);
        }
        let statement = within(STATEMENT_DEADLINE, self.client.prepare(sql)).await?;
        self.lock_prepared().insert(sql.to_owned(), statement.clone());
        Ok(statement)
    }

    fn lock_prepared(&self) -> MutexGuard<'_, BTreeMap<String, Statement>> {
        self.prepared.lock().expect("no thread panics while it holds this lock")
    }

    /// Runs a statement that returns exactly one row.
    pub async fn row(
        &self,
        sql: &str,
        parameters: &[&(dyn ToSql + Sync)],
    ) -> Result<Row, SqlError> {
        let statement = self.prepared(sql).await?;
        within(STATEMENT_DEADLINE, self.client.query_one(&statement, parameters)).await
    }

    /// Runs a statement that returns rows.
    pub async fn rows(
        &self,
        sql: &str,
        parameters: &[&(dyn ToSql + Sync)],
    ) -> Result<Vec<Row>, SqlError> {
        let statement = self.prepared(sql).await?;
        within(STATEMENT_DEADLINE, self.client.query(&statement, parameters)).await
    }

    /// Runs statements without parameters.
    pub async fn run(&self, sql: &str) -> Result<(), SqlError> {
        within(STATEMENT_DEADLINE, self.client.batch_execute(sql)).await
    }

    /// Runs statements that may take long, such as `CHECKPOINT`, for at most `deadline`.
    pub async fn run_within(&self, deadline: Duration, sql: &str) -> Result<(), SqlError> {
        within(deadline, self.client.batch_execute(sql)).await
    }

    /// Returns one value of one row.
    pub async fn value<T>(&self, sql: &str) -> Result<T, SqlError>
    where
        T: for<'a> tokio_postgres::types::FromSql<'a>,
    {
        let row = self.row(sql, &[]).await?;
        row.try_get(0).map_err(|e| SqlError::Statement(describe(&e)))
    }
}

async fn within<T>(
    deadline: Duration,
    work: impl Future<Output = Result<T, tokio_postgres::Error>>,
) -> Result<T, SqlError> {
    match timeout(deadline, work).await {
        Err(_) => Err(SqlError::Deadline(deadline)),
        Ok(Err(error)) if error.is_closed() => Err(SqlError::Connect(describe(&error))),
        Ok(Err(error)) => Err(SqlError::Statement(describe(&error))),
        Ok(Ok(done)) => Ok(done),
    }
}

/// Returns the server's own words where there are some: the library's error says only `db error`.
pub fn describe(error: &tokio_postgres::Error) -> String {
    match error.as_db_error() {
        Some(db) => format!("{} ({})", db.message(), db.code().code()),
        None => {
            let source =
                std::error::Error::source(error).map(|s| format!(": {s}")).unwrap_or_default();
            format!("{error}{source}")
        }
    }
}
