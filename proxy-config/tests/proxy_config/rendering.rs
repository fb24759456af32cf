//! HAProxy's files as text. After a wanted change: `UPDATE_GOLDEN=1 cargo test -p pgdeputy-proxy-config`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use proto::{ClusterSpec, Moment};
use proxy_config::HaproxyConfig;
use proxy_config::haproxy::{Rendered, states_path};
use proxy_config::header::{Comment, Installed, read_back};
use proxy_config::push::{Hold, commands};
use proxy_config::route::{Answer, Known, Lag, Routes, route};

use crate::scene::{Reports, name, open, primary, reports, routed, sealing, standby};

const NOW: Moment = Moment::since_boot(Duration::from_secs(1000));

fn config() -> HaproxyConfig {
    HaproxyConfig {
        file: "/etc/haproxy/haproxy.cfg".into(),
        socket: "/run/haproxy/pgdeputy.sock".into(),
        write_port: 5000,
        read_port: 5001,
        fresh_port: None,
        pool_ports: BTreeMap::new(),
        bind: "*".into(),
        reload: None,
    }
}

fn render(config: &HaproxyConfig, routes: &Routes) -> Rendered {
    proxy_config::haproxy::render(&"main".parse().unwrap(), config, routes)
}

fn three() -> Routes {
    let mut seen = reports([primary("a"), standby("b", 7), standby("c", 7)]);
    for member in seen.values_mut() {
        if member.member.as_str() == "c" {
            member.postgres_address = "[fd00::3]:5433".into();
            member.http_address = "localhost:8009".into();
        }
    }
    routed(Some(&open(7, &["a", "b", "c"])), &seen, None)
}

/// The same with a port for fresh reads, d in a pool of its own, and a pool that nobody is in.
fn full() -> (HaproxyConfig, Routes) {
    let pool = |name: &str| name.parse().unwrap();
    let pool_ports = [(pool("analysts"), 5003), (pool("empty"), 5004)].into();
    let config = HaproxyConfig { fresh_port: Some(5002), pool_ports, ..config() };
    let mut spec = ClusterSpec::default();
    spec.members.entry(name("d")).or_default().pool = Some(pool("analysts"));
    spec.reads.max_lag_time = Duration::from_secs(90);
    let reports = reports([primary("a"), standby("b", 7), standby("c", 7), standby("d", 7)]);
    let lag = Some(Lag { bytes: 1 << 30, time: Duration::ZERO });
    let answer = Answer { asked: NOW, lag, fresh: false, remote_apply: false };
    let answers = ["c", "d"].map(|m| (name(m), answer.clone())).into();
    let state = open(7, &["a", "b", "c", "d"]);
    let known = Known { spec: &spec, state: Some(&state), reports: &reports, answers: &answers };
    (config, route(&known, None, NOW))
}

fn assert_golden(file: &str, text: &str) {
    let path: PathBuf = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(file);
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(&path, text).unwrap();
    }
    assert_eq!(std::fs::read_to_string(&path).unwrap(), text, "{} differs", path.display());
}

/// Asks the real HAProxy. That it is not there is a failure: a file that nobody has loaded is no golden one.
#[test]
fn haproxy_itself_takes_every_golden_configuration() {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let mut asked = 0;
    for entry in std::fs::read_dir(golden).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|e| e == "cfg") {
            let mut command = std::process::Command::new("haproxy");
            let output = command.arg("-c").arg("-f").arg(&path).output().expect("run haproxy -c");
            let said = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{}: {said}", path.display());
            asked += 1;
        }
    }
    assert!(asked >= 3, "{asked}");
}

#[test]
fn pools_and_fresh_reads_give_the_golden_files() {
    let (config, routes) = full();
    let rendered = render(&config, &routes);
    assert_golden("pools.cfg", &rendered.text);
    assert_golden("pools.states", &rendered.states);
}

#[test]
fn three_members_give_the_golden_files() {
    let rendered = render(&config(), &three());
    assert_golden("three.cfg", &rendered.text);
    assert_golden("three.states", &rendered.states);
}

#[test]
fn no_member_gives_a_configuration_to_start_with() {
    assert_golden("empty.cfg", &render(&config(), &Routes::default()).text);
}

#[test]
fn the_pushes_are_the_golden_ones() {
    let mut text = String::new();
    let closed = routed(Some(&sealing(open(7, &["a", "b", "c"]))), &Reports::new(), Some(&three()));
    let scenes = [("open", three(), Hold::Routes), ("sealing", closed, Hold::Routes)];
    let away = [("store away", three(), Hold::Closed), ("store long away", three(), Hold::Nothing)];
    for (title, routes, hold) in scenes.into_iter().chain(away) {
        text += &format!("> {title}\n");
        text.extend(
            commands(&config(), &routes, hold, NOW)
                .iter()
                .map(|line| line.replace(';', "\n") + "\n"),
        );
    }
    let (config, routes) = full();
    text += "> c lags and leaves, d lags and is the only one of its pool\n";
    let now = commands(&config, &routes, Hold::Routes, NOW);
    text.extend(now.iter().map(|line| line.replace(';', "\n") + "\n"));
    text += "> half a minute later\n";
    let later = commands(&config, &routes, Hold::Routes, NOW + Duration::from_secs(30));
    let (now, later) = (now.join(";"), later.join(";"));
    let now: Vec<&str> = now.split(';').collect();
    text.extend(later.split(';').filter(|c| !now.contains(c)).map(|c| format!("{c}\n")));
    assert_golden("pushes.txt", &text);
}

#[test]
fn a_failover_changes_comments_and_states_but_never_what_haproxy_has_loaded() {
    let before = render(&config(), &three());
    let after = Routes { write: None, epoch: three().epoch.next(), ..three() };
    let after = render(&config(), &after);
    assert_eq!(before.fingerprint, after.fingerprint);
    assert_ne!(before.text, after.text);
    assert_ne!(before.states, after.states);
}

#[test]
fn another_address_port_or_member_needs_a_reload() {
    let before = render(&config(), &three()).fingerprint;
    let fewer = routed(Some(&open(7, &["a", "b"])), &Reports::new(), Some(&three()));
    assert_ne!(render(&config(), &fewer).fingerprint, before);
    assert_ne!(
        render(&HaproxyConfig { read_port: 5002, ..config() }, &three()).fingerprint,
        before
    );
}

#[test]
fn what_was_written_is_read_back() {
    for routes in [three(), Routes::default(), Routes { write: None, ..three() }, full().1] {
        let text = render(&config(), &routes).text;
        // What is remembered of those who get nothing is found out anew.
        let (aside, reluctant) = Default::default();
        let routes = Box::new(Routes { aside, reluctant, ..routes });
        assert_eq!(
            read_back(Comment::Haproxy, &text),
            Installed::Ours { cluster: "main".into(), routes }
        );
    }
}

#[test]
fn a_file_that_is_not_ours_or_is_damaged_is_foreign() {
    let ours = render(&config(), &three()).text;
    for foreign in [
        "global\n    maxconn 5\n".to_owned(),
        ours.replace("# pgdeputy epoch 7\n", ""),
        ours.replace("epoch 7", "epoch seven"),
        ours.replace("# pgdeputy write a", "# pgdeputy write A"),
    ] {
        assert_eq!(read_back(Comment::Haproxy, &foreign), Installed::Foreign);
    }
}

#[test]
fn the_states_stand_beside_the_configuration() {
    assert_eq!(states_path(Path::new("/x/haproxy.cfg")), Path::new("/x/haproxy.cfg.states"));
}
