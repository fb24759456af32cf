//! A search of many hours that can be cut and goes on where it was: each batch of seeds is a line of a file.
//!
//! The one rule: only batches that ended count.

use std::fs;
use std::io::{self, Write};
use std::path::Path;

use super::campaign::{Campaign, Enough, Sum};
use super::cells;
use super::run::{Outcome, Plan};

/// Seeds of a batch: a minute or two, which is what a cut loses.
const SEEDS: u64 = 60;

/// What is known of earlier batches.
#[derive(Debug, Default)]
pub struct Known {
    pub sum: Sum,
    pub next: u64,
}

/// Reads the batches of a file; a file that is not there holds none.
pub fn known(file: &Path) -> io::Result<Known> {
    let text = match fs::read_to_string(file) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
        Err(error) => return Err(error),
    };
    let mut known = Known { sum: Sum::default(), next: 1 };
    for line in text.lines().filter(|line| line.starts_with("batch ")) {
        for (name, value) in line.split('\t').filter_map(|word| word.split_once('=')) {
            let count: u64 = value.parse().map_err(|_| {
                io::Error::new(io::ErrorKind::InvalidData, format!("{name}={value} in {line:?}"))
            })?;
            let sum = &mut known.sum;
            match name {
                "next" => known.next = count,
                "runs" => sum.runs += count,
                "simulated" => sum.simulated += count,
                "failovers" => sum.failovers += count,
                "faults" => sum.faults += count,
                "commits" => sum.commits += count,
                "violations" => sum.violations += count,
                "refused" => sum.refused += count,
                cell => *sum.cells.entry(cell.to_owned()).or_default() += count,
            }
        }
    }
    Ok(known)
}

/// Runs batch after batch until there are so many hours in all, and appends each to the file.
pub fn search(
    campaign: &Campaign,
    file: &Path,
    hours: f64,
    mut tell: impl FnMut(&Plan, &Outcome) + Send,
) -> io::Result<Sum> {
    let mut known = known(file)?;
    while known.sum.hours() < hours {
        let first = known.next;
        let batch = Campaign { first, enough: Enough::Seeds(SEEDS), ..campaign.clone() };
        let sum = batch.run(&mut tell);
        let mut out = fs::OpenOptions::new().create(true).append(true).open(file)?;
        writeln!(out, "{}", line(&sum, first + SEEDS))?;
        known.next = first + SEEDS;
        known.sum.merge(&sum);
    }
    Ok(known.sum)
}

fn line(sum: &Sum, next: u64) -> String {
    let counts = [
        ("next", next),
        ("runs", sum.runs),
        ("simulated", sum.simulated),
        ("failovers", sum.failovers),
        ("faults", sum.faults),
        ("commits", sum.commits),
        ("violations", sum.violations),
        ("refused", sum.refused),
    ];
    let counts = counts.iter().map(|(name, count)| format!("\t{name}={count}"));
    let cells = sum.cells.iter().map(|(cell, count)| format!("\t{cell}={count}"));
    format!("batch {}", counts.chain(cells).collect::<String>())
}

/// Returns the cells that were reached fewer than `times` times.
pub fn rare(sum: &Sum, times: u64) -> Vec<(String, u64)> {
    let count = |cell: String| {
        let count = sum.cells.get(&cell).copied().unwrap_or(0);
        (cell, count)
    };
    cells::all().into_iter().map(count).filter(|(_, count)| *count < times).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_that_were_written_add_up_again() {
        let file = tempfile::NamedTempFile::new().expect("a temporary file");
        let mut sum = Sum { runs: 3, simulated: 7_200_000_000, commits: 5, ..Sum::default() };
        sum.cells.insert("KillKeeper x steady".into(), 4);
        fs::write(file.path(), format!("{}\n{}\n", line(&sum, 61), line(&sum, 121))).unwrap();
        let known = known(file.path()).unwrap();
        assert_eq!((known.next, known.sum.runs, known.sum.hours()), (121, 6, 4.0));
        assert_eq!(known.sum.cells["KillKeeper x steady"], 8);
    }
}
