//! Timelines and the history files in which PostgreSQL records where each one branched off.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::Lsn;

/// A PostgreSQL timeline identifier; the first is 1.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Timeline(pub u32);

impl Timeline {
    /// Returns the timeline numbered one higher.
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }

    /// Returns the name of this timeline's history file, such as `00000002.history`.
    pub fn history_file_name(self) -> String {
        format!("{:08X}.history", self.0)
    }
}

impl fmt::Display for Timeline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for Timeline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// One ancestor of a timeline, and where the next one left it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ancestor {
    pub timeline: Timeline,
    /// The switch point: WAL of `timeline` up to here belongs to the descendant.
    pub until: Lsn,
}

/// The history of one timeline: its ancestors, oldest first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TimelineHistory {
    pub timeline: Timeline,
    pub ancestors: Vec<Ancestor>,
}

/// A history file that cannot be read as one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("history of timeline {timeline}, line {line}: {problem}")]
pub struct HistoryError {
    pub timeline: Timeline,
    pub line: usize,
    pub problem: &'static str,
}

impl TimelineHistory {
    /// Returns the history of a timeline without ancestors.
    pub fn first(timeline: Timeline) -> Self {
        Self { timeline, ancestors: Vec::new() }
    }

    /// Reads the text of a history file: `parent<TAB>switch point<TAB>reason` per line, `#` begins a comment.
    ///
    /// An empty text is a history without ancestors, as PostgreSQL takes it.
    pub fn parse(timeline: Timeline, text: &str) -> Result<Self, HistoryError> {
        let mut ancestors: Vec<Ancestor> = Vec::new();
        for (index, line) in text.lines().enumerate() {
            let line_text = line.trim();
            if line_text.is_empty() || line_text.starts_with('#') {
                continue;
            }
            let problem = |problem| HistoryError { timeline, line: index + 1, problem };
            let mut fields = line_text.split_whitespace();
            let parent = fields
                .next()
                .and_then(|f| f.parse::<u32>().ok())
                .ok_or_else(|| problem("no timeline number"))?;
            let until: Lsn = fields
                .next()
                .and_then(|f| f.parse().ok())
                .ok_or_else(|| problem("no switch point"))?;
            if ancestors.last().is_some_and(|last| last.timeline.0 >= parent) {
                return Err(problem("timelines do not rise"));
            }
            if parent >= timeline.0 {
                return Err(problem("an ancestor is not below its descendant"));
            }
            ancestors.push(Ancestor { timeline: Timeline(parent), until });
        }
        Ok(Self { timeline, ancestors })
    }

    /// Returns the timeline that wrote the byte just before `lsn`: a position at a switch point belongs to the
    /// parent, because nothing of the descendant has been written yet.
    ///
    /// Looked for from the newest one on, as PostgreSQL does: whoever was promoted on its way to a timeline that it
    /// never reached left that one below the switch point where it begins.
    pub fn writer_of(&self, lsn: Lsn) -> Timeline {
        let mut writer = self.timeline;
        for ancestor in self.ancestors.iter().rev().take_while(|a| lsn <= a.until) {
            writer = ancestor.timeline;
        }
        writer
    }

    /// Returns where this history left `timeline`; `None` if `timeline` is not one of its ancestors.
    pub fn left_at(&self, timeline: Timeline) -> Option<Lsn> {
        self.ancestors.iter().find(|a| a.timeline == timeline).map(|a| a.until)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const THIRD: &str = "1\t0/3000148\tno recovery target specified\n\n2\t0/5000060\tno recovery target specified\n";

    #[test]
    fn a_switch_point_belongs_to_the_parent() {
        let history = TimelineHistory::parse(Timeline(3), THIRD).unwrap();
        assert_eq!(history.writer_of(Lsn(0x300_0148)), Timeline(1));
        assert_eq!(history.writer_of(Lsn(0x300_0149)), Timeline(2));
        assert_eq!(history.writer_of(Lsn(0x600_0000)), Timeline(3));
        assert_eq!(history.left_at(Timeline(2)), Some(Lsn(0x500_0060)));
        assert_eq!(history.left_at(Timeline(3)), None);
    }

    #[test]
    fn a_timeline_that_was_left_before_it_began_takes_nothing_from_its_descendant() {
        let text = "1\t0/5000000\tx\n2\t0/3000000\tx\n";
        let history = TimelineHistory::parse(Timeline(3), text).unwrap();
        assert_eq!(history.writer_of(Lsn(0x300_0000)), Timeline(1));
        assert_eq!(history.writer_of(Lsn(0x400_0000)), Timeline(3));
    }

    #[test]
    fn an_empty_history_has_no_ancestors_and_a_bad_one_says_where() {
        assert_eq!(
            TimelineHistory::parse(Timeline(2), "# c\n"),
            Ok(TimelineHistory::first(Timeline(2)))
        );
        for bad in ["x\t0/1", "1", "2\t0/1\n1\t0/2", "3\t0/1"] {
            assert!(TimelineHistory::parse(Timeline(3), bad).is_err(), "{bad}");
        }
    }

    /// The text of a history file, with reasons that an operator may have written.
    fn written(ancestors: &[Ancestor]) -> String {
        let line =
            |a: &Ancestor| format!("{}\t{}\tbefore 2026-11-28 \"x\" 7\n\n", a.timeline.0, a.until);
        ancestors.iter().map(line).collect()
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused_and_what_is_read_rises(
            bytes in prop::collection::vec(any::<u8>(), 0..300),
            lines in prop::collection::vec("[ \t#]{0,2}[0-9]{0,11}[ \t]{0,3}[0-9A-F]{0,9}/?[0-9A-F]{0,9}.{0,20}", 0..6),
            timeline in any::<u32>(),
            at in any::<u64>(),
        ) {
            for text in [String::from_utf8_lossy(&bytes).into_owned(), lines.join("\n")] {
                let Ok(read) = TimelineHistory::parse(Timeline(timeline), &text) else { continue };
                let numbers: Vec<u32> = read.ancestors.iter().map(|a| a.timeline.0).collect();
                prop_assert!(numbers.is_sorted_by(|a, b| a < b), "{:?}", numbers);
                prop_assert!(numbers.iter().all(|n| *n < timeline));
                let writer = read.writer_of(Lsn(at));
                prop_assert!(writer.0 == timeline || numbers.contains(&writer.0));
            }
        }

        #[test]
        fn a_history_that_was_written_is_read_as_it_was(
            steps in prop::collection::vec((1_u32..5, any::<u64>()), 0..8),
        ) {
            let mut number = 0;
            let ancestors: Vec<Ancestor> = steps
                .into_iter()
                .map(|(step, lsn)| {
                    number += step;
                    Ancestor { timeline: Timeline(number), until: Lsn(lsn) }
                })
                .collect();
            let timeline = Timeline(number + 1);
            let read = TimelineHistory::parse(timeline, &written(&ancestors));
            prop_assert_eq!(read, Ok(TimelineHistory { timeline, ancestors }));
        }
    }
}
