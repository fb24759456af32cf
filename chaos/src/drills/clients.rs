//! Clients beside the load: they read what it writes, write in streams, append to lists in serializable transactions, and move
//! money. All go through the write port, and every operation is noted.
//!
//! The one rule: what was sent and not answered is unknown; only what cannot have committed is refused.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use proto::Moment;
use store::clock;
use tokio::task::JoinSet;
use tokio_postgres::error::SqlState;
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{Config, Error, NoTls, Row};
use tokio_util::sync::CancellationToken;

use crate::checker::{Operation, Outcome, Recorder, Step, What};
use crate::session::Session;

/// As long as the load waits for a commit.
const DEADLINE: Duration = Duration::from_secs(1);

/// A proxy without a server refuses at once; this is for one that says nothing.
const CONNECT_DEADLINE: Duration = Duration::from_millis(500);

/// Between two attempts to connect. The load asks more often, and measures.
const RECONNECT: Duration = Duration::from_millis(20);

/// Sixteen accounts of a hundred.
pub const MONEY: i64 = 1_600;
const ACCOUNTS: i32 = 16;

/// As many of the highest ids are read at a time: more than all writers can have under way.
const NEWEST: i64 = 50;

/// Lists that are appended to at a time, and to how many values together until others take their place: a list is read
/// whole each time, and must not grow for ever.
const LISTS: i64 = 3;
const VALUES: i64 = 150;

/// What the clients need besides the load's own tables.
pub const TABLES: &str = "CREATE TABLE IF NOT EXISTS stream
        (stream bigint, number bigint, PRIMARY KEY (stream, number));
     CREATE TABLE IF NOT EXISTS list (key bigint PRIMARY KEY, items bigint[] NOT NULL);
     CREATE TABLE IF NOT EXISTS account (id int PRIMARY KEY, money bigint NOT NULL);
     INSERT INTO account SELECT n, 100 FROM generate_series(1, 16) n ON CONFLICT DO NOTHING;";

/// Within how many microseconds a storm strikes: about twice what a commit takes.
const STORM_US: u64 = 6_000;

/// What a client does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    Reader,
    Stream,
    /// A stream whose statements are cancelled, or run out of time, at any moment.
    Storm,
    Lists,
    Payer,
    Auditor,
}

/// Who there is, and how long each rests between two operations: together they are a small part of the load.
const PARTS: [(Part, u64); 7] = [
    (Part::Reader, 20),
    (Part::Stream, 15),
    (Part::Storm, 30),
    (Part::Lists, 15),
    (Part::Lists, 15),
    (Part::Payer, 20),
    (Part::Auditor, 50),
];

/// Running clients. Dropping them stops them.
pub struct Clients {
    recorder: Recorder,
    tasks: JoinSet<()>,
    ending: CancellationToken,
}

impl Clients {
    /// Starts all of them against `target`. `newest_below` is where the ids end that the load through it writes.
    pub fn start(target: &Config, log: &Path, newest_below: i64) -> anyhow::Result<Self> {
        let recorder = Recorder::create(log)?;
        let numbers = Arc::new(Numbers { stream: AtomicI64::new(1), value: AtomicI64::new(1) });
        let (mut tasks, ending) = (JoinSet::new(), CancellationToken::new());
        for (number, (part, pause)) in (1..).zip(PARTS) {
            let client = Client {
                number,
                part,
                pause: Duration::from_millis(pause),
                target: target.clone(),
                recorder: recorder.clone(),
                numbers: Arc::clone(&numbers),
                newest_below,
                stream: (0, 1),
                gave_up: false,
                ending: ending.clone(),
            };
            tasks.spawn(client.run_for_ever());
        }
        Ok(Self { recorder, tasks, ending })
    }

    /// Stops them, each after the operation that is under way: it may be there at the end, and has to be noted.
    pub async fn stop(mut self) -> Vec<Operation> {
        self.ending.cancel();
        while self.tasks.join_next().await.is_some() {}
        self.recorder.all()
    }
}

/// What is used once.
struct Numbers {
    stream: AtomicI64,
    value: AtomicI64,
}

struct Client {
    number: u32,
    part: Part,
    pause: Duration,
    target: Config,
    recorder: Recorder,
    numbers: Arc<Numbers>,
    newest_below: i64,
    /// The stream and its next number.
    stream: (i64, i64),
    /// Whether a statement got no answer: its session is of no use any more.
    gave_up: bool,
    ending: CancellationToken,
}

impl Client {
    async fn run_for_ever(mut self) {
        self.stream = (self.new_stream(), 1);
        while !self.ending.is_cancelled() {
            if let Ok(session) = Session::open(&self.target, CONNECT_DEADLINE).await {
                while self.once(&session).await && !self.ending.is_cancelled() {
                    tokio::time::sleep(self.pause).await;
                }
            }
            tokio::time::sleep(RECONNECT).await;
        }
    }

    fn new_stream(&self) -> i64 {
        self.numbers.stream.fetch_add(1, Ordering::SeqCst)
    }

    /// Returns whether the session may be used again.
    async fn once(&mut self, session: &Session) -> bool {
        let invoked = clock::now();
        let (outcome, what) = match self.part {
            Part::Reader => self.read_newest(session).await,
            Part::Stream => self.write_next(session).await,
            Part::Storm => self.write_in_a_storm(session).await,
            Part::Lists => self.change_lists(session).await,
            Part::Payer => pay(session).await,
            Part::Auditor => audit(session).await,
        };
        self.note(invoked, outcome, what);
        let gave_up = std::mem::take(&mut self.gave_up);
        outcome != Outcome::Unknown && !gave_up && !session.client().is_closed()
    }

    fn note(&self, invoked: Moment, outcome: Outcome, what: What) {
        let ended = clock::now();
        self.recorder.note(Operation { client: self.number, invoked, ended, outcome, what });
    }

    async fn read_newest(&self, session: &Session) -> (Outcome, What) {
        const READ: &str = "SELECT id FROM load WHERE id < $1 ORDER BY id DESC LIMIT $2";
        let asked = ask(session, READ, &[&self.newest_below, &NEWEST], Type::INT8).await;
        let ids = |rows: Vec<Row>| rows.iter().map(|row| row.get::<_, i64>(0)).collect();
        match asked {
            Ok(rows) => (Outcome::Done, What::Newest(ids(rows))),
            Err(outcome) => (outcome, What::Newest(Vec::new())),
        }
    }

    async fn write_next(&mut self, session: &Session) -> (Outcome, What) {
        const WRITE: &str = "INSERT INTO stream VALUES ($1, $2) RETURNING number";
        let (stream, number) = self.stream;
        let asked = ask(session, WRITE, &[&stream, &number], Type::INT8).await;
        let outcome = written(session, asked);
        match outcome {
            Outcome::Done => self.stream.1 += 1,
            // Nobody knows how long it is: another one.
            Outcome::Unknown => self.stream = (self.new_stream(), 1),
            Outcome::Refused => {}
        }
        (outcome, What::Next { stream, number })
    }

    /// A cancel or a time-out strikes before, while or after the commit waits for the standbys: where it cuts that wait, the
    /// server warns, and the write counts as unknown.
    async fn write_in_a_storm(&mut self, session: &Session) -> (Outcome, What) {
        let after = Duration::from_micros(rand::random_range(0..STORM_US));
        if rand::random() {
            let timeout = format!("SET statement_timeout = '{}us'", after.as_micros().max(1_000));
            if tell(session, &timeout).await.is_err() {
                self.gave_up = true;
            }
            return self.write_next(session).await;
        }
        let canceller = session.client().cancel_token();
        let cancelled = tokio::spawn(async move {
            tokio::time::sleep(after).await;
            // Through a proxy that has just lost its server nothing is cancelled.
            let _ = tokio::time::timeout(CONNECT_DEADLINE, canceller.cancel_query(NoTls)).await;
        });
        let written = self.write_next(session).await;
        // It must not strike the next statement, whose answer would be taken for another one's.
        let _ = cancelled.await;
        written
    }

    async fn change_lists(&mut self, session: &Session) -> (Outcome, What) {
        let mut steps = Vec::new();
        if let Err(outcome) = self.take_steps(session, &mut steps).await {
            // Whatever became of it, its COMMIT was never sent.
            self.gave_up = outcome == Outcome::Unknown || tell(session, "ROLLBACK").await.is_err();
            return (Outcome::Refused, What::Lists(steps));
        }
        let outcome = match tell(session, "COMMIT").await {
            Ok(()) if session.has_warned() => Outcome::Unknown,
            Ok(()) => Outcome::Done,
            Err(outcome) => outcome,
        };
        (outcome, What::Lists(steps))
    }

    async fn take_steps(&self, session: &Session, steps: &mut Vec<Step>) -> Result<(), Outcome> {
        const APPEND: &str = "INSERT INTO list VALUES ($1, ARRAY[$2]) ON CONFLICT (key) \
             DO UPDATE SET items = list.items || $2 RETURNING items";
        const READ: &str = "SELECT items FROM list WHERE key = $1";
        tell(session, "BEGIN ISOLATION LEVEL SERIALIZABLE").await?;
        let value = self.numbers.value.fetch_add(1, Ordering::SeqCst);
        let first = value / VALUES * LISTS;
        let [read, append, last] = [(); 3].map(|()| first + rand::random_range(0..LISTS));
        let rows = ask(session, READ, &[&read], Type::INT8).await?;
        steps.push(Step::Read { key: read, values: items(&rows) });
        // Noted before it is sent: a value that shows up without a writer would be a phantom.
        steps.push(Step::Append { key: append, value });
        let rows = ask(session, APPEND, &[&append, &value], Type::INT8).await?;
        steps.push(Step::Read { key: append, values: items(&rows) });
        let rows = ask(session, READ, &[&last], Type::INT8).await?;
        steps.push(Step::Read { key: last, values: items(&rows) });
        Ok(())
    }
}

async fn pay(session: &Session) -> (Outcome, What) {
    const PAY: &str = "UPDATE account SET money = money + CASE id WHEN $1 THEN -1 ELSE 1 END \
         WHERE id IN ($1, $2) RETURNING id";
    let from = rand::random_range(1..=ACCOUNTS);
    let to = from % ACCOUNTS + 1;
    let asked = ask(session, PAY, &[&from, &to], Type::INT4).await;
    (written(session, asked), What::Transfer)
}

async fn audit(session: &Session) -> (Outcome, What) {
    match ask(session, "SELECT sum(money)::bigint FROM account", &[], Type::INT8).await {
        Ok(rows) => (Outcome::Done, What::Total(rows.first().map_or(0, |row| row.get(0)))),
        Err(outcome) => (outcome, What::Total(0)),
    }
}

fn items(rows: &[Row]) -> Vec<i64> {
    rows.first().map(|row| row.get(0)).unwrap_or_default()
}

/// A commit with a warning is not acknowledged, and one that has changed nothing is none.
fn written(session: &Session, asked: Result<Vec<Row>, Outcome>) -> Outcome {
    match asked {
        Ok(rows) if rows.is_empty() || session.has_warned() => Outcome::Unknown,
        Ok(_) => Outcome::Done,
        Err(outcome) => outcome,
    }
}

/// Runs one statement whose values are all of type `of`.
async fn ask(
    session: &Session,
    statement: &str,
    values: &[&(dyn ToSql + Sync)],
    of: Type,
) -> Result<Vec<Row>, Outcome> {
    let typed: Vec<_> = values.iter().map(|value| (*value, of.clone())).collect();
    let asked = session.client().query_typed(statement, &typed);
    match tokio::time::timeout(DEADLINE, asked).await {
        Ok(Ok(rows)) => Ok(rows),
        Ok(Err(error)) => Err(outcome(&error)),
        Err(_) => Err(Outcome::Unknown),
    }
}

async fn tell(session: &Session, statement: &str) -> Result<(), Outcome> {
    match tokio::time::timeout(DEADLINE, session.client().batch_execute(statement)).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => Err(outcome(&error)),
        Err(_) => Err(Outcome::Unknown),
    }
}

/// Only what PostgreSQL says that it has rolled back is refused.
fn outcome(error: &Error) -> Outcome {
    let refusals = [
        SqlState::READ_ONLY_SQL_TRANSACTION,
        SqlState::T_R_SERIALIZATION_FAILURE,
        SqlState::T_R_DEADLOCK_DETECTED,
        SqlState::QUERY_CANCELED,
    ];
    let refused = error.code().is_some_and(|code| refusals.contains(code));
    if refused { Outcome::Refused } else { Outcome::Unknown }
}
