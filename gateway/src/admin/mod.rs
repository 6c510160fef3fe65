//! The admin API: HTTP and JSON on `admin.sock`, and on a loopback address when configured.
//!
//! | module | idea |
//! |---|---|
//! | [`types`] | what is said and taken, as JSON |
//! | [`service`] | what is done |
//! | `keys` | of it, keys and domains |
//! | `snapshots` | of it, snapshots, clones and reverts |
//! | `groups` | of it, protection groups and events |
//! | `pool` | of it, data nodes and how they protect the data |
//! | `heal` | of it, healing and scrub |
//! | `fsck` | of it, checking the site and mending it |
//! | `reclaim` | of it, taking space back |
//! | [`status`] | what is told, and what needs attention |
//! | `metrics` | the same for a monitoring system |
//! | [`routes`] | which request does what; errors as answers |
//! | [`server`] | listening |

mod fsck;
mod groups;
mod heal;
mod keys;
mod metrics;
mod pool;
mod reclaim;
pub mod reduction;
mod routes;
pub mod server;
pub mod service;
mod snapshots;
mod space;
mod status;
pub mod types;

pub use routes::{routes, routes_for_tcp};
pub use service::{Service, Serving};
