//! Sockets.

use crate::client::*;
use crate::device::TestDevice;
use crate::server::{MIB, TestServer};
use cairn_model::Kinded;
use cairn_nbd::NbdError;
use std::os::unix::fs::PermissionsExt;

#[tokio::test]
async fn a_tcp_client_is_served() {
    let server = TestServer::with_device(TestDevice::new(MIB)).await;
    let listener = server.server().listen_tcp("127.0.0.1:0".parse().unwrap()).await.unwrap();
    let address = listener.tcp_address().unwrap();
    let talk = async {
        let mut client = Client::new(tokio::net::TcpStream::connect(address).await.unwrap());
        client.greet(3).await;
        client.go("disk").await;
        assert_eq!(client.write(0, 0, b"over tcp").await, 0);
        assert_eq!(client.read_simple(0, 8).await.unwrap(), b"over tcp");
        server.shutdown.cancel();
        client.assert_closed().await;
    };
    tokio::join!(talk, server.server().serve(listener, server.shutdown.clone()));
}

#[tokio::test]
async fn a_stale_socket_file_is_replaced_and_a_live_one_is_not() {
    let server = TestServer::start().await;
    let in_use = server.server().listen_unix(&server.path).await.unwrap_err();
    assert!(matches!(in_use, NbdError::SocketInUse { .. }), "{in_use}");

    let stale = server.path.with_file_name("stale.sock");
    drop(std::os::unix::net::UnixListener::bind(&stale).unwrap());
    assert!(stale.exists());
    let listener = server.server().listen_unix(&stale).await.unwrap();
    assert_eq!(listener.unix_path(), Some(&*stale));
    drop(listener);
    assert!(!stale.exists(), "the socket goes with its listener");
}

#[tokio::test]
async fn a_file_that_is_no_socket_is_left_alone() {
    let server = TestServer::start().await;
    let precious = server.path.with_file_name("precious");
    std::fs::write(&precious, "data").unwrap();
    let refused = server.server().listen_unix(&precious).await.unwrap_err();
    assert!(matches!(refused, NbdError::NotASocket { .. }), "{refused}");
    assert_eq!(refused.kind(), cairn_model::ErrorKind::Conflict);
    assert_eq!(std::fs::read(&precious).unwrap(), b"data");
}

#[tokio::test]
async fn a_socket_is_not_open_to_all_users() {
    let server = TestServer::start().await;
    let mode = std::fs::metadata(&server.path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o660);
}

#[tokio::test]
async fn a_listener_does_not_remove_a_socket_that_replaced_its_own() {
    let server = TestServer::start().await;
    let path = server.path.with_file_name("moved.sock");
    let listener = server.server().listen_unix(&path).await.unwrap();
    std::fs::remove_file(&path).unwrap();
    let _replacement = std::os::unix::net::UnixListener::bind(&path).unwrap();
    drop(listener);
    assert!(path.exists());
}
