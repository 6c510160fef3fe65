//! A raw client: it sends whatever a test says and reads replies as they come.

use std::path::Path;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::UnixStream;

pub(crate) const OPT_EXPORT_NAME: u32 = 1;
pub(crate) const OPT_ABORT: u32 = 2;
pub(crate) const OPT_LIST: u32 = 3;
pub(crate) const OPT_STARTTLS: u32 = 5;
pub(crate) const OPT_INFO: u32 = 6;
pub(crate) const OPT_GO: u32 = 7;
pub(crate) const OPT_STRUCTURED_REPLY: u32 = 8;
pub(crate) const OPT_LIST_META_CONTEXT: u32 = 9;
pub(crate) const OPT_SET_META_CONTEXT: u32 = 10;
pub(crate) const OPT_EXTENDED_HEADERS: u32 = 11;

pub(crate) const REP_ACK: u32 = 1;
pub(crate) const REP_SERVER: u32 = 2;
pub(crate) const REP_INFO: u32 = 3;
pub(crate) const REP_META_CONTEXT: u32 = 4;
pub(crate) const REP_ERR_UNSUP: u32 = 0x8000_0001;
pub(crate) const REP_ERR_POLICY: u32 = 0x8000_0002;
pub(crate) const REP_ERR_INVALID: u32 = 0x8000_0003;
pub(crate) const REP_ERR_TLS_REQD: u32 = 0x8000_0005;
pub(crate) const REP_ERR_UNKNOWN: u32 = 0x8000_0006;
pub(crate) const REP_ERR_TOO_BIG: u32 = 0x8000_0009;
pub(crate) const REP_ERR_EXT_HEADER_REQD: u32 = 0x8000_000a;

pub(crate) const READ: u16 = 0;
pub(crate) const WRITE: u16 = 1;
pub(crate) const DISC: u16 = 2;
pub(crate) const FLUSH: u16 = 3;
pub(crate) const TRIM: u16 = 4;
pub(crate) const CACHE: u16 = 5;
pub(crate) const WRITE_ZEROES: u16 = 6;
pub(crate) const BLOCK_STATUS: u16 = 7;

pub(crate) const FLAG_FUA: u16 = 1;
pub(crate) const FLAG_NO_HOLE: u16 = 2;
pub(crate) const FLAG_DF: u16 = 4;
pub(crate) const FLAG_REQ_ONE: u16 = 8;
pub(crate) const FLAG_FAST_ZERO: u16 = 16;
pub(crate) const FLAG_PAYLOAD_LEN: u16 = 32;

pub(crate) const EPERM: u32 = 1;
pub(crate) const EIO: u32 = 5;
pub(crate) const EINVAL: u32 = 22;
pub(crate) const ENOSPC: u32 = 28;
pub(crate) const EOVERFLOW: u32 = 75;
pub(crate) const ESHUTDOWN: u32 = 108;

pub(crate) const CHUNK_NONE: u16 = 0;
pub(crate) const CHUNK_DATA: u16 = 1;
pub(crate) const CHUNK_HOLE: u16 = 2;
pub(crate) const CHUNK_STATUS: u16 = 5;
pub(crate) const CHUNK_STATUS_EXT: u16 = 6;
pub(crate) const CHUNK_ERROR: u16 = 0x8001;

pub(crate) trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<S: AsyncRead + AsyncWrite + Unpin + Send> Stream for S {}

pub(crate) struct Client {
    pub(crate) stream: Box<dyn Stream>,
    pub(crate) extended: bool,
}

#[derive(Debug, PartialEq, Eq, Clone)]
pub(crate) struct OptionReply {
    pub(crate) kind: u32,
    pub(crate) data: Vec<u8>,
}

/// A structured or extended chunk.
#[derive(Debug, PartialEq, Eq, Clone)]
pub(crate) struct Chunk {
    pub(crate) done: bool,
    pub(crate) kind: u16,
    pub(crate) cookie: u64,
    /// Only extended chunks have it.
    pub(crate) offset: Option<u64>,
    pub(crate) payload: Vec<u8>,
}

impl Chunk {
    /// The error number, of an error chunk.
    pub(crate) fn errno(&self) -> Option<u32> {
        (self.kind == CHUNK_ERROR).then(|| u32::from_be_bytes(self.payload[..4].try_into().unwrap()))
    }
}

pub(crate) fn string(text: &str) -> Vec<u8> {
    [&u32::try_from(text.len()).unwrap().to_be_bytes(), text.as_bytes()].concat()
}

/// Data of INFO and GO.
pub(crate) fn info_data(name: &str, kinds: &[u16]) -> Vec<u8> {
    let mut data = string(name);
    data.extend(u16::try_from(kinds.len()).unwrap().to_be_bytes());
    data.extend(kinds.iter().flat_map(|kind| kind.to_be_bytes()));
    data
}

/// Data of LIST_META_CONTEXT and SET_META_CONTEXT.
pub(crate) fn context_data(name: &str, queries: &[&str]) -> Vec<u8> {
    let mut data = string(name);
    data.extend(u32::try_from(queries.len()).unwrap().to_be_bytes());
    for query in queries {
        data.extend(string(query));
    }
    data
}

impl Client {
    pub(crate) fn new(stream: impl Stream + 'static) -> Self {
        Self { stream: Box::new(stream), extended: false }
    }

    pub(crate) async fn connect(path: &Path) -> Self {
        Self::new(UnixStream::connect(path).await.unwrap())
    }

    /// Connects and does the greeting with fixed newstyle and no zeroes.
    pub(crate) async fn greeted(path: &Path) -> Self {
        let mut client = Self::connect(path).await;
        client.greet(3).await;
        client
    }

    /// In transmission on `name`, simple replies.
    pub(crate) async fn simple(path: &Path, name: &str) -> Self {
        let mut client = Self::greeted(path).await;
        client.go(name).await;
        client
    }

    /// In transmission on `name` with structured replies and `base:allocation` as context.
    pub(crate) async fn structured(path: &Path, name: &str) -> Self {
        let mut client = Self::greeted(path).await;
        assert_eq!(client.option(OPT_STRUCTURED_REPLY, &[]).await.kind, REP_ACK);
        client.select_allocation(name).await;
        client.go(name).await;
        client
    }

    /// In transmission on `name` with extended headers and `base:allocation` as context.
    pub(crate) async fn extended(path: &Path, name: &str) -> Self {
        let mut client = Self::greeted(path).await;
        assert_eq!(client.option(OPT_EXTENDED_HEADERS, &[]).await.kind, REP_ACK);
        client.select_allocation(name).await;
        client.go(name).await;
        client.extended = true;
        client
    }

    pub(crate) async fn greet(&mut self, flags: u32) {
        let mut greeting = [0; 18];
        self.stream.read_exact(&mut greeting).await.unwrap();
        assert_eq!(&greeting, b"NBDMAGICIHAVEOPT\0\x03");
        self.send(&flags.to_be_bytes()).await;
    }

    pub(crate) async fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).await.unwrap();
        self.stream.flush().await.unwrap();
    }

    pub(crate) async fn send_option(&mut self, option: u32, data: &[u8]) {
        let mut bytes = b"IHAVEOPT".to_vec();
        bytes.extend(option.to_be_bytes());
        bytes.extend(u32::try_from(data.len()).unwrap().to_be_bytes());
        bytes.extend(data);
        self.send(&bytes).await;
    }

    pub(crate) async fn option_reply(&mut self, option: u32) -> OptionReply {
        let mut head = [0; 20];
        self.stream.read_exact(&mut head).await.unwrap();
        assert_eq!(head[..8], 0x0003_e889_0455_65a9_u64.to_be_bytes());
        assert_eq!(head[8..12], option.to_be_bytes());
        let mut data = vec![0; u32::from_be_bytes(head[16..].try_into().unwrap()) as usize];
        self.stream.read_exact(&mut data).await.unwrap();
        OptionReply { kind: u32::from_be_bytes(head[12..16].try_into().unwrap()), data }
    }

    /// Sends an option that has one reply.
    pub(crate) async fn option(&mut self, option: u32, data: &[u8]) -> OptionReply {
        self.send_option(option, data).await;
        self.option_reply(option).await
    }

    /// Sends an option and reads replies up to the acknowledgement or an error.
    pub(crate) async fn option_replies(&mut self, option: u32, data: &[u8]) -> Vec<OptionReply> {
        self.send_option(option, data).await;
        let mut replies = Vec::new();
        loop {
            let reply = self.option_reply(option).await;
            let last = reply.kind == REP_ACK || reply.kind >= 0x8000_0000;
            replies.push(reply);
            if last {
                return replies;
            }
        }
    }

    pub(crate) async fn select_allocation(&mut self, name: &str) {
        let replies =
            self.option_replies(OPT_SET_META_CONTEXT, &context_data(name, &["base:allocation"])).await;
        assert_eq!(replies.iter().map(|reply| reply.kind).collect::<Vec<_>>(), [REP_META_CONTEXT, REP_ACK]);
    }

    /// Enters transmission; size and transmission flags.
    pub(crate) async fn go(&mut self, name: &str) -> (u64, u16) {
        let replies = self.option_replies(OPT_GO, &info_data(name, &[])).await;
        assert_eq!(replies.last().unwrap().kind, REP_ACK, "{replies:?}");
        let export = &replies[0];
        assert_eq!((export.kind, &export.data[..2]), (REP_INFO, &[0, 0][..]));
        (
            u64::from_be_bytes(export.data[2..10].try_into().unwrap()),
            u16::from_be_bytes(export.data[10..].try_into().unwrap()),
        )
    }

    pub(crate) fn request_bytes(
        &self,
        flags: u16,
        command: u16,
        cookie: u64,
        offset: u64,
        length: u64,
    ) -> Vec<u8> {
        let magic: u32 = if self.extended { 0x21e4_1c71 } else { 0x2560_9513 };
        let mut bytes = magic.to_be_bytes().to_vec();
        bytes.extend(flags.to_be_bytes());
        bytes.extend(command.to_be_bytes());
        bytes.extend(cookie.to_be_bytes());
        bytes.extend(offset.to_be_bytes());
        if self.extended {
            bytes.extend(length.to_be_bytes());
        } else {
            bytes.extend(u32::try_from(length).unwrap().to_be_bytes());
        }
        bytes
    }

    pub(crate) async fn request(&mut self, flags: u16, command: u16, cookie: u64, offset: u64, length: u64) {
        let bytes = self.request_bytes(flags, command, cookie, offset, length);
        self.send(&bytes).await;
    }

    pub(crate) async fn send_write(&mut self, flags: u16, cookie: u64, offset: u64, data: &[u8]) {
        let flags = if self.extended { flags | FLAG_PAYLOAD_LEN } else { flags };
        let mut bytes = self.request_bytes(flags, WRITE, cookie, offset, data.len() as u64);
        bytes.extend(data);
        self.send(&bytes).await;
    }

    /// Error number and cookie of a simple reply.
    pub(crate) async fn simple_reply(&mut self) -> (u32, u64) {
        let mut head = [0; 16];
        self.stream.read_exact(&mut head).await.unwrap();
        assert_eq!(head[..4], 0x6744_6698_u32.to_be_bytes());
        (
            u32::from_be_bytes(head[4..8].try_into().unwrap()),
            u64::from_be_bytes(head[8..].try_into().unwrap()),
        )
    }

    pub(crate) async fn payload(&mut self, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        self.stream.read_exact(&mut bytes).await.unwrap();
        bytes
    }

    pub(crate) async fn chunk(&mut self) -> Chunk {
        let mut head = vec![0; if self.extended { 32 } else { 20 }];
        self.stream.read_exact(&mut head).await.unwrap();
        let magic: u32 = if self.extended { 0x6e8a_278c } else { 0x668e_33ef };
        assert_eq!(head[..4], magic.to_be_bytes(), "not a chunk of the negotiated form: {head:x?}");
        let (offset, length) = if self.extended {
            let length = u64::from_be_bytes(head[24..].try_into().unwrap());
            (Some(u64::from_be_bytes(head[16..24].try_into().unwrap())), usize::try_from(length).unwrap())
        } else {
            (None, u32::from_be_bytes(head[16..].try_into().unwrap()) as usize)
        };
        assert!(length <= (32 << 20) + 8, "no chunk is longer than the payload limit and its offset");
        let payload = self.payload(length).await;
        Chunk {
            done: head[5] & 1 == 1,
            kind: u16::from_be_bytes(head[6..8].try_into().unwrap()),
            cookie: u64::from_be_bytes(head[8..16].try_into().unwrap()),
            offset,
            payload,
        }
    }

    /// All chunks of one reply.
    pub(crate) async fn chunks(&mut self) -> Vec<Chunk> {
        let mut chunks = vec![self.chunk().await];
        while !chunks.last().unwrap().done {
            chunks.push(self.chunk().await);
        }
        chunks
    }

    /// A READ with chunks, put together; an error number if it failed. Asserts that the chunks cover it exactly once.
    pub(crate) async fn read_chunks(&mut self, flags: u16, offset: u64, length: u64) -> Result<Vec<u8>, u32> {
        self.request(flags, READ, 77, offset, length).await;
        let mut data = vec![0xee; usize::try_from(length).unwrap()];
        let mut covered = 0;
        for chunk in self.chunks().await {
            assert_eq!(chunk.cookie, 77);
            if let Some(errno) = chunk.errno() {
                return Err(errno);
            }
            let at = u64::from_be_bytes(chunk.payload[..8].try_into().unwrap());
            let at = usize::try_from(at - offset).unwrap();
            let bytes = match chunk.kind {
                CHUNK_DATA => chunk.payload[8..].to_vec(),
                CHUNK_HOLE => vec![0; u32::from_be_bytes(chunk.payload[8..].try_into().unwrap()) as usize],
                other => panic!("chunk type {other} in a read"),
            };
            data[at..at + bytes.len()].copy_from_slice(&bytes);
            covered += bytes.len() as u64;
        }
        assert_eq!(covered, length);
        Ok(data)
    }

    /// Reads with simple replies; an error number if it failed.
    pub(crate) async fn read_simple(&mut self, offset: u64, length: u64) -> Result<Vec<u8>, u32> {
        self.request(0, READ, 78, offset, length).await;
        match self.simple_reply().await {
            (0, 78) => Ok(self.payload(usize::try_from(length).unwrap()).await),
            (errno, 78) => Err(errno),
            (_, cookie) => panic!("cookie {cookie} was not asked for"),
        }
    }

    /// Sends a command without payload and reads its simple reply's error number.
    pub(crate) async fn command(&mut self, flags: u16, command: u16, offset: u64, length: u64) -> u32 {
        self.request(flags, command, 79, offset, length).await;
        let (errno, cookie) = self.simple_reply().await;
        assert_eq!(cookie, 79);
        errno
    }

    pub(crate) async fn write(&mut self, flags: u16, offset: u64, data: &[u8]) -> u32 {
        self.send_write(flags, 80, offset, data).await;
        if self.extended {
            let chunk = self.chunk().await;
            assert!(chunk.done);
            return chunk.errno().unwrap_or(0);
        }
        let (errno, cookie) = self.simple_reply().await;
        assert_eq!(cookie, 80);
        errno
    }

    /// The server closed the connection and sent nothing more.
    pub(crate) async fn assert_closed(&mut self) {
        let mut rest = Vec::new();
        match self.stream.read_to_end(&mut rest).await {
            Ok(_) => assert_eq!(rest, b"", "the server said something more"),
            Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset),
        }
    }
}
