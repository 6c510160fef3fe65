//! Faults below the code that ships, for tests and the simulation.

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt;
use futures::stream::BoxStream;
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, GetResultPayload, ListResult, MultipartUpload, ObjectMeta,
    ObjectStore, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};
use parking_lot::Mutex;
use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;

/// What goes wrong with one request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    /// The server answers with this status and does nothing.
    Status(u16),
    /// The connection breaks before the server saw the request.
    Connection,
    /// No answer, no effect.
    Hang,
    /// The request takes effect, then the connection breaks.
    ReplyLost,
    /// The request takes effect, then no answer comes.
    ReplyHangs,
    /// The request takes effect, and the answer this long; of a list, every object does.
    Slow(Duration),
    /// The connection breaks after this many bytes of the body.
    BodyBreaks(usize),
    /// The body ends after this many bytes as if all was well.
    BodyEnds(usize),
    /// A bit of the body's byte at this position (modulo its length) is flipped.
    BodyFlips(usize),
    /// The operating system fails a put or get of a directory with this error number.
    Os(i32),
}

/// A request, as a plan of faults sees it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Request<'a> {
    pub verb: Verb,
    pub key: &'a str,
    /// Requests before this one.
    pub number: u64,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verb {
    Put,
    Get,
    List,
    Delete,
}

type Plan = Box<dyn FnMut(Request<'_>) -> Option<Fault> + Send>;

/// An object store whose requests fail as planned.
pub struct FaultStore {
    inner: Arc<dyn ObjectStore>,
    state: Mutex<State>,
}

struct State {
    plan: Plan,
    requests: u64,
}

impl FaultStore {
    /// Asks `plan` about every request.
    pub fn new(
        inner: Arc<dyn ObjectStore>,
        plan: impl FnMut(Request<'_>) -> Option<Fault> + Send + 'static,
    ) -> Self {
        Self { inner, state: Mutex::new(State { plan: Box::new(plan), requests: 0 }) }
    }

    /// The first requests fail like this, one after the other; later ones do not.
    pub fn script(inner: Arc<dyn ObjectStore>, faults: impl IntoIterator<Item = Fault>) -> Self {
        let mut faults: VecDeque<_> = faults.into_iter().collect();
        Self::new(inner, move |_| faults.pop_front())
    }

    /// Requests made so far.
    pub fn requests(&self) -> u64 {
        self.state.lock().requests
    }

    fn fault(&self, verb: Verb, key: &str) -> Option<Fault> {
        let mut state = self.state.lock();
        let number = state.requests;
        state.requests += 1;
        (state.plan)(Request { verb, key, number })
    }
}

/// The error that the S3 client of `object_store` makes of a status; its text is the client's.
pub fn status_error(status: u16, path: &Path) -> Error {
    let source =
        format!("Error performing request - Server returned non-2xx status code: {status} injected: ").into();
    let path = path.to_string();
    match status {
        404 => Error::NotFound { path, source },
        412 => Error::Precondition { path, source },
        409 => Error::AlreadyExists { path, source },
        403 => Error::PermissionDenied { path, source },
        401 => Error::Unauthenticated { path, source },
        _ => Error::Generic { store: "S3", source },
    }
}

fn connection_error() -> Error {
    Error::Generic { store: "S3", source: "error sending request: connection reset (injected)".into() }
}

/// Fails, or returns what must happen after the effect.
async fn before(fault: Option<Fault>, path: &Path) -> Result<Option<Fault>> {
    match fault {
        Some(Fault::Status(status)) => Err(status_error(status, path)),
        Some(Fault::Connection) => Err(connection_error()),
        Some(Fault::Os(number)) => {
            let source = Box::new(io::Error::from_raw_os_error(number));
            Err(Error::Generic { store: "directory", source })
        }
        Some(Fault::Hang) => std::future::pending().await,
        other => Ok(other),
    }
}

async fn after<T>(fault: Option<Fault>, value: T) -> Result<T> {
    match fault {
        Some(Fault::Slow(duration)) => {
            #[expect(clippy::disallowed_methods, reason = "this is a test double, of the network")]
            tokio::time::sleep(duration).await;
            Ok(value)
        }
        Some(Fault::ReplyLost) => Err(connection_error()),
        Some(Fault::ReplyHangs) => std::future::pending().await,
        _ => Ok(value),
    }
}

async fn spoil(result: GetResult, fault: Option<Fault>) -> Result<GetResult> {
    let Some(fault @ (Fault::BodyBreaks(_) | Fault::BodyEnds(_) | Fault::BodyFlips(_))) = fault else {
        return Ok(result);
    };
    let GetResult { meta, range, attributes, extensions, payload } = result;
    let whole = GetResult {
        meta: meta.clone(),
        range: range.clone(),
        attributes: attributes.clone(),
        extensions: extensions.clone(),
        payload,
    };
    let body = whole.bytes().await?;
    let pieces: Vec<Result<Bytes>> = match fault {
        Fault::BodyBreaks(at) => vec![Ok(body.slice(..at.min(body.len()))), Err(connection_error())],
        Fault::BodyEnds(at) => vec![Ok(body.slice(..at.min(body.len())))],
        _ => {
            let mut damaged = body.to_vec();
            if let Fault::BodyFlips(at) = fault
                && !damaged.is_empty()
            {
                let at = at % damaged.len();
                damaged[at] ^= 1;
            }
            vec![Ok(damaged.into())]
        }
    };
    let payload = GetResultPayload::Stream(futures::stream::iter(pieces).boxed());
    Ok(GetResult { payload, meta, range, attributes, extensions })
}

#[async_trait]
impl ObjectStore for FaultStore {
    async fn put_opts(&self, key: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        let fault = before(self.fault(Verb::Put, key.as_ref()), key).await?;
        let result = self.inner.put_opts(key, payload, options).await?;
        after(fault, result).await
    }

    async fn put_multipart_opts(
        &self,
        key: &Path,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        self.inner.put_multipart_opts(key, options).await
    }

    async fn get_opts(&self, key: &Path, options: GetOptions) -> Result<GetResult> {
        let fault = before(self.fault(Verb::Get, key.as_ref()), key).await?;
        let result = self.inner.get_opts(key, options).await?;
        let result = spoil(result, fault).await?;
        after(fault, result).await
    }

    fn delete_stream(&self, keys: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        match self.fault(Verb::Delete, "") {
            Some(Fault::Status(status)) => {
                let error = status_error(status, &Path::default());
                futures::stream::once(async { Err(error) }).boxed()
            }
            Some(_) => futures::stream::once(async { Err(connection_error()) }).boxed(),
            None => self.inner.delete_stream(keys),
        }
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        match self.fault(Verb::List, "") {
            Some(Fault::Slow(duration)) => self
                .inner
                .list(prefix)
                .then(move |object| async move {
                    #[expect(clippy::disallowed_methods, reason = "this is a test double, of the network")]
                    tokio::time::sleep(duration).await;
                    object
                })
                .boxed(),
            Some(_) => futures::stream::once(async { Err(connection_error()) }).boxed(),
            None => self.inner.list(prefix),
        }
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        let fault = before(self.fault(Verb::List, ""), &Path::default()).await?;
        let result = self.inner.list_with_delimiter(prefix).await?;
        after(fault, result).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.inner.copy_opts(from, to, options).await
    }
}

impl fmt::Debug for FaultStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "FaultStore({:?})", self.inner)
    }
}

impl fmt::Display for FaultStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} with faults", self.inner)
    }
}
