//! Listening for the admin API.

use crate::error::GatewayError;
use crate::socket;
use axum::Router;
use axum::extract::Request;
use axum::http::StatusCode;
use axum::http::header::HOST;
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use std::net::SocketAddr;
use std::path::Path;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Serves `routes` on the socket at `path` until `stop`. The socket is gone when the task is.
pub fn serve_socket(
    path: &Path,
    routes: Router,
    tasks: &TaskTracker,
    stop: &CancellationToken,
) -> Result<(), GatewayError> {
    let listener = socket::listen(path)
        .map_err(|source| GatewayError::Listen { address: format!("unix:{}", path.display()), source })?;
    let (stop, path) = (stop.clone(), path.to_owned());
    tasks.spawn(async move {
        let serving = axum::serve(listener, routes).with_graceful_shutdown(stop.cancelled_owned());
        if let Err(error) = serving.await {
            tracing::error!(%error, "the admin API stopped");
        }
        if let Err(error) = std::fs::remove_file(&path) {
            tracing::debug!(%error, "cannot remove admin.sock");
        }
    });
    Ok(())
}

/// Serves `routes` on a loopback address until `stop`.
pub async fn serve_tcp(
    address: SocketAddr,
    routes: Router,
    tasks: &TaskTracker,
    stop: &CancellationToken,
) -> Result<(), GatewayError> {
    let listener = tokio::net::TcpListener::bind(address)
        .await
        .map_err(|source| GatewayError::Listen { address: address.to_string(), source })?;
    let routes = routes.layer(middleware::from_fn(only_for_this_host));
    let stop = stop.clone();
    tasks.spawn(async move {
        let serving = axum::serve(listener, routes).with_graceful_shutdown(stop.cancelled_owned());
        if let Err(error) = serving.await {
            tracing::error!(%error, "the admin API on TCP stopped");
        }
    });
    Ok(())
}

/// Refuses requests that a web page made a browser send: their host is a name that somebody pointed at this address.
async fn only_for_this_host(request: Request, next: Next) -> Response {
    let host = request.headers().get(HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
    if is_this_host(host) {
        next.run(request).await
    } else {
        (StatusCode::FORBIDDEN, "the admin API answers to localhost only\n").into_response()
    }
}

fn is_this_host(host: &str) -> bool {
    if let Ok(address) = host.parse::<SocketAddr>() {
        return address.ip().is_loopback();
    }
    let name =
        host.rsplit_once(':').filter(|(_, port)| port.parse::<u16>().is_ok()).map_or(host, |(name, _)| name);
    let bare = name.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(name);
    name == "localhost" || bare.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

#[doc(hidden)]
pub mod fuzzing {
    /// Whether a request with this `host` is answered.
    pub fn is_this_host(host: &str) -> bool {
        super::is_this_host(host)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_loopback_names_are_this_host() {
        for host in ["localhost", "localhost:10810", "127.0.0.1", "127.0.0.1:80", "[::1]:80", "[::1]"] {
            assert!(is_this_host(host), "{host}");
        }
        for host in [
            "",
            "evil.example",
            "evil.example:10810",
            "10.0.0.1:80",
            "localhost.evil.example",
            "127.0.0.1.evil.example",
        ] {
            assert!(!is_this_host(host), "{host}");
        }
    }
}
