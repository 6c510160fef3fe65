//! A data node: one object store, asked with timeouts and retries.
//!
//! Invariants:
//! 1. A put returns a success only after the store acknowledged all bytes under the key.
//! 2. A put whose reply is lost is repeated with the same key and bytes: whichever attempt took effect, the object
//!    is the same. Keys belong to one attempt of packing and are never used for other bytes.
//! 3. A delete succeeds when the object is gone, whoever deleted it.
//! 4. A get returns exactly the bytes of the range, or an error. Absence is an error, never zeros.
//! 5. A node that is opened for a site is asked for data only after its marker was found right; it is looked at again when the node was out of service and
//!    when an object was missing: what answers now may be a place that was wiped, or another one.

use super::classify::{Failure, classify, too_short};
use super::health::{Direction, NodeHealth, Refusal};
use super::marker::{MARKER_BYTES_MAX, MARKER_KEY, Marker};
use super::policy::RequestPolicy;
use super::source::{Opening, Source};
use crate::error::{Action, PoolError};
use bytes::{Bytes, BytesMut};
use cairn_model::{Clock, Monotonic, NodeId, Ports, SiteId, boxed};
use futures::TryStreamExt;
use object_store::path::Path;
use object_store::{
    GetOptions, GetRange, GetResult, GetResultPayload, ObjectStore, ObjectStoreExt, PutMode, PutOptions,
    PutPayload,
};
use parking_lot::Mutex;
use std::future::Future;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Longest range read at once: no container is longer.
pub const GET_BYTES_MAX: u64 = 64 << 20;

/// One object store of a pool.
#[derive(Debug)]
pub struct DataNode {
    id: NodeId,
    /// For messages: the node's URL.
    name: Arc<str>,
    source: Source,
    policy: RequestPolicy,
    ports: Ports,
    health: NodeHealth,
    /// Whose marker must be there; `None` where there need be none.
    site: Option<SiteId>,
    /// In what the marker was found right, and how many doubts there had been when it was looked for.
    verified: Mutex<Option<(Opening, u64)>>,
    /// What happened that may mean that something else is there.
    doubts: AtomicU64,
}

impl DataNode {
    /// A node on a store that was checked, or that needs no check (the simulation's). `name` is for messages.
    pub fn with_store(
        id: NodeId,
        name: &str,
        store: Arc<dyn ObjectStore>,
        policy: RequestPolicy,
        ports: Ports,
    ) -> Self {
        Self::of_source(id, name, Source::Open(store), None, policy, ports)
    }

    /// `site`: whose marker must be there.
    pub(super) fn of_source(
        id: NodeId,
        name: &str,
        source: Source,
        site: Option<SiteId>,
        policy: RequestPolicy,
        ports: Ports,
    ) -> Self {
        let health = NodeHealth::default();
        let (verified, doubts) = (Mutex::default(), AtomicU64::new(0));
        Self { id, name: name.into(), source, policy, ports, health, site, verified, doubts }
    }

    /// Its marker was found right in the store at hand.
    pub(super) fn verified(self) -> Self {
        *self.verified.lock() = Some((0, 0));
        self
    }

    pub(crate) const fn ports(&self) -> &Ports {
        &self.ports
    }

    pub const fn id(&self) -> NodeId {
        self.id
    }

    pub(super) const fn site(&self) -> Option<SiteId> {
        self.site
    }

    /// The same place without a look at whose it is.
    pub(super) async fn unguarded(&self) -> Result<Self, PoolError> {
        let limit = self.policy.get_attempt_timeout;
        let store =
            cairn_model::timeout(&*self.ports.clock, limit, self.source.store(&*self.ports.clock)).await;
        let (store, _) = store
            .unwrap_or_else(|_| Err(self.timed_out("open", "", limit)))
            .map_err(|failure| failure.error)?;
        Ok(Self::with_store(self.id, &self.name, store, self.policy, self.ports.clone()))
    }

    /// How long to wait before a request that failed is made again.
    pub(super) fn first_pause(&self) -> Duration {
        self.policy.backoff(0, &*self.ports.entropy)
    }

    /// For messages: the node's URL.
    pub const fn name(&self) -> &Arc<str> {
        &self.name
    }

    pub const fn health(&self) -> &NodeHealth {
        &self.health
    }

    /// Stores an object: `pieces` one behind the other.
    pub(crate) async fn put(&self, key: &str, pieces: &[Bytes]) -> Result<(), PoolError> {
        self.put_within(key, pieces, self.policy.put_give_up).await
    }

    /// The same; no further attempt begins after `give_up`.
    pub(crate) async fn put_within(
        &self,
        key: &str,
        pieces: &[Bytes],
        give_up: Duration,
    ) -> Result<(), PoolError> {
        let payload: PutPayload = pieces.iter().cloned().collect();
        let length = payload.content_length() as u64;
        let path = Path::from(key);
        let (path, payload) = (&path, &payload);
        self.request_within(Direction::Put, "put", key, give_up, |store| async move {
            let options = PutOptions { mode: PutMode::Overwrite, ..PutOptions::default() };
            store
                .put_opts(path, payload.clone(), options)
                .await
                .map(|_| ((), length))
                .map_err(|error| self.judge("put", key, error))
        })
        .await
    }

    /// Deletes an object; one that is not there is deleted already.
    pub(crate) async fn delete(&self, key: &str) -> Result<(), PoolError> {
        let path = Path::from(key);
        let path = &path;
        self.request(Direction::Delete, "delete", key, |store| async move {
            match store.delete(path).await {
                Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(((), 0)),
                Err(error) => Err(self.judge("delete", key, error)),
            }
        })
        .await
    }

    /// The bytes of a range of an object, all of them.
    #[boxed]
    pub async fn get_range(&self, key: &str, range: Range<u64>) -> Result<Bytes, PoolError> {
        self.get_range_within(key, range, self.policy.get_give_up).await
    }

    /// The same; no further attempt begins after `give_up`.
    pub(crate) async fn get_range_within(
        &self,
        key: &str,
        range: Range<u64>,
        give_up: Duration,
    ) -> Result<Bytes, PoolError> {
        let length = range.end.saturating_sub(range.start);
        if length == 0 || length > GET_BYTES_MAX {
            return Err(PoolError::Corrupt {
                node: Arc::clone(&self.name),
                key: key.to_owned(),
                part: format!("bytes {} to {}", range.start, range.end),
                reason: "no container has such a range: the catalog's entry is damaged".to_owned(),
            });
        }
        let (bytes, _) = self.get(key, &GetRange::Bounded(range), length, give_up).await?;
        if bytes.len() as u64 == length {
            Ok(bytes)
        } else {
            Err(too_short(self.name.clone(), key.to_owned()))
        }
    }

    /// The last `length` bytes of an object, or all if it has fewer, and the object's size.
    pub(crate) async fn get_suffix(&self, key: &str, length: u64) -> Result<(Bytes, u64), PoolError> {
        self.get(key, &GetRange::Suffix(length), length, self.policy.get_give_up).await
    }

    async fn get(
        &self,
        key: &str,
        range: &GetRange,
        length_max: u64,
        give_up: Duration,
    ) -> Result<(Bytes, u64), PoolError> {
        let path = Path::from(key);
        let path = &path;
        self.request_within(Direction::Get, "get", key, give_up, |store| async move {
            let (bytes, size) = self.get_once(&store, key, path, range, length_max).await?;
            let length = bytes.len() as u64;
            Ok(((bytes, size), length))
        })
        .await
    }

    async fn get_once(
        &self,
        store: &Arc<dyn ObjectStore>,
        key: &str,
        path: &Path,
        range: &GetRange,
        length_max: u64,
    ) -> Result<(Bytes, u64), Failure> {
        let options = GetOptions { range: Some(range.clone()), ..GetOptions::default() };
        let result = store.get_opts(path, options).await.map_err(|error| self.judge("get", key, error))?;
        let size = result.meta.size;
        let bytes = self.body(key, result, length_max).await?;
        Ok((bytes, size))
    }

    /// The body of an answer: as long as it was announced, and no longer than was asked for.
    async fn body(&self, key: &str, result: GetResult, length_max: u64) -> Result<Bytes, Failure> {
        let announced = result.range.end.saturating_sub(result.range.start);
        if announced > length_max {
            return Err(self.nonsense(key, "it answers with more than was asked for"));
        }
        let bytes = if let GetResultPayload::Stream(mut stream) = result.payload {
            let capacity = usize::try_from(announced).expect("at most GET_BYTES_MAX");
            let mut body = BytesMut::with_capacity(capacity);
            while let Some(piece) = stream.try_next().await.map_err(|error| self.judge("get", key, error))? {
                if body.len() + piece.len() > capacity {
                    return Err(self.nonsense(key, "its answer is longer than announced"));
                }
                body.extend_from_slice(&piece);
            }
            body.freeze()
        } else {
            result.bytes().await.map_err(|error| self.judge("get", key, error))?
        };
        if bytes.len() as u64 == announced {
            Ok(bytes)
        } else {
            Err(self.nonsense(key, "its answer was cut short"))
        }
    }

    fn judge(&self, verb: &'static str, key: &str, error: object_store::Error) -> Failure {
        classify(&self.name, Action { verb, key: key.to_owned() }, error)
    }

    fn nonsense(&self, key: &str, cause: &str) -> Failure {
        let action = Action { verb: "get", key: key.to_owned() };
        let error = PoolError::Unavailable {
            node: Arc::clone(&self.name),
            action,
            cause: cause.to_owned(),
            source: None,
        };
        Failure { error, transient: true }
    }

    /// Makes attempts until one succeeds, fails for good, or the time is over. An attempt yields its value and the bytes moved.
    async fn request<T, F>(
        &self,
        direction: Direction,
        verb: &'static str,
        key: &str,
        attempt: impl Fn(Arc<dyn ObjectStore>) -> F,
    ) -> Result<T, PoolError>
    where
        F: Future<Output = Result<(T, u64), Failure>>,
    {
        let give_up = match direction {
            Direction::Put | Direction::Delete => self.policy.put_give_up,
            Direction::Get => self.policy.get_give_up,
        };
        self.request_within(direction, verb, key, give_up, attempt).await
    }

    async fn request_within<T, F>(
        &self,
        direction: Direction,
        verb: &'static str,
        key: &str,
        give_up: Duration,
        attempt: impl Fn(Arc<dyn ObjectStore>) -> F,
    ) -> Result<T, PoolError>
    where
        F: Future<Output = Result<(T, u64), Failure>>,
    {
        let limit = match direction {
            Direction::Put | Direction::Delete => self.policy.put_attempt_timeout,
            Direction::Get => self.policy.get_attempt_timeout,
        };
        self.request_in_time(direction, verb, key, limit, give_up, attempt).await
    }

    /// The same; an attempt is given up after `limit`.
    async fn request_in_time<T, F>(
        &self,
        direction: Direction,
        verb: &'static str,
        key: &str,
        limit: Duration,
        give_up: Duration,
        attempt: impl Fn(Arc<dyn ObjectStore>) -> F,
    ) -> Result<T, PoolError>
    where
        F: Future<Output = Result<(T, u64), Failure>>,
    {
        let clock = &*self.ports.clock;
        let begun = clock.now();
        for number in 0.. {
            self.health.attempt(direction, number);
            let mut waiting = Waiting { node: self, direction, begun: clock.now(), is_over: false };
            let outcome = cairn_model::timeout(clock, limit, async {
                let store = self.service().await?;
                attempt(store).await
            });
            let outcome = outcome.await;
            waiting.is_over = true;
            let failure = match outcome {
                Ok(Ok((value, bytes))) => {
                    self.health.success(direction, bytes, clock.now().since(waiting.begun));
                    return Ok(value);
                }
                Ok(Err(failure)) => failure,
                Err(_) => {
                    if direction == Direction::Put && self.health.hung_at_put(clock.now()) {
                        self.doubt();
                    }
                    self.timed_out(verb, key, limit)
                }
            };
            self.failed(direction, clock, &failure.error);
            let pause = self.policy.backoff(number, &*self.ports.entropy);
            if !failure.transient || clock.now().plus(pause).since(begun) > give_up {
                return Err(failure.error);
            }
            tracing::debug!(node = %self.name, verb, key, error = %failure.error, ?pause, "request failed; trying again");
            clock.sleep(pause).await;
        }
        unreachable!("attempts are not counted out before the time is over")
    }

    /// Accounts for a failed attempt.
    fn failed(&self, direction: Direction, clock: &dyn Clock, error: &PoolError) {
        self.health.failure(clock.wall(), error.to_string(), error.retryable());
        let now = clock.now();
        match error {
            PoolError::OutOfSpace { .. } if direction == Direction::Put => {
                self.health.refuses_put(now, Refusal::Full);
            }
            PoolError::ReadOnly { .. } if direction == Direction::Put => {
                self.health.refuses_put(now, Refusal::ReadOnly);
            }
            PoolError::NotFound { .. } => self.doubt(),
            error if error.is_of_node() => self.blame(direction, now),
            _ => {}
        }
    }

    fn blame(&self, direction: Direction, now: Monotonic) {
        if self.health.blame(direction, now) {
            self.doubt();
        }
    }

    /// The next request looks at the marker first.
    fn doubt(&self) {
        self.doubts.fetch_add(1, Ordering::AcqRel);
    }

    /// The store, once it is known to be this node's.
    async fn service(&self) -> Result<Arc<dyn ObjectStore>, Failure> {
        let doubts = self.doubts.load(Ordering::Acquire);
        let (store, opening) = self.source.store(&*self.ports.clock).await?;
        let Some(site) = self.site.filter(|_| *self.verified.lock() != Some((opening, doubts))) else {
            return Ok(store);
        };
        let (path, range) = (Path::from(MARKER_KEY), GetRange::Suffix(MARKER_BYTES_MAX));
        let read = self.get_once(&store, MARKER_KEY, &path, &range, MARKER_BYTES_MAX).await;
        let checked = read.and_then(|(bytes, _)| {
            let marker = Marker::decode(&bytes, &self.name);
            let checked = marker.and_then(|marker| marker.check(site, self.id, &self.name));
            checked.map_err(|error| Failure { error, transient: false })
        });
        match checked {
            Ok(()) => {
                *self.verified.lock() = Some((opening, doubts));
                Ok(store)
            }
            Err(failure) => {
                // A directory that was replaced is opened anew: the right one may be back under its path.
                self.source.close(opening);
                let error = match failure.error {
                    PoolError::NotFound { .. } => {
                        PoolError::MarkerMissing { node: Arc::clone(&self.name), key: MARKER_KEY }
                    }
                    error => error,
                };
                Err(Failure { error, ..failure })
            }
        }
    }

    fn timed_out(&self, verb: &'static str, key: &str, limit: Duration) -> Failure {
        let error = PoolError::Unavailable {
            node: Arc::clone(&self.name),
            action: Action { verb, key: key.to_owned() },
            cause: format!("no answer within {} s", limit.as_secs_f32()),
            source: None,
        };
        Failure { error, transient: true }
    }
}

/// A request that has no answer yet. Dropped with the request, when another node was faster or nobody waits any more.
struct Waiting<'a> {
    node: &'a DataNode,
    direction: Direction,
    begun: Monotonic,
    is_over: bool,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        if !self.is_over {
            let now = self.node.ports.clock.now();
            if self.node.health.given_up(self.direction, now, now.since(self.begun)) {
                self.node.doubt();
            }
        }
    }
}

/// How long a node may go on to answer with pages of one list.
const LIST_LIMIT: Duration = Duration::from_hours(1);

/// Listing, which only a start and a recovery do.
impl DataNode {
    /// The objects below a folder, in no order: keys and lengths. A list has many pages, each of them a request: a node that goes on to answer is waited for, however many there are,
    /// and one that is silent for as long as an attempt may take is not.
    pub(crate) async fn list(&self, prefix: &str) -> Result<Vec<(String, u64)>, PoolError> {
        let path = Path::from(prefix);
        let path = &path;
        let (page_limit, give_up) = (self.policy.get_attempt_timeout, self.policy.get_give_up);
        self.request_in_time(Direction::Get, "list", prefix, LIST_LIMIT, give_up, |store| async move {
            let mut objects = Vec::new();
            let mut listed = store.list(Some(path));
            loop {
                let next = cairn_model::timeout(&*self.ports.clock, page_limit, listed.try_next()).await;
                let next = next.map_err(|_| self.timed_out("list", prefix, page_limit))?;
                let Some(object) = next.map_err(|error| self.judge("list", prefix, error))? else { break };
                objects.push((object.location.to_string(), object.size));
            }
            Ok((objects, 0))
        })
        .await
    }

    /// What is right in a folder: the folders in it, and its objects.
    pub(crate) async fn list_in(&self, prefix: &str) -> Result<(Vec<String>, Vec<String>), PoolError> {
        let path = Path::from(prefix);
        let path = &path;
        self.request(Direction::Get, "list", prefix, |store| async move {
            let listed = store.list_with_delimiter(Some(path)).await;
            let listed = listed.map_err(|error| self.judge("list", prefix, error))?;
            let folders = listed.common_prefixes.iter().map(ToString::to_string).collect();
            let objects = listed.objects.iter().map(|object| object.location.to_string()).collect();
            Ok(((folders, objects), 0))
        })
        .await
    }

    /// Asks the node who it is, whatever was found before. An error: it does not answer, or another one does.
    pub(crate) async fn look_who(&self) -> Result<(), PoolError> {
        self.doubt();
        match self.get_range(MARKER_KEY, 0..1).await {
            // One of which no marker is asked need not have any.
            Ok(_) | Err(PoolError::NotFound { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }
}

/// Requests that only attaching and opening a node makes.
impl DataNode {
    /// Stores an object unless one has the key. A store that ignores the condition overwrites: the caller reads back.
    pub(super) async fn put_new(&self, key: &str, bytes: Bytes) -> Result<(), PoolError> {
        let path = Path::from(key);
        let (path, bytes) = (&path, &bytes);
        self.request(Direction::Put, "put", key, |store| async move {
            let options = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
            match store.put_opts(path, bytes.clone().into(), options).await {
                // Somebody else's, or our own of an attempt whose reply was lost: reading back tells.
                Ok(_) | Err(object_store::Error::AlreadyExists { .. }) => Ok(((), bytes.len() as u64)),
                Err(error) => Err(self.judge("put", key, error)),
            }
        })
        .await
    }

    /// The key of some object, if there is one.
    pub(super) async fn any_key(&self) -> Result<Option<String>, PoolError> {
        self.request(Direction::Get, "list", "", |store| async move {
            let listed = store.list_with_delimiter(None).await;
            let listed = listed.map_err(|error| self.judge("list", "", error))?;
            let object = listed.objects.first().map(|object| object.location.to_string());
            let prefix = listed.common_prefixes.first().map(|prefix| format!("{prefix}/"));
            Ok((object.or(prefix), 0))
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pool::{NodeAccess, NodeUrl};

    #[tokio::test]
    async fn what_is_opened_anew_is_looked_at_anew() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("pool");
        std::fs::create_dir(&root).unwrap();
        let access = NodeAccess::new(NodeUrl::Directory(root.clone()));
        let site = SiteId::from_bytes([7; 16]);
        let id = DataNode::attach(&access, site, Ports::system()).await.unwrap().id();
        let node = DataNode::open_lazily(&access, site, id, Ports::system());
        let put = async || node.put("segments/ab/object", &[Bytes::from_static(b"x")]).await;
        put().await.unwrap();
        let (_, opening) = node.source.store(&*node.ports.clock).await.ok().unwrap();
        // A request has failed at the same time as the one that showed it to be the right place: the file system is not mounted any more.
        node.source.close(opening);
        std::fs::rename(&root, folder.path().join("elsewhere")).unwrap();
        std::fs::create_dir(&root).unwrap();
        assert!(matches!(put().await, Err(PoolError::MarkerMissing { .. })));
        assert_eq!(std::fs::read_dir(&root).unwrap().count(), 0, "nothing is put there");
        std::fs::remove_dir(&root).unwrap();
        std::fs::rename(folder.path().join("elsewhere"), &root).unwrap();
        put().await.unwrap();
        // Whoever failed in an earlier one closes nothing.
        let before = node.source.store(&*node.ports.clock).await.ok().unwrap();
        node.source.close(opening);
        assert_eq!(node.source.store(&*node.ports.clock).await.ok().unwrap().1, before.1);
    }
}
