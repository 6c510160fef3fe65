//! What is being done to an image in place: `FILE.cairn-update` beside it, from before the first change until the last one is durable and checked.
//!
//! ```text
//! cairn-update 1
//! since ID VOLUME@SNAPSHOT      what the image held
//! to ID VOLUME@SNAPSHOT         what it is to hold
//! ```
//!
//! Crash cases: it is written aside, synced and renamed, so it is whole or not there; as long as it is not durable, the image is not changed. While it
//! is there, only the same update may go on: the differences to anything else do not reach what a part of this one has changed. One that was left
//! beside a complete image makes the next update too careful; one that is missing beside a mixed image would make it wrong.

use super::ImageError;
use crate::durable;
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

const HEAD: &str = "cairn-update 1";

/// A snapshot as an update knows it. A name may come to mean another one, an identity does not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held {
    pub id: String,
    /// `VOLUME@SNAPSHOT`.
    pub name: String,
}

/// The two sides of an update.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pending {
    pub since: Held,
    pub to: Held,
}

impl Pending {
    fn is_same(&self, other: &Self) -> bool {
        (&self.since.id, &self.to.id) == (&other.since.id, &other.to.id)
    }

    fn parse(text: &str) -> Option<Self> {
        let mut lines = text.lines();
        let first = lines.next()?;
        let mut held = |key: &str| {
            let (id, name) = lines.next()?.strip_prefix(key)?.strip_prefix(' ')?.split_once(' ')?;
            Some(Held { id: id.to_owned(), name: name.to_owned() })
        };
        let found = Self { since: held("since")?, to: held("to")? };
        (first == HEAD && lines.next().is_none()).then_some(found)
    }
}

impl std::fmt::Display for Pending {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (since, to) = (&self.since, &self.to);
        write!(f, "{HEAD}\nsince {} {}\nto {} {}\n", since.id, since.name, to.id, to.name)
    }
}

/// Where it is said what is being done to `image`.
pub(super) fn path_of(image: &Path) -> PathBuf {
    with_suffix(image, ".cairn-update")
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(suffix);
    PathBuf::from(name)
}

/// Notes durably that `update` of `image` begins. Refused while another one is unfinished.
pub(super) fn begin(image: &Path, update: &Pending) -> Result<(), ImageError> {
    let path = path_of(image);
    let io = |source: io::Error| ImageError::Io { path: path.clone(), source };
    match std::fs::read(&path) {
        Ok(bytes) => {
            let found = std::str::from_utf8(&bytes).ok().and_then(Pending::parse);
            match found {
                // What the one before may not have come to: the name is durable before the image changes.
                Some(found) if found.is_same(update) => return sync_folder(&path).map_err(io),
                Some(found) => {
                    return Err(ImageError::Unfinished { path: image.to_owned(), update: Box::new(found) });
                }
                None => return Err(ImageError::UnknownUpdate { path: image.to_owned(), note: path }),
            }
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(io(error)),
    }
    let aside = with_suffix(&path, ".new");
    File::create(&aside)
        .and_then(|mut file| {
            file.write_all(update.to_string().as_bytes())?;
            file.sync_all()
        })
        .and_then(|()| std::fs::rename(&aside, &path))
        .and_then(|()| sync_folder(&path))
        .map_err(io)
}

/// The image is complete and durable.
pub(super) fn end(image: &Path) -> Result<(), ImageError> {
    let path = path_of(image);
    let removed = match std::fs::remove_file(&path) {
        Ok(()) => sync_folder(&path),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    };
    removed.map_err(|source| ImageError::Io { path, source })
}

fn sync_folder(path: &Path) -> io::Result<()> {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    durable::sync_directory(parent.unwrap_or(Path::new(".")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn update(since: &str, to: &str) -> Pending {
        let held = |id: &str| Held { id: id.to_owned(), name: format!("a disk@{id}") };
        Pending { since: held(since), to: held(to) }
    }

    #[test]
    fn only_the_same_update_goes_on_until_it_has_ended() {
        let folder = tempfile::tempdir().expect("there is room");
        let image = folder.path().join("image");
        begin(&image, &update("a", "b")).expect("nothing is unfinished");
        begin(&image, &update("a", "b")).expect("it is the same");
        for other in [update("a", "c"), update("c", "b"), update("b", "a")] {
            let refused = begin(&image, &other).expect_err("another one is unfinished");
            assert!(
                matches!(&refused, ImageError::Unfinished { update: of, .. } if **of == update("a", "b")),
                "{refused}"
            );
        }
        end(&image).expect("it can be removed");
        end(&image).expect("it is gone already");
        begin(&image, &update("a", "c")).expect("nothing is unfinished");
        assert_eq!(std::fs::read_dir(folder.path()).expect("it is there").count(), 1);
    }

    #[test]
    fn what_cannot_be_read_is_refused_and_left_there() {
        let folder = tempfile::tempdir().expect("there is room");
        let image = folder.path().join("image");
        let whole = update("a", "b").to_string();
        for text in
            ["", "cairn-update 2\n", &whole[..20], &format!("{whole}more\n"), &whole.replace(" 1", " 2")]
        {
            std::fs::write(path_of(&image), text).expect("there is room");
            let refused = begin(&image, &update("a", "b")).expect_err("it says nothing that is known");
            assert!(matches!(refused, ImageError::UnknownUpdate { .. }), "{refused}");
            assert!(path_of(&image).exists());
        }
    }
}
