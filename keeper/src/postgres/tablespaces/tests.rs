use super::*;

/// A data directory `a` whose only tablespace lies at `fast`, and what is beside it.
struct Scene(tempfile::TempDir);

impl Scene {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Makes a data directory with a link to a tablespace.
    fn data(&self, name: &str, leads_to: &str) {
        fs::create_dir_all(self.path(name).join("pg_tblspc")).unwrap();
        symlink(self.path(leads_to), self.path(name).join("pg_tblspc/16400")).unwrap();
    }

    fn space(&self, name: &str, text: &str) {
        fs::create_dir_all(self.path(name)).unwrap();
        fs::write(self.path(name).join("PG_15_202209061"), text).unwrap();
    }

    fn leads_to(&self, data: &str) -> PathBuf {
        fs::read_link(self.path(data).join("pg_tblspc/16400")).unwrap()
    }

    /// Returns what the data directory finds in its tablespace.
    fn finds(&self, data: &str) -> String {
        let file = self.path(data).join("pg_tblspc/16400/PG_15_202209061");
        fs::read_to_string(file).unwrap()
    }

    fn mappings(&self) -> anyhow::Result<Vec<Mapping>> {
        let fast = Tablespace { name: "fast".into(), location: self.path("fast") };
        mappings(&self.path("a"), "copy-e7", &[fast], None)
    }

    fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(self.0.path()).unwrap();
        let mut names: Vec<_> =
            entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

#[test]
fn a_tablespace_goes_beside_its_place_and_never_over_what_another_server_has_there() {
    let scene = Scene::new();
    let beside = Mapping { from: scene.path("fast"), to: scene.path("fast.copy-e7.1") };
    assert_eq!(scene.mappings().unwrap(), std::slice::from_ref(&beside));
    scene.space("fast", "somebody's");
    let refused = scene.mappings().unwrap_err().to_string();
    assert!(refused.contains("not of this member's data") && refused.contains("fast"), "{refused}");
    scene.data("a", "fast");
    assert_eq!(scene.mappings().unwrap(), [beside]);
    fs::create_dir(scene.path("fast.copy-e7.1")).unwrap();
    assert_eq!(scene.mappings().unwrap()[0].to, scene.path("fast.copy-e7.2"));
    assert_eq!(scene.names(), ["a", "fast", "fast.copy-e7.1"], "asking writes nothing");
    let within = Tablespace { name: "odd".into(), location: "pg_tblspc/16400".into() };
    assert_eq!(mappings(&scene.path("a"), "copy-e7", &[within], None).unwrap(), []);
}

#[test]
fn where_nothing_can_be_put_beside_a_used_place_that_is_said_and_an_empty_one_is_used() {
    let proc = Tablespace { name: "fast".into(), location: "/proc".into() };
    let scene = Scene::new();
    fs::create_dir_all(scene.path("a/pg_tblspc")).unwrap();
    symlink("/proc", scene.path("a/pg_tblspc/16400")).unwrap();
    let refused = mappings(&scene.path("a"), "copy-e7", &[proc], None).unwrap_err().to_string();
    assert!(refused.contains("it is a mount point"), "{refused}");
    let nobodys = RunAs { uid: 65_534, gid: 65_534 };
    let fast = Tablespace { name: "fast".into(), location: scene.path("fast") };
    assert_eq!(mappings(&scene.path("a"), "copy-e7", &[fast], Some(nobodys)).unwrap(), []);
}

/// The copy stands in the place of the data, and old data beside it.
fn replaced() -> Scene {
    let scene = Scene::new();
    scene.space("fast", "old");
    scene.space("fast.copy-e7.1", "new");
    scene.data("a", "fast.copy-e7.1");
    scene.data("a.old-e7.1", "fast");
    scene
}

fn is_settled(scene: &Scene, cut: &str) {
    settle(&scene.path("a")).unwrap();
    assert_eq!(scene.leads_to("a"), scene.path("fast"), "{cut}");
    assert_eq!((scene.finds("a").as_str(), scene.finds("a.old-e7.1").as_str()), ("new", "old"));
    assert_eq!(scene.names(), ["a", "a.old-e7.1", "fast", "fast.old-e7.1"], "{cut}");
    assert_eq!(settle(&scene.path("a")).unwrap(), Vec::<PathBuf>::new(), "{cut}");
}

#[test]
fn old_and_new_data_each_find_their_own_tablespace_wherever_settling_was_cut() {
    is_settled(&replaced(), "nothing was done");
    let cut = replaced();
    relink(&cut.path("a.old-e7.1/pg_tblspc/16400"), &cut.path("fast.old-e7.1")).unwrap();
    is_settled(&cut, "the old data leads to where its own will be");
    fs::rename(cut.path("fast"), cut.path("fast.copy-e7.1")).unwrap();
    relink(&cut.path("a/pg_tblspc/16400"), &cut.path("fast.copy-e7.1")).unwrap();
    is_settled(&cut, "what was in its place is aside");
    relink(&cut.path("a/pg_tblspc/16400"), &cut.path("fast.copy-e7.1")).unwrap();
    is_settled(&cut, "only the link is old");
    fs::rename(cut.path("fast"), cut.path("elsewhere")).unwrap();
    relink(&cut.path("a/pg_tblspc/16400"), &cut.path("fast.copy-e7.1")).unwrap();
    assert!(settle(&cut.path("a")).unwrap_err().to_string().ends_with("are gone"));
}

#[test]
fn a_first_copy_takes_an_empty_place() {
    let scene = Scene::new();
    fs::create_dir(scene.path("fast")).unwrap();
    scene.space("fast.copy-e7.1", "new");
    scene.data("a", "fast.copy-e7.1");
    settle(&scene.path("a")).unwrap();
    assert_eq!(scene.finds("a"), "new");
    assert_eq!(scene.names(), ["a", "fast"]);
}
