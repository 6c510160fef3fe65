//! As much of an S3 server as the pool uses, with answers that a test chooses.

#![allow(clippy::unwrap_used, reason = "this is test code")]

use bytes::Bytes;
use futures::StreamExt;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper::{Method, Request, Response};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::net::TcpListener;
use tokio::task::JoinSet;

/// What the server does with a request instead of serving it.
#[derive(Clone, Debug)]
pub(crate) enum Answer {
    /// Status and body.
    Status(u16, String),
    /// Closes the connection without a word.
    Close,
    /// Does what was asked, then closes the connection.
    CloseAfterEffect,
    /// Never answers.
    Hang,
    /// Announces the whole body, sends this much of it and closes the connection.
    CutBody(usize),
    /// Answers a ranged get with the whole object.
    IgnoreRange,
}

impl Answer {
    pub(crate) fn error(status: u16, code: &str) -> Self {
        let body = format!(
            "<?xml version=\"1.0\" encoding=\"UTF-8\"?><Error><Code>{code}</Code><Message>as planned</Message></Error>"
        );
        Self::Status(status, body)
    }
}

#[derive(Default)]
struct State {
    objects: BTreeMap<String, Bytes>,
    answers: VecDeque<Answer>,
    requests: usize,
    ignore_conditions: bool,
    bucket_missing: bool,
}

pub(crate) struct Server {
    address: SocketAddr,
    state: Arc<Mutex<State>>,
    tasks: JoinSet<()>,
}

type Body = BoxBody<Bytes, io::Error>;

impl Server {
    pub(crate) async fn start() -> Self {
        Self::start_at("127.0.0.1:0".parse().unwrap()).await
    }

    pub(crate) async fn start_at(address: SocketAddr) -> Self {
        let listener = TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::new(Mutex::new(State::default()));
        let mut tasks = JoinSet::new();
        tasks.spawn(accept(listener, Arc::clone(&state)));
        Self { address, state, tasks }
    }

    /// Ends the server and its connections; returns where it was.
    pub(crate) async fn stop(mut self) -> SocketAddr {
        self.tasks.shutdown().await;
        self.address
    }

    pub(crate) fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The next requests are answered like this, one after the other.
    pub(crate) fn answer_next(&self, answers: impl IntoIterator<Item = Answer>) {
        self.state.lock().answers.extend(answers);
    }

    pub(crate) fn requests(&self) -> usize {
        self.state.lock().requests
    }

    pub(crate) fn object(&self, path: &str) -> Option<Bytes> {
        self.state.lock().objects.get(path).cloned()
    }

    pub(crate) fn insert(&self, path: &str, bytes: Bytes) {
        self.state.lock().objects.insert(path.to_owned(), bytes);
    }

    pub(crate) fn objects_below(&self, path: &str) -> usize {
        self.state.lock().objects.keys().filter(|key| key.starts_with(path)).count()
    }

    pub(crate) fn truncate(&self, path: &str, length: usize) {
        self.state.lock().objects.get_mut(path).unwrap().truncate(length);
    }

    pub(crate) fn ignore_conditions(&self) {
        self.state.lock().ignore_conditions = true;
    }

    pub(crate) fn remove_bucket(&self) {
        self.state.lock().bucket_missing = true;
    }
}

async fn accept(listener: TcpListener, state: Arc<Mutex<State>>) {
    let mut connections = JoinSet::new();
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        let state = Arc::clone(&state);
        connections.spawn(async move {
            let service = service_fn(move |request| serve(request, Arc::clone(&state)));
            // A connection that a test breaks is no error here.
            let _ = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(stream), service)
                .await;
        });
    }
}

async fn serve(request: Request<Incoming>, state: Arc<Mutex<State>>) -> io::Result<Response<Body>> {
    let (parts, body) = request.into_parts();
    let body = body.collect().await.map_err(io::Error::other)?.to_bytes();
    let answer = {
        let mut state = state.lock();
        state.requests += 1;
        state.answers.pop_front()
    };
    match answer {
        None => Ok(handle(&parts, body, &mut state.lock())),
        Some(Answer::Status(status, text)) => Ok(reply(status, text.into())),
        Some(Answer::Close) => Err(io::ErrorKind::ConnectionReset.into()),
        Some(Answer::CloseAfterEffect) => {
            handle(&parts, body, &mut state.lock());
            Err(io::ErrorKind::ConnectionReset.into())
        }
        Some(Answer::Hang) => std::future::pending().await,
        Some(Answer::CutBody(length)) => {
            let whole = handle(&parts, body, &mut state.lock());
            Ok(cut(whole, length).await)
        }
        Some(Answer::IgnoreRange) => {
            let mut parts = parts;
            parts.headers.remove("range");
            Ok(handle(&parts, body, &mut state.lock()))
        }
    }
}

async fn cut(whole: Response<Body>, length: usize) -> Response<Body> {
    let (mut parts, body) = whole.into_parts();
    let bytes = body.collect().await.unwrap().to_bytes();
    parts.headers.insert("content-length", bytes.len().into());
    let frames = [Ok(Frame::data(bytes.slice(..length))), Err(io::ErrorKind::ConnectionReset.into())];
    // The pause lets what was sent reach the client before the connection breaks.
    let frames = futures::stream::iter(frames).then(|frame| async {
        tokio::task::yield_now().await;
        frame
    });
    Response::from_parts(parts, BodyExt::boxed(StreamBody::new(SyncStream(Box::pin(frames)))))
}

/// `BoxBody` wants `Sync`, which a stream that is polled through `&mut` need not be.
struct SyncStream<S>(S);

impl<S: futures::Stream + Unpin> futures::Stream for SyncStream<S> {
    type Item = S::Item;

    fn poll_next(
        mut self: std::pin::Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<S::Item>> {
        self.0.poll_next_unpin(context)
    }
}

fn reply(status: u16, body: Bytes) -> Response<Body> {
    let body = BodyExt::boxed(Full::new(body).map_err(|never| match never {}));
    Response::builder()
        .status(status)
        .header("etag", "\"tag\"")
        .header("last-modified", "Sat, 21 Nov 2026 00:00:00 GMT")
        .body(body)
        .unwrap()
}

fn error(status: u16, code: &str) -> Response<Body> {
    let Answer::Status(status, text) = Answer::error(status, code) else { unreachable!("it was just made") };
    reply(status, text.into())
}

fn handle(parts: &hyper::http::request::Parts, body: Bytes, state: &mut State) -> Response<Body> {
    let path = parts.uri.path().to_owned();
    let of_bucket = path.trim_matches('/').split('/').count() == 1;
    if state.bucket_missing && !(of_bucket && parts.method == Method::PUT) {
        return if parts.method == Method::HEAD {
            reply(404, Bytes::new())
        } else {
            error(404, "NoSuchBucket")
        };
    }
    let query = parts.uri.query().unwrap_or_default();
    match (&parts.method, of_bucket) {
        (&Method::PUT, true) => {
            state.bucket_missing = false;
            reply(200, Bytes::new())
        }
        (&Method::HEAD, true) => reply(200, Bytes::new()),
        (&Method::GET, true) if query.contains("versioning") => {
            reply(200, "<VersioningConfiguration xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\"/>".into())
        }
        (&Method::GET, true) => list(&path, state),
        (&Method::PUT, false) => {
            let condition = parts.headers.contains_key("if-none-match") && !state.ignore_conditions;
            if condition && state.objects.contains_key(&path) {
                return error(412, "PreconditionFailed");
            }
            state.objects.insert(path, body);
            reply(200, Bytes::new())
        }
        (&Method::DELETE, false) => {
            state.objects.remove(&path);
            reply(204, Bytes::new())
        }
        (&Method::GET, false) => match state.objects.get(&path) {
            None => error(404, "NoSuchKey"),
            Some(object) => get(object, parts.headers.get("range").map(|range| range.to_str().unwrap())),
        },
        _ => error(405, "MethodNotAllowed"),
    }
}

fn list(bucket: &str, state: &State) -> Response<Body> {
    let folder = format!("{}/", bucket.trim_end_matches('/'));
    let mut contents = String::new();
    for key in state.objects.keys().filter_map(|path| path.strip_prefix(&folder)) {
        contents += "<Contents><Key>";
        contents += key;
        contents += "</Key><Size>1</Size><LastModified>2026-11-21T00:00:00.000Z</LastModified></Contents>";
    }
    reply(
        200,
        format!("<ListBucketResult><IsTruncated>false</IsTruncated>{contents}</ListBucketResult>").into(),
    )
}

fn get(object: &Bytes, range: Option<&str>) -> Response<Body> {
    let Some(range) = range else { return reply(200, object.clone()) };
    let (first, last) = range.strip_prefix("bytes=").unwrap().split_once('-').unwrap();
    let size = object.len();
    let (start, end) = if first.is_empty() {
        (size.saturating_sub(last.parse().unwrap()), size)
    } else {
        (first.parse().unwrap(), last.parse::<usize>().map_or(size, |last| (last + 1).min(size)))
    };
    if start >= end {
        return error(416, "InvalidRange");
    }
    let mut answer = reply(206, object.slice(start..end));
    let content_range = format!("bytes {start}-{}/{size}", end - 1);
    answer.headers_mut().insert("content-range", content_range.parse().unwrap());
    answer
}
