//! Whether this member could come back by a rewind or a copy if it lost its place now: asked long before it has to.
//!
//! Rule: every sentence says what would fail and what a person can do about it, and holds no number that moves by itself:
//! each change of a report is a write to etcd.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::{Context, anyhow};
use proto::MemberName;
use proto::spec::Permission;
use tokio::time::timeout;

use super::session::{Session, SqlError, describe};
use super::settings::REWIND_ROLE;
use super::source::Source;
use crate::facts::Room;

/// What pg_rewind calls on its source (PostgreSQL documentation, pg_rewind, Notes).
pub const FUNCTIONS: [&str; 4] = [
    "pg_ls_dir(text, boolean, boolean)",
    "pg_stat_file(text, boolean)",
    "pg_read_binary_file(text)",
    "pg_read_binary_file(text, bigint, bigint, boolean)",
];

/// A login and one query.
const ANSWERS_WITHIN: Duration = Duration::from_secs(3);

/// Tablespaces beside PostgreSQL's own two, by name: where each one lies.
pub type Tablespaces = BTreeMap<String, String>;

/// What the running server of this member says of itself.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Own {
    /// Every change of a page is in its WAL: data checksums or `wal_log_hints`.
    pub logs_hints: bool,
    pub full_page_writes: bool,
    pub wal_keep_mb: i64,
    pub max_wal_mb: i64,
    /// Negative: without a bound.
    pub slot_keep_mb: i64,
    /// Slots of ours whose WAL is gone.
    pub lost_slots: Vec<String>,
    pub tablespaces: Tablespaces,
}

/// What another member says to the role by which it would be the source of a rewind.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Other {
    /// Those of `FUNCTIONS` that the role may not call.
    pub forbidden: Vec<String>,
    pub tablespaces: Tablespaces,
}

/// All that was found out.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Found {
    pub own: Own,
    pub others: BTreeMap<MemberName, Result<Other, String>>,
    /// `None` where it was not looked at.
    pub room: Option<Room>,
}

const TABLESPACES: &str =
    "(SELECT coalesce(json_object_agg(spcname, pg_catalog.pg_tablespace_location(oid)), '{}')::text
       FROM pg_catalog.pg_tablespace WHERE spcname NOT IN ('pg_default', 'pg_global'))";

/// Asks this member's own server.
pub async fn ask_own(session: &Session) -> Result<Own, SqlError> {
    let question = format!(
        "SELECT 'on' IN (current_setting('data_checksums'), current_setting('wal_log_hints')),
                current_setting('full_page_writes') = 'on',
                (SELECT setting::bigint FROM pg_settings WHERE name = 'wal_keep_size'),
                (SELECT setting::bigint FROM pg_settings WHERE name = 'max_wal_size'),
                (SELECT setting::bigint FROM pg_settings WHERE name = 'max_slot_wal_keep_size'),
                (SELECT coalesce(array_agg(slot_name::text ORDER BY slot_name), '{{}}') FROM pg_replication_slots
                  WHERE wal_status = 'lost' AND slot_name LIKE 'pgdeputy\\_%'),
                {TABLESPACES}"
    );
    let row = session.row(&question, &[]).await?;
    Ok(Own {
        logs_hints: row.get(0),
        full_page_writes: row.get(1),
        wal_keep_mb: row.get(2),
        max_wal_mb: row.get(3),
        slot_keep_mb: row.get(4),
        lost_slots: row.get(5),
        tablespaces: parse_tablespaces(row.get(6)),
    })
}

/// Returns how much data this server has, by its own sums. It looks at every file.
pub async fn data_bytes(session: &Session) -> Result<u64, SqlError> {
    let sum = "SELECT sum(pg_database_size(oid))::bigint FROM pg_database";
    Ok(u64::try_from(session.value::<i64>(sum).await?).unwrap_or(0))
}

/// Asks another member just as a rewind would: over the network, by the role and the password of rewinds.
pub async fn ask_other(source: &Source, password: &str) -> anyhow::Result<Other> {
    let asking = async {
        let (client, connection) = source.session(password).await?;
        let talking = tokio::spawn(connection);
        let question = format!(
            "SELECT (SELECT coalesce(array_agg(f), '{{}}') FROM unnest($1::text[]) f
                      WHERE NOT has_function_privilege('pg_catalog.' || f, 'EXECUTE')), {TABLESPACES}"
        );
        let functions: Vec<&str> = FUNCTIONS.to_vec();
        let row = client.query_one(&question, &[&functions]).await;
        talking.abort();
        let row = row.map_err(|e| anyhow!("{}", describe(&e)))?;
        Ok(Other { forbidden: row.get(0), tablespaces: parse_tablespaces(row.get(1)) })
    };
    timeout(ANSWERS_WITHIN, asking).await.context("it does not answer")?
}

/// What cannot be read is no reason to complain of tablespaces.
fn parse_tablespaces(text: &str) -> Tablespaces {
    serde_json::from_str(text).unwrap_or_default()
}

/// Returns what a person should know, sentence by sentence.
pub fn problems(found: &Found, copy: Permission) -> BTreeSet<String> {
    let mut problems = BTreeSet::new();
    own_problems(&found.own, &mut problems);
    for (member, answer) in &found.others {
        match answer {
            Err(why) => drop(problems.insert(format!(
                "could not be rewound from {member}: {why}; see that its address, port and pg_hba.conf let this host's \
                 keeper in as {REWIND_ROLE}"
            ))),
            Ok(other) => other_problems(&found.own, member, other, &mut problems),
        }
    }
    let is_tight = found.room.is_some_and(|room| room.available < room.data);
    if is_tight && copy == Permission::Allowed {
        problems.insert(
            "a fresh copy would not fit beside the data directory: free some space, or be ready to remove the old data by \
             hand where a rewind cannot be"
                .to_owned(),
        );
    }
    problems
}

fn own_problems(own: &Own, problems: &mut BTreeSet<String>) {
    if !own.logs_hints {
        problems.insert(
            "could not be rewound: neither data checksums nor wal_log_hints are on; restart this member, pgdeputy sets \
             wal_log_hints"
                .to_owned(),
        );
    }
    if !own.full_page_writes {
        problems.insert(
            "could not be rewound: full_page_writes is off; find out who sets it, pgdeputy sets it on"
                .to_owned(),
        );
    }
    if own.wal_keep_mb < own.max_wal_mb {
        problems.insert(format!(
            "may lack the WAL that a rewind begins with: wal_keep_size is {} MB; raise it to max_wal_size, {} MB, in \
             the spec's postgres.parameters",
            own.wal_keep_mb, own.max_wal_mb
        ));
    }
    if own.slot_keep_mb < 0 {
        problems.insert(
            "an absent member's slot can fill the disk of the WAL: set max_slot_wal_keep_size in the spec's \
             postgres.parameters"
                .to_owned(),
        );
    }
    for slot in &own.lost_slots {
        problems.insert(format!(
            "slot {slot} has lost WAL that its member lacks: that member will be copied anew; with a greater \
             max_slot_wal_keep_size members can be away for longer"
        ));
    }
    for (name, location) in &own.tablespaces {
        if !location.starts_with('/') {
            problems.insert(format!(
                "could not be rewound: tablespace {name} lies within the data directory, which pg_rewind refuses; move \
                 its tables to one with a directory of its own"
            ));
        }
    }
}

fn other_problems(own: &Own, member: &MemberName, other: &Other, problems: &mut BTreeSet<String>) {
    if !other.forbidden.is_empty() {
        problems.insert(format!(
            "could not be rewound from {member}: role {REWIND_ROLE} may not call {}; on the primary, in database \
             postgres: GRANT EXECUTE ON FUNCTION pg_catalog.{} TO {REWIND_ROLE}",
            other.forbidden.join(", "),
            other.forbidden.join(", pg_catalog.")
        ));
    }
    for (name, here) in &own.tablespaces {
        // One that only one side knows is on its way.
        if let Some(there) = other.tablespaces.get(name).filter(|there| *there != here) {
            problems.insert(format!(
                "could not be rewound from {member}: tablespace {name} lies at {here} here and at {there} there; give \
                 both the same path"
            ));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn well() -> Found {
        let tablespaces = Tablespaces::from([("fast".to_owned(), "/ssd".to_owned())]);
        let own = Own {
            logs_hints: true,
            full_page_writes: true,
            wal_keep_mb: 1024,
            max_wal_mb: 1024,
            slot_keep_mb: 10_240,
            lost_slots: Vec::new(),
            tablespaces: tablespaces.clone(),
        };
        let other = Ok(Other { forbidden: Vec::new(), tablespaces });
        let room = Some(Room { data: 10, available: 10 });
        Found { own, others: [("b".parse().unwrap(), other)].into(), room }
    }

    fn only(change: impl FnOnce(&mut Found), copy: Permission) -> String {
        let mut found = well();
        change(&mut found);
        let problems = problems(&found, copy);
        assert_eq!(problems.len(), 1, "{problems:?}");
        problems.into_iter().next().unwrap()
    }

    #[test]
    fn a_member_that_could_come_back_has_no_problem() {
        assert_eq!(problems(&well(), Permission::Allowed), BTreeSet::new());
        let mut new = well();
        new.own.tablespaces.insert("newer".into(), "/new".into());
        new.room = None;
        assert_eq!(problems(&new, Permission::Allowed), BTreeSet::new());
        let tight = Found { room: Some(Room { data: 10, available: 9 }), ..well() };
        assert_eq!(problems(&tight, Permission::Never), BTreeSet::new());
    }

    #[test]
    fn each_lack_is_told_with_what_to_do_about_it() {
        let b: MemberName = "b".parse().unwrap();
        let other = |found: &mut Found, change: &dyn Fn(&mut Other)| {
            change(found.others.get_mut(&b).unwrap().as_mut().unwrap());
        };
        let cases: [(&str, String); 9] = [
            ("restart this member", only(|f| f.own.logs_hints = false, Permission::Allowed)),
            ("full_page_writes", only(|f| f.own.full_page_writes = false, Permission::Allowed)),
            (
                "raise it to max_wal_size, 1024 MB",
                only(|f| f.own.wal_keep_mb = 512, Permission::Allowed),
            ),
            ("set max_slot_wal_keep_size", only(|f| f.own.slot_keep_mb = -1, Permission::Allowed)),
            (
                "slot pgdeputy_c has lost",
                only(|f| f.own.lost_slots.push("pgdeputy_c".into()), Permission::Allowed),
            ),
            (
                "within the data directory",
                only(
                    |f| drop(f.own.tablespaces.insert("odd".into(), "pg_tblspc/5".into())),
                    Permission::Allowed,
                ),
            ),
            (
                "GRANT EXECUTE ON FUNCTION pg_catalog.pg_stat_file(text, boolean) TO pgdeputy_rewind",
                only(|f| other(f, &|o| o.forbidden.push(FUNCTIONS[1].into())), Permission::Allowed),
            ),
            (
                "tablespace fast lies at /ssd here and at /hdd there",
                only(
                    |f| other(f, &|o| drop(o.tablespaces.insert("fast".into(), "/hdd".into()))),
                    Permission::Allowed,
                ),
            ),
            (
                "free some space",
                only(|f| f.room = Some(Room { data: 10, available: 9 }), Permission::Allowed),
            ),
        ];
        for (expected, told) in cases {
            assert!(told.contains(expected), "{told}");
        }
        let unreachable = |f: &mut Found| drop(f.others.insert(b.clone(), Err("no route".into())));
        assert!(only(unreachable, Permission::Allowed).contains("from b: no route; see that"));
    }
}
