//! What operators plan: a switchover that waits for proxies, one for later, one out of a zone; what they are told before;
//! and how the routers of others hear of it.

#![allow(clippy::unwrap_used, reason = "a test may panic, also in its helpers")]

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use chaos::lab::CLUSTER;
use proto::document::encode;
use proto::history::HistoryKind;
use proto::proxy::{Clients, ProxyReport};
use proto::request::{RequestId, RequestOutcome};
use proto::rpc::topology::topology_client::TopologyClient;
use proto::rpc::topology::{View, WatchRequest};
use proto::state::SwitchoverStep;
use proto::{ClusterName, ClusterState, Epoch, MemberName};
use serde_json::Value;
use store::etcd::EtcdStore;
use store::keys::Keys;
use store::{LeaseId, Operation, Store, Txn, clock};
use system_tests::{Scene, pgdeputy, scene};
use tokio::sync::watch;
use tokio::time::timeout;

/// Far above what any step takes, for a machine under load.
const BOUND: Duration = Duration::from_secs(60);

/// Runs `pgdeputy` on the scene's cluster; returns its exit status, what it said as JSON, and its complaint.
async fn run(scene: &Scene, args: &[&str]) -> (Option<i32>, Value, String) {
    let mut command = tokio::process::Command::new(pgdeputy());
    command.arg(args[0]).args(["--cluster", CLUSTER, "--json"]);
    command.args(["--etcd", &scene.lab.etcd_urls().join(",")]).args(&args[1..]);
    let output = timeout(BOUND, command.output()).await.expect("it ends").unwrap();
    let said = serde_json::from_slice(&output.stdout).unwrap_or(Value::Null);
    let complaint = String::from_utf8_lossy(&output.stderr).into_owned();
    eprintln!("{args:?}: {:?} {said} {complaint}", output.status.code());
    (output.status.code(), said, complaint)
}

async fn state(scene: &Scene) -> ClusterState {
    scene.lab.cluster().await.unwrap().state.expect("it is founded")
}

/// A proxy of which nothing exists but its report, under a lease as a real one's.
struct Proxy {
    store: Arc<EtcdStore>,
    keys: Keys,
    lease: LeaseId,
}

impl Proxy {
    async fn start(scene: &Scene) -> Self {
        let store = Arc::new(EtcdStore::connect(&scene.lab.etcd_urls()[..]).await.unwrap());
        let cluster: ClusterName = CLUSTER.parse().unwrap();
        let lease = store.grant(Duration::from_secs(600)).await.unwrap().0;
        let proxy = Self { store, keys: Keys::of(&cluster), lease };
        proxy.says(None).await;
        proxy
    }

    /// Returns the keys of what was asked for and not answered yet.
    async fn asked(&self) -> Vec<String> {
        let all = self.store.read(self.keys.prefix()).await.unwrap().entries;
        let below = |key: &str| key[self.keys.prefix().len()..].to_owned();
        let keys = all.keys().map(|key| below(key));
        keys.filter(|key| key.starts_with("requests/") || key.starts_with("scheduled/")).collect()
    }

    async fn says(&self, held: Option<RequestId>) {
        let refusing = [("127.0.0.1:6433".to_owned(), "it does not answer RELOAD".to_owned())];
        let report = ProxyReport {
            id: "p1".into(),
            epoch: Epoch(1),
            clients: Clients::Held,
            held,
            refusing: refusing.into(),
        };
        let (key, value) = (self.keys.proxy("p1"), encode(&report).into_bytes());
        let put = Operation::Put { key, value, lease: Some(self.lease) };
        self.store.commit(Txn { when: vec![], then: vec![put] }).await.unwrap();
    }
}

/// Waits until the hold of a switchover begins, and returns whose.
async fn hold_begins(scene: &Scene) -> RequestId {
    let found = scene.lab.await_cluster("the hold begins", BOUND, |cluster| {
        let switchover = cluster.state.as_ref()?.switchover()?;
        matches!(switchover.step, SwitchoverStep::Hold { .. }).then(|| switchover.request.clone())
    });
    found.await.unwrap()
}

#[tokio::test]
async fn a_switchover_waits_for_a_proxy_to_hold_its_clients_or_comes_to_nothing() {
    let scene = scene(|_| {}).await;
    scene.lab.wait_redundant(BOUND).await.unwrap();
    let (before, primary) = scene.lab.cluster().await.unwrap().service().unwrap();
    let target = scene.lab.members().into_iter().find(|m| *m != primary).unwrap();
    let proxy = Proxy::start(&scene).await;

    // What cannot work is said beforehand, with the leader's own words, and nothing is written.
    let (code, said, _) = run(&scene, &["switchover", "--dry-run", "--to", "stranger"]).await;
    assert_eq!((code, &said["possible"]), (Some(1), &false.into()));
    assert!(said["reason"].as_str().unwrap().contains("there is no member stranger"), "{said}");
    let (code, said, _) = run(&scene, &["switchover", "--dry-run", "--to", target.as_str()]).await;
    assert_eq!((code, &said["to"]), (Some(0), &target.as_str().into()));
    assert_eq!(said["holding"], serde_json::json!(["p1"]));
    assert!(
        said["cut"][0].as_str().unwrap().starts_with("PgBouncer 127.0.0.1:6433 of p1"),
        "{said}"
    );
    assert!(said["members"].as_array().unwrap().iter().all(|m| m["left_bytes"].is_u64()), "{said}");
    let kinds = ["caught-up", "rewind-back", "slots", "disk"];
    let checks = |said: &Value| said["checks"].as_array().unwrap().clone();
    assert!(kinds.iter().all(|k| checks(&said).iter().any(|c| c["check"] == *k)), "{said}");
    // A keeper looks at its disks every 5 s, and at its slots once its member has settled.
    let asked = clock::now();
    let mut said = said;
    while !checks(&said).iter().all(|c| c["ok"] == true) {
        assert!(clock::now() < asked + BOUND, "not all is ready: {said}");
        tokio::time::sleep(Duration::from_millis(200)).await;
        said = run(&scene, &["switchover", "--dry-run", "--to", target.as_str()]).await.1;
    }
    let after = state(&scene).await;
    assert_eq!(
        (proxy.asked().await, after.requests),
        (vec![], vec![]),
        "a dry run asks for nothing"
    );
    assert_eq!(scene.lab.cluster().await.unwrap().service(), Some((before, primary.clone())));

    // A proxy that never holds its clients: the primary serves on in its epoch.
    let asked = ["switchover", "--to", target.as_str(), "--hold", "500ms"];
    let (code, _, complaint) = run(&scene, &asked).await;
    assert_eq!(code, Some(1));
    assert!(
        complaint.contains("came to nothing: p1 did not get hold of all clients"),
        "{complaint}"
    );
    let cluster = scene.lab.cluster().await.unwrap();
    assert_eq!(cluster.service(), Some((before, primary.clone())));
    let notes = &cluster.history.last().unwrap().notes;
    assert!(notes.iter().any(|n| n.text.contains("is called off")), "{notes:?}");

    // One that does: the primary is stopped only then.
    let holding = async {
        let request = hold_begins(&scene).await;
        assert_eq!(scene.lab.cluster().await.unwrap().service(), Some((before, primary.clone())));
        proxy.says(Some(request)).await;
    };
    let asked = ["switchover", "--to", target.as_str()];
    let ((code, said, _), ()) = tokio::join!(run(&scene, &asked), holding);
    assert_eq!((code, &said["to"]), (Some(0), &target.as_str().into()));
    let phases: Vec<&str> =
        said["phases"].as_array().unwrap().iter().map(|p| p["name"].as_str().unwrap()).collect();
    assert_eq!(phases, ["checkpoint", "hold", "stop", "seal", "choose", "promote"]);
    assert!(said["writes_away_ms"].as_i64().unwrap() > 0);

    // One that is gone is not waited for.
    proxy.store.revoke(proxy.lease).await.unwrap();
    scene.lab.wait_redundant(BOUND).await.unwrap();
    let (code, said, _) = run(&scene, &["switchover", "--to", primary.as_str()]).await;
    assert_eq!((code, &said["to"]), (Some(0), &primary.as_str().into()));
}

/// What a router of others has heard over gRPC from the keeper of `member`, as it comes.
async fn listen(scene: &Scene, member: &MemberName) -> watch::Receiver<Vec<View>> {
    let address = scene.lab.cluster().await.unwrap().reports[member].http_address.clone();
    let mut client = TopologyClient::connect(format!("http://{address}")).await.unwrap();
    let mut stream = client.watch(WatchRequest { epoch: 0 }).await.unwrap().into_inner();
    let (tell, heard) = watch::channel(Vec::new());
    tokio::spawn(async move {
        while let Ok(Some(view)) = stream.message().await {
            tell.send_modify(|all: &mut Vec<View>| all.push(view));
        }
    });
    heard
}

/// Waits for a view of `primary` in `epoch`.
async fn heard_of(heard: &mut watch::Receiver<Vec<View>>, epoch: u64, primary: &MemberName) {
    let is_it = |v: &View| {
        v.epoch == epoch && v.primary.as_ref().is_some_and(|p| p.name == primary.as_str())
    };
    let waiting = heard.wait_for(|all| all.iter().any(is_it));
    timeout(BOUND, waiting).await.expect("it is told in time").expect("the stream lives");
}

#[tokio::test]
async fn a_scheduled_switchover_happens_once_a_zone_is_left_and_routers_of_others_hear_of_all() {
    let zones = ["north", "north", "south"].map(str::to_owned);
    let mut scene = scene(|config| config.zones = zones.to_vec()).await;
    scene.lab.wait_redundant(BOUND).await.unwrap();
    let (first, primary) = scene.lab.cluster().await.unwrap().service().unwrap();
    let members = scene.lab.members();
    let mut others = members.iter().filter(|m| **m != primary);
    let (target, witness) = (others.next().unwrap().clone(), others.next().unwrap().clone());
    let mut heard = listen(&scene, &witness).await;
    heard_of(&mut heard, first.epoch.0, &primary).await;
    // Nobody writes: the readers lag by nothing, however old the last commit is.
    let has_no_lag =
        |v: &View| v.readers.len() == 2 && v.readers.iter().all(|r| r.lag_ms == Some(0));
    let waiting = heard.wait_for(|all| all.iter().any(has_no_lag));
    timeout(BOUND, waiting).await.expect("their lag is told in time").unwrap();

    // One that is cancelled, and one whose leader is killed before its time.
    let at = proto::WallTime(clock::wall().0 + 4_000).to_string();
    let (_, cancelled, _) =
        run(&scene, &["switchover", "--at", &at, "--to", witness.as_str()]).await;
    let (_, kept, _) = run(&scene, &["switchover", "--at", &at, "--to", target.as_str()]).await;
    let id = |put: &Value| put["scheduled"]["id"].as_str().unwrap().to_owned();
    let (code, ..) = run(&scene, &["switchover", "--cancel", &id(&cancelled)]).await;
    assert_eq!(code, Some(0));
    let (code, _, complaint) = run(&scene, &["switchover", "--cancel", &id(&cancelled)]).await;
    assert!(code == Some(1) && complaint.contains("is scheduled"), "{complaint}");
    let (_, listed, _) = run(&scene, &["switchover", "--list"]).await;
    assert_eq!(listed["scheduled"].as_array().unwrap().len(), 1);
    assert_eq!(listed["scheduled"][0]["id"], kept["scheduled"]["id"]);
    let leader = scene.lab.leading_sentinel().await.unwrap().expect("one leads");
    scene.lab.kill_sentinel(&leader).await.unwrap();
    let (second, now) = scene.lab.wait_served_after(first, BOUND).await.unwrap();
    assert_eq!((second.epoch, &now), (first.epoch.next(), &target));
    assert!(clock::wall().to_string() >= at, "not before its time");
    let answered = state(&scene).await.requests;
    let of = |id: &str| answered.iter().find(|r| r.id.0 == id);
    assert!(matches!(of(&id(&kept)).unwrap().outcome, RequestOutcome::Done { .. }));
    assert!(of(&id(&cancelled)).is_none());
    let (_, listed, _) = run(&scene, &["switchover", "--list"]).await;
    assert_eq!(listed["scheduled"].as_array().unwrap().len(), 0);
    heard_of(&mut heard, second.epoch.0, &target).await;

    scene.lab.wait_redundant(BOUND).await.unwrap();
    let outside = evacuate(&scene, &target).await;
    heard_of(&mut heard, second.epoch.0 + 1, &outside).await;

    // A failover. It is heard from the keeper of a member that lives.
    scene.lab.wait_redundant(BOUND).await.unwrap();
    let (third, primary) = scene.lab.cluster().await.unwrap().service().unwrap();
    let witness = scene.lab.members().into_iter().find(|m| *m != primary).unwrap();
    let mut heard = listen(&scene, &witness).await;
    heard_of(&mut heard, third.epoch.0, &primary).await;
    scene.lab.kill_member(&primary).unwrap();
    let (last, survivor) = scene.lab.wait_served_after(third, BOUND).await.unwrap();
    heard_of(&mut heard, last.epoch.0, &survivor).await;
    let epochs: Vec<u64> = heard.borrow().iter().map(|v| v.epoch).collect();
    assert!(epochs.is_sorted(), "no router goes backwards: {epochs:?}");
    let (_, shown, _) = run(&scene, &["topology"]).await;
    assert_eq!(shown["primary"], survivor.as_str());
    assert_eq!(shown["epoch"], last.epoch.0);
    let is_told = |m: &Value| m["role"] != "standby" || m["lag_ms"].is_u64();
    assert!(shown["members"].as_array().unwrap().iter().all(is_told), "{shown}");

    // Every change was a planned one but the last.
    let history = scene.lab.history().await.unwrap();
    let kinds: Vec<_> = history.iter().filter(|r| r.epoch > first.epoch).map(|r| r.kind).collect();
    let (planned, failed_over) = (HistoryKind::Switchover, HistoryKind::Failover);
    assert_eq!(kinds, [planned, planned, failed_over]);
}

/// Has the zone of `primary` evacuated; returns who took over. Of the other zone there is nothing to evacuate.
async fn evacuate(scene: &Scene, primary: &MemberName) -> MemberName {
    let reports = scene.lab.cluster().await.unwrap().reports;
    let zone_of = |m: &MemberName| reports[m].zone.clone().unwrap();
    let (zone, zones) = (zone_of(primary), reports.keys().map(zone_of).collect::<BTreeSet<_>>());
    let other = zones.iter().find(|z| **z != zone).unwrap();
    let (_, _, complaint) = run(scene, &["switchover", "--away-from-zone", other]).await;
    assert!(complaint.contains("nothing has to leave"), "{complaint}");
    let (code, said, _) = run(scene, &["switchover", "--away-from-zone", &zone]).await;
    assert_eq!(code, Some(0));
    let now: MemberName = said["to"].as_str().unwrap().parse().unwrap();
    assert_ne!(zone_of(&now), zone);
    now
}
