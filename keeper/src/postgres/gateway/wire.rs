//! Frames of PostgreSQL's protocol, version 3: a type byte, a length that counts itself, and a body.

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// No message of pg_rewind's or to it comes near: rows carry a megabyte, the list of names of 65,536 segments four.
const LONGEST: usize = 256 << 20;

/// The codes that may come in the place of a version: requests for encryption.
const SSL_REQUEST: u32 = 80_877_103;
const GSS_REQUEST: u32 = 80_877_104;
const CANCEL_REQUEST: u32 = 80_877_102;

/// One message, header included.
#[derive(Debug, Default)]
pub struct Frame {
    bytes: Vec<u8>,
}

impl Frame {
    /// Returns a message of `kind`.
    pub fn new(kind: u8, body: &[u8]) -> Self {
        let mut bytes = vec![kind];
        bytes.extend(length(body.len() + 4));
        bytes.extend(body);
        Self { bytes }
    }

    pub fn kind(&self) -> u8 {
        self.bytes[0]
    }

    pub fn body(&self) -> &[u8] {
        &self.bytes[5..]
    }

    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Returns the text of a simple query.
    pub fn query(&self) -> Option<&str> {
        let text = self.body().strip_suffix(&[0]).filter(|_| self.kind() == b'Q')?;
        std::str::from_utf8(text).ok()
    }

    /// Returns the columns of a row; `None` for another message or a damaged one.
    pub fn columns(&self) -> Option<Vec<Option<&[u8]>>> {
        let mut rest = self.body();
        let mut number = |bytes: usize| {
            let (number, after) = rest.split_at_checked(bytes)?;
            rest = after;
            Some(number)
        };
        if self.bytes.first() != Some(&b'D') {
            return None;
        }
        let count = u16::from_be_bytes(number(2)?.try_into().ok()?);
        let mut columns = Vec::new();
        for _ in 0..count {
            let length = i32::from_be_bytes(number(4)?.try_into().ok()?);
            columns.push(match usize::try_from(length) {
                Ok(length) => Some(number(length)?),
                Err(_) => None,
            });
        }
        Some(columns)
    }

    /// Returns the first column of a row of three, and how long the last one is: a part of a file as pg_rewind
    /// fetches it.
    pub fn fetched(&self) -> Option<(&str, u64)> {
        let body = self.body();
        let columns = u16::from_be_bytes(body.get(..2)?.try_into().ok()?);
        if self.kind() != b'D' || columns != 3 {
            return None;
        }
        let mut at = 2;
        let mut first = None;
        let mut last = 0;
        for _ in 0..columns {
            let length = i32::from_be_bytes(body.get(at..at + 4)?.try_into().ok()?);
            let length = usize::try_from(length).unwrap_or(0);
            let value = body.get(at + 4..(at + 4).checked_add(length)?)?;
            first = first.or(Some(value));
            last = value.len();
            at += 4 + length;
        }
        Some((std::str::from_utf8(first?).ok()?, last as u64))
    }
}

fn length(bytes: usize) -> [u8; 4] {
    u32::try_from(bytes).expect("messages are far shorter than 4 GB").to_be_bytes()
}

/// Reads the next message into `frame`; false at the end of the stream.
pub async fn read(from: &mut (impl AsyncRead + Unpin), frame: &mut Frame) -> io::Result<bool> {
    frame.bytes.resize(5, 0);
    if from.read(&mut frame.bytes[..1]).await? == 0 {
        return Ok(false);
    }
    from.read_exact(&mut frame.bytes[1..]).await?;
    let length = u32::from_be_bytes(frame.bytes[1..5].try_into().expect("four bytes")) as usize;
    if !(4..=LONGEST).contains(&length) {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "a message of an impossible length",
        ));
    }
    frame.bytes.resize(1 + length, 0);
    from.read_exact(&mut frame.bytes[5..]).await?;
    Ok(true)
}

/// Reads what a client says first, and declines encryption as often as it asks. False if it asks for no session.
pub async fn read_startup<S>(client: &mut S) -> io::Result<bool>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    // A client asks for each kind of encryption once.
    for _ in 0..3 {
        let mut header = [0; 8];
        client.read_exact(&mut header).await?;
        let length = u32::from_be_bytes(header[..4].try_into().expect("four bytes")) as usize;
        let code = u32::from_be_bytes(header[4..].try_into().expect("four bytes"));
        match code {
            SSL_REQUEST | GSS_REQUEST => client.write_all(b"N").await?,
            CANCEL_REQUEST => return Ok(false),
            _ if (8..=10_000).contains(&length) => {
                let mut rest = vec![0; length - 8];
                client.read_exact(&mut rest).await?;
                return Ok(true);
            }
            _ => break,
        }
    }
    Err(io::Error::new(io::ErrorKind::InvalidData, "no startup message"))
}

/// Returns the message that begins a session with `parameters`.
pub fn startup(parameters: &[(&str, &str)]) -> Vec<u8> {
    let mut body = 196_608_u32.to_be_bytes().to_vec();
    for (name, value) in parameters {
        for text in [name, value] {
            body.extend(text.as_bytes());
            body.push(0);
        }
    }
    body.push(0);
    let mut bytes = length(body.len() + 4).to_vec();
    bytes.extend(body);
    bytes
}

/// Reads the severity and message of an error or notice for people.
pub fn error_text(frame: &Frame) -> String {
    error_field(frame, b'M').unwrap_or_else(|| "an error without a message".into())
}

/// Returns the SQLSTATE of an error, which is the same in every language.
pub fn error_code(frame: &Frame) -> Option<String> {
    error_field(frame, b'C')
}

fn error_field(frame: &Frame, wanted: u8) -> Option<String> {
    let mut fields = frame.body().split(|b| *b == 0);
    let field = fields.find(|field| field.first() == Some(&wanted))?;
    Some(String::from_utf8_lossy(&field[1..]).into_owned())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn row(columns: &[&[u8]]) -> Frame {
        let mut body = (columns.len() as u16).to_be_bytes().to_vec();
        for column in columns {
            body.extend((column.len() as i32).to_be_bytes());
            body.extend(*column);
        }
        Frame::new(b'D', &body)
    }

    #[tokio::test]
    async fn messages_are_read_one_by_one_and_a_part_of_a_file_names_its_path() {
        let mut stream = Frame::new(b'Q', b"SELECT 1\0").bytes().to_vec();
        stream.extend(row(&[b"base/1/1", &[0; 8], &[7; 100]]).bytes());
        let mut frame = Frame::default();
        let mut from = &stream[..];
        assert!(read(&mut from, &mut frame).await.unwrap());
        assert_eq!((frame.query(), frame.fetched()), (Some("SELECT 1"), None));
        assert!(read(&mut from, &mut frame).await.unwrap());
        assert_eq!((frame.query(), frame.fetched()), (None, Some(("base/1/1", 100))));
        assert!(!read(&mut from, &mut frame).await.unwrap());
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            runtime.block_on(async {
                let mut frame = Frame::default();
                let mut from = &bytes[..];
                while let Ok(true) = read(&mut from, &mut frame).await {
                    let _ = (frame.query(), frame.fetched(), frame.columns(), error_text(&frame));
                }
                let _ = read_startup(&mut std::io::Cursor::new(bytes.clone())).await;
            });
        }
    }
}
