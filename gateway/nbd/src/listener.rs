//! Sockets that clients connect to.

use crate::error::NbdError;
use crate::server::Transport;
use rustix::net::sockopt;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};

/// After this long without a byte, TCP asks whether the client is still there ...
const KEEPALIVE_IDLE: Duration = Duration::from_mins(1);
/// ... again after each of these ...
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(15);
/// ... and gives up after this many questions.
const KEEPALIVE_PROBES: u32 = 5;

/// A bound socket: clients may connect already, and are served once the server is.
#[derive(Debug)]
pub struct Listener {
    socket: Socket,
}

#[derive(Debug)]
enum Socket {
    Tcp(TcpListener),
    Unix { listener: UnixListener, file: SocketFile },
}

/// A client's connection.
#[derive(Debug)]
pub(crate) enum Accepted {
    Tcp(TcpStream, SocketAddr),
    Unix(UnixStream),
}

impl Listener {
    pub(crate) async fn bind_tcp(address: SocketAddr) -> Result<Self, NbdError> {
        let failed = |source| NbdError::Listen { address: format!("tcp {address}"), source };
        let listener = TcpListener::bind(address).await.map_err(failed)?;
        Ok(Self { socket: Socket::Tcp(listener) })
    }

    /// A socket file that nobody listens on any more is replaced; a live one, and anything else, is left alone.
    pub(crate) async fn bind_unix(path: &Path, mode: u32) -> Result<Self, NbdError> {
        let failed = |source| NbdError::Listen { address: format!("unix socket {}", path.display()), source };
        remove_stale(path).await?;
        let listener = UnixListener::bind(path).map_err(failed)?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).map_err(failed)?;
        let file = SocketFile::of(path).map_err(failed)?;
        Ok(Self { socket: Socket::Unix { listener, file } })
    }

    /// The bound TCP address, with the port that the system chose for port 0.
    pub fn tcp_address(&self) -> Option<SocketAddr> {
        match &self.socket {
            Socket::Tcp(listener) => listener.local_addr().ok(),
            Socket::Unix { .. } => None,
        }
    }

    pub fn unix_path(&self) -> Option<&Path> {
        match &self.socket {
            Socket::Tcp(_) => None,
            Socket::Unix { file, .. } => Some(&file.path),
        }
    }

    pub(crate) fn transport(&self) -> Transport {
        match &self.socket {
            Socket::Tcp(_) => Transport::Tcp,
            Socket::Unix { .. } => Transport::Unix,
        }
    }

    pub(crate) async fn accept(&self) -> io::Result<Accepted> {
        match &self.socket {
            Socket::Tcp(listener) => {
                let (stream, peer) = listener.accept().await?;
                prepare_tcp(&stream)?;
                Ok(Accepted::Tcp(stream, peer))
            }
            Socket::Unix { listener, .. } => Ok(Accepted::Unix(listener.accept().await?.0)),
        }
    }
}

/// Small replies leave at once, and a client whose machine died is noticed.
fn prepare_tcp(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    sockopt::set_socket_keepalive(stream, true)?;
    sockopt::set_tcp_keepidle(stream, KEEPALIVE_IDLE)?;
    sockopt::set_tcp_keepintvl(stream, KEEPALIVE_INTERVAL)?;
    sockopt::set_tcp_keepcnt(stream, KEEPALIVE_PROBES)?;
    Ok(())
}

async fn remove_stale(path: &Path) -> Result<(), NbdError> {
    let failed = |source| NbdError::Listen { address: format!("unix socket {}", path.display()), source };
    match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed(error)),
        Ok(metadata) if !metadata.file_type().is_socket() => {
            return Err(NbdError::NotASocket { path: path.to_owned() });
        }
        Ok(_) => {}
    }
    match UnixStream::connect(path).await {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            std::fs::remove_file(path).map_err(failed)
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(failed(error)),
        Ok(_) => Err(NbdError::SocketInUse { path: path.to_owned() }),
    }
}

/// The file of a Unix socket: removed with the listener, if it is still the same file.
#[derive(Debug)]
struct SocketFile {
    path: PathBuf,
    device: u64,
    inode: u64,
}

impl SocketFile {
    fn of(path: &Path) -> io::Result<Self> {
        let metadata = std::fs::symlink_metadata(path)?;
        Ok(Self { path: path.to_owned(), device: metadata.dev(), inode: metadata.ino() })
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let same =
            |metadata: std::fs::Metadata| (metadata.dev(), metadata.ino()) == (self.device, self.inode);
        if std::fs::symlink_metadata(&self.path).is_ok_and(same)
            && let Err(error) = std::fs::remove_file(&self.path)
        {
            tracing::debug!(path = %self.path.display(), %error, "cannot remove the socket file");
        }
    }
}
