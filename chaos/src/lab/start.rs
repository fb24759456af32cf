//! Starts a lab, part by part, and stops it in the reverse order.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use store::clock;
use store::etcd::{EtcdAccess, EtcdStore};
use store::keys::Keys;

use super::commands::{self, Addresses, EtcdAddress, HaproxyFiles, PASSWORDS};
use super::config::{CLUSTER, LabConfig, member_name};
use super::home::Home;
use super::network::{Network, Site, host};
use super::pgbouncer::{CONSOLE_PASSWORD, databases};
use super::ports::Ports;
use super::secured::{self, EtcdSecurity};
use super::{Lab, start_at};

/// etcd and the lab's small processes are up within a second; this is for a machine under load.
pub(super) const START_BOUND: Duration = Duration::from_secs(30);

/// What a process may take to end when it is asked to. A fast stop of PostgreSQL is part of it.
const STOP_BOUND: Duration = Duration::from_secs(5);

impl Lab {
    /// Starts everything; returns as soon as all processes run, before the cluster is formed.
    pub async fn start(mut config: LabConfig) -> anyhow::Result<Self> {
        config.spec.check()?;
        let home = Home::make(&config)?;
        let mut ports = Ports::claim()?;
        let mut network = home.network_number().map(Network::make).transpose()?;
        let mut etcd = Vec::new();
        for index in 0..config.etcd_members {
            let host = host(network.as_mut(), &Site::Etcd(index))?;
            etcd.push(EtcdAddress { host, client: ports.next()?, peer: ports.next()? });
        }
        let pgbouncers = (0..config.pgbouncers).map(|_| ports.next()).collect::<Result<_, _>>()?;
        let pools = config.spec.members.values().filter_map(|member| member.pool.clone());
        let pools: std::collections::BTreeSet<_> = pools.collect();
        let access = access(&home, config.etcd_security, &etcd)?;
        if config.members_by_tls {
            secured::let_postgres_speak_tls(&home, &mut config.spec)?;
        }
        let addresses = Addresses {
            etcd,
            access,
            pgbouncers,
            write_port: ports.next()?,
            read_port: ports.next()?,
            fresh_port: ports.next()?,
            pool_ports: pools
                .into_iter()
                .map(|pool| Ok((pool, ports.next()?)))
                .collect::<anyhow::Result<_>>()?,
        };
        let mut others = Vec::new();
        for index in 0..addresses.etcd.len() {
            let name = format!("etcd{}", index + 1);
            let directory = home.layout.process(&name);
            std::fs::create_dir(&directory)
                .with_context(|| format!("make {}", directory.display()))?;
            let command = commands::etcd(&home.layout, &addresses, index)?;
            let pid = start_at(&home, network.as_ref(), &Site::Etcd(index), command)?;
            others.push((name, pid));
        }
        let opened = open(&home, &addresses).await;
        let store = opened.inspect_err(|_| eprintln!("{}", home.log_tails()))?;
        (config.narrate)(&format!(
            "etcd answers ({} of {})",
            addresses.etcd.len(),
            addresses.etcd.len()
        ));
        let mut lab = Lab {
            home,
            config,
            addresses,
            network,
            ports,
            members: std::collections::BTreeMap::new(),
            others,
            killed_etcds: Vec::new(),
            store,
            keys: Keys::of(&CLUSTER.parse()?),
            application_password: random_password(),
        };
        lab.start_roles().await.inspect_err(|_| eprintln!("{}", lab.log_tails()))?;
        Ok(lab)
    }

    async fn start_roles(&mut self) -> anyhow::Result<()> {
        self.write_passwords()?;
        self.init().await?;
        for index in 0..self.config.sentinels {
            let command =
                commands::sentinel(&self.config, &self.home.layout, &self.addresses, index)?;
            let site = Site::Sentinel(index);
            host(self.network.as_mut(), &site)?;
            let pid = self.start_at(&site, command)?;
            self.others.push((format!("sentinel{}", index + 1), pid));
        }
        for index in 0..self.config.members {
            self.add_member(member_name(index))?;
        }
        let (sentinels, members) = (self.config.sentinels, self.config.members);
        (self.config.narrate)(&format!("{sentinels} sentinels and {members} keepers started"));
        self.start_proxy().await
    }

    fn write_passwords(&self) -> anyhow::Result<()> {
        let directory = self.home.layout.process("passwords");
        self.home.make_private(&directory)?;
        for of in PASSWORDS.into_iter().chain([CONSOLE_PASSWORD]) {
            self.home.write_private(
                &self.home.layout.password(of),
                &format!("{}\n", random_password()),
            )?;
        }
        Ok(())
    }

    async fn init(&self) -> anyhow::Result<()> {
        let spec = self.home.layout.process("spec.json");
        std::fs::write(&spec, proto::document::encode(&self.config.spec))
            .context("write the spec")?;
        let command =
            commands::init(&self.home.layout, &self.addresses, &self.config.pgdeputy, &spec)?;
        let pid = self.home.spawner.start(command)?;
        let ended = self
            .until("`pgdeputy init` ends", START_BOUND, || self.home.spawner.ended(pid))
            .await?;
        if ended != "exit status: 0" {
            let log = self.home.layout.log("init");
            bail!("`pgdeputy init` ended with {ended}: {}", std::fs::read_to_string(log)?);
        }
        Ok(())
    }

    async fn start_proxy(&mut self) -> anyhow::Result<()> {
        let layout = &self.home.layout;
        let files = HaproxyFiles::of(layout);
        let directory = layout.process("haproxy");
        for directory in [&directory, &layout.process("pgbouncer")] {
            std::fs::create_dir(directory)
                .with_context(|| format!("make {}", directory.display()))?;
        }
        let databases = (!self.addresses.pgbouncers.is_empty()).then(|| databases(layout));
        let writer = commands::proxy_config(&self.config, layout, &self.addresses)?;
        let pid = self.start_other("proxy-config", writer)?;
        self.until("proxy-config writes the proxies' files", START_BOUND, || {
            let ended = self
                .home
                .spawner
                .ended(pid)
                .map(|how| Err(anyhow::anyhow!("proxy-config ended: {how}")));
            let written =
                is_written(&files.config) && databases.as_ref().is_none_or(|f| is_written(f));
            ended.or_else(|| written.then_some(Ok(())))
        })
        .await??;
        let master = self.start_other("haproxy", commands::haproxy(&self.home.layout)?)?;
        std::fs::write(&files.pid, master.to_string()).context("note HAProxy's process id")?;
        (self.config.narrate)(&format!("HAProxy: writes on port {}", self.addresses.write_port));
        self.start_pgbouncers()
    }

    pub(super) fn start_other(
        &mut self,
        name: &str,
        command: std::process::Command,
    ) -> anyhow::Result<i32> {
        let pid = self.home.spawner.start(command)?;
        self.others.push((name.to_owned(), pid));
        Ok(pid)
    }

    /// Waits until `look` finds what it looks for.
    pub(super) async fn until<T>(
        &self,
        what: &str,
        bound: Duration,
        look: impl Fn() -> Option<T>,
    ) -> anyhow::Result<T> {
        let deadline = clock::now() + bound;
        loop {
            if let Some(found) = look() {
                return Ok(found);
            }
            if clock::now() >= deadline {
                bail!("not within {bound:?}: {what}");
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Asks all processes to end, in the reverse order of their start, and then ends what is left.
    pub async fn stop(mut self) -> anyhow::Result<()> {
        let (etcds, roles): (Vec<_>, Vec<_>) = std::mem::take(&mut self.others)
            .into_iter()
            .partition(|(name, _)| name.starts_with("etcd"));
        let (proxies, sentinels): (Vec<_>, Vec<_>) =
            roles.into_iter().partition(|(name, _)| !name.starts_with("sentinel"));
        let pids =
            |named: Vec<(String, i32)>| named.into_iter().rev().map(|(_, pid)| pid).collect();
        let keepers = self.members.values_mut().filter_map(|m| m.keeper.take()).collect();
        for group in [pids(proxies), keepers, pids(sentinels), pids(etcds)] {
            self.terminate(group).await;
        }
        self.home.end()
    }

    /// A process that does not end in time is ended by force with the rest.
    async fn terminate(&self, pids: Vec<i32>) {
        let running = |pid: &&i32| self.home.spawner.ended(**pid).is_none();
        for pid in pids.iter().filter(running) {
            let _ = kill(Pid::from_raw(*pid), Signal::SIGTERM);
        }
        let ended = || pids.iter().all(|pid| self.home.spawner.ended(*pid).is_some()).then_some(());
        let _ = self.until("the processes end", STOP_BOUND, ended).await;
    }
}

/// Makes what it takes to be let in, where etcd is to ask for it.
fn access(home: &Home, security: EtcdSecurity, etcd: &[EtcdAddress]) -> anyhow::Result<EtcdAccess> {
    let urls = |scheme: &str| -> Vec<String> {
        etcd.iter().map(|e| format!("{scheme}://{}:{}", e.host, e.client)).collect()
    };
    match security {
        EtcdSecurity::None => Ok(urls("http").into()),
        EtcdSecurity::TlsAndUsers => {
            let hosts: Vec<_> = etcd.iter().map(|e| e.host).collect();
            secured::prepare(home, urls("https"), &hosts)
        }
    }
}

/// Waits until etcd answers, and has it ask for users where the lab has one.
async fn open(home: &Home, addresses: &Addresses) -> anyhow::Result<Arc<dyn store::Store>> {
    if addresses.access.login.is_none() {
        return connect(&addresses.access).await;
    }
    connect(&EtcdAccess { login: None, ..addresses.access.clone() }).await?;
    secured::make_users(&home.layout, addresses)?;
    connect(&addresses.access).await
}

async fn connect(access: &EtcdAccess) -> anyhow::Result<Arc<dyn store::Store>> {
    let deadline = clock::now() + START_BOUND;
    loop {
        let tried = async {
            let store = EtcdStore::connect(access).await?;
            // Only a linearizable read shows that the etcd members have elected their leader.
            store::Store::read(&store, store::keys::ROOT).await.map(|_| store)
        };
        match tried.await {
            Ok(store) => return Ok(Arc::new(store)),
            Err(error) if clock::now() >= deadline => return Err(error).context("wait for etcd"),
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
}

/// A file that is there and not empty: proxy-config renames it into place.
fn is_written(file: &Path) -> bool {
    file.metadata().is_ok_and(|m| m.len() > 0)
}

fn random_password() -> String {
    format!("{:032x}", rand::random::<u128>())
}
