//! The endpoints as a load balancer sees them: over a real connection on loopback.

use proto::report::{DataDirectory, Opened, Server, Stream};
use proto::rpc::keeper::StatusRequest;
use proto::rpc::keeper::keeper_client::KeeperClient;
use proto::status::{MemberStatus, Positions};
use proto::{Epoch, Incarnation, Lsn, MemberReport, Moment, Timeline, WallTime};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::*;
use crate::lag::Behind;

fn report(server: Server) -> MemberReport {
    MemberReport {
        member: "a".parse().unwrap(),
        incarnation: Incarnation::from_random(1),
        understands_format: 1,
        pgdeputy_version: "0.1.0".into(),
        postgres_version: 150018,
        postgres_address: "127.0.0.1:5432".into(),
        http_address: "127.0.0.1:8008".into(),
        zone: None,
        promise: Epoch(7),
        data: DataDirectory::Present,
        system_identifier: None,
        complete: true,
        server,
        opened: None,
        confirmed: None,
        stream: Stream::None,
        seal: None,
        rejoin: None,
        unresponsive: None,
        ended: None,
        never_received: false,
        silence: None,
        standstill: None,
        hears: Default::default(),
        handover: None,
        leaving: false,
        frozen: None,
        problems: Default::default(),
    }
}

fn view(server: Server, serving: Serving) -> View {
    let positions =
        Some(Positions { timeline: Timeline(3), flush_lsn: Lsn(0x300_0060), replay_lsn: None });
    let asked = WallTime(0);
    let status = MemberStatus {
        report: report(server),
        positions,
        standbys: Vec::new(),
        serve_for_ms: None,
        lag: None,
        fresh: false,
        remote_apply: None,
        fenced_by: None,
        rejoin_progress: None,
        prepared: Default::default(),
        asked,
    };
    View {
        status,
        cluster: None,
        serving,
        serve_until: None,
        lag: None,
        fresh: false,
        synchronous: false,
    }
}

fn primary() -> View {
    let timeline = Timeline(3);
    let mut view = view(Server::Primary { timeline }, Serving::Primary);
    let opened = Opened { epoch: Epoch(7), timeline, start_lsn: Lsn(0x200_0000), restart: 0 };
    view.status.report.opened = Some(opened);
    view
}

fn standby(lag_bytes: Option<u64>) -> View {
    let mut view = view(Server::Standby { timeline: Timeline(3) }, Serving::Standby);
    view.lag = lag_bytes.map(|bytes| Behind { bytes, since: None });
    view
}

/// A keeper's endpoints on a free loopback port.
struct Endpoints {
    address: std::net::SocketAddr,
    view: watch::Sender<View>,
    stop: CancellationToken,
    agents: Arc<Agents>,
    task: tokio::task::JoinHandle<anyhow::Result<()>>,
}

impl Endpoints {
    async fn of(first: View) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (view, seen) = watch::channel(first);
        let stop = CancellationToken::new();
        let agents = Arc::new(Agents::default());
        let task = tokio::spawn(serve(listener, seen, agents.clone(), Router::new(), stop.clone()));
        Self { address, view, stop, agents, task }
    }

    /// Returns status code and body.
    async fn ask(&self, method: &str, path: &str) -> (u16, String) {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        let request = format!("{method} {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
    }

    async fn code(&self, path: &str) -> u16 {
        self.ask("GET", path).await.0
    }

    async fn codes(&self, expected: &[(&str, u16)]) {
        for (path, code) in expected {
            assert_eq!(self.code(path).await, *code, "{path}");
        }
    }
}

#[tokio::test]
async fn a_primary_is_found_under_all_its_paths_and_is_no_standby() {
    let a = Endpoints::of(primary()).await;
    for path in ["/", "/primary", "/master", "/leader", "/read-write"] {
        assert_eq!(a.code(path).await, 200, "{path}");
    }
    a.codes(&[("/read-only", 200), ("/health", 200), ("/readiness", 200), ("/liveness", 200)])
        .await;
    a.codes(&[("/replica", 503), ("/synchronous", 503), ("/asynchronous", 503), ("/cluster", 503)])
        .await;
    a.codes(&[("/nonsense", 404), ("/pgdeputy.keeper.v1.Other/Call", 404)]).await;
    let (_, body) = a.ask("GET", "/primary").await;
    assert_eq!(body, r#"{"role":"primary","state":"running","timeline":3,"epoch":7}"#);
}

#[tokio::test]
async fn head_and_options_are_answered_with_the_same_code_and_head_without_a_body() {
    let a = Endpoints::of(primary()).await;
    assert_eq!(a.ask("HEAD", "/primary").await, (200, String::new()));
    assert_eq!(a.ask("HEAD", "/replica").await, (503, String::new()));
    assert_eq!(a.ask("OPTIONS", "/primary").await.0, 200);
    assert_eq!(a.ask("OPTIONS", "/replica").await.0, 503);
    assert_eq!(a.ask("POST", "/primary").await.0, 405);
}

#[tokio::test]
async fn a_primary_whose_right_has_run_out_is_no_primary_though_nobody_replaced_the_view() {
    let now = store::clock::now();
    let over = Endpoints::of(View { serve_until: Some(now), ..primary() }).await;
    over.codes(&[("/primary", 503), ("/read-only", 503), ("/readiness", 503), ("/health", 200)])
        .await;
    assert!(over.ask("GET", "/primary").await.1.contains(r#""role":"nobody""#));
    let later = Some(now + Duration::from_secs(60));
    over.view.send_replace(View { serve_until: later, ..primary() });
    over.codes(&[("/primary", 200), ("/read-only", 200)]).await;
    let status: MemberStatus = serde_json::from_str(&over.ask("GET", "/status").await.1).unwrap();
    assert!((50_000..=60_000).contains(&status.serve_for_ms.unwrap()), "{status:?}");
    assert!(status.asked > WallTime(0));
}

#[tokio::test]
async fn a_fenced_member_serves_nobody_but_its_keeper_lives() {
    let fenced = Endpoints::of(view(Server::Stopped, Serving::Nobody)).await;
    fenced
        .codes(&[("/primary", 503), ("/replica", 503), ("/read-only", 503), ("/health", 503)])
        .await;
    fenced.codes(&[("/readiness", 503), ("/liveness", 200), ("/status", 200)]).await;
}

#[tokio::test]
async fn a_standby_beyond_the_asked_lag_or_of_unknown_lag_is_refused() {
    let near = Endpoints::of(standby(Some(10 << 20))).await;
    near.codes(&[("/replica", 200), ("/replica?lag=10MB", 200), ("/replica?lag=10485760", 200)])
        .await;
    near.codes(&[
        ("/replica?lag=10485759", 503),
        ("/replica?lag=9MB", 503),
        ("/read-only?lag=1kB", 503),
    ])
    .await;
    near.codes(&[("/replica?lag=ten", 400), ("/replica?lag=99999999999999999999", 400)]).await;
    near.codes(&[
        ("/primary", 503),
        ("/asynchronous", 200),
        ("/synchronous", 503),
        ("/readiness", 200),
    ])
    .await;
    let unknown = Endpoints::of(standby(None)).await;
    unknown.codes(&[("/replica", 200), ("/replica?lag=1TB", 503)]).await;
    let synchronous = Endpoints::of(View { synchronous: true, ..standby(None) }).await;
    synchronous.codes(&[("/sync", 200), ("/async", 503)]).await;
}

#[tokio::test]
async fn a_limit_in_time_is_judged_when_it_is_asked_and_an_idle_standby_has_no_lag() {
    let now = store::clock::now();
    let behind = |bytes, since| View { lag: Some(Behind { bytes, since }), ..standby(None) };
    let late = Endpoints::of(behind(100, Some(now - Duration::from_secs(60)))).await;
    late.codes(&[("/replica?lag=2min", 200), ("/replica?lag=30s", 503), ("/replica", 200)]).await;
    late.codes(&[("/replica?lag=1MB&lag=2min", 200), ("/replica?lag=1MB&lag=30s", 503)]).await;
    late.codes(&[("/replica?lag=50&lag=2min", 503), ("/replica?lag=soon", 400)]).await;
    late.view.send_replace(behind(0, None));
    late.codes(&[("/replica?lag=1ms", 200), ("/replica?lag=0", 200)]).await;
    assert!(late.ask("GET", "/status").await.1.contains(r#""lag":{"bytes":0,"ms":0}"#));
}

#[tokio::test]
async fn a_position_is_asked_of_what_is_replayed_and_of_what_a_primary_has_flushed() {
    let mut replayed = standby(None);
    replayed.status.positions.as_mut().unwrap().replay_lsn = Some(Lsn(0x300_0010));
    let b = Endpoints::of(replayed).await;
    b.codes(&[("/replica?lsn=0/3000010", 200), ("/replica?lsn=0/3000011", 503)]).await;
    b.codes(&[("/read-only?lsn=0/3000010", 200), ("/replica?lsn=here", 400)]).await;
    let a = Endpoints::of(primary()).await;
    a.codes(&[("/read-only?lsn=0/3000060", 200), ("/primary?lsn=0/3000061", 503)]).await;
    a.codes(&[("/replica?lsn=0/1", 503)]).await;
}

#[tokio::test]
async fn only_the_primary_and_a_fresh_standby_answer_fresh() {
    let a = Endpoints::of(primary()).await;
    a.codes(&[("/fresh", 200), ("/read-only-sync", 200), ("/quorum", 503)]).await;
    let b = Endpoints::of(standby(Some(0))).await;
    b.codes(&[("/fresh", 503), ("/replica?replication_state=streaming", 503)]).await;
    b.view.send_replace(View { fresh: true, synchronous: true, ..standby(None) });
    b.codes(&[("/fresh", 200), ("/quorum", 200), ("/read-only-sync", 200)]).await;
}

#[tokio::test]
async fn an_agent_hears_on_the_same_port_what_is_on_purpose() {
    let b = Endpoints::of(standby(None)).await;
    let ask = async || {
        let mut stream = TcpStream::connect(b.address).await.unwrap();
        stream.write_all(b"agent pgdeputy_read@/run/h.sock\n").await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    };
    assert_eq!(ask().await, "ready up\n");
    b.view.send_replace(view(Server::Stopped, Serving::Nobody));
    assert_eq!(ask().await, "unchanged\n", "it is down, and nobody meant it to be");
    let mut leaving = view(Server::Stopped, Serving::Nobody);
    leaving.status.report.leaving = true;
    let begun = store::clock::now();
    let told = b.agents.farewell();
    b.view.send_replace(leaving);
    let (answer, ()) = tokio::join!(ask(), told);
    assert_eq!(answer, "maint\n");
    let waited = store::clock::now().since(begun);
    assert!(waited < Duration::from_millis(1000), "the farewell ends when all know: {waited:?}");
    b.codes(&[("/replica", 503), ("/liveness", 200)]).await;
}

#[tokio::test]
async fn metrics_name_what_is_known_and_leave_out_what_is_not() {
    let text = metrics::render(&standby(Some(5)), Moment::default());
    for line in [
        "pgdeputy_lag_bytes 5",
        "pgdeputy_lag_seconds 0.000",
        "pgdeputy_standby 1",
        "pgdeputy_primary 0",
        "pgdeputy_flush_lsn_bytes 50331744",
    ] {
        assert!(text.lines().any(|l| l == line), "{line} is not in\n{text}");
    }
    assert!(!text.contains("pgdeputy_replay_lsn_bytes") && !text.contains("serve_for"), "{text}");
    let a = Endpoints::of(primary()).await;
    assert!(a.ask("GET", "/metrics").await.1.contains("\npgdeputy_primary 1\n"));
}

#[tokio::test]
async fn grpc_answers_on_the_same_port() {
    let a = Endpoints::of(primary()).await;
    let mut client = KeeperClient::connect(format!("http://{}", a.address)).await.unwrap();
    let reply = client.status(StatusRequest {}).await.unwrap().into_inner();
    let status: MemberStatus = serde_json::from_str(&reply.status_json).unwrap();
    assert_eq!(status.report, primary().status.report);
}

#[tokio::test]
async fn it_ends_on_request_though_a_client_never_finishes_its_question() {
    let a = Endpoints::of(primary()).await;
    let mut idle = TcpStream::connect(a.address).await.unwrap();
    idle.write_all(b"GET /primary HTTP/1.1\r\n").await.unwrap();
    assert_eq!(a.code("/primary").await, 200);
    a.stop.cancel();
    tokio::time::timeout(Duration::from_secs(5), a.task).await.unwrap().unwrap().unwrap();
}
