//! Patterned images go in by one client and come out again, byte by byte the same, at once and minutes later.

use crate::load::Load;
use crate::site::Site;
use anyhow::{Context, Result};
use std::path::Path;
use std::time::Duration;
use system_tests::checks::{compare_files, libnbd, make_source, qemu};
use system_tests::export::Export;
use system_tests::random::Random;
use tempfile::TempDir;

const SIZE: u64 = 96 << 20;
const VOLUME: &str = "images";

/// Who carries the image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Carrier {
    QemuImg,
    NbdCopy,
}

pub(crate) struct Images {
    export: Export,
    folder: TempDir,
    random: Random,
    turn: u64,
    is_there: bool,
}

impl Images {
    pub(crate) fn new(site: &Site, seed: u64) -> Result<Self> {
        let gateway = site.calm();
        gateway.create_volume(VOLUME, SIZE)?;
        let folder = tempfile::Builder::new().prefix("cairn-images").tempdir()?;
        let random = Random::seeded(seed);
        Ok(Self { export: gateway.export(VOLUME), folder, random, turn: 0, is_there: false })
    }
}

/// Puts the image in and takes it out.
pub(crate) fn carry(carrier: Carrier, export: &Export, source: &Path, back: &Path) -> Result<()> {
    match carrier {
        Carrier::QemuImg => qemu::converts(export, source, back),
        Carrier::NbdCopy => libnbd::copies(export, source, back, 256 << 10),
    }
}

impl Load for Images {
    fn name(&self) -> &'static str {
        "images"
    }

    fn percent(&self) -> u64 {
        12
    }

    fn rest(&self) -> Duration {
        Duration::from_secs(5)
    }

    fn round(&mut self, site: &Site) -> Result<u64> {
        let gateway = site.calm();
        let (source, back) = (self.folder.path().join("source"), self.folder.path().join("back"));
        if std::mem::take(&mut self.is_there) {
            qemu::compare_with(&self.export, &source).context("the image of the round before")?;
        }
        make_source(&source, SIZE, self.random.word())?;
        self.turn += 1;
        match self.turn % 3 {
            0 => carry(Carrier::QemuImg, &self.export, &source, &back),
            1 => carry(Carrier::NbdCopy, &self.export, &source, &back),
            _ => {
                gateway.import(VOLUME, &source)?;
                let _ = std::fs::remove_file(&back);
                gateway.export_volume(VOLUME, &back)?;
                compare_files(&source, &back)
            }
        }?;
        self.is_there = true;
        site.count("images in and out, compared", 1);
        // About half of an image neither is a hole nor compresses away.
        Ok(SIZE / 2)
    }

    fn check_again(&mut self, _site: &Site) -> Result<()> {
        if !self.is_there {
            return Ok(());
        }
        qemu::compare_with(&self.export, &self.folder.path().join("source"))
    }
}
