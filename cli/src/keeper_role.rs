//! `keeper`: checks what a keeper is started with, drops root's rights, and runs it; also the hidden `fencer`.
//!
//! The one rule: everything that can be refused is refused here, before the first file or socket is opened.

use std::ffi::OsString;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use keeper::config::{Config, PasswordSource, SecretsSource};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, Uid, User};
use proto::{HostPort, MemberName};

use crate::drillable::{DrillableArgs, has_service_manager};
use crate::failure::{Failure, USAGE_STATUS};
use crate::runtime;
use crate::target::Target;

pub mod tls;
use tls::TlsArgs;

/// The longest path of a Unix socket that Linux takes, without the final zero byte.
const LONGEST_SOCKET_PATH: usize = 107;

#[derive(Debug, Args)]
pub struct KeeperArgs {
    #[command(flatten)]
    target: Target,
    /// Name of this member, unique within its cluster
    #[arg(long, value_name = "NAME")]
    member: MemberName,
    /// PostgreSQL's data directory; made where it does not exist
    #[arg(long, value_name = "DIR")]
    data_dir: PathBuf,
    /// Where PostgreSQL listens and others connect
    #[arg(long, value_name = "ADDR:PORT")]
    listen: HostPort,
    /// Where the keeper answers HTTP and gRPC, and others ask it
    #[arg(long, value_name = "ADDR:PORT")]
    http: HostPort,
    /// Where PostgreSQL's programs are [default: the usual places, then PATH]
    #[arg(long, value_name = "DIR")]
    postgres_bin: Option<PathBuf>,
    /// User to become before anything is opened [default: postgres, when started as root]
    #[arg(long, value_name = "USER")]
    postgres_user: Option<String>,
    /// Availability zone of this host
    #[arg(long, value_name = "NAME")]
    zone: Option<String>,
    /// Whether the fencer starts a keeper again that has died [auto: unless systemd or supervisord started it]
    #[arg(long, value_enum, default_value = "auto", value_name = "WHEN")]
    restart_keeper: RestartKeeper,
    /// Take the member over from the keeper that runs on this directory, as in an upgrade; no client notices
    #[arg(long)]
    take_over: bool,
    /// How long a primary that is told to stop may take to hand over to another member first; 0s: not at all
    #[arg(long, value_name = "DURATION", default_value = "15s", value_parser = hand_over_within)]
    hand_over_within: Duration,
    /// Leave PostgreSQL running when told to stop, for the next keeper; SIGUSR2 does that for once
    #[arg(long)]
    leave_postgres: bool,
    #[command(flatten)]
    drillable: DrillableArgs,
    /// Where the keeper keeps its own files [default: the data directory's name with .pgdeputy]
    #[arg(long, value_name = "DIR")]
    state_dir: Option<PathBuf>,
    /// File with the password of role pgdeputy [default: PGDEPUTY_SUPERUSER_PASSWORD, else made by init]
    #[arg(long, value_name = "FILE")]
    superuser_password_file: Option<PathBuf>,
    /// The same for role pgdeputy_replication
    #[arg(long, value_name = "FILE")]
    replication_password_file: Option<PathBuf>,
    /// The same for role pgdeputy_rewind
    #[arg(long, value_name = "FILE")]
    rewind_password_file: Option<PathBuf>,
    #[command(flatten)]
    tls: TlsArgs,
}

/// Whether the fencer starts a dead keeper again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum RestartKeeper {
    Auto,
    Always,
    Never,
}

impl RestartKeeper {
    fn by_fencer(self, pid: u32, variable: impl Fn(&str) -> Option<String>) -> bool {
        match self {
            Self::Always => true,
            Self::Never => false,
            Self::Auto => !has_service_manager(pid, variable),
        }
    }
}

/// Runs the role until it is told to stop.
pub fn run(args: KeeperArgs) -> Result<u8, Failure> {
    let user = user(args.postgres_user.as_deref(), Uid::effective().is_root())?;
    let config = config(args, |name| std::env::var(name).ok())?;
    if let Some(user) = user
        && let Some(status) = become_user(&user, &config)?
    {
        return Ok(status);
    }
    runtime::run(|stop| keeper::run(config, stop))?;
    Ok(0)
}

/// Returns whom to become, if anybody: PostgreSQL refuses to run as root.
fn user(asked: Option<&str>, is_root: bool) -> Result<Option<String>, Failure> {
    let Some(name) = asked.or(is_root.then_some("postgres")) else { return Ok(None) };
    let refuse = |problem: &str| Err(Failure::usage(format!("--postgres-user {name}: {problem}")));
    match User::from_name(name) {
        Ok(Some(user)) if user.uid.is_root() => {
            refuse("PostgreSQL refuses to run as root, name another user")
        }
        Ok(Some(user)) if !is_root && user.uid != Uid::effective() => {
            refuse("only root can become another user; start as that user, or leave the flag out")
        }
        Ok(Some(_)) => Ok(Some(name.to_owned())),
        Ok(None) => refuse("there is no such user on this host; create it, or name another"),
        Err(e) => refuse(&format!("it cannot be looked up: {e}")),
    }
}

/// Gives up root's rights for good. Before that makes only what `user` could not make by itself, so that a keeper
/// that cannot start changes nothing on disk. Returns an exit status if it cannot, and has said why.
fn become_user(user: &str, config: &Config) -> Result<Option<u8>, Failure> {
    let uid = User::from_name(user).ok().flatten().map(|u| u.uid.as_raw());
    let is_own = |dir: &Path| std::fs::metadata(dir).is_ok_and(|m| Some(m.uid()) == uid);
    let can_make = |dir: &Path| !dir.exists() && dir.parent().is_some_and(is_own);
    let needs_root = |dir: &Path| !is_own(dir) && !can_make(dir);
    if needs_root(&config.state_dir) || needs_root(&config.data_dir) {
        let status = look_first(user, config)?;
        if status != 0 {
            return Ok(Some(status));
        }
        keeper::privileges::prepare_directories(user, &config.data_dir, &config.state_dir)?;
    }
    keeper::privileges::drop_to(user)?;
    Ok(None)
}

/// Makes all checks in a child that has given up root's rights, so that a keeper that cannot start leaves no directory
/// behind. The child says what is wrong; its exit status is returned.
fn look_first(user: &str, config: &Config) -> Result<u8, Failure> {
    // SAFETY: this process has one thread: the runtime is built later, and nothing else starts threads.
    match unsafe { nix::unistd::fork() }.context("fork for the checks")? {
        ForkResult::Child => {
            let looked = keeper::privileges::drop_to(user)
                .and_then(|()| runtime::answer(keeper::preflight(config)));
            let status = looked.map_or_else(
                |error| {
                    let failure = Failure::from(error);
                    eprintln!("{}", failure.line());
                    failure.status()
                },
                |()| 0,
            );
            // SAFETY: _exit only ends this child; the parent's exit handlers and buffers are not its to run.
            unsafe { nix::libc::_exit(i32::from(status)) }
        }
        ForkResult::Parent { child } => {
            match waitpid(child, None).context("wait for the checks")? {
                WaitStatus::Exited(_, status) => Ok(u8::try_from(status).unwrap_or(1)),
                ended => Err(anyhow::anyhow!("the checks ended with {ended:?}").into()),
            }
        }
    }
}

/// Checks the relations between the flags.
fn config(args: KeeperArgs, variable: impl Fn(&str) -> Option<String>) -> Result<Config, Failure> {
    let data_dir = directory("--data-dir", &args.data_dir)?;
    let state_dir = match &args.state_dir {
        Some(given) => directory("--state-dir", given)?,
        None => beside(&data_dir),
    };
    if state_dir.starts_with(&data_dir) {
        return Err(Failure::usage(format!(
            "--state-dir {} lies within --data-dir, where a fresh copy would replace it: put it beside",
            state_dir.display()
        )));
    }
    check_socket_path(&state_dir, args.listen.port)?;
    if args.listen == args.http {
        return Err(Failure::usage(format!(
            "--listen and --http are both {}: use two ports",
            args.http
        )));
    }
    if let Some(bin) = args.postgres_bin.as_deref().filter(|bin| !bin.join("postgres").is_file()) {
        return Err(Failure::usage(format!(
            "--postgres-bin {}: there is no program `postgres` in it",
            bin.display()
        )));
    }
    if args.zone.as_deref() == Some("") {
        return Err(Failure::usage("--zone is empty: name a zone or leave it out"));
    }
    let secrets = SecretsSource {
        superuser: password("superuser", args.superuser_password_file, &variable)?,
        replication: password("replication", args.replication_password_file, &variable)?,
        rewind: password("rewind", args.rewind_password_file, &variable)?,
    };
    check_all_or_none(&secrets)?;
    let tls = args.tls.checked()?;
    Ok(Config {
        cluster: args.target.cluster,
        member: args.member,
        etcd: args.target.store.access()?,
        data_dir,
        state_dir,
        listen: args.listen,
        http: args.http,
        postgres_bin: args.postgres_bin,
        zone: args.zone,
        take_over: args.take_over,
        restarted_by_fencer: args.restart_keeper.by_fencer(std::process::id(), variable),
        hand_over_within: args.hand_over_within,
        leave_postgres: args.leave_postgres,
        refused_drills: args.drillable.refused(),
        secrets,
        tls,
    })
}

/// Makes a path absolute and plain, so that it means the same from wherever it is used.
fn directory(flag: &str, given: &Path) -> Result<PathBuf, Failure> {
    let about = |problem: &str| {
        Failure::usage(format!("{flag} {:?}: {problem}", given.display().to_string()))
    };
    let absolute = std::path::absolute(given).map_err(|e| about(&e.to_string()))?;
    let plain: PathBuf = absolute.components().collect();
    match plain.file_name() {
        Some(_) => Ok(plain),
        None => Err(about("name a directory below the root, without `..` at its end")),
    }
}

/// Below the 30 s that the service manager leaves, with the 10 s in which PostgreSQL stops without one to take over.
fn hand_over_within(given: &str) -> Result<Duration, String> {
    match humantime::parse_duration(given) {
        Ok(within) if within <= Duration::from_secs(600) => Ok(within),
        Ok(_) => Err("use 0s to 10m, and less than the service manager's stop timeout".into()),
        Err(e) => Err(format!("not a duration such as 15s: {e}")),
    }
}

fn beside(data_dir: &Path) -> PathBuf {
    let mut name = data_dir.file_name().map(OsString::from).unwrap_or_default();
    name.push(".pgdeputy");
    data_dir.with_file_name(name)
}

/// PostgreSQL would only say so after initdb or a whole copy.
fn check_socket_path(state_dir: &Path, port: u16) -> Result<(), Failure> {
    let socket = state_dir.join(format!("socket/.s.PGSQL.{port}"));
    let length = socket.as_os_str().len();
    if length <= LONGEST_SOCKET_PATH {
        return Ok(());
    }
    Err(Failure::usage(format!(
        "--state-dir {}: PostgreSQL's socket in it would have a path of {length} bytes, {LONGEST_SOCKET_PATH} are \
         possible: give a shorter --state-dir",
        state_dir.display()
    )))
}

fn password(
    role: &str,
    file: Option<PathBuf>,
    variable: impl Fn(&str) -> Option<String>,
) -> Result<Option<PasswordSource>, Failure> {
    let name = format!("PGDEPUTY_{}_PASSWORD", role.to_uppercase());
    match (file, variable(&name)) {
        (Some(path), _) if path.is_file() => Ok(Some(PasswordSource::File(path))),
        (Some(path), _) => Err(Failure::usage(format!(
            "--{role}-password-file {}: there is no such file",
            path.display()
        ))),
        (None, Some(value)) if value.is_empty() => {
            Err(Failure::usage(format!("{name} is empty: set a password or unset it")))
        }
        (None, value) => Ok(value.map(PasswordSource::Env)),
    }
}

fn check_all_or_none(secrets: &SecretsSource) -> Result<(), Failure> {
    let roles = [
        ("superuser", secrets.superuser.is_some()),
        ("replication", secrets.replication.is_some()),
        ("rewind", secrets.rewind.is_some()),
    ];
    let missing: Vec<&str> =
        roles.iter().filter(|(_, given)| !given).map(|(role, _)| *role).collect();
    if missing.is_empty() || missing.len() == roles.len() {
        return Ok(());
    }
    Err(Failure::usage(format!(
        "no password for {}: give all three of superuser, replication and rewind (--ROLE-password-file or \
         PGDEPUTY_ROLE_PASSWORD), or none to use those that init made",
        missing.join(" and ")
    )))
}

/// Runs `pgdeputy fencer --state-dir DIR --data-dir DIR`, in this one thread and without clap's environment.
pub fn fencer(given: Vec<OsString>) -> ExitCode {
    let flag = |name: &str| {
        given.chunks_exact(2).find(|pair| pair[0] == name).map(|pair| PathBuf::from(&pair[1]))
    };
    let (Some(state_dir), Some(data_dir), 4) =
        (flag("--state-dir"), flag("--data-dir"), given.len())
    else {
        eprintln!(
            "pgdeputy: fencer is started by the keeper, as `pgdeputy fencer --state-dir DIR --data-dir DIR`"
        );
        return ExitCode::from(USAGE_STATUS);
    };
    let status = keeper::fencer::main(keeper::fencer::FencerArgs { state_dir, data_dir });
    ExitCode::from(u8::try_from(status).unwrap_or(1))
}

#[cfg(test)]
mod tests;
