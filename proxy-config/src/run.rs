//! The shell: what the store says becomes routes, routes go to HAProxy at once, and files follow.
//!
//! A failover's path is watch event, `route`, one line to HAProxy's socket; nothing on it waits for a disk.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use proto::drill::DrillTarget;
use proto::{Epoch, MemberName, Moment};
use store::drills::carry_out;
use store::etcd::EtcdStore;
use store::keys::Keys;
use store::{Store, clock};
use tokio::sync::watch;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::drill::Drilled;
use crate::follow::{Agreed, Heard, View};
use crate::pgbouncer::{self, Orders, PgbouncerConfig};
use crate::presence::Followed;
use crate::push::{Hold, PushError};
use crate::route::{Addresses, Answers, Known, Routes};
use crate::{Config, ask, collisions, follow, install, presence, push, route};

/// A quarter of the second in which HAProxy's checks could bring an old primary back (see `push`).
const HOLD_EVERY: Duration = Duration::from_millis(250);

/// Without an answer for this long the store is away, and HAProxy's checks know more than the last known state.
const TRUSTED_FOR: Duration = Duration::from_secs(5);
const _: () = assert!(TRUSTED_FOR.as_secs() > 2 * presence::RENEW_EVERY.as_secs());

/// Who has not turned for so long, four times as long as it should take, has stood still and knows old news.
const STOOD_STILL: Duration = Duration::from_secs(1);

const CONNECT_AGAIN_AFTER: Duration = Duration::from_secs(2);

/// Serves until `stop`. A store that cannot be reached at start is an error, unless routes are installed already.
pub async fn run(config: Config, stop: CancellationToken) -> anyhow::Result<()> {
    config.check()?;
    let knows_routes = installed(&config)?.epoch > Epoch(0);
    let store = tokio::select! {
        () = stop.cancelled() => return Ok(()),
        store = connect(&config, knows_routes) => store?,
    };
    run_on(Arc::new(store), config, stop).await
}

/// Serves from a given store until `stop`.
pub async fn run_on(
    store: Arc<dyn Store>,
    config: Config,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    config.check()?;
    let routes = installed(&config)?;
    if let Some(haproxy) = &config.haproxy {
        collisions::check(&config.cluster, haproxy)?;
    }
    let keys = Keys::of(&config.cluster);
    let config = Arc::new(config);
    // Apart from `stop`: the tasks end after the router, which takes their end for a mishap.
    let inner = CancellationToken::new();
    let (heard, views) = (Heard::new(clock::now()), watch::Sender::new(View::unheard()));
    let (wanted, orders) = (watch::Sender::new(None), watch::Sender::new(None));
    let followed = Arc::new(watch::Sender::new(Followed::nobody(&config)));
    let seen = views.subscribe();
    let mut tasks = tokio::task::JoinSet::new();
    tasks.spawn(follow::follow(store.clone(), keys.clone(), (views, heard.clone()), inner.clone()));
    if let Some(haproxy) = config.haproxy.clone() {
        let of = (config.cluster.clone(), haproxy);
        tasks.spawn(install::follow(of, wanted.subscribe(), inner.clone()));
    }
    if let Some(pgbouncer) = config.pgbouncer.clone() {
        let (orders, followed) = (orders.subscribe(), followed.clone());
        tasks.spawn(pgbouncer::follow(pgbouncer, orders, followed, inner.clone()));
    }
    let report = (config.id.clone(), followed.subscribe());
    let drills = Arc::clone(&store);
    tasks.spawn(presence::announce(
        store,
        keys.proxy(&config.id),
        report,
        heard.clone(),
        inner.clone(),
    ));

    let consoles = config.pgbouncer.as_ref().map(|pgbouncer| pgbouncer.consoles.clone());
    let drilled = Drilled {
        drills: config.drills.clone(),
        haproxy: config.haproxy.clone(),
        pgbouncers: consoles.unwrap_or_default(),
    };
    let (own, until) = (DrillTarget::Proxy(config.id.clone()), inner.clone());
    tasks.spawn(async move {
        carry_out(&*drills, &keys, (&own, &drilled), &until).await;
    });

    let (members, answers) = (watch::Sender::new(routes.members.clone()), watch::Sender::default());
    let answered = answers.subscribe();
    tasks.spawn(ask::ask(members.subscribe(), answers, inner.clone()));
    let mut router = Router {
        config,
        routes,
        since: clock::now(),
        members,
        answers: answered,
        orders,
        wanted,
        followed,
        lower: None,
        trouble: None,
    };
    let outcome = tokio::select! {
        () = stop.cancelled() => Ok(()),
        outcome = router.follow(seen, heard) => outcome,
    };
    inner.cancel();
    while let Some(ended) = tasks.join_next().await {
        ended.context("end a task of proxy-config")?;
    }
    outcome
}

/// Returns the routes of the highest epoch that an installed file was written for.
pub(crate) fn installed(config: &Config) -> anyhow::Result<Routes> {
    let haproxy = install::installed(config)?;
    let of_pgbouncer = |p: &PgbouncerConfig| pgbouncer::file::installed(&p.file, &config.cluster);
    let pgbouncer = config.pgbouncer.as_ref().map_or(Ok(None), of_pgbouncer)?;
    // HAProxy's where both are of one epoch: that file is also written while there is no primary.
    Ok(pgbouncer.into_iter().chain(haproxy).max_by_key(|r| r.epoch).unwrap_or_default())
}

async fn connect(config: &Config, knows_routes: bool) -> anyhow::Result<EtcdStore> {
    let prefixes = [Keys::of(&config.cluster).prefix().to_owned()];
    let mut said = false;
    loop {
        match EtcdStore::connect_to_read(&config.etcd, &prefixes).await {
            Ok(store) => return Ok(store),
            Err(e) if knows_routes => {
                if !said {
                    warn!(error = %e, "store is away: the installed routes stay");
                }
                said = true;
                tokio::time::sleep(CONNECT_AGAIN_AFTER).await;
            }
            Err(e) => {
                return Err(e).with_context(|| {
                    format!(
                        "connect to etcd at {}: check that it runs and --etcd",
                        config.etcd.endpoints.join(",")
                    )
                });
            }
        }
    }
}

type Members = BTreeMap<MemberName, Addresses>;

struct Router {
    config: Arc<Config>,
    routes: Routes,
    /// When the write route last changed.
    since: Moment,
    /// Whose keepers are asked, and what they have answered.
    members: watch::Sender<Members>,
    answers: watch::Receiver<Answers>,
    /// For PgBouncer, which has no way to be told but its file.
    orders: watch::Sender<Option<Orders>>,
    /// For HAProxy's files, which follow the push.
    wanted: watch::Sender<Option<Routes>>,
    followed: Arc<watch::Sender<Followed>>,
    /// The lower epoch of the state that was last warned of.
    lower: Option<Epoch>,
    /// Why HAProxy does not follow; absent while it does.
    trouble: Option<String>,
}

impl Router {
    async fn follow(
        &mut self,
        mut views: watch::Receiver<View>,
        heard: Heard,
    ) -> anyhow::Result<()> {
        let mut tick = tokio::time::interval(HOLD_EVERY);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut view = View::unheard();
        let mut turned = clock::now();
        loop {
            tokio::select! {
                changed = views.changed() => {
                    changed.context("the task that follows the store has ended")?;
                    view = views.borrow_and_update().clone();
                }
                _ = tick.tick() => {}
            }
            let now = clock::now();
            if now.since(std::mem::replace(&mut turned, now)) > STOOD_STILL {
                heard.doubt();
            }
            self.route(&view, now);
            let age = now.since(self.since);
            let hold = match heard.is_doubted() {
                true => Hold::Nothing,
                false => hold(&view, &self.routes, heard.silent_for(now), age),
            };
            self.push(hold, now).await;
            // Files follow the push. Before the store has spoken there is nothing to install.
            let install = view.agreed != Agreed::Unheard;
            self.wanted.send_if_modified(|wanted| {
                let installed = wanted
                    .as_ref()
                    .is_some_and(|w| w.leads_as(&self.routes) && w.limits == self.routes.limits);
                let changed = install && !installed;
                if changed {
                    *wanted = Some(self.routes.clone());
                }
                changed
            });
        }
    }

    /// The routes that the next ones may not fall behind.
    fn previous(&self) -> Option<&Routes> {
        #[cfg(feature = "mistakes")]
        if store::mistake::is_chosen("router-takes-a-lower-epoch") {
            store::mistake::made("router-takes-a-lower-epoch");
            return None;
        }
        Some(&self.routes)
    }

    fn route(&mut self, view: &View, now: Moment) {
        let state = view.agreed.state();
        self.warn_of_lower(state.map(|s| s.epoch));
        let so_far = self.routes.as_spec();
        let answers = self.answers.borrow_and_update().clone();
        let known = Known {
            spec: view.spec.as_deref().unwrap_or(&so_far),
            state,
            reports: &view.reports,
            answers: &answers,
        };
        let next = route::route(&known, self.previous(), now);
        if (&next.write, next.epoch) != (&self.routes.write, self.routes.epoch) {
            self.since = now;
        }
        if !next.leads_as(&self.routes) {
            let members: Vec<_> = next.members.keys().collect();
            let (read, fresh, pools) = (&next.read, &next.fresh, &next.pools);
            info!(epoch = %next.epoch, write = ?next.write, ?read, ?fresh, ?pools, ?members, "route");
        }
        if next.members != *self.members.borrow() {
            self.members.send_replace(next.members.clone());
        }
        self.routes = next;
        let known = state.filter(|s| s.epoch >= self.routes.epoch).cloned().map(Box::new);
        let orders = Some(Orders { routes: self.routes.as_led(), state: known });
        self.orders.send_if_modified(|last| {
            let changed = *last != orders;
            *last = orders;
            changed
        });
    }

    fn warn_of_lower(&mut self, epoch: Option<Epoch>) {
        let lower = epoch.filter(|e| *e < self.routes.epoch);
        if let Some(epoch) = lower.filter(|_| self.lower != lower) {
            warn!(
                %epoch, routed = %self.routes.epoch,
                "the state is of a lower epoch than was routed by, the routes stay; if the cluster was made anew, \
                 stop proxy-config, remove the files that it installed and start again"
            );
        }
        self.lower = lower;
    }

    async fn push(&mut self, hold: Hold, now: Moment) {
        let Some(haproxy) = &self.config.haproxy else { return };
        let lines = push::commands(haproxy, &self.routes, hold, now);
        if lines.is_empty() {
            return;
        }
        let outcome = push::push(&haproxy.socket, &lines).await;
        if outcome.is_ok() && hold == Hold::Routes {
            self.followed.send_if_modified(|f| f.haproxy.replace(self.routes.epoch) != f.haproxy);
        }
        let trouble = outcome.err().map(|e| match e {
            // Told apart by kind and not by text, so that one outage is one line in the log.
            PushError::Away(e) => {
                format!("HAProxy's socket does not answer ({}): is it running?", e.kind())
            }
            PushError::Refused(_) => format!("{e}: it has not loaded the present file yet"),
            PushError::NoAdmin => e.to_string(),
        });
        if trouble != self.trouble {
            match &trouble {
                Some(text) => warn!("{text}"),
                None => info!(epoch = %self.routes.epoch, "HAProxy follows again"),
            }
        }
        self.trouble = trouble;
    }
}

/// Decides how firmly HAProxy is kept on the routes.
///
/// A replaced primary may go on answering 200 for `lease_ttl` at most, the bound of its right to serve. So when the
/// store falls silent, members that are not the primary are kept closed that long after the last switch; from then
/// on whoever answers as primary is one of this epoch or a later one, and the checks may find it without us.
fn hold(view: &View, routes: &Routes, silent_for: Duration, age: Duration) -> Hold {
    let fresh = silent_for <= TRUSTED_FOR;
    match &view.agreed {
        Agreed::State(state) if fresh && state.epoch >= routes.epoch => Hold::Routes,
        Agreed::State(state) if fresh && state.epoch < routes.epoch => Hold::Closed,
        Agreed::Unheard => Hold::Nothing,
        Agreed::State(_) | Agreed::Absent | Agreed::Unreadable => match age <= view.lease_ttl() {
            true => Hold::Closed,
            false => Hold::Nothing,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn held(agreed: Agreed, silent_for: Duration, age: Duration) -> Hold {
        let spec = proto::ClusterSpec { lease_ttl: SECOND * 4, ..Default::default() };
        let view = View { agreed, spec: Some(Box::new(spec)), ..View::unheard() };
        hold(&view, &Routes { epoch: Epoch(7), ..Routes::default() }, silent_for, age)
    }

    fn state(epoch: u64) -> Agreed {
        let text = format!(
            r#"{{"number":1,"etcd_cluster_id":"e","epoch":{epoch},"phase":{{"name":"open"}},"cfgs":[],"last_cfg":1,
            "timeline":1,"highest_timeline":1,"open_at_once":true,"epochs":[],"members":{{}}}}"#
        );
        Agreed::State(serde_json::from_str(&text).unwrap())
    }

    #[test]
    fn haproxy_is_held_to_the_routes_while_the_store_answers() {
        assert_eq!(held(state(7), SECOND, SECOND), Hold::Routes);
        assert_eq!(held(state(8), SECOND, SECOND * 100), Hold::Routes);
    }

    #[test]
    fn a_replaced_primary_stays_closed_for_as_long_as_it_may_answer_when_the_store_falls_silent() {
        assert_eq!(held(state(7), SECOND * 6, SECOND * 3), Hold::Closed);
        assert_eq!(held(Agreed::Absent, SECOND, SECOND * 3), Hold::Closed);
        assert_eq!(held(Agreed::Unreadable, SECOND, SECOND * 3), Hold::Closed);
    }

    #[test]
    fn the_checks_decide_once_the_last_known_state_may_be_old() {
        assert_eq!(held(state(7), SECOND * 6, SECOND * 5), Hold::Nothing);
        assert_eq!(held(Agreed::Unreadable, SECOND, SECOND * 5), Hold::Nothing);
        assert_eq!(held(Agreed::Unheard, SECOND, SECOND), Hold::Nothing);
    }

    #[test]
    fn a_restored_store_opens_nobody() {
        assert_eq!(held(state(6), SECOND, SECOND * 100), Hold::Closed);
    }
}
