//! All rows of a file, out and in.
//!
//! Which tables and columns there are is asked of the file: what a migration adds is recorded without being named here.
//!
//! Invariants:
//! - what a reader tells is of one moment: one transaction, held until the reader is dropped. It does not hold up the writer; the file's own
//!   log cannot be shortened meanwhile;
//! - a file that is being written from a record is of no use before [`RecordWriter::finish`] has returned: it is written without a log and
//!   synced once, at the end.

use super::open::{MIGRATIONS, sync_directory_of};
use super::{Result, SqliteCatalog, failed, leases};
use crate::CatalogError;
use crate::record::{
    Cell, RecordChanges, RecordReader, RecordRows, RecordSource, RecordTable, decode_row, encode_row,
};
use async_trait::async_trait;
use cairn_model::{GatewayId, Generation, NodeId, VolumeId, boxed};
use sqlx::sqlite::{
    SqliteArguments, SqliteConnectOptions, SqliteJournalMode, SqliteRow, SqliteSynchronous, SqliteValueRef,
};
use sqlx::{
    AssertSqlSafe, Connection, Decode, Row, Sqlite, SqliteConnection, Transaction, TypeInfo, ValueRef,
};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

const READING: &str = "reading all rows";
const WRITING: &str = "writing recorded rows";

/// Tables that mean something to running gateways only: receipts of batches whose replies may be lost, and what reclaim has closed.
const LEFT_OUT: [&str; 2] = ["batches", "closed"];
/// Rows read at once; the longest, leaves, have some hundred KiB.
const ROWS_AT_ONCE: i64 = 64;

#[async_trait]
impl RecordSource for SqliteCatalog {
    fn changes(&self) -> RecordChanges {
        self.changes.now()
    }

    async fn incarnation(&self) -> Result<u64> {
        let number: i64 = sqlx::query_scalar("SELECT number FROM incarnation")
            .fetch_one(&self.readers)
            .await
            .map_err(failed(READING))?;
        u64::try_from(number).map_err(|error| CatalogError::corrupt("incarnation", &error))
    }

    async fn last_checkpoint(&self) -> Result<u64> {
        let number: i64 = sqlx::query_scalar("SELECT checkpoints FROM incarnation")
            .fetch_one(&self.readers)
            .await
            .map_err(failed(READING))?;
        u64::try_from(number).map_err(|error| CatalogError::corrupt("number of checkpoints", &error))
    }

    async fn next_checkpoint(&self) -> Result<u64> {
        const COUNTING: &str = "counting checkpoints";
        let mut change = self.begin().await?;
        let number: i64 =
            sqlx::query_scalar("UPDATE incarnation SET checkpoints = checkpoints + 1 RETURNING checkpoints")
                .fetch_one(&mut *change)
                .await
                .map_err(failed(COUNTING))?;
        change.commit().await.map_err(failed(COUNTING))?;
        u64::try_from(number).map_err(|error| CatalogError::corrupt("number of checkpoints", &error))
    }

    async fn doomed_through(&self) -> Result<u64> {
        // Numbers grow in the order of commits: there is one writer.
        let number: i64 = sqlx::query_scalar("SELECT coalesce(max(id), 0) FROM doomed")
            .fetch_one(&self.readers)
            .await
            .map_err(failed(READING))?;
        u64::try_from(number).map_err(|error| CatalogError::corrupt("number of an object", &error))
    }

    async fn recorded(&self, doomed_through: u64) -> Result<()> {
        const REMEMBERING: &str = "remembering a checkpoint";
        let through = i64::try_from(doomed_through)
            .map_err(|error| CatalogError::corrupt("number of an object", &error))?;
        let mut change = self.begin().await?;
        sqlx::query("UPDATE incarnation SET recorded_through = max(recorded_through, $1)")
            .bind(through)
            .execute(&mut *change)
            .await
            .map_err(failed(REMEMBERING))?;
        change.commit().await.map_err(failed(REMEMBERING))
    }

    async fn recorded_through(&self) -> Result<u64> {
        let number: i64 = sqlx::query_scalar("SELECT recorded_through FROM incarnation")
            .fetch_one(&self.readers)
            .await
            .map_err(failed(READING))?;
        u64::try_from(number).map_err(|error| CatalogError::corrupt("number of an object", &error))
    }

    async fn read_record(&self) -> Result<Box<dyn RecordReader>> {
        let mut moment = self.readers.begin().await.map_err(failed(READING))?;
        // The first look is the moment.
        let schema: i64 = sqlx::query_scalar("SELECT max(version) FROM _sqlx_migrations")
            .fetch_one(&mut *moment)
            .await
            .map_err(failed(READING))?;
        let schema = u64::try_from(schema).map_err(|error| CatalogError::corrupt("schema", &error))?;
        let tables = tables(&mut moment).await?;
        Ok(Box::new(Reader { moment, schema, tables, at: 0, after: None }))
    }
}

/// A table as it is read.
struct Table {
    shape: RecordTable,
    head: Vec<u8>,
    /// Columns of the primary key, by their places.
    key: Vec<usize>,
    /// The first rows, and those behind a key.
    first: Arc<str>,
    behind: Arc<str>,
}

struct Reader {
    moment: Transaction<'static, Sqlite>,
    schema: u64,
    tables: Vec<Table>,
    /// The table at hand.
    at: usize,
    /// The key of the last row that was read of it.
    after: Option<Vec<Cell>>,
}

#[async_trait]
impl RecordReader for Reader {
    fn schema(&self) -> u64 {
        self.schema
    }

    async fn next(&mut self) -> Result<Option<RecordRows>> {
        while let Some(table) = self.tables.get(self.at) {
            let rows = match &self.after {
                None => query(&table.first),
                Some(key) => key.iter().fold(query(&table.behind), bind),
            };
            let rows = rows.fetch_all(&mut *self.moment).await.map_err(failed(READING))?;
            let mut encoded = Vec::with_capacity(rows.len());
            let mut last = None;
            for row in &rows {
                let cells = cells_of(row, table.shape.columns.len())?;
                encoded.push(encode_row(&cells));
                last = Some(cells);
            }
            let Some(last) = last else {
                self.after = None;
                self.at += 1;
                continue;
            };
            self.after = Some(table.key.iter().map(|column| last[*column].clone()).collect());
            return Ok(Some(RecordRows { head: table.head.clone(), rows: encoded }));
        }
        Ok(None)
    }
}

type Query = sqlx::query::Query<'static, Sqlite, SqliteArguments>;

/// A statement made of names of this program's own schema, quoted.
fn query(sql: &Arc<str>) -> Query {
    sqlx::query(AssertSqlSafe(Arc::clone(sql)))
}

fn bind(query: Query, cell: &Cell) -> Query {
    match cell {
        Cell::Null => query.bind(None::<i64>),
        Cell::Integer(value) => query.bind(*value),
        Cell::Text(text) => query.bind(text.clone()),
        Cell::Bytes(bytes) => query.bind(bytes.clone()),
    }
}

fn cells_of(row: &SqliteRow, columns: usize) -> Result<Vec<Cell>> {
    fn cell(value: SqliteValueRef<'_>) -> std::result::Result<Cell, sqlx::error::BoxDynError> {
        if value.is_null() {
            return Ok(Cell::Null);
        }
        let kind = value.type_info().name().to_owned();
        match kind.as_str() {
            "INTEGER" => Ok(Cell::Integer(<i64 as Decode<Sqlite>>::decode(value)?)),
            "TEXT" => Ok(Cell::Text(<String as Decode<Sqlite>>::decode(value)?)),
            "BLOB" => Ok(Cell::Bytes(<Vec<u8> as Decode<Sqlite>>::decode(value)?)),
            other => Err(format!("a value of type {other}").into()),
        }
    }
    let cell = |column| {
        let value = row.try_get_raw(column).map_err(failed(READING))?;
        cell(value).map_err(|error| CatalogError::corrupt("row", &error))
    };
    (0..columns).map(cell).collect()
}

/// The tables of a file in an order in which none refers to a later one, as far as that goes.
async fn tables(moment: &mut SqliteConnection) -> Result<Vec<Table>> {
    let sql = "SELECT m.name AS table_name, c.name AS column_name, c.pk FROM sqlite_master m, pragma_table_info(m.name) c \
               WHERE m.type = 'table' AND m.name NOT LIKE '\\_%' ESCAPE '\\' AND m.name NOT LIKE 'sqlite\\_%' ESCAPE '\\' \
               ORDER BY m.name, c.cid";
    let rows: Vec<(String, String, i64)> =
        sqlx::query_as(sql).fetch_all(moment).await.map_err(failed(READING))?;
    let mut tables = Vec::new();
    for columns in rows.chunk_by(|one, next| one.0 == next.0) {
        let name = columns[0].0.clone();
        if LEFT_OUT.contains(&name.as_str()) {
            continue;
        }
        let mut key: Vec<usize> = (0..columns.len()).filter(|at| columns[*at].2 > 0).collect();
        key.sort_by_key(|at| columns[*at].2);
        if key.is_empty() {
            return Err(CatalogError::Invalid(format!("table {name} has no primary key")));
        }
        let shape =
            RecordTable { name, columns: columns.iter().map(|(_, column, _)| column.clone()).collect() };
        tables.push(Table::new(shape, key));
    }
    Ok(tables)
}

impl Table {
    fn new(shape: RecordTable, key: Vec<usize>) -> Self {
        let all = quoted(&shape.columns);
        let names: Vec<String> = key.iter().map(|at| shape.columns[*at].clone()).collect();
        let places: Vec<String> = (1..=key.len()).map(|number| format!("${number}")).collect();
        let (from, order) = (quoted(std::slice::from_ref(&shape.name)), quoted(&names));
        let rest = format!("ORDER BY {order} LIMIT {ROWS_AT_ONCE}");
        Self {
            first: format!("SELECT {all} FROM {from} {rest}").into(),
            behind: format!("SELECT {all} FROM {from} WHERE ({order}) > ({}) {rest}", places.join(", "))
                .into(),
            head: shape.encode(),
            shape,
            key,
        }
    }
}

fn quoted(names: &[String]) -> String {
    let names: Vec<String> = names.iter().map(|name| format!("\"{}\"", name.replace('"', "\"\""))).collect();
    names.join(", ")
}

/// Makes a catalog of recorded rows.
#[derive(Debug)]
pub struct RecordWriter {
    path: PathBuf,
    file: SqliteConnection,
    /// Columns of the tables that there are.
    shapes: HashMap<String, Vec<String>>,
    rows: u64,
}

impl RecordWriter {
    /// Makes an empty catalog of `schema` at `path`, where no file may be.
    pub async fn create(path: &Path, schema: u64) -> Result<Self> {
        let file_error = |source| CatalogError::File { path: path.display().to_string(), source };
        let known = MIGRATIONS.iter().map(|migration| migration.version).max().unwrap_or(0);
        let version = i64::try_from(schema).unwrap_or(i64::MAX);
        if version > known {
            let catalog = "of the record".to_owned();
            return Err(CatalogError::NewerSchema { catalog, found: version, known });
        }
        // Fails where a file is: a record never takes the place of a catalog.
        tokio::fs::OpenOptions::new().write(true).create_new(true).open(path).await.map_err(file_error)?;
        let options = SqliteConnectOptions::new()
            .filename(path)
            .journal_mode(SqliteJournalMode::Off)
            .synchronous(SqliteSynchronous::Off)
            .foreign_keys(false)
            .pragma("cache_size", "-65536");
        let mut file = SqliteConnection::connect_with(&options).await.map_err(failed(WRITING))?;
        MIGRATIONS.run_to(version, &mut file).await.map_err(CatalogError::Migration)?;
        let shapes: HashMap<String, Vec<String>> = tables(&mut file)
            .await?
            .into_iter()
            .map(|table| (table.shape.name, table.shape.columns))
            .collect();
        sqlx::query("BEGIN").execute(&mut file).await.map_err(failed(WRITING))?;
        for table in shapes.keys() {
            // What migrations put there is recorded as well.
            let sql = format!("DELETE FROM {}", quoted(std::slice::from_ref(table))).into();
            query(&sql).execute(&mut file).await.map_err(failed(WRITING))?;
        }
        Ok(Self { path: path.to_owned(), file, shapes, rows: 0 })
    }

    /// Adds rows of one table.
    pub async fn write(&mut self, head: &[u8], rows: &[impl AsRef<[u8]>]) -> Result<()> {
        let table = RecordTable::decode(head)?;
        if self.shapes.get(&table.name) != Some(&table.columns) {
            let detail = format!("its schema has no such table {}", table.name);
            return Err(CatalogError::corrupt("record", &detail));
        }
        let places: Vec<String> = (1..=table.columns.len()).map(|number| format!("${number}")).collect();
        let (into, columns) = (quoted(std::slice::from_ref(&table.name)), quoted(&table.columns));
        let sql = format!("INSERT INTO {into} ({columns}) VALUES ({})", places.join(", ")).into();
        for row in rows {
            let cells = decode_row(row.as_ref(), table.columns.len())?;
            cells.iter().fold(query(&sql), bind).execute(&mut self.file).await.map_err(refused)?;
        }
        self.rows += rows.len() as u64;
        Ok(())
    }

    /// Says where a data node is now. `false`: it is none that was recorded.
    #[boxed]
    pub async fn place_node(&mut self, id: NodeId, url: &str) -> Result<bool> {
        let placed = sqlx::query("UPDATE nodes SET url = $1 WHERE id = $2")
            .bind(url.to_owned())
            .bind(id.as_bytes().to_vec())
            .execute(&mut self.file)
            .await
            .map_err(failed(WRITING))?;
        Ok(placed.rows_affected() > 0)
    }

    /// Checks that everything that is referred to is there, and makes the file durable: the catalog of the next incarnation. Returns how many
    /// rows it has.
    #[boxed]
    pub async fn finish(mut self, incarnation: u64) -> Result<u64> {
        if self.shapes.contains_key("incarnation") {
            let number =
                i64::try_from(incarnation).map_err(|error| CatalogError::corrupt("record", &error))?;
            sqlx::query("INSERT OR REPLACE INTO incarnation (singleton, number) VALUES (1, $1)")
                .bind(number)
                .execute(&mut self.file)
                .await
                .map_err(refused)?;
        }
        let broken = sqlx::query("PRAGMA foreign_key_check")
            .fetch_optional(&mut self.file)
            .await
            .map_err(failed(WRITING))?;
        if let Some(row) = broken {
            let table: String = row.try_get(0).map_err(failed(WRITING))?;
            let detail = format!("a row of {table} refers to one that is not there");
            return Err(CatalogError::corrupt("record", &detail));
        }
        sqlx::query("COMMIT").execute(&mut self.file).await.map_err(failed(WRITING))?;
        self.file.close().await.map_err(failed(WRITING))?;
        let file_error = |source| CatalogError::File { path: self.path.display().to_string(), source };
        tokio::fs::File::open(&self.path).await.map_err(file_error)?.sync_all().await.map_err(file_error)?;
        sync_directory_of(&self.path).await.map_err(file_error)?;
        Ok(self.rows)
    }
}

impl SqliteCatalog {
    /// Raises the term of a lease that `gateway` has in `generation` to `term`. Only for a catalog that was made from a record, which nobody else has: elsewhere terms grow by one.
    #[boxed]
    pub async fn raise_term(
        &self,
        volume: VolumeId,
        gateway: GatewayId,
        generation: Generation,
        term: Generation,
    ) -> Result<()> {
        self.changes.rare(leases::raise(self, volume, gateway, generation, term)).await
    }

    /// How many volumes began as a snapshot of another one.
    #[boxed]
    pub async fn clones(&self) -> Result<u64> {
        let sql = "SELECT count(*) FROM volumes v JOIN lineages n ON n.id = v.lineage WHERE v.deleted = 0 AND n.parent IS NOT NULL \
                   AND NOT EXISTS (SELECT 1 FROM snapshots s WHERE s.lineage = n.parent AND s.commit_seq = n.parent_commit \
                   AND s.volume = v.id)";
        let count: i64 =
            sqlx::query_scalar(sql).fetch_one(&self.readers).await.map_err(failed("counting clones"))?;
        u64::try_from(count).map_err(|error| CatalogError::corrupt("number of clones", &error))
    }
}

/// A row that the table does not take is not one that was recorded from it.
fn refused(error: sqlx::Error) -> CatalogError {
    match error.as_database_error().map(sqlx::error::DatabaseError::kind) {
        Some(sqlx::error::ErrorKind::Other) | None => failed(WRITING)(error),
        Some(_) => CatalogError::corrupt("record", &error),
    }
}
