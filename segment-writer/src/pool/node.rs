//! A data node: one object store, asked with timeouts and retries.
//!
//! Invariants:
//! 1. A put returns a success only after the store acknowledged all bytes under the key.
//! 2. A put whose reply is lost is repeated with the same key and bytes: whichever attempt took effect, the object
//!    is the same. Keys belong to one attempt of packing and are never used for other bytes.
//! 3. A delete succeeds when the object is gone, whoever deleted it.
//! 4. A get returns exactly the bytes of the range, or an error. Absence is an error, never zeros.

use super::classify::{Failure, classify, too_short};
use super::health::{Direction, NodeHealth};
use super::policy::RequestPolicy;
use crate::error::{Action, PoolError};
use bytes::{Bytes, BytesMut};
use cairn_model::{NodeId, Ports};
use futures::TryStreamExt;
use object_store::path::Path;
use object_store::{
    GetOptions, GetRange, GetResult, GetResultPayload, ObjectStore, ObjectStoreExt, PutMode, PutOptions,
    PutPayload,
};
use std::future::Future;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

/// Longest range read at once: no container is longer.
pub const GET_BYTES_MAX: u64 = 64 << 20;

/// One object store of a pool.
#[derive(Debug)]
pub struct DataNode {
    id: NodeId,
    /// For messages: the node's URL.
    name: Arc<str>,
    store: Arc<dyn ObjectStore>,
    policy: RequestPolicy,
    ports: Ports,
    health: NodeHealth,
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
        Self { id, name: name.into(), store, policy, ports, health: NodeHealth::default() }
    }

    pub const fn id(&self) -> NodeId {
        self.id
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
        let payload: PutPayload = pieces.iter().cloned().collect();
        let length = payload.content_length() as u64;
        let path = Path::from(key);
        self.request(Direction::Put, "put", key, || async {
            let options = PutOptions { mode: PutMode::Overwrite, ..PutOptions::default() };
            self.store
                .put_opts(&path, payload.clone(), options)
                .await
                .map(|_| ((), length))
                .map_err(|error| self.judge("put", key, error))
        })
        .await
    }

    /// Deletes an object; one that is not there is deleted already.
    pub(crate) async fn delete(&self, key: &str) -> Result<(), PoolError> {
        let path = Path::from(key);
        self.request(Direction::Delete, "delete", key, || async {
            match self.store.delete(&path).await {
                Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(((), 0)),
                Err(error) => Err(self.judge("delete", key, error)),
            }
        })
        .await
    }

    /// The bytes of a range of an object, all of them.
    pub async fn get_range(&self, key: &str, range: Range<u64>) -> Result<Bytes, PoolError> {
        let length = range.end.saturating_sub(range.start);
        if length == 0 || length > GET_BYTES_MAX {
            return Err(PoolError::Corrupt {
                node: Arc::clone(&self.name),
                key: key.to_owned(),
                part: format!("bytes {} to {}", range.start, range.end),
                reason: "no container has such a range: the catalog's entry is damaged".to_owned(),
            });
        }
        let (bytes, _) = self.get(key, &GetRange::Bounded(range), length).await?;
        if bytes.len() as u64 == length {
            Ok(bytes)
        } else {
            Err(too_short(self.name.clone(), key.to_owned()))
        }
    }

    /// The last `length` bytes of an object, or all if it has fewer, and the object's size.
    pub(crate) async fn get_suffix(&self, key: &str, length: u64) -> Result<(Bytes, u64), PoolError> {
        self.get(key, &GetRange::Suffix(length), length).await
    }

    async fn get(&self, key: &str, range: &GetRange, length_max: u64) -> Result<(Bytes, u64), PoolError> {
        let path = Path::from(key);
        self.request(Direction::Get, "get", key, || async {
            let options = GetOptions { range: Some(range.clone()), ..GetOptions::default() };
            let judge = |error| self.judge("get", key, error);
            let result = self.store.get_opts(&path, options).await.map_err(judge)?;
            let size = result.meta.size;
            let bytes = self.body(key, result, length_max).await?;
            let length = bytes.len() as u64;
            Ok(((bytes, size), length))
        })
        .await
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
        attempt: impl Fn() -> F,
    ) -> Result<T, PoolError>
    where
        F: Future<Output = Result<(T, u64), Failure>>,
    {
        let clock = &*self.ports.clock;
        let (limit, give_up) = match direction {
            Direction::Put | Direction::Delete => (self.policy.put_attempt_timeout, self.policy.put_give_up),
            Direction::Get => (self.policy.get_attempt_timeout, self.policy.get_give_up),
        };
        let begun = clock.now();
        for number in 0.. {
            self.health.attempt(direction, number);
            let attempt_begun = clock.now();
            let failure = match cairn_model::timeout(clock, limit, attempt()).await {
                Ok(Ok((value, bytes))) => {
                    self.health.success(direction, bytes, clock.now().since(attempt_begun));
                    return Ok(value);
                }
                Ok(Err(failure)) => failure,
                Err(_) => self.timed_out(verb, key, limit),
            };
            self.health.failure(clock.wall(), failure.error.to_string(), failure.error.retryable());
            let pause = self.policy.backoff(number, &*self.ports.entropy);
            if !failure.transient || clock.now().plus(pause).since(begun) > give_up {
                return Err(failure.error);
            }
            tracing::debug!(node = %self.name, verb, key, error = %failure.error, ?pause, "request failed; trying again");
            clock.sleep(pause).await;
        }
        unreachable!("attempts are not counted out before the time is over")
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

/// Requests that only attaching and opening a node makes.
impl DataNode {
    /// Stores an object unless one has the key. A store that ignores the condition overwrites: the caller reads back.
    pub(super) async fn put_new(&self, key: &str, bytes: Bytes) -> Result<(), PoolError> {
        let path = Path::from(key);
        self.request(Direction::Put, "put", key, || async {
            let options = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
            match self.store.put_opts(&path, bytes.clone().into(), options).await {
                // Somebody else's, or our own of an attempt whose reply was lost: reading back tells.
                Ok(_) | Err(object_store::Error::AlreadyExists { .. }) => Ok(((), bytes.len() as u64)),
                Err(error) => Err(self.judge("put", key, error)),
            }
        })
        .await
    }

    /// The key of some object, if there is one.
    pub(super) async fn any_key(&self) -> Result<Option<String>, PoolError> {
        self.request(Direction::Get, "list", "", || async {
            let listed = self.store.list_with_delimiter(None).await;
            let listed = listed.map_err(|error| self.judge("list", "", error))?;
            let object = listed.objects.first().map(|object| object.location.to_string());
            let prefix = listed.common_prefixes.first().map(|prefix| format!("{prefix}/"));
            Ok((object.or(prefix), 0))
        })
        .await
    }
}
