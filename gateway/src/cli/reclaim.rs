//! `cairn reclaim`.

use super::access::{Need, with_access};
use super::args::Global;
use super::output::answer;
use super::progress::spinning;
use crate::admin::types::{AskReclaim, Reclaimed, ReclaimedAmount};
use crate::error::GatewayError;
use crate::human::counted;
use crate::units::format_size;

pub(super) async fn run(global: &Global, dry_run: bool) -> Result<(), GatewayError> {
    let label = if dry_run { "looking for what nothing points at" } else { "taking space back" };
    let reclaimed = with_access(global, Need::Engine, async |access| {
        spinning(label, access.client.reclaim(AskReclaim { dry_run })).await
    })
    .await?;
    answer(global.json, &reclaimed, human)
}

fn human(reclaimed: &Reclaimed) -> String {
    let amount = &reclaimed.amount;
    if *amount == ReclaimedAmount::default() {
        return "Nothing to take back: something points at everything that could be deleted.\n".to_owned();
    }
    let (dead, moved) = (format_size(amount.container_bytes), format_size(amount.moved_bytes));
    let objects = format!("{} of {}", counted(amount.objects, "object"), format_size(amount.object_bytes));
    if reclaimed.dry_run {
        let moving = match amount.moved_containers {
            0 => String::new(),
            count => format!(
                ", after writing what lives beside it, {moved} of {}, anew",
                counted(count, "container")
            ),
        };
        return format!("Nothing points at {dead}. `cairn reclaim` would take that back{moving}.\n");
    }
    let moving = match amount.moved_containers {
        0 => String::new(),
        count => format!(" Wrote {moved} anew: what lived beside it, of {}.", counted(count, "container")),
    };
    match (amount.container_bytes, amount.objects) {
        (0, 0) => format!("{}\n", moving.trim_start()),
        (0, _) => format!("Deleted {objects} that an earlier pass had left.{moving}\n"),
        (_, 0) => format!(
            "Took back {dead}.{moving} No object was deleted: each of theirs holds something else as well.\n"
        ),
        _ => format!("Took back {dead}.{moving} Deleted {objects} from the pool.\n"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_done_is_told() {
        let told = |dry_run, dead, moved_containers, objects| {
            let bytes = |count: u64| count << 20;
            human(&Reclaimed {
                dry_run,
                amount: ReclaimedAmount {
                    containers: dead,
                    container_bytes: bytes(dead),
                    moved_containers,
                    moved_bytes: bytes(moved_containers),
                    objects,
                    object_bytes: bytes(objects),
                },
            })
        };
        for (text, words) in [
            (told(false, 0, 0, 0), "Nothing to take back"),
            (told(true, 0, 0, 0), "Nothing to take back"),
            (told(true, 3, 0, 0), "Nothing points at 3 MiB. `cairn reclaim` would take that back."),
            (
                told(true, 3, 2, 0),
                "Nothing points at 3 MiB. `cairn reclaim` would take that back, after writing what lives",
            ),
            (told(false, 1, 0, 0), "Took back 1 MiB. No object was deleted"),
            (told(false, 2, 0, 1), "Took back 2 MiB. Deleted 1 object of 1 MiB from the pool."),
            (
                told(false, 2, 1, 3),
                "Took back 2 MiB. Wrote 1 MiB anew: what lived beside it, of 1 container. Deleted 3",
            ),
            (told(false, 0, 0, 2), "Deleted 2 objects of 2 MiB that an earlier pass had left."),
            (told(false, 0, 1, 0), "Wrote 1 MiB anew"),
        ] {
            assert!(text.starts_with(words) && text.ends_with(".\n"), "{text}");
        }
    }
}
