//! The gateway: what a host runs to have virtual disks whose bytes live in an object store.
//!
//! | module | idea |
//! |---|---|
//! | [`cli`] | the commands |
//! | [`config`] | `cairn.toml`, raw and validated |
//! | [`directory`] | the directory a gateway lives in: layout, lock, format version |
//! | [`key`] | the site's master key |
//! | [`process`] | nothing of this process's memory leaves it |
//! | [`site`] | initialisation, opening, data nodes, the engine |
//! | [`serve`] | a gateway from start to stop |
//! | [`admin`] | the admin API |
//! | [`client`] | its client, over a socket or in this process |
//! | [`image`] | disk images in files |
//! | [`transfer`] | images into volumes and out of them |
//! | [`names`] | snapshots by name |
//! | [`sessions`] | who has which volume open |

pub mod admin;
pub mod cli;
pub mod client;
pub mod config;
pub mod directory;
pub mod durable;
mod error;
pub mod human;
pub mod image;
pub mod key;
pub mod logging;
pub mod names;
mod notify;
pub mod pool_url;
pub mod process;
pub mod serve;
pub mod sessions;
pub mod site;
mod socket;
pub mod transfer;
pub mod units;

pub use error::GatewayError;

#[doc(hidden)]
pub mod fuzzing {
    //! Entry points for everything that parses bytes from outside.
    pub use crate::admin::server::fuzzing::is_this_host;
    pub use crate::config::fuzzing::config;
    pub use crate::image::fuzzing::qcow2_header;
    pub use crate::key::fuzzing::{key_file, published_keys, sealed_key_file};
}
