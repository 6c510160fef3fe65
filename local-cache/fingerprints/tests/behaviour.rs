//! What the index promises while its disk is well.
#![allow(clippy::unwrap_used, reason = "this is a test")]

mod support;

use cairn_fingerprints::{FingerprintIndex, IndexConfig, IndexError, Opened, WipeReason};
use cairn_model::{ErrorKind, Kinded, SiteId};
use std::sync::Arc;
use support::*;

#[test]
fn what_was_committed_is_found_after_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let containers: Vec<_> = (1..=5).map(|number| unique(number, 100)).collect();
    let (index, opened) = open(folder.path());
    assert_eq!(opened, Opened::Created);
    for container in &containers {
        commit(&index, DOMAIN, container);
    }
    index.close();
    let (index, opened) = open(folder.path());
    assert_eq!(opened, Opened::Found { containers: 5 });
    assert_eq!(index.containers(), (1..=5).map(id).collect::<Vec<_>>());
    for container in &containers {
        assert!(found(&index, DOMAIN, container));
        assert!(index.contains(container.container()));
    }
    assert_eq!(index.find(DOMAIN, &print(999)), None);
    let status = index.status();
    assert_eq!((status.containers, status.loads, status.misses, status.damaged), (5, 5, 1, 0));
    assert_eq!((status.in_memory_only, status.wiped), (None, None));
    assert!(status.anchors > 0 && status.disk_bytes > 0 && status.cache_bytes > 0);
}

#[test]
fn what_was_committed_is_found_after_the_process_ended_without_closing() {
    let folder = tempfile::tempdir().unwrap();
    let (index, _) = open(folder.path());
    commit(&index, DOMAIN, &unique(1, 100));
    // What a kill leaves is what the operating system has now.
    let killed = tempfile::tempdir().unwrap();
    copy(folder.path(), killed.path());
    drop(index);
    for path in [folder.path(), killed.path()] {
        let (index, opened) = open(path);
        assert_eq!(opened, Opened::Found { containers: 1 });
        assert!(found(&index, DOMAIN, &unique(1, 100)));
    }
}

#[test]
fn what_is_there_is_found_before_while_and_after_the_filter_is_gathered() {
    let folder = tempfile::tempdir().unwrap();
    let containers: Vec<_> = (1..=12).map(|number| unique(number, 9000)).collect();
    let (before, later) = containers.split_at(10);
    let (index, _) = open(folder.path());
    for container in before {
        commit(&index, DOMAIN, container);
    }
    assert!(!index.gather(), "a new index has nothing to gather");
    index.close();
    let (index, _) = open(folder.path());
    let mut steps = 0;
    for known in 0.. {
        // An anchor that nobody has asked for yet.
        let container = &containers[known % (10 + later.len().min(steps))];
        let anchor = container.anchors().nth(known).unwrap();
        assert!(index.find(DOMAIN, &anchor).is_some(), "after {steps} steps");
        assert_eq!(index.find(DOMAIN, &print(u32::MAX.into())), None);
        if let Some(container) = later.get(steps) {
            commit(&index, DOMAIN, container);
        }
        steps += 1;
        if !index.gather() {
            break;
        }
    }
    assert!(steps > 1, "one step does not hold up whoever writes");
    index.close();
    let (index, _) = open(folder.path());
    while index.gather() {}
    assert!(containers.iter().all(|container| found(&index, DOMAIN, container)));
    assert_eq!(index.find(DOMAIN, &print(u32::MAX.into())), None);
}

#[test]
fn any_anchor_leads_to_its_container_and_then_every_block_is_known() {
    let folder = tempfile::tempdir().unwrap();
    let container = unique(1, 99);
    commit(&open(folder.path()).0, DOMAIN, &container);
    for anchor in container.anchors() {
        let (index, _) = open(folder.path());
        let inner = container.blocks()[0];
        assert_eq!(index.find(DOMAIN, &inner), None, "a block that is no anchor is known through one only");
        assert!(index.find(DOMAIN, &anchor).is_some());
        assert!(container.refs().all(|(print, place)| index.find(DOMAIN, &print) == Some(place)));
        assert_eq!(index.status().loads, 1);
    }
}

#[test]
fn equal_fingerprints_of_two_domains_are_kept_apart() {
    let folder = tempfile::tempdir().unwrap();
    let (one, two) = (container(1, 0..8), container(2, 0..8));
    let (index, _) = open(folder.path());
    commit(&index, DOMAIN, &one);
    assert_eq!(index.find(OTHER_DOMAIN, &print(3)), None);
    commit(&index, OTHER_DOMAIN, &two);
    for _ in 0..2 {
        assert!(found(&index, DOMAIN, &one));
        assert!(found(&index, OTHER_DOMAIN, &two));
    }
    index.close();
    let (index, _) = open(folder.path());
    assert!(found(&index, OTHER_DOMAIN, &two));
    assert!(found(&index, DOMAIN, &one));
}

#[test]
fn a_container_in_flight_is_found_until_it_is_forgotten_and_never_reaches_the_disk() {
    let folder = tempfile::tempdir().unwrap();
    let config = IndexConfig { cache_bytes: 0, ..config(folder.path()) };
    let (index, _) = FingerprintIndex::open(&config, SITE, &key(2)).unwrap();
    let (stays, goes) = (unique(1, 100), unique(2, 100));
    for container in [&stays, &goes] {
        index.add_in_flight(DOMAIN, Arc::new(container.clone()));
    }
    assert!(found(&index, DOMAIN, &stays) && found(&index, DOMAIN, &goes), "they are pinned");
    index.forget(goes.container());
    assert!(found(&index, DOMAIN, &stays) && !found(&index, DOMAIN, &goes));
    assert_eq!(index.status().containers_in_flight, 1);
    drop(index);
    let (index, opened) = open(folder.path());
    assert_eq!(opened, Opened::Found { containers: 0 });
    assert!(!found(&index, DOMAIN, &stays));
}

#[test]
fn a_released_container_leaves_memory_and_what_is_on_disk_stays() {
    let folder = tempfile::tempdir().unwrap();
    let (index, _) = open(folder.path());
    let (kept, packed) = (unique(1, 100), unique(2, 100));
    commit(&index, DOMAIN, &kept);
    index.add_in_flight(DOMAIN, Arc::new(packed.clone()));
    for container in [&kept, &packed] {
        index.release(container.container());
    }
    let status = index.status();
    assert_eq!((status.containers_cached, status.containers_in_flight), (0, 0));
    assert!(!found(&index, DOMAIN, &packed));
    assert!(index.contains(kept.container()));
    assert!(kept.anchors().all(|anchor| index.find(DOMAIN, &anchor).is_some()), "the disk has it");
    commit(&index, DOMAIN, &packed);
    assert!(found(&index, DOMAIN, &packed), "it may still come");
}

#[test]
fn a_forgotten_container_is_not_found_and_its_content_is_found_where_it_is_now() {
    let folder = tempfile::tempdir().unwrap();
    let (old, new) = (container(1, 0..100), container(2, 50..150));
    let (index, _) = open(folder.path());
    commit(&index, DOMAIN, &old);
    commit(&index, DOMAIN, &new);
    index.forget(old.container());
    index.close();
    let (index, opened) = open(folder.path());
    assert_eq!(opened, Opened::Found { containers: 1 });
    assert!(!index.contains(old.container()));
    assert_eq!(index.find(DOMAIN, &print(3)), None);
    let anchor = new.anchors().next().unwrap();
    assert_eq!(index.find(DOMAIN, &anchor).unwrap().chunk.container, new.container());
    assert!(found(&index, DOMAIN, &new));
    let first = old.anchors().next().unwrap();
    assert_eq!(index.status().stale, 1, "the anchor that was met");
    assert_eq!(index.find(DOMAIN, &first), None);
    assert_eq!(index.status().stale, 1, "and that was removed then");
}

#[test]
fn a_full_index_forgets_the_oldest_and_keeps_what_is_also_elsewhere() {
    let folder = tempfile::tempdir().unwrap();
    let config = IndexConfig { containers_max: 10, ..config(folder.path()) };
    let open = || FingerprintIndex::open(&config, SITE, &key(2)).unwrap().0;
    let index = open();
    for number in 1..=30 {
        commit(&index, DOMAIN, &unique(number, 40));
    }
    // The same content as container 21, which is about to go.
    commit(&index, DOMAIN, &container(31, 2_100_000..2_100_040));
    let status = index.status();
    assert_eq!((status.containers, status.evicted), (10, 21));
    assert_eq!(index.containers(), (22..=31).map(id).collect::<Vec<_>>());
    assert!(!index.wants(id(5)), "it would be the first to go");
    assert!(index.wants(id(40)));
    assert_eq!(index.status().refused, 1);
    commit(&index, DOMAIN, &unique(5, 40));
    assert!(index.contains(id(5)) && !index.contains(id(22)), "what is committed is kept");
    index.close();
    let index = open();
    for number in (1..=20).filter(|number| *number != 5) {
        assert!(!found(&index, DOMAIN, &unique(number, 40)));
    }
    let moved = index.find(DOMAIN, &print(2_100_003)).unwrap();
    assert_eq!(moved.chunk.container, id(31));
    assert!((23..=30).all(|number| found(&index, DOMAIN, &unique(number, 40))));
    assert!(index.status().stale > 0, "anchors of containers that are gone are removed when they are met");
}

/// Id `number` of the time `minute`, in minutes since 1970.
fn at(minute: u64, number: u64) -> u64 {
    (minute * 60_000) << 16 | number
}

#[test]
fn an_index_that_filled_while_the_clock_was_ahead_keeps_what_is_new() {
    let folder = tempfile::tempdir().unwrap();
    let config = IndexConfig { containers_max: 5, ..config(folder.path()) };
    let open = || FingerprintIndex::open(&config, SITE, &key(2)).unwrap().0;
    let index = open();
    for number in 1..=5 {
        commit(&index, DOMAIN, &unique(at(5000, number), 8));
    }
    let new: Vec<_> = (1..=9).map(|number| unique(at(7, number), 8)).collect();
    for container in &new[..2] {
        commit(&index, DOMAIN, container);
    }
    index.close();
    let index = open();
    for container in &new[2..] {
        commit(&index, DOMAIN, container);
        assert!(index.contains(container.container()));
    }
    let kept: Vec<_> = new[4..].iter().map(cairn_model::ContainerFingerprints::container).collect();
    assert_eq!(index.containers(), kept, "those of the wrong time leave first, then the oldest");
    assert_eq!((index.status().evicted, index.status().refused), (7, 0));
    assert!(new[4..].iter().all(|container| found(&index, DOMAIN, container)));
}

#[test]
fn a_container_that_is_learned_again_does_not_take_the_room_of_newer_ones() {
    let folder = tempfile::tempdir().unwrap();
    let config = IndexConfig { containers_max: 3, ..config(folder.path()) };
    let (index, _) = FingerprintIndex::open(&config, SITE, &key(2)).unwrap();
    for minute in [10, 1000, 2000] {
        commit(&index, DOMAIN, &unique(at(minute, 1), 8));
    }
    assert!(index.wants(id(at(20, 1))));
    index.committed(DOMAIN, &unique(at(20, 1), 8));
    assert_eq!(index.containers(), [20, 1000, 2000].map(|minute| id(at(minute, 1))));
}

#[test]
fn an_index_whose_limit_was_lowered_shrinks_with_the_commits() {
    let folder = tempfile::tempdir().unwrap();
    let (index, _) = open(folder.path());
    for number in 1..=20 {
        commit(&index, DOMAIN, &unique(number, 8));
    }
    drop(index);
    let config = IndexConfig { containers_max: 5, ..config(folder.path()) };
    let (index, opened) = FingerprintIndex::open(&config, SITE, &key(2)).unwrap();
    assert_eq!(opened, Opened::Found { containers: 20 });
    for number in 21..=40 {
        commit(&index, DOMAIN, &unique(number, 8));
    }
    assert_eq!(index.containers(), (36..=40).map(id).collect::<Vec<_>>());
    assert_eq!(index.status().containers, 5);
}

#[test]
fn a_container_learned_again_is_kept_once() {
    let folder = tempfile::tempdir().unwrap();
    let (index, _) = open(folder.path());
    for _ in 0..3 {
        index.committed(DOMAIN, &unique(1, 40));
    }
    assert_eq!(index.status().containers, 1);
    index.forget(id(1));
    assert!(index.wants(id(1)));
    index.committed(DOMAIN, &unique(1, 40));
    assert!(found(&index, DOMAIN, &unique(1, 40)));
    assert_eq!(index.containers(), [id(1)]);
}

#[test]
fn an_index_of_another_site_or_key_is_wiped() {
    let folder = tempfile::tempdir().unwrap();
    let other_site = SiteId::from_bytes([5; 16]);
    let runs = [
        (SITE, key(2), Opened::Created),
        (other_site, key(2), Opened::Wiped { reason: WipeReason::OtherSite { found: SITE } }),
        (other_site, key(3), Opened::Wiped { reason: WipeReason::OtherKey { found: key(2).id() } }),
        (other_site, key(3), Opened::Found { containers: 1 }),
    ];
    for (site, key, expected) in runs {
        let (index, opened) = FingerprintIndex::open(&config(folder.path()), site, &key).unwrap();
        assert_eq!(opened, expected);
        assert_eq!(index.status().wiped.is_some(), matches!(opened, Opened::Wiped { .. }));
        assert_eq!(found(&index, DOMAIN, &unique(1, 40)), matches!(opened, Opened::Found { .. }));
        commit(&index, DOMAIN, &unique(1, 40));
    }
}

#[test]
fn an_index_of_a_newer_version_is_wiped() {
    let folder = tempfile::tempdir().unwrap();
    drop(open(folder.path()));
    let marker = folder.path().join("cairn-fingerprints");
    let mut bytes = std::fs::read(&marker).unwrap();
    bytes[8] = 2;
    std::fs::write(&marker, bytes).unwrap();
    assert_eq!(open(folder.path()).1, Opened::Wiped { reason: WipeReason::OtherVersion { found: 2 } });
}

#[test]
fn a_directory_of_something_else_is_refused_and_left_as_it_is() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("thesis.tex"), "years of work").unwrap();
    std::fs::create_dir(folder.path().join("cairn-fingerprints.store")).unwrap();
    let error = FingerprintIndex::open(&config(folder.path()), SITE, &key(2)).unwrap_err();
    assert!(matches!(error, IndexError::NotOurs { .. }), "{error}");
    assert_eq!(error.kind(), ErrorKind::Conflict);
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 2);
}

#[test]
fn a_wipe_leaves_what_the_index_did_not_make() {
    let folder = tempfile::tempdir().unwrap();
    drop(open(folder.path()));
    let note = folder.path().join("note");
    std::fs::write(&note, "mine").unwrap();
    let (_, opened) = FingerprintIndex::open(&config(folder.path()), SITE, &key(7)).unwrap();
    assert!(matches!(opened, Opened::Wiped { .. }));
    assert_eq!(std::fs::read(note).unwrap(), b"mine");
}

#[test]
fn a_directory_that_cannot_be_made_or_is_in_use_is_an_error_that_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    std::fs::write(&file, "").unwrap();
    let error = FingerprintIndex::open(&config(&file.join("index")), SITE, &key(2)).unwrap_err();
    assert!(matches!(error, IndexError::Io { operation: "create", .. }), "{error}");
    let absent = folder.path().join("not/there/yet");
    let (index, opened) = open(&absent);
    assert_eq!(opened, Opened::Created);
    let error = FingerprintIndex::open(&config(&absent), SITE, &key(2)).unwrap_err();
    assert!(matches!(error, IndexError::Locked { .. }), "{error}");
    index.close();
    let (_, opened) = open(&absent);
    assert_eq!(opened, Opened::Found { containers: 0 });
    let none = IndexConfig { containers_max: 0, ..config(&absent) };
    assert!(matches!(FingerprintIndex::open(&none, SITE, &key(2)), Err(IndexError::Config { .. })));
}

#[test]
fn a_closed_index_answers_from_memory() {
    let folder = tempfile::tempdir().unwrap();
    let (index, _) = open(folder.path());
    commit(&index, DOMAIN, &unique(1, 40));
    index.close();
    index.close();
    assert!(found(&index, DOMAIN, &unique(1, 40)));
    commit(&index, DOMAIN, &unique(2, 40));
    assert!(found(&index, DOMAIN, &unique(2, 40)));
    index.forget(id(2));
    assert!(!found(&index, DOMAIN, &unique(2, 40)));
    assert_eq!(index.status().in_memory_only.as_deref(), Some("it is closed"));
}

#[test]
fn in_memory_the_same_calls_give_the_same_answers() {
    let run = || {
        let index = FingerprintIndex::in_memory(64 << 10);
        let mut answers = Vec::new();
        for number in 0..200 {
            commit(&index, DOMAIN, &unique(number, 50 + number % 70));
            for asked in (0..number).step_by(3) {
                answers.push(index.find(DOMAIN, &print(asked * 100_000 + 7)));
            }
        }
        (answers, index.containers(), index.status())
    };
    let (answers, containers, status) = run();
    assert_eq!(run(), (answers.clone(), containers, status.clone()));
    assert!(answers.iter().any(Option::is_some) && answers.iter().any(Option::is_none));
    assert!(status.cache_bytes <= 64 << 10, "{status:?}");
    assert_eq!((status.disk_bytes, status.errors), (0, 0));
    assert!(status.in_memory_only.is_some());
}

#[test]
fn lookups_commits_and_forgets_of_many_threads_agree() {
    let folder = tempfile::tempdir().unwrap();
    let config = IndexConfig { cache_bytes: 200 << 10, containers_max: 40, ..config(folder.path()) };
    let (index, _) = FingerprintIndex::open(&config, SITE, &key(2)).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for number in 0..120 {
                commit(&index, DOMAIN, &unique(number, 200));
                if number % 7 == 0 {
                    index.forget(id(number / 2));
                }
            }
        });
        for _ in 0..3 {
            scope.spawn(|| {
                for round in 0..30 {
                    for number in 0..120 {
                        let content = number * 100_000 + (round * 13) % 200;
                        if let Some(place) = index.find(DOMAIN, &print(content)) {
                            let container = unique(number, 200);
                            assert!(container.refs().any(|known| known == (print(content), place)));
                        }
                    }
                }
            });
        }
    });
    let status = index.status();
    assert_eq!((status.damaged, status.errors, status.in_memory_only), (0, 0, None));
}

/// Runs long enough for the store to write tables and merge them.
#[test]
fn what_is_merged_away_was_forgotten_and_what_is_kept_is_found() {
    let folder = tempfile::tempdir().unwrap();
    let config = IndexConfig { cache_bytes: 100 << 10, containers_max: 60, ..config(folder.path()) };
    let (index, _) = FingerprintIndex::open(&config, SITE, &key(2)).unwrap();
    let mut kept = std::collections::VecDeque::new();
    for number in 0..400 {
        let container = unique(number, 2000);
        for _ in 0..500 {
            if !index.is_behind() {
                break;
            }
            std::thread::yield_now();
        }
        commit(&index, DOMAIN, &container);
        if index.contains(container.container()) {
            kept.push_back(container);
        }
    }
    let kept: Vec<_> = kept.into_iter().rev().take(60).collect();
    assert!(kept.iter().all(|container| found(&index, DOMAIN, container)));
    let status = index.status();
    assert_eq!((status.containers, status.errors, status.in_memory_only), (60, 0, None));
    index.close();
    let (index, opened) = FingerprintIndex::open(&config, SITE, &key(2)).unwrap();
    assert_eq!(opened, Opened::Found { containers: 60 });
    assert!(kept.iter().all(|container| found(&index, DOMAIN, container)));
}
