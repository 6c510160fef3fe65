//! A data node and its row in the catalog: how it is attached and opened.
//!
//! Invariant: a node is named in the catalog only after its place carries this site's marker. Crash case: after the marker and before the row, the marker is
//! found again and adopted.

use super::Site;
use crate::config::Config;
use crate::directory::Directory;
use crate::error::GatewayError;
use crate::pool_url;
use cairn_metadata::{Catalog, NodeRow, NodeState};
use cairn_model::{ErrorKind, Kinded, Ports, SiteId};
use cairn_segment_writer::{Credentials, DataNode, NodeAccess, NodeUrl, PoolError, S3Admin};

/// How the catalog names the folder `pool/` of the gateway's own directory, wherever that is.
pub const EMBEDDED_POOL_URL: &str = "file:pool";

const EMBEDDED_NAME: &str = "local";

/// What attaching a node needs to know about its site.
pub(super) struct Place<'a> {
    pub directory: &'a Directory,
    pub config: &'a Config,
    pub catalog: &'a dyn Catalog,
    pub site: SiteId,
    pub ports: &'a Ports,
}

impl<'a> From<&'a Site> for Place<'a> {
    fn from(site: &'a Site) -> Self {
        Self {
            directory: &site.directory,
            config: &site.config,
            catalog: &*site.catalog,
            site: site.row.id,
            ports: &site.ports,
        }
    }
}

/// A node that shall hold data of the site.
#[derive(Clone, Debug)]
pub struct WantedNode {
    pub name: String,
    pub url: String,
    pub domain: Option<String>,
    pub capacity_bytes: Option<u64>,
    pub create_bucket: bool,
}

impl WantedNode {
    pub(super) fn unnamed(url: String, create_bucket: bool) -> Self {
        let name =
            if url == EMBEDDED_POOL_URL { EMBEDDED_NAME.to_owned() } else { pool_url::default_name(&url) };
        Self { name, url, domain: None, capacity_bytes: None, create_bucket }
    }
}

/// The URL with the embedded folder spelled out.
pub fn resolved_url(directory: &Directory, url: &str) -> Result<NodeUrl, GatewayError> {
    if url == EMBEDDED_POOL_URL {
        return Ok(NodeUrl::Directory(directory.pool()));
    }
    Ok(NodeUrl::parse(url)?)
}

fn access(place: &Place<'_>, url: &str) -> Result<NodeAccess, GatewayError> {
    let mut access = NodeAccess::new(resolved_url(place.directory, url)?);
    access.credentials = place.config.pool.credentials.as_ref().map(|credentials| {
        Credentials::new(
            credentials.access_key_id.clone(),
            credentials.secret_access_key.expose().to_owned(),
            credentials.session_token.as_ref().map(|token| token.expose().to_owned()),
        )
    });
    Ok(access)
}

/// Opens the node of a row; it must be what it was when it was attached.
pub(super) async fn open(site: &Site, row: &NodeRow) -> Result<DataNode, GatewayError> {
    open_at(&Place::from(site), row).await
}

/// [`open`] before the site is complete.
pub(super) async fn open_at(place: &Place<'_>, row: &NodeRow) -> Result<DataNode, GatewayError> {
    let access = access(place, &row.url)?;
    Ok(DataNode::open(&access, place.site, row.id, place.ports.clone()).await?)
}

/// The node of a row, without a look at it.
pub(super) fn open_lazily(place: &Place<'_>, row: &NodeRow) -> Result<DataNode, GatewayError> {
    Ok(DataNode::open_lazily(&access(place, &row.url)?, place.site, row.id, place.ports.clone()))
}

/// The nodes that the catalog names, with their URLs spelled out.
pub async fn attached_nodes(site: &Site) -> Result<Vec<NodeRow>, GatewayError> {
    let mut rows = site.catalog.nodes().await?;
    for row in &mut rows {
        row.url = resolved_url(&site.directory, &row.url)?.to_string();
    }
    Ok(rows)
}

/// Makes the node that the configuration names, if it names one, one of the site's, and sees that there is any.
pub(super) async fn settle(site: &Site) -> Result<(), GatewayError> {
    let place = Place::from(site);
    if let Some(url) = &site.config.pool.url {
        let configured = resolved_url(&site.directory, url)?;
        let rows = site.catalog.nodes().await?;
        let is_known =
            |row: &NodeRow| resolved_url(&site.directory, &row.url).is_ok_and(|url| url == configured);
        if rows.iter().any(is_known) {
            return Ok(());
        }
        return make_only(&place, &WantedNode::unnamed(url.clone(), false)).await.map(drop);
    }
    if site.catalog.nodes().await?.is_empty() {
        return Err(GatewayError::refused(
            ErrorKind::NotFound,
            "this site has no data node",
            "add one with `cairn node add NAME URL`",
        ));
    }
    Ok(())
}

/// What became of the nodes.
#[derive(Debug)]
pub struct Attached {
    pub node: NodeRow,
    /// The name of the node whose place it took.
    pub replaced: Option<String>,
}

/// Makes `wanted` the one node of a site that holds nothing yet, if it is not already.
pub(super) async fn make_only(place: &Place<'_>, wanted: &WantedNode) -> Result<Attached, GatewayError> {
    let url = resolved_url(place.directory, &wanted.url)?;
    let rows = place.catalog.nodes().await?;
    let mut same = None;
    let mut others = Vec::new();
    for row in rows {
        if same.is_none() && resolved_url(place.directory, &row.url)? == url {
            same = Some(row);
        } else {
            others.push(row);
        }
    }
    let occupied = place.catalog.totals().await?.segments > 0;
    if occupied && (same.is_none() || !others.is_empty()) {
        let holder = others.iter().map(|row| row.name.as_str()).collect::<Vec<_>>().join(", ");
        return Err(GatewayError::refused(
            ErrorKind::Conflict,
            format!("the data of this site is on data node {holder}; {url} cannot take its place"),
            "add it beside that node with `cairn node add NAME URL`",
        ));
    }
    let row = if let Some(row) = same {
        row
    } else {
        let mut wanted = wanted.clone();
        while others.iter().any(|row| row.name == wanted.name) {
            wanted.name.push('2');
        }
        attach(place, &wanted).await?
    };
    let replaced = others.first().map(|row| row.name.clone());
    remove_all(place, others).await?;
    Ok(Attached { node: row, replaced })
}

/// What a node's server was found able to do, as it stands in the node's options.
#[derive(Debug, Clone, Default, serde::Serialize, serde::Deserialize)]
pub(crate) struct NodeOptions {
    /// Whether a conditional write refuses to overwrite; absent when that was not found out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) conditional_create: Option<bool>,
}

impl NodeOptions {
    pub(crate) fn of(row: &NodeRow) -> Self {
        // Options of a later version may say more, in another shape; this part is for telling only.
        serde_json::from_str(&row.options).unwrap_or_default()
    }
}

/// Finds out whether two sites that share a bucket by mistake would notice. What cannot be found out is no reason not to
/// use the node.
async fn probe(access: &NodeAccess, place: &Place<'_>) -> Result<NodeOptions, GatewayError> {
    let Some(admin) = S3Admin::new(access)? else { return Ok(NodeOptions::default()) };
    match admin.capabilities(&*place.ports.entropy).await {
        Ok(found) => {
            if !found.conditional_create {
                tracing::warn!(node = %access.url, "this server ignores conditional writes: keep its bucket and prefix to this site alone");
            }
            Ok(NodeOptions { conditional_create: Some(found.conditional_create) })
        }
        Err(error) => {
            tracing::warn!(node = %access.url, %error, "cannot find out whether this server honours conditional writes");
            Ok(NodeOptions::default())
        }
    }
}

/// Puts this site's marker in the node's place, then names it in the catalog.
pub(super) async fn attach(place: &Place<'_>, wanted: &WantedNode) -> Result<NodeRow, GatewayError> {
    let access = access(place, &wanted.url)?;
    if wanted.create_bucket
        && let Some(admin) = S3Admin::new(&access)?
    {
        admin.create_bucket().await?;
    }
    let node = match DataNode::attach(&access, place.site, place.ports.clone()).await {
        Err(error @ PoolError::NoSuchBucket { .. }) => {
            return Err(GatewayError::refused(
                error.kind(),
                error.to_string(),
                "create the bucket, or give --create-bucket",
            ));
        }
        other => other?,
    };
    let options = probe(&access, place).await?;
    let row = NodeRow {
        id: node.id(),
        name: wanted.name.clone(),
        url: if wanted.url == EMBEDDED_POOL_URL { wanted.url.clone() } else { access.url.to_string() },
        domain: wanted.domain.clone(),
        state: NodeState::Active,
        created_at: place.ports.clock.wall(),
        options: serde_json::to_string(&options).expect("options are plain data"),
        capacity_bytes: wanted.capacity_bytes,
    };
    place.catalog.add_node(&row).await?;
    Ok(row)
}

async fn remove_all(place: &Place<'_>, rows: Vec<NodeRow>) -> Result<(), GatewayError> {
    for row in rows {
        place.catalog.remove_node(row.id, false).await?;
        tracing::info!(node = row.name, "the data node held nothing and was replaced");
    }
    Ok(())
}
