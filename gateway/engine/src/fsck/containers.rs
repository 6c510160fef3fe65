//! Rows of containers: in themselves, beside each other, and beside what the footer of their segment says.

use cairn_metadata::CheckedContainer;
use cairn_model::{ChunkSet, ContainerId, SegmentId, SiteId};
use cairn_segment_writer::{ContainerDirectory, Footer, HEADER_BYTES, TRAILER_BYTES};
use std::sync::Arc;

/// What is wrong with the containers of a segment, which come in the order of their places.
pub(super) fn judge(held: &[CheckedContainer], segment_bytes: u64) -> Vec<(ContainerId, String)> {
    let mut wrong = Vec::new();
    let mut end = HEADER_BYTES as u64;
    for container in held {
        let of_container = container.offset + u64::from(container.length);
        if let Some(reason) = judge_row(container) {
            wrong.push((container.id, reason));
        } else if container.offset < HEADER_BYTES as u64
            || of_container + TRAILER_BYTES as u64 > segment_bytes
        {
            let (offset, segment) = (container.offset, container.segment);
            wrong.push((
                container.id,
                format!("bytes {offset} to {of_container} are not inside segment {segment} of {segment_bytes} bytes"),
            ));
        } else if container.offset < end {
            wrong.push((
                container.id,
                format!("it begins at byte {}, before the end of the one before it, {end}", container.offset),
            ));
        }
        end = end.max(of_container);
    }
    wrong
}

/// What a row says that cannot be.
fn judge_row(container: &CheckedContainer) -> Option<String> {
    let directory = match ContainerDirectory::decode(&container.directory) {
        Ok(directory) => directory,
        Err(damaged) => return Some(format!("its directory cannot be read: {damaged}")),
    };
    if directory.stored_bytes() != container.length {
        let told = directory.stored_bytes();
        return Some(format!("it has {} bytes, its directory says {told}", container.length));
    }
    if let Some(raw_bytes) = container.raw_bytes.filter(|raw| *raw != directory.raw_bytes()) {
        let told = directory.raw_bytes();
        return Some(format!("it has {raw_bytes} bytes of plaintext, its directory says {told}"));
    }
    let present = container.thinned.as_deref().map(ChunkSet::from_bytes);
    if present.is_some_and(|present| present.as_ref() != Some(&directory.present())) {
        return Some("the chunks that were left out of it are not those that its directory lacks".to_owned());
    }
    None
}

/// What the footer says otherwise than the catalog. Containers that it has and the catalog has elsewhere, or not at all, moved or died.
pub(super) fn compare_footer(
    segment: SegmentId,
    site: SiteId,
    footer: &Footer,
    held: &[CheckedContainer],
) -> Vec<String> {
    let mut wrong = Vec::new();
    if footer.segment != segment || footer.batch.site != site {
        wrong.push(format!("its footer is of segment {} of site {}", footer.segment, footer.batch.site));
        return wrong;
    }
    for container in held {
        let Some(told) = footer.containers.iter().find(|told| told.id == container.id) else {
            wrong.push(format!("the catalog has container {} in it, its footer has not", container.id));
            continue;
        };
        let directory = ContainerDirectory::decode(&container.directory).ok();
        if told.offset != container.offset
            || told.domain != container.domain
            || directory.is_none_or(|directory| directory != *Arc::clone(&told.directory))
        {
            wrong.push(format!(
                "place, domain or directory of container {} in the catalog are not those of its footer",
                container.id
            ));
        }
    }
    wrong
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use cairn_model::DomainId;

    /// A directory of raw chunks of so many blocks each.
    fn directory(blocks: &[u8]) -> Bytes {
        let mut bytes = vec![1, u8::try_from(blocks.len()).unwrap()];
        bytes.extend(blocks.iter().map(|blocks| blocks - 1));
        bytes.into()
    }

    fn container(number: u8, offset: u64, blocks: &[u8]) -> CheckedContainer {
        let total: u32 = blocks.iter().map(|blocks| u32::from(*blocks) * 4096).sum();
        CheckedContainer {
            id: ContainerId::from_bytes([number; 16]),
            segment: SegmentId::from_bytes([9; 16]),
            offset,
            length: total + 16 * u32::try_from(blocks.len()).unwrap(),
            raw_bytes: Some(u64::from(total)),
            domain: DomainId::DEFAULT,
            directory: directory(blocks),
            thinned: None,
        }
    }

    #[test]
    fn rows_that_make_sense_are_not_told() {
        let one = container(1, 64, &[1, 8]);
        let two = container(2, 64 + u64::from(one.length), &[16]);
        let end = two.offset + u64::from(two.length);
        let mut thinned = container(3, end, &[1, 1]);
        thinned.thinned = Some(vec![0b11]);
        thinned.raw_bytes = None;
        assert_eq!(judge(&[one, two, thinned], end + 1_000_000), []);
    }

    #[test]
    fn each_nonsense_of_a_row_is_told() {
        let sound = container(1, 64, &[1, 8]);
        let plain = |change: &dyn Fn(&mut CheckedContainer)| {
            let mut changed = sound.clone();
            change(&mut changed);
            let told = judge(&[changed], 1_000_000);
            assert_eq!(told.len(), 1, "{told:?}");
            told[0].1.clone()
        };
        assert!(plain(&|row| row.directory = Bytes::from_static(b"x")).contains("cannot be read"));
        assert!(plain(&|row| row.length += 1).contains("its directory says"));
        assert!(plain(&|row| row.raw_bytes = Some(7)).contains("plaintext"));
        assert!(plain(&|row| row.thinned = Some(vec![1])).contains("left out"));
        assert!(plain(&|row| row.thinned = Some(vec![0])).contains("left out"));
        assert!(plain(&|row| row.offset = 0).contains("not inside"));
        assert!(plain(&|row| row.offset = 999_000).contains("not inside"));
    }

    #[test]
    fn containers_that_overlap_are_told() {
        let one = container(1, 64, &[8]);
        let two = container(2, 1000, &[8]);
        let told = judge(&[one, two], 1_000_000);
        assert_eq!(told.len(), 1);
        assert!(told[0].1.contains("before the end"), "{told:?}");
    }
}
