//! A link of 1 Gbit/s between two servers: the loopback of a network namespace of its own, shaped by the kernel's token
//! bucket (`tc`), with both directions in one bucket.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::Command;

use nix::sched::{CloneFlags, unshare};

/// Where the two servers listen; a client comes from 127.0.0.1, whom initdb lets in by password.
pub const ADDRESSES: [&str; 2] = ["127.0.0.2", "127.0.0.3"];

const SHAPE: &str = "qdisc add dev lo root tbf rate 1gbit burst 256kb latency 50ms";

/// Moves this thread, and all that it starts from now on, into a network of its own with such a link. Returns the
/// megabits a second that were measured on it, or why this machine cannot have it.
pub fn enter() -> Result<u64, String> {
    unshare(CloneFlags::CLONE_NEWNET).map_err(|e| format!("no network namespace: {e}"))?;
    run("ip", "link set lo up")?;
    run("tc", SHAPE)?;
    measure().map_err(|e| format!("the link does not work: {e}"))
}

fn run(program: &str, words: &str) -> Result<(), String> {
    let done = Command::new(program).args(words.split(' ')).output();
    let done = done.map_err(|e| format!("{program}: {e}"))?;
    let errors = String::from_utf8_lossy(&done.stderr);
    if done.status.success() {
        Ok(())
    } else {
        Err(format!("{program} {words}: {}", errors.trim()))
    }
}

/// Sends 256 MB over it.
fn measure() -> std::io::Result<u64> {
    const BYTES: u64 = 256 << 20;
    let listener = TcpListener::bind((ADDRESSES[0], 0))?;
    let mut sender = TcpStream::connect(listener.local_addr()?)?;
    let (mut receiver, _) = listener.accept()?;
    let begun = store::clock::now();
    let sending = std::thread::spawn(move || {
        let block = vec![7; 1 << 20];
        (0..BYTES >> 20).try_for_each(|_| sender.write_all(&block))
    });
    let (mut received, mut buffer) = (0, vec![0; 1 << 20]);
    while received < BYTES {
        match receiver.read(&mut buffer)? {
            0 => return Err(std::io::ErrorKind::UnexpectedEof.into()),
            bytes => received += bytes as u64,
        }
    }
    sending.join().expect("it only sends")?;
    let seconds = store::clock::now().since(begun).as_secs_f64();
    Ok((BYTES as f64 * 8.0 / 1e6 / seconds) as u64)
}
