//! How past changes look to people.

use std::fmt;

use proto::history::HistoryKind;

use super::rejoined::rejoined;
use super::{Change, Details, History, PhaseTimes};
use crate::table::{Table, milliseconds};

impl fmt::Display for History {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.particular, self.changes.is_empty()) {
            (_, true) => writeln!(f, "cluster {}: nothing has changed yet", self.cluster)?,
            (true, false) => {
                for details in &self.changes {
                    writeln!(f, "{details}")?;
                }
            }
            (false, false) => list(f, &self.changes)?,
        }
        for line in &self.unreadable {
            writeln!(f, "not shown: {line}")?;
        }
        Ok(())
    }
}

fn list(f: &mut fmt::Formatter<'_>, changes: &[Details]) -> fmt::Result {
    let mut table = Table::new(&["n", "start", "what", "from -> to", "writes back", "cause"]);
    for Details { change, .. } in changes {
        table.row([
            change.number.clone(),
            change.start.map_or("-".into(), |s| s.to_string()),
            change.kind_word().into(),
            change.who(),
            change.total_ms.map_or("not yet".into(), milliseconds),
            change.cause.clone(),
        ]);
    }
    write!(f, "{table}")
}

impl Change {
    /// Returns the word for what happened.
    pub fn kind_word(&self) -> &'static str {
        match self.kind {
            HistoryKind::Founding => "founding",
            HistoryKind::Failover => "failover",
            HistoryKind::Switchover => "switchover",
            HistoryKind::Restart => "restart",
        }
    }

    /// Returns whom it took from whom: `a -> b`, or the one member that it was about.
    pub fn who(&self) -> String {
        match (&self.from, &self.to) {
            (Some(from), Some(to)) if from != to => format!("{from} -> {to}"),
            (_, Some(one)) => one.to_string(),
            (Some(from), None) => format!("{from} -> ?"),
            (None, None) => "?".into(),
        }
    }
}

impl fmt::Display for Details {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let change = &self.change;
        writeln!(f, "{} {}: {}", change.kind_word(), change.number, change.who())?;
        writeln!(f, "cause: {}", change.cause)?;
        for fact in &self.evidence {
            writeln!(f, "  seen: {fact}")?;
        }
        if let Some(position) = &self.chosen {
            writeln!(f, "chosen with: {position}")?;
        }
        for rejection in &self.rejected {
            writeln!(f, "  not {}: {}", rejection.member, rejection.reason)?;
        }
        phases(f, &self.phases)?;
        // Where only the lapse of a lease shows a loss, that is the first sign, and clients have waited for longer.
        let since = |ms: Option<i64>| match ms {
            Some(ms) => format!("{} after the first sign", milliseconds(ms)),
            None => "not yet".into(),
        };
        let back = since(change.total_ms);
        writeln!(f, "writes back: {back}")?;
        let redundant = since(change.redundant_after_ms);
        writeln!(f, "redundant:   {redundant}")?;
        for note in &self.notes {
            writeln!(f, "  {}: {}", note.at, note.text)?;
        }
        for rejoin in &self.rejoined {
            rejoined(f, rejoin)?;
        }
        Ok(())
    }
}

fn phases(f: &mut fmt::Formatter<'_>, phases: &[PhaseTimes]) -> fmt::Result {
    let mut table = Table::new(&["  phase", "start", "end", "took"]);
    for phase in phases {
        table.row([
            format!("  {}", phase.name),
            phase.start.to_string(),
            phase.end.map_or("under way".into(), |e| e.to_string()),
            phase.ms.map_or("-".into(), milliseconds),
        ]);
    }
    write!(f, "{table}")
}
