//! The command line, as clap parses it.

mod group;
mod key;
mod node;
mod snapshot;

pub(super) use group::{Events, Group, NewPolicy, PolicyChange};
pub(super) use key::Key;
pub(super) use node::{NewNode, Node, Pool};
pub(super) use snapshot::{CloneSnapshot, Revert, Snapshot};

use crate::admin::types::DurabilityChoice;
use crate::config::ListenAddress;
use crate::image::ImageFormat;
use crate::names::{SEPARATOR, SnapshotOf};
use cairn_engine::CpuBudget;
use cairn_metadata::SnapshotName;
use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Args, Parser, Subcommand};
use clap_complete::Shell;
use std::path::PathBuf;

const AFTER_HELP: &str = "\
Getting started:
  cairn up                                   make ./cairn-data on first use, then serve it
  qemu-img info nbd://127.0.0.1:10809/disk0  look at the disk it exports
  cairn volume create data 100GiB            make another disk, also while the gateway runs
  cairn snapshot create disk0@monday         keep a disk as it is now; it is exported as disk0@monday
  cairn status                               see how it is doing

Files, in the directory that --dir names:
  cairn.toml   configuration, every key explained
  key          the key of all data: keep a copy elsewhere (cairn key export); without it the data cannot be read
  catalog.db   what is where;  wal/  writes on their way;  pool/  the data, unless it lives in an object store
  admin.sock   how commands talk to a running gateway

Environment:
  CAIRN_DIR                                  the directory, when --dir is not given
  CAIRN_LOG                                  log level or filter, over what cairn.toml says
  CAIRN_PASSPHRASE_FILE                      file with the passphrase of the key; else it is asked for on the terminal
  CAIRN_ALLOW_CORE_DUMPS=1                   let debuggers and core dumps at the keys in memory: for developers only
  AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY   credentials of S3 data nodes

Exit status: 0 done, 1 failed, 2 wrong usage; `cairn fsck` has more.";

/// Fast, safe block devices on any S3-compatible object store.
///
/// A gateway exports virtual disks over NBD. It acknowledges writes from a log on a local disk, and brings them compressed and
/// encrypted to a pool: directories, or buckets on S3-compatible servers, one or many.
#[derive(Debug, Parser)]
#[command(name = "cairn", version, after_long_help = AFTER_HELP, max_term_width = 100)]
#[command(arg_required_else_help = true, subcommand_required = true, infer_long_args = false)]
pub struct Cli {
    #[command(flatten)]
    pub global: Global,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Clone, Args)]
pub struct Global {
    /// Directory that the gateway lives in
    #[arg(long, global = true, env = "CAIRN_DIR", default_value = "./cairn-data", value_name = "DIR")]
    pub dir: PathBuf,
    /// Answer in JSON, with the field names of the admin API
    #[arg(long, global = true)]
    pub json: bool,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    Up(Up),
    Init(Init),
    Serve(Serve),
    Recover(Recover),
    /// Data nodes: the object stores and directories that hold the data
    #[command(subcommand, arg_required_else_help = true)]
    Node(Node),
    /// The pool: how data is protected against the loss of data nodes
    #[command(subcommand, arg_required_else_help = true)]
    Pool(Pool),
    /// Volumes: the virtual disks
    #[command(subcommand, arg_required_else_help = true)]
    Volume(Volume),
    /// Snapshots: volumes as they were at a moment
    #[command(subcommand, arg_required_else_help = true)]
    Snapshot(Snapshot),
    Clone(CloneSnapshot),
    Revert(Revert),
    /// Protection groups: volumes that are snapshotted together, by a schedule, and pruned by rules
    #[command(subcommand, arg_required_else_help = true)]
    Group(Group),
    Events(Events),
    /// Delete from the pool what nothing points at any more
    ///
    /// That is what was overwritten or discarded, and what deleted volumes and snapshots held, once no snapshot and no clone shows it and nothing
    /// shares it. A gateway does this by itself every so often, as [reclaim] in cairn.toml says; the command does it now, also without a gateway.
    /// Where nearly as much of the pool is dead as dead_percent there allows, what lives in the sparsest objects is written together anew, and these are
    /// deleted; less than that stays, so not everything dead comes back at once.
    Reclaim {
        /// Only tell how much would be taken back; changes nothing
        #[arg(long)]
        dry_run: bool,
    },
    /// Read and verify everything in the pool
    ///
    /// What is missing or damaged is made anew in the background from what the other nodes have, while a gateway runs. A gateway reads everything by itself in the
    /// course of heal.scrub_period in cairn.toml; the command does it now. Fails when something cannot be made anew.
    Scrub {
        /// Make anew what is missing or damaged; done without it too
        #[arg(long)]
        repair: bool,
    },
    Fsck(Fsck),
    /// Domains: what is sealed under one key, and where equal data is stored once
    #[command(subcommand, arg_required_else_help = true)]
    Domain(Domain),
    /// Keys: the master key, its passphrase, its copies
    #[command(subcommand, arg_required_else_help = true)]
    Key(Key),
    /// Show what needs attention, then the log, the pool and the volumes
    ///
    /// Health comes first: one line per thing that needs attention. Works with and without a running gateway.
    Status,
    /// Show or change how much of the processors is used to hash, compress and seal
    ///
    /// normal is 20 % of the cores, insane 40 %, unlimited all of them, in whole threads and never less than one. The threads run at low
    /// priority; while the write-ahead log is nearly full, and while a command waits until everything is in the pool, all cores work whatever the budget. A change needs a running gateway and lasts until
    /// it ends; cairn.toml has what it starts with.
    Cpu {
        /// The budget to change to; without it, show the one there is
        #[arg(value_parser = cpu_budget())]
        budget: Option<CpuBudget>,
    },
    Completions(Completions),
    Man(Man),
}

/// Serve disks; on first use make everything that takes
///
/// In a directory that does not exist or is empty, `up` makes a key, a catalog, a data node and one volume `disk0` of 10 GiB.
/// Then, and on every later use, it serves all volumes and prints the commands that attach them. It ends on Ctrl-C or SIGTERM, once
/// everything acknowledged is in the pool; a second signal ends it at once, which loses nothing either.
#[derive(Debug, Args)]
pub struct Up {
    #[command(flatten)]
    pub serve: ServeOptions,
    /// Keep the data here: file:///PATH or s3://BUCKET/PREFIX?endpoint=URL&region=REGION; refused once it is elsewhere
    #[arg(long, value_name = "URL")]
    pub pool: Option<String>,
    /// Make the bucket of --pool if it does not exist, on a first run
    #[arg(long)]
    pub create_bucket: bool,
}

/// Make a directory to serve from, without serving
///
/// Makes a key, a catalog and a data node, but no volume. An initialisation that was interrupted is completed by running it again.
/// Never replaces a key or anything else that exists.
#[derive(Debug, Args)]
pub struct Init {
    /// Where the catalog lives: sqlite:PATH [default: sqlite:catalog.db in the directory]
    #[arg(long, value_name = "URL")]
    pub catalog: Option<String>,
    /// Data node: file:///PATH or s3://BUCKET/PREFIX?endpoint=URL&region=REGION [default: pool/ in the directory]
    #[arg(long, value_name = "URL")]
    pub pool: Option<String>,
    /// Make the bucket of --pool if it does not exist
    #[arg(long)]
    pub create_bucket: bool,
    /// Ask for a passphrase that the key file shall need; done unasked when a passphrase file is configured
    #[arg(long)]
    pub passphrase: bool,
}

/// Serve what the configuration says
///
/// For service managers: logs to standard error, tells systemd when every export can be used, and on SIGTERM brings everything
/// acknowledged to the pool before it ends.
#[derive(Debug, Args)]
pub struct Serve {
    #[command(flatten)]
    pub options: ServeOptions,
    /// Serve a directory that `cairn recover` made; the gateway of before must be stopped for good
    #[arg(long)]
    pub take_over: bool,
    /// Serve it although the recovery did not find all that the site had; what it lacks is lost then
    #[arg(long, requires = "take_over")]
    pub accept_incomplete: bool,
}

/// Make a directory for a site whose catalog is lost, from its pool and its key
///
/// Reads the newest checkpoint of the catalog in the pool and what was brought to the pool since, and makes a directory to serve from: with all volumes, snapshots,
/// clones, groups, domains and keys. What only the lost gateway's write-ahead log had is lost. Writes nothing to the pool. --dir names the directory, which must be
/// empty or not exist. Stop the gateway of before first, for good: what it brings to the pool during the recovery or after it is not in the new catalog, and
/// `cairn serve --take-over`, which serves the directory, refuses it then.
#[derive(Debug, Args)]
pub struct Recover {
    /// A data node of the site: file:///PATH or s3://BUCKET/PREFIX?endpoint=URL&region=REGION; to be repeated, once for each that can be reached
    #[arg(long, value_name = "URL", required = true)]
    pub pool: Vec<String>,
    /// The file of the site's master key
    #[arg(long, value_name = "FILE", value_hint = clap::ValueHint::FilePath)]
    pub key: PathBuf,
    /// A file that holds the passphrase of the key, if it needs one
    #[arg(long, value_name = "FILE", value_hint = clap::ValueHint::FilePath)]
    pub passphrase_file: Option<PathBuf>,
}

#[derive(Debug, Clone, Args)]
pub struct ServeOptions {
    /// Serve NBD here instead of where the configuration says: HOST:PORT or unix:PATH; may be repeated
    #[arg(long = "nbd", value_name = "ADDR", value_parser = ListenAddress::parse)]
    pub nbd: Vec<ListenAddress>,
    /// Start although the write-ahead log is gone, losing the acknowledged writes that only it had
    #[arg(long)]
    pub accept_lost_wal: bool,
}

/// How a volume's data is packed; set when it is made.
#[derive(Debug, Clone, Args)]
pub struct Packing {
    /// Store every block, also those that are stored already
    #[arg(long)]
    pub no_dedupe: bool,
    /// Compare blocks byte by byte before one is stored for both; slower, for those who trust no fingerprint
    #[arg(long, conflicts_with = "no_dedupe")]
    pub verify_dedupe: bool,
    /// Do not compress it
    #[arg(long)]
    pub no_compress: bool,
    /// zstd level, -7 (fastest) to 19 (smallest) [default: 1]
    #[arg(long, value_name = "N", allow_negative_numbers = true, conflicts_with = "no_compress")]
    #[arg(value_parser = clap::value_parser!(i8).range(-7..=19))]
    pub level: Option<i8>,
    /// Blocks of 4 KiB that a chunk has on average, 1 to 16: smaller ones make random reads cheaper, larger ones compress better
    #[arg(long, value_name = "BLOCKS", value_parser = clap::value_parser!(u8).range(1..=16))]
    pub chunk_target: Option<u8>,
    /// Blocks that a chunk has at most, from the average to 16
    #[arg(long, value_name = "BLOCKS", value_parser = clap::value_parser!(u8).range(1..=16))]
    pub chunk_max: Option<u8>,
}

#[derive(Debug, Subcommand)]
pub enum Volume {
    /// Make a volume
    ///
    /// Volumes are thin: space is taken by what is written. SIZE is in binary units, as 10GiB, 512M, 1.5T, or in bytes.
    Create {
        #[arg(value_parser = volume_name)]
        name: String,
        #[arg(value_parser = crate::units::parse_size)]
        size: u64,
        /// What an acknowledged write survives: with `flush`, a power cut once a flush completed; with `always`, any
        #[arg(long, value_enum, default_value = "flush")]
        durability: DurabilityChoice,
        /// Dedupe domain, which is also what it is encrypted under [default: the site's]
        #[arg(long, value_name = "DOMAIN")]
        domain: Option<String>,
        #[command(flatten)]
        packing: Packing,
    },
    /// List the volumes
    List,
    /// Show one volume
    Show {
        name: String,
        /// Tell whose space it is, which takes a while for a large volume
        #[arg(long)]
        space: bool,
    },
    /// Change a volume's size, also while it is in use
    Resize {
        name: String,
        #[arg(value_parser = crate::units::parse_size)]
        size: u64,
        /// Shrink it, destroying what is cut off
        #[arg(long)]
        force: bool,
    },
    /// Give a volume another name
    Rename {
        name: String,
        #[arg(value_parser = volume_name)]
        new_name: String,
    },
    /// Delete a volume and everything in it
    ///
    /// A volume that has snapshots is only deleted with --force, and they with it. Clones of them live on. Its space comes back to the pool
    /// with the next pass of reclaim: by itself, or with `cairn reclaim` now.
    Delete {
        name: String,
        /// Do not ask
        #[arg(long, short = 'y')]
        yes: bool,
        /// Delete it even while clients have it open, and its snapshots with it
        #[arg(long)]
        force: bool,
    },
    /// Write a disk image into a volume
    ///
    /// Makes the volume, as large as the image, if it does not exist; otherwise replaces its content. When the command returns, the
    /// image is in the pool. Holes and zeros take no space. Images that refer to other files are refused.
    Import {
        #[arg(value_parser = writable_name)]
        name: String,
        #[arg(value_hint = clap::ValueHint::FilePath)]
        file: PathBuf,
        /// Format of the image [default: qcow2 if it begins as one, else raw]
        #[arg(long, value_enum)]
        format: Option<ImageFormat>,
        /// Do not ask before content is replaced
        #[arg(long, short = 'y')]
        yes: bool,
        /// Replace content even while clients have the volume open
        #[arg(long)]
        force: bool,
    },
    /// Write a volume, or a snapshot, into a disk image
    ///
    /// The file appears when it is complete; unwritten parts of the volume are holes in it. Of a volume that is being written, each
    /// part is exported as it is when it is read; VOL@NAME exports a snapshot, which is one moment.
    ///
    /// With --since A, a file that holds the snapshot VOL@A is brought up to date with VOL@NAME: only what differs is read and written, in place, and
    /// the file gets the snapshot's size. If that is interrupted, run it again, to the end, before the file is used.
    Export {
        #[arg(value_name = "VOL[@NAME]", value_parser = readable_name)]
        name: String,
        #[arg(value_hint = clap::ValueHint::FilePath)]
        file: PathBuf,
        /// Format of the image [default: qcow2 if FILE ends in .qcow2, else raw]
        #[arg(long, value_enum)]
        format: Option<ImageFormat>,
        /// Replace a file that exists
        #[arg(long, conflicts_with = "since")]
        force: bool,
        /// FILE is a raw image that holds the snapshot VOL@A: change in place what VOL@NAME has otherwise
        #[arg(long, value_name = "A")]
        since: Option<SnapshotName>,
    },
}

#[derive(Debug, Subcommand)]
pub enum Domain {
    /// Make a domain
    ///
    /// Volumes of one domain share equal data and a key; those of different domains share nothing. Every site has the domain
    /// `default`, which volumes are in unless they name another.
    Create {
        #[arg(value_parser = domain_name)]
        name: String,
        /// Store its data readable by whoever has the pool's bytes
        #[arg(long)]
        no_encryption: bool,
    },
    /// List the domains
    List,
    /// Show one domain
    Show { name: String },
    /// Delete a domain that has no volumes and no data, and its key with it
    Delete { name: String },
}

/// Check the catalog and the pool against each other
///
/// Looks at the catalog's file, sums and rows, at what maps point at, at every object of every data node, and at the newest checkpoint. Works beside a running gateway and
/// without one, and changes nothing. It reads of each object which one it is, not all its bytes: `cairn scrub` does that. What is lost is told by volume, snapshot and byte range.
///
/// With --repair it shows what it would do, asks, and does it: sums are set, shards that are missing or wrong are given up and made anew by healing, objects that nothing names are
/// deleted. Data that is lost stays as it is.
///
/// Exit status: 0 everything is right, or was mended; 4 something is wrong; 8 something could not be checked; 12 both; 1 the check itself failed; 2 wrong usage.
#[derive(Debug, Args)]
pub struct Fsck {
    /// Mend what can be mended, after showing what that is
    #[arg(long)]
    pub repair: bool,
    /// Do not ask before mending
    #[arg(long, requires = "repair")]
    pub yes: bool,
}

/// Print a completion script
///
/// For example: cairn completions bash > /etc/bash_completion.d/cairn
#[derive(Debug, Args)]
pub struct Completions {
    pub shell: Shell,
}

/// Write the manual pages
///
/// One page per command, as cairn.1, cairn-volume.1, cairn-volume-create.1 and so on.
#[derive(Debug, Args)]
pub struct Man {
    /// Directory to write them into; it is made if it does not exist
    #[arg(long, value_name = "DIR", default_value = ".")]
    pub out: PathBuf,
}

fn cpu_budget() -> impl TypedValueParser<Value = CpuBudget> {
    PossibleValuesParser::new(CpuBudget::ALL.map(CpuBudget::name)).try_map(|name| name.parse::<CpuBudget>())
}

fn volume_name(text: &str) -> Result<String, cairn_metadata::InvalidName> {
    cairn_metadata::VolumeName::new(text).map(|_| text.to_owned())
}

/// A volume that is to be written.
fn writable_name(text: &str) -> Result<String, String> {
    if text.contains(SEPARATOR) {
        return Err(
            "a snapshot cannot be written: name a volume, or make one of it with `cairn clone`".to_owned()
        );
    }
    volume_name(text).map_err(|error| error.to_string())
}

/// A volume, or a snapshot, which must be named properly.
fn readable_name(text: &str) -> Result<String, crate::names::InvalidSnapshot> {
    if text.contains(SEPARATOR) {
        text.parse::<SnapshotOf>()?;
    }
    Ok(text.to_owned())
}

fn snapshot_name(text: &str) -> Result<String, cairn_metadata::InvalidName> {
    cairn_metadata::SnapshotName::new(text).map(|_| text.to_owned())
}

fn domain_name(text: &str) -> Result<String, cairn_metadata::InvalidName> {
    cairn_metadata::DomainName::new(text).map(|_| text.to_owned())
}

/// Names of nodes are like host names: they appear in paths and listings.
fn node_name(text: &str) -> Result<String, String> {
    let valid = (1..=63).contains(&text.len())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
        && text.starts_with(|first: char| first.is_ascii_alphanumeric());
    if valid {
        return Ok(text.to_owned());
    }
    Err("a node's name has 1 to 63 letters, digits, '-', '_' and '.', and begins with a letter or a digit"
        .to_owned())
}
