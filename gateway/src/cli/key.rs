//! `cairn key`.
//!
//! This process opens the present key and makes the new one; whoever works with the keys, a running gateway or this process, is given
//! it sealed under the present one. So no key and no passphrase is ever part of a message.

use super::access::{Need, with_access, with_access_as};
use super::args::{Global, Key as Command};
use super::domain::listing;
use super::output::{answer, print, print_json, warn};
use crate::admin::types::{Key, KeyCopy, PublishKeys, ReplaceKey};
use crate::client::AdminClient;
use crate::config::{Config, KeyConfig};
use crate::directory::Directory;
use crate::error::GatewayError;
use crate::key::{KeyError, KeyFile, Passphrase, Protection, Unlocked, file, prompt, source};
use crate::site::{is_reserved, sealed_for_replacement};
use cairn_model::crypto::SecretKey;
use cairn_model::{ErrorKind, Ports};
use std::path::Path;

pub(super) async fn run(global: &Global, command: Command) -> Result<(), GatewayError> {
    match command {
        Command::Show => {
            let key = with_access(global, Need::Tell, async |access| access.client.key().await).await?;
            answer(global.json, &key, details)
        }
        Command::Rotate => rotate(global).await,
        Command::Passphrase { new_file, remove } => passphrase(global, new_file.as_deref(), remove).await,
        Command::Export { file, passphrase, passphrase_file } => {
            export(global, &file, passphrase, passphrase_file.as_deref()).await
        }
        Command::Publish { force } => {
            let how = PublishKeys { force };
            let key =
                with_access(global, Need::Catalog, async |access| access.client.publish_keys(&how).await)
                    .await?;
            if let Some(copy) = key.copies.iter().find(|copy| copy.problem.is_some()) {
                let problem = copy.problem.clone().unwrap_or_default();
                return Err(GatewayError::Refused {
                    kind: ErrorKind::Unavailable,
                    what: format!("data node {} has no copy of the present keys: {problem}", copy.node),
                    next: None,
                });
            }
            answer(global.json, &key, |key| {
                format!("The data nodes have the keys as of change {}.\n", key.revision)
            })
        }
    }
}

/// The present key, opened here.
struct Present {
    config: KeyConfig,
    ports: Ports,
    unlocked: Unlocked,
}

impl Present {
    async fn open(global: &Global) -> Result<Self, GatewayError> {
        let directory = Directory::new(&global.dir)?;
        directory.require_ready()?;
        let config = Config::load(&directory.config(), directory.path())?.key;
        let ports = Ports::system();
        let unlocked = source::obtain(&config, &ports).await?;
        Ok(Self { config, ports, unlocked })
    }

    fn key(&self) -> &SecretKey {
        &self.unlocked.master.key
    }

    /// Fails when the site does not work with this key.
    async fn check(&self, client: &AdminClient) -> Result<(), GatewayError> {
        let used = client.key().await?.id;
        let given = self.key().id();
        if used == given.to_string() {
            return Ok(());
        }
        Err(GatewayError::refused(
            ErrorKind::Conflict,
            format!("{} has key {given}, and the site works with key {used}", source::origin(&self.config)),
            "restart the gateway if the key was changed while it ran, or put the right key back",
        ))
    }

    /// Refuses what only a key file allows.
    fn require_file(&self, command: &str) -> Result<(), GatewayError> {
        let KeyConfig::Command { program, .. } = &self.config else { return Ok(()) };
        let next = match command {
            "rotate" => {
                "run `cairn key export FILE`, name that file as [key] path in the place of the command and restart, rotate, \
                 give the new key to what the command asks, and name the command again"
            }
            _ => {
                "protect the key where the command gets it from; `cairn key export FILE --passphrase` makes a copy under one"
            }
        };
        Err(GatewayError::refused(
            ErrorKind::Unsupported,
            format!("`cairn key {command}` cannot change a key that the command {program} tells"),
            next,
        ))
    }

    /// Makes `new`, kept as `protection` says, the site's key.
    async fn replace(
        &self,
        global: &Global,
        new: &SecretKey,
        protection: &Protection,
    ) -> Result<Key, GatewayError> {
        let key_file = match protection {
            Protection::Passphrase(sealed) => Some(sealed.to_string()),
            Protection::Plain | Protection::Command => None,
        };
        let sealed = hex::encode(sealed_for_replacement(self.key(), new, &*self.ports.entropy));
        let asked = ReplaceKey { sealed, key_file };
        with_access_as(global, Need::Catalog, Some(self.unlocked.master.clone()), async |access| {
            self.check(&access.client).await?;
            access.client.replace_key(&asked).await
        })
        .await
    }

    /// How a new key is kept: as the present one is.
    async fn same_protection(&self, new: &SecretKey) -> Result<Protection, GatewayError> {
        let Some(passphrase) = &self.unlocked.passphrase else { return Ok(Protection::Plain) };
        Ok(Protection::Passphrase(source::seal(new, passphrase.clone(), &self.ports.entropy).await?))
    }
}

async fn rotate(global: &Global) -> Result<(), GatewayError> {
    let present = Present::open(global).await?;
    present.require_file("rotate")?;
    let new = SecretKey::random(&*present.ports.entropy);
    let protection = present.same_protection(&new).await?;
    let key = present.replace(global, &new, &protection).await?;
    let before = present.key().id();
    warn(&unpublished(&key.copies, KEEP_THE_KEY))?;
    answer(global.json, &key, |key| {
        format!(
            "The master key is {} now. Make a recovery copy of it with cairn key export FILE, and a new backup of the catalog.\n\
             {before} still opens the backups of the catalog that were made before: keep it as long as you keep those.\n",
            key.id
        )
    })
}

/// What to do while a data node has only the keys as they were.
const KEEP_THE_KEY: &str = "keep the old key until `cairn key publish` succeeds";

/// One warning for each data node that does not have a change.
pub(super) fn unpublished(copies: &[KeyCopy], next: &str) -> Vec<String> {
    let warning = |copy: &KeyCopy| {
        let problem = copy.problem.as_ref()?;
        Some(format!("data node {} does not have this change: {problem}; {next}", copy.node))
    };
    copies.iter().filter_map(warning).collect()
}

/// The next start takes the passphrase from where it is configured: tells when that is another one, or not known here.
fn elsewhere(config: &KeyConfig, new: &Passphrase) -> Option<String> {
    match source::configured_passphrase(config) {
        Ok(Some((found, _))) if found.is_same(new) => None,
        Ok(Some((_, origin))) => Some(format!(
            "THE NEXT START WILL FAIL while another passphrase is in {origin}: write the new one there now"
        )),
        Ok(None) => Some(
            "the next start needs the new passphrase: from the terminal, or from the file that the gateway's own environment or \
             systemd unit names; if there is one, write the new passphrase there now"
                .to_owned(),
        ),
        Err(error) => Some(format!(
            "THE NEXT START WILL FAIL while the configured passphrase cannot be read: {}; write the new one there now",
            GatewayError::from(error).full_message()
        )),
    }
}

async fn passphrase(global: &Global, new_file: Option<&Path>, remove: bool) -> Result<(), GatewayError> {
    let present = Present::open(global).await?;
    present.require_file("passphrase")?;
    let had = present.unlocked.passphrase.is_some();
    let mut warnings = Vec::new();
    let protection = if remove {
        if !had {
            return Err(GatewayError::Refused {
                kind: ErrorKind::Conflict,
                what: format!("{} has no passphrase", source::origin(&present.config)),
                next: None,
            });
        }
        Protection::Plain
    } else {
        let passphrase = new_passphrase(new_file).await?;
        warnings.extend(elsewhere(&present.config, &passphrase));
        Protection::Passphrase(source::seal(present.key(), passphrase, &present.ports.entropy).await?)
    };
    let key = present.replace(global, present.key(), &protection).await?;
    warnings.extend(unpublished(&key.copies, KEEP_THE_KEY));
    warn(&warnings)?;
    answer(global.json, &key, |key| {
        let done = match (remove, had) {
            (true, _) => "needs no passphrase any more",
            (false, true) => "has another passphrase now",
            (false, false) => "needs a passphrase now",
        };
        format!("{} {done}. Copies made before open as they did.\n", key.location)
    })
}

async fn new_passphrase(file: Option<&Path>) -> Result<Passphrase, GatewayError> {
    let passphrase = match file {
        Some(path) => source::passphrase_from(path)?,
        None => prompt::ask_new("New passphrase", "a new passphrase").await?,
    };
    passphrase.check_new()?;
    Ok(passphrase)
}

async fn export(
    global: &Global,
    path: &Path,
    ask: bool,
    passphrase_file: Option<&Path>,
) -> Result<(), GatewayError> {
    // What could not be written is not worth a passphrase.
    if path.try_exists().unwrap_or(false) {
        return Err(exists(path));
    }
    refuse_reserved(global, path)?;
    let present = Present::open(global).await?;
    // A copy of a key that opens nothing would be worse than none.
    let master = Some(present.unlocked.master.clone());
    with_access_as(global, Need::Catalog, master, async |access| present.check(&access.client).await).await?;
    let copy = if ask || passphrase_file.is_some() {
        let passphrase = new_passphrase(passphrase_file).await?;
        KeyFile::Sealed(source::seal(present.key(), passphrase, &present.ports.entropy).await?)
    } else {
        KeyFile::Plain(present.key().clone())
    };
    file::create(path, &copy).map_err(|error| match error {
        KeyError::Io { source, .. } if source.kind() == std::io::ErrorKind::AlreadyExists => exists(path),
        KeyError::Io { source, .. } => GatewayError::File { action: "write", path: path.to_owned(), source },
        error => error.into(),
    })?;
    let sealed = matches!(copy, KeyFile::Sealed(_));
    if global.json {
        return print_json(
            &serde_json::json!({ "file": path, "id": copy.id().to_string(), "passphrase": sealed }),
        );
    }
    let warning = if sealed {
        "It opens with its passphrase only."
    } else {
        "Whoever has it can read all data: keep it where nobody finds it."
    };
    print(&format!("Key {} is in {}. {warning}\n", copy.id(), path.display()))
}

/// What a change of the key would remove is no place for a copy.
fn refuse_reserved(global: &Global, path: &Path) -> Result<(), GatewayError> {
    let directory = Directory::new(&global.dir)?;
    directory.require_ready()?;
    let config = Config::load(&directory.config(), directory.path())?.key;
    match config {
        KeyConfig::File { path: key, .. } if is_reserved(&key, path) => Err(GatewayError::refused(
            ErrorKind::Conflict,
            format!("{} is a name that changes of the key use", path.display()),
            "choose another name",
        )),
        KeyConfig::File { .. } | KeyConfig::Command { .. } => Ok(()),
    }
}

fn exists(path: &Path) -> GatewayError {
    GatewayError::refused(
        ErrorKind::Conflict,
        format!("{} exists already", path.display()),
        "choose another name; a key is never written over anything",
    )
}

fn details(key: &Key) -> String {
    let mut lines = vec![
        format!("master key  {}", key.id),
        match key.source.as_str() {
            "command" => format!("source      the command {}", key.location),
            "passphrase" => format!("source      {}, which needs a passphrase", key.location),
            _ => format!("source      {}", key.location),
        },
        format!("change      {}", key.revision),
    ];
    if let Some(problem) = &key.problem {
        lines.push(format!("problem     {problem}"));
    }
    for copy in &key.copies {
        let state = copy.problem.as_deref().unwrap_or("has the keys");
        lines.push(format!("node {:<6} {state}", copy.node));
    }
    format!("{}\n\n{}", lines.join("\n"), listing(&key.domains))
}
