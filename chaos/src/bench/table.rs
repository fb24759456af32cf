//! The bench's numbers as a table for people and as one line a row for programs.

use std::fmt::Write as _;
use std::time::Duration;

use super::cases::Case;

/// Where the numbers beside ours come from.
const PATRONI: &str = "Patroni 4.1.5 with HAProxy, medians on a machine like this, November 2026: \
     with its defaults / with its smallest allowed timings";

/// One fault and its gaps.
#[derive(Debug, Clone)]
pub struct Row {
    pub case: Case,
    pub gaps: Vec<Duration>,
}

impl Row {
    /// A row without numbers yet.
    pub fn new(case: &Case) -> Self {
        Self { case: *case, gaps: Vec::new() }
    }

    /// The lower median, the least and the greatest, in milliseconds.
    fn summary(&self) -> Option<[f64; 3]> {
        let mut sorted = self.gaps.clone();
        sorted.sort();
        let ms = |gap: &Duration| gap.as_secs_f64() * 1e3;
        Some([
            ms(sorted.get((sorted.len().checked_sub(1)?) / 2)?),
            ms(sorted.first()?),
            ms(sorted.last()?),
        ])
    }

    /// The row for programs.
    pub fn line(&self) -> String {
        let name = self.case.slug();
        match self.summary() {
            Some([median, least, most]) => format!(
                "bench name={name} runs={} median_ms={median:.1} min_ms={least:.1} max_ms={most:.1}",
                self.gaps.len()
            ),
            None => format!("bench name={name} runs=0"),
        }
    }
}

/// The table for people.
pub fn text(rows: &[Row]) -> String {
    let mut text = format!(
        "\n{:<33} {:>5} {:>10} {:>8} {:>8}   {:<22} {}\n",
        "write gap in ms", "runs", "median", "min", "max", "aim", "Patroni (s)"
    );
    for row in rows {
        let Some([median, least, most]) = row.summary() else { continue };
        let patroni = row
            .case
            .patroni_seconds
            .map_or("-".to_owned(), |(default, least)| format!("{default} / {least}"));
        let _ = writeln!(
            text,
            "{:<33} {:>5} {median:>10.0} {least:>8.0} {most:>8.0}   {:<22} {patroni}",
            row.case.name,
            row.gaps.len(),
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
        let mut row = Row::new(&CASES[0]);
        row.gaps = [90, 70, 250, 80, 85].map(Duration::from_millis).into();
        assert_eq!(
            row.line(),
            "bench name=crash-failed-over runs=5 median_ms=85.0 min_ms=70.0 max_ms=250.0"
        );
        let table = text(&[row, Row::new(&CASES[1])]);
        assert!(table.contains("5.5 / 4.2") && !table.contains("in place"), "{table}");
    }
}
