//! A keeper's connection, as the fencer sees it: never waited for, neither for reading nor for writing.

use std::io::{self, ErrorKind, IoSliceMut, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;

use nix::sys::socket::{ControlMessageOwned, MsgFlags, UnixAddr, recvmsg};

use super::processes::Process;
use super::protocol::{Message, encode};

/// A command is a few hundred bytes; a longer line comes from something that is no keeper.
const LONGEST_LINE_BYTES: usize = 256 * 1024;

pub struct Connection {
    stream: UnixStream,
    unread: Vec<u8>,
    /// The descriptor that came with what was read.
    pub passed: Option<OwnedFd>,
    /// Set once nothing more can be read or written.
    pub ended: bool,
}

impl Connection {
    /// Takes over an accepted stream.
    pub fn new(stream: UnixStream) -> std::io::Result<Self> {
        stream.set_nonblocking(true)?;
        Ok(Self { stream, unread: Vec::new(), passed: None, ended: false })
    }

    /// Returns the complete lines that have arrived; sets `ended` if no more will.
    pub fn lines(&mut self) -> Vec<String> {
        let mut chunk = [0; 4096];
        while !self.ended && self.unread.len() <= LONGEST_LINE_BYTES {
            match self.receive(&mut chunk) {
                Ok(0) => self.ended = true,
                Ok(n) => self.unread.extend_from_slice(&chunk[..n]),
                Err(e) if e.kind() == ErrorKind::WouldBlock => break,
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(_) => self.ended = true,
            }
        }
        let lines = self.take_lines();
        self.ended |= self.unread.len() > LONGEST_LINE_BYTES;
        lines
    }

    /// Sends one message. A keeper that has left so much unread that it does not fit is cut off: it is stuck, and
    /// connects again if it ever goes on.
    pub fn send(&mut self, message: &Message) {
        if !self.ended && self.stream.write_all(&encode(message)).is_err() {
            self.ended = true;
        }
    }

    /// Returns the process at the other end.
    pub fn peer(&self) -> Option<Process> {
        super::revival::peer(&self.stream)
    }

    fn receive(&mut self, chunk: &mut [u8]) -> io::Result<usize> {
        let mut space = nix::cmsg_space!(RawFd);
        let mut into = [IoSliceMut::new(chunk)];
        let flags = MsgFlags::MSG_CMSG_CLOEXEC;
        let got = recvmsg::<UnixAddr>(self.stream.as_raw_fd(), &mut into, Some(&mut space), flags)?;
        for message in got.cmsgs()? {
            if let ControlMessageOwned::ScmRights(descriptors) = message {
                // SAFETY: the kernel has just made them for this process, and nobody else knows them.
                let mut owned =
                    descriptors.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) });
                self.passed = owned.next();
                owned.for_each(drop);
            }
        }
        Ok(got.bytes)
    }

    fn take_lines(&mut self) -> Vec<String> {
        let mut lines = Vec::new();
        while let Some(end) = self.unread.iter().position(|b| *b == b'\n') {
            let line: Vec<u8> = self.unread.drain(..=end).collect();
            lines.push(String::from_utf8_lossy(&line[..end]).into_owned());
        }
        lines
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::super::protocol::{Answer, Message};
    use super::*;

    fn pair() -> (Connection, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        (Connection::new(ours).unwrap(), theirs)
    }

    #[test]
    fn a_line_counts_once_it_is_complete() {
        let (mut connection, mut keeper) = pair();
        keeper.write_all(b"one\ntw").unwrap();
        assert_eq!(connection.lines(), ["one"]);
        keeper.write_all(b"o\n").unwrap();
        drop(keeper);
        assert_eq!(connection.lines(), ["two"]);
        assert!(connection.ended);
    }

    #[test]
    fn a_keeper_that_never_reads_is_cut_off_instead_of_waited_for() {
        let (mut connection, _keeper) = pair();
        let message = Message::Answer { id: 1, outcome: Ok(Answer::Done) };
        for _ in 0..100_000 {
            connection.send(&message);
        }
        assert!(connection.ended);
    }
}
