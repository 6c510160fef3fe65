//! Any calls in any order, beside a map of what was given to the index.
#![allow(clippy::unwrap_used, reason = "this is a test")]

mod support;

use cairn_fingerprints::{FingerprintIndex, IndexConfig};
use cairn_model::{ChunkRef, ContainerFingerprints, DomainId, Fingerprint};
use proptest::prelude::*;
use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use support::*;

#[derive(Clone, Debug)]
enum Call {
    InFlight { container: u64, other_domain: bool, from: u64, blocks: u64 },
    Commit { container: u64 },
    Forget { container: u64 },
    Release { container: u64 },
    Find { other_domain: bool, content: u64 },
    Reopen { close: bool },
}

fn call() -> impl Strategy<Value = Call> {
    prop_oneof![
        4 => (0u64..24, any::<bool>(), 0u64..60, 1u64..30).prop_map(|(container, other_domain, from, blocks)| {
            Call::InFlight { container, other_domain, from, blocks }
        }),
        4 => (0u64..24).prop_map(|container| Call::Commit { container }),
        1 => (0u64..24).prop_map(|container| Call::Forget { container }),
        1 => (0u64..24).prop_map(|container| Call::Release { container }),
        12 => (any::<bool>(), 0u64..90).prop_map(|(other_domain, content)| Call::Find { other_domain, content }),
        1 => any::<bool>().prop_map(|close| Call::Reopen { close }),
    ]
}

fn domain(other: bool) -> DomainId {
    if other { OTHER_DOMAIN } else { DOMAIN }
}

/// What was given, and what became of it.
#[derive(Default)]
struct Model {
    /// Never changed once given: ids are not reused.
    given: BTreeMap<u64, (DomainId, ContainerFingerprints)>,
    in_flight: HashSet<u64>,
    committed: HashSet<u64>,
    forgotten: HashSet<u64>,
}

impl Model {
    /// Containers that were ever given with that content.
    fn copies(&self, domain: DomainId, print: &Fingerprint) -> usize {
        self.given.values().filter(|(of, prints)| *of == domain && prints.blocks().contains(print)).count()
    }

    fn check_find(&self, index: &FingerprintIndex, domain: DomainId, print: &Fingerprint) {
        let places = self.places(domain, print);
        match index.find(domain, print) {
            Some(place) => assert!(places.contains_key(&place), "{place:?} was not given, or was forgotten"),
            // Of content in more than four containers, memory knows four.
            None => assert!(
                self.copies(domain, print) > 4
                    || places.values().all(|number| !self.in_flight.contains(number)),
                "what is in flight is found"
            ),
        }
    }

    fn places(&self, domain: DomainId, print: &Fingerprint) -> HashMap<ChunkRef, u64> {
        let mut places = HashMap::new();
        for (number, (of, prints)) in &self.given {
            let known = self.in_flight.contains(number) || self.committed.contains(number);
            if *of == domain && known {
                let found = prints.refs().filter(|(found, _)| found == print);
                places.extend(found.map(|(_, place)| (place, *number)));
            }
        }
        places
    }

    fn check_containers(&self, index: &FingerprintIndex, containers_max: Option<u64>) {
        let containers = index.containers();
        assert!(containers.is_sorted());
        if let Some(containers_max) = containers_max {
            assert!(containers.len() as u64 <= containers_max);
            assert_eq!(containers.len() as u64, index.status().containers);
        }
        for container in containers {
            assert!(self.committed.iter().any(|number| id(*number) == container));
        }
    }
}

fn check(calls: Vec<Call>, containers_max: u64, cache_bytes: u64, on_disk: bool) {
    let folder = tempfile::tempdir().unwrap();
    let config = IndexConfig { containers_max, cache_bytes, path: folder.path().to_owned() };
    let open = || {
        if on_disk {
            FingerprintIndex::open(&config, SITE, &key(2)).unwrap().0
        } else {
            FingerprintIndex::in_memory(cache_bytes)
        }
    };
    let mut index = open();
    let mut model = Model::default();
    for call in calls {
        match call {
            Call::InFlight { container: number, other_domain, from, blocks } => {
                if let Entry::Vacant(entry) = model.given.entry(number) {
                    let prints = container(number, from..from + blocks);
                    index.add_in_flight(domain(other_domain), Arc::new(prints.clone()));
                    entry.insert((domain(other_domain), prints));
                    model.in_flight.insert(number);
                }
            }
            Call::Commit { container } => {
                if model.in_flight.remove(&container) {
                    let (domain, prints) = &model.given[&container];
                    index.committed(*domain, prints);
                    model.committed.insert(container);
                }
            }
            Call::Forget { container } => {
                index.forget(id(container));
                model.in_flight.remove(&container);
                model.committed.remove(&container);
                model.forgotten.insert(container);
                assert!(!index.contains(id(container)));
            }
            Call::Release { container } => {
                index.release(id(container));
                model.in_flight.remove(&container);
                if !on_disk {
                    model.committed.remove(&container);
                }
            }
            Call::Find { other_domain, content } => {
                model.check_find(&index, domain(other_domain), &print(content));
            }
            Call::Reopen { close } => {
                if close {
                    index.close();
                }
                drop(index);
                index = open();
                model.in_flight.clear();
                if !on_disk {
                    model.committed.clear();
                }
            }
        }
        model.check_containers(&index, on_disk.then_some(containers_max));
    }
    let status = index.status();
    assert_eq!((status.damaged, status.errors), (0, 0));
    if on_disk && model.committed.len() as u64 <= containers_max && model.forgotten.is_empty() {
        assert_eq!(
            index.containers().len(),
            model.committed.len(),
            "nothing is lost before the index is full"
        );
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, ..ProptestConfig::default() })]

    #[test]
    fn on_disk_every_answer_was_given(
        calls in prop::collection::vec(call(), 1..60), containers_max in 1u64..12, cache_bytes in 0u64..12_000,
    ) {
        check(calls, containers_max, cache_bytes, true);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn in_memory_every_answer_was_given(calls in prop::collection::vec(call(), 1..150), cache_bytes in 0u64..12_000) {
        check(calls, 12, cache_bytes, false);
    }
}
