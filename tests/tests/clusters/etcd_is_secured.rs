//! etcd asks for TLS, a certificate and a login, of every role and every command. A cluster under load fails over with
//! it; who comes with something wrong is told what, and changes nothing.

#![allow(clippy::unwrap_used, reason = "a test may panic, also in its helpers")]

use std::collections::BTreeMap;
use std::time::Duration;

use chaos::evidence::Watchers;
use chaos::lab::{CLUSTER, EtcdSecurity, Lab};
use chaos::verdict::judge;
use proto::report::RejoinBy;
use proto::{MemberName, MemberReport};
use store::clock;
use system_tests::attempt::{Intruder, attempt, command};
use system_tests::scene;
use tokio::task::JoinSet;

const FAILURE: i32 = 1;

const BOUND: Duration = Duration::from_secs(120);

type Flags = BTreeMap<&'static str, String>;

/// Something wrong in how etcd is reached, and what is to be said of it.
struct Wrong {
    flags: Flags,
    words: &'static [&'static str],
}

fn wrongs(lab: &Lab) -> Vec<Wrong> {
    let right: Flags = lab.etcd_flags().into_iter().collect();
    let changed = |more: &[(&'static str, String)]| {
        let mut flags = right.clone();
        flags.extend(more.iter().cloned());
        flags
    };
    let late = lab.issue_certificate("late", -1).unwrap();
    let password = lab.private_directory("wrong").unwrap().join("password");
    std::fs::write(&password, "wr0ng\n").unwrap();
    let mut nobody = right.clone();
    nobody.retain(|flag, _| !["--etcd-user", "--etcd-password-file"].contains(flag));
    vec![
        Wrong {
            flags: changed(&[
                ("--etcd-cert", late.certificate.display().to_string()),
                ("--etcd-key", late.key.display().to_string()),
            ]),
            words: &["refuses the certificate", "openssl x509", "late.pem"],
        },
        Wrong {
            flags: changed(&[("--etcd-password-file", password.display().to_string())]),
            words: &["authentication failed", "pgdeputy", "--etcd-password-file"],
        },
        Wrong { flags: nobody, words: &["client.pem", "not read /pgdeputy/demo/"] },
    ]
}

fn with(role: &[&str], flags: &Flags) -> Vec<String> {
    let mut words: Vec<String> = role.iter().map(|&word| word.to_owned()).collect();
    words.extend(["--cluster".to_owned(), CLUSTER.to_owned()]);
    words.extend(flags.iter().flat_map(|(flag, value)| [(*flag).to_owned(), value.clone()]));
    words
}

/// A keeper, a sentinel, a proxy-config and a command, all at once: some ask for seconds before they give up.
async fn is_refused_to_every_role(lab: &mut Lab, wrong: Wrong) {
    let directory = lab.private_directory("refused-proxy").unwrap();
    let file = |name: &str| directory.join(name).display().to_string();
    let (config, socket) = (file("haproxy.cfg"), file("haproxy.sock"));
    let proxy = ["--haproxy-config", &config, "--haproxy-socket", &socket];
    let proxy = [&["proxy-config", "--write-port", "7", "--read-port", "8"][..], &proxy].concat();
    let mut attempts = JoinSet::new();
    for role in [&["sentinel"][..], &["status"], &["switchover"], proxy.as_slice()] {
        let words = with(role, &wrong.flags);
        attempts.spawn(async move { attempt(&words).await });
    }
    let mut keeper = Intruder::new(lab, "z");
    keeper.arguments.retain(|flag, _| !flag.starts_with("--etcd"));
    keeper.arguments.extend(wrong.flags.clone());
    let mut refusals = vec![keeper.is_refused().await];
    while let Some(refusal) = attempts.join_next().await {
        refusals.push(refusal.unwrap());
    }
    for refusal in refusals {
        refusal.says(FAILURE, wrong.words);
        assert!(!refusal.stderr.contains("wr0ng"), "{}", refusal.stderr);
    }
    assert!(!directory.join("haproxy.cfg").exists());
    std::fs::remove_dir(directory).unwrap();
    std::fs::remove_dir(keeper.directory()).unwrap();
}

/// Every standby receives by TLS, who came back did not need all WAL of its source for it, and nobody replicates without.
async fn members_speak_tls_only(lab: &Lab, primary: &MemberName, back: &MemberReport) {
    let session = lab.superuser(primary).await.unwrap();
    let row = session
        .client()
        .query_one(
            "SELECT count(*), count(*) FILTER (WHERE ssl) FROM pg_stat_replication JOIN pg_stat_ssl USING (pid)",
            &[],
        )
        .await
        .unwrap();
    assert_eq!((row.get::<_, i64>(0), row.get::<_, i64>(1)), (2, 2), "receivers, and those by TLS");
    let rules = session
        .client()
        .query_one(
            "SELECT count(*) FROM pg_hba_file_rules WHERE type = 'host' AND auth_method <> 'reject'
                AND 'pgdeputy_replication' = ANY(user_name)",
            &[],
        )
        .await
        .unwrap();
    assert_eq!(rules.get::<_, i64>(0), 0);
    let rejoin = back.rejoin.as_ref().expect("it came back");
    eprintln!("under TLS: back by {:?}, {:?}", rejoin.by, rejoin.details.copied_bytes);
    assert_eq!(rejoin.details.without_gateway, None, "{rejoin:?}");
    assert_ne!(rejoin.by, RejoinBy::Copy, "{rejoin:?}");
}

#[tokio::test]
async fn a_cluster_with_certificates_and_users_fails_over_and_who_is_not_let_in_changes_nothing() {
    let mut scene = scene(|config| {
        config.etcd_security = EtcdSecurity::TlsAndUsers;
        config.members_by_tls = true;
    })
    .await;
    let lab = &mut scene.lab;
    lab.wait_redundant(BOUND).await.unwrap();
    let watchers = Watchers::start(lab, 4).await.unwrap();
    let steady_from = clock::now();
    watchers.load.acknowledged_count(500, BOUND).await.unwrap();
    let (before, primary) = lab.cluster().await.unwrap().service().unwrap();

    // With a restart of etcd all logins end that it has given out.
    lab.kill_etcd().unwrap();
    lab.start_etcd().await.unwrap();
    lab.wait_redundant(BOUND).await.unwrap();
    watchers.load.acknowledged_after(clock::now(), BOUND).await.unwrap();
    assert_eq!(lab.cluster().await.unwrap().service().unwrap().0, before, "no role changed");
    let told = watchers.load.told();
    assert_eq!(told.unknown, told.overdue, "no session was cut");

    let struck = lab.kill_member(&primary).unwrap().at;
    let (_, next) = lab.wait_served_after(before, BOUND).await.unwrap();
    assert_ne!(next, primary);
    watchers.load.acknowledged_after(clock::now(), BOUND).await.unwrap();
    let gap = watchers.load.told().longest_gap(struck, clock::now());
    eprintln!("under TLS, the primary's member lost: longest write gap {gap:?}");
    lab.member_gone(&primary).await.unwrap();
    lab.start_member(&primary).unwrap();
    let back = lab.wait_redundant(BOUND).await.unwrap();
    members_speak_tls_only(lab, &next, &back.reports[&primary]).await;
    let (evidence, _) = watchers.finish(lab, (steady_from, struck)).await.unwrap();
    let verdict = judge(&evidence);
    assert!(verdict.lost.is_empty() && verdict.dual.is_empty(), "{verdict:?}");

    for words in [&["status"][..], &["explain"], &["history"], &["dsn"], &["switchover"]] {
        let done = command(lab, words).await;
        assert_eq!(done.status, Some(0), "{words:?}: {done:?}");
    }
    let before = lab.wait_redundant(BOUND).await.unwrap();
    for wrong in wrongs(lab) {
        is_refused_to_every_role(lab, wrong).await;
    }
    let after = lab.cluster().await.unwrap();
    assert_eq!(after.state, before.state);
    assert_eq!(after.reports.len(), before.reports.len(), "nobody has joined");
}
