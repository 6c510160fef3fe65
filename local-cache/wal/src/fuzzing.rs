//! Entry points for the fuzzers: everything that parses bytes of the log.

use crate::format::{
    FRAME_HEADER_BYTES, FileHeader, FirstPage, FrameHeader, PAGE, decode_records, open_frame, seal_frame,
};
use crate::ring::Slot;
use crate::{Record, WalIdentity};
use cairn_model::crypto::SecretKey;
use cairn_model::{GatewayId, Lsn, SiteId};
use std::ops::Range;

/// Whose logs the fuzzers read.
pub fn identity() -> WalIdentity {
    WalIdentity { site: SiteId::from_bytes([1; 16]), gateway: GatewayId::from_bytes([2; 16]) }
}

/// The key of those logs.
pub fn key() -> SecretKey {
    SecretKey::from_bytes([4; 32])
}

/// One use of a log file, to be written as bytes.
#[derive(Clone, Debug)]
pub struct FilePlan {
    pub number: u32,
    /// Whether the header says the number; those of early versions did not.
    pub says_number: bool,
    pub epoch: u64,
    pub previous_epoch: u64,
    pub first_lsn: u64,
    pub synced_through: u64,
    pub freed_through: u64,
    pub frames: Vec<FramePlan>,
    /// Pages behind the last frame.
    pub pages_free: usize,
}

/// One frame; its first record follows the last one of the frame before.
#[derive(Clone, Debug)]
pub struct FramePlan {
    pub records: Vec<Record>,
    pub synced_through: u64,
    pub freed_through: u64,
    pub last: bool,
}

/// A log file as bytes, and where each of its frames is.
#[derive(Clone, Debug)]
pub struct BuiltFile {
    pub name: String,
    pub bytes: Vec<u8>,
    pub frames: Vec<Range<usize>>,
}

/// Writes a file as the log would, header and frames sealed under [`key`].
pub fn build_file(plan: &FilePlan) -> BuiltFile {
    let mut frames = Vec::new();
    let mut end = PAGE;
    for frame in &plan.frames {
        let payload_bytes = frame.records.iter().map(Record::encoded_bytes).sum();
        let bytes = crate::format::frame_bytes(payload_bytes);
        frames.push(end..end + bytes);
        end += bytes;
    }
    let mut bytes = vec![0; end + plan.pages_free * PAGE];
    let header = FileHeader {
        epoch: plan.epoch,
        previous_epoch: plan.previous_epoch,
        first_lsn: Lsn::new(plan.first_lsn),
        synced_through: Lsn::new(plan.synced_through),
        freed_through: Lsn::new(plan.freed_through),
        file_bytes: bytes.len() as u64,
        salt: salt(plan.epoch),
        number: plan.says_number.then_some(plan.number.into()),
    };
    let cipher = header.encode(&identity(), &key(), &mut bytes);
    let mut first_lsn = plan.first_lsn;
    for (counter, (frame, place)) in (1..).zip(plan.frames.iter().zip(&frames)) {
        let into = &mut bytes[place.clone()];
        let mut end = FRAME_HEADER_BYTES;
        for record in &frame.records {
            end += record.encode(&mut into[end..]);
        }
        let frame_header = FrameHeader {
            payload_bytes: end - FRAME_HEADER_BYTES,
            epoch: plan.epoch,
            counter,
            first_lsn: Lsn::new(first_lsn),
            records: u32::try_from(frame.records.len()).expect("a frame has few records"),
            last: frame.last,
            synced_through: Lsn::new(frame.synced_through),
            freed_through: Lsn::new(frame.freed_through),
        };
        seal_frame(&frame_header, &cipher, into);
        first_lsn = frame_header.next_lsn().get();
    }
    BuiltFile { name: Slot::name_of(plan.number), bytes, frames }
}

fn header() -> FileHeader {
    FileHeader {
        epoch: 1,
        previous_epoch: 0,
        first_lsn: Lsn::new(1),
        synced_through: Lsn::ZERO,
        freed_through: Lsn::ZERO,
        file_bytes: 64 << 20,
        salt: salt(1),
        number: Some(0),
    }
}

fn salt(epoch: u64) -> [u8; 32] {
    let mut salt = [3; 32];
    salt[..8].copy_from_slice(&epoch.to_le_bytes());
    salt
}

/// Reads `bytes` as the first page of a file. A header that is accepted is encoded to the same bytes again.
pub fn parse_first_page(bytes: &[u8]) {
    let key = key();
    let mut page = vec![0; PAGE];
    let length = bytes.len().min(PAGE);
    page[..length].copy_from_slice(&bytes[..length]);
    if let Ok(FirstPage::Header(header, _)) = FileHeader::decode(&page, &identity(), &key, "fuzz") {
        let mut again = vec![0; PAGE];
        header.encode(&identity(), &key, &mut again);
        assert_eq!(again[..512], page[..512]);
    }
}

/// Reads `bytes` as what a header says, under a checksum and a tag that are right: only the header that a log would write
/// is accepted.
pub fn parse_sealed_page(bytes: &[u8]) {
    let mut page = vec![0; PAGE];
    let length = bytes.len().min(464);
    page[..length].copy_from_slice(&bytes[..length]);
    if bytes.len() >= 136 {
        let epoch = u64::from_le_bytes(page[56..64].try_into().expect("eight bytes"));
        let salt = page[104..136].try_into().expect("32 bytes");
        let cipher = FileHeader { epoch, salt, ..header() }.cipher(&identity(), &key());
        let tag = cipher.seal_in_place(0, &page[..464], &mut []);
        page[464..480].copy_from_slice(&tag);
    }
    let checksum = blake3::hash(&page[..480]);
    page[480..512].copy_from_slice(checksum.as_bytes());
    if let Ok(FirstPage::Header(header, _)) = FileHeader::decode(&page, &identity(), &key(), "fuzz") {
        let mut again = vec![0; PAGE];
        header.encode(&identity(), &key(), &mut again);
        let read = FileHeader::decode(&again, &identity(), &key(), "fuzz").expect("an own header is read");
        assert!(matches!(read, FirstPage::Header(found, _) if found == header), "{header:?}");
    }
}

/// Reads `bytes` as a frame that nobody sealed: it is never accepted.
pub fn parse_frame(bytes: &[u8]) {
    let cipher = header().cipher(&identity(), &key());
    let mut frame = bytes.to_vec();
    assert!(open_frame(1, &cipher, &mut frame).is_err());
}

/// Reads `bytes` as the authentic payload of a frame with `records` records; what is accepted is encoded to the same
/// bytes again.
pub fn parse_payload(records: u32, bytes: &[u8]) {
    let cipher = header().cipher(&identity(), &key());
    let payload = &bytes[..bytes.len().min(crate::format::PAYLOAD_BYTES_MAX)];
    let frame_header = FrameHeader {
        payload_bytes: payload.len(),
        epoch: 1,
        counter: 1,
        first_lsn: Lsn::new(1),
        records,
        last: false,
        synced_through: Lsn::ZERO,
        freed_through: Lsn::ZERO,
    };
    let mut frame = vec![0; frame_header.frame_bytes()];
    frame[crate::format::FRAME_HEADER_BYTES..][..payload.len()].copy_from_slice(payload);
    seal_frame(&frame_header, &cipher, &mut frame);
    let Ok((opened, plain)) = open_frame(1, &cipher, &mut frame) else { return };
    let Ok(decoded) = decode_records(&opened, bytes::Bytes::copy_from_slice(plain)) else { return };
    let mut again = vec![0; payload.len()];
    let mut end = 0;
    for (_, record) in &decoded {
        end += record.encode(&mut again[end..]);
    }
    assert_eq!(end, payload.len());
    let reread = decode_records(&opened, again.into()).expect("an encoded payload is decoded");
    assert_eq!(reread, decoded, "records read back as they were written");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::tests::any_record;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn parsing_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..2000), records in 0u32..5) {
            parse_first_page(&bytes);
            parse_frame(&bytes);
            parse_payload(records, &bytes);
        }

        #[test]
        fn a_frame_with_one_changed_byte_is_refused(
            records in prop::collection::vec(any_record(), 1..4), at: prop::sample::Index, change in 1u8..,
        ) {
            let cipher = header().cipher(&identity(), &key());
            let payload_bytes = records.iter().map(crate::Record::encoded_bytes).sum();
            let frame_header = FrameHeader {
                payload_bytes,
                epoch: 1,
                counter: 7,
                first_lsn: Lsn::new(9),
                records: u32::try_from(records.len()).unwrap(),
                last: false,
                synced_through: Lsn::new(3),
                freed_through: Lsn::new(2),
            };
            let mut frame = vec![0; frame_header.frame_bytes()];
            let mut end = crate::format::FRAME_HEADER_BYTES;
            for record in &records {
                end += record.encode(&mut frame[end..]);
            }
            seal_frame(&frame_header, &cipher, &mut frame);
            let mut damaged = frame.clone();
            damaged[at.index(end + cairn_model::crypto::TAG_BYTES)] ^= change;
            prop_assert!(open_frame(1, &cipher, &mut damaged).is_err());
            let (opened, payload) = open_frame(1, &cipher, &mut frame).unwrap();
            prop_assert_eq!(opened, frame_header);
            let decoded = decode_records(&opened, bytes::Bytes::copy_from_slice(payload)).unwrap();
            let lsns: Vec<u64> = decoded.iter().map(|(lsn, _)| lsn.get()).collect();
            prop_assert_eq!(lsns, (9..9 + records.len() as u64).collect::<Vec<_>>());
            prop_assert_eq!(decoded.into_iter().map(|(_, record)| record).collect::<Vec<_>>(), records);
        }
    }

    #[test]
    fn a_header_with_one_changed_byte_is_not_accepted() {
        let key = key();
        let mut page = vec![0; PAGE];
        header().encode(&identity(), &key, &mut page);
        for at in 0..512 {
            let mut damaged = page.clone();
            damaged[at] ^= 1;
            let read = FileHeader::decode(&damaged, &identity(), &key, "file").unwrap();
            assert!(matches!(read, FirstPage::Damaged), "byte {at}");
        }
        let read = FileHeader::decode(&page, &identity(), &key, "file").unwrap();
        assert!(matches!(read, FirstPage::Header(found, _) if found == header()));
    }
}
