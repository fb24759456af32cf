//! The bench's numbers as a table for people and as one line a row for programs.

use std::fmt::Write as _;
use std::time::Duration;

use super::Run;
use super::cases::Case;

/// Where the numbers beside ours come from.
const PATRONI: &str = "Patroni 4.1.5 with HAProxy, medians on a machine like this, November 2026: \
     with its defaults / with its smallest allowed timings";

/// One fault and its gaps, through HAProxy and through PgBouncer.
#[derive(Debug, Clone)]
pub struct Row {
    pub case: Case,
    gaps: [Vec<Duration>; 2],
    routed: [Vec<Duration>; 2],
}

impl Row {
    /// A row without numbers yet.
    pub fn new(case: &Case) -> Self {
        Self { case: *case, gaps: Default::default(), routed: Default::default() }
    }

    /// Adds what one run has given.
    pub(super) fn add(&mut self, run: Run) {
        for (all, gap) in self.gaps.iter_mut().zip(run.gaps) {
            all.push(gap);
        }
        for (all, routed) in self.routed.iter_mut().zip(run.routed.into_iter().flatten()) {
            all.push(routed);
        }
    }

    /// The row for programs.
    pub fn line(&self) -> String {
        let name = self.case.slug();
        let [haproxy, pgbouncer] = &self.gaps;
        match (summary(haproxy), summary(pgbouncer)) {
            (Some([median, least, most]), Some(pooled)) => format!(
                "bench name={name} runs={} median_ms={median:.1} min_ms={least:.1} max_ms={most:.1} \
                 pgbouncer_median_ms={:.1} pgbouncer_max_ms={:.1}",
                haproxy.len(),
                pooled[0],
                pooled[2]
            ),
            (None, _) | (_, None) => format!("bench name={name} runs=0"),
        }
    }
}

/// Returns the lower median, the least and the greatest, in milliseconds.
fn summary(times: &[Duration]) -> Option<[f64; 3]> {
    let mut sorted = times.to_vec();
    sorted.sort();
    let ms = |gap: &Duration| gap.as_secs_f64() * 1e3;
    let median = sorted.get(sorted.len().checked_sub(1)? / 2)?;
    Some([ms(median), ms(sorted.first()?), ms(sorted.last()?)])
}

/// From the state that names a primary that serves to the first acknowledged write, over all rows: for programs.
pub fn route_lines(rows: &[Row]) -> Vec<String> {
    let line = |(name, place): (&str, usize)| {
        let times: Vec<Duration> = rows.iter().flat_map(|row| row.routed[place].clone()).collect();
        let [median, least, most] = summary(&times)?;
        Some(format!(
            "bench name=route-latency-{name} runs={} median_ms={median:.1} min_ms={least:.1} max_ms={most:.1}",
            times.len()
        ))
    };
    [("haproxy", 0), ("pgbouncer", 1)].into_iter().filter_map(line).collect()
}

/// The table for people.
pub fn text(rows: &[Row]) -> String {
    let mut text = format!(
        "\n{:<33} {:>5} {:>26}   {:>17}\n{:<33} {:>5} {:>10} {:>8} {:>8} {:>10} {:>8}   {:<22} {}\n",
        "",
        "",
        "through HAProxy",
        "PgBouncer",
        "write gap in ms",
        "runs",
        "median",
        "min",
        "max",
        "median",
        "max",
        "aim",
        "Patroni (s)"
    );
    for row in rows {
        let [haproxy, pgbouncer] = &row.gaps;
        let (Some([median, least, most]), Some(pooled)) = (summary(haproxy), summary(pgbouncer))
        else {
            continue;
        };
        let patroni = row
            .case
            .patroni_seconds
            .map_or("-".to_owned(), |(default, least)| format!("{default} / {least}"));
        let _ = writeln!(
            text,
            "{:<33} {:>5} {median:>10.0} {least:>8.0} {most:>8.0} {:>10.0} {:>8.0}   {:<22} {patroni}",
            row.case.name,
            haproxy.len(),
            pooled[0],
            pooled[2],
            row.case.aim
        );
    }
    let _ = writeln!(text, "{PATRONI}");
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::cases::CASES;

    #[test]
    fn median_least_and_most_are_of_the_sorted_gaps() {
        let mut row = Row::new(&CASES[1]);
        for ms in [90, 70, 250, 80, 85] {
            let gaps = [Duration::from_millis(ms), Duration::from_millis(ms + 5)];
            row.add(Run {
                gaps,
                ended: gaps[0],
                routed: Some([Duration::from_millis(ms / 10); 2]),
            });
        }
        assert_eq!(
            row.line(),
            "bench name=crash-failed-over runs=5 median_ms=85.0 min_ms=70.0 max_ms=250.0 pgbouncer_median_ms=90.0 \
             pgbouncer_max_ms=255.0"
        );
        assert_eq!(
            route_lines(std::slice::from_ref(&row))[1],
            "bench name=route-latency-pgbouncer runs=5 median_ms=8.0 min_ms=7.0 max_ms=25.0"
        );
        let table = text(&[row, Row::new(&CASES[2])]);
        assert!(table.contains("5.5 / 4.2") && !table.contains("in place"), "{table}");
    }
}
