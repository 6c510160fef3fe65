//! Between columns and types: everything read from the file is checked.

use crate::CatalogError;
use cairn_model::WallTime;
use sqlx::sqlite::SqliteRow;
use sqlx::{Decode, Row, Sqlite, Type};
use std::sync::LazyLock;

/// Columns as types. `what` names the row for a person.
pub(super) struct Columns<'r> {
    pub(super) row: &'r SqliteRow,
    pub(super) what: &'static str,
}

impl<'r> Columns<'r> {
    pub(super) fn new(row: &'r SqliteRow, what: &'static str) -> Self {
        Self { row, what }
    }

    pub(super) fn get<T: Decode<'r, Sqlite> + Type<Sqlite>>(&self, column: &'static str) -> super::Result<T> {
        self.row.try_get(column).map_err(|error| CatalogError::corrupt(self.what, &error))
    }

    pub(super) fn identity<T>(&self, column: &'static str, make: fn([u8; 16]) -> T) -> super::Result<T> {
        self.array(column).map(make)
    }

    pub(super) fn optional_identity<T>(
        &self,
        column: &'static str,
        make: fn([u8; 16]) -> T,
    ) -> super::Result<Option<T>> {
        match self.get::<Option<&[u8]>>(column)? {
            Some(_) => self.identity(column, make).map(Some),
            None => Ok(None),
        }
    }

    pub(super) fn array<const N: usize>(&self, column: &'static str) -> super::Result<[u8; N]> {
        let bytes: &[u8] = self.get(column)?;
        bytes.try_into().map_err(|_| self.bad(column, &format!("{} bytes, expected {N}", bytes.len())))
    }

    pub(super) fn number(&self, column: &'static str) -> super::Result<u64> {
        let value: i64 = self.get(column)?;
        u64::try_from(value).map_err(|_| self.bad(column, &value.to_string()))
    }

    pub(super) fn time(&self, column: &'static str) -> super::Result<WallTime> {
        self.number(column).map(WallTime::from_unix_millis)
    }

    pub(super) fn optional_time(&self, column: &'static str) -> super::Result<Option<WallTime>> {
        match self.get::<Option<i64>>(column)? {
            Some(_) => self.time(column).map(Some),
            None => Ok(None),
        }
    }

    pub(super) fn small_number(&self, column: &'static str) -> super::Result<u32> {
        let value = self.number(column)?;
        u32::try_from(value).map_err(|_| self.bad(column, &value.to_string()))
    }

    /// The error for a value that makes no sense.
    pub(super) fn bad(&self, column: &str, value: &str) -> CatalogError {
        CatalogError::corrupt(self.what, &format!("column {column} has {value}"))
    }
}

/// A counter as SQL holds it.
pub(super) fn int(value: u64) -> super::Result<i64> {
    i64::try_from(value).map_err(|_| CatalogError::Invalid(format!("the number {value} is beyond 2^63")))
}

/// One statement for lists of keys, in a few lengths so that each is prepared once. A shorter list is filled up by repeating its last key.
pub(super) struct KeyListQuery {
    one: String,
    many: String,
    length: usize,
}

/// Keys in the longer form of a usual [`KeyListQuery`].
pub(super) const KEYS_AT_ONCE: usize = 64;

impl KeyListQuery {
    /// `sql` has `{keys}` where the list goes, or `{rows}` for a list of rows of one; the list's parameters begin at number `first`.
    pub(super) fn new(sql: &str, first: usize) -> Self {
        Self::with_length(sql, first, KEYS_AT_ONCE)
    }

    /// As [`Self::new`], for lists of up to `length` keys.
    pub(super) fn with_length(sql: &str, first: usize, length: usize) -> Self {
        let list = |count: usize| {
            let keys: Vec<_> = (first..first + count).map(|number| format!("${number}")).collect();
            sql.replace("{keys}", &keys.join(", ")).replace("{rows}", &format!("({})", keys.join("), (")))
        };
        Self { one: list(1), many: list(length), length }
    }

    /// The statement and how many keys it takes for a list of `keys`.
    pub(super) fn for_length(query: &'static LazyLock<Self>, keys: usize) -> (&'static str, usize) {
        if keys == 1 { (query.one.as_str(), 1) } else { (query.many.as_str(), query.length) }
    }
}

/// `keys` repeated at the end up to `length`.
pub(super) fn filled_up<T: Copy>(keys: &[T], length: usize) -> impl Iterator<Item = T> {
    let last = keys.last().copied();
    keys.iter().copied().chain(std::iter::repeat_n(last, length - keys.len()).flatten())
}
