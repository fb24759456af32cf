//! `dsn`: a libpq connection string with every member, so that a client finds the primary without a router; or with those
//! that serve reads, or that have replayed what a client has written.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use anyhow::ensure;
use clap::{Args, ValueEnum};
use proto::topology::{Role, Topology};
use proto::{ClusterName, HostPort, Lsn, MemberName};
use serde::Serialize;

use crate::args::OutputArgs;
use crate::failure::Failure;
use crate::read::Documents;
use crate::status::Answers;
use crate::target::Target;
use crate::{output, read, runtime, status};

#[derive(Debug, Args)]
pub struct DsnArgs {
    #[command(flatten)]
    target: Target,
    /// Which member a session is for, as libpq's target_session_attrs [default: read-write; prefer-standby with
    /// --read, any with --at-least]
    #[arg(long, value_enum)]
    target_session_attrs: Option<SessionAttrs>,
    /// For reads: the standbys that stream, and the primary where there is none
    #[arg(long)]
    read: bool,
    /// Only members of this role
    #[arg(long, value_enum, default_value = "any")]
    role: Wanted,
    /// Only members that have replayed this position, such as 0/3000060, by their keepers' word
    #[arg(long, value_name = "LSN")]
    at_least: Option<Lsn>,
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

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Wanted {
    Any,
    Primary,
    Standby,
}

#[derive(Debug, Serialize)]
struct Dsn {
    cluster: ClusterName,
    dsn: String,
    members: Vec<MemberName>,
    /// Members whose keepers do not report, so that nobody knows their addresses now.
    left_out: Vec<MemberName>,
}

/// Runs the command.
pub fn run(args: DsnArgs) -> Result<u8, Failure> {
    let (documents, answers) = runtime::answer(async {
        let store = read::connect(&args.target.store).await?;
        let documents = read::documents(&store, &args.target).await?;
        let answers = match args.at_least {
            Some(_) => status::ask::all(&documents.reports).await,
            None => BTreeMap::new(),
        };
        Ok((documents, answers))
    })?;
    let dsn = dsn(&args, &documents, &answers)?;
    if !args.output.json && !dsn.left_out.is_empty() {
        let names: Vec<&str> = dsn.left_out.iter().map(MemberName::as_str).collect();
        eprintln!("pgdeputy: left out, because their keepers do not report: {}", names.join(", "));
    }
    output::show(&dsn, args.output).map(|()| 0)
}

fn dsn(args: &DsnArgs, documents: &Documents, answers: &Answers) -> anyhow::Result<Dsn> {
    let admitted = documents.state.iter().flat_map(|s| s.members.keys());
    let left_out: BTreeSet<_> =
        admitted.filter(|m| !documents.reports.contains_key(*m)).cloned().collect();
    let cluster = args.target.cluster.clone();
    ensure!(
        !documents.reports.is_empty(),
        "no keeper of cluster {cluster} reports, so no address is known: start the keepers"
    );
    let members = chosen(args, documents, answers)?;
    let mut hosts = Vec::new();
    for report in members.iter().filter_map(|m| documents.reports.get(m)) {
        let address: HostPort = report.postgres_address.parse()?;
        hosts.push(address.to_string());
    }
    let user = args.user.as_ref().map(|u| format!("{}@", percent(u))).unwrap_or_default();
    let usual = match (args.read, args.at_least) {
        (true, _) => SessionAttrs::PreferStandby,
        (false, Some(_)) => SessionAttrs::Any,
        (false, None) => SessionAttrs::ReadWrite,
    };
    let attrs = args.target_session_attrs.unwrap_or(usual);
    let wanted = attrs.to_possible_value().expect("no choice is skipped");
    let dsn = format!(
        "postgresql://{user}{}/{}?target_session_attrs={}",
        hosts.join(","),
        percent(&args.database),
        wanted.get_name()
    );
    Ok(Dsn { cluster, dsn, members, left_out: left_out.into_iter().collect() })
}

/// Returns the members that were asked for, those that report.
fn chosen(
    args: &DsnArgs,
    documents: &Documents,
    answers: &Answers,
) -> anyhow::Result<Vec<MemberName>> {
    let (state, reports) = (documents.state.as_ref(), &documents.reports);
    let topology = state.map(|state| Topology::of(state, reports, None));
    let role = |member: &MemberName| topology.as_ref()?.members.get(member).map(|p| p.role);
    let is_wanted = |member: &MemberName| match args.role {
        Wanted::Any => true,
        Wanted::Primary => role(member) == Some(Role::Primary),
        Wanted::Standby => role(member) == Some(Role::Standby),
    };
    let has_replayed = |member: &MemberName| {
        let positions = answers.get(member).and_then(|a| a.positions);
        let at = match role(member) {
            Some(Role::Primary) => positions.map(|p| p.flush_lsn),
            Some(Role::Standby) => positions.and_then(|p| p.replay_lsn),
            // What it has replayed may be of a history that has ended.
            Some(Role::Away) | None => None,
        };
        args.at_least.is_none_or(|lsn| at.is_some_and(|at| at >= lsn))
    };
    let fit = reports.keys().filter(|m| is_wanted(m) && has_replayed(m));
    let mut members: Vec<MemberName> = fit.cloned().collect();
    if args.read {
        let readers = |m: &&MemberName| role(m) == Some(Role::Standby);
        let standbys: Vec<MemberName> = members.iter().filter(readers).cloned().collect();
        match standbys.is_empty() {
            true => members.retain(|m| role(m) == Some(Role::Primary)),
            false => members = standbys,
        }
    }
    ensure!(
        !members.is_empty(),
        "no member of cluster {} {}: see pgdeputy status",
        args.target.cluster,
        match args.at_least {
            Some(lsn) => format!("that was asked for is known to have replayed {lsn}"),
            None => "has the role that was asked for now".into(),
        }
    );
    Ok(members)
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
