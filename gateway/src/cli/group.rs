//! `cairn group`, `cairn events`.

use super::access::{Need, with_access};
use super::args::{Events, Global, Group as Command, NewPolicy, PolicyChange};
use super::output::{answer, print, print_json, warn};
use crate::admin::types::{CreateGroup, Event, Group, GroupDetail, GroupRun, UpdateGroup};
use crate::error::GatewayError;
use crate::human::{Align, Table, ask, can_ask, counted};
use crate::units::format_time;
use cairn_model::{ErrorKind, WallTime};
use cairn_policy::{PolicySpec, RemoteSpec};
use std::fmt::Write;

pub(super) async fn run(global: &Global, command: Command) -> Result<(), GatewayError> {
    match command {
        Command::Create { name, policy, paused } => {
            let new = CreateGroup { name, policy: spec(policy), paused };
            let made =
                with_access(global, Need::Catalog, async |access| access.client.create_group(&new).await)
                    .await?;
            answer(global.json, &made, |made| {
                format!("Group {} created.\n\n{}", made.group.name, shown(made))
            })
        }
        Command::List => {
            let groups = with_access(global, Need::Tell, async |access| access.client.groups().await).await?;
            answer(global.json, &groups, |groups| listing(groups))
        }
        Command::Show { name, runs } => {
            let show = async |access: &super::access::Access| access.client.group(&name, runs).await;
            let group = with_access(global, Need::Tell, show).await?;
            answer(global.json, &group, shown)
        }
        Command::Edit { name, change } => edit(global, &name, change).await,
        Command::Snap { name } => snap(global, &name).await,
        Command::Delete { name, yes } => delete(global, &name, yes).await,
    }
}

pub(super) async fn events(global: &Global, asked: &Events) -> Result<(), GatewayError> {
    let events = async |access: &super::access::Access| access.client.events(asked.limit).await;
    let events = with_access(global, Need::Tell, events).await?;
    answer(global.json, &events, |events| event_listing(events))
}

fn spec(policy: NewPolicy) -> PolicySpec {
    PolicySpec {
        matching: policy.matching,
        every: policy.every,
        cron: policy.cron,
        window: policy.window,
        timezone: policy.timezone,
        keep: policy.keep,
        lock: policy.lock_for,
        remote: remotes(policy.keep_at),
    }
}

fn remotes(keep_at: Vec<(String, String)>) -> Vec<RemoteSpec> {
    keep_at.into_iter().map(|(site, keep)| RemoteSpec { site, keep }).collect()
}

/// The policy with what the line names changed.
fn changed(mut policy: PolicySpec, change: PolicyChange) -> PolicySpec {
    if change.every.is_some() || change.cron.is_some() || change.no_schedule {
        (policy.every, policy.cron) = (change.every, change.cron);
    }
    if change.no_window || change.no_schedule {
        policy.window = None;
    }
    if change.no_lock {
        policy.lock = None;
    }
    if change.no_keep_at || !change.keep_at.is_empty() {
        policy.remote = remotes(change.keep_at);
    }
    PolicySpec {
        matching: change.matching.unwrap_or(policy.matching),
        window: change.window.or(policy.window),
        timezone: change.timezone.unwrap_or(policy.timezone),
        keep: change.keep.unwrap_or(policy.keep),
        lock: change.lock_for.or(policy.lock),
        ..policy
    }
}

async fn edit(global: &Global, name: &str, change: PolicyChange) -> Result<(), GatewayError> {
    let paused = match (change.pause, change.resume) {
        (true, _) => Some(true),
        (_, true) => Some(false),
        _ => None,
    };
    let edited = with_access(global, Need::Catalog, async |access| {
        let Some(policy) = access.client.group(name, 1).await?.group.policy else {
            return Err(GatewayError::refused(
                ErrorKind::Unsupported,
                format!("the policy of group {name} cannot be read, and so not be changed"),
                "use the program that wrote it, or a newer one",
            ));
        };
        let policy = Some(changed(policy, change));
        access.client.update_group(name, &UpdateGroup { policy, paused }).await
    })
    .await?;
    answer(global.json, &edited, |edited| format!("Group {name} changed.\n\n{}", shown(edited)))
}

/// Fails when the run did not give every member its snapshot: whoever asked for it waits for that.
async fn snap(global: &Global, name: &str) -> Result<(), GatewayError> {
    let run = with_access(global, Need::Engine, async |access| access.client.snap_group(name).await).await?;
    answer(global.json, &run, |run| {
        let taken = run.members.iter().filter(|member| member.state == "taken");
        let mut text = String::new();
        for member in taken {
            // Writing to a String cannot fail.
            let _ = writeln!(text, "Snapshot {} taken.", member.snapshot);
        }
        text
    })?;
    if run.outcome == "complete" {
        return Ok(());
    }
    let failed: Vec<String> = run
        .members
        .iter()
        .filter_map(|member| Some(format!("{}: {}", member.volume, member.error.as_ref()?)))
        .collect();
    warn(&failed)?;
    let what = match run.outcome.as_str() {
        "nothing" => format!("group {name} matches no volume: no snapshot was taken"),
        _ => format!("{} of group {name} did not get their snapshot", counted(failed.len() as u64, "volume")),
    };
    Err(GatewayError::refused(ErrorKind::Conflict, what, format!("see `cairn group show {name}`")))
}

async fn delete(global: &Global, name: &str, yes: bool) -> Result<(), GatewayError> {
    with_access(global, Need::Engine, async |access| {
        if !yes && can_ask() {
            let snapshots = access.client.group(name, 1).await?.group.snapshots;
            let question = format!("Delete group {name}? Its {} stay.", counted(snapshots, "snapshot"));
            if !ask(&question) {
                return Err(GatewayError::Refused {
                    kind: ErrorKind::Conflict,
                    what: format!("group {name} was left as it is"),
                    next: None,
                });
            }
        }
        access.client.delete_group(name).await
    })
    .await?;
    if global.json {
        return print_json(&serde_json::json!({ "deleted": name }));
    }
    print(&format!("Group {name} deleted; its snapshots stay.\n"))
}

fn time(at_ms: u64) -> String {
    format_time(WallTime::from_unix_millis(at_ms))
}

fn schedule(policy: &PolicySpec) -> String {
    let mut text = match (&policy.every, &policy.cron) {
        (Some(every), _) => format!("every {every}"),
        (None, Some(cron)) => format!("cron {cron}"),
        (None, None) => return "by hand".to_owned(),
    };
    if let Some(window) = &policy.window {
        text.extend([", ", window]);
    }
    if policy.timezone != "UTC" && (policy.cron.is_some() || policy.window.is_some()) {
        text.extend([" ", &policy.timezone]);
    }
    text
}

fn listing(groups: &[Group]) -> String {
    if groups.is_empty() {
        return "No groups. Make one with: cairn group create NAME --match 'GLOB' --every 1h --keep 48\n"
            .to_owned();
    }
    let mut table = Table::new(&[
        ("GROUP", Align::Left),
        ("VOLUMES", Align::Right),
        ("SCHEDULE", Align::Left),
        ("KEEP", Align::Left),
        ("LAST RUN", Align::Left),
        ("NEXT RUN", Align::Left),
        ("STATE", Align::Left),
    ]);
    for group in groups {
        let of_policy =
            |tell: fn(&PolicySpec) -> String| group.policy.as_ref().map_or_else(|| "?".to_owned(), tell);
        let none = || "-".to_owned();
        table.row(vec![
            group.name.clone(),
            group.volumes.len().to_string(),
            of_policy(schedule),
            of_policy(|policy| policy.keep.clone()),
            group.last_run.as_ref().map_or_else(none, |run| time(run.began_at_ms)),
            group.next_run_at_ms.map_or_else(none, time),
            group.state.clone(),
        ]);
    }
    table.to_string()
}

fn shown(detail: &GroupDetail) -> String {
    let mut text = String::new();
    // Writing to a String cannot fail.
    let _ = write_shown(&mut text, detail);
    text
}

fn write_shown(text: &mut String, detail: &GroupDetail) -> std::fmt::Result {
    let group = &detail.group;
    writeln!(text, "group      {} ({})", group.name, group.state)?;
    if let Some(problem) = &group.problem {
        writeln!(text, "problem    {problem}")?;
    }
    if let Some(policy) = &group.policy {
        writeln!(text, "matches    {}", policy.matching.join(" "))?;
        writeln!(text, "schedule   {}", schedule(policy))?;
        writeln!(text, "keeps      {} ({})", policy.keep, policy.timezone)?;
        if let Some(lock) = &policy.lock {
            writeln!(text, "locks      for {lock}")?;
        }
        for remote in &policy.remote {
            writeln!(text, "at {:<8}{}", remote.site, remote.keep)?;
        }
    }
    if let Some(next) = group.next_run_at_ms {
        writeln!(text, "next run   {}", time(next))?;
    }
    let volumes = if group.volumes.is_empty() { "none".to_owned() } else { group.volumes.join(", ") };
    writeln!(text, "volumes    {volumes}")?;
    writeln!(text, "snapshots  {}", group.snapshots)?;
    if !detail.runs.is_empty() {
        write!(text, "\n{}", run_listing(&detail.runs))?;
    }
    Ok(())
}

fn run_listing(runs: &[GroupRun]) -> String {
    let mut table = Table::new(&[
        ("BEGAN", Align::Left),
        ("RUN", Align::Left),
        ("OUTCOME", Align::Left),
        ("TAKEN", Align::Right),
        ("MISSED", Align::Right),
        ("PRUNED", Align::Right),
        ("NOTE", Align::Left),
    ]);
    for run in runs {
        let has_snapshot = |state: &str| ["taken", "deleted"].contains(&state);
        let taken = run.members.iter().filter(|member| has_snapshot(&member.state)).count();
        table.row(vec![
            time(run.began_at_ms),
            run.label.clone(),
            run.outcome.clone(),
            format!("{taken}/{}", run.members.len()),
            run.missed.to_string(),
            run.pruned.to_string(),
            note(run),
        ]);
    }
    table.to_string()
}

/// What went wrong with a run, in short.
fn note(run: &GroupRun) -> String {
    let members = run
        .members
        .iter()
        .filter_map(|member| Some(format!("{}: {}", member.volume, member.error.as_ref()?)));
    let mut notes: Vec<String> = members.collect();
    let more = notes.len().saturating_sub(2);
    notes.truncate(2);
    if more > 0 {
        notes.push(format!("and {more} more"));
    }
    notes.extend(run.error.clone());
    notes.extend(run.prune_error.as_ref().map(|error| format!("retention: {error}")));
    notes.join("; ")
}

fn event_listing(events: &[Event]) -> String {
    if events.is_empty() {
        return "No events.\n".to_owned();
    }
    let columns = [
        ("TIME", Align::Left),
        ("KIND", Align::Left),
        ("SUBJECT", Align::Left),
        ("WHAT HAPPENED", Align::Left),
    ];
    let mut table = Table::new(&columns);
    for event in events {
        table.row(vec![time(event.at_ms), event.kind.clone(), event.subject.clone(), event.text.clone()]);
    }
    table.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::args::{Cli, Command as Asked};
    use clap::Parser;

    fn after(line: &str) -> PolicySpec {
        let old = PolicySpec {
            matching: vec!["a".to_owned()],
            every: Some("1h".to_owned()),
            cron: None,
            window: Some("22:00-06:00".to_owned()),
            timezone: "UTC".to_owned(),
            keep: "last:1".to_owned(),
            lock: Some("1d".to_owned()),
            remote: vec![RemoteSpec { site: "vault".to_owned(), keep: "last:2".to_owned() }],
        };
        let line = ["cairn", "group", "edit", "g"].into_iter().chain(line.split_whitespace());
        match Cli::try_parse_from(line).unwrap().command {
            Asked::Group(Command::Edit { change, .. }) => changed(old, change),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn an_edit_changes_what_it_names_and_nothing_else() {
        let old = after("");
        assert_eq!(after("--pause"), old);
        let other = |change: fn(&mut PolicySpec)| {
            let mut policy = old.clone();
            change(&mut policy);
            policy
        };
        for (line, expected) in [
            (
                "--cron @daily",
                other(|policy| (policy.every, policy.cron) = (None, Some("@daily".to_owned()))),
            ),
            ("--every 5m", other(|policy| policy.every = Some("5m".to_owned()))),
            ("--no-schedule", other(|policy| (policy.every, policy.window) = (None, None))),
            ("--window 01:00-02:00", other(|policy| policy.window = Some("01:00-02:00".to_owned()))),
            ("--no-window", other(|policy| policy.window = None)),
            ("--match b c", other(|policy| policy.matching = vec!["b".to_owned(), "c".to_owned()])),
            ("--keep 9 --no-lock", other(|policy| (policy.keep, policy.lock) = ("9".to_owned(), None))),
            ("--lock-for 2d", other(|policy| policy.lock = Some("2d".to_owned()))),
            ("--timezone Asia/Tokyo", other(|policy| policy.timezone = "Asia/Tokyo".to_owned())),
            (
                "--keep-at x=1",
                other(|policy| policy.remote = remotes(vec![("x".to_owned(), "1".to_owned())])),
            ),
            ("--no-keep-at", other(|policy| policy.remote = Vec::new())),
        ] {
            assert_eq!(after(line), expected, "{line}");
        }
    }
}
