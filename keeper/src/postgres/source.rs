//! Names the server to copy or rewind from, as libpq wants it said.
//!
//! Rule: a password is never in a command line or in this process's logs, only in a passfile.

use std::path::PathBuf;

use anyhow::anyhow;
use tokio_postgres::config::SslMode;
use tokio_postgres::tls::NoTlsStream;
use tokio_postgres::{Client, Connection, NoTls};

use super::gateway::upstream::{self, AnyStream};
use super::session::describe;
use super::tls::Tls;

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
    /// `None`: in the clear where that is what the server speaks.
    pub tls: Option<Tls>,
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
    /// Opens a session of a keeper's own there, in the database that pg_rewind uses. The caller bounds it, and carries it
    /// on by polling the connection.
    pub async fn session(
        &self,
        password: &str,
    ) -> anyhow::Result<(Client, Connection<AnyStream, NoTlsStream>)> {
        let stream = upstream::open(self).await?;
        let mut config = tokio_postgres::Config::new();
        config
            .user(&self.user)
            .password(password)
            .dbname(super::gateway::DATABASE)
            .application_name(&self.application_name)
            // Where there is to be TLS the stream has it.
            .ssl_mode(SslMode::Disable);
        config.connect_raw(stream, NoTls).await.map_err(|e| anyhow!("{}", describe(&e)))
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
        let tls = self.tls.as_ref().map_or_else(Vec::new, Tls::parameters);
        parts.extend(tls.iter().map(|(name, value)| (*name, value.as_str())));
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
    use crate::postgres::tls::{self, OwnCertificate};

    #[test]
    fn a_conninfo_names_the_passfile_and_quotes_what_libpq_would_split() {
        let source = Source {
            host: "::1".into(),
            port: 5433,
            user: "pgdeputy_rewind".into(),
            passfile: "/var/lib/o'brien\\x/pass".into(),
            application_name: "b.e7.joining".into(),
            tls: None,
        };
        let text = source.conninfo(15, Some("postgres"));
        assert!(text.starts_with("host='::1' port='5433' user='pgdeputy_rewind' "), "{text}");
        assert!(text.contains(r"passfile='/var/lib/o\'brien\\x/pass'"), "{text}");
        assert!(text.ends_with("dbname='postgres'"), "{text}");
        assert!(!text.contains("require_auth"));
        assert!(source.conninfo(16, None).ends_with("require_auth='scram-sha-256'"));
        assert!(!text.contains("ssl"));
        let own = OwnCertificate { certificate: "/c.pem".into(), key: "/c.key".into() };
        let tls = Tls { mode: tls::SslMode::VerifyFull, root: "/ca.pem".into(), own: Some(own) };
        let text = Source { tls: Some(tls), ..source }.conninfo(15, None);
        let parameters =
            "sslmode='verify-full' sslrootcert='/ca.pem' sslcert='/c.pem' sslkey='/c.key'";
        assert!(text.contains(parameters), "{text}");
    }
}
