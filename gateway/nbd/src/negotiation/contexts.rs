//! Metadata contexts: there is one, `base:allocation`.

use super::Negotiation;
use super::answer::Answer;
use crate::protocol::handshake::ReplyType;
use crate::protocol::options::ContextRequest;
use crate::protocol::{BASE_ALLOCATION, BASE_ALLOCATION_ID, Style};
use cairn_model::Exports;

/// Selects nothing, but lists everything of its namespace.
const BASE_WILDCARD: &[u8] = b"base:";

impl<E: Exports> Negotiation<'_, E> {
    pub(super) async fn list_contexts(&self, data: &[u8], answer: &mut Answer<'_>) {
        let Some(request) = self.context_request(data, answer).await else { return };
        let matches = |query: &&[u8]| *query == BASE_WILDCARD || *query == BASE_ALLOCATION.as_bytes();
        if request.queries.is_empty() || request.queries.iter().any(matches) {
            answer.put(ReplyType::MetaContext, &[&[0; 4], BASE_ALLOCATION.as_bytes()]);
        }
        answer.acknowledge();
    }

    /// Replaces what was selected before, also when it fails.
    pub(super) async fn set_contexts(&mut self, data: &[u8], answer: &mut Answer<'_>) {
        self.contexts_of = None;
        let Some(request) = self.context_request(data, answer).await else { return };
        if request.queries.contains(&BASE_ALLOCATION.as_bytes()) {
            let id = BASE_ALLOCATION_ID.to_be_bytes();
            answer.put(ReplyType::MetaContext, &[&id, BASE_ALLOCATION.as_bytes()]);
            self.contexts_of = Some(request.name.to_vec());
        }
        answer.acknowledge();
    }

    /// The request, unless it was answered with an error.
    async fn context_request<'d>(
        &self,
        data: &'d [u8],
        answer: &mut Answer<'_>,
    ) -> Option<ContextRequest<'d>> {
        if self.style == Style::Simple {
            let message = "negotiate structured replies or extended headers first";
            answer.fail(ReplyType::ErrorInvalid, message);
            return None;
        }
        let request = match ContextRequest::decode(data) {
            Ok(request) => request,
            Err(bad) => {
                answer.fail_bad(bad);
                return None;
            }
        };
        if self.open(request.name).await.is_none() {
            answer.fail(ReplyType::ErrorUnknown, "there is no export of that name");
            return None;
        }
        Some(request)
    }
}
