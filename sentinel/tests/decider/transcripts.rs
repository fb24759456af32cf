//! Whole failovers as text: `> command` is what happens, the other lines are what the leader does
//! about it.
//!
//! The texts are in `tests/transcripts`. After a wanted change run with UPDATE_TRANSCRIPTS=1 and
//! review the diff.

use std::fmt::Write;
use std::path::Path;

use proto::proxy::Clients;
use proto::report::{Rejoin, RejoinBy, RejoinOutcome};
use proto::{ClusterSpec, Epoch, MemberName, RequestId};

use crate::scene::Scene;

/// Plays one text and returns it with what the leader really does.
fn play(text: &str) -> String {
    let mut scene = Scene::empty(&[]);
    let mut told = String::new();
    for line in text.lines() {
        if line.starts_with('#') || line.is_empty() {
            writeln!(told, "{line}").unwrap();
        }
        let Some(command) = line.strip_prefix("> ") else { continue };
        writeln!(told, "{line}").unwrap();
        command.split("; ").for_each(|c| perform(&mut scene, c));
        let before = scene.commits.len();
        let plan = scene.settle();
        for why in &scene.commits[before..] {
            writeln!(told, "commit: {why}").unwrap();
        }
        writeln!(told, "{}", plan.explanation.verdict).unwrap();
        if command == "explain" {
            explain(&mut told, &plan.explanation);
        }
    }
    told
}

fn perform(scene: &mut Scene, command: &str) {
    let words: Vec<&str> = command.split_whitespace().collect();
    match words[..] {
        ["report", ref members @ ..] => members.iter().for_each(|m| scene.returns(m)),
        ["back", member] => {
            scene.returns(member);
            scene.founds(member);
        }
        ["founds", member] => scene.founds(member),
        ["opens", member] => scene.opens(member),
        ["streams", ref members @ ..] => members.iter().for_each(|m| scene.streams(m)),
        ["silent", ref members @ ..] => members.iter().for_each(|m| scene.silent(m)),
        ["proves", lsn] => scene.confirms(lsn),
        ["dies", member] => scene.dies(member),
        ["vanish", ref members @ ..] => members.iter().for_each(|m| scene.vanishes(m)),
        ["seals", member, lsn] => scene.seals(member, lsn),
        ["seals", member, lsn, "epoch", epoch] => {
            scene.seals_with_wal_of(member, lsn, Epoch(epoch.parse().unwrap()));
        }
        ["rejoined", member, "by", way] => rejoined(scene, member, way),
        ["pass", time] => scene.pass(humantime(time)),
        ["count", count] => scene.spec.synchronous.count = count.parse().unwrap(),
        ["leader", "changes"] => scene.leader_changes(),
        ["ask", id, to] => {
            scene.asks_for_switchover(id.parse().unwrap(), Some(to));
        }
        ["ready", ref left @ ..] => {
            let left: Vec<_> = left.chunks(2).map(|l| (l[0], l[1].parse().unwrap())).collect();
            scene.is_ready_to_hand_over(&left);
        }
        ["proxy", id, "can", "hold"] => scene.proxy(id, Clients::Held, None),
        ["proxy", id, "holds", request] => {
            let request = RequestId::from_random(request.parse().unwrap());
            scene.proxy(id, Clients::Held, Some(&request));
        }
        ["proxy", id, "vanishes"] => drop(scene.seen.proxies.remove(id)),
        ["hands", "over", lsn] => scene.hands_over(lsn),
        ["explain"] => {}
        _ => panic!("no such command: {command}"),
    }
}

/// Times are written as in a spec, and read by the same code.
fn humantime(text: &str) -> std::time::Duration {
    let spec = format!(r#"{{"format_version":1,"settle":"{text}"}}"#);
    proto::document::decode::<ClusterSpec>(spec.as_bytes()).unwrap().settle
}

fn rejoined(scene: &mut Scene, member: &str, way: &str) {
    let by = match way {
        "rewind" => RejoinBy::Rewind,
        "copy" => RejoinBy::Copy,
        _ => RejoinBy::Follow,
    };
    let (epoch, wall) = (scene.state().epoch, scene.wall());
    scene.streams(member);
    scene.report(member).rejoin = Some(Rejoin {
        epoch,
        by,
        reason: "as told".into(),
        started: wall,
        outcome: RejoinOutcome::Done { ended: wall },
        kept: None,
        details: Default::default(),
    });
}

fn explain(told: &mut String, explanation: &proto::explanation::Explanation) {
    let promotable: Vec<&str> = explanation.promotable.iter().map(MemberName::as_str).collect();
    writeln!(told, "  primary: {}", explanation.primary).unwrap();
    writeln!(told, "  promotable: [{}] {}", promotable.join(", "), explanation.promotable_reason)
        .unwrap();
    for rejection in &explanation.rejected {
        writeln!(told, "  not {}: {}", rejection.member, rejection.reason).unwrap();
    }
    for warning in &explanation.warnings {
        writeln!(told, "  warning: {warning}").unwrap();
    }
}

fn check(file: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/transcripts").join(file);
    let expected = std::fs::read_to_string(&path).unwrap();
    let told = play(&expected);
    if std::env::var_os("UPDATE_TRANSCRIPTS").is_some() {
        std::fs::write(&path, told).unwrap();
        return;
    }
    for (number, (wanted, got)) in expected.lines().zip(told.lines()).enumerate() {
        assert_eq!(got, wanted, "{file}, line {}", number + 1);
    }
    assert_eq!(told.lines().count(), expected.lines().count(), "{file} has another length");
}

#[test]
fn every_transcript_is_played() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/transcripts");
    let mut files: Vec<String> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    files.sort();
    assert!(files.len() >= 4, "{files:?}");
    files.iter().for_each(|file| check(file));
}
