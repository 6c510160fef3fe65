//! `cairn domain`.

use super::access::{Need, with_access};
use super::args::{Domain as Command, Global};
use super::key::unpublished;
use super::output::{answer, print, print_json, warn};
use crate::admin::types::{CreateDomain, Domain};
use crate::error::GatewayError;
use crate::human::{Align, Table};
use cairn_model::crypto::Encryption;

/// What to do while a data node does not have a domain's key.
const KEEP_THE_CATALOG: &str =
    "keep the old key and a backup of the catalog until `cairn key publish` succeeds";

pub(super) async fn run(global: &Global, command: Command) -> Result<(), GatewayError> {
    match command {
        Command::Create { name, no_encryption } => {
            let encryption = if no_encryption { Encryption::Off } else { Encryption::Aes256Gcm };
            let new = CreateDomain { name, encryption: Some(encryption.name().to_owned()) };
            let (made, key) = with_access(global, Need::Catalog, async |access| {
                Ok((access.client.create_domain(&new).await?, access.client.key().await?))
            })
            .await?;
            warn(&unpublished(&key.copies, KEEP_THE_CATALOG))?;
            answer(global.json, &made, |domain| {
                format!("Domain {} created: encryption {}.\n", domain.name, domain.encryption)
            })
        }
        Command::List => {
            let domains =
                with_access(global, Need::Tell, async |access| access.client.domains().await).await?;
            answer(global.json, &domains, |domains| listing(domains))
        }
        Command::Show { name } => {
            let domain =
                with_access(global, Need::Tell, async |access| access.client.domain(&name).await).await?;
            answer(global.json, &domain, details)
        }
        Command::Delete { name } => {
            let key = with_access(global, Need::Catalog, async |access| {
                access.client.delete_domain(&name).await?;
                access.client.key().await
            })
            .await?;
            warn(&unpublished(&key.copies, KEEP_THE_CATALOG))?;
            if global.json {
                return print_json(&serde_json::json!({ "deleted": name }));
            }
            print(&format!("Domain {name} deleted, and its key with it.\n"))
        }
    }
}

/// The domains as a table.
pub(super) fn listing(domains: &[Domain]) -> String {
    let mut table = Table::new(&[
        ("DOMAIN", Align::Left),
        ("ENCRYPTION", Align::Left),
        ("KEY", Align::Left),
        ("VOLUMES", Align::Right),
        ("STATE", Align::Left),
    ]);
    for domain in domains {
        table.row(vec![
            domain.name.clone(),
            domain.encryption.clone(),
            domain.key_id.clone(),
            domain.volumes.to_string(),
            if domain.problem.is_some() { "not available" } else { "available" }.to_owned(),
        ]);
    }
    table.to_string()
}

fn details(domain: &Domain) -> String {
    let mut lines = vec![
        format!("name        {}", domain.name),
        format!("encryption  {}", domain.encryption),
        format!("key         {}", domain.key_id),
        format!("volumes     {}", domain.volumes),
        format!("id          {}", domain.id),
    ];
    if let Some(problem) = &domain.problem {
        lines.push(format!("problem     {problem}"));
    }
    lines.join("\n") + "\n"
}
