//! HAProxy with the configuration that Patroni documents, pointed at our keepers: the paths, methods and codes are the same.

use std::fmt::Write;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use chaos::lab::Lab;
use proto::MemberName;
use store::clock;

use super::session;

const BOUND: Duration = Duration::from_secs(60);

/// Ends with the test, however it ends.
struct Haproxy(Child);

impl Drop for Haproxy {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// As in Patroni's haproxy.cfg and its documentation of replicas, but for ports and pauses.
fn configuration(lab: &Lab, write: u16, read: u16) -> String {
    let mut text = "global\n    maxconn 100\ndefaults\n    log global\n    mode tcp\n    retries 2\n    \
                    timeout client 30m\n    timeout connect 4s\n    timeout server 30m\n    timeout check 5s\n"
        .to_owned();
    for (name, port, path) in [("primary", write, "/primary"), ("replicas", read, "/replica")] {
        let _ = write!(
            text,
            "listen {name}\n    bind 127.0.0.1:{port}\n    option httpchk OPTIONS {path}\n    \
             http-check expect status 200\n    \
             default-server inter 300ms fall 3 rise 2 on-marked-down shutdown-sessions\n"
        );
        for member in lab.members() {
            let at = lab.address(&member).unwrap();
            let _ = writeln!(
                text,
                "    server postgresql_{member} {}:{} maxconn 100 check port {}",
                at.host, at.postgres, at.http
            );
        }
    }
    text
}

/// Demands that their write port leads to the primary, and that their read port leads to all others and never to it.
pub async fn their_configuration_works(lab: &mut Lab, primary: &MemberName, all: &[MemberName]) {
    let (write, read) = (lab.free_port().unwrap(), lab.free_port().unwrap());
    let file = lab.layout().process("patroni.cfg");
    std::fs::write(&file, configuration(lab, write, read)).unwrap();
    let mut command = Command::new("haproxy");
    command.arg("-db").arg("-f").arg(&file).stdin(Stdio::null());
    let _haproxy = Haproxy(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap());
    let standbys: Vec<&MemberName> = all.iter().filter(|m| *m != primary).collect();
    for (port, expected) in [(write, vec![primary]), (read, standbys)] {
        let deadline = clock::now() + BOUND;
        loop {
            let mut landed = std::collections::BTreeSet::new();
            for _ in 0..12 {
                let target = lab.application(std::net::Ipv4Addr::LOCALHOST, port);
                let Some(session) = session(&target).await else { continue };
                let Ok(row) = session.query_one("SELECT inet_server_port()", &[]).await else {
                    continue;
                };
                landed.insert(row.get::<_, i32>(0));
            }
            let ports: std::collections::BTreeSet<i32> = expected
                .iter()
                .map(|member| i32::from(lab.address(member).unwrap().postgres))
                .collect();
            if landed == ports {
                break;
            }
            assert!(clock::now() < deadline, "{port} leads to {landed:?} and not to {ports:?}");
        }
    }
}
