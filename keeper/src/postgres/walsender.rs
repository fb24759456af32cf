//! Asks a server by the commands of physical replication: who it is, what its timelines are, and what its WAL holds.
//!
//! Rule: a question is bounded by its caller, and the connection ends with the question. A walsender needs no session of
//! a client, so a primary whose clients have taken all of those, or that lets no client in yet, answers too.

use anyhow::{Context, bail, ensure};
use proto::{Lsn, SystemIdentifier, Timeline, TimelineHistory};
use tokio::io::AsyncWriteExt;

use super::gateway::upstream::{self, AnyStream, As};
use super::gateway::wire::{self, Frame};
use super::source::Source;

/// What a server says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    pub system_identifier: SystemIdentifier,
    pub timeline: Timeline,
    /// How far it has flushed.
    pub flushed: Lsn,
}

/// An error of the server's own.
#[derive(Debug, thiserror::Error)]
#[error("the source says: {text}")]
pub struct Told {
    code: String,
    text: String,
}

/// `undefined_file`: what a walsender says of a segment that was removed.
const UNDEFINED_FILE: &str = "58P01";

/// Returns whether a stream ended with this error because the server has the WAL no more.
pub fn is_removed(error: &anyhow::Error) -> bool {
    error.downcast_ref::<Told>().is_some_and(|told| told.code == UNDEFINED_FILE)
}

/// A replication connection.
pub struct Walsender {
    stream: AnyStream,
    frame: Frame,
}

impl Walsender {
    /// Connects as the user of `source`, who must be allowed to replicate.
    pub async fn connect(source: &Source, password: &str) -> anyhow::Result<Self> {
        let upstream = upstream::connect(source, password, As::Receiver).await?;
        Ok(Self { stream: upstream.stream, frame: Frame::default() })
    }

    /// Asks who answers.
    pub async fn identify(&mut self) -> anyhow::Result<Identity> {
        let row = self.row("IDENTIFY_SYSTEM").await?;
        let field = |at: usize| -> anyhow::Result<&str> {
            let value = row.get(at).and_then(Option::as_ref).context("a field is missing")?;
            std::str::from_utf8(value).context("a field is no text")
        };
        Ok(Identity {
            system_identifier: SystemIdentifier(field(0)?.parse().context("system identifier")?),
            timeline: Timeline(field(1)?.parse().context("timeline")?),
            flushed: field(2)?.parse().context("position")?,
        })
    }

    /// Asks for the history of `timeline`, which is one of the server's own.
    pub async fn history(&mut self, timeline: Timeline) -> anyhow::Result<TimelineHistory> {
        if timeline == Timeline(1) {
            return Ok(TimelineHistory::first(timeline));
        }
        let row = self.row(&format!("TIMELINE_HISTORY {timeline}")).await?;
        let text = row.get(1).and_then(Option::as_ref).context("no history came")?;
        TimelineHistory::parse(timeline, &String::from_utf8_lossy(text))
            .context("read the source's history")
    }

    /// Asks for the bytes of `timeline` from `from` to before `to`, all of them flushed long ago.
    pub async fn wal(mut self, timeline: Timeline, from: Lsn, to: Lsn) -> anyhow::Result<Vec<u8>> {
        let wanted = usize::try_from(to.0.saturating_sub(from.0)).context("a range of WAL")?;
        self.send(&format!("START_REPLICATION PHYSICAL {from} TIMELINE {timeline}")).await?;
        let mut bytes = Vec::with_capacity(wanted);
        while bytes.len() < wanted {
            match self.next().await? {
                b'd' if self.frame.body().first() == Some(&WAL_DATA) => {
                    let data =
                        self.frame.body().get(WAL_DATA_HEADER..).context("a short message")?;
                    bytes.extend(data);
                }
                b'c' | b'Z' => bail!("the source has no WAL of timeline {timeline} beyond {from}"),
                // The begin of the stream, and questions whether anybody is there.
                _ => {}
            }
        }
        bytes.truncate(wanted);
        Ok(bytes)
    }

    /// Has a physical slot hold WAL back from now on, if it holds none back: one that has lost WAL is made anew, because from
    /// PostgreSQL 18 on nobody may stream by it. Returns whether it was.
    pub async fn renew_slot(&mut self, slot: &str) -> anyhow::Result<bool> {
        let row = self.row(&format!("READ_REPLICATION_SLOT {slot}")).await?;
        let [kind, restart_lsn, ..] = row.as_slice() else { bail!("a short row") };
        if restart_lsn.is_some() {
            return Ok(false);
        }
        if kind.is_some() {
            self.send(&format!("DROP_REPLICATION_SLOT {slot}")).await?;
            while self.next().await? != b'Z' {}
        }
        self.row(&format!("CREATE_REPLICATION_SLOT {slot} PHYSICAL RESERVE_WAL")).await?;
        Ok(true)
    }

    /// Sends a command and returns its only row.
    async fn row(&mut self, command: &str) -> anyhow::Result<Vec<Option<Vec<u8>>>> {
        self.send(command).await?;
        let mut row = None;
        loop {
            match self.next().await? {
                b'D' => {
                    let columns = self.frame.columns().context("a damaged row")?;
                    row = Some(columns.into_iter().map(|c| c.map(<[u8]>::to_vec)).collect());
                }
                b'Z' => return row.with_context(|| format!("{command} has no answer")),
                _ => {}
            }
        }
    }

    async fn send(&mut self, command: &str) -> anyhow::Result<()> {
        let query = Frame::new(b'Q', &[command.as_bytes(), &[0]].concat());
        self.stream.write_all(query.bytes()).await.with_context(|| format!("send {command}"))
    }

    /// Reads the next message. Returns its kind; an error of the server's is one.
    async fn next(&mut self) -> anyhow::Result<u8> {
        let more =
            wire::read(&mut self.stream, &mut self.frame).await.context("hear the source")?;
        ensure!(more, "the source closed the connection");
        match self.frame.kind() {
            b'E' => Err(Told {
                code: wire::error_code(&self.frame).unwrap_or_default(),
                text: wire::error_text(&self.frame),
            }
            .into()),
            kind => Ok(kind),
        }
    }
}

/// The first byte of a message with WAL, and where the WAL begins in it: after two positions and a time.
const WAL_DATA: u8 = b'w';
const WAL_DATA_HEADER: usize = 25;
