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
    let containers =
        format!("{} of {}", counted(amount.containers, "container"), format_size(amount.container_bytes));
    let objects = format!("{} of {}", counted(amount.objects, "object"), format_size(amount.object_bytes));
    if reclaimed.dry_run {
        return format!(
            "Nothing points at {containers}. `cairn reclaim` would take them back and delete the objects that hold nothing else.\n"
        );
    }
    match (amount.containers, amount.objects) {
        (0, _) => format!("Deleted {objects} that an earlier pass had left.\n"),
        (_, 0) => format!(
            "Took back {containers}. No object was deleted: each of theirs holds something else as well.\n"
        ),
        _ => format!("Took back {containers}. Deleted {objects} from the pool.\n"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_done_is_told() {
        let told = |dry_run, containers, objects| {
            let bytes = |count: u64| count << 20;
            human(&Reclaimed {
                dry_run,
                amount: ReclaimedAmount {
                    containers,
                    container_bytes: bytes(containers),
                    objects,
                    object_bytes: bytes(objects),
                },
            })
        };
        for (text, words) in [
            (told(false, 0, 0), "Nothing to take back"),
            (told(true, 0, 0), "Nothing to take back"),
            (told(true, 3, 0), "Nothing points at 3 containers of 3 MiB. `cairn reclaim` would"),
            (told(false, 1, 0), "Took back 1 container of 1 MiB. No object was deleted"),
            (told(false, 2, 1), "Took back 2 containers of 2 MiB. Deleted 1 object of 1 MiB from the pool."),
            (told(false, 0, 2), "Deleted 2 objects of 2 MiB that an earlier pass had left."),
        ] {
            assert!(text.starts_with(words) && text.ends_with(".\n"), "{text}");
        }
    }
}
