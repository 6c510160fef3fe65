//! Asking for a passphrase on the terminal.
//!
//! The terminal is told not to show what is typed and to send Ctrl-C as a character, so that its settings are put back however the
//! question ends: answered, refused, or no longer of interest because the program was told to stop.

use super::{KeyError, Passphrase};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::termios::{LocalModes, OptionalActions, SpecialCodeIndex, Termios, tcgetattr, tcsetattr};
use std::fs::{File, OpenOptions};
use std::io::{self, IsTerminal, Read, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use zeroize::Zeroizing;

use super::passphrase::PASSPHRASE_BYTES_MAX;

/// How soon a question that nobody waits for any more is given up.
const LOOK_UP: Timespec = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };

/// Whether somebody is there to be asked.
pub fn is_possible() -> bool {
    io::stdin().is_terminal()
}

/// Asks `question` on the terminal of this process. `what` names what is asked for when there is no terminal.
pub async fn ask(question: String, what: &'static str) -> Result<Passphrase, KeyError> {
    if !is_possible() {
        return Err(KeyError::NoTerminal { what });
    }
    let given_up = Arc::new(AtomicBool::new(false));
    let _guard = GiveUp(Arc::clone(&given_up));
    let asking = tokio::task::spawn_blocking(move || {
        let terminal = OpenOptions::new().read(true).write(true).open("/dev/tty");
        let terminal = terminal.map_err(|_| KeyError::NoTerminal { what })?;
        ask_on(&terminal, &question, &given_up)
    });
    asking.await.unwrap_or(Err(KeyError::Cancelled))
}

/// Asks twice; both answers must be the same.
pub async fn ask_new(question: &str, what: &'static str) -> Result<Passphrase, KeyError> {
    let first = ask(format!("{question}: "), what).await?;
    first.check_new()?;
    let second = ask(format!("{question}, again: "), what).await?;
    if !first.is_same(&second) {
        return Err(KeyError::BadPassphrase { problem: "the second time it was another" });
    }
    Ok(first)
}

struct GiveUp(Arc<AtomicBool>);

impl Drop for GiveUp {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn ask_on(terminal: &File, question: &str, given_up: &AtomicBool) -> Result<Passphrase, KeyError> {
    let failed = |source: io::Error| KeyError::Io { what: "terminal's", path: "/dev/tty".into(), source };
    let quiet = Quiet::begin(terminal).map_err(failed)?;
    let mut output = terminal;
    output.write_all(question.as_bytes()).map_err(failed)?;
    let line = read_line(terminal, given_up).map_err(failed);
    drop(quiet);
    // What was typed ended the line for the user, but was not shown.
    let _ = output.write_all(b"\n");
    let line = line?.ok_or(KeyError::Cancelled)?;
    Passphrase::from_line(&line)
}

/// The terminal's settings, put back when dropped.
struct Quiet<'a> {
    terminal: &'a File,
    before: Termios,
}

impl<'a> Quiet<'a> {
    fn begin(terminal: &'a File) -> io::Result<Self> {
        let before = tcgetattr(terminal)?;
        let mut quiet = before.clone();
        quiet.local_modes.remove(LocalModes::ECHO | LocalModes::ICANON | LocalModes::ISIG);
        quiet.special_codes[SpecialCodeIndex::VMIN] = 1;
        quiet.special_codes[SpecialCodeIndex::VTIME] = 0;
        tcsetattr(terminal, OptionalActions::Now, &quiet)?;
        Ok(Self { terminal, before })
    }
}

impl Drop for Quiet<'_> {
    fn drop(&mut self) {
        // There is nothing left to try when this fails.
        let _ = tcsetattr(self.terminal, OptionalActions::Now, &self.before);
    }
}

/// One line without its end, or `None` when it was not finished.
fn read_line(mut terminal: &File, given_up: &AtomicBool) -> io::Result<Option<Zeroizing<Vec<u8>>>> {
    let mut line = Line::new();
    loop {
        match poll(&mut [PollFd::new(terminal, PollFlags::IN)], Some(&LOOK_UP)) {
            Ok(0) | Err(Errno::INTR) if given_up.load(Ordering::Relaxed) => return Ok(None),
            Ok(0) | Err(Errno::INTR) => continue,
            Ok(_) => {}
            Err(error) => return Err(error.into()),
        }
        let mut byte = Zeroizing::new([0]);
        // One byte at a time: what follows the line is for whoever reads next.
        if terminal.read(&mut *byte)? == 0 {
            return Ok(None);
        }
        match line.take(byte[0]) {
            Typed::More => {}
            Typed::End => return Ok(Some(line.0)),
            Typed::Nothing => return Ok(None),
        }
    }
}

/// What has been typed so far. Never grows, which would leave copies behind.
struct Line(Zeroizing<Vec<u8>>);

#[derive(Debug, PartialEq, Eq)]
enum Typed {
    More,
    End,
    Nothing,
}

impl Line {
    fn new() -> Self {
        Self(Zeroizing::new(Vec::with_capacity(PASSPHRASE_BYTES_MAX + 1)))
    }

    fn take(&mut self, byte: u8) -> Typed {
        const CTRL_C: u8 = 0x03;
        const CTRL_D: u8 = 0x04;
        const BACKSPACE: u8 = 0x08;
        const CTRL_U: u8 = 0x15;
        const DELETE: u8 = 0x7f;
        match byte {
            b'\n' | b'\r' => return Typed::End,
            CTRL_C => return Typed::Nothing,
            CTRL_D if self.0.is_empty() => return Typed::Nothing,
            CTRL_D => return Typed::End,
            CTRL_U => self.0.clear(),
            BACKSPACE | DELETE => {
                // A character may be several bytes: those that only continue one go with it.
                while self.0.pop().is_some_and(|byte| byte & 0xc0 == 0x80) {}
            }
            // One byte more than is allowed is kept, so that too much is refused and not cut.
            _ if self.0.len() <= PASSPHRASE_BYTES_MAX => self.0.push(byte),
            _ => {}
        }
        Typed::More
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn typed(bytes: &[u8]) -> (Vec<u8>, Typed) {
        let mut line = Line::new();
        let mut last = Typed::More;
        for byte in bytes {
            last = line.take(*byte);
            if last != Typed::More {
                break;
            }
        }
        (line.0.to_vec(), last)
    }

    #[test]
    fn a_line_can_be_corrected_while_it_is_typed() {
        assert_eq!(typed(b"horse\n"), (b"horse".to_vec(), Typed::End));
        assert_eq!(typed(b"horsf\x7fe\r"), (b"horse".to_vec(), Typed::End));
        assert_eq!(typed("hö\x7f\x7f\x7fhorse\n".as_bytes()), (b"horse".to_vec(), Typed::End));
        assert_eq!(typed(b"wrong\x15horse\x04"), (b"horse".to_vec(), Typed::End));
    }

    #[test]
    fn a_question_can_be_refused() {
        assert_eq!(typed(b"hor\x03").1, Typed::Nothing);
        assert_eq!(typed(b"\x04").1, Typed::Nothing);
    }

    #[test]
    fn a_line_that_is_too_long_is_not_kept() {
        let (line, _) = typed(&vec![b'a'; 1 << 16]);
        assert_eq!(line.len(), PASSPHRASE_BYTES_MAX + 1);
        assert!(Passphrase::from_line(&line).is_err());
    }
}
