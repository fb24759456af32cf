//! What is measured: one case for each row of the table.

use std::time::Duration;

use proto::spec::Permission;

use crate::fault::Fault;
use crate::lab::{Lab, demo_spec};

/// Longer than every time-out after which something lost could still hold up commits: its lease, and what etcd takes
/// to announce the end of it.
const LONGER_THAN_ANY_LEASE: Duration = Duration::from_secs(6);

/// As long as in the measurement that stands beside it.
const ETCD_AWAY: Duration = Duration::from_secs(60);

/// A row of the table.
#[derive(Debug, Clone, Copy)]
pub struct Case {
    pub name: &'static str,
    pub aim: &'static str,
    /// Medians with default and with the smallest allowed timings, in seconds.
    pub patroni_seconds: Option<(f64, f64)>,
    /// `None` where nothing is broken: what the other rows are to be compared with.
    pub fault: Option<Fault>,
    pub expected: Expected,
    /// How long it stays broken once writes are back.
    pub stays: Duration,
}

/// The kind of recovery that a row is about: a run of another kind does not count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expected {
    Failover,
    RestartInPlace,
    /// The same primary serves on.
    Nothing,
}

const LOST: Case = Case {
    name: "member lost",
    aim: "below 1500 ms",
    patroni_seconds: Some((29.9, 20.3)),
    fault: Some(Fault::Member),
    expected: Expected::Failover,
    stays: Duration::ZERO,
};

const UNNOTICED: Case = Case {
    name: "one of two standbys killed",
    aim: "none",
    patroni_seconds: Some((6.4, 0.7)),
    fault: Some(Fault::Standby),
    expected: Expected::Nothing,
    stays: LONGER_THAN_ANY_LEASE,
};

/// All rows, in the order of the table.
pub const CASES: &[Case] = &[
    Case { name: "no fault", aim: "-", patroni_seconds: None, fault: None, ..UNNOTICED },
    Case {
        name: "crash, failed over",
        aim: "below 250 ms",
        patroni_seconds: Some((5.5, 4.2)),
        fault: Some(Fault::Crash),
        ..LOST
    },
    Case {
        name: "crash, restarted in place",
        aim: "below 250 ms and redo",
        patroni_seconds: None,
        fault: Some(Fault::Crash),
        expected: Expected::RestartInPlace,
        ..LOST
    },
    LOST,
    Case {
        name: "member frozen",
        patroni_seconds: Some((32.0, 21.8)),
        fault: Some(Fault::Freeze),
        // A thaw before all leases have lapsed is the nastier one, and is what the tests do.
        stays: LONGER_THAN_ANY_LEASE,
        ..LOST
    },
    Case {
        name: "member cut off",
        patroni_seconds: Some((30.6, 22.3)),
        fault: Some(Fault::Partition),
        stays: LONGER_THAN_ANY_LEASE,
        ..LOST
    },
    Case {
        name: "member and leading sentinel lost",
        patroni_seconds: None,
        fault: Some(Fault::SentinelAndMember),
        ..LOST
    },
    Case {
        name: "keeper killed",
        patroni_seconds: Some((23.0, 20.0)),
        fault: Some(Fault::Keeper),
        // It is started again at once, by its fencer or by a service manager.
        stays: Duration::ZERO,
        ..UNNOTICED
    },
    Case {
        name: "etcd away for a minute",
        patroni_seconds: Some((52.0, 59.0)),
        fault: Some(Fault::Etcd),
        stays: ETCD_AWAY,
        ..UNNOTICED
    },
    UNNOTICED,
    Case {
        name: "switchover",
        aim: "below 500 ms",
        patroni_seconds: Some((6.3, 3.1)),
        fault: Some(Fault::Switchover),
        ..LOST
    },
    Case {
        name: "member stopped",
        aim: "below 500 ms",
        patroni_seconds: None,
        fault: Some(Fault::Stop),
        ..LOST
    },
    Case {
        name: "one of two standbys frozen",
        patroni_seconds: Some((34.0, 20.0)),
        fault: Some(Fault::StandbyFreeze),
        ..UNNOTICED
    },
];

impl Case {
    /// Returns the row's name as programs read it, and as `--only` takes it.
    pub fn slug(&self) -> String {
        self.name.replace(", ", "-").replace(' ', "-")
    }

    /// Brings the cluster into the shape that the row is about. A restart in place is what is left when nobody else may
    /// be promoted.
    pub async fn before(&self, lab: &Lab) -> anyhow::Result<()> {
        if self.expected != Expected::RestartInPlace {
            return Ok(());
        }
        let primary = lab.primary().await?;
        let mut spec = demo_spec();
        for member in lab.members().into_iter().filter(|m| *m != primary) {
            spec.members.entry(member).or_default().promote = Permission::Never;
        }
        lab.put_spec(&spec).await
    }

    /// Takes back what `before` did.
    pub async fn after(&self, lab: &Lab) -> anyhow::Result<()> {
        match self.expected {
            Expected::RestartInPlace => lab.put_spec(&demo_spec()).await,
            Expected::Failover | Expected::Nothing => Ok(()),
        }
    }
}

/// Returns the cases with these names in the order of the table, all of them where none is named.
pub fn chosen(only: &[String]) -> Result<Vec<Case>, String> {
    let slugs: Vec<String> = CASES.iter().map(Case::slug).collect();
    if let Some(unknown) = only.iter().find(|name| !slugs.contains(name)) {
        return Err(format!("--only {unknown}: no such row, use {}", slugs.join(", ")));
    }
    let is_wanted = |case: &&Case| only.is_empty() || only.contains(&case.slug());
    Ok(CASES.iter().filter(is_wanted).copied().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_chosen_by_the_names_that_are_printed_for_programs() {
        assert_eq!(chosen(&[]).unwrap().len(), CASES.len());
        let two = ["member-lost".to_owned(), "crash-failed-over".to_owned()];
        let names: Vec<_> = chosen(&two).unwrap().iter().map(|c| c.name).collect();
        assert_eq!(names, ["crash, failed over", "member lost"]);
        let refused = chosen(&["member".to_owned()]).unwrap_err();
        assert!(refused.contains("keeper-killed"), "{refused}");
    }
}
