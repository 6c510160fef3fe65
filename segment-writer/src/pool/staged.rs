//! Writing a file that is to be read much later, if at all: past the page cache.
//!
//! Through the page cache every byte is copied to fresh pages, which cost more to get than the copy, and push out what is read; what is put is synced at once, so that the cache
//! buys nothing. Here a few warm buffers are used over and over.

use cairn_model::AlignedBuffer;
use object_store::PutPayload;
use parking_lot::Mutex;
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use std::fs::File;
use std::io::{self, Seek, Write};
use std::sync::atomic::{AtomicU32, Ordering};

/// Written at once. What is shorter goes through the page cache.
const BUFFER_BYTES: usize = 1 << 20;
/// What lengths and offsets of direct writes are multiples of: a block of any disk.
const BLOCK: usize = 4096;

/// Buffers that wait to be used again, of all nodes.
static SPARE: Mutex<Vec<AlignedBuffer>> = Mutex::new(Vec::new());
const SPARE_MAX: usize = 8;

/// After so many refused writes in a row the file system is taken for one that has no direct I/O, or not of our kind.
const REFUSALS_MAX: u32 = 4;

/// Writes payloads to files of one file system.
#[derive(Debug, Default)]
pub(super) struct FileWriter {
    /// Direct writes that were refused: some file systems have none, others only of larger blocks than ours.
    refusals: AtomicU32,
}

impl FileWriter {
    /// Writes all of the payload to a file that is empty. Nothing is synced. After an error the file has anything.
    pub(super) fn write(&self, file: &mut File, payload: &PutPayload) -> io::Result<()> {
        self.write_with(file, payload, write_directly)
    }

    fn write_with(
        &self,
        file: &mut File,
        payload: &PutPayload,
        directly: impl FnOnce(&mut File, &PutPayload) -> io::Result<()>,
    ) -> io::Result<()> {
        if payload.content_length() >= BUFFER_BYTES && self.refusals.load(Ordering::Relaxed) < REFUSALS_MAX {
            match directly(file, payload) {
                // No direct I/O here, which some file systems say when they are asked for it, and others when something is written; or it was something else, as a write that was
                // cut short.
                Err(error)
                    if matches!(error.kind(), io::ErrorKind::InvalidInput | io::ErrorKind::Unsupported) =>
                {
                    if self.refusals.fetch_add(1, Ordering::Relaxed) + 1 == REFUSALS_MAX {
                        tracing::info!(%error, "no direct I/O: objects are written through the page cache");
                    }
                    file.set_len(0)?;
                    file.rewind()?;
                }
                written => {
                    if written.is_ok() {
                        self.refusals.store(0, Ordering::Relaxed);
                    }
                    return written;
                }
            }
        }
        for piece in payload {
            file.write_all(piece)?;
        }
        Ok(())
    }
}

fn write_directly(file: &mut File, payload: &PutPayload) -> io::Result<()> {
    let flags = fcntl_getfl(&*file)?;
    fcntl_setfl(&*file, flags | OFlags::DIRECT)?;
    let mut buffer = SPARE.lock().pop().unwrap_or_else(|| AlignedBuffer::zeroed(BUFFER_BYTES));
    let written = write_through(file, &mut buffer, payload);
    {
        let mut spare = SPARE.lock();
        if spare.len() < SPARE_MAX {
            spare.push(buffer);
        }
    }
    let restored = fcntl_setfl(&*file, flags);
    written.and(restored.map_err(io::Error::from))
}

/// Writes the payload with direct writes of whole blocks, and cuts off what the last one has too much.
fn write_through(file: &mut File, buffer: &mut AlignedBuffer, payload: &PutPayload) -> io::Result<()> {
    let mut filled = 0;
    for piece in payload {
        let mut rest: &[u8] = piece;
        while !rest.is_empty() {
            let (now, later) = rest.split_at(rest.len().min(BUFFER_BYTES - filled));
            buffer[filled..filled + now.len()].copy_from_slice(now);
            (filled, rest) = (filled + now.len(), later);
            if filled == BUFFER_BYTES {
                file.write_all(&buffer[..])?;
                filled = 0;
            }
        }
    }
    let padded = filled.next_multiple_of(BLOCK);
    buffer[filled..padded].fill(0);
    file.write_all(&buffer[..padded])?;
    if padded > filled {
        file.set_len(payload.content_length() as u64)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;

    fn payload(pieces: &[usize]) -> (PutPayload, Vec<u8>) {
        let total: usize = pieces.iter().sum();
        let bytes: Vec<u8> = (0..total).map(|at| u8::try_from((at * 7 + at / 4096) % 251).unwrap()).collect();
        let mut start = 0;
        let pieces = pieces.iter().map(|length| {
            start += length;
            Bytes::copy_from_slice(&bytes[start - length..start])
        });
        (pieces.collect(), bytes)
    }

    #[test]
    fn files_are_what_was_put_whatever_the_pieces() {
        const MIB: usize = 1 << 20;
        let folder = tempfile::tempdir().unwrap();
        let writer = FileWriter::default();
        let sizes: [&[usize]; 8] = [
            &[],
            &[5],
            &[MIB - 1],
            &[MIB],
            &[MIB, 1],
            &[3, 2 * MIB, 0, 4096],
            &[MIB / 2; 5],
            &[4095, 1, 3 * MIB + 4097],
        ];
        // The buffers are used again: nothing of one file is in another.
        for (number, pieces) in sizes.iter().chain(sizes.iter().rev()).enumerate() {
            let (payload, bytes) = payload(pieces);
            let path = folder.path().join(number.to_string());
            let mut file = File::create_new(&path).unwrap();
            writer.write(&mut file, &payload).unwrap();
            assert!(std::fs::read(&path).unwrap() == bytes, "{pieces:?}");
        }
        // Either all of it works or nothing does.
        let (refusals, is_refused_at_once) =
            (writer.refusals.load(Ordering::Relaxed), is_refused_at_once(folder.path()));
        assert_eq!(refusals, if is_refused_at_once { REFUSALS_MAX } else { 0 });
    }

    /// Whether the file system has no direct I/O at all.
    fn is_refused_at_once(folder: &std::path::Path) -> bool {
        let mut file = File::create_new(folder.join("one block")).unwrap();
        let buffer = AlignedBuffer::zeroed(BLOCK);
        let flags = fcntl_getfl(&file).unwrap();
        fcntl_setfl(&file, flags | OFlags::DIRECT).is_err() || file.write_all(&buffer).is_err()
    }

    #[test]
    fn without_direct_io_files_are_written_all_the_same() {
        let folder = tempfile::tempdir().unwrap();
        let (payload, bytes) = payload(&[3 << 20, 17]);
        for kind in [io::ErrorKind::InvalidInput, io::ErrorKind::Unsupported] {
            let (writer, mut tries) = (FileWriter::default(), 0);
            for number in 0..REFUSALS_MAX + 2 {
                let path = folder.path().join(format!("{number} {kind}"));
                let mut file = File::create_new(&path).unwrap();
                // At once, or where something was written already, and more than is put.
                let length = if number % 2 == 0 { 0 } else { 4 << 20 };
                let refuse = |file: &mut File, _: &PutPayload| {
                    tries += 1;
                    file.write_all(&vec![1; length])?;
                    Err(kind.into())
                };
                writer.write_with(&mut file, &payload, refuse).unwrap();
                assert!(std::fs::read(&path).unwrap() == bytes, "{kind} after {length} bytes");
            }
            assert_eq!(tries, REFUSALS_MAX, "then it is known");
        }
    }

    #[test]
    fn other_errors_are_the_callers() {
        let folder = tempfile::tempdir().unwrap();
        let mut file = File::create_new(folder.path().join("file")).unwrap();
        let fail = |_: &mut File, _: &PutPayload| Err(io::ErrorKind::StorageFull.into());
        let failed = FileWriter::default().write_with(&mut file, &payload(&[2 << 20]).0, fail);
        assert_eq!(failed.unwrap_err().kind(), io::ErrorKind::StorageFull);
    }
}
