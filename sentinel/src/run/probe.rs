//! Asks the primary's keeper whether it is there, for a leader that has only one voter's word that it is not.
//!
//! The one rule: what cannot be asked is not silence. A name that is not found or a socket that is refused is the leader's
//! own trouble.

use std::time::Duration;

use proto::echo::{LONGEST_PACKET, Packet};
use proto::{ClusterName, Epoch, MemberName};
use store::clock;
use tokio::net::{UdpSocket, lookup_host};
use tokio::time::timeout;

use crate::observe::Probe;

/// Its keeper answers within a millisecond; the voter that calls it silent has asked for a second before.
const ANSWER_WITHIN: Duration = Duration::from_millis(100);

/// Half a second in all: a lost packet or two are nothing, and below the lease there is time for no more.
const QUESTIONS: usize = 5;

/// Whom to ask.
#[derive(Debug, Clone)]
pub(super) struct Target {
    pub cluster: ClusterName,
    pub epoch: Epoch,
    pub primary: MemberName,
    /// The keeper's `host:port`, as it reports it.
    pub address: String,
}

/// Returns what came of the questions.
pub(super) async fn ask(target: &Target) -> Probe {
    let answered = question(target).await.unwrap_or_else(|problem| {
        tracing::warn!(primary = %target.primary, %problem, "ask the keeper of the primary");
        true
    });
    Probe { epoch: target.epoch, answered, at: clock::now() }
}

async fn question(target: &Target) -> std::io::Result<bool> {
    let mut addresses = lookup_host(&target.address).await?;
    let address = addresses.next().ok_or(std::io::ErrorKind::NotFound)?;
    let any = if address.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let socket = UdpSocket::bind(any).await?;
    let Target { cluster, epoch, primary, .. } = target.clone();
    let ask = Packet::Ask { cluster: cluster.clone(), epoch }.encode();
    let here = Packet::Here { cluster, epoch, member: primary };
    let mut buffer = [0; LONGEST_PACKET];
    for _ in 0..QUESTIONS {
        // What cannot be sent on the way there is as unanswered as what is lost.
        let _ = socket.send_to(&ask, address).await;
        let deadline = clock::now() + ANSWER_WITHIN;
        let mut left = ANSWER_WITHIN;
        while !left.is_zero() {
            match timeout(left, socket.recv_from(&mut buffer)).await {
                Ok(Ok((length, _)))
                    if Packet::decode(&buffer[..length]).as_ref() == Some(&here) =>
                {
                    return Ok(true);
                }
                // An error is the answer "nobody listens there" to an earlier question.
                Ok(Ok(_) | Err(_)) => {}
                Err(_) => break,
            }
            left = deadline.since(clock::now());
        }
        tokio::time::sleep(deadline.since(clock::now())).await;
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(address: String) -> Target {
        let (cluster, primary) = ("c1".parse().unwrap(), "a".parse().unwrap());
        Target { cluster, epoch: Epoch(3), primary, address }
    }

    #[tokio::test]
    async fn only_the_primary_of_this_epoch_is_an_answer() {
        let keeper = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let target = target(keeper.local_addr().unwrap().to_string());
        let answer = |epoch, member: &str| Packet::Here {
            cluster: "c1".parse().unwrap(),
            epoch: Epoch(epoch),
            member: member.parse().unwrap(),
        };
        for (packet, expected) in
            [(answer(2, "a"), false), (answer(3, "b"), false), (answer(3, "a"), true)]
        {
            let asked = async {
                let mut buffer = [0; LONGEST_PACKET];
                loop {
                    let (_, from) = keeper.recv_from(&mut buffer).await.unwrap();
                    keeper.send_to(&packet.encode(), from).await.unwrap();
                }
            };
            let probe =
                tokio::select! { probe = ask(&target) => probe, () = asked => unreachable!() };
            assert_eq!((probe.epoch, probe.answered), (Epoch(3), expected));
        }
    }

    #[tokio::test]
    async fn a_port_where_nobody_listens_is_silent_and_a_name_that_is_not_found_is_no_evidence() {
        let free = UdpSocket::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        assert!(!ask(&target(free.to_string())).await.answered);
        assert!(ask(&target("no.such.host.invalid:1".into())).await.answered);
    }
}
