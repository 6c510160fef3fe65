//! The first run: a directory, a key, a catalog and a data node out of nothing.
//!
//! Invariants:
//! 1. The mark `initialising` is durable before anything else is made, and `format` is written after everything else:
//!    a directory with `format` is complete, one with only the mark is resumed, any other that is not empty is refused.
//! 2. Every step looks for what an earlier run left and goes on from it. No step replaces a key, an id or a file.
//!
//! | crash after | the next run finds | and |
//! |---|---|---|
//! | nothing | an empty directory | begins |
//! | `Marked` | the mark | begins |
//! | `Configured`, `Identified`, `Keyed` | the mark and some files | keeps them |
//! | `CatalogMade` | a catalog with or without a site, with or without a wrapped key | adds what is missing; the key must fit |
//! | `PoolAttached` | perhaps a marker of this site in the pool without a row in the catalog | adopts it |
//! | `VolumeMade` | the first volume | keeps it |
//! | `Completed` | `format`, perhaps the mark | serves |

use super::keys::{self, Keyring};
use super::publish::publish;
use super::{node, open_catalog};
use crate::config::{Config, KeyConfig, template};
use crate::directory::{Directory, DirectoryError, State};
use crate::durable;
use crate::error::GatewayError;
use crate::key::{KeyError, KeyFile, Master, Passphrase, Protection, file, source};
use cairn_metadata::{Catalog, CatalogError, FORMAT_VERSION, NewVolume, SiteRow, VolumeName};
use cairn_model::crypto::SecretKey;
use cairn_model::{DomainId, Durability, ErrorKind, GatewayId, LineageId, Ports, SiteId, VolumeId};
use std::path::Path;
use std::sync::Arc;

/// What a first run is told.
#[derive(Debug, Clone, Default)]
pub struct InitOptions {
    /// The catalog, as it will stand in `cairn.toml`; `None` is the embedded one.
    pub catalog_url: Option<String>,
    /// The first data node; `None` is what `cairn.toml` says, or the embedded one.
    pub pool_url: Option<String>,
    /// Make the bucket of the data node if it does not exist.
    pub create_bucket: bool,
    /// Seal the key that is made under this; `None` does so when the configuration or the environment names a passphrase.
    pub passphrase: Option<Arc<Passphrase>>,
    /// A volume to begin with, and its size.
    pub first_volume: Option<(VolumeName, u64)>,
}

/// The durable steps of a first run, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    Marked,
    Configured,
    Identified,
    Keyed,
    CatalogMade,
    PoolAttached,
    VolumeMade,
    Completed,
}

impl Step {
    pub const ALL: [Self; 8] = [
        Self::Marked,
        Self::Configured,
        Self::Identified,
        Self::Keyed,
        Self::CatalogMade,
        Self::PoolAttached,
        Self::VolumeMade,
        Self::Completed,
    ];
}

/// Makes `directory`, which the caller has locked and which is not complete, a gateway's. Safe to run again after it was
/// interrupted anywhere.
pub async fn initialise(
    directory: &Directory,
    options: &InitOptions,
    ports: &Ports,
) -> Result<Config, GatewayError> {
    initialise_observed(directory, options, ports, &mut |_| Ok(())).await
}

/// [`initialise`], telling `observe` after each step is durable; an error from it ends the run there.
pub async fn initialise_observed(
    directory: &Directory,
    options: &InitOptions,
    ports: &Ports,
    observe: &mut (dyn FnMut(Step) -> Result<(), GatewayError> + Send),
) -> Result<Config, GatewayError> {
    if directory.state()? == State::Ready {
        return Err(DirectoryError::AlreadyInitialised { path: directory.path().to_owned() }.into());
    }
    directory.begin_initialisation()?;
    observe(Step::Marked)?;
    let config = configure(directory, options)?;
    observe(Step::Configured)?;
    let gateway = identify(directory, ports)?;
    observe(Step::Identified)?;
    let master = obtain_key(&config, options, ports).await?;
    observe(Step::Keyed)?;
    let catalog = open_catalog(&config, true).await?;
    let site = make_site(&*catalog, ports).await?;
    if catalog.keys().await?.is_empty() {
        keys::make_data_key(&*catalog, &master, ports).await?;
    } else {
        // What an earlier run made must open with the key.
        Keyring::open(&*catalog, master.clone()).await?;
    }
    catalog.register_gateway(gateway, &host_name(), ports.clock.wall()).await?;
    observe(Step::CatalogMade)?;
    let url = pool_url(&config, options, directory)?;
    let place = node::Place { directory, config: &config, catalog: &*catalog, site, ports };
    let attached = node::make_only(&place, &node::WantedNode::unnamed(url, options.create_bucket)).await?;
    let opened = node::open_at(&place, &attached.node).await?;
    if let Err(error) = publish(&*catalog, site, &master, &opened, false).await {
        tracing::warn!(
            error = error.full_message(),
            "the data node has no copy of the keys yet; the next start tries again"
        );
    }
    observe(Step::PoolAttached)?;
    if let Some((name, size_bytes)) = &options.first_volume
        && catalog.volumes().await?.is_empty()
    {
        catalog.create_volume(&new_volume(name.clone(), *size_bytes, ports)).await?;
    }
    observe(Step::VolumeMade)?;
    catalog.close().await;
    directory.end_initialisation()?;
    observe(Step::Completed)?;
    Ok(config)
}

/// Reads `cairn.toml`, or writes one with the defaults.
pub(super) fn configure(directory: &Directory, options: &InitOptions) -> Result<Config, GatewayError> {
    let path = directory.config();
    if !path.exists() {
        // Checked before it is written: a file that this program wrote must be one that it reads.
        let text = template(options.catalog_url.as_deref());
        Config::parse(&text, &path, directory.path())?;
        durable::create_file(directory.path(), "cairn.toml", text.as_bytes())
            .map_err(|source| GatewayError::File { action: "write", path: path.clone(), source })?;
    }
    let config = Config::load(&path, directory.path())?;
    if let Some(url) = &options.catalog_url {
        let asked = Config::parse(&template(Some(url)), &path, directory.path())?.catalog;
        if asked != config.catalog {
            return Err(GatewayError::refused(
                ErrorKind::Conflict,
                format!("--catalog {url} is not the catalog that {} names", path.display()),
                "leave --catalog out, or change [catalog] url in that file",
            ));
        }
    }
    Ok(config)
}

fn identify(directory: &Directory, ports: &Ports) -> Result<GatewayId, GatewayError> {
    if let Some(id) = directory.gateway_id()? {
        return Ok(id);
    }
    let id = GatewayId::fresh(&*ports.clock, &*ports.entropy);
    directory.set_gateway_id(id)?;
    Ok(id)
}

/// The key that is there, or a fresh one where a file shall hold it. A passphrase that was asked for is needed then, or this fails.
async fn obtain_key(config: &Config, options: &InitOptions, ports: &Ports) -> Result<Master, GatewayError> {
    let given = options.passphrase.as_ref().map(|passphrase| Passphrase::clone(passphrase));
    let path = match (&config.key, source::obtain_with(&config.key, given.clone(), ports).await) {
        (_, Ok(unlocked)) => {
            refuse_unused_passphrase(config, options, &unlocked.master)?;
            return Ok(unlocked.master);
        }
        (KeyConfig::File { path, .. }, Err(KeyError::Missing { .. })) => path,
        (_, Err(error)) => return Err(error.into()),
    };
    let key = SecretKey::random(&*ports.entropy);
    let passphrase = match given {
        Some(passphrase) => Some(passphrase),
        None => source::configured_passphrase(&config.key)?.map(|(passphrase, _)| passphrase),
    };
    let protection = match passphrase {
        Some(passphrase) => {
            passphrase.check_new()?;
            Protection::Passphrase(source::seal(&key, passphrase, &ports.entropy).await?)
        }
        None => Protection::Plain,
    };
    write_key(path, &key, &protection)?;
    Ok(Master { key, protection, origin: source::origin(&config.key) })
}

/// Fails when a passphrase was asked for and the key that is there needs none: who asked would take it for protected.
fn refuse_unused_passphrase(
    config: &Config,
    options: &InitOptions,
    master: &Master,
) -> Result<(), GatewayError> {
    let asked = match source::passphrase_origin(&config.key) {
        _ if options.passphrase.is_some() => "a passphrase was given".to_owned(),
        Some(origin) => format!("a passphrase is in {origin}"),
        None => return Ok(()),
    };
    let next = match master.protection {
        Protection::Passphrase(_) => return Ok(()),
        Protection::Plain => {
            "do this without a passphrase, then set one with `cairn key passphrase`; or remove the key if nothing needs it"
        }
        Protection::Command => {
            "do this without a passphrase: a command's key is protected where the command gets it, and `cairn key passphrase` is \
             for key files"
        }
    };
    let what = format!("{asked}, and {}, which is there already, needs none", master.origin);
    Err(GatewayError::refused(ErrorKind::Conflict, what, next))
}

pub(super) fn write_key(path: &Path, key: &SecretKey, protection: &Protection) -> Result<(), KeyError> {
    let contents = match protection {
        Protection::Passphrase(sealed) => KeyFile::Sealed(sealed.clone()),
        Protection::Plain | Protection::Command => KeyFile::Plain(key.clone()),
    };
    file::create(path, &contents)
}

async fn make_site(catalog: &dyn Catalog, ports: &Ports) -> Result<SiteId, GatewayError> {
    match catalog.site().await {
        Ok(row) => return Ok(row.id),
        Err(CatalogError::NotFound { .. }) => {}
        Err(error) => return Err(error.into()),
    }
    let id = SiteId::fresh(&*ports.clock, &*ports.entropy);
    let row =
        SiteRow { id, name: host_name(), created_at: ports.clock.wall(), format_version: FORMAT_VERSION };
    catalog.create_site(&row).await?;
    Ok(id)
}

fn pool_url(config: &Config, options: &InitOptions, directory: &Directory) -> Result<String, GatewayError> {
    match (&options.pool_url, &config.pool.url) {
        (Some(asked), Some(configured)) if asked != configured => Err(GatewayError::refused(
            ErrorKind::Conflict,
            format!("--pool {asked} is not the data node that {} names", directory.config().display()),
            "leave --pool out, or change [pool] url in that file",
        )),
        (Some(url), _) | (None, Some(url)) => Ok(url.clone()),
        (None, None) => Ok(node::EMBEDDED_POOL_URL.to_owned()),
    }
}

/// A row for a fresh volume with the usual settings.
pub(crate) fn new_volume(name: VolumeName, size_bytes: u64, ports: &Ports) -> NewVolume {
    NewVolume {
        id: VolumeId::fresh(&*ports.clock, &*ports.entropy),
        name,
        size_bytes,
        durability: Durability::Flush,
        lineage: LineageId::fresh(&*ports.clock, &*ports.entropy),
        domain: DomainId::DEFAULT,
        compress: true,
        dedupe: true,
        read_only: false,
        options: "{}".to_owned(),
        created_at: ports.clock.wall(),
    }
}

pub(super) fn host_name() -> String {
    let name = rustix::system::uname().nodename().to_string_lossy().into_owned();
    if name.is_empty() { "gateway".to_owned() } else { name }
}
