//! `cairn volume`.

use super::access::{Access, Need, with_access};
use super::args::{Global, Volume as Command};
use super::output::{answer, print, print_json};
use super::progress::Bar;
use crate::admin::types::{CreateVolume, UpdateVolume, Usage, Volume};
use crate::error::GatewayError;
use crate::human::{Align, Table, ask, can_ask, counted};
use crate::image::ImageFormat;
use crate::names::{SEPARATOR, SnapshotOf};
use crate::serve::Signals;
use crate::transfer::{self, Export, Import, Transfer, Update};
use crate::units::format_size;
use cairn_metadata::SnapshotName;
use cairn_model::{Clock, ErrorKind, Kinded, SystemClock};
use std::path::Path;

pub(super) async fn run(global: &Global, command: Command) -> Result<(), GatewayError> {
    match command {
        Command::List => {
            let volumes =
                with_access(global, Need::Tell, async |access| access.client.volumes().await).await?;
            answer(global.json, &volumes, |volumes| listing(volumes))
        }
        Command::Show { name, space } => {
            let volume = with_access(global, Need::Tell, async |access| {
                if space {
                    access.client.volume_with_space(&name).await
                } else {
                    access.client.volume(&name).await
                }
            })
            .await?;
            answer(global.json, &volume, details)
        }
        Command::Create { name, size, durability, domain, packing } => {
            check_size(size)?;
            let new = CreateVolume {
                durability,
                domain,
                compress: !packing.no_compress,
                compression_level: packing.level,
                dedupe: !packing.no_dedupe,
                verify_dedupe: packing.verify_dedupe,
                chunk_target_blocks: packing.chunk_target,
                chunk_max_blocks: packing.chunk_max,
                ..CreateVolume::new(name, size)
            };
            change(global, "created", async |access| access.client.create_volume(&new).await).await
        }
        Command::Resize { name, size, force } => {
            check_size(size)?;
            let update = UpdateVolume { size_bytes: Some(size), force, ..UpdateVolume::default() };
            change(global, "resized", async |access| access.client.update_volume(&name, &update).await).await
        }
        Command::Rename { name, new_name } => {
            let update = UpdateVolume { name: Some(new_name), ..UpdateVolume::default() };
            change(global, "renamed", async |access| access.client.update_volume(&name, &update).await).await
        }
        Command::Delete { name, yes, force } => delete(global, &name, yes, force).await,
        Command::Import { name, file, format, yes, force } => {
            let job = Import { volume: &name, file: &file, format, force };
            import(global, &job, yes).await
        }
        Command::Export { name, file, format, since: Some(since), .. } => {
            update(global, &name, &file, format, &since).await
        }
        Command::Export { name, file, format, force, since: None } => {
            export(global, &name, &file, format, force).await
        }
    }
}

fn check_size(size: u64) -> Result<(), GatewayError> {
    crate::admin::service::check_size(size).map_err(GatewayError::into_usage)
}

async fn change(
    global: &Global,
    done: &str,
    work: impl AsyncFnOnce(&Access) -> Result<Volume, GatewayError>,
) -> Result<(), GatewayError> {
    let volume = with_access(global, Need::Engine, work).await?;
    answer(global.json, &volume, |volume| {
        format!("Volume {} {done}: {}.\n", volume.name, format_size(volume.size_bytes))
    })
}

async fn delete(global: &Global, name: &str, yes: bool, force: bool) -> Result<(), GatewayError> {
    with_access(global, Need::Engine, async |access| {
        let volume = access.client.volume(name).await?;
        let and_snapshots = match volume.snapshots {
            0 => String::new(),
            count => format!(", its {}", counted(count, "snapshot")),
        };
        let size = format_size(volume.size_bytes);
        let question = format!("Delete volume {name} ({size}){and_snapshots} and everything in it?");
        // What is refused anyway is not asked about.
        let is_refused = volume.snapshots > 0 && !force;
        if !yes && !is_refused && can_ask() && !ask(&question) {
            return Err(kept(name));
        }
        access.client.delete_volume(name, force).await
    })
    .await?;
    if global.json {
        return print_json(&serde_json::json!({ "deleted": name }));
    }
    print(&format!("Volume {name} deleted.\n"))
}

pub(super) fn kept(name: &str) -> GatewayError {
    GatewayError::Refused {
        kind: ErrorKind::Conflict,
        what: format!("volume {name} was left as it is"),
        next: None,
    }
}

async fn import(global: &Global, job: &Import<'_>, yes: bool) -> Result<(), GatewayError> {
    let clock = SystemClock::new();
    let begun = clock.now();
    let done = with_access(global, Need::Engine, async |access| {
        if !yes && can_ask() && holds_data(access, job.volume).await? {
            let question =
                format!("Volume {} holds data. Replace it with {}?", job.volume, job.file.display());
            if !ask(&question) {
                return Err(kept(job.volume));
            }
        }
        let bar = Bar::new("import");
        let mut signals = Signals::listen()?;
        let done = transfer::import(&access.client, job, &bar, signals.stop()).await;
        bar.finish();
        done
    })
    .await?;
    let seconds = clock.now().since(begun).as_secs_f64();
    answer(global.json, &done, |done| {
        let verb = if done.created { "created from" } else { "replaced by" };
        format!("Volume {} {verb} {}: {}.\n", done.volume, done.file.display(), moved(done, seconds))
    })
}

async fn holds_data(access: &Access, name: &str) -> Result<bool, GatewayError> {
    let volume = match access.client.volume(name).await {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(false),
        other => other?,
    };
    let extents = access.client.allocation(name, 0, volume.size_bytes).await?;
    Ok(extents.iter().any(|extent| extent.allocated))
}

/// Brings a file that holds one snapshot up to date with another.
async fn update(
    global: &Global,
    name: &str,
    file: &Path,
    format: Option<ImageFormat>,
    since: &SnapshotName,
) -> Result<(), GatewayError> {
    let Ok(to) = name.parse::<SnapshotOf>() else {
        return Err(GatewayError::Usage {
            what: format!("--since compares two snapshots, and {name} is a volume"),
            next: Some(format!(
                "take a snapshot first, with `cairn snapshot create {name}`, and export that"
            )),
        });
    };
    let clock = SystemClock::new();
    let begun = clock.now();
    let done = with_access(global, Need::Engine, async |access| {
        let bar = Bar::new("export");
        let mut signals = Signals::listen()?;
        let job = Update { to: &to, since, file, format };
        let done = transfer::update(&access.client, &job, &bar, signals.stop()).await;
        bar.finish();
        done
    })
    .await?;
    let seconds = clock.now().since(begun).as_secs_f64();
    answer(global.json, &done, |done| {
        format!(
            "{} brought from {} to {}: {} written and {} made zeros, of {}, in {seconds:.1} s.\n",
            done.file.display(),
            done.since,
            done.volume,
            format_size(done.data_bytes),
            format_size(done.zero_bytes),
            format_size(done.size_bytes)
        )
    })
}

async fn export(
    global: &Global,
    name: &str,
    file: &Path,
    format: Option<ImageFormat>,
    replace: bool,
) -> Result<(), GatewayError> {
    let by_name = || {
        let qcow2 = file.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("qcow2"));
        if qcow2 { ImageFormat::Qcow2 } else { ImageFormat::Raw }
    };
    let format = format.unwrap_or_else(by_name);
    let clock = SystemClock::new();
    let begun = clock.now();
    let done = with_access(global, Need::Engine, async |access| {
        let bar = Bar::new("export");
        let mut signals = Signals::listen()?;
        let job = Export { volume: name, file, format, replace };
        let done = transfer::export(&access.client, &job, &bar, signals.stop()).await;
        bar.finish();
        done
    })
    .await?;
    let seconds = clock.now().since(begun).as_secs_f64();
    answer(global.json, &done, |done| {
        let what = if done.volume.contains(SEPARATOR) { "Snapshot" } else { "Volume" };
        format!("{what} {} exported to {}: {}.\n", done.volume, done.file.display(), moved(done, seconds))
    })
}

fn moved(done: &Transfer, seconds: f64) -> String {
    format!(
        "{}, of which {} is data, in {seconds:.1} s",
        format_size(done.size_bytes),
        format_size(done.data_bytes)
    )
}

/// The volumes as a table.
pub(super) fn listing(volumes: &[Volume]) -> String {
    if volumes.is_empty() {
        return "No volumes. Make one with: cairn volume create NAME SIZE\n".to_owned();
    }
    let mut table = Table::new(&[
        ("VOLUME", Align::Left),
        ("SIZE", Align::Right),
        ("DURABILITY", Align::Left),
        ("STATE", Align::Left),
        ("CLIENTS", Align::Right),
        ("SNAPSHOTS", Align::Right),
    ]);
    for volume in volumes {
        table.row(vec![
            volume.name.clone(),
            format_size(volume.size_bytes),
            volume.durability.clone(),
            volume.state.clone(),
            volume.attachments.map_or_else(|| "-".to_owned(), |count| count.to_string()),
            volume.snapshots.to_string(),
        ]);
    }
    table.to_string()
}

fn compression(volume: &Volume) -> String {
    volume.packing.compression_level.map_or_else(|| "off".to_owned(), |level| format!("zstd level {level}"))
}

/// What a volume holds and what its writes took.
fn usage(usage: &Usage) -> Vec<String> {
    let ratio = |ratio: Option<f64>| ratio.map_or_else(|| "-".to_owned(), |ratio| format!("{ratio:.2}x"));
    vec![
        format!("holds        {}", format_size(usage.logical_bytes)),
        format!(
            "written      {}: {} zeros, {} stored already, {} stored as {}",
            format_size(usage.written_bytes),
            format_size(usage.zero_bytes),
            format_size(usage.shared_bytes),
            format_size(usage.unique_bytes),
            format_size(usage.stored_bytes)
        ),
        format!(
            "saved        {}: dedupe {}, compression {}",
            format_size(usage.saved_bytes),
            if usage.unique_bytes == 0 && usage.shared_bytes > 0 {
                "all of it".to_owned()
            } else {
                ratio(usage.dedupe_ratio)
            },
            ratio(usage.compression_ratio)
        ),
    ]
}

fn details(volume: &Volume) -> String {
    let on = |on| if on { "on" } else { "off" };
    let mut lines = vec![
        format!("name         {}", volume.name),
        format!("size         {} ({} bytes)", format_size(volume.size_bytes), volume.size_bytes),
        format!("state        {}", volume.state),
        format!("durability   {}", volume.durability),
        format!("compression  {}", compression(volume)),
        format!(
            "dedupe       {}{}",
            on(volume.dedupe),
            if volume.packing.verify_dedupe { ", blocks are compared" } else { "" }
        ),
        format!(
            "chunks       {} blocks on average, {} at most",
            volume.packing.chunk_target_blocks, volume.packing.chunk_max_blocks
        ),
        format!("domain       {}, encryption {}", volume.domain, volume.encryption),
        format!("read-only    {}", if volume.read_only { "yes" } else { "no" }),
        format!("id           {}", volume.id),
    ];
    lines.extend(usage(&volume.usage));
    lines.push(format!("snapshots    {}", volume.snapshots));
    if let Some(space) = &volume.space {
        lines.push(format!(
            "space        {} of its own, {} shared with snapshots and clones; {} freed if it is deleted{}",
            format_size(space.unique_bytes),
            format_size(space.shared_bytes),
            format_size(space.freed_bytes),
            if volume.snapshots > 0 { " with its snapshots" } else { "" }
        ));
    }
    if let Some(reason) = &volume.reason {
        lines.push(format!("reason       {reason}"));
    }
    if let Some(count) = volume.attachments {
        lines.push(format!("clients      {count}"));
    }
    lines.join("\n") + "\n"
}
