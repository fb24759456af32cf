//! What a lab is made of, and where its files lie.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use proto::{ClusterSpec, MemberName};

use super::network::Placement;
use super::secured::EtcdSecurity;

/// The name of the cluster in every lab.
pub const CLUSTER: &str = "demo";

/// Every lab's directory begins with this: clean-up refuses any other.
pub const DIRECTORY_PREFIX: &str = "pgdeputy-lab-";

/// The environment variable that marks every process of a lab with its directory.
pub const MARK: &str = "LAB_OF_PGDEPUTY";

/// Receives a line whenever something in the lab has come so far.
pub type Narrate = Arc<dyn Fn(&str) + Send + Sync>;

/// What to start.
#[derive(Clone)]
pub struct LabConfig {
    /// The pgdeputy program.
    pub pgdeputy: PathBuf,
    pub members: usize,
    pub etcd_members: usize,
    pub etcd_security: EtcdSecurity,
    /// Members reach each other's PostgreSQL by TLS only, with certificates of the authority that etcd's are of.
    pub members_by_tls: bool,
    pub sentinels: usize,
    /// PgBouncers beside HAProxy, each in front of the same databases.
    pub pgbouncers: usize,
    pub spec: ClusterSpec,
    /// The zones that members say they are in, by their index; those beyond say none.
    pub zones: Vec<String>,
    /// Where PostgreSQL's programs are, if not in the usual places.
    pub postgres_bin: Option<PathBuf>,
    /// Whom the keepers become when the lab is started as root.
    pub postgres_user: String,
    pub lifetime: Lifetime,
    pub placement: Placement,
    /// The size of a disk of its own for each member, which can be filled and hung; needs root. Without, members lie in the
    /// lab's directory.
    pub disk_mb: Option<u32>,
    /// Whether a fencer starts its keeper again when that is killed; otherwise only `start_member` does.
    pub keepers_restart: bool,
    /// Whether sentinels and proxies are told that a service manager starts them again, which `restart_services` then is.
    pub services_restart: bool,
    /// What the keepers of these members refuse to have broken, as `--refuse-drills` takes it.
    pub refused_drills: BTreeMap<MemberName, String>,
    pub narrate: Narrate,
}

/// How long the lab's processes may live.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lifetime {
    /// They end with the process that started them, however it ends.
    Tied,
    /// They may be left running, see `Lab::keep`. Until then they end with the process that started them, if
    /// that has the time to end them.
    MayBeKept,
}

impl LabConfig {
    /// Room for the data, some copies of it and their WAL. It takes of the machine's disk only what is written.
    pub const USUAL_DISK_MB: u32 = 4096;

    /// Three members, three sentinels and one etcd.
    pub fn new(pgdeputy: PathBuf) -> Self {
        Self {
            pgdeputy,
            members: 3,
            etcd_members: 1,
            etcd_security: EtcdSecurity::None,
            members_by_tls: false,
            sentinels: 3,
            pgbouncers: 0,
            spec: demo_spec(),
            zones: Vec::new(),
            postgres_bin: None,
            postgres_user: "postgres".into(),
            lifetime: Lifetime::Tied,
            placement: Placement::Loopback,
            disk_mb: None,
            keepers_restart: false,
            services_restart: false,
            refused_drills: BTreeMap::new(),
            narrate: Arc::new(|line| tracing::info!("{line}")),
        }
    }
}

/// Returns the default spec with logins from the networks in which the lab is.
pub fn demo_spec() -> ClusterSpec {
    let mut spec = ClusterSpec::default();
    spec.postgres.pg_hba = vec!["host all all samenet scram-sha-256".into()];
    spec
}

/// Returns the name of the member with this index: a, b, c, ... and from the 27th on m26, m27, ...
pub fn member_name(index: usize) -> MemberName {
    let name = match u8::try_from(index) {
        Ok(small) if small < 26 => char::from(b'a' + small).to_string(),
        _ => format!("m{index}"),
    };
    name.parse().expect("a letter, or a letter and a number, is a member name")
}

/// Where the files of one lab lie.
#[derive(Debug, Clone)]
pub struct Layout {
    pub root: PathBuf,
}

impl Layout {
    /// What belongs to one member: its data directory, its state directory beside it.
    pub fn member(&self, member: &MemberName) -> PathBuf {
        self.root.join(member.as_str())
    }

    /// The member's data directory.
    pub fn data(&self, member: &MemberName) -> PathBuf {
        self.member(member).join("data")
    }

    /// The keeper's own files, at their default place beside the data directory.
    pub fn state(&self, member: &MemberName) -> PathBuf {
        self.member(member).join("data.pgdeputy")
    }

    /// Where PostgreSQL's Unix socket is.
    pub fn socket(&self, member: &MemberName) -> PathBuf {
        self.state(member).join("socket")
    }

    /// The file that holds a member's disk, where it has one of its own.
    pub fn disk(&self, member: &MemberName) -> PathBuf {
        self.root.join(format!("disk-{member}.img"))
    }

    /// The log of the process with this name.
    pub fn log(&self, process: &str) -> PathBuf {
        self.logs().join(format!("{process}.log"))
    }

    /// All logs.
    pub fn logs(&self) -> PathBuf {
        self.root.join("log")
    }

    /// A file that holds one password.
    pub fn password(&self, of: &str) -> PathBuf {
        self.root.join("passwords").join(of)
    }

    /// The directory of a process that is no member.
    pub fn process(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// The file that shows that a directory is a lab.
    pub fn marker(root: &Path) -> PathBuf {
        root.join("lab")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_are_named_by_letters_and_then_by_numbers() {
        let names: Vec<String> = [0, 2, 25, 26, 300].map(|i| member_name(i).to_string()).into();
        assert_eq!(names, ["a", "c", "z", "m26", "m300"]);
    }

    #[test]
    fn the_demo_spec_passes_its_own_checks() {
        demo_spec().check().unwrap();
    }
}
