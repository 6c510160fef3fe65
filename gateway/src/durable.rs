//! Files that appear whole and durable, or not at all.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

/// Makes the names in `directory` durable.
pub fn sync_directory(directory: &Path) -> io::Result<()> {
    File::open(directory)?.sync_all()
}

/// Creates `directory` (mode 0700) and makes its name durable; an existing one is left as it is. The parent must exist.
pub fn create_directory(directory: &Path) -> io::Result<()> {
    match std::fs::DirBuilder::new().mode(0o700).create(directory) {
        Ok(()) => match directory.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => sync_directory(parent),
            _ => sync_directory(Path::new(".")),
        },
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && directory.is_dir() => Ok(()),
        Err(error) => Err(error),
    }
}

/// Creates `directory/name` with `contents` and mode 0600: written aside, synced, then given its name, so that a
/// crash leaves all of it or none. Fails with `AlreadyExists` and changes nothing when the name is taken.
pub fn create_file(directory: &Path, name: &str, contents: &[u8]) -> io::Result<()> {
    let aside = directory.join(format!(".{name}.new"));
    let target = directory.join(name);
    match std::fs::remove_file(&aside) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    // A link, unlike a rename, never replaces what has the name.
    let made = write_new(&aside, contents).and_then(|()| std::fs::hard_link(&aside, &target));
    // What was made aside may be a secret: it stays after no error.
    let removed = remove_file(&aside);
    made.and(removed)?;
    sync_directory(directory)
}

fn write_new(path: &Path, contents: &[u8]) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(contents)?;
    file.sync_all()
}

/// Gives `from` the name `to`, in the place of what has it, durably: after a crash `to` is one or the other, whole.
pub fn replace(from: &Path, to: &Path) -> io::Result<()> {
    std::fs::rename(from, to)?;
    to.parent().map_or(Ok(()), sync_directory)
}

/// Removes `path` and makes that durable; it may be missing.
pub fn remove_file(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Ok(()) => path.parent().map_or(Ok(()), sync_directory),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_created_file_has_its_contents_and_is_private() {
        let directory = tempfile::tempdir().unwrap();
        create_file(directory.path(), "key", b"contents").unwrap();
        let path = directory.path().join("key");
        assert_eq!(std::fs::read(&path).unwrap(), b"contents");
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_taken_name_is_never_overwritten() {
        let directory = tempfile::tempdir().unwrap();
        create_file(directory.path(), "key", b"first").unwrap();
        let error = create_file(directory.path(), "key", b"second").unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(std::fs::read(directory.path().join("key")).unwrap(), b"first");
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1);
    }

    #[test]
    fn what_an_interrupted_creation_left_aside_is_replaced() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join(".key.new"), b"torn").unwrap();
        create_file(directory.path(), "key", b"whole").unwrap();
        assert_eq!(std::fs::read(directory.path().join("key")).unwrap(), b"whole");
    }
}
