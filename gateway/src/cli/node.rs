//! `cairn node`.

use super::access::{Need, with_access};
use super::args::{Global, NewNode, Node as Command};
use super::init::check_pool;
use super::output::{answer, print, print_json};
use super::pool::degraded;
use crate::admin::types::{AddNode, ChangeNode, Node, PoolState};
use crate::error::GatewayError;
use crate::human::{Align, Table, ask, can_ask, counted};
use crate::units::format_size;

pub(super) async fn run(global: &Global, command: Command) -> Result<(), GatewayError> {
    match command {
        Command::Add(new) => add(global, new, None).await,
        Command::Replace { old, new } => add(global, new, Some(old)).await,
        Command::List => {
            let told = with_access(global, Need::Tell, async |access| {
                let nodes = access.client.nodes().await?;
                // What the text says beside them.
                let pool = if global.json { None } else { Some(access.client.pool().await?) };
                Ok((nodes, pool))
            });
            let (nodes, pool) = told.await?;
            answer(global.json, &nodes, |nodes| listing(nodes, pool.as_ref()))
        }
        Command::Show { name } => {
            let node =
                with_access(global, Need::Tell, async |access| access.client.node(&name).await).await?;
            answer(global.json, &node, details)
        }
        Command::Edit { name, url, domain, capacity } => {
            if let Some(url) = &url {
                check_pool("--url", url)?;
            }
            let change = ChangeNode { state: None, url, domain, capacity_bytes: capacity };
            self::change(global, &name, &change, details).await
        }
        Command::Drain { name } => set_state(global, &name, "draining", drained).await,
        Command::Activate { name } => {
            set_state(global, &name, "active", |node| format!("Data node {} takes data.\n", node.name)).await
        }
        Command::Fail { name, yes } => fail(global, &name, yes).await,
        Command::Remove { name, force } => {
            let removal =
                async |access: &super::access::Access| access.client.remove_node(&name, force).await;
            with_access(global, Need::Catalog, removal).await?;
            if global.json {
                Ok(())
            } else {
                print(&format!("Data node {name} is not in the pool any more.\n"))
            }
        }
    }
}

async fn add(global: &Global, new: NewNode, in_place_of: Option<String>) -> Result<(), GatewayError> {
    let NewNode { name, url, domain, capacity, create_bucket } = new;
    let new = AddNode { name, url, domain, capacity_bytes: capacity, create: create_bucket, in_place_of };
    check_pool("URL", &new.url)?;
    let added = with_access(global, Need::Catalog, async |access| access.client.add_node(&new).await).await?;
    if global.json {
        return print_json(&added);
    }
    let node = &added.node;
    match (&added.replaced, &new.in_place_of) {
        (Some(old), _) => {
            print(&format!("Data goes to {} at {} now, in the place of {old}.\n", node.name, node.url))
        }
        (None, Some(old)) => print(&format!(
            "Data goes to {} at {} now, and {old} is being emptied in the background.\n",
            node.name, node.url
        )),
        (None, None) => print(&format!("Data goes to {} at {} too now.\n", node.name, node.url)),
    }
}

fn drained(node: &Node) -> String {
    let name = &node.name;
    if node.shards == 0 {
        return format!(
            "Data node {name} takes no new data and is empty: `cairn node remove {name}` takes it out.\n"
        );
    }
    let (shards, size) = (counted(node.shards, "shard"), format_size(node.used_bytes));
    format!(
        "Data node {name} takes no new data; {shards} of {size} move to the other nodes in the background. `cairn node show {name}` tells how many are left.\n"
    )
}

async fn change(
    global: &Global,
    name: &str,
    change: &ChangeNode,
    told: impl FnOnce(&Node) -> String,
) -> Result<(), GatewayError> {
    let node =
        with_access(global, Need::Catalog, async |access| access.client.change_node(name, change).await)
            .await?;
    answer(global.json, &node, told)
}

async fn set_state(
    global: &Global,
    name: &str,
    state: &str,
    told: impl FnOnce(&Node) -> String,
) -> Result<(), GatewayError> {
    change(global, name, &ChangeNode { state: Some(state.to_owned()), ..ChangeNode::default() }, told).await
}

async fn fail(global: &Global, name: &str, yes: bool) -> Result<(), GatewayError> {
    let question = format!(
        "Give data node {name} up? What it holds is made anew on other nodes, as far as they have room; what is left on it counts again when it comes back. [y/N] "
    );
    if !yes && can_ask() && !ask(&question) {
        return print("Nothing was changed.\n");
    }
    let told = |node: &Node| {
        let what = counted(node.shards, "shard");
        format!(
            "Data node {} is given up; {what} of {} are made anew on the others, as far as they have room.\n",
            node.name,
            format_size(node.used_bytes)
        )
    };
    set_state(global, name, "failed", told).await
}

fn listing(nodes: &[Node], pool: Option<&PoolState>) -> String {
    let mut table = Table::new(&[
        ("NAME", Align::Left),
        ("STATE", Align::Left),
        ("SHARDS", Align::Right),
        ("USED", Align::Right),
        ("CAPACITY", Align::Right),
        ("LATENCY", Align::Right),
        ("DOMAIN", Align::Left),
        ("URL", Align::Left),
    ]);
    for node in nodes {
        table.row(vec![
            node.name.clone(),
            condition(node).to_owned(),
            node.shards.to_string(),
            format_size(node.used_bytes),
            node.capacity_bytes.map_or_else(|| "-".to_owned(), format_size),
            latency(node).map_or_else(|| "-".to_owned(), millis),
            node.domain.clone().unwrap_or_else(|| "-".to_owned()),
            node.url.clone(),
        ]);
    }
    let mut text = table.to_string();
    if let Some(degraded) = pool.and_then(degraded) {
        text.extend(["\nsegments: ", &degraded, "\n"]);
    }
    text
}

/// What half of the latest gets took less than, or of the latest puts where nothing was read.
fn latency(node: &Node) -> Option<u64> {
    node.health.as_ref().and_then(|health| health.get_p50_us.or(health.put_p50_us))
}

fn condition(node: &Node) -> &str {
    let Some(health) = node.health.as_ref().filter(|_| node.state == "active") else { return &node.state };
    match &health.refuses_puts {
        Some(refusal) => refusal,
        None if health.failing || health.breaker == "open" => "failing",
        None => &node.state,
    }
}

fn millis(micros: u64) -> String {
    format!("{}.{} ms", micros / 1000, micros % 1000 / 100)
}

fn details(node: &Node) -> String {
    let mut lines = vec![
        format!("name      {}", node.name),
        format!("url       {}", node.url),
        format!("state     {}", condition(node)),
        format!("id        {}", node.id),
        format!("holds     {} of {}", counted(node.shards, "shard"), format_size(node.used_bytes)),
    ];
    if let Some(capacity) = node.capacity_bytes {
        lines.push(format!("capacity  {}", format_size(capacity)));
    }
    if let Some(honoured) = node.conditional_writes {
        lines.push(format!("conditional writes are {}", if honoured { "honoured" } else { "ignored" }));
    }
    if let Some(domain) = &node.domain {
        lines.push(format!("domain    {domain}"));
    }
    if let Some(health) = &node.health {
        lines.push(format!("puts      {} ({})", health.puts, format_size(health.put_bytes)));
        lines.push(format!("gets      {} ({})", health.gets, format_size(health.get_bytes)));
        lines.push(format!("deletes   {}", health.deletes));
        lines.push(format!("retries   {}", health.retries));
        lines.push(format!("errors    {}", health.errors));
        if health.damaged > 0 {
            lines.push(format!("damaged   {}", counted(health.damaged, "piece")));
        }
        for (what, p50, p95) in
            [("put", health.put_p50_us, health.put_p95_us), ("get", health.get_p50_us, health.get_p95_us)]
        {
            if let (Some(p50), Some(p95)) = (p50, p95) {
                lines.push(format!(
                    "a {what}     takes {} in the middle, {} at the slow end",
                    millis(p50),
                    millis(p95)
                ));
            }
        }
        if let Some(error) = &health.last_error {
            lines.push(format!("last      {error}"));
        }
    }
    lines.join("\n") + "\n"
}
