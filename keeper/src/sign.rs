//! The right to serve while etcd is away: the replication quorum is the lease.
//!
//! Replacing this primary needs the very voters that acknowledge its commits, sealed. As long as k of them flush a
//! record that was written after a moment t, none of them had sealed at t: a *sign of time t*, whenever it is seen. A late
//! reply proves nothing, so the record is new each time. Done only while renewals fail.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use proto::{Cfg, ClusterState, Moment};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::member_files::MemberFiles;
use crate::worker::{LeaseView, Worker, own_record, serve_until, wait_for_voters};

/// Signs per `lease_ttl`, as often as renewals: two may be lost.
const SIGNS_PER_LEASE: u32 = 5;

/// What the signing task works with.
pub struct Signing {
    pub worker: Arc<Worker>,
    pub renewed: watch::Receiver<Option<LeaseView>>,
    /// Until when the last sign lets this primary serve.
    pub signed: watch::Sender<Option<Moment>>,
}

/// Gives signs while renewals fail, until `stop`.
pub async fn sign(signing: Signing, stop: CancellationToken) {
    let mut told = false;
    while !stop.is_cancelled() {
        let spec = signing.worker.spec();
        let interval = spec.lease_ttl / SIGNS_PER_LEASE;
        tokio::select! {
            () = sleep(interval) => {}
            () = stop.cancelled() => return,
        }
        let renewed = signing.renewed.borrow().map(|r| r.expires - spec.lease_ttl);
        let fails = renewed.is_none_or(|sent| store::clock::now().since(sent) > interval * 2);
        if !fails || signing.worker.local().opened.is_none() {
            told &= fails;
            continue;
        }
        #[cfg(feature = "mistakes")]
        if crate::mistakes::makes("no-signs") {
            continue;
        }
        match give(&signing.worker, interval * 2).await {
            Ok(at) => {
                if !told {
                    tracing::warn!("etcd is away: serving by the signs of this primary's voters");
                    told = true;
                }
                signing.signed.send_replace(Some(serve_until(at + spec.lease_ttl, &spec)));
            }
            Err(error) => tracing::warn!(error = format!("{error:#}"), "no sign of the voters"),
        }
    }
}

/// Returns the moment of which the voters gave a sign.
pub async fn give(worker: &Worker, patience: Duration) -> anyhow::Result<Moment> {
    let cfg = whose_signs_count(&worker.files(), worker.state()?)?;
    let at = store::clock::now();
    if cfg.k == 0 {
        // Nobody can be promoted over this primary, so there is nobody to ask.
        return Ok(at);
    }
    let asking = async {
        let session = worker.admin().await?;
        #[cfg(feature = "mistakes")]
        if crate::mistakes::makes("sign-without-causality") {
            return wait_for_voters(worker, &cfg, proto::Lsn(0)).await;
        }
        let lsn = own_record(&session, "sign").await?;
        wait_for_voters(worker, &cfg, lsn).await
    };
    timeout(patience, asking).await.context("the voters gave no sign in time")??;
    Ok(at)
}

/// The Cfg that was last reported as confirmed in this epoch, else the epoch's first: that one cannot leave the record
/// without such a report.
pub fn whose_signs_count(files: &MemberFiles, state: ClusterState) -> anyhow::Result<Cfg> {
    if let Some(cfg) = files.confirmed.clone().filter(|c| c.epoch == files.epoch) {
        return Ok(cfg);
    }
    let first = state.cfgs.into_iter().find(|c| c.epoch == files.epoch);
    first.context("no Cfg of this epoch is known")
}
