//! `cairn node`, `cairn pool`.

use super::node_name;
use crate::units::parse_size;
use cairn_model::{ParseProfileError, Profile};
use clap::{Args, Subcommand};

/// A node that is to be in the pool.
#[derive(Debug, Args)]
pub struct NewNode {
    /// Name to call it by
    #[arg(value_parser = node_name)]
    pub name: String,
    /// file:///PATH or s3://BUCKET/PREFIX?endpoint=http://HOST:PORT&region=REGION
    pub url: String,
    /// What fails together with it, such as a rack: no two shards of a segment go to one domain while there are enough
    #[arg(long)]
    pub domain: Option<String>,
    /// What it can hold: nodes get data in proportion
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub capacity: Option<u64>,
    /// Make the bucket if it does not exist
    #[arg(long)]
    pub create_bucket: bool,
}

#[derive(Debug, Subcommand)]
pub enum Node {
    /// Add a bucket or a directory to the pool
    ///
    /// New data goes there too from now on, and its share of what is there already moves there in the background. A site begins with the folder pool/ of its own
    /// directory; while that holds nothing, the first node that is added takes its place. Credentials come from AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY or
    /// from cairn.toml, and are not stored.
    Add(NewNode),
    /// List the data nodes
    List,
    /// Show one data node
    Show {
        /// Name of the node
        name: String,
    },
    /// Change a data node
    ///
    /// What is not named stays as it is.
    Edit {
        /// Name of the node
        name: String,
        /// Where it is reached now; it must be the same node
        #[arg(long)]
        url: Option<String>,
        /// What fails together with it; "" for nothing
        #[arg(long)]
        domain: Option<String>,
        /// What it can hold; 0 for not known
        #[arg(long, value_name = "SIZE", value_parser = parse_size)]
        capacity: Option<u64>,
    },
    /// Empty a data node: its data moves to the others in the background, and nothing new goes there
    Drain {
        /// Name of the node
        name: String,
    },
    /// Let a data node take data again: ends a drain, or brings back one that was given up and is there again
    Activate {
        /// Name of the node
        name: String,
    },
    /// Give up a data node that does not come back: what it held is made anew on the others from what they have
    ///
    /// A gateway does that by itself for a node that has been silent for heal.node_failed_after. One that answers is in service again a minute later: drain it instead.
    Fail {
        /// Name of the node
        name: String,
        /// Do not ask
        #[arg(long, short = 'y')]
        yes: bool,
    },
    /// Add a data node in the place of another one, which is emptied in the background
    ///
    /// The new node is of the old one's domain and capacity unless it is said otherwise. When the old one is empty, `cairn node remove` takes it out of the pool. One that
    /// is dead is given up with `cairn node fail` first.
    Replace {
        /// Name of the node that is to go
        old: String,
        #[command(flatten)]
        new: NewNode,
    },
    /// Take a data node out of the pool
    ///
    /// Refused while it holds data; and always while the profile needs it to take data, or `[pool] url` in cairn.toml names it. What is in its bucket or directory that belongs to no segment stays there.
    Remove {
        /// Name of the node
        name: String,
        /// Also when it holds data: that is missing from then on, and made anew from what the others have. Refused where the others have too little
        #[arg(long)]
        force: bool,
    },
}

#[derive(Debug, Subcommand)]
pub enum Pool {
    /// Show or change how data is protected against the loss of nodes
    ///
    /// single: one copy. replica:N: N whole copies. ec:K+M: K parts and M of parity, so that any M nodes may be lost, for (K+M)/K times the space. New data is written
    /// so from now on; what is there follows in the background.
    Profile {
        /// single, replica:N or ec:K+M; without it, show the one there is
        #[arg(value_parser = known_profile)]
        profile: Option<String>,
    },
}

fn known_profile(text: &str) -> Result<String, ParseProfileError> {
    text.parse::<Profile>().map(|profile| profile.to_string())
}
