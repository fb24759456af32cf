//! Whom a drill hits.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::MemberName;

/// One process with what it cares for. Stored as `a`, `sentinel/ID` or `proxy/ID`: no member's name has a slash.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum DrillTarget {
    Member(MemberName),
    /// By its `--id`.
    Sentinel(String),
    /// A proxy-config, by its `--id`.
    Proxy(String),
}

impl DrillTarget {
    /// Returns the name among its like, as `--on` takes it.
    pub fn name(&self) -> &str {
        match self {
            Self::Member(member) => member.as_str(),
            Self::Sentinel(id) | Self::Proxy(id) => id,
        }
    }
}

impl fmt::Display for DrillTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Member(member) => write!(f, "{member}"),
            Self::Sentinel(id) => write!(f, "sentinel/{id}"),
            Self::Proxy(id) => write!(f, "proxy/{id}"),
        }
    }
}

impl TryFrom<String> for DrillTarget {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        match text.split_once('/') {
            Some(("sentinel", id)) => Ok(Self::Sentinel(id.to_owned())),
            Some(("proxy", id)) => Ok(Self::Proxy(id.to_owned())),
            Some((other, _)) => Err(format!("{other:?} is nothing that a drill hits")),
            None => text.parse().map(Self::Member).map_err(|e| format!("{e}")),
        }
    }
}

impl From<DrillTarget> for String {
    fn from(target: DrillTarget) -> Self {
        target.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_is_read_as_it_was_written_and_a_member_is_no_sentinel_of_its_name() {
        let targets = [
            DrillTarget::Member("a".parse().unwrap()),
            DrillTarget::Sentinel("a".into()),
            DrillTarget::Proxy("a.north_1".into()),
        ];
        for target in targets {
            assert_eq!(DrillTarget::try_from(target.to_string()), Ok(target));
        }
        assert!(DrillTarget::try_from("etcd/a".to_owned()).is_err());
        assert!(DrillTarget::try_from("A".to_owned()).is_err());
    }
}
