//! Names of clusters, members and pools: `[a-z0-9][a-z0-9-]{0,39}`.
//!
//! Short enough that `<member>.e<epoch>.r<round>` stays below the 63 bytes of an `application_name`, and lower
//! case because PostgreSQL compares standby names without case. A clone shares the text: deciders clone names all the time.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// The longest name, in bytes.
pub const LONGEST_NAME: usize = 40;

/// A name that breaks the rule, with the remedy in its text.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{kind} name {given:?} is not valid: use 1 to 40 of a-z, 0-9 and '-', and begin with a letter or digit"
)]
pub struct NameError {
    kind: &'static str,
    given: String,
}

fn check(kind: &'static str, given: &str) -> Result<(), NameError> {
    let bytes = given.as_bytes();
    let plain = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let fits = !bytes.is_empty()
        && bytes.len() <= LONGEST_NAME
        && plain(&bytes[0])
        && bytes.iter().all(|b| plain(b) || *b == b'-');
    if fits { Ok(()) } else { Err(NameError { kind, given: given.to_owned() }) }
}

macro_rules! name {
    ($(#[$doc:meta])* $type:ident, $kind:literal) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $type(Arc<str>);

        impl $type {
            /// Returns the name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $type {
            type Err = NameError;
            fn from_str(given: &str) -> Result<Self, NameError> {
                check($kind, given)?;
                Ok(Self(given.into()))
            }
        }

        impl TryFrom<String> for $type {
            type Error = NameError;
            fn try_from(given: String) -> Result<Self, NameError> {
                given.parse()
            }
        }

        impl From<$type> for String {
            fn from(name: $type) -> String {
                name.as_str().to_owned()
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

name!(
    /// The name of one cluster, unique within an etcd.
    ClusterName,
    "cluster"
);
name!(
    /// The name of one PostgreSQL with its keeper, unique within its cluster.
    MemberName,
    "member"
);
name!(
    /// The name of a pool of members that get reads of their own.
    PoolName,
    "pool"
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_the_rule_and_the_error_says_it() {
        for good in ["a", "0", "node-1", &"x".repeat(40)] {
            assert!(good.parse::<MemberName>().is_ok(), "{good}");
        }
        for bad in ["", "-a", "A", "a.b", "a_b", "a b", &"x".repeat(41)] {
            assert!(bad.parse::<MemberName>().is_err(), "{bad}");
        }
        let error = "Node".parse::<MemberName>().unwrap_err().to_string();
        assert!(error.contains("member name \"Node\"") && error.contains("use 1 to 40"), "{error}");
    }
}
