//! Raw images: files with data, zeros and holes in any place.
//!
//! What must hold: the pieces are the file, byte by byte, and cover it.

use super::{check_order, memory_file, read};
use crate::input::Input;
use crate::{Seeds, lie};
use cairn_gateway::image::{ImageFormat, Piece};
use std::os::unix::fs::FileExt;

/// Largest file: some pieces of the reader.
const SIZE_MAX: u64 = 9 << 20;

pub(crate) fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let size = (u64::from(input.number::<u32>()) % SIZE_MAX) >> (4 * (input.byte() & 3));
    let format = [None, Some(ImageFormat::Raw)][usize::from(input.below(2))];
    let (file, path) = memory_file();
    file.set_len(size).unwrap();
    let mut content = vec![0; usize::try_from(size).unwrap()];
    for _ in 0..16 {
        if input.is_empty() {
            break;
        }
        let at = usize::from(input.number::<u16>()) * 256;
        let length = usize::from(input.byte()) * 1024 + usize::from(input.byte());
        let pattern = input.byte();
        let Some(part) = content.get_mut(at..) else { continue };
        let length = length.min(part.len());
        part[..length].fill(pattern);
        file.write_all_at(&part[..length], at as u64).unwrap();
    }
    let (found, pieces, whole) = match read(&path, format) {
        Ok(read) => read,
        Err(error) => {
            assert_eq!(size, 0, "a raw image is refused: {error}");
            return;
        }
    };
    assert_eq!(found, size);
    check_order(size, &pieces, whole);
    for piece in pieces {
        let same = match piece {
            Piece::Data { offset, bytes } => content[usize::try_from(offset).unwrap()..].starts_with(&bytes),
            Piece::Zero { offset, length } => {
                let offset = usize::try_from(offset).unwrap();
                let part = &content[offset..offset + usize::try_from(length).unwrap()];
                part.iter().all(|&byte| byte == 0) && !lie::told()
            }
        };
        assert!(same, "a piece is not what the file has");
    }
}

pub(crate) fn seeds() -> Seeds {
    let size = ((5_u32 << 20) + 777).to_le_bytes();
    let runs = [[0, 0, 64, 9, 7], [0, 16, 200, 0, 0], [0, 40, 100, 1, 255], [0, 64, 0, 50, 1]].concat();
    vec![
        ("sparse".to_owned(), [&size[..], &[0, 0], &runs].concat()),
        ("told".to_owned(), [&size[..], &[0, 1], &runs].concat()),
        ("hole".to_owned(), [&size[..], &[0, 0]].concat()),
        ("one-byte".to_owned(), vec![1, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1]),
        ("empty".to_owned(), vec![0]),
    ]
}
