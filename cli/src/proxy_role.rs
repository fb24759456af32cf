//! `proxy-config`: checks what it is started with, and runs it.

mod pgbouncer;

use std::path::PathBuf;

use clap::Args;
use proxy_config::{Config, HaproxyConfig};

use crate::failure::Failure;
use crate::runtime;
use crate::sentinel_role::identity;
use crate::target::Target;

#[derive(Debug, Args)]
pub struct ProxyConfigArgs {
    #[command(flatten)]
    target: Target,
    /// The file that HAProxy is started with; all of it is written here
    #[arg(long, value_name = "FILE", requires_all = ["haproxy_socket", "write_port", "read_port"])]
    #[arg(required_unless_present = "pgbouncer_config")]
    haproxy_config: Option<PathBuf>,
    /// HAProxy's runtime socket
    #[arg(long, value_name = "PATH", requires = "haproxy_config")]
    haproxy_socket: Option<PathBuf>,
    /// Port that leads to the primary
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    #[arg(requires = "haproxy_config")]
    write_port: Option<u16>,
    /// Port that leads to the standbys
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    #[arg(requires = "haproxy_config")]
    read_port: Option<u16>,
    /// Address that HAProxy listens on; * for all of the host's
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1")]
    bind: String,
    /// Command that makes HAProxy read its file again, run by sh -c
    #[arg(long, value_name = "COMMAND")]
    reload: Option<String>,
    /// What tells this one from the others of the cluster [default: host name and process id]
    #[arg(long, value_name = "ID")]
    id: Option<String>,
    #[command(flatten)]
    pgbouncer: pgbouncer::PgbouncerArgs,
}

/// Runs the role until it is told to stop.
pub fn run(args: ProxyConfigArgs) -> Result<u8, Failure> {
    let config = config(args)?;
    runtime::run(|stop| proxy_config::run(config, stop))?;
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
            bind: args.bind,
            reload: args.reload,
        }),
        // The command line's definition demands all of them or none.
        _ => None,
    };
    haproxy.as_ref().map_or(Ok(()), check)?;
    let pgbouncer = args.pgbouncer.config(&args.target.cluster)?;
    Ok(Config {
        cluster: args.target.cluster,
        etcd: args.target.store.access()?,
        id: identity(args.id)?,
        haproxy,
        pgbouncer,
    })
}

fn check(haproxy: &HaproxyConfig) -> Result<(), Failure> {
    if haproxy.write_port == haproxy.read_port {
        return Err(Failure::usage(format!(
            "--write-port and --read-port are both {}: use two",
            haproxy.read_port
        )));
    }
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
