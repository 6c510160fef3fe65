//! The fault that no crash excuses.

use std::fmt;

/// The server answered with an error, or with bytes that are wrong: no kill excuses that.
#[derive(Debug)]
pub struct Refused(pub String);

impl fmt::Display for Refused {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl std::error::Error for Refused {}
