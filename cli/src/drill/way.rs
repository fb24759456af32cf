//! The way of a canary to the primary, as clients take it.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, anyhow, ensure};
use chaos::session::Way;
use clap::Args;
use tokio_postgres::Config;
use tokio_postgres::config::SslMode;

use crate::failure::Failure;
use crate::keeper_role::tls::{Given, Verify};

#[derive(Debug, Clone, Default, Args)]
pub struct WayArgs {
    /// How clients reach the primary, as for libpq: by this way a canary commits once a second, and proves what was kept.
    /// Give it as PGDEPUTY_DSN where it holds a password
    #[arg(long, value_name = "DSN")]
    pub dsn: Option<String>,
    /// Certificates that sign that of whoever answers there, in PEM form: the canary then goes by TLS only
    #[arg(long, value_name = "FILE")]
    sslrootcert: Option<PathBuf>,
    /// What of a certificate is verified [default: verify-full, with --sslrootcert]
    #[arg(long, value_enum, value_name = "MODE")]
    sslmode: Option<Verify>,
    /// Certificate that the canary shows, with --sslkey
    #[arg(long, value_name = "FILE")]
    sslcert: Option<PathBuf>,
    /// Key of --sslcert, without a passphrase, which nobody else may read
    #[arg(long, value_name = "FILE")]
    sslkey: Option<PathBuf>,
}

impl WayArgs {
    /// Returns the way, if one is given.
    ///
    /// # Errors
    /// The DSN cannot be read, or demands TLS where nothing says whom to believe.
    pub fn way(&self) -> anyhow::Result<Option<Way>> {
        // What belongs together is checked here: the command line's definition takes what a file gives for not given.
        let Some(dsn) = &self.dsn else {
            ensure!(
                self.sslrootcert.is_none(),
                "--sslrootcert is of the canary's way: give --dsn, too"
            );
            return Ok(None);
        };
        let config: Config = dsn.parse().context(
            "read the DSN; sslmode=verify-full, sslrootcert and their like are flags of their own, such as --sslrootcert",
        )?;
        let given = Given {
            root: self.sslrootcert.clone(),
            mode: self.sslmode,
            certificate: self.sslcert.clone(),
            key: self.sslkey.clone(),
        };
        let tls = given.checked().map_err(|failure| match failure {
            Failure::Usage(problem) => anyhow!(problem),
            Failure::Runtime(error) => error,
        })?;
        let Some(tls) = tls else {
            ensure!(
                config.get_ssl_mode() != SslMode::Require,
                "the DSN demands TLS (sslmode=require): say with --sslrootcert who signs the server's certificate"
            );
            return Ok(Some(Way::plain(config)));
        };
        tls.check()?;
        Ok(Some(Way::by_tls(config, Arc::new(move || tls.client_config()))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problem(dsn: &str, root: Option<&str>) -> String {
        let (dsn, sslrootcert) = (Some(dsn.to_owned()), root.map(PathBuf::from));
        let args = WayArgs { dsn, sslrootcert, ..WayArgs::default() };
        args.way().err().map(|e| format!("{e:#}")).unwrap_or_default()
    }

    #[test]
    fn tls_is_by_flags_and_never_without_knowing_whom_to_believe() {
        assert!(WayArgs::default().way().unwrap().is_none());
        assert_eq!(problem("host=127.0.0.1 user=x", None), "");
        assert_eq!(
            problem("postgres://x@127.0.0.1/d?sslmode=prefer", None),
            "",
            "that is libpq's default"
        );
        let refused = problem("host=a user=x sslmode=require", None);
        assert!(refused.contains("--sslrootcert"), "{refused}");
        let refused = problem("host=a user=x sslmode=verify-full", None);
        assert!(refused.contains("--sslrootcert"), "{refused}");
        let alone = WayArgs { sslrootcert: Some("/root.pem".into()), ..WayArgs::default() };
        assert!(alone.way().err().is_some_and(|e| e.to_string().contains("give --dsn")));
        let refused = problem("host=a user=x", Some("/nowhere/root.pem"));
        assert!(refused.contains("/nowhere/root.pem"), "{refused}");
    }
}
