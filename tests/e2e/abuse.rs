//! Clients that break the protocol, stop halfway or die. Whatever one of them does, the others are served.

use anyhow::{Result, bail};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};
use system_tests::export::Export;
use system_tests::nbd::{Client, Command, wire};
use system_tests::random::Random;
use system_tests::server::Server;

const MIB: u64 = 1 << 20;
const SIZE: u64 = 64 * MIB;

/// A well-behaved client that remembers what it wrote.
struct Witness {
    client: Client,
    turn: u8,
}

impl Witness {
    fn new(export: &Export) -> Result<Self> {
        Ok(Self { client: export.connect()?, turn: 0 })
    }

    /// Writes, flushes and reads; an answer that is wrong or late fails.
    fn works(&mut self) -> Result<()> {
        let started = Instant::now();
        for offset in (SIZE / 2..SIZE / 2 + MIB).step_by(65_536) {
            self.turn = self.turn.wrapping_add(1);
            let data = vec![self.turn; 65_536];
            self.client.write(offset, &data)?;
            self.client.flush()?;
            if self.client.read(offset, 65_536)? != data {
                bail!("the witness did not read what it wrote at {offset}");
            }
        }
        if started.elapsed() > Duration::from_secs(10) {
            bail!("the witness was held up for {:?}", started.elapsed());
        }
        Ok(())
    }
}

/// Waits until the server ends the connection; everything it says before is read and dropped.
fn is_closed_by_server(stream: &mut UnixStream) -> Result<()> {
    stream.set_read_timeout(Some(Duration::from_secs(20)))?;
    let mut sink = [0; 4096];
    loop {
        match stream.read(&mut sink) {
            Ok(0) => return Ok(()),
            Ok(_) => {}
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => return Ok(()),
            Err(error) => bail!("the server kept the connection: {error}"),
        }
    }
}

#[test]
fn garbage_instead_of_a_greeting_ends_only_its_own_connection() -> Result<()> {
    let server = Server::under_test(SIZE)?;
    let mut witness = Witness::new(&server.export())?;
    let mut random = Random::seeded(1);
    for _ in 0..20 {
        let mut garbage = vec![0; 4096];
        random.fill(&mut garbage);
        let mut stream = UnixStream::connect(server.export().socket()?)?;
        // The server may hang up before it has read everything.
        let _ = stream.write_all(&garbage);
        is_closed_by_server(&mut stream)?;
    }
    witness.works()
}

#[test]
fn garbage_instead_of_an_option_ends_only_its_own_connection() -> Result<()> {
    let server = Server::under_test(SIZE)?;
    let mut witness = Witness::new(&server.export())?;
    let mut stream = Client::greet(&server.export())?;
    stream.write_all(&[0x42; 64])?;
    is_closed_by_server(&mut stream)?;
    witness.works()
}

#[test]
fn an_option_of_four_gibibytes_is_not_taken_into_memory() -> Result<()> {
    let server = Server::under_test(SIZE)?;
    let mut witness = Witness::new(&server.export())?;
    let before = server.process()?.resident_bytes()?;
    let mut streams = Vec::new();
    for _ in 0..8 {
        let mut stream = Client::greet(&server.export())?;
        let mut option = wire::option(wire::OPTION_GO, &[]);
        option[12..16].copy_from_slice(&u32::MAX.to_be_bytes());
        stream.write_all(&option)?;
        // The server hangs up, or reads on and drops; it may do either at any byte.
        let _ = stream.write_all(&vec![0; 1 << 20]);
        streams.push(stream);
    }
    witness.works()?;
    let grown = server.process()?.resident_bytes()?.saturating_sub(before);
    assert!(grown < 200 * MIB, "eight oversized options cost {grown} bytes");
    Ok(())
}

#[test]
fn an_unknown_option_is_refused_and_the_negotiation_goes_on() -> Result<()> {
    let server = Server::under_test(SIZE)?;
    let mut stream = Client::greet(&server.export())?;
    stream.write_all(&wire::option(0x7777, b"what is this"))?;
    let mut reply = [0; 20];
    stream.read_exact(&mut reply)?;
    let kind = u32::from_be_bytes(reply[12..16].try_into()?);
    assert_eq!(kind, wire::REPLY_ERROR | 1, "an unknown option is answered with NBD_REP_ERR_UNSUP");
    let length = u32::from_be_bytes(reply[16..].try_into()?);
    std::io::copy(&mut stream.try_clone()?.take(length.into()), &mut std::io::sink())?;
    stream.write_all(&wire::option(wire::OPTION_GO, &wire::go_data(&server.export().name)))?;
    stream.read_exact(&mut reply)?;
    let kind = u32::from_be_bytes(reply[12..16].try_into()?);
    assert!(kind & wire::REPLY_ERROR == 0, "GO was refused with {kind:#x}");
    Ok(())
}

#[test]
fn an_unknown_command_is_refused_and_the_connection_goes_on() -> Result<()> {
    let server = Server::under_test(SIZE)?;
    let mut client = server.export().connect()?;
    client.stream().write_all(&wire::request(0, 77, 4711, 0, 4096))?;
    let reply = client.receive()?;
    assert_eq!((reply.cookie, reply.error), (4711, wire::EINVAL));
    client.write(0, &[1; 4096])?;
    assert_eq!(client.read(0, 4096)?, [1; 4096]);
    Ok(())
}

#[test]
fn a_request_with_the_wrong_magic_ends_only_its_own_connection() -> Result<()> {
    let server = Server::under_test(SIZE)?;
    let mut witness = Witness::new(&server.export())?;
    let mut client = server.export().connect()?;
    let mut request = wire::request(0, 0, 1, 0, 4096);
    request[0] ^= 0xff;
    client.stream().write_all(&request)?;
    is_closed_by_server(client.stream())?;
    witness.works()
}

#[test]
fn offsets_and_lengths_that_overflow_are_refused() -> Result<()> {
    let server = Server::under_test(SIZE)?;
    let mut client = server.export().connect()?;
    for offset in [u64::MAX, u64::MAX - 4095, u64::MAX - SIZE, 1 << 63] {
        assert_eq!(client.try_command(Command::Read, offset, 4096)?, wire::EINVAL, "read at {offset}");
        let refused = client.try_write(offset, &[9; 4096])?;
        assert!([wire::EINVAL, wire::ENOSPC].contains(&refused), "write at {offset} answered with {refused}");
        let refused = client.try_command(Command::WriteZeroes, offset, 0xffff_f000)?;
        assert!(
            [wire::EINVAL, wire::ENOSPC].contains(&refused),
            "zeroing at {offset} answered with {refused}"
        );
    }
    assert_eq!(client.read(0, 65_536)?, vec![0; 65_536]);
    Ok(())
}

#[test]
fn a_write_longer_than_any_limit_harms_nobody() -> Result<()> {
    let server = Server::under_test(SIZE)?;
    let mut witness = Witness::new(&server.export())?;
    let before = server.process()?.resident_bytes()?;
    let mut client = server.export().connect()?;
    client.stream().write_all(&wire::request(0, 1, 1, 0, u32::MAX))?;
    let _ = client.stream().write_all(&vec![0; 1 << 20]);
    witness.works()?;
    let grown = server.process()?.resident_bytes()?.saturating_sub(before);
    assert!(grown < 200 * MIB, "the announcement alone cost {grown} bytes");
    Ok(())
}

#[test]
fn half_a_request_then_silence_holds_nobody_up() -> Result<()> {
    let server = Server::under_test(SIZE)?;
    let mut witness = Witness::new(&server.export())?;
    let mut silent = Vec::new();
    for length in [1, 4, 17, 27] {
        let mut client = server.export().connect()?;
        client.stream().write_all(&wire::request(0, 1, 1, 0, 65_536)[..length])?;
        silent.push(client);
    }
    for length in [0, 1, 4096, 65_535] {
        let mut client = server.export().connect()?;
        client.stream().write_all(&wire::request(0, 1, 1, 0, 65_536))?;
        client.stream().write_all(&vec![0xee; length])?;
        silent.push(client);
    }
    let mut greeted = Vec::new();
    for length in [0, 3, 15, 19] {
        let mut stream = Client::greet(&server.export())?;
        stream.write_all(&wire::option(wire::OPTION_GO, &wire::go_data("disk0"))[..length])?;
        greeted.push(stream);
    }
    witness.works()?;
    drop((silent, greeted));
    witness.works()?;
    // None of the half writes took effect, not even in part.
    assert_eq!(server.export().connect()?.read(0, 65_536)?, vec![0; 65_536]);
    Ok(())
}

#[test]
fn two_hundred_idle_connections_hold_nobody_up() -> Result<()> {
    let server = Server::under_test(SIZE)?;
    let mut idle = Vec::new();
    for _ in 0..200 {
        idle.push(server.export().connect()?);
    }
    Witness::new(&server.export())?.works()?;
    let mut first = idle.swap_remove(0);
    first.write(0, &[3; 4096])?;
    assert_eq!(idle.swap_remove(7).read(0, 4096)?, [3; 4096]);
    Ok(())
}

#[test]
fn a_client_that_never_reads_its_answers_holds_nobody_up() -> Result<()> {
    let server = Server::under_test(SIZE)?;
    let mut witness = Witness::new(&server.export())?;
    let before = server.process()?.resident_bytes()?;
    let mut deaf = server.export().connect()?;
    deaf.stream().set_write_timeout(Some(Duration::from_secs(2)))?;
    for _ in 0..1000 {
        // Sooner or later the server stops reading from this client, as it should.
        if deaf.send(Command::Read, 0, 0, 1 << 20, &[]).is_err() {
            break;
        }
    }
    witness.works()?;
    let grown = server.process()?.resident_bytes()?.saturating_sub(before);
    assert!(grown < 400 * MIB, "a client that does not read cost {grown} bytes");
    Ok(())
}

#[test]
fn a_client_that_dies_with_64_requests_in_flight_leaves_whole_blocks() -> Result<()> {
    let server = Server::under_test(SIZE)?;
    for round in 1..=50_u8 {
        let mut client = server.export().connect()?;
        for request in 0..64 {
            let offset = request * 65_536;
            match request % 4 {
                // Small, so that the answers nobody reads do not stop the server from reading on.
                0 => client.send(Command::Read, 0, offset, 4096, &[])?,
                1 => client.send(Command::Flush, 0, 0, 0, &[])?,
                _ => client.send(Command::Write, 0, offset, 65_536, &vec![round; 65_536])?,
            };
        }
        client.abandon()?;
    }
    let mut witness = Witness::new(&server.export())?;
    witness.works()?;
    let mut client = server.export().connect()?;
    for block in 0..64 * 16 {
        let bytes = client.read(block * 4096, 4096)?;
        assert!(bytes.iter().all(|byte| *byte == bytes[0]), "block {block} is torn between two writes");
    }
    Ok(())
}
