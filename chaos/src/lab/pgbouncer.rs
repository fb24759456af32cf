//! The lab's PgBouncers, in transaction mode, with logins by scram. proxy-config writes their databases.

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::process::Command;

use anyhow::Context;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::commands::{prepare, program};
use super::config::{LabConfig, Layout};
use super::{APPLICATION, Lab};

/// One of PgBouncer's admin_users, as which proxy-config logs in.
pub const CONSOLE: &str = "pgdeputy_console";

/// The file of its password, among the lab's passwords.
pub const CONSOLE_PASSWORD: &str = "console";

/// The role as which PgBouncer looks up users that are not in its file: see `Lab::allow_lookups`.
pub const LOOKUP: &str = "pgbouncer_lookup";

/// The server connections of one database: enough for a benchmark with 16 clients.
const POOL_SIZE: usize = 20;

/// The name of a PgBouncer's process, its log and its directory.
pub fn name(index: usize) -> String {
    format!("pgbouncer{}", index + 1)
}

/// The file that proxy-config writes and every PgBouncer of the lab includes.
pub fn databases(layout: &Layout) -> PathBuf {
    layout.process("pgbouncer").join("databases.ini")
}

fn pid_file(layout: &Layout, index: usize) -> PathBuf {
    layout.process(&name(index)).join("pid")
}

/// The command by which proxy-config ends a PgBouncer at once, as `PGDEPUTY_PGBOUNCER` names it.
pub fn restart(layout: &Layout, ports: &[u16]) -> Vec<String> {
    let cases = ports.iter().enumerate().map(|(index, port)| {
        format!("*:{port}) kill -KILL $(cat {}) ;; ", pid_file(layout, index).display())
    });
    let command = format!("case $PGDEPUTY_PGBOUNCER in {}esac", cases.collect::<String>());
    if ports.is_empty() { Vec::new() } else { vec!["--pgbouncer-restart".to_owned(), command] }
}

/// The flags by which proxy-config knows the PgBouncers that listen on `ports`.
pub fn flags(layout: &Layout, ports: &[u16]) -> Vec<String> {
    if ports.is_empty() {
        return Vec::new();
    }
    let mut flags = vec![
        "--pgbouncer-config".into(),
        databases(layout).display().to_string(),
        "--pgbouncer-password-file".into(),
        layout.password(CONSOLE_PASSWORD).display().to_string(),
        "--pgbouncer-database".into(),
        format!("{APPLICATION} pool_size={POOL_SIZE} max_db_connections={}", 2 * POOL_SIZE),
    ];
    for port in ports {
        flags.push("--pgbouncer-admin".into());
        flags.push(format!("host={} port={port} user={CONSOLE}", Ipv4Addr::LOCALHOST));
    }
    flags
}

/// Its pgbouncer.ini.
fn ini(layout: &Layout, (index, port): (usize, u16)) -> String {
    let directory = layout.process(&name(index));
    format!(
        "[pgbouncer]
listen_addr = {}
listen_port = {port}
unix_socket_dir = {}
auth_type = scram-sha-256
auth_file = {}
auth_user = {LOOKUP}
auth_query = SELECT name, secret FROM pgbouncer_secret($1)
admin_users = {CONSOLE}
pool_mode = transaction
max_client_conn = 500
server_login_retry = 0.1
pidfile = {}
ignore_startup_parameters = extra_float_digits

%include {}
",
        Ipv4Addr::LOCALHOST,
        directory.display(),
        directory.join("users.txt").display(),
        pid_file(layout, index).display(),
        databases(layout).display()
    )
}

/// The command that starts one. It refuses to be root.
fn command(config: &LabConfig, layout: &Layout, index: usize) -> anyhow::Result<Command> {
    let directory = layout.process(&name(index));
    let mut command = prepare(layout, &name(index), &program("pgbouncer"), &layout.root)?;
    if nix::unistd::geteuid().is_root() {
        command.args(["-u", &config.postgres_user]);
    }
    command.arg(directory.join("pgbouncer.ini"));
    Ok(command)
}

impl Lab {
    /// Writes the files of all PgBouncers and starts them.
    pub(super) fn start_pgbouncers(&mut self) -> anyhow::Result<()> {
        let password = self.home.layout.password(CONSOLE_PASSWORD);
        let password = std::fs::read_to_string(&password).context("read the console's password")?;
        let users = format!(
            "\"{APPLICATION}\" \"{0}\"\n\"{LOOKUP}\" \"{0}\"\n\"{CONSOLE}\" \"{1}\"\n",
            self.application_password,
            password.trim_end()
        );
        for (index, port) in self.addresses.pgbouncers.clone().into_iter().enumerate() {
            let directory = self.home.layout.process(&name(index));
            self.home.make_private(&directory)?;
            self.home.write_private(&directory.join("users.txt"), &users)?;
            let ini = ini(&self.home.layout, (index, port));
            self.home.write_private(&directory.join("pgbouncer.ini"), &ini)?;
            self.start_pgbouncer(index)?;
        }
        if let Some(port) = self.addresses.pgbouncers.first() {
            (self.config.narrate)(&format!("PgBouncer: writes on port {port}"));
        }
        Ok(())
    }

    /// Starts one again.
    pub fn start_pgbouncer(&mut self, index: usize) -> anyhow::Result<()> {
        let command = command(&self.config, &self.home.layout, index)?;
        self.start_other(&name(index), command).map(drop)
    }

    /// How the application connects through the PgBouncer with this index.
    pub fn pooled_application(&self, index: usize) -> anyhow::Result<tokio_postgres::Config> {
        Ok(self.application(Ipv4Addr::LOCALHOST, self.pgbouncer_port(index)?))
    }

    /// Returns the port of the PgBouncer with this index, on loopback.
    pub fn pgbouncer_port(&self, index: usize) -> anyhow::Result<u16> {
        let port = self.addresses.pgbouncers.get(index).copied();
        port.with_context(|| format!("the lab has no PgBouncer {index}"))
    }

    /// How the application reads through the PgBouncer with this index.
    pub fn pooled_reader(&self, index: usize) -> anyhow::Result<tokio_postgres::Config> {
        let mut config = self.pooled_application(index)?;
        config.dbname(format!("{APPLICATION}_ro"));
        Ok(config)
    }

    /// Signals a process that is no member's, such as `proxy-config`, `haproxy` or `pgbouncer1`.
    pub fn signal_other(&mut self, name: &str, signal: Signal) -> anyhow::Result<()> {
        let found = self.others.iter().rposition(|(known, _)| known == name);
        let at = found.with_context(|| format!("the lab has no process {name}"))?;
        let pid = self.others[at].1;
        if signal == Signal::SIGKILL {
            self.others.remove(at);
        }
        kill(Pid::from_raw(pid), signal).with_context(|| format!("signal {name}"))
    }

    /// Starts proxy-config again.
    pub fn start_proxy_config(&mut self) -> anyhow::Result<()> {
        let command =
            super::commands::proxy_config(&self.config, &self.home.layout, &self.addresses)?;
        self.start_other("proxy-config", command).map(drop)
    }
}
