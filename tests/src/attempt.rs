//! Runs pgdeputy with something wrong, and looks at what it says and what it leaves behind.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use chaos::lab::Lab;
use tokio::process::Command;

use crate::pgdeputy;

/// Refusing takes milliseconds, an etcd that does not answer 5 s; this is for a machine under load.
const BOUND: Duration = Duration::from_secs(30);

/// How a program ended that was expected to refuse.
#[derive(Debug)]
pub struct Refusal {
    pub status: Option<i32>,
    /// What it wrote to stderr last.
    pub line: String,
    pub stderr: String,
}

/// Runs pgdeputy with these arguments until it ends by itself.
pub async fn attempt<S: AsRef<std::ffi::OsStr>>(arguments: &[S]) -> Refusal {
    let mut command = Command::new(pgdeputy());
    command.args(arguments).stdin(Stdio::null()).kill_on_drop(true);
    for (key, _) in
        std::env::vars_os().filter(|(key, _)| key.to_string_lossy().starts_with("PGDEPUTY_"))
    {
        command.env_remove(key);
    }
    let ended = tokio::time::timeout(BOUND, command.output()).await;
    let output = ended
        .expect("it goes on running and should have refused")
        .expect("pgdeputy can be started");
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    let line = stderr.lines().last().unwrap_or_default().to_owned();
    Refusal { status: output.status.code(), line, stderr }
}

/// Runs a command about the lab's cluster, as an operator types it.
pub async fn command(lab: &Lab, words: &[&str]) -> Refusal {
    let mut arguments: Vec<String> = words.iter().map(|&word| word.to_owned()).collect();
    arguments.extend(["--cluster".to_owned(), chaos::lab::CLUSTER.to_owned()]);
    arguments.extend(lab.etcd_flags().into_iter().flat_map(|(flag, value)| [flag.into(), value]));
    attempt(&arguments).await
}

impl Refusal {
    /// Demands this exit status, and one line that has all these words.
    #[track_caller]
    pub fn says(&self, status: i32, words: &[&str]) {
        assert_eq!(self.status, Some(status), "{self:?}");
        for word in words {
            assert!(self.line.contains(word), "{word:?} is missing in {:?}", self.line);
        }
        assert!(!self.stderr.contains("panicked"), "{}", self.stderr);
    }
}

/// A keeper of a test's own, beside those of the lab.
pub struct Intruder {
    directory: PathBuf,
    pub arguments: BTreeMap<&'static str, String>,
}

impl Intruder {
    /// A keeper that would be accepted as a new member of the lab's cluster.
    pub fn new(lab: &mut Lab, member: &str) -> Self {
        let directory =
            lab.private_directory(&format!("intruder-{member}")).expect("make its directory");
        let mut address = || format!("127.0.0.1:{}", lab.free_port().expect("a free port"));
        let mut arguments = BTreeMap::from([
            ("--cluster", chaos::lab::CLUSTER.to_owned()),
            ("--member", member.to_owned()),
            ("--listen", address()),
            ("--http", address()),
            ("--data-dir", directory.join("data").display().to_string()),
        ]);
        arguments.extend(lab.etcd_flags());
        for of in ["superuser", "replication", "rewind"] {
            let file = lab.layout().password(of).display().to_string();
            arguments.insert(flag_of(of), file);
        }
        Self { directory, arguments }
    }

    /// Changes one argument.
    #[must_use]
    pub fn with(mut self, flag: &'static str, value: impl ToString) -> Self {
        self.arguments.insert(flag, value.to_string());
        self
    }

    /// Where its data and its files would be.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Starts it, waits until it has refused, and demands that nothing on disk has changed.
    pub async fn is_refused(&self) -> Refusal {
        let before = files(&self.directory);
        let mut arguments = vec!["keeper".to_owned()];
        arguments.extend(
            self.arguments.iter().flat_map(|(flag, value)| [(*flag).to_owned(), value.clone()]),
        );
        let refusal = attempt(&arguments).await;
        assert_eq!(
            files(&self.directory),
            before,
            "a refused keeper changed files: {}",
            refusal.stderr
        );
        refusal
    }
}

/// Demands that `directory` is as it was, and names what is not.
#[track_caller]
pub fn assert_unchanged(directory: &Path, before: &Files) {
    let after = files(directory);
    let gone: Vec<_> = before.keys().filter(|path| !after.contains_key(*path)).collect();
    let changed: Vec<_> = after
        .iter()
        .filter(|(path, now)| before.get(*path) != Some(*now))
        .map(|(p, _)| p)
        .collect();
    assert!(gone.is_empty() && changed.is_empty(), "gone: {gone:?}, new or changed: {changed:?}");
}

/// Files by path with their content; directories have none.
pub type Files = BTreeMap<PathBuf, Option<Vec<u8>>>;

fn flag_of(password: &str) -> &'static str {
    match password {
        "superuser" => "--superuser-password-file",
        "replication" => "--replication-password-file",
        _ => "--rewind-password-file",
    }
}

/// Returns every file below `directory` with its content, and every directory.
pub fn files(directory: &Path) -> Files {
    let mut found = BTreeMap::new();
    let mut open = vec![directory.to_owned()];
    while let Some(directory) = open.pop() {
        for entry in std::fs::read_dir(&directory).expect("list a directory") {
            let entry = entry.expect("read an entry");
            let kind = entry.file_type().expect("read its kind");
            let content = kind.is_file().then(|| std::fs::read(entry.path()).expect("read a file"));
            if kind.is_dir() {
                open.push(entry.path());
            }
            found.insert(entry.path(), content);
        }
    }
    found
}
