//! Passphrases, and the keys that Argon2id (RFC 9106) makes of them.

use super::KeyError;
use argon2::{Algorithm, Argon2, Block, Params, Version};
use cairn_model::Entropy;
use cairn_model::crypto::SecretKey;
use std::fmt;
use zeroize::{Zeroize, Zeroizing};

pub const SALT_BYTES: usize = 16;

/// Longest passphrase, in bytes.
pub const PASSPHRASE_BYTES_MAX: usize = 1024;

/// Fewest characters of a new passphrase. It stops nothing but accidents: what a passphrase is worth, no program can tell.
const CHARACTERS_MIN: usize = 8;

/// A passphrase: the bytes as they were typed or read, without the end of the line. Zeroised when dropped; never printed.
#[derive(Clone)]
pub struct Passphrase(Zeroizing<String>);

impl Passphrase {
    /// What a file or a terminal gave: one line, whose end is no part of it.
    pub fn from_line(bytes: &[u8]) -> Result<Self, KeyError> {
        let bad = |problem| KeyError::BadPassphrase { problem };
        let text = std::str::from_utf8(bytes).map_err(|_| bad("it is not text in UTF-8"))?;
        let line = text.strip_suffix('\n').unwrap_or(text);
        let line = line.strip_suffix('\r').unwrap_or(line);
        if line.is_empty() {
            return Err(bad("it is empty"));
        }
        if line.len() > PASSPHRASE_BYTES_MAX {
            return Err(bad("it is longer than 1024 bytes"));
        }
        if line.contains(['\n', '\r', '\0']) {
            return Err(bad("it has more than one line"));
        }
        Ok(Self(Zeroizing::new(line.to_owned())))
    }

    /// Refuses a new passphrase that is too short to be meant.
    pub fn check_new(&self) -> Result<(), KeyError> {
        if self.0.chars().count() < CHARACTERS_MIN {
            return Err(KeyError::BadPassphrase { problem: "it has fewer than 8 characters" });
        }
        Ok(())
    }

    pub fn is_same(&self, other: &Self) -> bool {
        *self.0 == *other.0
    }
}

impl fmt::Debug for Passphrase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Passphrase(redacted)")
    }
}

/// What trying one passphrase costs: memory, passes over it, and lanes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cost {
    memory_kib: u32,
    passes: u32,
    lanes: u32,
}

impl Cost {
    /// Four times the memory of RFC 9106's second recommendation, for a program that derives one key per start.
    /// `docs/decisions/0010-keys.md` has the measurement.
    pub const DEFAULT: Self = Self { memory_kib: 256 << 10, passes: 3, lanes: 4 };

    /// The least that is accepted. For tests, which derive often.
    pub const LEAST: Self = Self { memory_kib: 8 << 10, passes: 1, lanes: 1 };

    /// Most memory, in KiB, and most memory times passes: a damaged file must not ask for all of a machine, or for an hour.
    const MEMORY_KIB_MAX: u32 = 1 << 20;
    const WORK_KIB_MAX: u64 = 8 << 20;
    const LANES_MAX: u32 = 16;

    /// `None` when out of bounds.
    pub fn new(memory_kib: u32, passes: u32, lanes: u32) -> Option<Self> {
        let possible = (Self::LEAST.memory_kib..=Self::MEMORY_KIB_MAX).contains(&memory_kib)
            && passes >= 1
            && u64::from(memory_kib) * u64::from(passes) <= Self::WORK_KIB_MAX
            && (1..=Self::LANES_MAX).contains(&lanes);
        possible.then_some(Self { memory_kib, passes, lanes })
    }

    fn params(self) -> Params {
        Params::new(self.memory_kib, self.passes, self.lanes, Some(SecretKey::BYTES))
            .expect("the bounds are within Argon2's own")
    }
}

impl fmt::Display for Cost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "m={} t={} p={}", self.memory_kib, self.passes, self.lanes)
    }
}

/// How a key is made of a passphrase.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Derivation {
    pub cost: Cost,
    pub salt: [u8; SALT_BYTES],
}

impl Derivation {
    pub fn fresh(cost: Cost, entropy: &dyn Entropy) -> Self {
        let mut salt = [0; SALT_BYTES];
        entropy.fill(&mut salt);
        Self { cost, salt }
    }

    /// The key. Works for a second and takes the memory that the cost says: never on an asynchronous thread.
    pub fn derive(&self, passphrase: &Passphrase) -> Result<SecretKey, KeyError> {
        let params = self.cost.params();
        let mut memory: Vec<Block> = Vec::new();
        memory
            .try_reserve_exact(params.block_count())
            .map_err(|_| KeyError::NoMemory { mib: self.cost.memory_kib >> 10 })?;
        memory.resize(params.block_count(), Block::new());
        let argon2 = Argon2::new(Algorithm::Argon2id, Version::V0x13, params);
        let key = SecretKey::filled(|key| {
            argon2
                .hash_password_into_with_memory(passphrase.0.as_bytes(), &self.salt, key, &mut memory)
                .expect("lengths and costs are within Argon2's bounds");
        });
        for block in &mut memory {
            block.zeroize();
        }
        Ok(key)
    }

    /// Parses `m=M t=T p=P salt=HEX`.
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        let shape = "it does not say how the passphrase becomes a key";
        let mut words = text.split(' ');
        let mut word = |name: &str| words.next()?.strip_prefix(name)?.strip_prefix('=');
        // As it is printed alone: `08` and `+8` are a file that something changed, and the checksum covers what is printed.
        let number = |digits: &str| digits.parse::<u32>().ok().filter(|number| number.to_string() == digits);
        let memory_kib = word("m").and_then(number).ok_or(shape)?;
        let passes = word("t").and_then(number).ok_or(shape)?;
        let lanes = word("p").and_then(number).ok_or(shape)?;
        let digits = word("salt").ok_or(shape)?;
        if words.next().is_some() {
            return Err(shape);
        }
        let mut salt = [0; SALT_BYTES];
        hex::decode_to_slice(digits, &mut salt).map_err(|_| shape)?;
        let cost = Cost::new(memory_kib, passes, lanes)
            .ok_or("it asks for more work to open than any key file does, or for too little")?;
        Ok(Self { cost, salt })
    }
}

impl fmt::Display for Derivation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} salt={}", self.cost, hex::encode(self.salt))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cairn_model::SeededEntropy;

    fn passphrase(text: &str) -> Passphrase {
        Passphrase::from_line(text.as_bytes()).unwrap()
    }

    #[test]
    fn a_passphrase_is_one_line_without_its_end() {
        for text in ["correct horse", "correct horse\n", "correct horse\r\n"] {
            assert!(passphrase(text).is_same(&passphrase("correct horse")), "{text:?}");
        }
        assert!(!passphrase(" a").is_same(&passphrase("a")));
        for bytes in [&b""[..], b"\n", b"\r\n", b"two\nlines", b"\xff\xfe", b"nul\0", &[b'a'; 1025]] {
            assert!(matches!(Passphrase::from_line(bytes), Err(KeyError::BadPassphrase { .. })), "{bytes:?}");
        }
        assert!(passphrase("seven77").check_new().is_err());
        assert!(passphrase("äääääääh").check_new().is_ok());
    }

    #[test]
    fn debug_output_hides_passphrases() {
        assert_eq!(format!("{:?}", passphrase("correct horse")), "Passphrase(redacted)");
    }

    #[test]
    fn a_key_depends_on_the_passphrase_the_salt_and_the_cost() {
        let entropy = SeededEntropy::new(1);
        let one = Derivation::fresh(Cost::LEAST, &entropy);
        let salted = Derivation::fresh(Cost::LEAST, &entropy);
        let costly = Derivation { cost: Cost::new(8 << 10, 2, 1).unwrap(), ..one };
        let key = |derivation: &Derivation, text| *derivation.derive(&passphrase(text)).unwrap().expose();
        assert_eq!(key(&one, "correct horse"), key(&one, "correct horse"));
        assert_ne!(key(&one, "correct horse"), key(&one, "correct horsf"));
        assert_ne!(key(&one, "correct horse"), key(&salted, "correct horse"));
        assert_ne!(key(&one, "correct horse"), key(&costly, "correct horse"));
    }

    /// From the reference implementation: `printf 'correct horse' | argon2 somesaltsomesalt -id -k 8192 -t 1 -p 1 -l 32`.
    #[test]
    fn a_key_is_argon2id_of_the_passphrase() {
        let derivation = Derivation { cost: Cost::LEAST, salt: *b"somesaltsomesalt" };
        let key = derivation.derive(&passphrase("correct horse")).unwrap();
        assert_eq!(
            hex::encode(key.expose()),
            "fa3406be72c7f6c77f447a5515d9de675a56122f150cadf493f13f204fa8dc81"
        );
    }

    #[test]
    fn a_cost_out_of_bounds_is_refused_before_it_is_paid() {
        let salt = "00".repeat(SALT_BYTES);
        for cost in [
            "m=4294967295 t=1 p=1",
            "m=1048577 t=1 p=1",
            "m=1048576 t=9 p=1",
            "m=8192 t=4294967295 p=1",
            "m=8191 t=1 p=1",
            "m=8192 t=0 p=1",
            "m=8192 t=1 p=0",
            "m=8192 t=1 p=17",
        ] {
            let refused = Derivation::parse(&format!("{cost} salt={salt}"));
            assert!(refused.is_err_and(|problem| problem.contains("work")), "{cost}");
        }
        assert!(Derivation::parse(&format!("{} salt={salt}", Cost::DEFAULT)).is_ok());
        for text in ["", "m=8192", "m=8192 t=1 p=1", "t=1 m=8192 p=1 salt=00", "m=8192 t=1 p=1 salt=zz"] {
            assert!(Derivation::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_derivation_prints_as_it_parses() {
        let derivation = Derivation::fresh(Cost::DEFAULT, &SeededEntropy::new(3));
        assert_eq!(Derivation::parse(&derivation.to_string()), Ok(derivation));
    }
}
