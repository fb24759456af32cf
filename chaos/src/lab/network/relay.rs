//! A relay of the lab's own between a host and the switch: all that passes takes longer, in both directions, or stands still
//! and arrives once it is let go. The kernels of test machines often lack what could do so by itself.
//!
//! The one rule: frames pass as they are and in their order, those of open connections too. Where it begins and where it ends
//! one may come twice or be lost, as when a cable is plugged over.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::mem::size_of;
use std::os::fd::{AsFd, AsRawFd, FromRawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, anyhow};
use nix::errno::Errno;
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, setns};
use proto::Moment;
use store::clock;

/// How long a frame is on its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Late {
    By(Duration),
    /// Until the relay ends.
    Held,
}

/// Of virtual links, which pass on what a host has put together, with its header.
const LONGEST_FRAME: usize = 70_000;

/// How late a frame may be beyond what is wanted, and how soon the relay sees that it is to end.
const TICK_MS: u8 = 2;

/// A relay. It ends with `end`, or with the process.
pub struct Relay {
    go: Sender<()>,
    stop: Arc<AtomicBool>,
    passed: Arc<AtomicU64>,
    thread: JoinHandle<io::Result<()>>,
}

impl Relay {
    /// Opens the link `port`, and a new one of the name `tap`, in this namespace, and passes nothing yet.
    pub fn open(switch: &File, port: &str, tap: &str, late: Late) -> anyhow::Result<Self> {
        let switch = switch.try_clone()?;
        let (port, tap) = (port.to_owned(), tap.to_owned());
        let (stop, passed) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (stopped, counted) = (Arc::clone(&stop), Arc::clone(&passed));
        let ((opened, is_open), (go, goes)) = (channel(), channel());
        // The namespace is the thread's own.
        let thread = std::thread::Builder::new().name("lab-relay".into()).spawn(move || {
            let ends = both(&switch, &port, &tap);
            // Whoever opens it waits for this.
            let _ = opened.send(ends.as_ref().map(|_| ()).map_err(ToString::to_string));
            match ends {
                Ok(ends) if goes.recv().is_ok() => carry(&ends, late, &stopped, &counted),
                Ok(_) | Err(_) => Ok(()),
            }
        })?;
        let opened = is_open.recv().context("the relay ended")?;
        opened.map_err(|error| anyhow!("open both ends of a relay: {error}"))?;
        Ok(Self { go, stop, passed, thread })
    }

    /// Begins to pass frames. The new link is part of the switch by now, and `port` is not.
    pub fn begin(&self) -> anyhow::Result<()> {
        self.go.send(()).context("the relay ended")
    }

    /// Lets all go that is held, ends, and returns how many frames have passed. Its new link is gone with it.
    pub fn end(self) -> anyhow::Result<u64> {
        self.stop.store(true, Ordering::Release);
        let ended = self.thread.join().map_err(|_| anyhow!("the relay panicked"))?;
        ended.context("pass frames on")?;
        Ok(self.passed.load(Ordering::Acquire))
    }
}

fn both(switch: &File, port: &str, tap: &str) -> io::Result<[File; 2]> {
    setns(switch, CloneFlags::CLONE_NEWNET)?;
    Ok([link(port)?, new_link(tap)?])
}

/// A frame, and from when on it may pass.
type Waiting = VecDeque<(Option<Moment>, Vec<u8>)>;

fn carry(ends: &[File; 2], late: Late, stop: &AtomicBool, passed: &AtomicU64) -> io::Result<()> {
    let mut waiting = [Waiting::new(), Waiting::new()];
    let mut frame = vec![0; LONGEST_FRAME];
    while !stop.load(Ordering::Acquire) {
        let mut sides = ends.each_ref().map(|end| PollFd::new(end.as_fd(), PollFlags::POLLIN));
        wait(&mut sides)?;
        let now = clock::now();
        for (from, queue) in ends.iter().zip(&mut waiting) {
            while let Some(length) = read(from, &mut frame)? {
                let due = match late {
                    Late::By(late) => Some(now + late),
                    Late::Held => None,
                };
                queue.push_back((due, frame[..length].to_vec()));
            }
        }
        for (to, queue) in ends.iter().rev().zip(&mut waiting) {
            let due = queue.iter().take_while(|(due, _)| due.is_some_and(|due| due <= now)).count();
            queue.drain(..due).try_for_each(|(_, frame)| pass(to, &frame, passed))?;
        }
    }
    for (to, queue) in ends.iter().rev().zip(&mut waiting) {
        queue.drain(..).try_for_each(|(_, frame)| pass(to, &frame, passed))?;
    }
    Ok(())
}

/// Waits until something can be done, or for a tick.
fn wait(sides: &mut [PollFd<'_>]) -> io::Result<()> {
    match poll(sides, PollTimeout::from(TICK_MS)) {
        Ok(_) | Err(Errno::EINTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Returns the length of the next frame, if there is one.
fn read(mut from: &File, frame: &mut [u8]) -> io::Result<Option<usize>> {
    match from.read(frame) {
        Ok(length) => Ok(Some(length)),
        Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(None),
        Err(error) => Err(error),
    }
}

/// A link whose queue is full is waited for: a frame that got lost here would be a fault of another kind.
fn pass(mut to: &File, frame: &[u8], passed: &AtomicU64) -> io::Result<()> {
    loop {
        match to.write(frame) {
            Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            other => {
                passed.fetch_add(1, Ordering::AcqRel);
                return other.map(drop);
            }
        }
        let mut side = [PollFd::new(to.as_fd(), PollFlags::POLLOUT)];
        wait(&mut side)?;
    }
}

/// Opens what arrives at a link, and what is sent from it, with the headers of virtual links: without them checksums that
/// the receiver is to trust would be missing.
fn link(name: &str) -> io::Result<File> {
    let kind = libc::SOCK_RAW | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
    // SAFETY: a plain system call; the descriptor that it returns is nobody else's.
    let socket = unsafe { libc::socket(libc::AF_PACKET, kind, 0) };
    if socket < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: it was just opened.
    let socket = unsafe { File::from_raw_fd(socket) };
    for option in [PACKET_VNET_HDR, PACKET_IGNORE_OUTGOING] {
        let on: libc::c_int = 1;
        // SAFETY: the value lives as long as the call, and its length is given.
        checked(unsafe {
            libc::setsockopt(
                socket.as_raw_fd(),
                libc::SOL_PACKET,
                option,
                (&raw const on).cast(),
                length_of::<libc::c_int>(),
            )
        })?;
    }
    let index = nix::net::if_::if_nametoindex(name)?;
    // SAFETY: all zeros is a valid address of this kind.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = libc::AF_PACKET as libc::sa_family_t;
    address.sll_protocol = (libc::ETH_P_ALL as u16).to_be();
    address.sll_ifindex = index.cast_signed();
    // SAFETY: the address lives as long as the call, and its length is given.
    checked(unsafe {
        libc::bind(
            socket.as_raw_fd(),
            (&raw const address).cast(),
            length_of::<libc::sockaddr_ll>(),
        )
    })?;
    Ok(socket)
}

/// Makes a link whose other end is this file; it is gone once the file is closed.
fn new_link(name: &str) -> io::Result<File> {
    let file =
        File::options().read(true).write(true).custom_flags(libc::O_NONBLOCK).open(DEVICE)?;
    // SAFETY: all zeros is a valid request.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags =
        (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as libc::c_short;
    // SAFETY: the request lives as long as the call.
    checked(unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw mut request) })?;
    Ok(file)
}

const DEVICE: &str = "/dev/net/tun";

/// `linux/if_packet.h`.
const PACKET_VNET_HDR: libc::c_int = 15;
const PACKET_IGNORE_OUTGOING: libc::c_int = 23;

fn length_of<T>() -> libc::socklen_t {
    libc::socklen_t::try_from(size_of::<T>()).expect("an address has some bytes")
}

fn checked(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
