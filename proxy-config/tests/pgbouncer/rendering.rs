//! PgBouncer's file as text, and what a real PgBouncer makes of it. After a wanted change:
//! `UPDATE_GOLDEN=1 cargo test -p pgdeputy-proxy-config`.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use proto::Epoch;
use proxy_config::pgbouncer::entries::{OLDEST, Version};
use proxy_config::pgbouncer::file;
use proxy_config::pgbouncer::render::{Kind, Rendered, Wishes, render};
use proxy_config::route::{Addresses, Routes};

use crate::world::{Pgbouncer, World};

fn wishes() -> Wishes {
    let databases = [
        "shop pool_size=20 reserve_pool=5 max_db_connections=60 max_db_client_connections=500 read_pool_size=40",
        "archive dbname=archive_2026 read=reports pool_size=4 pool_mode=session",
        "queue read=none pool_size=8",
        "* pool_size=2 max_db_connections=10",
    ];
    let users =
        ["shop max_user_connections=50 max_user_client_connections=400", "report pool_size=3"];
    Wishes {
        cluster: "main".parse().unwrap(),
        databases: databases.iter().map(|d| d.parse().unwrap()).collect(),
        users: users.iter().map(|u| u.parse().unwrap()).collect(),
    }
}

fn routes(read: &[&str]) -> Routes {
    let member = |(index, name): (u8, &str)| {
        let host = Ipv4Addr::new(10, 0, 0, index);
        let at = |port: u16| format!("{host}:{port}").parse().unwrap();
        (name.parse().unwrap(), Addresses { postgres: at(5432), http: at(8008), pool: None })
    };
    Routes {
        epoch: Epoch(7),
        write: Some("a".parse().unwrap()),
        read: read.iter().map(|m| m.parse().unwrap()).collect::<BTreeSet<_>>(),
        members: [(1, "a"), (2, "b"), (3, "c")].map(member).into(),
        ..Routes::default()
    }
}

fn rendered(read: &[&str], version: Version) -> Rendered {
    render(&wishes(), &routes(read), version).unwrap()
}

fn golden(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(file)
}

fn assert_golden(file: &str, text: &str) {
    let path = golden(file);
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(&path, text).unwrap();
    }
    assert_eq!(std::fs::read_to_string(&path).unwrap(), text, "{} differs", path.display());
}

#[test]
fn each_supported_version_gets_the_limits_that_it_knows_and_the_rest_is_said() {
    let with_notes = |version| {
        let Rendered { text, notes, .. } = rendered(&["b", "c"], version);
        text + &notes.iter().map(|n| format!("\n; note: {n}\n")).collect::<String>()
    };
    assert_golden("pgbouncer-1.18.ini", &with_notes(OLDEST));
    assert_golden("pgbouncer-1.24.ini", &with_notes(Version(1, 24)));
}

#[test]
fn without_a_standby_the_primary_serves_reads_and_their_clients_wait_with_the_others() {
    for read in [[].as_slice(), &["a"]] {
        let reads =
            rendered(read, OLDEST).entries.into_iter().find(|e| e.name == "shop_ro").unwrap();
        assert_eq!((reads.host.as_str(), reads.kind), ("10.0.0.1", Kind::ReadByPrimary));
    }
    assert_eq!(rendered(&["b", "c"], OLDEST).entries[1].host, "10.0.0.2,10.0.0.3");
    assert_eq!(rendered(&["b"], OLDEST).entries[1].kind, Kind::Read);
}

#[test]
fn one_port_is_chosen_for_reads_and_who_is_left_out_is_named() {
    let mut routes = routes(&["a", "b", "c"]);
    routes.members.get_mut(&"b".parse().unwrap()).unwrap().postgres.port = 5433;
    let rendered = render(&wishes(), &routes, OLDEST).unwrap();
    assert_eq!(
        (rendered.entries[1].host.as_str(), rendered.entries[1].port),
        ("10.0.0.1,10.0.0.3", 5432)
    );
    assert!(rendered.notes[0].starts_with("reads do not go to b:"), "{:?}", rendered.notes);
}

#[test]
fn there_is_no_file_without_a_primary() {
    assert_eq!(render(&wishes(), &Routes { write: None, ..routes(&["b"]) }, OLDEST), None);
}

#[test]
fn what_was_written_is_read_back_and_a_lower_epoch_never_replaces_it() {
    let world = World::new("main");
    let (path, cluster) = (world.file(), "main".parse().unwrap());
    let install = |epoch: u64| {
        let routes = Routes { epoch: Epoch(epoch), ..routes(&["b"]) };
        let text = render(&wishes(), &routes, OLDEST).unwrap().text;
        file::install(&path, &cluster, (&routes, &text)).map(|()| routes)
    };
    let seven = install(7).unwrap();
    assert_eq!(file::installed(&path, &cluster).unwrap(), Some(seven));
    let eight = install(8).unwrap();
    let error = install(7).unwrap_err().to_string();
    assert!(error.contains("is of epoch 8, and this would be 7"), "{error}");
    assert_eq!(file::installed(&path, &cluster).unwrap(), Some(eight));
}

#[tokio::test]
async fn the_golden_files_are_loaded_by_the_installed_pgbouncer_and_words_too_new_for_it_are_not() {
    let world = World::new("main");
    let mut installed = OLDEST;
    for (name, version) in [("pgbouncer-1.18.ini", OLDEST), ("pgbouncer-1.24.ini", Version(1, 24))]
    {
        let file = world.directory.path().join(name);
        std::fs::copy(golden(name), &file).unwrap();
        let mut pgbouncer = Pgbouncer::new(world.directory.path(), &[&file], "").await;
        if version > installed {
            // This is why the version is asked for: one word that it does not know, and nothing is loaded.
            let plain = world.directory.path().join("pgbouncer-1.18.ini");
            pgbouncer = Pgbouncer::new(world.directory.path(), &[&plain], "").await;
            pgbouncer.start().await;
            std::fs::copy(&file, &plain).unwrap();
            pgbouncer.command("RELOAD").await;
            let log = pgbouncer.log();
            assert!(
                log.contains("unrecognized connection parameter: max_db_client_connections"),
                "{log}"
            );
            continue;
        }
        pgbouncer.start().await;
        installed = Version::of_banner(&pgbouncer.command("SHOW VERSION").await[0]).unwrap();
        let names: BTreeSet<String> =
            pgbouncer.command("SHOW DATABASES").await.into_iter().collect();
        let expected = ["archive", "pgbouncer", "queue", "reports", "shop", "shop_ro"];
        assert_eq!(names, expected.map(String::from).into(), "{name}: {}", pgbouncer.log());
    }
}
