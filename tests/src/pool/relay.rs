//! A network in a bad mood between the gateway and an endpoint: slow, refusing, answering 503.
//!
//! One request per connection: the request goes on as it came, signature and `Host` included, except that the endpoint is asked to close the connection
//! after its answer.

use anyhow::{Context, Result};
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// What happens to requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mood {
    Fine,
    /// Each takes so long before it goes on.
    Slow(Duration),
    /// Every second one is answered with 503.
    HalfBusy,
    /// Connections are closed at once.
    Refusing,
    /// Credentials are not accepted any more: 403.
    Forbidding,
    /// Nothing that changes the bucket is taken: 403 to puts and deletes.
    ReadOnly,
    /// Nothing more fits: 507 to puts.
    Full,
}

/// The relay; dropping it ends it.
#[derive(Debug)]
pub struct Relay {
    address: SocketAddr,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    upstream: SocketAddr,
    mood: Mutex<Mood>,
    requests: AtomicU64,
    is_over: AtomicBool,
}

impl Relay {
    /// Listens on a port of its own in front of `http://HOST:PORT`.
    pub fn before(endpoint: &str) -> Result<Self> {
        let upstream =
            endpoint.strip_prefix("http://").context("an endpoint begins with http://")?.parse()?;
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared {
            upstream,
            mood: Mutex::new(Mood::Fine),
            requests: AtomicU64::new(0),
            is_over: AtomicBool::new(false),
        });
        let accepting = Arc::clone(&shared);
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                if accepting.is_over.load(Ordering::SeqCst) {
                    return;
                }
                let shared = Arc::clone(&accepting);
                // A connection that breaks is the gateway's to notice.
                std::thread::spawn(move || drop(shared.serve(client)));
            }
        });
        Ok(Self { address, shared })
    }

    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    pub fn set(&self, mood: Mood) {
        *self.shared.mood.lock().expect("nobody panics with the mood") = mood;
    }

    /// Requests that came so far.
    pub fn requests(&self) -> u64 {
        self.shared.requests.load(Ordering::SeqCst)
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.shared.is_over.store(true, Ordering::SeqCst);
        // The accepting thread looks when somebody comes.
        let _ = TcpStream::connect(self.address);
    }
}

impl Shared {
    fn serve(&self, mut client: TcpStream) -> Result<()> {
        if self.mood() == Mood::Refusing {
            return Ok(client.shutdown(Shutdown::Both)?);
        }
        let (mut head, mut body) = read_head(&mut client)?;
        let number = self.requests.fetch_add(1, Ordering::SeqCst);
        let method = head.split(' ').next().unwrap_or_default().to_owned();
        let is_change = matches!(&*method, "PUT" | "POST" | "DELETE");
        let refusal = match self.mood() {
            Mood::HalfBusy if number % 2 == 1 => Some((503, "SlowDown")),
            Mood::Forbidding => Some((403, "InvalidAccessKeyId")),
            Mood::ReadOnly if is_change => Some((403, "AccessDenied")),
            Mood::Full if method == "PUT" => Some((507, "InsufficientStorage")),
            _ => None,
        };
        let rest = length_of(&head).saturating_sub(body.len());
        let mut tail = vec![0; rest];
        client.read_exact(&mut tail)?;
        body.extend_from_slice(&tail);
        if let Mood::Slow(time) = self.mood() {
            std::thread::sleep(time);
        }
        if let Some((status, code)) = refusal {
            let text = format!(
                "<?xml version=\"1.0\"?><Error><Code>{code}</Code><Message>told to</Message></Error>"
            );
            let answer = format!(
                "HTTP/1.1 {status} {code}\r\nContent-Type: application/xml\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{text}",
                text.len()
            );
            client.write_all(answer.as_bytes())?;
            return Ok(client.shutdown(Shutdown::Both)?);
        }
        let mut upstream = TcpStream::connect(self.upstream)?;
        let end = head.find("\r\n").context("a request has a first line")? + 2;
        head.insert_str(end, "Connection: close\r\n");
        upstream.write_all(head.as_bytes())?;
        upstream.write_all(&body)?;
        std::io::copy(&mut upstream, &mut client)?;
        Ok(client.shutdown(Shutdown::Both)?)
    }

    fn mood(&self) -> Mood {
        *self.mood.lock().expect("nobody panics with the mood")
    }
}

/// The head of a request with the empty line, and what of its body came with it.
fn read_head(client: &mut TcpStream) -> Result<(String, Vec<u8>)> {
    const HEAD_MAX: usize = 64 << 10;
    let (mut bytes, mut piece) = (Vec::new(), [0; 4096]);
    loop {
        let count = client.read(&mut piece)?;
        anyhow::ensure!(count > 0 && bytes.len() < HEAD_MAX, "the request has no end");
        bytes.extend_from_slice(&piece[..count]);
        if let Some(at) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
            let body = bytes.split_off(at + 4);
            return Ok((String::from_utf8(bytes)?, body));
        }
    }
}

fn length_of(head: &str) -> usize {
    let lines = head.lines().filter_map(|line| line.split_once(':'));
    let mut lengths = lines.filter(|(name, _)| name.eq_ignore_ascii_case("content-length"));
    lengths.next().and_then(|(_, value)| value.trim().parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A server that answers each request with the length of its body.
    fn server() -> Result<SocketAddr> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?;
        std::thread::spawn(move || {
            for mut client in listener.incoming().flatten() {
                let Ok((head, body)) = read_head(&mut client) else { continue };
                let mut tail = vec![0; length_of(&head) - body.len()];
                client.read_exact(&mut tail).expect("the body");
                let text = format!("{} {}", length_of(&head), head.contains("Connection: close"));
                let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{text}", text.len());
                client.write_all(answer.as_bytes()).expect("the client reads");
            }
        });
        Ok(address)
    }

    fn ask(relay: &Relay, method: &str, body: &[u8]) -> Result<String> {
        let mut stream = TcpStream::connect(relay.address)?;
        stream.write_all(
            format!("{method} /x HTTP/1.1\r\nContent-Length: {}\r\n\r\n", body.len()).as_bytes(),
        )?;
        stream.write_all(body)?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    }

    #[test]
    fn what_comes_goes_on_whole_and_moods_refuse() -> Result<()> {
        let relay = Relay::before(&format!("http://{}", server()?))?;
        let body = vec![7; 300_000];
        assert!(ask(&relay, "PUT", &body)?.ends_with("300000 true"));
        relay.set(Mood::HalfBusy);
        let answers = [ask(&relay, "GET", b"")?, ask(&relay, "GET", b"")?];
        let busy = answers.iter().filter(|answer| answer.starts_with("HTTP/1.1 503")).count();
        assert_eq!(busy, 1, "{answers:?}");
        relay.set(Mood::ReadOnly);
        assert!(ask(&relay, "PUT", &body)?.starts_with("HTTP/1.1 403"));
        assert!(ask(&relay, "GET", b"")?.starts_with("HTTP/1.1 200"));
        relay.set(Mood::Full);
        assert!(ask(&relay, "PUT", &body)?.starts_with("HTTP/1.1 507"));
        relay.set(Mood::Forbidding);
        assert!(ask(&relay, "GET", b"")?.starts_with("HTTP/1.1 403"));
        assert_eq!(relay.requests(), 7);
        relay.set(Mood::Refusing);
        assert!(ask(&relay, "GET", b"").map_or(true, |answer| answer.is_empty()));
        Ok(())
    }
}
