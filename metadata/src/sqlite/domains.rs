//! Dedupe domains.

use super::columns::{Columns, int};
use super::{Result, SqliteCatalog, failed, is_duplicate, keys};
use crate::{CatalogError, DomainName, DomainRow, KeyRow};
use cairn_model::crypto::Encryption;
use cairn_model::{DomainId, WallTime};
use sqlx::SqliteConnection;
use sqlx::sqlite::SqliteRow;

pub(super) async fn create(catalog: &SqliteCatalog, domain: &DomainRow, key: &KeyRow) -> Result<()> {
    let doing = "creating a domain";
    domain.check_key(key)?;
    let mut change = catalog.begin().await?;
    let namesake = sqlx::query("SELECT 1 FROM domains WHERE name = $1")
        .bind(domain.name.as_str())
        .fetch_optional(&mut *change)
        .await
        .map_err(failed(doing))?;
    if namesake.is_some() {
        return Err(CatalogError::NameTaken { what: "domain", name: domain.name.to_string() });
    }
    let created =
        sqlx::query("INSERT INTO domains (id, name, encryption, created_at) VALUES ($1, $2, $3, $4)")
            .bind(&domain.id.as_bytes()[..])
            .bind(domain.name.as_str())
            .bind(domain.encryption.name())
            .bind(int(domain.created_at.unix_millis())?)
            .execute(&mut *change)
            .await;
    match created {
        Err(error) if is_duplicate(&error) => {
            return Err(CatalogError::AlreadyExists { what: "domain", id: domain.id.to_string() });
        }
        created => created.map_err(failed(doing))?,
    };
    keys::insert(&mut *change, key).await?;
    change.commit().await.map_err(failed(doing))
}

pub(super) async fn all(catalog: &SqliteCatalog) -> Result<Vec<DomainRow>> {
    let rows = sqlx::query("SELECT * FROM domains ORDER BY name")
        .fetch_all(&catalog.readers)
        .await
        .map_err(failed("reading the domains"))?;
    rows.iter().map(domain_of).collect()
}

pub(super) async fn by_name(catalog: &SqliteCatalog, name: &DomainName) -> Result<DomainRow> {
    let row = sqlx::query("SELECT * FROM domains WHERE name = $1")
        .bind(name.as_str())
        .fetch_optional(&catalog.readers)
        .await
        .map_err(failed("reading a domain"))?;
    domain_of(&row.ok_or_else(|| CatalogError::not_found("domain", name))?)
}

fn domain_of(row: &SqliteRow) -> Result<DomainRow> {
    let columns = Columns::new(row, "domain");
    let (name, encryption): (&str, &str) = (columns.get("name")?, columns.get("encryption")?);
    Ok(DomainRow {
        id: columns.identity("id", DomainId::from_bytes)?,
        name: DomainName::new(name).map_err(|error| CatalogError::corrupt("domain", &error))?,
        encryption: Encryption::parse(encryption).ok_or_else(|| columns.bad("encryption", encryption))?,
        created_at: WallTime::from_unix_millis(columns.number("created_at")?),
    })
}

pub(super) async fn exists(change: &mut SqliteConnection, id: DomainId) -> Result<bool> {
    sqlx::query_scalar("SELECT EXISTS (SELECT 1 FROM domains WHERE id = $1)")
        .bind(&id.as_bytes()[..])
        .fetch_one(change)
        .await
        .map_err(failed("looking for a domain"))
}

pub(super) async fn check_unused(catalog: &SqliteCatalog, id: DomainId) -> Result<()> {
    let mut change = catalog.begin().await?;
    unused(&mut change, id, "looking whether a domain is used").await
}

async fn unused(change: &mut SqliteConnection, id: DomainId, doing: &'static str) -> Result<()> {
    if id == DomainId::DEFAULT {
        return Err(CatalogError::DefaultDomain);
    }
    let sql = "SELECT d.*, EXISTS (SELECT 1 FROM volumes WHERE domain = d.id AND deleted = 0) \
               OR EXISTS (SELECT 1 FROM containers WHERE domain = d.id) AS used FROM domains d WHERE id = $1";
    let row = sqlx::query(sql)
        .bind(&id.as_bytes()[..])
        .fetch_optional(change)
        .await
        .map_err(failed(doing))?
        .ok_or_else(|| CatalogError::not_found("domain", &id))?;
    if Columns::new(&row, "domain").get("used")? {
        return Err(CatalogError::DomainInUse { name: domain_of(&row)?.name });
    }
    Ok(())
}

pub(super) async fn delete(catalog: &SqliteCatalog, id: DomainId) -> Result<()> {
    let doing = "deleting a domain";
    let mut change = catalog.begin().await?;
    unused(&mut change, id, doing).await?;
    // Volumes that only wait to be purged let go of it.
    sqlx::query("UPDATE volumes SET domain = $1 WHERE domain = $2")
        .bind(&DomainId::DEFAULT.as_bytes()[..])
        .bind(&id.as_bytes()[..])
        .execute(&mut *change)
        .await
        .map_err(failed(doing))?;
    sqlx::query("DELETE FROM keys WHERE purpose = $1")
        .bind(DomainRow::key_purpose(id))
        .execute(&mut *change)
        .await
        .map_err(failed(doing))?;
    sqlx::query("DELETE FROM domains WHERE id = $1")
        .bind(&id.as_bytes()[..])
        .execute(&mut *change)
        .await
        .map_err(failed(doing))?;
    change.commit().await.map_err(failed(doing))
}
