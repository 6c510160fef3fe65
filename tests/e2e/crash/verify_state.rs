//! fio's own crash check beside ours: it notes which writes were answered, has the server killed, and verifies them.

use anyhow::Result;
use system_tests::checks::fio;
use system_tests::peer::Lie;
use system_tests::server::Server;

const SIZE: u64 = 256 << 20;

fn survives_sigkill(mut server: Server) -> Result<()> {
    let notes = tempfile::tempdir()?;
    let kill = format!("kill -KILL {}", server.process()?.id());
    fio::writes_until_crash(&server.export(), SIZE, 2, &kill, notes.path())?;
    server.kill()?;
    server.restart()?;
    fio::verifies_notes(&server.export(), SIZE, notes.path())
}

#[test]
fn fio_finds_every_write_that_it_noted_as_answered_before_sigkill() -> Result<()> {
    survives_sigkill(Server::under_test(SIZE)?)
}

mod self_check {
    use super::*;

    #[test]
    fn fio_misses_what_a_server_held_in_its_memory() -> Result<()> {
        // A kill right after a flush loses nothing.
        for _ in 0..3 {
            if survives_sigkill(Server::lying(Lie::LosesUnflushed, SIZE)?).is_err() {
                return Ok(());
            }
        }
        panic!("fio noticed nothing");
    }
}
