//! Runs one of PostgreSQL's own programs as a child, line by line, and never leaves anything of it behind.
//!
//! Rule: however the caller ends (return, error, dropped future, killed keeper), the program and all that it started
//! end too. `pg_rewind` starts `postgres` and `pg_basebackup` a receiver of WAL, which both outlive their parent.

use std::collections::VecDeque;
use std::fs;
use std::io;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::{Child, Command};

use super::binaries::RunAs;

/// How many of the last lines an error carries: enough for PostgreSQL's message with its detail and hint.
const LAST_LINES: usize = 8;

/// A line longer than this is cut: nothing that is read for its meaning is as long.
const LONGEST_LINE: usize = 8192;

/// How a program ended, and what it said last.
#[derive(Debug)]
pub struct Finished {
    pub status: ExitStatus,
    last_lines: VecDeque<String>,
}

impl Finished {
    /// Returns the last lines of its error output as one text.
    pub fn last_words(&self) -> String {
        let lines: Vec<&str> = self.last_lines.iter().map(String::as_str).collect();
        if lines.is_empty() { "it said nothing".to_owned() } else { lines.join("; ") }
    }

    /// Returns how it ended, in words.
    pub fn ending(&self) -> String {
        match (self.status.code(), self.status.signal()) {
            (Some(code), _) => format!("exited with {code}"),
            (None, Some(signal)) => format!("was killed by signal {signal}"),
            (None, None) => "ended".to_owned(),
        }
    }
}

/// Returns a command for one of PostgreSQL's programs: in English, without settings of ours or of the operator's
/// shell in its environment, and with nothing to read. To be started from a thread that lives as long as the keeper
/// (the runtime's own, not one for blocking work): the kernel kills the program when the thread that started it ends.
pub fn command(program: &Path, run_as: Option<RunAs>) -> Command {
    let mut command = Command::new(program);
    for (name, _) in std::env::vars_os() {
        let name_text = name.to_string_lossy();
        if name_text.starts_with("PG") || name_text.starts_with("LC_") || name_text == "LANGUAGE" {
            command.env_remove(&name);
        }
    }
    command.env("LC_ALL", "C").stdin(Stdio::null()).stdout(Stdio::null());
    if let Some(user) = run_as {
        // A directory of the caller's that the user may not enter makes some programs complain.
        command.uid(user.uid).gid(user.gid).current_dir("/");
    }
    // SAFETY: between fork and exec the closure makes one system call and touches no memory of the parent.
    unsafe {
        command.pre_exec(|| {
            // A killed keeper cannot end its children; they must not go on writing to a data directory.
            nix::sys::prctl::set_pdeathsig(Signal::SIGKILL).map_err(io::Error::from)
        });
    }
    command
}

/// Runs `command` to its end and hands each line of its error output to `on_line`, which returns how long the next
/// one may take. A program that is silent for longer is killed and is an error.
pub async fn run(
    mut command: Command,
    mut on_line: impl FnMut(&str) -> Duration,
) -> anyhow::Result<Finished> {
    let program = command.as_std().get_program().to_string_lossy().into_owned();
    let child =
        command.stderr(Stdio::piped()).spawn().with_context(|| format!("start {program}"))?;
    let mut running = Running { child };
    let stderr = running.child.stderr.take().context("the error output was asked for")?;
    let mut lines = Lines::new(stderr);
    let mut last_lines = VecDeque::with_capacity(LAST_LINES);
    let mut patience = on_line("");
    loop {
        match tokio::time::timeout(patience, lines.next()).await {
            Ok(line) => match line.with_context(|| format!("read the output of {program}"))? {
                Some(line) => {
                    patience = on_line(&line);
                    // What a server says of its progress would push the reason of its end out.
                    if line.contains(" LOG:  ") {
                        continue;
                    }
                    if last_lines.len() == LAST_LINES {
                        last_lines.pop_front();
                    }
                    last_lines.push_back(line);
                }
                None => break,
            },
            Err(_) => bail!("{program} said nothing for {patience:?} and was stopped"),
        }
    }
    // Its output is closed, so it is ending; one that is not is stuck.
    let status = tokio::time::timeout(patience, running.child.wait())
        .await
        .with_context(|| format!("{program} closed its output and did not end for {patience:?}"))?
        .with_context(|| format!("wait for {program}"))?;
    Ok(Finished { status, last_lines })
}

/// A child that is killed with all its descendants when it is dropped before its end.
struct Running {
    child: Child,
}

impl Drop for Running {
    fn drop(&mut self) {
        // `id` is there only while the child was not waited for, so that the pid cannot be another process's.
        if let Some(pid) = self.child.id().and_then(|id| i32::try_from(id).ok()) {
            await_end(&kill_tree(Pid::from_raw(pid)));
            // The runtime collects a child that needs longer.
            let _ = self.child.try_wait();
        }
    }
}

/// Kills a process and all its descendants and returns them. Stops each before looking for its children, so that
/// none can start another one unseen.
fn kill_tree(root: Pid) -> Vec<Pid> {
    let mut tree = vec![root];
    let mut looked_at = 0;
    while let Some(parent) = tree.get(looked_at).copied() {
        looked_at += 1;
        // One that is already gone has no children any more, but for those its own death left to pid 1.
        let _ = kill(parent, Signal::SIGSTOP);
        tree.extend(children_of(parent));
    }
    for pid in &tree {
        let _ = kill(*pid, Signal::SIGKILL);
    }
    tree
}

/// Waits until none of the killed processes can write any more: milliseconds, but for one that sleeps
/// uninterruptibly on a disk, which nothing can hurry.
fn await_end(killed: &[Pid]) {
    const TURNS_OF_1_MS: u32 = 2000;
    for _ in 0..TURNS_OF_1_MS {
        if killed.iter().all(|pid| has_ended(pid.as_raw())) {
            return;
        }
        // A drop cannot await; polling nothing is how a thread waits for a bounded time.
        let _ = nix::poll::poll(&mut [], 1_u8);
    }
}

fn has_ended(pid: i32) -> bool {
    fields_of(pid).is_none_or(|(state, _)| matches!(state, 'Z' | 'X'))
}

fn children_of(parent: Pid) -> Vec<Pid> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    entries
        .filter_map(Result::ok)
        .filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok())
        .filter(|pid| fields_of(*pid).is_some_and(|(_, of)| of == parent.as_raw()))
        .map(Pid::from_raw)
        .collect()
}

/// Returns a process's state and parent; `None` where there is no such process.
fn fields_of(pid: i32) -> Option<(char, i32)> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in parentheses may hold anything, also parentheses: the fields begin after the last one.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    Some((fields.next()?.chars().next()?, fields.next()?.parse().ok()?))
}

/// Splits output into lines at line feeds and at the carriage returns of progress lines.
struct Lines<R> {
    from: R,
    pending: Vec<u8>,
    ready: VecDeque<String>,
}

impl<R: AsyncRead + Unpin> Lines<R> {
    fn new(from: R) -> Self {
        Self { from, pending: Vec::new(), ready: VecDeque::new() }
    }

    async fn next(&mut self) -> io::Result<Option<String>> {
        loop {
            if let Some(line) = self.ready.pop_front() {
                return Ok(Some(line));
            }
            let mut buffer = [0; 4096];
            let bytes = self.from.read(&mut buffer).await?;
            for byte in &buffer[..bytes] {
                match byte {
                    b'\n' | b'\r' => self.end_line(),
                    _ if self.pending.len() < LONGEST_LINE => self.pending.push(*byte),
                    _ => {}
                }
            }
            if bytes == 0 {
                self.end_line();
                return Ok(self.ready.pop_front());
            }
        }
    }

    fn end_line(&mut self) {
        let line = String::from_utf8_lossy(&self.pending).trim_end().to_owned();
        if !line.trim().is_empty() {
            self.ready.push_back(line);
        }
        self.pending.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(30);

    fn shell(script: &str) -> Command {
        let mut shell = command(Path::new("/bin/sh"), None);
        shell.arg("-c").arg(script);
        shell
    }

    #[tokio::test]
    async fn lines_come_one_by_one_and_the_end_carries_the_last_words() {
        let mut seen = Vec::new();
        let script = "printf '1/2 kB\\r2/2 kB\\n' >&2; echo 'error: no' >&2; exit 3";
        let finished = run(shell(script), |line| {
            seen.push(line.to_owned());
            LONG
        })
        .await
        .unwrap();
        assert_eq!(seen, ["", "1/2 kB", "2/2 kB", "error: no"]);
        assert_eq!(finished.ending(), "exited with 3");
        assert!(finished.last_words().ends_with("error: no"));
    }

    #[tokio::test]
    async fn a_dropped_run_kills_the_program_and_what_it_started() {
        let (send, mut receive) = tokio::sync::mpsc::unbounded_channel();
        let task = tokio::spawn(async move {
            let script = "sleep 600 & echo $! >&2; sh -c 'sleep 600 & echo $! >&2; wait' & wait";
            run(shell(script), |line| {
                let _ = send.send(line.to_owned());
                LONG
            })
            .await
        });
        let mut pids = Vec::new();
        while pids.len() < 2 {
            let line = tokio::time::timeout(LONG, receive.recv()).await.unwrap().unwrap();
            pids.extend(line.parse::<i32>());
        }
        task.abort();
        assert!(task.await.unwrap_err().is_cancelled());
        // The drop itself has waited for their end.
        assert!(pids.into_iter().all(has_ended));
    }

    #[tokio::test]
    async fn a_silent_program_is_stopped_after_its_patience() {
        let error = run(shell("sleep 600"), |_| Duration::from_millis(50)).await.unwrap_err();
        assert!(error.to_string().contains("said nothing"), "{error}");
    }

    #[tokio::test]
    async fn libpq_settings_of_the_environment_do_not_reach_the_program() {
        // SAFETY: no other test of this process reads or writes this variable.
        unsafe { std::env::set_var("PGPASSWORD_FOR_TEST", "secret") };
        let mut seen = String::new();
        let script = "env | grep -E '^PG' >&2; echo end:$LC_ALL >&2";
        run(shell(script), |line| {
            seen.push_str(line);
            LONG
        })
        .await
        .unwrap();
        assert_eq!(seen, "end:C");
    }
}
