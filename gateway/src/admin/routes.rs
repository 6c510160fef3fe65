//! Which request does what, and errors as answers.

use super::service::{PIECE_BYTES_MAX, Service};
use super::types::{
    AddNode, AddedNode, AskReclaim, AskRepair, ChangeCpu, ChangeNode, ChangePool, CheckProgress, Checked,
    CloneSnapshot, Cpu, CreateDomain, CreateGroup, CreateSnapshot, CreateSnapshots, CreateVolume,
    DeleteQuery, Difference, DifferenceQuery, Domain, Event, Extent, Failure, FailureDetail, Group,
    GroupDetail, GroupRun, Health, Key, LimitQuery, Node, OffsetQuery, PoolState, PublishKeys, RangeQuery,
    Reclaimed, RemoveQuery, Repaired, ReplaceKey, RevertVolume, Reverted, Scrubbed, Snapshot, SpaceQuery,
    Status, UpdateGroup, UpdateVolume, Volume,
};
use crate::error::GatewayError;
use axum::body::Body;
use axum::extract::rejection::{BytesRejection, JsonRejection, PathRejection, QueryRejection};
use axum::extract::{DefaultBodyLimit, FromRequest, FromRequestParts, Path, Query, Request, State};
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::http::request::Parts;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use bytes::Bytes;
use cairn_model::{ErrorKind, Kinded};
use serde::de::DeserializeOwned;
use std::sync::Arc;

type Answer<T> = Result<T, Refusal>;
type Shared = State<Arc<Service>>;

/// Longest JSON request.
const JSON_BYTES_MAX: usize = 64 << 10;

/// All routes, version 1: for `admin.sock`, which only the owner of the directory reaches, and for this process itself.
pub fn routes(service: Arc<Service>) -> Router {
    let keys = Router::new()
        .route("/v1/key/replace", post(replace_key))
        .route("/v1/key/publish", post(publish_keys))
        .layer(DefaultBodyLimit::max(JSON_BYTES_MAX))
        .with_state(Arc::clone(&service));
    keys.merge(routes_for_tcp(service))
}

/// The routes for every user of this host: all but those that change the master key.
pub fn routes_for_tcp(service: Arc<Service>) -> Router {
    let piece_limit = usize::try_from(PIECE_BYTES_MAX).expect("a piece fits in memory");
    let data = get(read).put(write).layer(DefaultBodyLimit::max(piece_limit));
    Router::new()
        .route("/v1/status", get(status))
        .route("/v1/health", get(health))
        .route("/metrics", get(metrics))
        .route("/v1/volumes", get(volumes).post(create_volume))
        .route("/v1/volumes/{name}", get(volume).patch(update_volume).delete(delete_volume))
        .route("/v1/volumes/{name}/zeroes", post(write_zeroes))
        .route("/v1/volumes/{name}/allocation", get(allocation))
        .route("/v1/volumes/{name}/flush", post(flush))
        .route("/v1/volumes/{name}/snapshots", get(snapshots).post(create_snapshot))
        .route("/v1/volumes/{name}/snapshots/{snapshot}", get(snapshot).delete(delete_snapshot))
        .route("/v1/volumes/{name}/snapshots/{snapshot}/clone", post(clone_snapshot))
        .route("/v1/volumes/{name}/snapshots/{snapshot}/revert", post(revert_volume))
        .route("/v1/volumes/{name}/diff", get(difference))
        .route("/v1/snapshots", get(all_snapshots).post(create_snapshots))
        .route("/v1/groups", get(groups).post(create_group))
        .route("/v1/groups/{name}", get(group).patch(update_group).delete(delete_group))
        .route("/v1/groups/{name}/snap", post(snap_group))
        .route("/v1/events", get(events))
        .route("/v1/destage", post(destage))
        .route("/v1/reclaim", post(reclaim))
        .route("/v1/scrub", post(scrub))
        .route("/v1/fsck", get(fsck_progress).post(fsck))
        .route("/v1/fsck/repair", post(repair))
        .route("/v1/cpu", get(cpu).put(change_cpu))
        .route("/v1/nodes", get(nodes).post(add_node))
        .route("/v1/nodes/{name}", get(node).patch(change_node).delete(remove_node))
        .route("/v1/pool", get(pool).patch(change_pool))
        .route("/v1/domains", get(domains).post(create_domain))
        .route("/v1/domains/{name}", get(domain).delete(delete_domain))
        .route("/v1/key", get(key))
        .layer(DefaultBodyLimit::max(JSON_BYTES_MAX))
        .route("/v1/volumes/{name}/data", data)
        .fallback(async || Refusal::of(ErrorKind::NotFound, "the admin API has no such path".to_owned()))
        .method_not_allowed_fallback(async || {
            Refusal::of(ErrorKind::Unsupported, "the admin API has no such method on this path".to_owned())
        })
        .with_state(service)
}

async fn status(State(service): Shared) -> Answer<Json<Status>> {
    Ok(Json(service.status().await?))
}

async fn health(State(service): Shared) -> Answer<Json<Health>> {
    Ok(Json(service.health().await?))
}

async fn metrics(State(service): Shared) -> Answer<Response> {
    let metrics = service.metrics().await?;
    Ok(([(CONTENT_TYPE, metrics.content_type)], metrics.text).into_response())
}

async fn volumes(State(service): Shared) -> Answer<Json<Vec<Volume>>> {
    Ok(Json(service.volumes().await?))
}

async fn volume(
    State(service): Shared,
    Name(name): Name,
    Parameters(query): Parameters<SpaceQuery>,
) -> Answer<Json<Volume>> {
    Ok(Json(service.volume_with(&name, query).await?))
}

async fn create_volume(
    State(service): Shared,
    JsonBody(asked): JsonBody<CreateVolume>,
) -> Answer<(StatusCode, Json<Volume>)> {
    Ok((StatusCode::CREATED, Json(service.create_volume(&asked).await?)))
}

async fn update_volume(
    State(service): Shared,
    Name(name): Name,
    JsonBody(change): JsonBody<UpdateVolume>,
) -> Answer<Json<Volume>> {
    Ok(Json(service.update_volume(&name, &change).await?))
}

async fn delete_volume(
    State(service): Shared,
    Name(name): Name,
    Parameters(query): Parameters<DeleteQuery>,
) -> Answer<Json<()>> {
    Ok(Json(service.delete_volume(&name, query.force).await?))
}

async fn read(
    State(service): Shared,
    Name(name): Name,
    Parameters(range): Parameters<RangeQuery>,
) -> Answer<Response> {
    let pieces = service.read(&name, range).await?.into_pieces();
    let stream = futures::stream::iter(pieces.into_iter().map(Ok::<_, std::convert::Infallible>));
    let mut response = Response::new(Body::from_stream(stream));
    let headers = response.headers_mut();
    headers.insert("content-type", axum::http::HeaderValue::from_static("application/octet-stream"));
    headers.insert("content-length", range.length.into());
    Ok(response)
}

async fn write(
    State(service): Shared,
    Name(name): Name,
    Parameters(at): Parameters<OffsetQuery>,
    body: Result<Bytes, BytesRejection>,
) -> Answer<Json<()>> {
    let bytes = body.map_err(|rejection| Refusal::of(ErrorKind::Unsupported, rejection.body_text()))?;
    Ok(Json(service.write(&name, at.offset, bytes).await?))
}

async fn write_zeroes(
    State(service): Shared,
    Name(name): Name,
    JsonBody(range): JsonBody<RangeQuery>,
) -> Answer<Json<()>> {
    Ok(Json(service.write_zeroes(&name, range).await?))
}

async fn allocation(
    State(service): Shared,
    Name(name): Name,
    Parameters(range): Parameters<RangeQuery>,
) -> Answer<Json<Vec<Extent>>> {
    Ok(Json(service.allocation(&name, range).await?))
}

async fn flush(State(service): Shared, Name(name): Name) -> Answer<Json<()>> {
    Ok(Json(service.flush(&name).await?))
}

async fn all_snapshots(
    State(service): Shared,
    Parameters(query): Parameters<SpaceQuery>,
) -> Answer<Json<Vec<Snapshot>>> {
    Ok(Json(service.all_snapshots_with(query).await?))
}

async fn create_snapshots(
    State(service): Shared,
    JsonBody(asked): JsonBody<CreateSnapshots>,
) -> Answer<(StatusCode, Json<Vec<Snapshot>>)> {
    Ok((StatusCode::CREATED, Json(service.create_snapshots(&asked).await?)))
}

async fn groups(State(service): Shared) -> Answer<Json<Vec<Group>>> {
    Ok(Json(service.groups().await?))
}

async fn group(
    State(service): Shared,
    Name(name): Name,
    Parameters(query): Parameters<LimitQuery>,
) -> Answer<Json<GroupDetail>> {
    Ok(Json(service.group(&name, query).await?))
}

async fn create_group(
    State(service): Shared,
    JsonBody(asked): JsonBody<CreateGroup>,
) -> Answer<(StatusCode, Json<GroupDetail>)> {
    Ok((StatusCode::CREATED, Json(service.create_group(&asked).await?)))
}

async fn update_group(
    State(service): Shared,
    Name(name): Name,
    JsonBody(change): JsonBody<UpdateGroup>,
) -> Answer<Json<GroupDetail>> {
    Ok(Json(service.update_group(&name, &change).await?))
}

async fn delete_group(State(service): Shared, Name(name): Name) -> Answer<Json<()>> {
    Ok(Json(service.delete_group(&name).await?))
}

async fn snap_group(State(service): Shared, Name(name): Name) -> Answer<Json<GroupRun>> {
    Ok(Json(service.snap_group(&name).await?))
}

async fn events(
    State(service): Shared,
    Parameters(query): Parameters<LimitQuery>,
) -> Answer<Json<Vec<Event>>> {
    Ok(Json(service.events(query).await?))
}

async fn snapshots(
    State(service): Shared,
    Name(volume): Name,
    Parameters(query): Parameters<SpaceQuery>,
) -> Answer<Json<Vec<Snapshot>>> {
    Ok(Json(service.snapshots_with(&volume, query).await?))
}

async fn snapshot(
    State(service): Shared,
    Names(volume, name): Names,
    Parameters(query): Parameters<SpaceQuery>,
) -> Answer<Json<Snapshot>> {
    Ok(Json(service.snapshot_with(&volume, &name, query).await?))
}

async fn create_snapshot(
    State(service): Shared,
    Name(volume): Name,
    JsonBody(asked): JsonBody<CreateSnapshot>,
) -> Answer<(StatusCode, Json<Snapshot>)> {
    Ok((StatusCode::CREATED, Json(service.create_snapshot(&volume, &asked).await?)))
}

async fn delete_snapshot(State(service): Shared, Names(volume, name): Names) -> Answer<Json<()>> {
    Ok(Json(service.delete_snapshot(&volume, &name).await?))
}

async fn clone_snapshot(
    State(service): Shared,
    Names(volume, name): Names,
    JsonBody(asked): JsonBody<CloneSnapshot>,
) -> Answer<(StatusCode, Json<Volume>)> {
    Ok((StatusCode::CREATED, Json(service.clone_snapshot(&volume, &name, &asked).await?)))
}

async fn revert_volume(
    State(service): Shared,
    Names(volume, name): Names,
    JsonBody(asked): JsonBody<RevertVolume>,
) -> Answer<Json<Reverted>> {
    Ok(Json(service.revert_volume(&volume, &name, asked).await?))
}

async fn difference(
    State(service): Shared,
    Name(volume): Name,
    Parameters(query): Parameters<DifferenceQuery>,
) -> Answer<Json<Difference>> {
    Ok(Json(service.difference(&volume, &query).await?))
}

async fn destage(State(service): Shared) -> Answer<Json<()>> {
    Ok(Json(service.destage().await?))
}

async fn reclaim(State(service): Shared, JsonBody(asked): JsonBody<AskReclaim>) -> Answer<Json<Reclaimed>> {
    Ok(Json(service.reclaim(asked).await?))
}

async fn scrub(State(service): Shared) -> Answer<Json<Scrubbed>> {
    Ok(Json(service.scrub().await?))
}

async fn fsck(State(service): Shared) -> Answer<Json<Checked>> {
    Ok(Json(service.fsck().await?))
}

async fn fsck_progress(State(service): Shared) -> Json<Option<CheckProgress>> {
    Json(service.fsck_progress())
}

async fn repair(State(service): Shared, JsonBody(asked): JsonBody<AskRepair>) -> Answer<Json<Repaired>> {
    Ok(Json(service.repair(asked).await?))
}

async fn cpu(State(service): Shared) -> Json<Cpu> {
    Json(service.cpu())
}

async fn change_cpu(State(service): Shared, JsonBody(change): JsonBody<ChangeCpu>) -> Answer<Json<Cpu>> {
    Ok(Json(service.change_cpu(change)?))
}

async fn nodes(State(service): Shared) -> Answer<Json<Vec<Node>>> {
    Ok(Json(service.nodes().await?))
}

async fn node(State(service): Shared, Name(name): Name) -> Answer<Json<Node>> {
    Ok(Json(service.node(&name).await?))
}

async fn add_node(
    State(service): Shared,
    JsonBody(asked): JsonBody<AddNode>,
) -> Answer<(StatusCode, Json<AddedNode>)> {
    Ok((StatusCode::CREATED, Json(service.add_node(&asked).await?)))
}

async fn change_node(
    State(service): Shared,
    Name(name): Name,
    JsonBody(change): JsonBody<ChangeNode>,
) -> Answer<Json<Node>> {
    Ok(Json(service.change_node(&name, &change).await?))
}

async fn remove_node(
    State(service): Shared,
    Name(name): Name,
    Parameters(query): Parameters<RemoveQuery>,
) -> Answer<Json<()>> {
    Ok(Json(service.remove_node(&name, query.force).await?))
}

async fn pool(State(service): Shared) -> Answer<Json<PoolState>> {
    Ok(Json(service.pool().await?))
}

async fn change_pool(
    State(service): Shared,
    JsonBody(change): JsonBody<ChangePool>,
) -> Answer<Json<PoolState>> {
    Ok(Json(service.change_pool(&change).await?))
}

async fn domains(State(service): Shared) -> Answer<Json<Vec<Domain>>> {
    Ok(Json(service.domains().await?))
}

async fn domain(State(service): Shared, Name(name): Name) -> Answer<Json<Domain>> {
    Ok(Json(service.domain(&name).await?))
}

async fn create_domain(
    State(service): Shared,
    JsonBody(asked): JsonBody<CreateDomain>,
) -> Answer<(StatusCode, Json<Domain>)> {
    Ok((StatusCode::CREATED, Json(service.create_domain(&asked).await?)))
}

async fn delete_domain(State(service): Shared, Name(name): Name) -> Answer<Json<()>> {
    Ok(Json(service.delete_domain(&name).await?))
}

async fn key(State(service): Shared) -> Answer<Json<Key>> {
    Ok(Json(service.key().await?))
}

async fn replace_key(State(service): Shared, JsonBody(asked): JsonBody<ReplaceKey>) -> Answer<Json<Key>> {
    Ok(Json(service.replace_key(&asked).await?))
}

async fn publish_keys(State(service): Shared, JsonBody(asked): JsonBody<PublishKeys>) -> Answer<Json<Key>> {
    Ok(Json(service.publish_keys(&asked).await?))
}

/// A JSON body whose rejection is an answer like any other.
struct JsonBody<T>(T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for JsonBody<T> {
    type Rejection = Refusal;

    async fn from_request(request: Request, state: &S) -> Result<Self, Refusal> {
        Ok(Self(Json::from_request(request, state).await?.0))
    }
}

/// The name in a path, whose rejection (bytes that are no UTF-8) is an answer like any other.
struct Name(String);

impl<S: Send + Sync> FromRequestParts<S> for Name {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Refusal> {
        Ok(Self(Path::from_request_parts(parts, state).await?.0))
    }
}

/// A volume's name and a snapshot's, in a path.
struct Names(String, String);

impl<S: Send + Sync> FromRequestParts<S> for Names {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Refusal> {
        let Path((volume, snapshot)) = Path::from_request_parts(parts, state).await?;
        Ok(Self(volume, snapshot))
    }
}

/// A query string whose rejection is an answer like any other.
struct Parameters<T>(T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequestParts<S> for Parameters<T> {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Refusal> {
        Ok(Self(Query::from_request_parts(parts, state).await?.0))
    }
}

/// An error as an answer.
#[derive(Debug)]
struct Refusal {
    kind: ErrorKind,
    message: String,
    hint: Option<String>,
}

impl Refusal {
    fn of(kind: ErrorKind, message: String) -> Self {
        Self { kind, message, hint: None }
    }
}

impl From<GatewayError> for Refusal {
    fn from(error: GatewayError) -> Self {
        Self { kind: error.kind(), message: error.full_message(), hint: error.hint() }
    }
}

impl From<JsonRejection> for Refusal {
    fn from(rejection: JsonRejection) -> Self {
        Self::of(ErrorKind::Unsupported, rejection.body_text())
    }
}

impl From<PathRejection> for Refusal {
    fn from(rejection: PathRejection) -> Self {
        Self::of(ErrorKind::Unsupported, rejection.body_text())
    }
}

impl From<QueryRejection> for Refusal {
    fn from(rejection: QueryRejection) -> Self {
        Self::of(ErrorKind::Unsupported, rejection.body_text())
    }
}

/// The status of each kind of error.
const fn status_of(kind: ErrorKind) -> StatusCode {
    match kind {
        ErrorKind::NotFound => StatusCode::NOT_FOUND,
        ErrorKind::Conflict | ErrorKind::Fenced => StatusCode::CONFLICT,
        ErrorKind::OutOfRange | ErrorKind::Unsupported => StatusCode::BAD_REQUEST,
        ErrorKind::ReadOnly => StatusCode::FORBIDDEN,
        ErrorKind::OutOfSpace => StatusCode::INSUFFICIENT_STORAGE,
        ErrorKind::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        ErrorKind::Corrupt | ErrorKind::Internal => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let detail =
            FailureDetail { kind: self.kind.name().to_owned(), message: self.message, hint: self.hint };
        (status_of(self.kind), Json(Failure { error: detail })).into_response()
    }
}
