//! Copies of a server with a tablespace, to a host that has old data with the same tablespace, or that of another server.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use keeper::postgres::binaries::RunAs;
use keeper::postgres::copy::{CopyTerms, base_backup};
use keeper::postgres::tablespaces::{Tablespace, beside, mappings, settle};

use crate::cluster::{Cluster, binaries, own};

/// A directory of PostgreSQL's own user.
fn directory(path: PathBuf) -> PathBuf {
    fs::create_dir(&path).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o700)).unwrap();
    own(&path);
    path
}

fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).unwrap();
    let mut names: Vec<String> =
        entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn user() -> Option<RunAs> {
    binaries().user()
}

/// Puts a fresh copy of `source` in the place of the member's data, as the keeper does.
async fn is_replaced(member: &Cluster, source: &Cluster, fast: &Tablespace, epoch: u64) {
    let suffix = format!("copy-e{epoch}");
    let tablespaces = mappings(&member.data, &suffix, std::slice::from_ref(fast), user()).unwrap();
    let fresh = beside(&member.data, &suffix).unwrap();
    let terms = CopyTerms { tablespaces, ..CopyTerms::default() };
    base_backup(&binaries(), &source.source(), &fresh, &terms, |_| {}).await.unwrap();
    if member.data.exists() {
        let kept = beside(&member.data, &format!("old-e{epoch}")).unwrap();
        fs::rename(&member.data, kept).unwrap();
    }
    fs::rename(&fresh, &member.data).unwrap();
    assert_eq!(settle(&member.data).unwrap(), [fast.location.as_path()]);
}

async fn follows(member: &mut Cluster, source: &Cluster, rows: &str) {
    member.follow(source);
    member.start().await;
    member.caught_up(source).await;
    member.eventually("it has replayed", |c| c.sql("SELECT count(*) FROM t") == rows).await;
    let file = member.sql("SELECT pg_relation_filepath('t')");
    assert!(file.starts_with("pg_tblspc/"), "{file}");
    member.stop().await;
}

#[tokio::test]
async fn a_copy_takes_the_place_of_a_tablespace_that_old_data_has_and_of_no_other_servers() {
    // On a host of its own the source has another directory at the same path.
    let mut source = Cluster::new(1).await;
    let mut member = Cluster::empty();
    let around = directory(member.root().join("spaces"));
    let location = directory(around.join("fast"));
    source.sees = Some((directory(source.root().join("its-own")), location.clone()));
    source.start().await;
    source.sql(&format!("CREATE TABLESPACE fast LOCATION '{}'", location.display()));
    source.sql("CREATE TABLE t TABLESPACE fast AS SELECT generate_series(1, 1000) AS i");
    assert_eq!(names(&location), [""; 0], "the member's host has nothing there yet");
    let fast = Tablespace { name: "fast".into(), location: location.clone() };

    is_replaced(&member, &source, &fast, 3).await;
    follows(&mut member, &source, "1000").await;
    assert_eq!(names(&around), ["fast"]);

    source.sql("INSERT INTO t SELECT generate_series(1, 500)");
    is_replaced(&member, &source, &fast, 7).await;
    assert_eq!(names(&around), ["fast", "fast.old-e7.1"]);
    let kept = member.root().join("data.old-e7.1/pg_tblspc");
    let link = fs::read_dir(kept).unwrap().next().unwrap().unwrap().path();
    assert_eq!(fs::read_link(link).unwrap(), around.join("fast.old-e7.1"));
    follows(&mut member, &source, "1500").await;

    // Another member of the same host: told before anything is written.
    let other = Cluster::empty();
    let refused = mappings(&other.data, "copy-e8", std::slice::from_ref(&fast), user());
    let refused = refused.unwrap_err().to_string();
    assert!(refused.contains("run this member on another host"), "{refused}");
    assert_eq!(names(other.root()), ["pass"]);
    assert_eq!(names(&around), ["fast", "fast.old-e7.1"]);
}
