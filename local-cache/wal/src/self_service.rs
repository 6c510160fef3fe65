//! Callers that do the writer's work themselves.
//!
//! Handing a record to the writer's thread and hearing back takes two wake-ups of a thread, tens of microseconds on a
//! virtual machine, and writing a frame into the page cache takes a few. So a caller that is about to wait writes the
//! frame itself if nobody else is at it, and syncs if it is alone and syncs are fast. If that does not
//! give it what it waits for, it waits, which wakes the thread.

use crate::shared::Shared;
use crate::writer::Writer;
use cairn_model::Lsn;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Mutex, MutexGuard};

/// Frames up to this are written by the caller: longer ones take longer to seal than the thread takes to wake.
const FRAME_PAYLOAD_MAX: usize = 160 << 10;

/// Slower syncs go to the thread: beside them its wake-up is nothing, and the caller's other requests go on.
const SYNC_TIME_MAX: Duration = Duration::from_micros(600);

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
            writer.write_at_once(FRAME_PAYLOAD_MAX);
        }
    }

    /// Makes everything through `lsn` durable, if that is possible here and now.
    pub(crate) fn sync(&self, lsn: Lsn) {
        if self.shared.synced.wanted().is_some() {
            return;
        }
        if let Some(mut writer) = self.take_writer() {
            if self.shared.written.reached() < lsn {
                writer.write_at_once(FRAME_PAYLOAD_MAX);
            }
            if self.shared.written.reached() >= lsn {
                writer.sync_at_once(SYNC_TIME_MAX);
            }
        }
    }

    /// The writer, if its thread and other callers leave it alone.
    fn take_writer(&self) -> Option<Taken<'_>> {
        let writer = self.writer.try_lock().ok()?;
        Some(Taken { writer, shared: &self.shared })
    }
}

/// The writer in the hands of a caller.
struct Taken<'a> {
    writer: MutexGuard<'a, Writer>,
    shared: &'a Shared,
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

/// A panic may leave half a frame behind: nothing is acknowledged after it.
impl Drop for Taken<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.shared.poison("a panic while a caller had the writer");
        }
    }
}
