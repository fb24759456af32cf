//! Brings together what a verdict rests on: what clients were told, and what every member holds.

use std::time::Duration;

use proto::Moment;

use crate::lab::Lab;
use crate::load::{Load, Told};
use crate::observer::Observers;
use crate::verdict::Evidence;

/// How long the standbys may take to replay what they have.
const REPLAY_BOUND: Duration = Duration::from_secs(60);

/// Clients and observers of one run.
pub struct Watchers {
    pub load: Load,
    pub observers: Observers,
}

impl Watchers {
    /// Starts the load through the write port and an observer for each member.
    pub async fn start(lab: &Lab, writers: usize) -> anyhow::Result<Self> {
        lab.prepare_database().await?;
        let members = lab.members().into_iter();
        let targets: anyhow::Result<Vec<_>> =
            members.map(|m| lab.application_at(&m).map(|t| (m, t))).collect();
        Ok(Self {
            load: Load::start(lab.load_config(writers))?,
            observers: Observers::start(targets?),
        })
    }

    /// Stops both and reads all members. Call it when the cluster is redundant. `steady` is the time before the
    /// fault in which the rate of the load is measured.
    pub async fn finish(
        self,
        lab: &Lab,
        steady: (Moment, Moment),
    ) -> anyhow::Result<(Evidence, Told)> {
        let told = self.load.stop().await;
        let (beacons, _unknown) = self.observers.stop().await;
        let holdings = lab.holdings(REPLAY_BOUND).await?;
        let evidence = Evidence {
            acknowledged: told.acknowledged.clone(),
            beacons,
            holdings: holdings.into_iter().collect(),
            members: lab.members().len(),
            per_second: told.per_second(steady.0, steady.1),
        };
        Ok((evidence, told))
    }
}
