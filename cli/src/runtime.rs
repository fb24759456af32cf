//! Runs a command's future: SIGTERM and SIGINT ask it to stop, and it stops by itself.

use std::future::Future;

use anyhow::Context;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// Runs `body` to its end. It is given the token that SIGTERM and SIGINT cancel.
pub fn run<T, F, B>(body: F) -> anyhow::Result<T>
where
    F: FnOnce(CancellationToken) -> B,
    B: Future<Output = anyhow::Result<T>>,
{
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("start the runtime")?;
    runtime.block_on(async {
        let stop = CancellationToken::new();
        let mut term = signal(SignalKind::terminate()).context("listen for SIGTERM")?;
        let mut int = signal(SignalKind::interrupt()).context("listen for SIGINT")?;
        let told = stop.clone();
        tokio::spawn(async move {
            let signal =
                tokio::select! { _ = term.recv() => "SIGTERM", _ = int.recv() => "SIGINT" };
            tracing::info!(signal, "asked to stop");
            told.cancel();
        });
        body(stop).await
    })
}

/// Runs `body`, which has nothing to clean up: SIGTERM and SIGINT simply end it, without an answer.
pub fn answer<T>(body: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    run(|stop| async move {
        tokio::select! {
            answer = body => answer,
            () = stop.cancelled() => anyhow::bail!("interrupted"),
        }
    })
}
