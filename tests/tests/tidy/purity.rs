//! Keeps deciders, renderers and documents unable to do anything: no runtime, no files, processes, sockets, clock,
//! chance, logging, and no order that differs from run to run.
//!
//! The one rule: tests inside these files may do what they like, the rest may not.

use super::repository;
use super::rust_code::{Token, code_only, tokens, without_tests};

/// Files that must be there; a decider's submodules lie in the directory of its name and are found by it.
const PURE: [&str; 13] = [
    "sentinel/src/decide.rs",
    "sentinel/src/explain.rs",
    "sentinel/src/invariant.rs",
    "sentinel/src/plan.rs",
    "sentinel/src/observe.rs",
    "sentinel/src/record.rs",
    "keeper/src/reconcile.rs",
    "keeper/src/facts.rs",
    "keeper/src/health.rs",
    "keeper/src/standstill.rs",
    "keeper/src/action.rs",
    "keeper/src/report.rs",
    "proxy-config/src/route.rs",
];
/// Also pure, and perhaps split into a directory alone.
const PURE_TOO: [&str; 8] = [
    "keeper/src/postgres/fork.rs",
    "proxy-config/src/header.rs",
    "proxy-config/src/haproxy.rs",
    "proxy-config/src/pgbouncer/entries.rs",
    "proxy-config/src/pgbouncer/header.rs",
    "proxy-config/src/pgbouncer/hold.rs",
    "proxy-config/src/pgbouncer/render.rs",
    "proto/src/lib.rs",
];
const PURE_DIRECTORIES: [&str; 1] = ["proto/src"];

/// Words that may not stand in the code, and what they would bring in.
const BANNED: [(&str, &str); 19] = [
    ("tokio", "a runtime"),
    ("tokio_util", "a runtime"),
    ("tokio_postgres", "a connection"),
    ("etcd_client", "a connection"),
    ("nix", "system calls"),
    ("libc", "system calls"),
    ("async", "a runtime"),
    ("await", "a runtime"),
    ("Instant", "a clock"),
    ("SystemTime", "a clock"),
    ("clock_gettime", "a clock"),
    ("rand", "chance"),
    ("thread_rng", "chance"),
    ("RandomState", "chance"),
    ("HashMap", "an order that differs from run to run (use BTreeMap)"),
    ("HashSet", "an order that differs from run to run (use BTreeSet)"),
    ("tracing", "logging (put it into the returned value)"),
    ("println", "output (put it into the returned value)"),
    ("eprintln", "output (put it into the returned value)"),
];

/// Modules of `std` that act. Addresses of `std::net` are values.
const BANNED_STD: [&str; 5] = ["fs", "process", "env", "thread", "os"];
const NET_VALUES: [&str; 7] = [
    "IpAddr",
    "Ipv4Addr",
    "Ipv6Addr",
    "SocketAddr",
    "SocketAddrV4",
    "SocketAddrV6",
    "AddrParseError",
];

/// Returns the paths of all files that must be pure.
pub fn files() -> Vec<String> {
    let mut files: Vec<String> =
        PURE.iter().chain(&PURE_TOO).map(|path| (*path).to_owned()).collect();
    let directories = PURE.iter().chain(&PURE_TOO).filter_map(|path| path.strip_suffix(".rs"));
    for directory in directories.chain(PURE_DIRECTORIES) {
        files.extend(
            repository::files_below(directory).into_iter().filter(|path| path.ends_with(".rs")),
        );
    }
    files.retain(|path| !repository::holds_only_tests(path));
    files.sort();
    files.dedup();
    files
}

/// Returns what in this file could do something.
pub fn check(path: &str, source: &str) -> Vec<String> {
    let tokens = tokens(&without_tests(&code_only(source)));
    let mut findings = Vec::new();
    for (at, token) in tokens.iter().enumerate() {
        let mut report = |what: String, why: &str| {
            findings.push(format!("{path}:{}: {what} brings in {why}", token.line))
        };
        if let Some((word, why)) = BANNED.iter().find(|(word, _)| *word == token.text) {
            report(format!("`{word}`"), why);
        }
        if reads_clock(&tokens[at..]) {
            report(format!("`{}`", token.text), "a clock (take `now` as an argument)");
        }
        for used in paths(&tokens, at, "std") {
            if acts(&used) {
                report(format!("`std::{}`", used.join("::")), "the outside world");
            }
        }
    }
    findings
}

/// `now()` without an argument is a clock whatever it belongs to, as is the store's clock by its path.
fn reads_clock(rest: &[Token]) -> bool {
    let text = |n: usize| rest.get(n).map_or("", |token| token.text.as_str());
    let called_bare = text(1) == "(" && text(2) == ")";
    matches!(text(0), "now" | "wall" | "elapsed") && called_bare
        || text(0) == "clock" && text(1) == "::"
}

fn acts(used: &[String]) -> bool {
    match used.first().map(String::as_str) {
        Some("net") => !used.get(1).is_some_and(|name| NET_VALUES.contains(&name.as_str())),
        Some("io") => used.get(1).is_some_and(|name| name.starts_with("std") || name == "*"),
        Some(module) => BANNED_STD.contains(&module) || module == "*",
        None => false,
    }
}

/// Returns the paths below `root::` that are named at `at`, with groups in braces taken apart.
pub fn paths(tokens: &[Token], at: usize, root: &str) -> Vec<Vec<String>> {
    let is = |n: usize, text: &str| tokens.get(n).is_some_and(|token| token.text == text);
    let mut found = Vec::new();
    if is(at, root) && is(at + 1, "::") {
        expand(tokens, at + 2, &[], &mut found);
    }
    found
}

/// Adds each path that continues `prefix` at `at` and returns where they end.
fn expand(
    tokens: &[Token],
    mut at: usize,
    prefix: &[String],
    found: &mut Vec<Vec<String>>,
) -> usize {
    let text = |n: usize| tokens.get(n).map_or("", |token| token.text.as_str());
    if text(at) == "{" {
        at += 1;
        while !matches!(text(at), "}" | "") {
            at = expand(tokens, at, prefix, found);
            // Over commas and over `as name`, to the next path or the end of the group.
            while !matches!(text(at), "," | "}" | "") {
                at += 1;
            }
            at += usize::from(text(at) == ",");
        }
        return at + 1;
    }
    let path: Vec<String> = prefix.iter().cloned().chain([text(at).to_owned()]).collect();
    if text(at + 1) == "::" {
        return expand(tokens, at + 2, &path, found);
    }
    found.push(path);
    at + 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_way_to_do_something_is_found() {
        for bad in [
            "use tokio::sync::watch;",
            "pub async fn decide() {}",
            "fn f() { async { 1 }; }",
            "fn f() { g().await }",
            "use std::fs;",
            "use std::fs::File;",
            "fn f() { std::fs::read(\"x\"); }",
            "use std::{collections::BTreeMap, fs::{File, self}};",
            "use std::{\n    collections::BTreeMap,\n    process::Command,\n};",
            "use std::process::Command;",
            "use std::net::TcpStream;",
            "use std::net::{IpAddr, UdpSocket};",
            "use std::net;",
            "use std::net::*;",
            "use std::*;",
            "use std::io::stdin;",
            "use std::{env as e};",
            "use std::thread;",
            "let t = std::time::Instant::now();",
            "use std::time::{Duration, SystemTime};",
            "let t = jiff::Timestamp::now();",
            "let t = now();",
            "use store::clock::now as read;",
            "let x = started.elapsed();",
            "let x: u8 = rand::random();",
            "use std::collections::{BTreeMap, HashMap};",
            "let s = std::collections::HashSet::new();",
            "tracing::info!(\"x\");",
            "println!(\"x\");",
            "#[cfg(test)]\nmod tests { }\nuse tokio::time;",
        ] {
            assert!(!check("x.rs", bad).is_empty(), "not found: {bad}");
        }
    }

    #[test]
    fn values_words_in_texts_and_tests_are_no_findings() {
        for good in [
            "use std::collections::{BTreeMap, BTreeSet};",
            "use std::net::IpAddr;\nuse std::net::{Ipv6Addr, SocketAddr};",
            "fn f(x: std::net::Ipv4Addr, now: Moment) -> bool { now.since(x) }",
            "// tokio, std::fs and now() are named here only",
            "let text = \"std::process and rand\"; let c = 'r';",
            "fn f(m: Moment) { m.elapsed(now); brand(); }",
            "#[cfg(test)]\nmod tests { use std::fs; use std::collections::HashMap; fn f() { now() } }",
            "use std::fmt::{self, Display}; use std::time::Duration; use std::io::ErrorKind;",
        ] {
            assert_eq!(check("x.rs", good), Vec::<String>::new(), "{good}");
        }
    }

    #[test]
    fn findings_name_the_line() {
        assert_eq!(check("a.rs", "\n\nuse tokio::time;"), ["a.rs:3: `tokio` brings in a runtime"]);
    }

    #[test]
    fn submodules_and_all_of_proto_are_looked_at() {
        let files = files();
        assert!(
            files.iter().filter(|path| path.starts_with("proto/src/")).count() > 10,
            "{files:?}"
        );
        assert!(files.contains(&"sentinel/src/decide.rs".to_owned()));
    }
}
