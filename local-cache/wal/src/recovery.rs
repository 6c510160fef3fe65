//! Opening the log: find its files, read back what they hold, start a new file.
//!
//! Invariants
//! 1. What is replayed is a prefix of what was appended, and holds everything that was durable.
//!    Freed records may be missing from it: a gap among them, by damage or by a power cut, ends nothing.
//! 2. What is replayed is durable before anything is built on it: the newest file is synced before a new one is started.
//! 3. A file is never appended to after a restart; the next file takes a new epoch and a new salt.
//! 4. A discarded tail never comes back. The new file's header says from which lsn on it continues, is durable
//!    before [`Recovery::finish`] returns, and every later recovery reads the file before it only up to that lsn. Its
//!    records have those lsns again, with other content, under another key: frames are told apart by
//!    epoch and authenticated under a key of their own salt, so an old frame cannot pass for a new one.
//! 5. A header is believed in its own file only, and only over frames of its own use or of earlier ones. A header is durable before the
//!    first frame under it, so frames of a use whose header is not there show that it was lost, to zeros, to damage, or to
//!    another header: an authentic one that is not the right one hides records as well as zeros do.
//!
//! Crash cases
//! - while reading: nothing was changed; the next recovery does the same.
//! - after the newest file was synced, before the new header is durable: the same again. Nobody has seen the log
//!   without its discarded tail, so it does not matter whether a later reading finds more of it.
//! - the new header is there but not durable (the process was killed, the power stayed): the next recovery takes it for the
//!   newest file, empty, and makes it durable by invariant 2 before it starts the next one.
//! - the new header is torn: no frame was written under it, so the file counts as free.
//! - the new header is durable: it is the newest file.
//!
//! A durable frame can be damaged without trace, with all behind it, when no frame that was sealed after the end of its sync is there:
//! that cannot be told from a torn tail. Those are the frames of the last sync, and those of the one before it when all that the
//! last one covers was sealed beside that.
//! Neither can the loss of the newest file as a whole, nor an earlier header that came back in its place together with the loss of
//! its first frame.

use crate::format::{FileHeader, FirstPage, FrameHeader, PAGE, PAGE_BYTES};
use crate::grower::make_slot;
use crate::record::Record;
use crate::replay::{Progress, Replay, on_own_thread};
use crate::ring::{LogFile, Ring, Slot, countable_when_free};
use crate::scan::{FoundFile, HEADER_LOST, Scanner, Tail, has_frames_since, scan_newest};
use crate::shared::{Context, Shared};
use crate::writer::{Current, start_file};
use crate::{Wal, WalError};
use cairn_model::{AlignedBuffer, Lsn, boxed};
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

/// A log that was found and is being read back.
#[derive(Debug)]
pub struct Recovery {
    found: Found,
    reading: Progress,
}

/// What the files say before their records are read.
#[derive(Debug)]
struct Found {
    context: Context,
    /// The newest file and its end; `None` for a log that is new.
    newest: Option<(FoundFile, Tail)>,
    chain: VecDeque<FoundFile>,
    free: Vec<Slot>,
    freed_through: Lsn,
}

#[derive(Debug, Default)]
struct Files {
    by_epoch: BTreeMap<u64, FoundFile>,
    free: Vec<Slot>,
    damaged: Vec<Slot>,
}

impl Recovery {
    pub(crate) async fn open(context: Context) -> Result<Self, WalError> {
        context.config.validate()?;
        let spawn = Arc::clone(&context.ports.spawn);
        let mut found = on_own_thread(&*spawn, "wal-open", Found::look(context)).await??;
        let end = found.newest.as_ref().map_or(Lsn::ZERO, |(_, tail)| tail.next_lsn);
        let chain = std::mem::take(&mut found.chain);
        let replay = Replay { chain, end, freed_through: found.freed_through, done: Vec::new() };
        Ok(Self { found, reading: Progress::Ready(replay) })
    }

    /// The records of the next frame in log order, `None` after the last. Records that an earlier run called freed
    /// are left out as far as the log remembers it, so the first may be any.
    #[boxed]
    pub async fn next(&mut self) -> Result<Option<Vec<(Lsn, Record)>>, WalError> {
        self.reading.next(&*self.found.context.ports.spawn).await
    }

    /// Starts a new file and the log's threads. Reads to the end first, if that has not been done.
    #[boxed]
    pub async fn finish(self) -> Result<Wal, WalError> {
        let spawn = Arc::clone(&self.found.context.ports.spawn);
        let files = self.reading.into_files(&*spawn).await?;
        let (shared, current) = on_own_thread(&*spawn, "wal-open", self.found.start(files)).await??;
        Wal::start(Arc::new(shared), current)
    }
}

impl Found {
    async fn look(context: Context) -> Result<Self, WalError> {
        let files = find_files(&context).await?;
        let free = files.free;
        let mut found =
            Self { context, newest: None, chain: VecDeque::new(), free, freed_through: Lsn::ZERO };
        found.link(files.by_epoch, files.damaged).await?;
        Ok(found)
    }

    /// Puts the files that are still needed in order and finds the end of the log.
    async fn link(
        &mut self,
        mut by_epoch: BTreeMap<u64, FoundFile>,
        damaged: Vec<Slot>,
    ) -> Result<(), WalError> {
        let newest = by_epoch.pop_last().map(|(_, file)| file);
        let newest_epoch = newest.as_ref().map_or(0, |file| file.header.epoch);
        let damaged_name = damaged.first().map(Slot::name);
        let mut scanner = None;
        for slot in damaged {
            let scanner = scanner.get_or_insert_with(|| Scanner::new(slot.clone()));
            if has_frames_since(&slot, newest_epoch, scanner).await? {
                return Err(WalError::corrupt(&slot.name(), 0, HEADER_LOST));
            }
            self.free.push(slot);
        }
        let Some(newest) = newest else {
            if self.context.config.create {
                return Ok(());
            }
            return Err(WalError::NotFound { location: self.context.disk.location() });
        };
        check_length(&newest)?;
        let scanner = scanner.get_or_insert_with(|| Scanner::new(newest.slot.clone()));
        let tail = scan_newest(&newest, scanner).await?;
        let headers = by_epoch.values().map(|file| file.header.freed_through);
        self.freed_through = headers.max().unwrap_or_default().max(tail.freed_through);
        let mut oldest = newest.header;
        self.chain.push_front(newest.clone());
        while oldest.first_lsn > self.freed_through.next() {
            let Some(file) = by_epoch.remove(&oldest.previous_epoch) else {
                return Err(self.missing(oldest.previous_epoch, damaged_name));
            };
            check_length(&file)?;
            oldest = file.header;
            self.chain.push_front(file);
        }
        self.free.extend(by_epoch.into_values().map(|file| file.slot));
        self.newest = Some((newest, tail));
        Ok(())
    }

    fn missing(&self, epoch: u64, damaged_name: Option<String>) -> WalError {
        match damaged_name {
            Some(name) => WalError::corrupt(
                &name,
                0,
                format!("the header is lost; the log lacks its file of epoch {epoch}"),
            ),
            None => WalError::MissingFile { location: self.context.disk.location(), epoch },
        }
    }

    /// Makes what was read durable and starts the file to go on in. `files` are those that were read.
    async fn start(mut self, mut files: Vec<LogFile>) -> Result<(Shared, Current), WalError> {
        let end = self.newest.as_ref().map_or(Lsn::ZERO.next(), |(_, tail)| tail.next_lsn);
        let next_lsn = end.max(self.freed_through.next());
        if let Some((newest, _)) = &self.newest {
            let synced = newest.slot.file.sync().await;
            synced.map_err(|error| WalError::io("sync", &newest.slot.name(), error))?;
        }
        let slot = self.choose_slot(&mut files).await?;
        let header = FileHeader {
            epoch: self.newest.as_ref().map_or(0, |(file, _)| file.header.epoch) + 1,
            previous_epoch: files.last().map_or(0, |file| file.epoch),
            first_lsn: next_lsn,
            synced_through: Lsn::new(next_lsn.get() - 1),
            freed_through: self.freed_through,
            file_bytes: slot.bytes,
            salt: FileHeader::fresh_salt(&*self.context.ports.entropy),
            number: Some(slot.number.into()),
        };
        let mut page = AlignedBuffer::zeroed(PAGE);
        let (current, log_file) = start_file(&self.context, slot, header, &mut page).await?;
        let config = &self.context.config;
        let mut ring = Ring::new(config.files(), config.file_bytes, self.freed_through);
        for file in files {
            ring.add_live(file);
        }
        ring.add_live(log_file);
        let mut countable = countable_when_free(config.file_bytes);
        countable += self.free.into_iter().map(|slot| ring.add_free(slot)).sum::<u64>();
        countable += ring.free_through(self.freed_through);
        Ok((Shared::new(self.context, next_lsn, ring, countable), current))
    }

    /// The file to go on in: the newest itself when it holds nothing, else a free one, else one more than the settings
    /// ask for (it is removed when others become free).
    async fn choose_slot(&mut self, files: &mut Vec<LogFile>) -> Result<Slot, WalError> {
        let untouched = self.newest.as_ref().is_some_and(|(_, tail)| tail.untouched);
        let wanted = self.context.config.file_bytes;
        if untouched && files.last().is_some_and(|file| file.slot.bytes == wanted) {
            return Ok(files.pop().expect("just seen").slot);
        }
        if let Some(index) = self.free.iter().position(|slot| slot.bytes == wanted) {
            return Ok(self.free.swap_remove(index));
        }
        let used = files.iter().map(|file| file.slot.number).chain(self.free.iter().map(|slot| slot.number));
        let number = used.max().map_or(0, |number| number + 1);
        make_slot(&*self.context.disk, number, wanted).await
    }
}

/// A file that lost its end cannot be told from one that never had it, except by its header.
fn check_length(file: &FoundFile) -> Result<(), WalError> {
    if file.slot.bytes == file.header.file_bytes {
        return Ok(());
    }
    let detail = format!("the file should be {} bytes long", file.header.file_bytes);
    Err(WalError::corrupt(&file.slot.name(), file.slot.bytes, detail))
}

async fn find_files(context: &Context) -> Result<Files, WalError> {
    let disk = &*context.disk;
    let names = disk.list().await.map_err(|error| WalError::io("list", &disk.location(), error))?;
    let (mut found, mut scanner) = (Files::default(), None);
    for name in names {
        if Slot::is_temporary(&name) {
            disk.remove(&name).await.map_err(|error| WalError::io("remove", &name, error))?;
        } else if let Some(number) = Slot::number_of(&name) {
            find_file(context, &name, number, &mut found, &mut scanner).await?;
        }
    }
    Ok(found)
}

async fn find_file(
    context: &Context,
    name: &str,
    number: u32,
    found: &mut Files,
    scanner: &mut Option<Scanner>,
) -> Result<(), WalError> {
    let file = context.disk.open(name).await.map_err(|error| WalError::io("open", name, error))?;
    let bytes = file.length().await.map_err(|error| WalError::io("measure", name, error))?;
    let slot = Slot { number, file, bytes: bytes - bytes % PAGE_BYTES };
    // The header and the start of the first frame.
    let mut pages = AlignedBuffer::zeroed(2 * PAGE);
    let there = pages.len().min(usize::try_from(slot.bytes).unwrap_or(usize::MAX));
    if there > 0 {
        let read = slot.file.read_device(0, &mut pages[..there]).await;
        read.map_err(|error| WalError::io("read", name, error))?;
    }
    let (page, first_frame) = pages.split_at(PAGE);
    match FileHeader::decode(page, &context.identity, &context.key, name)? {
        // Zeros where a header was are damage like any other. A file that was never used has no frames behind them; there are
        // only ever a few such files.
        FirstPage::Blank if is_used(&slot, scanner).await? => found.damaged.push(slot),
        FirstPage::Blank => found.free.push(slot),
        FirstPage::Damaged => found.damaged.push(slot),
        FirstPage::Header(header, _)
            if header.number.is_some_and(|number| number != u64::from(slot.number)) =>
        {
            return Err(WalError::corrupt(
                name,
                0,
                "the header of another file of the log is in the place of its own",
            ));
        }
        FirstPage::Header(header, cipher) => {
            let file = FoundFile { slot, header, cipher: Arc::new(cipher) };
            let looks_later = FrameHeader::peek(first_frame).is_some_and(|frame| frame.epoch > header.epoch);
            if looks_later && is_used_later(&file, scanner).await? {
                found.damaged.push(file.slot);
            } else if let Some(twin) = found.by_epoch.insert(header.epoch, file) {
                let detail = format!("{} has the same epoch {}", twin.slot.name(), header.epoch);
                return Err(WalError::corrupt(name, 0, detail));
            }
        }
    }
    Ok(())
}

/// Whether the file was used again after its header was written, so that the header it should have is lost.
async fn is_used_later(file: &FoundFile, scanner: &mut Option<Scanner>) -> Result<bool, WalError> {
    let scanner = scanner.get_or_insert_with(|| Scanner::new(file.slot.clone()));
    scanner.restart(file.slot.clone());
    scanner.has_later_frame(file, PAGE_BYTES).await
}

/// Whether there is a frame of any use.
async fn is_used(slot: &Slot, scanner: &mut Option<Scanner>) -> Result<bool, WalError> {
    has_frames_since(slot, 0, scanner.get_or_insert_with(|| Scanner::new(slot.clone()))).await
}
