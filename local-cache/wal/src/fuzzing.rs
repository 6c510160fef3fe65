//! Entry points for the fuzzers: everything that parses bytes of the log.

use crate::WalIdentity;
use crate::format::{FileHeader, FirstPage, FrameHeader, PAGE, decode_records, open_frame, seal_frame};
use cairn_model::crypto::SecretKey;
use cairn_model::{GatewayId, Lsn, SiteId};

fn identity() -> WalIdentity {
    WalIdentity { site: SiteId::from_bytes([1; 16]), gateway: GatewayId::from_bytes([2; 16]) }
}

fn header() -> FileHeader {
    FileHeader {
        epoch: 1,
        previous_epoch: 0,
        first_lsn: Lsn::new(1),
        synced_through: Lsn::ZERO,
        freed_through: Lsn::ZERO,
        file_bytes: 64 << 20,
        salt: [3; 32],
    }
}

/// Reads `bytes` as the first page of a file. A header that is accepted is encoded to the same bytes again.
pub fn parse_first_page(bytes: &[u8]) {
    let key = SecretKey::from_bytes([4; 32]);
    let mut page = vec![0; PAGE];
    let length = bytes.len().min(PAGE);
    page[..length].copy_from_slice(&bytes[..length]);
    if let Ok(FirstPage::Header(header, _)) = FileHeader::decode(&page, &identity(), &key, "fuzz") {
        let mut again = vec![0; PAGE];
        header.encode(&identity(), &key, &mut again);
        assert_eq!(again[..512], page[..512]);
    }
}

/// Reads `bytes` as a frame that nobody sealed: it is never accepted.
pub fn parse_frame(bytes: &[u8]) {
    let cipher = header().cipher(&identity(), &SecretKey::from_bytes([4; 32]));
    let mut frame = bytes.to_vec();
    assert!(open_frame(1, &cipher, &mut frame).is_err());
}

/// Reads `bytes` as the authentic payload of a frame with `records` records; what is accepted is encoded to the same
/// bytes again.
pub fn parse_payload(records: u32, bytes: &[u8]) {
    let cipher = header().cipher(&identity(), &SecretKey::from_bytes([4; 32]));
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
            let cipher = header().cipher(&identity(), &SecretKey::from_bytes([4; 32]));
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
        let key = SecretKey::from_bytes([4; 32]);
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
