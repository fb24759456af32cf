//! On real namespaces, without a cluster: they need root, as the labs do whose members are cut off.

use std::process::Child;
use std::time::Duration;

use super::cut::{How, Others, Traffic, Way};
use super::flaw::{Flaw, Kind};
use super::relay::Late;
use super::*;
use crate::lab::config::{DIRECTORY_PREFIX, Layout};

/// A network with hosts a and b and one etcd.
struct Scene {
    network: Network,
    root: tempfile::TempDir,
    _claim: Claim,
}

fn lab_directory() -> tempfile::TempDir {
    let root = tempfile::Builder::new().prefix(DIRECTORY_PREFIX).tempdir().unwrap();
    std::fs::write(Layout::marker(root.path()), "").unwrap();
    root
}

fn member(name: &str) -> Site {
    Site::Member(name.parse().unwrap())
}

fn scene() -> Scene {
    let root = lab_directory();
    let claim = Claim::take(root.path()).unwrap();
    note(root.path(), claim.number).unwrap();
    let mut network = Network::make(claim.number).unwrap();
    for site in [Site::Etcd(0), member("a"), member("b")] {
        network.add(&site).unwrap();
    }
    Scene { network, root, _claim: claim }
}

impl Drop for Scene {
    fn drop(&mut self) {
        remove_of(self.root.path()).unwrap();
    }
}

impl Scene {
    fn passes(&self, from: &Site, to: &Site) -> bool {
        let place = |site| self.network.place(site).unwrap();
        probe::passes(place(from), place(to)).unwrap()
    }

    fn cut(&mut self, from: Others, way: Way, how: How) {
        self.network
            .cut(&Cut { site: member("a"), from, way, how, traffic: Traffic::All })
            .unwrap();
    }
}

fn names(number: u8) -> usize {
    let prefix = format!("{}-", prefix(number));
    let entries = std::fs::read_dir(NAMES).into_iter().flatten().flatten();
    entries.filter(|e| e.file_name().to_string_lossy().starts_with(&prefix)).count()
}

#[test]
fn a_cut_bites_where_it_should_and_nowhere_else_and_its_undo_leaves_nothing() {
    let mut scene = scene();
    let (a, b, etcd, clients) = (member("a"), member("b"), Site::Etcd(0), Site::Clients);
    let all = [(&a, &b), (&b, &a), (&a, &etcd), (&etcd, &a), (&a, &clients), (&clients, &a)];
    let passing = |scene: &Scene| all.map(|(from, to)| scene.passes(from, to));
    assert_eq!(passing(&scene), [true; 6]);
    for how in [How::BlackHole, How::Reset] {
        for (from, way, left) in [
            (Others::Everybody, Way::Both, [false; 6]),
            (Others::Cluster, Way::Both, [false, false, false, false, true, true]),
            (Others::Etcd, Way::Both, [true, true, false, false, true, true]),
            (Others::Members, Way::Out, [false, true, true, true, true, true]),
            (Others::Members, Way::In, [true, false, true, true, true, true]),
        ] {
            scene.cut(from.clone(), way, how);
            assert_eq!(passing(&scene), left, "{from:?} {way:?} {how:?}");
            assert!(scene.passes(&b, &etcd) && scene.passes(&etcd, &b), "bystanders are not cut");
            scene.network.mend().unwrap();
            assert_eq!(passing(&scene), [true; 6], "undo of {from:?} {way:?} {how:?}");
        }
    }
}

#[test]
fn a_cut_of_tcp_leaves_datagrams() {
    let mut scene = scene();
    let (a, b, clients) = (member("a"), member("b"), Site::Clients);
    let connects = |scene: &Scene, from, to| {
        let place = |site| scene.network.place(site).unwrap();
        probe::connects(place(from), place(to)).unwrap()
    };
    let name = "a".parse().unwrap();
    let cut = Cut::between(&name, Others::Members).tcp_only();
    for cut in [cut.clone(), cut.reset()] {
        scene.network.cut(&cut).unwrap();
        assert!(!connects(&scene, &a, &b) && !connects(&scene, &b, &a), "{cut:?}");
        assert!(scene.passes(&a, &b) && scene.passes(&b, &a), "{cut:?}");
        assert!(connects(&scene, &clients, &a), "{cut:?}");
        scene.network.mend().unwrap();
        assert!(connects(&scene, &a, &b) && connects(&scene, &b, &a), "undo of {cut:?}");
    }
}

#[test]
fn a_flaw_shows_where_it_is_and_its_undo_leaves_nothing() {
    let mut scene = scene();
    let places = [member("a"), member("b"), Site::Etcd(0)];
    let [a, b, etcd] = places.map(|site| scene.network.place(&site).unwrap().clone());
    for kind in [Kind::Loss(10), Kind::LongLost(576), Kind::Narrow(400)] {
        let flaw = Flaw { site: member("a"), to: Others::Members, kind };
        assert!(
            flaw.prove_bad(&(a.clone(), b.clone())).is_err(),
            "{flaw:?} shows though it is not there"
        );
        let ends = scene.network.impair(&flaw).unwrap();
        flaw.prove_bad(&ends).unwrap();
        flaw.prove_good(&(b.clone(), etcd.clone())).unwrap();
        for (flaw, ends) in scene.network.repair().unwrap() {
            flaw.prove_good(&ends).unwrap();
        }
    }
}

#[test]
fn what_a_relay_holds_up_comes_late_and_nothing_of_an_open_connection_is_lost() {
    const SENT: usize = 1 << 20;
    const WAIT: Duration = Duration::from_secs(60);
    let mut scene = scene();
    let [a, b] = [member("a"), member("b")].map(|site| scene.network.place(&site).unwrap().clone());
    let late = Duration::from_millis(30);
    let (clients, _) = scene.network.hold_up(&member("a"), Late::By(late)).unwrap();
    for (from, to) in [(&clients, &a), (&a, &b), (&b, &a)] {
        assert!(probe::took(from, to, WAIT).unwrap().unwrap() >= late);
    }
    assert!(scene.network.let_go().unwrap()[0].1 >= 3);
    let (mut near, mut far) = probe::connection(&b, &a).unwrap().unwrap();
    scene.network.hold_up(&member("a"), Late::Held).unwrap();
    let writing = std::thread::spawn(move || near.write_all(&[7; SENT]));
    assert_eq!(probe::took(&clients, &a, Duration::from_millis(250)).unwrap(), None);
    assert!(scene.network.let_go().unwrap()[0].1 > 0);
    let mut arrived = vec![0; SENT];
    far.set_read_timeout(Some(WAIT)).unwrap();
    std::io::Read::read_exact(&mut far, &mut arrived).unwrap();
    assert!(arrived.iter().all(|byte| *byte == 7));
    writing.join().unwrap().unwrap();
    assert!(scene.passes(&member("a"), &member("b")) && scene.passes(&member("b"), &member("a")));
}

#[test]
fn a_reset_answers_at_once_and_a_black_hole_does_not() {
    let mut scene = scene();
    let b = scene.network.place(&member("b")).unwrap().clone();
    let connect = |scene: &Scene| {
        let mut command = Command::new("bash");
        // Nobody listens: the kernel refuses, unless the question does not arrive.
        command.args(["-c", &format!("echo > /dev/tcp/{}/9", b.address)]);
        scene.network.place(&member("a")).unwrap().enter(&mut command);
        let mut child: Child = command.stderr(Stdio::null()).spawn().unwrap();
        let deadline = store::clock::now() + Duration::from_millis(700);
        while store::clock::now() < deadline {
            if child.try_wait().unwrap().is_some() {
                return true;
            }
            std::thread::yield_now();
        }
        child.kill().unwrap();
        child.wait().unwrap();
        false
    };
    scene.cut(Others::Members, Way::Both, How::Reset);
    assert!(connect(&scene));
    scene.network.mend().unwrap();
    scene.cut(Others::Members, Way::Both, How::BlackHole);
    assert!(!connect(&scene));
}

#[test]
fn a_dead_labs_network_is_found_and_removed_and_a_kept_one_is_left_alone() {
    let dead = lab_directory();
    let kept = lab_directory();
    std::fs::write(kept.path().join(KEPT), "").unwrap();
    let made = [&dead, &kept].map(|root| {
        let claim = Claim::take(root.path()).unwrap();
        note(root.path(), claim.number).unwrap();
        (Network::make(claim.number).unwrap().number, claim)
    });
    let numbers = made.each_ref().map(|(number, _)| *number);
    assert_eq!(numbers.map(names), [1, 1], "each has a switch");
    // Their processes and guards are gone.
    drop(made);
    let next = lab_directory();
    let deadline = store::clock::now() + Duration::from_secs(10);
    let mut claim = Claim::take(next.path()).unwrap();
    while dead.path().exists() {
        // Another lab that starts just now may have found it first.
        assert!(store::clock::now() < deadline, "the dead lab is still there");
        drop(claim);
        claim = Claim::take(next.path()).unwrap();
    }
    assert_eq!(names(numbers[1]), 1, "the kept one was left alone");
    assert_ne!(claim.number, numbers[1]);
    remove_of(kept.path()).unwrap();
    assert_eq!(names(numbers[1]), 0);
}
