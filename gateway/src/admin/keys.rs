//! Keys and domains, as the admin API has them.

use super::service::{Service, to_its_end};
use super::types::{CreateDomain, Domain, Key, KeyCopy, PublishKeys, ReplaceKey};
use crate::error::GatewayError;
use crate::key::{KeyError, KeyFile, Origin, Protection, file, source};
use crate::site::{self, Site};
use cairn_metadata::{DomainName, DomainRow, KeyRow};
use cairn_model::crypto::{Encryption, SecretKey};
use cairn_model::{DomainId, ErrorKind};
use cairn_segment_writer::{Domain as SealingDomain, Pool};
use std::sync::Arc;

type Result<T> = std::result::Result<T, GatewayError>;

impl Service {
    /// Runs a change of the keys: those in memory, in the catalog, in the key file and in the engine cannot come apart.
    async fn change<T, F>(&self, change: impl FnOnce(Arc<Site>, Option<Arc<Pool>>) -> F) -> Result<T>
    where
        T: Send + 'static,
        F: Future<Output = Result<T>> + Send + 'static,
    {
        let pool = self.engine.as_ref().map(|(_, pool)| Arc::clone(pool));
        to_its_end("the change of the keys", change(Arc::clone(&self.site), pool)).await
    }

    /// Where the master key is, which it is, and what it opens.
    pub async fn key(&self) -> Result<Key> {
        let config = &self.site.config.key;
        let (revision, id) = self.site.key_revision().await?;
        let (location, given) = match source::origin(config) {
            Origin::File(path) => (path.display().to_string(), Some(file::load(&path))),
            Origin::Command(program) => (program, None),
        };
        let source = match &given {
            None => Protection::Command.name(),
            Some(Ok(KeyFile::Sealed(_))) => "passphrase",
            Some(_) => Protection::Plain.name(),
        };
        let problem = match &given {
            Some(Err(error)) => Some(error.to_string()),
            Some(Ok(key)) if key.id() != id => {
                let wrong = KeyError::WrongKey {
                    origin: source::origin(config),
                    given: key.id(),
                    expected: vec![id],
                };
                Some(wrong.to_string())
            }
            _ => None,
        };
        let copy = |copy: site::KeyCopy| KeyCopy { node: copy.node, problem: copy.problem };
        Ok(Key {
            source: source.to_owned(),
            location,
            id: id.to_string(),
            given_id: given.and_then(std::result::Result::ok).map(|key| key.id().to_string()),
            problem,
            revision,
            domains: self.domains().await?,
            copies: self.site.key_copies().into_iter().map(copy).collect(),
        })
    }

    /// Makes another master key, or the same one in another wrapping, the site's.
    pub async fn replace_key(&self, asked: &ReplaceKey) -> Result<Key> {
        let unusable = |what: &str| GatewayError::Refused {
            kind: ErrorKind::Unsupported,
            what: what.to_owned(),
            next: None,
        };
        let sealed = hex::decode(&asked.sealed).map_err(|_| unusable("`sealed` is not hexadecimal"))?;
        let protection = match &asked.key_file {
            None => Protection::Plain,
            Some(text) => match file::parse(text.as_bytes(), &Origin::File("key_file".into()))? {
                KeyFile::Sealed(sealed) => Protection::Passphrase(sealed),
                KeyFile::Plain(_) => return Err(unusable("`key_file` is not one that needs a passphrase")),
            },
        };
        self.change(|site, pool| async move {
            let id = site.replace_master_sealed(&sealed, protection, pool.as_deref()).await?;
            tracing::info!(key = %id, "the master key was replaced, or wrapped anew");
            Ok(())
        })
        .await?;
        self.key().await
    }

    /// Writes the keys' copies on the data nodes.
    pub async fn publish_keys(&self, asked: &PublishKeys) -> Result<Key> {
        let force = asked.force;
        self.change(|site, pool| async move { site.publish_keys(pool.as_deref(), force).await }).await?;
        self.key().await
    }

    pub async fn domains(&self) -> Result<Vec<Domain>> {
        let rows = self.site.catalog.domains().await?;
        let keys = self.site.catalog.keys().await?;
        let volumes = self.site.catalog.volumes().await?;
        let unavailable = self.site.unavailable_domains();
        let describe = |row: &DomainRow| {
            let purpose = DomainRow::key_purpose(row.id);
            let key = keys.iter().find(|key: &&KeyRow| key.purpose == purpose);
            Domain {
                name: row.name.to_string(),
                id: row.id.to_string(),
                encryption: row.encryption.name().to_owned(),
                key_id: key.map(|key| key.key_id.to_string()).unwrap_or_default(),
                created_at_ms: row.created_at.unix_millis(),
                volumes: volumes.iter().filter(|volume| volume.domain == row.id).count() as u64,
                problem: unavailable
                    .iter()
                    .find(|(bad, _)| bad.id == row.id)
                    .map(|(_, reason)| reason.clone()),
            }
        };
        Ok(rows.iter().map(describe).collect())
    }

    pub async fn domain(&self, name: &str) -> Result<Domain> {
        self.domains()
            .await?
            .into_iter()
            .find(|domain| domain.name == name)
            .ok_or_else(|| no_such_domain(name))
    }

    pub async fn create_domain(&self, asked: &CreateDomain) -> Result<Domain> {
        let name = DomainName::new(asked.name.as_str())?;
        let encryption = match asked.encryption.as_deref() {
            None => Encryption::default(),
            Some(text) => Encryption::parse(text).ok_or_else(|| {
                GatewayError::refused(
                    ErrorKind::Unsupported,
                    format!("there is no encryption `{text}`"),
                    "choose aes-256-gcm or off",
                )
            })?,
        };
        let engine = self.engine.as_ref().map(|(engine, _)| Arc::clone(engine));
        let made = move |row: &DomainRow, key: &SecretKey| {
            if let Some(engine) = engine {
                engine.add_domain(SealingDomain::new(row.id, key.clone(), row.encryption));
            }
            tracing::info!(domain = %row.name, encryption = row.encryption.name(), "domain created");
        };
        self.change(|site, pool| async move {
            site.create_domain_telling(name, encryption, pool.as_deref(), made).await
        })
        .await?;
        self.domain(&asked.name).await
    }

    pub async fn delete_domain(&self, name: &str) -> Result<()> {
        let valid = DomainName::new(name)?;
        let domain = self.domain(name).await?;
        if domain.id == DomainId::DEFAULT.to_string() {
            return Err(GatewayError::refused(
                ErrorKind::Conflict,
                format!("domain {name} is the one that every site has"),
                "leave it: volumes that name no other domain are in it",
            ));
        }
        self.change(|site, pool| async move {
            site.delete_domain(&valid, pool.as_deref()).await?;
            tracing::info!(domain = %valid, "domain deleted");
            Ok(())
        })
        .await
    }
}

fn no_such_domain(name: &str) -> GatewayError {
    GatewayError::refused(
        ErrorKind::NotFound,
        format!("there is no domain named {name}"),
        "`cairn domain list` shows those there are",
    )
}
