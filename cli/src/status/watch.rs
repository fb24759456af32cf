//! `status --watch`: draws again at every change in etcd, and positions every two seconds between changes.

use std::io::IsTerminal;
use std::time::Duration;

use anyhow::{Context, ensure};
use store::{Store, Watch};
use tokio_util::sync::CancellationToken;

use super::{Status, gather};
use crate::args::OutputArgs;
use crate::output::Reader;
use crate::target::Target;
use crate::{output, read};

/// Positions move without any change in etcd. Nothing is learnt of a change by waiting for this.
const POSITIONS_EVERY: Duration = Duration::from_secs(2);

/// Between tries while etcd is away.
const RETRY_EVERY: Duration = Duration::from_secs(1);

/// Draws until `stop`. An etcd that goes away later is waited for, and said to be away.
pub async fn watch(
    target: Target,
    output: OutputArgs,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let drawing = async {
        let store = read::connect(&target.store).await?;
        // What is wrong from the start, such as an unknown cluster, ends it.
        gather(&store, &target).await?;
        loop {
            match follow(&store, &target, output).await {
                Ok(()) => return Ok(()),
                Err(error) => eprintln!("pgdeputy: {error:#}; trying again"),
            }
            tokio::time::sleep(RETRY_EVERY).await;
        }
    };
    tokio::select! {
        ended = drawing => ended,
        () = stop.cancelled() => Ok(()),
    }
}

/// Draws at every change: until nobody reads, or with an error until the watch breaks.
async fn follow(store: &dyn Store, target: &Target, output: OutputArgs) -> anyhow::Result<()> {
    let (first, revision) = gather(store, target).await?;
    let keys = target.keys();
    let mut changes =
        store.watch(keys.prefix(), revision + 1).await.context("watch the cluster")?;
    let mut reader = draw(&first, output)?;
    while reader == Reader::There {
        ensure!(changed(&mut changes).await, "the watch of the cluster broke off");
        let (status, _) = gather(store, target).await?;
        reader = draw(&status, output)?;
    }
    Ok(())
}

/// Waits for a change, or for positions to have moved; false once the watch is broken.
async fn changed(changes: &mut Watch) -> bool {
    match tokio::time::timeout(POSITIONS_EVERY, changes.events.recv()).await {
        Ok(None) => false,
        Err(_) => true,
        Ok(Some(_)) => {
            // Changes come in bursts; one reading shows all that have arrived.
            while changes.events.try_recv().is_ok() {}
            true
        }
    }
}

fn draw(status: &Status, output: OutputArgs) -> anyhow::Result<Reader> {
    let text = match output.json {
        // One document a line: a stream that programs can read as it comes.
        true => serde_json::to_string(status).context("write JSON")?,
        false if std::io::stdout().is_terminal() => format!("\x1b[H\x1b[2J{status}"),
        false => format!("{status}\n----"),
    };
    output::write(&text)
}
