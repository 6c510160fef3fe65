//! The rows of a catalog, for a record of it elsewhere: what is read at one moment and written into an empty catalog.
//!
//! Version 1. Integers are little-endian; `varint` is LEB128; `text` and `bytes` are a varint length and as many bytes.
//!
//! ```text
//! head of a table    version (u8: 1) | text name | varint columns, at most 64; per column: text name
//! row                per column: 0 NULL | 1 varint integer, zigzag | 2 text | 3 bytes
//! ```
//!
//! Nothing here authenticates anything: whoever stores rows seals them. What is read is checked all the same, by the shape of the table that
//! it goes to, its constraints, and in the end every reference.

use crate::CatalogError;
use async_trait::async_trait;
use cairn_model::varint;

type Result<T> = std::result::Result<T, CatalogError>;

const VERSION: u8 = 1;
const COLUMNS_MAX: u64 = 64;

/// How often a catalog was changed since it was opened.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct RecordChanges {
    /// What no batch tells: volumes, snapshots deleted, clones, groups, nodes, keys and so on.
    pub rare: u64,
    /// Batches committed, and shards placed elsewhere.
    pub batches: u64,
}

/// A catalog whose rows can be read.
#[async_trait]
pub trait RecordSource: Send + Sync {
    fn changes(&self) -> RecordChanges;

    /// Which catalog of its site this is.
    async fn incarnation(&self) -> Result<u64>;

    /// The last number that was given for a checkpoint; 0: none was.
    async fn last_checkpoint(&self) -> Result<u64>;

    /// A number for the next checkpoint, above all that were given before. It is not given again, whatever becomes of the checkpoint.
    async fn next_checkpoint(&self) -> Result<u64>;

    /// The highest number that an object that is to be deleted has; 0: there is none. Later ones get higher numbers.
    async fn doomed_through(&self) -> Result<u64>;

    /// Remembers that a checkpoint is durable that has the objects up to this number as such that are to be deleted, or does not have them any more.
    async fn recorded(&self, doomed_through: u64) -> Result<()>;

    /// The highest number that was remembered so.
    async fn recorded_through(&self) -> Result<u64>;

    /// Begins to read all rows as they are at one moment, which is not before this call.
    async fn read_record(&self) -> Result<Box<dyn RecordReader>>;
}

/// Reads the rows of one moment: table by table, each in the order of its primary key.
#[async_trait]
pub trait RecordReader: Send {
    /// The version of the schema that the rows are of.
    fn schema(&self) -> u64;

    /// The next rows; `None` after the last.
    async fn next(&mut self) -> Result<Option<RecordRows>>;
}

/// Consecutive rows of one table.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RecordRows {
    /// Tells the table and its columns; the same for all rows of a table.
    pub head: Vec<u8>,
    pub rows: Vec<Vec<u8>>,
}

/// A table of which rows are recorded.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct RecordTable {
    pub(crate) name: String,
    pub(crate) columns: Vec<String>,
}

/// One value of a row.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Cell {
    Null,
    Integer(i64),
    Text(String),
    Bytes(Vec<u8>),
}

impl RecordTable {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = vec![VERSION];
        put_bytes(&mut out, self.name.as_bytes());
        varint::put(&mut out, self.columns.len() as u64);
        for column in &self.columns {
            put_bytes(&mut out, column.as_bytes());
        }
        out
    }

    pub(crate) fn decode(head: &[u8]) -> Result<Self> {
        let damaged = || CatalogError::corrupt("recorded table", &"its head makes no sense");
        let (version, mut input) = head.split_first().ok_or_else(damaged)?;
        if *version != VERSION {
            let detail = format!("version {version}");
            return Err(CatalogError::NewerBlob { what: "recorded table", detail });
        }
        let name = take_text(&mut input).ok_or_else(damaged)?;
        let count = varint::take(&mut input).filter(|count| *count <= COLUMNS_MAX).ok_or_else(damaged)?;
        let columns: Option<Vec<String>> = (0..count).map(|_| take_text(&mut input)).collect();
        let columns = columns.filter(|_| input.is_empty()).ok_or_else(damaged)?;
        Ok(Self { name, columns })
    }
}

pub(crate) fn encode_row(cells: &[Cell]) -> Vec<u8> {
    let mut out = Vec::with_capacity(64);
    for cell in cells {
        match cell {
            Cell::Null => out.push(0),
            Cell::Integer(value) => {
                out.push(1);
                varint::put(&mut out, ((value << 1) ^ (value >> 63)).cast_unsigned());
            }
            Cell::Text(text) => {
                out.push(2);
                put_bytes(&mut out, text.as_bytes());
            }
            Cell::Bytes(bytes) => {
                out.push(3);
                put_bytes(&mut out, bytes);
            }
        }
    }
    out
}

/// The cells of a row of so many columns.
pub(crate) fn decode_row(row: &[u8], columns: usize) -> Result<Vec<Cell>> {
    let mut input = row;
    let cells: Option<Vec<Cell>> = (0..columns).map(|_| take_cell(&mut input)).collect();
    cells
        .filter(|_| input.is_empty())
        .ok_or_else(|| CatalogError::corrupt("recorded row", &"it makes no sense"))
}

fn take_cell(input: &mut &[u8]) -> Option<Cell> {
    let (tag, rest) = input.split_first()?;
    *input = rest;
    match tag {
        0 => Some(Cell::Null),
        1 => {
            let value = varint::take(input)?;
            Some(Cell::Integer((value >> 1).cast_signed() ^ -(value & 1).cast_signed()))
        }
        2 => take_text(input).map(Cell::Text),
        3 => take_bytes(input).map(|bytes| Cell::Bytes(bytes.to_vec())),
        _ => None,
    }
}

fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    varint::put(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

fn take_bytes<'a>(input: &mut &'a [u8]) -> Option<&'a [u8]> {
    let length = usize::try_from(varint::take(input)?).ok()?;
    let (bytes, rest) = input.split_at_checked(length)?;
    *input = rest;
    Some(bytes)
}

fn take_text(input: &mut &[u8]) -> Option<String> {
    String::from_utf8(take_bytes(input)?.to_vec()).ok()
}

/// For fuzzing: what is accepted is written again as it was read.
#[doc(hidden)]
pub fn check_recorded(head: &[u8], row: &[u8]) -> Result<()> {
    let table = RecordTable::decode(head)?;
    assert_eq!(RecordTable::decode(&table.encode())?, table, "a head is read back as it was written");
    let cells = decode_row(row, table.columns.len())?;
    assert_eq!(decode_row(&encode_row(&cells), cells.len())?, cells, "a row is read back as it was written");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn cell() -> impl Strategy<Value = Cell> {
        prop_oneof![
            Just(Cell::Null),
            any::<i64>().prop_map(Cell::Integer),
            any::<String>().prop_map(Cell::Text),
            prop::collection::vec(any::<u8>(), 0..300).prop_map(Cell::Bytes),
        ]
    }

    proptest! {
        #[test]
        fn rows_are_read_back(cells in prop::collection::vec(cell(), 0..10)) {
            let row = encode_row(&cells);
            prop_assert_eq!(decode_row(&row, cells.len()).unwrap(), cells.clone());
            prop_assert!(decode_row(&row, cells.len() + 1).is_err());
            if let Some(fewer) = cells.len().checked_sub(1) {
                prop_assert!(decode_row(&row, fewer).is_err());
            }
        }

        #[test]
        fn heads_are_read_back(name: String, columns in prop::collection::vec(any::<String>(), 0..10)) {
            let table = RecordTable { name, columns };
            prop_assert_eq!(RecordTable::decode(&table.encode()).unwrap(), table);
        }

        #[test]
        fn arbitrary_bytes_are_refused_or_read(
            head in prop::collection::vec(any::<u8>(), 0..40),
            row in prop::collection::vec(any::<u8>(), 0..40),
        ) {
            let _ = check_recorded(&head, &row);
        }
    }

    #[test]
    fn what_is_recorded_stays_what_it_was() {
        // Checkpoints in pools hold it.
        let cells = [Cell::Null, Cell::Integer(-3), Cell::Text("ab".to_owned()), Cell::Bytes(vec![9])];
        assert_eq!(encode_row(&cells), [0, 1, 5, 2, 2, b'a', b'b', 3, 1, 9]);
        let table = RecordTable { name: "t".to_owned(), columns: vec!["c".to_owned()] };
        assert_eq!(table.encode(), [1, 1, b't', 1, 1, b'c']);
    }
}
