//! The images, in the order in which they are written.

use bytes::Bytes;
use cairn_model::{BLOCK_SIZE, Lba};
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

/// What `tests/perf/images.sh` makes.
const SET: [&str; 8] = [
    "bookworm",
    "bookworm-packages",
    "bookworm-upgraded",
    "trixie",
    "bookworm-shifted",
    "bookworm-files-shifted",
    "pg-before",
    "pg-after",
];

/// Memory of one read.
const PIECE_BYTES: usize = 4 << 20;

const BLOCK: usize = BLOCK_SIZE as usize;

#[derive(Clone, Debug)]
pub(crate) struct Image {
    pub(crate) name: String,
    path: PathBuf,
}

/// One of the parts, if one is named first, and the images. Stops the program with a message when there are none.
pub(crate) fn from_the_command_line(parts: &[&str]) -> (Option<String>, Vec<Image>) {
    let mut arguments: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    let named = arguments.first().and_then(|first| parts.iter().find(|part| *first == Path::new(part)));
    let part = named.map(|part| (*part).to_owned());
    if part.is_some() {
        arguments.remove(0);
    }
    let images: Vec<Image> = match &arguments[..] {
        [] => stop("name the directory that tests/perf/images.sh has filled, or images"),
        [directory] if directory.is_dir() => {
            let mut images: Vec<Image> = SET
                .iter()
                .map(|name| Image { name: (*name).to_owned(), path: directory.join(format!("{name}.img")) })
                .collect();
            images.push(Image { name: format!("{} again", SET[0]), ..images[0].clone() });
            images
        }
        files => files.iter().map(|path| Image { name: name_of(path), path: path.clone() }).collect(),
    };
    for image in &images {
        if !image.path.is_file() {
            stop(&format!(
                "{} is not there; tests/perf/images.sh DIRECTORY makes the set",
                image.path.display()
            ));
        }
    }
    (part, images)
}

fn name_of(path: &Path) -> String {
    path.file_stem().map_or_else(|| path.display().to_string(), |stem| stem.to_string_lossy().into_owned())
}

fn stop(message: &str) -> ! {
    eprintln!("reduction_study: {message}");
    std::process::exit(2)
}

impl Image {
    /// The content from the start, in pieces of whole blocks; the last one is filled up with zeros.
    pub(crate) fn pieces(&self) -> impl Iterator<Item = (Lba, Bytes)> {
        let mut file = File::open(&self.path).unwrap();
        let mut at = Lba::ZERO;
        std::iter::from_fn(move || {
            let mut piece = Vec::with_capacity(PIECE_BYTES);
            file.by_ref().take(PIECE_BYTES as u64).read_to_end(&mut piece).unwrap();
            if piece.is_empty() {
                return None;
            }
            piece.resize(piece.len().next_multiple_of(BLOCK), 0);
            let start = at;
            at = at.plus((piece.len() / BLOCK) as u64);
            Some((start, piece.into()))
        })
    }
}

pub(crate) fn is_zero(block: &[u8]) -> bool {
    block == cairn_model::ZERO_BLOCK
}
