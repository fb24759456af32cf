//! The drills of a sentinel: the leader steps down, or ends at once.

use proto::drill::{Drill, LiveFault};
use store::drills::{Carries, die};
use tokio::sync::watch;

use crate::Drills;

/// What is drilled in one cluster.
pub(super) struct Drilled {
    drills: Drills,
    /// Whether this sentinel leads.
    pub(super) leads: watch::Sender<bool>,
    /// How often the leader was to step down. Who begins to lead counts from then on: what was meant for an earlier
    /// leadership is over.
    pub(super) resign: watch::Sender<u64>,
}

impl Drilled {
    /// Nobody leads yet.
    pub(super) fn new(drills: Drills) -> Self {
        Self { drills, leads: watch::Sender::new(false), resign: watch::Sender::new(0) }
    }
}

#[async_trait::async_trait]
impl Carries for Drilled {
    async fn judge(&self, drill: &Drill) -> Result<(), String> {
        let fault = drill.fault;
        if self.drills.refused.contains(&fault) {
            return Err(format!(
                "the operator of {} refuses {fault} (--refuse-drills)",
                drill.target
            ));
        }
        if !*self.leads.borrow() {
            return Err(format!("{} does not lead any more", drill.target));
        }
        match fault {
            LiveFault::SentinelResign => Ok(()),
            LiveFault::Sentinel if self.drills.restarted => Ok(()),
            LiveFault::Sentinel => Err(format!(
                "nobody is known to start {} again: run it under systemd or supervisord",
                drill.target
            )),
            _ => Err(format!("{fault} hits no sentinel")),
        }
    }

    async fn strike(&self, drill: &Drill) -> Option<String> {
        match drill.fault {
            LiveFault::SentinelResign => self.resign.send_modify(|times| *times += 1),
            _ => die(),
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::time::Duration;

    use proto::drill::DrillTarget;
    use proto::{Epoch, RequestId};

    use super::*;

    fn drill(fault: LiveFault) -> Drill {
        Drill {
            id: RequestId::from_random(1),
            fault,
            target: DrillTarget::Sentinel("s1".into()),
            by: "ann@north".into(),
            epoch: Epoch(2),
            bound: Duration::from_secs(5),
        }
    }

    async fn said(drilled: &Drilled, fault: LiveFault) -> Result<(), String> {
        drilled.judge(&drill(fault)).await
    }

    #[tokio::test]
    async fn a_leader_steps_down_by_a_drill_of_its_own_leadership_and_not_by_an_earlier_one() {
        let drilled = Drilled::new(Drills::default());
        // Struck as the leadership was lost: nobody waits for it any more.
        drilled.strike(&drill(LiveFault::SentinelResign)).await;
        let later = drilled.resign.subscribe();
        assert!(!later.has_changed().unwrap());
        drilled.strike(&drill(LiveFault::SentinelResign)).await;
        assert!(later.has_changed().unwrap(), "also when it is busy in that moment");
    }

    #[tokio::test]
    async fn only_a_leader_is_drilled_and_ends_only_where_it_is_started_again() {
        let follower = Drilled::new(Drills::default());
        let refused = said(&follower, LiveFault::SentinelResign).await.unwrap_err();
        assert!(refused.contains("does not lead"), "{refused}");
        let leader = |drills| {
            let drilled = Drilled::new(drills);
            drilled.leads.send_replace(true);
            drilled
        };
        let plain = leader(Drills::default());
        assert_eq!(said(&plain, LiveFault::SentinelResign).await, Ok(()));
        let refused = said(&plain, LiveFault::Sentinel).await.unwrap_err();
        assert!(refused.contains("start sentinel/s1 again"), "{refused}");
        assert!(said(&plain, LiveFault::Crash).await.unwrap_err().contains("hits no sentinel"));
        let kept = leader(Drills { restarted: true, ..Drills::default() });
        assert_eq!(said(&kept, LiveFault::Sentinel).await, Ok(()));
        let refused = BTreeSet::from([LiveFault::SentinelResign]);
        let unwilling = leader(Drills { refused, restarted: true });
        let refused = said(&unwilling, LiveFault::SentinelResign).await.unwrap_err();
        assert!(refused.contains("--refuse-drills"), "{refused}");
    }
}
