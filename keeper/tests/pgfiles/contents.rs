//! What diverged WAL held, judged by pg_waldump.

use std::collections::BTreeSet;

use keeper::postgres::wal_contents::{Span, contents};
use keeper::postgres::wal_scan::scan;
use proto::Lsn;

use crate::cluster::judge;
use crate::delta::{diverged, fork};

#[tokio::test]
async fn commits_rollbacks_and_relations_of_diverged_wal_are_those_that_pg_waldump_sees() {
    let (mut old, new) = diverged(2).await;
    let fork = fork(&old, &new);
    // Back as a primary of its own, for more to be given up than one update.
    old.start().await;
    let filenode = old.sql("SELECT pg_relation_filenode('t')");
    old.sql("BEGIN; DELETE FROM t WHERE i = 7; ROLLBACK");
    old.sql("BEGIN; SAVEPOINT s; DELETE FROM t WHERE i = 8; ROLLBACK TO s; DELETE FROM t WHERE i = 9; COMMIT");
    old.sql("CREATE INDEX ON t (i); CHECKPOINT; UPDATE t SET text = 'more' WHERE i < 50");
    old.crash();
    let end = scan(&old.data).unwrap();
    let span = Span {
        timeline: fork.0,
        from: fork.1,
        end: (end.lsn, end.timeline),
        at_most_bytes: 1 << 30,
    };
    let found = contents(&old.data, span).unwrap();

    let (from, to) = (found.from.to_string(), found.to.to_string());
    let wal = old.pg_wal();
    let (dump, _) =
        judge("pg_waldump", &["-p", wal.to_str().unwrap(), "-t", "1", "-s", &from, "-e", &to]);
    let count = |what: &str| dump.lines().filter(|line| line.contains(what)).count() as u64;
    assert!(count("desc: COMMIT") > 3 && count("desc: ABORT") > 1, "{dump}");
    assert_eq!(
        (found.commits, found.rollbacks, found.records, found.read_to),
        (count("desc: COMMIT"), count("desc: ABORT"), count("rmgr: "), found.to)
    );
    let next = dump.lines().skip_while(|line| !line.contains("desc: COMMIT")).nth(1).unwrap();
    let next: Lsn = next.split("lsn: ").nth(1).unwrap().split(',').next().unwrap().parse().unwrap();
    // A page header may lie between the two.
    let gap = next.0 - found.first_commit.unwrap().0;
    assert!([0, 24, 40].contains(&gap), "{gap}");
    let seen: BTreeSet<&str> = dump
        .split("rel ")
        .skip(1)
        .filter_map(|rest| rest.split_whitespace().next())
        // A lock names its relation in another way.
        .filter(|name| name.matches('/').count() == 2)
        .collect();
    let told = found.relations.len() as u64 + found.more_relations;
    assert_eq!(told, seen.len() as u64, "{seen:?}");
    let most = &found.relations[0];
    assert_eq!(most.filenode.to_string(), filenode, "{:?}", found.relations);
    let name = format!("rel {}/{}/{} ", most.tablespace, most.database, most.filenode);
    assert_eq!(most.records, count(&name));
}
