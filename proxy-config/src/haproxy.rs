//! Writes HAProxy's files as text: the configuration, and the server states that a starting HAProxy takes over.
//! The same routes always give the same bytes; what changes with every failover stands in comments and in the
//! states only, so that a failover never needs a reload.
//!
//! Found out with HAProxy 2.6.12:
//! - It has no `init-state`: a starting worker takes every checked server as UP until its first check, so standbys
//!   would get writes. With `load-server-state-from-file` it starts with the states and weights of the file, also
//!   when the file was not made by HAProxy. An address of `-` leaves the configured one; the port is *not* left, a 0
//!   there would be used, so the real one is repeated.
//! - A state file that does not exist is a warning at start and no error.
//! - `nbsrv` does not count servers of weight 0, so the read port falls back to the primary by itself, also when no
//!   proxy-config runs.
//! - A server that an agent's `maint` has taken out shows as MAINT, its checks rest and the agent is asked on; `ready`
//!   brings it back at once and as UP, before any check. That is harmless where any standby may serve, so only the
//!   read pools have an agent. An agent that does not answer, or in words that HAProxy does not know, changes nothing.

mod header;
mod states;

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use proto::{ClusterName, MemberName, PoolName, size};

use crate::HaproxyConfig;
use crate::route::{Addresses, Routes};

/// The backend in which only the primary is up.
pub const WRITE: &str = "pgdeputy_write";
/// The backend of standbys.
pub const READ: &str = "pgdeputy_read";
/// The backend of those that have every acknowledged write.
pub const FRESH: &str = "pgdeputy_fresh";
/// What the backends of pools of their own begin with.
const POOL: &str = "pgdeputy_pool_";

/// Comes back by itself only after three good checks in a row (1 s). While proxy-config lives it says "down" anew
/// every 0.25 s, so that an old primary which still answers never gets that far; when proxy-config is dead, the
/// checks are the only source left, and they take over. Who is down keeps no session.
const WRITE_CHECKS: &str = "check inter 500ms fall 2 rise 3 on-marked-down shutdown-sessions";
/// One bad answer is enough: a read that is refused is better than one that is not fresh.
const FRESH_CHECKS: &str = "check inter 500ms fall 1 rise 3 on-marked-down shutdown-sessions";
/// A standby that lags leaves without losing its sessions. Its agent answers as the keeper's HTTP port does.
const READ_CHECKS: &str = "check inter 500ms fall 2 rise 2 agent-check agent-inter 1s";

/// A whole configuration, and how a running HAProxy that has loaded it can be told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rendered {
    pub text: String,
    /// Shown by `show info` as the description: equal as long as no reload is needed.
    pub fingerprint: String,
    /// What a worker takes over that a reload of ours starts: nobody who gets sessions misses one.
    pub states: String,
    /// What any other starting HAProxy takes over: the present primary may be another one by then, so nobody gets
    /// writes or fresh reads before proxy-config or the checks have said so.
    pub closed: String,
}

/// Returns the files for `routes`.
pub fn render(cluster: &ClusterName, config: &HaproxyConfig, routes: &Routes) -> Rendered {
    let sections = sections(config, routes);
    let globals = globals(config);
    let checksum = crc32c::crc32c_append(crc32c::crc32c(globals.as_bytes()), sections.as_bytes());
    let fingerprint = format!("pgdeputy-{checksum:08x}");
    let header = header::header(cluster, routes);
    let text = format!("{header}\nglobal\n    description {fingerprint}\n{globals}\n{sections}");
    let closed = Routes { write: None, fresh: Default::default(), ..routes.clone() };
    Rendered {
        text,
        fingerprint,
        states: states::states(config, routes),
        closed: states::states(config, &closed),
    }
}

/// Returns the file of server states that belongs to a configuration file.
pub fn states_path(haproxy_config: &Path) -> PathBuf {
    let mut name = haproxy_config.as_os_str().to_owned();
    name.push(".states");
    name.into()
}

/// A port with the servers behind it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Backend {
    pub name: String,
    pub port: u16,
    pub kind: Kind,
}

/// Whom a backend leads to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    Write,
    Fresh,
    /// The common read pool, or one of its own.
    Read(Option<PoolName>),
}

/// Returns the backends in the order in which they stand in the file.
pub fn backends(config: &HaproxyConfig) -> Vec<Backend> {
    let backend = |name: &str, port, kind| Backend { name: name.to_owned(), port, kind };
    let mut all = vec![
        backend(WRITE, config.write_port, Kind::Write),
        backend(READ, config.read_port, Kind::Read(None)),
    ];
    all.extend(config.fresh_port.map(|port| backend(FRESH, port, Kind::Fresh)));
    all.extend(config.pool_ports.iter().map(|(pool, port)| {
        backend(&format!("{POOL}{pool}"), *port, Kind::Read(Some(pool.clone())))
    }));
    all
}

impl Backend {
    /// Returns the servers of this backend: of a read pool its own members, else everybody.
    pub fn servers<'a>(
        &'a self,
        routes: &'a Routes,
    ) -> impl Iterator<Item = (&'a MemberName, &'a Addresses)> {
        routes.members.iter().filter(|(_, at)| match &self.kind {
            Kind::Write | Kind::Fresh => true,
            Kind::Read(pool) => at.pool == *pool,
        })
    }
}

fn globals(config: &HaproxyConfig) -> String {
    // `no strict-limits`: where the machine allows fewer open files HAProxy takes fewer clients, and still starts.
    format!(
        "    stats socket {} mode 600 level admin expose-fd listeners\n    \
             server-state-file {}\n    maxconn 4000\n    no strict-limits\n",
        config.socket.display(),
        states_path(&config.file).display(),
    )
}

/// Connections are not tried again for writes: the client hears at once, while HAProxy would wait a second and miss
/// the new primary. Sessions to a machine that has vanished end after about 15 s (keepalives and `tcp-ut`), also in
/// a worker that a reload has left behind with its old sessions and without checks.
const DEFAULTS: &str = "\
defaults
    mode tcp
    option tcpka
    srvtcpka-idle 9s
    srvtcpka-intvl 2s
    srvtcpka-cnt 3
    timeout connect 2s
    timeout client 30m
    timeout server 30m
    timeout check 1s
    load-server-state-from-file global
    default-server init-addr last,libc,none tcp-ut 15s
";

fn sections(config: &HaproxyConfig, routes: &Routes) -> String {
    let all = backends(config);
    let mut text = DEFAULTS.to_owned();
    for Backend { name, port, kind } in &all {
        let fallback = match kind {
            Kind::Read(None) => format!("    use_backend {WRITE} if {{ nbsrv({READ}) eq 0 }}\n"),
            Kind::Write | Kind::Fresh | Kind::Read(Some(_)) => String::new(),
        };
        let bind = config.bind_address();
        let _ = write!(
            text,
            "\nfrontend {name}_port\n    bind {bind}:{port}\n{fallback}    default_backend {name}\n"
        );
    }
    for backend in &all {
        let _ = write!(text, "\nbackend {}\n{}", backend.name, body(config, backend, routes));
    }
    text
}

fn body(config: &HaproxyConfig, backend: &Backend, routes: &Routes) -> String {
    let limits = &routes.limits;
    let (lag_bytes, lag_time) = (size::show(limits.bytes), proto::time::show(limits.time));
    let spread = "    balance leastconn\n    retries 2\n    option redispatch 1\n";
    let (balance, uri, checks) = match backend.kind {
        Kind::Write => ("    retries 0\n", "/primary".to_owned(), WRITE_CHECKS.to_owned()),
        Kind::Fresh => (spread, "/fresh".to_owned(), FRESH_CHECKS.to_owned()),
        Kind::Read(_) => {
            let uri = format!("/replica?lag={lag_bytes}&lag={lag_time}");
            // What tells apart those who ask one keeper.
            let asks = format!("agent {}@{}", backend.name, config.socket.display());
            (spread, uri, format!("{READ_CHECKS} agent-send \"{asks}\\n\""))
        }
    };
    let mut text = format!(
        "{balance}    option httpchk\n    http-check send meth GET uri {uri}\n    \
         http-check expect status 200\n    default-server {checks}\n"
    );
    for (name, Addresses { postgres, http, .. }) in backend.servers(routes) {
        // A name in `addr` must resolve at start; the server's own address need not (`init-addr`).
        let elsewhere = (http.host != postgres.host).then_some(&http.host);
        let mut options = format!("port {}", http.port);
        options.extend(elsewhere.map(|host| format!(" addr {host}")));
        if matches!(backend.kind, Kind::Read(_)) {
            let _ = write!(options, " agent-port {}", http.port);
            options.extend(elsewhere.map(|host| format!(" agent-addr {host}")));
        }
        let _ = writeln!(text, "    server {name} {postgres} {options}");
    }
    text
}
