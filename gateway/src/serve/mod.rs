//! A gateway from start to stop.
//!
//! Order of starting: pool, engine (which replays the log and takes the leases), then NBD, then the admin API, then the
//! word that all is ready: a socket that listens can be used. Order of stopping: no new connections, the end of those there are,
//! destage, a clean mark on the log, leases given back, the admin API last, so that stopping can be watched.
//! A crash anywhere is what the log is for.

mod nbd;
mod signals;
mod threads;

pub use nbd::Endpoint;

use crate::admin::{Service, Serving, routes, routes_for_tcp, server};
use crate::config::ListenAddress;
use crate::error::GatewayError;
use crate::notify;
use crate::sessions::Sessions;
use crate::site::{Purpose, Site};
use cairn_engine::Engine;
use cairn_model::{ErrorKind, Kinded};
use cairn_segment_writer::Pool;
use nbd::NbdService;
pub use signals::Signals;
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// How long requests to the admin API may take to end once the engine has.
const ADMIN_GRACE: Duration = Duration::from_secs(5);

/// What serving depends on beside the configuration.
#[derive(Debug, Clone, Default)]
pub struct ServeOptions {
    /// Addresses instead of the configured ones, when there are any.
    pub nbd: Vec<ListenAddress>,
    /// Go on without a log that held acknowledged writes.
    pub accept_lost_wal: bool,
}

/// How often copies of the keys that are not up to date are tried again.
const PUBLISH_INTERVAL: Duration = Duration::from_mins(1);

/// How often all copies are looked at: a node may have been wiped and used again meanwhile.
const LOOK_INTERVAL: Duration = Duration::from_hours(1);

/// What is told once everything can be used.
#[derive(Debug)]
pub struct Ready<'a> {
    pub service: &'a Service,
    pub endpoints: &'a [Endpoint],
}

/// Serves until told to stop. `on_ready` runs once, when every export can be used.
pub async fn serve(
    site: Arc<Site>,
    options: &ServeOptions,
    mut signals: Signals,
    on_ready: impl AsyncFnOnce(Ready<'_>) -> Result<(), GatewayError>,
) -> Result<(), GatewayError> {
    notify::status("replaying the write-ahead log");
    let starting = start(&site, options.accept_lost_wal);
    let (engine, pool) = tokio::select! {
        started = starting => started?,
        () = signals.stop() => {
            tracing::info!("stopped before anything was served");
            return Ok(());
        }
    };
    let gateway = Gateway { site: Arc::clone(&site), engine: Arc::clone(&engine), pool };
    let served = gateway.run(options, &mut signals, on_ready).await;
    site.close().await;
    served
}

async fn start(site: &Site, accept_lost_wal: bool) -> Result<(Arc<Engine>, Arc<Pool>), GatewayError> {
    let pool = site.open_pool().await?;
    if accept_lost_wal {
        tracing::warn!(
            wal = %site.config.wal.path.display(),
            "--accept-lost-wal: if the write-ahead log is gone, writes that were acknowledged but not destaged are lost for good"
        );
    }
    let engine = site.start_engine(Arc::clone(&pool), Purpose::Serve { accept_lost_wal }).await?;
    if let Err(error) = site.end_take_over(&engine, &pool).await {
        // Nothing was written to it, and nothing is to be put.
        engine.abandon().await;
        return Err(error);
    }
    for refused in engine.not_served() {
        tracing::error!(volume = refused.name, reason = refused.reason, "a volume is not served");
    }
    Ok((engine, pool))
}

/// Gives the site's keys to data nodes that did not take them when they were to, once they answer again.
async fn publish_until_stopped(site: Arc<Site>, pool: Arc<Pool>, stop: CancellationToken) {
    let publish = async {
        let mut looked_at = site.ports.clock.now();
        loop {
            let now = site.ports.clock.now();
            let is_due = now.since(looked_at) >= LOOK_INTERVAL;
            if (is_due || site.key_copies().iter().any(|copy| copy.problem.is_some()))
                && let Err(error) = site.publish_keys(Some(&pool), false).await
            {
                tracing::debug!(
                    error = error.full_message(),
                    "the keys' copies cannot be brought up to date"
                );
            }
            if is_due {
                looked_at = now;
            }
            site.ports.clock.sleep(PUBLISH_INTERVAL).await;
        }
    };
    stop.run_until_cancelled(publish).await;
}

struct Gateway {
    site: Arc<Site>,
    engine: Arc<Engine>,
    pool: Arc<Pool>,
}

impl Gateway {
    async fn run(
        self,
        options: &ServeOptions,
        signals: &mut Signals,
        on_ready: impl AsyncFnOnce(Ready<'_>) -> Result<(), GatewayError>,
    ) -> Result<(), GatewayError> {
        let stop_admin = CancellationToken::new();
        let tasks = TaskTracker::new();
        tasks.spawn(publish_until_stopped(
            Arc::clone(&self.site),
            Arc::clone(&self.pool),
            stop_admin.clone(),
        ));
        let (nbd, opened) = self.open(options, &tasks, &stop_admin, on_ready).await;
        if opened.is_ok() {
            signals.stop().await;
        }
        // From here a second signal ends the process where it stands; the log has everything.
        let clock = Arc::clone(&self.site.ports.clock);
        let last_resort = signals.stop_again(&*clock);
        let ending = async {
            notify::stopping();
            tracing::info!("stopping: destaging what was acknowledged");
            if let Some(nbd) = &nbd {
                nbd.end().await;
            }
            let closed = self.close_engine().await;
            stop_admin.cancel();
            tasks.close();
            let clock = &*self.site.ports.clock;
            if cairn_model::timeout(clock, ADMIN_GRACE, tasks.wait()).await.is_err() {
                tracing::warn!("a request to the admin API did not end and was cut off");
            }
            opened.and(closed)
        };
        tokio::select! {
            ended = ending => ended,
            () = last_resort => {
                tracing::warn!("stopped at once; what was acknowledged is in the write-ahead log");
                Ok(())
            }
        }
    }

    /// Opens the sockets, NBD's first. What is open is to be ended, also when something could not be opened.
    async fn open(
        &self,
        options: &ServeOptions,
        tasks: &TaskTracker,
        stop: &CancellationToken,
        on_ready: impl AsyncFnOnce(Ready<'_>) -> Result<(), GatewayError>,
    ) -> (Option<NbdService>, Result<(), GatewayError>) {
        let config = &self.site.config.gateway;
        let addresses = if options.nbd.is_empty() { &config.nbd } else { &options.nbd };
        let sessions = Sessions::default();
        let started =
            NbdService::start(&self.engine, &sessions, addresses, config.tls.as_ref(), &self.site.ports);
        match started.await {
            Ok(nbd) => {
                let opened = self.open_admin(&nbd, sessions, tasks, stop, on_ready).await;
                (Some(nbd), opened)
            }
            Err(error) => (None, Err(error)),
        }
    }

    async fn open_admin(
        &self,
        nbd: &NbdService,
        sessions: Sessions,
        tasks: &TaskTracker,
        stop: &CancellationToken,
        on_ready: impl AsyncFnOnce(Ready<'_>) -> Result<(), GatewayError>,
    ) -> Result<(), GatewayError> {
        let serving = Serving {
            started: self.site.ports.clock.now(),
            nbd: nbd.endpoints().iter().map(ToString::to_string).collect(),
            sessions,
        };
        let (engine, pool) = (Arc::clone(&self.engine), Arc::clone(&self.pool));
        let service = Arc::new(Service::of_gateway(Arc::clone(&self.site), engine, pool, serving));
        if let Some(address) = self.site.config.gateway.admin {
            server::serve_tcp(address, routes_for_tcp(Arc::clone(&service)), tasks, stop).await?;
        }
        let routes = routes(Arc::clone(&service));
        server::serve_socket(&self.site.directory.admin_socket(), routes, tasks, stop)?;
        on_ready(Ready { service: &service, endpoints: nbd.endpoints() }).await?;
        let count = crate::human::counted(self.engine.volumes().len() as u64, "volume");
        tracing::info!(nbd = ?nbd.endpoints().iter().map(ToString::to_string).collect::<Vec<_>>(), "serving {count}");
        notify::ready(&format!("serving {count}"));
        Ok(())
    }

    /// Destages and closes. A pool that does not answer keeps the rest in the log, which is no failure of stopping.
    async fn close_engine(&self) -> Result<(), GatewayError> {
        match self.engine.shutdown().await {
            Ok(()) => {
                tracing::info!("stopped; everything acknowledged is in the pool");
                Ok(())
            }
            Err(error) if matches!(error.kind(), ErrorKind::Unavailable | ErrorKind::OutOfSpace) => {
                tracing::warn!(%error, "stopped; what is not in the pool yet is in the write-ahead log, for the next start");
                Ok(())
            }
            Err(error) => Err(error.into()),
        }
    }
}
