//! The lab's HAProxy and the process that keeps it in line: their ports, and how they are broken.

use std::net::Ipv4Addr;

use anyhow::{Context, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use proto::PoolName;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio_postgres::Config;

use super::commands::{self, HaproxyFiles};
use super::start::START_BOUND;
use super::{Lab, Struck};

/// A port of the lab's HAProxy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Port {
    Write,
    Read,
    Fresh,
    Pool(PoolName),
}

impl Lab {
    /// How the application connects through HAProxy.
    pub fn application_by(&self, port: &Port) -> anyhow::Result<Config> {
        let addresses = &self.addresses;
        let number = match port {
            Port::Write => addresses.write_port,
            Port::Read => addresses.read_port,
            Port::Fresh => addresses.fresh_port,
            Port::Pool(pool) => *addresses
                .pool_ports
                .get(pool)
                .with_context(|| format!("the lab's spec has no pool {pool}"))?,
        };
        Ok(self.application(Ipv4Addr::LOCALHOST, number))
    }

    /// Signals proxy-config.
    pub fn signal_proxy_config(&self, signal: Signal) -> anyhow::Result<()> {
        let pid = self.other("proxy-config")?;
        kill(Pid::from_raw(pid), signal).with_context(|| format!("{signal} to proxy-config"))
    }

    /// Stops HAProxy with all its sessions, and starts it again with the files that are there. Returns when it was stopped.
    pub async fn restart_haproxy(&mut self) -> anyhow::Result<Struck> {
        let master = self.other("haproxy")?;
        let struck = Struck::now();
        kill(Pid::from_raw(master), Signal::SIGTERM).context("stop HAProxy")?;
        self.until("HAProxy ends", START_BOUND, || self.home.spawner.ended(master)).await?;
        self.others.retain(|(_, pid)| *pid != master);
        let master = self.start_other("haproxy", commands::haproxy(&self.home.layout)?)?;
        let files = HaproxyFiles::of(&self.home.layout);
        std::fs::write(&files.pid, master.to_string()).context("note HAProxy's process id")?;
        Ok(struck)
    }

    /// Asks HAProxy's runtime socket one question.
    pub async fn ask_haproxy(&self, question: &str) -> anyhow::Result<String> {
        let socket = HaproxyFiles::of(&self.home.layout).socket;
        let mut stream = UnixStream::connect(&socket).await.context("reach HAProxy's socket")?;
        stream.write_all(format!("{question}\n").as_bytes()).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.context("read HAProxy's answer")?;
        Ok(answer)
    }

    fn other(&self, name: &str) -> anyhow::Result<i32> {
        let found = self.others.iter().find(|(other, _)| other == name);
        match found {
            Some((_, pid)) => Ok(*pid),
            None => bail!("{name} does not run in this lab"),
        }
    }
}
