//! The client of the admin API: over `admin.sock` to a running gateway, or in this process when none runs.
//!
//! Commands know only this client, so that they do the same thing the same way in both cases.

use crate::admin::types::{
    AddNode, AddedNode, AskReclaim, AskRepair, ChangeCpu, ChangeNode, ChangePool, CheckProgress, Checked,
    CloneSnapshot, Cpu, CreateDomain, CreateGroup, CreateSnapshot, CreateSnapshots, CreateVolume, Difference,
    Domain, Event, Extent, Failure, Group, GroupDetail, GroupRun, Key, Node, PoolState, PublishKeys,
    RangeQuery, Reclaimed, Repaired, ReplaceKey, RevertVolume, Reverted, Scrubbed, Snapshot, Status,
    UpdateGroup, UpdateVolume, Volume,
};
use crate::error::GatewayError;
use crate::names::SnapshotOf;
use axum::Router;
use axum::body::Body;
use bytes::Bytes;
use cairn_metadata::SnapshotName;
use futures::future::{Either, select};
use http_body_util::{BodyExt, Limited};
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::fmt::Write;
use std::path::{Path, PathBuf};
use tower::ServiceExt;

/// Largest answer that is taken: pieces of volumes and long listings stay far below.
const ANSWER_BYTES_MAX: usize = 64 << 20;

/// Kinds of bodies.
const JSON: &str = "application/json";
const BYTES: &str = "application/octet-stream";

/// Speaks to one gateway.
#[derive(Debug, Clone)]
pub struct AdminClient {
    transport: Transport,
}

#[derive(Debug, Clone)]
enum Transport {
    Socket(PathBuf),
    InProcess(Router),
}

type Result<T> = std::result::Result<T, GatewayError>;

impl AdminClient {
    /// Through the socket of a running gateway. Nothing is sent yet.
    pub fn over_socket(path: &Path) -> Self {
        Self { transport: Transport::Socket(path.to_owned()) }
    }

    /// Through the routes themselves.
    pub fn in_process(routes: Router) -> Self {
        Self { transport: Transport::InProcess(routes) }
    }

    /// Whether a gateway runs and answers for itself, as against this process standing in for it.
    pub fn is_remote(&self) -> bool {
        matches!(self.transport, Transport::Socket(_))
    }

    pub async fn status(&self) -> Result<Status> {
        self.json(Method::GET, "/v1/status", &()).await
    }

    pub async fn volumes(&self) -> Result<Vec<Volume>> {
        self.json(Method::GET, "/v1/volumes", &()).await
    }

    pub async fn volume(&self, name: &str) -> Result<Volume> {
        self.json(Method::GET, &volume_path(name, ""), &()).await
    }

    /// With whose space it is.
    pub async fn volume_with_space(&self, name: &str) -> Result<Volume> {
        self.json(Method::GET, &volume_path(name, "?space=true"), &()).await
    }

    pub async fn create_volume(&self, new: &CreateVolume) -> Result<Volume> {
        self.json(Method::POST, "/v1/volumes", new).await
    }

    pub async fn update_volume(&self, name: &str, change: &UpdateVolume) -> Result<Volume> {
        self.json(Method::PATCH, &volume_path(name, ""), change).await
    }

    pub async fn delete_volume(&self, name: &str, force: bool) -> Result<()> {
        self.exchange(Method::DELETE, &volume_path(name, &format!("?force={force}")), JSON, Body::empty())
            .await
            .map(drop)
    }

    pub async fn read(&self, name: &str, offset: u64, length: u64) -> Result<Bytes> {
        let path = volume_path(name, &format!("/data?offset={offset}&length={length}"));
        let bytes = self.exchange(Method::GET, &path, BYTES, Body::empty()).await?;
        if bytes.len() as u64 == length {
            return Ok(bytes);
        }
        Err(self.bad_answer(format!("{} bytes where {length} were asked for", bytes.len())))
    }

    pub async fn write(&self, name: &str, offset: u64, bytes: Bytes) -> Result<()> {
        let path = volume_path(name, &format!("/data?offset={offset}"));
        self.exchange(Method::PUT, &path, BYTES, Body::from(bytes)).await.map(drop)
    }

    pub async fn write_zeroes(&self, name: &str, offset: u64, length: u64) -> Result<()> {
        self.json(Method::POST, &volume_path(name, "/zeroes"), &RangeQuery { offset, length }).await
    }

    /// Allocation from `offset`: at least one extent, perhaps not as far as `length`.
    pub async fn allocation(&self, name: &str, offset: u64, length: u64) -> Result<Vec<Extent>> {
        let path = volume_path(name, &format!("/allocation?offset={offset}&length={length}"));
        let extents: Vec<Extent> = self.json(Method::GET, &path, &()).await?;
        if extents.first().is_some_and(|first| first.offset == offset && first.length > 0) {
            return Ok(extents);
        }
        Err(self.bad_answer("an allocation map that does not begin where it was asked for".to_owned()))
    }

    pub async fn flush(&self, name: &str) -> Result<()> {
        self.json(Method::POST, &volume_path(name, "/flush"), &()).await
    }

    /// The snapshots of all volumes; with `space`, whose space it is.
    pub async fn all_snapshots(&self, space: bool) -> Result<Vec<Snapshot>> {
        self.json(Method::GET, &format!("/v1/snapshots?space={space}"), &()).await
    }

    /// With `space`, whose space it is.
    pub async fn snapshots(&self, volume: &str, space: bool) -> Result<Vec<Snapshot>> {
        self.json(Method::GET, &volume_path(volume, &format!("/snapshots?space={space}")), &()).await
    }

    pub async fn snapshot(&self, of: &SnapshotOf) -> Result<Snapshot> {
        self.json(Method::GET, &snapshot_path(of, ""), &()).await
    }

    pub async fn create_snapshot(&self, volume: &str, new: &CreateSnapshot) -> Result<Snapshot> {
        self.json(Method::POST, &volume_path(volume, "/snapshots"), new).await
    }

    /// Of several volumes at one moment.
    pub async fn create_snapshots(&self, new: &CreateSnapshots) -> Result<Vec<Snapshot>> {
        self.json(Method::POST, "/v1/snapshots", new).await
    }

    pub async fn groups(&self) -> Result<Vec<Group>> {
        self.json(Method::GET, "/v1/groups", &()).await
    }

    /// A group with its last `runs` runs.
    pub async fn group(&self, name: &str, runs: u32) -> Result<GroupDetail> {
        self.json(Method::GET, &group_path(name, &format!("?limit={runs}")), &()).await
    }

    pub async fn create_group(&self, new: &CreateGroup) -> Result<GroupDetail> {
        self.json(Method::POST, "/v1/groups", new).await
    }

    pub async fn update_group(&self, name: &str, change: &UpdateGroup) -> Result<GroupDetail> {
        self.json(Method::PATCH, &group_path(name, ""), change).await
    }

    pub async fn delete_group(&self, name: &str) -> Result<()> {
        self.exchange(Method::DELETE, &group_path(name, ""), JSON, Body::empty()).await.map(drop)
    }

    pub async fn snap_group(&self, name: &str) -> Result<GroupRun> {
        self.json(Method::POST, &group_path(name, "/snap"), &()).await
    }

    /// The last events, the newest first.
    pub async fn events(&self, limit: u32) -> Result<Vec<Event>> {
        self.json(Method::GET, &format!("/v1/events?limit={limit}"), &()).await
    }

    pub async fn delete_snapshot(&self, of: &SnapshotOf) -> Result<()> {
        self.exchange(Method::DELETE, &snapshot_path(of, ""), JSON, Body::empty()).await.map(drop)
    }

    pub async fn clone_snapshot(&self, of: &SnapshotOf, new: &CloneSnapshot) -> Result<Volume> {
        self.json(Method::POST, &snapshot_path(of, "/clone"), new).await
    }

    pub async fn revert_volume(&self, to: &SnapshotOf, how: RevertVolume) -> Result<Reverted> {
        self.json(Method::POST, &snapshot_path(to, "/revert"), &how).await
    }

    /// What changed from one snapshot of a volume to another, from `start` on, perhaps not to the end.
    pub async fn difference(
        &self,
        volume: &str,
        from: &SnapshotName,
        to: &SnapshotName,
        start: u64,
    ) -> Result<Difference> {
        let (from, to) = (encoded(from.as_str()), encoded(to.as_str()));
        let path = volume_path(volume, &format!("/diff?from={from}&to={to}&start={start}"));
        let difference: Difference = self.json(Method::GET, &path, &()).await?;
        if difference.next_offset_bytes.is_none_or(|next| next > start) {
            return Ok(difference);
        }
        Err(self.bad_answer("a part of the differences that does not go on".to_owned()))
    }

    /// Everything acknowledged before is in the pool when this returns.
    pub async fn destage(&self) -> Result<()> {
        self.json(Method::POST, "/v1/destage", &()).await
    }

    /// Takes back what nothing points at any more, or tells how much that would be.
    pub async fn reclaim(&self, how: AskReclaim) -> Result<Reclaimed> {
        self.json(Method::POST, "/v1/reclaim", &how).await
    }

    /// Reads and verifies everything in the pool.
    pub async fn scrub(&self) -> Result<Scrubbed> {
        self.json(Method::POST, "/v1/scrub", &()).await
    }

    /// Checks the site.
    pub async fn fsck(&self) -> Result<Checked> {
        self.json(Method::POST, "/v1/fsck", &()).await
    }

    /// How far the check under way is; `None` when none is.
    pub async fn fsck_progress(&self) -> Result<Option<CheckProgress>> {
        self.json(Method::GET, "/v1/fsck", &()).await
    }

    /// Carries out the plan of the last check.
    pub async fn fsck_repair(&self, asked: AskRepair) -> Result<Repaired> {
        self.json(Method::POST, "/v1/fsck/repair", &asked).await
    }

    pub async fn cpu(&self) -> Result<Cpu> {
        self.json(Method::GET, "/v1/cpu", &()).await
    }

    pub async fn change_cpu(&self, change: ChangeCpu) -> Result<Cpu> {
        self.json(Method::PUT, "/v1/cpu", &change).await
    }

    pub async fn nodes(&self) -> Result<Vec<Node>> {
        self.json(Method::GET, "/v1/nodes", &()).await
    }

    pub async fn node(&self, name: &str) -> Result<Node> {
        self.json(Method::GET, &format!("/v1/nodes/{}", encoded(name)), &()).await
    }

    pub async fn add_node(&self, new: &AddNode) -> Result<AddedNode> {
        self.json(Method::POST, "/v1/nodes", new).await
    }

    pub async fn change_node(&self, name: &str, change: &ChangeNode) -> Result<Node> {
        self.json(Method::PATCH, &format!("/v1/nodes/{}", encoded(name)), change).await
    }

    pub async fn remove_node(&self, name: &str, force: bool) -> Result<()> {
        let path = format!("/v1/nodes/{}?force={force}", encoded(name));
        self.exchange(Method::DELETE, &path, JSON, Body::empty()).await.map(drop)
    }

    pub async fn pool(&self) -> Result<PoolState> {
        self.json(Method::GET, "/v1/pool", &()).await
    }

    pub async fn change_pool(&self, change: &ChangePool) -> Result<PoolState> {
        self.json(Method::PATCH, "/v1/pool", change).await
    }

    pub async fn domains(&self) -> Result<Vec<Domain>> {
        self.json(Method::GET, "/v1/domains", &()).await
    }

    pub async fn domain(&self, name: &str) -> Result<Domain> {
        self.json(Method::GET, &format!("/v1/domains/{}", encoded(name)), &()).await
    }

    pub async fn create_domain(&self, new: &CreateDomain) -> Result<Domain> {
        self.json(Method::POST, "/v1/domains", new).await
    }

    pub async fn delete_domain(&self, name: &str) -> Result<()> {
        self.exchange(Method::DELETE, &format!("/v1/domains/{}", encoded(name)), JSON, Body::empty())
            .await
            .map(drop)
    }

    pub async fn key(&self) -> Result<Key> {
        self.json(Method::GET, "/v1/key", &()).await
    }

    pub async fn replace_key(&self, new: &ReplaceKey) -> Result<Key> {
        self.json(Method::POST, "/v1/key/replace", new).await
    }

    pub async fn publish_keys(&self, how: &PublishKeys) -> Result<Key> {
        self.json(Method::POST, "/v1/key/publish", how).await
    }

    async fn json<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T> {
        let body = if method == Method::GET {
            Body::empty()
        } else {
            Body::from(serde_json::to_vec(body).expect("requests are plain data"))
        };
        let answer = self.exchange(method, path, JSON, body).await?;
        serde_json::from_slice(&answer).map_err(|error| self.bad_answer(error.to_string()))
    }

    /// Sends one request; the body of a successful answer.
    async fn exchange(&self, method: Method, path: &str, kind: &str, body: Body) -> Result<Bytes> {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", "localhost")
            .header("content-type", kind)
            .body(body)
            .expect("the parts of a request are well formed");
        let (status, answer) = match &self.transport {
            Transport::Socket(socket) => over_socket(socket, request).await?,
            Transport::InProcess(routes) => {
                let response = match routes.clone().oneshot(request).await {
                    Ok(response) => response,
                    Err(never) => match never {},
                };
                collect(response).await.map_err(|problem| self.bad_answer(problem.to_string()))?
            }
        };
        if status.is_success() {
            return Ok(answer);
        }
        let failure: Failure = serde_json::from_slice(&answer)
            .map_err(|_| self.bad_answer(format!("{status} without an explanation")))?;
        let kind = failure.error.kind();
        Err(GatewayError::Api { kind, message: failure.error.message, hint: failure.error.hint })
    }

    fn bad_answer(&self, problem: String) -> GatewayError {
        let path = match &self.transport {
            Transport::Socket(path) => path.clone(),
            Transport::InProcess(_) => PathBuf::from("this process"),
        };
        GatewayError::BadAnswer { path, problem }
    }
}

type BoxError = Box<dyn std::error::Error + Send + Sync>;

async fn collect<B>(response: Response<B>) -> std::result::Result<(StatusCode, Bytes), BoxError>
where
    B: hyper::body::Body<Data = Bytes>,
    B::Error: Into<BoxError>,
{
    let status = response.status();
    let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX).collect().await?;
    Ok((status, body.to_bytes()))
}

/// One request on a connection of its own: connecting to a local socket costs less than keeping a pool honest.
async fn over_socket(socket: &Path, request: Request<Body>) -> Result<(StatusCode, Bytes)> {
    let unreachable = |source: BoxError| GatewayError::Unreachable { path: socket.to_owned(), source };
    let stream = crate::socket::connect(socket).await.map_err(|error| unreachable(error.into()))?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|error| unreachable(error.into()))?;
    let exchange = std::pin::pin!(async move {
        let response = sender.send_request(request).await?;
        collect(response).await
    });
    // The connection only moves while it is polled; nothing is left running after the answer.
    match select(exchange, std::pin::pin!(connection)).await {
        Either::Left((answer, _)) => answer,
        Either::Right((_, exchange)) => exchange.await,
    }
    .map_err(unreachable)
}

/// Percent-encodes everything that is not plainly allowed in a path.
fn encoded(segment: &str) -> String {
    let mut text = String::with_capacity(segment.len());
    for byte in segment.bytes() {
        if byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte) {
            text.push(char::from(byte));
        } else {
            // Writing to a String cannot fail.
            let _ = write!(text, "%{byte:02X}");
        }
    }
    text
}

fn snapshot_path(of: &SnapshotOf, rest: &str) -> String {
    volume_path(of.volume.as_str(), &format!("/snapshots/{}{rest}", encoded(of.snapshot.as_str())))
}

fn group_path(name: &str, rest: &str) -> String {
    format!("/v1/groups/{}{rest}", encoded(name))
}

fn volume_path(name: &str, rest: &str) -> String {
    format!("/v1/volumes/{}{rest}", encoded(name))
}
