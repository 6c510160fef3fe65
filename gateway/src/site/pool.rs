//! The pool of a site: which nodes are in it, and how they come, change and go.
//!
//! What is desired is in the catalog: nodes with their states, and the profile. The pool of a running gateway is told after each change, and the engine brings the
//! segments there. So a change is done when the catalog has it; what it means for the data follows in the background, across restarts too.
//!
//! - A node is named in the catalog only after its place carries this site's marker (`node`).
//! - Nothing here makes fewer active nodes than the profile has shards: new segments could not be put. A node that is declared failed is an exception, since it
//!   takes none in any case.
//! - A site begins with the folder `pool/`, or what it was told to begin with. While that holds nothing, the first node that is added takes its place: who adds a bucket
//!   means it to hold the data. Crash case: after the new row and before the old one is removed there are two nodes, both of them good.

use super::Site;
use super::node::{self, Attached, EMBEDDED_POOL_URL, Place, WantedNode, resolved_url};
use crate::error::GatewayError;
use cairn_engine::members;
use cairn_metadata::{NodeChange, NodeRow, NodeState};
use cairn_model::{ErrorKind, Profile};
use cairn_segment_writer::{DataNode, Pool, PoolSettings};
use std::collections::BTreeSet;
use std::sync::Arc;

type Result<T> = std::result::Result<T, GatewayError>;

/// Nodes that take new segments.
pub(crate) fn active(nodes: &[NodeRow]) -> impl Iterator<Item = &NodeRow> {
    nodes.iter().filter(|node| node.state == NodeState::Active)
}

/// Failure domains of the nodes that take new segments: a node without one is one by itself.
pub(crate) fn domains(nodes: &[NodeRow]) -> usize {
    let named: BTreeSet<_> = active(nodes).filter_map(|node| node.domain.as_deref()).collect();
    named.len() + active(nodes).filter(|node| node.domain.is_none()).count()
}

impl Site {
    /// Opens the pool: the data nodes that the catalog names. Gives them the site's keys, where they do not have them. The only node must be there; of several any
    /// may be away, and are looked at when they are needed.
    pub async fn open_pool(&self) -> Result<Arc<Pool>> {
        self.require_taken_over()?;
        node::settle(self).await?;
        let rows = self.catalog.nodes().await?;
        let settings =
            PoolSettings { profile: self.catalog.pool_settings().await?.profile, ..PoolSettings::default() };
        if let [only] = &rows[..] {
            node::open(self, only).await?;
        }
        let members = members(&rows, &self.nodes(&rows, None)?);
        let pool = Arc::new(Pool::new(members, settings, self.ports.clone()));
        // Before anything is written.
        super::recover::check_take_over(self, &pool).await?;
        super::recover::check_segments(self, &pool).await?;
        self.publish_soon(&pool).await?;
        Ok(pool)
    }

    /// The pool to be looked at: nothing is written to it, and any node may be away. Also of a directory that has not taken over.
    pub async fn pool_to_look_at(&self) -> Result<Arc<Pool>> {
        let rows = self.catalog.nodes().await?;
        let settings =
            PoolSettings { profile: self.catalog.pool_settings().await?.profile, ..PoolSettings::default() };
        Ok(Arc::new(Pool::new(members(&rows, &self.nodes(&rows, None)?), settings, self.ports.clone())))
    }

    /// Makes the pool what the catalog says now.
    pub async fn refresh_pool(&self, pool: &Pool) -> Result<()> {
        let rows = self.catalog.nodes().await?;
        pool.set_nodes(members(&rows, &self.nodes(&rows, Some(pool))?));
        pool.set_profile(self.catalog.pool_settings().await?.profile);
        // A node that was added has none yet.
        self.publish_soon(pool).await
    }

    /// The nodes of the rows. Those that are in `known` at the same place go on as they are.
    fn nodes(&self, rows: &[NodeRow], known: Option<&Pool>) -> Result<Vec<Arc<DataNode>>> {
        let place = Place::from(self);
        let mut nodes = Vec::with_capacity(rows.len());
        for row in rows {
            let name = resolved_url(&self.directory, &row.url)?.to_string();
            let open = known.and_then(|pool| pool.node(row.id).ok()).filter(|node| **node.name() == *name);
            nodes.push(match open {
                Some(node) => node,
                None => Arc::new(node::open_lazily(&place, row)?),
            });
        }
        Ok(nodes)
    }
}

/// Adds a node.
pub async fn add_node(site: &Site, wanted: &WantedNode) -> Result<Attached> {
    let rows = site.catalog.nodes().await?;
    check_new(site, &rows, wanted)?;
    let place = Place::from(site);
    if let [only] = &rows[..]
        && only.url == EMBEDDED_POOL_URL
        && site.catalog.totals().await?.segments == 0
        && site.catalog.pool_settings().await?.profile == Profile::Single
    {
        check_configured(site, &wanted.url)?;
        let node = node::attach(&place, wanted).await?;
        // It is added, whatever becomes of the other one: that may have been given data meanwhile, and stays beside it then.
        let replaced = match site.catalog.remove_node(only.id, false).await {
            Ok(()) => Some(only.name.clone()),
            Err(error) => {
                tracing::warn!(%error, node = only.name, "the data node that the site began with stays");
                None
            }
        };
        return Ok(Attached { node, replaced });
    }
    Ok(Attached { node: node::attach(&place, wanted).await?, replaced: None })
}

/// Adds a node, and begins to empty another one, of whose domain it is unless it is said otherwise. One that is failed stays so: its shards are made anew in any case.
pub async fn replace_node(site: &Site, wanted: &WantedNode, old: &str) -> Result<Attached> {
    let rows = site.catalog.nodes().await?;
    check_new(site, &rows, wanted)?;
    let old = named(&rows, old)?;
    let mut wanted = wanted.clone();
    wanted.domain = wanted.domain.or_else(|| old.domain.clone());
    wanted.capacity_bytes = wanted.capacity_bytes.or(old.capacity_bytes);
    let node = node::attach(&Place::from(site), &wanted).await?;
    if old.state == NodeState::Active {
        let change = NodeChange { state: Some(NodeState::Draining), ..NodeChange::default() };
        site.catalog.update_node(old.id, &change).await?;
    }
    Ok(Attached { node, replaced: None })
}

fn check_new(site: &Site, rows: &[NodeRow], wanted: &WantedNode) -> Result<()> {
    if let Some(row) = rows.iter().find(|row| row.name == wanted.name) {
        return Err(GatewayError::refused(
            ErrorKind::Conflict,
            format!("there is a data node named {} already, at {}", row.name, row.url),
            "choose another name",
        ));
    }
    let url = resolved_url(&site.directory, &wanted.url)?;
    for row in rows {
        if resolved_url(&site.directory, &row.url)? == url {
            return Err(GatewayError::refused(
                ErrorKind::Conflict,
                format!("{url} is data node {} already", row.name),
                "each node needs a bucket, prefix or directory of its own",
            ));
        }
    }
    Ok(())
}

/// Fails when the configuration names another node than the one that is to hold the data.
fn check_configured(site: &Site, url: &str) -> Result<()> {
    let Some(configured) = &site.config.pool.url else { return Ok(()) };
    if resolved_url(&site.directory, configured)? == resolved_url(&site.directory, url)? {
        return Ok(());
    }
    Err(GatewayError::refused(
        ErrorKind::Conflict,
        format!("{} names {configured} as the data node", site.directory.config().display()),
        "change or remove [pool] url in that file",
    ))
}

fn named<'a>(rows: &'a [NodeRow], name: &str) -> Result<&'a NodeRow> {
    rows.iter().find(|row| row.name == name).ok_or_else(|| {
        GatewayError::refused(
            ErrorKind::NotFound,
            format!("there is no data node named {name}"),
            "`cairn node list` shows those there are",
        )
    })
}

/// Changes a node. Another URL must lead to the same node.
pub async fn change_node(site: &Site, name: &str, mut change: NodeChange) -> Result<()> {
    let rows = site.catalog.nodes().await?;
    let row = named(&rows, name)?;
    if change.state == Some(NodeState::Draining) && row.state == NodeState::Active {
        check_enough(site, &rows, row, "drained").await?;
    }
    if let Some(url) = &change.url {
        let moved = NodeRow { url: url.clone(), ..row.clone() };
        let opened = node::open(site, &moved).await?;
        change.url = Some(opened.name().to_string());
    }
    Ok(site.catalog.update_node(row.id, &change).await?)
}

/// Fails when the pool could not put new segments without the node.
async fn check_enough(site: &Site, rows: &[NodeRow], leaving: &NodeRow, how: &str) -> Result<()> {
    let profile = site.catalog.pool_settings().await?.profile;
    let left = active(rows).filter(|row| row.id != leaving.id).count();
    if left >= profile.shards() {
        return Ok(());
    }
    Err(GatewayError::refused(
        ErrorKind::Conflict,
        format!(
            "data node {} cannot be {how}: the profile {profile} needs {} nodes that take data, and {left} would be left",
            leaving.name,
            profile.shards()
        ),
        "add a node first with `cairn node add`, or change the profile with `cairn pool profile`",
    ))
}

pub async fn remove_node(site: &Site, name: &str, force: bool) -> Result<()> {
    let rows = site.catalog.nodes().await?;
    let row = named(&rows, name)?;
    if let Some(url) = &site.config.pool.url
        && resolved_url(&site.directory, url)? == resolved_url(&site.directory, &row.url)?
    {
        return Err(GatewayError::refused(
            ErrorKind::Conflict,
            format!("{} names {url}: it would be added again", site.directory.config().display()),
            "remove [pool] url from that file",
        ));
    }
    if row.state == NodeState::Active {
        check_enough(site, &rows, row, "removed").await?;
    }
    Ok(site.catalog.remove_node(row.id, force).await?)
}

/// Changes the profile of new segments; those that are there follow.
pub async fn set_profile(site: &Site, profile: Profile) -> Result<()> {
    let rows = site.catalog.nodes().await?;
    let there = active(&rows).count();
    if there < profile.shards() {
        return Err(GatewayError::refused(
            ErrorKind::Conflict,
            format!(
                "the profile {profile} needs {} data nodes that take data, and there are {there}",
                profile.shards()
            ),
            "add nodes with `cairn node add NAME URL`",
        ));
    }
    let mut settings = site.catalog.pool_settings().await?;
    settings.profile = profile;
    Ok(site.catalog.set_pool_settings(&settings).await?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use cairn_model::{NodeId, WallTime};

    fn row(number: u8, domain: Option<&str>, state: NodeState) -> NodeRow {
        NodeRow {
            id: NodeId::from_bytes([number; 16]),
            name: format!("node{number}"),
            url: format!("file:///{number}"),
            domain: domain.map(str::to_owned),
            state,
            created_at: WallTime::from_unix_millis(0),
            options: "{}".to_owned(),
            capacity_bytes: None,
        }
    }

    #[test]
    fn domains_are_those_of_nodes_that_take_data() {
        let rows = [
            row(1, Some("rack1"), NodeState::Active),
            row(2, Some("rack1"), NodeState::Active),
            row(3, Some("rack2"), NodeState::Draining),
            row(4, None, NodeState::Active),
            row(5, None, NodeState::Failed),
        ];
        assert_eq!((active(&rows).count(), domains(&rows)), (3, 2));
    }
}
