//! Real kernel file systems, through nbdfuse and a loop device.

use anyhow::Result;
use std::time::Duration;
use system_tests::checks::on_filesystem::{holds_a_real_tree, makes_ext4_within};
use system_tests::filesystem::Kind;
use system_tests::server::Server;
use system_tests::settings::scale;

const MIB: u64 = 1 << 20;

fn holds(kind: Kind) -> Result<()> {
    let scale = scale()?;
    let server = Server::under_test(1536 * MIB * scale)?;
    holds_a_real_tree(&server.export(), kind, 160 * MIB * scale)
}

#[test]
fn ext4_holds_a_real_tree() -> Result<()> {
    holds(Kind::Ext4)
}

#[test]
fn xfs_holds_a_real_tree() -> Result<()> {
    holds(Kind::Xfs)
}

#[test]
fn btrfs_holds_a_real_tree() -> Result<()> {
    holds(Kind::Btrfs)
}

#[test]
fn mkfs_ext4_with_discard_of_two_tebibytes_takes_under_five_seconds() -> Result<()> {
    let server = Server::under_test(2 << 40)?;
    let took = makes_ext4_within(&server.export(), Duration::from_secs(5))?;
    println!("mkfs.ext4 took {:.2} s", took.as_secs_f64());
    Ok(())
}

mod self_check {
    use super::*;
    use system_tests::peer::Lie;

    #[test]
    fn a_tree_on_a_server_that_drops_writes_is_found_damaged() -> Result<()> {
        let server = Server::lying_one_in(50, Lie::DropsWrites, 1024 * MIB)?;
        let error = holds_a_real_tree(&server.export(), Kind::Btrfs, 100 * MIB);
        assert!(error.is_err(), "dropped writes were not noticed");
        Ok(())
    }
}
