//! Serves a disk in memory until interrupted: to try clients against, and as the floor for benchmarks.
//!
//! `cargo run --release -p cairn-nbd --example memory_server -- unix:/tmp/nbd.sock 1073741824`

use anyhow::Context;
use cairn_model::Ports;
use cairn_nbd::memory::{DeviceTable, MemoryDevice};
use cairn_nbd::{NbdServer, ServerConfig, TlsConfig, TlsFiles, TlsMode};
use std::sync::Arc;
use tokio_util::sync::CancellationToken;

const USAGE: &str = "usage: memory_server ADDRESS|unix:PATH SIZE_BYTES [CERTIFICATE KEY [CLIENT_AUTHORITY]]";

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [address, size, tls @ ..] = &arguments[..] else { anyhow::bail!(USAGE) };
    let device = Arc::new(MemoryDevice::new(size.parse().context(USAGE)?));
    let exports = DeviceTable::new([("disk0".to_owned(), device)]);
    let mut config = ServerConfig::default();
    if let [certificate, key, authority @ ..] = tls {
        let client_authority = authority.first().map(Into::into);
        let files = TlsFiles { certificate: certificate.into(), key: key.into(), client_authority };
        config.tls = Some(TlsConfig::from_files(&files, TlsMode::Required)?.require_on_unix());
    }
    let server = NbdServer::new(Arc::new(exports), config, Ports::system())?;
    let listener = match address.strip_prefix("unix:") {
        Some(path) => server.listen_unix(path).await?,
        None => server.listen_tcp(address.parse().context(USAGE)?).await?,
    };
    println!("listening on {address}");
    let shutdown = CancellationToken::new();
    let stop = async {
        let interrupted = tokio::signal::ctrl_c().await;
        shutdown.cancel();
        interrupted
    };
    let ((), interrupted) = tokio::join!(server.serve(listener, shutdown.clone()), stop);
    println!("{:?}", server.counters().snapshot());
    Ok(interrupted?)
}
