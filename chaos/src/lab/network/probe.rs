//! Whether one host reaches another: by datagrams, each direction by itself, or by a connection.

use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use anyhow::Context;
use nix::sched::{CloneFlags, setns};

use super::Place;

/// A datagram takes microseconds; this is for a machine under load.
const WAIT: Duration = Duration::from_millis(250);

/// One that is lost by chance must not be taken for a cut.
const DATAGRAMS: usize = 3;

/// Far below what a socket holds that is not read.
const BATCH: usize = 20;

/// Returns whether a datagram passes. Blocks for up to `WAIT`.
pub fn passes(from: &Place, to: &Place) -> anyhow::Result<bool> {
    let places = (from.clone(), to.clone());
    // The namespace is the thread's own: this one is used for nothing else, and ends with the probe.
    let probe = std::thread::spawn(move || -> anyhow::Result<bool> {
        let (from, to) = places;
        let receiver = socket(&to)?;
        receiver.set_read_timeout(Some(WAIT))?;
        let sender = socket(&from)?;
        for _ in 0..DATAGRAMS {
            // Refused at its own host: it does not pass.
            let _ = sender.send_to(b"probe", receiver.local_addr()?);
        }
        Ok(receiver.recv(&mut [0; 8]).is_ok())
    });
    probe.join().map_err(|_| anyhow::anyhow!("the probe panicked"))?
}

/// Sends so many datagrams of this many bytes, a few at a time, and returns how many arrive. Blocks for some `WAIT`s.
pub fn arrived(from: &Place, to: &Place, datagrams: usize, bytes: usize) -> anyhow::Result<usize> {
    let (from, to) = (from.clone(), to.clone());
    let probe = std::thread::spawn(move || -> anyhow::Result<usize> {
        let receiver = socket(&to)?;
        let sender = socket(&from)?;
        let address = receiver.local_addr()?;
        let (mut arrived, mut buffer) = (0, vec![0; bytes]);
        for _ in (0..datagrams).step_by(BATCH) {
            // What does not fit the host's own queue is lost.
            (0..BATCH).for_each(|_| drop(sender.send_to(&vec![7; bytes], address)));
            receiver.set_nonblocking(true)?;
            arrived += std::iter::from_fn(|| receiver.recv(&mut buffer).ok()).count();
        }
        receiver.set_nonblocking(false)?;
        receiver.set_read_timeout(Some(WAIT))?;
        arrived += std::iter::from_fn(|| receiver.recv(&mut buffer).ok()).count();
        Ok(arrived)
    });
    probe.join().map_err(|_| anyhow::anyhow!("the probe panicked"))?
}

/// Returns how long a datagram is on its way, if it arrives within `wait`.
pub fn took(from: &Place, to: &Place, wait: Duration) -> anyhow::Result<Option<Duration>> {
    let (from, to) = (from.clone(), to.clone());
    let probe = std::thread::spawn(move || -> anyhow::Result<Option<Duration>> {
        let receiver = socket(&to)?;
        receiver.set_read_timeout(Some(wait))?;
        let sender = socket(&from)?;
        let sent = store::clock::now();
        sender.send_to(b"probe", receiver.local_addr()?)?;
        let arrived = receiver.recv(&mut [0; 8]).is_ok();
        Ok(arrived.then(|| store::clock::now().since(sent)))
    });
    probe.join().map_err(|_| anyhow::anyhow!("the probe panicked"))?
}

/// Returns whether TCP connects. Blocks for up to `WAIT`.
pub fn connects(from: &Place, to: &Place) -> anyhow::Result<bool> {
    connection(from, to).map(|both| both.is_some())
}

/// Returns both ends of a connection, if there comes one. Blocks for up to `WAIT`.
pub fn connection(from: &Place, to: &Place) -> anyhow::Result<Option<(TcpStream, TcpStream)>> {
    let (from, to) = (from.clone(), to.clone());
    let probe = std::thread::spawn(move || -> anyhow::Result<Option<(TcpStream, TcpStream)>> {
        enter(&to)?;
        let listener = TcpListener::bind((to.address, 0)).context("listen there")?;
        let address: SocketAddr = listener.local_addr()?;
        enter(&from)?;
        match TcpStream::connect_timeout(&address, WAIT) {
            Ok(stream) => Ok(Some((stream, listener.accept()?.0))),
            Err(_) => Ok(None),
        }
    });
    probe.join().map_err(|_| anyhow::anyhow!("the probe panicked"))?
}

fn enter(place: &Place) -> anyhow::Result<()> {
    setns(place.namespace.as_ref(), CloneFlags::CLONE_NEWNET).context("enter a host's network")
}

/// A socket stays in the namespace in which it was made.
fn socket(place: &Place) -> anyhow::Result<UdpSocket> {
    enter(place)?;
    UdpSocket::bind((place.address, 0)).context("open a socket there")
}
