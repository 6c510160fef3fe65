//! NBD: the addresses it is served on, and the server's tasks.

use super::threads::GuestThreads;
use crate::config::{self, ListenAddress};
use crate::error::GatewayError;
use crate::human::shell_quoted;
use crate::sessions::{CountedExports, Sessions};
use cairn_engine::Engine;
use cairn_model::Ports;
use cairn_nbd::{Listener, NbdServer, ServerConfig, TlsConfig, TlsFiles, TlsMode};
use std::fmt::{self, Write};
use std::net::SocketAddr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Where NBD is served, and how a client gets there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Endpoint {
    /// The bound address, with the port that the system chose for port 0.
    Tcp(SocketAddr),
    Unix(PathBuf),
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => write!(f, "{address}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

impl Endpoint {
    /// The export's URI (NBD project, `doc/uri.md`).
    pub fn uri(&self, export: &str) -> String {
        match self {
            Self::Tcp(address) => format!("nbd://{}/{export}", reachable(*address)),
            Self::Unix(path) => format!("nbd+unix:///{export}?socket={}", percent_encoded(path)),
        }
    }

    /// The command that makes the export a disk of this host.
    pub fn attach_command(&self, export: &str) -> String {
        match self {
            Self::Tcp(address) => {
                let address = reachable(*address);
                format!("nbd-client {} {} /dev/nbd0 -N {export}", address.ip(), address.port())
            }
            Self::Unix(path) => format!("nbd-client -unix {} /dev/nbd0 -N {export}", shell_quoted(path)),
        }
    }
}

/// The path as a URI's query holds it.
fn percent_encoded(path: &Path) -> String {
    let mut text = String::new();
    for byte in path.as_os_str().as_bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~/".contains(byte) {
            text.push(char::from(*byte));
        } else {
            // Writing to a String cannot fail.
            let _ = write!(text, "%{byte:02X}");
        }
    }
    text
}

/// An address that listens everywhere is reached from here by the loopback address.
fn reachable(address: SocketAddr) -> SocketAddr {
    match address {
        SocketAddr::V4(v4) if v4.ip().is_unspecified() => {
            SocketAddr::from((std::net::Ipv4Addr::LOCALHOST, v4.port()))
        }
        SocketAddr::V6(v6) if v6.ip().is_unspecified() => {
            SocketAddr::from((std::net::Ipv6Addr::LOCALHOST, v6.port()))
        }
        bound => bound,
    }
}

/// The NBD server of a gateway. Ended by [`NbdService::end`]; its threads end with it.
#[derive(Debug)]
pub(super) struct NbdService {
    endpoints: Vec<Endpoint>,
    tasks: TaskTracker,
    stop: CancellationToken,
    _threads: GuestThreads,
}

impl NbdService {
    /// Binds all addresses, then serves on them: a client never reaches some of the sockets of a gateway that fails to open
    /// the others.
    pub(super) async fn start(
        engine: &Arc<Engine>,
        sessions: &Sessions,
        addresses: &[ListenAddress],
        tls: Option<&config::TlsConfig>,
        ports: &Ports,
    ) -> Result<Self, GatewayError> {
        let exports = Arc::new(CountedExports::new(Arc::clone(engine), sessions.clone()));
        let config = ServerConfig { tls: tls.map(tls_config).transpose()?, ..ServerConfig::default() };
        let server = NbdServer::new(exports, config, ports.clone())?;
        let threads = GuestThreads::start()?;
        let mut listeners = Vec::with_capacity(addresses.len());
        for address in addresses {
            if !address.is_local() && tls.is_none() {
                tracing::warn!(%address, "NBD without TLS: whoever reaches this address can read and write every volume");
            }
            let (server, address) = (server.clone(), address.clone());
            // Sockets belong to the threads that they are opened on.
            let opened = threads.handle().spawn(async move { listen(&server, &address).await }).await;
            listeners.push(opened.expect("nobody aborts it, and it does not panic")?);
        }
        let endpoints = listeners.iter().filter_map(endpoint).collect();
        let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
        for listener in listeners {
            let (server, stop) = (server.clone(), stop.clone());
            tasks.spawn_on(async move { server.serve(listener, stop).await }, threads.handle());
        }
        Ok(Self { endpoints, tasks, stop, _threads: threads })
    }

    pub(super) fn endpoints(&self) -> &[Endpoint] {
        &self.endpoints
    }

    /// Stops accepting, lets requests in flight finish for a while, closes every connection. What they began in the engine needs the threads until that ends.
    pub(super) async fn end(&self) {
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }
}

async fn listen(
    server: &NbdServer<CountedExports>,
    address: &ListenAddress,
) -> Result<Listener, GatewayError> {
    match address {
        ListenAddress::Unix(path) => Ok(server.listen_unix(path).await?),
        ListenAddress::Tcp { host, port } => {
            let failed = |source| GatewayError::Listen { address: address.to_string(), source };
            let resolved = tokio::net::lookup_host((host.as_str(), *port)).await.map_err(failed)?.next();
            let resolved = resolved.ok_or_else(|| failed(std::io::ErrorKind::AddrNotAvailable.into()))?;
            Ok(server.listen_tcp(resolved).await?)
        }
    }
}

fn endpoint(listener: &Listener) -> Option<Endpoint> {
    listener
        .tcp_address()
        .map(Endpoint::Tcp)
        .or_else(|| listener.unix_path().map(|path| Endpoint::Unix(path.to_owned())))
}

fn tls_config(tls: &config::TlsConfig) -> Result<TlsConfig, GatewayError> {
    let files = TlsFiles {
        certificate: tls.cert.clone(),
        key: tls.key.clone(),
        client_authority: tls.client_ca.clone(),
    };
    let mode = if tls.required { TlsMode::Required } else { TlsMode::Optional };
    Ok(TlsConfig::from_files(&files, mode)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attach_commands_name_an_address_that_can_be_reached() {
        let everywhere = Endpoint::Tcp("0.0.0.0:10809".parse().unwrap());
        assert_eq!(everywhere.uri("disk0"), "nbd://127.0.0.1:10809/disk0");
        assert_eq!(everywhere.attach_command("disk0"), "nbd-client 127.0.0.1 10809 /dev/nbd0 -N disk0");
        let socket = Endpoint::Unix("/run/nbd.sock".into());
        assert_eq!(socket.uri("disk0"), "nbd+unix:///disk0?socket=/run/nbd.sock");
        let spaced = Endpoint::Unix("/run/it's a&b.sock".into());
        assert_eq!(spaced.uri("disk0"), "nbd+unix:///disk0?socket=/run/it%27s%20a%26b.sock");
        assert_eq!(
            spaced.attach_command("disk0"),
            r"nbd-client -unix '/run/it'\''s a&b.sock' /dev/nbd0 -N disk0"
        );
        assert_eq!(Endpoint::Tcp("[::]:1".parse().unwrap()).uri("a"), "nbd://[::1]:1/a");
    }
}
