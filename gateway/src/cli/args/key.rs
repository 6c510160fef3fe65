//! `cairn key`.

use clap::Subcommand;
use std::path::PathBuf;

#[derive(Debug, Subcommand)]
pub enum Key {
    /// Show the ids of the keys and where the master key is
    ///
    /// Ids are public: they tell keys apart and nothing about them. Needs no passphrase, and works when the key is the wrong one.
    Show,
    /// Make another master key and wrap all keys with it
    ///
    /// Instant whatever the data, also while the gateway runs, and safe to interrupt anywhere. The data stays sealed under the same
    /// keys. The old master key opens nothing that is current any more, but still the backups of the catalog from before: keep it as long as
    /// you keep those, and make a new backup.
    Rotate,
    /// Set or change the passphrase of the key file
    ///
    /// Asks for the new one on the terminal, twice. Works also while the gateway runs, which needs the passphrase at its next start:
    /// from the terminal, CAIRN_PASSPHRASE_FILE, [key] passphrase_file or the systemd credential cairn-passphrase.
    Passphrase {
        /// Take the new passphrase from this file, mode 0600, instead of asking
        #[arg(long, value_name = "FILE", value_hint = clap::ValueHint::FilePath, conflicts_with = "remove")]
        new_file: Option<PathBuf>,
        /// Keep the key without a passphrase from now on
        #[arg(long)]
        remove: bool,
    },
    /// Write a recovery copy of the master key
    ///
    /// With it and the pool's bucket the data can be read, whatever became of this host. The file gets mode 0600 and never replaces
    /// another.
    Export {
        #[arg(value_hint = clap::ValueHint::FilePath)]
        file: PathBuf,
        /// Ask for a passphrase that the copy shall need
        #[arg(long)]
        passphrase: bool,
        /// Take that passphrase from this file, mode 0600
        #[arg(long, value_name = "FILE", value_hint = clap::ValueHint::FilePath)]
        passphrase_file: Option<PathBuf>,
    },
    /// Write the wrapped keys to the data nodes again
    ///
    /// Done unasked at every start and every change. A node whose copy is none of the catalog's past, as after the catalog was put back
    /// from an old copy, is left alone.
    Publish {
        /// Also over other keys, which are lost, and over what cannot be read
        #[arg(long)]
        force: bool,
    },
}
