//! PgBouncer's console: the database `pgbouncer`, which takes commands of its own by PostgreSQL's simple protocol.
//! Every call has a deadline, and says whether PgBouncer is away, refuses, or does not answer.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::task::{JoinHandle, JoinSet};
use tokio_postgres::{Client, Config, NoTls, SimpleQueryMessage};

/// PgBouncer answers its console between two packets of its clients. One that takes this long is stuck or stopped.
const ANSWER_WITHIN: Duration = Duration::from_secs(1);

/// A session with one PgBouncer's console. Dropping it closes the connection, and takes back no command.
pub struct Console {
    client: Client,
    driver: JoinHandle<()>,
}

/// Why a PgBouncer does not do what it is told.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConsoleError {
    /// Nobody listens there: no client gets through it either.
    #[error("it does not run there: {0}")]
    Away(String),
    #[error("it refuses {what}: {said}")]
    Refused { what: String, said: String },
    #[error("it does not answer {what}")]
    Silent { what: String },
}

/// One row of a `SHOW`, by column.
pub type Row = BTreeMap<String, String>;

impl Console {
    /// Logs in.
    pub async fn open(at: &Config) -> Result<Self, ConsoleError> {
        let what = || "the login".to_owned();
        let connected = tokio::time::timeout(ANSWER_WITHIN, at.connect(NoTls)).await;
        let connected = connected.map_err(|_| ConsoleError::Silent { what: what() })?;
        let (client, connection) = connected.map_err(|e| of_login(&e))?;
        // Its end shows at the next command.
        let driver = tokio::spawn(async move { drop(connection.await) });
        Ok(Self { client, driver })
    }

    /// Returns whether the connection is gone, as after a restart of PgBouncer.
    pub fn is_closed(&self) -> bool {
        self.client.is_closed()
    }

    /// Runs a command that answers at once, or a `SHOW`.
    pub async fn ask(&self, command: &str) -> Result<Vec<Row>, ConsoleError> {
        let answer = tokio::time::timeout(ANSWER_WITHIN, self.run(command)).await;
        answer.unwrap_or_else(|_| Err(ConsoleError::Silent { what: command.to_owned() }))
    }

    /// Runs a command that may take as long as it likes. The caller bounds it.
    async fn run(&self, command: &str) -> Result<Vec<Row>, ConsoleError> {
        let answer = self.client.simple_query(command).await;
        let messages = answer.map_err(|e| match e.as_db_error() {
            Some(said) => {
                ConsoleError::Refused { what: command.to_owned(), said: said.message().to_owned() }
            }
            None => ConsoleError::Away(text(&e)),
        })?;
        let rows = messages.into_iter().filter_map(|message| match message {
            SimpleQueryMessage::Row(row) => Some(row),
            _ => None,
        });
        let pairs = |row: tokio_postgres::SimpleQueryRow| {
            let names = row.columns().iter().map(|c| c.name().to_owned()).enumerate();
            names.map(|(i, name)| (name, row.get(i).unwrap_or_default().to_owned())).collect()
        };
        Ok(rows.map(pairs).collect())
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

/// Opens consoles until there are `count`: each `PAUSE` waits on one of its own.
pub async fn open_all(
    at: &Config,
    ready: &mut Vec<Console>,
    count: usize,
) -> Result<(), ConsoleError> {
    ready.retain(|console| !console.is_closed());
    while ready.len() < count {
        ready.push(Console::open(at).await?);
    }
    Ok(())
}

/// Lets no transaction begin in any of `databases`, and returns when none runs any more. Without a bound of its own: a
/// transaction takes as long as it likes. Cut in the middle, the databases stay paused or half paused.
pub async fn pause_all(
    at: &Config,
    mut ready: Vec<Console>,
    databases: &[String],
) -> Result<(), ConsoleError> {
    // All are open before the first client has to wait.
    open_all(at, &mut ready, databases.len()).await?;
    let mut waits = JoinSet::new();
    for (console, name) in ready.into_iter().zip(databases) {
        let command = format!("PAUSE {}", quoted(name));
        waits.spawn(async move { console.run(&command).await });
    }
    while let Some(ended) = waits.join_next().await {
        ended.unwrap_or_else(|e| Err(ConsoleError::Away(e.to_string())))?;
    }
    Ok(())
}

/// Returns a name as the console takes it, whatever its letters.
pub fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

fn of_login(error: &tokio_postgres::Error) -> ConsoleError {
    let what = "the login".to_owned();
    match error.as_db_error() {
        Some(said) => ConsoleError::Refused { what, said: said.message().to_owned() },
        // A password that is wanted and not given never reaches PgBouncer.
        None if error.to_string().contains("configuration") => ConsoleError::Refused {
            what,
            said: "it wants a password: give --pgbouncer-password-file".into(),
        },
        None => ConsoleError::Away(text(error)),
    }
}

/// The cause is what tells: "error connecting to server" alone does not.
fn text(error: &tokio_postgres::Error) -> String {
    match std::error::Error::source(error) {
        Some(cause) => format!("{error}: {cause}"),
        None => error.to_string(),
    }
}
