use cairn_model::{ErrorKind, Kinded};
use std::io;
use std::path::PathBuf;

/// Why the server could not start, or why it ended a connection.
#[derive(Debug, thiserror::Error)]
pub enum NbdError {
    #[error("cannot listen on {address}: {source}")]
    Listen { address: String, source: io::Error },
    #[error("another server listens on {}; stop it or choose another socket path", path.display())]
    SocketInUse { path: PathBuf },
    #[error("{} exists and is not a socket; remove it or choose another socket path", path.display())]
    NotASocket { path: PathBuf },
    #[error("the NBD server's {setting} {requirement}")]
    Limit { setting: &'static str, requirement: &'static str },
    #[error("cannot read the TLS file {}: {source}", path.display())]
    TlsFile { path: PathBuf, source: rustls_pki_types::pem::Error },
    #[error("the TLS file {} has no certificate; give a PEM file", path.display())]
    NoCertificate { path: PathBuf },
    #[error("others may read the TLS key {}; chmod it to 0600 or 0640", path.display())]
    KeyExposed { path: PathBuf },
    #[error("the TLS certificates or the key cannot be used: {0}")]
    TlsRejected(#[from] rustls::Error),
    #[error("the client certificate authority cannot be used: {0}")]
    ClientAuthority(#[from] rustls::server::VerifierBuilderError),
    #[error("the TLS handshake failed: {0}")]
    TlsHandshake(io::Error),
    #[error("the client broke the protocol: {0}")]
    Protocol(&'static str),
    #[error("the client did not finish the handshake in time")]
    HandshakeTimeout,
    #[error("the connection broke: {0}")]
    Connection(#[from] io::Error),
}

impl Kinded for NbdError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Listen { source, .. }
            | Self::TlsFile { source: rustls_pki_types::pem::Error::Io(source), .. }
            | Self::TlsHandshake(source)
            | Self::Connection(source) => ErrorKind::of_io(source),
            Self::SocketInUse { .. } | Self::NotASocket { .. } => ErrorKind::Conflict,
            Self::Limit { .. }
            | Self::TlsFile { .. }
            | Self::NoCertificate { .. }
            | Self::KeyExposed { .. }
            | Self::TlsRejected(_)
            | Self::ClientAuthority(_)
            | Self::Protocol(_) => ErrorKind::Unsupported,
            Self::HandshakeTimeout => ErrorKind::Unavailable,
        }
    }
}
