use crate::error::NbdError;
use rustls::RootCertStore;
use rustls::crypto::aws_lc_rs;
use rustls::server::WebPkiClientVerifier;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Whether clients may or must use TLS.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TlsMode {
    /// A client that asks for TLS gets it; another is served in the clear.
    Optional,
    /// Nothing but STARTTLS and ABORT is answered in the clear.
    Required,
}

/// The PEM files TLS is made of.
#[derive(Clone, Debug)]
pub struct TlsFiles {
    /// The server's certificate and the intermediates that lead to its authority.
    pub certificate: PathBuf,
    pub key: PathBuf,
    /// Clients must show a certificate of one of these authorities.
    pub client_authority: Option<PathBuf>,
}

/// How a server uses TLS.
#[derive(Clone, Debug)]
pub struct TlsConfig {
    server: Arc<rustls::ServerConfig>,
    pub(crate) mode: TlsMode,
    pub(crate) required_on_unix: bool,
}

impl TlsConfig {
    /// TLS for TCP in `mode`. On Unix sockets TLS is optional: their access mode says who may connect.
    pub fn new(server: Arc<rustls::ServerConfig>, mode: TlsMode) -> Self {
        Self { server, mode, required_on_unix: false }
    }

    /// Reads and checks the files.
    pub fn from_files(files: &TlsFiles, mode: TlsMode) -> Result<Self, NbdError> {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let builder = rustls::ServerConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()?;
        let builder = match &files.client_authority {
            None => builder.with_no_client_auth(),
            Some(path) => {
                let mut roots = RootCertStore::empty();
                for authority in certificates(path)? {
                    roots.add(authority)?;
                }
                let verifier =
                    WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build()?;
                builder.with_client_cert_verifier(verifier)
            }
        };
        let server = builder.with_single_cert(certificates(&files.certificate)?, private_key(&files.key)?)?;
        Ok(Self::new(Arc::new(server), mode))
    }

    pub(crate) fn acceptor(&self) -> tokio_rustls::TlsAcceptor {
        self.server.clone().into()
    }

    /// Holds clients on Unix sockets to the same mode as clients on TCP.
    pub fn require_on_unix(mut self) -> Self {
        self.required_on_unix = true;
        self
    }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, NbdError> {
    let failed = |source| NbdError::TlsFile { path: path.to_owned(), source };
    let chain: Vec<_> =
        CertificateDer::pem_file_iter(path).map_err(failed)?.collect::<Result<_, _>>().map_err(failed)?;
    if chain.is_empty() { Err(NbdError::NoCertificate { path: path.to_owned() }) } else { Ok(chain) }
}

/// A key that every user of the machine can read is refused: it would prove nothing.
fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, NbdError> {
    use std::os::unix::fs::PermissionsExt;
    let failed = |source| NbdError::TlsFile { path: path.to_owned(), source };
    let metadata =
        std::fs::metadata(path).map_err(|error| failed(rustls_pki_types::pem::Error::Io(error)))?;
    if metadata.permissions().mode() & 0o007 != 0 {
        return Err(NbdError::KeyExposed { path: path.to_owned() });
    }
    PrivateKeyDer::from_pem_file(path).map_err(failed)
}
