//! What a keeper may be started with, and what is refused before anything is opened.

use clap::Parser;

use super::*;

#[derive(Parser)]
struct Line {
    #[command(flatten)]
    args: KeeperArgs,
}

const USUAL: &[&str] = &[
    "keeper",
    "--cluster=demo",
    "--member=a",
    "--etcd=http://127.0.0.1:2379,http://127.0.0.1:2381",
    "--data-dir=/srv/pg/data/",
    "--listen=127.0.0.1:5432",
    "--http=127.0.0.1:8008",
];

fn given(more: &[&str]) -> KeeperArgs {
    Line::try_parse_from(USUAL.iter().chain(more)).unwrap_or_else(|e| panic!("{e}")).args
}

fn refused(more: &[&str]) -> String {
    config(given(more), |_| None).unwrap_err().line()
}

#[test]
fn the_state_directory_is_beside_the_data_directory_unless_it_is_named() {
    let usual = config(given(&[]), |_| None).unwrap();
    assert_eq!(usual.data_dir, Path::new("/srv/pg/data"));
    assert_eq!(usual.state_dir, Path::new("/srv/pg/data.pgdeputy"));
    assert_eq!(usual.etcd.endpoints, ["http://127.0.0.1:2379", "http://127.0.0.1:2381"]);
    assert_eq!(usual.secrets, SecretsSource::default());
    let named = config(given(&["--state-dir=/srv/./state"]), |_| None).unwrap();
    assert_eq!(named.state_dir, Path::new("/srv/state"));
}

#[test]
fn directories_that_cannot_be_are_refused_with_the_remedy() {
    assert!(refused(&["--state-dir=/srv/pg/data/state"]).contains("put it beside"));
    assert!(refused(&["--state-dir=/srv/pg/data"]).contains("put it beside"));
    assert!(refused(&["--state-dir=/"]).contains("below the root"));
    assert!(
        refused(&[&format!("--state-dir=/{}", "x".repeat(90))]).contains("shorter --state-dir")
    );
    assert!(refused(&["--postgres-bin=/srv"]).contains("no program `postgres`"));
}

#[test]
fn two_services_on_one_address_are_refused() {
    let mut args = given(&[]);
    args.http = args.listen.clone();
    assert!(config(args, |_| None).unwrap_err().line().contains("use two ports"));
}

#[test]
fn passwords_are_given_for_all_three_roles_or_for_none() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let flag = format!("--superuser-password-file={}", file.path().display());
    let problem = refused(&[&flag]);
    assert!(problem.contains("no password for replication and rewind"), "{problem}");
    assert!(refused(&["--rewind-password-file=/no/such/file"]).contains("no such file"));
    let mixed = config(given(&[&flag]), |_| Some("s3cret".into())).unwrap();
    assert_eq!(mixed.secrets.superuser, Some(PasswordSource::File(file.path().into())));
    assert_eq!(mixed.secrets.rewind, Some(PasswordSource::Env("s3cret".into())));
    let empty = config(given(&[]), |_| Some(String::new())).unwrap_err().line();
    assert!(empty.contains("PGDEPUTY_SUPERUSER_PASSWORD is empty"), "{empty}");
}

#[test]
fn tls_to_other_members_needs_an_authority_and_verifies_in_full_unless_told_otherwise() {
    use keeper::postgres::tls::{OwnCertificate, SslMode};
    assert_eq!(config(given(&[]), |_| None).unwrap().tls, None);
    let ca = "--sslrootcert=/etc/ca.pem";
    let tls = config(given(&[ca]), |_| None).unwrap().tls.unwrap();
    assert_eq!((tls.mode, tls.own), (SslMode::VerifyFull, None));
    let own = ["--sslcert=/etc/own.pem", "--sslkey=/etc/own.key"];
    let tls = config(given(&[ca, own[0], own[1], "--sslmode=verify-ca"]), |_| None).unwrap().tls;
    let own_files =
        OwnCertificate { certificate: "/etc/own.pem".into(), key: "/etc/own.key".into() };
    assert_eq!(tls.map(|t| (t.mode, t.own)), Some((SslMode::VerifyCa, Some(own_files))));
    assert!(refused(&[ca, own[0]]).contains("give both"));
    for alone in [&own[..], &["--sslmode=verify-full"]] {
        assert!(refused(alone).contains("need --sslrootcert"));
    }
    assert!(Line::try_parse_from(USUAL.iter().chain(&["--sslmode=require"])).is_err());
}

#[test]
fn root_becomes_postgres_by_itself_and_stays_root_for_nobody() {
    assert!(user(Some("root"), true).unwrap_err().line().contains("refuses to run as root"));
    assert!(user(Some("no-such-user"), true).unwrap_err().line().contains("no such user"));
    assert_eq!(user(None, false).unwrap(), None);
    if User::from_name("postgres").unwrap().is_some() {
        assert_eq!(user(None, true).unwrap().as_deref(), Some("postgres"));
    }
}

#[test]
fn a_keeper_that_a_service_manager_has_started_is_left_to_it() {
    let systemd = |name: &str| (name == "SYSTEMD_EXEC_PID").then(|| "7".to_owned());
    assert!(!RestartKeeper::Auto.by_fencer(7, systemd));
    assert!(RestartKeeper::Auto.by_fencer(8, systemd), "systemd started its parent");
    assert!(RestartKeeper::Auto.by_fencer(7, |_| None));
    assert!(RestartKeeper::Always.by_fencer(7, systemd));
    assert!(!RestartKeeper::Never.by_fencer(7, |_| None));
}
