//! `proxy-config`: checks what it is started with, and runs it.

mod pgbouncer;

use std::collections::BTreeMap;
use std::path::PathBuf;

use clap::Args;
use proto::PoolName;
use proxy_config::{Config, Drills, HaproxyConfig};

use crate::drillable::{DrillableArgs, is_managed};
use crate::failure::Failure;
use crate::sentinel_role::identity;
use crate::target::Target;
use crate::{output, runtime};

#[derive(Debug, Args)]
pub struct ProxyConfigArgs {
    #[command(flatten)]
    target: Target,
    /// The file that HAProxy is started with; all of it is written here
    #[arg(long, value_name = "FILE")]
    haproxy_config: Option<PathBuf>,
    /// HAProxy's runtime socket
    #[arg(long, value_name = "PATH")]
    haproxy_socket: Option<PathBuf>,
    /// Port that leads to the primary
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    write_port: Option<u16>,
    /// Port that leads to the standbys
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    read_port: Option<u16>,
    /// Port that leads to those who have every acknowledged write: the primary, and standbys where each commit waits for them
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    fresh_port: Option<u16>,
    /// Port that leads to the members of a pool of the spec, and to nobody else; may be given several times
    #[arg(long, value_name = "POOL=N", value_parser = pool_port, value_delimiter = ',')]
    pool_port: Vec<(PoolName, u16)>,
    /// Address that HAProxy listens on; * for all of the host's
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1")]
    bind: String,
    /// Command that makes HAProxy read its file again, run by sh -c
    #[arg(long, value_name = "COMMAND")]
    reload: Option<String>,
    /// Command that restarts HAProxy, run by sh -c, for `pgdeputy drill run haproxy` [default: that drill is refused]
    #[arg(long, value_name = "COMMAND")]
    restart: Option<String>,
    #[command(flatten)]
    drillable: DrillableArgs,
    /// What tells this one from the others of the cluster [default: host name and process id]
    #[arg(long, value_name = "ID")]
    id: Option<String>,
    #[command(flatten)]
    pgbouncer: pgbouncer::PgbouncerArgs,
    /// Install and switch once, and end
    #[arg(long)]
    once: bool,
    /// Show how the installed files would change, and change nothing
    #[arg(long, conflicts_with = "once")]
    dry_run: bool,
}

/// Runs the role until it is told to stop.
pub fn run(args: ProxyConfigArgs) -> Result<u8, Failure> {
    let (once, dry_run) = (args.once, args.dry_run);
    let config = config(args)?;
    if !once && !dry_run {
        runtime::run(|stop| proxy_config::run(config, stop))?;
        return Ok(0);
    }
    let done = runtime::answer(async move {
        match dry_run {
            true => proxy_config::once::preview(&config).await,
            false => proxy_config::once::once(&config).await,
        }
    })?;
    let nothing = vec!["nothing would change".to_owned()];
    let lines = if done.lines.is_empty() { nothing } else { done.lines };
    output::print(&lines.join("\n"))?;
    Ok(0)
}

fn config(args: ProxyConfigArgs) -> Result<Config, Failure> {
    let haproxy = match (args.haproxy_config, args.haproxy_socket, args.write_port, args.read_port)
    {
        (Some(file), Some(socket), Some(write_port), Some(read_port)) => Some(HaproxyConfig {
            file: path("--haproxy-config", file)?,
            socket: path("--haproxy-socket", socket)?,
            write_port,
            read_port,
            fresh_port: args.fresh_port,
            pool_ports: pool_ports(args.pool_port)?,
            bind: args.bind,
            reload: args.reload,
        }),
        (None, None, None, None) if args.fresh_port.is_none() && args.pool_port.is_empty() => None,
        // Not left to the command line's definition, which takes what a file gives for not given.
        (_, _, _, _) => {
            return Err(Failure::usage(
                "HAProxy needs --haproxy-config, --haproxy-socket, --write-port and --read-port: give all of them, or \
                 none beside --pgbouncer-config",
            ));
        }
    };
    haproxy.as_ref().map_or(Ok(()), check)?;
    let restart_pgbouncer = args.pgbouncer.restart();
    let pgbouncer = args.pgbouncer.config(&args.target.cluster)?;
    if haproxy.is_none() && pgbouncer.is_none() {
        return Err(Failure::usage(
            "there is nothing to keep in line: give --haproxy-config or --pgbouncer-config, and what goes with it",
        ));
    }
    let config = Config {
        cluster: args.target.cluster,
        etcd: args.target.store.access()?,
        id: identity(args.id)?,
        haproxy,
        pgbouncer,
        drills: Drills {
            refused: args.drillable.refused(),
            restarted: is_managed(),
            restart_haproxy: args.restart,
            restart_pgbouncer,
        },
    };
    config.check_ports().map_err(|e| Failure::usage(e.to_string()))?;
    Ok(config)
}

fn pool_port(given: &str) -> Result<(PoolName, u16), String> {
    let error = || format!("{given:?} is not a pool and a port such as analysts=5003");
    let (pool, port) = given.split_once('=').ok_or_else(error)?;
    let port = port.parse().ok().filter(|port| *port > 0).ok_or_else(error)?;
    Ok((pool.parse().map_err(|e: proto::names::NameError| e.to_string())?, port))
}

fn pool_ports(given: Vec<(PoolName, u16)>) -> Result<BTreeMap<PoolName, u16>, Failure> {
    let mut ports = BTreeMap::new();
    for (pool, port) in given {
        if ports.insert(pool.clone(), port).is_some() {
            return Err(Failure::usage(format!(
                "--pool-port names pool {pool} twice: give it one port"
            )));
        }
    }
    Ok(ports)
}

fn check(haproxy: &HaproxyConfig) -> Result<(), Failure> {
    if haproxy.reload.as_deref().is_some_and(|command| command.trim().is_empty()) {
        return Err(Failure::usage("--reload is empty: give a command or leave it out"));
    }
    check_bind(&haproxy.bind)
}

/// It is written into HAProxy's file as it stands, so only what cannot be more than an address passes.
fn check_bind(given: &str) -> Result<(), Failure> {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-._:".contains(&b);
    if given == "*" || (!given.is_empty() && given.bytes().all(plain)) {
        return Ok(());
    }
    Err(Failure::usage(format!(
        "--bind {given:?} is no address: use one of this host's, or * for all"
    )))
}

/// HAProxy may have another working directory, and words of its file end at a space.
fn path(flag: &str, given: PathBuf) -> Result<PathBuf, Failure> {
    let about = |problem: &str| {
        Failure::usage(format!("{flag} {:?}: {problem}", given.display().to_string()))
    };
    let absolute = std::path::absolute(&given).map_err(|e| about(&e.to_string()))?;
    match absolute.to_str() {
        Some(text)
            if !text.contains(|c: char| {
                c.is_whitespace() || c.is_control() || "\"'\\#$".contains(c)
            }) =>
        {
            Ok(absolute)
        }
        Some(_) | None => Err(about(
            "HAProxy's file cannot name it: use a path without spaces, quotes, #, $ and \\",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_haproxy_would_misread_is_refused() {
        assert!(
            check_bind("*").is_ok()
                && check_bind("fd00::1").is_ok()
                && check_bind("10.0.0.1").is_ok()
        );
        for bad in ["", "a b", "10.0.0.1\nlisten x", "${X}"] {
            assert!(check_bind(bad).is_err(), "{bad}");
        }
        assert!(path("--haproxy-socket", "/run/h a".into()).is_err());
        assert_eq!(
            path("--haproxy-socket", "/run/h.sock".into()).unwrap(),
            PathBuf::from("/run/h.sock")
        );
    }
}
