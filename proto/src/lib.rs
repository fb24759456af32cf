//! What processes say to one another: the documents in etcd, the words they are made of, and the gRPC schema.
//!
//! Everything here is a value. Nothing reads a clock, a file or a socket.

pub mod address;
pub mod assignment;
pub mod canary;
pub mod cfg;
pub mod document;
pub mod drill;
pub mod drill_lock;
pub mod drill_plan;
pub mod echo;
pub mod explanation;
pub mod history;
pub mod lsn;
pub mod names;
pub mod numbers;
pub mod orders;
pub mod proxy;
pub mod rejoin;
pub mod report;
pub mod request;
pub mod right;
pub mod rpc;
pub mod schedule;
pub mod size;
pub mod spec;
pub mod state;
pub mod status;
pub mod time;
pub mod timeline;
pub mod topology;

pub use address::HostPort;
pub use assignment::Assignment;
pub use cfg::Cfg;
pub use document::{DecodeError, Document};
pub use lsn::{Lsn, WalPosition};
pub use names::{ClusterName, MemberName, PoolName};
pub use numbers::{CfgId, Epoch, Incarnation, StateNumber, SystemIdentifier};
pub use report::MemberReport;
pub use request::{Request, RequestId};
pub use right::{LeaderKey, PrimaryKey};
pub use spec::ClusterSpec;
pub use state::{ClusterState, Phase};
pub use time::{Moment, WallTime};
pub use timeline::{Timeline, TimelineHistory};
