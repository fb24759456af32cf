//! Who belongs to the cluster.
//!
//! The one rule: a name that stands in the record keeps its floor. Other member files under that
//! name come in only as incomplete, and never with another cluster's data.

use proto::state::Admitted;
use proto::{MemberName, MemberReport};

use super::base::Reject;
use super::{Inputs, Step};

/// Admits all members that may be admitted now.
pub(crate) fn admit(inputs: &Inputs) -> Option<Step> {
    let mut next = inputs.next();
    let mut news = Vec::new();
    for (name, report) in &inputs.seen.members {
        match judge(inputs, name, report) {
            Standing::Member | Standing::Refused(_) => {}
            Standing::New => {
                let admitted = Admitted { incarnation: report.incarnation.clone(), floor: None };
                next.members.insert(name.clone(), admitted);
                news.push(format!("{name} is admitted"));
            }
            Standing::Renewed => {
                let admitted = next.members.get_mut(name)?;
                // The floor stays: whatever the old files acknowledged, the new ones must hold
                // before they count.
                admitted.incarnation = report.incarnation.clone();
                news.push(format!("{name} is admitted anew with new member files, incomplete"));
            }
        }
    }
    (!news.is_empty()).then(|| Step::change(next, Vec::new(), news.join("; ")))
}

/// What a live report is to the cluster.
pub(crate) enum Standing {
    Member,
    New,
    /// Known by name, with new member files that claim nothing.
    Renewed,
    Refused(Reject),
}

/// Returns what the live report under `name` is to the cluster.
pub(crate) fn judge(inputs: &Inputs, name: &MemberName, report: &MemberReport) -> Standing {
    let foreign = |id| Some(id) != inputs.state.system_identifier;
    if report.system_identifier.is_some_and(foreign) {
        return Standing::Refused(Reject::OtherSystem);
    }
    match inputs.state.members.get(name) {
        None => Standing::New,
        Some(admitted) if admitted.incarnation == report.incarnation => Standing::Member,
        // The present primary is not replaced by a namesake: it is lost first.
        Some(_) if report.complete || inputs.state.primary.as_ref() == Some(name) => {
            Standing::Refused(Reject::OtherIncarnation)
        }
        Some(_) => Standing::Renewed,
    }
}
