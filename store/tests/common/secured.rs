//! An etcd that asks for TLS, for client certificates, and for users.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Command;

use store::etcd::{ClientCertificate, EtcdAccess, Login};
use tempfile::TempDir;

use super::etcd::{Etcd, own_address, own_addresses};

/// Makes certificates, with the `openssl` of the system.
pub struct Authority {
    directory: TempDir,
}

impl Authority {
    pub fn new() -> Self {
        let authority = Self { directory: TempDir::with_prefix("pgdeputy-ca-").unwrap() };
        let (key, ca) = (authority.path("ca.key"), authority.ca());
        let mut command = new_key("ca", &key);
        command.args(["-x509", "-days", "2", "-out"]).arg(ca);
        run(&mut command);
        authority
    }

    pub fn ca(&self) -> PathBuf {
        self.path("ca.pem")
    }

    /// Issues a certificate for `name`, good at every address of this process and as a client's; with 0 days it is
    /// expired by the time that this returns.
    pub fn issue(&self, name: &str, days: u32) -> ClientCertificate {
        self.issue_for(name, days, &own_addresses())
    }

    pub fn issue_for(&self, name: &str, days: u32, hosts: &[Ipv4Addr]) -> ClientCertificate {
        let [key, request, certificate, usage] =
            ["key", "csr", "pem", "ext"].map(|kind| self.path(&format!("{name}.{kind}")));
        run(new_key(name, &key).arg("-out").arg(&request));
        let hosts: Vec<String> = hosts.iter().map(|host| format!("IP:{host}")).collect();
        let text =
            format!("subjectAltName={}\nextendedKeyUsage=serverAuth,clientAuth\n", hosts.join(","));
        std::fs::write(&usage, text).unwrap();
        let mut command = Command::new("openssl");
        command.args(["x509", "-req", "-set_serial", "7", "-days", &days.to_string()]);
        command.arg("-in").arg(&request).arg("-extfile").arg(&usage);
        command.arg("-CA").arg(self.ca()).arg("-CAkey").arg(self.path("ca.key"));
        run(command.arg("-out").arg(&certificate));
        // Certificates count in whole seconds, and are valid until the end of their last one.
        let issued = whole_seconds();
        while days == 0 && whole_seconds() == issued {
            std::thread::yield_now();
        }
        ClientCertificate { certificate, key }
    }

    /// Writes a file beside the certificates.
    pub fn file(&self, name: &str, text: &str) -> PathBuf {
        let path = self.path(name);
        std::fs::write(&path, text).unwrap();
        path
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }
}

/// An etcd with users: `root`, and `pgdeputy`, who may do anything below `/pgdeputy/`.
pub struct Secured {
    pub etcd: Etcd,
    pub authority: Authority,
    pub own: ClientCertificate,
}

impl Secured {
    /// Starts one that asks for certificates, and not yet for users.
    pub async fn start(more: &[&str]) -> Self {
        let authority = Authority::new();
        let server = authority.issue("etcd", 2);
        Self::start_as(authority, server, more).await
    }

    /// Starts one that shows `server`.
    pub async fn start_as(authority: Authority, server: ClientCertificate, more: &[&str]) -> Self {
        // Not the name of a user: with users asked for, it gives no right.
        let own = authority.issue("client", 2);
        let ca = authority.ca();
        let mut arguments = more.to_vec();
        arguments.extend(["--bcrypt-cost", "4", "--client-cert-auth"]);
        arguments.extend(["--trusted-ca-file", text(&ca)]);
        arguments.extend(["--cert-file", text(&server.certificate)]);
        arguments.extend(["--key-file", text(&server.key)]);
        let etcd = Etcd::start_tls(own_address(), &arguments).await;
        Self { etcd, authority, own }
    }

    /// Starts one with users.
    pub async fn with_users(more: &[&str]) -> Self {
        let secured = Self::start(more).await;
        secured.make_users();
        secured.etcdctl(&["auth", "enable"]);
        secured
    }

    pub fn make_users(&self) {
        for words in [
            "user add root:root-password",
            "user grant-role root root",
            "user add pgdeputy:right",
            "role add deputy",
            "role grant-permission deputy readwrite --prefix /pgdeputy/",
            "user grant-role pgdeputy deputy",
        ] {
            self.etcdctl(&words.split(' ').collect::<Vec<_>>());
        }
    }

    pub fn etcdctl(&self, words: &[&str]) {
        let mut command = Command::new("etcdctl");
        command.env("ETCDCTL_API", "3").args(["--endpoints", &self.etcd.url()]);
        command.arg("--cacert").arg(self.authority.ca());
        command.arg("--cert").arg(&self.own.certificate).arg("--key").arg(&self.own.key);
        run(command.args(words));
    }

    /// As root, where users are asked for.
    pub fn etcdctl_as_root(&self, words: &[&str]) {
        self.etcdctl(&[&["--user", "root:root-password"], words].concat());
    }

    /// Returns the access of somebody with a certificate and without a login.
    pub fn access(&self) -> EtcdAccess {
        EtcdAccess {
            endpoints: vec![self.etcd.url()],
            ca: Some(self.authority.ca()),
            certificate: Some(self.own.clone()),
            login: None,
        }
    }

    /// Returns the access of `user`.
    pub fn access_as(&self, user: &str, password: &str) -> EtcdAccess {
        let password_file = self.authority.file(user, &format!("{password}\n"));
        EtcdAccess { login: Some(Login { user: user.into(), password_file }), ..self.access() }
    }
}

fn new_key(name: &str, key: &Path) -> Command {
    let mut command = Command::new("openssl");
    command.args(["req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]);
    command.args(["-subj", &format!("/CN={name}"), "-keyout"]).arg(key);
    command
}

fn whole_seconds() -> i64 {
    store::clock::wall().0 / 1000
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn run(command: &mut Command) {
    let done = command.output().unwrap_or_else(|e| panic!("{command:?}: {e}; run make deps"));
    assert!(done.status.success(), "{command:?}: {}", String::from_utf8_lossy(&done.stderr));
}
