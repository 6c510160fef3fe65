//! STARTTLS.

use crate::client::*;
use crate::device::TestDevice;
use crate::server::{MIB, TestServer, eventually, pattern, soon};
use cairn_nbd::{NbdError, ServerConfig, TlsConfig, TlsFiles, TlsMode};
use rcgen::{CertificateParams, CertifiedIssuer, KeyPair};
use rustls::RootCertStore;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tempfile::TempDir;
use tokio_rustls::TlsConnector;

/// An authority and what it signed, as files.
struct Certificates {
    directory: TempDir,
}

impl Certificates {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        for name in ["authority", "stranger"] {
            let mut params = CertificateParams::new(vec![]).unwrap();
            params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
            let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
            write_private(&directory.path().join(format!("{name}.pem")), &issuer.pem());
            for role in ["server", "client"] {
                let key = KeyPair::generate().unwrap();
                let params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
                let certificate = params.signed_by(&key, &issuer).unwrap();
                write_private(&directory.path().join(format!("{name}-{role}.pem")), &certificate.pem());
                write_private(&directory.path().join(format!("{name}-{role}.key")), &key.serialize_pem());
            }
        }
        Self { directory }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn files(&self, clients: bool) -> TlsFiles {
        TlsFiles {
            certificate: self.path("authority-server.pem"),
            key: self.path("authority-server.key"),
            client_authority: clients.then(|| self.path("authority.pem")),
        }
    }

    async fn server(&self, mode: TlsMode, clients: bool) -> TestServer {
        let tls = TlsConfig::from_files(&self.files(clients), mode).unwrap().require_on_unix();
        let config = ServerConfig { tls: Some(tls), ..ServerConfig::default() };
        TestServer::with(TestDevice::new(64 * MIB), config).await
    }

    /// A client's TLS that trusts the authority and may show a certificate signed by `signer`.
    fn connector(&self, signer: Option<&str>) -> TlsConnector {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(self.path("authority.pem")).unwrap()).unwrap();
        let builder = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots);
        let config = match signer {
            None => builder.with_no_client_auth(),
            Some(signer) => {
                let chain =
                    vec![CertificateDer::from_pem_file(self.path(&format!("{signer}-client.pem"))).unwrap()];
                let key = PrivateKeyDer::from_pem_file(self.path(&format!("{signer}-client.key"))).unwrap();
                builder.with_client_auth_cert(chain, key).unwrap()
            }
        };
        Arc::new(config).into()
    }

    /// STARTTLS up to where options are exchanged inside TLS.
    async fn start_tls(&self, path: &Path, signer: Option<&str>) -> std::io::Result<Client> {
        let mut plain = Client::greeted(path).await;
        assert_eq!(plain.option(OPT_STARTTLS, &[]).await.kind, REP_ACK);
        self.secure(plain, signer).await
    }

    async fn secure(&self, plain: Client, signer: Option<&str>) -> std::io::Result<Client> {
        let name = ServerName::try_from("localhost").unwrap();
        Ok(Client::new(self.connector(signer).connect(name, plain.stream).await?))
    }
}

fn write_private(path: &Path, text: &str) {
    std::fs::write(path, text).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).unwrap();
}

#[tokio::test]
async fn required_tls_answers_nothing_else_in_the_clear() {
    let certificates = Certificates::new();
    let server = certificates.server(TlsMode::Required, false).await;
    let mut client = Client::greeted(&server.path).await;
    let options =
        [OPT_LIST, OPT_INFO, OPT_GO, OPT_STRUCTURED_REPLY, OPT_EXTENDED_HEADERS, OPT_SET_META_CONTEXT, 99];
    for option in options {
        assert_eq!(client.option(option, &[]).await.kind, REP_ERR_TLS_REQD, "option {option}");
    }
    client.send_option(OPT_EXPORT_NAME, b"disk").await;
    client.assert_closed().await;

    let mut leaving = Client::greeted(&server.path).await;
    assert_eq!(leaving.option(OPT_ABORT, &[]).await.kind, REP_ACK);
}

#[tokio::test]
async fn data_goes_both_ways_inside_tls() {
    let certificates = Certificates::new();
    let server = certificates.server(TlsMode::Required, false).await;
    let mut client = certificates.start_tls(&server.path, None).await.unwrap();
    assert_eq!(client.option(OPT_STARTTLS, &[]).await.kind, REP_ERR_INVALID, "TLS is active already");
    client.go("disk").await;
    for length in [5, 4096, 70_000, 20_000_000] {
        let data = pattern(length, usize::try_from(length).unwrap());
        assert_eq!(client.write(0, 3, &data).await, 0);
        assert!(soon(client.read_simple(3, length)).await.unwrap() == data);
    }
    client.request(0, DISC, 0, 0, 0).await;
    client.assert_closed().await;
}

#[tokio::test]
async fn what_was_negotiated_in_the_clear_is_forgotten() {
    let certificates = Certificates::new();
    let server = certificates.server(TlsMode::Optional, false).await;
    let mut plain = Client::greeted(&server.path).await;
    assert_eq!(plain.option(OPT_EXTENDED_HEADERS, &[]).await.kind, REP_ACK);
    plain.select_allocation("disk").await;
    assert_eq!(plain.option(OPT_STARTTLS, &[]).await.kind, REP_ACK);
    let mut client = certificates.secure(plain, None).await.unwrap();
    client.go("disk").await;
    let errno = soon(client.command(0, BLOCK_STATUS, 0, 512)).await;
    assert_eq!(errno, EINVAL, "simple replies and no contexts");
}

#[tokio::test]
async fn optional_tls_serves_both_kinds_of_clients() {
    let certificates = Certificates::new();
    let server = certificates.server(TlsMode::Optional, false).await;
    let mut plain = Client::simple(&server.path, "disk").await;
    assert_eq!(plain.write(0, 0, b"plain").await, 0);
    let mut secured = certificates.start_tls(&server.path, None).await.unwrap();
    secured.go("disk").await;
    assert_eq!(secured.read_simple(0, 5).await.unwrap(), b"plain");
}

#[tokio::test]
async fn clients_must_show_a_certificate_of_the_authority_when_one_is_set() {
    let certificates = Certificates::new();
    let server = certificates.server(TlsMode::Required, true).await;
    let mut known = certificates.start_tls(&server.path, Some("authority")).await.unwrap();
    known.go("disk").await;

    for (count, signer) in [(1, None), (2, Some("stranger"))] {
        // With TLS 1.3 the client learns of the refusal when it first reads.
        if let Ok(mut refused) = certificates.start_tls(&server.path, signer).await {
            let mut byte = [0];
            let read = tokio::io::AsyncReadExt::read(&mut refused.stream, &mut byte).await;
            assert!(matches!(read, Err(_) | Ok(0)), "{signer:?} was let in");
        }
        eventually("refusing", || server.counters().handshakes_failed == count).await;
    }
}

#[tokio::test]
async fn words_in_the_clear_behind_starttls_are_not_taken_for_words_inside() {
    let certificates = Certificates::new();
    let server = certificates.server(TlsMode::Optional, false).await;
    let mut client = Client::greeted(&server.path).await;
    client.send(b"IHAVEOPT\0\0\0\x05\0\0\0\0IHAVEOPT\0\0\0\x03\0\0\0\0").await;
    assert_eq!(client.option_reply(OPT_STARTTLS).await.kind, REP_ACK);
    let mut rest = Vec::new();
    let _ended = tokio::io::AsyncReadExt::read_to_end(&mut client.stream, &mut rest).await;
    assert!(!rest.windows(4).any(|bytes| bytes == b"disk"), "the injected LIST was answered");
}

#[tokio::test]
async fn tls_is_optional_on_unix_sockets_unless_asked_for() {
    let certificates = Certificates::new();
    let tls = TlsConfig::from_files(&certificates.files(false), TlsMode::Required).unwrap();
    let config = ServerConfig { tls: Some(tls), ..ServerConfig::default() };
    let server = TestServer::with(TestDevice::new(MIB), config).await;
    let mut client = Client::simple(&server.path, "disk").await;
    assert_eq!(client.command(0, FLUSH, 0, 0).await, 0);
}

#[test]
fn files_that_cannot_be_used_are_named() {
    let certificates = Certificates::new();
    let load = |files: &TlsFiles| TlsConfig::from_files(files, TlsMode::Required).unwrap_err();

    let missing =
        load(&TlsFiles { certificate: certificates.path("nothing.pem"), ..certificates.files(false) });
    assert!(matches!(&missing, NbdError::TlsFile { path, .. } if path.ends_with("nothing.pem")), "{missing}");

    let empty = certificates.path("empty.pem");
    write_private(&empty, "");
    let no_certificate = load(&TlsFiles { certificate: empty, ..certificates.files(false) });
    assert!(matches!(no_certificate, NbdError::NoCertificate { .. }), "{no_certificate}");

    let foreign =
        load(&TlsFiles { key: certificates.path("stranger-server.key"), ..certificates.files(false) });
    assert!(matches!(foreign, NbdError::TlsRejected(_)), "{foreign}");

    let key = certificates.path("authority-server.key");
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o644)).unwrap();
    let exposed = load(&certificates.files(false));
    assert!(matches!(exposed, NbdError::KeyExposed { .. }), "{exposed}");
}
