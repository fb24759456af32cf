//! Keeps pure what deciders lean on: what a pure file names of our own code is pure too, or only a value.
//!
//! Without this the list of pure files would be pure by its own word: a decider could call a helper that reads a clock.

use std::collections::BTreeSet;

use super::purity;
use super::repository;
use super::rust_code::{code_only, tokens, without_tests};

/// Types that pure files take from files that act. They are values: nothing that acts can be called on them.
const VALUES: [(&str, &[&str]); 9] = [
    ("keeper/src/fencer/protocol.rs", &["FenceWay"]),
    ("keeper/src/member_files.rs", &["Fork", "MemberFiles", "Role"]),
    ("keeper/src/postgres/compare.rs", &["Proof", "SourceSays"]),
    ("keeper/src/postgres/probe.rs", &["SqlFacts"]),
    ("keeper/src/postgres/settings.rs", &["Settings", "StreamName"]),
    ("keeper/src/postgres/stopped.rs", &["Pages", "Stopped"]),
    ("proxy-config/src/lib.rs", &["HaproxyConfig"]),
    ("store/src/keys.rs", &["Keys"]),
    ("store/src/lib.rs", &["LeaseId", "Snapshot"]),
];

/// Returns what the pure files name that is neither pure nor a value.
pub fn check_all() -> Vec<String> {
    let pure: BTreeSet<String> = purity::files().into_iter().collect();
    let sources = pure.iter().filter_map(|path| Some((path, repository::read(path)?)));
    sources.flat_map(|(path, source)| check(path, &source, &pure)).collect()
}

fn check(path: &str, source: &str, pure: &BTreeSet<String>) -> Vec<String> {
    let tokens = tokens(&without_tests(&code_only(source)));
    let own = path.split('/').next().unwrap_or_default();
    let mut findings = Vec::new();
    for (at, token) in tokens.iter().enumerate() {
        for (root, of) in [("crate", own), ("store", "store")] {
            for used in purity::paths(&tokens, at, root) {
                let (file, item) = resolved(of, &used);
                let is_value = VALUES.iter().any(|(f, i)| *f == file && i.contains(&&*item));
                if !pure.contains(&file) && !is_value {
                    let named = used.join("::");
                    findings.push(format!(
                        "{path}:{}: `{root}::{named}` is of {file}, which is not pure",
                        token.line
                    ));
                }
            }
        }
    }
    findings
}

/// Returns the file in which a path leads, and what is named there.
fn resolved(of: &str, used: &[String]) -> (String, String) {
    let file = |depth: usize| format!("{of}/src/{}.rs", used[..depth].join("/"));
    let depth = (1..=used.len()).rev().find(|depth| repository::exists(&file(*depth)));
    let item = |depth: usize| used.get(depth).cloned().unwrap_or_default();
    match depth {
        Some(depth) => (file(depth), item(depth)),
        None => (format!("{of}/src/lib.rs"), item(0)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(source: &str) -> usize {
        let pure = purity::files().into_iter().collect();
        check("keeper/src/reconcile.rs", source, &pure).len()
    }

    #[test]
    fn a_helper_that_acts_is_found_behind_every_form_of_use() {
        for bad in [
            "use crate::worker::prove::counted;",
            "use crate::{facts::Facts, worker::Worker};",
            "fn f() { crate::durable::write(); }",
            "use crate::member_files::open;",
            "use crate::postgres::settings::install;",
            "use store::EtcdStore;",
            "use store::clock;",
        ] {
            assert_eq!(found(bad), 1, "{bad}");
        }
    }

    #[test]
    fn pure_files_and_values_are_no_findings() {
        for good in [
            "use crate::facts::{ClusterView, Facts};",
            "use crate::member_files::{MemberFiles, Role};",
            "use crate::postgres::settings::StreamName; use store::LeaseId; use store::keys::Keys;",
            "#[cfg(test)]\nmod tests { use crate::worker::Worker; }",
        ] {
            assert_eq!(found(good), 0, "{good}");
        }
    }
}
