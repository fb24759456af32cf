//! The flags of `proxy-config` that are about PgBouncer.

use std::path::{Path, PathBuf};

use clap::Args;
use proto::ClusterName;
use proxy_config::PgbouncerConfig;
use proxy_config::pgbouncer::entries::{Database, User};
use proxy_config::pgbouncer::render::Wishes;

use crate::failure::Failure;

#[derive(Debug, Args)]
#[command(next_help_heading = "PgBouncer")]
pub struct PgbouncerArgs {
    /// The file with PgBouncer's databases; all of it is written here, and pgbouncer.ini includes it
    #[arg(long, value_name = "FILE")]
    pgbouncer_config: Option<PathBuf>,
    /// Where a PgBouncer's console is, such as "host=/run/postgresql port=6432 user=pgdeputy"; once for each
    #[arg(long, value_name = "CONNINFO")]
    pgbouncer_admin: Vec<String>,
    /// File with the password for the console
    #[arg(long, value_name = "FILE")]
    pgbouncer_password_file: Option<PathBuf>,
    /// Command that restarts the PgBouncer whose console is at $PGDEPUTY_PGBOUNCER (host:port), run by sh -c, for `pgdeputy
    /// drill run pgbouncer` [default: that drill is refused]
    #[arg(long, value_name = "COMMAND")]
    pgbouncer_restart: Option<String>,
    /// A database for writes, and NAME_ro for reads: "shop pool_size=20 max_db_connections=60"; * for all others
    #[arg(long, value_name = "NAME [WORD=VALUE ...]")]
    pgbouncer_database: Vec<Database>,
    /// The limits of a user: "shop max_user_connections=50"
    #[arg(long, value_name = "NAME WORD=VALUE ...")]
    pgbouncer_user: Vec<User>,
}

impl PgbouncerArgs {
    /// Returns the command that restarts one.
    pub fn restart(&self) -> Option<String> {
        self.pgbouncer_restart.clone()
    }

    /// Returns the checked part of the configuration; none where PgBouncer is not asked for.
    pub fn config(self, cluster: &ClusterName) -> Result<Option<PgbouncerConfig>, Failure> {
        let rest = !self.pgbouncer_admin.is_empty() && !self.pgbouncer_database.is_empty();
        let some = !self.pgbouncer_admin.is_empty() || !self.pgbouncer_database.is_empty();
        let file = match self.pgbouncer_config {
            Some(file) if rest => file,
            None if !some && self.pgbouncer_user.is_empty() => return Ok(None),
            Some(_) | None => {
                return Err(Failure::usage(
                    "PgBouncer needs --pgbouncer-config, --pgbouncer-admin and --pgbouncer-database: give all of them, \
                     or none",
                ));
            }
        };
        let file = super::path("--pgbouncer-config", file)?;
        let password = self.pgbouncer_password_file.as_deref().map(read_password).transpose()?;
        let console = |given: &String| console(given, password.as_deref());
        let consoles = self.pgbouncer_admin.iter().map(console).collect::<Result<_, _>>()?;
        let (databases, users) = (self.pgbouncer_database, self.pgbouncer_user);
        let wishes = Wishes { cluster: cluster.clone(), databases, users };
        Ok(Some(PgbouncerConfig { file, consoles, wishes }))
    }
}

fn console(given: &str, password: Option<&str>) -> Result<tokio_postgres::Config, Failure> {
    let about = |problem: &str| Failure::usage(format!("--pgbouncer-admin {given:?}: {problem}"));
    let mut config: tokio_postgres::Config =
        given.parse().map_err(|e: tokio_postgres::Error| {
            about(&format!("{e}: use the form \"host=... port=... user=...\""))
        })?;
    if config.get_password().is_some() {
        // Not shown: it would end up in a log.
        return Err(Failure::usage(
            "--pgbouncer-admin has a password: give --pgbouncer-password-file",
        ));
    }
    if config.get_hosts().len() != 1 || config.get_ports().len() > 1 {
        return Err(about("name one host and port; give the flag once for each PgBouncer"));
    }
    if config.get_user().is_none() {
        return Err(about("it has no user=: name one of PgBouncer's admin_users"));
    }
    if config.get_dbname().is_some_and(|name| name != "pgbouncer") {
        return Err(about("leave out dbname: the console is the database pgbouncer"));
    }
    if config.get_ports().is_empty() {
        config.port(PGBOUNCER_PORT);
    }
    config.dbname("pgbouncer").application_name("pgdeputy proxy-config");
    if let Some(password) = password {
        config.password(password);
    }
    Ok(config)
}

/// What PgBouncer listens on where nothing else is said.
const PGBOUNCER_PORT: u16 = 6432;

fn read_password(path: &Path) -> Result<String, Failure> {
    let about = |problem: String| {
        Failure::usage(format!("--pgbouncer-password-file {}: {problem}", path.display()))
    };
    let text = std::fs::read_to_string(path).map_err(|e| about(e.to_string()))?;
    match text.trim_end_matches(['\n', '\r']) {
        "" => Err(about("it is empty".into())),
        password => Ok(password.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_console_is_one_place_with_a_user_and_no_password_on_the_command_line() {
        for (given, remedy) in [
            ("host=/run user=x password=secret", "--pgbouncer-password-file"),
            ("host=a,b user=x", "once for each"),
            ("host=a port=6432", "admin_users"),
            ("host=a user=x dbname=shop", "leave out dbname"),
            ("nonsense", "host=... port=... user=..."),
        ] {
            let refused = console(given, None).unwrap_err().line();
            assert!(refused.contains(remedy) && !refused.contains("secret"), "{refused}");
        }
        let config = console("host=/run/postgresql user=pgdeputy", Some("x")).unwrap();
        assert_eq!(
            (config.get_ports(), config.get_dbname()),
            ([6432].as_slice(), Some("pgbouncer"))
        );
    }
}
