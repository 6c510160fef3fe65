//! The admin API: HTTP and JSON on `admin.sock`, and on a loopback address when configured.
//!
//! | module | idea |
//! |---|---|
//! | [`types`] | what is said and taken, as JSON |
//! | [`service`] | what is done |
//! | [`status`] | what is told, and what needs attention |
//! | [`routes`] | which request does what; errors as answers |
//! | [`server`] | listening |

pub mod routes;
pub mod server;
pub mod service;
mod status;
pub mod types;

pub use routes::routes;
pub use service::{Service, Serving};
