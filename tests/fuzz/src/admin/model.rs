//! Volumes as arrays of bytes.

use super::api::Answer;
use crate::lie;
use serde_json::Value;
use std::collections::BTreeMap;

/// Larger volumes are not followed.
const FOLLOWED_MAX: u64 = 1 << 20;

#[derive(Debug)]
struct Volume {
    read_only: bool,
    /// `None`: too large, or changed by a request that was not followed.
    bytes: Option<Vec<u8>>,
}

#[derive(Debug, Default)]
pub(super) struct Model {
    volumes: BTreeMap<String, Volume>,
    /// Something happened that was not followed.
    lost: bool,
}

fn zeros(size_bytes: u64) -> Option<Vec<u8>> {
    (size_bytes <= FOLLOWED_MAX).then(|| vec![0; usize::try_from(size_bytes).unwrap()])
}

impl Model {
    pub(super) fn created(&mut self, name: &str, size_bytes: u64, read_only: bool, status: u16) {
        let possible = size_bytes > 0 && size_bytes.is_multiple_of(512) && size_bytes <= 64 << 40;
        let named = ["a", "b", "c.1", "nobody"].contains(&name);
        let expected = possible && named && !self.volumes.contains_key(name);
        assert!(self.lost || (status == 201) == expected, "creating {name} of {size_bytes} bytes: {status}");
        if status == 201 {
            self.volumes.insert(name.to_owned(), Volume { read_only, bytes: zeros(size_bytes) });
        }
    }

    pub(super) fn deleted(&mut self, name: &str, status: u16) {
        let found = self.volumes.remove(name).is_some();
        assert!(self.lost || found == (status == 200), "deleting {name}: {status}");
    }

    pub(super) fn updated(&mut self, name: &str, change: &Value, status: u16) {
        if status != 200 {
            // A resize may have gone before a rename that was refused.
            if change["size_bytes"].is_u64()
                && change["name"].is_string()
                && let Some(volume) = self.volumes.get_mut(name)
            {
                volume.bytes = None;
            }
            return;
        }
        let Some(mut volume) = self.volumes.remove(name) else {
            assert!(self.lost, "{name} was changed and does not exist");
            return;
        };
        if let Some(size_bytes) = change["size_bytes"].as_u64() {
            volume.bytes = volume.bytes.filter(|_| size_bytes <= FOLLOWED_MAX).map(|mut bytes| {
                bytes.resize(usize::try_from(size_bytes).unwrap(), 0);
                bytes
            });
        }
        let to = change["name"].as_str().unwrap_or(name);
        let taken = self.volumes.insert(to.to_owned(), volume);
        assert!(self.lost || taken.is_none(), "{name} took the name of another volume");
    }

    /// The part of a volume, if it is followed.
    fn part(&mut self, name: &str, offset: u64, length: u64) -> Option<(bool, Option<&mut [u8]>)> {
        let volume = self.volumes.get_mut(name)?;
        let bytes = volume.bytes.as_mut()?;
        let start = usize::try_from(offset).unwrap();
        let end = start.checked_add(usize::try_from(length).unwrap())?;
        Some((volume.read_only, bytes.get_mut(start..end)))
    }

    pub(super) fn written(&mut self, name: &str, offset: u64, bytes: &[u8], status: u16) {
        let lost = self.lost;
        let Some((read_only, part)) = self.part(name, offset, bytes.len() as u64) else { return };
        let possible = !read_only && part.is_some();
        assert!(
            lost || bytes.is_empty() || possible == (status == 200),
            "writing {name} at {offset}: {status}"
        );
        if let Some(part) = part.filter(|_| status == 200 && !lie::told()) {
            part.copy_from_slice(bytes);
        }
    }

    pub(super) fn zeroed(&mut self, name: &str, offset: u64, length: u64, status: u16) {
        let lost = self.lost;
        let Some((read_only, part)) = self.part(name, offset, length) else { return };
        let possible = !read_only && part.is_some();
        assert!(lost || length == 0 || possible == (status == 200), "zeroing {name} at {offset}: {status}");
        if let Some(part) = part.filter(|_| status == 200) {
            part.fill(0);
        }
    }

    pub(super) fn read(&mut self, name: &str, offset: u64, length: u64, answer: &Answer) {
        let lost = self.lost;
        let Some((_, part)) = self.part(name, offset, length) else { return };
        assert!(
            lost || length == 0 || part.is_some() == (answer.status == 200),
            "reading {name} at {offset}: {}",
            answer.status
        );
        if let Some(part) = part.filter(|_| answer.status == 200) {
            assert!(lost || *part == answer.body, "volume {name} reads wrong from {offset}, {length} bytes");
        }
    }

    /// Something was sent that may have changed anything.
    pub(super) fn forget(&mut self) {
        self.lost = true;
        for volume in self.volumes.values_mut() {
            volume.bytes = None;
        }
    }
}
