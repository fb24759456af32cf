//! What the keeper writes for PostgreSQL to read: `postgresql.conf`, `pg_hba.conf`, and what it takes out of
//! `postgresql.auto.conf`. The one rule: the settings that carry the promise come from here and nowhere else.
//!
//! Rendering is pure; `SettingsFiles` puts the text in place, beside the data directory, so that neither a base
//! backup nor pg_rewind can bring another member's settings along.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use proto::cfg::{joining_name, unsatisfiable_names, wire_name};
use proto::spec::{OWNED_SETTINGS, PostgresSpec};
use proto::{ClusterName, ClusterSpec, Epoch, MemberName};
use serde::{Deserialize, Serialize};

use super::binaries::PostgresBinaries;
use super::program;
use super::tls::Tls;
use crate::durable::{replace, write_atomic};

/// Reading a configuration file takes milliseconds.
const CHECK_AT_MOST: Duration = Duration::from_secs(10);

/// The roles that keepers use.
pub const SUPERUSER: &str = "pgdeputy";
pub const REPLICATION_ROLE: &str = "pgdeputy_replication";
pub const REWIND_ROLE: &str = "pgdeputy_rewind";

/// From whom a standby receives, and under which name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Upstream {
    pub epoch: Epoch,
    pub host: String,
    pub port: u16,
    pub name: StreamName,
}

/// The name under which a standby streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "kind")]
pub enum StreamName {
    /// A voter's, of this round of names.
    Voter { round: u32 },
    /// One that no list holds: an incomplete member, or one that may not vote.
    Joining,
}

/// Who may connect.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Access {
    /// The keeper and physical replication by the cluster's role, nobody else.
    Closed,
    /// All whom the spec names.
    Open,
}

/// Everything that the keeper decides about the settings in force.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settings {
    /// The value of `synchronous_standby_names`; empty only under a recorded k = 0 (I8).
    pub standby_names: String,
    pub upstream: Option<Upstream>,
    pub access: Access,
    /// Whether commits may wait for this standby to follow anew: it looks for the upstream every 20 ms and not every
    /// 100 ms, and its next WAL segments are not filled with zeros first.
    pub eager: bool,
}

impl Settings {
    /// Returns the settings of a member that receives from nobody and serves nobody.
    pub fn cut_off() -> Self {
        Self {
            standby_names: unsatisfiable_names(),
            upstream: None,
            access: Access::Closed,
            eager: true,
        }
    }
}

/// What does not change while a keeper runs.
#[derive(Debug, Clone)]
pub struct Place {
    pub cluster: ClusterName,
    pub member: MemberName,
    pub data_dir: PathBuf,
    pub state_dir: PathBuf,
    pub host: String,
    pub port: u16,
    /// `server_version_num` divided by 10000.
    pub major: u32,
    /// How other members are connected to, and then also how they have to come.
    pub tls: Option<Tls>,
}

impl Place {
    /// Returns the directory of the Unix socket.
    pub fn socket_dir(&self) -> PathBuf {
        self.state_dir.join("socket")
    }

    /// Returns the path of the configuration file that the postmaster is started with.
    pub fn config_file(&self) -> PathBuf {
        self.state_dir.join("postgresql.conf")
    }

    /// Returns the path of the file that holds the replication password of `epoch`, read at each connect.
    pub fn replication_passfile(&self, epoch: Epoch) -> PathBuf {
        self.state_dir.join(format!("replication.e{epoch}.pgpass"))
    }
}

/// Returns the slot that `member` uses on its primary. Names have no underscore, so no two collide.
pub fn slot_name(member: &MemberName) -> String {
    format!("pgdeputy_{}", member.as_str().replace('-', "_"))
}

/// Returns the name under which `member` streams from `upstream`.
pub fn stream_name(member: &MemberName, upstream: &Upstream) -> String {
    match upstream.name {
        StreamName::Voter { round } => wire_name(member, upstream.epoch, round),
        StreamName::Joining => joining_name(member, upstream.epoch),
    }
}

/// Returns the text of `postgresql.conf`: the user's own file first, the spec's parameters second, ours last.
pub fn render_conf(place: &Place, spec: &ClusterSpec, settings: &Settings) -> String {
    let mut text = String::from(
        "# Written by pgdeputy; changes here are overwritten. See the cluster's spec.\n",
    );
    let mut set = |name: &str, value: &str| {
        writeln!(text, "{name} = {}", quote(value)).expect("writing to a String cannot fail");
    };
    set("include_if_exists", &place.data_dir.join("postgresql.conf").to_string_lossy());
    for (name, value) in DEFAULTS {
        set(name, value);
    }
    set("wal_keep_size", &wal_keep_size(spec));
    for (name, value) in
        spec.postgres.parameters.iter().filter(|(n, _)| !OWNED_SETTINGS.contains(&n.as_str()))
    {
        set(name, value);
    }
    for (name, value) in FIXED {
        set(name, value);
    }
    if place.major >= 17 {
        set("allow_alter_system", "off");
    }
    set("cluster_name", &format!("{}/{}", place.cluster, place.member));
    set("data_directory", &place.data_dir.to_string_lossy());
    set("hba_file", &place.state_dir.join("pg_hba.conf").to_string_lossy());
    set("listen_addresses", &place.host);
    set("port", &place.port.to_string());
    set("unix_socket_directories", &place.socket_dir().to_string_lossy());
    // A receiver asks at half of it, so that an answered question is never older than `silent_after`
    // (PostgreSQL documentation, wal_receiver_timeout).
    set("wal_receiver_timeout", &format!("{}ms", spec.silent_after.as_millis() * 3 / 2));
    set("wal_retrieve_retry_interval", if settings.eager { "20ms" } else { "100ms" });
    if settings.eager {
        // Whoever follows a new timeline begins a segment of its own for it, and the first commits wait for that: filled
        // with zeros and synced it took 0.15 s. Ends when the member has settled.
        set("wal_init_zero", "off");
    }
    set("synchronous_standby_names", &settings.standby_names);
    set("primary_slot_name", &slot_name(&place.member));
    set(
        "primary_conninfo",
        &settings.upstream.as_ref().map_or_else(String::new, |u| conninfo(place, u)),
    );
    text
}

/// What pgdeputy would choose, and the spec may choose otherwise.
const DEFAULTS: &[(&str, &str)] = &[
    ("max_connections", "100"),
    // Bounds what an absent member's slot may hold back; without it one dead standby fills the primary's disk.
    ("max_slot_wal_keep_size", "10GB"),
    ("wal_sender_timeout", "10s"),
    ("synchronous_commit", "on"),
    ("log_line_prefix", "%m [%p] %q%a "),
];

/// What carries the promise, or what failover rests on: nobody else's to choose.
const FIXED: &[(&str, &str)] = &[
    ("wal_level", "replica"),
    ("hot_standby", "on"),
    ("wal_log_hints", "on"),
    ("fsync", "on"),
    ("full_page_writes", "on"),
    ("zero_damaged_pages", "off"),
    // A crash must end the postmaster, so that every start passes the keeper's gate (I16).
    ("restart_after_crash", "off"),
    ("max_wal_senders", "20"),
    ("max_replication_slots", "20"),
    ("password_encryption", "scram-sha-256"),
    ("recovery_target_timeline", "latest"),
    ("recovery_min_apply_delay", "0"),
    // Opening every file for fsync costs 0.1 s for a fresh cluster and minutes for a million relations.
    ("recovery_init_sync_method", "syncfs"),
    ("restore_command", ""),
    ("archive_cleanup_command", ""),
    ("wal_receiver_status_interval", "1s"),
];

/// PostgreSQL's own default.
const MAX_WAL_SIZE: &str = "1GB";

/// Returns how much WAL is kept by default: as much as may lie between two checkpoints, so that a primary that crashes
/// right after one still has the last checkpoint that its standby has too. Both count back from the newest WAL, so that
/// this takes no more room than `max_wal_size` grants already.
fn wal_keep_size(spec: &ClusterSpec) -> String {
    let known = spec.postgres.parameters.get("max_wal_size");
    known.cloned().unwrap_or_else(|| MAX_WAL_SIZE.to_owned())
}

fn quote(value: &str) -> String {
    format!("'{}'", value.replace('\\', "\\\\").replace('\'', "''"))
}

fn conninfo(place: &Place, upstream: &Upstream) -> String {
    let passfile = place.replication_passfile(upstream.epoch);
    let part = |value: &str| format!("'{}'", value.replace('\\', "\\\\").replace('\'', "\\'"));
    let mut text = format!(
        "host={} port={} user={REPLICATION_ROLE} passfile={} application_name={} connect_timeout=2 \
         keepalives_idle=1 keepalives_interval=1 keepalives_count=3",
        part(&upstream.host),
        upstream.port,
        part(&passfile.to_string_lossy()),
        stream_name(&place.member, upstream),
    );
    for (name, value) in place.tls.as_ref().map_or_else(Vec::new, Tls::parameters) {
        write!(text, " {name}={}", part(&value)).expect("writing to a String cannot fail");
    }
    text
}

/// Returns the text of `pg_hba.conf`.
pub fn render_hba(place: &Place, spec: &ClusterSpec, access: Access) -> String {
    let mut text = String::from(
        "# Written by pgdeputy; changes here are overwritten. See postgres.pg_hba in the spec.\n",
    );
    let mut line = |line: &str| {
        text.push_str(line);
        text.push('\n');
    };
    line(&format!("local all {SUPERUSER} scram-sha-256"));
    let by = if place.tls.is_some() { "hostssl" } else { "host" };
    line(&format!("{by} replication {REPLICATION_ROLE} all scram-sha-256"));
    // Also while it is closed: it may wait for a voter that has to be rewound first.
    line(&format!("{by} postgres {REWIND_ROLE} all scram-sha-256"));
    if place.tls.is_some() {
        // No line of the spec lets them in otherwise.
        line(&format!("host replication {REPLICATION_ROLE} all reject"));
        line(&format!("host all {REPLICATION_ROLE},{REWIND_ROLE} all reject"));
    }
    if access == Access::Closed {
        line("local all all reject");
        line("host all all all reject");
        return text;
    }
    for wanted in &spec.postgres.pg_hba {
        line(wanted);
    }
    if spec.postgres.pg_hba.is_empty() {
        line("local all all scram-sha-256");
        line("host all all all scram-sha-256");
    }
    text
}

/// Returns `postgresql.auto.conf` without the settings that pgdeputy owns, or `None` if it has none of them.
/// PostgreSQL reads that file after all others, so what stands there would win.
pub fn scrub_auto_conf(text: &str) -> Option<String> {
    let owned = |line: &str| {
        let name = line.split(['=', ' ', '\t']).next().unwrap_or_default().to_ascii_lowercase();
        OWNED_SETTINGS.contains(&name.as_str())
    };
    if !text.lines().any(|l| owned(l.trim_start())) {
        return None;
    }
    let kept: Vec<&str> = text.lines().filter(|l| !owned(l.trim_start())).collect();
    Some(kept.join("\n") + "\n")
}

/// Returns the settings that an earlier keeper put on disk. Absent or unreadable ones are as good as none: the
/// member is then pointed anew.
pub fn installed(place: &Place) -> Option<Settings> {
    let text = std::fs::read(place.state_dir.join("settings.json")).ok()?;
    serde_json::from_slice(&text).ok()
}

/// Returns the part of the spec that PostgreSQL last took without complaint, as an earlier keeper kept it.
pub fn accepted(place: &Place) -> Option<PostgresSpec> {
    let text = std::fs::read(place.state_dir.join("accepted.json")).ok()?;
    serde_json::from_slice(&text).ok()
}

/// Keeps the part of the spec that PostgreSQL takes.
pub fn keep_accepted(place: &Place, wanted: &PostgresSpec) -> anyhow::Result<()> {
    let text = serde_json::to_vec(wanted).context("write the settings as JSON")?;
    write_atomic(&place.state_dir.join("accepted.json"), &text, 0o600)
        .context("write accepted.json")
}

/// Asks PostgreSQL itself whether it would start with these settings. A typo in the spec must not keep a primary from
/// starting again: PostgreSQL refuses a whole file for one unknown name.
pub async fn check(
    binaries: &PostgresBinaries,
    place: &Place,
    spec: &ClusterSpec,
    settings: &Settings,
) -> anyhow::Result<()> {
    let path = place.state_dir.join("postgresql.conf.check");
    replace(&path, render_conf(place, spec, settings).as_bytes(), 0o600)
        .context("write a file to check")?;
    let mut command = program::command(&binaries.postgres(), binaries.user());
    command.arg("-D").arg(&place.data_dir).args(["-C", "data_directory", "-c"]);
    command.arg(format!("config_file={}", path.display()));
    let finished = program::run(command, |_| CHECK_AT_MOST).await?;
    std::fs::remove_file(&path).context("remove the file that was checked")?;
    if !finished.status.success() {
        bail!("postgres.parameters of the spec: {}", finished.last_words());
    }
    Ok(())
}

/// Writes all files for `settings`, in the order that is safe if it is cut: who may connect first, then the rest.
/// PostgreSQL reads them at its next start or reload. Nothing is synced: they are written anew before each start, and a
/// sync here would stand in the way of every seal and promotion.
pub fn install(place: &Place, spec: &ClusterSpec, settings: &Settings) -> anyhow::Result<()> {
    let hba = render_hba(place, spec, settings.access);
    replace(&place.state_dir.join("pg_hba.conf"), hba.as_bytes(), 0o600)
        .context("write pg_hba.conf")?;
    let conf = render_conf(place, spec, settings);
    replace(&place.config_file(), conf.as_bytes(), 0o600).context("write postgresql.conf")?;
    let text = serde_json::to_vec(settings).context("write settings as JSON")?;
    replace(&place.state_dir.join("settings.json"), &text, 0o600).context("write settings.json")?;
    guard_auto_conf(&place.data_dir)
}

/// Takes owned settings out of `postgresql.auto.conf` and blocks `ALTER SYSTEM`.
///
/// From 17 on `allow_alter_system = off` does the latter. Before, a directory in the place of the temporary file
/// makes `ALTER SYSTEM` fail before it changes anything; base backups and pg_rewind skip that name.
fn guard_auto_conf(data_dir: &Path) -> anyhow::Result<()> {
    if !data_dir.join("PG_VERSION").exists() {
        return Ok(());
    }
    let path = data_dir.join("postgresql.auto.conf");
    let text = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
        Err(error) => return Err(error).context("read postgresql.auto.conf"),
    };
    if let Some(scrubbed) = scrub_auto_conf(&text) {
        write_atomic(&path, scrubbed.as_bytes(), 0o600).context("write postgresql.auto.conf")?;
    }
    let block = data_dir.join("postgresql.auto.conf.tmp");
    if block.is_file() {
        std::fs::remove_file(&block).context("remove the unfinished postgresql.auto.conf.tmp")?;
    }
    match std::fs::create_dir(&block) {
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
            Err(error).context("block ALTER SYSTEM with postgresql.auto.conf.tmp")
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::postgres::tls::SslMode;

    fn place() -> Place {
        Place {
            cluster: "shop".parse().unwrap(),
            member: "node-b".parse().unwrap(),
            data_dir: "/var/lib/it's/data".into(),
            state_dir: "/var/lib/state".into(),
            host: "10.0.0.2".into(),
            port: 5432,
            major: 15,
            tls: None,
        }
    }

    fn following(name: StreamName) -> Settings {
        let upstream = Upstream { epoch: Epoch(7), host: "10.0.0.1".into(), port: 5433, name };
        Settings { upstream: Some(upstream), ..Settings::cut_off() }
    }

    #[test]
    fn owned_settings_stand_after_everything_the_user_wrote() {
        let mut spec = ClusterSpec::default();
        spec.postgres.parameters.insert("work_mem".into(), "8MB".into());
        spec.postgres.parameters.insert("fsync".into(), "off".into());
        let text = render_conf(&place(), &spec, &Settings::cut_off());
        let at = |needle: &str| {
            text.find(needle).unwrap_or_else(|| panic!("{needle} missing in {text}"))
        };
        assert!(at("include_if_exists") < at("work_mem") && at("work_mem") < at("fsync = 'on'"));
        assert!(!text.contains("fsync = 'off'"));
        assert!(text.contains("include_if_exists = '/var/lib/it''s/data/postgresql.conf'"));
        assert!(
            text.contains("synchronous_standby_names = 'ANY 1 (\"nobody_can_have_this_name\")'")
        );
        assert!(text.contains("primary_conninfo = ''\n"));
        assert!(text.contains("wal_init_zero = 'off'"), "{text}");
        let settled = Settings { eager: false, ..Settings::cut_off() };
        assert!(!render_conf(&place(), &spec, &settled).contains("wal_init_zero"));
    }

    #[test]
    fn as_much_wal_is_kept_as_may_lie_between_two_checkpoints_unless_the_spec_says_otherwise() {
        let kept = |parameters: &[(&str, &str)]| {
            let mut spec = ClusterSpec::default();
            let owned = parameters.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned()));
            spec.postgres.parameters = owned.collect();
            let text = render_conf(&place(), &spec, &Settings::cut_off());
            let last = text.lines().rfind(|line| line.starts_with("wal_keep_size")).unwrap();
            last.to_owned()
        };
        assert_eq!(kept(&[]), "wal_keep_size = '1GB'");
        assert_eq!(kept(&[("max_wal_size", "20GB")]), "wal_keep_size = '20GB'");
        let chosen = [("max_wal_size", "20GB"), ("wal_keep_size", "0")];
        assert_eq!(kept(&chosen), "wal_keep_size = '0'");
    }

    #[test]
    fn a_voter_streams_under_its_epoch_and_an_incomplete_member_under_a_name_no_list_holds() {
        let text = render_conf(
            &place(),
            &ClusterSpec::default(),
            &following(StreamName::Voter { round: 2 }),
        );
        assert!(text.contains("application_name=node-b.e7.r2"), "{text}");
        assert!(text.contains("replication.e7.pgpass"));
        let text = render_conf(&place(), &ClusterSpec::default(), &following(StreamName::Joining));
        assert!(text.contains("application_name=node-b.e7.joining"));
    }

    #[test]
    fn closed_lets_in_the_keepers_and_nobody_else() {
        let spec = ClusterSpec::default();
        assert!(render_hba(&place(), &spec, Access::Closed).ends_with("host all all all reject\n"));
        assert!(render_hba(&place(), &spec, Access::Closed).contains(REWIND_ROLE));
        assert!(
            render_hba(&place(), &spec, Access::Open).contains("host all all all scram-sha-256")
        );
    }

    #[test]
    fn with_tls_members_come_and_go_by_nothing_else() {
        let tls = Tls { mode: SslMode::VerifyFull, root: "/etc/it's/ca.pem".into(), own: None };
        let place = Place { tls: Some(tls), ..place() };
        let hba = render_hba(&place, &ClusterSpec::default(), Access::Open);
        let lines: Vec<&str> =
            hba.lines().filter(|l| l.starts_with("host") && l.contains("pgdeputy_")).collect();
        let expected = [
            "hostssl replication pgdeputy_replication all scram-sha-256",
            "hostssl postgres pgdeputy_rewind all scram-sha-256",
            "host replication pgdeputy_replication all reject",
            "host all pgdeputy_replication,pgdeputy_rewind all reject",
        ];
        assert_eq!(lines, expected, "before any line of the spec");
        let text = render_conf(&place, &ClusterSpec::default(), &following(StreamName::Joining));
        // Quoted for the connection string, and that for the file.
        let root = r"sslrootcert=''/etc/it\\''s/ca.pem''";
        assert!(text.contains(" sslmode=''verify-full''") && text.contains(root), "{text}");
    }

    #[test]
    fn auto_conf_loses_owned_settings_and_keeps_the_others() {
        let text =
            "# comment\nwork_mem = '1MB'\nSynchronous_Standby_Names = ''\n primary_conninfo='x'\n";
        assert_eq!(scrub_auto_conf(text).as_deref(), Some("# comment\nwork_mem = '1MB'\n"));
        assert_eq!(scrub_auto_conf("work_mem = '1MB'\n"), None);
    }
}
