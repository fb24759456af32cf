//! One HTTP question to a keeper, with a deadline. Enough of HTTP/1.0 to read a whole answer.

use std::time::Duration;

use anyhow::{Context, bail};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// A keeper on the same machine answers within a few milliseconds; this is for a machine under load.
const DEADLINE: Duration = Duration::from_secs(1);

/// Answers are a few kilobytes; more than this is no answer of a keeper.
const LONGEST: u64 = 4 << 20;

/// Returns the status code and the body of `GET path`.
pub async fn get(address: &str, path: &str) -> anyhow::Result<(u16, String)> {
    tokio::time::timeout(DEADLINE, ask(address, path))
        .await
        .with_context(|| format!("http://{address}{path}: no answer within {DEADLINE:?}"))?
        .with_context(|| format!("ask http://{address}{path}"))
}

async fn ask(address: &str, path: &str) -> anyhow::Result<(u16, String)> {
    let mut stream = TcpStream::connect(address).await?;
    // HTTP/1.0, so that the answer ends with the connection and comes in one piece.
    let question = format!("GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n");
    stream.write_all(question.as_bytes()).await?;
    let mut answer = String::new();
    stream.take(LONGEST).read_to_string(&mut answer).await?;
    parse(&answer)
}

fn parse(answer: &str) -> anyhow::Result<(u16, String)> {
    let Some((head, body)) = answer.split_once("\r\n\r\n") else {
        bail!("the answer has no end of header")
    };
    let status = head.split_whitespace().nth(1).context("the answer has no status")?;
    Ok((status.parse().context("read the status")?, body.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn status_and_body_are_read_and_half_an_answer_is_an_error() {
        let answer = "HTTP/1.0 503 Service Unavailable\r\nContent-Length: 2\r\n\r\nno";
        assert_eq!(parse(answer).unwrap(), (503, "no".to_owned()));
        assert!(parse("HTTP/1.0 200 OK\r\n").is_err() && parse("x\r\n\r\n").is_err());
    }
}
