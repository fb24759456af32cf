//! Positions in the write-ahead log, printed and stored as PostgreSQL prints them.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::{Epoch, Timeline};

/// A log sequence number: a byte position in the WAL, written `0/3000060`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Lsn(pub u64);

/// A text that is not an LSN.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not an LSN such as 0/3000060")]
pub struct LsnError(String);

impl Lsn {
    /// Returns how many bytes this position is beyond `other`, zero where it is not beyond it.
    pub fn bytes_ahead_of(self, other: Lsn) -> u64 {
        self.0.saturating_sub(other.0)
    }
}

impl FromStr for Lsn {
    type Err = LsnError;
    fn from_str(given: &str) -> Result<Self, LsnError> {
        let error = || LsnError(given.to_owned());
        let (high, low) = given.split_once('/').ok_or_else(error)?;
        let part = |text: &str| {
            if text.is_empty() || text.len() > 8 || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
                return Err(error());
            }
            u64::from_str_radix(text, 16).map_err(|_| error())
        };
        Ok(Lsn(part(high)? << 32 | part(low)?))
    }
}

impl TryFrom<String> for Lsn {
    type Error = LsnError;
    fn try_from(given: String) -> Result<Self, LsnError> {
        given.parse()
    }
}

impl From<Lsn> for String {
    fn from(lsn: Lsn) -> String {
        lsn.to_string()
    }
}

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:X}/{:X}", self.0 >> 32, self.0 & 0xFFFF_FFFF)
    }
}

impl fmt::Debug for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// How far a member's WAL reaches, ordered by what decides a promotion: the epoch that wrote its last record
/// first, the position second. The timeline says the same as the epoch (I9) and stands here for readers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WalPosition {
    pub epoch: Epoch,
    pub lsn: Lsn,
    pub timeline: Timeline,
}

impl fmt::Display for WalPosition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (epoch {}, timeline {})", self.lsn, self.epoch, self.timeline)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prints_and_parses_as_postgresql_does() {
        for (text, value) in
            [("0/3000060", 0x300_0060), ("16/B374D848", 0x16_B374_D848), ("0/0", 0)]
        {
            assert_eq!(text.parse::<Lsn>(), Ok(Lsn(value)));
            assert_eq!(Lsn(value).to_string(), text);
        }
        for bad in ["", "/", "1", "0/", "/0", "0/123456789", "x/0", "0/ 1", "+1/0"] {
            assert!(bad.parse::<Lsn>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_later_epoch_beats_a_longer_log() {
        let old = WalPosition { epoch: Epoch(1), lsn: Lsn(900), timeline: Timeline(1) };
        let new = WalPosition { epoch: Epoch(2), lsn: Lsn(100), timeline: Timeline(2) };
        assert!(new > old);
    }
}
