//! HAProxy's files as text. After a wanted change: `UPDATE_GOLDEN=1 cargo test -p pgdeputy-proxy-config`.

use std::path::{Path, PathBuf};

use proxy_config::HaproxyConfig;
use proxy_config::haproxy::{Installed, Rendered, read_back, states_path};
use proxy_config::push::{Hold, commands};
use proxy_config::route::{Routes, route};

use crate::scene::{Reports, open, primary, reports, sealing, standby};

fn config() -> HaproxyConfig {
    HaproxyConfig {
        file: "/etc/haproxy/haproxy.cfg".into(),
        socket: "/run/haproxy/pgdeputy.sock".into(),
        write_port: 5000,
        read_port: 5001,
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
            member.http_address = "c.example.org:8009".into();
        }
    }
    route(Some(&open(7, &["a", "b", "c"])), &seen, None)
}

fn assert_golden(file: &str, text: &str) {
    let path: PathBuf = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(file);
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(&path, text).unwrap();
    }
    assert_eq!(std::fs::read_to_string(&path).unwrap(), text, "{} differs", path.display());
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
    let closed = route(Some(&sealing(open(7, &["a", "b", "c"]))), &Reports::new(), Some(&three()));
    let scenes = [("open", three(), Hold::Routes), ("sealing", closed, Hold::Routes)];
    let away = [("store away", three(), Hold::Closed), ("store long away", three(), Hold::Nothing)];
    for (title, routes, hold) in scenes.into_iter().chain(away) {
        text += &format!("> {title}\n");
        text.extend(commands(&routes, hold).iter().map(|line| line.replace(';', "\n") + "\n"));
    }
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
    let fewer = route(Some(&open(7, &["a", "b"])), &Reports::new(), Some(&three()));
    assert_ne!(render(&config(), &fewer).fingerprint, before);
    assert_ne!(
        render(&HaproxyConfig { read_port: 5002, ..config() }, &three()).fingerprint,
        before
    );
}

#[test]
fn what_was_written_is_read_back() {
    for routes in [three(), Routes::default(), Routes { write: None, ..three() }] {
        let text = render(&config(), &routes).text;
        assert_eq!(read_back(&text), Installed::Ours { cluster: "main".into(), routes });
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
        assert_eq!(read_back(&foreign), Installed::Foreign);
    }
}

#[test]
fn the_states_stand_beside_the_configuration() {
    assert_eq!(states_path(Path::new("/x/haproxy.cfg")), Path::new("/x/haproxy.cfg.states"));
}
