//! Data nodes: which one holds the site's data, and how another takes its place.
//!
//! This version keeps all segments on one node. While there are no segments, another node may take its place; once there
//! are, it may not. Invariant: a node is named in the catalog only after its place carries this site's marker.
//! Crash cases: after the marker and before the row, the marker is found again and adopted; after the new row and before the old one is
//! removed, there are two rows and no segments, and the younger one stands.

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

/// A node that shall hold the site's data.
pub(super) struct Wanted {
    pub name: String,
    pub url: String,
    pub domain: Option<String>,
    pub create_bucket: bool,
}

impl Wanted {
    pub(super) fn unnamed(url: String, create_bucket: bool) -> Self {
        let name =
            if url == EMBEDDED_POOL_URL { EMBEDDED_NAME.to_owned() } else { pool_url::default_name(&url) };
        Self { name, url, domain: None, create_bucket }
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

/// The nodes that the catalog names, with their URLs spelled out.
pub async fn attached_nodes(site: &Site) -> Result<Vec<NodeRow>, GatewayError> {
    let mut rows = site.catalog.nodes().await?;
    for row in &mut rows {
        row.url = resolved_url(&site.directory, &row.url)?.to_string();
    }
    Ok(rows)
}

/// The one node that holds, or will hold, the site's data: what the configuration names, if it names one.
pub(super) async fn settle(site: &Site) -> Result<NodeRow, GatewayError> {
    let place = Place::from(site);
    if let Some(url) = &site.config.pool.url {
        return Ok(make_only(&place, &Wanted::unnamed(url.clone(), false)).await?.node);
    }
    let mut rows = site.catalog.nodes().await?;
    rows.sort_by_key(|row| row.created_at);
    let Some(youngest) = rows.pop() else {
        return Err(GatewayError::refused(
            ErrorKind::NotFound,
            "this site has no data node",
            "add one with `cairn node add NAME URL`",
        ));
    };
    remove_all(&place, rows).await?;
    Ok(youngest)
}

/// What became of the nodes.
#[derive(Debug)]
pub struct Attached {
    pub node: NodeRow,
    /// The name of the node whose place it took.
    pub replaced: Option<String>,
}

/// Adds a node in the place of the one that is there, which must not hold data yet.
pub async fn add_node(
    site: &Site,
    name: &str,
    url: &str,
    domain: Option<String>,
    create_bucket: bool,
) -> Result<Attached, GatewayError> {
    let rows = site.catalog.nodes().await?;
    if let Some(row) = rows.iter().find(|row| row.name == name) {
        return Err(GatewayError::refused(
            ErrorKind::Conflict,
            format!("there is a data node named {name} already, at {}", row.url),
            "choose another name",
        ));
    }
    let wanted = Wanted { name: name.to_owned(), url: url.to_owned(), domain, create_bucket };
    if let Some(configured) = &site.config.pool.url
        && resolved_url(&site.directory, configured)? != resolved_url(&site.directory, url)?
    {
        return Err(GatewayError::refused(
            ErrorKind::Conflict,
            format!("{} names {configured} as the data node", site.directory.config().display()),
            "change or remove [pool] url in that file",
        ));
    }
    make_only(&Place::from(site), &wanted).await
}

/// Makes `wanted` the one node of the site, if it is not already.
pub(super) async fn make_only(place: &Place<'_>, wanted: &Wanted) -> Result<Attached, GatewayError> {
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
            "keep that node; several nodes in one pool come with a later version",
        ));
    }
    let row = if let Some(row) = same {
        row
    } else {
        let mut name = wanted.name.clone();
        while others.iter().any(|row| row.name == name) {
            name.push('2');
        }
        attach(place, wanted, name).await?
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
async fn attach(place: &Place<'_>, wanted: &Wanted, name: String) -> Result<NodeRow, GatewayError> {
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
        name,
        url: if wanted.url == EMBEDDED_POOL_URL { wanted.url.clone() } else { access.url.to_string() },
        domain: wanted.domain.clone(),
        state: NodeState::Active,
        created_at: place.ports.clock.wall(),
        options: serde_json::to_string(&options).expect("options are plain data"),
    };
    place.catalog.add_node(&row).await?;
    Ok(row)
}

async fn remove_all(place: &Place<'_>, rows: Vec<NodeRow>) -> Result<(), GatewayError> {
    for row in rows {
        place.catalog.remove_node(row.id).await?;
        tracing::info!(node = row.name, "the data node held nothing and was replaced");
    }
    Ok(())
}
