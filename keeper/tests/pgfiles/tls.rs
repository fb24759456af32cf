//! A source that lets members in by TLS only: each way of reaching it works with the right authority, and with a wrong one
//! none says a word of a password.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use keeper::postgres::copy::{CopyTerms, base_backup};
use keeper::postgres::rewind::{Damage, RewindOutcome};
use keeper::postgres::rewindable::ask_other;
use keeper::postgres::source::Source;
use keeper::postgres::tls::{OwnCertificate, SslMode, Tls};
use keeper::postgres::walsender::Walsender;
use proto::{Lsn, Timeline};

use crate::cluster::{Cluster, PASSWORD, binaries, own};
use crate::delta::{Notes, diverged, fork, joins_equal, rejoin_by, through_gateway};

/// Runs openssl with these words in `dir`.
fn openssl(dir: &Path, words: &str) {
    let mut command = Command::new("openssl");
    command.args(words.split(' ')).current_dir(dir).stdin(Stdio::null());
    let done = command.output().expect("openssl is missing: run make deps");
    assert!(done.status.success(), "{words}: {}", String::from_utf8_lossy(&done.stderr));
}

const NEW_KEY: &str = "req -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes";

/// Makes an authority named `name`.
fn authority(dir: &Path, name: &str) -> PathBuf {
    openssl(
        dir,
        &format!("{NEW_KEY} -subj /CN={name} -x509 -days 2 -keyout {name}.key -out {name}.pem"),
    );
    let file = dir.join(format!("{name}.pem"));
    own(&file);
    file
}

/// Issues a certificate of authority `by` for the address `host`.
fn issue(dir: &Path, by: &str, name: &str, host: &str) -> OwnCertificate {
    fs::write(dir.join("extensions"), format!("subjectAltName=IP:{host}\n")).unwrap();
    openssl(dir, &format!("{NEW_KEY} -subj /CN={name} -keyout {name}.key -out {name}.csr"));
    openssl(
        dir,
        &format!(
            "x509 -req -set_serial 7 -days 2 -in {name}.csr -extfile extensions -CA {by}.pem -CAkey {by}.key -out {name}.pem"
        ),
    );
    let [certificate, key] = ["pem", "key"].map(|kind| dir.join(format!("{name}.{kind}")));
    for file in [&certificate, &key] {
        fs::set_permissions(file, Permissions::from_mode(0o600)).unwrap();
        own(file);
    }
    OwnCertificate { certificate, key }
}

/// An address of this test alone, so that the port is free.
fn address() -> String {
    let pid = std::process::id();
    format!("127.{}.{}.{}", 64 + (pid >> 16) % 64, (pid >> 8) & 255, 1 + (pid & 127))
}

/// Has `source` listen at `host` and let nobody in there but by TLS with a certificate of `by`.
async fn demands_tls(source: &mut Cluster, host: &str, by: &str) {
    source.stop().await;
    let shown = issue(source.root(), by, "server", host);
    let conf = source.data.join("postgresql.auto.conf");
    let text = format!(
        "ssl = on\nssl_cert_file = '{}'\nssl_key_file = '{}'\nssl_ca_file = '{}'\n",
        shown.certificate.display(),
        shown.key.display(),
        source.root().join(format!("{by}.pem")).display()
    );
    fs::write(&conf, text).unwrap();
    let hba = source.data.join("pg_hba.conf");
    let lines = "local all all scram-sha-256\n\
                 local replication all scram-sha-256\n\
                 hostssl all all all scram-sha-256 clientcert=verify-ca\n\
                 hostssl replication all all scram-sha-256 clientcert=verify-ca\n";
    fs::write(&hba, lines).unwrap();
    source.address = host.to_owned();
    source.start().await;
}

/// Gives the running `source` a certificate for `host`, and waits until it shows that.
async fn shows<F: Future<Output = bool>>(source: &Cluster, host: &str, seen: impl Fn() -> F) {
    issue(source.root(), "right", "server", host);
    source.sql("SELECT pg_reload_conf()");
    let deadline = store::clock::now() + Duration::from_secs(60);
    while !seen().await {
        assert!(store::clock::now() < deadline, "the new certificate is not shown");
    }
}

/// Returns what each of our own connections says to `source`: probes, replication, and the gateway's.
async fn refusals(old: &Cluster, source: &Source, expected: (Timeline, Lsn)) -> [String; 3] {
    let probe = ask_other(source, PASSWORD).await.map(drop).unwrap_err();
    let Err(walsender) = Walsender::connect(source, PASSWORD).await else { panic!("let in") };
    let outcome = rejoin_by(old, source, expected, &Notes::default(), |_| {}).await;
    let RewindOutcome::Failed(failure) = outcome else { panic!("{outcome:?}") };
    assert_eq!(failure.damage, Damage::None);
    [format!("{probe:#}"), format!("{walsender:#}"), failure.problem]
}

async fn is_refused(old: &Cluster, source: &Source, expected: (Timeline, Lsn), words: &str) {
    for told in refusals(old, source, expected).await {
        assert!(told.contains(words), "{told}");
    }
    let copy = old.root().join("copy");
    let copied = base_backup(&binaries(), source, &copy, &CopyTerms::default(), |_| {}).await;
    println!("{words}: pg_basebackup says {:#}", copied.unwrap_err());
}

#[tokio::test]
#[ignore = "make test-long: a server is started four times; clusters::etcd_is_secured has TLS between its members"]
async fn with_tls_every_way_to_a_source_works_and_a_server_that_proves_nothing_hears_nothing() {
    let (mut old, mut new) = diverged(3).await;
    let expected = fork(&old, &new);
    let plain = Source { host: address(), ..new.source() };
    let (right, wrong) = (authority(new.root(), "right"), authority(new.root(), "wrong"));
    let client = issue(new.root(), "right", "client", &plain.host);
    let with = |mode, root: &Path, own| {
        let tls = Tls { mode, root: root.to_owned(), own };
        Source { tls: Some(tls), ..plain.clone() }
    };
    let full = with(SslMode::VerifyFull, &right, Some(client.clone()));

    // One that does not speak it is told nothing.
    new.stop().await;
    new.address = plain.host.clone();
    new.start().await;
    is_refused(&old, &full, expected, "speaks no TLS: set ssl").await;

    demands_tls(&mut new, &plain.host, "right").await;
    is_refused(&old, &plain, expected, "no pg_hba.conf entry").await;
    let other = with(SslMode::VerifyCa, &wrong, Some(client.clone()));
    is_refused(&old, &other, expected, "UnknownIssuer").await;
    let nobody = with(SslMode::VerifyFull, &right, None);
    is_refused(&old, &nobody, expected, "requires a valid client certificate").await;
    let missing = with(SslMode::VerifyFull, Path::new("/nonexistent"), None);
    is_refused(&old, &missing, expected, "read /nonexistent as sslrootcert").await;

    // The certificate of another host, and then that of this one again.
    let ca = with(SslMode::VerifyCa, &right, Some(client));
    shows(&new, "127.0.0.1", || async { ask_other(&full, PASSWORD).await.is_err() }).await;
    is_refused(&old, &full, expected, "not valid for name").await;
    ask_other(&ca, PASSWORD).await.unwrap();
    shows(&new, &plain.host, || async { ask_other(&full, PASSWORD).await.is_ok() }).await;

    let identity = Walsender::connect(&full, PASSWORD).await.unwrap().identify().await.unwrap();
    assert_eq!(identity.timeline, Timeline(2));
    let copy = old.root().join("copy");
    base_backup(&binaries(), &full, &copy, &CopyTerms::default(), |_| {}).await.unwrap();
    let (_, traffic) =
        through_gateway(rejoin_by(&old, &full, expected, &Notes::default(), |_| {}).await);
    println!("tls: used=gateway ours_bytes={}", traffic.bytes);
    joins_equal(&mut old, &new).await;
}
