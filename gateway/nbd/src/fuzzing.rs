//! Entry points for fuzz targets: bytes of a client against a server. They return what the server answered when it
//! closed the connection, and panic when it would have.

use crate::counters::Counters;
use crate::memory::{DeviceTable, MemoryDevice};
use crate::negotiation::{Agreed, Contexts};
use crate::protocol::Style;
use crate::{Limits, NbdServer, ServerConfig, TlsConfig, Transport, transmission};
use cairn_model::{BlockDevice, Exports, Ports};
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_util::sync::CancellationToken;

const DEVICE_BYTES: u64 = 1 << 20;

/// How many bytes the client's side moves at once: where messages are torn apart.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    pub sends: usize,
    pub receives: usize,
}

impl Pace {
    pub const WHOLE: Self = Self { sends: usize::MAX, receives: usize::MAX };
}

/// What was negotiated before the transmission phase begins.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Terms {
    pub form: Form,
    /// All contexts were selected: `base:allocation`, then one for each earlier moment of the device.
    pub contexts: bool,
}

/// Which message forms were negotiated.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Form {
    Simple,
    Structured,
    Extended,
}

/// A client that has said everything it will ever say, and keeps whatever comes.
#[derive(Debug)]
struct Recording<'b> {
    rest: &'b [u8],
    pace: Pace,
    answer: Vec<u8>,
}

impl AsyncRead for Recording<'_> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        space: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let most = space.remaining().min(self.pace.sends);
        let (now, later) = self.rest.split_at(self.rest.len().min(most));
        space.put_slice(now);
        self.rest = later;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Recording<'_> {
    fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let taken = bytes.len().min(self.pace.receives);
        self.answer.extend_from_slice(&bytes[..taken]);
        Poll::Ready(Ok(taken))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

fn run_to_end(future: impl Future<Output = ()>) {
    thread_local! {
        static RUNTIME: tokio::runtime::Runtime =
            tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime starts");
    }
    RUNTIME.with(|runtime| runtime.block_on(future));
}

/// Everything a client sends, from its handshake flags on, to a server of `exports`. Returns the answer.
pub fn handshake_with<E: Exports>(exports: E, tls: Option<TlsConfig>, pace: Pace, bytes: &[u8]) -> Vec<u8> {
    let config = ServerConfig { tls, ..ServerConfig::default() };
    let server = NbdServer::new(Arc::new(exports), config, Ports::system()).expect("good limits");
    let mut client = Recording { rest: bytes, pace, answer: Vec::new() };
    run_to_end(async {
        // Most inputs break the protocol: the error is the expected end.
        let _ended = server.serve_stream(&mut client, Transport::Tcp, &CancellationToken::new()).await;
    });
    client.answer
}

/// What a client sends in the transmission phase to a server of `device`. Returns the answer.
pub fn transmission_with<D: BlockDevice>(device: Arc<D>, terms: Terms, pace: Pace, bytes: &[u8]) -> Vec<u8> {
    let style = match terms.form {
        Form::Simple => Style::Simple,
        Form::Structured => Style::Structured,
        Form::Extended => Style::Extended,
    };
    let mut client = Recording { rest: bytes, pace, answer: Vec::new() };
    run_to_end(async {
        let mut contexts = Contexts::default();
        if style != Style::Simple && terms.contexts {
            contexts.allocation = true;
            for name in device.earlier().await.unwrap_or_default() {
                if let Ok(Some(earlier)) = device.open_earlier(&name).await {
                    contexts.add(earlier);
                }
            }
        }
        let agreed = Agreed { device, export: "disk".to_owned(), style, contexts };
        let (limits, counters, stop) = (Limits::default(), Counters::default(), CancellationToken::new());
        let _ended = transmission::serve(&mut client, &agreed, &limits, &counters, &stop).await;
    });
    client.answer
}

/// [`handshake_with`] a tiny device in memory. Returns how many bytes the server answered.
pub fn handshake(bytes: &[u8]) -> u64 {
    let device = MemoryDevice::new(DEVICE_BYTES);
    device.remember("monday");
    let exports = DeviceTable::new([("disk".to_owned(), Arc::new(device))]);
    handshake_with(exports, None, Pace::WHOLE, bytes).len() as u64
}

/// [`transmission_with`] a tiny device in memory; the first byte chooses what was negotiated. Returns how many bytes
/// the server answered.
pub fn transmission(bytes: &[u8]) -> u64 {
    let Some((choice, rest)) = bytes.split_first() else { return 0 };
    let form = [Form::Simple, Form::Structured, Form::Extended][usize::from(choice % 3)];
    let terms = Terms { form, contexts: choice & 0x40 != 0 };
    let device = MemoryDevice::new(DEVICE_BYTES);
    device.remember("monday");
    transmission_with(Arc::new(device), terms, Pace::WHOLE, rest).len() as u64
}
