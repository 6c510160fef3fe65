//! Which nodes answer, for how long, and what follows from it.
//!
//! - What is seen is this process's own observation: it begins anew at every start, so that a gateway that was away itself condemns nobody for it.
//! - A node that has not answered for the set time is declared failed in the catalog, for all gateways: from then on its shards are made anew elsewhere. Not when nothing
//!   would be gained: when no node is left that could take a shard of a segment of the failed one, or when segments have no shards to spare.
//! - What is on a failed node stays named until it has a successor. A failed node that answers as itself (its marker is right) for a while is in service again, with
//!   what is left on it, whoever declared it failed and whatever was restarted meanwhile: one that is to be emptied although it answers is drained.
//! - A node that was away may have lost what it had, or be an older copy of itself. So some of its shards, more of the young ones, are looked for when it is back, after
//!   requests failed on it (it may have been away between two looks), and at every start; if one is not there, then or whenever a shard of the node is read, all are looked for.

use cairn_metadata::NodeState;
use cairn_model::{Monotonic, NodeId, Profile};
use std::collections::HashMap;
use std::time::Duration;

/// How long a failed node answers before it is in service again.
const BACK_AFTER: Duration = Duration::from_mins(1);

/// What a look at a node showed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Sight {
    pub(super) node: NodeId,
    pub(super) state: NodeState,
    /// It answers, and is what it should be.
    pub(super) answers: bool,
    /// Something failed on it since the last look: it may have been away in between.
    pub(super) stumbled: bool,
}

/// What follows for a node.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Verdict {
    /// It is declared failed, after so much silence.
    Failed(NodeId, Duration),
    /// It was failed and is in service again.
    Back(NodeId),
    /// Some of its shards are to be looked at.
    Sample(NodeId),
    /// It is silent for longer than it takes, and is not declared failed because nothing would be gained.
    Needed(NodeId, Duration),
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Watch {
    seen: HashMap<NodeId, Seen>,
}

#[derive(Clone, Copy, Debug)]
struct Seen {
    answers: bool,
    /// As far back as it was so at every look.
    since: Monotonic,
    /// It may have been away since it was sampled.
    is_doubtful: bool,
    sampled: Option<Monotonic>,
}

impl Watch {
    /// Takes note of a look at all nodes. `failed_after` is `None` when no node is declared failed. A node that stumbles all the time is sampled every `sample_pause`.
    pub(super) fn look(
        &mut self,
        now: Monotonic,
        sights: &[Sight],
        profile: Profile,
        failed_after: Option<Duration>,
        sample_pause: Duration,
    ) -> Vec<Verdict> {
        self.seen.retain(|node, _| sights.iter().any(|sight| sight.node == *node));
        let mut verdicts = Vec::new();
        for sight in sights {
            let fresh = Seen { answers: sight.answers, since: now, is_doubtful: true, sampled: None };
            let seen = self.seen.entry(sight.node).or_insert(fresh);
            if seen.answers != sight.answers {
                *seen = fresh;
            }
            seen.is_doubtful |= sight.stumbled;
            let may_sample = seen.sampled.is_none_or(|at| now.since(at) >= sample_pause);
            if sight.answers && seen.is_doubtful && may_sample {
                (seen.is_doubtful, seen.sampled) = (false, Some(now));
                verdicts.push(Verdict::Sample(sight.node));
            }
        }
        let silent = sights.iter().filter(|sight| !sight.answers).count();
        let takers = sights.iter().filter(|sight| sight.answers && sight.state == NodeState::Active).count();
        // A segment has at most so many shards on nodes that answer, if it has some on each that does not.
        let gains = profile.tolerates() > 0 && takers > profile.shards().saturating_sub(silent);
        for sight in sights {
            let lasts = now.since(self.seen[&sight.node].since);
            let back_after = failed_after.map_or(BACK_AFTER, |after| after.min(BACK_AFTER));
            match (sight.state, sight.answers, failed_after) {
                (NodeState::Active, false, Some(after)) if lasts >= after => {
                    verdicts.push(if gains {
                        Verdict::Failed(sight.node, lasts)
                    } else {
                        Verdict::Needed(sight.node, lasts)
                    });
                }
                (NodeState::Failed, true, _) if lasts >= back_after => {
                    verdicts.push(Verdict::Back(sight.node));
                }
                _ => {}
            }
        }
        verdicts
    }

    /// The node is to be sampled at the next look, if it answers then: this time it could not be done.
    pub(super) fn doubt(&mut self, node: NodeId) {
        if let Some(seen) = self.seen.get_mut(&node) {
            (seen.is_doubtful, seen.sampled) = (true, None);
        }
    }

    /// How long a node has not answered; `None` when it does.
    pub(super) fn silent_for(&self, node: NodeId, now: Monotonic) -> Option<Duration> {
        self.seen.get(&node).filter(|seen| !seen.answers).map(|seen| now.since(seen.since))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const AFTER: Option<Duration> = Some(Duration::from_mins(10));
    const PAUSE: Duration = Duration::from_mins(1);

    fn node(number: u8) -> NodeId {
        NodeId::from_bytes([number; 16])
    }

    const fn at(seconds: u64) -> Monotonic {
        Monotonic::from_origin(Duration::from_secs(seconds))
    }

    /// Nodes numbered from 0, of which the `silent` ones do not answer.
    fn sights(nodes: u8, silent: &[u8], failed: &[u8]) -> Vec<Sight> {
        (0..nodes)
            .map(|number| Sight {
                node: node(number),
                state: if failed.contains(&number) { NodeState::Failed } else { NodeState::Active },
                answers: !silent.contains(&number),
                stumbled: false,
            })
            .collect()
    }

    fn decided(verdicts: &[Verdict]) -> Vec<Verdict> {
        verdicts.iter().copied().filter(|verdict| !matches!(verdict, Verdict::Sample(_))).collect()
    }

    #[test]
    fn a_node_is_declared_failed_after_silence_without_a_break() {
        let (mut watch, profile) = (Watch::default(), Profile::ec(2, 1).unwrap());
        let mut look = |seconds, silent: &[u8]| {
            decided(&watch.look(at(seconds), &sights(4, silent, &[]), profile, AFTER, PAUSE))
        };
        assert_eq!(look(0, &[]), []);
        assert_eq!(look(10, &[1]), []);
        assert_eq!(look(500, &[]), [], "it answered");
        assert_eq!(look(510, &[1]), []);
        assert_eq!(look(1109, &[1]), []);
        assert_eq!(look(1110, &[1]), [Verdict::Failed(node(1), Duration::from_mins(10))]);
    }

    #[test]
    fn nothing_is_declared_where_that_is_switched_off() {
        let (mut watch, profile) = (Watch::default(), Profile::replica(2).unwrap());
        for seconds in [0, 100_000] {
            assert_eq!(decided(&watch.look(at(seconds), &sights(5, &[1], &[]), profile, None, PAUSE)), []);
        }
    }

    #[test]
    fn nothing_is_declared_where_nothing_is_gained() {
        let of = |nodes, silent: &[u8], profile| {
            let mut watch = Watch::default();
            watch.look(at(0), &sights(nodes, silent, &[]), profile, AFTER, PAUSE);
            let verdicts = watch.look(at(600), &sights(nodes, silent, &[]), profile, AFTER, PAUSE);
            verdicts.iter().filter(|verdict| matches!(verdict, Verdict::Failed(..))).count()
        };
        let ec = Profile::ec(4, 2).unwrap();
        assert_eq!(of(6, &[0], ec), 0, "every other node has a shard of every segment");
        assert_eq!(of(6, &[0, 1], ec), 0);
        assert_eq!(of(7, &[0], ec), 1);
        assert_eq!(of(7, &[0, 1], ec), 2, "segments that have shards on both get one back");
        assert_eq!(of(2, &[0], Profile::replica(2).unwrap()), 0);
        assert_eq!(of(3, &[0], Profile::replica(2).unwrap()), 1);
        assert_eq!(of(3, &[0], Profile::Single), 0, "there is nothing to make its shards from");
    }

    #[test]
    fn a_failed_node_is_back_when_it_has_answered_for_a_while() {
        let (mut watch, profile) = (Watch::default(), Profile::ec(2, 1).unwrap());
        let mut look =
            |seconds, silent: &[u8]| watch.look(at(seconds), &sights(4, silent, &[1]), profile, AFTER, PAUSE);
        look(0, &[1]);
        assert_eq!(look(700, &[1]), [], "it is declared already");
        assert_eq!(look(710, &[]), [Verdict::Sample(node(1))]);
        assert_eq!(look(730, &[1]), []);
        assert_eq!(look(740, &[]), [Verdict::Sample(node(1))]);
        assert_eq!(look(799, &[]), []);
        assert_eq!(look(800, &[]), [Verdict::Back(node(1))]);
    }

    #[test]
    fn nodes_are_sampled_at_the_start_and_when_they_are_back() {
        let (mut watch, profile) = (Watch::default(), Profile::replica(2).unwrap());
        let mut look =
            |seconds, silent: &[u8]| watch.look(at(seconds), &sights(2, silent, &[]), profile, AFTER, PAUSE);
        assert_eq!(look(0, &[1]), [Verdict::Sample(node(0))]);
        assert_eq!(look(1, &[1]), []);
        assert_eq!(look(2, &[]), [Verdict::Sample(node(1))]);
        assert_eq!(look(3, &[]), []);
        assert_eq!(watch.silent_for(node(1), at(9)), None);
    }

    #[test]
    fn a_node_on_which_something_failed_is_sampled_now_and_then() {
        let (mut watch, profile) = (Watch::default(), Profile::replica(2).unwrap());
        let mut look = |seconds, stumbled| {
            let mut sights = sights(1, &[], &[]);
            sights[0].stumbled = stumbled;
            watch.look(at(seconds), &sights, profile, AFTER, PAUSE).len()
        };
        assert_eq!([look(0, false), look(10, false)], [1, 0]);
        assert_eq!([look(20, true), look(50, false), look(60, false), look(70, false)], [0, 0, 1, 0]);
        assert_eq!([look(200, true), look(210, true), look(260, true)], [1, 0, 1]);
    }
}
