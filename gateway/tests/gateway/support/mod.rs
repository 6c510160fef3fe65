//! The program under test, run as a user runs it.
#![allow(clippy::unwrap_used, reason = "this is test code outside of a test function")]

pub(crate) mod exposition;

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

/// A small log, no waiting for batches to age, and a port that the system chooses.
pub(crate) const SMALL: &str =
    "[gateway]\nnbd = [\"127.0.0.1:0\", \"unix:nbd.sock\"]\n[wal]\ncapacity = \"64MiB\"\n";

/// What a command said.
#[derive(Debug)]
pub(crate) struct Said {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Said {
    fn of(output: &Output) -> Self {
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).expect("output is text");
        Self { code: output.status.code(), stdout: text(&output.stdout), stderr: text(&output.stderr) }
    }

    /// Standard output of a command that must have succeeded.
    #[track_caller]
    pub(crate) fn ok(self) -> String {
        assert_eq!(self.code, Some(0), "{self:?}");
        self.stdout
    }

    /// Standard error of a command that must have failed.
    #[track_caller]
    pub(crate) fn failed(self) -> String {
        assert_eq!(self.code, Some(1), "{self:?}");
        assert!(!self.stderr.contains("panicked") && !self.stderr.contains("{ "), "{self:?}");
        self.stderr
    }

    /// Standard error of a command whose line was wrong.
    #[track_caller]
    pub(crate) fn misused(self) -> String {
        assert_eq!(self.code, Some(2), "{self:?}");
        self.stderr
    }

    #[track_caller]
    pub(crate) fn json(self) -> serde_json::Value {
        serde_json::from_str(&self.ok()).expect("the answer is JSON")
    }
}

/// A directory of its own for a gateway.
pub(crate) struct Home {
    folder: tempfile::TempDir,
}

impl Home {
    /// With a configuration that suits tests and nothing else.
    pub(crate) fn fresh() -> Self {
        Self::with_config(SMALL)
    }

    pub(crate) fn with_config(config: &str) -> Self {
        let home = Self { folder: tempfile::tempdir().unwrap() };
        std::fs::create_dir(home.directory()).unwrap();
        std::fs::write(home.directory().join("cairn.toml"), config).unwrap();
        home
    }

    /// Initialised.
    pub(crate) fn ready() -> Self {
        let home = Self::fresh();
        home.run(&["init"]).ok();
        home
    }

    /// The folder that holds everything of this test.
    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// What `--dir` names.
    pub(crate) fn directory(&self) -> PathBuf {
        self.folder.path().join("cairn")
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory().join(name)
    }

    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_cairn"));
        command.env("CAIRN_DIR", self.directory()).env_remove("NOTIFY_SOCKET").env_remove("CAIRN_LOG");
        command.current_dir(self.folder()).stdin(Stdio::null()).args(arguments);
        command
    }

    pub(crate) fn run(&self, arguments: &[&str]) -> Said {
        Said::of(&self.command(arguments).output().expect("cairn runs"))
    }

    /// Starts `cairn serve` and waits until it answers.
    pub(crate) fn serve(&self) -> Gateway {
        self.start(&["serve"])
    }

    pub(crate) fn start(&self, arguments: &[&str]) -> Gateway {
        let log = std::fs::File::create(self.folder().join("gateway.log")).unwrap();
        let output = std::fs::File::create(self.folder().join("gateway.out")).unwrap();
        let child = self.command(arguments).stdout(output).stderr(log).spawn().expect("cairn runs");
        let mut gateway =
            Gateway { child, socket: self.path("admin.sock"), log: self.folder().join("gateway.log") };
        gateway.wait_until_ready();
        gateway
    }
}

/// A running gateway; killed when dropped.
pub(crate) struct Gateway {
    child: Child,
    socket: PathBuf,
    log: PathBuf,
}

impl Gateway {
    fn wait_until_ready(&mut self) {
        for _ in 0..600 {
            if std::os::unix::net::UnixStream::connect(&self.socket).is_ok() {
                return;
            }
            if let Some(status) = self.child.try_wait().unwrap() {
                panic!("the gateway ended with {status}: {}", self.log());
            }
            pause(Duration::from_millis(50));
        }
        panic!("the gateway was not ready in time: {}", self.log());
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    pub(crate) fn process(&self) -> u32 {
        self.child.id()
    }

    /// SIGTERM; the exit code.
    pub(crate) fn stop(mut self) -> Option<i32> {
        self.signal(rustix::process::Signal::TERM);
        self.child.wait().unwrap().code()
    }

    /// SIGKILL.
    pub(crate) fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    pub(crate) fn signal(&self, signal: rustix::process::Signal) {
        rustix::process::kill_process(rustix::process::Pid::from_child(&self.child), signal).unwrap();
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[expect(clippy::disallowed_methods, reason = "a test waits for another process")]
pub(crate) fn pause(duration: Duration) {
    std::thread::sleep(duration);
}

/// Runs a tool that must be there and must succeed.
#[track_caller]
pub(crate) fn tool(name: &str, arguments: &[&str]) -> String {
    let output = Command::new(name)
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .unwrap_or_else(|error| panic!("{name} is needed by this test: {error}"));
    assert!(output.status.success(), "{name} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Bytes that do not compress and do not repeat.
pub(crate) fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    cairn_model::Entropy::fill(&cairn_model::SeededEntropy::new(seed), &mut bytes);
    bytes
}

/// A sparse file of `size` bytes with `data` at the given offsets.
pub(crate) fn sparse_file(path: &Path, size: u64, data: &[(u64, &[u8])]) {
    use std::os::unix::fs::FileExt;
    let file = std::fs::File::create(path).unwrap();
    file.set_len(size).unwrap();
    for (offset, bytes) in data {
        file.write_all_at(bytes, *offset).unwrap();
    }
}

pub(crate) fn same_content(one: &Path, other: &Path) -> bool {
    std::fs::read(one).unwrap() == std::fs::read(other).unwrap()
}

/// Bytes that the file takes on its file system.
pub(crate) fn taken(path: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata(path).unwrap().blocks() * 512
}
