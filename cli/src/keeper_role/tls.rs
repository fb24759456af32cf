//! The flags by which a keeper reaches the PostgreSQL of other members by TLS, named as libpq names them.

use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use keeper::postgres::tls::{OwnCertificate, SslMode, Tls};

use crate::failure::Failure;

#[derive(Debug, Args)]
pub struct TlsArgs {
    /// Certificates that sign those of the members' PostgreSQL, in PEM form: members then reach each other by TLS only
    #[arg(long, value_name = "FILE")]
    sslrootcert: Option<PathBuf>,
    /// What of a certificate is verified [default: verify-full, with --sslrootcert]
    #[arg(long, value_enum, value_name = "MODE")]
    sslmode: Option<Verify>,
    /// Certificate to show to the members' PostgreSQL, with --sslkey
    #[arg(long, value_name = "FILE")]
    sslcert: Option<PathBuf>,
    /// Key of --sslcert, without a passphrase, which nobody else may read
    #[arg(long, value_name = "FILE")]
    sslkey: Option<PathBuf>,
}

/// What is given of libpq's parameters, to whomever it leads.
#[derive(Debug, Clone, Default)]
pub struct Given {
    pub root: Option<PathBuf>,
    pub mode: Option<Verify>,
    pub certificate: Option<PathBuf>,
    pub key: Option<PathBuf>,
}

/// libpq's words. Its other ones would let anybody answer in a member's place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Verify {
    VerifyFull,
    VerifyCa,
}

impl TlsArgs {
    /// Checks what belongs together. Opens no file: the keeper reads them as the user that it becomes.
    pub fn checked(self) -> Result<Option<Tls>, Failure> {
        let (root, mode) = (self.sslrootcert, self.sslmode);
        Given { root, mode, certificate: self.sslcert, key: self.sslkey }.checked()
    }
}

impl Given {
    /// Checks what belongs together. Opens no file.
    pub fn checked(self) -> Result<Option<Tls>, Failure> {
        let own = match (self.certificate, self.key) {
            (Some(certificate), Some(key)) => Some(OwnCertificate {
                certificate: absolute("--sslcert", &certificate)?,
                key: absolute("--sslkey", &key)?,
            }),
            (None, None) => None,
            _ => {
                return Err(Failure::usage("--sslcert and --sslkey belong together: give both"));
            }
        };
        let Some(root) = self.root else {
            if own.is_some() || self.mode.is_some() {
                return Err(Failure::usage(
                    "--sslmode, --sslcert and --sslkey need --sslrootcert: name the certificates that sign those of the \
                     members' PostgreSQL",
                ));
            }
            return Ok(None);
        };
        let mode = match self.mode.unwrap_or(Verify::VerifyFull) {
            Verify::VerifyFull => SslMode::VerifyFull,
            Verify::VerifyCa => SslMode::VerifyCa,
        };
        Ok(Some(Tls { mode, root: absolute("--sslrootcert", &root)?, own }))
    }
}

/// PostgreSQL's own receiver reads the files from another directory.
fn absolute(flag: &str, given: &Path) -> Result<PathBuf, Failure> {
    std::path::absolute(given)
        .map_err(|e| Failure::usage(format!("{flag} {:?}: {e}", given.display().to_string())))
}
