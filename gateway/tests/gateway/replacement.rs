//! A change of the master key that is interrupted after any step leaves a site that opens, with every key.

use cairn_gateway::GatewayError;
use cairn_gateway::admin::Service;
use cairn_gateway::admin::types::CreateDomain;
use cairn_gateway::config::Config;
use cairn_gateway::directory::{Directory, Role};
use cairn_gateway::key::published::{PublishedKeys, Revision};
use cairn_gateway::key::source::passphrase_from;
use cairn_gateway::key::{Cost, KeyError, KeyFile, Master, Origin, Passphrase, Protection, SealedKey, file};
use cairn_gateway::site::{InitOptions, ReplaceStep, Site, initialise, is_reserved, sealed_for_replacement};
use cairn_metadata::{DomainName, DomainRow, KeyRow};
use cairn_model::crypto::{Encryption, KeyId, SecretKey};
use cairn_model::{DomainId, ErrorKind, Kinded, Ports};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::Arc;

const WORDS: &str = "correct horse battery staple";

struct Place {
    _parent: tempfile::TempDir,
    directory: Directory,
    ports: Ports,
}

impl Place {
    /// An initialised site with two domains beside its own.
    async fn new() -> Self {
        let parent = tempfile::tempdir().unwrap();
        let directory = Directory::new(&parent.path().join("cairn")).unwrap();
        directory.create().unwrap();
        let place = Self { _parent: parent, directory, ports: Ports::system() };
        Box::pin(initialise(&place.directory, &InitOptions::default(), &place.ports)).await.unwrap();
        let site = place.open().await.unwrap();
        for (name, encryption) in [("tenant", Encryption::Aes256Gcm), ("public", Encryption::Off)] {
            Box::pin(site.create_domain(DomainName::new(name).unwrap(), encryption, None)).await.unwrap();
        }
        site.catalog.close().await;
        place
    }

    fn config(&self) -> Config {
        Config::load(&self.directory.config(), self.directory.path()).unwrap()
    }

    async fn open(&self) -> Result<Site, GatewayError> {
        let lock = self.directory.lock(Role::Command)?;
        Site::open(self.directory.clone(), self.config(), lock, self.ports.clone()).await
    }

    /// With the key that the file holds, opened with the passphrase if it needs one.
    async fn open_sealed(&self) -> Result<Site, GatewayError> {
        let (key, protection) = match file::load(&self.directory.key())? {
            KeyFile::Plain(key) => (key, Protection::Plain),
            KeyFile::Sealed(sealed) => {
                let key = sealed.open(&words()).unwrap().expect("the passphrase is the right one");
                (key, Protection::Passphrase(sealed))
            }
        };
        let master = Master { key, protection, origin: Origin::File(self.directory.key()) };
        let lock = self.directory.lock(Role::Command)?;
        Site::open_with(master, self.directory.clone(), self.config(), lock, self.ports.clone()).await
    }

    fn aside(&self) -> PathBuf {
        self.directory.path().join(".key-replacement")
    }

    fn published(&self) -> PublishedKeys {
        PublishedKeys::decode(&self.object()).unwrap()
    }

    fn object(&self) -> Vec<u8> {
        std::fs::read(self.directory.pool().join("cairn-keys")).unwrap()
    }
}

fn words() -> Passphrase {
    Passphrase::from_line(WORDS.as_bytes()).unwrap()
}

fn domain_keys(site: &Site) -> Vec<(String, [u8; 32])> {
    let domains = site.domains().unwrap();
    domains.iter().map(|(row, key)| (row.name.to_string(), *key.expose())).collect()
}

fn wrapping(rows: &[KeyRow]) -> Vec<KeyId> {
    let mut ids: Vec<KeyId> = rows.iter().map(|row| row.wrapped_by).collect();
    ids.sort_by_key(|id| *id.as_bytes());
    ids.dedup();
    ids
}

fn died() -> GatewayError {
    GatewayError::Refused { kind: ErrorKind::Internal, what: "died".to_owned(), next: None }
}

/// Begins to replace the key and dies after `last`.
async fn replace_until(site: &Site, key: SecretKey, protection: Protection, last: ReplaceStep) {
    let mut observe = |step| if step == last { Err(died()) } else { Ok(()) };
    let ended = site.replace_master_observed(key, protection, None, &mut observe).await;
    assert!(matches!(&ended, Err(GatewayError::Refused { what, .. }) if what == "died"), "{ended:?}");
    site.catalog.close().await;
}

/// Everything is wrapped with the key in the file and nothing else, here and in the pool.
async fn assert_settled(place: &Place, site: &Site, keys: &[(String, [u8; 32])]) {
    assert_eq!(domain_keys(site), keys);
    let held = file::load(&place.directory.key()).unwrap().id();
    assert_eq!(wrapping(&site.catalog.keys().await.unwrap()), [held]);
    assert!(!place.aside().exists());
    site.open_pool().await.unwrap();
    let published = place.published();
    assert_eq!(published.master, held);
    assert_eq!(published.domains.len(), keys.len());
    assert_eq!(published.revision.number, site.key_revision().await.unwrap().0);
}

#[tokio::test]
async fn a_rotation_wraps_every_key_anew_and_changes_none() {
    let place = Place::new().await;
    let site = place.open().await.unwrap();
    let keys = domain_keys(&site);
    let old = std::fs::read(place.directory.key()).unwrap();
    let before = place.published();
    site.replace_master(SecretKey::random(&*place.ports.entropy), Protection::Plain, None).await.unwrap();
    assert_settled(&place, &site, &keys).await;
    assert!(place.published().revision.number > before.revision.number);
    site.catalog.close().await;
    drop(site);
    let site = place.open().await.unwrap();
    assert_settled(&place, &site, &keys).await;
    site.catalog.close().await;
    drop(site);
    // The old key is worthless.
    std::fs::write(place.directory.key(), old).unwrap();
    assert!(matches!(place.open().await, Err(GatewayError::Key(KeyError::WrongKey { .. }))));
}

#[tokio::test]
async fn a_rotation_interrupted_after_any_step_leaves_every_key() {
    for step in ReplaceStep::ALL {
        let place = Place::new().await;
        let site = place.open().await.unwrap();
        let keys = domain_keys(&site);
        let old = file::load(&place.directory.key()).unwrap().id();
        let new = SecretKey::random(&*place.ports.entropy);
        replace_until(&site, new.clone(), Protection::Plain, step).await;
        drop(site);
        let site = place.open().await.unwrap_or_else(|error| panic!("{step:?}: {error}"));
        let went_back = matches!(step, ReplaceStep::Prepared | ReplaceStep::Wrapped);
        let held = file::load(&place.directory.key()).unwrap().id();
        assert_eq!(held, if went_back { old } else { new.id() }, "{step:?}");
        assert_settled(&place, &site, &keys).await;
        // And the next one goes through.
        site.replace_master(SecretKey::random(&*place.ports.entropy), Protection::Plain, None).await.unwrap();
        assert_settled(&place, &site, &keys).await;
        site.catalog.close().await;
    }
}

#[tokio::test]
async fn a_rotation_interrupted_again_and_again_is_settled_in_the_end() {
    let place = Place::new().await;
    let site = place.open().await.unwrap();
    let keys = domain_keys(&site);
    site.catalog.close().await;
    drop(site);
    for step in ReplaceStep::ALL.into_iter().chain(ReplaceStep::ALL.into_iter().rev()) {
        let site = place.open().await.unwrap();
        assert_eq!(domain_keys(&site), keys);
        replace_until(&site, SecretKey::random(&*place.ports.entropy), Protection::Plain, step).await;
    }
    let site = place.open().await.unwrap();
    assert_settled(&place, &site, &keys).await;
}

#[tokio::test]
async fn a_new_passphrase_interrupted_after_any_step_leaves_a_key_file_that_opens() {
    for step in ReplaceStep::ALL {
        let place = Place::new().await;
        let site = place.open().await.unwrap();
        let keys = domain_keys(&site);
        let KeyFile::Plain(key) = file::load(&place.directory.key()).unwrap() else { panic!("it is sealed") };
        let sealed = SealedKey::seal(&key, &words(), Cost::LEAST, &*place.ports.entropy).unwrap();
        replace_until(&site, key, Protection::Passphrase(sealed), step).await;
        drop(site);
        let site = place.open_sealed().await.unwrap_or_else(|error| panic!("{step:?}: {error}"));
        assert_settled(&place, &site, &keys).await;
        let sealed = matches!(file::load(&place.directory.key()).unwrap(), KeyFile::Sealed(_));
        assert_eq!(sealed, !matches!(step, ReplaceStep::Prepared | ReplaceStep::Wrapped), "{step:?}");
        assert_eq!(place.published().key_file.is_some(), sealed, "{step:?}");
        site.catalog.close().await;
    }
}

#[tokio::test]
async fn a_key_file_exchanged_while_the_site_is_open_stops_every_change() {
    let place = Place::new().await;
    let site = place.open().await.unwrap();
    let other = SecretKey::random(&*place.ports.entropy);
    std::fs::remove_file(place.directory.key()).unwrap();
    file::create(&place.directory.key(), &KeyFile::Plain(other)).unwrap();
    let refused = site.create_domain(DomainName::new("late").unwrap(), Encryption::Off, None).await;
    assert_eq!(refused.unwrap_err().kind(), ErrorKind::Conflict);
    let new = SecretKey::random(&*place.ports.entropy);
    let refused = site.replace_master(new, Protection::Plain, None).await;
    assert_eq!(refused.unwrap_err().kind(), ErrorKind::Conflict);
}

#[tokio::test]
async fn a_new_key_that_cannot_be_written_changes_nothing() {
    let place = Place::new().await;
    let site = place.open().await.unwrap();
    let keys = domain_keys(&site);
    // A folder has the name that the new key would wait under.
    std::fs::create_dir(place.aside()).unwrap();
    let new = SecretKey::random(&*place.ports.entropy);
    assert!(site.replace_master(new, Protection::Plain, None).await.is_err());
    std::fs::remove_dir(place.aside()).unwrap();
    assert_settled(&place, &site, &keys).await;
    // Nor when it is only found out while it is written.
    let torn = place.directory.path().join("..key-replacement.new");
    std::fs::create_dir(&torn).unwrap();
    let new = SecretKey::random(&*place.ports.entropy);
    assert!(site.replace_master(new, Protection::Plain, None).await.is_err());
    std::fs::remove_dir(torn).unwrap();
    assert_settled(&place, &site, &keys).await;
}

#[tokio::test]
async fn a_key_that_nobody_knows_is_kept_where_a_replacement_would_wait() {
    let place = Place::new().await;
    let other = KeyFile::Plain(SecretKey::random(&*place.ports.entropy));
    file::create(&place.aside(), &other).unwrap();
    let site = place.open().await.unwrap();
    assert_eq!(file::load(&place.aside()).unwrap().id(), other.id());
    let new = SecretKey::random(&*place.ports.entropy);
    let refused = site.replace_master(new.clone(), Protection::Plain, None).await.unwrap_err();
    assert!(refused.to_string().contains(&other.id().to_string()), "{refused}");
    assert_eq!(file::load(&place.aside()).unwrap().id(), other.id());
    std::fs::remove_file(place.aside()).unwrap();
    site.replace_master(new, Protection::Plain, None).await.unwrap();
}

#[tokio::test]
async fn the_rest_of_a_key_that_was_being_written_is_removed_at_the_start() {
    let place = Place::new().await;
    let names = [".key.new", ".key.new.new", "..key-replacement.new"];
    for name in names {
        let path = place.directory.path().join(name);
        std::fs::write(&path, "cairn-key-1").unwrap();
        assert!(is_reserved(&place.directory.key(), &path));
    }
    assert!(!is_reserved(&place.directory.key(), &place.directory.path().join("copy")));
    place.open().await.unwrap();
    for name in names {
        assert!(!place.directory.path().join(name).exists(), "{name}");
    }
}

#[tokio::test]
async fn a_linked_key_file_stays_a_link() {
    let place = Place::new().await;
    let elsewhere = place.directory.path().with_file_name("stick");
    std::fs::rename(place.directory.key(), &elsewhere).unwrap();
    std::os::unix::fs::symlink(&elsewhere, place.directory.key()).unwrap();
    let site = place.open().await.unwrap();
    let keys = domain_keys(&site);
    site.replace_master(SecretKey::random(&*place.ports.entropy), Protection::Plain, None).await.unwrap();
    assert!(std::fs::symlink_metadata(place.directory.key()).unwrap().is_symlink());
    assert_eq!(std::fs::metadata(&elsewhere).unwrap().permissions().mode() & 0o777, 0o600);
    assert_settled(&place, &site, &keys).await;
}

/// Puts a row in the place of a domain's.
async fn damage(site: &Site, id: DomainId, change: impl Fn(&mut KeyRow)) {
    let purpose = DomainRow::key_purpose(id);
    let rows = site.catalog.keys().await.unwrap();
    let mut row = rows.into_iter().find(|row| row.purpose == purpose).unwrap();
    change(&mut row);
    site.catalog.replace_keys(&[row.clone()], row.wrapped_by).await.unwrap();
}

#[tokio::test]
async fn a_domain_whose_key_is_damaged_does_not_stop_the_others() {
    let place = Place::new().await;
    let site = place.open().await.unwrap();
    let tenant = site.catalog.domain_by_name(&DomainName::new("tenant").unwrap()).await.unwrap();
    damage(&site, tenant.id, |row| row.wrapped[40] ^= 1).await;
    site.catalog.close().await;
    drop(site);
    let site = place.open().await.unwrap();
    assert_eq!(domain_keys(&site).len(), 2);
    let unavailable = site.unavailable_domains();
    assert_eq!(unavailable.len(), 1);
    assert!(unavailable[0].1.contains("damaged"), "{}", unavailable[0].1);
    // A rotation would lose it for good.
    let new = SecretKey::random(&*place.ports.entropy);
    let refused = site.replace_master(new, Protection::Plain, None).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Corrupt);
    site.catalog.close().await;
    drop(site);
    assert_eq!(domain_keys(&place.open().await.unwrap()).len(), 2);
}

#[tokio::test]
async fn a_site_whose_own_key_is_damaged_says_so_and_not_that_the_key_is_wrong() {
    let place = Place::new().await;
    let site = place.open().await.unwrap();
    damage(&site, DomainId::DEFAULT, |row| row.wrapped[40] ^= 1).await;
    site.catalog.close().await;
    drop(site);
    let refused = place.open().await.unwrap_err();
    assert!(matches!(refused, GatewayError::Key(KeyError::DamagedDomainKey { .. })), "{refused:?}");
}

#[tokio::test]
async fn the_pool_has_the_keys_from_the_first_run_on_and_of_every_domain() {
    let place = Place::new().await;
    let site = place.open().await.unwrap();
    let (master, published) = (file::load(&place.directory.key()).unwrap(), place.published());
    let KeyFile::Plain(master) = master else { panic!("it is sealed") };
    assert!(PublishedKeys::is_authentic(&place.object(), &master));
    for (row, key) in site.domains().unwrap() {
        let domain = published.domains.iter().find(|domain| domain.id == row.id).unwrap();
        let purpose = DomainRow::key_purpose(row.id);
        let opened = cairn_model::crypto::unwrap(&master, purpose.as_bytes(), &domain.wrapped).unwrap();
        assert_eq!(opened.expose(), key.expose());
        assert_eq!((domain.encryption, domain.name.as_str()), (row.encryption, row.name.as_str()));
    }
    site.delete_domain(&DomainName::new("public").unwrap(), None).await.unwrap();
    assert_eq!(place.published().domains.len(), 2);
}

#[tokio::test]
async fn keys_that_are_missing_or_damaged_in_the_pool_are_written_again_at_the_start() {
    let place = Place::new().await;
    let object = place.object();
    let path = place.directory.pool().join("cairn-keys");
    for what in [None, Some(&b"cairn-keys-1\nrubbish"[..]), Some(&object[..object.len() / 2])] {
        match what {
            None => std::fs::remove_file(&path).unwrap(),
            Some(bytes) => std::fs::write(&path, bytes).unwrap(),
        }
        let site = place.open().await.unwrap();
        site.open_pool().await.unwrap();
        assert_eq!(place.object(), object);
        site.catalog.close().await;
    }
}

#[tokio::test]
async fn an_old_catalog_never_overwrites_newer_keys_in_the_pool() {
    let place = Place::new().await;
    let catalog = place.directory.path().join("catalog.db");
    let old = std::fs::read(&catalog).unwrap();
    let site = place.open().await.unwrap();
    site.create_domain(DomainName::new("later").unwrap(), Encryption::Aes256Gcm, None).await.unwrap();
    site.catalog.close().await;
    drop(site);
    let newer = place.object();
    std::fs::write(&catalog, old).unwrap();
    for name in ["catalog.db-wal", "catalog.db-shm"] {
        let _ = std::fs::remove_file(place.directory.path().join(name));
    }
    let site = place.open().await.unwrap();
    site.open_pool().await.unwrap();
    assert_eq!(place.object(), newer);
    // Not even when it goes on and has counted further.
    for number in 0..3 {
        let name = DomainName::new(format!("other{number}")).unwrap();
        site.create_domain(name, Encryption::Aes256Gcm, None).await.unwrap();
    }
    assert_eq!(place.object(), newer);
    let problem = site.key_copies()[0].problem.clone().unwrap();
    assert!(problem.contains("old copy"), "{problem}");
    // Unless somebody says so.
    let copies = site.publish_keys(None, true).await.unwrap();
    assert_eq!(copies[0].problem, None);
    assert_eq!(place.published().domains.len(), 6);
}

/// Puts another revision in the object of the pool.
fn republish(place: &Place, revision: Revision) {
    let KeyFile::Plain(master) = file::load(&place.directory.key()).unwrap() else { panic!("it is sealed") };
    let keys = PublishedKeys { revision, ..place.published() };
    std::fs::write(place.directory.pool().join("cairn-keys"), keys.encode(&master)).unwrap();
}

#[tokio::test]
async fn keys_in_the_pool_that_are_older_or_foreign_are_replaced_only_by_hand() {
    let place = Place::new().await;
    for number in [0, 1, 2, 1000] {
        republish(&place, Revision { number, tag: [9; 8] });
        let object = place.object();
        let site = place.open().await.unwrap();
        site.open_pool().await.unwrap();
        assert_eq!(place.object(), object, "{number}");
        assert!(site.key_copies()[0].problem.is_some());
        assert_eq!(site.publish_keys(None, true).await.unwrap()[0].problem, None);
        assert_ne!(place.object(), object);
        site.catalog.close().await;
    }
}

#[tokio::test]
async fn keys_in_the_pool_that_cannot_be_read_are_replaced_by_hand() {
    let place = Place::new().await;
    let path = place.directory.pool().join("cairn-keys");
    let object = place.object();
    for what in [vec![b'x'; (1 << 20) + 1], b"cairn-keys-9\nrubbish".to_vec()] {
        std::fs::write(&path, &what).unwrap();
        let site = place.open().await.unwrap();
        site.open_pool().await.unwrap();
        assert!(place.object() == what);
        assert!(site.key_copies()[0].problem.as_ref().unwrap().contains("--force"));
        site.publish_keys(None, true).await.unwrap();
        assert!(place.object() == object);
        site.catalog.close().await;
    }
}

#[tokio::test]
async fn a_sealed_key_file_leaves_the_pool_when_a_command_tells_the_key() {
    let place = Place::new().await;
    let KeyFile::Plain(key) = file::load(&place.directory.key()).unwrap() else { panic!("it is sealed") };
    let sealed = SealedKey::seal(&key, &words(), Cost::LEAST, &*place.ports.entropy).unwrap();
    let site = place.open().await.unwrap();
    site.replace_master(key.clone(), Protection::Passphrase(sealed), None).await.unwrap();
    assert!(place.published().key_file.is_some());
    site.catalog.close().await;
    drop(site);
    let master = Master { key, protection: Protection::Command, origin: Origin::Command("kms".to_owned()) };
    let lock = place.directory.lock(Role::Command).unwrap();
    let (directory, ports) = (place.directory.clone(), place.ports.clone());
    let site = Site::open_with(master, directory, place.config(), lock, ports).await.unwrap();
    site.open_pool().await.unwrap();
    assert_eq!(site.key_copies()[0].problem, None);
    assert_eq!(place.published().key_file, None);
}

#[tokio::test]
async fn a_domain_that_may_not_be_deleted_uses_up_no_change() {
    let place = Place::new().await;
    let site = place.open().await.unwrap();
    let before = site.key_revision().await.unwrap();
    let default = DomainName::new("default").unwrap();
    assert!(site.delete_domain(&default, None).await.is_err());
    assert_eq!(site.key_revision().await.unwrap(), before);
}

#[tokio::test]
async fn a_change_that_was_begun_with_a_key_that_is_replaced_since_undoes_nothing() {
    let place = Place::new().await;
    let site = place.open().await.unwrap();
    let KeyFile::Plain(old) = file::load(&place.directory.key()).unwrap() else { panic!("it is sealed") };
    // Somebody sets a passphrase for the key that is there ...
    let entropy = &*place.ports.entropy;
    let asked = sealed_for_replacement(&old, &old, entropy);
    let protection = Protection::Passphrase(SealedKey::seal(&old, &words(), Cost::LEAST, entropy).unwrap());
    // ... and somebody else rotates it meanwhile.
    let new = SecretKey::random(entropy);
    let rotation = sealed_for_replacement(&old, &new, entropy);
    let rotated = site.replace_master_sealed(&rotation, Protection::Plain, None).await.unwrap();
    assert_eq!(rotated, new.id());
    let refused = site.replace_master_sealed(&asked, protection, None).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Conflict);
    assert_eq!(file::load(&place.directory.key()).unwrap().id(), new.id());
    let keys = domain_keys(&site);
    assert_settled(&place, &site, &keys).await;
}

#[tokio::test]
async fn a_change_whose_client_went_away_comes_to_its_end() {
    let place = Place::new().await;
    let site = Arc::new(place.open().await.unwrap());
    let service = Service::of_catalog(Arc::clone(&site));
    let asked = CreateDomain { name: "late".to_owned(), encryption: None };
    {
        let mut change = std::pin::pin!(service.create_domain(&asked));
        assert!(futures::poll!(&mut change).is_pending());
    }
    // The task has not run yet: it is let to the lock first.
    tokio::task::yield_now().await;
    site.close().await;
    drop(service);
    drop(site);
    let site = place.open().await.unwrap();
    assert_eq!(domain_keys(&site).len(), 4);
    site.open_pool().await.unwrap();
    assert_eq!(place.published().domains.len(), 4);
}

#[tokio::test]
async fn a_data_node_that_takes_no_writes_does_not_stop_a_change() {
    let place = Place::new().await;
    let site = place.open().await.unwrap();
    let pool = place.directory.pool();
    // A folder in the place of the staging area makes every put fail, for root too.
    let _ = std::fs::remove_dir_all(pool.join("staging"));
    std::fs::write(pool.join("staging"), "").unwrap();
    let keys = domain_keys(&site);
    site.replace_master(SecretKey::random(&*place.ports.entropy), Protection::Plain, None).await.unwrap();
    assert_eq!(domain_keys(&site), keys);
    assert!(site.key_copies()[0].problem.is_some());
    std::fs::remove_file(pool.join("staging")).unwrap();
    assert_settled(&place, &site, &keys).await;
}

#[test]
fn a_passphrase_file_is_read_as_it_was_written() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("words");
    std::fs::write(&path, format!("{WORDS}\n")).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
    assert!(passphrase_from(&path).unwrap().is_same(&words()));
}
