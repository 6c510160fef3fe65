//! Site, gateways, nodes.

use super::{Gateway, Result, Tables, countable};
use crate::{CatalogError, GatewayRow, NodeRow, SiteRow, WalState};
use cairn_model::{GatewayId, NodeId, WallTime};

impl Tables {
    pub(super) fn create_site(&mut self, site: &SiteRow) -> Result<()> {
        if self.site.is_some() {
            return Err(CatalogError::AlreadyExists {
                what: "the site of this catalog",
                id: site.id.to_string(),
            });
        }
        self.site = Some(site.clone());
        self.domains.default_mut().created_at = site.created_at;
        Ok(())
    }

    pub(super) fn site(&self) -> Result<SiteRow> {
        self.site.clone().ok_or_else(|| CatalogError::not_found("site in", &"memory"))
    }

    pub(super) fn register_gateway(&mut self, id: GatewayId, name: &str, now: WallTime) -> Result<()> {
        let namesake = self.gateways.values().any(|gateway| gateway.row.id != id && gateway.row.name == name);
        if namesake {
            return Err(CatalogError::NameTaken { what: "gateway", name: name.to_owned() });
        }
        let row = GatewayRow { id, name: name.to_owned(), wal_state: WalState::Clean, created_at: now };
        let gateway = self.gateways.entry(id).or_insert(Gateway { row, batches: 0 });
        name.clone_into(&mut gateway.row.name);
        Ok(())
    }

    pub(super) fn gateway(&self, id: GatewayId) -> Result<&Gateway> {
        self.gateways.get(&id).ok_or_else(|| CatalogError::not_found("gateway", &id))
    }

    pub(super) fn gateways(&self) -> Vec<GatewayRow> {
        let mut rows: Vec<_> = self.gateways.values().map(|gateway| gateway.row.clone()).collect();
        rows.sort_by(|one, other| one.name.cmp(&other.name));
        rows
    }

    pub(super) fn set_wal_state(&mut self, id: GatewayId, state: WalState) -> Result<()> {
        let gateway = self.gateways.get_mut(&id).ok_or_else(|| CatalogError::not_found("gateway", &id))?;
        gateway.row.wal_state = state;
        Ok(())
    }

    pub(super) fn add_node(&mut self, node: &NodeRow) -> Result<()> {
        if self.nodes.values().any(|known| known.name == node.name) {
            return Err(CatalogError::NameTaken { what: "node", name: node.name.clone() });
        }
        if self.nodes.contains_key(&node.id) {
            return Err(CatalogError::AlreadyExists { what: "node", id: node.id.to_string() });
        }
        node.capacity_bytes.map(countable).transpose()?;
        self.nodes.insert(node.id, node.clone());
        Ok(())
    }

    pub(super) fn nodes(&self) -> Vec<NodeRow> {
        let mut rows: Vec<_> = self.nodes.values().cloned().collect();
        rows.sort_by(|one, other| one.name.cmp(&other.name));
        rows
    }

    pub(super) fn node(&self, id: NodeId) -> Result<&NodeRow> {
        self.nodes.get(&id).ok_or_else(|| CatalogError::not_found("node", &id))
    }

    pub(super) fn node_by_name(&self, name: &str) -> Result<NodeRow> {
        let found = self.nodes.values().find(|node| node.name == name).cloned();
        found.ok_or_else(|| CatalogError::not_found("node", &name))
    }
}
