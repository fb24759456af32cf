//! Brings together what a verdict rests on: what clients were told, and what every member holds.

use std::time::Duration;

use proto::{Epoch, Moment};

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
    /// That of the begin.
    epoch: Epoch,
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
            epoch: lab.cluster().await?.epoch(),
        })
    }

    /// Stops both and reads all members. Call it when the cluster is redundant. `steady` is the time before the
    /// fault in which the rate of the load is measured.
    pub async fn finish(
        self,
        lab: &Lab,
        steady: (Moment, Moment),
    ) -> anyhow::Result<(Evidence, Told)> {
        let (mut evidence, told) = self.stop(lab, steady).await;
        evidence.holdings = lab.holdings(REPLAY_BOUND).await?.into_iter().collect();
        Ok((evidence, told))
    }

    /// The same of a cluster that is not whole: reads who can be read, and says why the others cannot.
    pub async fn finish_with_who_is_there(
        self,
        lab: &Lab,
        steady: (Moment, Moment),
    ) -> (Evidence, Told, Vec<String>) {
        let (mut evidence, told) = self.stop(lab, steady).await;
        let (holdings, left_out) = lab.holdings_there(REPLAY_BOUND).await;
        evidence.holdings = holdings.into_iter().collect();
        (evidence, told, left_out)
    }

    async fn stop(self, lab: &Lab, steady: (Moment, Moment)) -> (Evidence, Told) {
        let told = self.load.stop().await;
        let (beacons, _unknown) = self.observers.stop().await;
        // Without etcd nobody can say.
        let epoch = lab.cluster().await.map_or(self.epoch, |cluster| cluster.epoch());
        let evidence = Evidence {
            acknowledged: told.acknowledged.clone(),
            beacons,
            members: lab.members().len(),
            epochs: usize::try_from(epoch.0.saturating_sub(self.epoch.0)).unwrap_or(usize::MAX),
            per_second: told.per_second(steady.0, steady.1),
            ..Evidence::default()
        };
        (evidence, told)
    }
}
