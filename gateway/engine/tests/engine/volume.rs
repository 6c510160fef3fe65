//! A volume shows what was written to it, whatever destage, folding and restarts do meanwhile.

use crate::support::{Checked, Dice, MIB, Site};
use bytes::Bytes;
use cairn_engine::EngineError;
use cairn_model::{BlockDevice, ErrorKind, Kinded, WriteFlags};
use futures::future::join_all;

/// One random request of any alignment.
async fn step(disk: &mut Checked, dice: &Dice) {
    let size = disk.volume.size_bytes();
    let aligned = dice.below(3) > 0;
    let mut offset = dice.below(size);
    let mut length = 1 + dice.below(if dice.below(10) == 0 { 2 * MIB } else { 40_000 });
    if aligned {
        offset -= offset % 4096;
        length = length.next_multiple_of(4096);
    }
    length = length.min(size - offset);
    match dice.below(8) {
        0 => disk.zero(offset, length).await,
        1 | 2 => disk.check(offset, length).await,
        _ => disk.write(offset, dice.bytes(usize::try_from(length).unwrap())).await,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn random_requests_equal_an_array_of_bytes_across_destages_and_restarts() {
    let mut site = Site::with_volume(24 * MIB + 512).await;
    // Small enough that layers are stripped, chunks leave the cache, and reads go back to the log and the pool.
    site.config.write_buffer_bytes = 6 * MIB;
    site.config.block_cache_bytes = 4 * MIB;
    let dice = Dice::new(7);
    let mut expected = None;
    for round in 0..6 {
        let engine = site.start().await;
        let mut disk = Checked::fresh(engine.volume("disk").unwrap());
        if let Some(expected) = expected.take() {
            disk.expected = expected;
        }
        disk.check_all().await;
        for _ in 0..120 {
            step(&mut disk, &dice).await;
        }
        if round % 2 == 0 {
            engine.destage().await.unwrap();
            disk.check_all().await;
            for _ in 0..20 {
                step(&mut disk, &dice).await;
            }
        }
        let Checked { volume, expected: bytes } = disk;
        drop(volume);
        expected = Some(bytes);
        if round % 3 == 0 {
            engine.shutdown().await.unwrap();
        } else {
            engine.abandon().await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn many_small_commits_are_folded_and_still_read_back() {
    let site = Site::with_volume(200 * MIB).await;
    let engine = site.start().await;
    let mut disk = Checked::fresh(engine.volume("disk").unwrap());
    let dice = Dice::new(3);
    for _ in 0..80 {
        for _ in 0..4 {
            let offset = dice.below(200 * MIB / 4096 - 8) * 4096;
            if dice.below(4) == 0 {
                disk.zero(offset, 8192).await;
            } else {
                disk.write(offset, dice.bytes(12_288)).await;
            }
        }
        engine.destage().await.unwrap();
    }
    let unfolded = disk.volume.status().unfolded_pieces;
    assert!(unfolded < 320, "{unfolded} pieces wait after 80 commits: nothing was folded");
    disk.check_all().await;
    engine.shutdown().await.unwrap();
    let Checked { volume, expected } = disk;
    drop((volume, engine));
    let engine = site.start().await;
    let disk = Checked { volume: engine.volume("disk").unwrap(), expected };
    disk.check_all().await;
    engine.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_writes_of_different_sectors_of_a_block_are_all_kept() {
    let site = Site::with_volume(MIB).await;
    let engine = site.start().await;
    let volume = engine.volume("disk").unwrap();
    for round in 0..20u8 {
        let writes = (0..8u8).map(|sector| {
            let volume = &volume;
            async move {
                let data = Bytes::from(vec![round * 8 + sector + 1; 512]);
                volume.write(u64::from(sector) * 512, data, WriteFlags::default()).await.unwrap();
            }
        });
        join_all(writes).await;
        let block = volume.read(0, 4096).await.unwrap().to_vec();
        for sector in 0..8u8 {
            assert_eq!(
                block[usize::from(sector) * 512],
                round * 8 + sector + 1,
                "round {round}, sector {sector}"
            );
        }
    }
    engine.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_largest_volume_is_discarded_as_one_range() {
    let site = Site::with_volume(64 << 40).await;
    let engine = site.start().await;
    let volume = engine.volume("disk").unwrap();
    for tebibyte in 0..64u64 {
        volume.write(tebibyte << 40, Bytes::from(vec![7; 4096]), WriteFlags::default()).await.unwrap();
    }
    engine.destage().await.unwrap();
    volume.discard(0, 64 << 40, WriteFlags { fua: true }).await.unwrap();
    engine.destage().await.unwrap();
    assert_eq!(volume.read(5 << 40, 4096).await.unwrap().to_vec(), vec![0; 4096]);
    let extents = volume.allocation(0, 64 << 40, 16).await.unwrap();
    assert_eq!(extents.len(), 1);
    assert!(!extents[0].allocated);
    assert_eq!(extents[0].length_bytes, 64 << 40);
    engine.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn allocation_tells_data_from_holes_before_and_after_destage() {
    let site = Site::with_volume(1 << 40).await;
    let engine = site.start().await;
    let volume = engine.volume("disk").unwrap();
    volume.write(300 << 30, Bytes::from(vec![1; 8192]), WriteFlags::default()).await.unwrap();
    for _ in 0..2 {
        let extents = volume.allocation(0, 1 << 40, 16).await.unwrap();
        let lengths: Vec<_> = extents.iter().map(|extent| (extent.length_bytes, extent.allocated)).collect();
        assert_eq!(lengths, vec![(300 << 30, false), (8192, true), ((1 << 40) - (300 << 30) - 8192, false)]);
        let clipped = volume.allocation((300 << 30) + 100, 200, 1).await.unwrap();
        assert_eq!((clipped[0].length_bytes, clipped[0].allocated), (200, true));
        engine.destage().await.unwrap();
    }
    engine.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_past_the_end_are_refused_and_change_nothing() {
    let site = Site::with_volume(MIB).await;
    let engine = site.start().await;
    let volume = engine.volume("disk").unwrap();
    let kinds = [
        volume.read(MIB - 1, 2).await.err().map(|error| error.kind()),
        volume.read(u64::MAX, 4096).await.err().map(|error| error.kind()),
        volume
            .write(MIB, Bytes::from_static(b"x"), WriteFlags::default())
            .await
            .err()
            .map(|error| error.kind()),
        volume.discard(4096, u64::MAX, WriteFlags::default()).await.err().map(|error| error.kind()),
        volume.write_zeroes(MIB - 4096, 8192, WriteFlags::default()).await.err().map(|error| error.kind()),
    ];
    assert_eq!(kinds, [Some(ErrorKind::OutOfRange); 5]);
    Checked::fresh(volume).check_all().await;
    engine.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn shrinking_and_growing_again_shows_zeros() {
    let site = Site::with_volume(4 * MIB).await;
    let engine = site.start().await;
    let volume = engine.volume("disk").unwrap();
    volume.write(0, Bytes::from(vec![9; 4 << 20]), WriteFlags::default()).await.unwrap();
    engine.resize_volume("disk", MIB + 1000).await.unwrap();
    assert_eq!(volume.read(MIB, 2000).await.err().map(|error| error.kind()), Some(ErrorKind::OutOfRange));
    engine.resize_volume("disk", 4 * MIB).await.unwrap();
    let tail = volume.read(MIB, 8192).await.unwrap().to_vec();
    assert_eq!(tail[..1000], [9; 1000]);
    assert_eq!(tail[1000..], [0; 7192]);
    engine.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_volume_answers_with_an_error_and_frees_its_name() {
    let site = Site::with_volume(MIB).await;
    let engine = site.start().await;
    let volume = engine.volume("disk").unwrap();
    volume.write(0, Bytes::from(vec![1; 4096]), WriteFlags::default()).await.unwrap();
    engine.delete_volume("disk", false).await.unwrap();
    assert!(matches!(volume.read(0, 4096).await, Err(EngineError::Deleted(_))));
    let again = engine.create_volume(&site.new_volume("disk", MIB)).await.unwrap();
    assert_eq!(again.read(0, 4096).await.unwrap().to_vec(), vec![0; 4096]);
    engine.shutdown().await.unwrap();
    drop((volume, again, engine));
    site.start().await.shutdown().await.unwrap();
}
