//! TLS to the PostgreSQL of other members: by which authority they prove who they are, and what this member shows of
//! itself. Said in libpq's words, because libpq and our own connections keep the same.
//!
//! Rule: where an authority is given nothing is sent in the clear, and a server that does not prove itself by it hears
//! nothing. Files are read at each connect, so that a renewed certificate needs no restart.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, bail, ensure};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::client::WebPkiServerVerifier;
use tokio_rustls::rustls::client::danger::{
    HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier,
};
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use tokio_rustls::rustls::{
    self, CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
};

/// How a member connects to the PostgreSQL of others. Unix sockets are never encrypted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tls {
    pub mode: SslMode,
    /// Certificates that sign the servers', in PEM form.
    pub root: PathBuf,
    pub own: Option<OwnCertificate>,
}

/// What of a server's certificate is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SslMode {
    /// Who signed it, and that it is for the host that was asked.
    VerifyFull,
    /// Who signed it.
    VerifyCa,
}

/// What a member shows where a server asks for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OwnCertificate {
    pub certificate: PathBuf,
    /// Without a passphrase.
    pub key: PathBuf,
}

/// What PostgreSQL's protocol has before TLS: a length of 8, and a number that no version has.
const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x2f];

impl Tls {
    /// Returns libpq's parameters that say the same.
    pub fn parameters(&self) -> Vec<(&'static str, String)> {
        let text = |path: &Path| path.to_string_lossy().into_owned();
        let mode = match self.mode {
            SslMode::VerifyFull => "verify-full",
            SslMode::VerifyCa => "verify-ca",
        };
        let mut parameters = vec![("sslmode", mode.to_owned()), ("sslrootcert", text(&self.root))];
        match &self.own {
            Some(own) => {
                parameters.push(("sslcert", text(&own.certificate)));
                parameters.push(("sslkey", text(&own.key)));
            }
            // libpq would look in the home of whoever started us, and give up where it may not enter that. Below a file
            // there is nothing, and it goes on.
            None => parameters.push(("sslcert", text(&self.root.join("none")))),
        }
        // It would be tried first, and say nothing of the server's certificate.
        parameters.push(("gssencmode", "disable".to_owned()));
        parameters
    }

    /// Reads all files, as each connect does. Fails where one cannot be read or is not what it should be.
    pub fn check(&self) -> anyhow::Result<()> {
        self.client_config().map(drop)
    }

    /// Goes over to TLS on a connection to `host` on which nothing was said yet.
    pub async fn over(
        &self,
        mut stream: TcpStream,
        host: &str,
    ) -> anyhow::Result<TlsStream<TcpStream>> {
        let config = self.client_config()?;
        stream.write_all(&SSL_REQUEST).await.context("ask for TLS")?;
        let mut answer = [0];
        stream.read_exact(&mut answer).await.context("ask for TLS")?;
        match answer {
            [b'S'] => {}
            [b'N'] => bail!("it speaks no TLS: set ssl = \"on\" in the spec's postgres.parameters"),
            _ => bail!("it does not answer as PostgreSQL does when it is asked for TLS"),
        }
        let name = ServerName::try_from(host.to_owned()).context("a host's name for TLS")?;
        TlsConnector::from(Arc::new(config))
            .connect(name, stream)
            .await
            .with_context(|| format!("TLS to {host}, with {} as sslrootcert", self.root.display()))
    }

    /// Reads all files, and returns how TLS is spoken by them.
    ///
    /// # Errors
    /// One cannot be read or is not what it should be.
    pub fn client_config(&self) -> anyhow::Result<ClientConfig> {
        let provider = Arc::new(ring::default_provider());
        let roots = Arc::new(self.roots()?);
        let verifier = WebPkiServerVerifier::builder_with_provider(roots, provider.clone())
            .build()
            .with_context(|| format!("take {} as sslrootcert", self.root.display()))?;
        let verifier = Arc::new(Verifier { inner: verifier, mode: self.mode });
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .context("choose versions of TLS")?
            .dangerous()
            .with_custom_certificate_verifier(verifier);
        let Some(own) = &self.own else { return Ok(builder.with_no_client_auth()) };
        let chain = certificates(&own.certificate, "sslcert")?;
        let key = PrivateKeyDer::from_pem_file(&own.key)
            .with_context(|| format!("read {} as sslkey", own.key.display()))?;
        builder.with_client_auth_cert(chain, key).with_context(|| {
            format!("show {} with {}", own.certificate.display(), own.key.display())
        })
    }

    fn roots(&self) -> anyhow::Result<RootCertStore> {
        let mut roots = RootCertStore::empty();
        for certificate in certificates(&self.root, "sslrootcert")? {
            roots
                .add(certificate)
                .with_context(|| format!("take {} as sslrootcert", self.root.display()))?;
        }
        Ok(roots)
    }
}

fn certificates(file: &Path, what_as: &str) -> anyhow::Result<Vec<CertificateDer<'static>>> {
    let read = || format!("read {} as {what_as}", file.display());
    let found: Result<Vec<_>, _> =
        CertificateDer::pem_file_iter(file).with_context(read)?.collect();
    let found = found.with_context(read)?;
    ensure!(!found.is_empty(), "{}: there is no certificate in it", read());
    Ok(found)
}

/// What rustls does, but that a name is not looked at with `verify-ca`.
#[derive(Debug)]
struct Verifier {
    inner: Arc<WebPkiServerVerifier>,
    mode: SslMode,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let found = self.inner.verify_server_cert(
            end_entity,
            intermediates,
            server_name,
            ocsp_response,
            now,
        );
        match (self.mode, found) {
            // The name is what is looked at last.
            (
                SslMode::VerifyCa,
                Err(rustls::Error::InvalidCertificate(
                    CertificateError::NotValidForName
                    | CertificateError::NotValidForNameContext { .. },
                )),
            ) => Ok(ServerCertVerified::assertion()),
            (SslMode::VerifyFull | SslMode::VerifyCa, found) => found,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls12_signature(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls13_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}
