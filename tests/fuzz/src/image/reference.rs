//! Another reader of qcow2, of one cluster at a time, by QEMU's document.

/// Where a cluster's bytes are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Cluster {
    Zero,
    /// First byte in the file.
    At(u64),
    Compressed,
    /// A table that leads to it is not wholly in the file.
    Beyond,
}

#[derive(Debug)]
pub(super) struct Reference<'f> {
    file: &'f [u8],
    cluster_bits: u32,
}

impl<'f> Reference<'f> {
    /// The header must have been accepted.
    pub(super) fn new(file: &'f [u8]) -> Self {
        let bits = u32::from_be_bytes(file[20..24].try_into().unwrap());
        Self { file, cluster_bits: bits }
    }

    pub(super) fn cluster_bytes(&self) -> u64 {
        1 << self.cluster_bits
    }

    fn entry(&self, offset: u64) -> Option<u64> {
        let offset = usize::try_from(offset).ok()?;
        let bytes = self.file.get(offset..offset.checked_add(8)?)?;
        Some(u64::from_be_bytes(bytes.try_into().unwrap()))
    }

    /// The cluster that holds byte `offset` of the disk.
    pub(super) fn cluster(&self, offset: u64) -> Cluster {
        self.look_up(offset).unwrap_or(Cluster::Beyond)
    }

    fn look_up(&self, offset: u64) -> Option<Cluster> {
        let l2_bits = self.cluster_bits - 3;
        let number = offset >> self.cluster_bits;
        let l1_offset = self.entry(40)?;
        let l1_entry = self.entry(l1_offset.checked_add((number >> l2_bits) * 8)?)?;
        let table = l1_entry & 0x00ff_ffff_ffff_fe00;
        if table == 0 {
            return Some(Cluster::Zero);
        }
        let l2_entry = self.entry(table + (number & ((1 << l2_bits) - 1)) * 8)?;
        let version = u32::from_be_bytes(self.file.get(4..8)?.try_into().unwrap());
        let at = l2_entry & 0x00ff_ffff_ffff_fe00;
        assert!(
            version >= 3 || l2_entry & (1 << 62 | 1) != 1,
            "an image of version 2 with a cluster of zeros is read"
        );
        Some(if l2_entry & 1 << 62 != 0 {
            Cluster::Compressed
        } else if l2_entry & 1 != 0 || at == 0 {
            Cluster::Zero
        } else {
            Cluster::At(at)
        })
    }

    /// Bytes of the file, if it has them all.
    pub(super) fn bytes(&self, at: u64, length: usize) -> Option<&'f [u8]> {
        let at = usize::try_from(at).ok()?;
        self.file.get(at..at.checked_add(length)?)
    }
}
