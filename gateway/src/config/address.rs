//! Addresses that are listened on: `HOST:PORT` or `unix:PATH`.

use std::fmt;
use std::path::{Path, PathBuf};

/// Longest path of a Unix socket on Linux (`sun_path` less its terminating zero).
pub const UNIX_PATH_BYTES_MAX: usize = 107;

/// Where a server listens.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum ListenAddress {
    Tcp { host: String, port: u16 },
    Unix(PathBuf),
}

impl ListenAddress {
    /// Parses `HOST:PORT` (`127.0.0.1:10809`, `[::1]:10809`, `name:10809`) or `unix:PATH`. The message of the error
    /// completes a sentence that begins with the address.
    pub fn parse(text: &str) -> Result<Self, String> {
        if let Some(path) = text.strip_prefix("unix:") {
            if path.is_empty() || path.contains('\0') {
                return Err(format!("`{text}` names no socket: write unix:PATH"));
            }
            return Ok(Self::Unix(PathBuf::from(path)));
        }
        let shape = || format!("`{text}` is no address: write HOST:PORT, [IPV6]:PORT or unix:PATH");
        let (host, port) = text.rsplit_once(':').ok_or_else(shape)?;
        let port: u16 = port
            .parse()
            .map_err(|_| format!("`{text}` has no valid port: write HOST:PORT, as 127.0.0.1:10809"))?;
        let bracketed = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
        let host = bracketed.unwrap_or(host);
        let well_formed = !host.is_empty()
            && !host.chars().any(|c| c.is_whitespace() || c.is_control() || "[]/".contains(c))
            && host.contains(':') == bracketed.is_some();
        if well_formed { Ok(Self::Tcp { host: host.to_owned(), port }) } else { Err(shape()) }
    }

    /// The address with a relative socket path taken from `base`; refuses a path that no socket can have.
    pub fn resolve(self, base: &Path) -> Result<Self, String> {
        let Self::Unix(path) = self else { return Ok(self) };
        let path = base.join(path);
        let bytes = path.as_os_str().len();
        if bytes > UNIX_PATH_BYTES_MAX {
            return Err(format!(
                "unix:{} has {bytes} bytes; a socket's path has at most {UNIX_PATH_BYTES_MAX}: choose a shorter one, as unix:/run/cairn.sock",
                path.display()
            ));
        }
        Ok(Self::Unix(path))
    }

    /// Whether only this host can reach it. A name counts as remote unless it is `localhost`.
    pub fn is_local(&self) -> bool {
        match self {
            Self::Unix(_) => true,
            Self::Tcp { host, .. } => {
                host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
            }
        }
    }
}

impl fmt::Display for ListenAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp { host, port } if host.contains(':') => write!(f, "[{host}]:{port}"),
            Self::Tcp { host, port } => write!(f, "{host}:{port}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tcp(host: &str, port: u16) -> ListenAddress {
        ListenAddress::Tcp { host: host.to_owned(), port }
    }

    #[test]
    fn addresses_are_host_and_port_or_a_socket() {
        assert_eq!(ListenAddress::parse("127.0.0.1:10809"), Ok(tcp("127.0.0.1", 10809)));
        assert_eq!(ListenAddress::parse("[::1]:1"), Ok(tcp("::1", 1)));
        assert_eq!(ListenAddress::parse("db.example:10809"), Ok(tcp("db.example", 10809)));
        assert_eq!(ListenAddress::parse("unix:/run/a b"), Ok(ListenAddress::Unix("/run/a b".into())));
    }

    #[test]
    fn what_is_no_address_is_refused() {
        for text in [
            "",
            "10809",
            ":10809",
            "host:",
            "host:70000",
            "::1:10809",
            "unix:",
            "a b:1",
            "[::1]",
            "[host]:1",
            "http://h:1",
        ] {
            assert!(ListenAddress::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn an_address_prints_as_it_parses() {
        for text in ["127.0.0.1:10809", "[::1]:1", "unix:/run/nbd.sock"] {
            assert_eq!(ListenAddress::parse(text).unwrap().to_string(), text);
        }
    }

    #[test]
    fn a_socket_path_that_does_not_fit_is_refused() {
        let base = PathBuf::from("/").join("d".repeat(120));
        assert!(ListenAddress::parse("unix:nbd.sock").unwrap().resolve(&base).is_err());
        assert_eq!(
            ListenAddress::parse("unix:nbd.sock").unwrap().resolve(Path::new("/run")),
            Ok(ListenAddress::Unix("/run/nbd.sock".into()))
        );
    }
}
