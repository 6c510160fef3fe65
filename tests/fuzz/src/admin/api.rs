//! The router, and what every answer must be.

use axum::Router;
use axum::body::Body;
use axum::http::{HeaderValue, Method, Request};
use cairn_gateway::admin::types::Failure;
use cairn_gateway::admin::{Service, Serving, routes};
use cairn_gateway::config::Config;
use cairn_gateway::directory::{Directory, Role};
use cairn_gateway::site::{InitOptions, Purpose, Site, initialise};
use cairn_model::Ports;
use http_body_util::BodyExt;
use serde_json::Value;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::runtime::Runtime;
use tower::ServiceExt;

const CONFIG: &str =
    "[gateway]\nnbd = [\"unix:n.sock\"]\n[wal]\ncapacity = \"64MiB\"\n[destage]\nbatch_age = \"1h\"\n";

/// A request.
#[derive(Debug)]
pub(super) struct Asked {
    pub(super) method: Method,
    pub(super) path: String,
    pub(super) kind: Vec<u8>,
    pub(super) body: Vec<u8>,
}

impl Asked {
    pub(super) fn new(method: Method, path: &str, body: Vec<u8>) -> Self {
        Self { method, path: path.to_owned(), kind: Vec::new(), body }
    }

    pub(super) fn json(method: Method, path: &str, body: &Value) -> Self {
        Self { kind: b"application/json".to_vec(), ..Self::new(method, path, body.to_string().into_bytes()) }
    }
}

/// What it was answered with.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) body: Vec<u8>,
}

pub(super) struct Api {
    runtime: Runtime,
    router: Router,
    folder: tempfile::TempDir,
}

static API: Mutex<Option<Api>> = Mutex::new(None);

/// Runs `work` with the API of this process, which is made at its first use.
pub(super) fn with_api(work: impl FnOnce(&Api)) {
    let mut api = API.lock().unwrap_or_else(PoisonError::into_inner);
    // After a failure in the middle of a round the next one begins with a gateway of its own.
    let current = api.take().unwrap_or_else(Api::new);
    work(&current);
    *api = Some(current);
}

impl Api {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let service = runtime.block_on(service(folder.path()));
        let router = routes(Arc::new(service));
        Self { runtime, router, folder }
    }

    /// Where a node of that name may be made: nowhere outside the folder of this gateway.
    pub(super) fn node_url(&self, name: &str) -> String {
        format!("file://{}/nodes/{name}", self.folder.path().display())
    }

    /// Sends a request and checks its answer by the API's document.
    pub(super) fn ask(&self, asked: &Asked) -> Answer {
        let request = Request::builder().method(asked.method.clone()).uri(&asked.path);
        let kind = HeaderValue::from_bytes(&asked.kind);
        let request = kind.map_err(drop).and_then(|kind| {
            request.header("content-type", kind).body(Body::from(asked.body.clone())).map_err(drop)
        });
        // What cannot be said in HTTP does not come through the server either.
        let Ok(request) = request else { return Answer { status: 400, body: Vec::new() } };
        let answer = self.runtime.block_on(async {
            let response = self.router.clone().oneshot(request).await.expect("the router never fails");
            let status = response.status().as_u16();
            let body = response.into_body().collect().await.expect("a body comes to its end").to_bytes();
            Answer { status, body: body.to_vec() }
        });
        if asked.method != Method::HEAD {
            answer.check(asked);
        }
        answer
    }

    /// Deletes what the round made.
    pub(super) fn clear(&self) {
        let listed = self.ask(&Asked::new(Method::GET, "/v1/volumes", Vec::new()));
        let volumes: Vec<Value> = serde_json::from_slice(&listed.body).expect("volumes are listed");
        for volume in volumes {
            let name = volume["name"].as_str().expect("a volume has a name");
            let path = format!("/v1/volumes/{name}?force=true");
            let answer = self.ask(&Asked::new(Method::DELETE, &path, Vec::new()));
            assert_eq!(answer.status, 200, "{name} cannot be deleted");
        }
    }
}

impl Answer {
    fn check(&self, asked: &Asked) {
        if (200..300).contains(&self.status) {
            return;
        }
        let text = String::from_utf8_lossy(&self.body);
        let failure: Failure = serde_json::from_slice(&self.body).unwrap_or_else(|_| {
            panic!("{asked:?} is refused ({}) without the reason as JSON: {text}", self.status)
        });
        let expected = match failure.error.kind.as_str() {
            "not_found" => 404,
            "conflict" => 409,
            "out_of_range" | "unsupported" => 400,
            "read_only" => 403,
            other => panic!("{asked:?} is answered as {other}: {text}"),
        };
        assert_eq!(self.status, expected, "{asked:?}: {text}");
        assert!(!failure.error.message.is_empty(), "{asked:?} is refused without a word");
    }
}

async fn service(folder: &std::path::Path) -> Service {
    std::fs::write(folder.join("cairn.toml"), CONFIG).unwrap();
    let directory = Directory::new(folder).unwrap();
    initialise(&directory, &InitOptions::default(), &Ports::system()).await.unwrap();
    let lock = directory.lock(Role::Gateway).unwrap();
    let config = Config::load(&directory.config(), directory.path()).unwrap();
    let site = Arc::new(Site::open(directory, config, lock, Ports::system()).await.unwrap());
    let pool = site.open_pool().await.unwrap();
    let engine = site.start_engine(Arc::clone(&pool), Purpose::Command).await.unwrap();
    let started = site.ports.clock.now();
    let serving =
        Serving { started, nbd: Vec::new(), sessions: cairn_gateway::sessions::Sessions::default() };
    Service::of_gateway(site, engine, pool, serving)
}

/// Only what names this host and no other is answered.
pub(super) fn check_host(host: &str) {
    if !cairn_gateway::fuzzing::is_this_host(host) {
        return;
    }
    let loopback = |text: &str| {
        let bare = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(text);
        text == "localhost" || bare.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
    };
    let without_port = host.rsplit_once(':').map_or(host, |(name, _)| name);
    let socket = host.parse::<SocketAddr>().is_ok_and(|address| address.ip().is_loopback());
    assert!(socket || loopback(host) || loopback(without_port), "{host:?} is taken for this host");
}

/// Ends the gateway of this process and removes its folder.
pub(crate) fn end() {
    drop(API.lock().unwrap_or_else(PoisonError::into_inner).take());
}
