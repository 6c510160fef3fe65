//! The store behind a node: at hand, or opened when it is first needed.

use super::NodeUrl;
use super::attach::NodeAccess;
use super::classify::Failure;
use crate::error::PoolError;
use cairn_model::{Clock, Monotonic};
use futures::FutureExt;
use futures::future::{BoxFuture, Shared};
use object_store::ObjectStore;
use parking_lot::Mutex;
use std::sync::Arc;
use std::time::Duration;

/// How long others wait for an opening that hangs, before it is tried anew: what hung may have been mounted anew under the same path.
const STUCK_AFTER: Duration = Duration::from_mins(5);
/// How often that is doubled, at most: some five days.
const STUCK_DOUBLINGS: u32 = 10;

type Opened = Result<Arc<dyn ObjectStore>, PoolError>;

#[derive(Debug)]
pub(super) enum Source {
    Open(Arc<dyn ObjectStore>),
    Lazy { access: Box<NodeAccess>, state: Mutex<State> },
}

/// Which opening a store came of: what is known of one says nothing of the next.
pub(super) type Opening = u64;

#[derive(Default, Debug)]
pub(super) struct State {
    /// The last one, and how many that hung there were in a row.
    last: Opening,
    stuck: u32,
    phase: Phase,
}

#[derive(Default)]
enum Phase {
    #[default]
    Closed,
    /// A directory whose file system may hang. Whoever needs the store waits for the same opening, as long as it likes.
    Opening {
        since: Monotonic,
        opened: Shared<BoxFuture<'static, Opened>>,
    },
    Open(Arc<dyn ObjectStore>),
}

impl std::fmt::Debug for Phase {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Closed => "closed",
            Self::Opening { .. } => "opening",
            Self::Open(_) => "open",
        })
    }
}

impl Source {
    pub(super) fn lazy(access: NodeAccess) -> Self {
        Self::Lazy { access: Box::new(access), state: Mutex::default() }
    }

    /// The store, opened if need be: a few calls of the file system for a directory, on a thread of their own and once at a time, however many wait and
    /// give up; none of the network for a bucket.
    pub(super) async fn store(&self, clock: &dyn Clock) -> Result<(Arc<dyn ObjectStore>, Opening), Failure> {
        let (access, state) = match self {
            Self::Open(store) => return Ok((Arc::clone(store), 0)),
            Self::Lazy { access, state } => (access, state),
        };
        let (opening, number) = {
            let state = &mut *state.lock();
            let opened = match &state.phase {
                Phase::Open(store) => return Ok((Arc::clone(store), state.last)),
                Phase::Opening { since, opened } if clock.now().since(*since) < stuck_after(state.stuck) => {
                    opened.clone()
                }
                phase @ (Phase::Opening { .. } | Phase::Closed) => {
                    state.stuck += u32::from(matches!(phase, Phase::Opening { .. }));
                    state.last += 1;
                    let opened = open((**access).clone()).shared();
                    state.phase = Phase::Opening { since: clock.now(), opened: opened.clone() };
                    opened
                }
            };
            (opened, state.last)
        };
        let opened = opening.await;
        let state = &mut *state.lock();
        // Others that waited for it may have been here, and closed it again.
        if state.last == number && matches!(state.phase, Phase::Opening { .. }) {
            state.stuck = 0;
            state.phase = opened.as_ref().map_or(Phase::Closed, |store| Phase::Open(Arc::clone(store)));
        }
        let opened = opened.map(|store| (store, number));
        opened.map_err(|error| Failure { transient: error.retryable(), error })
    }

    /// Lets go of what that opening brought, which turned out to be another place. A store that is at hand stays.
    pub(super) fn close(&self, opening: Opening) {
        if let Self::Lazy { state, .. } = self {
            let state = &mut *state.lock();
            if state.last == opening && matches!(state.phase, Phase::Open(_)) {
                state.phase = Phase::Closed;
            }
        }
    }
}

/// Each opening that hangs keeps a thread, for ever perhaps: the more there are, the rarer are others.
fn stuck_after(stuck: u32) -> Duration {
    STUCK_AFTER * 2_u32.pow(stuck.min(STUCK_DOUBLINGS))
}

fn open(access: NodeAccess) -> BoxFuture<'static, Opened> {
    if let NodeUrl::S3(_) = &access.url {
        return std::future::ready(access.store()).boxed();
    }
    let failed = access.clone();
    let opening = tokio::task::spawn_blocking(move || access.store());
    let opened = opening.map(move |opened| opened.unwrap_or_else(|died| Err(failed.opening_failed(died))));
    opened.boxed()
}
