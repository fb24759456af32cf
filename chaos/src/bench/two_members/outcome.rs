//! What the runs with one fault have given, and the line of it.

use std::time::Duration;

use proto::report::RejoinBy;

use crate::demo::rejoin_word;
use crate::fault::Fault;

/// One loss of the primary.
#[derive(Debug, Clone, Copy)]
pub struct Run {
    /// The longest time without an acknowledgement to the bench's own writers, from the loss until redundancy was back.
    pub write_gap: Duration,
    /// The longest time in which no transaction of pgbench ended.
    pub pgbench_gap: Duration,
    /// How the member came back; none if it was started again as primary.
    pub back: Option<RejoinBy>,
    /// What the primary had of WAL afterwards, in megabytes.
    pub retained_mb: u64,
}

impl Run {
    /// The run for programs.
    pub fn line(&self) -> String {
        format!(
            "write_gap_ms={} pgbench_gap_ms={} back={} retained_mb={}",
            self.write_gap.as_millis(),
            self.pgbench_gap.as_millis(),
            self.back.map_or("restart", rejoin_word),
            self.retained_mb
        )
    }
}

/// All runs with one fault.
#[derive(Debug, Clone)]
pub struct Distribution {
    fault: Fault,
    runs: Vec<Run>,
}

impl Distribution {
    /// No run yet.
    pub fn new(fault: Fault) -> Self {
        Self { fault, runs: Vec::new() }
    }

    /// Adds one.
    pub fn add(&mut self, run: Run) {
        self.runs.push(run);
    }

    /// Returns the longest time that writes were away, for pgbench or for the bench's own writers.
    pub fn longest(&self) -> Duration {
        let longest = |run: &Run| run.write_gap.max(run.pgbench_gap);
        self.runs.iter().map(longest).max().unwrap_or_default()
    }

    /// All runs for programs. Below 100 runs the 99th percentile is the greatest.
    pub fn line(&self) -> String {
        let gaps = self.sorted(|run| run.write_gap);
        let pgbench = self.sorted(|run| run.pgbench_gap);
        let came = |by| self.runs.iter().filter(|run| run.back == Some(by)).count();
        format!(
            "two-members: fault={} n={} write_gap_ms_p50={} p90={} p99={} max={} pgbench_gap_ms_p50={} max={} \
             rewind={} follow={} copy={} retained_mb={}",
            self.fault,
            self.runs.len(),
            percentile(&gaps, 50),
            percentile(&gaps, 90),
            percentile(&gaps, 99),
            percentile(&gaps, 100),
            percentile(&pgbench, 50),
            percentile(&pgbench, 100),
            came(RejoinBy::Rewind),
            came(RejoinBy::Follow),
            came(RejoinBy::Copy),
            self.runs.iter().map(|run| run.retained_mb).min().unwrap_or(0)
        )
    }

    fn sorted(&self, of: impl Fn(&Run) -> Duration) -> Vec<Duration> {
        let mut all: Vec<Duration> = self.runs.iter().map(of).collect();
        all.sort_unstable();
        all
    }
}

/// Returns, in milliseconds, the least value that `percent` of the sorted ones do not exceed.
fn percentile(sorted: &[Duration], percent: usize) -> u128 {
    let place = (sorted.len() * percent).div_ceil(100).saturating_sub(1);
    sorted.get(place).map_or(0, Duration::as_millis)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_has_percentiles_of_the_sorted_gaps_and_the_least_that_was_retained() {
        let mut all = Distribution::new(Fault::Member);
        for ms in [900, 300, 500, 400, 700, 600, 800, 1000, 200, 100] {
            all.add(Run {
                write_gap: Duration::from_millis(ms),
                pgbench_gap: Duration::from_millis(ms + 7),
                back: (ms != 100).then_some(RejoinBy::Rewind),
                retained_mb: 2048 + ms,
            });
        }
        assert_eq!(
            all.line(),
            "two-members: fault=member n=10 write_gap_ms_p50=500 p90=900 p99=1000 max=1000 pgbench_gap_ms_p50=507 \
             max=1007 rewind=9 follow=0 copy=0 retained_mb=2148"
        );
        assert_eq!(all.longest(), Duration::from_millis(1007));
        assert!(all.runs[9].line().contains("back=restart"));
    }
}
