//! A rejoin that fails says so where people look, with the reason and what comes next, and goes on once it can.

#![allow(clippy::unwrap_used, reason = "a test may panic, also in its helpers")]

use std::time::Duration;

use chaos::lab::{EtcdSecurity, Lab, Part};
use proto::MemberName;
use proto::history::HistoryRecord;
use proto::report::{RejoinBy, RejoinOutcome};
use store::clock;
use system_tests::scene;

const BOUND: Duration = Duration::from_secs(120);

async fn sql(lab: &Lab, member: &MemberName, statement: &str) {
    lab.superuser(member).await.unwrap().client().batch_execute(statement).await.unwrap();
}

/// Gives the primary WAL that no standby receives, and loses it.
async fn diverges_and_is_lost(lab: &mut Lab, primary: &MemberName) {
    let standbys: Vec<_> = lab.members().into_iter().filter(|m| m != primary).collect();
    for standby in &standbys {
        lab.freeze(standby, Part::Postgres).await.unwrap();
    }
    // More than a receiver's socket holds for after the thaw.
    let alone =
        "SET synchronous_commit = local; CREATE TABLE lost AS SELECT generate_series(1, 1000000)";
    sql(lab, primary, alone).await;
    lab.kill_member(primary).unwrap();
    lab.member_gone(primary).await.unwrap();
    for standby in &standbys {
        lab.thaw(standby).unwrap();
    }
}

#[tokio::test]
#[ignore = "takes half a minute: make test-long"]
async fn a_rejoin_that_fails_tells_why_and_what_comes_next_and_is_done_once_it_can_be() {
    let mut scene = scene(|config| {
        // The rewind that succeeds in the end goes by TLS.
        config.etcd_security = EtcdSecurity::TlsAndUsers;
        config.members_by_tls = true;
    })
    .await;
    let lab = &mut scene.lab;
    lab.wait_redundant(BOUND).await.unwrap();
    let (before, primary) = lab.cluster().await.unwrap().service().unwrap();
    sql(lab, &primary, "ALTER ROLE pgdeputy_rewind NOLOGIN").await;
    diverges_and_is_lost(lab, &primary).await;
    let (_, next) = lab.wait_served_after(before, BOUND).await.unwrap();
    lab.start_member(&primary).unwrap();
    let told = lab.await_cluster("the rewind fails", BOUND, |cluster| {
        let rejoin = cluster.reports.get(&primary)?.rejoin.as_ref()?;
        match &rejoin.outcome {
            RejoinOutcome::Failed { problem, .. } => Some((rejoin.by, problem.clone())),
            RejoinOutcome::Running { .. } | RejoinOutcome::Done { .. } => None,
        }
    });
    let (by, problem) = told.await.unwrap();
    assert_eq!(by, RejoinBy::Rewind);
    assert!(problem.contains("connect to the source"), "{problem}");
    assert!(problem.ends_with("nothing of its data has changed, it is tried again by itself"));
    let noted = format!("{primary} could not be rewound: connect to the source");
    let deadline = clock::now() + BOUND;
    let is_noted = |records: Vec<HistoryRecord>| {
        records.iter().flat_map(|r| &r.notes).any(|note| note.text.starts_with(&noted))
    };
    while !is_noted(lab.history().await.unwrap()) {
        assert!(clock::now() < deadline, "{:?}", lab.history().await.unwrap());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }

    sql(lab, &next, "ALTER ROLE pgdeputy_rewind LOGIN").await;
    let cluster = lab.wait_redundant(BOUND).await.unwrap();
    let rejoin = cluster.reports[&primary].rejoin.clone().unwrap();
    assert!(matches!(rejoin.outcome, RejoinOutcome::Done { .. }), "{rejoin:?}");
    assert_eq!(rejoin.by, RejoinBy::Rewind, "{rejoin:?}");
    assert_eq!(rejoin.details.without_gateway, None, "{rejoin:?}");
    eprintln!("rewound by TLS, used=gateway, bytes {:?}", rejoin.details.copied_bytes);
}
