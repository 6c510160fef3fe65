//! A directory for a site whose catalog is lost, made of its pool and its master key.
//!
//! Order: (1) the nodes' markers say the site, and the newest keys that they have open with the master key; (2) the directory is marked as one that is being recovered; (3) the newest
//! checkpoint that is whole becomes a catalog, of the next incarnation; (4) batches that are in the pool and not in the checkpoint are committed to it (`replay`); (5) the leases of the
//! lost catalog's gateways are ended; (6) the directory is complete, and waits to be told to take over.
//!
//! Nodes that were not given are kept in the catalog as the checkpoint has them: nothing is known of what they hold. The given ones must answer to the end: what they do not
//! show counts as not there.
//!
//! Nothing is written to the pool. Crash cases: before (6) the directory has the mark of (2), with which every command refuses it: it is removed and made again.

mod progress;
mod replay;
mod report;
mod take_over;

pub use progress::RecoveryProgress;
pub use report::{CheckpointReport, RecoveryReport, VolumeReport};

use super::init::{configure, host_name, write_key};
use super::publish::{Revisions, is_revision};
use crate::config::{Config, KeyConfig};
use crate::directory::{Directory, DirectoryError, Recovered, State};
use crate::error::GatewayError;
use crate::key::published::PublishedKeys;
use crate::key::{KeyError, Master, source};
use crate::site::InitOptions;
use cairn_metadata::{
    Catalog, CatalogError, DomainName, DomainRow, KeyRow, NodeState, RecordSource, RecordWriter,
    SqliteCatalog, VolumeRow,
};
use cairn_model::crypto::{self, KeyId, SecretKey};
use cairn_model::{DomainId, ErrorKind, GatewayId, Generation, Ports, SiteId};
use cairn_segment_writer::{
    DataNode, Domain, Manifest, ManifestId, Member, NodeAccess, NodeUrl, ObjectTally, Pool, PoolError,
    PoolSettings, RecordKey, RecordStore,
};
use cairn_wal::FileDisk;
use replay::Replay;
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
pub(super) use take_over::{check as check_take_over, check_segments, withdraw};

/// Pieces read at once.
const PIECES_AT_ONCE: usize = 4;
/// Leases of a recovery last as long as it does: nobody else has the catalog.
const LEASE: Duration = Duration::from_hours(24);

/// What a recovery is told.
#[derive(Debug, Clone)]
pub struct RecoverOptions {
    /// The site's data nodes, as many as can be reached.
    pub pool_urls: Vec<String>,
    /// Where the master key is.
    pub key: KeyConfig,
}

/// The site as its pool shows it.
struct Found {
    site: SiteId,
    pool: Arc<Pool>,
    keys: PublishedKeys,
    domains: Vec<Domain>,
    warnings: Vec<String>,
}

impl Found {
    /// The nodes, for messages.
    fn told(&self) -> String {
        let names: Vec<String> = self.pool.nodes().iter().map(|node| node.name().to_string()).collect();
        names.join(", ")
    }
}

/// Makes `directory`, which the caller has locked and in which nothing is.
pub async fn recover(
    directory: &Directory,
    options: &RecoverOptions,
    ports: &Ports,
    progress: &RecoveryProgress,
) -> Result<RecoveryReport, GatewayError> {
    if directory.state()? != State::Fresh {
        return Err(DirectoryError::AlreadyInitialised { path: directory.path().to_owned() }.into());
    }
    let master = source::obtain(&options.key, ports).await?.master;
    let mut found = find(&options.pool_urls, &master, ports).await?;
    let store = RecordStore::new(Arc::clone(&found.pool), record_key(&found)?);
    refuse_taken(directory)?;
    directory.begin_recovery()?;
    let config = configure(directory, &InitOptions::default())?;
    let crate::config::CatalogUrl::Sqlite(path) = &config.catalog;
    let names = found.pool.nodes().iter().map(|node| node.name().to_string()).collect();
    let mut report = RecoveryReport::new(found.site, directory.path(), names);
    report.tallies = found.pool.nodes().iter().map(|node| (node.id(), ObjectTally::default())).collect();
    let newest = load_newest(&store, path, &found, progress, &mut report).await?;
    let catalog = SqliteCatalog::open(path).await?;
    check_site(&catalog, found.site).await?;
    tell_nodes(&catalog, &found, &mut report).await?;
    bring_keys(&catalog, &found.keys, &master, ports).await?;
    report.warnings.append(&mut found.warnings);
    open_unpublished(&catalog, &master, &mut found).await?;
    let gateway = GatewayId::fresh(&*ports.clock, &*ports.entropy);
    register(&catalog, gateway, ports, &mut report).await?;
    replay(&catalog, &found, gateway, (ports, progress), &mut report).await?;
    tell(&catalog, &mut report).await?;
    catalog.close().await;
    let lacks = report.lacks();
    report.is_whole = lacks.is_empty();
    let recovered = Recovered { newest, nodes: report.tallies.clone(), lacks };
    finish(directory, &config, gateway, &master, &recovered)?;
    Ok(report)
}

/// Fails when a configuration that was written beforehand names places where something is: of another gateway, maybe of one that runs. In the directory itself nothing is.
fn refuse_taken(directory: &Directory) -> Result<(), GatewayError> {
    let configured = directory.config();
    if !configured.exists() {
        return Ok(());
    }
    let config = Config::load(&configured, directory.path())?;
    let crate::config::CatalogUrl::Sqlite(catalog) = &config.catalog;
    let beside = |suffix: &str| {
        let mut path = catalog.clone().into_os_string();
        path.push(suffix);
        PathBuf::from(path)
    };
    let mut places = vec![catalog.clone(), beside("-wal"), beside("-shm"), beside("-journal")];
    if let KeyConfig::File { path, .. } = &config.key {
        places.push(path.clone());
    }
    let failed =
        |path: &Path, source| GatewayError::File { action: "look at", path: path.to_owned(), source };
    let refused = |path: &Path| {
        GatewayError::refused(
            ErrorKind::Conflict,
            format!(
                "{} is there already: a recovery makes it, and puts nothing in the place of another one",
                path.display()
            ),
            format!(
                "name another place in {}, or move what is there away if nothing uses it",
                configured.display()
            ),
        )
    };
    for path in &places {
        // Also a link that leads nowhere.
        match path.symlink_metadata() {
            Ok(_) => return Err(refused(path)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(failed(path, error)),
        }
    }
    let log = &config.wal.path;
    if FileDisk::holds_log(log).map_err(|error| failed(log, error))? {
        return Err(refused(log));
    }
    Ok(())
}

/// What the pool and the key say, before anything is made.
async fn find(urls: &[String], master: &Master, ports: &Ports) -> Result<Found, GatewayError> {
    let mut members: Vec<Member> = Vec::new();
    let mut site = None;
    for url in urls {
        let access = NodeAccess::new(NodeUrl::parse(url)?);
        let (node, found) = DataNode::open_found(&access, ports.clone()).await?;
        let refused = |what: String, next: &str| Err(GatewayError::refused(ErrorKind::Conflict, what, next));
        if let Some(same) = members.iter().find(|member| member.node.id() == node.id()) {
            let what = format!("{} and {} are the same data node", same.node.name(), node.name());
            return refused(what, "give each data node once");
        }
        if *site.get_or_insert(found) != found {
            let what = format!("{} is of another site than {}", node.name(), members[0].node.name());
            return refused(what, "give the data nodes of one site");
        }
        members.push(Member::new(node));
    }
    let Some(site) = site else {
        let what = "no data node was given".to_owned();
        return Err(GatewayError::refused(
            ErrorKind::NotFound,
            what,
            "give --pool URL for each data node of the site",
        ));
    };
    let (keys, domains, warnings) = find_keys(&members, site, master).await?;
    // Every node that was given counts.
    let pool = Arc::new(Pool::new(members, PoolSettings::default(), ports.clone()));
    Ok(Found { site, pool, keys, domains, warnings })
}

/// The newest keys that any node has and the master key opens, and warnings of newer ones that it does not open. Those on a node that was away while keys changed are older.
async fn find_keys(
    members: &[Member],
    site: SiteId,
    master: &Master,
) -> Result<(PublishedKeys, Vec<Domain>, Vec<String>), GatewayError> {
    let mut newest: Option<(PublishedKeys, Vec<Domain>)> = None;
    let mut problem = None;
    let mut of_others = Vec::new();
    for member in members {
        match read_keys(&member.node, site, master).await {
            Ok(found) => {
                let is_newer = |(known, _): &(PublishedKeys, Vec<Domain>)| {
                    known.revision.number < found.0.revision.number
                };
                if newest.as_ref().is_none_or(is_newer) {
                    newest = Some(found);
                }
            }
            Err(error) => {
                tracing::debug!(node = %member.node.name(), error = error.full_message(), "the keys on a data node are not used");
                problem.get_or_insert(error);
                // Nothing vouches for what it says, so it is told and decides nothing.
                let object = member.node.read_keys().await.ok().flatten();
                let keys = object.and_then(|object| PublishedKeys::decode(&object).ok());
                of_others.extend(keys.filter(|keys| keys.master != master.id()).map(|keys| (member, keys)));
            }
        }
    }
    match (newest, problem) {
        (Some((keys, domains)), _) => {
            of_others.retain(|(_, others)| others.revision.number > keys.revision.number);
            let warn = |(member, others): (&Member, PublishedKeys)| {
                let name = member.node.name();
                format!(
                    "{name} has newer keys of the site, under the master key {}: {} may be an old one",
                    others.master, master.origin
                )
            };
            Ok((keys, domains, of_others.into_iter().map(warn).collect()))
        }
        (None, Some(problem)) => Err(problem),
        (None, None) => unreachable!("there is a node"),
    }
}

/// The keys on a node, and what they open.
async fn read_keys(
    node: &DataNode,
    site: SiteId,
    master: &Master,
) -> Result<(PublishedKeys, Vec<Domain>), GatewayError> {
    let Some(object) = node.read_keys().await? else {
        return Err(GatewayError::refused(
            ErrorKind::NotFound,
            format!("{} has no keys of the site (object cairn-keys)", node.name()),
            "give the URL of another data node of the site",
        ));
    };
    let corrupt = |problem: String| {
        GatewayError::refused(
            ErrorKind::Corrupt,
            format!("the keys on {}: {problem}", node.name()),
            "give the URL of another data node of the site",
        )
    };
    let keys = PublishedKeys::decode(&object).map_err(|error| corrupt(error.to_string()))?;
    if keys.master != master.id() {
        let (origin, given, expected) = (master.origin.clone(), master.id(), vec![keys.master]);
        return Err(KeyError::WrongKey { origin, given, expected }.into());
    }
    if keys.site != site || !PublishedKeys::is_authentic(&object, &master.key) {
        return Err(corrupt("they are not what this site's gateway wrote".to_owned()));
    }
    let mut domains = Vec::new();
    for domain in &keys.domains {
        let purpose = DomainRow::key_purpose(domain.id);
        let opened = crypto::unwrap(&master.key, purpose.as_bytes(), &domain.wrapped);
        let Some(key) = opened.ok().filter(|key: &SecretKey| key.id() == domain.key_id) else {
            return Err(corrupt(format!("the key of domain {} does not open", domain.name)));
        };
        domains.push(Domain::new(domain.id, key, domain.encryption));
    }
    Ok((keys, domains))
}

fn record_key(found: &Found) -> Result<RecordKey, GatewayError> {
    let own = found.domains.iter().find(|domain| domain.id() == DomainId::DEFAULT);
    let own = own.ok_or_else(|| {
        GatewayError::refused(
            ErrorKind::Corrupt,
            format!("the keys on {} have none of the site's own domain", found.told()),
            "give the URL of another data node of the site",
        )
    })?;
    Ok(RecordKey::new(own, found.site))
}

/// Makes the catalog of the newest checkpoint that is whole. Returns the newest that opens, whole or not: when there is a later one, the pool has gone on.
async fn load_newest(
    store: &RecordStore,
    path: &Path,
    found: &Found,
    progress: &RecoveryProgress,
    report: &mut RecoveryReport,
) -> Result<ManifestId, GatewayError> {
    let mut newest = None;
    for (id, copies) in store.manifests().await?.into_iter().rev() {
        // A name says nothing: what does not open is told, and is not counted.
        let Some(manifest) = store.open_manifest(id, &copies).await? else {
            report.unusable_checkpoints.push(format!("{id}: it is damaged, or was never one"));
            continue;
        };
        // Whatever it is made of: no gateway of before may count as later.
        let newest = *newest.get_or_insert(id);
        report.incarnation = next_incarnation(newest)?;
        progress.checkpoint(manifest.pieces.len());
        match load(store, &manifest, path, found, progress, report.incarnation).await {
            Ok(rows) => {
                report.checkpoint = Some(CheckpointReport::new(&manifest, rows));
                return Ok(newest);
            }
            Err(NotLoaded::Failed(error)) => return Err(error),
            Err(NotLoaded::Unusable(error)) => {
                report.unusable_checkpoints.push(format!("{id}: {}", error.full_message()));
                remove_catalog(path)?;
            }
        }
    }
    let tried = report.unusable_checkpoints.join("; ");
    let tried = if tried.is_empty() { tried } else { format!(" ({tried})") };
    Err(GatewayError::refused(
        ErrorKind::NotFound,
        format!("{} has no checkpoint of the catalog that is whole{tried}", found.told()),
        "give the URL of another data node of the site; a gateway before this version made no checkpoints",
    ))
}

/// The incarnation of a catalog that is made now.
fn next_incarnation(newest: ManifestId) -> Result<u64, GatewayError> {
    let next = newest.incarnation.checked_add(1).filter(|next| first_term(*next).is_some());
    next.ok_or_else(|| {
        GatewayError::refused(
            ErrorKind::Corrupt,
            format!(
                "the pool shows incarnation {} of the site's catalog, which cannot be",
                newest.incarnation
            ),
            "keep the pool as it is and ask for help",
        )
    })
}

/// Why a checkpoint was not loaded.
enum NotLoaded {
    /// It is not whole, or its rows are not those of a catalog. What was made of it so far is at the path of the catalog.
    Unusable(GatewayError),
    /// That says nothing of the checkpoint: a disk that is full here, a file that is in the way, a pool that does not answer.
    Failed(GatewayError),
}

impl NotLoaded {
    /// A piece that no node has whole.
    fn piece(error: PoolError) -> Self {
        let is_unusable = error.is_of_object();
        if is_unusable { Self::Unusable(error.into()) } else { Self::Failed(error.into()) }
    }

    /// Rows that were refused.
    fn rows(error: CatalogError) -> Self {
        let is_unusable = matches!(error, CatalogError::Corrupt { .. });
        if is_unusable { Self::Unusable(error.into()) } else { Self::Failed(error.into()) }
    }
}

/// Removes what an attempt left, which made the file.
fn remove_catalog(path: &Path) -> Result<(), GatewayError> {
    crate::durable::remove_file(path).map_err(|source| GatewayError::File {
        action: "remove",
        path: path.to_owned(),
        source,
    })
}

async fn load(
    store: &RecordStore,
    manifest: &Manifest,
    path: &Path,
    found: &Found,
    progress: &RecoveryProgress,
    incarnation: u64,
) -> Result<u64, NotLoaded> {
    use futures::StreamExt;
    let failed = |error: CatalogError| NotLoaded::Failed(error.into());
    let mut writer = RecordWriter::create(path, manifest.schema).await.map_err(failed)?;
    let reads = manifest.pieces.iter().map(|piece| store.read_piece(piece.name));
    let mut pieces = futures::stream::iter(reads).buffered(PIECES_AT_ONCE);
    while let Some(piece) = pieces.next().await {
        let piece = piece.map_err(NotLoaded::piece)?;
        progress.piece();
        writer.write(&piece.head, &piece.rows).await.map_err(NotLoaded::rows)?;
    }
    for node in found.pool.nodes() {
        if !writer.place_node(node.id(), node.name()).await.map_err(failed)? {
            // An older checkpoint that knows it would be an answer to another question.
            return Err(NotLoaded::Failed(GatewayError::refused(
                ErrorKind::NotFound,
                format!("the checkpoint {} does not know the data node {}", manifest.id, node.name()),
                "it was removed from the site, or added in its last second: leave it out",
            )));
        }
    }
    writer.finish(incarnation).await.map_err(NotLoaded::rows)
}

async fn check_site(catalog: &SqliteCatalog, site: SiteId) -> Result<(), GatewayError> {
    let found = catalog.site().await?.id;
    if found == site {
        return Ok(());
    }
    Err(GatewayError::refused(
        ErrorKind::Corrupt,
        format!("the checkpoint is of site {found}, and the pool of {site}"),
        "keep the pool as it is and ask for help",
    ))
}

/// Which nodes were not given, and what that may mean.
async fn tell_nodes(
    catalog: &SqliteCatalog,
    found: &Found,
    report: &mut RecoveryReport,
) -> Result<(), GatewayError> {
    let away = catalog.nodes().await?.into_iter().filter(|row| found.pool.node(row.id).is_err());
    let away: Vec<_> = away.collect();
    report.nodes_not_given = away.iter().map(|row| format!("{} ({})", row.name, row.url)).collect();
    let profile = catalog.pool_settings().await?.profile;
    let unknown = away.iter().filter(|row| row.state != NodeState::Failed).count();
    if unknown > profile.tolerates() {
        report.warnings.push(format!(
            "{unknown} data nodes of the site were not given, and {profile} survives the loss of {}: a newer checkpoint may be on them, and segments that nothing else has",
            profile.tolerates()
        ));
    }
    Ok(())
}

/// What the pool has of keys goes over what the checkpoint has: it is as new or newer.
async fn bring_keys(
    catalog: &SqliteCatalog,
    published: &PublishedKeys,
    master: &Master,
    ports: &Ports,
) -> Result<(), GatewayError> {
    let now = ports.clock.wall();
    let known = catalog.domains().await?;
    // A node that was away while keys changed has an older revision: it is this catalog's past as long as that remembers it.
    let present = catalog.keys().await?;
    let of = |wrapped_by: KeyId| Revisions::of(&present, wrapped_by);
    let own = of(master.id());
    if own.current() != published.revision && own.knows(published.revision) {
        // They were not published in time, and are newer in the checkpoint.
        return Ok(());
    }
    let other_key = |what: String| {
        GatewayError::refused(
            ErrorKind::Conflict,
            format!("the checkpoint has keys under another master key than {}: {what}", master.id()),
            "give the master key that the site had last, or the URL of a data node that has newer keys",
        )
    };
    let before = present.iter().find(|row| is_revision(row) && row.wrapped_by != master.id());
    let revisions = match before {
        Some(row) if own == Revisions::default() => {
            let others = of(row.wrapped_by);
            if others.knows(published.revision) {
                return Err(other_key("what the data nodes have is older".to_owned()));
            }
            // The master key was changed since the checkpoint.
            others
        }
        _ => own,
    };
    let mut rows = vec![revisions.with(published.revision).row(master.id(), now)];
    for domain in &published.domains {
        let key = KeyRow {
            purpose: DomainRow::key_purpose(domain.id),
            key_id: domain.key_id,
            wrapped_by: master.id(),
            wrapped: domain.wrapped.clone(),
            created_at: now,
        };
        if known.iter().any(|row| row.id == domain.id) {
            rows.push(key);
            continue;
        }
        let row = DomainRow {
            id: domain.id,
            name: DomainName::new(&domain.name)?,
            encryption: domain.encryption,
            created_at: now,
        };
        catalog.create_domain(&row, &key).await?;
    }
    match catalog.replace_keys(&rows, master.id()).await {
        Err(error @ CatalogError::KeyLost { .. }) => Err(other_key(error.to_string())),
        done => Ok(done?),
    }
}

/// Domains that the checkpoint has and the published keys have not: nobody could publish them in time. Their segments can be read all the same.
async fn open_unpublished(
    catalog: &SqliteCatalog,
    master: &Master,
    found: &mut Found,
) -> Result<(), GatewayError> {
    let keys = catalog.keys().await?;
    for domain in catalog.domains().await? {
        if found.domains.iter().any(|known| known.id() == domain.id) {
            continue;
        }
        let purpose = DomainRow::key_purpose(domain.id);
        let rows = keys.iter().filter(|row| row.purpose == purpose && row.wrapped_by == master.id());
        let opened = rows.filter_map(|row| {
            let key: SecretKey = crypto::unwrap(&master.key, purpose.as_bytes(), &row.wrapped).ok()?;
            (key.id() == row.key_id).then_some(key)
        });
        let opened: Vec<SecretKey> = opened.collect();
        if opened.is_empty() {
            tracing::warn!(domain = %domain.name, "the key of a domain does not open: its segments cannot be read");
        }
        found.domains.extend(opened.into_iter().map(|key| Domain::new(domain.id, key, domain.encryption)));
    }
    Ok(())
}

/// Names the new gateway as its host, or something like it.
async fn register(
    catalog: &SqliteCatalog,
    gateway: GatewayId,
    ports: &Ports,
    report: &mut RecoveryReport,
) -> Result<(), GatewayError> {
    // What the checkpoint says of their logs is as old as it is: each may have held something when it was lost, or have brought all of it to the pool.
    report.lost_logs.extend(catalog.gateways().await?.into_iter().map(|row| row.name));
    let host = host_name();
    let mut name = host.clone();
    for number in 2u32.. {
        match catalog.register_gateway(gateway, &name, ports.clock.wall()).await {
            Err(CatalogError::NameTaken { .. }) => name = format!("{host}-{number}"),
            done => {
                done?;
                break;
            }
        }
    }
    report.gateway = name;
    Ok(())
}

/// Commits what the pool has beyond the checkpoint, in terms of this recovery's own, and gives the volumes back.
async fn replay(
    catalog: &SqliteCatalog,
    found: &Found,
    gateway: GatewayId,
    (ports, progress): (&Ports, &RecoveryProgress),
    report: &mut RecoveryReport,
) -> Result<(), GatewayError> {
    let volumes = catalog.volumes().await?;
    let mut replay =
        Replay::read(catalog, &found.pool, &found.domains, (&volumes[..], progress), report).await?;
    let mut terms = BTreeMap::new();
    for volume in &volumes {
        let highest = replay.highest_term(volume.id).max(volume.generation);
        let term = take(catalog, volume, gateway, highest, report.incarnation, ports).await?;
        terms.insert(volume.id, term);
    }
    let done = replay.run(catalog, gateway, &terms, report).await;
    for (volume, generation) in terms {
        catalog.release_lease(volume, gateway, generation).await?;
    }
    done
}

/// Takes the lease of a volume whose owner's catalog is gone, in a term above all that the pool shows and above all that its catalog will ever give: the incarnation's number is its
/// upper half. So a later recovery does not take for the site's what a gateway puts that went on with the catalog of before, or began again with it.
async fn take(
    catalog: &SqliteCatalog,
    volume: &VolumeRow,
    gateway: GatewayId,
    highest: Generation,
    incarnation: u64,
    ports: &Ports,
) -> Result<Generation, GatewayError> {
    let now = ports.clock.wall();
    let mut unrenewed = None;
    let lease = loop {
        match catalog.acquire_lease(volume.id, gateway, now, LEASE, unrenewed).await {
            Ok(lease) => break lease.generation,
            // Nobody renews it: nobody else has this catalog.
            Err(CatalogError::LeaseHeld { stamp, .. }) if unrenewed.is_none() => unrenewed = Some(stamp),
            Err(error) => return Err(error.into()),
        }
    };
    let Some(first) = first_term(incarnation) else {
        return Err(GatewayError::refused(
            ErrorKind::Corrupt,
            format!("the pool shows incarnation {incarnation} of the site's catalog, which cannot be"),
            "keep the pool as it is and ask for help",
        ));
    };
    let term = lease.max(highest.next()).max(first);
    catalog.raise_term(volume.id, gateway, lease, term).await?;
    Ok(term)
}

/// The first term of an incarnation of the catalog.
fn first_term(incarnation: u64) -> Option<Generation> {
    // What a catalog can keep is one bit less.
    u32::try_from(incarnation)
        .ok()
        .filter(|number| number >> 31 == 0)
        .map(|number| Generation::new(u64::from(number) << 32))
}

/// What the catalog has in the end.
async fn tell(catalog: &SqliteCatalog, report: &mut RecoveryReport) -> Result<(), GatewayError> {
    for volume in catalog.volumes().await? {
        let snapshots = catalog.snapshots(volume.id).await?.len() as u64;
        report.snapshots += snapshots;
        report.tell_volume(&volume, snapshots);
    }
    report.clones = catalog.clones().await?;
    report.groups = catalog.groups().await?.into_iter().map(|group| group.name.to_string()).collect();
    report.domains = catalog.domains().await?.into_iter().map(|domain| domain.name.to_string()).collect();
    debug_assert_eq!(catalog.incarnation().await?, report.incarnation, "it was made so");
    Ok(())
}

/// The rest of the directory, and the last of all that it is complete.
fn finish(
    directory: &Directory,
    config: &Config,
    gateway: GatewayId,
    master: &Master,
    recovered: &Recovered,
) -> Result<(), GatewayError> {
    directory.set_gateway_id(gateway)?;
    if let KeyConfig::File { path, .. } = &config.key {
        write_key(path, &master.key, &master.protection)?;
    }
    directory.end_recovery(recovered)?;
    Ok(())
}
