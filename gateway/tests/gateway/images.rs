//! Images against the reference implementation, `qemu-img`.

use crate::support::{noise, same_content, sparse_file, taken, tool};
use cairn_gateway::image::{ImageError, ImageFormat, ImageReader, ImageWriter, Piece};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::Command;

const SIZE: u64 = 64 << 20;

/// Data at the beginning, across a piece's end, among zeros, and at the end; holes between.
fn sample(folder: &Path) -> PathBuf {
    let path = folder.join("sample.raw");
    let (one, two, three) = (noise(1, 100_000), noise(2, 3 << 20), noise(3, 4096));
    sparse_file(
        &path,
        SIZE,
        &[(0, &one), ((8 << 20) - 4096, &two), (20 << 20, &vec![0; 1 << 20]), (SIZE - 4096, &three)],
    );
    path
}

/// Reads `image` and writes it as `format` to `path`, as import and export do.
fn copy(image: &Path, format: Option<ImageFormat>, path: &Path, to: ImageFormat) {
    let reader = ImageReader::open(image, format).unwrap();
    let mut writer = ImageWriter::create(path, to, reader.size_bytes(), false).unwrap();
    let mut next = 0;
    reader
        .read_pieces(|piece| {
            match &piece {
                Piece::Data { offset, bytes } => {
                    assert_eq!(*offset, next);
                    writer.write(*offset, bytes).unwrap();
                }
                Piece::Zero { offset, .. } => assert_eq!(*offset, next),
            }
            next += piece.len();
            ControlFlow::Continue(())
        })
        .unwrap();
    writer.finish().unwrap();
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn a_raw_image_is_copied_exactly_and_sparsely() {
    let folder = tempfile::tempdir().unwrap();
    let sample = sample(folder.path());
    let out = folder.path().join("out.raw");
    copy(&sample, None, &out, ImageFormat::Raw);
    assert!(same_content(&sample, &out));
    assert!(taken(&out) < 4 << 20, "{} bytes taken", taken(&out));
}

#[test]
fn every_qcow2_that_qemu_writes_reads_as_its_disk() {
    let folder = tempfile::tempdir().unwrap();
    let sample = sample(folder.path());
    for (number, options) in [
        &["-o", "compat=1.1"][..],
        &["-o", "compat=0.10"],
        &["-o", "cluster_size=4096"],
        &["-o", "cluster_size=2M"],
        &["-o", "refcount_bits=64,lazy_refcounts=on"],
        &["-o", "preallocation=metadata"],
        &["-c"],
        &["-S", "0"],
    ]
    .into_iter()
    .enumerate()
    {
        let image = folder.path().join(format!("{number}.qcow2"));
        let out = folder.path().join(format!("{number}.raw"));
        let mut arguments = vec!["convert", "-O", "qcow2"];
        arguments.extend(options);
        arguments.extend([text(&sample), text(&image)]);
        tool("qemu-img", &arguments);
        copy(&image, None, &out, ImageFormat::Raw);
        assert!(same_content(&sample, &out), "{options:?}");
        assert!(taken(&out) < 4 << 20, "{options:?}: {} bytes taken", taken(&out));
    }
}

#[test]
fn a_written_qcow2_is_sound_and_sparse_for_qemu() {
    let folder = tempfile::tempdir().unwrap();
    let sample = sample(folder.path());
    let out = folder.path().join("out.qcow2");
    copy(&sample, None, &out, ImageFormat::Qcow2);
    tool("qemu-img", &["check", text(&out)]);
    tool("qemu-img", &["compare", "-f", "raw", "-F", "qcow2", text(&sample), text(&out)]);
    assert!(std::fs::metadata(&out).unwrap().len() < 5 << 20);
}

#[test]
fn a_disk_whose_size_is_no_whole_number_of_clusters_keeps_its_size() {
    let folder = tempfile::tempdir().unwrap();
    let sample = folder.path().join("odd.raw");
    let bytes = noise(4, 300_544);
    std::fs::write(&sample, &bytes).unwrap();
    let (qcow2, back) = (folder.path().join("odd.qcow2"), folder.path().join("back.raw"));
    copy(&sample, None, &qcow2, ImageFormat::Qcow2);
    tool("qemu-img", &["check", text(&qcow2)]);
    copy(&qcow2, None, &back, ImageFormat::Raw);
    assert_eq!(std::fs::read(&back).unwrap(), bytes);
}

#[test]
fn a_qcow2_read_as_raw_is_its_file() {
    let folder = tempfile::tempdir().unwrap();
    let sample = sample(folder.path());
    let (image, out) = (folder.path().join("image.qcow2"), folder.path().join("out.raw"));
    tool("qemu-img", &["convert", "-O", "qcow2", text(&sample), text(&image)]);
    copy(&image, Some(ImageFormat::Raw), &out, ImageFormat::Raw);
    assert!(same_content(&image, &out));
}

#[test]
fn images_that_refer_to_other_files_or_cannot_be_read_are_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let base = sample(folder.path());
    let path = |name: &str| folder.path().join(name);
    tool("qemu-img", &["create", "-f", "qcow2", "-b", text(&base), "-F", "raw", text(&path("backed.qcow2"))]);
    let external = format!("data_file={}", text(&path("external.data")));
    tool("qemu-img", &["create", "-f", "qcow2", "-o", &external, text(&path("external.qcow2")), "1M"]);
    let secret = [
        "--object",
        "secret,id=s,data=hush",
        "-o",
        "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=200",
    ];
    let mut encrypted = vec!["create", "-f", "qcow2"];
    encrypted.extend(secret);
    let target = path("encrypted.qcow2");
    encrypted.extend([text(&target), "1M"]);
    // QEMU measures how fast it derives keys, and fails where its thread got no time meanwhile.
    let is_made = || Command::new("qemu-img").args(&encrypted).output().unwrap().status.success();
    if !(0..10).any(|_| is_made()) {
        tool("qemu-img", &encrypted);
    }
    tool(
        "qemu-img",
        &[
            "convert",
            "-c",
            "-O",
            "qcow2",
            "-o",
            "compression_type=zstd",
            text(&base),
            text(&path("zstd.qcow2")),
        ],
    );
    tool("qemu-img", &["create", "-f", "qcow2", "-o", "extended_l2=on", text(&path("extended.qcow2")), "1M"]);
    for (name, word) in [
        ("backed.qcow2", "backing file"),
        ("external.qcow2", "another file"),
        ("encrypted.qcow2", "encrypted"),
        ("zstd.qcow2", "zstd"),
        ("extended.qcow2", "extended"),
    ] {
        match ImageReader::open(&path(name), None) {
            Err(ImageError::Unsupported { problem, .. }) => assert!(problem.contains(word), "{problem}"),
            other => panic!("{name}: {other:?}"),
        }
    }
}

#[test]
fn an_image_that_was_cut_short_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let sample = sample(folder.path());
    let image = folder.path().join("cut.qcow2");
    tool("qemu-img", &["convert", "-O", "qcow2", text(&sample), text(&image)]);
    let file = std::fs::OpenOptions::new().write(true).open(&image).unwrap();
    file.set_len(file.metadata().unwrap().len() - (1 << 20)).unwrap();
    let reader = ImageReader::open(&image, None).unwrap();
    let read = reader.read_pieces(|_| ControlFlow::Continue(()));
    assert!(matches!(read, Err(ImageError::Damaged { .. })), "{read:?}");
}

#[test]
fn what_is_no_image_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    std::fs::write(path("empty"), "").unwrap();
    std::fs::write(path("short"), "QFI\u{fb}").unwrap();
    assert!(matches!(ImageReader::open(&path("missing"), None), Err(ImageError::Io { .. })));
    assert!(matches!(ImageReader::open(&path("empty"), None), Err(ImageError::Empty { .. })));
    assert!(matches!(ImageReader::open(folder.path(), None), Err(ImageError::NotAnImage { .. })));
    let asked = ImageReader::open(&path("empty"), Some(ImageFormat::Qcow2));
    assert!(matches!(asked, Err(ImageError::Damaged { .. })));
}

#[test]
fn an_export_appears_when_it_is_complete_and_replaces_only_when_told() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("out.raw");
    let writer = ImageWriter::create(&path, ImageFormat::Raw, SIZE, false).unwrap();
    assert!(!path.exists());
    drop(writer);
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    std::fs::write(&path, "precious").unwrap();
    let refused = ImageWriter::create(&path, ImageFormat::Raw, SIZE, false);
    assert!(matches!(refused, Err(ImageError::Exists { .. })), "{refused:?}");
    ImageWriter::create(&path, ImageFormat::Raw, SIZE, true).unwrap().finish().unwrap();
    assert_eq!(std::fs::metadata(&path).unwrap().len(), SIZE);
}

#[test]
fn a_damaged_image_is_an_error_or_a_disk_and_never_a_crash() {
    let folder = tempfile::tempdir().unwrap();
    let (raw, image) = (folder.path().join("small.raw"), folder.path().join("small.qcow2"));
    sparse_file(&raw, 8 << 20, &[(0, &noise(5, 70_000)), (4 << 20, &[7; 5000])]);
    tool("qemu-img", &["convert", "-c", "-O", "qcow2", "-o", "cluster_size=4096", text(&raw), text(&image)]);
    let original = std::fs::read(&image).unwrap();
    let entropy = cairn_model::SeededEntropy::new(6);
    let random = |limit: usize| {
        let mut bytes = [0; 8];
        cairn_model::Entropy::fill(&entropy, &mut bytes);
        usize::try_from(u64::from_le_bytes(bytes)).unwrap() % limit
    };
    // Tables come before the data they point at: damage is aimed at them.
    let tables = original.len().min(40 << 10);
    for round in 0..2000 {
        let mut damaged = original.clone();
        for _ in 0..=random(4) {
            let at = if round % 2 == 0 { random(112) } else { random(tables) };
            damaged[at] = u8::try_from(random(256)).unwrap();
        }
        std::fs::write(&image, &damaged).unwrap();
        if let Ok(reader) = ImageReader::open(&image, None) {
            let size = reader.size_bytes();
            let mut total = 0;
            let read = reader.read_pieces(|piece| {
                total += piece.len();
                if total > 1 << 30 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            });
            assert!(read.is_err() || total == size || total > 1 << 30, "round {round}");
        }
    }
}
