//! The keeper's gRPC service: the same answers as HTTP, for tools. Safety never depends on it.

use axum::Router;
use proto::rpc::keeper::keeper_server::{Keeper, KeeperServer};
use proto::rpc::keeper::{StatusReply, StatusRequest};
use tokio::sync::watch;
use tonic::server::NamedService;
use tonic::{Request, Response, Status};

use crate::view::View;

/// Returns the service as routes, to be served on the HTTP port. Other paths are left to their own router.
pub fn routes(view: watch::Receiver<View>) -> Router {
    // Not tonic's own `Routes`: its fallback would answer every unknown HTTP path in gRPC's way.
    let service = KeeperServer::new(Service { view });
    Router::new().route_service(
        &format!("/{}/{{*call}}", <KeeperServer<Service> as NamedService>::NAME),
        service,
    )
}

struct Service {
    view: watch::Receiver<View>,
}

#[tonic::async_trait]
impl Keeper for Service {
    async fn status(&self, _: Request<StatusRequest>) -> Result<Response<StatusReply>, Status> {
        let status = self.view.borrow().status_at(store::clock::now(), store::clock::wall());
        let status_json =
            serde_json::to_string(&status).map_err(|e| Status::internal(e.to_string()))?;
        Ok(Response::new(StatusReply { status_json }))
    }
}
