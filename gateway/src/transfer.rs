//! Images into volumes and out of them, through the admin API: sparse both ways, several pieces in flight.
//!
//! The file is read or written on a thread of its own, joined to the requests by a bounded channel. An import into a volume
//! that it created skips zeros; into one that was there it writes them, and zeros what the image does not reach. An
//! export of a volume that is being written is no instant of it: each piece is as it was when it was read. That of a snapshot is.
//! A file that holds a snapshot is brought up to date with another one in place, by what differs.

use crate::admin::types::{ChangedRange, CreateVolume, Snapshot, Volume};
use crate::client::AdminClient;
use crate::error::GatewayError;
use crate::image::{
    Held, ImageError, ImageFormat, ImagePatch, ImageReader, ImageWriter, PIECE_BYTES, Pending, Piece,
};
use crate::names::SnapshotOf;
use bytes::Bytes;
use cairn_metadata::SnapshotName;
use cairn_model::{ErrorKind, Kinded};
use futures::{StreamExt, TryStreamExt, stream};
use std::collections::VecDeque;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use tokio::sync::mpsc;
use tokio::task::JoinError;

/// Requests at the same time: enough to hide the way to the gateway and back.
const REQUESTS_IN_FLIGHT: usize = 4;

/// Pieces between the file's thread and the requests.
const PIECES_QUEUED: usize = 4;

type Result<T> = std::result::Result<T, GatewayError>;

/// What a transfer moved.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Transfer {
    /// The volume, or `VOLUME@SNAPSHOT`.
    pub volume: String,
    pub file: PathBuf,
    /// `raw` or `qcow2`.
    pub format: String,
    /// Size of the volume.
    pub size_bytes: u64,
    /// Bytes that were moved; the rest was zeros.
    pub data_bytes: u64,
    /// Whether the volume was made by this import.
    pub created: bool,
}

/// Told how far a transfer came, in bytes of the disk.
pub trait Observer: Sync {
    fn total(&self, bytes: u64);
    fn advance(&self, bytes: u64);
    /// Everything is read; what was written goes to the pool now.
    fn settling(&self);
}

/// Where an import comes from and goes to.
#[derive(Debug)]
pub struct Import<'a> {
    pub volume: &'a str,
    pub file: &'a Path,
    pub format: Option<ImageFormat>,
    /// Replace a volume's content even while clients have it open.
    pub force: bool,
}

/// Writes an image into a volume, which is made if it does not exist. When this returns the image is in the pool. When
/// `stop` returns first, the import ends as after an error.
pub async fn import(
    client: &AdminClient,
    job: &Import<'_>,
    observer: &dyn Observer,
    stop: impl Future<Output = ()>,
) -> Result<Transfer> {
    let (path, format) = (job.file.to_owned(), job.format);
    let reader =
        tokio::task::spawn_blocking(move || ImageReader::open(&path, format)).await.map_err(died)??;
    observer.total(reader.size_bytes());
    let format = reader.format().to_string();
    let (volume, created) = target(client, job, reader.size_bytes()).await?;
    let work = async {
        let data_bytes = copy_in(client, &volume, reader, created, observer).await?;
        observer.settling();
        Ok((data_bytes, settle(client, &volume.name).await))
    };
    let copied = tokio::select! {
        done = work => done,
        () = stop => Err(interrupted(&volume.name, created)),
    };
    let (data_bytes, settled) = match copied {
        Ok(done) => done,
        Err(error) => {
            // A volume that holds part of an image is worse than none.
            if created && let Err(cleanup) = client.delete_volume(&volume.name, true).await {
                return Err(GatewayError::refused(
                    error.kind(),
                    format!(
                        "{}; volume {} holds a part of the image and could not be deleted: {}",
                        error.full_message(),
                        volume.name,
                        cleanup.full_message()
                    ),
                    format!("before it is used: cairn volume delete {}", volume.name),
                ));
            }
            return Err(error);
        }
    };
    settled?;
    Ok(Transfer {
        volume: volume.name,
        file: job.file.to_owned(),
        format,
        size_bytes: volume.size_bytes,
        data_bytes,
        created,
    })
}

async fn settle(client: &AdminClient, volume: &str) -> Result<()> {
    client.flush(volume).await?;
    client.destage().await
}

fn interrupted(volume: &str, created: bool) -> GatewayError {
    let (what, next) = if created {
        (
            format!("the import into {volume} was interrupted"),
            "run it again; the volume that it had made is deleted",
        )
    } else {
        (
            format!("the import was interrupted, and volume {volume} holds a part of the image"),
            "run it again, to the end, before the volume is used",
        )
    };
    GatewayError::refused(ErrorKind::Unavailable, what, next)
}

/// The volume to import into, and whether it was made for that.
async fn target(client: &AdminClient, job: &Import<'_>, image_bytes: u64) -> Result<(Volume, bool)> {
    match client.volume(job.volume).await {
        Ok(volume) if volume.size_bytes < image_bytes => Err(GatewayError::refused(
            ErrorKind::Conflict,
            format!(
                "the image has {image_bytes} bytes, but volume {} has only {}",
                volume.name, volume.size_bytes
            ),
            format!("import into a new volume, or first: cairn volume resize {} {image_bytes}", volume.name),
        )),
        Ok(volume) if volume.attachments.is_some_and(|count| count > 0) && !job.force => {
            let clients = crate::human::counted(volume.attachments.unwrap_or(0), "client connection");
            Err(GatewayError::refused(
                ErrorKind::Conflict,
                format!(
                    "volume {} is in use by {clients}, whose content would change under them",
                    volume.name
                ),
                "disconnect them first, or import all the same with --force",
            ))
        }
        Ok(volume) => Ok((volume, false)),
        Err(error) if error.kind() == ErrorKind::NotFound => {
            let new = CreateVolume::new(job.volume.to_owned(), image_bytes.next_multiple_of(512));
            Ok((client.create_volume(&new).await?, true))
        }
        Err(error) => Err(error),
    }
}

async fn copy_in(
    client: &AdminClient,
    volume: &Volume,
    reader: ImageReader,
    fresh: bool,
    observer: &dyn Observer,
) -> Result<u64> {
    let image_bytes = reader.size_bytes();
    let (sender, mut receiver) = mpsc::channel(PIECES_QUEUED);
    let reading = tokio::task::spawn_blocking(move || {
        reader.read_pieces(|piece| match sender.blocking_send(piece) {
            Ok(()) => ControlFlow::Continue(()),
            Err(_) => ControlFlow::Break(()),
        })
    });
    let pieces = stream::poll_fn(move |context| receiver.poll_recv(context));
    let data_bytes = pieces
        .map(|piece| write_piece(client, &volume.name, piece, fresh, observer))
        .buffer_unordered(REQUESTS_IN_FLIGHT)
        .try_fold(0, async |sum, bytes| Ok(sum + bytes))
        .await;
    // The stream is gone by now, so the reader ends as well.
    reading.await.map_err(died)??;
    let data_bytes = data_bytes?;
    if !fresh && volume.size_bytes > image_bytes {
        client.write_zeroes(&volume.name, image_bytes, volume.size_bytes - image_bytes).await?;
    }
    Ok(data_bytes)
}

async fn write_piece(
    client: &AdminClient,
    name: &str,
    piece: Piece,
    fresh: bool,
    observer: &dyn Observer,
) -> Result<u64> {
    let length = piece.len();
    let written = match piece {
        Piece::Data { offset, bytes } => {
            client.write(name, offset, bytes).await?;
            length
        }
        Piece::Zero { offset, length } => {
            if !fresh {
                client.write_zeroes(name, offset, length).await?;
            }
            0
        }
    };
    observer.advance(length);
    Ok(written)
}

/// Where an export comes from and goes to.
#[derive(Debug)]
pub struct Export<'a> {
    /// Its name, or `VOLUME@SNAPSHOT`.
    pub volume: &'a str,
    pub file: &'a Path,
    pub format: ImageFormat,
    /// Replace a file that exists.
    pub replace: bool,
}

/// Size of a volume or a snapshot.
async fn size_of(client: &AdminClient, name: &str) -> Result<u64> {
    match name.parse::<SnapshotOf>() {
        Ok(snapshot) => Ok(client.snapshot(&snapshot).await?.size_bytes),
        Err(_) => Ok(client.volume(name).await?.size_bytes),
    }
}

/// Writes a volume into an image file, which appears when it is complete. When `stop` returns first, nothing appears and
/// nothing is left.
pub async fn export(
    client: &AdminClient,
    job: &Export<'_>,
    observer: &dyn Observer,
    stop: impl Future<Output = ()>,
) -> Result<Transfer> {
    let size_bytes = size_of(client, job.volume).await?;
    observer.total(size_bytes);
    let (path, format, size, replace) = (job.file.to_owned(), job.format, size_bytes, job.replace);
    let mut writer = tokio::task::spawn_blocking(move || ImageWriter::create(&path, format, size, replace))
        .await
        .map_err(died)??;
    let ranges = Ranges::new(client, job.volume, size_bytes, writer.granule_bytes() as u64);
    let (sender, mut receiver) = mpsc::channel::<(u64, Bytes)>(PIECES_QUEUED);
    let writing = tokio::task::spawn_blocking(move || -> Result<(ImageWriter, u64)> {
        let mut data_bytes = 0;
        while let Some((offset, bytes)) = receiver.blocking_recv() {
            writer.write(offset, &bytes)?;
            data_bytes += bytes.len() as u64;
        }
        Ok((writer, data_bytes))
    });
    let read = tokio::select! {
        read = copy_out(ranges, sender, observer) => read,
        () = stop => Err(GatewayError::refused(
            ErrorKind::Unavailable,
            format!("the export was interrupted; {} is as it was before", job.file.display()),
            "run it again",
        )),
    };
    // A file that cannot be written explains a copy that could not go on.
    let (writer, data_bytes) = writing.await.map_err(died)??;
    read?;
    tokio::task::spawn_blocking(move || writer.finish()).await.map_err(died)??;
    Ok(Transfer {
        volume: job.volume.to_owned(),
        file: job.file.to_owned(),
        format: job.format.to_string(),
        size_bytes,
        data_bytes,
        created: false,
    })
}

async fn copy_out(
    ranges: Ranges<'_>,
    sender: mpsc::Sender<(u64, Bytes)>,
    observer: &dyn Observer,
) -> Result<()> {
    let (client, name, size) = (ranges.client, ranges.name, ranges.size_bytes);
    let mut done = 0;
    let pieces = stream::try_unfold(ranges, async |mut ranges| {
        Ok::<_, GatewayError>(ranges.next().await?.map(|range| (range, ranges)))
    })
    .map(async |range| {
        let (offset, length) = range?;
        Ok::<_, GatewayError>((offset, client.read(name, offset, length).await?))
    })
    .buffered(REQUESTS_IN_FLIGHT);
    let mut pieces = std::pin::pin!(pieces);
    while let Some((offset, bytes)) = pieces.try_next().await? {
        let end = offset + bytes.len() as u64;
        if sender.send((offset, bytes)).await.is_err() {
            return Ok(());
        }
        observer.advance(end - done);
        done = end;
    }
    observer.advance(size - done);
    Ok(())
}

/// The allocated ranges of a volume, in order, widened to the writer's granule, in pieces.
struct Ranges<'a> {
    client: &'a AdminClient,
    name: &'a str,
    size_bytes: u64,
    granule: u64,
    /// Looked at so far.
    offset: u64,
    /// Handed out so far.
    end: u64,
    found: VecDeque<(u64, u64)>,
}

impl<'a> Ranges<'a> {
    fn new(client: &'a AdminClient, name: &'a str, size_bytes: u64, granule: u64) -> Self {
        Self { client, name, size_bytes, granule, offset: 0, end: 0, found: VecDeque::new() }
    }

    async fn next(&mut self) -> Result<Option<(u64, u64)>> {
        while self.found.is_empty() && self.offset < self.size_bytes {
            let extents =
                self.client.allocation(self.name, self.offset, self.size_bytes - self.offset).await?;
            for extent in extents {
                self.offset = extent.offset + extent.length;
                if extent.allocated {
                    self.add(extent.offset, self.offset);
                }
            }
        }
        Ok(self.found.pop_front())
    }

    fn add(&mut self, start: u64, end: u64) {
        let mut start = (start / self.granule * self.granule).max(self.end);
        let end = end.next_multiple_of(self.granule).min(self.size_bytes);
        while start < end {
            // Pieces end at multiples of their size, so that neighbours do not share a granule.
            let piece_end = ((start / PIECE_BYTES as u64 + 1) * PIECE_BYTES as u64).min(end);
            self.found.push_back((start, piece_end - start));
            start = piece_end;
        }
        self.end = self.end.max(end);
    }
}

/// A file that holds one snapshot, to be made to hold another of the same volume.
#[derive(Debug)]
pub struct Update<'a> {
    /// What the file is to hold.
    pub to: &'a SnapshotOf,
    /// What it holds.
    pub since: &'a SnapshotName,
    pub file: &'a Path,
    pub format: Option<ImageFormat>,
}

/// What an update wrote.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Updated {
    /// `VOLUME@SNAPSHOT` that the file holds now.
    pub volume: String,
    /// `VOLUME@SNAPSHOT` that it held.
    pub since: String,
    pub file: PathBuf,
    /// `raw`.
    pub format: String,
    /// Size of the snapshot.
    pub size_bytes: u64,
    /// Bytes that were written.
    pub data_bytes: u64,
    /// Bytes that were made zeros.
    pub zero_bytes: u64,
}

/// Part of the difference, with what it is to be replaced by.
enum Patch {
    Data(u64, Bytes),
    Zero(u64, u64),
}

/// Writes into a raw image that holds one snapshot what another has otherwise. When this returns the file is durable. When it fails, or `stop` returns
/// first, the file is neither the one nor the other; made again, to the end, it is right. Until then no other update of the file is made.
pub async fn update(
    client: &AdminClient,
    job: &Update<'_>,
    observer: &dyn Observer,
    stop: impl Future<Output = ()>,
) -> Result<Updated> {
    let from = SnapshotOf { volume: job.to.volume.clone(), snapshot: job.since.clone() };
    let (old, new) = (client.snapshot(&from).await?, client.snapshot(job.to).await?);
    let (path, format) = (job.file.to_owned(), job.format);
    let opened = tokio::task::spawn_blocking(move || ImagePatch::open(&path, format)).await.map_err(died)?;
    let image = opened.map_err(|error| no_image(error, job.file, &from))?;
    check_size(&image, job.file, &old, &new)?;
    let held =
        |name: &SnapshotOf, snapshot: &Snapshot| Held { id: snapshot.id.clone(), name: name.to_string() };
    let update = Pending { since: held(&from, &old), to: held(job.to, &new) };
    let begun = tokio::task::spawn_blocking(move || image.begin(&update).map(|()| image));
    let mut image = begun.await.map_err(died)??;
    // From here on the file may be a mixture.
    observer.total(new.size_bytes);
    let (sender, mut receiver) = mpsc::channel::<Patch>(PIECES_QUEUED);
    let size_bytes = new.size_bytes;
    let writing = tokio::task::spawn_blocking(move || -> Result<(ImagePatch, u64, u64)> {
        let (mut data_bytes, mut zero_bytes) = (0, 0);
        image.resize(size_bytes)?;
        while let Some(patch) = receiver.blocking_recv() {
            match patch {
                Patch::Data(offset, bytes) => {
                    image.write(offset, &bytes)?;
                    data_bytes += bytes.len() as u64;
                }
                Patch::Zero(offset, length) => {
                    image.zero(offset, length)?;
                    zero_bytes += length;
                }
            }
        }
        Ok((image, data_bytes, zero_bytes))
    });
    let copied = tokio::select! {
        copied = copy_changes(client, &from, job.to, size_bytes, sender, observer) => {
            copied.map_err(|error| unfinished(&error, job.file))
        }
        () = stop => Err(GatewayError::refused(
            ErrorKind::Unavailable,
            format!("the export was interrupted; {} holds a part of the changes", job.file.display()),
            "run it again, to the end, before the file is used",
        )),
    };
    // A file that cannot be written explains a copy that could not go on.
    let written = writing.await.map_err(died).flatten();
    let (image, data_bytes, zero_bytes) = written.map_err(|error| unfinished(&error, job.file))?;
    copied?;
    unchanged(client, &from, &old, job.file).await?;
    unchanged(client, job.to, &new, job.file).await?;
    let finished = tokio::task::spawn_blocking(move || image.finish()).await.map_err(died);
    finished.and_then(|done| Ok(done?)).map_err(|error| unfinished(&error, job.file))?;
    Ok(Updated {
        volume: job.to.to_string(),
        since: from.to_string(),
        file: job.file.to_owned(),
        format: ImageFormat::Raw.to_string(),
        size_bytes,
        data_bytes,
        zero_bytes,
    })
}

fn no_image(error: ImageError, file: &Path, from: &SnapshotOf) -> GatewayError {
    match error {
        ImageError::Io { source, .. } if source.kind() == std::io::ErrorKind::NotFound => {
            GatewayError::refused(
                ErrorKind::NotFound,
                format!("there is no {}, which should hold {from}", file.display()),
                format!("make it first: cairn volume export {from} '{}'", file.display()),
            )
        }
        error => error.into(),
    }
}

/// The file has the size of what it holds, or, after an interruption, of what it is to hold.
fn check_size(image: &ImagePatch, file: &Path, old: &Snapshot, new: &Snapshot) -> Result<()> {
    if [old.size_bytes, new.size_bytes].contains(&image.size_bytes()) {
        return Ok(());
    }
    Err(GatewayError::refused(
        ErrorKind::Conflict,
        format!(
            "{} has {} bytes, but {} has {}: it holds something else",
            file.display(),
            image.size_bytes(),
            old.snapshot,
            old.size_bytes
        ),
        format!("name the file that holds it, or make one: cairn volume export {} FILE", old.snapshot),
    ))
}

/// After the first change, whatever went wrong.
fn unfinished(error: &GatewayError, file: &Path) -> GatewayError {
    GatewayError::refused(
        error.kind(),
        format!("{}; {} holds a part of the changes", error.full_message(), file.display()),
        "run it again, to the end, before the file is used; if that cannot be, export the whole snapshot with --force",
    )
}

/// A name may come to mean another snapshot: then some of the differences were of that one.
async fn unchanged(client: &AdminClient, name: &SnapshotOf, before: &Snapshot, file: &Path) -> Result<()> {
    let is_same = match client.snapshot(name).await {
        Ok(now) => now.id == before.id,
        Err(error) if error.kind() == ErrorKind::NotFound => false,
        Err(error) => return Err(unfinished(&error, file)),
    };
    if is_same {
        return Ok(());
    }
    Err(GatewayError::refused(
        ErrorKind::Conflict,
        format!(
            "snapshot {name} was deleted during the export, and what {} holds is not certain",
            file.display()
        ),
        "export a whole snapshot over it with --force, and keep both snapshots until an export that compares them has ended",
    ))
}

async fn copy_changes(
    client: &AdminClient,
    from: &SnapshotOf,
    to: &SnapshotOf,
    size_bytes: u64,
    sender: mpsc::Sender<Patch>,
    observer: &dyn Observer,
) -> Result<()> {
    let (name, changes) = (to.to_string(), Changes::new(client, from, to, size_bytes));
    let name = name.as_str();
    let pieces = stream::try_unfold(changes, async |mut changes| {
        Ok::<_, GatewayError>(changes.next().await?.map(|change| (change, changes)))
    })
    .map(async |change| {
        let Change { offset, length, allocated } = change?;
        let patch = if allocated {
            Patch::Data(offset, client.read(name, offset, length).await?)
        } else {
            Patch::Zero(offset, length)
        };
        Ok::<_, GatewayError>((patch, offset + length))
    })
    .buffered(REQUESTS_IN_FLIGHT);
    let mut pieces = std::pin::pin!(pieces);
    let mut done = 0;
    while let Some((patch, end)) = pieces.try_next().await? {
        if sender.send(patch).await.is_err() {
            return Ok(());
        }
        observer.advance(end - done);
        done = end;
    }
    observer.advance(size_bytes - done);
    Ok(())
}

/// A piece of the difference.
#[derive(Clone, Copy)]
struct Change {
    offset: u64,
    length: u64,
    allocated: bool,
}

/// The differences of two snapshots, in order, in pieces, as far as the later one reaches.
struct Changes<'a> {
    client: &'a AdminClient,
    from: &'a SnapshotOf,
    to: &'a SnapshotOf,
    size_bytes: u64,
    /// Where the next part begins.
    next: Option<u64>,
    found: VecDeque<ChangedRange>,
}

impl<'a> Changes<'a> {
    fn new(client: &'a AdminClient, from: &'a SnapshotOf, to: &'a SnapshotOf, size_bytes: u64) -> Self {
        Self { client, from, to, size_bytes, next: Some(0), found: VecDeque::new() }
    }

    async fn next(&mut self) -> Result<Option<Change>> {
        loop {
            if let Some(range) = self.found.pop_front() {
                let end = (range.offset_bytes + range.length_bytes).min(self.size_bytes);
                let length = end.saturating_sub(range.offset_bytes);
                if length == 0 {
                    continue;
                }
                // Zeros are made however many they are; data goes piece by piece.
                let piece = if range.allocated { length.min(PIECE_BYTES as u64) } else { length };
                if piece < length {
                    self.found.push_front(ChangedRange {
                        offset_bytes: range.offset_bytes + piece,
                        length_bytes: length - piece,
                        allocated: range.allocated,
                    });
                }
                let (offset, allocated) = (range.offset_bytes, range.allocated);
                return Ok(Some(Change { offset, length: piece, allocated }));
            }
            let Some(start) = self.next else { return Ok(None) };
            let volume = self.from.volume.as_str();
            let part = self.client.difference(volume, &self.from.snapshot, &self.to.snapshot, start).await?;
            self.next = part.next_offset_bytes;
            self.found.extend(part.ranges);
        }
    }
}

/// A thread that works on a file does not panic, unless what reads a damaged image does.
fn died(_: JoinError) -> GatewayError {
    GatewayError::ImageReaderDied
}
