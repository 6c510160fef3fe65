//! Which nodes are asked, and which do not answer.
//!
//! A request that fails was tried for a while already. It takes a node out of the rest of the check only if the node cannot say who it is then, or when several in a row failed: otherwise what it was
//! about is told as not checked, alone.

use super::Checker;
use cairn_model::{ErrorKind, Kinded, NodeId};
use cairn_segment_writer::PoolError;

/// Requests in a row that a node may fail.
const FAILURES_MAX: u32 = 3;

impl Checker<'_> {
    /// A request failed. `kind` and `what` say what is not checked therefore.
    pub(super) async fn failed(
        &mut self,
        node: NodeId,
        error: &PoolError,
        (kind, what): (&'static str, String),
    ) {
        if is_of_node(error) {
            let in_a_row = self.failures.entry(node).or_default();
            *in_a_row += 1;
            if *in_a_row >= FAILURES_MAX || self.pool.look_who(node).await.is_err() {
                self.is_silent(node, error);
                return;
            }
        }
        self.findings.unchecked(kind, format!("{what}: {error}"));
    }

    pub(super) fn answered(&mut self, node: NodeId) {
        self.failures.remove(&node);
    }

    /// The node cannot be asked: it is left alone from now on.
    pub(super) fn is_silent(&mut self, node: NodeId, error: &PoolError) {
        tracing::debug!(%error, %node, "a data node is not checked");
        self.silent.entry(node).or_insert_with(|| error.to_string());
    }

    /// Nodes of which something was not checked.
    pub(super) async fn tell_silent(&mut self) {
        // Where the catalog cannot be read that was told, and the nodes have other names.
        let rows = self.catalog.nodes().await.unwrap_or_default();
        for (node, reason) in std::mem::take(&mut self.silent) {
            let row = rows.iter().find(|row| row.id == node);
            let name = row.map_or_else(|| self.node_name(node), |row| row.name.clone());
            self.findings.unchecked("data nodes", format!("data node {name}: {reason}"));
        }
    }

    /// The name of a node, for people.
    pub(super) fn node_name(&self, node: NodeId) -> String {
        self.pool.node(node).map_or_else(|_| node.to_string(), |node| node.name().to_string())
    }
}

/// Whether an error says that the node as a whole may not answer, rather than that something is wrong with an object.
fn is_of_node(error: &PoolError) -> bool {
    let is_of_many = matches!(error, PoolError::TooFewShards { .. } | PoolError::TooFewNodes { .. });
    !is_of_many && !error.is_of_object() && error.kind() != ErrorKind::Unsupported
}
