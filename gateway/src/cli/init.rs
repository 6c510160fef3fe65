//! `cairn init`.

use super::args::{Global, Init};
use super::output::{print, print_json};
use crate::config;
use crate::directory::{Directory, DirectoryError, Role, State};
use crate::error::GatewayError;
use crate::human::shell_quoted;
use crate::pool_url;
use crate::site::{InitOptions, initialise};
use cairn_model::Ports;

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
    let options = InitOptions {
        catalog_url: asked.catalog.clone(),
        pool_url: asked.pool.clone(),
        create_bucket: asked.create_bucket,
        first_volume: None,
    };
    initialise(&directory, &options, &Ports::system()).await?;
    let (path, quoted) = (directory.path().display(), shell_quoted(directory.path()));
    if global.json {
        return print_json(&serde_json::json!({ "directory": directory.path(), "key": directory.key() }));
    }
    print(&format!(
        "{path} is ready.\n\
         Keep a copy of {} elsewhere: without it the data cannot be read.\n\
         Next: cairn volume create NAME SIZE --dir {quoted}, then cairn serve --dir {quoted}\n",
        directory.key().display()
    ))
}

pub(super) fn check_pool(what: &str, url: &str) -> Result<(), GatewayError> {
    pool_url::check(url)
        .map_err(|problem| GatewayError::Usage { what: format!("{what} {problem}"), next: None })
}
