use crate::config::ServerConfig;
use crate::connection;
use crate::counters::Counters;
use crate::error::NbdError;
use crate::listener::{Accepted, Listener};
use crate::negotiation::TlsState;
use crate::tls::TlsMode;
use cairn_model::{Exports, Ports, timeout};
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::task::{JoinError, JoinSet};
use tokio_util::sync::CancellationToken;

/// Pause after an accept that failed for want of descriptors or memory.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

/// How a client reached the server.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Transport {
    Tcp,
    Unix,
}

/// Serves the devices of `E` to NBD clients. Clones share limits and counters.
pub struct NbdServer<E> {
    shared: Arc<Shared<E>>,
}

pub(crate) struct Shared<E> {
    pub(crate) exports: Arc<E>,
    pub(crate) config: ServerConfig,
    pub(crate) ports: Ports,
    pub(crate) counters: Arc<Counters>,
}

impl<E> Shared<E> {
    /// Whether TLS is for a client that came by `transport`.
    pub(crate) fn tls_state(&self, transport: Transport) -> TlsState {
        match &self.config.tls {
            None => TlsState::Absent,
            Some(tls) if tls.mode == TlsMode::Optional => TlsState::Offered,
            Some(tls) if transport == Transport::Unix && !tls.required_on_unix => TlsState::Offered,
            Some(_) => TlsState::Required,
        }
    }
}

impl<E: Exports> NbdServer<E> {
    /// Fails when a limit makes no sense.
    pub fn new(exports: Arc<E>, config: ServerConfig, ports: Ports) -> Result<Self, NbdError> {
        config.limits.validate()?;
        Ok(Self { shared: Arc::new(Shared { exports, config, ports, counters: Arc::default() }) })
    }

    pub fn counters(&self) -> Arc<Counters> {
        self.shared.counters.clone()
    }

    /// Binds a TCP address. Clients can connect from now on and wait until [`NbdServer::serve`] runs.
    pub async fn listen_tcp(&self, address: SocketAddr) -> Result<Listener, NbdError> {
        Listener::bind_tcp(address).await
    }

    /// Binds a Unix socket, in place of one that nobody listens on any more.
    pub async fn listen_unix(&self, path: impl AsRef<Path>) -> Result<Listener, NbdError> {
        Listener::bind_unix(path.as_ref(), self.shared.config.unix_socket_mode).await
    }

    /// Accepts and serves clients until `shutdown` is cancelled; then closes the listener, lets requests in flight
    /// finish within the grace period and returns when every connection is closed.
    pub async fn serve(&self, listener: Listener, shutdown: CancellationToken) {
        let mut connections = JoinSet::new();
        loop {
            tokio::select! {
                biased;
                () = shutdown.cancelled() => break,
                Some(ended) = connections.join_next() => report(ended),
                accepted = listener.accept() => match accepted {
                    Ok(accepted) => self.admit(accepted, listener.transport(), &mut connections, &shutdown),
                    Err(error) => self.accept_failed(&error).await,
                },
            }
        }
        drop(listener);
        let drain = async {
            while let Some(ended) = connections.join_next().await {
                report(ended);
            }
        };
        if timeout(&*self.shared.ports.clock, self.shared.config.shutdown_grace, drain).await.is_err() {
            tracing::warn!(
                connections = connections.len(),
                "clients' requests did not finish in time; closing"
            );
            connections.shutdown().await;
        }
    }

    /// Serves one client on a stream that something else accepted, within the connection limit.
    pub async fn serve_stream<S>(
        &self,
        stream: S,
        transport: Transport,
        shutdown: &CancellationToken,
    ) -> Result<(), NbdError>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send,
    {
        let Some(open) = self.shared.counters.open_connection(self.shared.config.limits.connections_max)
        else {
            return Ok(());
        };
        let ended = connection::run(&self.shared, stream, transport, shutdown).await;
        drop(open);
        ended
    }

    fn admit(
        &self,
        accepted: Accepted,
        transport: Transport,
        connections: &mut JoinSet<()>,
        shutdown: &CancellationToken,
    ) {
        let limit = self.shared.config.limits.connections_max;
        let Some(open) = self.shared.counters.open_connection(limit) else {
            tracing::warn!(limit, "connection limit reached; closing a new connection");
            return;
        };
        let (shared, shutdown) = (self.shared.clone(), shutdown.child_token());
        connections.spawn(async move {
            let _open = open;
            let (peer, ended) = match accepted {
                Accepted::Tcp(stream, peer) => {
                    (Some(peer), connection::run(&shared, stream, transport, &shutdown).await)
                }
                Accepted::Unix(stream) => {
                    (None, connection::run(&shared, stream, transport, &shutdown).await)
                }
            };
            match ended {
                Ok(()) => tracing::debug!(?peer, ?transport, "connection closed"),
                Err(error) => tracing::info!(?peer, ?transport, %error, "connection ended"),
            }
        });
    }

    /// A client that left before it was accepted is nothing; a lack of descriptors or memory passes.
    async fn accept_failed(&self, error: &io::Error) {
        if matches!(error.kind(), io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset) {
            return;
        }
        tracing::warn!(%error, "cannot accept a connection; trying again");
        self.shared.ports.clock.sleep(ACCEPT_RETRY).await;
    }
}

/// A panic in one connection must not take the others with it, nor go unseen.
fn report(ended: Result<(), JoinError>) {
    if let Err(error) = ended {
        tracing::error!(%error, "a connection's task failed");
    }
}

impl<E> Clone for NbdServer<E> {
    fn clone(&self) -> Self {
        Self { shared: self.shared.clone() }
    }
}

impl<E> fmt::Debug for NbdServer<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NbdServer").field("config", &self.shared.config).finish_non_exhaustive()
    }
}
