//! `dsn`: a libpq connection string with every member, so that a client finds the primary without a router.

use std::collections::BTreeSet;
use std::fmt;

use anyhow::ensure;
use clap::{Args, ValueEnum};
use proto::{ClusterName, HostPort, MemberName};
use serde::Serialize;

use crate::args::OutputArgs;
use crate::failure::Failure;
use crate::read::Documents;
use crate::target::Target;
use crate::{output, read, runtime};

#[derive(Debug, Args)]
pub struct DsnArgs {
    #[command(flatten)]
    target: Target,
    /// Which member a session is for, as libpq's target_session_attrs
    #[arg(long, value_enum, default_value = "read-write")]
    target_session_attrs: SessionAttrs,
    /// Name of the database
    #[arg(long, value_name = "NAME", default_value = "postgres")]
    database: String,
    /// Role to log in as; the client's own choice where it is absent
    #[arg(long, value_name = "ROLE")]
    user: Option<String>,
    #[command(flatten)]
    output: OutputArgs,
}

/// libpq's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum SessionAttrs {
    Any,
    ReadWrite,
    ReadOnly,
    Primary,
    Standby,
    PreferStandby,
}

#[derive(Debug, Serialize)]
struct Dsn {
    cluster: ClusterName,
    dsn: String,
    /// Members whose keepers do not report, so that nobody knows their addresses now.
    left_out: Vec<MemberName>,
}

/// Runs the command.
pub fn run(args: DsnArgs) -> Result<u8, Failure> {
    let documents = runtime::answer(async {
        let store = read::connect(&args.target.store).await?;
        read::documents(&store, &args.target).await
    })?;
    let dsn = dsn(&args, &documents)?;
    if !args.output.json && !dsn.left_out.is_empty() {
        let names: Vec<&str> = dsn.left_out.iter().map(MemberName::as_str).collect();
        eprintln!("pgdeputy: left out, because their keepers do not report: {}", names.join(", "));
    }
    output::show(&dsn, args.output).map(|()| 0)
}

fn dsn(args: &DsnArgs, documents: &Documents) -> anyhow::Result<Dsn> {
    let admitted = documents.state.iter().flat_map(|s| s.members.keys());
    let left_out: BTreeSet<_> =
        admitted.filter(|m| !documents.reports.contains_key(*m)).cloned().collect();
    let mut hosts = Vec::new();
    for report in documents.reports.values() {
        let address: HostPort = report.postgres_address.parse()?;
        hosts.push(address.to_string());
    }
    let cluster = args.target.cluster.clone();
    ensure!(
        !hosts.is_empty(),
        "no keeper of cluster {cluster} reports, so no address is known: start the keepers"
    );
    let user = args.user.as_ref().map(|u| format!("{}@", percent(u))).unwrap_or_default();
    let wanted = args.target_session_attrs.to_possible_value().expect("no choice is skipped");
    let dsn = format!(
        "postgresql://{user}{}/{}?target_session_attrs={}",
        hosts.join(","),
        percent(&args.database),
        wanted.get_name()
    );
    Ok(Dsn { cluster, dsn, left_out: left_out.into_iter().collect() })
}

/// Escapes what has a meaning of its own within a URI.
fn percent(text: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-._~".contains(&b);
    text.bytes()
        .map(|b| if plain(b) { char::from(b).to_string() } else { format!("%{b:02X}") })
        .collect()
}

impl fmt::Display for Dsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.dsn)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_escaped_for_a_uri() {
        assert_eq!(percent("my app/ö"), "my%20app%2F%C3%B6");
        assert_eq!(percent("app_1.x-y~"), "app_1.x-y~");
    }
}
