//! One connection. Requests are sent without waiting; replies come in the server's order.

use super::wire;
use crate::export::{Address, Export};
use anyhow::{Context, Result, bail};
use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::time::Duration;

/// What to ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    Read,
    Write,
    Disconnect,
    Flush,
    Trim,
    WriteZeroes,
}

impl Command {
    fn number(self) -> u16 {
        match self {
            Command::Read => 0,
            Command::Write => 1,
            Command::Disconnect => 2,
            Command::Flush => 3,
            Command::Trim => 4,
            Command::WriteZeroes => 6,
        }
    }
}

/// One answer: `error` is the protocol's errno, 0 for success.
#[derive(Debug)]
pub struct Reply {
    pub cookie: u64,
    pub error: u32,
    pub data: Vec<u8>,
}

/// One connection in the transmission phase.
#[derive(Debug)]
pub struct Client {
    stream: UnixStream,
    size: u64,
    flags: u16,
    next_cookie: u64,
    read_lengths: HashMap<u64, usize>,
}

/// No single wait is longer than this: a server that goes silent fails the test instead of hanging it.
const PATIENCE: Duration = Duration::from_mins(1);

impl Client {
    pub fn connect(export: &Export) -> Result<Self> {
        let mut stream = Self::greet(export)?;
        stream.write_all(&wire::option(wire::OPTION_GO, &wire::go_data(&export.name)))?;
        let (size, flags) = read_go_replies(&mut stream)?;
        Ok(Self { stream, size, flags, next_cookie: 1, read_lengths: HashMap::new() })
    }

    /// Connects and exchanges greetings; what follows is options.
    pub fn greet(export: &Export) -> Result<UnixStream> {
        let mut stream =
            connect(&export.address).with_context(|| format!("connecting to {}", export.uri()))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        let greeting: [u8; 18] = read_array(&mut stream)?;
        let magics = [wire::SERVER_MAGIC.to_be_bytes(), wire::OPTION_MAGIC.to_be_bytes()].concat();
        if greeting[..16] != magics {
            bail!("the server greets with {greeting:02x?}");
        }
        if greeting[17] & 1 == 0 {
            bail!("the server does not offer fixed newstyle");
        }
        stream.write_all(&wire::CLIENT_FLAGS.to_be_bytes())?;
        Ok(stream)
    }

    pub fn size(&self) -> u64 {
        self.size
    }

    /// Whether a flush on this connection covers what other connections wrote.
    pub fn can_multi_conn(&self) -> bool {
        self.flags & wire::FLAG_CAN_MULTI_CONN != 0
    }

    /// The connection itself, for tests that misuse it.
    pub fn stream(&mut self) -> &mut UnixStream {
        &mut self.stream
    }

    /// Sends one request and returns its cookie. `payload` is the data of a write, empty otherwise.
    pub fn send(
        &mut self,
        command: Command,
        flags: u16,
        offset: u64,
        length: usize,
        payload: &[u8],
    ) -> Result<u64> {
        let cookie = self.next_cookie;
        self.next_cookie += 1;
        if command == Command::Read {
            self.read_lengths.insert(cookie, length);
        }
        let length = u32::try_from(length).context("a request is at most 4 GiB")?;
        let header = wire::request(flags, command.number(), cookie, offset, length);
        self.stream.write_all(&header)?;
        self.stream.write_all(payload)?;
        Ok(cookie)
    }

    /// Waits for the next reply, whichever request it answers.
    pub fn receive(&mut self) -> Result<Reply> {
        let header: [u8; 16] = read_array(&mut self.stream)?;
        if header[..4] != wire::SIMPLE_REPLY_MAGIC.to_be_bytes() {
            bail!("the reply begins with {:02x?}", &header[..4]);
        }
        let error = u32::from_be_bytes(header[4..8].try_into().expect("4 bytes"));
        let cookie = u64::from_be_bytes(header[8..].try_into().expect("8 bytes"));
        let length = self.read_lengths.remove(&cookie).filter(|_| error == 0).unwrap_or(0);
        let mut data = vec![0; length];
        self.stream.read_exact(&mut data)?;
        Ok(Reply { cookie, error, data })
    }

    fn ask(
        &mut self,
        command: Command,
        flags: u16,
        offset: u64,
        length: usize,
        payload: &[u8],
    ) -> Result<Reply> {
        let cookie = self.send(command, flags, offset, length, payload)?;
        let reply = self.receive()?;
        if reply.cookie != cookie {
            bail!("asked with cookie {cookie}, answered for {}", reply.cookie);
        }
        Ok(reply)
    }

    fn must(
        &mut self,
        command: Command,
        flags: u16,
        offset: u64,
        length: usize,
        payload: &[u8],
    ) -> Result<Vec<u8>> {
        let reply = self.ask(command, flags, offset, length, payload)?;
        if reply.error != 0 {
            bail!("{command:?} of {length} bytes at {offset} answered with errno {}", reply.error);
        }
        Ok(reply.data)
    }

    pub fn read(&mut self, offset: u64, length: usize) -> Result<Vec<u8>> {
        self.must(Command::Read, 0, offset, length, &[])
    }

    pub fn write(&mut self, offset: u64, data: &[u8]) -> Result<()> {
        self.must(Command::Write, 0, offset, data.len(), data).map(drop)
    }

    pub fn write_fua(&mut self, offset: u64, data: &[u8]) -> Result<()> {
        self.must(Command::Write, wire::COMMAND_FLAG_FUA, offset, data.len(), data).map(drop)
    }

    pub fn flush(&mut self) -> Result<()> {
        self.must(Command::Flush, 0, 0, 0, &[]).map(drop)
    }

    pub fn trim(&mut self, offset: u64, length: usize) -> Result<()> {
        self.must(Command::Trim, 0, offset, length, &[]).map(drop)
    }

    pub fn write_zeroes(&mut self, offset: u64, length: usize) -> Result<()> {
        self.must(Command::WriteZeroes, 0, offset, length, &[]).map(drop)
    }

    /// The errno that a write is answered with: 0 when it succeeds.
    pub fn try_write(&mut self, offset: u64, data: &[u8]) -> Result<u32> {
        Ok(self.ask(Command::Write, 0, offset, data.len(), data)?.error)
    }

    /// The errno that a request without data is answered with.
    pub fn try_command(&mut self, command: Command, offset: u64, length: usize) -> Result<u32> {
        Ok(self.ask(command, 0, offset, length, &[])?.error)
    }

    /// Says goodbye as the protocol wants it.
    pub fn disconnect(mut self) -> Result<()> {
        self.send(Command::Disconnect, 0, 0, 0, &[])?;
        Ok(())
    }

    /// Goes away without a word.
    pub fn abandon(self) -> Result<()> {
        Ok(self.stream.shutdown(Shutdown::Both)?)
    }
}

/// A stream socket is one to the kernel, whatever its family, so one type serves both.
fn connect(address: &Address) -> std::io::Result<UnixStream> {
    match address {
        Address::Unix(socket) => UnixStream::connect(socket),
        Address::Tcp(address) => {
            let stream = TcpStream::connect(address)?;
            stream.set_nodelay(true)?;
            Ok(UnixStream::from(OwnedFd::from(stream)))
        }
    }
}

fn read_array<const N: usize>(stream: &mut UnixStream) -> Result<[u8; N]> {
    let mut bytes = [0; N];
    stream.read_exact(&mut bytes).context("the server ended the connection or went silent")?;
    Ok(bytes)
}

/// One option reply: its type and data.
pub(super) fn read_option_reply(stream: &mut UnixStream) -> Result<(u32, Vec<u8>)> {
    let header: [u8; 20] = read_array(stream)?;
    if header[..8] != wire::OPTION_REPLY_MAGIC.to_be_bytes() {
        bail!("the option reply begins with {:02x?}", &header[..8]);
    }
    let kind = u32::from_be_bytes(header[12..16].try_into().expect("4 bytes"));
    let length = u32::from_be_bytes(header[16..].try_into().expect("4 bytes")) as usize;
    if length > 1 << 20 {
        bail!("an option reply of {length} bytes");
    }
    let mut data = vec![0; length];
    stream.read_exact(&mut data)?;
    Ok((kind, data))
}

fn read_go_replies(stream: &mut UnixStream) -> Result<(u64, u16)> {
    let mut export = None;
    loop {
        let (kind, data) = read_option_reply(stream)?;
        match kind {
            wire::REPLY_ACK => {
                return export.context("the server acknowledged GO without describing the export");
            }
            wire::REPLY_INFO if data.len() == 12 && data[..2] == wire::INFO_EXPORT.to_be_bytes() => {
                let size = u64::from_be_bytes(data[2..10].try_into().expect("8 bytes"));
                let flags = u16::from_be_bytes(data[10..].try_into().expect("2 bytes"));
                export = Some((size, flags));
            }
            wire::REPLY_INFO => {}
            error => bail!("GO was answered with {error:#x}: {}", String::from_utf8_lossy(&data)),
        }
    }
}
