//! The life of a connection: handshake, maybe TLS and the handshake again, transmission, goodbye.

use crate::error::NbdError;
use crate::negotiation::{Agreed, Negotiation, Outcome};
use crate::server::{Shared, Transport};
use crate::transmission;
use cairn_model::{BlockDevice, Exports, timeout};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;

/// How long saying goodbye (TLS has a message for it) may take.
const GOODBYE: Duration = Duration::from_secs(2);

/// A client after the handshake.
enum Ready<S, D: BlockDevice> {
    Plain(S, Agreed<D>),
    Secured(Box<TlsStream<S>>, Agreed<D>),
    Gone,
}

/// Serves one client from the greeting to the end.
pub(crate) async fn run<E, S>(
    shared: &Shared<E>,
    stream: S,
    transport: Transport,
    stop: &CancellationToken,
) -> Result<(), NbdError>
where
    E: Exports,
    S: AsyncRead + AsyncWrite + Unpin + Send,
{
    let handshake =
        timeout(&*shared.ports.clock, shared.config.handshake_timeout, handshake(shared, stream, transport));
    let shaken = tokio::select! {
        biased;
        () = stop.cancelled() => return Ok(()),
        shaken = handshake => shaken.unwrap_or(Err(NbdError::HandshakeTimeout)),
    };
    match shaken.inspect_err(|_| shared.counters.handshake_failed())? {
        Ready::Gone => Ok(()),
        Ready::Plain(stream, agreed) => transmit(shared, stream, &agreed, stop).await,
        Ready::Secured(stream, agreed) => transmit(shared, *stream, &agreed, stop).await,
    }
}

async fn handshake<E, S>(
    shared: &Shared<E>,
    mut stream: S,
    transport: Transport,
) -> Result<Ready<S, E::Device>, NbdError>
where
    E: Exports,
    S: AsyncRead + AsyncWrite + Unpin,
{
    let exports = &*shared.exports;
    let mut negotiation = Negotiation::greet(exports, shared.tls_state(transport), &mut stream).await?;
    match negotiation.run(&mut stream).await? {
        Outcome::Enter(agreed) => return Ok(Ready::Plain(stream, agreed)),
        Outcome::Leave => return Ok(Ready::Gone),
        Outcome::StartTls => {}
    }
    let tls = shared.config.tls.as_ref().expect("STARTTLS is accepted only with a TLS set-up");
    let mut stream = tls.acceptor().accept(stream).await.map_err(NbdError::TlsHandshake)?;
    match negotiation.secured().run(&mut stream).await? {
        Outcome::Enter(agreed) => Ok(Ready::Secured(Box::new(stream), agreed)),
        Outcome::Leave => {
            stream.shutdown().await?;
            Ok(Ready::Gone)
        }
        Outcome::StartTls => unreachable!("an active TLS session answers STARTTLS with an error"),
    }
}

async fn transmit<E, S>(
    shared: &Shared<E>,
    mut stream: S,
    agreed: &Agreed<E::Device>,
    stop: &CancellationToken,
) -> Result<(), NbdError>
where
    E: Exports,
    S: AsyncRead + AsyncWrite + Unpin,
{
    tracing::debug!(export = agreed.export, style = ?agreed.style, "client attached");
    let limits = &shared.config.limits;
    let ended = transmission::serve(&mut stream, agreed, limits, &shared.counters, stop).await;
    // The client may be gone already; what matters was sent before.
    let goodbye = timeout(&*shared.ports.clock, GOODBYE, stream.shutdown()).await;
    tracing::debug!(export = agreed.export, ?goodbye, "client detached");
    ended
}
