//! Callers that do the writer's work themselves.
//!
//! Handing a record to the writer's thread and hearing back takes two wake-ups of a thread, tens of microseconds on a
//! virtual machine, and writing a frame into the page cache takes a few. So a caller that is about to wait writes the
//! frame itself if nobody else is at it, and may sync it. If that does not give it what it waits for, it waits, which
//! wakes the thread.

use crate::shared::Shared;
use crate::writer::{Next, Writer};
use cairn_model::Lsn;
use std::sync::Arc;
use tokio::sync::{Mutex, MutexGuard};

/// The writer as callers find it.
#[derive(Clone, Debug)]
pub(crate) struct SelfService {
    shared: Arc<Shared>,
    writer: Arc<Mutex<Writer>>,
}

impl SelfService {
    pub(crate) fn new(shared: Arc<Shared>, writer: Arc<Mutex<Writer>>) -> Self {
        Self { shared, writer }
    }

    /// Writes what is queued, if that is possible here and now.
    pub(crate) fn write(&self) {
        if let Some(mut writer) = self.take_writer() {
            writer.write_at_once(Next::Unknown);
            writer.put_back();
        }
    }

    /// Makes everything through `lsn` durable, if that is possible here and now.
    pub(crate) fn sync(&self, lsn: Lsn) {
        if self.shared.synced.wanted().is_some() {
            return;
        }
        if let Some(mut writer) = self.take_writer() {
            if self.shared.written.reached() < lsn {
                writer.write_at_once(Next::Sync);
            }
            if self.shared.written.reached() >= lsn {
                writer.sync_at_once();
            }
            writer.put_back();
        }
    }

    /// The writer, if it can serve callers, and its thread and other callers leave it alone.
    fn take_writer(&self) -> Option<Taken<'_>> {
        let at_once = self.shared.context.disk.completes_at_once();
        at_once.then(|| self.writer.try_lock().ok().map(Taken::new)).flatten()
    }
}

/// The writer in somebody's hands. Whoever does not put it back, by a panic or by being dropped at an await, may leave
/// half a frame behind: nothing is acknowledged after that.
#[derive(Debug)]
pub(crate) struct Taken<'a> {
    writer: MutexGuard<'a, Writer>,
    in_order: bool,
}

impl<'a> Taken<'a> {
    pub(crate) fn new(writer: MutexGuard<'a, Writer>) -> Self {
        Self { writer, in_order: false }
    }

    pub(crate) fn put_back(mut self) {
        self.in_order = true;
    }
}

impl std::ops::Deref for Taken<'_> {
    type Target = Writer;

    fn deref(&self) -> &Writer {
        &self.writer
    }
}

impl std::ops::DerefMut for Taken<'_> {
    fn deref_mut(&mut self) -> &mut Writer {
        &mut self.writer
    }
}

/// Before the lock is released: the next one finds a writer that has ended.
impl Drop for Taken<'_> {
    fn drop(&mut self) {
        if !self.in_order {
            self.writer.fail("whoever had the writer did not put it back");
        }
    }
}
