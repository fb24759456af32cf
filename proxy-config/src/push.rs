//! Switches a running HAProxy through its runtime socket. Never sets a server to maintenance or drain in the write
//! backend: that would stop its checks, and HAProxy would be blind as soon as proxy-config is dead.
//!
//! Found out with HAProxy 2.6.12, checks every 0.5 s, `fall 2`, `rise 3`:
//! - `set server .. health down` and `.. health up` act before the answer comes: five commands in one line took
//!   0.5 ms, the old session was closed in that time, and the next connection landed on the new primary.
//! - They only set the counter of the checks, which go on. Left alone, an old primary that still answers 200 was up
//!   again 1.04 s after "down" (three good checks), and a new one that does not answer 200 yet was down again
//!   0.6 s after "up" (two bad ones). Said anew every 0.25 s, both hold for good: that is why routes are *held*.
//! - "down" does not close a session that is just being set up: `shutdown sessions` goes with every hold.
//! - `set server .. weight 0` lets sessions live and checks go on, and only keeps new sessions away: that is how
//!   standbys leave the read pool without cutting anybody. What is left of them after `reads.drain` is cut then.

use std::io;
use std::path::Path;
use std::time::Duration;

use proto::{MemberName, Moment};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

use crate::HaproxyConfig;
use crate::haproxy::{self, Backend, Kind};
use crate::route::Routes;

/// A local socket answers within a millisecond; an HAProxy that takes this long is stuck, and the next hold tries
/// again.
const DEADLINE: Duration = Duration::from_millis(500);

/// HAProxy takes lines up to `tune.bufsize` (16 kB).
const LONGEST_LINE: usize = 8_000;

/// How firmly HAProxy is kept on the routes against its own checks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hold {
    /// The state is known: the routes are right, whatever the checks say.
    Routes,
    /// The state is not known, but an older primary may still answer: no other member may get writes.
    Closed,
    /// Nobody knows better than the checks.
    Nothing,
}

/// Why HAProxy does not follow.
#[derive(Debug, thiserror::Error)]
pub enum PushError {
    /// It does not run, or its socket is elsewhere.
    #[error("HAProxy's socket does not answer: {0}")]
    Away(#[from] io::Error),
    /// It runs with another configuration.
    #[error("HAProxy refuses: {0}")]
    Refused(String),
    /// It runs with a socket that may only look.
    #[error(
        "HAProxy's socket has no admin level, so it cannot be switched: start HAProxy with the file that \
         proxy-config writes"
    )]
    NoAdmin,
}

/// Returns the commands that bring HAProxy to `routes`, old primaries first, as lines to be sent one by one.
pub fn commands(config: &HaproxyConfig, routes: &Routes, hold: Hold, now: Moment) -> Vec<String> {
    match hold {
        Hold::Nothing => return Vec::new(),
        Hold::Routes | Hold::Closed => {}
    }
    let backends = haproxy::backends(config);
    let (mut commands, mut opened) = (Vec::new(), Vec::new());
    for backend in &backends {
        match &backend.kind {
            Kind::Write => {
                strict(backend, routes, |m| routes.write.as_ref() == Some(m), &mut commands)
            }
            // Of a standby it is not known what it has while the state is not.
            Kind::Fresh => {
                let may = |m: &MemberName| {
                    routes.fresh.contains(m)
                        && (hold == Hold::Routes || routes.write.as_ref() == Some(m))
                };
                strict(backend, routes, may, &mut commands);
            }
            Kind::Read(pool) if hold == Hold::Routes => {
                let readers = routes.readers_of(pool.as_ref());
                for (member, _) in backend.servers(routes) {
                    read(
                        &backend.name,
                        (member, readers.contains(member)),
                        routes,
                        now,
                        &mut opened,
                    );
                }
            }
            Kind::Read(_) => {}
        }
    }
    if hold == Hold::Routes {
        for Backend { name, .. } in backends.iter().filter(|b| !matches!(b.kind, Kind::Read(_))) {
            commands
                .extend(routes.write.iter().map(|w| format!("set server {name}/{w} health up")));
        }
        commands.extend(opened);
    }
    in_lines(&commands)
}

/// Closes all but those who may: down, and without sessions.
fn strict(
    backend: &Backend,
    routes: &Routes,
    may: impl Fn(&MemberName) -> bool,
    commands: &mut Vec<String>,
) {
    let name = &backend.name;
    for (member, _) in backend.servers(routes).filter(|(m, _)| !may(m)) {
        commands.push(format!("set server {name}/{member} health down"));
        commands.push(format!("shutdown sessions server {name}/{member}"));
    }
}

/// Leads new sessions to a reader, or away from one that left, whose sessions end when their time is over.
fn read(
    backend: &str,
    (member, serves): (&MemberName, bool),
    routes: &Routes,
    now: Moment,
    commands: &mut Vec<String>,
) {
    commands.push(format!("set server {backend}/{member} weight {}", u8::from(serves)));
    if serves && routes.reluctant.contains(member) {
        // The best there is, though its own answer to HAProxy is no.
        commands.push(format!("set server {backend}/{member} health up"));
    }
    let left = routes.aside.get(member).filter(|_| !serves).map(|aside| aside.left);
    if left.is_some_and(|left| now.since(left) >= routes.limits.drain) {
        commands.push(format!("shutdown sessions server {backend}/{member}"));
    }
}

fn in_lines(commands: &[String]) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for command in commands {
        match lines.last_mut() {
            Some(line) if line.len() + command.len() < LONGEST_LINE => {
                line.push(';');
                line.push_str(command);
            }
            _ => lines.push(command.clone()),
        }
    }
    lines
}

/// Sends the commands, which answer nothing when they are obeyed.
pub async fn push(socket: &Path, lines: &[String]) -> Result<(), PushError> {
    for line in lines {
        let answer = ask(socket, line).await?;
        if let Some(complaint) = answer.lines().find(|l| !l.trim().is_empty()) {
            // Its words to a command above the socket's level.
            if complaint.contains("Permission denied") {
                return Err(PushError::NoAdmin);
            }
            return Err(PushError::Refused(complaint.trim().to_owned()));
        }
    }
    Ok(())
}

/// What a running HAProxy says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Running {
    pub pid: i32,
    pub up_for: Duration,
    /// The fingerprint of the configuration that it has loaded.
    pub description: String,
}

/// Asks HAProxy who it is.
pub async fn running(socket: &Path) -> Result<Running, PushError> {
    let answer = ask(socket, "show info").await?;
    let field = |name: &str| {
        let mut lines = answer.lines().filter_map(|l| l.split_once(':'));
        lines.find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, v)| v.trim().to_owned())
    };
    let pid = field("Pid").and_then(|p| p.parse().ok());
    let pid = pid.ok_or_else(|| PushError::Refused("show info names no Pid".into()))?;
    let seconds = field("Uptime_sec").and_then(|s| s.parse().ok()).unwrap_or(0);
    let up_for = Duration::from_secs(seconds);
    Ok(Running { pid, up_for, description: field("description").unwrap_or_default() })
}

/// Sends one line and returns the whole answer: HAProxy closes after it.
async fn ask(socket: &Path, line: &str) -> Result<String, PushError> {
    let exchange = async {
        let mut stream = UnixStream::connect(socket).await?;
        stream.write_all(format!("{line}\n").as_bytes()).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        Ok(answer)
    };
    match tokio::time::timeout(DEADLINE, exchange).await {
        Ok(answer) => answer.map_err(PushError::Away),
        Err(_) => Err(PushError::Away(io::ErrorKind::TimedOut.into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_stay_short_enough_for_haproxy_and_lose_no_command() {
        let given: Vec<String> =
            (0..500).map(|n| format!("set server pgdeputy_write/m{n} health down")).collect();
        let lines = in_lines(&given);
        assert!(lines.len() > 1 && lines.iter().all(|l| l.len() <= LONGEST_LINE));
        assert_eq!(lines.join(";"), given.join(";"));
    }
}
