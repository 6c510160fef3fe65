//! Whatever happens to the files: the index opens, empty if need be, and every answer is one that was given to it.
#![allow(clippy::unwrap_used, reason = "this is a test")]

mod support;

use cairn_fingerprints::{FingerprintIndex, Opened, WipeReason};
use cairn_model::{ContainerFingerprints, SiteId};
use proptest::prelude::*;
use std::path::Path;
use std::sync::OnceLock;
use support::*;

const CONTAINERS: u64 = 12;
const BLOCKS: u64 = 400;

fn containers() -> Vec<ContainerFingerprints> {
    (0..CONTAINERS).map(|number| unique(number, BLOCKS)).collect()
}

/// An index on disk that has tables, a journal and blobs; made once.
fn sound() -> &'static Path {
    static SOUND: OnceLock<tempfile::TempDir> = OnceLock::new();
    SOUND.get_or_init(|| made(SITE)).path()
}

fn made(site: SiteId) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let (index, _) = FingerprintIndex::open(&config(folder.path()), site, &key(2)).unwrap();
    for container in &containers() {
        commit(&index, DOMAIN, container);
    }
    index.close();
    folder
}

/// Opens the index and asks for everything: what is answered is right, and it works from then on.
fn still_right(path: &Path) -> (Opened, usize) {
    let (index, opened) = open(path);
    let mut answered = 0;
    for container in containers() {
        for (print, place) in container.refs() {
            if let Some(answer) = index.find(DOMAIN, &print) {
                assert_eq!(answer, place);
                answered += 1;
            }
        }
        assert_eq!(index.find(OTHER_DOMAIN, &container.blocks()[3]), None);
    }
    let new = unique(100, 40);
    commit(&index, DOMAIN, &new);
    assert!(found(&index, DOMAIN, &new));
    index.close();
    let (index, again) = open(path);
    let _ = (index.containers(), index.status());
    if matches!(again, Opened::Found { .. }) && matches!(opened, Opened::Wiped { .. }) {
        assert!(found(&index, DOMAIN, &new), "a wiped index is as good as a new one");
    }
    (opened, answered)
}

/// Every manifest below `folder` that counts.
fn manifests(folder: &Path) -> Vec<std::path::PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap().map(Result::unwrap) {
        if entry.path().is_dir() {
            found.extend(manifests(&entry.path()));
        } else if entry.file_name() == "current" {
            let naming = std::fs::read(entry.path()).unwrap();
            let number = u64::from_le_bytes(*naming.first_chunk().unwrap());
            found.push(folder.join(format!("v{number}")));
        }
    }
    found
}

/// The store would allocate for as many entries as a damaged manifest counts, and end the process.
#[test]
fn a_damaged_manifest_is_noticed_before_it_is_believed() {
    let sound = manifests(sound());
    assert!(sound.len() >= 3, "{sound:?}");
    let root = self::sound();
    for manifest in sound {
        let length = std::fs::metadata(&manifest).unwrap().len();
        for at in (0..length).step_by(41) {
            let folder = tempfile::tempdir().unwrap();
            copy(root, folder.path());
            let damaged = folder.path().join(manifest.strip_prefix(root).unwrap());
            let mut bytes = std::fs::read(&damaged).unwrap();
            bytes[usize::try_from(at).unwrap()] ^= 0xff;
            std::fs::write(&damaged, bytes).unwrap();
            let (index, opened) = open(folder.path());
            assert!(matches!(opened, Opened::Wiped { .. }), "{opened:?}, byte {at} of {}", damaged.display());
            index.close();
        }
    }
}

#[test]
fn a_sound_copy_knows_everything() {
    let folder = tempfile::tempdir().unwrap();
    copy(sound(), folder.path());
    let (opened, answered) = still_right(folder.path());
    assert_eq!(opened, Opened::Found { containers: CONTAINERS });
    // All but the blocks before each container's first anchor.
    assert_eq!(answered as u64, CONTAINERS * (BLOCKS - 3));
}

fn each_file(harm: fn(&Path)) {
    for at in 0..files(sound()).len() {
        let folder = tempfile::tempdir().unwrap();
        copy(sound(), folder.path());
        harm(&files(folder.path())[at]);
        still_right(folder.path());
    }
}

#[test]
fn each_file_may_be_missing() {
    each_file(|file| std::fs::remove_file(file).unwrap());
}

#[test]
fn each_file_may_be_empty() {
    each_file(|file| std::fs::write(file, "").unwrap());
}

#[test]
fn the_store_of_another_site_is_wiped() {
    let other = made(SiteId::from_bytes([5; 16]));
    let folder = tempfile::tempdir().unwrap();
    copy(sound(), folder.path());
    let store = "cairn-fingerprints.store";
    std::fs::remove_dir_all(folder.path().join(store)).unwrap();
    copy(&other.path().join(store), &folder.path().join(store));
    let (opened, answered) = still_right(folder.path());
    let found = SiteId::from_bytes([5; 16]);
    assert_eq!(opened, Opened::Wiped { reason: WipeReason::OtherSite { found } });
    assert_eq!(answered, 0);
}

#[test]
fn an_index_whose_disk_goes_away_goes_on_in_memory() {
    let folder = tempfile::tempdir().unwrap();
    copy(sound(), folder.path());
    let (index, _) = open(folder.path());
    std::fs::remove_dir_all(folder.path()).unwrap();
    std::fs::write(folder.path(), "").unwrap();
    for container in containers() {
        let _ = found(&index, DOMAIN, &container);
    }
    for number in 100..200 {
        commit(&index, DOMAIN, &unique(number, 2000));
        assert!(found(&index, DOMAIN, &unique(number, 2000)));
    }
    index.flush();
    index.close();
    std::fs::remove_file(folder.path()).unwrap();
    std::fs::create_dir(folder.path()).unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 16, ..ProptestConfig::default() })]

    #[test]
    fn any_bits_may_flip(
        flips in prop::collection::vec((any::<prop::sample::Index>(), any::<prop::sample::Index>(), 1u8..), 1..6),
    ) {
        let folder = tempfile::tempdir().unwrap();
        copy(sound(), folder.path());
        let files = files(folder.path());
        for (file, at, change) in flips {
            let file = &files[file.index(files.len())];
            let mut bytes = std::fs::read(file).unwrap();
            if !bytes.is_empty() {
                let at = at.index(bytes.len());
                bytes[at] ^= change;
                std::fs::write(file, bytes).unwrap();
            }
        }
        still_right(folder.path());
    }

    #[test]
    fn any_file_may_be_cut_off_or_overwritten(
        file: prop::sample::Index, at: prop::sample::Index, fill: Option<u8>,
    ) {
        let folder = tempfile::tempdir().unwrap();
        copy(sound(), folder.path());
        let files = files(folder.path());
        let file = &files[file.index(files.len())];
        let mut bytes = std::fs::read(file).unwrap();
        if !bytes.is_empty() {
            let at = at.index(bytes.len());
            match fill {
                None => bytes.truncate(at),
                Some(fill) => bytes[at..].fill(fill),
            }
            std::fs::write(file, bytes).unwrap();
        }
        still_right(folder.path());
    }
}
