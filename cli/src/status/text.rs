//! How a status looks to people: a table of at most 100 columns for usual names, then sentences.

use std::fmt;

use proto::report::{RejoinBy, RejoinOutcome};
use proto::spec::Durability;
use proto::status::RejoinProgress;
use proto::{Cfg, MemberName};

use super::{Member, Status};
use crate::table::{Table, bytes, milliseconds, wrapped};

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", wrapped(&self.headline()))?;
        writeln!(f, "{}\n", wrapped(&self.sentinels_line()))?;
        write!(f, "{}", self.members_table())?;
        writeln!(f)?;
        for sentence in self.sentences() {
            writeln!(f, "{}", wrapped(&sentence))?;
        }
        Ok(())
    }
}

impl Status {
    fn headline(&self) -> String {
        let primary = match (&self.primary, self.writable) {
            (Some(primary), true) => match self.members.iter().find(|m| m.name == *primary) {
                Some(member) if !member.healthy => {
                    format!("primary {primary}, which is not well ({})", member.state)
                }
                Some(_) | None => format!("primary {primary}"),
            },
            (Some(primary), false) => format!("primary {primary}, not open for writes"),
            (None, _) => "no primary yet".to_owned(),
        };
        let phase = match self.sealing {
            Some(epoch) => format!("sealing for epoch {epoch}"),
            None => self.phase.to_owned(),
        };
        format!("cluster {}: {phase}, epoch {}, {primary}", self.cluster, self.epoch)
    }

    fn sentinels_line(&self) -> String {
        let leader = self.leader.as_deref().unwrap_or("nobody");
        format!("sentinels: {} ({leader} leads)", self.sentinels.len())
    }

    fn members_table(&self) -> Table {
        let mut table =
            Table::new(&["member", "role", "state", "sync", "timeline", "lsn", "lag", "address"]);
        for member in &self.members {
            table.row(cells(member));
        }
        table
    }

    fn sentences(&self) -> Vec<String> {
        let mut lines = vec![self.commits_line(), self.promotable_line()];
        lines.extend(self.members.iter().filter_map(right_line));
        lines.extend(self.members.iter().filter_map(rejoin_line));
        lines.extend(
            self.proxies
                .iter()
                .filter(|p| p.epoch < self.epoch)
                .map(|proxy| format!("proxy {} still routes by epoch {}", proxy.id, proxy.epoch)),
        );
        lines.extend(self.proxies.iter().flat_map(|proxy| proxy.cut()));
        lines.extend(self.scheduled.iter().map(|s| {
            format!(
                "scheduled: a switchover to {} at {}, asked for by {} ({})",
                s.terms.whom(),
                s.at,
                s.by,
                s.id
            )
        }));
        lines.extend(self.verdict.iter().map(|v| format!("now: {v}")));
        lines.extend(self.last_change.iter().map(|change| {
            let took = change.total_ms.map_or("writes not back yet".into(), |ms| {
                format!("writes back after {}", milliseconds(ms))
            });
            let when = change.start.map_or(String::new(), |s| format!(" at {s}"));
            format!(
                "last change: {} {}, {}{when}: {took} ({})",
                change.kind_word(),
                change.number,
                change.who(),
                change.cause
            )
        }));
        lines.extend(self.warnings.iter().map(|w| format!("warning: {w}")));
        for member in &self.members {
            lines
                .extend(member.problems.iter().map(|p| format!("problem of {}: {p}", member.name)));
        }
        lines
    }

    /// Says who acknowledges; several Cfgs are recorded while a change of them is under way.
    fn commits_line(&self) -> String {
        match self.cfgs.as_slice() {
            [] => "commits: nobody acknowledges yet".to_owned(),
            [one] if one.k == 0 && self.durability == Some(Durability::Available) => {
                format!("commits: held by {} ALONE until a standby has joined", one.leader)
            }
            [one] => format!("commits: {}", acknowledged_by(one)),
            [.., newest] => {
                let all: Vec<String> = self.cfgs.iter().map(Cfg::to_string).collect();
                format!("commits: {}; changing: {}", acknowledged_by(newest), all.join(" "))
            }
        }
    }

    fn promotable_line(&self) -> String {
        let who = match self.promotable.as_slice() {
            [] => "nobody".to_owned(),
            some => names(some),
        };
        format!("could take over without loss: {who} ({})", self.promotable_reason)
    }
}

fn acknowledged_by(cfg: &Cfg) -> String {
    match cfg.k {
        0 => format!("wait at {} until a standby has joined", cfg.leader),
        k => format!("held by {} and {k} of {}", cfg.leader, names(&cfg.voters)),
    }
}

fn names<'m>(members: impl IntoIterator<Item = &'m MemberName>) -> String {
    members.into_iter().map(MemberName::as_str).collect::<Vec<_>>().join(", ")
}

fn cells(member: &Member) -> [String; 8] {
    let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
    let sync = match (member.role, member.synchronous) {
        ("primary", _) => "-",
        (_, true) => "yes",
        (_, false) => "no",
    };
    // Both are words of ours with room for a mark: what is not as it should be catches the eye.
    let state =
        if member.healthy { member.state.to_owned() } else { format!("{} !", member.state) };
    [
        member.name.to_string(),
        member.role.to_owned(),
        state,
        sync.to_owned(),
        or_dash(member.timeline.map(|t| t.to_string())),
        or_dash(member.lsn.map(|l| l.to_string())),
        or_dash(member.lag_bytes.map(bytes)),
        or_dash(member.postgres_address.clone()),
    ]
}

/// How a return that is under way or has failed goes; one that has succeeded is in the history.
fn rejoin_line(member: &Member) -> Option<String> {
    let rejoin = member.rejoin.as_ref()?;
    let by = match rejoin.by {
        RejoinBy::Follow => "follow the primary",
        RejoinBy::Rewind => "be rewound",
        RejoinBy::Copy => "be copied",
    };
    let how = match &rejoin.outcome {
        RejoinOutcome::Running { progress } => match &member.rejoin_progress {
            Some(now) => how_far(now),
            None => progress.clone().unwrap_or_else(|| "under way".into()),
        },
        RejoinOutcome::Failed { problem, .. } => format!("failed: {problem}"),
        RejoinOutcome::Done { .. } => return None,
    };
    Some(format!("{} is to {by} since {}, {how} ({})", member.name, rejoin.started, rejoin.reason))
}

/// Returns how far a copy is, as in "12.0 MB of 40.0 MB, 6.0 MB/s, 4.67 s left".
fn how_far(progress: &RejoinProgress) -> String {
    let rate = progress.bytes_per_second.map_or(String::new(), |r| format!(", {}/s", bytes(r)));
    let left = progress.left_ms.map_or(String::new(), |left| {
        format!(", {} left", milliseconds(i64::try_from(left).unwrap_or(i64::MAX)))
    });
    format!("{} of {}{rate}{left}", bytes(progress.copied_bytes), bytes(progress.total_bytes))
}

/// The bound within which a primary that is cut off stops by itself; one that does not run has nothing to stop.
fn right_line(member: &Member) -> Option<String> {
    if member.role != "primary" || !["running", "closed"].contains(&member.state) {
        return None;
    }
    let left = i64::try_from(member.serve_for_ms?).unwrap_or(i64::MAX);
    let by = member.fenced_by.as_ref().map_or(String::new(), |way| format!(" (fenced by {way})"));
    let within = milliseconds(left);
    Some(format!("{} stops serving within {within} if it is cut off{by}", member.name))
}
