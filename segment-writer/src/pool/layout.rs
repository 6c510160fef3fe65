//! Which nodes a segment's shards go to: weighted rendezvous hashing over failure domains.
//!
//! Every node has a score for a segment, from a hash of both and the node's weight (Schindelhauer and Schomaker, "Weighted distributed hash tables", 2005).
//! The best node of each domain comes first, by score, then the second best of each, and so on; a segment goes to as many of this order as it
//! has shards. So:
//!
//! - two shards are in one domain only when there are fewer domains than shards;
//! - a node that is added takes places from others, a node that is removed leaves its own to others: nothing else moves;
//! - what does not fit goes to the next in the order, which every gateway agrees on.
//!
//! The order says nothing about which shard is on which node: one that is where it may be stays there.

use cairn_model::{NodeId, Profile, SegmentId};
use std::collections::HashMap;
use std::sync::Arc;

/// A node that may get shards.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Candidate {
    pub id: NodeId,
    /// What fails together: a host, a rack. `None`: the node alone.
    pub domain: Option<Arc<str>>,
    /// Share of the data relative to other nodes' weights. Zero is taken for one.
    pub weight: u64,
}

/// Chooses nodes for the shards of a segment: as many as the profile has shards, or all when there are fewer. The best first.
pub fn choose(segment: SegmentId, profile: Profile, candidates: &[Candidate]) -> Vec<NodeId> {
    let order = order(segment, candidates);
    order.iter().take(profile.shards()).map(|placed| candidates[placed.at].id).collect()
}

/// A candidate in the order.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) struct Placed {
    /// Which candidate.
    pub(crate) at: usize,
    /// Candidates of its domain before it.
    round: usize,
    score: f64,
}

/// All candidates in the order in which a segment takes them.
pub(crate) fn order(segment: SegmentId, candidates: &[Candidate]) -> Vec<Placed> {
    let mut placed: Vec<_> = candidates
        .iter()
        .enumerate()
        .map(|(at, candidate)| Placed { at, round: 0, score: score(segment, candidate) })
        .collect();
    // Two of one score are of one weight and, by all odds, one node.
    let by_score = |a: &Placed, b: &Placed| {
        b.score.total_cmp(&a.score).then_with(|| candidates[a.at].id.cmp(&candidates[b.at].id))
    };
    placed.sort_by(by_score);
    let mut rounds: HashMap<&str, usize> = HashMap::new();
    for one in &mut placed {
        if let Some(domain) = &candidates[one.at].domain {
            let before = rounds.entry(domain).or_default();
            one.round = *before;
            *before += 1;
        }
    }
    placed.sort_by_key(|one| one.round);
    placed
}

/// Of nodes with weights w, the one with weight v has the highest score of a segment with probability v / sum of w.
fn score(segment: SegmentId, candidate: &Candidate) -> f64 {
    let mut hasher = blake3::Hasher::new();
    hasher.update(segment.as_bytes()).update(candidate.id.as_bytes());
    let hash = u64::from_le_bytes(*hasher.finalize().as_bytes().first_chunk().expect("a hash has 32 bytes"));
    // Evenly in (0, 1): the middle of one of 2^53 parts.
    #[expect(clippy::cast_precision_loss, reason = "53 bits are kept")]
    let uniform = ((hash >> 11) as f64 + 0.5) / (1u64 << 53) as f64;
    #[expect(clippy::cast_precision_loss, reason = "a weight is a rough share")]
    let weight = candidate.weight.max(1) as f64;
    -weight / uniform.ln()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashSet;

    fn node(number: usize) -> NodeId {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&(number as u64).to_le_bytes());
        NodeId::from_bytes(bytes)
    }

    fn segment(number: u64) -> SegmentId {
        let mut bytes = [7; 16];
        bytes[8..].copy_from_slice(&number.to_le_bytes());
        SegmentId::from_bytes(bytes)
    }

    fn candidates(domains: &[Option<usize>], weights: &[u64]) -> Vec<Candidate> {
        let domain = |number: &usize| Arc::from(format!("rack{number}"));
        let one = |at: usize| Candidate {
            id: node(at),
            domain: domains[at].as_ref().map(domain),
            weight: weights[at % weights.len()],
        };
        (0..domains.len()).map(one).collect()
    }

    fn ec(data: u8, parity: u8) -> Profile {
        Profile::ec(data, parity).unwrap()
    }

    /// Within 10 % of what is expected of it.
    fn assert_close(found: usize, expected: f64, what: &str) {
        #[expect(clippy::cast_precision_loss, reason = "small numbers")]
        let found = found as f64;
        assert!((found - expected).abs() < 0.1 * expected, "{what}: {found} instead of {expected}");
    }

    #[test]
    fn nodes_get_shares_by_weight() {
        let weights = [1, 2, 3, 4];
        let candidates = candidates(&[None; 4], &weights);
        let mut got = [0; 4];
        for number in 0..20_000 {
            let layout = choose(segment(number), Profile::Single, &candidates);
            got[candidates.iter().position(|one| one.id == layout[0]).unwrap()] += 1;
        }
        for at in 0..4 {
            assert_close(got[at], 2000.0 * f64::from(u32::try_from(weights[at]).unwrap()), "weight");
        }
    }

    #[test]
    fn equal_nodes_get_equal_shares_of_many_shards() {
        let candidates = candidates(&[None; 10], &[5]);
        let mut got = HashMap::<_, usize>::new();
        for number in 0..10_000 {
            for id in choose(segment(number), ec(4, 2), &candidates) {
                *got.entry(id).or_default() += 1;
            }
        }
        assert_eq!(got.len(), 10);
        for shards in got.into_values() {
            assert_close(shards, 6000.0, "share");
        }
    }

    #[test]
    fn a_node_more_takes_its_share_and_moves_nothing_else() {
        let nodes = candidates(&[None; 10], &[5]);
        let mut moved = 0;
        for number in 0..10_000 {
            let before = choose(segment(number), ec(4, 2), &nodes[..9]);
            let after = choose(segment(number), ec(4, 2), &nodes);
            let new: Vec<_> = after.iter().filter(|id| !before.contains(id)).collect();
            assert!(new.is_empty() || new == [&nodes[9].id], "{new:?}");
            moved += new.len();
        }
        assert_close(moved, 6000.0, "moved to the new node");
    }

    #[test]
    fn too_few_domains_are_filled_evenly() {
        let domains = [Some(0), Some(0), Some(0), Some(1), Some(1), Some(1), Some(2), Some(2), Some(2)];
        let nodes = candidates(&domains, &[1]);
        for number in 0..500 {
            let layout = choose(segment(number), ec(4, 2), &nodes);
            for rack in 0..3 {
                let there = layout
                    .iter()
                    .filter(|id| domains[nodes.iter().position(|one| one.id == **id).unwrap()] == Some(rack));
                assert_eq!(there.count(), 2, "of six shards over three racks");
            }
        }
    }

    proptest! {
        #[test]
        fn no_two_are_on_one_node_nor_in_one_domain_when_there_are_enough(
            domains in prop::collection::vec(prop::option::of(0usize..6), 1..20),
            weights in prop::collection::vec(0u64..10, 1..5),
            number in any::<u64>(),
            shards in 2u8..9,
        ) {
            let nodes = candidates(&domains, &weights);
            let layout = choose(segment(number), Profile::replica(shards).unwrap(), &nodes);
            let ids: HashSet<_> = layout.iter().collect();
            prop_assert_eq!(ids.len(), layout.len(), "each once");
            prop_assert_eq!(layout.len(), usize::from(shards).min(nodes.len()));
            let domain = |id: &NodeId| {
                let at = nodes.iter().position(|one| one.id == *id).unwrap();
                domains[at].map_or(1000 + at, |rack| rack)
            };
            let all: HashSet<_> = nodes.iter().map(|one| domain(&one.id)).collect();
            let used: HashSet<_> = layout.iter().map(domain).collect();
            prop_assert_eq!(used.len(), all.len().min(layout.len()));
        }

        #[test]
        fn a_node_less_moves_its_own_shard_only(
            domains in prop::collection::vec(prop::option::of(0usize..6), 7..20),
            number in any::<u64>(),
            removed in 0usize..7,
        ) {
            let nodes = candidates(&domains, &[3]);
            let before = choose(segment(number), ec(4, 2), &nodes);
            let gone = nodes[removed].id;
            let fewer: Vec<_> = nodes.iter().filter(|one| one.id != gone).cloned().collect();
            let after = choose(segment(number), ec(4, 2), &fewer);
            // Where domains do not suffice, a place that is left may be filled from the node's own domain and another one make room.
            let is_spread = |chosen: &[NodeId]| {
                let domain = |id: &NodeId| {
                    let at = nodes.iter().position(|one| one.id == *id).unwrap();
                    domains[at].map_or(1000 + at, |rack| rack)
                };
                chosen.iter().map(domain).collect::<HashSet<_>>().len() == chosen.len()
            };
            let new = after.iter().filter(|id| !before.contains(id)).count();
            prop_assert!(new <= 1 + usize::from(!is_spread(&after)), "{} moved", new);
            if !before.contains(&gone) && is_spread(&before) {
                prop_assert_eq!(&before, &after);
            }
        }
    }
}
