//! The NBD server, attacked over its socket's bytes.

mod device;
pub(crate) mod handshake;
mod replies;
pub(crate) mod transmission;

use crate::input::Input;
use cairn_nbd::fuzzing::Pace;

/// Most that one session may hold: its buffers, and what its client made it allocate.
const SESSION_BYTES_MAX: usize = 24 << 20;

/// Whole messages, or messages torn into a few bytes at a time.
fn pace(torn: bool, input: &mut Input<'_>) -> Pace {
    if torn {
        Pace { sends: 1 + usize::from(input.byte()), receives: 1 + usize::from(input.byte()) }
    } else {
        Pace::WHOLE
    }
}

/// Takes integers and bytes off the front of what the server answered.
#[derive(Debug)]
struct Answer<'a>(&'a [u8]);

impl<'a> Answer<'a> {
    #[track_caller]
    fn take(&mut self, length: usize) -> &'a [u8] {
        let (taken, rest) =
            self.0.split_at_checked(length).expect("the server left in the middle of a message");
        self.0 = rest;
        taken
    }

    #[track_caller]
    fn u16(&mut self) -> u16 {
        u16::from_be_bytes(self.take(2).try_into().unwrap())
    }

    #[track_caller]
    fn u32(&mut self) -> u32 {
        u32::from_be_bytes(self.take(4).try_into().unwrap())
    }

    #[track_caller]
    fn u64(&mut self) -> u64 {
        u64::from_be_bytes(self.take(8).try_into().unwrap())
    }

    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}
