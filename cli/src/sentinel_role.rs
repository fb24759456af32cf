//! `sentinel`: checks what a sentinel is started with, and runs it.

use clap::Args;
use proto::{ClusterName, HostPort};
use sentinel::{Clusters, Config, Drills};

use crate::drillable::{DrillableArgs, is_managed};
use crate::failure::Failure;
use crate::runtime;
use crate::target::StoreArgs;

#[derive(Debug, Args)]
pub struct SentinelArgs {
    #[command(flatten)]
    store: StoreArgs,
    /// Name of a cluster to care for; may be given several times
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    cluster: Vec<ClusterName>,
    /// Care for every cluster of this etcd, also those created later
    #[arg(long)]
    all_clusters: bool,
    /// Where /health and /metrics are served [default: nowhere]
    #[arg(long, value_name = "ADDR:PORT")]
    listen: Option<HostPort>,
    /// What tells this sentinel from the others [default: host name and process id]
    #[arg(long, value_name = "ID")]
    id: Option<String>,
    #[command(flatten)]
    drillable: DrillableArgs,
}

/// Runs the role until it is told to stop.
pub fn run(args: SentinelArgs) -> Result<u8, Failure> {
    let config = config(args)?;
    runtime::run(|stop| sentinel::run(config, stop))?;
    Ok(0)
}

fn config(args: SentinelArgs) -> Result<Config, Failure> {
    let clusters = match (args.cluster.is_empty(), args.all_clusters) {
        (true, true) => Clusters::All,
        (false, false) => Clusters::Named(distinct(args.cluster)),
        (true, false) => {
            return Err(Failure::usage(
                "no cluster to care for: give --cluster NAME or --all-clusters",
            ));
        }
        (false, true) => {
            return Err(Failure::usage(
                "--cluster and --all-clusters exclude each other: give one of them",
            ));
        }
    };
    let listen = args.listen.map(|l| l.to_string());
    let drills = Drills { refused: args.drillable.refused(), restarted: is_managed() };
    Ok(Config { etcd: args.store.access()?, clusters, listen, id: identity(args.id)?, drills })
}

fn distinct(mut clusters: Vec<ClusterName>) -> Vec<ClusterName> {
    clusters.sort();
    clusters.dedup();
    clusters
}

/// Returns what tells this process from others like it: it becomes part of a key.
pub fn identity(given: Option<String>) -> Result<String, Failure> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-._".contains(c);
    match given {
        Some(id) if !id.is_empty() && id.len() <= 100 && id.chars().all(plain) => Ok(id),
        Some(id) => Err(Failure::usage(format!(
            "--id {id:?}: use 1 to 100 of letters, digits, '-', '.' and '_'"
        ))),
        None => {
            let host = nix::unistd::gethostname().unwrap_or_default();
            let host: String =
                host.to_string_lossy().chars().filter(|c| plain(*c)).take(80).collect();
            Ok(format!("{host}-{}", std::process::id()))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(clusters: &[&str], all_clusters: bool) -> SentinelArgs {
        let cluster = clusters.iter().map(|c| c.parse().unwrap()).collect();
        let store = StoreArgs::plain("http://127.0.0.1:2379");
        SentinelArgs {
            store,
            cluster,
            all_clusters,
            listen: None,
            id: None,
            drillable: DrillableArgs::default(),
        }
    }

    #[test]
    fn named_clusters_and_all_clusters_exclude_each_other_and_one_is_needed() {
        assert!(config(args(&["a"], true)).unwrap_err().line().contains("exclude each other"));
        assert!(config(args(&[], false)).unwrap_err().line().contains("no cluster"));
        assert_eq!(config(args(&[], true)).unwrap().clusters, Clusters::All);
        let named = Clusters::Named(vec!["a".parse().unwrap(), "b".parse().unwrap()]);
        assert_eq!(config(args(&["b", "a", "b"], false)).unwrap().clusters, named);
    }

    #[test]
    fn an_identity_fits_into_a_key() {
        assert_eq!(identity(Some("s-1".into())).unwrap(), "s-1");
        for bad in ["", "a/b", "a b"] {
            assert!(identity(Some(bad.into())).is_err(), "{bad}");
        }
        assert!(identity(None).unwrap().ends_with(&format!("-{}", std::process::id())));
    }
}
