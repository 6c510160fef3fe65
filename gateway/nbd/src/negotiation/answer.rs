//! What each option is answered with.

use super::{Agreed, Negotiation, Outcome, TlsState};
use crate::error::NbdError;
use crate::protocol::handshake::{OptionCode, OptionHeader, ReplyType, put_option_reply};
use crate::protocol::options::{BadOption, InfoRequest, information};
use crate::protocol::{BLOCK_SIZE_MIN, BLOCK_SIZE_PREFERRED, PAYLOAD_ANNOUNCED, Style, transmission_flags};
use cairn_model::{BlockDevice, Exports};

/// Where the replies to one option are gathered.
#[derive(Debug)]
pub(super) struct Answer<'o> {
    option: u32,
    out: &'o mut Vec<u8>,
}

impl<'o> Answer<'o> {
    pub(super) fn new(header: OptionHeader, out: &'o mut Vec<u8>) -> Self {
        Self { option: header.raw, out }
    }

    pub(super) fn put(&mut self, kind: ReplyType, parts: &[&[u8]]) {
        put_option_reply(self.out, self.option, kind, parts);
    }

    pub(super) fn acknowledge(&mut self) {
        self.put(ReplyType::Ack, &[]);
    }

    pub(super) fn fail(&mut self, kind: ReplyType, message: &str) {
        self.put(kind, &[message.as_bytes()]);
    }

    pub(super) fn fail_bad(&mut self, bad: BadOption) {
        match bad {
            BadOption::Malformed => self.fail(ReplyType::ErrorInvalid, "the option's data is malformed"),
            BadOption::TooLong => self.fail(ReplyType::ErrorTooBig, "a string is longer than 4096 bytes"),
        }
    }

    /// The option may have no data.
    fn has_no_data(&mut self, data: &[u8]) -> bool {
        if !data.is_empty() {
            self.fail(ReplyType::ErrorInvalid, "this option takes no data");
        }
        data.is_empty()
    }
}

impl<E: Exports> Negotiation<'_, E> {
    /// Appends the replies to one option; an outcome when it ends the handshake.
    pub(super) async fn answer(
        &mut self,
        header: OptionHeader,
        data: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<Option<Outcome<E::Device>>, NbdError> {
        let code = header.code();
        if code == OptionCode::ExportName {
            return self.enter_by_name(data, out).await.map(Some);
        }
        let mut answer = Answer::new(header, out);
        if self.tls == TlsState::Required && !matches!(code, OptionCode::StartTls | OptionCode::Abort) {
            answer.fail(ReplyType::ErrorTlsRequired, "this server requires TLS");
            return Ok(None);
        }
        match code {
            OptionCode::Abort => {
                answer.acknowledge();
                return Ok(Some(Outcome::Leave));
            }
            OptionCode::StartTls => return Ok(self.start_tls(data, &mut answer)),
            OptionCode::Info | OptionCode::Go => {
                let agreed = self.describe(data, &mut answer).await;
                return Ok(agreed.filter(|_| code == OptionCode::Go).map(Outcome::Enter));
            }
            OptionCode::List => self.list(data, &mut answer),
            OptionCode::StructuredReply => self.structured_reply(data, &mut answer),
            OptionCode::ExtendedHeaders => {
                if answer.has_no_data(data) {
                    self.style = Style::Extended;
                    answer.acknowledge();
                }
            }
            OptionCode::ListMetaContext => self.list_contexts(data, &mut answer).await,
            OptionCode::SetMetaContext => self.set_contexts(data, &mut answer).await,
            OptionCode::ExportName | OptionCode::Unknown => {
                answer.fail(ReplyType::ErrorUnsupported, "this server does not know the option");
            }
        }
        Ok(None)
    }

    /// An export by the bytes of its name; a name that is no UTF-8 is no export's.
    pub(super) async fn open(&self, name: &[u8]) -> Option<std::sync::Arc<E::Device>> {
        self.exports.open(std::str::from_utf8(name).ok()?).await
    }

    fn start_tls(&mut self, data: &[u8], answer: &mut Answer<'_>) -> Option<Outcome<E::Device>> {
        if !answer.has_no_data(data) {
            return None;
        }
        match self.tls {
            TlsState::Absent => answer.fail(ReplyType::ErrorPolicy, "TLS is not set up on this server"),
            TlsState::Active => answer.fail(ReplyType::ErrorInvalid, "TLS is already active"),
            TlsState::Offered | TlsState::Required => {
                answer.acknowledge();
                return Some(Outcome::StartTls);
            }
        }
        None
    }

    fn list(&self, data: &[u8], answer: &mut Answer<'_>) {
        if !answer.has_no_data(data) {
            return;
        }
        for name in self.exports.names() {
            let length = u32::try_from(name.len()).expect("names are short").to_be_bytes();
            answer.put(ReplyType::Server, &[&length, name.as_bytes()]);
        }
        answer.acknowledge();
    }

    fn structured_reply(&mut self, data: &[u8], answer: &mut Answer<'_>) {
        if !answer.has_no_data(data) {
            return;
        }
        if self.style == Style::Extended {
            let message = "extended headers are already negotiated";
            answer.fail(ReplyType::ErrorExtendedHeadersRequired, message);
            return;
        }
        self.style = Style::Structured;
        answer.acknowledge();
    }

    /// INFO and GO: what was chosen, if the export exists.
    async fn describe(&self, data: &[u8], answer: &mut Answer<'_>) -> Option<Agreed<E::Device>> {
        let request = match InfoRequest::decode(data) {
            Ok(request) => request,
            Err(bad) => {
                answer.fail_bad(bad);
                return None;
            }
        };
        let Some(agreed) = self.agree(request.name).await else {
            answer.fail(ReplyType::ErrorUnknown, "there is no export of that name");
            return None;
        };
        let (size, flags) = self.terms(&agreed);
        answer.put(ReplyType::Info, &[&information::EXPORT.to_be_bytes(), &size, &flags]);
        if request.wants_name && !request.name.is_empty() {
            answer.put(ReplyType::Info, &[&information::NAME.to_be_bytes(), request.name]);
        }
        if request.wants_block_size {
            let sizes = [BLOCK_SIZE_MIN, BLOCK_SIZE_PREFERRED, PAYLOAD_ANNOUNCED].map(u32::to_be_bytes);
            answer.put(ReplyType::Info, &[&information::BLOCK_SIZE.to_be_bytes(), sizes.as_flattened()]);
        }
        answer.acknowledge();
        Some(agreed)
    }

    async fn enter_by_name(&self, name: &[u8], out: &mut Vec<u8>) -> Result<Outcome<E::Device>, NbdError> {
        let agreed =
            self.agree(name).await.ok_or(NbdError::Protocol("it asked for an export that does not exist"))?;
        let (size, flags) = self.terms(&agreed);
        out.extend_from_slice(&size);
        out.extend_from_slice(&flags);
        if !self.client.no_zeroes {
            out.extend_from_slice(&[0; 124]);
        }
        Ok(Outcome::Enter(agreed))
    }

    async fn agree(&self, name: &[u8]) -> Option<Agreed<E::Device>> {
        let device = self.open(name).await?;
        let export = String::from_utf8(name.to_vec()).ok()?;
        let selected = self.selected.as_ref().filter(|selected| selected.export == name);
        let contexts = selected.map(|selected| selected.contexts.clone()).unwrap_or_default();
        Some(Agreed { device, export, style: self.style, contexts })
    }

    /// Present size and transmission flags.
    fn terms(&self, agreed: &Agreed<E::Device>) -> ([u8; 8], [u8; 2]) {
        let info = agreed.device.info();
        let flags = transmission_flags(info.read_only, self.style, !agreed.contexts.all().is_empty());
        (info.size_bytes.to_be_bytes(), flags.to_be_bytes())
    }
}
