//! A real cluster, on loopback or each member in a network of its own: etcd, keepers with PostgreSQL, sentinels,
//! HAProxy. Started, broken, stopped here and nowhere else.
//!
//! The one rule: whatever happens to this process, nothing of the lab outlives it, unless `keep` was called.
//! Three things see to it: the end of a `Lab`, the kernel for its direct children, and a guard at the other end
//! of a pipe for what has changed user or lost its parent.

pub mod cleanup;
pub mod commands;
pub mod config;
mod crashes;
mod database;
mod disk;
mod disk_faults;
mod etcd;
mod etcd_backup;
mod etcd_space;
pub mod freeze;
mod home;
pub mod http;
pub mod kept;
mod members;
pub mod network;
pub mod pgbouncer;
mod ports;
mod proxies;
mod secured;
mod sentinels;
mod server;
mod services;
mod skew;
mod spawner;
mod start;
mod starve;
mod switchover;
pub mod view;
mod wait;

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;

use anyhow::Context;
use proto::history::HistoryRecord;
use proto::{ClusterSpec, MemberName};
use store::etcd::ClientCertificate;
use store::keys::Keys;
use store::{Operation, Store, Txn, TxnOutcome};

use crate::load::{LoadConfig, Statements};
use commands::{Addresses, MemberAddress};
pub use config::{CLUSTER, LabConfig, Layout, Lifetime, Narrate, demo_spec, member_name};
pub use database::APPLICATION;
pub use disk_faults::Stutter;
pub use freeze::Part;
use home::Home;
pub use members::Struck;
use network::{Network, Site};
use ports::Ports;
pub use proxies::Port;
pub use secured::EtcdSecurity;
pub use sentinels::Sentinel;
pub use server::ServerProcess;
pub use view::{Cluster, Service};
pub use wait::{LabStatus, await_cluster};

/// Above all ids that the load through HAProxy comes to.
pub const FIRST_POOLED_ID: i64 = 1 << 40;

/// A running cluster. Dropping it ends all its processes and removes its directory.
pub struct Lab {
    /// The first field, so that it ends the processes before their ports are given back.
    home: Home,
    config: LabConfig,
    addresses: Addresses,
    /// Where members have networks of their own.
    network: Option<Network>,
    ports: Ports,
    members: BTreeMap<MemberName, Member>,
    /// Processes that are no member's, in the order of their start.
    others: Vec<(String, i32)>,
    /// etcd members that were killed and may not have ended yet.
    killed_etcds: Vec<i32>,
    store: Arc<dyn Store>,
    keys: Keys,
    application_password: String,
}

/// One member of the lab.
struct Member {
    address: MemberAddress,
    /// The keeper's process, while it is meant to run.
    keeper: Option<i32>,
    /// By what its keeper is started with a wrong clock.
    faked: Option<PathBuf>,
}

impl Lab {
    /// The members, running or not.
    pub fn members(&self) -> Vec<MemberName> {
        self.members.keys().cloned().collect()
    }

    /// Where this lab's files lie.
    pub fn layout(&self) -> &Layout {
        &self.home.layout
    }

    /// The agreed store, for tests that look at it or write into it.
    pub fn store(&self) -> &Arc<dyn Store> {
        &self.store
    }

    /// The keys of the lab's cluster.
    pub fn keys(&self) -> &Keys {
        &self.keys
    }

    /// The endpoints as they are given to `--etcd`.
    pub fn etcd_urls(&self) -> Vec<String> {
        self.addresses.etcd_urls()
    }

    /// All that a role or a command has to be given to reach etcd.
    pub fn etcd_flags(&self) -> Vec<(&'static str, String)> {
        self.addresses.etcd_flags()
    }

    /// Issues a certificate of the lab's authority, for a lab with `EtcdSecurity::TlsAndUsers`; with a negative number
    /// of days it has expired.
    pub fn issue_certificate(&self, name: &str, days: i32) -> anyhow::Result<ClientCertificate> {
        secured::issue(&self.home, name, days)
    }

    /// The port of HAProxy that leads to the primary.
    pub fn write_port(&self) -> u16 {
        self.addresses.write_port
    }

    /// The load's target and log.
    pub fn load_config(&self, writers: usize) -> LoadConfig {
        let target = self.application(Ipv4Addr::LOCALHOST, self.addresses.write_port);
        LoadConfig { target, writers, ..LoadConfig::new(self.home.layout.log("acknowledged")) }
    }

    /// The same through the first PgBouncer, with ids of its own.
    pub fn pooled_load_config(&self, writers: usize) -> anyhow::Result<LoadConfig> {
        let target = self.pooled_application(0)?;
        let log = self.home.layout.log("acknowledged-pooled");
        let (statements, first_id) = (Statements::OneByOne, FIRST_POOLED_ID);
        Ok(LoadConfig { target, writers, statements, first_id, log })
    }

    /// The records of all changes so far, in the order of what happened.
    pub async fn history(&self) -> anyhow::Result<Vec<HistoryRecord>> {
        Ok(self.cluster().await?.history)
    }

    /// Writes another spec, as the operator would.
    pub async fn put_spec(&self, spec: &ClusterSpec) -> anyhow::Result<()> {
        spec.check()?;
        let value = proto::document::encode(spec).into_bytes();
        let put = Operation::Put { key: self.keys.spec(), value, lease: None };
        let outcome = self.store.commit(Txn { when: Vec::new(), then: vec![put] }).await?;
        anyhow::ensure!(
            matches!(outcome, TxnOutcome::Committed { .. }),
            "the spec was not written"
        );
        Ok(())
    }

    /// What a person would type to connect, by what it reaches. The passwords are in files of the lab.
    pub fn connection_strings(&self) -> Vec<(String, String)> {
        let password = &self.application_password;
        let dsn = |host: Ipv4Addr, port: u16| {
            format!("postgresql://{APPLICATION}:{password}@{host}:{port}/{APPLICATION}")
        };
        let here = Ipv4Addr::LOCALHOST;
        let mut all = vec![
            ("writes, by HAProxy".to_owned(), dsn(here, self.addresses.write_port)),
            ("reads, by HAProxy".to_owned(), dsn(here, self.addresses.read_port)),
            ("fresh reads, by HAProxy".to_owned(), dsn(here, self.addresses.fresh_port)),
        ];
        all.extend(
            self.members
                .iter()
                .map(|(name, m)| (name, m.address))
                .map(|(name, at)| (format!("member {name} itself"), dsn(at.host, at.postgres))),
        );
        all
    }

    /// Where a member's PostgreSQL and keeper listen.
    pub fn address(&self, member: &MemberName) -> anyhow::Result<MemberAddress> {
        let known = self.members.get(member).map(|m| m.address);
        known.with_context(|| format!("the lab has no member {member}"))
    }

    /// Makes a directory in the lab that belongs to the keepers' user, for a keeper that is none of the lab's.
    pub fn private_directory(&self, name: &str) -> anyhow::Result<PathBuf> {
        let directory = self.home.layout.process(name);
        self.home.make_private(&directory)?;
        Ok(directory)
    }

    /// Returns a free port of this machine.
    pub fn free_port(&mut self) -> anyhow::Result<u16> {
        self.ports.next()
    }

    /// Starts `command` where `site` is, and returns its process id.
    fn start_at(&self, site: &Site, command: Command) -> anyhow::Result<i32> {
        start_at(&self.home, self.network.as_ref(), site, command)
    }

    /// Leaves everything running when this value and this process are gone. Returns the lab's directory.
    pub fn keep(mut self) -> anyhow::Result<PathBuf> {
        self.home.keep()
    }

    /// Starts the real pgbench against the application's database at `target`, logging as `name`.
    pub fn start_pgbench(
        &mut self,
        name: &str,
        (host, port): (Ipv4Addr, u16),
        arguments: &[&str],
    ) -> anyhow::Result<i32> {
        let bin = self.config.postgres_bin.clone().unwrap_or_default();
        let layout = &self.home.layout;
        let mut command = commands::prepare(layout, name, &bin.join("pgbench"), &layout.root)?;
        command.args(arguments).args(["-h", &host.to_string(), "-p", &port.to_string()]);
        command
            .args(["-U", APPLICATION, APPLICATION])
            .env("PGPASSWORD", &self.application_password);
        self.start_other(name, command)
    }

    /// Returns how a process that is no member's ended, if it has.
    pub fn process_ended(&self, pid: i32) -> Option<String> {
        self.home.spawner.ended(pid)
    }

    /// Returns what the process with this name has logged.
    pub fn log_of(&self, name: &str) -> String {
        std::fs::read_to_string(self.home.layout.log(name)).unwrap_or_default()
    }

    /// Returns every log with a name that no other has.
    pub fn log_files(&self) -> Vec<(String, PathBuf)> {
        self.home.log_files()
    }

    /// The last lines of every log, for a failed run.
    pub fn log_tails(&self) -> String {
        self.home.log_tails()
    }
}

fn start_at(
    home: &Home,
    network: Option<&Network>,
    site: &Site,
    mut command: Command,
) -> anyhow::Result<i32> {
    if let Some(network) = network {
        network.place(site)?.enter(&mut command);
    }
    home.spawner.start(command)
}
