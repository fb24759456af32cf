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

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use proto::{ClusterName, HostPort, MemberName};

use crate::HaproxyConfig;
use crate::route::{Addresses, Routes};

/// The backend in which only the primary is up.
pub const WRITE: &str = "pgdeputy_write";
/// The backend of standbys.
pub const READ: &str = "pgdeputy_read";

/// The mark of lines that are read back after a restart.
const MARK: &str = "# pgdeputy";

/// Comes back by itself only after three good checks in a row (1 s). While proxy-config lives it says "down" anew
/// every 0.25 s, so that an old primary which still answers never gets that far; when proxy-config is dead, the
/// checks are the only source left, and they take over.
const WRITE_CHECKS: &str = "inter 500ms fall 2 rise 3";
const READ_CHECKS: &str = "inter 500ms fall 2 rise 1";

/// A whole configuration, and how a running HAProxy that has loaded it can be told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rendered {
    pub text: String,
    /// Shown by `show info` as the description: equal as long as no reload is needed.
    pub fingerprint: String,
    pub states: String,
}

/// Returns the files for `routes`.
pub fn render(cluster: &ClusterName, config: &HaproxyConfig, routes: &Routes) -> Rendered {
    let sections = sections(config, routes);
    let globals = globals(config);
    let checksum = crc32c::crc32c_append(crc32c::crc32c(globals.as_bytes()), sections.as_bytes());
    let fingerprint = format!("pgdeputy-{checksum:08x}");
    let header = header(cluster, routes);
    let text = format!("{header}\nglobal\n    description {fingerprint}\n{globals}\n{sections}");
    Rendered { text, fingerprint, states: states(routes) }
}

/// Returns the file of server states that belongs to a configuration file.
pub fn states_path(haproxy_config: &Path) -> PathBuf {
    let mut name = haproxy_config.as_os_str().to_owned();
    name.push(".states");
    name.into()
}

/// What an installed configuration says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Installed {
    /// It was written by us, for this cluster.
    Ours { cluster: String, routes: Routes },
    /// Somebody else's file, or one that was damaged.
    Foreign,
}

/// Reads back what `render` wrote into the comments.
pub fn read_back(text: &str) -> Installed {
    let mut routes = Routes::default();
    let mut cluster = None;
    let mut has_epoch = false;
    for line in text.lines().filter_map(|l| l.strip_prefix(MARK)) {
        let words: Vec<&str> = line.split_whitespace().collect();
        let understood = match words.as_slice() {
            ["cluster", name] => cluster.replace((*name).to_owned()).is_none(),
            ["epoch", number] => {
                has_epoch = true;
                number.parse().map(|n| routes.epoch = proto::Epoch(n)).is_ok()
            }
            ["write"] => true,
            ["write", member] => member.parse().map(|m| routes.write = Some(m)).is_ok(),
            ["read", members @ ..] => {
                let read: Result<_, _> = members.iter().map(|m| m.parse()).collect();
                read.map(|r| routes.read = r).is_ok()
            }
            ["member", name, postgres, http] => member(name, postgres, http)
                .map(|(name, at)| routes.members.insert(name, at))
                .is_some(),
            _ => false,
        };
        if !understood {
            return Installed::Foreign;
        }
    }
    match cluster {
        Some(cluster) if has_epoch => Installed::Ours { cluster, routes },
        _ => Installed::Foreign,
    }
}

fn member(name: &str, postgres: &str, http: &str) -> Option<(MemberName, Addresses)> {
    let addresses = Addresses { postgres: postgres.parse().ok()?, http: http.parse().ok()? };
    Some((name.parse().ok()?, addresses))
}

fn header(cluster: &ClusterName, routes: &Routes) -> String {
    let read: String = routes.read.iter().map(|m| format!(" {m}")).collect();
    let write: String = routes.write.iter().map(|m| format!(" {m}")).collect();
    let mut text = format!(
        "# Generated by pgdeputy proxy-config: edits are lost at the next change of the cluster.\n\
         # The marked lines are read back when proxy-config starts again.\n\
         {MARK} cluster {}\n{MARK} epoch {}\n{MARK} write{write}\n{MARK} read{read}\n",
        cluster, routes.epoch
    );
    for (name, at) in &routes.members {
        let _ = writeln!(text, "{MARK} member {name} {} {}", at.postgres, at.http);
    }
    text
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
fn sections(config: &HaproxyConfig, routes: &Routes) -> String {
    let bind = config.bind_address();
    let (write_port, read_port) = (config.write_port, config.read_port);
    let servers = servers(routes);
    format!(
        "defaults
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
    default-server init-addr last,libc,none tcp-ut 15s on-marked-down shutdown-sessions

frontend {WRITE}_port
    bind {bind}:{write_port}
    default_backend {WRITE}

frontend {READ}_port
    bind {bind}:{read_port}
    use_backend {WRITE} if {{ nbsrv({READ}) eq 0 }}
    default_backend {READ}

backend {WRITE}
    retries 0
    option httpchk
    http-check send meth GET uri /primary
    http-check expect status 200
    default-server check {WRITE_CHECKS}
{servers}
backend {READ}
    balance leastconn
    retries 2
    option redispatch 1
    option httpchk
    http-check send meth GET uri /replica
    http-check expect status 200
    default-server check {READ_CHECKS}
{servers}"
    )
}

fn servers(routes: &Routes) -> String {
    let mut text = String::new();
    for (name, Addresses { postgres, http }) in &routes.members {
        // A name in `addr` must resolve at start; the server's own address need not (`init-addr`).
        let check_host = match http.host == postgres.host {
            true => String::new(),
            false => format!(" addr {}", http.host),
        };
        let _ = writeln!(text, "    server {name} {postgres} port {}{check_host}", http.port);
    }
    text
}

/// The columns are those of `show servers state` in version 1 of that format.
const STATE_COLUMNS: &str = "\
1
# be_id be_name srv_id srv_name srv_addr srv_op_state srv_admin_state srv_uweight srv_iweight \
srv_time_since_last_change srv_check_status srv_check_result srv_check_health srv_check_state srv_agent_state \
bk_f_forced_id srv_f_forced_id srv_fqdn srv_port srvrecord srv_use_ssl srv_check_port srv_check_addr \
srv_agent_addr srv_agent_port
";

fn states(routes: &Routes) -> String {
    let mut text = STATE_COLUMNS.to_owned();
    let mut line = |backend: (u8, &str),
                    server: (usize, &MemberName, &HostPort),
                    up: u8,
                    weight: u8| {
        let ((id, backend), (number, name, postgres)) = (backend, server);
        let _ = writeln!(
            text,
            "{id} {backend} {number} {name} - {up} 0 {weight} 1 0 1 0 0 6 0 0 0 - {} - 0 0 - - 0",
            postgres.port
        );
    };
    let members = || (1..).zip(&routes.members).map(|(i, (name, at))| (i, name, &at.postgres));
    for server in members() {
        let up = if routes.write.as_ref() == Some(server.1) { UP } else { DOWN };
        line((4, WRITE), server, up, 1);
    }
    for server in members() {
        line((5, READ), server, UP, u8::from(routes.read.contains(server.1)));
    }
    text
}

const UP: u8 = 2;
const DOWN: u8 = 0;
