//! Bad values end with status 64 and one line that names cause and remedy, before any socket is opened. And no program that
//! is used makes deliberate mistakes.

#![allow(clippy::unwrap_used, reason = "a test may panic, also in its helpers")]

mod common;

use std::net::TcpListener;
use std::path::PathBuf;

use common::{Ended, pgdeputy};

/// An address that stands for etcd and for every other service, and notices whether anybody connects.
struct Untouched {
    listener: TcpListener,
    address: String,
    directory: tempfile::TempDir,
}

impl Untouched {
    fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap().to_string();
        Self { listener, address, directory: tempfile::tempdir().unwrap() }
    }

    fn file(&self, name: &str, text: &str) -> String {
        let path: PathBuf = self.directory.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    }

    /// Runs `line`, in which ETCD stands for this address, and returns its complaint.
    fn refused(&self, line: &str, environment: &[(&str, &str)]) -> String {
        let line = line.replace("ETCD", &format!("--etcd http://{}", self.address));
        let words: Vec<&str> = line.split_whitespace().collect();
        let mut command = pgdeputy(&words);
        command.envs(environment.iter().copied());
        let ended = Ended::from(command.output().unwrap());
        let complaint = ended.complaint(64).to_owned();
        let connected = self.listener.accept();
        assert!(
            connected.is_err_and(|e| e.kind() == std::io::ErrorKind::WouldBlock),
            "{line}: it connected"
        );
        complaint
    }

    fn refuses(&self, cases: &[(&str, &str)]) {
        for (line, named) in cases {
            let complaint = self.refused(line, &[]);
            assert!(complaint.contains(named), "{line}: {complaint}");
        }
    }
}

const KEEPER: &str = "keeper --cluster demo --member a ETCD --data-dir /nonexistent/data --listen 127.0.0.1:5432 \
                      --http 127.0.0.1:8008";

#[test]
fn values_that_cannot_be_are_refused() {
    let at = Untouched::new();
    at.refuses(&[
        ("", "a command is missing"),
        ("frobnicate", "frobnicate"),
        ("status ETCD", "--cluster <NAME>"),
        ("status --cluster demo", "--etcd <URL>"),
        ("status --cluster Demo ETCD", "cluster name \"Demo\" is not valid"),
        ("status --cluster demo --etcd https://127.0.0.1:1", "--etcd-ca"),
        ("status --cluster demo --etcd http://127.0.0.1", "HOST:PORT"),
        ("status --cluster demo ETCD --log-level a=b=c", "--log-level"),
        ("status --cluster demo ETCD --log-format xml", "possible values: text, json"),
        ("history --cluster demo ETCD seven", "\"seven\" is no epoch"),
        ("drills --only crash,flood", "\"flood\" is no fault: use member, freeze"),
        ("drills --faults 0", "use 1 to 10000"),
        ("lab up --members 0", "use 1 to 7"),
        ("lab up --etcd-members 2", "use 1, 3 or 5"),
        ("init --cluster demo ETCD --update", "--spec"),
        ("sentinel ETCD", "no cluster"),
        ("sentinel ETCD --cluster demo --all-clusters", "exclude each other"),
        ("sentinel ETCD --all-clusters --listen 0.0.0.0:1", "wildcard"),
        ("switchover --cluster demo ETCD --to b --away-from-zone north", "cannot be used with"),
        ("switchover --cluster demo ETCD --away-from-zone", "--away-from-zone"),
        ("switchover --cluster demo ETCD --deadline 1s", "use 2s to 1h"),
        ("switchover --cluster demo ETCD --hold 1h", "use 100ms to 100s"),
        ("switchover --cluster demo ETCD --at 03:00", "names no zone"),
        ("switchover --cluster demo ETCD --at 2020-01-01T00:00:00Z", "is past"),
        ("switchover --cluster demo ETCD --at 03:00Z --window 1s", "use 10s to 1day"),
        ("switchover --cluster demo ETCD --list --dry-run", "cannot be used with"),
        ("dsn --cluster demo ETCD --at-least 3000060", "3000060"),
        ("demo --fault meteor", "use member, freeze, partition, crash, crash-twice, keeper"),
        ("demo --members 1", "use 2 to 7"),
        ("demo --lease-ttl 1s", "lease_ttl"),
        ("demo --down-for soon", "--down-for"),
        ("bench --runs 0", "--runs"),
        ("bench-two-members --runs 0", "--runs"),
        ("fencer --state-dir /nonexistent", "fencer is started by the keeper"),
    ]);
}

#[test]
fn a_keeper_is_refused_what_would_fail_later() {
    let at = Untouched::new();
    let with = |more: &str| format!("{KEEPER} {more}");
    let long = with(&format!("--state-dir /{}", "x".repeat(100)));
    at.refuses(&[
        (&KEEPER.replace("--member a", "--member A"), "member name \"A\""),
        (&KEEPER.replace("127.0.0.1:5432", "0.0.0.0:5432"), "wildcard"),
        (&KEEPER.replace("127.0.0.1:5432", "127.0.0.1:0"), "port 0"),
        (&KEEPER.replace("127.0.0.1:8008", "[::]:8008"), "wildcard"),
        (&KEEPER.replace("127.0.0.1:8008", "127.0.0.1:5432"), "use two ports"),
        (&KEEPER.replace("/nonexistent/data", "/"), "below the root"),
        (&long, "shorter --state-dir"),
        (&with("--postgres-bin /nonexistent"), "no program `postgres`"),
        (&with("--postgres-user no-such-user"), "no such user"),
        (&with("--superuser-password-file /nonexistent/file"), "no such file"),
        (
            &with("--superuser-password-file /etc/hostname"),
            "no password for replication and rewind",
        ),
        (&with("--superuser-password secret"), "--superuser-password"),
    ]);
}

#[test]
fn a_proxy_config_is_refused_what_haproxy_would_misread() {
    let at = Untouched::new();
    let ports = |write, read| {
        format!(
            "proxy-config --cluster demo ETCD --haproxy-config /a --haproxy-socket /b --write-port {write} --read-port {read}"
        )
    };
    at.refuses(&[
        (&ports(5000, 5000), "choose two ports"),
        (&ports(0, 5000), "--write-port"),
        (&ports(70000, 5000), "--write-port"),
        (&format!("{} --bind a,b", ports(5000, 5001)), "--bind"),
    ]);
}

#[test]
fn a_proxy_config_without_a_proxy_or_with_half_of_one_is_refused() {
    let at = Untouched::new();
    let with = |flags: &str| format!("proxy-config --cluster demo ETCD {flags}");
    // What a file gives counts as given, though it does not for the command line's own rules.
    let file =
        at.file("half.toml", "pgbouncer-config = '/a'\npgbouncer-admin = ['host=/run user=x']\n");
    let pgbouncer = "--pgbouncer-config /a --pgbouncer-database shop";
    at.refuses(&[
        (&with(""), "nothing to keep in line"),
        (&with("--haproxy-config /a --write-port 5000"), "HAProxy needs --haproxy-config"),
        (&with("--pgbouncer-config /a"), "PgBouncer needs --pgbouncer-config"),
        (&with(&format!("--config {file}")), "PgBouncer needs --pgbouncer-config"),
        (&with(&format!("{pgbouncer} --pgbouncer-admin host=/run")), "admin_users"),
        (
            &with("--pgbouncer-config /a --pgbouncer-database a;b --pgbouncer-admin host=/run"),
            "is no name",
        ),
        (
            &with(&format!(
                "{pgbouncer} --pgbouncer-admin host=/a --pgbouncer-password-file /nonexistent"
            )),
            "--pgbouncer-password-file /nonexistent",
        ),
    ]);
}

#[test]
fn a_spec_is_judged_before_anything_is_asked() {
    let at = Untouched::new();
    let cases = [
        ("a.toml", "lease_tll = '4s'", "lease_tll"),
        ("b.toml", "lease_ttl = '3s'\nfence_time = '2s'", "leaves no room for two lost renewals"),
        ("c.json", r#"{"members": {"a": {"vote": "sometimes"}}}"#, "sometimes"),
        ("d.json", r#"{"format_version": 2}"#, "upgrade pgdeputy"),
        ("e.toml", "lease_ttl = ", "line 1"),
        ("f.yaml", "lease_ttl: 4s", "must end in .toml or .json"),
        ("g.toml", "[postgres]\npg_hba = ['host all all all trust']", "scram-sha-256"),
    ];
    for (name, text, named) in cases {
        let file = at.file(name, text);
        at.refuses(&[(&format!("init --cluster demo ETCD --spec {file}"), named)]);
    }
    at.refuses(&[("init --cluster demo ETCD --spec /nonexistent.toml", "No such file")]);
}

#[test]
fn a_bad_value_is_refused_wherever_it_stands() {
    let at = Untouched::new();
    let etcd = format!("http://{}", at.address);
    let usual = [("PGDEPUTY_ETCD", etcd.as_str()), ("PGDEPUTY_CLUSTER", "Demo")];
    assert!(at.refused("status", &usual).contains("cluster name \"Demo\""));
    let listening = [("PGDEPUTY_LISTEN", "0.0.0.0:5432")];
    assert!(
        at.refused(&KEEPER.replace("--listen 127.0.0.1:5432", ""), &listening).contains("wildcard")
    );
    for (name, text, named) in [
        ("a.toml", "cluster = \"Demo\"", "cluster name \"Demo\""),
        ("b.toml", "clutser = \"demo\"", "unknown key \"clutser\""),
        ("c.toml", "cluster = ", "line 1"),
        ("d.toml", "[keeper]\nread-port = 1", "unknown key \"read-port\" in [keeper]"),
    ] {
        let file = at.file(name, text);
        let by_flag = at.refused(&format!("status ETCD --config {file}"), &[]);
        assert!(by_flag.contains(named), "{by_flag}");
        let by_variable = at.refused("status ETCD", &[("PGDEPUTY_CONFIG", &file)]);
        assert_eq!(by_flag, by_variable);
    }
    assert!(at.refused("status ETCD --config /nonexistent", &[]).contains("No such file"));
}

#[test]
fn help_and_version_are_no_failures() {
    for line in ["--help", "--version", "keeper --help", "version", "version --json", "help status"]
    {
        let words: Vec<&str> = line.split(' ').collect();
        let ended = Ended::from(pgdeputy(&words).output().unwrap());
        assert!(ended.answer().len() > 5, "{line}");
    }
    // The guard and the fencer are not for people.
    let help = Ended::from(pgdeputy(&["--help"]).output().unwrap());
    assert!(!help.answer().contains("fencer") && !help.answer().contains("bench"));
}

#[test]
fn the_program_contains_no_deliberate_mistake() {
    let contains = |word: &str| {
        let mut grep = std::process::Command::new("grep");
        grep.args(["-q", "-a", word, env!("CARGO_BIN_EXE_pgdeputy")]).status().unwrap().success()
    };
    assert!(contains("PGDEPUTY_DSN"), "this is not the program");
    // By it a build with the feature `mistakes` chooses one.
    assert!(!contains("MISTAKE_OF_PGDEPUTY"), "built with the feature `mistakes`: not for use");
}
