//! `cairn node`.

use super::access::{Need, with_access};
use super::args::{Global, Node as Command};
use super::init::check_pool;
use super::output::{answer, print, print_json};
use crate::admin::types::{AddNode, Node};
use crate::error::GatewayError;
use crate::human::{Align, Table};
use crate::units::format_size;

pub(super) async fn run(global: &Global, command: Command) -> Result<(), GatewayError> {
    match command {
        Command::Add { name, url, domain, create_bucket } => {
            check_pool("URL", &url)?;
            add(global, AddNode { name, url, domain, create: create_bucket }).await
        }
        Command::List => {
            let nodes = with_access(global, Need::Tell, async |access| access.client.nodes().await).await?;
            answer(global.json, &nodes, |nodes| listing(nodes))
        }
        Command::Show { name } => {
            let node =
                with_access(global, Need::Tell, async |access| access.client.node(&name).await).await?;
            answer(global.json, &node, details)
        }
    }
}

async fn add(global: &Global, new: AddNode) -> Result<(), GatewayError> {
    let added = with_access(global, Need::Catalog, async |access| access.client.add_node(&new).await).await?;
    if global.json {
        return print_json(&added);
    }
    let node = &added.node;
    match &added.replaced {
        Some(old) => {
            print(&format!("Data goes to {} at {} now, in the place of {old}.\n", node.name, node.url))
        }
        None => print(&format!("Data goes to {} at {} now.\n", node.name, node.url)),
    }
}

fn listing(nodes: &[Node]) -> String {
    let mut table = Table::new(&[("NAME", Align::Left), ("STATE", Align::Left), ("URL", Align::Left)]);
    for node in nodes {
        table.row(vec![node.name.clone(), condition(node).to_owned(), node.url.clone()]);
    }
    table.to_string()
}

fn condition(node: &Node) -> &str {
    if node.health.as_ref().is_some_and(|health| health.failing) { "failing" } else { &node.state }
}

fn details(node: &Node) -> String {
    let mut lines = vec![
        format!("name     {}", node.name),
        format!("url      {}", node.url),
        format!("state    {}", condition(node)),
        format!("id       {}", node.id),
    ];
    if let Some(honoured) = node.conditional_writes {
        lines.push(format!("conditional writes are {}", if honoured { "honoured" } else { "ignored" }));
    }
    if let Some(domain) = &node.domain {
        lines.push(format!("domain   {domain}"));
    }
    if let Some(health) = &node.health {
        lines.push(format!("puts     {} ({})", health.puts, format_size(health.put_bytes)));
        lines.push(format!("gets     {} ({})", health.gets, format_size(health.get_bytes)));
        lines.push(format!("deletes  {}", health.deletes));
        lines.push(format!("retries  {}", health.retries));
        lines.push(format!("errors   {}", health.errors));
        if let Some(error) = &health.last_error {
            lines.push(format!("last     {error}"));
        }
    }
    lines.join("\n") + "\n"
}
