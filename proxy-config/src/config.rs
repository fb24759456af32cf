//! What one proxy-config is told at start, and what of it is refused before any file is written.

use std::collections::BTreeSet;
use std::net::Ipv6Addr;
use std::path::{Path, PathBuf};

use anyhow::ensure;
use proto::ClusterName;

use crate::pgbouncer::{PgbouncerConfig, instance};

/// What one proxy-config is told at start.
#[derive(Debug, Clone)]
pub struct Config {
    pub cluster: ClusterName,
    /// Where etcd is, and as whom it is asked.
    pub etcd: store::EtcdAccess,
    /// Tells apart the proxy-configs of one cluster.
    pub id: String,
    /// The HAProxy that is kept in line, if there is one.
    pub haproxy: Option<HaproxyConfig>,
    /// The PgBouncers that are kept in line, if there are any.
    pub pgbouncer: Option<PgbouncerConfig>,
}

/// One HAProxy: its files, its ports, and how it is told.
#[derive(Debug, Clone)]
pub struct HaproxyConfig {
    /// The file that HAProxy is started with: all of it is written here.
    pub file: PathBuf,
    /// HAProxy's runtime socket, which the file makes HAProxy open.
    pub socket: PathBuf,
    pub write_port: u16,
    pub read_port: u16,
    /// The address that HAProxy listens on, such as `127.0.0.1` or `*`.
    pub bind: String,
    /// The command that makes HAProxy read its file again, run by `sh -c`.
    pub reload: Option<String>,
}

impl Config {
    /// Checks all that can be wrong without asking anybody.
    pub fn check(&self) -> anyhow::Result<()> {
        ensure!(
            self.haproxy.is_some() || self.pgbouncer.is_some(),
            "there is nothing to keep in line: give --haproxy-config and --haproxy-socket, or --pgbouncer-config and \
             --pgbouncer-admin"
        );
        self.haproxy.as_ref().map_or(Ok(()), HaproxyConfig::check)?;
        self.pgbouncer.as_ref().map_or(Ok(()), PgbouncerConfig::check)
    }
}

impl PgbouncerConfig {
    fn check(&self) -> anyhow::Result<()> {
        check_path("--pgbouncer-config", &self.file)?;
        let directory = self.file.parent().unwrap_or(&self.file);
        ensure!(
            directory.is_dir(),
            "--pgbouncer-config {:?}: its directory does not exist: make it, writable for this user",
            self.file
        );
        ensure!(
            !self.consoles.is_empty(),
            "--pgbouncer-admin is missing: say where PgBouncer's console is"
        );
        let consoles: BTreeSet<String> = self.consoles.iter().map(instance::name).collect();
        ensure!(
            consoles.len() == self.consoles.len(),
            "--pgbouncer-admin names one PgBouncer twice: give each of them once"
        );
        ensure!(
            !self.wishes.databases.is_empty(),
            "--pgbouncer-database is missing: name a database, or * for all"
        );
        let mut names = BTreeSet::new();
        let databases = &self.wishes.databases;
        for name in databases
            .iter()
            .map(|d| &d.name)
            .chain(databases.iter().filter_map(|d| d.reads.as_ref()))
        {
            ensure!(names.insert(name), "--pgbouncer-database: two entries would be named {name}");
        }
        let mut users = BTreeSet::new();
        let twice = self.wishes.users.iter().find(|user| !users.insert(&user.name));
        ensure!(twice.is_none(), "--pgbouncer-user: one user has two entries");
        Ok(())
    }
}

impl HaproxyConfig {
    fn check(&self) -> anyhow::Result<()> {
        ensure!(
            self.write_port != self.read_port,
            "--write-port and --read-port are both {}: choose two ports",
            self.write_port
        );
        check_path("--haproxy-config", &self.file)?;
        check_path("--haproxy-socket", &self.socket)?;
        let directory = self.file.parent().unwrap_or(&self.file);
        ensure!(
            directory.is_dir(),
            "--haproxy-config {:?}: its directory does not exist: make it, writable for this user",
            self.file
        );
        ensure!(
            self.socket.as_os_str().len() <= 90,
            "--haproxy-socket {:?} is longer than the 90 characters that HAProxy can bind: use a shorter path",
            self.socket
        );
        let bind = &self.bind;
        ensure!(
            !bind.is_empty() && is_plain(bind),
            "bind address {bind:?}: use an address of this host, or *"
        );
        Ok(())
    }

    /// Returns the address to listen on as HAProxy writes it.
    pub fn bind_address(&self) -> String {
        match self.bind.parse::<Ipv6Addr>() {
            Ok(address) => format!("[{address}]"),
            Err(_) => self.bind.clone(),
        }
    }
}

/// It is written into a file whose words end at a space.
fn check_path(flag: &str, path: &Path) -> anyhow::Result<()> {
    let fits = path.is_absolute() && path.to_str().is_some_and(is_plain);
    ensure!(fits, "{flag} {path:?}: use an absolute path of letters, digits and / . _ -");
    Ok(())
}

fn is_plain(text: &str) -> bool {
    text.bytes().all(|b| b.is_ascii_alphanumeric() || b"/._-:*+@".contains(&b))
}
