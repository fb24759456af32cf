//! Asks the leader for something, and waits for what comes of it.
//!
//! The one rule: whoever asked learns the end, or that there is none yet. Nothing is left behind that a leader could
//! begin later.

use std::time::Duration;

use anyhow::{Context, bail, ensure};
use proto::request::{Answered, Request, RequestId, RequestOutcome, Wanted};
use store::requests::{Asked, Standing, ask};
use store::{Store, clock};

use crate::read::Documents;
use crate::target::Target;

/// Answers come by watch; this is for a watch that is deaf.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// Once it has begun, a request is followed for this much longer than it was valid: its end is past recall by then.
const LONGER: Duration = Duration::from_secs(60);

/// Asks for `wanted` and returns the answer that is final. Fails with the leader's own reason when it is refused or
/// comes to nothing, and when nobody answers within `valid_for`.
pub async fn until_done(
    store: &dyn Store,
    target: &Target,
    documents: &Documents,
    wanted: Wanted,
    valid_for: Duration,
) -> anyhow::Result<Answered> {
    let kind = wanted.kind();
    ensure!(
        documents.state.is_some(),
        "cluster {} has not been founded yet: start a sentinel and the keepers first",
        target.cluster
    );
    ensure!(
        documents.leader.is_some(),
        "no sentinel leads cluster {}, so nobody would answer: start one with `pgdeputy sentinel`",
        target.cluster
    );
    let request = Request {
        id: RequestId::from_random(rand::random()),
        by: who(),
        asked: clock::wall(),
        valid_for,
        wanted,
    };
    let asked =
        ask(store, &target.keys(), &request).await.with_context(|| format!("ask for a {kind}"))?;
    let answered = follow(store, target, &asked, valid_for).await?;
    match &answered.outcome {
        RequestOutcome::Refused { reason } => {
            bail!("{kind} refused, nothing was changed: {reason}")
        }
        RequestOutcome::Nothing { reason } => bail!("{kind} came to nothing: {reason}"),
        RequestOutcome::Started { .. } | RequestOutcome::Done { .. } => Ok(answered),
    }
}

/// Waits for the end of what was asked for.
async fn follow(
    store: &dyn Store,
    target: &Target,
    asked: &Asked,
    valid_for: Duration,
) -> anyhow::Result<Answered> {
    let keys = target.keys();
    let begun = clock::now();
    loop {
        // From the next revision on nothing is missed: the watch begins before the look.
        let mut watch = store.watch(&keys.state(), 0).await.context("watch the state")?;
        let waited = clock::now().since(begun);
        match asked.standing(store, &keys).await.context("read the answer")? {
            Standing::Answered(answered) if answered.outcome.is_final() => return Ok(answered),
            Standing::Answered(answered) if waited > valid_for + LONGER => bail!(
                "{} has begun and has not ended after {} s: see `pgdeputy explain` for what it waits for",
                answered.kind,
                waited.as_secs()
            ),
            Standing::Waiting if waited > valid_for => {
                asked.withdraw(store).await.context("withdraw the request")?;
            }
            Standing::Gone => bail!(
                "nobody answered within {} s and the request has ended, nothing was changed: see `pgdeputy explain`",
                valid_for.as_secs()
            ),
            Standing::Answered(_) | Standing::Waiting => {}
        }
        let _ = tokio::time::timeout(LOOK_AGAIN, watch.events.recv()).await;
    }
}

/// Returns who asks: `user@host`.
pub fn who() -> String {
    let uid = nix::unistd::Uid::current();
    let user = nix::unistd::User::from_uid(uid).ok().flatten().map(|u| u.name);
    let host = nix::unistd::gethostname().unwrap_or_default();
    format!("{}@{}", user.unwrap_or_else(|| format!("uid {uid}")), host.to_string_lossy())
}
