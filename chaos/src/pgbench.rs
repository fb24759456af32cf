//! The real pgbench, for as long as wanted, and what it says of every transaction.
//!
//! The one rule: it never tries again. A transaction that fails, and a client that gives up, are counted by pgbench.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use proto::WallTime;
use store::clock;

use crate::lab::Lab;

/// Longer than any run: it is ended by the signal with which its own clock ends it.
const AT_MOST: &str = "7200";

/// Initialising writes some ten megabytes.
const INIT_BOUND: Duration = Duration::from_secs(120);

/// Every client finishes its transaction, and the report is written.
const END_BOUND: Duration = Duration::from_secs(30);

/// A running pgbench.
pub struct Pgbench {
    pid: i32,
    output: PathBuf,
    directory: PathBuf,
}

/// What it reported.
#[derive(Debug, Clone)]
pub struct Benched {
    pub failed: u64,
    /// Clients that gave up because of an error.
    pub aborted: u64,
    /// All that came to an end, in the order of their ends.
    pub transactions: Vec<Transaction>,
}

/// One transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Transaction {
    pub end: WallTime,
    pub took: Duration,
}

impl Transaction {
    /// Returns when it was begun.
    pub fn begin(&self) -> WallTime {
        WallTime(self.end.0 - i64::try_from(self.took.as_millis()).unwrap_or(i64::MAX))
    }
}

/// Makes pgbench's tables, past all proxies.
pub async fn initialise(lab: &mut Lab, scale: usize) -> anyhow::Result<()> {
    let at = lab.address(&lab.primary().await?)?;
    let scale = scale.to_string();
    let arguments = ["-i", "-q", "-s", &scale];
    let target = (at.host, at.postgres);
    let pid = lab.start_pgbench("pgbench-init", target, &arguments)?;
    let ended = ends(lab, pid, INIT_BOUND).await?;
    ensure!(
        ended == "exit status: 0",
        "pgbench -i ended with {ended}: {}",
        lab.log_of("pgbench-init")
    );
    Ok(())
}

impl Pgbench {
    /// Starts simple updates by `clients` clients at `target`.
    pub fn start(
        lab: &mut Lab,
        target: (std::net::Ipv4Addr, u16),
        clients: usize,
    ) -> anyhow::Result<Self> {
        let directory = lab.layout().process("pgbench");
        std::fs::create_dir_all(&directory).context("make the directory of pgbench")?;
        let prefix = directory.join("transactions").display().to_string();
        let clients = clients.to_string();
        let arguments = [
            "-n",
            "-N",
            "-M",
            "simple",
            "-j",
            "2",
            "-P",
            "1",
            "-l",
            "--log-prefix",
            &prefix,
            "-c",
            &clients,
            "-T",
            AT_MOST,
        ];
        let pid = lab.start_pgbench("pgbench", target, &arguments)?;
        Ok(Self { pid, output: lab.layout().log("pgbench"), directory })
    }

    /// Returns how it ended, if it did by itself: it should not.
    pub fn ended(&self, lab: &Lab) -> Option<String> {
        lab.process_ended(self.pid)
    }

    /// Lets every client finish its transaction, and returns what was reported.
    pub async fn finish(self, lab: &Lab) -> anyhow::Result<Benched> {
        if self.ended(lab).is_none() {
            kill(Pid::from_raw(self.pid), Signal::SIGALRM).context("end pgbench")?;
        }
        ends(lab, self.pid, END_BOUND).await?;
        let output = std::fs::read_to_string(&self.output).context("read pgbench's output")?;
        let aborted = output.lines().filter(|line| is_abort(line)).count() as u64;
        let failed =
            failed(&output).with_context(|| format!("pgbench reports nothing:\n{output}"))?;
        let mut transactions = Vec::new();
        let prefix = format!("transactions.{}", self.pid);
        for entry in std::fs::read_dir(&self.directory)?.flatten() {
            if entry.file_name().to_string_lossy().starts_with(&prefix) {
                read_log(&entry.path(), &mut transactions)?;
            }
        }
        transactions.sort_by_key(|t| t.end);
        Ok(Benched { failed, aborted, transactions })
    }
}

impl Benched {
    /// Returns the longest of the transactions that ended from `from` on and before `to`.
    pub fn longest(&self, (from, to): (WallTime, WallTime)) -> Option<Transaction> {
        self.between((from, to)).iter().copied().max_by_key(|t| t.took)
    }

    /// Returns the transactions per second that ended from `from` on and before `to`.
    pub fn per_second(&self, (from, to): (WallTime, WallTime)) -> f64 {
        let seconds = to.ms_since(from).max(1) as f64 / 1e3;
        self.between((from, to)).len() as f64 / seconds
    }

    fn between(&self, (from, to): (WallTime, WallTime)) -> &[Transaction] {
        let first = self.transactions.partition_point(|t| t.end < from);
        let last = self.transactions.partition_point(|t| t.end < to);
        &self.transactions[first..last.max(first)]
    }
}

async fn ends(lab: &Lab, pid: i32, bound: Duration) -> anyhow::Result<String> {
    let deadline = clock::now() + bound;
    loop {
        if let Some(how) = lab.process_ended(pid) {
            return Ok(how);
        }
        if clock::now() >= deadline {
            bail!("pgbench does not end within {bound:?}: {}", lab.log_of("pgbench"));
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// pgbench's words for a client that has given up.
fn is_abort(line: &str) -> bool {
    line.contains("aborted in command") || line.contains("client") && line.contains(" aborted")
}

fn failed(output: &str) -> Option<u64> {
    let line = output.lines().find_map(|l| l.strip_prefix("number of failed transactions: "));
    // Releases before 15 count no failures: every one of them ended its client.
    let line = line
        .or_else(|| output.contains("number of transactions actually processed").then_some("0"))?;
    line.split_whitespace().next()?.parse().ok()
}

fn read_log(path: &Path, transactions: &mut Vec<Transaction>) -> anyhow::Result<()> {
    let text = std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
    for line in text.lines() {
        transactions.extend(transaction(line).with_context(|| format!("read {line:?}"))?);
    }
    Ok(())
}

/// Reads `client transaction microseconds script seconds microseconds`; none for one that failed.
fn transaction(line: &str) -> anyhow::Result<Option<Transaction>> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let [_client, _number, took, _script, seconds, micros, ..] = words.as_slice() else {
        bail!("it has too few columns");
    };
    let Ok(took) = took.parse() else { return Ok(None) };
    let (seconds, micros): (i64, i64) = (seconds.parse()?, micros.parse()?);
    let end = WallTime(seconds * 1000 + micros / 1000);
    Ok(Some(Transaction { end, took: Duration::from_micros(took) }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_pgbench_says_is_read() {
        let output = "pgbench: error: client 3 aborted in command 5 (SQL) of script 0; perhaps the backend died while \
                      processing\nprogress: 1.0 s, 2500.1 tps\nnumber of transactions actually processed: 7\nnumber of \
                      failed transactions: 2 (0.1%)\n";
        assert_eq!(failed(output), Some(2));
        assert_eq!(output.lines().filter(|l| is_abort(l)).count(), 1);
        assert_eq!(failed("number of transactions actually processed: 7\n"), Some(0));
        assert_eq!(failed("Run was aborted"), None);
        let read = transaction("0 199 2241 0 1175850568 995598").unwrap().unwrap();
        assert_eq!((read.took, read.end.0), (Duration::from_micros(2241), 1_175_850_568_995));
        assert_eq!(transaction("3 0 failed 0 1499414498 84905").unwrap(), None);
        assert!(transaction("3 0").is_err());
    }

    #[test]
    fn rates_and_the_longest_count_only_what_ended_in_the_time_asked_for() {
        let at = |ms: i64| WallTime(ms);
        let one =
            |ms: i64, took: u64| Transaction { end: at(ms), took: Duration::from_millis(took) };
        let benched = Benched {
            failed: 0,
            aborted: 0,
            transactions: vec![one(0, 9), one(100, 3), one(900, 5), one(2000, 80)],
        };
        assert_eq!(benched.longest((at(50), at(1050))), Some(one(900, 5)));
        assert_eq!(one(900, 5).begin(), at(895));
        assert!((benched.per_second((at(0), at(1000))) - 3.0).abs() < 1e-9);
        assert_eq!(benched.longest((at(3000), at(4000))), None);
    }
}
