//! The tonic code generated from `schema/*.proto`.

#![allow(clippy::all, clippy::pedantic)]

/// The keeper's gRPC service.
pub mod keeper {
    tonic::include_proto!("pgdeputy.keeper.v1");
}

/// The keeper's stream of the topology, for routers of others.
pub mod topology {
    tonic::include_proto!("pgdeputy.topology.v1");
}
