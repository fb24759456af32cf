//! What a person asks proxy-config to do once: bring the proxies in line and end, or show what would change and change
//! nothing.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use store::etcd::EtcdStore;
use store::keys::Keys;
use store::{Store, clock};

use crate::follow::{self, Agreed, View};
use crate::install::{self, Installer, Outcome};
use crate::push::{self, Hold};
use crate::route::{self, Answers, Known, Routes};
use crate::{Config, ask, collisions, diff, haproxy, pgbouncer, run};

/// How long etcd may take to answer.
const READ_WITHIN: Duration = Duration::from_secs(5);

/// What was done, or would be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Done {
    /// The epoch that was routed by.
    pub epoch: proto::Epoch,
    /// What a person should know, a line each.
    pub lines: Vec<String>,
}

/// Routes once, installs what follows from it, and tells HAProxy.
pub async fn once(config: &Config) -> anyhow::Result<Done> {
    let store = connect(config).await?;
    once_on(store, config).await
}

/// The same from a given store.
pub async fn once_on(store: Arc<dyn Store>, config: &Config) -> anyhow::Result<Done> {
    let routes = routes(store, config).await?;
    let mut done = Done { epoch: routes.epoch, lines: told(&routes) };
    if let Some(pgbouncer) = &config.pgbouncer {
        done.lines.extend(pgbouncer::once(pgbouncer, &routes).await?);
    }
    let Some(haproxy) = &config.haproxy else { return Ok(done) };
    // Files are checked and put in place first: an HAProxy that does not know a member yet cannot be told of it.
    let mut installer = Installer::new(config.cluster.clone(), haproxy.clone());
    loop {
        match installer.install(&routes).await? {
            Outcome::Loaded(running) => {
                let lines = push::commands(haproxy, &routes, Hold::Routes, clock::now());
                push::push(&haproxy.socket, &lines).await?;
                done.lines.push(format!(
                    "HAProxy {} follows {}",
                    running.pid,
                    haproxy.file.display()
                ));
                return Ok(done);
            }
            Outcome::Away => {
                let file = haproxy.file.display();
                done.lines.push(format!("{file} is installed; HAProxy does not run yet"));
                return Ok(done);
            }
            // Bounded: a HAProxy that has just started is older than that a second later.
            Outcome::Settling => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    }
}

/// Returns what `once` would change in the installed files, as a text; changes nothing.
pub async fn preview(config: &Config) -> anyhow::Result<Done> {
    let store = connect(config).await?;
    preview_on(store, config).await
}

/// The same from a given store.
pub async fn preview_on(store: Arc<dyn Store>, config: &Config) -> anyhow::Result<Done> {
    let routes = routes(store, config).await?;
    let mut done = Done { epoch: routes.epoch, lines: Vec::new() };
    if let Some(pgbouncer) = &config.pgbouncer
        && let Some(rendered) = pgbouncer::preview(pgbouncer, &routes).await
    {
        let old = install::text_of(&pgbouncer.file)?.unwrap_or_default();
        let path = pgbouncer.file.display().to_string();
        done.lines.extend(diff::unified(&path, &old, &rendered.text));
        done.lines.extend(rendered.notes);
    }
    let Some(haproxy) = &config.haproxy else { return Ok(done) };
    let rendered = haproxy::render(&config.cluster, haproxy, &routes);
    let states = haproxy::states_path(&haproxy.file);
    for (path, new) in [(&haproxy.file, &rendered.text), (&states, &rendered.closed)] {
        let old = install::text_of(path)?.unwrap_or_default();
        done.lines.extend(diff::unified(&path.display().to_string(), &old, new));
    }
    Ok(done)
}

async fn connect(config: &Config) -> anyhow::Result<Arc<dyn Store>> {
    let endpoints = config.etcd.endpoints.join(",");
    let store = tokio::time::timeout(READ_WITHIN, EtcdStore::connect(&config.etcd)).await;
    let store = store
        .with_context(|| format!("etcd at {endpoints} does not answer within {READ_WITHIN:?}"))?
        .with_context(|| {
            format!("connect to etcd at {endpoints}: check that it runs and --etcd")
        })?;
    Ok(Arc::new(store))
}

async fn routes(store: Arc<dyn Store>, config: &Config) -> anyhow::Result<Routes> {
    config.check()?;
    let installed = run::installed(config)?;
    if let Some(haproxy) = &config.haproxy {
        collisions::check(&config.cluster, haproxy)?;
    }
    let keys = Keys::of(&config.cluster);
    let view = tokio::time::timeout(READ_WITHIN, follow::read(store, keys.clone())).await;
    let view: View = view.context("etcd does not answer")?.context("read the cluster from etcd")?;
    let state = match &view.agreed {
        Agreed::State(state) => state.as_ref(),
        Agreed::Unreadable => {
            bail!("the state is of a newer format, or damaged: nothing is changed")
        }
        Agreed::Unheard | Agreed::Absent => bail!(
            "nothing is known under {}: check --cluster and --etcd, or create the cluster with `pgdeputy init`",
            keys.prefix()
        ),
    };
    ensure!(
        state.epoch >= installed.epoch,
        "the state is of epoch {}, and epoch {} was routed by already: nothing is changed; if the cluster was made anew, \
         remove the installed files",
        state.epoch,
        installed.epoch
    );
    let so_far = installed.as_spec();
    let spec = view.spec.as_deref().unwrap_or(&so_far);
    let nobody = Answers::new();
    let mut known = Known { spec, state: Some(state), reports: &view.reports, answers: &nobody };
    let members = route::route(&known, Some(&installed), clock::now()).members;
    let answers = ask::ask_once(&members).await;
    known.answers = &answers;
    Ok(route::route(&known, Some(&installed), clock::now()))
}

fn told(routes: &Routes) -> Vec<String> {
    let list = |members: &mut dyn Iterator<Item = &proto::MemberName>| {
        let names: Vec<&str> = members.map(proto::MemberName::as_str).collect();
        if names.is_empty() { "nobody".to_owned() } else { names.join(", ") }
    };
    let mut lines = vec![
        format!("epoch {}: writes to {}", routes.epoch, list(&mut routes.write.iter())),
        format!("reads from {}", list(&mut routes.read.iter())),
    ];
    lines.extend(
        routes
            .pools
            .iter()
            .map(|(pool, m)| format!("pool {pool}: reads from {}", list(&mut m.iter()))),
    );
    lines
}
