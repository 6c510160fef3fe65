//! The transmission phase of one connection.
//!
//! One task does everything, in rounds: replies of operations that were woken, then requests from the socket, each
//! polled once where it stands, then one vectored write of whatever is ready. A round in which nothing moved ends
//! the poll; every source that could move was asked last by something that will wake the task.
//!
//! Bounds. Requests are taken while a slot is free and while payloads (arriving, in flight, waiting to be sent)
//! stay below the connection's limit; one request is always taken, and the limit holds the largest. At a bound the
//! socket is not read: a client that sends and never receives blocks itself and nobody else.
//!
//! End. After DISC, the end of the stream, a broken protocol or a shutdown nothing more is read; what is in flight
//! completes and is answered. When the client is gone it completes all the same, so that no write is cut short.

mod inflight;
mod input;
mod operation;
mod output;
mod plan;
mod replies;
mod requests;
mod session;

use crate::config::Limits;
use crate::counters::{Counters, SessionTally};
use crate::error::NbdError;
use crate::negotiation::Agreed;
use cairn_model::BlockDevice;
use inflight::InFlight;
use input::Input;
use output::Output;
use plan::Terms;
use session::Session;
use std::future::{Future, poll_fn};
use std::pin::pin;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::sync::CancellationToken;

/// Serves one client until it leaves, breaks the protocol or `stop` is cancelled.
pub(crate) async fn serve<D, S>(
    stream: &mut S,
    agreed: &Agreed<D>,
    limits: &Limits,
    counters: &Counters,
    stop: &CancellationToken,
) -> Result<(), NbdError>
where
    D: BlockDevice,
    S: AsyncRead + AsyncWrite + Unpin,
{
    let (device, contexts) = (&*agreed.device, &agreed.contexts);
    let mut session = Session {
        stream,
        device,
        run: |cookie, offset, operation| operation::run(device, contexts, cookie, offset, operation),
        terms: Terms { style: agreed.style, contexts: contexts.all() },
        bytes_in_flight_max: limits.bytes_in_flight_max,
        input: Input::new(),
        in_flight: InFlight::new(limits.requests_in_flight_max),
        output: Output::default(),
        output_blocked: false,
        unsent_replies: 0,
        unflushed: false,
        client_gone: false,
        tally: SessionTally::default(),
        failure: None,
    };
    let mut stopped = pin!(stop.cancelled());
    poll_fn(|context| {
        if !session.input.ended && stopped.as_mut().poll(context).is_ready() {
            session.input.ended = true;
        }
        let polled = session.poll(context);
        counters.add(&std::mem::take(&mut session.tally));
        polled
    })
    .await
}
