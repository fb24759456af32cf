//! How a member's return looks to people: how long each step took, what was copied, what was given up for it.

use std::fmt;

use proto::history::RejoinRecord;
use proto::rejoin::{Discarded, RejoinDetails};
use proto::report::RejoinBy;

use crate::table::{bytes, milliseconds, wrapped};

/// Writes the lines of one return.
pub fn rejoined(f: &mut fmt::Formatter<'_>, rejoin: &RejoinRecord) -> fmt::Result {
    let took = milliseconds(rejoin.end.ms_since(rejoin.start));
    writeln!(f, "  {} {} in {took}: {}", rejoin.member, came_back(rejoin.by), rejoin.reason)?;
    for sentence in sentences(&rejoin.details, rejoin.acknowledged.as_deref()) {
        for line in wrapped(&sentence).lines() {
            writeln!(f, "    {line}")?;
        }
    }
    Ok(())
}

/// Returns how a member came back, as in "c was rewound".
fn came_back(by: RejoinBy) -> &'static str {
    match by {
        RejoinBy::Follow => "followed",
        RejoinBy::Rewind => "was rewound",
        RejoinBy::Copy => "was copied anew",
    }
}

fn sentences(details: &RejoinDetails, acknowledged: Option<&str>) -> Vec<String> {
    let mut lines = Vec::new();
    let steps: Vec<String> = details
        .steps
        .iter()
        .filter_map(|step| {
            let ms = step.end?.ms_since(step.start);
            Some(format!("{} {}", step.name, milliseconds(ms)))
        })
        .collect();
    if !steps.is_empty() {
        let copied =
            details.copied_bytes.map_or(String::new(), |b| format!("; {} came over", bytes(b)));
        lines.push(format!("{}{copied}", steps.join(", ")));
    }
    if let Some(why) = &details.without_gateway {
        lines.push(format!("all WAL of the source was copied: {why}"));
    }
    if let Some(discarded) = &details.discarded {
        lines.push(given_up(discarded, acknowledged));
        lines.extend(most_changed(discarded));
        lines.extend(discarded.kept.as_ref().map(|dir| format!("its WAL is kept in {dir}")));
    }
    lines
}

fn given_up(discarded: &Discarded, acknowledged: Option<&str>) -> String {
    let Discarded { timeline, from, to, commits, rollbacks, .. } = discarded;
    let read = match discarded.read_to < *to {
        true => format!(", read up to {}", discarded.read_to),
        false => String::new(),
    };
    let verdict = acknowledged.map_or(String::new(), |text| format!("; {text}"));
    format!(
        "gave up {} of WAL, from {from} of timeline {timeline} to {to}{read}: {commits} committed and {rollbacks} rolled \
         back{verdict}",
        bytes(discarded.bytes())
    )
}

fn most_changed(discarded: &Discarded) -> Option<String> {
    let told: Vec<String> = discarded
        .relations
        .iter()
        .map(|r| format!("{}/{}/{} ({} records)", r.tablespace, r.database, r.filenode, r.records))
        .collect();
    let more = match discarded.more_relations {
        0 => String::new(),
        more => format!(", and {more} more"),
    };
    (!told.is_empty()).then(|| {
        format!("most changed, by tablespace, database and filenode: {}{more}", told.join(", "))
    })
}
