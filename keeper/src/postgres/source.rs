//! Names the server to copy or rewind from, as libpq wants it said.
//!
//! Rule: a password is never in a command line or in this process's logs, only in a passfile.

use std::path::PathBuf;
use std::time::Duration;

/// A server to which replication or rewind connects.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    /// A host name, an address, or the directory of a Unix socket.
    pub host: String,
    pub port: u16,
    pub user: String,
    /// libpq reads it at each connect; others must not be able to read it, or libpq ignores it.
    pub passfile: PathBuf,
    pub application_name: String,
}

/// A source that sends nothing for so long that the connection is as good as lost: keepalives notice a host that
/// vanished, where the kernel's own default takes two hours.
const KEEPALIVES: [(&str, &str); 5] = [
    ("connect_timeout", "10"),
    ("keepalives_idle", "10"),
    ("keepalives_interval", "5"),
    ("keepalives_count", "4"),
    ("tcp_user_timeout", "30000"),
];

impl Source {
    /// Returns how a keeper itself opens a session there, in the database that pg_rewind uses.
    pub fn config(&self, password: &str, connect_timeout: Duration) -> tokio_postgres::Config {
        let mut config = tokio_postgres::Config::new();
        config
            .host(&self.host)
            .port(self.port)
            .user(&self.user)
            .password(password)
            .dbname(super::gateway::DATABASE)
            .application_name(&self.application_name)
            .connect_timeout(connect_timeout);
        config
    }

    /// Returns the connection string for one of `major`'s own programs.
    pub fn conninfo(&self, major: u32, dbname: Option<&str>) -> String {
        let port = self.port.to_string();
        let passfile = self.passfile.to_string_lossy();
        let mut parts = vec![
            ("host", self.host.as_str()),
            ("port", &port),
            ("user", &self.user),
            ("passfile", &passfile),
            ("application_name", &self.application_name),
        ];
        parts.extend(KEEPALIVES);
        parts.extend(dbname.map(|name| ("dbname", name)));
        // Who answers on a port that was the source's must not talk the client into a password in the clear.
        if major >= 16 {
            parts.push(("require_auth", "scram-sha-256"));
        }
        let words: Vec<String> =
            parts.iter().map(|(name, value)| format!("{name}={}", quote(value))).collect();
        words.join(" ")
    }
}

/// Quotes a value of a connection string.
pub fn quote(value: &str) -> String {
    format!("'{}'", value.replace('\\', "\\\\").replace('\'', "\\'"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_conninfo_names_the_passfile_and_quotes_what_libpq_would_split() {
        let source = Source {
            host: "::1".into(),
            port: 5433,
            user: "pgdeputy_rewind".into(),
            passfile: "/var/lib/o'brien\\x/pass".into(),
            application_name: "b.e7.joining".into(),
        };
        let text = source.conninfo(15, Some("postgres"));
        assert!(text.starts_with("host='::1' port='5433' user='pgdeputy_rewind' "), "{text}");
        assert!(text.contains(r"passfile='/var/lib/o\'brien\\x/pass'"), "{text}");
        assert!(text.ends_with("dbname='postgres'"), "{text}");
        assert!(!text.contains("require_auth"));
        assert!(source.conninfo(16, None).ends_with("require_auth='scram-sha-256'"));
    }
}
