//! Which cluster, and the etcd that it is agreed in.

use clap::Args;
use proto::{ClusterName, HostPort};
use store::keys::Keys;

/// The flags of every command that asks one cluster.
#[derive(Debug, Clone, Args)]
pub struct Target {
    /// Name of the cluster
    #[arg(long, value_name = "NAME")]
    pub cluster: ClusterName,
    #[command(flatten)]
    pub store: StoreArgs,
}

/// The flags of every command that needs etcd.
#[derive(Debug, Clone, Args)]
pub struct StoreArgs {
    /// Endpoints of etcd, such as http://10.0.0.1:2379, divided by commas
    #[arg(long, value_name = "URL", value_delimiter = ',', required = true, value_parser = endpoint)]
    pub etcd: Vec<String>,
}

impl Target {
    /// Returns the keys of the cluster.
    pub fn keys(&self) -> Keys {
        Keys::of(&self.cluster)
    }
}

/// Reads one endpoint: `http://host:port`, or `host:port` for short.
fn endpoint(given: &str) -> Result<String, String> {
    if given.starts_with("https://") {
        return Err("TLS to etcd is not built in; use http:// over a network that only the cluster can reach".into());
    }
    let address = given.strip_prefix("http://").unwrap_or(given);
    let address = address.strip_suffix('/').unwrap_or(address);
    let address: HostPort = address.parse().map_err(|e| format!("{e}, after http://"))?;
    Ok(format!("http://{address}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_is_plain_http_with_host_and_port() {
        for good in ["http://10.0.0.1:2379", "http://10.0.0.1:2379/", "10.0.0.1:2379"] {
            assert_eq!(endpoint(good), Ok("http://10.0.0.1:2379".to_owned()));
        }
        for (bad, remedy) in [
            ("https://a:1", "TLS"),
            ("http://a", "HOST:PORT"),
            ("http://a:1/v3", "HOST:PORT"),
            ("", "HOST:PORT"),
        ] {
            let error = endpoint(bad).unwrap_err();
            assert!(error.contains(remedy), "{error}");
        }
    }
}
