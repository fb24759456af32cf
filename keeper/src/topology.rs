//! The topology for routers of others, as a stream over gRPC: the keeper's own view of the cluster, which it also has while
//! etcd is away, and how far the readers are, asked of their keepers.
//!
//! The one rule (I19): an epoch below one that was sent is never sent.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use proto::rpc::keeper::StatusRequest;
use proto::rpc::keeper::keeper_client::KeeperClient;
use proto::rpc::topology::topology_server::{Topology as Service, TopologyServer};
use proto::rpc::topology::{Member, Reader, View, WatchRequest};
use proto::status::MemberStatus;
use proto::topology::{Epochs, Place, Topology};
use proto::{ClusterName, Epoch, MemberName};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tonic::server::NamedService;
use tonic::transport::Endpoint;
use tonic::{Request, Response, Status};

use crate::facts::ClusterView;

/// Positions move without any change in etcd; a router needs no finer lag than this to choose whom it reads from.
const POSITIONS_EVERY: Duration = Duration::from_secs(1);

/// A keeper answers within a millisecond or two. One that does not is shown without a position.
const ANSWER_WITHIN: Duration = Duration::from_millis(300);

/// A caller that does not read is not written to: it gets the newest view once it reads on.
const UNREAD: usize = 1;

/// Each costs a question to every keeper in a second. Routers share one stream, and there are not many of them.
const MOST_STREAMS: usize = 64;

/// What the service answers from.
#[derive(Clone)]
pub struct Source {
    pub cluster: ClusterName,
    pub view: watch::Receiver<Arc<ClusterView>>,
}

/// Returns the service as routes, to be served on the HTTP port.
pub fn routes(source: Source) -> Router {
    let streams = Arc::new(tokio::sync::Semaphore::new(MOST_STREAMS));
    let service = TopologyServer::new(Served { source, streams });
    Router::new().route_service(
        &format!("/{}/{{*call}}", <TopologyServer<Served> as NamedService>::NAME),
        service,
    )
}

struct Served {
    source: Source,
    streams: Arc<tokio::sync::Semaphore>,
}

#[tonic::async_trait]
impl Service for Served {
    type WatchStream = ReceiverStream<Result<View, Status>>;

    async fn watch(
        &self,
        asked: Request<WatchRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let place = Arc::clone(&self.streams).try_acquire_owned().map_err(|_| {
            Status::resource_exhausted(format!(
                "{MOST_STREAMS} callers watch this keeper: ask another one"
            ))
        })?;
        let (views, stream) = mpsc::channel(UNREAD);
        let (source, seen) = (self.source.clone(), Epoch(asked.into_inner().epoch));
        tokio::spawn(async move {
            send(source, seen, views).await;
            drop(place);
        });
        Ok(Response::new(ReceiverStream::new(stream)))
    }
}

/// Sends until the caller hangs up or the keeper ends.
async fn send(mut source: Source, seen: Epoch, views: mpsc::Sender<Result<View, Status>>) {
    let mut epochs = Epochs::from(seen);
    let (mut before, mut sent) = (None, None);
    let mut answers = BTreeMap::new();
    loop {
        let topology = {
            let known = source.view.borrow_and_update();
            known.state.as_ref().map(|s| Topology::of(s, &known.reports, before.as_ref()))
        };
        if let Some(topology) = topology.filter(|t| epochs.admit(t.epoch)) {
            let view = view(&source.cluster, &topology, &answers);
            if sent.as_ref() != Some(&view) {
                if views.send(Ok(view.clone())).await.is_err() {
                    return;
                }
                sent = Some(view);
            }
            before = Some(topology);
        }
        // A change of primary is not held up by keepers that are slow to say where they stand.
        tokio::select! {
            () = views.closed() => return,
            changed = source.view.changed() => if changed.is_err() { return },
            asked = ask_all(before.as_ref()) => answers = asked,
        }
    }
}

type Answers = BTreeMap<MemberName, MemberStatus>;

/// Returns what the members' keepers say of where they stand, after a pause.
async fn ask_all(topology: Option<&Topology>) -> Answers {
    tokio::time::sleep(POSITIONS_EVERY).await;
    let mut asked = JoinSet::new();
    for (name, place) in topology.iter().flat_map(|t| &t.members) {
        if let Some(address) = place.http.clone() {
            let name = name.clone();
            asked.spawn(async move {
                let answer = timeout(ANSWER_WITHIN, ask(&address)).await.ok()?;
                let status = answer.ok().filter(|s| s.report.member == name)?;
                Some((name, status))
            });
        }
    }
    asked.join_all().await.into_iter().flatten().collect()
}

async fn ask(address: &str) -> anyhow::Result<MemberStatus> {
    let channel = Endpoint::from_shared(format!("http://{address}"))?.connect().await?;
    let answer = KeeperClient::new(channel).status(StatusRequest {}).await?.into_inner();
    Ok(serde_json::from_str(&answer.status_json)?)
}

fn view(cluster: &ClusterName, topology: &Topology, answers: &Answers) -> View {
    let primary = topology.primary.as_ref();
    let positions = |name: &MemberName| answers.get(name).and_then(|s| s.positions);
    let end = primary.and_then(positions).map(|p| p.flush_lsn);
    let reader = |name: &MemberName, place: &Place| {
        let replayed = positions(name).and_then(|p| p.replay_lsn);
        Reader {
            member: Some(member(name, place)),
            lag_bytes: end.zip(replayed).map(|(end, at)| end.bytes_ahead_of(at)),
            replay_lsn: replayed.map(|lsn| lsn.to_string()),
            lag_ms: answers.get(name).and_then(|s| s.lag).map(|lag| lag.ms),
        }
    };
    View {
        cluster: cluster.to_string(),
        epoch: topology.epoch.0,
        primary: primary.and_then(|p| Some(member(p, topology.members.get(p)?))),
        readers: topology.readers().map(|(name, place)| reader(name, place)).collect(),
    }
}

fn member(name: &MemberName, place: &Place) -> Member {
    Member {
        name: name.to_string(),
        address: place.postgres.clone().unwrap_or_default(),
        zone: place.zone.clone().unwrap_or_default(),
    }
}
