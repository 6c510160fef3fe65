//! The directory a gateway lives in: its layout, its lock and its format version.
//!
//! ```text
//! DIR/                mode 0700
//!   format            "cairn-directory 1": written last, so a directory that has it is complete
//!   recovering        the mark of a recovery that did not end: the directory is of no use
//!   not-taken-over    the catalog was made from the pool, and nobody said yet that the gateway of before is gone; says
//!                     what the pool showed then, and what the catalog lacks ([`Recovered`])
//!   initialising      written first, removed after `format`: the mark of a first run that did not end
//!   lock              flock: at most one process; holds the role and the id of the process that has it
//!   gateway           "cairn-gateway 1 " and the id of the gateway that lives here
//!   cairn.toml        configuration
//!   key               the site's master key, mode 0600
//!   catalog.db        the embedded catalog
//!   wal/              the write-ahead log
//!   pool/             the embedded data node
//!   admin.sock        the admin API of the running gateway
//!   nbd.sock          NBD, unless configured elsewhere
//! ```
//!
//! Nothing authenticates `format`: it holds no secret, and a wrong one is refused or refuses.

use crate::durable;
use crate::human::shell_quoted;
use cairn_model::{GatewayId, NodeId};
use cairn_segment_writer::{ManifestId, ObjectTally};
use rustix::fs::{FlockOperation, flock};
use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

const FORMAT_STEM: &str = "cairn-directory ";
const FORMAT_VERSION: u32 = 1;
const GATEWAY_STEM: &str = "cairn-gateway 1 ";
const INITIALISING: &str = "initialising";
const RECOVERING: &str = "recovering";
const NOT_TAKEN_OVER: &str = "not-taken-over";
const NEWEST_STEM: &str = "newest checkpoint: ";
const NODE_STEM: &str = "segments on node ";
const LACKS_STEM: &str = "lacks: ";

/// Names that a directory may hold before its first run: the lock, and a configuration written beforehand.
const HARMLESS: [&str; 3] = ["lock", "cairn.toml", "lost+found"];

/// What is wrong with a directory.
#[derive(Debug, thiserror::Error)]
pub enum DirectoryError {
    #[error("there is no Cairn directory at {path}")]
    Missing { path: PathBuf },
    #[error("the first run in {path} did not end, so it is not complete yet")]
    Incomplete { path: PathBuf },
    #[error("{path} is not empty and not a Cairn directory: it has no file `format`, but {found}")]
    Foreign { path: PathBuf, found: String },
    #[error("{path} is a Cairn directory already")]
    AlreadyInitialised { path: PathBuf },
    #[error(
        "{path} was written by a newer version of Cairn (directory format {found}; this version knows {FORMAT_VERSION})"
    )]
    Newer { path: PathBuf, found: String },
    #[error("the file {path} is damaged: it does not say which format the directory has")]
    DamagedFormat { path: PathBuf },
    #[error("the file {path} is damaged: it does not say which gateway lives here")]
    DamagedGateway { path: PathBuf },
    #[error("{path} is in use by {holder}")]
    Locked { path: PathBuf, holder: Holder },
    #[error("the recovery into {path} did not end: it is marked by the file `recovering` and of no use")]
    Unrecovered { path: PathBuf },
    #[error(
        "the file {path} is damaged: it does not say what the pool showed when the directory was recovered"
    )]
    DamagedRecovery { path: PathBuf },
    #[error("{path} was recovered from its pool, and was not told yet to take the site over")]
    NotTakenOver { path: PathBuf },
    #[error("{path} was recovered from its pool, and lacks something of what the site had: {lacks}")]
    RecoveredInPart { path: PathBuf, lacks: String },
    #[error("cannot use {path}")]
    Io { path: PathBuf, source: io::Error },
}

impl DirectoryError {
    /// What to do next.
    pub fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Missing { path } => {
                format!("make one with `cairn up --dir {0}` or `cairn init --dir {0}`", shell_quoted(path))
            }
            Self::Incomplete { path } => {
                format!("finish it with `cairn up --dir {0}` or `cairn init --dir {0}`", shell_quoted(path))
            }
            Self::Foreign { .. } => {
                "choose an empty directory; if this one lost its `format` file, restore it from a backup"
                    .to_owned()
            }
            Self::AlreadyInitialised { path } => {
                format!("serve it with `cairn serve --dir {}`", shell_quoted(path))
            }
            Self::Newer { .. } => "use the version of Cairn that wrote it, or a later one".to_owned(),
            Self::DamagedFormat { .. } => {
                format!(
                    "if the rest of the directory is intact, restore it as the line `{FORMAT_STEM}{FORMAT_VERSION}`"
                )
            }
            Self::DamagedGateway { .. } => "restore it from a backup".to_owned(),
            Self::Locked { .. } => "stop that process, or choose another directory with --dir".to_owned(),
            Self::DamagedRecovery { .. } => "run `cairn recover` again, into another directory".to_owned(),
            Self::Unrecovered { .. } => "remove the directory and run `cairn recover` again".to_owned(),
            Self::NotTakenOver { path } => format!(
                "make sure that the gateway of before is stopped for good, then run `cairn serve --take-over --dir {}`",
                shell_quoted(path)
            ),
            Self::RecoveredInPart { path, .. } => format!(
                "bring back what is missing, and run `cairn recover` again, into another directory; where that cannot be, run `cairn serve --take-over --accept-incomplete --dir {}`",
                shell_quoted(path)
            ),
            Self::Io { .. } => return None,
        })
    }
}

/// What a recovery saw of the pool, kept until the directory takes the site over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recovered {
    /// The newest checkpoint.
    pub newest: ManifestId,
    /// What each node that was given had of segments.
    pub nodes: BTreeMap<NodeId, ObjectTally>,
    /// What the catalog lacks, in a few words each; empty: nothing.
    pub lacks: Vec<String>,
}

impl Recovered {
    fn write(&self) -> String {
        let mut text = "Recovered from the pool. `cairn serve --take-over` removes this file.\n".to_owned();
        let nodes = self.nodes.iter().map(|(node, tally)| format!("{NODE_STEM}{node}: {tally}"));
        let lacks = self.lacks.iter().map(|lacks| format!("{LACKS_STEM}{}", lacks.replace('\n', " ")));
        for line in std::iter::once(format!("{NEWEST_STEM}{}", self.newest)).chain(nodes).chain(lacks) {
            text.push_str(&line);
            text.push('\n');
        }
        text
    }

    fn read(text: &str) -> Option<Self> {
        let node = |rest: &str| {
            let (node, tally) = rest.split_once(": ")?;
            Some((node.parse().ok()?, ObjectTally::parse(tally)?))
        };
        let rests = |stem: &'static str| text.lines().filter_map(move |line| line.strip_prefix(stem));
        Some(Self {
            newest: ManifestId::parse(rests(NEWEST_STEM).next()?)?,
            nodes: rests(NODE_STEM).map(node).collect::<Option<_>>()?,
            lacks: rests(LACKS_STEM).map(str::to_owned).collect(),
        })
    }
}

/// What holds the lock is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Serves until it is told to stop.
    Gateway,
    /// Runs one command and ends.
    Command,
}

/// Who holds a lock, as far as the lock file tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holder {
    pub role: Option<Role>,
    pub process: Option<u32>,
}

impl std::fmt::Display for Holder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self.role {
            Some(Role::Gateway) => "a running gateway",
            Some(Role::Command) => "another cairn command",
            None => "another cairn process",
        })?;
        self.process.map_or(Ok(()), |process| write!(f, " (process {process})"))
    }
}

/// How far initialisation of a directory came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Does not exist, or holds nothing that matters.
    Fresh,
    /// A first run began and did not end; running it again completes it.
    Interrupted,
    /// Complete.
    Ready,
}

/// A directory by its paths. Making one touches nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Directory {
    path: PathBuf,
}

impl Directory {
    /// The directory at `path`, made absolute so that messages and sockets do not depend on where a command runs.
    pub fn new(path: &Path) -> Result<Self, DirectoryError> {
        let path = std::path::absolute(path)
            .map_err(|source| DirectoryError::Io { path: path.to_owned(), source })?;
        Ok(Self { path })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn config(&self) -> PathBuf {
        self.path.join("cairn.toml")
    }

    pub fn key(&self) -> PathBuf {
        self.path.join("key")
    }

    pub fn pool(&self) -> PathBuf {
        self.path.join("pool")
    }

    pub fn admin_socket(&self) -> PathBuf {
        self.path.join("admin.sock")
    }

    fn io(&self, name: &str) -> impl FnOnce(io::Error) -> DirectoryError {
        let path = if name.is_empty() { self.path.clone() } else { self.path.join(name) };
        |source| DirectoryError::Io { path, source }
    }

    /// How far initialisation came. Refuses a directory that is somebody else's or has a newer format.
    pub fn state(&self) -> Result<State, DirectoryError> {
        match self.read_format()? {
            Some(()) => return Ok(State::Ready),
            None if !self.path.try_exists().map_err(self.io(""))? => return Ok(State::Fresh),
            None => {}
        }
        if self.path.join(RECOVERING).try_exists().map_err(self.io(RECOVERING))? {
            return Err(DirectoryError::Unrecovered { path: self.path.clone() });
        }
        if self.path.join(INITIALISING).try_exists().map_err(self.io(INITIALISING))? {
            return Ok(State::Interrupted);
        }
        for entry in std::fs::read_dir(&self.path).map_err(self.io(""))? {
            let name = entry.map_err(self.io(""))?.file_name();
            let aside = name == format!(".{INITIALISING}.new").as_str();
            if !aside && !HARMLESS.iter().any(|harmless| name == *harmless) {
                let found = name.to_string_lossy().into_owned();
                return Err(DirectoryError::Foreign { path: self.path.clone(), found });
            }
        }
        Ok(State::Fresh)
    }

    /// Fails unless the directory is complete.
    pub fn require_ready(&self) -> Result<(), DirectoryError> {
        match self.state()? {
            State::Ready => Ok(()),
            State::Fresh => Err(DirectoryError::Missing { path: self.path.clone() }),
            State::Interrupted => Err(DirectoryError::Incomplete { path: self.path.clone() }),
        }
    }

    /// `None`: there is no format file.
    fn read_format(&self) -> Result<Option<()>, DirectoryError> {
        let path = self.path.join("format");
        let mut bytes = Vec::new();
        match File::open(&path).and_then(|file| file.take(256).read_to_end(&mut bytes)) {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(DirectoryError::Io { path, source }),
        }
        let text = String::from_utf8_lossy(&bytes);
        let version = text.strip_prefix(FORMAT_STEM).and_then(|rest| rest.strip_suffix('\n'));
        match version.map(|version| (version, version.parse::<u32>())) {
            Some((_, Ok(FORMAT_VERSION))) => Ok(Some(())),
            Some((version, Ok(number))) if number > FORMAT_VERSION => {
                Err(DirectoryError::Newer { path: self.path.clone(), found: version.to_owned() })
            }
            _ => Err(DirectoryError::DamagedFormat { path }),
        }
    }

    /// Creates the directory itself, mode 0700, so that it can be locked.
    pub fn create(&self) -> Result<(), DirectoryError> {
        if let Some(parent) = self.path.parent().filter(|parent| !parent.is_dir()) {
            std::fs::create_dir_all(parent).map_err(self.io(""))?;
        }
        durable::create_directory(&self.path).map_err(self.io(""))
    }

    /// Marks the directory as not complete. The first durable act of initialisation.
    pub fn begin_initialisation(&self) -> Result<(), DirectoryError> {
        match durable::create_file(
            &self.path,
            INITIALISING,
            b"The first run here has not ended. Run it again.\n",
        ) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            other => other.map_err(self.io(INITIALISING)),
        }
    }

    /// Makes the directory complete. The last durable act of initialisation.
    pub fn end_initialisation(&self) -> Result<(), DirectoryError> {
        let format = format!("{FORMAT_STEM}{FORMAT_VERSION}\n");
        match durable::create_file(&self.path, "format", format.as_bytes()) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            other => other.map_err(self.io("format"))?,
        }
        durable::remove_file(&self.path.join(INITIALISING)).map_err(self.io(INITIALISING))
    }

    /// Marks a directory in which nothing is as one that is being recovered: until that ends, nobody takes it for anything else.
    pub fn begin_recovery(&self) -> Result<(), DirectoryError> {
        let text = b"A recovery into this directory has not ended. Remove the directory and recover again.\n";
        durable::create_file(&self.path, RECOVERING, text).map_err(self.io(RECOVERING))
    }

    /// Makes a recovered directory complete. It is not served before [`Directory::take_over`].
    pub fn end_recovery(&self, recovered: &Recovered) -> Result<(), DirectoryError> {
        durable::create_file(&self.path, NOT_TAKEN_OVER, recovered.write().as_bytes())
            .map_err(self.io(NOT_TAKEN_OVER))?;
        self.end_initialisation()?;
        durable::remove_file(&self.path.join(RECOVERING)).map_err(self.io(RECOVERING))
    }

    /// Fails while nobody has said that the gateway of before is gone.
    pub fn require_taken_over(&self) -> Result<(), DirectoryError> {
        if self.path.join(NOT_TAKEN_OVER).try_exists().map_err(self.io(NOT_TAKEN_OVER))? {
            return Err(DirectoryError::NotTakenOver { path: self.path.clone() });
        }
        Ok(())
    }

    /// What the recovery saw that made the directory. `None`: it was not recovered, or has taken over.
    pub fn recovered(&self) -> Result<Option<Recovered>, DirectoryError> {
        let path = self.path.join(NOT_TAKEN_OVER);
        match std::fs::read_to_string(&path) {
            Ok(text) => Recovered::read(&text).map(Some).ok_or(DirectoryError::DamagedRecovery { path }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(DirectoryError::Io { path, source }),
        }
    }

    /// The operator's word that the gateway of before is gone. Again, or where nothing was recovered, it changes nothing.
    pub fn take_over(&self) -> Result<(), DirectoryError> {
        durable::remove_file(&self.path.join(NOT_TAKEN_OVER)).map_err(self.io(NOT_TAKEN_OVER))
    }

    /// The id of the gateway that lives here; `None` before it was given one.
    pub fn gateway_id(&self) -> Result<Option<GatewayId>, DirectoryError> {
        let path = self.path.join("gateway");
        match std::fs::read_to_string(&path) {
            Ok(text) => text
                .strip_prefix(GATEWAY_STEM)
                .and_then(|id| id.trim_end().parse().ok())
                .map(Some)
                .ok_or(DirectoryError::DamagedGateway { path }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(DirectoryError::Io { path, source }),
        }
    }

    /// Gives the gateway that lives here its id, once.
    pub fn set_gateway_id(&self, id: GatewayId) -> Result<(), DirectoryError> {
        let text = format!("{GATEWAY_STEM}{id}\n");
        durable::create_file(&self.path, "gateway", text.as_bytes()).map_err(self.io("gateway"))
    }

    /// Takes the lock, or says who has it. The lock ends with the process, however it ends.
    pub fn lock(&self, role: Role) -> Result<Lock, DirectoryError> {
        let mut options = OpenOptions::new();
        let mut file = options
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(self.path.join("lock"))
            .map_err(|source| match source.kind() {
                io::ErrorKind::NotFound => DirectoryError::Missing { path: self.path.clone() },
                _ => DirectoryError::Io { path: self.path.join("lock"), source },
            })?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => {
                return Err(DirectoryError::Locked {
                    path: self.path.clone(),
                    holder: read_holder(&mut file),
                });
            }
            Err(error) => return Err(self.io("lock")(error.into())),
        }
        write_holder(&file, role).map_err(self.io("lock"))?;
        Ok(Lock { _file: file })
    }
}

/// Bytes that say who holds the lock: always as many, so that a reader never sees half of them.
const HOLDER_BYTES: usize = 32;

fn write_holder(file: &File, role: Role) -> io::Result<()> {
    let name = match role {
        Role::Gateway => "gateway",
        Role::Command => "command",
    };
    let text = format!("{:<width$}\n", format!("{name} {}", std::process::id()), width = HOLDER_BYTES - 1);
    file.write_all_at(text.as_bytes(), 0)
}

fn read_holder(file: &mut File) -> Holder {
    let mut text = String::new();
    // Only for the message: who holds the lock is known to the kernel, not to the file.
    let _ = file.take(64).read_to_string(&mut text);
    let mut words = text.split_whitespace();
    let role = match words.next() {
        Some("gateway") => Some(Role::Gateway),
        Some("command") => Some(Role::Command),
        _ => None,
    };
    Holder { role, process: words.next().and_then(|word| word.parse().ok()) }
}

/// The right to use a directory; given back when dropped.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fresh() -> (tempfile::TempDir, Directory) {
        let parent = tempfile::tempdir().unwrap();
        let directory = Directory::new(&parent.path().join("cairn")).unwrap();
        (parent, directory)
    }

    #[test]
    fn what_a_recovery_saw_is_read_back() {
        let newest = ManifestId { incarnation: 2, number: 7, gateway: GatewayId::from_bytes([4; 16]) };
        let nodes = [(NodeId::from_bytes([1; 16]), ObjectTally::default())].into();
        let recovered = Recovered { newest, nodes, lacks: vec!["3 segments".to_owned()] };
        assert_eq!(Recovered::read(&recovered.write()), Some(recovered.clone()));
        assert_eq!(Recovered::read(&recovered.write().replace("node 01", "node 0x")), None);
        assert_eq!(Recovered::read(""), None);
    }

    #[test]
    fn a_missing_or_empty_directory_is_fresh() {
        let (_parent, directory) = fresh();
        assert_eq!(directory.state().unwrap(), State::Fresh);
        directory.create().unwrap();
        assert_eq!(directory.state().unwrap(), State::Fresh);
    }

    #[test]
    fn a_configuration_written_beforehand_leaves_a_directory_fresh() {
        let (_parent, directory) = fresh();
        directory.create().unwrap();
        std::fs::write(directory.config(), "").unwrap();
        let _lock = directory.lock(Role::Command).unwrap();
        assert_eq!(directory.state().unwrap(), State::Fresh);
    }

    #[test]
    fn an_initialisation_is_interrupted_until_it_ends() {
        let (_parent, directory) = fresh();
        directory.create().unwrap();
        directory.begin_initialisation().unwrap();
        std::fs::write(directory.key(), "").unwrap();
        assert_eq!(directory.state().unwrap(), State::Interrupted);
        directory.end_initialisation().unwrap();
        assert_eq!(directory.state().unwrap(), State::Ready);
        assert!(!directory.path().join(INITIALISING).exists());
    }

    #[test]
    fn a_directory_is_ready_as_soon_as_it_has_its_format() {
        let (_parent, directory) = fresh();
        directory.create().unwrap();
        directory.begin_initialisation().unwrap();
        std::fs::write(directory.path().join("format"), "cairn-directory 1\n").unwrap();
        assert_eq!(directory.state().unwrap(), State::Ready);
    }

    #[test]
    fn remains_of_a_site_are_never_taken_for_a_fresh_directory() {
        for name in ["key", "catalog.db", "wal", "pool", "letter.txt"] {
            let (_parent, directory) = fresh();
            directory.create().unwrap();
            std::fs::write(directory.path().join(name), "").unwrap();
            match directory.state() {
                Err(DirectoryError::Foreign { found, .. }) => assert_eq!(found, name),
                other => panic!("{name}: {other:?}"),
            }
        }
    }

    #[test]
    fn a_newer_or_damaged_format_is_refused() {
        let (_parent, directory) = fresh();
        directory.create().unwrap();
        let format = directory.path().join("format");
        std::fs::write(&format, "cairn-directory 2\n").unwrap();
        assert!(matches!(directory.state(), Err(DirectoryError::Newer { found, .. }) if found == "2"));
        for text in ["", "cairn-directory 1", "cairn-directory 0\n", "cairn-directory x\n", "something\n"] {
            std::fs::write(&format, text).unwrap();
            assert!(matches!(directory.state(), Err(DirectoryError::DamagedFormat { .. })), "{text:?}");
        }
    }

    #[test]
    fn a_gateway_keeps_its_id() {
        let (_parent, directory) = fresh();
        directory.create().unwrap();
        assert_eq!(directory.gateway_id().unwrap(), None);
        let id = GatewayId::from_bytes([7; 16]);
        directory.set_gateway_id(id).unwrap();
        assert_eq!(directory.gateway_id().unwrap(), Some(id));
        assert!(directory.set_gateway_id(GatewayId::from_bytes([8; 16])).is_err());
        std::fs::write(directory.path().join("gateway"), "cairn-gateway 1 7\n").unwrap();
        assert!(matches!(directory.gateway_id(), Err(DirectoryError::DamagedGateway { .. })));
    }

    #[test]
    fn a_second_user_of_a_directory_is_refused_and_told_of_the_first() {
        let (_parent, directory) = fresh();
        directory.create().unwrap();
        let lock = directory.lock(Role::Gateway).unwrap();
        match directory.lock(Role::Command) {
            Err(DirectoryError::Locked { holder, .. }) => {
                assert_eq!(holder, Holder { role: Some(Role::Gateway), process: Some(std::process::id()) });
            }
            other => panic!("{other:?}"),
        }
        drop(lock);
        assert!(directory.lock(Role::Command).is_ok());
    }
}
