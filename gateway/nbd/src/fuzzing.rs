//! Entry points for fuzz targets: bytes of a client against a server with a tiny device in memory. They return when
//! the server closed the connection, and panic when it would have.

use crate::counters::Counters;
use crate::memory::{DeviceTable, MemoryDevice};
use crate::negotiation::Agreed;
use crate::protocol::Style;
use crate::{Limits, NbdServer, ServerConfig, Transport, transmission};
use cairn_model::Ports;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_util::sync::CancellationToken;

const DEVICE_BYTES: u64 = 1 << 20;

/// A client that has said everything it will ever say, and receives whatever comes.
#[derive(Debug)]
struct Recording<'b> {
    rest: &'b [u8],
    received: u64,
}

impl AsyncRead for Recording<'_> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        space: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let (now, later) = self.rest.split_at(self.rest.len().min(space.remaining()));
        space.put_slice(now);
        self.rest = later;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Recording<'_> {
    fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.received += bytes.len() as u64;
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

fn run_to_end(future: impl Future<Output = ()>) {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime starts");
    runtime.block_on(future);
}

/// Everything a client sends, from its handshake flags on. Returns how many bytes the server answered.
pub fn handshake(bytes: &[u8]) -> u64 {
    let exports = DeviceTable::new([("disk".to_owned(), Arc::new(MemoryDevice::new(DEVICE_BYTES)))]);
    let server =
        NbdServer::new(Arc::new(exports), ServerConfig::default(), Ports::system()).expect("good limits");
    let mut client = Recording { rest: bytes, received: 0 };
    run_to_end(async {
        // Most inputs break the protocol: the error is the expected end.
        let _ended = server.serve_stream(&mut client, Transport::Tcp, &CancellationToken::new()).await;
    });
    client.received
}

/// What a client sends in the transmission phase; the first byte chooses what was negotiated. Returns how many
/// bytes the server answered.
pub fn transmission(bytes: &[u8]) -> u64 {
    let Some((choice, rest)) = bytes.split_first() else { return 0 };
    let style = match choice % 3 {
        0 => Style::Simple,
        1 => Style::Structured,
        _ => Style::Extended,
    };
    let contexts = style != Style::Simple && choice & 0x40 != 0;
    let device = Arc::new(MemoryDevice::new(DEVICE_BYTES));
    let agreed = Agreed { device, export: "disk".to_owned(), style, contexts };
    let mut client = Recording { rest, received: 0 };
    run_to_end(async {
        let (limits, counters, stop) = (Limits::default(), Counters::default(), CancellationToken::new());
        let _ended = transmission::serve(&mut client, &agreed, &limits, &counters, &stop).await;
    });
    client.received
}
