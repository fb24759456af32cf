//! Who may break something of a cluster now, stored under `drill/runner` with that one's lease.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::drill::LiveFault;
use crate::{Document, MemberName, RequestId};

/// The lock of all that breaks something on purpose: while it stands nobody else begins.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DrillLock {
    /// Of a drill: the drill's.
    pub id: RequestId,
    /// Who holds it, for people: `user@host`.
    pub by: String,
    pub work: DrillWork,
}

/// What its holder does.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "does")]
pub enum DrillWork {
    /// One drill, until its verdict is written: what has ended is still watched.
    Drill { fault: LiveFault },
    /// Every member is rebooted, one after the other.
    Reboots {
        /// Whose turn it is; none yet at the beginning.
        member: Option<MemberName>,
    },
}

impl Document for DrillLock {
    const KIND: &'static str = "lock of drills";
}

impl fmt::Display for DrillLock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (id, by) = (&self.id, &self.by);
        match &self.work {
            DrillWork::Drill { fault } => write!(f, "drill {id} ({fault}) of {by}"),
            DrillWork::Reboots { member: None } => write!(f, "drill {id} (reboot-all) of {by}"),
            DrillWork::Reboots { member: Some(member) } => {
                write!(f, "drill {id} (reboot-all, {member} now) of {by}")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_is_read_as_it_was_written_and_says_what_its_holder_does() {
        let id = RequestId::from_random(3);
        let works = [
            (DrillWork::Drill { fault: LiveFault::Crash }, "(crash) of ann@north"),
            (DrillWork::Reboots { member: None }, "(reboot-all) of ann@north"),
            (
                DrillWork::Reboots { member: Some("b".parse().unwrap()) },
                "(reboot-all, b now) of ann@north",
            ),
        ];
        for (work, said) in works {
            let lock = DrillLock { id: id.clone(), by: "ann@north".into(), work };
            let text = crate::document::encode(&lock);
            assert_eq!(crate::document::decode::<DrillLock>(text.as_bytes()).as_ref(), Ok(&lock));
            assert_eq!(lock.to_string(), format!("drill {id} {said}"));
        }
    }
}
