//! The canary that is written always: by TLS, by one runner at a time, through a failover and the death of its runner.

#![allow(clippy::unwrap_used, reason = "a test may panic, also in its helpers")]

use std::process::Stdio;
use std::time::Duration;

use chaos::lab::{EtcdSecurity, Lab, Port};
use chaos::session::Session;
use proto::spec::CanaryWhen;
use store::clock;
use system_tests::{dsn, scene};
use tokio::process::Child;
use tokio::time::sleep;

use crate::live_drills::{BOUND, drill, ran};

fn runner(lab: &Lab, way: &str, root: &str) -> Child {
    let mut command = drill(lab, &["runner", "--dsn", way, "--sslrootcert", root]);
    command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}

/// Waits until a report of the canary says so, and returns it.
async fn canary(
    lab: &Lab,
    what: &str,
    says: impl Fn(&serde_json::Value) -> bool,
) -> serde_json::Value {
    let deadline = clock::now() + BOUND;
    loop {
        let report = ran(lab, &["report"]).await;
        if says(&report) {
            return report;
        }
        assert!(clock::now() < deadline, "{what}: {report}");
        sleep(Duration::from_secs(1)).await;
    }
}

/// All sessions of the application are those of canaries, and by TLS; a server that cannot prove itself is not written to.
async fn by_tls_only(lab: &Lab, way: &str) {
    let primary = lab.cluster().await.unwrap().service().unwrap().1;
    let superuser = lab.superuser(&primary).await.unwrap();
    let deadline = clock::now() + BOUND;
    loop {
        let row = superuser
            .client()
            .query_one(
                "SELECT count(*), count(*) FILTER (WHERE ssl) FROM pg_stat_activity JOIN pg_stat_ssl USING (pid)
                    WHERE usename = 'demo'",
                &[],
            )
            .await
            .unwrap();
        let (all, by_tls): (i64, i64) = (row.get(0), row.get(1));
        assert_eq!(all, by_tls, "a session without TLS");
        if all > 0 {
            break;
        }
        assert!(clock::now() < deadline, "nobody writes");
        sleep(Duration::from_millis(100)).await;
    }
    let stranger = lab.issue_certificate("stranger", 1).unwrap().certificate;
    let stranger = stranger.display().to_string();
    let words = ["run", "walreceiver", "--dsn", way, "--sslrootcert", &stranger];
    let refused = ran(lab, &words).await;
    assert_eq!(refused["verdict"], "refused", "{refused}");
    assert!(refused["reasons"].to_string().contains("the canary cannot write"), "{refused}");
}

/// Returns the runs in the table, and from when to when each was written, in their order.
async fn runs(session: &Session) -> Vec<(i64, f64, f64)> {
    let rows = session
        .client()
        .query(
            "SELECT count(*), extract(epoch FROM min(written))::float8, extract(epoch FROM max(written))::float8
                FROM pgdeputy_drill.canary GROUP BY run ORDER BY min(written)",
            &[],
        )
        .await
        .unwrap();
    rows.iter().map(|row| (row.get(0), row.get(1), row.get(2))).collect()
}

/// Waits until so many more canaries are in the table, and returns how many there are.
async fn more(session: &Session, canaries: i64) -> i64 {
    let count = async || runs(session).await.iter().map(|run| run.0).sum::<i64>();
    let (until, deadline) = (count().await + canaries, clock::now() + BOUND);
    loop {
        let now = count().await;
        if now >= until {
            return now;
        }
        assert!(clock::now() < deadline, "no canary is written any more");
        sleep(Duration::from_millis(200)).await;
    }
}

/// Without etcd the runner writes on, in the run that it had begun.
async fn writes_on_without_etcd(lab: &mut Lab, session: &Session, first: &serde_json::Value) {
    more(session, 2).await;
    lab.kill_etcd().unwrap();
    more(session, 8).await;
    lab.start_etcd().await.unwrap();
    lab.wait_redundant(BOUND).await.unwrap();
    more(session, 2).await;
    assert_eq!(runs(session).await.len(), 1, "one run, before and after");
    let report = ran(lab, &["report"]).await;
    assert_eq!(report["canary_runner"], *first, "{report}");
}

/// Returns how much WAL a canary costs on a cluster that does nothing else, in bytes.
async fn cost(lab: &Lab, session: &Session) {
    let primary = lab.cluster().await.unwrap().service().unwrap().1;
    let superuser = lab.superuser(&primary).await.unwrap();
    let at = async || {
        let position = "SELECT pg_current_wal_lsn()::text";
        superuser.client().query_one(position, &[]).await.unwrap().get::<_, String>(0)
    };
    let (from, before) = (at().await, more(session, 0).await);
    let written = more(session, 10).await - before;
    let to = at().await;
    let bytes = "SELECT pg_wal_lsn_diff($1::text::pg_lsn, $2::text::pg_lsn)::float8";
    let bytes: f64 = superuser.client().query_one(bytes, &[&to, &from]).await.unwrap().get(0);
    let size = "SELECT pg_total_relation_size('pgdeputy_drill.canary')";
    let size: i64 = session.client().query_one(size, &[]).await.unwrap().get(0);
    eprintln!(
        "{written} canaries cost {bytes} bytes of WAL, all else included; the table has {size}"
    );
}

#[tokio::test]
#[ignore = "waits for a lease of 30 s: make test-long"]
async fn one_runner_writes_the_canary_and_the_next_one_when_it_is_gone_and_nothing_is_lost() {
    let mut scene = scene(|config| {
        config.spec.drills.canary = CanaryWhen::Always;
        config.etcd_security = EtcdSecurity::TlsAndUsers;
        config.members_by_tls = true;
    })
    .await;
    let lab = &mut scene.lab;
    lab.wait_redundant(BOUND).await.unwrap();
    lab.prepare_database().await.unwrap();
    let way = dsn(&lab.application_by(&Port::Write).unwrap());
    let root = lab.etcd_flags().into_iter().find(|(flag, _)| *flag == "--etcd-ca").unwrap().1;
    let mut runners: Vec<Child> = (0..3).map(|_| runner(lab, &way, &root)).collect();
    let writes = |report: &serde_json::Value| report["canary_runner"].is_string();
    let first = canary(lab, "a runner writes", writes).await["canary_runner"].clone();
    by_tls_only(lab, &way).await;
    let session = Session::open(&lab.application_by(&Port::Write).unwrap(), BOUND).await.unwrap();
    writes_on_without_etcd(lab, &session, &first).await;
    drop(session);

    let (before, primary) = lab.cluster().await.unwrap().service().unwrap();
    lab.kill_member(&primary).unwrap();
    lab.wait_served_after(before, BOUND).await.unwrap();
    lab.member_gone(&primary).await.unwrap();
    lab.start_member(&primary).unwrap();
    lab.wait_redundant(BOUND).await.unwrap();

    let pid: u32 = first.as_str().unwrap().split(':').nth(1).unwrap().parse().unwrap();
    let holder = runners.iter_mut().find(|r| r.id() == Some(pid)).expect("it is one of the three");
    holder.kill().await.unwrap();
    let another = |report: &serde_json::Value| {
        let now = &report["canary_runner"];
        now.is_string() && *now != first && report["canary"]["runner"] == *now
    };
    let taken = canary(lab, "another one writes", another).await;
    let known = taken["canary"]["acknowledged"].as_u64().unwrap();

    let session = Session::open(&lab.application_by(&Port::Write).unwrap(), BOUND).await.unwrap();
    cost(lab, &session).await;
    let runs = runs(&session).await;
    eprintln!("runs: {runs:?}");
    assert_eq!(runs.len(), 2, "one of each runner");
    assert!(runs[0].2 < runs[1].1, "never two at a time: {runs:?}");
    assert!(runs[0].0 > 0 && runs[1].0 >= 10, "{runs:?}");

    // Who is asked to stop proves its own first, and gives the right to write up at once.
    let now = taken["canary_runner"].as_str().unwrap().to_owned();
    let pid: i32 = now.split(':').nth(1).unwrap().parse().unwrap();
    let stopped = runners.iter_mut().find(|r| r.id() == Some(pid.cast_unsigned())).unwrap();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGTERM)
        .unwrap();
    assert!(stopped.wait().await.unwrap().success());
    let told = canary(lab, "what it has seen is told", |report| {
        report["canary"]["acknowledged"].as_u64().is_some_and(|told| told >= known + 10)
    })
    .await;
    assert_eq!(
        (&told["canary"]["lost"], &told["canary"]["unproven"]),
        (&0.into(), &0.into()),
        "{told}"
    );
    assert!(told["canary"]["losses"].as_array().unwrap().is_empty(), "{told}");
}
