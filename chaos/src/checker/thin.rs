//! How much a record shows, and whether that is enough to say anything.

use super::{Finding, Kind, Outcome, Record, What};

/// Operations with an answer, by kind.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    pub inserts: usize,
    pub reads: usize,
    pub streams: usize,
    pub lists: usize,
    pub transfers: usize,
    pub totals: usize,
    pub members: usize,
}

impl Counts {
    /// Counts what the record shows.
    pub fn of(record: &Record) -> Self {
        let mut counts = Self {
            inserts: record.inserts.acknowledged.len(),
            members: record.members.len(),
            ..Self::default()
        };
        for operation in record.operations.iter().filter(|o| o.outcome == Outcome::Done) {
            let count = match operation.what {
                What::Newest(_) => &mut counts.reads,
                What::Next { .. } => &mut counts.streams,
                What::Lists(_) => &mut counts.lists,
                What::Transfer => &mut counts.transfers,
                What::Total(_) => &mut counts.totals,
            };
            *count += 1;
        }
        counts
    }

    fn named(self) -> [(&'static str, usize); 7] {
        [
            ("inserts", self.inserts),
            ("reads", self.reads),
            ("numbers of streams", self.streams),
            ("transactions over lists", self.lists),
            ("transfers", self.transfers),
            ("sums", self.totals),
            ("members read at the end", self.members),
        ]
    }
}

/// Returns what the record shows too little of.
pub fn check(record: &Record, least: Counts) -> Vec<Finding> {
    let pairs = Counts::of(record).named().into_iter().zip(least.named());
    pairs
        .filter(|((_, shown), (_, least))| shown < least)
        .map(|((name, shown), (_, least))| {
            let text = format!("{shown} {name}, at least {least} are needed");
            Finding::new(Kind::Inconclusive, text)
        })
        .collect()
}
