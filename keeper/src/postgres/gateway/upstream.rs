//! Our own sessions with a source, as the protocol has them: the gateway logs in by itself, so that pg_rewind needs no
//! password, and a member asks its primary for WAL as its receiver would.
//!
//! Rule: a password is proved and never told. A server that asks for it in the clear is refused.

use std::io;
use std::pin::Pin;

use anyhow::{Context, bail, ensure};
use postgres_protocol::authentication::sasl::{ChannelBinding, SCRAM_SHA_256, ScramSha256};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};

use super::wire::{self, Frame};
use crate::postgres::source::Source;

/// A connection of any kind.
pub trait Stream: AsyncRead + AsyncWrite + Send {}
impl<T: AsyncRead + AsyncWrite + Send> Stream for T {}
pub type AnyStream = Pin<Box<dyn Stream>>;

/// A session that is ready for its first query.
pub struct Upstream {
    pub stream: AnyStream,
    /// What the server said on the way, for the client to hear.
    pub greeting: Vec<u8>,
}

/// What for a session is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum As {
    /// For queries, in the database in which files may be read.
    Client,
    /// For the commands of physical replication.
    Receiver,
}

/// Opens a session as the user of `source`.
pub async fn connect(source: &Source, password: &str, what_for: As) -> anyhow::Result<Upstream> {
    let mut stream = open(source).await.context("connect to the source")?;
    let mut parameters = vec![
        ("user", source.user.as_str()),
        ("application_name", &source.application_name),
        // pg_rewind's own settings follow in its session; these are what libpq would have sent.
        ("client_encoding", "UTF8"),
    ];
    match what_for {
        // A temporary table of some versions must not wait for a synchronous standby, which may be this very member.
        // Compiling the query that lists the files takes longer than running it.
        As::Client => parameters.extend([
            ("database", super::DATABASE),
            ("options", "-c synchronous_commit=local -c jit=off"),
        ]),
        As::Receiver => parameters.push(("replication", "true")),
    }
    let startup = wire::startup(&parameters);
    stream.write_all(&startup).await.context("begin a session with the source")?;
    let mut login = Login { scram: None, verified: false };
    let mut greeting = Frame::new(b'R', &0_u32.to_be_bytes()).bytes().to_vec();
    let mut frame = Frame::default();
    loop {
        let more = wire::read(&mut stream, &mut frame).await.context("log in to the source")?;
        ensure!(more, "the source closed the connection at the login");
        match frame.kind() {
            b'R' => login.step(&frame, password, &mut stream).await?,
            b'E' => bail!("the source refuses the session: {}", wire::error_text(&frame)),
            kind => {
                ensure!(
                    login.verified,
                    "the source let us in without a password: set scram-sha-256"
                );
                greeting.extend(frame.bytes());
                if kind == b'Z' {
                    return Ok(Upstream { stream, greeting });
                }
            }
        }
    }
}

/// Connects to `source`, by TLS where that is wanted, and says nothing yet.
pub async fn open(source: &Source) -> anyhow::Result<AnyStream> {
    if source.host.starts_with('/') {
        let path = format!("{}/.s.PGSQL.{}", source.host, source.port);
        return Ok(Box::pin(UnixStream::connect(path).await?));
    }
    let stream = TcpStream::connect((source.host.as_str(), source.port)).await?;
    stream.set_nodelay(true)?;
    keep_alive(&stream)?;
    match &source.tls {
        Some(tls) => Ok(Box::pin(tls.over(stream, &source.host).await?)),
        None => Ok(Box::pin(stream)),
    }
}

/// A host that vanished is noticed after 30 s, where the kernel's own default takes two hours.
fn keep_alive(stream: &TcpStream) -> io::Result<()> {
    use nix::sys::socket::{setsockopt, sockopt};
    setsockopt(stream, sockopt::KeepAlive, &true)?;
    setsockopt(stream, sockopt::TcpKeepIdle, &10)?;
    setsockopt(stream, sockopt::TcpKeepInterval, &5)?;
    setsockopt(stream, sockopt::TcpKeepCount, &4)?;
    Ok(())
}

struct Login {
    scram: Option<ScramSha256>,
    /// The server has shown that it knows the password, too.
    verified: bool,
}

impl Login {
    async fn step(
        &mut self,
        frame: &Frame,
        password: &str,
        stream: &mut AnyStream,
    ) -> anyhow::Result<()> {
        let (code, rest) =
            frame.body().split_first_chunk::<4>().context("a login without a code")?;
        match (u32::from_be_bytes(*code), &mut self.scram) {
            (0, _) => Ok(()),
            (10, _) => {
                let offered = rest.split(|b| *b == 0).any(|name| name == SCRAM_SHA_256.as_bytes());
                ensure!(offered, "the source offers no {SCRAM_SHA_256}");
                let scram = ScramSha256::new(password.as_bytes(), ChannelBinding::unsupported());
                let mut body = [SCRAM_SHA_256.as_bytes(), &[0]].concat();
                body.extend((scram.message().len() as u32).to_be_bytes());
                body.extend(scram.message());
                self.scram = Some(scram);
                send(stream, &body).await
            }
            (11, Some(scram)) => {
                scram.update(rest).context("log in to the source")?;
                let message = scram.message().to_vec();
                send(stream, &message).await
            }
            (12, Some(scram)) => {
                scram.finish(rest).context("the source does not know the password")?;
                self.verified = true;
                Ok(())
            }
            (other, _) => bail!("the source asks for login method {other}: set scram-sha-256"),
        }
    }
}

async fn send(stream: &mut AnyStream, body: &[u8]) -> anyhow::Result<()> {
    stream.write_all(Frame::new(b'p', body).bytes()).await.context("log in to the source")
}
