//! TLS, client certificates and users for the lab's etcd, by the `openssl` of the system and etcd's own tool.
//!
//! The one rule: keys and passwords lie in files that only the keepers' user may read, and stand on no command line.

use std::io::Write;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, ensure};
use proto::ClusterSpec;
use store::etcd::{ClientCertificate, EtcdAccess, Login};

use super::commands::{self, Addresses};
use super::config::Layout;
use super::home::Home;

/// Whom the lab's etcd answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EtcdSecurity {
    /// Everybody, without TLS.
    None,
    /// Who shows a certificate of the lab's authority and logs in.
    TlsAndUsers,
}

/// As whom the lab's processes log in.
const USER: &str = "pgdeputy";

/// etcd's own administrator, which it must have before it asks for users.
pub const ROOT: &str = "root";

/// Longer than any lab lives.
const DAYS: i32 = 2;

/// Makes the authority, the certificates of server and clients, and the passwords. Returns how etcd is reached.
pub fn prepare(
    home: &Home,
    endpoints: Vec<String>,
    hosts: &[Ipv4Addr],
) -> anyhow::Result<EtcdAccess> {
    let directory = directory(&home.layout);
    home.make_private(&directory)?;
    let hosts: Vec<String> = hosts.iter().map(|host| format!("IP:{host}")).collect();
    let hosts = hosts.join(",");
    let usage = format!("subjectAltName={hosts}\nextendedKeyUsage=serverAuth,clientAuth\n");
    home.write_private(&directory.join(USAGE), &usage)?;
    let ca = directory.join("ca.pem");
    let mut command = new_key("authority", &directory.join("ca.key"));
    run(command.args(["-x509", "-days", &DAYS.to_string(), "-out"]).arg(&ca))?;
    issue(home, "etcd", DAYS)?;
    // Not the name of a user: it opens the door, and the login says who comes in.
    let certificate = issue(home, "client", DAYS)?;
    for user in [USER, ROOT] {
        let password = format!("{:032x}\n", rand::random::<u128>());
        home.write_private(&password_file(&home.layout, user), &password)?;
    }
    home.hand_over(&ca)?;
    let login = Login { user: USER.to_owned(), password_file: password_file(&home.layout, USER) };
    Ok(EtcdAccess { endpoints, ca: Some(ca), certificate: Some(certificate), login: Some(login) })
}

/// Issues a certificate of the lab's authority for `name`; with a negative number of days it has expired.
pub fn issue(home: &Home, name: &str, days: i32) -> anyhow::Result<ClientCertificate> {
    let directory = directory(&home.layout);
    let [request, key, certificate] =
        ["csr", "key", "pem"].map(|kind| directory.join(format!("{name}.{kind}")));
    run(new_key(name, &key).arg("-out").arg(&request))?;
    let mut command = Command::new("openssl");
    command.args(["x509", "-req", "-set_serial", "7", "-days", &days.to_string()]);
    command.arg("-in").arg(&request).arg("-extfile").arg(directory.join(USAGE));
    command.arg("-CA").arg(directory.join("ca.pem")).arg("-CAkey").arg(directory.join("ca.key"));
    run(command.arg("-out").arg(&certificate))?;
    home.hand_over(&key)?;
    home.hand_over(&certificate)?;
    Ok(ClientCertificate { certificate, key })
}

/// Gives every member's PostgreSQL one certificate, which is for the hosts of etcd: on the loopback network that is one
/// host. Fails where etcd has no certificates.
pub fn let_postgres_speak_tls(home: &Home, spec: &mut ClusterSpec) -> anyhow::Result<()> {
    let shown = issue(home, "postgres", DAYS).context("make a certificate for PostgreSQL")?;
    let text = |path: &Path| path.to_string_lossy().into_owned();
    spec.postgres.parameters.extend([
        ("ssl".to_owned(), "on".to_owned()),
        ("ssl_cert_file".to_owned(), text(&shown.certificate)),
        ("ssl_key_file".to_owned(), text(&shown.key)),
    ]);
    Ok(())
}

/// What etcd itself shows, where the lab has certificates.
pub fn server(layout: &Layout) -> ClientCertificate {
    let file = |kind: &str| directory(layout).join(format!("etcd.{kind}"));
    ClientCertificate { certificate: file("pem"), key: file("key") }
}

/// The file with the password of one of etcd's users.
pub fn password_file(layout: &Layout, user: &str) -> PathBuf {
    directory(layout).join(format!("{user}.password"))
}

/// Makes the users, gives the lab's one its rights, and has etcd ask for users from now on.
pub fn make_users(layout: &Layout, addresses: &Addresses) -> anyhow::Result<()> {
    let etcdctl = |words: &str, input: &str| {
        let mut command = commands::etcdctl(layout, addresses, "etcdctl")?;
        with_input(command.args(words.split(' ')), input)
    };
    for user in [ROOT, USER] {
        let file = password_file(layout, user);
        let password =
            std::fs::read_to_string(&file).with_context(|| format!("read {}", file.display()))?;
        etcdctl(&format!("user add {user} --interactive=false"), &password)?;
    }
    for words in [
        "user grant-role root root",
        "role add deputy",
        "role grant-permission deputy readwrite --prefix /pgdeputy/",
        "user grant-role pgdeputy deputy",
        "auth enable",
    ] {
        etcdctl(words, "")?;
    }
    Ok(())
}

/// How the certificates may be used.
const USAGE: &str = "usage.ext";

fn directory(layout: &Layout) -> PathBuf {
    layout.process("etcd-access")
}

fn new_key(name: &str, key: &Path) -> Command {
    let mut command = Command::new("openssl");
    command.args(["req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]);
    command.args(["-subj", &format!("/CN={name}"), "-keyout"]).arg(key);
    command
}

fn run(command: &mut Command) -> anyhow::Result<()> {
    let done = command.output().context("start openssl: run `make deps`")?;
    let said = String::from_utf8_lossy(&done.stderr);
    ensure!(done.status.success(), "{command:?} ended with {}: {said}", done.status);
    Ok(())
}

fn with_input(command: &mut Command, input: &str) -> anyhow::Result<()> {
    let mut child =
        command.stdin(Stdio::piped()).spawn().context("start etcdctl: run `make deps`")?;
    let mut stdin = child.stdin.take().context("its input was just asked for")?;
    // One that refuses its arguments has closed its input, and says why in its log.
    let _ = stdin.write_all(input.as_bytes());
    drop(stdin);
    let status = child.wait()?;
    ensure!(status.success(), "{command:?} ended with {status}");
    Ok(())
}
