//! Check of a site: its catalog, its maps and its pool are held against each other (`cairn fsck`).
//!
//! ```text
//! file, sums ─► objects of each node, then the catalog ─► segments: rows, shards, containers, footers ─► maps ─► record ─► a second look at what nothing names ─► what is lost, and of whom
//! ```
//!
//! - A check reads, and changes nothing. What it finds is a *plan*, which is carried out only when somebody asks (`repair`), and then every part of it is looked at once more: a
//!   plan may be old.
//! - Everything goes on meanwhile: batches, folds, reclaim, healing. So nothing is a problem that was seen once in two places at two times. Rows of maps and what they point at are read in one
//!   transaction; sums and rows too; what a row says of the pool is looked at again, beside the row, before it counts (`segments`); what nothing names is listed first, then it is asked what is
//!   on its way, and then the catalog (`orphans`).
//! - What is checked of an object is which one it is and how long: one or two small reads for each shard, and the footer of each segment. Whether all its bytes are right is for scrub.
//! - Memory is bounded: pages of the catalog, a folder of the pool, and so many findings. What does not fit is counted, and for the next check.
//! - A node that does not answer is told as not checked. Nothing is concluded of its silence, and nothing deleted for it. One request that fails says nothing of a node: what it was about is
//!   not checked then (`nodes`).
//! - A catalog that cannot be read somewhere is looked at everywhere else. What it names is not known then: nothing is an orphan, and no sum is set.
//!
//! Crash cases: none of a check. Those of a repair are in `repair`.

mod containers;
mod later;
mod lost;
mod maps;
mod nodes;
mod orphans;
mod record;
mod repair;
mod report;
mod segments;

pub use repair::Repaired;
pub use report::{FsckPhase, FsckProgress, FsckReport, LostRange, PlanCounts, Problem, ProblemKind, Remedy};

use crate::domains::Domains;
use crate::engine::{Engine, Shared};
use crate::error::EngineError;
use crate::heal::wait_for_turn;
use cairn_metadata::{Catalog, CheckSource, DoomedObject, UnnamedObject, WrongSum};
use cairn_model::{CommitSeq, ErrorKind, Kinded, LineageId, NodeId, Ports, SegmentId, SiteId, boxed};
use cairn_segment_writer::{Domain, Pool};
use lost::LostData;
use parking_lot::Mutex;
use report::Findings;
use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

/// Between two pages beside guests.
const PAUSE: Duration = Duration::from_millis(2);
/// Bytes that a page of the catalog or a list counts as.
const PAGE_BYTES: u64 = 256 << 10;
/// Doomed objects of one question to the catalog.
const DOOMED_AT_ONCE: u32 = 500;
/// Shards, leaves and doomed objects that one plan can have of each. What is beyond is for the next check.
const PLANNED_MAX: usize = 100_000;
/// Segments that are not whole that are remembered.
const NOT_WHOLE_MAX: usize = 1_000_000;
/// Between the first and the second look at what nothing names.
const REST: Duration = Duration::from_secs(2);

/// What is checked, where no engine runs.
#[derive(Debug)]
pub struct FsckParts {
    pub site: SiteId,
    pub catalog: Arc<dyn Catalog>,
    pub pool: Arc<Pool>,
    /// Those whose keys are open.
    pub domains: Vec<Domain>,
    pub ports: Ports,
}

/// Checks of a site: one at a time, and the plan that the last one made.
#[derive(Debug, Default)]
pub struct Fsck {
    turn: tokio::sync::Mutex<()>,
    progress: Mutex<Option<FsckProgress>>,
    plan: Mutex<Option<Plan>>,
}

/// What a check found that can be mended.
#[derive(Debug, Default)]
struct Plan {
    /// Tells it from others.
    id: u64,
    /// Objects that nothing names.
    orphans: Vec<UnnamedObject>,
    /// Shards that are missing, or something else.
    shards: Vec<(SegmentId, usize)>,
    sums: SumPlan,
    is_record_bad: bool,
    /// Objects that are doomed although a segment names them.
    doomed: Vec<UnnamedObject>,
    /// Every node was listed.
    is_all_there: bool,
}

/// What is set.
#[derive(Debug, Default)]
struct SumPlan {
    /// Versions of leaves whose rows say wrongly how much they map.
    leaves: Vec<(LineageId, cairn_metadata::LeafIndex, CommitSeq)>,
    are_wrong: bool,
}

impl SumPlan {
    fn is_empty(&self) -> bool {
        self.leaves.is_empty() && !self.are_wrong
    }
}

impl Plan {
    fn is_empty(&self) -> bool {
        self.orphans.is_empty()
            && self.shards.is_empty()
            && self.sums.is_empty()
            && !self.is_record_bad
            && self.doomed.is_empty()
    }
}

impl Fsck {
    /// Checks the site beside a running engine.
    #[boxed]
    pub async fn check(&self, engine: &Engine) -> Result<FsckReport, EngineError> {
        let shared = engine.shared();
        let checker = Checker {
            site: shared.site,
            catalog: &*shared.catalog,
            source: source(&*shared.catalog)?,
            pool: &shared.pool,
            domains: &shared.domains,
            ports: &shared.ports,
            beside: Some(shared),
            progress: &self.progress,
            findings: Findings::default(),
            plan: Plan::default(),
            lost: LostData::default(),
            silent: BTreeMap::new(),
            failures: BTreeMap::new(),
            says_more: Vec::new(),
            understated_bytes: 0,
            not_whole: NotWhole::default(),
            stays: None,
            forgets: None,
        };
        self.run(checker).await
    }

    /// The same where no engine runs.
    #[boxed]
    pub async fn check_alone(&self, parts: &FsckParts) -> Result<FsckReport, EngineError> {
        let domains = Domains::new(parts.domains.clone());
        let checker = Checker {
            site: parts.site,
            catalog: &*parts.catalog,
            source: source(&*parts.catalog)?,
            pool: &parts.pool,
            domains: &domains,
            ports: &parts.ports,
            beside: None,
            progress: &self.progress,
            findings: Findings::default(),
            plan: Plan::default(),
            lost: LostData::default(),
            silent: BTreeMap::new(),
            failures: BTreeMap::new(),
            says_more: Vec::new(),
            understated_bytes: 0,
            not_whole: NotWhole::default(),
            stays: None,
            forgets: None,
        };
        self.run(checker).await
    }

    async fn run(&self, checker: Checker<'_>) -> Result<FsckReport, EngineError> {
        let _turn = self.turn.try_lock().map_err(|_| EngineError::FsckUnderWay)?;
        let _progress = Watched(&self.progress);
        *self.progress.lock() = Some(FsckProgress::default());
        let ports = checker.ports.clone();
        let (findings, mut plan) = checker.check().await?;
        let mut id = [0; 8];
        ports.entropy.fill(&mut id);
        // Numbers of JSON are exact up to 2^53.
        plan.id = u64::from_le_bytes(id) >> 12;
        let plan = Some(plan).filter(|plan| !plan.is_empty());
        let report = findings.into_report(plan.as_ref().map(|plan| plan.id));
        *self.plan.lock() = plan;
        Ok(report)
    }

    /// How far the check under way is.
    pub fn progress(&self) -> Option<FsckProgress> {
        self.progress.lock().clone()
    }

    fn take_plan(&self, id: u64) -> Result<Plan, EngineError> {
        let mut plan = self.plan.lock();
        plan.take_if(|plan| plan.id == id).ok_or(EngineError::NoSuchPlan)
    }
}

/// Nobody is told of a check that is not under way any more, however it ended.
struct Watched<'a>(&'a Mutex<Option<FsckProgress>>);

impl Drop for Watched<'_> {
    fn drop(&mut self) {
        *self.0.lock() = None;
    }
}

fn source(catalog: &dyn Catalog) -> Result<&dyn CheckSource, EngineError> {
    catalog.check().ok_or(EngineError::NothingToCheck)
}

/// A check under way.
struct Checker<'a> {
    site: SiteId,
    catalog: &'a dyn Catalog,
    source: &'a dyn CheckSource,
    pool: &'a Arc<Pool>,
    domains: &'a Domains,
    ports: &'a Ports,
    /// The engine that runs, if one does.
    beside: Option<&'a Shared>,
    progress: &'a Mutex<Option<FsckProgress>>,
    findings: Findings,
    plan: Plan,
    lost: LostData,
    /// Nodes that do not answer, and why: they are not asked again.
    silent: BTreeMap<NodeId, String>,
    /// Requests in a row that a node failed.
    failures: BTreeMap<NodeId, u32>,
    /// Sums over maps that say more than is counted.
    says_more: Vec<WrongSum>,
    /// What leaves map beyond what their rows say.
    understated_bytes: u64,
    not_whole: NotWhole,
    /// Why what the catalog does not name is left alone: another one may, or it cannot be read.
    stays: Option<&'static str>,
    /// The same where only that follows: it can be read and is the site's, but it may have forgotten something.
    forgets: Option<&'static str>,
}

/// Segments of which not every shard was seen where the catalog has it, and right, and others that hold something of them. What else the pool has of one stays: its rows may be what is wrong, and the object what it takes to read it.
#[derive(Default)]
struct NotWhole {
    segments: HashSet<SegmentId>,
    /// There are more than are remembered, or nobody knows which it is.
    are_many: bool,
}

impl NotWhole {
    fn add(&mut self, segment: SegmentId) {
        if self.segments.len() < NOT_WHOLE_MAX {
            self.segments.insert(segment);
        } else {
            self.are_many = true;
        }
    }

    fn may_have(&self, segment: SegmentId) -> bool {
        self.are_many || self.segments.contains(&segment)
    }
}

impl Checker<'_> {
    async fn check(mut self) -> Result<(Findings, Plan), EngineError> {
        self.begin(FsckPhase::Catalog, 0);
        let done = self.file().await;
        self.unless_damaged("the catalog's file", done)?;
        let done = self.sums().await;
        self.unless_damaged("sums", done)?;
        let done = self.list_objects().await;
        let found = self.unless_damaged("what the pool has beside what the catalog names", done)?;
        let done = self.doomed().await;
        self.unless_damaged("objects that are to be deleted", done)?;
        let done = self.segments().await;
        self.unless_damaged("segments", done)?;
        let done = self.maps().await;
        self.unless_damaged("maps", done)?;
        self.tell_sums_that_say_more();
        self.begin(FsckPhase::Record, 0);
        let done = self.record().await;
        self.unless_damaged("checkpoints", done)?;
        let done = self.confirm_orphans(found).await;
        self.unless_damaged("objects that nothing names", done)?;
        let done = self.locate_lost().await;
        self.unless_damaged("of whom what is lost is", done)?;
        self.tell_silent().await;
        Ok((self.findings, self.plan))
    }

    /// A part of the check that came upon something in the catalog that cannot be read: that is told, and the others go on.
    fn unless_damaged<T: Default>(
        &mut self,
        part: &'static str,
        done: Result<T, EngineError>,
    ) -> Result<T, EngineError> {
        match done {
            Err(error) if error.kind() == ErrorKind::Corrupt => {
                self.damaged_file(error.to_string());
                let what = format!("{part}, or not all of it: the catalog cannot be read");
                self.findings.unchecked("parts of the check", what);
                Ok(T::default())
            }
            done => done,
        }
    }

    fn damaged_file(&mut self, text: String) {
        self.findings.problem(ProblemKind::CatalogFile, "the catalog's file".to_owned(), text, None);
        self.stays.get_or_insert("the catalog is damaged, and may have named it");
    }

    /// What the database says of its file, and references that lead nowhere.
    async fn file(&mut self) -> Result<(), EngineError> {
        for text in self.source.check_file().await? {
            self.damaged_file(text);
        }
        Ok(())
    }

    async fn sums(&mut self) -> Result<(), EngineError> {
        for sum in self.source.wrong_sums().await? {
            if sum.says_more {
                self.says_more.push(sum);
            } else {
                self.wrong_sum(sum);
            }
        }
        Ok(())
    }

    fn wrong_sum(&mut self, sum: WrongSum) {
        let text = format!("the catalog says {}, and it is {}", sum.recorded, sum.counted);
        // Rows that cannot be read are not counted.
        let remedy = self.stays.is_none().then_some(Remedy::Recount);
        self.findings.problem(ProblemKind::Sum, sum.what, text, remedy);
        self.plan.sums.are_wrong |= remedy.is_some();
    }

    /// When a leaf is gone, what was added up of it is the only trace. It stays, unless rows of leaves are known to say less than is in them.
    fn tell_sums_that_say_more(&mut self) {
        for sum in std::mem::take(&mut self.says_more) {
            if sum.recorded.abs_diff(sum.counted) <= self.understated_bytes {
                self.wrong_sum(sum);
                continue;
            }
            let (recorded, counted) = (sum.recorded, sum.counted);
            let text = format!(
                "the catalog says {recorded}, and its leaves map {counted}: leaves may be missing, which read as zeros"
            );
            self.findings.problem(ProblemKind::Sum, sum.what, text, None);
        }
    }

    /// Objects that are to be deleted and that a segment names.
    async fn doomed(&mut self) -> Result<(), EngineError> {
        let mut after = None;
        loop {
            let page = self.catalog.doomed_objects(after, DOOMED_AT_ONCE).await?;
            let Some(last) = page.last() else { return Ok(()) };
            after = Some(last.id);
            let object = |doomed: DoomedObject| {
                let DoomedObject { segment, node, key, length_bytes, .. } = doomed;
                UnnamedObject { node, key, segment, length_bytes }
            };
            let objects: Vec<UnnamedObject> = page.into_iter().map(object).collect();
            for object in self.source.named(&objects).await? {
                let subject = format!("object {} on {}", object.key, self.node_name(object.node));
                let text =
                    format!("it is to be deleted, or is by now, and segment {} needs it", object.segment);
                let can_keep = self.stays.is_none() && self.plan.doomed.len() < PLANNED_MAX;
                self.findings.problem(ProblemKind::Doomed, subject, text, can_keep.then_some(Remedy::Keep));
                if can_keep {
                    self.plan.doomed.push(object);
                }
            }
            self.rest(PAGE_BYTES).await?;
        }
    }

    fn begin(&self, phase: FsckPhase, total: u64) {
        *self.progress.lock() = Some(FsckProgress { phase, done: 0, total, problems: self.findings.count() });
    }

    fn advance(&self, done: u64) {
        if let Some(progress) = &mut *self.progress.lock() {
            progress.done += done;
            progress.problems = self.findings.count();
        }
    }

    /// Guests and destage come first. An error when the engine stops.
    async fn rest(&self, bytes: u64) -> Result<(), EngineError> {
        let Some(shared) = self.beside else { return Ok(()) };
        wait_for_turn(shared, bytes).await;
        self.ports.clock.sleep(PAUSE).await;
        if shared.stop.is_cancelled() { Err(EngineError::Stopped) } else { Ok(()) }
    }
}
