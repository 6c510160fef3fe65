//! What chunk shapes and compression levels make of real disk images, as tables in Markdown on standard output.
//!
//! `cargo run --release -p cairn-segment-writer --example reduction_study -- [default | shapes | lone | compression] DIRECTORY`
//!
//! DIRECTORY is one that `tests/perf/images.sh` has filled; its images are written one after another, each to a volume of its
//! own, and the first once more at the end. Or name images instead, in the order in which they are to be written. Without
//! the name of a part all are done, some minutes of a core; `default` is `shapes` with fixed 4 KiB and the default alone.
//! `docs/decisions/0008-chunking.md` has what came out.
//!
//! The rows of content-defined chunks come from the packer and the fingerprint index that ship. What they are compared with, chunks that
//! are found by a name for the whole of each, is modelled in `whole.rs`. Speeds are processor time of one thread.

#![allow(clippy::unwrap_used, reason = "this is a measuring tool: it may stop")]

mod compression;
mod images;
mod levels;
mod lone;
mod shipped;
mod tally;
mod whole;

use cairn_segment_writer::ChunkShape;
use images::Image;
use levels::LEVELS;
use tally::Tally;

const SHAPES: [(u8, u8); 8] = [(2, 8), (2, 16), (4, 8), (4, 16), (6, 8), (6, 16), (8, 8), (8, 16)];

fn main() {
    let (part, images) = images::from_the_command_line(&["default", "shapes", "lone", "compression"]);
    let wanted = |name| part.as_deref().is_none_or(|part| part == name);
    if part.as_deref() == Some("default") {
        shapes(&images, &[1], &[], &[(ChunkShape::DEFAULT.target(), ChunkShape::DEFAULT.max())]);
    }
    if wanted("shapes") {
        shapes(&images, &[1, 4, 8, 16], &[ChunkShape::DEFAULT, shape(4, 16)], &SHAPES);
    }
    if wanted("lone")
        && let [first, second, ..] = &images[..]
        && let Some(other) = images.iter().find(|image| image.name.ends_with("files-shifted"))
    {
        println!(
            "\n## Files of {} written one by one, {} and {} being known\n",
            other.name, first.name, second.name
        );
        lone::report(&images[..2], other, &[ChunkShape::DEFAULT, shape(4, 16)]);
    }
    if wanted("compression") {
        compression::report(&images, ChunkShape::DEFAULT);
    }
}

fn shape(target: u8, max: u8) -> ChunkShape {
    ChunkShape::new(target, max).expect("the shapes compared are valid")
}

/// `fixed` and `whole` are found by whole chunks, `ours` as it ships; fixed 4 KiB comes first.
fn shapes(images: &[Image], fixed: &[u8], whole: &[ChunkShape], ours: &[(u8, u8)]) {
    let mut tallies: Vec<Tally> = Vec::new();
    let cuts = fixed.iter().map(|blocks| whole::Cut::Fixed(*blocks));
    for cut in cuts.chain(whole.iter().map(|shape| whole::Cut::Content(*shape))) {
        eprintln!("{}", cut.name());
        tallies.push(whole::measure(images, cut));
    }
    let default = ChunkShape::DEFAULT;
    let mut of_default = None;
    for &(target, max) in ours {
        eprintln!("content-defined {target}/{max}");
        if shape(target, max) == default {
            of_default = Some(tallies.len());
        }
        tallies.push(shipped::measure(images, shape(target, max)));
    }
    let of_default = &tallies[of_default.expect("the default is among the shapes compared")];
    println!("## Shapes\n");
    shapes_table(&tallies);
    println!("\n## What the images cost, one after another, at {}\n", of_default.name);
    images_table(images, &tallies[0], of_default);
    println!("\n## Compression of the chunks made: ratio by level\n");
    ratios_table(&tallies);
}

fn shapes_table(tallies: &[Tally]) {
    let base = &tallies[0];
    println!(
        "| chunks | dedupe | of what fixed 4 KiB finds | zstd 1 | both | index entries per GiB written | per GiB unique | of fixed 4 KiB's \
         | index bytes per GiB unique | random 4 KiB reads: KiB opened | KiB fetched | map runs per GiB | jumps per GiB |"
    );
    println!("|---|{}", "---|".repeat(12));
    for tally in tallies {
        println!(
            "| {} | {:.2} | {:.2} % | {:.2} | {:.2} | {:.0} | {:.0} | {:.1} % | {:.2} MiB | {:.1} | {:.1} | {:.0} | {:.0} |",
            tally.name,
            tally.dedupe(),
            100.0 * tally.shared() / base.shared(),
            tally.compression(),
            tally.dedupe() * tally.compression(),
            tally.entries() / tally.written_gib(),
            tally.entries() / tally.unique_gib(),
            100.0 * tally.entries() / base.entries(),
            tally.index_bytes() / tally.unique_gib() / f64::from(1 << 20),
            tally.read_raw_kib(),
            tally.read_stored_kib(),
            tally.map_runs() / tally.written_gib(),
            tally.map_jumps() / tally.written_gib(),
        );
    }
}

fn images_table(images: &[Image], base: &Tally, ours: &Tally) {
    println!("| image | MiB not zero | new by fixed 4 KiB | new | of what fixed 4 KiB finds | MiB stored |");
    println!("|---|---|---|---|---|---|");
    for ((image, base), ours) in images.iter().zip(&base.images).zip(&ours.images) {
        let written = tally::float(ours.written_bytes);
        println!(
            "| {} | {:.0} | {:.2} % | {:.2} % | {:.2} % | {:.1} |",
            image.name,
            written / f64::from(1 << 20),
            100.0 * tally::float(base.unique_bytes) / tally::float(base.written_bytes),
            100.0 * tally::float(ours.unique_bytes) / written,
            100.0 * tally::float(ours.shared_bytes()) / tally::float(base.shared_bytes()),
            tally::float(ours.stored_bytes) / f64::from(1 << 20),
        );
    }
}

fn ratios_table(tallies: &[Tally]) {
    println!("| chunks | average KiB | {} |", LEVELS.map(|level| format!("zstd {level}")).join(" | "));
    println!("|---|---|{}", "---|".repeat(LEVELS.len()));
    for tally in tallies {
        let ratios = tally.levels.ratios().map(|ratio| format!("{ratio:.2}")).join(" | ");
        println!("| {} | {:.1} | {ratios} |", tally.name, tally.average_chunk_kib());
    }
}
