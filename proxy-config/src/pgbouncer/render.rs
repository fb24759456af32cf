//! Writes PgBouncer's databases as text, for a file that the operator's `pgbouncer.ini` includes. The same routes always
//! give the same bytes.
//!
//! Found out with PgBouncer 1.18:
//! - An included file must not open `[pgbouncer]`: each time that section begins, all its settings go back to their
//!   defaults. So `server_login_retry` stands in the operator's part, and is looked at over the console.
//! - `host` takes a list and goes round it, but there is one port for all of it.
//! - A `host` or `port` that has changed marks the database's server connections: idle ones go, those in a transaction
//!   go at its end. Connections that `*` has opened follow too.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use proto::{ClusterName, MemberName};

use super::entries::{Database, User, Version};
use super::header;
use crate::route::{Addresses, Routes};

/// What the operator wants in the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wishes {
    pub cluster: ClusterName,
    pub databases: Vec<Database>,
    pub users: Vec<User>,
}

/// A whole file, and how a running PgBouncer that has loaded it shows its databases.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rendered {
    pub text: String,
    pub entries: Vec<Entry>,
    /// What a person should know, such as limits that are left out.
    pub notes: Vec<String>,
}

/// One database of the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    pub name: String,
    pub kind: Kind,
    /// One or more hosts, as PgBouncer shows them.
    pub host: String,
    pub port: u16,
}

/// What the clients of a database come for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Write,
    Read,
    /// Reads, and by the primary too: too few standbys are there.
    ReadByPrimary,
}

impl Kind {
    /// Returns whether sessions end, or wait, when the primary is changed.
    pub fn is_of_primary(self) -> bool {
        match self {
            Kind::Write | Kind::ReadByPrimary => true,
            Kind::Read => false,
        }
    }
}

/// Returns a file without databases, for as long as no primary was known: a file must be there for PgBouncer to start.
pub fn empty(wishes: &Wishes) -> String {
    format!("{}\n[databases]\n", header::header(&wishes.cluster, &Routes::default()))
}

/// Returns the file for `routes`; none while no primary was ever known: there is nothing to lead to.
///
/// Routes without a primary, as between two of them, are not for a file: the last one stays until there is a next.
pub fn render(wishes: &Wishes, routes: &Routes, version: Version) -> Option<Rendered> {
    let primary = routes.members.get(routes.write.as_ref()?)?;
    let (readers, mut notes) = readers(routes);
    let write = (primary.postgres.host.clone(), primary.postgres.port);
    let read = readers.clone().unwrap_or_else(|| write.clone());
    let by_primary = routes.write.as_ref().is_some_and(|w| routes.read.contains(w));
    let reads_by = match readers.is_none() || by_primary {
        true => Kind::ReadByPrimary,
        false => Kind::Read,
    };
    let mut text = header::header(&wishes.cluster, routes);
    text.push_str("\n[databases]\n");
    let mut entries = Vec::new();
    let mut entry = |name: &str, kind: Kind, (host, port): &(String, u16), options: String| {
        let space = if options.is_empty() { "" } else { " " };
        let _ = writeln!(text, "{name} = host={host} port={port}{space}{options}");
        entries.push(Entry { name: name.to_owned(), kind, host: host.clone(), port: *port });
    };
    for database in &wishes.databases {
        entry(&database.name, Kind::Write, &write, database.write_options(version));
        if let Some(reads) = &database.reads {
            entry(reads, reads_by, &read, database.read_options(version));
        }
        notes.extend(database.notes(version));
    }
    let limits: Vec<_> =
        wishes.users.iter().filter_map(|u| Some((&u.name, u.limits(version)?))).collect();
    if !limits.is_empty() {
        text.push_str("\n[users]\n");
    }
    for (name, limits) in limits {
        let _ = writeln!(text, "{name} = {limits}");
    }
    notes.extend(wishes.users.iter().flat_map(|u| u.notes(version)));
    Some(Rendered { text, entries, notes })
}

/// Returns hosts and port of the members that reads go to. PgBouncer has one port for a list of hosts: of members on
/// several ports the greatest group is taken, the one with the lowest port among equals.
fn readers(routes: &Routes) -> (Option<(String, u16)>, Vec<String>) {
    let mut by_port: BTreeMap<u16, Vec<&MemberName>> = BTreeMap::new();
    for member in &routes.read {
        if let Some(Addresses { postgres, .. }) = routes.members.get(member) {
            by_port.entry(postgres.port).or_default().push(member);
        }
    }
    let Some((port, taken)) =
        by_port.iter().max_by_key(|(port, members)| (members.len(), std::cmp::Reverse(**port)))
    else {
        return (None, Vec::new());
    };
    let host = |member: &&MemberName| Some(routes.members.get(*member)?.postgres.host.clone());
    let hosts: Vec<String> = taken.iter().filter_map(host).collect();
    let others: Vec<&str> = by_port
        .iter()
        .filter(|(p, _)| *p != port)
        .flat_map(|(_, members)| members.iter().map(|m| m.as_str()))
        .collect();
    let note = format!(
        "reads do not go to {}: PgBouncer takes one port for a list of hosts, and port {port} has the most",
        others.join(" and ")
    );
    let notes = if others.is_empty() { Vec::new() } else { vec![note] };
    (Some((hosts.join(","), *port)), notes)
}
