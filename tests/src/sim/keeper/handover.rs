//! The primary's side of a switchover, step by step as the product does it.

use std::time::Duration;

use proto::RequestId;
use proto::assignment::HandOver;
use proto::report::{Handover, Readiness};

use super::seal;
use super::worker::{SOON, Worker};

const STOP_AT_MOST: Duration = Duration::from_secs(10);
const LAST_HANDSHAKE: Duration = Duration::from_millis(500);

/// Writes a checkpoint, and says that the standbys are near: in this model they are.
pub async fn prepare(worker: &Worker, request: &RequestId) -> anyhow::Result<()> {
    let session = worker.admin()?;
    session.checkpoint();
    session.sync_takes(20_000).await;
    let readiness = Readiness::Ready { left: [].into() };
    let handover = Handover { request: request.clone(), readiness };
    worker.update(|local| local.handover = Some(handover));
    Ok(())
}

/// Stops PostgreSQL fast, then promises the next epoch and seals for it.
pub async fn hand_over(worker: &Worker, handover: &HandOver) -> anyhow::Result<()> {
    worker.update(|local| local.opened = None);
    if !worker.local().process.is_gone() {
        stop(worker, &handover.waits_for).await?;
    }
    seal::seal(worker, handover.sealing).await
}

async fn stop(worker: &Worker, waits_for: &[String]) -> anyhow::Result<()> {
    let sim = worker.sim.clone();
    let begun = worker.host.now();
    if let Ok(session) = worker.admin()
        && !sim.mutant("handover-fences")
    {
        sim.server_shuts_down(&session, waits_for);
        let mut shut_down = None;
        loop {
            if worker.local().process.is_gone() {
                return Ok(());
            }
            let now = worker.host.now();
            let clean = sim.with(|w| {
                w.members[worker.member].disk.data.as_ref().is_some_and(|data| data.clean)
            });
            if clean && shut_down.is_none() {
                shut_down = Some(now);
            }
            let handshake = shut_down.is_some_and(|at| now.since(at) > LAST_HANDSHAKE);
            if handshake || now.since(begun) > STOP_AT_MOST {
                break;
            }
            sim.sleep(SOON * 2).await;
        }
    }
    worker.fence().await?;
    let patience = worker.patience(Duration::from_secs(2), "the word that nothing is left");
    while !worker.local().process.is_gone() {
        patience.soon(worker).await?;
    }
    Ok(())
}
