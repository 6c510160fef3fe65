//! Objects that nothing names.
//!
//! The order of looks is what makes it sure (see `in_flight`): (1) a node lists a folder; (2) segments that are on their way now are left out; (3) the catalog is asked. What was put before the list
//! and is named by nothing at (3) was not on its way at (2), so its commit had been answered, or it was given up: nothing will ever name it. What was put after the list is
//! not in it.
//!
//! Objects that were given up (a refused batch, a put that was late, a shard that healing did not place) are deleted by whoever put them, in a moment. So everything found is looked at once
//! more after a rest: what is gone then is no problem. Only then it is read whose it is. What is not this site's is told and never touched, nor what does not say whose it is.
//!
//! What is of a segment that the catalog has is an orphan only if all shards of that segment were seen where they should be: a row that is wrong must not make an orphan of what it is to name. The same is so of
//! what holds something that the catalog has in another segment.
//!
//! Nor is anything an orphan while the pool has writes that the catalog does not have (`later`), or while a map cannot be read, lacks changes, or points at what the catalog does not have (`maps`): it may have
//! forgotten what names it.
//!
//! The folder of segments alone is looked at. Objects of the record, keys and markers have owners that tidy them up themselves (`record`).

use super::later::{Asked, Held, Later};
use super::{Checker, FsckPhase, PAGE_BYTES, ProblemKind, REST};
use crate::error::EngineError;
use cairn_metadata::{NodeState, UnnamedObject};
use cairn_model::NodeId;
use cairn_segment_writer::{ListedObject, ObjectIdentity};
use std::collections::HashSet;

/// Objects that one check can plan to delete. What is beyond is for the next.
const ORPHANS_MAX: usize = 100_000;
/// Objects of one question to the catalog.
const ASKED_AT_ONCE: usize = 500;
/// What it takes to read what an object says it is, about.
const IDENTITY_BYTES: u64 = 8 << 10;
/// Objects beyond the keys that this program makes that are told of a node.
const STRANGERS_MAX: usize = 20;

impl Checker<'_> {
    /// Lists all folders of all nodes. Returns what nothing seems to name.
    pub(super) async fn list_objects(&mut self) -> Result<Vec<UnnamedObject>, EngineError> {
        let rows = self.catalog.nodes().await?;
        self.begin(FsckPhase::Objects, 256);
        for row in &rows {
            match self.pool.node(row.id) {
                Err(error) => self.is_silent(row.id, &error),
                Ok(_) if row.state == NodeState::Failed => {
                    let reason = "it is declared failed; what it holds is not looked at".to_owned();
                    self.silent.insert(row.id, reason);
                }
                Ok(_) => {}
            }
        }
        let (mut found, mut strangers) = (Vec::new(), 0);
        let mut is_all_there = true;
        for row in &rows {
            self.list_strangers(row.id, &mut strangers).await;
        }
        for folder in 0..=u8::MAX {
            for row in &rows {
                if self.silent.contains_key(&row.id) {
                    continue;
                }
                // Its bucket or directory may be another one by now: that has other objects.
                if let Err(error) = self.pool.look_who(row.id).await {
                    self.is_silent(row.id, &error);
                    continue;
                }
                let listed = match self.pool.list_objects(row.id, folder).await {
                    Ok(listed) => listed,
                    Err(error) => {
                        let what = format!("folder {folder:02x} of {}", self.node_name(row.id));
                        self.failed(row.id, &error, ("folders", what)).await;
                        is_all_there = false;
                        continue;
                    }
                };
                self.answered(row.id);
                self.of_folder(row.id, listed, &mut found, &mut strangers).await?;
            }
            self.advance(1);
            self.rest(PAGE_BYTES).await?;
        }
        self.plan.is_all_there = is_all_there && self.silent.is_empty();
        Ok(found)
    }

    /// What is beside the folders of segments.
    async fn list_strangers(&mut self, node: NodeId, strangers: &mut usize) {
        if self.silent.contains_key(&node) {
            return;
        }
        match self.pool.list_strangers(node).await {
            Ok(keys) => {
                for key in keys {
                    self.stranger(node, &key, strangers);
                }
            }
            Err(error) => {
                let what = format!("what is beside the folders of segments on {}", self.node_name(node));
                self.failed(node, &error, ("folders", what)).await;
            }
        }
    }

    fn stranger(&mut self, node: NodeId, key: &str, strangers: &mut usize) {
        *strangers += 1;
        if *strangers <= STRANGERS_MAX {
            let subject = format!("object {key} on {}", self.node_name(node));
            let text = "it is called as no object of this program is: it is left alone".to_owned();
            self.findings.problem(ProblemKind::ForeignObject, subject, text, None);
        }
    }

    async fn of_folder(
        &mut self,
        node: NodeId,
        listed: Vec<ListedObject>,
        found: &mut Vec<UnnamedObject>,
        strangers: &mut usize,
    ) -> Result<(), EngineError> {
        let mut objects = Vec::with_capacity(listed.len());
        for ListedObject { key, length_bytes, segment } in listed {
            let counts = self.findings.counts();
            (counts.objects, counts.object_bytes) = (counts.objects + 1, counts.object_bytes + length_bytes);
            if let Some(segment) = segment {
                objects.push(UnnamedObject { node, key, segment, length_bytes });
                continue;
            }
            self.stranger(node, &key, strangers);
        }
        // After the list, before the catalog is asked.
        objects.retain(|object| !self.is_on_its_way(object));
        for some in objects.chunks(ASKED_AT_ONCE) {
            let unnamed = self.source.unnamed(some).await?;
            let room = ORPHANS_MAX - found.len();
            if unnamed.len() > room {
                for object in &unnamed[room..] {
                    let text = format!("object {}: there are too many that nothing names", object.key);
                    self.findings.unchecked("objects that nothing names, for the next check", text);
                }
            }
            found.extend(unnamed.into_iter().take(room));
        }
        Ok(())
    }

    fn is_on_its_way(&self, object: &UnnamedObject) -> bool {
        self.beside.is_some_and(|shared| shared.in_flight.contains(object.segment))
    }

    /// The second look.
    pub(super) async fn confirm_orphans(&mut self, found: Vec<UnnamedObject>) -> Result<(), EngineError> {
        self.begin(FsckPhase::Confirming, found.len() as u64);
        if !found.is_empty() && self.beside.is_some() {
            self.ports.clock.sleep(REST).await;
        }
        let mut confirmed = Vec::new();
        for some in found.chunks(ASKED_AT_ONCE) {
            let mut left = Vec::with_capacity(some.len());
            for object in some {
                if self.silent.contains_key(&object.node) {
                    continue;
                }
                match self.pool.identify(object.node, &object.key).await {
                    Ok(ObjectIdentity::Missing) => self.answered(object.node),
                    Ok(identity) => {
                        self.answered(object.node);
                        left.push((object.clone(), identity));
                    }
                    Err(error) => {
                        let what = format!("object {} that nothing names", object.key);
                        self.failed(object.node, &error, ("objects that nothing names", what)).await;
                    }
                }
                self.rest(IDENTITY_BYTES).await?;
            }
            let asked: Vec<UnnamedObject> = left.iter().map(|(object, _)| object.clone()).collect();
            let unnamed: HashSet<UnnamedObject> = self.still_unnamed(asked).await?.into_iter().collect();
            left.retain(|(object, _)| unnamed.contains(object));
            confirmed.extend(left);
            self.advance(some.len() as u64);
        }
        self.look_into(&confirmed).await?;
        for (object, identity) in confirmed {
            self.tell_orphan(object, identity);
        }
        Ok(())
    }

    /// Whether the catalog is an older copy of itself, and what they hold that may be needed.
    async fn look_into(&mut self, confirmed: &[(UnnamedObject, ObjectIdentity)]) -> Result<(), EngineError> {
        if self.stays.is_some() {
            return Ok(());
        }
        let own = confirmed.iter().filter(|(object, identity)| self.is_own(object, identity));
        let own: Vec<UnnamedObject> = own.map(|(object, _)| object.clone()).collect();
        let asked = Asked {
            site: self.site,
            catalog: self.catalog,
            source: self.source,
            pool: self.pool,
            domains: self.domains,
            beside: self.beside,
            counts_log: true,
            is_all_there: self.plan.is_all_there,
            not_whole: Some(&self.not_whole),
        };
        let Held { later, needed } = asked.held(&own).await?;
        // Whatever it holds that is needed may be read from it.
        for id in needed {
            self.not_whole.add(id);
        }
        match later {
            None => {}
            Some(Later::Writes(text)) => {
                self.findings.problem(ProblemKind::Record, "this catalog".to_owned(), text, None);
                self.stays = Some("the pool has writes that this catalog does not have");
            }
            Some(Later::Unknown(text)) => {
                let what = format!("whether the pool has writes that this catalog does not have: {text}");
                self.findings.unchecked("parts of the check", what);
                self.stays = Some("what it holds cannot be read");
            }
        }
        Ok(())
    }

    fn is_own(&self, object: &UnnamedObject, identity: &ObjectIdentity) -> bool {
        *identity == ObjectIdentity::Of { site: self.site, segment: object.segment }
    }

    /// While no segment is being healed: what healing has put is placed, or known to it.
    async fn still_unnamed(&self, asked: Vec<UnnamedObject>) -> Result<Vec<UnnamedObject>, EngineError> {
        let Some(shared) = self.beside else { return Ok(self.source.unnamed(&asked).await?) };
        let _turn = shared.heal.own_turn().await;
        let is_open = |object: &UnnamedObject| {
            !shared.in_flight.contains(object.segment) && !shared.heal.deals_with(object.node, &object.key)
        };
        let asked: Vec<UnnamedObject> = asked.into_iter().filter(is_open).collect();
        Ok(self.source.unnamed(&asked).await?)
    }

    fn tell_orphan(&mut self, object: UnnamedObject, identity: ObjectIdentity) {
        let subject = format!("object {} on {}", object.key, self.node_name(object.node));
        let foreign = match identity {
            _ if self.is_own(&object, &identity) => None,
            ObjectIdentity::Of { site, .. } if site != self.site => {
                Some(format!("it is of another site, {site}: it is left alone"))
            }
            ObjectIdentity::Of { segment, .. } => {
                Some(format!("it says that it is of segment {segment}: it is left alone"))
            }
            ObjectIdentity::Unknown(reason) => Some(format!(
                "nothing names it, and it does not say whose it is ({reason}): it is left alone"
            )),
            ObjectIdentity::Missing => return,
        };
        if let Some(text) = foreign {
            self.findings.problem(ProblemKind::ForeignObject, subject, text, None);
            return;
        }
        if let Some(why) = self.stays.or(self.forgets) {
            let text = format!("this catalog does not name it, but {why}: it is left alone");
            self.findings.problem(ProblemKind::Orphan, subject, text, None);
            return;
        }
        if self.not_whole.may_have(object.segment) {
            let text = "this catalog does not name it, but it may be needed: its segment, or one that has the same, lacks shards or cannot be read. It is left alone until that is whole".to_owned();
            self.findings.problem(ProblemKind::Orphan, subject, text, None);
            return;
        }
        self.findings.orphan(subject, object.length_bytes);
        self.plan.orphans.push(object);
    }
}
