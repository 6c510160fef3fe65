//! `cairn scrub`.

use super::access::{Need, with_access};
use super::args::Global;
use super::output::answer;
use super::progress::spinning;
use crate::admin::types::Scrubbed;
use crate::error::GatewayError;
use crate::human::counted;
use crate::units::format_size;
use cairn_model::ErrorKind;

pub(super) async fn run(global: &Global) -> Result<(), GatewayError> {
    let found = with_access(global, Need::Engine, async |access| {
        spinning("reading everything in the pool", access.client.scrub()).await
    })
    .await?;
    answer(global.json, &found, human)?;
    if found.beyond_repair == 0 {
        return Ok(());
    }
    Err(GatewayError::refused(
        ErrorKind::Corrupt,
        format!("{} cannot be made anew from what is left", counted(found.beyond_repair, "shard")),
        "bring missing nodes back; `cairn events` says which segments",
    ))
}

fn human(found: &Scrubbed) -> String {
    let read = format!(
        "Read {} of {}: {}.",
        counted(found.shards, "shard"),
        counted(found.segments, "segment"),
        format_size(found.bytes)
    );
    let unread = match found.unread {
        0 => String::new(),
        count => format!(" {} could not be read: their nodes do not answer.", counted(count, "shard")),
    };
    match (found.missing, found.damaged) {
        (0, 0) => format!("{read} All of it is right.{unread}\n"),
        (missing, damaged) => format!(
            "{read} Missing: {missing}; damaged: {damaged}. They are made anew in the background while a gateway runs.{unread}\n"
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_found_is_told() {
        let mut found = Scrubbed { segments: 2, shards: 12, bytes: 3 << 20, ..Scrubbed::default() };
        assert_eq!(human(&found), "Read 12 shards of 2 segments: 3 MiB. All of it is right.\n");
        (found.missing, found.unread) = (1, 2);
        let told = human(&found);
        assert!(
            told.contains("Missing: 1; damaged: 0.") && told.contains("2 shards could not be read"),
            "{told}"
        );
    }
}
