//! The command lines of everything that a lab starts.

use std::collections::BTreeMap;
use std::fs::File;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::Context;
use proto::{MemberName, PoolName};
use store::EtcdAccess;

use super::config::{CLUSTER, LabConfig, Layout, MARK, member_name};
use super::pgbouncer;
use super::secured;

/// The passwords that keepers are given in files, by the name of their flag.
pub const PASSWORDS: [&str; 3] = ["superuser", "replication", "rewind"];

/// The addresses of one lab.
#[derive(Debug, Clone)]
pub struct Addresses {
    pub etcd: Vec<EtcdAddress>,
    /// How clients reach it.
    pub access: EtcdAccess,
    pub write_port: u16,
    pub read_port: u16,
    /// The ports of the PgBouncers.
    pub pgbouncers: Vec<u16>,
    pub fresh_port: u16,
    /// One port for each pool of the spec.
    pub pool_ports: BTreeMap<PoolName, u16>,
}

#[derive(Debug, Clone, Copy)]
pub struct EtcdAddress {
    pub host: Ipv4Addr,
    pub client: u16,
    pub peer: u16,
}

/// The addresses of one member.
#[derive(Debug, Clone, Copy)]
pub struct MemberAddress {
    pub host: Ipv4Addr,
    pub postgres: u16,
    pub http: u16,
}

impl Addresses {
    /// The endpoints as they are given to `--etcd`.
    pub fn etcd_urls(&self) -> Vec<String> {
        self.access.endpoints.clone()
    }

    /// How etcd is reached, as every role and command takes it.
    pub fn etcd_flags(&self) -> Vec<(&'static str, String)> {
        let access = &self.access;
        let text = |path: &PathBuf| path.display().to_string();
        let mut flags = vec![("--etcd", access.endpoints.join(","))];
        flags.extend(access.ca.as_ref().map(|ca| ("--etcd-ca", text(ca))));
        if let Some(own) = &access.certificate {
            flags.push(("--etcd-cert", text(&own.certificate)));
            flags.push(("--etcd-key", text(&own.key)));
        }
        if let Some(login) = &access.login {
            flags.push(("--etcd-user", login.user.clone()));
            flags.push(("--etcd-password-file", text(&login.password_file)));
        }
        flags
    }

    /// How etcd's members reach each other, in their order.
    pub fn etcd_peers(&self) -> Vec<String> {
        self.etcd.iter().map(|at| format!("http://{}:{}", at.host, at.peer)).collect()
    }

    fn etcd_words(&self) -> impl Iterator<Item = String> {
        self.etcd_flags().into_iter().flat_map(|(flag, value)| [flag.to_owned(), value])
    }
}

/// Returns a command that runs in `directory`, writes to the log of `name` and bears the lab's mark.
pub fn prepare(
    layout: &Layout,
    name: &str,
    program: &Path,
    directory: &Path,
) -> anyhow::Result<Command> {
    let log = layout.log(name);
    let file = File::options()
        .create(true)
        .append(true)
        .open(&log)
        .with_context(|| format!("open {}", log.display()))?;
    let mut command = Command::new(program);
    command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file).current_dir(directory);
    // A setting of the person who runs the demo must not reach into the lab.
    for (key, _) in std::env::vars_os() {
        if key.to_string_lossy().starts_with("PGDEPUTY_") {
            command.env_remove(key);
        }
    }
    command.env(MARK, &layout.root);
    Ok(command)
}

/// One etcd of the lab.
pub fn etcd(layout: &Layout, addresses: &Addresses, index: usize) -> anyhow::Result<Command> {
    let name = |i: usize| format!("etcd{}", i + 1);
    let url = |host: Ipv4Addr, port: u16| format!("http://{host}:{port}");
    let own = addresses.etcd[index];
    let client = &addresses.access.endpoints[index];
    let peers: Vec<String> = addresses
        .etcd
        .iter()
        .enumerate()
        .map(|(i, e)| format!("{}={}", name(i), url(e.host, e.peer)))
        .collect();
    let mut command =
        prepare(layout, &name(index), Path::new("etcd"), &layout.process(&name(index)))?;
    command
        .args(["--name", &name(index), "--data-dir", "data"])
        .args(["--listen-client-urls", client, "--advertise-client-urls", client])
        .args([
            "--listen-peer-urls",
            &url(own.host, own.peer),
            "--initial-advertise-peer-urls",
            &url(own.host, own.peer),
        ])
        .args(["--initial-cluster", &peers.join(","), "--initial-cluster-token", "pgdeputy-lab"])
        .args(["--logger", "zap", "--log-level", "warn", "--log-outputs", "stderr"]);
    if let Some(ca) = &addresses.access.ca {
        let own = secured::server(layout);
        command.arg("--client-cert-auth").arg("--trusted-ca-file").arg(ca);
        command.arg("--cert-file").arg(own.certificate).arg("--key-file").arg(own.key);
        // The cheapest: a login is no part of what is measured.
        command.args(["--bcrypt-cost", "4"]);
    }
    Ok(command)
}

/// etcd's own tool, with a log of its own; it has to be told as whom it comes.
pub fn etcdctl(layout: &Layout, addresses: &Addresses, log: &str) -> anyhow::Result<Command> {
    let mut command = prepare(layout, log, Path::new("etcdctl"), &layout.root)?;
    command.env("ETCDCTL_API", "3").env("ETCDCTL_ENDPOINTS", addresses.etcd_urls().join(","));
    if let (Some(ca), Some(own)) = (&addresses.access.ca, &addresses.access.certificate) {
        command.env("ETCDCTL_CACERT", ca);
        command.env("ETCDCTL_CERT", &own.certificate).env("ETCDCTL_KEY", &own.key);
    }
    Ok(command)
}

/// The one-time `pgdeputy init`.
pub fn init(
    layout: &Layout,
    addresses: &Addresses,
    pgdeputy: &Path,
    spec: &Path,
) -> anyhow::Result<Command> {
    let mut command = prepare(layout, "init", pgdeputy, &layout.root)?;
    command.arg("init").args(["--cluster", CLUSTER]).args(addresses.etcd_words());
    command.arg("--spec").arg(spec);
    Ok(command)
}

/// A member's keeper. Started as root, it becomes `--postgres-user` by itself.
pub fn keeper(
    config: &LabConfig,
    layout: &Layout,
    addresses: &Addresses,
    (member, at): (&MemberName, MemberAddress),
) -> anyhow::Result<Command> {
    let mut command =
        prepare(layout, &format!("keeper-{member}"), &config.pgdeputy, &layout.member(member))?;
    command
        .arg("keeper")
        .args(["--cluster", CLUSTER, "--member", member.as_str()])
        .args(addresses.etcd_words())
        .args([
            "--listen",
            &format!("{}:{}", at.host, at.postgres),
            "--http",
            &format!("{}:{}", at.host, at.http),
        ])
        .arg("--data-dir")
        .arg(layout.data(member));
    for of in PASSWORDS {
        command.arg(format!("--{of}-password-file")).arg(layout.password(of));
    }
    command.args(["--restart-keeper", if config.keepers_restart { "always" } else { "never" }]);
    if let Some(refused) = config.refused_drills.get(member) {
        command.args(["--refuse-drills", refused]);
    }
    let index = (0..config.zones.len()).find(|index| member_name(*index) == *member);
    if let Some(zone) = index.and_then(|index| config.zones.get(index)) {
        command.args(["--zone", zone]);
    }
    if let Some(ca) = addresses.access.ca.as_ref().filter(|_| config.members_by_tls) {
        command.arg("--sslrootcert").arg(ca);
    }
    if let Some(bin) = &config.postgres_bin {
        command.arg("--postgres-bin").arg(bin);
    }
    if nix::unistd::geteuid().is_root() {
        command.args(["--postgres-user", &config.postgres_user]);
    }
    Ok(command)
}

/// One of the sentinels.
pub fn sentinel(
    config: &LabConfig,
    layout: &Layout,
    addresses: &Addresses,
    index: usize,
) -> anyhow::Result<Command> {
    let name = format!("sentinel{}", index + 1);
    let mut command = prepare(layout, &name, &config.pgdeputy, &layout.root)?;
    command.arg("sentinel").args(["--cluster", CLUSTER]).args(addresses.etcd_words());
    if config.services_restart {
        command.env(SERVICE_MANAGER.0, SERVICE_MANAGER.1);
    }
    Ok(command)
}

/// By this variable supervisord tells what it has started that it is there.
const SERVICE_MANAGER: (&str, &str) = ("SUPERVISOR_ENABLED", "1");

/// Where HAProxy's files are.
pub struct HaproxyFiles {
    pub config: PathBuf,
    pub socket: PathBuf,
    /// The process id of its master, which reloads on SIGUSR2.
    pub pid: PathBuf,
}

impl HaproxyFiles {
    /// The files in this lab.
    pub fn of(layout: &Layout) -> Self {
        let file = |name| layout.process("haproxy").join(name);
        Self { config: file("haproxy.cfg"), socket: file("haproxy.sock"), pid: file("haproxy.pid") }
    }
}

/// The process that writes HAProxy's configuration and switches it.
pub fn proxy_config(
    config: &LabConfig,
    layout: &Layout,
    addresses: &Addresses,
) -> anyhow::Result<Command> {
    let files = HaproxyFiles::of(layout);
    let pid = files.pid.display();
    let mut command =
        prepare(layout, "proxy-config", &config.pgdeputy, &layout.process("haproxy"))?;
    command
        .arg("proxy-config")
        .args(["--cluster", CLUSTER])
        .args(addresses.etcd_words())
        .arg("--haproxy-config")
        .arg(&files.config)
        .arg("--haproxy-socket")
        .arg(&files.socket)
        .args([
            "--write-port",
            &addresses.write_port.to_string(),
            "--read-port",
            &addresses.read_port.to_string(),
            "--fresh-port",
            &addresses.fresh_port.to_string(),
        ])
        .args(addresses.pool_ports.iter().map(|(pool, port)| format!("--pool-port={pool}={port}")))
        .args(["--bind", "127.0.0.1"])
        // Before HAProxy has been started there is nothing to reload.
        .args(["--reload", &format!("if [ -s {pid} ]; then kill -USR2 $(cat {pid}); fi")])
        .args(pgbouncer::flags(layout, &addresses.pgbouncers));
    if config.services_restart {
        command.env(SERVICE_MANAGER.0, SERVICE_MANAGER.1);
        command.args(["--restart", &format!("kill -TERM $(cat {pid})")]);
        command.args(pgbouncer::restart(layout, &addresses.pgbouncers));
    }
    Ok(command)
}

/// Returns where a proxy's program is: normal users of Debian have no sbin on their PATH.
pub fn program(name: &str) -> PathBuf {
    let places = ["/usr/sbin", "/usr/bin", "/usr/local/sbin"].map(|d| Path::new(d).join(name));
    places.into_iter().find(|path| path.exists()).unwrap_or_else(|| name.into())
}

/// HAProxy itself, in the foreground with a master that reloads.
pub fn haproxy(layout: &Layout) -> anyhow::Result<Command> {
    let files = HaproxyFiles::of(layout);
    let directory = layout.process("haproxy");
    let mut command = prepare(layout, "haproxy", &program("haproxy"), &directory)?;
    command.args(["-W", "-db", "-f"]).arg(&files.config);
    Ok(command)
}

/// Waits at the other end of a pipe and ends the lab when this process is gone, see `cleanup::guard`.
pub fn guard(pgdeputy: &Path) -> Command {
    let mut command = Command::new(pgdeputy);
    command.args(["demo", "--guard"]).current_dir("/");
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
    command
}
