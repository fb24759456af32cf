//! A simulated router: the product's `route` on a view that its watch keeps up to date.

use std::collections::BTreeMap;
use std::time::Duration;

use proto::document::Reader;
use proto::{ClusterSpec, ClusterState, MemberName, MemberReport};
use proxy_config::route::{Answers, Known, Routes, route};
use store::{StoreError, WatchEvent};

use super::executor::{Node, Sim};
use super::net::Host;
use super::read::Remembered;

impl Sim {
    /// Starts the router; it reads its last routes back, as from the file that it installed.
    pub fn router_start(&self) {
        let proc = self.start_process(Node::Router);
        self.with(|w| w.router = Some(proc));
        self.spawn(proc, run(self.host(Node::Router)));
    }
}

#[derive(Default)]
struct View {
    spec: ClusterSpec,
    state: Option<ClusterState>,
    reports: BTreeMap<MemberName, MemberReport>,
}

async fn run(host: Host) {
    loop {
        let _ = follow(&host).await;
        host.sleep(Duration::from_millis(200)).await;
    }
}

async fn follow(host: &Host) -> Result<(), StoreError> {
    let sim = &host.sim;
    let keys = sim.with(|w| w.keys.clone());
    let snapshot = sim.etcd_read(host.node, keys.prefix()).await?;
    let mut view = View::default();
    for (key, entry) in &snapshot.entries {
        sim.with(|w| view.put(&mut w.read, (key, keys.strip(key)), Some(&entry.value)));
    }
    install(host, &view);
    let mut events = sim.etcd_watch(host.node, keys.prefix(), snapshot.revision + 1).await?;
    while let Some(batch) = events.recv().await {
        for event in &batch {
            let value = match event {
                WatchEvent::Put { entry, .. } => Some(&entry.value),
                WatchEvent::Delete { .. } => None,
            };
            let key = (event.key(), keys.strip(event.key()));
            sim.with(|w| view.put(&mut w.read, key, value));
        }
        install(host, &view);
    }
    Ok(())
}

impl View {
    fn put(
        &mut self,
        read: &mut Remembered,
        (whole, key): (&str, Option<&str>),
        value: Option<&Vec<u8>>,
    ) {
        let key = key.unwrap_or_default();
        if key == "spec" {
            self.spec = value.and_then(|v| read.read(whole, v).ok()).unwrap_or_default();
        }
        if key == "state" {
            self.state = value.and_then(|v| read.read(whole, v).ok());
        }
        let Some(member) = key.strip_prefix("members/").and_then(|m| m.parse().ok()) else {
            return;
        };
        match value.and_then(|v| read.read(whole, v).ok()) {
            Some(report) => drop(self.reports.insert(member, report)),
            None => drop(self.reports.remove(&member)),
        }
    }
}

fn install(host: &Host, view: &View) {
    let sim = &host.sim;
    let previous = sim.with(|w| w.routes.clone());
    let forgets = sim.mutant("router-takes-a-lower-epoch");
    // Lag decides about reads only, of which the simulator has none: no keeper answers.
    let (state, answers) = (view.state.as_ref(), Answers::new());
    let known = Known { spec: &view.spec, state, reports: &view.reports, answers: &answers };
    let next = route(&known, previous.as_ref().filter(|_| !forgets), host.now());
    if previous.as_ref().is_some_and(|p| p.leads_as(&next)) {
        return;
    }
    sim.oracle_routes(previous.as_ref(), &next);
    sim.trace(|| format!("routes: epoch {}, writes to {:?}", next.epoch, next.write));
    sim.with(|w| w.routes = Some(next));
}

/// Returns the member that gets writes.
pub fn write_target(routes: Option<&Routes>, names: &[MemberName]) -> Option<usize> {
    let write = routes?.write.as_ref()?;
    names.iter().position(|n| n == write)
}
