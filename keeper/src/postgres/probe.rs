//! What the running server says of itself: one query, one round trip, one consistent answer.

use std::time::Duration;

use proto::{Lsn, Moment, Timeline};
use serde::Deserialize;

use tokio_postgres::Row;

use super::session::{Session, SqlError};

/// The server's answers.
#[derive(Debug, Clone, PartialEq)]
pub struct SqlFacts {
    /// When the question was asked: nothing here is newer.
    pub asked: Moment,
    pub in_recovery: bool,
    pub timeline: Timeline,
    /// On a primary what it has flushed; on a standby what a receiver has flushed since the server's start.
    pub flush_lsn: Option<Lsn>,
    pub replay_lsn: Option<Lsn>,
    /// How long ago the last commit was made that is replayed, by the wall clocks of both machines.
    pub replayed_commit_age: Option<Duration>,
    /// The value of `synchronous_standby_names` in this session.
    pub standby_names: String,
    pub receiver: Option<Receiver>,
    pub walsenders: Vec<Walsender>,
}

/// A standby's receiver.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Receiver {
    pub streaming: bool,
    pub timeline: Timeline,
    /// Since when it has heard nothing. An idle primary is heard when the receiver asks, every half of its time-out.
    pub silent_for: Duration,
    /// The name under which it connected.
    pub name: Option<String>,
    /// Where the primary's WAL ended when it was last heard.
    pub primary_end: Option<Lsn>,
}

/// A primary's walsender.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Walsender {
    pub pid: i32,
    pub name: String,
    pub state: String,
    pub flush_lsn: Option<Lsn>,
    pub replay_lsn: Option<Lsn>,
    pub sync_priority: i32,
    pub sync_state: String,
}

/// The walsenders as one JSON text: a whole query, and a part of the probe's.
macro_rules! walsenders_query {
    () => {
        "SELECT COALESCE(json_agg(json_build_object(
            'pid', pid, 'name', application_name, 'state', state, 'flush_lsn', flush_lsn::text,
            'replay_lsn', replay_lsn::text, 'sync_priority', sync_priority, 'sync_state', sync_state)), '[]')::text
          FROM pg_stat_replication"
    };
}

const QUERY: &str = concat!(
    r"
SELECT r.in_recovery,
       CASE WHEN r.in_recovery THEN COALESCE(w.received_tli, c.min_recovery_end_timeline)
            ELSE ('x' || substr(pg_walfile_name(pg_current_wal_insert_lsn()), 1, 8))::bit(32)::int END,
       CASE WHEN r.in_recovery THEN pg_last_wal_receive_lsn() ELSE pg_current_wal_flush_lsn() END::text,
       CASE WHEN r.in_recovery THEN pg_last_wal_replay_lsn() END::text,
       current_setting('synchronous_standby_names'),
       w.status, w.received_tli,
       substring(w.conninfo from 'application_name=(\S+)'),
       (extract(epoch FROM clock_timestamp() - w.last_msg_receipt_time) * 1000)::bigint,
       (",
    walsenders_query!(),
    r"),
       w.latest_end_lsn::text,
       (extract(epoch FROM clock_timestamp() - pg_last_xact_replay_timestamp()) * 1000)::bigint
  FROM (SELECT pg_is_in_recovery() AS in_recovery) r
  CROSS JOIN pg_control_recovery() c
  LEFT JOIN pg_stat_wal_receiver w ON true"
);

/// Asks the server. `asked` is the moment before the question.
pub async fn probe(session: &Session, asked: Moment) -> Result<SqlFacts, SqlError> {
    let row = session.row(QUERY, &[]).await?;
    let odd = |e: String| SqlError::Statement(format!("unexpected answer to the probe: {e}"));
    let text = |i: usize| row.try_get::<_, Option<String>>(i).map_err(|e| odd(e.to_string()));
    let lsn = |i: usize| -> Result<Option<Lsn>, SqlError> {
        text(i)?
            .map(|t| t.parse())
            .transpose()
            .map_err(|e: proto::lsn::LsnError| odd(e.to_string()))
    };
    let number = |i: usize| row.try_get::<_, Option<i32>>(i).map_err(|e| odd(e.to_string()));
    let flag = |i: usize| row.try_get::<_, bool>(i).map_err(|e| odd(e.to_string()));
    let receiver = match (text(5)?, number(6)?) {
        (Some(status), timeline) => Some(Receiver {
            streaming: status == "streaming",
            timeline: Timeline(timeline.unwrap_or(0) as u32),
            name: text(7)?,
            silent_for: age(&row, 8)?.unwrap_or_default(),
            primary_end: lsn(10)?,
        }),
        (None, _) => None,
    };
    Ok(SqlFacts {
        asked,
        in_recovery: flag(0)?,
        timeline: Timeline(number(1)?.unwrap_or(0) as u32),
        flush_lsn: lsn(2)?,
        replay_lsn: lsn(3)?,
        replayed_commit_age: age(&row, 11)?,
        standby_names: text(4)?.unwrap_or_default(),
        receiver,
        walsenders: parse_walsenders(&text(9)?.unwrap_or_default())?,
    })
}

/// A wall clock that was set back makes an age negative: then it counts as none at all.
fn age(row: &Row, column: usize) -> Result<Option<Duration>, SqlError> {
    let age: Option<i64> = row
        .try_get(column)
        .map_err(|e| SqlError::Statement(format!("unexpected answer to the probe: {e}")))?;
    Ok(age.map(|ms| Duration::from_millis(u64::try_from(ms).unwrap_or(0))))
}

/// Asks a primary for its walsenders only.
pub async fn walsenders(session: &Session) -> Result<Vec<Walsender>, SqlError> {
    parse_walsenders(&session.value::<String>(walsenders_query!()).await?)
}

fn parse_walsenders(text: &str) -> Result<Vec<Walsender>, SqlError> {
    serde_json::from_str(text)
        .map_err(|e| SqlError::Statement(format!("unexpected answer about walsenders: {e}")))
}
