//! Opening the log: find its files, read back what they hold, start a new file.
//!
//! Invariants
//! 1. What is replayed is a prefix of what was appended, and holds everything that was durable.
//! 2. What is replayed is durable before anything is built on it: the newest file is synced before a new one is started.
//! 3. A file is never appended to after a restart; the next file takes a new epoch and a new salt.
//! 4. A discarded tail never comes back. The new file's header says from which lsn on it continues, is durable
//!    before [`Recovery::finish`] returns, and every later recovery reads the file before it only up to that lsn. Its
//!    records have those lsns again, with other content, under another key: frames are told apart by
//!    epoch and authenticated under a key of their own salt, so an old frame cannot pass for a new one.
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
//! The last durable frame can be damaged without trace when nothing was sealed after its sync: that cannot be told from a torn tail.
//! Neither can the loss of the newest file as a whole.

use crate::buffer::AlignedBuffer;
use crate::format::{FileHeader, FirstPage, PAGE, PAGE_BYTES, decode_records};
use crate::grower::make_slot;
use crate::record::Record;
use crate::ring::{LogFile, Ring, Slot, countable_when_free};
use crate::scan::{FoundFile, Scanner, Tail, has_frames_after, scan_newest};
use crate::shared::{Context, Shared};
use crate::writer::start_file;
use crate::{Wal, WalError};
use bytes::Bytes;
use cairn_model::Lsn;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

/// A log that was found and is being read back.
#[derive(Debug)]
pub struct Recovery {
    context: Context,
    /// Files yet to be read, oldest first; the last is the newest.
    chain: VecDeque<FoundFile>,
    /// The end of the newest; `None` for a log that is new.
    tail: Option<Tail>,
    newest: Option<FoundFile>,
    reading: Option<Reading>,
    scanner: Option<Scanner>,
    done: Vec<LogFile>,
    free: Vec<Slot>,
    freed_through: Lsn,
}

/// The file being read back.
#[derive(Debug)]
struct Reading {
    file: FoundFile,
    log_file: LogFile,
    offset: u64,
    next_lsn: Lsn,
    /// The lsn at which the next file, or the end, takes over.
    until: Lsn,
}

#[derive(Debug, Default)]
struct Found {
    by_epoch: BTreeMap<u64, FoundFile>,
    free: Vec<Slot>,
    damaged: Vec<Slot>,
}

impl Recovery {
    pub(crate) async fn open(context: Context) -> Result<Self, WalError> {
        context.config.validate()?;
        let found = find_files(&context).await?;
        let mut recovery = Self {
            context,
            chain: VecDeque::new(),
            tail: None,
            newest: None,
            reading: None,
            scanner: None,
            done: Vec::new(),
            free: found.free,
            freed_through: Lsn::ZERO,
        };
        recovery.link(found.by_epoch, found.damaged).await?;
        Ok(recovery)
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
        for slot in damaged {
            let mut scanner = self.take_scanner(&slot);
            if has_frames_after(&slot, newest_epoch, &mut scanner).await? {
                return Err(WalError::corrupt(
                    &slot.name(),
                    0,
                    "the file's header is unreadable, its frames are not",
                ));
            }
            self.scanner = Some(scanner);
            self.free.push(slot);
        }
        let Some(newest) = newest else {
            if self.context.config.create {
                return Ok(());
            }
            return Err(WalError::NotFound { location: self.context.disk.location() });
        };
        check_length(&newest)?;
        let mut scanner = self.take_scanner(&newest.slot);
        let tail = scan_newest(&newest, &mut scanner).await?;
        self.scanner = Some(scanner);
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
        self.newest = Some(newest);
        self.tail = Some(tail);
        Ok(())
    }

    fn missing(&self, epoch: u64, damaged_name: Option<String>) -> WalError {
        match damaged_name {
            Some(name) => WalError::corrupt(
                &name,
                0,
                format!("the header is unreadable; the log lacks its file of epoch {epoch}"),
            ),
            None => WalError::MissingFile { location: self.context.disk.location(), epoch },
        }
    }

    fn take_scanner(&mut self, slot: &Slot) -> Scanner {
        self.scanner.take().unwrap_or_else(|| Scanner::new(slot.clone()))
    }

    /// The records of the next frame in log order, `None` after the last. Records that an earlier run called freed
    /// are left out as far as the log remembers it, so the first may be any.
    pub async fn next(&mut self) -> Result<Option<Vec<(Lsn, Record)>>, WalError> {
        loop {
            let mut reading = match self.reading.take() {
                Some(reading) => reading,
                None => match self.start_reading() {
                    Some(reading) => reading,
                    None => return Ok(None),
                },
            };
            if reading.next_lsn >= reading.until {
                self.done.push(reading.log_file);
                continue;
            }
            let mut scanner = self.take_scanner(&reading.file.slot);
            let records = reading.next_frame(&mut scanner, self.freed_through).await?;
            self.scanner = Some(scanner);
            self.reading = Some(reading);
            if !records.is_empty() {
                return Ok(Some(records));
            }
        }
    }

    fn start_reading(&mut self) -> Option<Reading> {
        let file = self.chain.pop_front()?;
        let mut scanner = self.take_scanner(&file.slot);
        scanner.restart(file.slot.clone());
        self.scanner = Some(scanner);
        let end = self.tail.as_ref().map_or(file.header.first_lsn, |tail| tail.next_lsn);
        let header = file.header;
        Some(Reading {
            log_file: LogFile::new(
                file.slot.clone(),
                header.epoch,
                header.first_lsn,
                Arc::clone(&file.cipher),
            ),
            offset: PAGE_BYTES,
            next_lsn: header.first_lsn,
            until: self.chain.front().map_or(end, |next| next.header.first_lsn),
            file,
        })
    }

    /// Starts a new file and the log's threads. Reads to the end first, if that has not been done.
    pub async fn finish(mut self) -> Result<Wal, WalError> {
        while self.next().await?.is_some() {}
        let next_lsn =
            self.tail.as_ref().map_or(Lsn::ZERO.next(), |tail| tail.next_lsn).max(self.freed_through.next());
        if let Some(newest) = &self.newest {
            let synced = newest.slot.file.sync().await;
            synced.map_err(|error| WalError::io("sync", &newest.slot.name(), error))?;
        }
        let slot = self.choose_slot().await?;
        let newest_epoch = self.newest.as_ref().map_or(0, |file| file.header.epoch);
        let header = FileHeader {
            epoch: newest_epoch + 1,
            previous_epoch: self.done.last().map_or(0, |file| file.epoch),
            first_lsn: next_lsn,
            synced_through: Lsn::new(next_lsn.get() - 1),
            freed_through: self.freed_through,
            file_bytes: slot.bytes,
            salt: FileHeader::fresh_salt(&*self.context.ports.entropy),
        };
        let mut page = AlignedBuffer::zeroed(PAGE);
        let (current, log_file) = start_file(&self.context, slot, header, &mut page).await?;
        let config = &self.context.config;
        let mut ring = Ring::new(config.files(), config.file_bytes, self.freed_through);
        self.done.into_iter().for_each(|file| ring.add_live(file));
        ring.add_live(log_file);
        let mut countable = countable_when_free(config.file_bytes);
        countable += self.free.into_iter().map(|slot| ring.add_free(slot)).sum::<u64>();
        countable += ring.free_through(self.freed_through);
        Wal::start(Arc::new(Shared::new(self.context, next_lsn, ring, countable)), current)
    }

    /// The file to go on in: the newest itself when it holds nothing, else a free one, else one more than the settings
    /// ask for (it is removed when others become free).
    async fn choose_slot(&mut self) -> Result<Slot, WalError> {
        let untouched = self.tail.as_ref().is_some_and(|tail| tail.untouched);
        let wanted = self.context.config.file_bytes;
        if untouched && self.done.last().is_some_and(|file| file.slot.bytes == wanted) {
            return Ok(self.done.pop().expect("just seen").slot);
        }
        if let Some(index) = self.free.iter().position(|slot| slot.bytes == wanted) {
            return Ok(self.free.swap_remove(index));
        }
        let used =
            self.done.iter().map(|file| file.slot.number).chain(self.free.iter().map(|slot| slot.number));
        let number = used.max().map_or(0, |number| number + 1);
        make_slot(&*self.context.disk, number, wanted).await
    }
}

impl Reading {
    async fn next_frame(
        &mut self,
        scanner: &mut Scanner,
        freed_through: Lsn,
    ) -> Result<Vec<(Lsn, Record)>, WalError> {
        let name = self.file.slot.name();
        let Some((header, payload)) = scanner.frame(&self.file, self.offset).await? else {
            let detail = format!("record {} should be here and cannot be read", self.next_lsn);
            return Err(WalError::corrupt(&name, self.offset, detail));
        };
        if header.first_lsn != self.next_lsn || (header.records == 0 && header.last) {
            return Err(WalError::corrupt(&name, self.offset, "a frame is not in its place"));
        }
        let records = if header.next_lsn() <= freed_through.next() {
            Vec::new()
        } else {
            decode_records(&header, Bytes::copy_from_slice(payload)).map_err(|error| match error {
                crate::format::FrameError::Newer(detail) => {
                    WalError::NewerVersion { file: name.clone(), detail }
                }
                other => WalError::corrupt(&name, self.offset, format!("{other:?}")),
            })?
        };
        self.log_file.push(header.first_lsn, header.frame_bytes());
        self.next_lsn = header.next_lsn();
        self.offset += header.frame_bytes() as u64;
        Ok(records.into_iter().filter(|&(lsn, _)| lsn > freed_through && lsn < self.until).collect())
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

async fn find_files(context: &Context) -> Result<Found, WalError> {
    let disk = &*context.disk;
    let names = disk.list().await.map_err(|error| WalError::io("list", &disk.location(), error))?;
    let mut found = Found::default();
    for name in names {
        if Slot::is_temporary(&name) {
            disk.remove(&name).await.map_err(|error| WalError::io("remove", &name, error))?;
        } else if let Some(number) = Slot::number_of(&name) {
            find_file(context, &name, number, &mut found).await?;
        }
    }
    Ok(found)
}

async fn find_file(context: &Context, name: &str, number: u32, found: &mut Found) -> Result<(), WalError> {
    let file = context.disk.open(name).await.map_err(|error| WalError::io("open", name, error))?;
    let bytes = file.length().await.map_err(|error| WalError::io("measure", name, error))?;
    let slot = Slot { number, file, bytes: bytes - bytes % PAGE_BYTES };
    let mut page = AlignedBuffer::zeroed(PAGE);
    if slot.bytes >= PAGE_BYTES {
        slot.file.read_device(0, &mut page).await.map_err(|error| WalError::io("read", name, error))?;
    }
    match FileHeader::decode(&page, &context.identity, &context.key, name)? {
        FirstPage::Blank => found.free.push(slot),
        FirstPage::Damaged => found.damaged.push(slot),
        FirstPage::Header(header, cipher) => {
            let file = FoundFile { slot, header, cipher: Arc::new(cipher) };
            if let Some(twin) = found.by_epoch.insert(header.epoch, file) {
                let detail = format!("{} has the same epoch {}", twin.slot.name(), header.epoch);
                return Err(WalError::corrupt(name, 0, detail));
            }
        }
    }
    Ok(())
}
