//! Keeps HAProxy in line with the agreed state: a write port that leads to the primary, a read port to standbys.
//!
//! The one rule: a router that has seen epoch n never routes writes by an epoch below n (I19).

mod follow;
pub mod haproxy;
mod install;
mod presence;
pub mod push;
pub mod route;
mod run;

use std::path::PathBuf;

use proto::ClusterName;

pub use run::{run, run_on};

/// What one proxy-config is told at start.
#[derive(Debug, Clone)]
pub struct Config {
    pub cluster: ClusterName,
    /// Where etcd is, and as whom it is asked.
    pub etcd: store::EtcdAccess,
    /// The file that HAProxy is started with: all of it is written here.
    pub haproxy_config: PathBuf,
    /// HAProxy's runtime socket, which the file makes HAProxy open.
    pub haproxy_socket: PathBuf,
    pub write_port: u16,
    pub read_port: u16,
    /// The address that HAProxy listens on, such as `127.0.0.1` or `*`.
    pub bind: String,
    /// The command that makes HAProxy read its file again, run by `sh -c`.
    pub reload: Option<String>,
    /// Tells apart the proxy-configs of one cluster.
    pub id: String,
}
