//! A volume whose every byte is known: pieces of 64 KiB, each a function of its number and of how often it was written.

use crate::export::Export;
use crate::gateway::Gateway;
use crate::nbd::{Client, Command};
use crate::random::Random;
use anyhow::{Result, bail};

/// Bytes of a piece.
const PIECE: usize = 64 << 10;

#[derive(Debug)]
pub struct Known {
    export: Export,
    /// How often each piece was written; 0 is one that was not.
    versions: Vec<u32>,
    salt: u64,
}

impl Known {
    /// A fresh volume.
    pub fn create(gateway: &Gateway, name: &str, bytes: u64, salt: u64) -> Result<Self> {
        gateway.create_volume(name, bytes)?;
        let pieces = usize::try_from(bytes)? / PIECE;
        Ok(Self { export: gateway.export(name), versions: vec![0; pieces], salt })
    }

    pub fn pieces(&self) -> usize {
        self.versions.len()
    }

    fn content(&self, piece: usize) -> Vec<u8> {
        let mut bytes = vec![0; PIECE];
        if self.versions[piece] > 0 {
            let seed = (self.salt << 48) ^ ((piece as u64) << 24) ^ u64::from(self.versions[piece]);
            Random::seeded(seed).fill(&mut bytes);
        }
        bytes
    }

    /// Writes all of it, with a flush at the end.
    pub fn fill(&mut self) -> Result<()> {
        self.write(0..self.pieces())
    }

    /// Writes these pieces anew, with a flush at the end. They do not compress, and nothing is written twice.
    pub fn write(&mut self, pieces: impl IntoIterator<Item = usize>) -> Result<()> {
        let mut client = self.export.connect()?;
        for piece in pieces {
            self.versions[piece] += 1;
            client.write(offset(piece), &self.content(piece))?;
        }
        client.flush()?;
        client.disconnect()
    }

    /// Writes so many pieces anew, chosen at random.
    pub fn write_some(&mut self, count: usize, random: &mut Random) -> Result<()> {
        let pieces: Vec<_> = (0..count).map(|_| random.index(self.pieces())).collect();
        self.write(pieces)
    }

    /// Reads everything: each answer must come, and be right.
    pub fn verify(&self) -> Result<()> {
        let mut client = self.export.connect()?;
        for piece in 0..self.pieces() {
            self.check(piece, &client.read(offset(piece), PIECE)?)?;
        }
        client.disconnect()
    }

    /// Reads so many 4 KiB blocks at random: each answer must come, and be right.
    pub fn verify_some(&self, count: usize, random: &mut Random) -> Result<()> {
        const BLOCK: usize = 4096;
        let mut client = self.export.connect()?;
        for _ in 0..count {
            let (piece, block) = (random.index(self.pieces()), random.index(PIECE / BLOCK));
            let read = client.read(offset(piece) + (block * BLOCK) as u64, BLOCK)?;
            if read != self.content(piece)[block * BLOCK..][..BLOCK] {
                bail!(
                    "block {block} of piece {piece} is not what was written {} times",
                    self.versions[piece]
                );
            }
        }
        client.disconnect()
    }

    /// Reads each of these pieces, all at once: an answer may be an error, but no wrong byte. How many were errors.
    pub fn verify_unless_refused(&self, pieces: impl IntoIterator<Item = usize>) -> Result<usize> {
        let mut client = self.export.connect()?;
        let mut asked = std::collections::HashMap::new();
        for piece in pieces {
            asked.insert(client.send(Command::Read, 0, offset(piece), PIECE, &[])?, piece);
        }
        let mut refused = 0;
        while !asked.is_empty() {
            let reply = client.receive()?;
            let Some(piece) = asked.remove(&reply.cookie) else {
                bail!("an answer to no request: {reply:?}")
            };
            match reply.error {
                0 => self.check(piece, &reply.data)?,
                _ => refused += 1,
            }
        }
        drop::<Client>(client);
        Ok(refused)
    }

    fn check(&self, piece: usize, read: &[u8]) -> Result<()> {
        if read == self.content(piece) {
            return Ok(());
        }
        bail!("piece {piece} is not what was written there {} times", self.versions[piece])
    }
}

const fn offset(piece: usize) -> u64 {
    (piece * PIECE) as u64
}
