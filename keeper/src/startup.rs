//! Everything that is checked before a keeper does anything. What is wrong gets one clear line, and nothing on disk
//! has changed by then.

use std::io::ErrorKind;
use std::net::{TcpListener, UdpSocket};
use std::path::Path;

use anyhow::{Context, bail, ensure};
use proto::right::Secrets;
use proto::{Document, HostPort, Incarnation};
use store::Snapshot;
use store::keys::Keys;

use crate::cluster;
use crate::config::{Config, PasswordSource};
use crate::durable::read_optional;
use crate::facts::ClusterView;
use crate::kept;
use crate::late_store::{self, Known};
use crate::member_files::{MemberFiles, MemberStore, Role};
use crate::postgres::binaries::PostgresBinaries;
use crate::postgres::control::ControlFile;
use crate::postgres::initdb::is_absent_or_empty;
use crate::postgres::tls::Tls;

/// The longest path of a Unix socket, in bytes (sockaddr_un).
const LONGEST_SOCKET_PATH: usize = 107;

/// What the checks found.
pub struct Prepared {
    pub binaries: PostgresBinaries,
    pub secrets: Secrets,
    pub view: ClusterView,
    pub files: MemberStore,
    pub http: TcpListener,
    pub echo: UdpSocket,
}

/// What the checks found that change nothing.
struct Checked {
    binaries: PostgresBinaries,
    secrets: Secrets,
    view: ClusterView,
    /// The member files, locked, where there is a state directory already.
    files: Option<MemberStore>,
    http: TcpListener,
    echo: UdpSocket,
}

/// Checks the configuration against this host and the cluster, and changes nothing on disk.
pub async fn preflight(config: &Config) -> anyhow::Result<()> {
    let (_, known) = late_store::reach(config).await?;
    check(config, known).map(drop)
}

/// Checks the configuration against this host and the cluster, then opens the member files.
pub fn prepare(config: &Config, known: Known) -> anyhow::Result<Prepared> {
    let Checked { binaries, secrets, view, files, http, echo } = check(config, known)?;
    let mut files = match files {
        Some(files) => files,
        None => MemberStore::open(&config.state_dir)?,
    };
    first_files(config, &mut files)?;
    if !config.secrets.are_given() {
        kept::keep_secrets(&config.state_dir, &secrets)?;
    }
    let view = match files.load()? {
        Some(known) => cluster::believed(view, &known),
        None => view,
    };
    Ok(Prepared { binaries, secrets, view, files, http, echo })
}

/// Checks all that can be checked beside the keeper that runs on this directory.
pub fn rehearse(config: &Config, known: &Known) -> anyhow::Result<()> {
    examine(config, known)?;
    config.tls.as_ref().map_or(Ok(()), Tls::check)
}

fn check(config: &Config, known: Known) -> anyhow::Result<Checked> {
    // A second keeper on one directory is told so, rather than that its name or port is taken.
    let exists = config.state_dir.join("lock").exists();
    let files = exists.then(|| MemberStore::open(&config.state_dir)).transpose()?;
    let (binaries, secrets, view) = examine(config, &known)?;
    check_tls(config)?;
    let http = bind(&config.http, "--http")?;
    let echo = bind_echo(&config.http)?;
    if crate::fencer::of_data_directory(&config.data_dir, None).is_empty() {
        drop(bind(&config.listen, "--listen")?);
    }
    Ok(Checked { binaries, secrets, view, files, http, echo })
}

fn examine(
    config: &Config,
    known: &Known,
) -> anyhow::Result<(PostgresBinaries, Secrets, ClusterView)> {
    let binaries =
        PostgresBinaries::for_data_directory(config.postgres_bin.as_deref(), &config.data_dir)?;
    check_socket_path(config)?;
    let keys = Keys::of(&config.cluster);
    let (view, snapshot) = match known {
        Known::Read(snapshot) => {
            refuse_newer_formats(&keys, snapshot)?;
            (cluster::view_of(&keys, snapshot), Some(snapshot))
        }
        Known::Copy(view) => (ClusterView::clone(view), None),
    };
    let known = peek(&config.state_dir)?;
    check_name(config, &view, known.as_ref())?;
    check_data(config, &view, known.as_ref())?;
    let secrets = secrets(config, &keys, snapshot)?;
    Ok((binaries, secrets, view))
}

/// Files that cannot be read are refused before PostgreSQL is started. Beside one that runs they are told and no more: to
/// leave it without a keeper would end it.
fn check_tls(config: &Config) -> anyhow::Result<()> {
    let Some(Err(error)) = config.tls.as_ref().map(Tls::check) else { return Ok(()) };
    if crate::fencer::of_data_directory(&config.data_dir, None).is_empty() {
        return Err(error);
    }
    tracing::error!(error = format!("{error:#}"), "other members cannot be reached by TLS");
    Ok(())
}

fn check_socket_path(config: &Config) -> anyhow::Result<()> {
    let path = config.state_dir.join("socket").join(format!(".s.PGSQL.{}", config.listen.port));
    let length = path.as_os_str().len();
    ensure!(
        length <= LONGEST_SOCKET_PATH,
        "the path of PostgreSQL's Unix socket, {}, has {length} bytes and Linux allows {LONGEST_SOCKET_PATH}: \
         choose a shorter --state-dir",
        path.display()
    );
    Ok(())
}

fn refuse_newer_formats(keys: &Keys, snapshot: &Snapshot) -> anyhow::Result<()> {
    fn check<D: Document>(snapshot: &Snapshot, key: &str) -> anyhow::Result<()> {
        match snapshot.entries.get(key) {
            Some(entry) => Ok(proto::document::decode::<D>(&entry.value).map(drop)?),
            None => Ok(()),
        }
    }
    check::<proto::ClusterSpec>(snapshot, &keys.spec())?;
    check::<proto::ClusterState>(snapshot, &keys.state())
}

fn peek(state_dir: &Path) -> anyhow::Result<Option<MemberFiles>> {
    let path = state_dir.join("member.json");
    match read_optional(&path).with_context(|| format!("read {}", path.display()))? {
        Some(text) => Ok(Some(
            proto::document::decode(&text).with_context(|| format!("read {}", path.display()))?,
        )),
        None => Ok(None),
    }
}

fn check_name(
    config: &Config,
    view: &ClusterView,
    known: Option<&MemberFiles>,
) -> anyhow::Result<()> {
    if let Some(files) = known
        && files.member != config.member
    {
        bail!(
            "{} belongs to member {}, not to {}: give this member a --state-dir of its own",
            config.state_dir.display(),
            files.member,
            config.member
        );
    }
    if let Some(holder) = view.reports.get(&config.member)
        && known.is_none_or(|files| files.incarnation != holder.incarnation)
    {
        bail!(
            "the name {} is taken by a living keeper at {}: choose another --member, or stop that keeper and wait \
             until its lease has ended",
            config.member,
            holder.http_address
        );
    }
    Ok(())
}

fn check_data(
    config: &Config,
    view: &ClusterView,
    known: Option<&MemberFiles>,
) -> anyhow::Result<()> {
    let data_dir = &config.data_dir;
    if is_absent_or_empty(data_dir)? {
        return Ok(());
    }
    if !data_dir.join("PG_VERSION").exists() {
        bail!(
            "{} is neither empty nor a PostgreSQL data directory: name another --data-dir",
            data_dir.display()
        );
    }
    if known.is_some_and(|f| f.rejoin.as_ref().is_some_and(|r| !r.may_start())) {
        // Half of it may be another member's: the rejoin goes on with it, and nothing is read out of it here.
        return Ok(());
    }
    let control = ControlFile::read(data_dir)?;
    let cluster = view.state.as_ref().and_then(|s| s.system_identifier);
    if let Some(expected) = cluster.filter(|id| *id != control.system_identifier) {
        bail!(
            "{} has system identifier {}, cluster {} has {expected}: it belongs to another cluster; name another \
             --data-dir, or move it away to have this member copied anew",
            data_dir.display(),
            control.system_identifier,
            config.cluster
        );
    }
    ensure!(
        known.is_some(),
        "{} holds data but no member files stand in {}: pgdeputy cannot know what it has promised. Move the data \
         away to have this member copied anew, or give the --state-dir that it was run with",
        data_dir.display(),
        config.state_dir.display()
    );
    Ok(())
}

fn secrets(config: &Config, keys: &Keys, snapshot: Option<&Snapshot>) -> anyhow::Result<Secrets> {
    let given = &config.secrets;
    if let (Some(superuser), Some(replication), Some(rewind)) =
        (&given.superuser, &given.replication, &given.rewind)
    {
        return Ok(Secrets {
            superuser: read(superuser)?,
            replication: read(replication)?,
            rewind: read(rewind)?,
        });
    }
    let Some(snapshot) = snapshot else {
        return kept::load_secrets(&config.state_dir).with_context(|| {
            format!(
                "etcd does not answer, and no passwords of it are kept in {}: start etcd, or give \
                 --superuser-password-file, --replication-password-file and --rewind-password-file",
                config.state_dir.display()
            )
        });
    };
    let entry = snapshot.entries.get(&keys.secrets()).with_context(|| {
        format!(
            "no passwords are known for cluster {}: run `pgdeputy init --cluster {}`, or give \
             --superuser-password-file, --replication-password-file and --rewind-password-file",
            config.cluster, config.cluster
        )
    })?;
    Ok(proto::document::decode(&entry.value)?)
}

fn read(source: &PasswordSource) -> anyhow::Result<String> {
    let password = match source {
        PasswordSource::Env(value) => value.clone(),
        PasswordSource::File(path) => std::fs::read_to_string(path)
            .with_context(|| format!("read the password file {}", path.display()))?
            .lines()
            .next()
            .unwrap_or_default()
            .to_owned(),
    };
    ensure!(!password.is_empty(), "a password is empty: {source:?}");
    Ok(password)
}

fn bind(address: &HostPort, flag: &str) -> anyhow::Result<TcpListener> {
    let listener = TcpListener::bind((address.host.trim_matches(['[', ']']), address.port))
        .map_err(|error| {
            let remedy = match error.kind() {
                ErrorKind::AddrInUse => "another process has that port: stop it, or choose another",
                ErrorKind::AddrNotAvailable => "name an address of this host",
                ErrorKind::PermissionDenied => "choose a port from 1024 on",
                _ => "name an address of this host and a free port",
            };
            anyhow::anyhow!(
                "{flag} {}:{} cannot be used ({error}): {remedy}",
                address.host,
                address.port
            )
        })?;
    listener.set_nonblocking(true).context("make the listener non-blocking")?;
    Ok(listener)
}

/// Binds the UDP port of the echo, which has the number of the HTTP port.
fn bind_echo(address: &HostPort) -> anyhow::Result<UdpSocket> {
    let socket = UdpSocket::bind((address.host.trim_matches(['[', ']']), address.port))
        .with_context(|| {
            format!("--http {address} cannot be used over UDP: another process may have that port")
        })?;
    socket.set_nonblocking(true).context("make the socket non-blocking")?;
    Ok(socket)
}

/// Makes the member files of a member that never was one, and takes the mark *complete* from one whose data is gone.
fn first_files(config: &Config, store: &mut MemberStore) -> anyhow::Result<()> {
    let empty = is_absent_or_empty(&config.data_dir)?;
    let Some(mut files) = store.load()? else {
        store.save(&MemberFiles::new(
            config.member.clone(),
            Incarnation::from_random(rand::random()),
        ))?;
        return Ok(());
    };
    if empty && files.complete {
        tracing::error!(data_dir = %config.data_dir.display(), "the data of this member is gone");
        files.complete = false;
        files.role = Role::None;
        store.save(&files)?;
    }
    Ok(())
}
