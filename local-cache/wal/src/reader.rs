//! Reading records back from the log, on threads of its own: it blocks on the disk and decrypts whole frames.

use crate::WalError;
use crate::format::{FRAME_MAX, FrameError, decode_records, open_frame};
use crate::record::{Record, RecordBody};
use crate::ring::FrameAt;
use crate::shared::Shared;
use bytes::Bytes;
use cairn_model::{AlignedBuffer, Lsn};
use std::sync::Arc;
use tokio::sync::{mpsc, oneshot};

/// Requests one reader may have waiting; more wait outside.
pub(crate) const REQUESTS_MAX: usize = 64;

#[derive(Debug)]
pub(crate) struct ReadRequest {
    pub(crate) lsns: Vec<Lsn>,
    pub(crate) reply: oneshot::Sender<Result<Vec<Bytes>, WalError>>,
}

#[derive(Debug)]
pub(crate) struct Reader {
    shared: Arc<Shared>,
    requests: mpsc::Receiver<ReadRequest>,
    buffer: AlignedBuffer,
    /// The frame read last: records of one batch are often read one after the other.
    last: Option<DecodedFrame>,
}

#[derive(Debug)]
struct DecodedFrame {
    epoch: u64,
    counter: u64,
    /// Of all records, which share them.
    bytes: usize,
    records: Vec<(Lsn, Record)>,
}

impl Reader {
    pub(crate) fn new(shared: Arc<Shared>, requests: mpsc::Receiver<ReadRequest>) -> Self {
        Self { shared, requests, buffer: AlignedBuffer::zeroed(FRAME_MAX), last: None }
    }

    /// Serves until the last handle of the log is gone.
    pub(crate) async fn run(mut self) {
        while let Some(request) = self.requests.recv().await {
            if request.reply.is_closed() {
                continue;
            }
            let answer = self.read_all(&request.lsns).await;
            // Whoever asked may have stopped waiting meanwhile.
            let _ = request.reply.send(answer);
            if self.requests.is_empty() {
                self.last = None;
            }
        }
    }

    async fn read_all(&mut self, lsns: &[Lsn]) -> Result<Vec<Bytes>, WalError> {
        let mut data = Vec::with_capacity(lsns.len());
        for &lsn in lsns {
            data.push(self.read(lsn).await?);
        }
        Ok(data)
    }

    async fn read(&mut self, lsn: Lsn) -> Result<Bytes, WalError> {
        let Some(place) = self.shared.ring.lock().locate(lsn) else { return Err(WalError::Freed { lsn }) };
        let known = self.last.as_ref();
        if known.is_none_or(|frame| (frame.epoch, frame.counter) != (place.epoch, place.counter)) {
            self.last = None;
            let decoded = self.decode(&place).await;
            // The file may have been freed and overwritten meanwhile; if the record is still kept now, it was not.
            if lsn <= self.shared.ring.lock().freed_through() {
                return Err(WalError::Freed { lsn });
            }
            self.last = Some(decoded?);
        }
        let frame = self.last.as_ref().expect("just read");
        let index = frame.records.first().and_then(|&(first, _)| lsn.get().checked_sub(first.get()));
        let record = index.and_then(|index| frame.records.get(usize::try_from(index).ok()?));
        match record {
            Some((_, Record { body: RecordBody::Write { data, .. }, .. })) => {
                // Otherwise a copy: a small record must not keep its frame in memory.
                let is_most = data.len() > frame.bytes / 8 * 7;
                Ok(if is_most { data.clone() } else { Bytes::copy_from_slice(data) })
            }
            Some(_) => Err(WalError::NoData { lsn }),
            None => Err(WalError::corrupt(
                &place.slot.name(),
                place.offset,
                format!("record {lsn} is not in its frame"),
            )),
        }
    }

    async fn decode(&mut self, place: &FrameAt) -> Result<DecodedFrame, WalError> {
        let name = place.slot.name();
        let frame = &mut self.buffer[..place.length];
        place
            .slot
            .file
            .read(place.offset, frame)
            .await
            .map_err(|error| WalError::io("read", &name, error))?;
        let damaged = |detail: &str| WalError::corrupt(&name, place.offset, detail);
        let (header, payload) =
            open_frame(place.epoch, &place.cipher, frame).map_err(|error| match error {
                FrameError::NotAFrame => damaged("a frame written earlier fails its authentication"),
                FrameError::Newer(detail) => WalError::NewerVersion { file: name.clone(), detail },
                FrameError::Malformed(detail) => damaged(detail),
            })?;
        if header.counter != place.counter {
            return Err(damaged("another frame stands in the place of the one written"));
        }
        let records = decode_records(&header, Bytes::copy_from_slice(payload))
            .map_err(|_| damaged("malformed records"))?;
        Ok(DecodedFrame { epoch: place.epoch, counter: place.counter, bytes: header.payload_bytes, records })
    }
}
