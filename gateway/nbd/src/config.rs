use crate::error::NbdError;
use crate::protocol::PAYLOAD_ANNOUNCED;
use crate::tls::TlsConfig;
use std::time::Duration;

/// How a server behaves.
#[derive(Clone, Debug)]
pub struct ServerConfig {
    /// Without it clients talk in the clear.
    pub tls: Option<TlsConfig>,
    pub limits: Limits,
    /// A client that is not in the transmission phase after this long is dropped.
    pub handshake_timeout: Duration,
    /// How long requests in flight may take after a shutdown was asked for.
    pub shutdown_grace: Duration,
    /// Access mode of a Unix socket. Whoever may write to it may use every export.
    pub unix_socket_mode: u32,
}

impl Default for ServerConfig {
    fn default() -> Self {
        Self {
            tls: None,
            limits: Limits::default(),
            handshake_timeout: Duration::from_secs(30),
            shutdown_grace: Duration::from_secs(10),
            unix_socket_mode: 0o660,
        }
    }
}

/// What clients can make the server hold. At a limit of a connection the server stops reading from it until
/// something completes; nothing fails.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limits {
    /// Connections of one server, over all its listeners; one more is closed at once.
    pub connections_max: usize,
    /// Requests of one connection that the device works on.
    pub requests_in_flight_max: usize,
    /// Payloads of one connection: writes arriving or in flight, reads in flight, replies not sent yet.
    pub bytes_in_flight_max: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { connections_max: 1024, requests_in_flight_max: 256, bytes_in_flight_max: 64 << 20 }
    }
}

impl Limits {
    pub(crate) fn validate(&self) -> Result<(), NbdError> {
        let refuse = |setting, requirement| Err(NbdError::Limit { setting, requirement });
        if self.connections_max == 0 {
            return refuse("connection limit", "must be at least 1");
        }
        if !(1..=65_536).contains(&self.requests_in_flight_max) {
            return refuse("limit of requests in flight", "must be between 1 and 65536");
        }
        if self.bytes_in_flight_max < PAYLOAD_ANNOUNCED as usize {
            return refuse("limit of bytes in flight", "must be at least 32 MiB, the largest request");
        }
        Ok(())
    }
}
