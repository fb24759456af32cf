//! As much of a PostgreSQL as PgBouncer needs: it lets everybody in, knows transactions, and answers any other statement
//! with its name.

use std::net::Ipv4Addr;
use std::sync::Arc;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_util::sync::{CancellationToken, DropGuard};

/// A server. Dropping it ends its sessions.
pub struct Server {
    pub host: Ipv4Addr,
    pub port: u16,
    answers: Arc<watch::Sender<Answers>>,
    _serving: DropGuard,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Answers {
    Yes,
    /// Like a host that has vanished: connections stay, and nothing comes any more.
    Never,
}

impl Server {
    pub async fn start(name: &'static str, (host, port): (Ipv4Addr, u16)) -> Server {
        let listener = TcpListener::bind((host, port)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let stop = CancellationToken::new();
        let answers = Arc::new(watch::Sender::new(Answers::Yes));
        let (told, sessions) = (answers.clone(), stop.clone());
        let serve = async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let session = Session { name, stream, transaction: b'I', told: told.subscribe() };
                tokio::spawn(sessions.clone().run_until_cancelled_owned(session.serve()));
            }
        };
        tokio::spawn(stop.clone().run_until_cancelled_owned(serve));
        Server { host, port, answers, _serving: stop.drop_guard() }
    }

    /// Answers nothing any more, and closes nothing.
    pub fn vanish(&self) {
        self.answers.send_replace(Answers::Never);
    }
}

struct Session {
    name: &'static str,
    stream: TcpStream,
    /// As in ReadyForQuery.
    transaction: u8,
    told: watch::Receiver<Answers>,
}

impl Session {
    async fn serve(mut self) {
        // It ends with the connection, by an error of the next read.
        let _ = self.talk().await;
    }

    async fn talk(&mut self) -> std::io::Result<()> {
        const SSL_REQUEST: [u8; 4] = 80_877_103_u32.to_be_bytes();
        while self.body().await?.starts_with(&SSL_REQUEST) {
            self.say(b"N").await?;
        }
        let mut hello = message(b'R', &0_u32.to_be_bytes());
        for (name, value) in [
            ("server_version", "15.0"),
            ("client_encoding", "UTF8"),
            ("standard_conforming_strings", "on"),
        ] {
            hello.extend(message(b'S', format!("{name}\0{value}\0").as_bytes()));
        }
        hello.extend(message(b'K', &[0; 8]));
        hello.extend(message(b'Z', b"I"));
        self.say(&hello).await?;
        loop {
            let kind = self.stream.read_u8().await?;
            let body = self.body().await?;
            match kind {
                b'Q' => self.answer(&body).await?,
                _ => return Ok(()),
            }
        }
    }

    async fn answer(&mut self, body: &[u8]) -> std::io::Result<()> {
        let statement = String::from_utf8_lossy(body).trim_end_matches('\0').to_owned();
        let mut answer = Vec::new();
        match statement.as_str() {
            "BEGIN" => self.transaction = b'T',
            "COMMIT" => self.transaction = b'I',
            _ => {
                let column = [
                    b"\0\x01name\0".as_slice(),
                    &[0; 6],
                    &25_u32.to_be_bytes(),
                    b"\xff\xff",
                    &[0xff; 4],
                    b"\0\0",
                ];
                answer.extend(message(b'T', &column.concat()));
                let length = u32::try_from(self.name.len()).unwrap().to_be_bytes();
                answer.extend(message(
                    b'D',
                    &[b"\0\x01", length.as_slice(), self.name.as_bytes()].concat(),
                ));
            }
        }
        answer.extend(message(b'C', format!("{statement}\0").as_bytes()));
        answer.extend(message(b'Z', &[self.transaction]));
        self.say(&answer).await
    }

    async fn say(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        if *self.told.borrow() == Answers::Never {
            std::future::pending::<()>().await;
        }
        self.stream.write_all(bytes).await
    }

    async fn body(&mut self) -> std::io::Result<Vec<u8>> {
        let length = self.stream.read_u32().await?;
        let mut body = vec![0; length as usize - 4];
        self.stream.read_exact(&mut body).await?;
        Ok(body)
    }
}

fn message(kind: u8, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len() + 4).unwrap().to_be_bytes();
    [&[kind], length.as_slice(), body].concat()
}
