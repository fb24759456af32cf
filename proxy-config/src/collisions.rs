//! Whether another HAProxy of this host has what ours is to have: several clusters and instances may live beside each
//! other, and HAProxy itself would let two share a port, so that each gets every other session.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::net::TcpListener;
use std::path::Path;

use anyhow::{Context, ensure};
use proto::ClusterName;

use crate::HaproxyConfig;
use crate::header::{Comment, Installed, read_back};

/// Refuses what another file of pgdeputy's in the same directory has taken, and, before the first installation, ports
/// on which another program listens.
pub fn check(cluster: &ClusterName, config: &HaproxyConfig) -> anyhow::Result<()> {
    let directory = config.file.parent().context("the configuration file has a directory")?;
    for entry in
        std::fs::read_dir(directory).with_context(|| format!("read {}", directory.display()))?
    {
        let path = entry?.path();
        let other =
            path != config.file && path.extension().is_none_or(|e| e != "new" && e != "states");
        if other && path.is_file() {
            beside(config, &path)?;
        }
    }
    if config.file.exists() {
        return Ok(());
    }
    for (flag, port) in config.ports() {
        let host = if config.bind == "*" { "0.0.0.0" } else { config.bind.as_str() };
        match TcpListener::bind((host, port)) {
            Err(e) if e.kind() == ErrorKind::AddrInUse => anyhow::bail!(
                "{flag} {port}: another program of this host listens there, and HAProxy of cluster {cluster} would \
                 share it: choose another port, or stop that one"
            ),
            // An address that this host has not yet, or a port that only root may have: HAProxy will say.
            Ok(_) | Err(_) => {}
        }
    }
    Ok(())
}

fn beside(config: &HaproxyConfig, path: &Path) -> anyhow::Result<()> {
    // Not text, or not ours to read: not ours.
    let Ok(text) = std::fs::read_to_string(path) else { return Ok(()) };
    let Installed::Ours { cluster, .. } = read_back(Comment::Haproxy, &text) else { return Ok(()) };
    let ports: BTreeMap<u16, &str> = config.ports().map(|(flag, port)| (port, flag)).collect();
    for line in text.lines().map(str::trim) {
        let bound = line.strip_prefix("bind ").and_then(|at| at.rsplit_once(':'));
        let (at, own) = (bound.map_or("", |(at, _)| at), config.bind_address());
        let meets = at == own || at == "*" || own == "*";
        let taken = bound.filter(|_| meets).and_then(|(_, port)| port.parse().ok());
        if let Some((port, flag)) = taken.and_then(|port: u16| Some((port, ports.get(&port)?))) {
            anyhow::bail!(
                "{flag} {port} belongs to cluster {cluster} by {}: choose another port",
                path.display()
            );
        }
        let socket = line.strip_prefix("stats socket ").and_then(|l| l.split(' ').next());
        ensure!(
            socket.is_none_or(|socket| Path::new(socket) != config.socket),
            "--haproxy-socket {} belongs to cluster {cluster} by {}: choose another path",
            config.socket.display(),
            path.display()
        );
    }
    Ok(())
}
