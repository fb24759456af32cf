//! Finds PostgreSQL's programs and refuses those whose version cannot keep the promise.
//!
//! Rule: all programs come from one directory, and its version is known before any of them touches data.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, bail};

/// The oldest minor of each supported major, as `server_version_num`: the releases of May 2025. In earlier ones a
/// primary that has just started acknowledges commits before its checkpointer has read synchronous_standby_names.
const OLDEST: [u32; 4] = [150_013, 160_009, 170_005, 180_000];

const SUPPORTED: &str = "supported are 15.13, 16.9, 17.5, 18.0 and their later minor releases";

/// The programs that must stand beside `postgres`.
const NEEDED: [&str; 3] = ["initdb", "pg_basebackup", "pg_rewind"];

/// A directory with PostgreSQL's programs, of a supported version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PostgresBinaries {
    dir: PathBuf,
    version: u32,
    run_as: Option<RunAs>,
}

/// The user that programs run as, where it is not this process's own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RunAs {
    pub uid: u32,
    pub gid: u32,
}

impl PostgresBinaries {
    /// Finds the newest supported version in the usual places, or checks the one in `explicit`.
    pub fn find(explicit: Option<&Path>) -> anyhow::Result<Self> {
        choose(&look(explicit), None)
    }

    /// Finds the newest supported version that can run the data in `data_dir`; where it is empty, any.
    pub fn for_data_directory(explicit: Option<&Path>, data_dir: &Path) -> anyhow::Result<Self> {
        choose(&look(explicit), major_of(data_dir)?.map(|major| (major, data_dir)))
    }

    /// Returns the same programs, run as another user. For callers that are root and stay so, such as tests.
    pub fn run_as(mut self, user: RunAs) -> Self {
        self.run_as = Some(user);
        self
    }

    /// Returns the user to run them as, if it is another one.
    pub fn user(&self) -> Option<RunAs> {
        self.run_as
    }

    /// Returns the version as `server_version_num`, such as 150018.
    pub fn version(&self) -> u32 {
        self.version
    }

    /// Returns the major version, such as 15.
    pub fn major(&self) -> u32 {
        self.version / 10_000
    }

    /// Returns the directory that holds them.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    pub fn postgres(&self) -> PathBuf {
        self.dir.join("postgres")
    }

    pub fn initdb(&self) -> PathBuf {
        self.dir.join("initdb")
    }

    pub fn pg_basebackup(&self) -> PathBuf {
        self.dir.join("pg_basebackup")
    }

    pub fn pg_rewind(&self) -> PathBuf {
        self.dir.join("pg_rewind")
    }
}

/// A directory that was looked at because it has, or should have, `postgres`.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Candidate {
    dir: PathBuf,
    found: Result<u32, String>,
}

fn look(explicit: Option<&Path>) -> Vec<Candidate> {
    let dirs = match explicit {
        Some(dir) => vec![dir.to_owned()],
        None => usual_places(),
    };
    let mut seen = BTreeSet::new();
    let mut candidates = Vec::new();
    for dir in dirs {
        let postgres = dir.join("postgres");
        // A link such as /usr/local/bin/postgres leads to the directory where the others are, too.
        match fs::canonicalize(&postgres) {
            Ok(real) => {
                let dir = real.parent().unwrap_or(&dir).to_owned();
                if seen.insert(dir.clone()) {
                    let found = inspect(&dir).map_err(|e| format!("{e:#}"));
                    candidates.push(Candidate { dir, found });
                }
            }
            Err(error) if explicit.is_some() => {
                let found = Err(format!("{}: {error}", postgres.display()));
                candidates.push(Candidate { dir, found });
            }
            Err(_) => {}
        }
    }
    candidates
}

fn usual_places() -> Vec<PathBuf> {
    let mut places = Vec::new();
    places.extend(children(Path::new("/usr/lib/postgresql"), |_| true).map(|d| d.join("bin")));
    places.extend(children(Path::new("/usr"), |n| n.starts_with("pgsql-")).map(|d| d.join("bin")));
    places.push("/usr/bin".into());
    places.push("/usr/local/pgsql/bin".into());
    if let Some(path) = std::env::var_os("PATH") {
        // An empty or relative entry means the directory that the keeper happens to be started in.
        places.extend(std::env::split_paths(&path).filter(|entry| entry.is_absolute()));
    }
    places
}

fn children(dir: &Path, wanted: fn(&str) -> bool) -> impl Iterator<Item = PathBuf> {
    fs::read_dir(dir)
        .into_iter()
        .flatten()
        .filter_map(Result::ok)
        .map(|entry| entry.path())
        .filter(move |path| path.file_name().and_then(OsStr::to_str).is_some_and(wanted))
}

fn inspect(dir: &Path) -> anyhow::Result<u32> {
    let postgres = dir.join("postgres");
    // It prints and ends before it looks at any file, so that it needs no deadline.
    let output = Command::new(&postgres)
        .arg("--version")
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("run {} --version", postgres.display()))?;
    let text = String::from_utf8_lossy(&output.stdout);
    let version = parse_version(text.trim())?;
    for name in NEEDED {
        if !dir.join(name).is_file() {
            bail!(
                "{name} is missing beside postgres: install PostgreSQL's server and client packages"
            );
        }
    }
    Ok(version)
}

/// Reads `postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)` as 150018.
fn parse_version(text: &str) -> anyhow::Result<u32> {
    let number = text
        .strip_prefix("postgres (PostgreSQL) ")
        .and_then(|rest| rest.split_whitespace().next())
        .with_context(|| format!("{text:?} is not the version of a PostgreSQL server"))?;
    let parsed = number.split_once('.').and_then(|(major, minor)| {
        let minor: u32 = minor.parse().ok().filter(|minor| *minor < 10_000)?;
        major.parse::<u32>().ok()?.checked_mul(10_000)?.checked_add(minor)
    });
    parsed.with_context(|| {
        format!(
            "version {number} is no release (a beta, a release candidate or a development version)"
        )
    })
}

fn choose(
    candidates: &[Candidate],
    data: Option<(u32, &Path)>,
) -> anyhow::Result<PostgresBinaries> {
    let fits = |version: u32| data.is_none_or(|(major, _)| version / 10_000 == major);
    let best = candidates
        .iter()
        .filter_map(|c| c.found.as_ref().ok().map(|version| (*version, &c.dir)))
        .filter(|(version, _)| is_supported(*version) && fits(*version))
        .max();
    if let Some((version, dir)) = best {
        return Ok(PostgresBinaries { dir: dir.clone(), version, run_as: None });
    }
    let wanted = match data {
        Some((major, dir)) => {
            format!("PostgreSQL {major}, which made the data in {},", dir.display())
        }
        None => "a supported PostgreSQL".to_owned(),
    };
    if candidates.is_empty() {
        bail!(
            "{wanted} was not found: install it or name its directory with --postgres-bin; {SUPPORTED}"
        );
    }
    let found: Vec<String> = candidates.iter().map(ToString::to_string).collect();
    bail!(
        "{wanted} is needed; found {}; {SUPPORTED}: upgrade it, or name another directory with --postgres-bin",
        found.join(", ")
    )
}

fn is_supported(version: u32) -> bool {
    OLDEST.iter().any(|oldest| version / 10_000 == oldest / 10_000 && version >= *oldest)
}

/// Returns the major version that made the data, `None` where there is no data.
fn major_of(data_dir: &Path) -> anyhow::Result<Option<u32>> {
    let path = data_dir.join("PG_VERSION");
    let text =
        crate::durable::read_optional(&path).with_context(|| format!("read {}", path.display()))?;
    let Some(text) = text else { return Ok(None) };
    let text = String::from_utf8_lossy(&text);
    let major = text.trim().parse();
    major.map(Some).with_context(|| format!("{} says {:?}", path.display(), text.trim()))
}

impl fmt::Display for Candidate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let dir = self.dir.display();
        match &self.found {
            Ok(version) => write!(f, "{}.{} in {dir}", version / 10_000, version % 10_000),
            Err(problem) => write!(f, "no usable one in {dir} ({problem})"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(dir: &str, version: u32) -> Candidate {
        Candidate { dir: dir.into(), found: Ok(version) }
    }

    #[test]
    fn versions_are_read_and_what_is_no_release_is_refused() {
        for (text, version) in [
            ("postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)", 150_018),
            ("postgres (PostgreSQL) 18.0", 180_000),
        ] {
            assert_eq!(parse_version(text).unwrap(), version);
        }
        for bad in [
            "postgres (PostgreSQL) 18beta1",
            "postgres (PostgreSQL) 18rc1 (Debian 18~rc1-1)",
            "postgres (PostgreSQL) 19devel",
            "postgres (EnterpriseDB) 15.1",
            "",
        ] {
            assert!(parse_version(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_newest_supported_version_is_chosen_and_that_of_the_data_where_there_is_some() {
        let there = [at("/a", 150_018), at("/b", 170_006), at("/c", 190_001), at("/d", 170_004)];
        assert_eq!(choose(&there, None).unwrap().version(), 170_006);
        let data = Path::new("/data");
        assert_eq!(choose(&there, Some((15, data))).unwrap().dir(), Path::new("/a"));
        let error = choose(&there, Some((16, data))).unwrap_err().to_string();
        assert!(error.contains("PostgreSQL 16, which made the data in /data"), "{error}");
    }

    #[test]
    fn minors_before_may_2025_are_refused_with_path_version_range_and_remedy() {
        for version in [150_012, 160_008, 170_004, 140_018, 190_000] {
            assert!(choose(&[at("/pg", version)], None).is_err(), "{version}");
        }
        let error = choose(&[at("/pg/bin", 150_012)], None).unwrap_err().to_string();
        for part in ["15.12 in /pg/bin", "15.13", "18.0", "--postgres-bin"] {
            assert!(error.contains(part), "{error}");
        }
        let none = choose(&[], None).unwrap_err().to_string();
        assert!(none.contains("--postgres-bin"), "{none}");
    }

    #[test]
    fn an_explicit_directory_is_the_only_one_looked_at() {
        let dir = tempfile::tempdir().unwrap();
        let error = PostgresBinaries::find(Some(dir.path())).unwrap_err().to_string();
        assert!(error.contains(&dir.path().display().to_string()), "{error}");
    }

    #[test]
    fn a_link_to_postgres_leads_to_the_programs_beside_the_real_one() {
        let real = PostgresBinaries::find(None).unwrap();
        let dir = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink(real.postgres(), dir.path().join("postgres")).unwrap();
        let linked = PostgresBinaries::find(Some(dir.path())).unwrap();
        assert_eq!(linked, real);
        assert!(linked.pg_rewind().is_file());
    }

    #[test]
    fn the_data_directory_names_the_major_and_an_empty_one_does_not() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(major_of(dir.path()).unwrap(), None);
        fs::write(dir.path().join("PG_VERSION"), "16\n").unwrap();
        assert_eq!(major_of(dir.path()).unwrap(), Some(16));
        fs::write(dir.path().join("PG_VERSION"), "9.6\n").unwrap();
        assert!(major_of(dir.path()).is_err());
    }
}
