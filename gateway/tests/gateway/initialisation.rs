//! A first run that is interrupted after any step is completed by the next one.

use cairn_gateway::GatewayError;
use cairn_gateway::config::Config;
use cairn_gateway::directory::{Directory, DirectoryError, Role, State};
use cairn_gateway::key::{Cost, KeyError, KeyFile, Passphrase, SealedKey, file};
use cairn_gateway::site::{InitOptions, Site, Step, initialise, initialise_observed};
use cairn_metadata::VolumeName;
use cairn_model::crypto::SecretKey;
use cairn_model::{ErrorKind, Ports};
use std::sync::Arc;

fn options() -> InitOptions {
    InitOptions { first_volume: Some((VolumeName::new("disk0").unwrap(), 1 << 30)), ..InitOptions::default() }
}

struct FirstRun {
    _parent: tempfile::TempDir,
    directory: Directory,
    ports: Ports,
}

impl FirstRun {
    fn new() -> Self {
        let parent = tempfile::tempdir().unwrap();
        let directory = Directory::new(&parent.path().join("cairn")).unwrap();
        directory.create().unwrap();
        Self { _parent: parent, directory, ports: Ports::system() }
    }

    /// Runs until `last` is durable, then dies.
    async fn interrupted_after(&self, last: Step) {
        let died =
            || GatewayError::Refused { kind: ErrorKind::Internal, what: "died".to_owned(), next: None };
        let mut observe = |step| if step == last { Err(died()) } else { Ok(()) };
        let ended = initialise_observed(&self.directory, &options(), &self.ports, &mut observe).await;
        assert!(matches!(ended, Err(GatewayError::Refused { .. })), "{ended:?}");
    }

    async fn open(&self) -> Result<Site, GatewayError> {
        let config = Config::load(&self.directory.config(), self.directory.path())?;
        let lock = self.directory.lock(Role::Command)?;
        Site::open(self.directory.clone(), config, lock, self.ports.clone()).await
    }

    fn key(&self) -> Option<Vec<u8>> {
        std::fs::read(self.directory.key()).ok()
    }

    /// One site, one gateway, one node, one volume, and a pool that opens.
    async fn assert_complete(&self) {
        assert_eq!(self.directory.state().unwrap(), State::Ready);
        let site = self.open().await.unwrap();
        assert_eq!(site.catalog.gateways().await.unwrap().len(), 1);
        let keys = site.catalog.keys().await.unwrap();
        assert_eq!(keys.iter().map(|row| row.purpose.as_str()).collect::<Vec<_>>(), ["data", "revision"]);
        assert_eq!(site.catalog.nodes().await.unwrap().len(), 1);
        let volumes = site.catalog.volumes().await.unwrap();
        assert_eq!(volumes.iter().map(|row| row.name.as_str()).collect::<Vec<_>>(), ["disk0"]);
        site.open_pool().await.unwrap();
        site.catalog.close().await;
    }
}

#[tokio::test]
async fn a_first_run_makes_a_complete_directory() {
    let run = FirstRun::new();
    initialise(&run.directory, &options(), &run.ports).await.unwrap();
    run.assert_complete().await;
}

#[tokio::test]
async fn a_run_interrupted_after_any_step_is_completed_by_the_next() {
    for step in Step::ALL {
        let run = FirstRun::new();
        run.interrupted_after(step).await;
        let key = run.key();
        if step == Step::Completed {
            assert_eq!(run.directory.state().unwrap(), State::Ready);
        } else {
            assert_eq!(run.directory.state().unwrap(), State::Interrupted, "{step:?}");
            initialise(&run.directory, &options(), &run.ports).await.unwrap();
        }
        run.assert_complete().await;
        assert!(key.is_none() || key == run.key(), "{step:?}: the key was replaced");
    }
}

#[tokio::test]
async fn a_run_may_be_interrupted_again_and_again() {
    let run = FirstRun::new();
    for step in &Step::ALL[..7] {
        run.interrupted_after(*step).await;
    }
    initialise(&run.directory, &options(), &run.ports).await.unwrap();
    run.assert_complete().await;
}

#[tokio::test]
async fn an_incomplete_directory_is_not_served() {
    let run = FirstRun::new();
    run.interrupted_after(Step::VolumeMade).await;
    let refused = run.open().await;
    assert!(
        matches!(refused, Err(GatewayError::Directory(DirectoryError::Incomplete { .. }))),
        "{refused:?}"
    );
}

#[tokio::test]
async fn a_complete_directory_is_never_initialised_again() {
    let run = FirstRun::new();
    initialise(&run.directory, &options(), &run.ports).await.unwrap();
    let key = run.key();
    let refused = initialise(&run.directory, &options(), &run.ports).await;
    assert!(
        matches!(refused, Err(GatewayError::Directory(DirectoryError::AlreadyInitialised { .. }))),
        "{refused:?}"
    );
    assert_eq!(run.key(), key);
}

#[tokio::test]
async fn a_key_exchanged_during_an_interruption_is_noticed() {
    let run = FirstRun::new();
    run.interrupted_after(Step::CatalogMade).await;
    std::fs::remove_file(run.directory.key()).unwrap();
    let refused = initialise(&run.directory, &options(), &run.ports).await;
    assert!(matches!(refused, Err(GatewayError::Key(KeyError::WrongKey { .. }))), "{refused:?}");
    assert_eq!(run.directory.state().unwrap(), State::Interrupted);
}

fn with_passphrase(words: &str) -> InitOptions {
    let passphrase = Passphrase::from_line(words.as_bytes()).unwrap();
    InitOptions { passphrase: Some(Arc::new(passphrase)), ..options() }
}

#[tokio::test]
async fn a_passphrase_is_refused_for_a_key_that_is_there_and_needs_none() {
    let run = FirstRun::new();
    run.interrupted_after(Step::Keyed).await;
    let key = run.key();
    let refused =
        initialise(&run.directory, &with_passphrase("correct horse"), &run.ports).await.unwrap_err();
    assert!(refused.hint().unwrap().contains("cairn key passphrase"), "{refused:?}");
    assert_eq!(run.key(), key);
    initialise(&run.directory, &options(), &run.ports).await.unwrap();
    run.assert_complete().await;
}

#[tokio::test]
async fn a_passphrase_opens_the_sealed_key_that_is_there() {
    let run = FirstRun::new();
    let (key, words) = (SecretKey::random(&*run.ports.entropy), b"correct horse");
    let words = Passphrase::from_line(words).unwrap();
    let sealed = SealedKey::seal(&key, &words, Cost::LEAST, &*run.ports.entropy).unwrap();
    run.interrupted_after(Step::Identified).await;
    file::create(&run.directory.key(), &KeyFile::Sealed(sealed)).unwrap();
    let refused = initialise(&run.directory, &with_passphrase("another horse"), &run.ports).await;
    assert!(matches!(refused, Err(GatewayError::Key(KeyError::WrongPassphrase { .. }))), "{refused:?}");
    initialise(&run.directory, &with_passphrase("correct horse"), &run.ports).await.unwrap();
    assert_eq!(run.directory.state().unwrap(), State::Ready);
}

#[tokio::test]
async fn a_pool_that_cannot_be_reached_leaves_a_run_that_another_pool_completes() {
    let run = FirstRun::new();
    let blocked = run.directory.path().with_file_name("file");
    std::fs::write(&blocked, "").unwrap();
    let wrong = InitOptions { pool_url: Some(format!("file://{}/pool", blocked.display())), ..options() };
    assert!(initialise(&run.directory, &wrong, &run.ports).await.is_err());
    assert_eq!(run.directory.state().unwrap(), State::Interrupted);
    let elsewhere = run.directory.path().with_file_name("elsewhere");
    let right = InitOptions { pool_url: Some(format!("file://{}", elsewhere.display())), ..options() };
    initialise(&run.directory, &right, &run.ports).await.unwrap();
    run.assert_complete().await;
    assert!(elsewhere.join("cairn-node.json").exists());
}

#[tokio::test]
async fn a_pool_of_another_site_is_refused() {
    let first = FirstRun::new();
    initialise(&first.directory, &options(), &first.ports).await.unwrap();
    let second = FirstRun::new();
    let taken =
        InitOptions { pool_url: Some(format!("file://{}", first.directory.pool().display())), ..options() };
    let refused = initialise(&second.directory, &taken, &second.ports).await.unwrap_err();
    assert!(refused.full_message().contains("belongs to site"), "{}", refused.full_message());
}
