//! The one query of pg_rewind's that the gateway changes: its list of the source's files.
//!
//! Rule: what is hidden on the source and is on the target is listed under its second name, or pg_rewind removes it.

use std::fmt::Write;

use proto::Timeline;

use crate::postgres::kept_wal::{KEPT, KeptFile};
use crate::postgres::wal_files::Segment;

/// What of the source's WAL is shown to pg_rewind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shown {
    pub segment_size: u32,
    /// The newest common timeline; the member's own log leaves it in `fork_segment`.
    pub common: Timeline,
    pub fork_segment: u64,
    /// Replay will begin here. Older segments are not needed, younger ones only where the member lacks them.
    pub redo_segment: u64,
    /// Names of segments from `redo_segment` to before `fork_segment` that the member has.
    pub held: Vec<String>,
    /// The member's files that must be neither removed nor overwritten.
    pub kept: Vec<KeptFile>,
}

/// The segment that the source writes to, and how much of it is worth having: all that is written, in whole megabytes.
/// What follows is zeros or an earlier segment's, and the member receives it once it is written. (At the very end of a
/// segment the position in it is 0, and it comes whole.)
const NEWEST: &str = "(SELECT 'pg_wal/' || w.file_name AS path, w.file_offset AS at, \
     ((w.file_offset / 1048576 + 1) * 1048576)::int8 AS written \
     FROM pg_catalog.pg_walfile_name_offset(pg_catalog.pg_current_wal_insert_lsn()) AS w)";

/// Returns whether this is the query: its begin has been the same from PostgreSQL 13 to 18.
pub fn is_listing(sql: &str) -> bool {
    sql.trim_start().starts_with("WITH RECURSIVE files (path")
}

/// Returns the query that lists only what is needed.
pub fn rewrite(sql: &str, shown: &Shown) -> String {
    let original = sql.trim_end().trim_end_matches(';');
    let fork = position_part(shown.fork_segment, shown.segment_size);
    let redo = position_part(shown.redo_segment, shown.segment_size);
    let held = array(shown.held.iter().map(|name| format!("pg_wal/{name}")));
    let common = format!("{:08X}", shown.common.0);
    let mut text = format!(
        "SELECT f.path, CASE WHEN f.path = i.path AND i.at > 0 THEN least(f.size, i.written) ELSE f.size END, \
         f.isdir, f.link_target FROM ({original}) AS f(path, size, isdir, link_target), {NEWEST} AS i \
         WHERE NOT (f.path ~ '^pg_wal/[0-9A-F]{{24}}$' AND (\
         (pg_catalog.right(f.path, 16) COLLATE \"C\" < '{fork}' \
         AND (pg_catalog.right(f.path, 16) COLLATE \"C\" < '{redo}' OR f.path = ANY ('{held}'::text[]))) \
         OR (pg_catalog.substr(f.path, 8, 8) = '{common}' \
         AND pg_catalog.right(f.path, 16) COLLATE \"C\" >= '{fork}') \
         OR pg_catalog.right(f.path, 16) COLLATE \"C\" \
         > pg_catalog.right(pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_insert_lsn()), 16)))"
    );
    for (size, names) in by_size(&shown.kept) {
        let names = array(names.iter().map(|name| format!("pg_wal/{name}{KEPT}")));
        write!(
            text,
            " UNION ALL SELECT k, {size}::int8, false, NULL::text FROM pg_catalog.unnest('{names}'::text[]) AS k"
        )
        .expect("writing to a String cannot fail");
    }
    text
}

/// Returns the part of a segment's file name that says where in the log it stands.
fn position_part(number: u64, segment_size: u32) -> String {
    Segment { timeline: Timeline(1), number }.file_name(segment_size)[8..].to_owned()
}

/// Returns an array's text. The names are hexadecimal digits, dots, dashes and slashes: nothing needs quoting.
fn array(names: impl Iterator<Item = String>) -> String {
    format!("{{{}}}", names.collect::<Vec<_>>().join(","))
}

fn by_size(kept: &[KeptFile]) -> std::collections::BTreeMap<u64, Vec<&str>> {
    let mut sizes = std::collections::BTreeMap::<u64, Vec<&str>>::new();
    for file in kept {
        sizes.entry(file.bytes).or_default().push(&file.name);
    }
    sizes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_file_list_is_changed_and_it_stays_one_query() {
        assert!(is_listing("WITH RECURSIVE files (path, filename, size, isdir) AS (\n"));
        assert!(!is_listing("SELECT pg_read_binary_file('global/pg_control')"));
        let shown = Shown {
            segment_size: 16 << 20,
            common: Timeline(3),
            fork_segment: 0x1_07,
            redo_segment: 0x1_05,
            held: vec!["000000030000000100000005".into()],
            kept: vec![KeptFile { name: "000000030000000100000005".into(), bytes: 16 << 20 }],
        };
        let text = rewrite("WITH RECURSIVE files (path) SELECT 1;\n", &shown);
        assert!(!text.contains(';'), "{text}");
        assert!(text.contains("pg_walfile_name_offset"), "{text}");
        assert!(text.contains("< '0000000100000007'") && text.contains("< '0000000100000005'"));
        assert!(text.contains("= '00000003'"), "{text}");
        assert!(text.contains("'{pg_wal/000000030000000100000005}'"), "{text}");
        let second_name = "pg_wal/000000030000000100000005.pgdeputy-keep.PG_VERSION";
        assert!(text.contains(&format!("SELECT k, 16777216::int8, false, NULL::text FROM pg_catalog.unnest('{{{second_name}}}'")), "{text}");
    }
}
