//! Reading the records of the log's files back, on a thread of its own: the disk is read and frames are decrypted while
//! whoever recovers applies the ones before.

use crate::WalError;
use crate::format::{FrameError, PAGE_BYTES, decode_records};
use crate::record::Record;
use crate::ring::LogFile;
use crate::scan::{FoundFile, Scanner, begins_behind_freed};
use bytes::Bytes;
use cairn_model::{Lsn, Spawn};
use std::collections::VecDeque;
use std::sync::Arc;
use tokio::sync::{mpsc, oneshot};

/// Frames read ahead; each holds about 1 MiB at most.
const FRAMES_AHEAD: usize = 8;

pub(crate) type Records = Vec<(Lsn, Record)>;

/// The files to read, and those that were.
#[derive(Debug)]
pub(crate) struct Replay {
    /// Oldest first; the last is the newest.
    pub(crate) chain: VecDeque<FoundFile>,
    /// Where the newest ends.
    pub(crate) end: Lsn,
    pub(crate) freed_through: Lsn,
    pub(crate) done: Vec<LogFile>,
}

/// Where the reading stands.
#[derive(Debug)]
pub(crate) enum Progress {
    Ready(Replay),
    Running { frames: mpsc::Receiver<Result<Records, WalError>>, end: oneshot::Receiver<Replay> },
    Done(Replay),
    Failed(WalError),
}

impl Progress {
    /// The records of the next frame that has any to replay; `None` after the last.
    pub(crate) async fn next(&mut self, spawn: &dyn Spawn) -> Result<Option<Records>, WalError> {
        if let Self::Ready(_) = self {
            let Self::Ready(replay) = std::mem::replace(self, Self::Failed(WalError::Closed)) else {
                unreachable!()
            };
            *self = replay.start(spawn)?;
        }
        let outcome = match self {
            Self::Running { frames, end } => match frames.recv().await {
                Some(Ok(records)) => return Ok(Some(records)),
                Some(Err(error)) => Self::Failed(error),
                None => end.await.map_or(Self::Failed(WalError::Closed), Self::Done),
            },
            Self::Ready(_) | Self::Done(_) => return Ok(None),
            Self::Failed(error) => return Err(error.clone()),
        };
        *self = outcome;
        if let Self::Failed(error) = self { Err(error.clone()) } else { Ok(None) }
    }

    /// Reads what is left and returns the files with the places of their frames.
    pub(crate) async fn into_files(mut self, spawn: &dyn Spawn) -> Result<Vec<LogFile>, WalError> {
        while self.next(spawn).await?.is_some() {}
        match self {
            Self::Done(replay) => Ok(replay.done),
            _ => Err(WalError::Closed),
        }
    }
}

impl Replay {
    fn start(self, spawn: &dyn Spawn) -> Result<Progress, WalError> {
        let (frames_out, frames) = mpsc::channel(FRAMES_AHEAD);
        let (end_out, end) = oneshot::channel();
        let work = self.run(frames_out, end_out);
        spawn
            .dedicated("wal-replay", 0, Box::pin(work))
            .map_err(|error| WalError::io("start", "a thread", error))?;
        Ok(Progress::Running { frames, end })
    }

    /// Ends early when nobody listens any more.
    async fn run(mut self, frames: mpsc::Sender<Result<Records, WalError>>, end: oneshot::Sender<Self>) {
        let mut scanner = None;
        while let Some(file) = self.chain.pop_front() {
            let scanner = scanner.get_or_insert_with(|| Scanner::new(file.slot.clone()));
            scanner.restart(file.slot.clone());
            let until = self.chain.front().map_or(self.end, |next| next.header.first_lsn);
            match read_file(file, until, self.freed_through, scanner, &frames).await {
                Ok(Some(file)) => self.done.push(file),
                Ok(None) => return,
                Err(error) => {
                    let _ = frames.send(Err(error)).await;
                    return;
                }
            }
        }
        drop(frames);
        let _ = end.send(self);
    }
}

/// Sends the records of `file` below `until`, where the next file, or the end, takes over. `None` when nobody listens.
async fn read_file(
    file: FoundFile,
    until: Lsn,
    freed_through: Lsn,
    scanner: &mut Scanner,
    frames: &mpsc::Sender<Result<Records, WalError>>,
) -> Result<Option<LogFile>, WalError> {
    let (name, header) = (file.slot.name(), file.header);
    let mut log_file =
        LogFile::new(file.slot.clone(), header.epoch, header.first_lsn, Arc::clone(&file.cipher));
    let (mut offset, mut next_lsn) = (PAGE_BYTES, header.first_lsn);
    while next_lsn < until {
        let Some((frame, payload)) = scanner.frame(&file, offset).await? else {
            let behind = scanner.frame_from(&file, offset + PAGE_BYTES).await?;
            let Some((at, frame)) =
                behind.filter(|(_, frame)| begins_behind_freed(frame, next_lsn, freed_through))
            else {
                let detail = format!("record {next_lsn} should be here and cannot be read");
                return Err(WalError::corrupt(&name, offset, detail));
            };
            tracing::warn!(file = %name, offset, to = at, "a part of the log that nobody needs any more cannot be read");
            log_file.push_damage(next_lsn, frame.counter, at - offset);
            (offset, next_lsn) = (at, frame.first_lsn);
            continue;
        };
        if frame.first_lsn != next_lsn || frame.records == 0 {
            return Err(WalError::corrupt(&name, offset, "a frame is not in its place"));
        }
        if frame.next_lsn() > freed_through.next() {
            let mut records =
                decode_records(&frame, Bytes::copy_from_slice(payload)).map_err(|error| match error {
                    FrameError::Newer(detail) => WalError::NewerVersion { file: name.clone(), detail },
                    other => WalError::corrupt(&name, offset, format!("{other:?}")),
                })?;
            records.retain(|&(lsn, _)| lsn > freed_through && lsn < until);
            if !records.is_empty() && frames.send(Ok(records)).await.is_err() {
                return Ok(None);
            }
        }
        log_file.push(frame.first_lsn, frame.frame_bytes());
        next_lsn = frame.next_lsn();
        offset += frame.frame_bytes() as u64;
    }
    Ok(Some(log_file))
}

/// Runs work that blocks on a thread of its own and waits for what it returns.
pub(crate) async fn on_own_thread<T: Send + 'static>(
    spawn: &dyn Spawn,
    name: &'static str,
    work: impl Future<Output = T> + Send + 'static,
) -> Result<T, WalError> {
    let (answer, received) = oneshot::channel();
    let work = async move {
        // Whoever asked may have stopped waiting.
        let _ = answer.send(work.await);
    };
    spawn.dedicated(name, 0, Box::pin(work)).map_err(|error| WalError::io("start", "a thread", error))?;
    received.await.map_err(|_| WalError::Closed)
}
