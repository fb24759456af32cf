//! The packets by which processes of one cluster ask each other whether they are there: small JSON over UDP, on the port
//! number of a keeper's `--http`. No connection that has to time out first, and nothing of safety rests on an answer.

use serde::{Deserialize, Serialize};

use crate::{ClusterName, Epoch, MemberName};

/// The longest packet in bytes: two names of 40 letters and a number.
pub const LONGEST_PACKET: usize = 512;

/// What goes over the wire. What cannot be read is of another release, and ignored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum Packet {
    /// Are you there, and the primary of `epoch`?
    Ask { cluster: ClusterName, epoch: Epoch },
    /// `member` is, and its PostgreSQL answers.
    Here { cluster: ClusterName, epoch: Epoch, member: MemberName },
    /// Are you there, as a standby that could follow another primary?
    Hail { cluster: ClusterName },
    /// `member` is, and its PostgreSQL answers.
    Hailed { cluster: ClusterName, member: MemberName },
}

impl Packet {
    /// Returns the packet as it is sent.
    pub fn encode(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("a packet has names and numbers only")
    }

    /// Returns the packet that was received, if it is one.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        serde_json::from_slice(bytes).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_are_read_back_fit_their_buffer_and_anything_else_is_none() {
        let longest = "x".repeat(40);
        let (cluster, member) = (longest.parse().unwrap(), longest.parse().unwrap());
        let packet = Packet::Here { cluster, epoch: Epoch(u64::MAX), member };
        assert_eq!(Packet::decode(&packet.encode()), Some(packet.clone()));
        assert!(packet.encode().len() <= LONGEST_PACKET);
        assert_eq!(Packet::decode(br#"{"kind":"of a later release"}"#), None);
        assert_eq!(Packet::decode(b"\xff"), None);
    }
}
