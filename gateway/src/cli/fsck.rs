//! `cairn fsck`.

use super::access::{Access, Need, with_access};
use super::args::{Fsck, Global};
use super::output::{answer, print};
use super::progress::following;
use crate::admin::types::{AskRepair, CheckProgress, Checked, Plan, Repaired};
use crate::error::GatewayError;
use crate::human::{ask, can_ask, counted};
use crate::units::format_size;
use std::fmt::Write;

/// Something is wrong and was not mended; as fsck(8) has it.
const PROBLEMS_LEFT: u8 = 4;
/// Something could not be checked. Both together are 12.
const NOT_CHECKED: u8 = 8;
/// Problems and ranges that are told one by one; `--json` tells more.
const TOLD_MAX: usize = 20;

pub(super) async fn run(global: &Global, asked: &Fsck) -> Result<(), GatewayError> {
    // Before anything is looked at: that may take long.
    if asked.repair && !asked.yes && !can_ask() {
        return Err(GatewayError::Usage {
            what: "this is to be confirmed, and there is no terminal to ask on".to_owned(),
            next: Some("read what `cairn fsck` finds, then repeat with --repair --yes".to_owned()),
        });
    }
    // Only a repair starts an engine where no gateway runs: that replays the log, and works on the pool.
    let need = if asked.repair { Need::Engine } else { Need::Pool };
    let mut is_declined = false;
    let found = with_access(global, need, async |access| {
        let mut found = check(access).await?;
        let Some(plan) = found.plan.filter(|_| asked.repair) else { return Ok(found) };
        if !global.json {
            print(&human(&found))?;
            print(&planned(&found, &plan))?;
        } else if !asked.yes {
            // Where nobody takes it for the answer.
            eprint!("{}", planned(&found, &plan));
        }
        if asked.yes || ask("Carry this out?") {
            let repairing = access.client.fsck_repair(AskRepair { plan: plan.id });
            found.repaired = Some(following("mending", repairing, async || None).await?);
        } else {
            is_declined = true;
        }
        Ok(found)
    })
    .await?;
    match &found.repaired {
        Some(repaired) if !global.json => print(&mended(repaired))?,
        None if is_declined && !global.json => print("Nothing was changed.\n")?,
        _ => answer(global.json, &found, human)?,
    }
    verdict(&found)
}

async fn check(access: &Access) -> Result<Checked, GatewayError> {
    let told = async || {
        let progress = access.client.fsck_progress().await.ok().flatten()?;
        Some(progress_line(&progress))
    };
    following("checking", access.client.fsck(), told).await
}

fn progress_line(progress: &CheckProgress) -> String {
    let what = match progress.phase.as_str() {
        "objects" => "objects of the pool",
        "segments" => "segments",
        "maps" => "maps",
        "record" => "the newest checkpoint",
        "confirming" => "what was found, once more",
        _ => "the catalog",
    };
    let percent = (progress.done.saturating_mul(100)).checked_div(progress.total);
    let percent = percent.map_or_else(String::new, |percent| format!(" {}%", percent.min(100)));
    let problems = match progress.problems {
        0 => String::new(),
        count => format!(", {}", counted(count, "problem")),
    };
    format!("checking {what}{percent}{problems}")
}

/// What was found.
fn human(found: &Checked) -> String {
    let mut text = String::new();
    // Writing to a String cannot fail.
    let _ = describe(&mut text, found);
    text
}

fn describe(text: &mut String, found: &Checked) -> std::fmt::Result {
    writeln!(
        text,
        "Checked {} ({}), {}, {}, {} and {}.",
        counted(found.objects, "object"),
        format_size(found.object_bytes),
        counted(found.segments, "segment"),
        counted(found.shards, "shard"),
        counted(found.containers, "container"),
        counted(found.map_rows, "row").replace("row", "map row"),
    )?;
    for problem in found.problems.iter().take(TOLD_MAX) {
        writeln!(text, "  {}: {}", problem.subject, problem.text)?;
    }
    and_more(text, found.problem_count, found.problems.len())?;
    if found.lost_count > 0 {
        let (ranges, size) = (counted(found.lost_count, "range"), format_size(found.lost_bytes));
        writeln!(text, "LOST, and read as I/O errors ({ranges}, {size}):")?;
        for range in found.lost.iter().take(TOLD_MAX) {
            let of = match &range.snapshot {
                Some(snapshot) => format!("{}@{snapshot}", range.volume),
                None => range.volume.clone(),
            };
            let end = range.offset.saturating_add(range.length);
            writeln!(text, "  {of} bytes {} to {end}: {}", range.offset, range.reason)?;
        }
        and_more(text, found.lost_count, found.lost.len())?;
    }
    if !found.unchecked.is_empty() {
        writeln!(text, "NOT CHECKED:")?;
        for what in &found.unchecked {
            writeln!(text, "  {what}")?;
        }
    }
    if found.problem_count == 0 && found.lost_count == 0 {
        let all = if found.unchecked.is_empty() { "Everything" } else { "Everything else" };
        writeln!(text, "{all} is as it should be. Whether all bytes are: `cairn scrub` reads them.")?;
    }
    Ok(())
}

fn and_more(text: &mut String, count: u64, told: usize) -> std::fmt::Result {
    let told = told.min(TOLD_MAX) as u64;
    if count > told {
        writeln!(text, "  and {} more; --json tells more of them", count - told)?;
    }
    Ok(())
}

/// What a repair would do.
fn planned(found: &Checked, plan: &Plan) -> String {
    let mut text = "Plan:\n".to_owned();
    let mut step = |count: u64, what: String| {
        if count > 0 {
            // Writing to a String cannot fail.
            let _ = writeln!(text, "  {what}");
        }
    };
    step(plan.recount, format!("set {} to what is counted", counted(plan.recount, "sum")));
    let objects = |count: u64| counted(count, "object");
    step(plan.keep, format!("keep {} that a segment names", objects(plan.keep)));
    step(
        plan.heal,
        format!(
            "read {} whole, give up those that are bad, and let them be made anew",
            counted(plan.heal, "shard")
        ),
    );
    step(plan.checkpoint, "take a checkpoint of the catalog".to_owned());
    let size = format_size(plan.delete_bytes);
    step(plan.delete, format!("delete {} that nothing names, {size}", objects(plan.delete)));
    let left = found.problem_count.saturating_sub(found.repairable);
    step(left, format!("leave {} that cannot be mended", counted(left, "problem")));
    text
}

fn mended(repaired: &Repaired) -> String {
    let mut done = Vec::new();
    if repaired.sums > 0 {
        done.push(format!("{} set", counted(repaired.sums, "sum")));
    }
    if repaired.shards > 0 {
        let shards = counted(repaired.shards, "shard");
        done.push(format!("{shards} given up, to be made anew in the background while a gateway runs"));
    }
    if repaired.shards_right > 0 {
        done.push(format!("{} right by now", counted(repaired.shards_right, "shard")));
    }
    if repaired.kept > 0 {
        done.push(format!("{} kept", counted(repaired.kept, "object")));
    }
    if repaired.checkpoint {
        done.push("a checkpoint taken".to_owned());
    }
    if repaired.orphans > 0 {
        let what = if repaired.deleted { "deleted" } else { "deleted, or to be by reclaim" };
        let size = format_size(repaired.orphan_bytes);
        done.push(format!("{} of {size} {what}", counted(repaired.orphans, "object")));
    }
    let mut text = if done.is_empty() {
        "Nothing was left to do.\n".to_owned()
    } else {
        format!("Done: {}.\n", done.join("; "))
    };
    for left in &repaired.left {
        text.push_str("  left: ");
        text.push_str(left);
        text.push('\n');
    }
    text
}

/// The exit status.
fn verdict(found: &Checked) -> Result<(), GatewayError> {
    let left = match &found.repaired {
        Some(repaired) => found.problem_count.saturating_sub(found.repairable) + repaired.left_count,
        None => found.problem_count,
    };
    let is_wrong = left > 0 || found.lost_count > 0;
    let code =
        if is_wrong { PROBLEMS_LEFT } else { 0 } + if found.unchecked_count == 0 { 0 } else { NOT_CHECKED };
    if code == 0 {
        return Ok(());
    }
    let mut what = Vec::new();
    if left > 0 {
        what.push(counted(left, "problem"));
    }
    if found.lost_count > 0 {
        what.push(format!("{} lost", format_size(found.lost_bytes)));
    }
    if found.unchecked_count > 0 {
        what.push("not everything could be checked".to_owned());
    }
    let next = if found.repaired.is_none() && found.repairable > 0 {
        "`cairn fsck --repair` shows what can be mended, and does it"
    } else if found.lost_count > 0 {
        "bring missing data nodes back, or restore what is named from a backup"
    } else if found.unchecked_count == 0 {
        "docs/fsck.md says what each problem means"
    } else {
        "bring the data nodes back that are named, and check again"
    };
    Err(GatewayError::Found { code, what: what.join(", "), next: next.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::types::{LostRange, Problem};

    fn problem(kind: &str, remedy: Option<&str>) -> Problem {
        Problem {
            kind: kind.to_owned(),
            subject: format!("a {kind}"),
            text: "it is wrong".to_owned(),
            remedy: remedy.map(str::to_owned),
        }
    }

    fn found(problems: Vec<Problem>) -> Checked {
        let problem_count = problems.len() as u64;
        let repairable = problems.iter().filter(|problem| problem.remedy.is_some()).count() as u64;
        Checked { segments: 2, shards: 12, problem_count, repairable, problems, ..Checked::default() }
    }

    fn code(found: &Checked) -> u8 {
        match verdict(found) {
            Ok(()) => 0,
            Err(GatewayError::Found { code, .. }) => code,
            Err(other) => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_exit_status_says_what_was_found_and_what_was_not_looked_at() {
        let clean = found(Vec::new());
        assert_eq!(code(&clean), 0);
        assert!(human(&clean).contains("Everything is as it should be"));
        let mut wrong = found(vec![problem("sum", Some("recount")), problem("footer", None)]);
        assert_eq!(code(&wrong), 4);
        wrong.repaired = Some(Repaired { sums: 1, ..Repaired::default() });
        assert_eq!(code(&wrong), 4, "one cannot be mended");
        let mut mended = found(vec![problem("sum", Some("recount"))]);
        mended.repaired = Some(Repaired { sums: 1, ..Repaired::default() });
        assert_eq!(code(&mended), 0);
        mended.repaired =
            Some(Repaired { left: vec!["it".to_owned()], left_count: 1, ..Repaired::default() });
        assert_eq!(code(&mended), 4);
        let mut silent = found(Vec::new());
        silent.unchecked.push("data node n1: it does not answer".to_owned());
        silent.unchecked_count = 1;
        assert_eq!(code(&silent), 8);
        assert!(human(&silent).contains("Everything else") && human(&silent).contains("n1"));
        (wrong.unchecked, wrong.unchecked_count) = (silent.unchecked, 1);
        assert_eq!(code(&wrong), 12);
    }

    #[test]
    fn what_is_lost_is_told_by_volume_snapshot_and_bytes() {
        let mut lost = found(Vec::new());
        let reason = "segment x has 3 of the 4 shards".to_owned();
        lost.lost = vec![LostRange {
            volume: "vol".to_owned(),
            snapshot: Some("monday".to_owned()),
            offset: 4096,
            length: 8192,
            reason,
        }];
        (lost.lost_count, lost.lost_bytes) = (1, 8192);
        assert!(human(&lost).contains("vol@monday bytes 4096 to 12288: segment x"), "{}", human(&lost));
        assert_eq!(code(&lost), 4);
    }

    #[test]
    fn the_plan_names_each_kind_of_work_and_counts_also_what_is_not_told() {
        let mut all = found(vec![problem("map", None)]);
        (all.problem_count, all.repairable) = (20_010, 20_009);
        let plan = Plan {
            id: 1,
            delete: 20_000,
            delete_bytes: 1 << 20,
            heal: 1,
            recount: 3,
            checkpoint: 1,
            keep: 4,
        };
        let plan = planned(&all, &plan);
        for part in [
            "set 3 sums",
            "read 1 shard whole",
            "delete 20000 objects",
            "1 MiB",
            "keep 4 objects",
            "take a checkpoint",
            "leave 1 problem ",
        ] {
            assert!(plan.contains(part), "{part}: {plan}");
        }
        let nothing = planned(&found(Vec::new()), &Plan::default());
        assert_eq!(nothing, "Plan:\n");
    }

    #[test]
    fn progress_is_a_line() {
        let progress = CheckProgress { phase: "segments".to_owned(), done: 50, total: 200, problems: 2 };
        assert_eq!(progress_line(&progress), "checking segments 25%, 2 problems");
        assert_eq!(progress_line(&CheckProgress::default()), "checking the catalog");
    }
}
