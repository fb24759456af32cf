//! What a record or a turn of the schedule is about: one fault, or the reboots of all members.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::LiveFault;

/// Something that is done to a cluster on purpose. Stored as a fault's name or `reboot-all`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Undertaking {
    Fault(LiveFault),
    /// Every member is rebooted by a hook, one after the other.
    RebootAll,
}

/// The word for reboots.
const REBOOT_ALL: &str = "reboot-all";

impl Undertaking {
    /// Returns all of them, from the mildest fault on.
    pub fn all() -> impl Iterator<Item = Self> {
        LiveFault::ALL.into_iter().map(Self::Fault).chain([Self::RebootAll])
    }
}

impl From<LiveFault> for Undertaking {
    fn from(fault: LiveFault) -> Self {
        Self::Fault(fault)
    }
}

impl fmt::Display for Undertaking {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fault(fault) => fault.fmt(f),
            Self::RebootAll => f.write_str(REBOOT_ALL),
        }
    }
}

impl FromStr for Undertaking {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            REBOOT_ALL => Ok(Self::RebootAll),
            name => name.parse().map(Self::Fault).map_err(|e| format!("{e}, {REBOOT_ALL}")),
        }
    }
}

impl TryFrom<String> for Undertaking {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Undertaking> for String {
    fn from(undertaking: Undertaking) -> Self {
        undertaking.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_read_as_it_was_written_and_a_fault_as_it_was_before() {
        for undertaking in Undertaking::all() {
            let text = serde_json::to_string(&undertaking).unwrap();
            assert_eq!(text, format!("\"{undertaking}\""));
            assert_eq!(serde_json::from_str::<Undertaking>(&text).unwrap(), undertaking);
        }
        let fault = serde_json::to_string(&LiveFault::StandbyCrash).unwrap();
        assert_eq!(
            serde_json::from_str::<Undertaking>(&fault).unwrap(),
            Undertaking::Fault(LiveFault::StandbyCrash)
        );
        assert!("fire".parse::<Undertaking>().unwrap_err().contains("crash"));
    }
}
