//! Makes the ring's files, a few ahead of need: a file is filled with zeros and durable before it is used, so that a full
//! disk can never hit a write that was admitted, and so that writing to it later changes no metadata.

use crate::ring::Slot;
use crate::shared::{Shared, pages};
use crate::{Disk, WalError};
use cairn_model::AlignedBuffer;
use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;

/// Free files to have in hand.
const AHEAD: usize = 4;
const CHUNK_BYTES: usize = 1 << 20;

/// Makes file `number`, all zeros, durable with its name.
pub(crate) async fn make_slot(disk: &dyn Disk, number: u32, bytes: u64) -> Result<Slot, WalError> {
    let temporary = Slot::temporary_name_of(number);
    let name = Slot::name_of(number);
    match fill(disk, &temporary, bytes).await {
        Ok(()) => {}
        Err(error) => {
            if let Err(error) = disk.remove(&temporary).await {
                tracing::warn!(%error, temporary, "cannot remove an unfinished file of the write-ahead log");
            }
            if cairn_model::ErrorKind::of_io(&error) == cairn_model::ErrorKind::OutOfSpace {
                return Err(WalError::OutOfSpace { file: name, bytes, source: Arc::new(error) });
            }
            return Err(WalError::io("allocate", &name, error));
        }
    }
    disk.rename(&temporary, &name).await.map_err(|error| WalError::io("rename", &temporary, error))?;
    let file = disk.open(&name).await.map_err(|error| WalError::io("open", &name, error))?;
    Ok(Slot { number, file, bytes })
}

async fn fill(disk: &dyn Disk, name: &str, bytes: u64) -> std::io::Result<()> {
    let file = disk.create(name).await?;
    let zeros = AlignedBuffer::zeroed(CHUNK_BYTES);
    let mut offset = 0;
    while offset < bytes {
        let length = (bytes - offset).min(CHUNK_BYTES as u64);
        file.write(offset, &zeros[..usize::try_from(length).expect("at most a chunk")]).await?;
        offset += length;
    }
    file.sync().await
}

/// Serves until the log ends. Growth that fails leaves a smaller ring, which `usage` tells.
pub(crate) async fn run(shared: Arc<Shared>) {
    while let Some(number) = next_number(&shared).await {
        match make_slot(&*shared.context.disk, number, shared.context.config.file_bytes).await {
            Ok(slot) => {
                let added = shared.ring.lock().add_free(slot);
                shared.space.add_permits(pages(added));
            }
            Err(error) => {
                tracing::warn!(%error, "the write-ahead log stays smaller than configured");
                shared.ring.lock().stop_growing();
                let _ = shared.growth_stopped.set(error.to_string());
            }
        }
    }
}

/// Waits until a file is wanted; `None` when the log has ended.
async fn next_number(shared: &Shared) -> Option<u32> {
    poll_fn(|context| {
        shared.grower.register(context.waker());
        if shared.queue.lock().closing {
            return Poll::Ready(None);
        }
        shared.ring.lock().wants_file(AHEAD).map_or(Poll::Pending, |number| Poll::Ready(Some(number)))
    })
    .await
}
