//! Waits for facts, with one bound for all.

use std::future::Future;
use std::time::Duration;

/// Nothing here takes longer unless it is broken.
const BOUND: Duration = Duration::from_secs(20);

pub async fn bounded<T>(what: &str, future: impl Future<Output = T>) -> T {
    let bound = tokio::time::timeout(BOUND, future).await;
    bound.unwrap_or_else(|_| panic!("not within {BOUND:?}: {what}"))
}

pub async fn eventually<F: Future<Output = bool>>(what: &str, mut holds: impl FnMut() -> F) {
    bounded(what, async {
        while !holds().await {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
}
