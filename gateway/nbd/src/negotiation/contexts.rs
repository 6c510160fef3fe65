//! Metadata contexts: `base:allocation`, and `qemu:dirty-bitmap:` with the name of an earlier moment, for what changed since.
//!
//! A context that is selected holds its moment open, from SET_META_CONTEXT on and until the client leaves or selects others.

use super::Negotiation;
use super::answer::Answer;
use crate::protocol::handshake::ReplyType;
use crate::protocol::options::ContextRequest;
use crate::protocol::{
    BASE_ALLOCATION, CONTEXTS_MAX, DIRTY_BITMAP, EARLIER_LISTED_MAX, EARLIER_MAX, STRING_MAX, Style,
};
use cairn_model::{BlockDevice, Exports};
use std::sync::Arc;

/// These select nothing, but list everything of their namespace.
const BASE_WILDCARD: &[u8] = b"base:";
const QEMU_WILDCARDS: [&[u8]; 2] = [b"qemu:", DIRTY_BITMAP.as_bytes()];

const _: () = assert!(CONTEXTS_MAX < u32::BITS as usize, "a set of contexts is a word");

/// Some of the contexts of a client, by their identifiers.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct ContextSet(u32);

impl ContextSet {
    /// The identifier of `base:allocation`; those of earlier moments follow. Clients treat them as opaque.
    pub(crate) const ALLOCATION: u32 = 1;

    pub(crate) const fn is_empty(self) -> bool {
        self.0 == 0
    }

    pub(crate) fn len(self) -> usize {
        self.0.count_ones() as usize
    }

    pub(crate) const fn contains(self, id: u32) -> bool {
        id < u32::BITS && self.0 & (1 << id) != 0
    }

    /// With one more; `None` when it is there already or no identifier.
    pub(crate) fn with(self, id: u32) -> Option<Self> {
        ((1..u32::BITS).contains(&id) && !self.contains(id)).then(|| Self(self.0 | 1 << id))
    }

    /// The identifiers, in order.
    pub(crate) fn ids(self) -> impl Iterator<Item = u32> {
        (1..u32::BITS).filter(move |id| self.contains(*id))
    }
}

/// The contexts that a client selected.
#[derive(Debug)]
pub(crate) struct Contexts<D: BlockDevice> {
    pub(crate) allocation: bool,
    /// What their device was, in the order of their identifiers.
    earlier: Vec<Arc<D::Earlier>>,
}

impl<D: BlockDevice> Default for Contexts<D> {
    fn default() -> Self {
        Self { allocation: false, earlier: Vec::new() }
    }
}

impl<D: BlockDevice> Clone for Contexts<D> {
    fn clone(&self) -> Self {
        Self { allocation: self.allocation, earlier: self.earlier.clone() }
    }
}

impl<D: BlockDevice> Contexts<D> {
    const FIRST_EARLIER: u32 = ContextSet::ALLOCATION + 1;

    /// Selects an earlier moment. Returns its identifier.
    pub(crate) fn add(&mut self, earlier: D::Earlier) -> u32 {
        debug_assert!(self.earlier.len() < EARLIER_MAX, "the caller counts");
        self.earlier.push(Arc::new(earlier));
        Self::FIRST_EARLIER - 1 + u32::try_from(self.earlier.len()).expect("contexts are few")
    }

    pub(crate) fn all(&self) -> ContextSet {
        let end = Self::FIRST_EARLIER + u32::try_from(self.earlier.len()).expect("contexts are few");
        let allocation = self.allocation.then_some(ContextSet::ALLOCATION);
        let ids = allocation.into_iter().chain(Self::FIRST_EARLIER..end);
        ids.fold(ContextSet::default(), |set, id| set.with(id).expect("each is there once"))
    }

    /// The earlier moment of an identifier; `None` is that of allocation.
    pub(crate) fn earlier(&self, id: u32) -> Option<&D::Earlier> {
        let index = id.checked_sub(Self::FIRST_EARLIER)?;
        Some(&*self.earlier[index as usize])
    }
}

/// What a client selected last.
#[derive(Debug)]
pub(super) struct Selected<D: BlockDevice> {
    pub(super) export: Vec<u8>,
    pub(super) contexts: Contexts<D>,
}

impl<E: Exports> Negotiation<'_, E> {
    pub(super) async fn list_contexts(&self, data: &[u8], answer: &mut Answer<'_>) {
        let Some((request, device)) = self.context_request(data, answer).await else { return };
        let asks = |name: &[u8], wildcards: &[&[u8]]| {
            let matches = |query: &&[u8]| *query == name || wildcards.contains(query);
            request.queries.is_empty() || request.queries.iter().any(matches)
        };
        if asks(BASE_ALLOCATION.as_bytes(), &[BASE_WILDCARD]) {
            answer.put(ReplyType::MetaContext, &[&[0; 4], BASE_ALLOCATION.as_bytes()]);
        }
        let is_of_qemu = |query: &&[u8]| query.starts_with(QEMU_WILDCARDS[0]);
        if request.queries.is_empty() || request.queries.iter().any(is_of_qemu) {
            let names = device.earlier().await.unwrap_or_else(|error| {
                tracing::warn!(%error, "contexts of earlier moments cannot be listed");
                Vec::new()
            });
            let latest = &names[names.len().saturating_sub(EARLIER_LISTED_MAX)..];
            for name in latest.iter().filter(|name| is_sayable(name)) {
                let context = [DIRTY_BITMAP, name.as_str()].concat();
                if asks(context.as_bytes(), &QEMU_WILDCARDS) {
                    answer.put(ReplyType::MetaContext, &[&[0; 4], context.as_bytes()]);
                }
            }
        }
        answer.acknowledge();
    }

    /// Replaces what was selected before, also when it fails.
    pub(super) async fn set_contexts(&mut self, data: &[u8], answer: &mut Answer<'_>) {
        self.selected = None;
        let Some((request, device)) = self.context_request(data, answer).await else { return };
        let names = earlier_names(&request);
        if names.len() > EARLIER_MAX {
            let message = "at most 16 contexts of earlier moments can be selected at a time";
            answer.fail(ReplyType::ErrorTooBig, message);
            return;
        }
        let mut contexts = Contexts::default();
        if request.queries.contains(&BASE_ALLOCATION.as_bytes()) {
            contexts.allocation = true;
            let id = ContextSet::ALLOCATION.to_be_bytes();
            answer.put(ReplyType::MetaContext, &[&id, BASE_ALLOCATION.as_bytes()]);
        }
        for name in names {
            match device.open_earlier(name).await {
                Ok(Some(earlier)) => {
                    let id = contexts.add(earlier).to_be_bytes();
                    answer.put(ReplyType::MetaContext, &[&id, DIRTY_BITMAP.as_bytes(), name.as_bytes()]);
                }
                // The client sees that it was not selected.
                Ok(None) => {}
                Err(error) => tracing::warn!(earlier = name, %error, "an earlier moment cannot be opened"),
            }
        }
        if !contexts.all().is_empty() {
            self.selected = Some(Selected { export: request.name.to_vec(), contexts });
        }
        answer.acknowledge();
    }

    /// The request and the device that it is about, unless it was answered with an error.
    async fn context_request<'d>(
        &self,
        data: &'d [u8],
        answer: &mut Answer<'_>,
    ) -> Option<(ContextRequest<'d>, Arc<E::Device>)> {
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
        let Some(device) = self.open(request.name).await else {
            answer.fail(ReplyType::ErrorUnknown, "there is no export of that name");
            return None;
        };
        Some((request, device))
    }
}

/// The earlier moments that are asked for, each once.
fn earlier_names<'d>(request: &ContextRequest<'d>) -> Vec<&'d str> {
    let mut names = Vec::new();
    for query in &request.queries {
        let name = query.strip_prefix(DIRTY_BITMAP.as_bytes()).filter(|name| !name.is_empty());
        // A name that is no UTF-8 is no moment's.
        let name = name.and_then(|name| std::str::from_utf8(name).ok());
        // One too many is enough to refuse them.
        if let Some(name) = name.filter(|name| !names.contains(name) && names.len() <= EARLIER_MAX) {
            names.push(name);
        }
    }
    names
}

/// Whether a context can have this name.
fn is_sayable(name: &str) -> bool {
    !name.is_empty() && DIRTY_BITMAP.len() + name.len() <= STRING_MAX
}
