//! The handshake, from the greeting to the transmission phase.
//!
//! Options are read with exact lengths and never ahead, so nothing that a client (or somebody between) sent in the
//! clear behind STARTTLS can be taken for something said inside TLS.

mod answer;
mod contexts;

use crate::error::NbdError;
use crate::protocol::handshake::{
    ClientFlags, OPTION_HEADER_LENGTH, OptionCode, OptionHeader, ReplyType, greeting,
};
use crate::protocol::{STRING_MAX, Style};
use answer::Answer;
use cairn_model::{BlockDevice, Exports};
use contexts::Selected;
pub(crate) use contexts::{ContextSet, Contexts};
use std::sync::Arc;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// Longest option data that is looked at.
const OPTION_DATA_MAX: u32 = 64 << 10;
/// Longer data is skipped and refused up to here; a client that announces more is hung up on.
const OPTION_SKIP_MAX: u32 = 1 << 20;
/// Options of one connection: listing and asking about every volume of a site takes a few thousand.
const OPTIONS_MAX: usize = 65_536;

/// What TLS means for one connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum TlsState {
    /// The server has none.
    Absent,
    /// It may be started.
    Offered,
    /// It must be started before anything else.
    Required,
    Active,
}

/// What the client chose.
#[derive(Debug)]
pub(crate) struct Agreed<D: BlockDevice> {
    pub(crate) device: Arc<D>,
    pub(crate) export: String,
    pub(crate) style: Style,
    /// Those that were selected for this export.
    pub(crate) contexts: Contexts<D>,
}

/// How a run of options ended.
#[derive(Debug)]
pub(crate) enum Outcome<D: BlockDevice> {
    Enter(Agreed<D>),
    StartTls,
    /// The client left politely.
    Leave,
}

/// What the client has negotiated so far.
#[derive(Debug)]
pub(crate) struct Negotiation<'e, E: Exports> {
    exports: &'e E,
    client: ClientFlags,
    tls: TlsState,
    style: Style,
    /// The contexts that were last selected, and for which export.
    selected: Option<Selected<E::Device>>,
    options: usize,
}

impl<'e, E: Exports> Negotiation<'e, E> {
    /// Greets the client and reads its flags.
    pub(crate) async fn greet<S>(exports: &'e E, tls: TlsState, stream: &mut S) -> Result<Self, NbdError>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        stream.write_all(&greeting()).await?;
        stream.flush().await?;
        let mut flags = [0; 4];
        stream.read_exact(&mut flags).await?;
        let client = ClientFlags::decode(u32::from_be_bytes(flags))
            .ok_or(NbdError::Protocol("it set handshake flags that were not offered"))?;
        Ok(Self { exports, client, tls, style: Style::Simple, selected: None, options: 0 })
    }

    /// The same client after STARTTLS: all that it said in the clear is forgotten.
    pub(crate) fn secured(self) -> Self {
        Self { tls: TlsState::Active, style: Style::Simple, selected: None, ..self }
    }

    /// Answers options until one ends the handshake.
    pub(crate) async fn run<S>(&mut self, stream: &mut S) -> Result<Outcome<E::Device>, NbdError>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let mut out = Vec::new();
        loop {
            let Some(header) = read_header(stream).await? else {
                return Ok(Outcome::Leave);
            };
            self.options += 1;
            if self.options > OPTIONS_MAX {
                return Err(NbdError::Protocol("it sent too many options"));
            }
            self.admit(header)?;
            out.clear();
            let outcome = if let Some(data) = read_data(stream, header).await? {
                self.answer(header, &data, &mut out).await?
            } else {
                Answer::new(header, &mut out).fail(ReplyType::ErrorTooBig, "the option is too long");
                None
            };
            stream.write_all(&out).await?;
            stream.flush().await?;
            if let Some(outcome) = outcome {
                return Ok(outcome);
            }
        }
    }

    /// EXPORT_NAME cannot be answered with an error, and a client without fixed newstyle knows nothing else.
    fn admit(&self, header: OptionHeader) -> Result<(), NbdError> {
        let export_name = header.code() == OptionCode::ExportName;
        let refusal = if !export_name && !self.client.fixed_newstyle {
            "it sent an option without having announced fixed newstyle"
        } else if export_name && header.data_length as usize > STRING_MAX {
            "its export name is too long"
        } else if export_name && self.tls == TlsState::Required {
            "it asked for an export without the TLS that is required"
        } else if export_name && self.style == Style::Extended {
            "it mixed EXPORT_NAME with extended headers"
        } else {
            return Ok(());
        };
        Err(NbdError::Protocol(refusal))
    }
}

/// `None` when the client closed the connection between two options.
async fn read_header<S: AsyncRead + Unpin>(stream: &mut S) -> Result<Option<OptionHeader>, NbdError> {
    let mut bytes = [0; OPTION_HEADER_LENGTH];
    let first = stream.read(&mut bytes).await?;
    if first == 0 {
        return Ok(None);
    }
    stream.read_exact(&mut bytes[first..]).await?;
    OptionHeader::decode(&bytes).map(Some).ok_or(NbdError::Protocol("an option began with a wrong magic"))
}

/// `None` when there was too much of it to look at: it is skipped.
async fn read_data<S: AsyncRead + Unpin>(
    stream: &mut S,
    header: OptionHeader,
) -> Result<Option<Vec<u8>>, NbdError> {
    let length = header.data_length;
    if length > OPTION_SKIP_MAX {
        return Err(NbdError::Protocol("it announced an absurdly long option"));
    }
    if length > OPTION_DATA_MAX {
        let skipped = tokio::io::copy(&mut stream.take(u64::from(length)), &mut tokio::io::sink()).await?;
        return if skipped == u64::from(length) {
            Ok(None)
        } else {
            Err(NbdError::Protocol("it left mid-option"))
        };
    }
    let mut data = vec![0; length as usize];
    stream.read_exact(&mut data).await?;
    Ok(Some(data))
}
