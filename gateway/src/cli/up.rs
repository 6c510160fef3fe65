//! `cairn up` and `cairn serve`.

use super::args::{Global, Serve, ServeOptions as Options, Up};
use super::init::{check_pool, keep_the_key};
use super::output::{print, print_json};
use super::runtime;
use crate::client::AdminClient;
use crate::config::{Config, ListenAddress};
use crate::directory::{Directory, DirectoryError, Lock, Role, State};
use crate::error::GatewayError;
use crate::human::shell_quoted;
use crate::logging;
use crate::serve::{self, Endpoint, Ready, ServeOptions, Signals};
use crate::site::{InitOptions, Site, initialise};
use crate::units::format_size;
use cairn_metadata::VolumeName;
use cairn_model::{Clock, ErrorKind, Ports};
use std::fmt::Write;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

const FIRST_VOLUME: &str = "disk0";
const FIRST_VOLUME_BYTES: u64 = 10 << 30;

/// How long a gateway that starts waits for a short command, or for a gateway that was killed, to be gone.
const PATIENCE: Duration = Duration::from_secs(5);
const PAUSE: Duration = Duration::from_millis(20);

/// How long threads may take to end once the gateway has.
const LAST_GRACE: Duration = Duration::from_secs(1);

pub(super) fn up(global: &Global, asked: &Up) -> Result<(), GatewayError> {
    if let Some(url) = &asked.pool {
        check_pool("--pool", url)?;
    }
    let options = serve_options(&asked.serve)?;
    let directory = Directory::new(&global.dir)?;
    // A foreign or newer directory is refused before it is touched.
    directory.state()?;
    directory.create()?;
    let json = global.json;
    run(prepare_up(directory, asked, json), &options, async move |ready: Ready<'_>| {
        announce(&ready, json).await
    })
}

/// Makes the directory complete if it is not, and opens it.
async fn prepare_up(directory: Directory, asked: &Up, json: bool) -> Result<Site, GatewayError> {
    let ports = Ports::system();
    let lock = lock(&directory, &*ports.clock).await?;
    if directory.state()? != State::Ready {
        let init = InitOptions {
            catalog_url: None,
            pool_url: asked.pool.clone(),
            create_bucket: asked.create_bucket,
            passphrase: None,
            first_volume: Some((VolumeName::new(FIRST_VOLUME)?, FIRST_VOLUME_BYTES)),
        };
        let config = initialise(&directory, &init, &ports).await?;
        if !json {
            print(&welcome(&directory, &config))?;
        }
    }
    let mut config = load(&directory)?;
    if let Some(url) = &asked.pool {
        if config.pool.url.as_ref().is_some_and(|configured| configured != url) {
            return Err(GatewayError::refused(
                ErrorKind::Conflict,
                format!("--pool {url} is not the data node that {} names", directory.config().display()),
                "leave --pool out, or change [pool] url in that file",
            ));
        }
        config.pool.url = Some(url.clone());
    }
    Site::open(directory, config, lock, ports).await
}

pub(super) fn serve(global: &Global, asked: &Serve) -> Result<(), GatewayError> {
    let options = serve_options(&asked.options)?;
    let directory = Directory::new(&global.dir)?;
    directory.require_ready()?;
    let (take_over, accept_incomplete) = (asked.take_over, asked.accept_incomplete);
    let prepare = async move {
        let ports = Ports::system();
        let lock = lock(&directory, &*ports.clock).await?;
        let config = load(&directory)?;
        let mut site = Site::open(directory, config, lock, ports).await?;
        if take_over {
            site.begin_take_over(accept_incomplete);
        }
        Ok(site)
    };
    run(prepare, &options, async |_: Ready<'_>| Ok(()))
}

fn load(directory: &Directory) -> Result<Config, GatewayError> {
    let config = Config::load(&directory.config(), directory.path())?;
    logging::start(&config.log);
    Ok(config)
}

/// Serves the site that `prepare` opens, until told to stop; also while it is being opened.
fn run(
    prepare: impl Future<Output = Result<Site, GatewayError>>,
    options: &ServeOptions,
    on_ready: impl AsyncFnOnce(Ready<'_>) -> Result<(), GatewayError>,
) -> Result<(), GatewayError> {
    let runtime = runtime()?;
    let served = runtime.block_on(async {
        let mut signals = Signals::listen()?;
        let site = tokio::select! {
            site = prepare => site?,
            () = signals.stop() => return Ok(()),
        };
        serve::serve(Arc::new(site), options, signals, on_ready).await
    });
    // After a second signal something may still wait for a disk or a store that does not answer.
    runtime.shutdown_timeout(LAST_GRACE);
    served
}

fn serve_options(asked: &Options) -> Result<ServeOptions, GatewayError> {
    let unusable = |what: String| GatewayError::Usage { what, next: None };
    let here = std::path::absolute(Path::new("."))
        .map_err(|source| GatewayError::System { action: "find the working directory", source })?;
    let resolve = |address: &ListenAddress| address.clone().resolve(&here).map_err(unusable);
    let nbd = asked.nbd.iter().map(resolve).collect::<Result<Vec<_>, _>>()?;
    Ok(ServeOptions { nbd, accept_lost_wal: asked.accept_lost_wal })
}

/// Takes the directory for a gateway. Waits a while for a command that runs just now, and for a gateway that was killed
/// and that the kernel still takes apart; one that answers is another gateway, which is not waited for.
async fn lock(directory: &Directory, clock: &dyn Clock) -> Result<Lock, GatewayError> {
    let begun = clock.now();
    loop {
        let refused = match directory.lock(Role::Gateway) {
            Err(DirectoryError::Locked { path, holder }) => DirectoryError::Locked { path, holder },
            other => return Ok(other?),
        };
        let patience = PATIENCE.saturating_sub(clock.now().since(begun));
        if patience.is_zero() || is_answered(directory, clock, patience).await {
            return Err(refused.into());
        }
        clock.sleep(PAUSE).await;
    }
}

/// Whether a gateway answers a request. That it can be connected to says little: the socket of a process that was killed
/// takes connections until the kernel closes it.
async fn is_answered(directory: &Directory, clock: &dyn Clock, patience: Duration) -> bool {
    let client = AdminClient::over_socket(&directory.admin_socket());
    tokio::select! {
        answer = client.nodes() => answer.is_ok(),
        () = clock.sleep(patience) => false,
    }
}

fn welcome(directory: &Directory, config: &Config) -> String {
    format!(
        "Made {} with one volume, {FIRST_VOLUME}, of {}.\n\
         {}\n\n",
        directory.path().display(),
        format_size(FIRST_VOLUME_BYTES),
        keep_the_key(config)
    )
}

async fn announce(ready: &Ready<'_>, json: bool) -> Result<(), GatewayError> {
    let status = ready.service.status().await?;
    if json {
        return print_json(&status);
    }
    let mut text = String::new();
    let volumes: Vec<(&str, u64)> =
        status.volumes.iter().map(|volume| (volume.name.as_str(), volume.size_bytes)).collect();
    // Writing to a String cannot fail.
    let _ = describe(&mut text, &status.gateway.directory, &volumes, ready.endpoints);
    print(&text)
}

fn describe(
    text: &mut String,
    directory: &str,
    volumes: &[(&str, u64)],
    endpoints: &[Endpoint],
) -> std::fmt::Result {
    let Some((example, _)) = volumes.first() else {
        writeln!(text, "Serving {directory}, which has no volumes yet. Make one in another terminal:")?;
        return writeln!(
            text,
            "  cairn volume create NAME 10GiB --dir {}",
            shell_quoted(Path::new(directory))
        );
    };
    writeln!(text, "Serving {directory}. Exports:")?;
    for (name, size) in volumes {
        writeln!(text, "  {name} ({})", format_size(*size))?;
        for endpoint in endpoints {
            writeln!(text, "    {}", endpoint.uri(name))?;
        }
    }
    writeln!(text, "\nAttach {example} as a disk (as root, after: modprobe nbd):")?;
    for endpoint in endpoints {
        writeln!(text, "  {}", endpoint.attach_command(example))?;
    }
    if let Some(endpoint) = endpoints.first() {
        writeln!(text, "Or use it without attaching it:")?;
        writeln!(text, "  qemu-img info '{}'", endpoint.uri(example))?;
    }
    writeln!(text, "\nCtrl-C stops serving, once everything written is in the pool.")
}
