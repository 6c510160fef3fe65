//! Whether a directory is the site's: a recovered one that is to take over, and one whose site another one took over.
//!
//! A recovery sees the pool at one moment. Whoever takes a checkpoint after that, be it the gateway of before that was not gone or another recovery that took over, deletes what the
//! checkpoints before it name. A directory that was recovered before that names what is gone, and its own checkpoints, being of a higher incarnation, would pass for the newest: the
//! site would be thrown back, and what was done meanwhile be deleted. So the newest checkpoint that the recovery saw is written down, and a later one refuses it, unless it is its own.
//!
//! What the gateway of before put without a checkpoint deletes nothing, and is lost all the same: its terms are lower than those of the new catalog, so no later recovery believes it. So it is written down too what each
//! node had of segments, and another list refuses the directory: recovered again, it has them.

use super::super::Site;
use crate::error::GatewayError;
use cairn_engine::EngineError;
use cairn_metadata::DomainRow;
use cairn_model::{DomainId, ErrorKind};
use cairn_segment_writer::{Domain, ManifestId, Pool, PoolError, RecordKey, RecordStore};
use futures::future::join_all;
use std::sync::Arc;
use std::time::Duration;

const RECOVER_AGAIN: &str =
    "make sure that no other gateway uses the pool, then run `cairn recover` again, into another directory";

/// How long a start waits for the list of checkpoints.
const SOON: Duration = Duration::from_secs(2);

/// Fails when the pool has gone on since the directory was recovered, or is another catalog's.
pub(in crate::site) async fn check(site: &Site, pool: &Arc<Pool>) -> Result<(), GatewayError> {
    match site.directory.recovered()? {
        Some(recovered) => check_recovered(site, pool, recovered.newest).await,
        None => check_owner(site, pool).await,
    }
}

/// Fails when the nodes that the directory was recovered from have other segments than then. Of those that do not answer nobody can tell, nor of those that were not given: where it is no more than the
/// profile survives the loss of, what is published is on the others too.
pub(in crate::site) async fn check_segments(site: &Site, pool: &Pool) -> Result<(), GatewayError> {
    let Some(recovered) = site.directory.recovered()? else { return Ok(()) };
    let asked = recovered.nodes.iter().filter_map(|(id, then)| Some((pool.node(*id).ok()?, then)));
    let asked = asked.map(|(node, then)| async move {
        let now = node.tally_segments().await;
        (node, now.map(|now| now == *then))
    });
    let (mut silent, mut problem) = (0, None);
    for (node, is_same) in join_all(asked).await {
        match is_same {
            Ok(true) => {}
            Ok(false) => {
                return Err(GatewayError::refused(
                    ErrorKind::Conflict,
                    format!(
                        "{} has other segments than when this directory was recovered: the gateway of before has gone on, and what it wrote is not in this catalog",
                        node.name()
                    ),
                    RECOVER_AGAIN,
                ));
            }
            Err(error) => {
                silent += 1;
                problem = Some(error);
            }
        }
    }
    let not_given = pool.nodes().iter().filter(|node| !recovered.nodes.contains_key(&node.id())).count();
    let is_told = silent + not_given <= pool.profile().tolerates();
    problem.filter(|_| !is_told).map_or(Ok(()), |error| Err(error.into()))
}

/// Fails when the pool has checkpoints of a later catalog. Nodes that do not answer soon do not hold up a start: then it is found out with the first checkpoint.
async fn check_owner(site: &Site, pool: &Arc<Pool>) -> Result<(), GatewayError> {
    let (Some(source), Ok(store)) = (site.catalog.record(), store(site, pool)) else { return Ok(()) };
    let incarnation = source.incarnation().await?;
    match cairn_model::timeout(&*site.ports.clock, SOON, store.newest_above(incarnation)).await {
        Ok(Ok(Some(newest))) => Err(EngineError::Superseded(newest).into()),
        Ok(Ok(None)) => Ok(()),
        Ok(Err(error @ PoolError::NewerFormat { .. })) => Err(error.into()),
        Ok(Err(_)) | Err(_) => {
            tracing::debug!("whether another catalog took the site over is not known yet");
            Ok(())
        }
    }
}

/// As many nodes must answer as a list of checkpoints takes: without them nobody can tell.
async fn check_recovered(
    site: &Site,
    pool: &Arc<Pool>,
    recovered_from: ManifestId,
) -> Result<(), GatewayError> {
    let store = store(site, pool)?;
    for (id, copies) in store.manifests().await?.into_iter().rev().take_while(|(id, _)| *id > recovered_from)
    {
        let by = match store.open_manifest(id, &copies).await? {
            // An earlier attempt to take over got so far.
            Some(manifest) if manifest.id.gateway == site.gateway => continue,
            Some(manifest) => {
                let gateways = site.catalog.gateways().await?;
                let row = gateways.into_iter().find(|row| row.id == manifest.id.gateway);
                row.map_or_else(|| "another recovery".to_owned(), |row| format!("gateway {}", row.name))
            }
            // A name alone says nothing.
            None => continue,
        };
        return Err(gone_on(id, &by, recovered_from));
    }
    Ok(())
}

/// Takes the manifests away that attempts to take over put, of a directory that never served: whoever else takes over from the same checkpoint is held up by them. Their numbers are not used
/// again. An error names the nodes on which one may be left. Crash case: before this they stay, and hold the other one up until somebody deletes them, or recovers again: it serves, and takes no checkpoints.
pub(in crate::site) async fn withdraw(site: &Site, pool: &Arc<Pool>) -> Result<(), GatewayError> {
    let store = store(site, pool)?;
    for id in store.manifests().await?.into_keys().filter(|id| id.gateway == site.gateway) {
        store.withdraw_manifest(id).await?;
    }
    Ok(())
}

fn gone_on(id: ManifestId, by: &str, recovered_from: ManifestId) -> GatewayError {
    GatewayError::refused(
        ErrorKind::Conflict,
        format!(
            "the pool has gone on since this directory was recovered: {by} took checkpoint {id} after {recovered_from}, and may have deleted what this catalog names"
        ),
        RECOVER_AGAIN,
    )
}

fn store(site: &Site, pool: &Arc<Pool>) -> Result<RecordStore, GatewayError> {
    let domains = site.domains()?;
    let own = domains.into_iter().find(|(row, _)| row.id == DomainId::DEFAULT);
    let (DomainRow { id, encryption, .. }, key) = own.ok_or_else(|| {
        let what = "the catalog has no key of the site's own domain";
        GatewayError::refused(ErrorKind::Corrupt, what, "restore the catalog from a backup, or recover it")
    })?;
    let domain = Domain::new(id, key, encryption);
    Ok(RecordStore::new(Arc::clone(pool), RecordKey::new(&domain, site.row.id)))
}
