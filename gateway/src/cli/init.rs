//! `cairn init`.

use super::args::{Global, Init};
use super::output::{print, print_json};
use crate::config::{self, Config, KeyConfig};
use crate::directory::{Directory, DirectoryError, Role, State};
use crate::error::GatewayError;
use crate::human::shell_quoted;
use crate::key::prompt;
use crate::pool_url;
use crate::site::{InitOptions, initialise};
use cairn_model::Ports;
use std::sync::Arc;

pub(super) async fn run(global: &Global, asked: &Init) -> Result<(), GatewayError> {
    if let Some(url) = &asked.pool {
        check_pool("--pool", url)?;
    }
    let directory = Directory::new(&global.dir)?;
    if let Some(url) = &asked.catalog {
        config::catalog("--catalog", Some(url), directory.path())
            .map_err(|(key, problem)| GatewayError::Usage { what: format!("{key} {problem}"), next: None })?;
    }
    if directory.state()? == State::Ready {
        return Err(DirectoryError::AlreadyInitialised { path: directory.path().to_owned() }.into());
    }
    directory.create()?;
    let _lock = directory.lock(Role::Command)?;
    let passphrase = if asked.passphrase {
        Some(Arc::new(prompt::ask_new("Passphrase for the key", "a passphrase for the key").await?))
    } else {
        None
    };
    let options = InitOptions {
        catalog_url: asked.catalog.clone(),
        pool_url: asked.pool.clone(),
        create_bucket: asked.create_bucket,
        passphrase,
        first_volume: None,
    };
    let config = initialise(&directory, &options, &Ports::system()).await?;
    let (path, quoted) = (directory.path().display(), shell_quoted(directory.path()));
    if global.json {
        let key = match &config.key {
            KeyConfig::File { path, .. } => Some(path),
            KeyConfig::Command { .. } => None,
        };
        return print_json(&serde_json::json!({ "directory": directory.path(), "key": key }));
    }
    print(&format!(
        "{path} is ready.\n\
         {}\n\
         Next: cairn volume create NAME SIZE --dir {quoted}, then cairn serve --dir {quoted}\n",
        keep_the_key(&config)
    ))
}

/// What must not be lost.
pub(super) fn keep_the_key(config: &Config) -> String {
    match &config.key {
        KeyConfig::File { path, .. } => {
            format!("Keep a copy of {} elsewhere: without it the data cannot be read.", path.display())
        }
        KeyConfig::Command { program, .. } => {
            format!("Keep the key that {program} tells: without it the data cannot be read.")
        }
    }
}

pub(super) fn check_pool(what: &str, url: &str) -> Result<(), GatewayError> {
    pool_url::check(url)
        .map_err(|problem| GatewayError::Usage { what: format!("{what} {problem}"), next: None })
}
