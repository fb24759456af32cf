//! Which cluster, and the etcd that it is agreed in.

use std::path::PathBuf;

use clap::Args;
use proto::{ClusterName, HostPort};
use store::EtcdAccess;
use store::etcd::{ClientCertificate, Login};
use store::keys::Keys;

use crate::failure::BadValue;

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
    /// Endpoints of etcd, such as http://10.0.0.1:2379 or https://etcd1:2379, divided by commas
    #[arg(long, value_name = "URL", value_delimiter = ',', required = true, value_parser = endpoint)]
    pub etcd: Vec<String>,
    /// Certificates that sign etcd's, in PEM form; needed with https://
    #[arg(long, value_name = "FILE")]
    pub etcd_ca: Option<PathBuf>,
    /// Certificate to show to etcd, with --etcd-key
    #[arg(long, value_name = "FILE")]
    pub etcd_cert: Option<PathBuf>,
    /// Key of --etcd-cert, without a passphrase
    #[arg(long, value_name = "FILE")]
    pub etcd_key: Option<PathBuf>,
    /// User of etcd, with --etcd-password-file
    #[arg(long, value_name = "USER")]
    pub etcd_user: Option<String>,
    /// File whose first line is the password of --etcd-user
    #[arg(long, value_name = "FILE")]
    pub etcd_password_file: Option<PathBuf>,
}

impl StoreArgs {
    /// Returns how etcd is reached; checks what belongs together. Opens no file.
    pub fn access(&self) -> Result<EtcdAccess, BadValue> {
        let certificate = match (&self.etcd_cert, &self.etcd_key) {
            (Some(certificate), Some(key)) => {
                Some(ClientCertificate { certificate: certificate.clone(), key: key.clone() })
            }
            (None, None) => None,
            _ => {
                return Err(BadValue(
                    "--etcd-cert and --etcd-key belong together: give both".into(),
                ));
            }
        };
        let login = match (&self.etcd_user, &self.etcd_password_file) {
            (Some(user), _) if user.is_empty() => {
                return Err(BadValue("--etcd-user is empty: name a user or leave it out".into()));
            }
            (Some(user), Some(file)) => {
                Some(Login { user: user.clone(), password_file: file.clone() })
            }
            (None, None) => None,
            _ => {
                return Err(BadValue(
                    "--etcd-user and --etcd-password-file belong together: give both".into(),
                ));
            }
        };
        let ca = self.etcd_ca.clone();
        let access = EtcdAccess { endpoints: self.etcd.clone(), ca, certificate, login };
        access.relations().map_err(BadValue)?;
        Ok(access)
    }

    #[cfg(test)]
    pub fn plain(url: &str) -> Self {
        Self {
            etcd: vec![url.to_owned()],
            etcd_ca: None,
            etcd_cert: None,
            etcd_key: None,
            etcd_user: None,
            etcd_password_file: None,
        }
    }
}

impl Target {
    /// Returns the keys of the cluster.
    pub fn keys(&self) -> Keys {
        Keys::of(&self.cluster)
    }
}

/// Reads one endpoint: `http://host:port`, `https://host:port`, or `host:port` for the first.
fn endpoint(given: &str) -> Result<String, String> {
    let (scheme, address) = match given.split_once("://") {
        Some((scheme @ ("http" | "https"), address)) => (scheme, address),
        Some((other, _)) => return Err(format!("{other}:// is neither http:// nor https://")),
        None => ("http", given),
    };
    let address = address.strip_suffix('/').unwrap_or(address);
    let address: HostPort = address.parse().map_err(|e| format!("{e}, after {scheme}://"))?;
    Ok(format!("{scheme}://{address}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_is_http_or_https_with_host_and_port() {
        for good in ["http://10.0.0.1:2379", "http://10.0.0.1:2379/", "10.0.0.1:2379"] {
            assert_eq!(endpoint(good), Ok("http://10.0.0.1:2379".to_owned()));
        }
        assert_eq!(endpoint("https://etcd1:2379/"), Ok("https://etcd1:2379".to_owned()));
        for (bad, remedy) in [
            ("ftp://a:1", "neither http:// nor https://"),
            ("http://a", "HOST:PORT"),
            ("http://a:1/v3", "HOST:PORT"),
            ("https://a", "HOST:PORT"),
            ("", "HOST:PORT"),
        ] {
            let error = endpoint(bad).unwrap_err();
            assert!(error.contains(remedy), "{error}");
        }
    }

    #[test]
    fn flags_that_belong_together_are_given_together() {
        let secured =
            || StoreArgs { etcd_ca: Some("ca".into()), ..StoreArgs::plain("https://a:1") };
        assert!(secured().access().is_ok());
        for (bad, named) in [
            (StoreArgs { etcd_cert: Some("c".into()), ..secured() }, "--etcd-key"),
            (StoreArgs { etcd_user: Some("u".into()), ..secured() }, "--etcd-password-file"),
            (StoreArgs { etcd_password_file: Some("p".into()), ..secured() }, "--etcd-user"),
            (StoreArgs { etcd_ca: None, ..secured() }, "--etcd-ca"),
            (StoreArgs { etcd_ca: Some("ca".into()), ..StoreArgs::plain("http://a:1") }, "https"),
        ] {
            let problem = bad.access().unwrap_err().to_string();
            assert!(problem.contains(named), "{problem}");
        }
    }
}
