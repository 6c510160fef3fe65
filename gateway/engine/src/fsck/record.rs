//! The record of the catalog in the pool: whether this is the catalog that it is of, and whether the newest checkpoint can be read.
//!
//! A catalog that was put back from a copy, or that another one took over from, does not name what was written since: nothing of that is an orphan.

use super::{Checker, ProblemKind, Remedy};
use crate::error::EngineError;
use crate::record::{RecordProblem, is_on, newest_problem, until_first_tried};
use cairn_model::{DomainId, ErrorKind, Kinded};
use cairn_segment_writer::{RecordKey, RecordStore};
use std::sync::Arc;

/// Checkpoints come and go meanwhile.
const TRIES: u32 = 3;

impl Checker<'_> {
    pub(super) async fn record(&mut self) -> Result<(), EngineError> {
        let Some(source) = self.catalog.record() else { return Ok(()) };
        if self.beside.is_some_and(|shared| !is_on(shared)) {
            return Ok(());
        }
        let Ok(domain) = self.domains.get(DomainId::DEFAULT) else {
            let text = "the catalog's checkpoints: the key of the default domain is not open";
            self.findings.unchecked("parts of the check", text.to_owned());
            return Ok(());
        };
        if let Some(shared) = self.beside {
            until_first_tried(shared).await;
        }
        let store = RecordStore::new(Arc::clone(self.pool), RecordKey::new(&domain, self.site));
        let mut not_whole = None;
        for _ in 0..TRIES {
            match newest_problem(&store, self.catalog, source, self.ports.clock.now()).await {
                Ok(None) => return Ok(()),
                Ok(Some(RecordProblem::Outdated(error))) => {
                    self.stays.get_or_insert("the one that the pool is of may");
                    let subject = "this catalog".to_owned();
                    self.findings.problem(ProblemKind::Record, subject, error.to_string(), None);
                    return Ok(());
                }
                Ok(Some(RecordProblem::NotWhole(reason))) => not_whole = Some(reason.to_owned()),
                Err(EngineError::Pool(error))
                    if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::Corrupt) =>
                {
                    not_whole = Some(error.to_string());
                }
                Err(error @ EngineError::Pool(_)) => {
                    let what = format!("the catalog's checkpoints: {error}");
                    self.findings.unchecked("parts of the check", what);
                    // Whether there is a later one is not known either.
                    self.stays.get_or_insert("the one that the pool is of may");
                    return Ok(());
                }
                Err(error) => return Err(error),
            }
        }
        let Some(text) = not_whole else { return Ok(()) };
        // Before there is anything, nothing may have been recorded.
        if self.catalog.totals().await?.volumes == 0 {
            return Ok(());
        }
        let subject = "the newest checkpoint of the catalog".to_owned();
        if self.silent.is_empty() {
            // One of a damaged catalog would pass for the newest.
            let remedy = self.stays.is_none().then_some(Remedy::Checkpoint);
            self.findings.problem(ProblemKind::Record, subject, text, remedy);
            self.plan.is_record_bad = remedy.is_some();
        } else {
            // The nodes that do not answer may have what it takes.
            self.findings.unchecked("parts of the check", format!("{subject}: {text}"));
        }
        Ok(())
    }
}
