//! The tonic code generated from `schema/*.proto`.

#![allow(clippy::all, clippy::pedantic)]

/// The keeper's gRPC service.
pub mod keeper {
    tonic::include_proto!("pgdeputy.keeper.v1");
}
