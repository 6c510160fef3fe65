//! The nodes of the pool as the catalog has them.

use cairn_metadata::{NodeRow, NodeState};
use cairn_segment_writer::{DataNode, Member, NodeState as MemberState};
use std::sync::Arc;

/// What each node weighs: its capacity in GiB. Where that is not said it is that of the middle one of the others; all are alike when nobody says.
pub(super) fn weights(rows: &[NodeRow]) -> Vec<u64> {
    const GIB: u64 = 1 << 30;
    let mut known: Vec<u64> = rows.iter().filter_map(|row| row.capacity_bytes).collect();
    known.sort_unstable();
    let middle = known.get(known.len() / 2).copied().unwrap_or(GIB);
    rows.iter().map(|row| (row.capacity_bytes.unwrap_or(middle) / GIB).max(1)).collect()
}

/// The places of open nodes in the pool, as the catalog says: what [`Pool::new`](cairn_segment_writer::Pool::new) and
/// [`Pool::set_nodes`](cairn_segment_writer::Pool::set_nodes) take. Nodes without a row are left out.
pub fn members(rows: &[NodeRow], nodes: &[Arc<DataNode>]) -> Vec<Member> {
    let rows = rows.iter().zip(weights(rows));
    let member = |(row, weight): (&NodeRow, u64)| {
        let node = nodes.iter().find(|node| node.id() == row.id)?;
        let state = match row.state {
            NodeState::Active => MemberState::Active,
            NodeState::Draining => MemberState::Draining,
            NodeState::Failed => MemberState::Failed,
        };
        Some(Member { node: Arc::clone(node), domain: row.domain.as_deref().map(Arc::from), weight, state })
    };
    rows.filter_map(member).collect()
}

/// Whether both say the same.
pub(super) fn are_alike(one: &[Member], other: &[Member]) -> bool {
    let is_alike = |(one, other): (&Member, &Member)| {
        Arc::ptr_eq(&one.node, &other.node)
            && (&one.domain, one.weight, one.state) == (&other.domain, other.weight, other.state)
    };
    one.len() == other.len() && one.iter().zip(other).all(is_alike)
}

#[cfg(test)]
mod tests {
    use super::*;
    use cairn_model::{NodeId, WallTime};

    #[test]
    fn nodes_without_a_capacity_weigh_what_the_others_do() {
        let of = |capacities: &[Option<u64>]| {
            let row = |(number, capacity): (u8, &Option<u64>)| NodeRow {
                id: NodeId::from_bytes([number; 16]),
                name: number.to_string(),
                url: "file:///x".to_owned(),
                domain: None,
                state: NodeState::Active,
                created_at: WallTime::default(),
                options: "{}".to_owned(),
                capacity_bytes: *capacity,
            };
            weights(&(0..).zip(capacities).map(row).collect::<Vec<_>>())
        };
        let gib = |number: u64| Some(number << 30);
        assert_eq!(of(&[None, None]), [1, 1]);
        assert_eq!(of(&[gib(100), None, gib(300), gib(200)]), [100, 200, 300, 200]);
        assert_eq!(of(&[Some(7)]), [1]);
    }
}
