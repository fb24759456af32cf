//! Where etcd is and as whom it is asked: endpoints, certificates, user and password.
//!
//! The one rule: files are named here and read at each new connection, so that a renewed certificate or password
//! counts without a restart, and no secret stands in a value that could be printed.

use std::path::{Path, PathBuf};

use etcd_client::{Certificate, ConnectOptions, Identity, TlsOptions};

use crate::types::StoreError;

/// How etcd is reached.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct EtcdAccess {
    /// `http://host:port` or `https://host:port`, all of one kind; at least one.
    pub endpoints: Vec<String>,
    /// The certificates that sign etcd's, in PEM form; needed with `https`.
    pub ca: Option<PathBuf>,
    /// What etcd's `--client-cert-auth` asks for.
    pub certificate: Option<ClientCertificate>,
    /// As whom to log in. It wins over the name in a certificate.
    pub login: Option<Login>,
}

/// A certificate that etcd knows us by, and its key, in PEM form.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientCertificate {
    pub certificate: PathBuf,
    pub key: PathBuf,
}

/// A user of etcd.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Login {
    pub user: String,
    /// Its first line is the password.
    pub password_file: PathBuf,
}

impl From<Vec<String>> for EtcdAccess {
    fn from(endpoints: Vec<String>) -> Self {
        Self { endpoints, ..Self::default() }
    }
}

impl From<&[String]> for EtcdAccess {
    fn from(endpoints: &[String]) -> Self {
        endpoints.to_vec().into()
    }
}

impl From<&Vec<String>> for EtcdAccess {
    fn from(endpoints: &Vec<String>) -> Self {
        endpoints.clone().into()
    }
}

impl<const N: usize> From<&[String; N]> for EtcdAccess {
    fn from(endpoints: &[String; N]) -> Self {
        endpoints.to_vec().into()
    }
}

impl From<&EtcdAccess> for EtcdAccess {
    fn from(access: &EtcdAccess) -> Self {
        access.clone()
    }
}

impl EtcdAccess {
    /// Checks the relations between the settings and reads every file once.
    pub fn check(&self) -> Result<(), StoreError> {
        self.relations().and_then(|()| self.options().map(drop)).map_err(StoreError::Refused)
    }

    /// Checks the relations between the settings, without looking at any file.
    pub fn relations(&self) -> Result<(), String> {
        let https = self.endpoints.iter().filter(|url| url.starts_with("https://")).count();
        if self.endpoints.is_empty() {
            return Err("no etcd endpoint given; name at least one".to_owned());
        }
        if https != 0 && https != self.endpoints.len() {
            return Err("--etcd names endpoints with http:// and with https://: \
                        use one of them for all"
                .to_owned());
        }
        match (https > 0, &self.ca, &self.certificate) {
            (true, None, _) => Err(
                "--etcd names https:// endpoints: give --etcd-ca, the file with the certificate \
                                    that signs etcd's"
                    .to_owned(),
            ),
            (false, Some(_), _) | (false, _, Some(_)) => {
                Err("--etcd-ca, --etcd-cert and --etcd-key need https:// endpoints in --etcd"
                    .to_owned())
            }
            (true, Some(_), _) | (false, None, None) => Ok(()),
        }
    }

    /// Returns what a connection is made with; reads the files. The error says which one is wrong, and how.
    pub(super) fn options(&self) -> Result<ConnectOptions, String> {
        let mut options = ConnectOptions::new();
        if let Some(ca) = &self.ca {
            let mut tls = TlsOptions::new().ca_certificate(Certificate::from_pem(pem(
                "--etcd-ca",
                ca,
                "CERTIFICATE",
            )?));
            if let Some(own) = &self.certificate {
                let certificate = pem("--etcd-cert", &own.certificate, "CERTIFICATE")?;
                let key = pem("--etcd-key", &own.key, "PRIVATE KEY")?;
                if key.contains("ENCRYPTED") {
                    return Err(format!(
                        "--etcd-key {}: the key is encrypted, and nobody is there to type its passphrase: store it \
                         without one, readable for this user only",
                        own.key.display()
                    ));
                }
                tls = tls.identity(Identity::from_pem(certificate, key));
            }
            options = options.with_tls(tls);
        }
        if let Some(login) = &self.login {
            options =
                options.with_user(&login.user, login.password()?).with_auto_token_refresh(true);
        }
        Ok(options)
    }

    /// Returns the same without the login: etcd refuses one while it has authentication switched off.
    pub(super) fn without_login(&self) -> Self {
        Self { login: None, ..self.clone() }
    }

    /// Says as whom etcd is asked, for people.
    pub(super) fn whom(&self) -> String {
        match (&self.login, &self.certificate) {
            (Some(login), _) => format!("user {:?}", login.user),
            (None, Some(own)) => {
                format!("the user that certificate {} names", own.certificate.display())
            }
            (None, None) => "nobody (no --etcd-user is given)".to_owned(),
        }
    }
}

impl Login {
    fn password(&self) -> Result<String, String> {
        let text = read("--etcd-password-file", &self.password_file)?;
        match text.lines().next().unwrap_or_default() {
            "" => Err(format!(
                "--etcd-password-file {}: its first line is empty and should be the password",
                self.password_file.display()
            )),
            password => Ok(password.to_owned()),
        }
    }
}

fn pem(flag: &str, path: &Path, what: &str) -> Result<String, String> {
    let text = read(flag, path)?;
    let holds = text.lines().any(|l| l.starts_with("-----BEGIN ") && l.contains(what));
    match holds {
        true => Ok(text),
        false => Err(format!(
            "{flag} {}: it holds no {} in PEM form (\"-----BEGIN ...\")",
            path.display(),
            what.to_lowercase()
        )),
    }
}

fn read(flag: &str, path: &Path) -> Result<String, String> {
    std::fs::read_to_string(path).map_err(|error| format!("{flag} {}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn access(endpoints: &[&str]) -> EtcdAccess {
        EtcdAccess::from(endpoints.iter().map(|&url| url.to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn endpoints_are_of_one_kind_and_https_needs_a_ca() {
        assert_eq!(access(&["http://a:1", "http://b:1"]).relations(), Ok(()));
        let with_ca = |endpoints| EtcdAccess { ca: Some("ca.pem".into()), ..access(endpoints) };
        assert_eq!(with_ca(&["https://a:1"]).relations(), Ok(()));
        for (bad, remedy) in [
            (access(&[]), "name at least one"),
            (access(&["http://a:1", "https://b:1"]), "use one of them"),
            (access(&["https://a:1"]), "--etcd-ca"),
            (with_ca(&["http://a:1"]), "need https://"),
        ] {
            let problem = bad.relations().unwrap_err();
            assert!(problem.contains(remedy), "{problem}");
        }
    }

    #[test]
    fn a_file_that_cannot_be_used_is_named_with_its_flag() {
        let dir = tempfile::tempdir().unwrap();
        let mut files = 0..;
        let mut file = |name: &str, text: &str| {
            let path = dir.path().join(format!("{name}{}", files.next().unwrap()));
            std::fs::write(&path, text).unwrap();
            path
        };
        let ca = file("ca", "-----BEGIN CERTIFICATE-----\n");
        let der = file("der", "0");
        let no_pem = file("key", "0");
        let encrypted = file("key", "-----BEGIN ENCRYPTED PRIVATE KEY-----\n");
        let (empty, password) = (file("empty", "\nx"), file("password", "secret\n"));
        let secured = || EtcdAccess { ca: Some(ca.clone()), ..access(&["https://a:1"]) };
        let with_key = |key: PathBuf| {
            let certificate = ca.clone();
            EtcdAccess { certificate: Some(ClientCertificate { certificate, key }), ..secured() }
        };
        let with_password = |password_file: PathBuf| {
            let login = Login { user: "u".into(), password_file };
            EtcdAccess { login: Some(login), ..secured() }
        };
        for (bad, flag, problem) in [
            (EtcdAccess { ca: Some("/no/ca".into()), ..secured() }, "--etcd-ca", "No such file"),
            (EtcdAccess { ca: Some(der), ..secured() }, "--etcd-ca", "PEM"),
            (with_key(no_pem), "--etcd-key", "PEM"),
            (with_key(encrypted), "--etcd-key", "passphrase"),
            (with_password("/no/password".into()), "--etcd-password-file", "No such file"),
            (with_password(empty), "--etcd-password-file", "empty"),
        ] {
            let said = bad.options().err().unwrap();
            assert!(said.contains(flag) && said.contains(problem), "{said}");
        }
        let good = with_password(password);
        assert!(good.options().is_ok());
        assert!(!format!("{good:?}").contains("secret"), "{good:?}");
    }
}
