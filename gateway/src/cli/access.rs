//! How a command reaches the site: through the running gateway, or by standing in for it.

use super::args::Global;
use crate::admin::{Service, routes};
use crate::client::AdminClient;
use crate::config::Config;
use crate::directory::{Directory, DirectoryError, Lock, Role};
use crate::error::GatewayError;
use crate::key::Master;
use crate::site::{Purpose, Site};
use cairn_engine::Engine;
use cairn_model::{Clock, ErrorKind, Ports};
use std::sync::Arc;
use std::time::Duration;

/// How long a command waits for another one to end, or for a gateway that starts to answer.
const PATIENCE: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(50);

/// What a command needs when no gateway runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Need {
    /// The catalog without the keys: to tell what there is, whatever is wrong with them.
    Tell,
    /// The catalog and the keys.
    Catalog,
    /// The catalog, the keys and the pool, to look at them.
    Pool,
    /// An engine: to change or move data.
    Engine,
}

/// A way to the site. Ended by [`Access::end`], which brings what was written to the pool.
pub(super) struct Access {
    pub(super) client: AdminClient,
    embedded: Option<Arc<Engine>>,
    site: Option<Arc<Site>>,
}

impl Access {
    /// `master` is the key, where the command has opened it already.
    async fn open(global: &Global, need: Need, master: Option<Master>) -> Result<Self, GatewayError> {
        let directory = Directory::new(&global.dir)?;
        directory.require_ready()?;
        let ports = Ports::system();
        let Some(lock) = lock_or_gateway(&directory, &*ports.clock).await? else {
            let client = AdminClient::over_socket(&directory.admin_socket());
            return Ok(Self { client, embedded: None, site: None });
        };
        let config = Config::load(&directory.config(), directory.path())?;
        let site = match (need, master) {
            (Need::Tell, _) => Site::open_to_tell(directory, config, lock, ports).await,
            (_, Some(master)) => Site::open_with(master, directory, config, lock, ports).await,
            (_, None) => Site::open(directory, config, lock, ports).await,
        };
        let site = Arc::new(site?);
        let (service, embedded) = match need {
            Need::Tell | Need::Catalog => (Service::of_catalog(Arc::clone(&site)), None),
            Need::Pool => {
                let pool = site.pool_to_look_at().await?;
                (Service::of_pool(Arc::clone(&site), pool), None)
            }
            Need::Engine => {
                let pool = site.open_pool().await?;
                let engine = site.start_engine(Arc::clone(&pool), Purpose::Command).await?;
                (Service::of_engine(Arc::clone(&site), Arc::clone(&engine), pool), Some(engine))
            }
        };
        let client = AdminClient::in_process(routes(Arc::new(service)));
        Ok(Self { client, embedded, site: Some(site) })
    }

    async fn end(self) -> Result<(), GatewayError> {
        if let Some(engine) = self.embedded {
            engine.shutdown().await?;
        }
        if let Some(site) = self.site {
            site.close().await;
        }
        Ok(())
    }
}

/// Runs `work` with a way to the site and ends that way properly, whether the work succeeded or not.
pub(super) async fn with_access<T>(
    global: &Global,
    need: Need,
    work: impl AsyncFnOnce(&Access) -> Result<T, GatewayError>,
) -> Result<T, GatewayError> {
    with_access_as(global, need, None, work).await
}

/// [`with_access`] with the master key at hand, so that nobody is asked for its passphrase twice.
pub(super) async fn with_access_as<T>(
    global: &Global,
    need: Need,
    master: Option<Master>,
    work: impl AsyncFnOnce(&Access) -> Result<T, GatewayError>,
) -> Result<T, GatewayError> {
    let access = Access::open(global, need, master).await?;
    let done = work(&access).await;
    let ended = access.end().await;
    let value = done?;
    ended?;
    Ok(value)
}

/// The lock, or `None` when a gateway has it and answers.
async fn lock_or_gateway(directory: &Directory, clock: &dyn Clock) -> Result<Option<Lock>, GatewayError> {
    let begun = clock.now();
    loop {
        let holder = match directory.lock(Role::Command) {
            Ok(lock) => return Ok(Some(lock)),
            Err(DirectoryError::Locked { holder, .. }) => holder,
            Err(error) => return Err(error.into()),
        };
        if crate::socket::connect(&directory.admin_socket()).await.is_ok() {
            return Ok(None);
        }
        if clock.now().since(begun) >= PATIENCE {
            return Err(GatewayError::refused(
                ErrorKind::Unavailable,
                format!("{} is in use by {holder}, which does not answer yet", directory.path().display()),
                "try again in a moment; a gateway that starts first replays its write-ahead log",
            ));
        }
        clock.sleep(PAUSE).await;
    }
}
