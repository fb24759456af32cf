//! What one proxy-config is told at start, and what of it is refused before any file is written.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv6Addr;
use std::path::{Path, PathBuf};

use anyhow::{bail, ensure};
use proto::drill::LiveFault;
use proto::{ClusterName, PoolName};

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
    pub drills: Drills,
}

/// What a drill may do here.
#[derive(Debug, Clone, Default)]
pub struct Drills {
    /// What the operator of this host does not want.
    pub refused: BTreeSet<LiveFault>,
    /// Somebody starts this process again when it has ended: only then a drill may end it.
    pub restarted: bool,
    /// The command that restarts HAProxy, run by `sh -c`; without it no drill does.
    pub restart_haproxy: Option<String>,
    /// The same of the PgBouncer that PGDEPUTY_PGBOUNCER names as its console, `host:port`.
    pub restart_pgbouncer: Option<String>,
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
    /// The port for reads that must see the latest acknowledged write.
    pub fresh_port: Option<u16>,
    /// The ports of the pools that have reads of their own.
    pub pool_ports: BTreeMap<PoolName, u16>,
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
        self.check_ports()?;
        self.haproxy.as_ref().map_or(Ok(()), HaproxyConfig::check)?;
        self.pgbouncer.as_ref().map_or(Ok(()), PgbouncerConfig::check)
    }

    /// Checks that no port is given twice.
    pub fn check_ports(&self) -> anyhow::Result<()> {
        let mut taken: BTreeMap<u16, &str> = BTreeMap::new();
        for (flag, port) in self.haproxy.iter().flat_map(HaproxyConfig::ports) {
            if let Some(other) = taken.insert(port, flag) {
                bail!("{other} and {flag} are both {port}: choose two ports");
            }
        }
        Ok(())
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

    /// Returns the ports, each with the flag that sets it.
    pub fn ports(&self) -> impl Iterator<Item = (&'static str, u16)> {
        let fixed = [("--write-port", self.write_port), ("--read-port", self.read_port)];
        let fresh = self.fresh_port.map(|port| ("--fresh-port", port));
        fixed.into_iter().chain(fresh).chain(self.pool_ports.values().map(|p| ("--pool-port", *p)))
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
